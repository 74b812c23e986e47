"""A Ray of several nodes on this machine, which asks for a token, while nodes join it and die."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from stores import free_port
from sweeps import LONGER_STEPS, children, environment, finished_count, history, longer_space, started, wait_until

from gfe_study import names
from gfe_study.metrics import VAL_LOSS
from gfe_study.study.journal import Journal

TRIALS = 60


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", os.urandom(32).hex())


@contextmanager
def node(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Ray node in a process group of its own, in the foreground, gone at the end."""
    command = [str(Path(sys.executable).with_name("ray")), "start", *arguments, "--block", "--disable-usage-stats"]
    with (folder / "nodes.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment(), stdout=log, stderr=log, start_new_session=True)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=40)  # Ray drains a node for up to 30 s
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def raylet_of(process: subprocess.Popen[bytes]) -> int:
    """The pid of a node's raylet."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,comm"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    return next(int(pid) for pid, parent, name in rows if int(parent) == process.pid and name.startswith("raylet"))


def side_by_side(folder: Path, study: str) -> set[str]:
    """How many trials could run at a time when each trial was placed."""
    journal = Journal.read(folder / "results" / study)
    return {place[names.SIDE_BY_SIDE] for places in journal.places.values() for place in places}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_study_survives_nodes_that_join_and_die(tmp_path: Path) -> None:
    """The nodes have logical GPUs, half of one a trial: which one a trial was granted is a tag.

    A head and two workers, one of which joins while the sweep runs; then the other one is killed.
    """
    longer_space(tmp_path)
    port = free_port()
    head = ["--head", f"--port={port}", "--num-cpus=1", "--num-gpus=1", "--include-dashboard=false"]
    worker = [f"--address=127.0.0.1:{port}", "--num-cpus=1", "--num-gpus=1"]
    line = ["sweep", "longer.yaml", "--trials", str(TRIALS), "--gpus-per-trial", "0.5"]
    line += ["--address", f"127.0.0.1:{port}"]
    log = tmp_path / "output.log"

    def done(count: int) -> Callable[[], bool]:
        return lambda: finished_count(tmp_path, "longer") >= count

    with node(tmp_path, *head):
        wait_until(lambda: not socket.socket().connect_ex(("127.0.0.1", port)), None, tmp_path / "nodes.log")
        with node(tmp_path, *worker) as lost, started(tmp_path, *line) as process:
            wait_until(done(1), process, log)
            with node(tmp_path, *worker):
                wait_until(lambda: "3" in side_by_side(tmp_path, "longer"), process, log)
                os.kill(raylet_of(lost), signal.SIGKILL)
                assert process.wait(timeout=300) == 0, log.read_text()
    shown = log.read_text()
    assert "2 trials at a time" in shown
    assert f"{TRIALS} of {TRIALS} trials finished, 0 failed" in shown
    runs = children(tmp_path, "longer")
    assert len(runs) == len({run.data.tags[names.FINGERPRINT] for run in runs}) == TRIALS
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        assert run.data.tags[names.GPUS] == "0"
        assert run.data.tags[names.DEVICE].startswith("cpu")
        steps = [step for step, _, _ in history(tmp_path, run, VAL_LOSS)]
        assert steps == LONGER_STEPS
