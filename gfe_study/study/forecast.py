"""What a sweep would do, without doing it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from gfe_study import names
from gfe_study.config import Study
from gfe_study.data.mnist import data_folders
from gfe_study.study.journal import Journal
from gfe_study.study.plan import Job, Plan
from gfe_study.study.searcher import STARTUP_TRIALS, Suggester
from gfe_study.study.sweep import load_data, study_folder

BYTES_PER_WEIGHT = 4
COPIES_OF_THE_WEIGHTS = 2
"""The best decoder stays in the trial's folder and among the tracking store's artifacts."""


@dataclass(frozen=True)
class Forecast:
    """A study before it runs.

    Attributes:
        trials: what is known of the trials: done, to be continued, or certain to be run, with their state.
        later: trials whose configuration the search will choose from the results of others.
        orphaned: trials of another version of this study.
        images: training images still to be seen.
        seconds: wall time still to be spent here, from finished trials of this study; None without any.
        megabytes: disk that the finished study takes.
    """

    trials: list[tuple[Job, str]]
    later: int
    orphaned: int
    total: int
    done: int
    images: int
    seconds: float | None
    megabytes: float

    def as_dict(self) -> dict[str, Any]:
        trials = [{**vars(job.asked()), "state": state} for job, state in self.trials]
        return {**vars(self), "trials": trials}


def forecast(study: Study, label: str, storage: str) -> Forecast:
    """The plan of a sweep. Raises `InputError` as the sweep would; starts and writes nothing."""
    splits = load_data(study, data_folders(), download=False)
    journal = Journal.read(study_folder(storage, label))
    plan = Plan.make(study, splits.sha256, journal)
    known = {job.fingerprint: plan.state(job) for job in plan.jobs.values()}
    _add_certain(plan)
    jobs = sorted(plan.jobs.values(), key=lambda job: (job.number, job.seed))
    trials = [(job, known.get(job.fingerprint, "new")) for job in jobs]
    done = len(plan.finished())
    budget = jobs[0].trial.budget.images
    seen = sum(int(points[-1][names.IMAGES_SEEN]) for job in jobs if (points := journal.points.get(job.fingerprint)))
    images = plan.total * budget - seen
    with torch.device("meta"):  # counted without being allocated
        weights = sum(w.numel() for w in jobs[0].trial.model.decoder(splits.pixels).parameters())
    return Forecast(
        trials=trials,
        later=plan.total - len(jobs),
        orphaned=len(plan.orphaned),
        total=plan.total,
        done=done,
        images=images,
        seconds=_seconds(plan, images),
        megabytes=plan.total * weights * BYTES_PER_WEIGHT * COPIES_OF_THE_WEIGHTS / 1e6,
    )


def _add_certain(plan: Plan) -> None:
    """Configurations that do not depend on results: starting points, and the first random draws."""
    suggester = Suggester(plan)
    while plan.unasked():
        number = plan.next_number()
        certain = number < STARTUP_TRIALS or plan.study.sampler == "random"
        params = suggester.ask(number) if certain else None
        if params is None:
            return
        plan.add(number, params)


def _seconds(plan: Plan, images: int) -> float | None:
    spent = seen = 0.0
    for job in plan.finished():
        points = plan.journal.points[job.fingerprint]
        evaluation = 1 + job.trial.eval.val_images / job.trial.eval.test_images
        spent += points[-1][names.TRAIN_SECONDS]
        spent += sum(point.get(names.ENCODE_SECONDS, 0.0) for point in points) * evaluation
        seen += points[-1][names.IMAGES_SEEN]
    return spent / seen * images / (os.cpu_count() or 1) if seen else None
