"""One trial with its files: training, checkpoints by its own folder, points that are reported once.

Used by the Ray trainable and by `gfe-study train`; knows neither Ray nor MLflow.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from filelock import FileLock

from gfe_study import names
from gfe_study.config import Trial
from gfe_study.data.split import Splits
from gfe_study.io.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from gfe_study.io.storage import UPLOAD_RETRY_S, Mirror, StorageError, Uploads
from gfe_study.metrics import DIVERGED, VAL_LOSS
from gfe_study.study.artifacts import write_best, write_reconstruction
from gfe_study.study.snapshots import write_snapshot
from gfe_study.training import Metrics, Progress, TrainingState, train

SECONDS_BETWEEN_CHECKPOINTS = 20.0
SECONDS_BETWEEN_SIGNS = 1.0
"""Between the reports of a trial that is over and waits for its uploads."""
FAILURE_FILE = "failure.txt"
"""In a trial's folder: the trace of what ended it."""
FILES = (names.CHECKPOINT, names.PREVIOUS_CHECKPOINT, *names.KEPT_FILES, names.RECONSTRUCTION)
"""What a trial's folder holds for the next attempt."""
OWNER_TIMEOUT = 120.0
"""Seconds to wait for the process that last ran a trial to be gone."""


@dataclass(frozen=True)
class Report:
    """Points that were reached since the last report; after a continuation, all points so far."""

    points: list[Metrics]
    done: bool
    problems: list[str] = field(default_factory=list)
    waiting: str = ""
    """Why files wait to be uploaded; empty if none does."""


def run_trial(
    trial: Trial, splits: Splits, folder: Mirror, device: str = "cpu", *, may_be_stopped: bool = False
) -> Iterator[Report]:
    """Run a trial to the end of its budget, continuing from what its folder holds.

    A checkpoint is on the disk before its point is reported, so that a reported point is never lost. A
    damaged checkpoint is named in the next report's `problems`, and the previous one is continued from.
    With every checkpoint between points, a report without points says that the trial is alive.

    Of a folder at a URL, files are uploaded while the trial goes on. Only its last report waits for all of them; if the
    trial `may_be_stopped` at any point, every report with points does, as it may be the last.

    Raises:
        OSError: the folder cannot be written; the previous checkpoint is intact.
        filelock.Timeout: another process is still running this trial.
    """
    folder.local.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.local / ".lock", timeout=OWNER_TIMEOUT), Uploads(folder) as uploads:
        yield from _fetched(folder)
        for report in _run(trial, splits, folder.local, device, uploads):
            last = report.done or (may_be_stopped and report.points)
            while last and not uploads.done(SECONDS_BETWEEN_SIGNS):
                yield Report([], done=False, waiting=uploads.problem)
            yield replace(report, waiting=uploads.problem)


def _fetched(folder: Mirror) -> Iterator[Report]:
    """Download what an earlier attempt left, for as long as it takes."""
    while True:
        try:
            found = folder.fetch(*FILES)
        except StorageError as error:
            yield Report([], done=False, waiting=str(error))
            time.sleep(UPLOAD_RETRY_S)
        else:
            if folder.remote is not None:  # what only this machine has is of an earlier time
                for name in {*FILES} - {*found}:
                    (folder.local / name).unlink(missing_ok=True)
            return


def _run(trial: Trial, splits: Splits, folder: Path, device: str, uploads: Uploads) -> Iterator[Report]:
    progress, problems, points = _continued(trial, splits, folder, device)
    if points or problems:
        yield Report(points, done=False, problems=problems)
    saved_at = time.monotonic()
    best = min((point.get(VAL_LOSS, float("inf")) for point in points), default=float("inf"))
    for _, metrics, state in progress:
        if metrics is None:
            if time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS:
                _save(folder, state, uploads)
                saved_at = time.monotonic()
                yield Report([], done=False)
            continue
        done, by_validation = state.over, trial.budget.patience is not None
        lowest = metrics.get(VAL_LOSS, float("inf")) < best and not metrics[DIVERGED]
        if lowest:
            best = metrics[VAL_LOSS]
            write_best(folder, state, splits)
            uploads.add(names.BEST_CHECKPOINT)
        may_be_result = lowest if by_validation else not metrics[DIVERGED]
        if may_be_result:
            write_snapshot(folder, state, splits)
            uploads.add(names.SNAPSHOTS)
        if may_be_result and (done or by_validation):
            write_reconstruction(folder, state.learner, splits, state.device)
            uploads.add(names.RECONSTRUCTION)
        _save(folder, state, uploads)
        saved_at = time.monotonic()
        yield Report([metrics], done)
        if done:
            return
    yield Report([], done=True)


def _save(folder: Path, state: TrainingState, uploads: Uploads) -> None:
    write_checkpoint(folder / names.CHECKPOINT, state.state_dict(), previous=folder / names.PREVIOUS_CHECKPOINT)
    uploads.add(names.CHECKPOINT)


def _continued(
    trial: Trial, splits: Splits, folder: Path, device: str
) -> tuple[Iterator[Progress], list[str], list[Metrics]]:
    """Training from the newest checkpoint that can be read, a line for each that cannot, and its points."""
    problems: list[str] = []
    for name in (names.CHECKPOINT, names.PREVIOUS_CHECKPOINT):
        try:
            state = read_checkpoint(folder / name, device)
            points = list(state["points"])
            return train(trial, splits, state, device), problems, points
        except FileNotFoundError:
            continue
        except (CheckpointError, KeyError) as error:
            before = "the one before it" if name == names.CHECKPOINT else "the beginning"
            problems.append(f"{error}; the trial goes on from {before}")
    return train(trial, splits, None, device), problems, []


CONTINUATION = (names.CHECKPOINT, names.PREVIOUS_CHECKPOINT, FAILURE_FILE)
"""Files that only a trial which is not over needs."""


def reason_of(error: BaseException) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kind = type(error).__name__
    return (f"{kind}: {lines[0]}" if lines else kind)[:300]


def device_name(device: str) -> str:
    """The processor or the GPU by name."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        listed = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        listed = []
    models = [line.partition(":")[2].strip() for line in listed if line.startswith("model name")]
    return f"cpu ({models[0]})" if models else f"cpu ({platform.machine()})"


def num_threads(cpus: float) -> int:
    """Return the number of threads of a trial with this many CPUs."""
    return max(1, int(cpus))


def pin_threads(cpus: float) -> None:
    """Limit torch to the threads that a trial is granted, so that trials do not compete for cores."""
    torch.set_num_threads(num_threads(cpus))
