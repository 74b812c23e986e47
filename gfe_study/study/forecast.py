"""What a sweep would do, without doing it."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gfe_study.config import Hole, Study, Trial
from gfe_study.config.options import IMAGES_WITHOUT_LIMIT, Asha
from gfe_study.data.base import data_folders
from gfe_study.data.split import Splits
from gfe_study.io.storage import Storage
from gfe_study.metrics import DIVERGED, IMAGES_SEEN
from gfe_study.study.images import Images
from gfe_study.study.journal import Journal
from gfe_study.study.options import Options
from gfe_study.study.pace import Kind, share_of, spent
from gfe_study.study.plan import Job, Plan
from gfe_study.study.probe import Estimate, probe_all
from gfe_study.study.reuse import reusable
from gfe_study.study.searcher import add_certain
from gfe_study.study.snapshots import LATENTS, MOMENTS

BYTES_PER_WEIGHT = 4
FLOWS_BYTES = 10e3
"""The flows and pictures of one snapshot, compressed."""
SMALL_FILES_BYTES = 60e3
"""A trial's picture, its configuration, and its rows in journal and store."""
PROBE_SECONDS = 20.0
"""Training time spent on probes, per slot, and no less than `LEAST_PROBE_SECONDS` on each."""
LEAST_PROBE_SECONDS = 1.0
MOST_PROBES_PER_ARM = 6
SECONDS_BETWEEN_TRIALS = 0.1
SECONDS_TO_START = 20.0
"""Ray, its workers and their imports, where neither an earlier start nor a probe tells."""
STARTS_OF_A_PROCESS = 2.5
"""The same in times that it takes to start one process of a probe."""
SHARE_OF_RAY = 1.12
"""Trials are so much slower where all CPUs are given to them, and Ray and the driver run beside them (measured)."""
PROCESS_BYTES = 0.9e9
"""A worker with torch and a small decoder, where no probe has measured one."""
RAY_BYTES = 1.6e9
"""Ray's own processes and the driver."""


@dataclass(frozen=True)
class Forecast:
    """A study before it runs.

    Attributes:
        trials: what is known of the trials: done, to be continued, or certain to be run, with their state.
        holes: cells of the design that are not run, with the reason.
        later: trials whose configuration a search, or the second stage, will choose from the results of others.
        orphaned: trials of another version of this study.
        taken_over: trials that other studies have finished.
        images: training images still to be seen; None where that is not known before trials are timed.
        slots: trials at a time, on the resources given.
        seconds: wall time still to be spent, start-up included; None where it was not asked for or cannot be told.
        told_from: what the time is told from.
        megabytes: disk that the finished study takes.
        memory_megabytes: memory while it runs; None like the seconds.
    """

    trials: list[tuple[Job, str]]
    holes: list[Hole]
    later: int
    orphaned: int
    total: int
    done: int
    taken_over: int
    images: int | None
    slots: int
    seconds: float | None
    told_from: str
    megabytes: float
    memory_megabytes: float | None

    def as_dict(self) -> dict[str, Any]:
        trials = [{**job.as_dict(), "state": state} for job, state in self.trials]
        return {**vars(self), "trials": trials, "holes": [vars(hole) for hole in self.holes]}


def forecast(
    study: Study, label: str, options: Options, *, probe: bool, tell: Callable[[str], None] = lambda text: None
) -> Forecast:
    """The plan of a sweep. Raises `InputError` as the sweep would; starts no Ray and writes nothing.

    Args:
        probe: time a few seconds of training where no trial of this study tells how long one takes.
        tell: called with a line before that, as it takes a while.
    """
    options = options.granted(study.resources)
    images = Images.of_study(study, data_folders(), download=False)
    journal = Journal.read(Storage(options.storage).folder(label))
    plan = Plan.make(study, images.sha256, journal)
    if options.again:
        journal.forget([job.fingerprint for job in plan.finished()])
        plan = Plan.make(study, images.sha256, journal)
    known = {job.fingerprint: plan.state(job) for job in plan.jobs.values()}
    add_certain(plan)
    place = {arm.name: number for number, arm in enumerate(study.arms)}
    jobs = sorted(plan.jobs.values(), key=lambda job: (job.stage, place[job.arm], job.number, job.seed))
    reused = reusable(journal, options)
    found = {job.fingerprint: trial for job in jobs if (trial := reused(job))}
    done = {job.fingerprint for job in plan.finished()}
    over = done | set(found)
    elsewhere = {name: f"in {trial.study}" for name, trial in found.items()}
    trials = [(job, known.get(job.fingerprint) or elsewhere.get(job.fingerprint, "new")) for job in jobs]
    slots = max(1, options.slots_in({"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}))
    left = _left(plan, over)
    estimates, told_from, start_up = _estimates(plan, images, left, slots, options, tell if probe else None)
    seconds = memory = None
    if estimates is not None:
        lengths = [estimates[kind].seconds * share for kind, share in left]
        seconds = start_up + _makespan(lengths, slots) if lengths else 0.0
        memory = (RAY_BYTES + slots * max((e.memory_bytes for e in estimates.values()), default=0.0)) / 1e6
    budgets = {(stage, arm): study.example(arm, stage).budget.images for (stage, arm), _ in left}
    return Forecast(
        trials=trials,
        holes=study.holes,
        later=plan.total - len(jobs),
        orphaned=len(plan.orphaned),
        total=plan.total,
        done=len(done),
        taken_over=len(over) - len(done),
        images=_images(left, {kind: estimate.images for kind, estimate in estimates.items()} if estimates else budgets),
        slots=slots,
        seconds=seconds,
        told_from=told_from,
        megabytes=_bytes(plan, images, jobs) / 1e6,
        memory_megabytes=memory,
    )


def _left(plan: Plan, over: set[str]) -> list[tuple[Kind, float]]:
    """Every trial that is still to be run, as its kind and the share of it that is left."""
    left: list[tuple[Kind, float]] = []
    for stage in plan.study.stages():
        for arm in plan.study.arms:
            there = plan.configurations[stage, arm.name]
            names_there = {name for configuration in there.values() for name in configuration.fingerprints}
            for name in names_there - over:
                points = plan.journal.points.get(name)
                done = share_of(plan.jobs[name].trial.budget, points[-1]) if points else 0.0
                left.append(((stage, arm.name), 1.0 - done))
    return left + [(kind, 1.0) for kind, count in plan.unchosen().items() for _ in range(count)]


def _images(left: list[tuple[Kind, float]], each: Mapping[Kind, float]) -> int | None:
    if any(each[kind] >= IMAGES_WITHOUT_LIMIT for kind, _ in left):
        return None
    return round(sum(each[kind] * share for kind, share in left))


def _estimates(
    plan: Plan,
    images: Images,
    left: list[tuple[Kind, float]],
    slots: int,
    options: Options,
    tell: Callable[[str], None] | None,
) -> tuple[dict[Kind, Estimate] | None, str, float]:
    """What a trial of each kind takes, from finished ones of it, else from probes; and seconds to start.

    There are probes if there is somebody to tell.
    """
    kinds = list(dict.fromkeys(kind for kind, _ in left))
    estimates = {kind: estimate for kind in kinds if (estimate := _past(plan, kind)) is not None}
    unknown = [kind for kind in kinds if kind not in estimates]
    start_up = plan.journal.start_up_seconds
    if not unknown:
        return estimates, "finished trials", start_up or SECONDS_TO_START
    if tell is None:
        return None, "", 0.0
    chosen = [(kind, job) for kind in unknown for job in _examples(plan, kind)]
    seconds = max(LEAST_PROBE_SECONDS, PROBE_SECONDS * slots / len(chosen))
    trials = [(job.trial, images.of(job.trial)) for _, job in chosen]
    trials_text = "1 trial" if len(chosen) == 1 else f"{len(chosen)} trials"
    tell(f"timing {trials_text} for {seconds:.0f} s each, {slots} at a time …")
    timed, process_start = probe_all(trials, slots, options.cpus, seconds)
    beside_ray = SHARE_OF_RAY if slots * options.cpus > (os.cpu_count() or 1) - 1 else 1.0
    for kind in unknown:
        early = _share_run(plan.study.asha) if plan.study.stops_early and kind[0] == 0 else 1.0
        of_kind = [estimate for (owner, _), estimate in zip(chosen, timed, strict=True) if owner == kind]
        estimates[kind] = Estimate(
            sum(e.images for e in of_kind) / len(of_kind),
            sum(e.seconds for e in of_kind) / len(of_kind) * beside_ray * early,
            max(e.memory_bytes for e in timed),
        )
    told = f"{len(chosen)} probes of {seconds:.0f} s"
    if any(trial.budget.patience is not None for trial, _ in trials):
        told += "; less where validation stops trials before the end of their budget"
    return estimates, told, start_up or STARTS_OF_A_PROCESS * process_start


def _past(plan: Plan, kind: Kind) -> Estimate | None:
    stage, arm = kind
    fingerprints = [name for c in plan.configurations[stage, arm].values() for name in c.fingerprints]
    last = [plan.journal.points[name][-1] for name in fingerprints if plan.result(name)]
    last = [point for point in last if not point[DIVERGED]]
    if not last:
        return None
    images = sum(point[IMAGES_SEEN] for point in last) / len(last)
    return Estimate(images, sum(map(spent, last)) / len(last), PROCESS_BYTES)


def _examples(plan: Plan, kind: Kind) -> list[Job]:
    """Some trials of a kind whose configurations differ, the certain ones first."""
    stage, arm = kind
    there = [c for c in plan.configurations[stage, arm].values() if c.fingerprints]
    if not there and stage:  # a winner of the first stage: which, is not known yet
        there = list(plan.configurations[0, arm].values())
    params = [c.params for c in there[:MOST_PROBES_PER_ARM]] or [plan.study.completed({}, arm)]
    return [plan.job(number, point, 0, arm, stage) for number, point in enumerate(params)]


def _makespan(lengths: list[float], slots: int) -> float:
    """When the last of trials ends that are started in order, each as soon as one of the slots is free."""
    ends = [0.0] * slots
    for length in lengths:
        heapq.heapreplace(ends, ends[0] + length + SECONDS_BETWEEN_TRIALS)
    return max(ends)


def _share_run(asha: Asha) -> float:
    """Roughly what part of its budget a trial runs under successive halving."""
    return 1 / asha.reduction + (1 - 1 / asha.reduction) / 2


def _bytes(plan: Plan, images: Images, jobs: list[Job]) -> float:
    if not jobs:
        return 0.0
    of_arm = {job.arm: job.trial for job in jobs}
    largest = max(_kept_bytes(trial, images.of(trial)) for trial in of_arm.values())
    kept = min(plan.study.keep * len(plan.study.arms), plan.total)
    # What is kept lies in the trial's folder and among the store's artifacts.
    return 2 * kept * largest + plan.total * SMALL_FILES_BYTES


def _kept_bytes(trial: Trial, splits: Splits) -> float:
    """Networks and snapshots of one trial."""
    nowhere = torch.device("meta")  # counted without being allocated
    networks = trial.method.create(trial, splits.shape, nowhere).networks
    latents = min(LATENTS, trial.eval.test_images, len(splits.test)) * trial.model.latent_dim
    snapshots = MOMENTS * (latents * BYTES_PER_WEIGHT + FLOWS_BYTES)
    return sum(weight.numel() for weight in networks.parameters()) * BYTES_PER_WEIGHT + snapshots
