"""Brings what happens to trials into the journal first, and from there into the tracking store.

The store may be away for a while: what it has missed is in the journal, and is delivered when it is back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from gfe_study import names
from gfe_study.config import flatten
from gfe_study.study.journal import FAILED, FINISHED, Outcome
from gfe_study.study.plan import Job, Plan
from gfe_study.study.runner import remove_checkpoints
from gfe_study.tracking import FAILED as RUN_FAILED
from gfe_study.tracking import FINISHED as RUN_FINISHED
from gfe_study.tracking import KILLED as RUN_KILLED
from gfe_study.tracking import RunSpec, Tracker, TrackingError

SECONDS_BETWEEN_ATTEMPTS = 10.0


@dataclass
class Recorder:
    """The only writer of a study's journal and of its runs while it goes on.

    Args:
        plan: the study's plan; its journal is open for writing.
        tracker: the store, with the study's parent run open.
        tags: tags common to all runs of this start.
        on_problem: told, in one line, what went wrong without ending the study.
    """

    plan: Plan
    tracker: Tracker
    tags: dict[str, str]
    on_problem: Callable[[str], None]

    def __post_init__(self) -> None:
        self._behind: dict[str, Job] = {}
        self._not_before = 0.0
        self._devices: dict[str, str] = {}
        for job in self.plan.finished():
            remove_checkpoints(self.plan.trial_folder(job))
            if not self.tracker.is_closed(job.fingerprint):
                self._deliver(job)

    def started(self, job: Job) -> None:
        """A trial is handed to Ray."""
        if self.plan.state(job) == FAILED:
            self.plan.journal.record_retry(job.fingerprint)
        elif job.fingerprint not in self.plan.journal.asked:
            self.plan.journal.record_asked(job.asked())
        self._deliver(job)

    def reached(self, job: Job, points: list[dict[str, float]], device: str) -> None:
        """A trial reported points, perhaps ones it has reported before."""
        self._devices[job.fingerprint] = device
        if self.plan.journal.record_points(job.fingerprint, points):
            self._deliver(job)

    def finished(self, job: Job) -> None:
        """A trial ended, at its budget or by diverging."""
        self.plan.journal.record_outcome(job.fingerprint, Outcome(FINISHED))
        remove_checkpoints(self.plan.trial_folder(job))
        self._deliver(job)

    def failed(self, job: Job, reason: str) -> None:
        """A trial ended without result; its checkpoints stay."""
        self.plan.journal.record_outcome(job.fingerprint, Outcome(FAILED, reason))
        self._deliver(job)

    def close(self, interrupted: bool) -> bool:
        """Last delivery and the end of the parent run; False if the store could not be brought level."""
        self._not_before = 0.0
        for job in list(self._behind.values()):
            self._deliver(job)
        try:
            for job in self.plan.missing():
                if self.tracker.is_running(job.fingerprint):
                    self.tracker.close_trial(job.fingerprint, RUN_KILLED, {}, [])
            best = self.plan.best()
            folder = self.plan.trial_folder(best[0]) if best else None
            tags = {names.BEST_FINGERPRINT: best[0].fingerprint, names.BEST_VALUE: f"{best[1]:.6f}"} if best else {}
            files = artifact_files(folder) if folder else []
            self.tracker.close_study(RUN_KILLED if interrupted else RUN_FINISHED, tags, files)
        except TrackingError as error:
            self.on_problem(str(error))
            return False
        return not self._behind

    def _deliver(self, job: Job) -> None:
        """Bring a trial's run level with the journal, or remember that it is behind."""
        self._behind[job.fingerprint] = job
        if time.monotonic() < self._not_before:
            return
        try:
            for waiting in list(self._behind.values()):
                self._bring_level(waiting)
                del self._behind[waiting.fingerprint]
        except TrackingError as error:
            if not self._not_before:
                self.on_problem(f"{error}; points are kept in the journal and delivered when it is back")
            self._not_before = time.monotonic() + SECONDS_BETWEEN_ATTEMPTS
        else:
            self._not_before = 0.0

    def _bring_level(self, job: Job) -> None:
        journal = self.plan.journal
        points = journal.points.get(job.fingerprint, [])
        self.tracker.open_trial(self._spec(job))
        self.tracker.deliver(job.fingerprint, points)
        outcome = journal.outcomes.get(job.fingerprint)
        if outcome is None:
            return
        diverged = bool(points and points[-1].get(names.DIVERGED))
        tags = {names.DIVERGED: str(diverged).lower(), names.FAILURE: outcome.reason}
        if device := self._devices.get(job.fingerprint):
            tags[names.DEVICE] = device
        status = RUN_FINISHED if outcome.state == FINISHED else RUN_FAILED
        self.tracker.close_trial(job.fingerprint, status, tags, artifact_files(self.plan.trial_folder(job)))

    def _spec(self, job: Job) -> RunSpec:
        trial = job.trial
        dumped = trial.dump()
        group = trial.group(self.plan.dataset_sha256)
        tags = {
            **self.tags,
            names.GROUP: group,
            names.ARM: run_name(job, with_seed=False),
            names.SEED: str(job.seed),
            names.METHOD: trial.method.name,
            names.PRESET: trial.preset,
            names.DATASET: trial.data.name,
            names.DATASET_SHA256: self.plan.dataset_sha256,
        }
        text = yaml.safe_dump(dumped, sort_keys=False, allow_unicode=True)
        return RunSpec(job.fingerprint, run_name(job), tags, flatten(dumped), {names.TRIAL_FILE: text})


def run_name(job: Job, *, with_seed: bool = True) -> str:
    """What tells a trial from its neighbours: `gfe·amd beta=0.75 s_max=10 seed 0`."""
    trial = job.trial
    method = trial.method.name if trial.method.name != "gfe" else f"gfe·{trial.solver.name}"
    return " ".join(filter(None, [method, settings(job), f"seed {job.seed}" if with_seed else ""]))


def settings(job: Job) -> str:
    """The searched values of a trial: `beta=0.75 s_max=10`."""
    short = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in job.params.items()}
    return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in short.items())


def artifact_files(folder: Path) -> list[Path]:
    files = (folder / name for name in (names.BEST_CHECKPOINT, names.RECONSTRUCTION))
    return [file for file in files if file.exists()]
