"""Studies on a real S3 server: outages, another machine, every command with the URL."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sweeps import COMMAND, LONGER_STEPS, SECONDS_LIMIT, children, environment, history, longer_space, wait_until

from gfe_study import names
from gfe_study.io.storage import FILES_UPLOADED, FILES_WAIT
from gfe_study.metrics import VAL_LOSS
from services.s3 import S3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

URL = "s3://lab/results"
SECONDS_AWAY = 60


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3]:
    server = S3(tmp_path / "s3", "lab")
    server.start()
    try:
        yield server
    finally:
        server.stop()


def run(s3: S3, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env=environment(**s3.settings),
        capture_output=True,
        text=True,
        timeout=SECONDS_LIMIT,
    )


def study_to_disturb(folder: Path) -> None:
    """Twelve trials of some seconds each."""
    folder.mkdir()
    longer_space(folder)
    declared: dict[str, Any] = yaml.safe_load((folder / "longer.yaml").read_text())
    (folder / "longer.yaml").write_text(yaml.safe_dump({**declared, "trials": 6, "seeds": 2}))


def points_of(s3_folder: Path) -> int:
    journal = s3_folder / "lab" / "results" / "longer" / "journal.jsonl._S3rver_object"
    return journal.read_text().count('"event": "points"') if journal.exists() else 0


def test_an_outage_and_a_kill_lose_nothing(s3: S3, tmp_path: Path) -> None:
    """The server is away for a minute; later the driver is killed, and another machine goes on."""
    one = tmp_path / "one"
    study_to_disturb(one)
    log = one / "output.log"
    with log.open("ab") as written:
        command = [*COMMAND, "sweep", "longer.yaml", "--storage", URL]
        process = subprocess.Popen(
            command, cwd=one, env=environment(**s3.settings), stdout=written, stderr=written, start_new_session=True
        )
        try:
            wait_until(lambda: points_of(tmp_path / "s3") >= 2, process, log)
            s3.stop()
            away = time.monotonic()
            wait_until(lambda: FILES_WAIT in log.read_text(), process, log)
            while time.monotonic() - away < SECONDS_AWAY:
                assert process.poll() is None, log.read_text()
                time.sleep(0.5)
            s3.start()
            wait_until(lambda: FILES_UPLOADED in log.read_text(), process, log)
            before = points_of(tmp_path / "s3")
            wait_until(lambda: points_of(tmp_path / "s3") > before, process, log)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert "failed" not in log.read_text()

    two = tmp_path / "two"  # a machine that has the URL and the store alone
    two.mkdir()
    shutil.copy(one / "mlflow.db", two)
    resumed = run(s3, two, "resume", "longer", "--storage", URL)
    assert resumed.returncode == 0, resumed.stderr
    assert "12 of 12 trials finished, 0 failed" in resumed.stderr
    runs = children(two, "longer")
    assert sorted(trial.info.status for trial in runs) == ["FINISHED"] * 12
    for trial in runs:
        assert [step for step, _, _ in history(two, trial, VAL_LOSS)] == LONGER_STEPS
    check_commands(s3, tmp_path / "three", two / "mlflow.db")


def check_commands(s3: S3, folder: Path, store: Path) -> None:
    """Every command works with the URL from an empty folder, and its advice can be pasted."""
    folder.mkdir()
    shutil.copy(store, folder)
    status = run(s3, folder, "status", "--storage", URL)
    assert (status.returncode, "longer: 12 finished" in status.stdout) == (0, True), status.stderr
    report = run(s3, folder, "report", "longer", "--storage", URL)
    assert report.returncode == 0, report.stderr
    page, *_ = report.stdout.splitlines()
    assert (folder / page).read_text().startswith("<!doctype html>")
    uploaded = folder.parent / "s3" / "lab" / "results" / "longer" / "report" / "report.html._S3rver_object"
    assert uploaded.read_bytes() == (folder / page).read_bytes()
    doctor = run(s3, folder, "doctor", "--storage", URL)
    assert doctor.returncode == 0, doctor.stdout
    assert "study longer: no orphaned run" in doctor.stdout
    smaller = ["--set", "solver=amd", "--set", "data.name=digits", "--set", "budget.images=64"]
    trained = run(s3, folder, "train", *smaller, "--storage", URL, "--json")
    assert trained.returncode == 0, trained.stderr
    fingerprint = yaml.safe_load(trained.stdout)[names.FINGERPRINT]
    decoder = f"{URL}/train/{fingerprint}/best.pt"
    np.save(folder / "images.npy", np.zeros((2, 64), dtype="float32"))
    encoded = run(s3, folder, "encode", decoder, "--images", "images.npy", "--out", "encoded.npz")
    assert encoded.returncode == 0, encoded.stderr
    again = run(s3, folder, "train", "--config", decoder, "--storage", URL)
    assert again.returncode == 0, again.stderr
    absent = run(s3, folder, "encode", f"{URL}/none.pt", "--images", "images.npy", "--out", "encoded.npz")
    assert (absent.returncode, absent.stderr) == (2, f"error: {URL}/none.pt: no such file\n")
    assert not list(folder.glob("s3*"))


def test_a_missing_bucket_is_named_not_created(s3: S3, tmp_path: Path) -> None:
    for arguments in (["sweep", "smoke"], ["status"], ["train", "--set", "data.name=digits"]):
        done = run(s3, tmp_path / "work", *arguments, "--storage", "s3://elsewhere/results")
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.splitlines()[-1:]
        assert "there is no bucket 'elsewhere': create it first" in line
    assert [path.name for path in (tmp_path / "s3").iterdir()] == ["lab"]
