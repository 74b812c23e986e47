"""Studies that lose their driver, a worker, their disk or a trial, for real."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from sweeps import (
    COMMAND,
    LONGER_STEPS,
    children,
    environment,
    finished_count,
    gfe_study,
    history,
    longer_space,
    started,
    table,
    wait_until,
)

from gfe_study import names
from gfe_study.config import space_files
from gfe_study.metrics import DIVERGED, TEST_LOSS, VAL_LOSS
from gfe_study.study.journal import Journal

KILLS = 10
TRIALS = 20


def space(folder: Path, name: str, **changes: Any) -> None:
    """The smoke space with some of its top-level keys changed, as `name`.yaml."""
    declared: dict[str, Any] = yaml.safe_load(space_files()["smoke"].read_text())
    for key, value in changes.items():
        declared[key] = {**declared.get(key, {}), **value} if key == "fixed" else value
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(declared, sort_keys=False))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_kills_of_the_driver_change_no_number(tmp_path: Path) -> None:
    """The searched values come from TPE, so that equal tables mean that it has seen every result once.

    Every second kill is of the driver's process alone, as the memory's keeper does it: Ray's processes outlive it, and
    the next driver starts beside them.
    """
    draw = random.Random(int.from_bytes(os.urandom(4), "big"))
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    for folder in (calm, wild):
        folder.mkdir()
        longer_space(folder)
    line = ["sweep", "longer.yaml", "--trials", str(TRIALS)]
    waits = [1.0, *(draw.uniform(1.0, 22.0) for _ in range(KILLS - 1))]
    groups = []
    try:
        for number, wait in enumerate(waits):
            with started(wild, *line) as process:
                groups.append(process.pid)
                time.sleep(wait)
                if process.poll() is None:
                    (os.kill if number % 2 else os.killpg)(process.pid, signal.SIGKILL)
        assert gfe_study(wild, *line).returncode == 0, waits
    finally:
        for group in groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
    undisturbed = gfe_study(calm, *line)
    assert undisturbed.returncode == 0, undisturbed.stderr
    runs = children(wild, "longer")
    assert len(runs) == len({run.data.tags[names.FINGERPRINT] for run in runs}) == TRIALS
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        steps = [step for step, _, _ in history(wild, run, VAL_LOSS)]
        assert steps == LONGER_STEPS
    assert table(wild, "longer") == table(calm, "longer"), waits


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_goes_on_and_names_bad_trials(tmp_path: Path) -> None:
    """One trial hangs, one runs out of memory, and one diverges."""
    arms = {
        "ok": {"optim.lr": 1e-3},
        "slow": {"budget.images": 100_000, "optim.lr": 1e-3},
        "large": {"solver.window": 10**12},
        "diverges": {"optim.lr": 1e30},
    }
    space(tmp_path, "bad", scientific={"arms": arms}, nuisance={}, start_from=[], trials=1, hang_seconds=8.0)

    def journal() -> Journal:
        return Journal.read(tmp_path / "results" / "bad")

    def slow() -> list[str]:
        return [c.fingerprints[0] for c in journal().membership if c.arm == "slow"]

    def under_way() -> bool:
        return bool(slow()) and bool(journal().points.get(slow()[0]))

    with started(tmp_path, "sweep", "bad.yaml", "--json") as process:
        wait_until(under_way, process, tmp_path / "output.log")
        (worker,) = owners(tmp_path / "results" / "bad" / "trials" / slow()[0] / ".lock")
        os.kill(worker, signal.SIGSTOP)
        assert process.wait(timeout=300) == 1, (tmp_path / "output.log").read_text()
    runs = {run.data.tags[names.ARM]: run for run in children(tmp_path, "bad")}
    states = {arm: run.info.status for arm, run in runs.items()}
    assert states == {"ok": "FINISHED", "slow": "FAILED", "large": "FAILED", "diverges": "FINISHED"}
    assert runs["slow"].data.tags[names.FAILURE].startswith("hung: no report for 8 s")
    assert "memory" in runs["large"].data.tags[names.FAILURE]
    assert runs["diverges"].data.tags[DIVERGED] == "true"
    told = (tmp_path / "output.log").read_text()
    assert "trial 0 seed 0 of arm 'large'" in told
    failures = json.loads(told.splitlines()[-1])["failures"]
    assert {reason.split(":")[0] for reason in failures.values()} == {"hung", "RuntimeError"}


def owners(lock: Path) -> list[int]:
    """Processes that have a file open."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if entry.readlink() == lock:
                found.append(int(entry.parts[2]))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_another_study_takes_over_finished_trials(tmp_path: Path) -> None:
    """On request they are run again, with the same results."""
    first = gfe_study(tmp_path, "sweep", "smoke", "--trials", "3")
    assert first.returncode == 0, first.stderr
    other = gfe_study(tmp_path, "sweep", "smoke", "--trials", "3", "--study", "other", "--json")
    assert other.returncode == 0, other.stderr
    assert json.loads(other.stdout)["taken_over"] == {"smoke": 3}
    assert "starting Ray" not in other.stderr
    assert table(tmp_path, "other") == table(tmp_path, "smoke")
    assert {run.data.tags[names.REUSED_FROM] for run in children(tmp_path, "other")} == {"smoke"}
    assert gfe_study(tmp_path, "encode", *encode_arguments(tmp_path, "other")).returncode == 0

    before = table(tmp_path, "other")
    again = gfe_study(tmp_path, "sweep", "smoke", "--trials", "3", "--study", "other", "--no-reuse", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["taken_over"] == {}
    runs = [run for run in children(tmp_path, "other") if run.data.tags[names.ROLE] == names.ROLE_TRIAL]
    assert len(runs) == 3
    assert not any(names.REUSED_FROM in run.data.tags for run in runs)
    fresh = {
        run.data.tags[names.FINGERPRINT]: [(step, value) for step, value, _ in history(tmp_path, run, VAL_LOSS)]
        for run in runs
    }
    assert fresh == before


def encode_arguments(folder: Path, study: str) -> list[str]:
    import numpy as np

    np.save(folder / "mine.npy", np.zeros((2, 8, 8), dtype=np.uint8))
    decoder = next((folder / "results" / study / "trials").glob(f"*/{names.BEST_CHECKPOINT}"))
    return [str(decoder), "--images", "mine.npy", "--out", "out.npz"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_another_machine_resumes_a_study_on_a_url(tmp_path: Path) -> None:
    """Two working folders stand for two machines: they share the URL and the tracking store, and nothing else."""
    here, there, shared = (tmp_path / name for name in ("here", "there", "shared"))
    for folder in (here, there):
        folder.mkdir()
        longer_space(folder)
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    url = f"file://{shared}"
    line = [*COMMAND, "sweep", "longer.yaml", "--trials", "6", "--storage", url]
    with (tmp_path / "output.log").open("ab") as log:
        process = subprocess.Popen(
            line, cwd=here, env=environment(**store), stdout=log, stderr=log, start_new_session=True
        )
        try:
            done = lambda: finished_count(shared.parent, "longer", "shared") >= 2  # noqa: E731
            wait_until(done, process, tmp_path / "output.log")
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    command = [*COMMAND, "resume", "longer", "--storage", url]
    again = subprocess.run(command, cwd=there, env=environment(**store), capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    assert "already finished" in again.stderr
    runs = children(tmp_path, "longer")
    assert len(runs) == len({run.data.tags[names.FINGERPRINT] for run in runs}) == 6
    for run in runs:
        assert run.info.status == "FINISHED"
        assert [step for step, _, _ in history(tmp_path, run, VAL_LOSS)] == LONGER_STEPS
    files = {path.name for path in (shared / "longer" / "trials").glob("*/*")}
    assert names.BEST_CHECKPOINT in files
    assert names.CHECKPOINT not in files


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_quota_stops_a_study_until_it_is_raised(tmp_path: Path) -> None:
    line = ["sweep", "smoke", "--trials", "6"]
    stopped = gfe_study(tmp_path, *line, "--quota-gb", "0.00001")
    assert stopped.returncode == 1
    (told,) = [text for text in stopped.stderr.splitlines() if text.startswith("stopped: ")]
    assert "the quota is 1e-05 GB: raise --quota-gb" in told
    assert not [run for run in children(tmp_path, "smoke") if run.info.status == "RUNNING"]
    ended = gfe_study(tmp_path, *line, "--quota-gb", "1")
    assert ended.returncode == 0, ended.stderr
    assert len(children(tmp_path, "smoke")) == 6
    kept = list((tmp_path / "results" / "smoke" / "trials").glob("*/*.pt"))
    assert [path.name for path in kept] == [names.BEST_CHECKPOINT] * 5


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_second_stage_replicates_and_is_judged(tmp_path: Path) -> None:
    arms = {"slow": {"solver.beta": 0.9}, "quick": {"optim.updates_per_batch": 3}}
    space(
        tmp_path,
        "arms",
        scientific={"arms": arms},
        trials=2,
        then={"best": 1, "seeds": 3, "budget": {"images": 320}},
        compare={"reference": "slow", "margin": 0.001},
    )
    done = gfe_study(tmp_path, "sweep", "arms.yaml", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["trials"] == {"finished": 2 * 2 + 2 * 3}
    reference, treated = told["verdict"]["rows"]
    assert (reference["arm"], treated["arm"], treated["seeds"]) == ("slow", "quick", [1, 2, 3])
    values: dict[str, dict[str, float]] = {"slow": {}, "quick": {}}
    for run in children(tmp_path, "arms"):
        if run.data.tags[names.STAGE] == "1":
            values[run.data.tags[names.ARM]][run.data.tags[names.SEED]] = run.data.metrics[TEST_LOSS]
    groups = {(run.data.tags[names.ARM], run.data.tags[names.GROUP]) for run in children(tmp_path, "arms")}
    assert len(groups) == 2 * 2 + 2  # the winners of the second stage have another budget
    differences = [values["quick"][seed] - values["slow"][seed] for seed in "123"]
    assert treated["paired"]["difference"] == pytest.approx(sum(differences) / 3)
    assert treated["images"] == 320
