"""One trial with its files: training, checkpoints by its own folder, points that are reported once.

Used by the Ray trainable and by `gfe-study train`; knows neither Ray nor MLflow.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock

from gfe_study import names
from gfe_study.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from gfe_study.config import Trial
from gfe_study.data.base import Splits
from gfe_study.study.artifacts import write_best, write_reconstruction
from gfe_study.training import Metrics, Progress, TrainingState, train

SECONDS_BETWEEN_CHECKPOINTS = 20.0
OWNER_TIMEOUT = 120.0
"""Seconds to wait for the process that last ran a trial to be gone."""


@dataclass(frozen=True)
class Report:
    """Points that were reached since the last report; after a continuation, all points so far."""

    points: list[Metrics]
    done: bool
    problems: list[str] = field(default_factory=list)


def run_trial(trial: Trial, splits: Splits, folder: Path, device: str = "cpu") -> Iterator[Report]:
    """Run a trial to the end of its budget, continuing from what its folder holds.

    A checkpoint is on the disk before its point is reported, so that a reported point is never lost. A
    damaged checkpoint is named in the next report's `problems`, and the previous one is continued from.

    Raises:
        OSError: the folder cannot be written; the previous checkpoint is intact.
        filelock.Timeout: another process is still running this trial.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock", timeout=OWNER_TIMEOUT):
        yield from _run(trial, splits, folder, device)


def _run(trial: Trial, splits: Splits, folder: Path, device: str) -> Iterator[Report]:
    progress, problems, points = _continued(trial, splits, folder, device)
    if points or problems:
        yield Report(points, done=False, problems=problems)
    saved_at = time.monotonic()
    best = min((point.get(names.VAL_LOSS, float("inf")) for point in points), default=float("inf"))
    for images_seen, metrics, state in progress:
        if metrics is None:
            if time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS:
                _save(folder, state)
                saved_at = time.monotonic()
            continue
        if metrics.get(names.VAL_LOSS, float("inf")) < best and not metrics[names.DIVERGED]:
            best = metrics[names.VAL_LOSS]
            write_best(folder, state, splits)
        done = images_seen >= trial.budget.images or bool(metrics[names.DIVERGED])
        if done and not metrics[names.DIVERGED]:
            write_reconstruction(folder, state.learner, splits, state.device)
        _save(folder, state)
        saved_at = time.monotonic()
        yield Report([metrics], done)
        if done:
            return
    yield Report([], done=True)


def _save(folder: Path, state: TrainingState) -> None:
    write_checkpoint(folder / names.CHECKPOINT, state.state_dict(), previous=folder / names.PREVIOUS_CHECKPOINT)


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


def remove_checkpoints(folder: Path) -> None:
    """Remove what only a continuation needs; the best decoder and the picture stay."""
    for name in (names.CHECKPOINT, names.PREVIOUS_CHECKPOINT):
        (folder / name).unlink(missing_ok=True)


def pin_threads(cpus: float) -> None:
    """Give torch the threads a trial was granted, so that trials do not fight over cores."""
    torch.set_num_threads(max(1, int(cpus)))
