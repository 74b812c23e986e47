"""How long trials take, told from a few seconds of each kind: training and evaluation, at full concurrency."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch

from gfe_study.config import Trial
from gfe_study.data.split import Splits
from gfe_study.methods.base import Diverged, derive_seed
from gfe_study.metrics import COMMON
from gfe_study.optim import scheduled, starts_of
from gfe_study.study.runner import pin_threads
from gfe_study.training import ENCODE_BATCH, TrainingState, evaluate, train_batch

LEAST_BATCHES = 6
PROBED_BYTES = 2**26
"""Of training images that a probe is handed, at most: they go through a pipe."""


@dataclass(frozen=True)
class Estimate:
    """What a trial is expected to take: images it will see, seconds, and the peak memory of its process."""

    images: float
    seconds: float
    memory_bytes: float
    started: float = 0.0
    """Time of the day at which its process was ready."""


def probe_all(
    trials: list[tuple[Trial, Splits]], slots: int, cpus: float, seconds: float
) -> tuple[list[Estimate], float]:
    """An estimate for each trial, `slots` of them timed at once in processes of their own as in a sweep.

    Args:
        seconds: of training spent on each.

    Returns the estimates, and the seconds that it took until a process was ready.
    """
    began = time.time()
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(max_workers=min(slots, len(trials)), mp_context=context) as pool:
        waiting = [
            pool.submit(probe, trial.dump(), probe_excerpt(trial, splits), cpus, seconds) for trial, splits in trials
        ]
        estimates = [done.result() for done in waiting]
    return estimates, min(estimate.started for estimate in estimates) - began


def probe_excerpt(trial: Trial, splits: Splits) -> Splits:
    """What a probe looks at: enough different images, and those that the trial is evaluated on."""
    return replace(
        splits,
        train=splits.train.take(slice(max(ENCODE_BATCH, PROBED_BYTES // splits.shape.size))),
        val=splits.val.take(slice(trial.eval.val_images)),
        test=splits.test.take(slice(max(trial.eval.test_images, ENCODE_BATCH))),
    )


def probe(dumped: dict[str, Any], splits: Splits, cpus: float, seconds: float) -> Estimate:
    """Train for some seconds and evaluate some images, and reckon from that for the whole trial."""
    started = time.time()
    pin_threads(cpus)
    trial = Trial.build(dumped)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learner = trial.method.create(trial, splits.shape, device)
    learner.see(splits.train)
    state = TrainingState(learner, device)
    torch.manual_seed(derive_seed(trial.seed, "training"))
    trained = _training(trial, splits, state, seconds)
    point_seconds = _evaluation(state, splits)
    points = 1 + sum(1 for _ in takewhile(lambda point: point < trained.images, trial.eval.points(trial.budget.images)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Estimate(trained.images, trained.seconds + points * point_seconds, peak, started)


def _phases(trial: Trial) -> list[tuple[int, int]]:
    """Spans of images seen within which a batch costs the same: the steps of the schedules of `optim`."""
    optim = trial.optim
    starts = sorted({*starts_of(optim.updates_per_batch), *starts_of(optim.batch_size)})
    ends = [*starts[1:], trial.budget.images]
    return [
        (start, min(end, trial.budget.images))
        for start, end in zip(starts, ends, strict=True)
        if start < trial.budget.images
    ]


def _training(trial: Trial, splits: Splits, state: TrainingState, seconds: float) -> Estimate:
    phases = _phases(trial)
    images = spent_seconds = spent_nfe = 0.0
    for start, end in phases:
        state.images_seen = start
        rate, nfe = _rates(trial, splits, state, end, seconds / len(phases))
        limits = [float(end - start)]
        if trial.budget.nfe is not None:
            limits.append((trial.budget.nfe - spent_nfe) / max(nfe, 1e-12))
        if trial.budget.seconds is not None:
            limits.append((trial.budget.seconds - spent_seconds) / max(rate, 1e-12))
        seen = max(0.0, min(limits))
        images, spent_seconds, spent_nfe = images + seen, spent_seconds + seen * rate, spent_nfe + seen * nfe
        if seen < end - start:
            break
    return Estimate(images, spent_seconds, 0.0)


def _rates(trial: Trial, splits: Splits, state: TrainingState, end: int, seconds: float) -> tuple[float, float]:
    """Seconds and passes per training image, of the later half of the batches that fit into the time."""
    marks = [(state.images_seen, state.train_seconds, state.passes)]
    began = time.perf_counter()
    while len(marks) <= LEAST_BATCHES or time.perf_counter() - began < seconds:
        # Past the end the same batches stand for more of their kind: the schedule is read at `images_seen`.
        count = min(scheduled(trial.optim.batch_size, state.images_seen), max(1, end - marks[0][0]))
        try:
            train_batch(state, splits.train, count)
        except Diverged:
            break
        marks.append((marks[-1][0] + count, state.train_seconds, state.passes))
        if state.images_seen >= end:
            state.images_seen = marks[0][0]
            if len(marks) > LEAST_BATCHES:
                break
    first, last = marks[len(marks) // 2 if len(marks) > 2 else 0], marks[-1]
    seen = max(1, last[0] - first[0])
    return (last[1] - first[1]) / seen, (last[2] - first[2]) / seen


def _evaluation(state: TrainingState, splits: Splits) -> float:
    """Seconds of a point, reckoned from some test images in every encoding."""
    learner, options = state.learner, state.learner.trial.eval
    count = min(ENCODE_BATCH, len(splits.test))
    val, test = min(options.val_images, len(splits.val)), min(options.test_images, len(splits.test))
    own = evaluate(learner, splits.test, count, state.device)
    timed = [(own, val + test)]
    for encoding in learner.encodings if options.mixed else ():
        timed.append((evaluate(learner, splits.test, count, state.device, encoding), test))
    if options.common and not own.common:
        images = val + (0 if any(found.common for found, _ in timed) else test)
        timed.append((evaluate(learner, splits.test, count, state.device, COMMON), images))
    return sum(found.seconds / count * images for found, images in timed)
