"""`gfe-study ui`, in real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from mlflow import MlflowClient
from sweeps import COMMAND, environment


def taken() -> socket.socket:
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    held.listen()
    return held


@pytest.mark.timeout(180)
def test_it_shows_a_study_until_it_is_interrupted(tmp_path: Path) -> None:
    experiment = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").create_experiment("mine")
    with taken() as held:
        port = held.getsockname()[1]
    words = [*COMMAND, "ui", "mine", "--port", str(port)]
    with (tmp_path / "said").open("w") as said:
        shown = subprocess.Popen(words, cwd=tmp_path, env=environment(), stderr=said, stdout=said)
    address = f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs?"
    deadline = time.monotonic() + 120
    while address not in (tmp_path / "said").read_text():
        assert shown.poll() is None, (tmp_path / "said").read_text()
        assert time.monotonic() < deadline, (tmp_path / "said").read_text()
        time.sleep(0.2)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
        assert answer.status == 200
    os.kill(shown.pid, signal.SIGINT)
    assert shown.wait(30) == 0
    assert "interrupted" not in (tmp_path / "said").read_text()
    with socket.socket() as again:  # nothing is left of the server
        assert again.connect_ex(("127.0.0.1", port)) != 0


def test_a_used_port_or_unknown_study_is_one_line(tmp_path: Path) -> None:
    MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").create_experiment("mine")

    def refused(*words: str) -> str:
        done = subprocess.run([*COMMAND, "ui", *words], cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        return done.stderr

    with taken() as held:
        port = held.getsockname()[1]
        assert refused("--port", str(port)).startswith(
            f"error: --port: given {port}; Address already in use; allowed: "
        )
    assert "holds no study 'mien'; did you mean 'mine'?" in refused("mien")


def test_a_server_in_use_is_not_started_again(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "ui"], cwd=tmp_path, env=environment(MLFLOW_TRACKING_URI="http://me:secret@runs.example:80/"),
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "http://me:***@runs.example:80/\n")
