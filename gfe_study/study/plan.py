"""From a study and its journal to the trials that are there, missing, or no longer part of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gfe_study import names
from gfe_study.config import InputError, Study, Trial
from gfe_study.study.journal import FAILED, FINISHED, STOPPED, Asked, Journal

OVER = (FINISHED, STOPPED)
"""Outcomes after which a trial is not run again."""


@dataclass(frozen=True)
class Job:
    """A trial of the plan. `number` counts the configurations of its arm; its seeds share it."""

    number: int
    seed: int
    params: dict[str, Any]
    trial: Trial
    fingerprint: str
    dataset_sha256: str
    arm: str = ""
    stage: int = 0

    def asked(self) -> Asked:
        """The journal's record of this job."""
        return Asked(self.number, self.seed, self.params, self.fingerprint, self.trial.dump(), self.arm, self.stage)


@dataclass(frozen=True)
class Configuration:
    """One point of an arm's space in a stage, and its trials, one a seed."""

    stage: int
    arm: str
    number: int
    params: dict[str, Any]
    fingerprints: list[str]


@dataclass
class Plan:
    """The trials of a study as far as they are known: searches add configurations as they go.

    Attributes:
        jobs: trials already known that belong to the study as it is declared now, by fingerprint.
        configurations: by (stage, arm), in the order they were asked.
        orphaned: journal records that no longer belong to it (its file was changed); nothing of them is lost.
        exhausted: arms whose space holds no configuration that is not known.
    """

    study: Study
    dataset_sha256: Callable[[Trial], str]
    journal: Journal
    jobs: dict[str, Job] = field(default_factory=dict)
    configurations: dict[tuple[int, str], dict[int, Configuration]] = field(default_factory=dict)
    orphaned: list[Asked] = field(default_factory=list)
    exhausted: set[str] = field(default_factory=set)

    @classmethod
    def make(cls, study: Study, dataset_sha256: str | Callable[[Trial], str], journal: Journal) -> Plan:
        """Sort what the journal holds into jobs and orphans, and add what is certain: new seeds, designs, winners.

        Args:
            dataset_sha256: fingerprint of a trial's images, or of those of all trials.
        """
        known = dataset_sha256
        plan = cls(study, known if callable(known) else lambda _: known, journal)
        plan.configurations = {(stage, arm.name): {} for stage in study.stages() for arm in study.arms}
        for record in journal.asked.values():
            if record.stage == 0 and plan._belongs(record):
                plan.add(record.number, record.params, record.arm)
        if not study.nuisance:
            for arm in study.arms:
                plan.add(0, {}, arm.name)
        if not plan.failed():  # they are tried again first: one of them may be a winner
            plan.advance()
        waiting = len(study.stages()) > 1 and not plan.stage_over(0)
        plan.orphaned = [
            record
            for record in journal.asked.values()
            if record.fingerprint not in plan.jobs and not (waiting and record.stage)
        ]
        return plan

    def _belongs(self, record: Asked) -> bool:
        there = self.configurations.get((0, record.arm))
        if there is None or (record.number not in there and len(there) >= self.study.configurations(record.arm)):
            return False
        try:
            if not self.study.fits(record.params, record.arm):
                return False
            return self.job(record.number, record.params, record.seed, record.arm).fingerprint == record.fingerprint
        except InputError:
            return False

    def job(self, number: int, params: dict[str, Any], seed: int, arm: str = "", stage: int = 0) -> Job:
        """The trial at a point of an arm's space. Raises `InputError`."""
        trial = self.study.trial(params, seed, arm, stage)
        sha256 = self.dataset_sha256(trial)
        return Job(number, seed, params, trial, trial.fingerprint(sha256), sha256, arm, stage)

    def add(self, number: int, params: dict[str, Any], arm: str = "", stage: int = 0) -> list[Job]:
        """Make sure every seed of a configuration is a job; returns the ones that are new."""
        there = self.configurations[stage, arm]
        if number in there:
            return []
        jobs = [self.job(number, params, seed, arm, stage) for seed in self.study.seeds_of(stage)]
        new = [job for job in jobs if job.fingerprint not in self.jobs]
        self.jobs.update((job.fingerprint, job) for job in new)
        there[number] = Configuration(stage, arm, number, params, [job.fingerprint for job in jobs])
        return new

    def advance(self) -> list[Job]:
        """Add the second stage once the first is over; returns the jobs that are new."""
        if len(self.study.stages()) == 1 or not self.stage_over(0):
            return []
        tried = self.tuned()
        fewest = min((len(numbers) for numbers in tried.values() if numbers), default=0)
        return [
            job
            for arm in self.study.arms
            for chosen in [c for c in self.ranked(0, arm.name) if c.number in tried[arm.name][:fewest]][
                : self.study.configurations(arm, 1)
            ]
            for job in self.add(chosen.number, chosen.params, arm.name, 1)
        ]

    def tuned(self) -> dict[str, list[int]]:
        """The configurations of every arm that ran to their end in the first stage, in the order they were asked."""
        return {arm.name: sorted(c.number for c in self.ranked(0, arm.name)) for arm in self.study.arms}

    def size(self, arm: str, stage: int = 0) -> int:
        """Configurations of an arm in a stage; of a space that holds no more, those that it holds."""
        wanted = self.study.configurations(arm, stage)
        return min(wanted, len(self.configurations[0, arm])) if arm in self.exhausted else wanted

    @property
    def short(self) -> list[str]:
        """Arms whose space holds fewer valid, different configurations than were asked for."""
        return [arm for arm in sorted(self.exhausted) if self.size(arm) < self.study.configurations(arm)]

    def stage_over(self, stage: int) -> bool:
        """Whether every configuration of a stage is known and has ended."""
        asked_all = stage > 0 or not any(self.unasked(arm.name) for arm in self.study.arms)
        return asked_all and all(
            self.ended(configuration)
            for (number, _), there in self.configurations.items()
            if number == stage
            for configuration in there.values()
        )

    def ended(self, configuration: Configuration) -> bool:
        """Whether all trials of a configuration have an outcome."""
        return all(name in self.journal.outcomes for name in configuration.fingerprints)

    @property
    def total(self) -> int:
        """Trials of the whole study, known or not."""
        return (
            sum(
                self.size(arm.name, stage) * len(self.study.seeds_of(stage))
                for stage in self.study.stages()
                for arm in self.study.arms
            )
            - self._shared()
        )

    def _shared(self) -> int:
        # Arms whose searches come to the same configuration share its trials.
        listed = [name for there in self.configurations.values() for c in there.values() for name in c.fingerprints]
        return len(listed) - len(self.jobs)

    def next_number(self, arm: str = "") -> int:
        """The number of the next configuration to be asked of an arm; numbers are never used twice."""
        taken = [record.number for record in self.journal.asked.values() if record.arm == arm and record.stage == 0]
        return max([*taken, *self.configurations[0, arm]], default=-1) + 1

    def unasked(self, arm: str | None = None) -> int:
        """Configurations that the search has still to suggest, of one arm or of all."""
        arms = [arm] if arm is not None else [each.name for each in self.study.arms]
        return sum(
            max(0, self.study.configurations(each) - len(self.configurations[0, each]))
            for each in arms
            if each not in self.exhausted
        )

    def finished(self) -> list[Job]:
        """Jobs that are over: at the end of their budget, diverged, or stopped early."""
        return [job for job in self.jobs.values() if self.over(job.fingerprint)]

    def over(self, fingerprint: str) -> bool:
        outcome = self.journal.outcomes.get(fingerprint)
        return outcome is not None and outcome.state in OVER

    def missing(self) -> list[Job]:
        """Jobs without an outcome, or that failed.

        Those already under way come first, then by configuration, seed and arm, so that what is compared is
        complete as early as may be.
        """
        order = {arm.name: place for place, arm in enumerate(self.study.arms)}
        missing = [job for job in self.jobs.values() if not self.over(job.fingerprint)]
        return sorted(
            missing,
            key=lambda job: (not self.under_way(job), job.stage, job.number, job.seed, order[job.arm]),
        )

    def under_way(self, job: Job) -> bool:
        """Whether the trial has left something to continue from."""
        return bool(self.journal.points.get(job.fingerprint)) or any(self.trial_folder(job).glob("*.pt"))

    def state(self, job: Job) -> str:
        """`finished`, `stopped`, `failed`, `unfinished` or `new`."""
        outcome = self.journal.outcomes.get(job.fingerprint)
        if outcome is not None:
            return outcome.state
        return "unfinished" if self.under_way(job) else "new"

    def trial_folder(self, job: Job) -> Path:
        """Where a trial keeps its checkpoints and pictures."""
        return self.journal.folder / names.TRIALS_FOLDER / job.fingerprint

    def last(self, fingerprint: str) -> dict[str, float] | None:
        """The last point of a trial that is over; None before."""
        points = self.journal.points.get(fingerprint)
        return points[-1] if points and self.over(fingerprint) else None

    def value(self, job: Job | str, metric: str | None = None) -> float | None:
        """A metric of a trial that is over, at its last point; the worst there is if it diverged; None before."""
        last = self.last(job if isinstance(job, str) else job.fingerprint)
        if last is None:
            return None
        name = metric or self.study.metric.name
        worst = math.inf if name != self.study.metric.name or self.study.metric.mode == "min" else -math.inf
        return worst if last.get(names.DIVERGED) else last.get(name, worst)

    def mean(self, configuration: Configuration, metric: str | None = None) -> float | None:
        """The mean of a metric over a configuration's seeds; None unless all are over."""
        values = [self.value(name, metric) for name in configuration.fingerprints]
        there = [value for value in values if value is not None]
        return math.fsum(there) / len(there) if there and len(there) == len(values) else None

    def ranked(self, stage: int, arm: str) -> list[Configuration]:
        """Configurations that ran to the end of their budget, by the mean of the study's metric, best first."""
        sign = 1 if self.study.metric.mode == "min" else -1
        valued = [
            (sign * mean, configuration.number, configuration)
            for configuration in self.configurations[stage, arm].values()
            if (mean := self.mean(configuration)) is not None
            and all(self.journal.outcomes[name].state == FINISHED for name in configuration.fingerprints)
        ]
        return [configuration for _, _, configuration in sorted(valued, key=lambda entry: entry[:2])]

    def failed(self) -> list[Job]:
        """Jobs whose last try ended without a result."""
        outcomes = self.journal.outcomes
        return [job for name, job in self.jobs.items() if name in outcomes and outcomes[name].state == FAILED]

    def best(self) -> tuple[Job, float] | None:
        """The finished trial with the best metric."""
        valued = [(job, value) for job in self.finished() if (value := self.value(job)) is not None]
        sign = 1 if self.study.metric.mode == "min" else -1
        return min(valued, key=lambda pair: sign * pair[1], default=None)
