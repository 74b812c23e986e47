"""One trial without Ray, logged to MLflow under the experiment `train`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from gfe_study import interrupts, names
from gfe_study.config import Trial, flatten, to_yaml
from gfe_study.data.base import load_splits
from gfe_study.data.split import Splits
from gfe_study.io.storage import Storage, about_uploads
from gfe_study.measures.preparation import prepared
from gfe_study.metrics import DIVERGED, result_of
from gfe_study.provenance import package_versions, provenance
from gfe_study.study.images import kept_in
from gfe_study.study.recorder import artifact_files, floor_tag, trial_tags
from gfe_study.study.runner import CONTINUATION, device_name, pin_threads, run_trial
from gfe_study.tracking.client import Tracker
from gfe_study.tracking.runs import FINISHED, RUNNING, Change
from gfe_study.tracking.uri import writable

EXPERIMENT = "train"


class Single(NamedTuple):
    """What came of a trial.

    Attributes:
        result: its metrics at the lowest validation loss.
        fingerprint: of the trial.
        problems: what did not end it.
        decoder: the decoder's file.
    """

    result: dict[str, float]
    fingerprint: str
    problems: list[str]
    decoder: Path


def run_single(
    trial: Trial,
    storage: Storage,
    cpus: int,
    report: Callable[[dict[str, float]], None],
    problem: Callable[[str], None],
) -> Single:
    """Run a trial, or continue it where it was interrupted.

    Args:
        trial: the trial.
        storage: where its checkpoints go.
        cpus: number of threads.
        report: called with every new point.
        problem: called with every problem that does not end the trial.

    Raises:
        InputError: the data, the folder or the store cannot be used.
    """
    pin_threads(cpus)
    splits: Splits = load_splits(trial, download=True)
    fingerprint = trial.fingerprint(splits.sha256)
    mirror = storage.folder(EXPERIMENT, fingerprint)
    folder = mirror.local
    writable(folder, "choose another --storage")
    mirror.check()
    splits = prepared(trial, splits, keep=kept_in(storage.folder(EXPERIMENT)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tracker = Tracker(EXPERIMENT)
    opening = _opening(trial, splits, fingerprint, device)
    problems: list[str] = []
    points: list[dict[str, float]] = []
    waiting = ""
    with contextlib.ExitStack() as if_interrupted:
        if_interrupted.callback(tracker.kill, fingerprint)
        _write(tracker, opening)
        for update in run_trial(trial, splits, mirror, device):
            for text in update.problems:
                problems.append(text)
                problem(text)
            if update.waiting != waiting:
                waiting = update.waiting
                problem(about_uploads(waiting))
            for point in update.points:
                report(point)
            points.extend(update.points)
            _write(tracker, replace(opening, points=points))
        tags = {DIVERGED: str(bool(points[-1][DIVERGED])).lower()}
        end = replace(opening, status=FINISHED, tags=tags, points=points, files=artifact_files(folder))
        with interrupts.deferred():
            tracker.write([end])
            if_interrupted.pop_all()
    mirror.remove(*CONTINUATION)
    return Single(dict(result_of(points)), fingerprint, problems, folder / names.BEST_CHECKPOINT)


def _write(tracker: Tracker, change: Change) -> None:
    """Write a change whole: a signal in the middle would leave a run that nobody knows of."""
    with interrupts.deferred():
        tracker.write([change])
    interrupts.check()


def _opening(trial: Trial, splits: Splits, fingerprint: str, device: str) -> Change:
    dumped = trial.dump()
    tags = {
        **provenance(),
        **trial_tags(trial, splits.sha256),
        **floor_tag(splits.floor(trial.likelihood, trial.eval.test_images)),
        names.DEVICE: device_name(device),
        names.VERSIONS: package_versions(),
    }
    name = f"{trial.method.name}·{trial.solver.name} {trial.data.label} seed {trial.seed}"
    texts = {names.TRIAL_FILE: to_yaml(dumped)}
    return Change(fingerprint, name, RUNNING, initial_tags=tags, params=flatten(dumped), texts=texts)
