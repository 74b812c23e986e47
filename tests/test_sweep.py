"""Whole sweeps on a real Ray and a real MLflow store, in processes of their own, killed for real."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from sweeps import (
    COMMAND,
    LONGER_STEPS,
    children,
    environment,
    gfe_study,
    history,
    longer_space,
    started,
    table,
    wait_until,
)

from gfe_study import names
from gfe_study.metrics import VAL_LOSS
from gfe_study.study.journal import Journal


@pytest.mark.timeout(300)
def test_smoke_sweep_and_extension(tmp_path: Path) -> None:
    done = gfe_study(tmp_path, "sweep", "smoke")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    for part in (
        "4/4 done",
        "best val_loss",
        "Best trials",
        "-m gfe_study report smoke",
        "-m gfe_study ui",
    ):
        assert part in done.stderr
    runs = children(tmp_path, "smoke")
    assert len(runs) == 4
    for run in runs:
        assert run.info.status == "FINISHED"
        assert [step for step, _, _ in history(tmp_path, run, VAL_LOSS)] == [32, 64, 128, 256]
        wanted = {names.FINGERPRINT, names.GROUP, names.SEED, names.METHOD, names.DATASET, names.DATASET_SHA256}
        wanted |= {names.SPACE, names.SPACE_SHA256, names.DEVICE, names.HOST, names.PRESET}
        assert wanted <= set(run.data.tags)
        assert run.data.params["solver.name"] == "amd"
        client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
        artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert artifacts == {names.TRIAL_FILE, *names.KEPT_FILES, names.RECONSTRUCTION}
    assert len({run.data.tags[names.FINGERPRINT] for run in runs}) == 4

    before = table(tmp_path, "smoke")
    extended = gfe_study(tmp_path, "sweep", "smoke", "--trials", "5", "--json")
    assert extended.returncode == 0, extended.stderr
    assert json.loads(extended.stdout)["trials"] == {"finished": 5}
    after = table(tmp_path, "smoke")
    assert len(after) == 5
    assert before.items() <= after.items()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_trial_outlives_a_damaged_checkpoint(tmp_path: Path) -> None:
    """The file is named, and the trial goes on from the checkpoint before it."""
    longer_space(tmp_path)
    line = ["sweep", "longer.yaml", "--trials", "2"]
    trials = tmp_path / "results" / "longer" / "trials"
    with started(tmp_path, *line) as process:
        ready = lambda: any(trials.glob(f"*/{names.PREVIOUS_CHECKPOINT}"))  # noqa: E731
        wait_until(ready, process, tmp_path / "output.log")
        os.killpg(process.pid, signal.SIGKILL)
    time.sleep(2)  # until the workers have noticed
    damaged = next(trials.glob(f"*/{names.PREVIOUS_CHECKPOINT}")).with_name(names.CHECKPOINT)
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])

    again = gfe_study(tmp_path, "resume", "longer")
    assert again.returncode == 1
    warnings = [text for text in again.stderr.splitlines() if "damaged checkpoint (" in text]
    assert len(warnings) == 1
    assert str(damaged) in warnings[0]
    runs = children(tmp_path, "longer")
    assert [run.info.status for run in runs] == ["FINISHED"] * 2
    for run in runs:
        assert [step for step, _, _ in history(tmp_path, run, VAL_LOSS)] == LONGER_STEPS


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_loses_nothing(tmp_path: Path, number: signal.Signals) -> None:
    longer_space(tmp_path)
    with started(tmp_path, "sweep", "longer.yaml", "--trials", "4") as process:
        reached = lambda: bool(Journal.read(tmp_path / "results" / "longer").points)  # noqa: E731
        wait_until(reached, process, tmp_path / "output.log")
        process.send_signal(number)
        assert process.wait(timeout=60) == 130
    told = (tmp_path / "output.log").read_text()
    assert "interrupted; every result so far is kept" in told
    assert "resume longer  # continue" in told
    assert not [run for run in children(tmp_path, "longer") if run.info.status == "RUNNING"]
    again = gfe_study(tmp_path, "resume", "longer")
    assert again.returncode == 0, again.stderr
    assert [run.info.status for run in children(tmp_path, "longer")] == ["FINISHED"] * 4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_outlives_a_trial_that_raises(tmp_path: Path) -> None:
    longer_space(tmp_path)
    with started(tmp_path, "sweep", "longer.yaml", "--trials", "2") as process:
        asked = lambda: len(Journal.read(tmp_path / "results" / "longer").places) == 2  # noqa: E731
        wait_until(asked, process, tmp_path / "output.log")
        os.killpg(process.pid, signal.SIGKILL)
    time.sleep(2)
    first, second = Journal.read(tmp_path / "results" / "longer").places
    folder = tmp_path / "results" / "longer" / "trials" / first
    if folder.exists():
        folder.rename(tmp_path / "aside")
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file where the trial's folder should be")
    failed = gfe_study(tmp_path, "resume", "longer")
    assert failed.returncode == 1
    assert any(first in text and "failed: " in text for text in failed.stderr.splitlines())
    states = {run.data.tags[names.FINGERPRINT]: run for run in children(tmp_path, "longer")}
    assert states[first].info.status == "FAILED"
    assert "Error" in states[first].data.tags[names.FAILURE]
    assert states[second].info.status == "FINISHED"

    folder.unlink()
    assert gfe_study(tmp_path, "resume", "longer").returncode == 0
    assert [run.info.status for run in children(tmp_path, "longer")] == ["FINISHED"] * 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_ray_cannot_give_is_one_line(tmp_path: Path) -> None:
    """That is more than Ray has, or a Ray that is not there."""
    refused = gfe_study(tmp_path, "sweep", "smoke", "--gpus-per-trial", "64")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("error: --gpus-per-trial: given 64")
    absent = gfe_study(tmp_path, "sweep", "smoke", "--address", "127.0.0.1:9")
    assert absent.returncode == 2
    assert absent.stderr.splitlines()[-1].startswith("error: --address: given '127.0.0.1:9'")
    assert children(tmp_path, "smoke") == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_resume_finds_images_where_the_sweep_did(tmp_path: Path, fashion_folder: Path) -> None:
    line = ["sweep", "smoke", "--trials", "1", "--set", "data.name=fashion_mnist"]
    given = environment(GFE_DATA_DIR=str(fashion_folder))
    first = subprocess.run([*COMMAND, *line], cwd=tmp_path, env=given, capture_output=True, text=True, timeout=200)
    assert first.returncode == 0, first.stderr
    again = gfe_study(tmp_path, "resume", "smoke")
    assert again.returncode == 0, again.stderr
    assert "; 1 already finished" in again.stderr
