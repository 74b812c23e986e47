"""Whole sweeps in processes of their own, and what they left in the store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from gfe_study import names
from gfe_study.config import space_files
from gfe_study.metrics import VAL_LOSS
from gfe_study.study.journal import FINISHED, Journal

COMMAND = [sys.executable, "-m", "gfe_study"]
SECONDS_LIMIT = 240.0


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "GFE_DATA_DIR")}
    return {**kept, **more}


def gfe_study(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command, variables = [*COMMAND, *arguments], environment(**settings)
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=SECONDS_LIMIT)


def assert_one_line(err: str, *parts: str) -> None:
    """Assert that an error is one line, with these parts."""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


@contextmanager
def started(folder: Path, *arguments: str, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """A sweep in a process group of its own, gone at the end whatever happens."""
    command, variables = [*COMMAND, *arguments], environment(**settings)
    with (folder / "output.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log, start_new_session=True)
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes] | None, log: Path) -> None:
    deadline = time.monotonic() + SECONDS_LIMIT
    while not ready():
        assert process is None or process.poll() is None, f"the sweep ended early:\n{log.read_text()}"
        assert time.monotonic() < deadline, f"the sweep is too slow:\n{log.read_text()}"
        time.sleep(0.1)


def children(folder: Path, study: str, uri: str = "") -> list[Run]:
    """A study's trials in the store of a folder, or in another one."""
    client = MlflowClient(tracking_uri=uri or f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(study)
    assert experiment is not None
    runs = list(client.search_runs([experiment.experiment_id]))
    parents = [run for run in runs if run.data.tags[names.ROLE] == names.ROLE_STUDY]
    assert len(parents) == 1
    trials = [run for run in runs if run.info.run_id != parents[0].info.run_id]
    assert all(run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id for run in trials)
    return trials


def history(folder: Path, run: Run, metric: str, uri: str = "") -> list[tuple[int, float, int]]:
    client = MlflowClient(tracking_uri=uri or f"sqlite:///{folder / 'mlflow.db'}")
    return [(entry.step, entry.value, entry.timestamp) for entry in client.get_metric_history(run.info.run_id, metric)]


def finished_count(folder: Path, study: str, storage: str = "results") -> int:
    journal = Journal.read(folder / storage / study)
    return sum(outcome.state == FINISHED for outcome in journal.outcomes.values())


LONGER_STEPS = [64, 128, 256, 512, 1024, 4096]


def longer_space(folder: Path) -> None:
    """The smoke space with trials of some seconds, so that a kill finds some under way."""
    declared: dict[str, Any] = yaml.safe_load(space_files()["smoke"].read_text())
    declared["fixed"]["eval"] |= {"schedule": LONGER_STEPS[:-1]}
    declared |= {"budget": {"images": LONGER_STEPS[-1]}}
    (folder / "longer.yaml").write_text(yaml.safe_dump(declared))


def table(folder: Path, study: str) -> dict[str, list[tuple[int, float]]]:
    """val_loss over images seen of every trial, from the store."""
    runs = children(folder, study)
    return {
        run.data.tags[names.FINGERPRINT]: [(step, value) for step, value, _ in history(folder, run, VAL_LOSS)]
        for run in runs
    }
