"""The driver decides which trial of a study runs next and processes the results; it does not depend on Ray."""

from __future__ import annotations

import shutil
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from gfe_study import names
from gfe_study.config import InputError
from gfe_study.config.options import Resources
from gfe_study.data.base import Splits
from gfe_study.study.halving import Halving
from gfe_study.study.journal import FINISHED, STOPPED
from gfe_study.study.plan import Job, Plan
from gfe_study.study.recorder import Recorder, mirror_of
from gfe_study.study.reuse import Finished, usable
from gfe_study.study.searcher import LEAST_PARALLEL, Suggester, add_certain

RETRIES = 3
"""How often a trial that lost its process or node is restarted from its checkpoint before it counts as failed."""
DISK_CHECK_INTERVAL_S = 5.0
"""Interval between checks of the free disk space and the quota."""
MIN_FREE_BYTES = 200e6
MAX_PER_TRIAL = 1024


@dataclass(frozen=True)
class Options:
    """How to run a study; no option changes a trial's numbers."""

    storage: str = "results"
    cpus_per_trial: float | None = None
    """None: as in the study's `resources`."""
    gpus_per_trial: float | None = None
    address: str | None = None
    quota_gb: float | None = None
    """Largest size of the study's folder, in GB."""
    reuse: bool = True
    """Whether to reuse trials that other studies have finished."""
    again: bool = False
    """Run the finished trials of this study again, unless an earlier start is already doing so."""
    data_folders: tuple[str, ...] = ()
    """Folders where the last run looked for the images; they are searched after the current ones."""

    @property
    def cpus(self) -> float:
        return self.cpus_per_trial or 1.0

    @property
    def gpus(self) -> float:
        return self.gpus_per_trial or 0.0

    def slots_in(self, resources: Mapping[str, float]) -> int:
        """Return how many trials fit into resources (`CPU`, `GPU`) at once; 0 if not even one fits."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        # The small term absorbs rounding: 0.3 / 0.1 must give 3 trials.
        return min(int(resources.get(kind, 0.0) / amount + 1e-9) for kind, amount in wanted.items() if amount > 0)

    def granted(self, resources: Resources) -> Options:
        """Fill in a study's resources where none are given. Raises `InputError` if an amount is out of range."""
        for kind, amount in (("cpus", self.cpus_per_trial), ("gpus", self.gpus_per_trial)):
            least = 0.0 if kind == "gpus" else 0.01
            if amount is not None and not least <= amount <= MAX_PER_TRIAL:
                raise InputError(f"--{kind}-per-trial: given {amount:g}; allowed: from {least:g} to {MAX_PER_TRIAL}")
        if (self.gpus_per_trial or resources.gpu) > 1 and (self.gpus_per_trial or resources.gpu) % 1:
            raise InputError("gpus per trial: given a fraction above 1; allowed: at most 1, or a whole number")
        cpus = self.cpus_per_trial or resources.cpu
        gpus = resources.gpu if self.gpus_per_trial is None else self.gpus_per_trial
        return replace(self, cpus_per_trial=cpus, gpus_per_trial=gpus)


@dataclass(frozen=True)
class Snapshot:
    """Progress of a study. Seconds count from this start; `remaining_seconds` is None until it can be estimated."""

    total: int
    finished: int
    running: int
    failed: int
    best: float | None
    elapsed_seconds: float
    remaining_seconds: float | None


class Observer(Protocol):
    """Receives the progress of a study; the command line prints it."""

    def planned(self, plan: Plan, splits: Splits) -> None: ...

    def starting_ray(self) -> None: ...

    def ray_started(self, seconds: float, slots: int) -> None: ...

    def progress(self, snapshot: Snapshot) -> None: ...

    def problem(self, text: str) -> None: ...


class Driver:
    """Schedules the trials of one start of a study and processes their results.

    Args:
        recorder: writes the journal and the tracking store.
        observer: receives progress and problems.
        options: how to run the study.
        found: trials that other studies have finished, by fingerprint.
    """

    def __init__(self, recorder: Recorder, observer: Observer, options: Options, found: Mapping[str, Finished]) -> None:
        self.recorder, self.observer, self.options = recorder, observer, options
        self.plan = recorder.plan
        self.slots = 0
        self.live: dict[str, Job] = {}
        self.damaged: list[str] = []
        self.taken_over: dict[str, int] = Counter()
        self.stopped = ""
        self.broken: InputError | None = None
        self.start_up_seconds = 0.0
        self.trial_seconds = 0.0
        self._found = found
        self._queue: deque[Job] = deque()
        self._suggesters: dict[str, Suggester] = {}
        self._halving: Halving | None = None
        self._advanced = len(self.plan.study.stages()) == 1
        self._next_arm = 0
        self._hung: dict[str, str] = {}
        self._stopped_early: dict[str, str] = {}
        self._completed: set[str] = set()
        self._num_lost: Counter[str] = Counter()
        self._max_live = 0
        self._last_heartbeat: dict[str, tuple[float, dict[str, str]]] = {}
        self._trial_started: dict[str, float] = {}
        self._started = time.monotonic()
        self._last_disk_check = 0.0
        self._eta_origin: tuple[float, float] | None = None

    def take_over(self) -> bool:
        """Queue the known trials and reuse finished ones; return whether nothing is left to run."""
        add_certain(self.plan)
        for arm in self.plan.exhausted:
            self._say_exhausted(arm)
        self._enqueue(self.plan.missing())
        if not self._queue and not self.plan.unasked():
            self._advance()
        return self.done

    def begin(self, slots: int, started: float) -> None:
        """Prepare to hand out jobs, at most `slots` at a time; `started` is the monotonic time the study started."""
        self.slots = slots
        self._started = started
        study = self.plan.study
        journal = self.plan.journal
        # Recorded once: with another number of slots, a later start must still make the same suggestions.
        if journal.parallel is None:
            journal.record_parallel(max(LEAST_PARALLEL, slots + 1))
        parallel = journal.parallel or LEAST_PARALLEL
        if study.nuisance:
            self._suggesters = {arm.name: Suggester(self.plan, arm.name, parallel) for arm in study.arms}
        if study.stops_early:
            budget = study.example(study.arms[0]).budget.images
            self._halving = Halving(study.asha, study.metric.name, study.metric.mode, budget)
            for name in self.plan.jobs:
                self._halving.record(name, self.plan.journal.points.get(name, []))

    def next_job(self) -> Job | None:
        """Return the next trial to start; None if no slot is free or none is ready (see `done`)."""
        if len(self.live) >= self.slots or self.stopped:
            return None
        while not self._queue and self._ask():
            pass
        if not self._queue:
            return None
        job = self._queue.popleft()
        self.live[job.fingerprint] = job
        self._max_live = max(self._max_live, len(self.live))
        self.recorder.started(job)
        self._show()
        return job

    def _ask(self) -> bool:
        """Queue a suggestion of the search, or the second stage.

        Returns True if something was queued or an arm's space proved exhausted, so that the caller should try again.
        """
        arms = [arm.name for arm in self.plan.study.arms]
        for place in range(len(arms)):
            arm = arms[(self._next_arm + place) % len(arms)]
            if not self.plan.unasked(arm) or not self._suggesters[arm].ready():
                continue
            self._next_arm += place + 1
            number = self.plan.next_number(arm)
            params = self._suggesters[arm].ask(number)
            if params is None:
                self.plan.exhausted.add(arm)
                self._say_exhausted(arm)
            else:
                self._enqueue(self.plan.add(number, params, arm))
            return True
        return self._advance()

    def _say_exhausted(self, arm: str) -> None:
        count = len(self.plan.configurations[0, arm])
        where = f"arm {arm!r}: " if arm else ""
        wanted = self.plan.study.configurations(arm)
        self.observer.problem(
            f"{where}the space holds only {count} of the {wanted} requested configurations; all of them are run"
        )

    def _advance(self) -> bool:
        if self._advanced or not self.plan.stage_over(0):
            return False
        self._advanced = True
        self._enqueue(self.plan.advance())
        return True

    def _enqueue(self, jobs: list[Job]) -> None:
        for job in jobs:
            if self.plan.over(job.fingerprint):
                continue
            found = usable(self._found, job, self.plan.journal)
            if found is not None:
                self.recorder.taken_over(job, found)
                self.taken_over[found.study] += 1
            else:
                self._queue.append(job)

    def keeps_warm(self, waiting: int) -> bool:
        """Return whether to keep this many idle workers alive for upcoming trials."""
        more = bool(self.plan.unasked()) or not self._advanced
        return more and not self.stopped and len(self.live) + waiting <= min(self.slots, self._max_live)

    @property
    def done(self) -> bool:
        """Whether no trial is left to start or restart, and none is running."""
        return not self._queue and not self.live and not self.plan.unasked() and self._advanced

    def description(self, job: Job) -> dict[str, Any]:
        """Return what a worker needs to run a job, as plain data."""
        mirror = mirror_of(self.plan, job)
        return {
            "trial": job.trial.dump(),
            "fingerprint": job.fingerprint,
            "folder": str(mirror.local),
            "remote": mirror.remote,
            "cpus": self.options.cpus,
        }

    def placed(self, fingerprint: str, place: dict[str, str]) -> None:
        """Record that a trial starts or continues on a worker."""
        now = time.monotonic()
        if not self.start_up_seconds:
            self.start_up_seconds = now - self._started
            self.plan.journal.record_start_up(self.start_up_seconds)
        self._last_heartbeat[fingerprint] = now, place
        self._trial_started.setdefault(fingerprint, now)
        self.recorder.placed(fingerprint, place)

    def result(self, fingerprint: str, points: list[dict[str, float]], problems: list[str], done: bool) -> bool:
        """Record the points of a trial, `done` with its last ones; return whether to stop the trial."""
        job = self.live[fingerprint]
        if done:
            self._completed.add(fingerprint)
        if fingerprint in self._last_heartbeat:
            self._last_heartbeat[fingerprint] = time.monotonic(), self._last_heartbeat[fingerprint][1]
        self.damaged.extend(problems)
        for problem in problems:
            self.observer.problem(problem)
        self.recorder.reached(job, points)
        self._show()
        known = self.plan.journal.points[fingerprint]
        if self._halving is not None and points and not done and job.stage == 0:
            reason = self._halving.stops(fingerprint, known)
            if reason is not None:
                self._stopped_early[fingerprint] = reason
        return fingerprint in self._hung or fingerprint in self._stopped_early

    def lost(self, fingerprint: str, reason: str) -> None:
        """Restart a trial that lost its process or node; end it if it is complete or out of retries."""
        self._num_lost[fingerprint] += 1
        over = fingerprint in self._completed or fingerprint in self._stopped_early
        if over or fingerprint in self._hung or self._num_lost[fingerprint] > RETRIES:
            self.ended(fingerprint, None if over else reason)
            return
        job = self.live.pop(fingerprint)
        self._last_heartbeat.pop(fingerprint, None)
        self._queue.appendleft(job)  # ahead of new trials: later suggestions may wait for its result
        self.observer.problem(f"{describe(job)} ({fingerprint}) lost its worker; it continues from its checkpoint")

    def ended(self, fingerprint: str, failure: str | None) -> None:
        """Record that a trial ended: complete, failed for the given reason, or interrupted with the study."""
        complete = self._completed | set(self._stopped_early) | set(self._hung)
        # Interrupted with the study: without an outcome in the journal, the next start continues it.
        if failure is None and fingerprint not in complete:
            return
        job = self.live.pop(fingerprint)
        self._last_heartbeat.pop(fingerprint, None)
        self.trial_seconds += time.monotonic() - self._trial_started.get(fingerprint, time.monotonic())
        failure = self._hung.get(fingerprint, failure)
        if failure is not None:
            self.recorder.failed(job, failure)
            self.observer.problem(f"{describe(job)} ({job.fingerprint}) failed: {failure}")
        elif fingerprint in self._stopped_early:
            self.recorder.finished(job, STOPPED, self._stopped_early[fingerprint])
        else:
            self.recorder.finished(job, FINISHED)
        self._show()

    def hanging(self) -> list[dict[str, str]]:
        """Mark trials that have not reported for `hang_seconds` as hung; return where they run, to end them there."""
        now, limit = time.monotonic(), self.plan.study.hang_seconds
        places = []
        for fingerprint, (heard, place) in self._last_heartbeat.items():
            if now - heard > limit and fingerprint in self.live:
                self._hung[fingerprint] = f"hung: no report for {limit:g} s (hang_seconds)"
                self._last_heartbeat[fingerprint] = (
                    now,
                    place,
                )  # if it survives, it is listed again after another interval
                places.append(place)
        return places

    def look_at_disk(self) -> bool:
        """Return whether the study must stop for lack of disk space; the disk is checked every few seconds."""
        now = time.monotonic()
        if now - self._last_disk_check > DISK_CHECK_INTERVAL_S and not self.stopped:
            self._last_disk_check = now
            folder, quota = self.plan.journal.folder, self.options.quota_gb
            free = shutil.disk_usage(folder).free
            taken = folder_bytes(folder) if quota is not None else 0
            if quota is not None and taken > quota * 1e9:
                self.stopped = (
                    f"{folder} takes {taken / 1e9:.3g} GB; the quota is {quota:g} GB: raise --quota-gb or free space "
                    "(gfe-study doctor shows what takes space), then resume"
                )
            elif free < MIN_FREE_BYTES:
                self.stopped = f"{folder}: only {free / 1e6:.0f} MB are free on its disk; free some space, then resume"
        return bool(self.stopped)

    def _show(self) -> None:
        best = self.plan.best()
        self.observer.progress(
            Snapshot(
                total=self.plan.total,
                finished=len(self.plan.finished()),
                running=len(self.live),
                failed=len(self.plan.failed()),
                best=best[1] if best else None,
                elapsed_seconds=time.monotonic() - self._started,
                remaining_seconds=self._remaining_seconds(),
            )
        )

    def _remaining_seconds(self) -> float | None:
        """Extrapolate from the progress since the first trial began, so that the start of the workers is excluded."""
        now, share = time.monotonic(), self._share()
        if self._eta_origin is None:
            self._eta_origin = (now, share) if self.trial_seconds or self._trial_started else None
            return None
        since, before = self._eta_origin
        return (1 - share) * (now - since) / (share - before) if share > before else None

    def _share(self) -> float:
        """Return the completed share of the study; running trials count in part."""
        done = float(len(self.plan.finished()))
        for name, job in self.live.items():
            points = self.plan.journal.points.get(name)
            done += points[-1][names.IMAGES_SEEN] / job.trial.budget.images if points else 0.0
        return min(1.0, done / self.plan.total)


def describe(job: Job) -> str:
    """Name a trial: `trial 3 seed 0 of arm 'adjoint'`."""
    arm = f" of arm {job.arm!r}" if job.arm else ""
    return f"trial {job.number} seed {job.seed}{arm}"


def folder_bytes(folder: Any) -> int:
    """Return the total size of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
