"""The plan of a study: which trials belong to it, and which of them are missing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gfe_study import names
from gfe_study.config import InputError, Study, Trial
from gfe_study.io.storage import Mirror
from gfe_study.metrics import DIVERGED, result_of, sign_of
from gfe_study.study.journal import FAILED, FINISHED, STOPPED, Configuration, Journal
from gfe_study.study.pace import Kind

OVER = (FINISHED, STOPPED)
"""Outcomes after which a trial is not run again."""
OPEN = "open"
"""Stands for the outcome of a trial that has none."""


@dataclass(frozen=True)
class Job:
    """A trial of the plan. `number` identifies the configuration within its arm; all seeds of it share the number."""

    number: int
    seed: int
    params: dict[str, Any]
    trial: Trial
    fingerprint: str
    dataset_sha256: str
    arm: str = ""
    stage: int = 0

    @property
    def kind(self) -> Kind:
        """Trials of one kind are taken to last equally long."""
        return self.stage, self.arm

    def as_dict(self) -> dict[str, Any]:
        """Return the job as plain data."""
        return {**vars(self), "trial": self.trial.dump()}


@dataclass
class Plan:
    """The known trials of a study; searches add configurations as they proceed.

    The plan alone decides which trials belong to the study, and under which (stage, arm, number, seed). Its journal
    records that, and everything that makes a statement about the study reads the record.

    Attributes:
        jobs: known trials that belong to the study as it is declared now, by fingerprint.
        configurations: configurations by (stage, arm), then by number, in the order in which they were added.
        members: the configurations that each trial belongs to, by fingerprint; arms may share a trial.
        exhausted: arms whose space holds no further configuration.
    """

    study: Study
    dataset_sha256: Callable[[Trial], str]
    journal: Journal
    jobs: dict[str, Job] = field(default_factory=dict)
    configurations: dict[tuple[int, str], dict[int, Configuration]] = field(default_factory=dict)
    members: dict[str, list[Configuration]] = field(default_factory=dict)
    exhausted: set[str] = field(default_factory=set)
    # Counted as outcomes change, so that no event of a sweep costs more the more trials there are.
    _counted: dict[str, str] = field(default_factory=dict)
    _counts: Counter[tuple[int, str]] = field(default_factory=Counter)
    _num_changes: int = 0
    _highest: dict[str, int] = field(default_factory=dict)
    _best: dict[int, tuple[Job, float]] = field(default_factory=dict)

    @classmethod
    def make(cls, study: Study, dataset_sha256: str | Callable[[Trial], str], journal: Journal) -> Plan:
        """Choose the configurations of the journal that still belong, and add those that need no search.

        Those are new seeds, the arms of a design, and the winners that go on to the second stage.

        Args:
            study: the study as it is declared now.
            dataset_sha256: hash of the images that all trials share, or a function from a trial to its hash.
            journal: the study's journal.
        """
        known = dataset_sha256
        plan = cls(study, known if callable(known) else lambda _: known, journal)
        plan.configurations = {(stage, arm.name): {} for stage in study.stages() for arm in study.arms}
        for configuration in journal.known.values():
            if configuration.stage == 0 and plan._belongs(configuration):
                plan.add(configuration.number, configuration.params, configuration.arm)
        if not study.nuisance:
            for arm in study.arms:
                plan.add(0, {}, arm.name)
        if not plan.failed():  # failed trials are retried first, because one of them may be a winner
            plan.advance()
        return plan

    @property
    def orphaned(self) -> set[str]:
        """Trials that ran and do not belong to the study as it is declared now; their data is kept."""
        return self.journal.begun() - set(self.jobs)

    @property
    def waiting(self) -> set[str]:
        """Orphaned trials that may return with the second stage once the first is over."""
        if len(self.study.stages()) == 1 or (self.stage_over(0) and not self.failed()):
            return set()
        later = (configuration for configuration in self.journal.known.values() if configuration.stage)
        return self.orphaned & {name for configuration in later for name in configuration.fingerprints}

    def _belongs(self, configuration: Configuration) -> bool:
        arm, number = configuration.arm, configuration.number
        there = self.configurations.get((0, arm))
        if there is None or (number not in there and len(there) >= self.study.configurations(arm)):
            return False
        try:
            if not self.study.fits(configuration.params, arm):
                return False
            job = self.job(number, configuration.params, configuration.seeds[0], arm)
        except InputError:
            return False
        return job.fingerprint == configuration.fingerprints[0]

    def job(self, number: int, params: dict[str, Any], seed: int, arm: str = "", stage: int = 0) -> Job:
        """Return the trial at a point of an arm's space. Raises `InputError` if the trial is invalid."""
        trial = self.study.trial(params, seed, arm, stage)
        sha256 = self.dataset_sha256(trial)
        return Job(number, seed, params, trial, trial.fingerprint(sha256), sha256, arm, stage)

    def add(self, number: int, params: dict[str, Any], arm: str = "", stage: int = 0) -> list[Job]:
        """Add a job for every seed of a configuration; return the new ones."""
        there = self.configurations[stage, arm]
        if number in there:
            return []
        if stage == 0:
            self._highest[arm] = max(number, self._highest.get(arm, -1))
        seeds = list(self.study.seeds_of(stage))
        jobs = [self.job(number, params, seed, arm, stage) for seed in seeds]
        there[number] = Configuration(stage, arm, number, params, seeds, [job.fingerprint for job in jobs])
        new = [job for job in jobs if job.fingerprint not in self.jobs]
        for job in jobs:
            self.members.setdefault(job.fingerprint, []).append(there[number])
        for job in new:
            self.jobs[job.fingerprint] = job
            self._count(job)
        return new

    def membership(self) -> list[Configuration]:
        """Return all configurations that belong to the study."""
        return [configuration for there in self.configurations.values() for configuration in there.values()]

    def _catch_up(self) -> None:
        for name in self.journal.changed[self._num_changes :]:
            if name in self.jobs:
                self._count(self.jobs[name])
        self._num_changes = len(self.journal.changed)

    def _count(self, job: Job) -> None:
        outcome = self.journal.outcomes.get(job.fingerprint)
        state = OPEN if outcome is None else outcome.state
        if job.fingerprint in self._counted:
            self._counts[job.stage, self._counted[job.fingerprint]] -= 1
        self._counts[job.stage, state] += 1
        self._counted[job.fingerprint] = state
        # A trial that was stopped early or diverged is no result to go by.
        value, best = self.value(job) if state == FINISHED else None, self._best.get(job.stage)
        if value is not None and math.isfinite(value) and (best is None or self._rank((job, value)) < self._rank(best)):
            self._best[job.stage] = job, value
        elif best is not None and best[0] is job and value is None:  # it runs again
            del self._best[job.stage]
            for other in self.finished():
                if other.stage == job.stage:
                    self._count(other)

    def _rank(self, valued: tuple[Job, float]) -> tuple[float, str]:
        return self.study.metric.sign * valued[1], valued[0].fingerprint

    def advance(self) -> list[Job]:
        """Add the second stage once the first is over; return the new jobs."""
        if len(self.study.stages()) == 1 or not self.stage_over(0):
            return []
        tried = self.tuned()
        # Winners come from equally many configurations per arm: more tuning alone would give a better winner.
        searched = [numbers for arm, numbers in tried.items() if self.study.searches(arm)]
        fewest = min((len(numbers) for numbers in searched if numbers), default=1)
        return [
            job
            for arm in self.study.arms
            for chosen in [c for c in self.ranked(0, arm.name) if c.number in tried[arm.name][:fewest]][
                : self.study.configurations(arm, 1)
            ]
            for job in self.add(chosen.number, chosen.params, arm.name, 1)
        ]

    def tuned(self) -> dict[str, list[int]]:
        """Return the numbers of each arm's configurations that completed the first stage, in ascending order."""
        return {arm.name: sorted(c.number for c in self.ranked(0, arm.name)) for arm in self.study.arms}

    def size(self, arm: str, stage: int = 0) -> int:
        """Return the number of configurations of an arm in a stage, limited by what its space holds."""
        wanted = self.study.configurations(arm, stage)
        return min(wanted, len(self.configurations[0, arm])) if arm in self.exhausted else wanted

    @property
    def short(self) -> list[str]:
        """Arms whose space holds fewer valid, distinct configurations than requested."""
        return [arm for arm in sorted(self.exhausted) if self.size(arm) < self.study.configurations(arm)]

    def stage_over(self, stage: int) -> bool:
        """Return whether every configuration of a stage is known and has ended."""
        asked_all = stage > 0 or not any(self.unasked(arm.name) for arm in self.study.arms)
        self._catch_up()
        return asked_all and not self._counts[stage, OPEN]

    def ended(self, configuration: Configuration) -> bool:
        """Return whether all trials of a configuration have an outcome."""
        return all(name in self.journal.outcomes for name in configuration.fingerprints)

    @property
    def total(self) -> int:
        """Number of trials in the whole study, known or not."""
        return len(self.jobs) + self.unchosen().total()

    def unchosen(self) -> Counter[Kind]:
        """Count the trials that the search, or the second stage, has yet to choose."""
        return Counter(
            {
                (stage, arm.name): (self.size(arm.name, stage) - len(self.configurations[stage, arm.name]))
                * len(self.study.seeds_of(stage))
                for stage in self.study.stages()
                for arm in self.study.arms
            }
        )

    def next_number(self, arm: str = "") -> int:
        """Return the number of an arm's next configuration; no number is used twice, not even an orphan's."""
        return max(self.journal.highest.get(arm, -1), self._highest.get(arm, -1)) + 1

    def unasked(self, arm: str | None = None) -> int:
        """Return how many configurations the search has yet to suggest, for one arm or for all."""
        arms = [arm] if arm is not None else [each.name for each in self.study.arms]
        return sum(
            max(0, self.study.configurations(each) - len(self.configurations[0, each]))
            for each in arms
            if each not in self.exhausted
        )

    def count(self, *states: str) -> int:
        """Return the number of jobs with one of these outcomes."""
        self._catch_up()
        return sum(self._counts[stage, state] for stage in self.study.stages() for state in states)

    def finished(self) -> list[Job]:
        """Return the jobs that are over: their budget is spent, they diverged, or they were stopped early."""
        return [job for job in self.jobs.values() if self.over(job.fingerprint)]

    def over(self, fingerprint: str) -> bool:
        outcome = self.journal.outcomes.get(fingerprint)
        return outcome is not None and outcome.state in OVER

    def missing(self) -> list[Job]:
        """Return the jobs that failed or have no outcome.

        Jobs already in progress come first; the rest are sorted by stage, configuration, seed and arm, so that
        comparisons are complete as early as possible.
        """
        order = {arm.name: place for place, arm in enumerate(self.study.arms)}
        missing = [job for job in self.jobs.values() if not self.over(job.fingerprint)]
        return sorted(
            missing,
            key=lambda job: (not self.under_way(job), job.stage, job.number, job.seed, order[job.arm]),
        )

    def under_way(self, job: Job) -> bool:
        """Return whether the trial has points or a checkpoint to continue from."""
        return bool(self.journal.points.get(job.fingerprint)) or any(self.trial_folder(job).local.glob("*.pt"))

    def state(self, job: Job) -> str:
        """Return the state of a job: `finished`, `stopped`, `failed`, `unfinished` or `new`."""
        outcome = self.journal.outcomes.get(job.fingerprint)
        if outcome is not None:
            return outcome.state
        return "unfinished" if self.under_way(job) else "new"

    def trial_folder(self, job: Job) -> Mirror:
        """Return the folder of a trial's checkpoints and pictures."""
        return self.journal.mirror.below(names.TRIALS_FOLDER, job.fingerprint)

    def result(self, fingerprint: str) -> Mapping[str, float] | None:
        """Return the point that is the result of a trial that is over; None before that."""
        points = self.journal.points.get(fingerprint)
        return result_of(points) if points and self.over(fingerprint) else None

    def value(self, job: Job | str, metric: str | None = None) -> float | None:
        """Return a metric in the result of a trial that is over; infinitely bad if it diverged; None before that."""
        result = self.result(job if isinstance(job, str) else job.fingerprint)
        if result is None:
            return None
        name = metric or self.study.metric.name
        worst = sign_of(name) * math.inf
        return worst if result.get(DIVERGED) else result.get(name, worst)

    def mean(self, configuration: Configuration, metric: str | None = None) -> float | None:
        """Return the mean of a metric over a configuration's seeds; None unless all of them are over."""
        values = [self.value(name, metric) for name in configuration.fingerprints]
        there = [value for value in values if value is not None]
        return math.fsum(there) / len(there) if there and len(there) == len(values) else None

    def ranked(self, stage: int, arm: str) -> list[Configuration]:
        """Return the configurations that completed their budget, sorted by mean of the study's metric, best first."""
        sign = self.study.metric.sign
        valued = [
            (sign * mean, configuration.number, configuration)
            for configuration in self.configurations[stage, arm].values()
            if (mean := self.mean(configuration)) is not None
            and all(self.journal.outcomes[name].state == FINISHED for name in configuration.fingerprints)
        ]
        return [configuration for _, _, configuration in sorted(valued, key=lambda entry: entry[:2])]

    def failed(self) -> list[Job]:
        """Return the jobs whose last attempt failed."""
        outcomes = self.journal.outcomes
        return [job for name, job in self.jobs.items() if name in outcomes and outcomes[name].state == FAILED]

    def best(self) -> tuple[Job, float] | None:
        """Return the trial with the best value of the study's metric in the last stage that has finished ones.

        Stages may have different budgets, and the trials that chose a winner look better than it is. None if no trial
        has finished.
        """
        self._catch_up()
        return self._best[max(self._best)] if self._best else None
