"""From a study and its journal to the trials that are there, missing, or no longer part of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gfe_study import names
from gfe_study.config import InputError, Study, Trial
from gfe_study.study.journal import FINISHED, Asked, Journal

TRIALS_FOLDER = "trials"


@dataclass(frozen=True)
class Job:
    """A trial of the plan. `number` counts configurations; its seeds share it."""

    number: int
    seed: int
    params: dict[str, Any]
    trial: Trial
    fingerprint: str

    def asked(self) -> Asked:
        """The journal's record of this job."""
        return Asked(self.number, self.seed, self.params, self.fingerprint, self.trial.dump())


@dataclass
class Plan:
    """The trials of a study as far as they are known: the searcher adds configurations as it goes.

    Attributes:
        jobs: trials already asked that belong to the study as it is declared now, by fingerprint.
        orphaned: journal records that no longer belong to it (its file was changed); nothing of them is lost.
    """

    study: Study
    dataset_sha256: str
    journal: Journal
    jobs: dict[str, Job] = field(default_factory=dict)
    orphaned: list[Asked] = field(default_factory=list)

    @classmethod
    def make(cls, study: Study, dataset_sha256: str, journal: Journal) -> Plan:
        """Sort what the journal holds into jobs and orphans, and complete the seeds of known configurations."""
        plan = cls(study, dataset_sha256, journal)
        numbers: dict[int, dict[str, Any]] = {}
        for record in journal.asked.values():
            job = plan._job_of(record)
            wanted = record.number in numbers or len(numbers) < study.trials
            if job is None or not wanted or record.seed >= study.seeds:
                plan.orphaned.append(record)
            else:
                numbers[record.number] = record.params
                plan.jobs[job.fingerprint] = job
        for number, params in numbers.items():
            plan.add(number, params)
        return plan

    def _job_of(self, record: Asked) -> Job | None:
        if set(record.params) != set(self.study.nuisance):
            return None
        if not all(self.study.nuisance[key].contains(value) for key, value in record.params.items()):
            return None
        try:
            job = self.job(record.number, record.params, record.seed)
        except InputError:
            return None
        return job if job.fingerprint == record.fingerprint else None

    def job(self, number: int, params: dict[str, Any], seed: int) -> Job:
        """The trial at a point of the space. Raises `InputError`."""
        trial = self.study.trial(params, seed)
        return Job(number, seed, params, trial, trial.fingerprint(self.dataset_sha256))

    def add(self, number: int, params: dict[str, Any]) -> list[Job]:
        """Make sure every seed of a configuration is a job; returns the ones that are new."""
        jobs = [self.job(number, params, seed) for seed in range(self.study.seeds)]
        new = [job for job in jobs if job.fingerprint not in self.jobs]
        self.jobs.update((job.fingerprint, job) for job in new)
        return new

    @property
    def total(self) -> int:
        """Trials of the whole study, asked or not."""
        return self.study.trials * self.study.seeds

    def numbers(self) -> dict[int, list[Job]]:
        """Jobs by configuration number."""
        grouped: dict[int, list[Job]] = {}
        for job in self.jobs.values():
            grouped.setdefault(job.number, []).append(job)
        return grouped

    def next_number(self) -> int:
        """The number of the next configuration to be asked; numbers are never used twice."""
        taken = [record.number for record in self.journal.asked.values()] + [job.number for job in self.jobs.values()]
        return max(taken, default=-1) + 1

    def unasked(self) -> int:
        """Configurations that the searcher has still to suggest."""
        return max(0, self.study.trials - len(self.numbers()))

    def finished(self) -> list[Job]:
        return [job for job in self.jobs.values() if self.state(job) == FINISHED]

    def missing(self) -> list[Job]:
        """Jobs without an outcome, or that failed: the ones already under way first, then by number and seed."""
        missing = [job for job in self.jobs.values() if self.state(job) != FINISHED]
        return sorted(missing, key=lambda job: (not self.under_way(job), job.number, job.seed))

    def under_way(self, job: Job) -> bool:
        """Whether the trial has left something to continue from."""
        return bool(self.journal.points.get(job.fingerprint)) or any(self.trial_folder(job).glob("*.pt"))

    def state(self, job: Job) -> str:
        """`finished`, `failed`, `unfinished` or `new`."""
        outcome = self.journal.outcomes.get(job.fingerprint)
        if outcome is not None:
            return outcome.state
        return "unfinished" if self.under_way(job) else "new"

    def trial_folder(self, job: Job) -> Path:
        """Where a trial keeps its checkpoints and pictures."""
        return self.journal.folder / TRIALS_FOLDER / job.fingerprint

    def value(self, job: Job) -> float | None:
        """The metric of a finished trial at the end of its budget; infinite if it diverged; None before."""
        points = self.journal.points.get(job.fingerprint)
        if self.state(job) != FINISHED or not points:
            return None
        worst = float("inf") if self.study.metric.mode == "min" else float("-inf")
        return worst if points[-1].get(names.DIVERGED) else points[-1].get(self.study.metric.name, worst)

    def best(self) -> tuple[Job, float] | None:
        """The finished trial with the best metric."""
        valued = [(job, value) for job in self.finished() if (value := self.value(job)) is not None]
        sign = 1 if self.study.metric.mode == "min" else -1
        return min(valued, key=lambda pair: sign * pair[1], default=None)
