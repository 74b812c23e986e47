"""Decides what of a study runs next, and takes in what comes back; knows nothing of Ray."""

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
"""How often a trial whose process or node has gone is started again; it goes on from its own checkpoint."""
SECONDS_BETWEEN_LOOKS = 5.0
"""How often the disk is looked at."""
LEAST_FREE_BYTES = 200e6
MOST_PER_TRIAL = 1024


@dataclass(frozen=True)
class Options:
    """How a study is run; nothing here changes a trial's numbers."""

    storage: str = "results"
    cpus_per_trial: float | None = None
    """None: what the study's `resources` say."""
    gpus_per_trial: float | None = None
    address: str | None = None
    quota_gb: float | None = None
    """The study's folder may not grow beyond this."""
    reuse: bool = True
    """Whether trials that other studies have finished count."""
    again: bool = False
    """Run the finished trials of this study again; not while that is under way already."""
    data_folders: tuple[str, ...] = ()
    """Where the images were looked for when the study was last run; looked at after today's folders."""

    @property
    def cpus(self) -> float:
        return self.cpus_per_trial or 1.0

    @property
    def gpus(self) -> float:
        return self.gpus_per_trial or 0.0

    def slots_in(self, resources: Mapping[str, float]) -> int:
        """Trials that fit into resources (`CPU`, `GPU`) at once; 0 if they are not even those of one."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        return min(int(resources.get(kind, 0.0) / amount + 1e-9) for kind, amount in wanted.items() if amount > 0)

    def granted(self, resources: Resources) -> Options:
        """The same with a study's resources where none are given."""
        for kind, amount in (("cpus", self.cpus_per_trial), ("gpus", self.gpus_per_trial)):
            least = 0.0 if kind == "gpus" else 0.01
            if amount is not None and not least <= amount <= MOST_PER_TRIAL:
                raise InputError(f"--{kind}-per-trial: given {amount:g}; allowed: from {least:g} to {MOST_PER_TRIAL}")
        if (self.gpus_per_trial or resources.gpu) > 1 and (self.gpus_per_trial or resources.gpu) % 1:
            raise InputError("gpus per trial: given a fraction above 1; allowed: a fraction of one, or whole ones")
        cpus = self.cpus_per_trial or resources.cpu
        gpus = resources.gpu if self.gpus_per_trial is None else self.gpus_per_trial
        return replace(self, cpus_per_trial=cpus, gpus_per_trial=gpus)


@dataclass(frozen=True)
class Snapshot:
    """Where a study is. Seconds count from this start; `remaining_seconds` is None until it can be told."""

    total: int
    finished: int
    running: int
    failed: int
    best: float | None
    elapsed_seconds: float
    remaining_seconds: float | None


class Observer(Protocol):
    """Who is told how a study goes; the command line prints it."""

    def planned(self, plan: Plan, splits: Splits) -> None: ...

    def starting_ray(self) -> None: ...

    def ray_started(self, seconds: float, slots: int) -> None: ...

    def progress(self, snapshot: Snapshot) -> None: ...

    def problem(self, text: str) -> None: ...


class Driver:
    """What is asked next and what has come of it, for one start of a study.

    Args:
        recorder: writes the journal and the tracking store.
        observer: is told.
        options: how the study is run.
        found: trials that other studies have finished.
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
        self._turn = 0
        self._hung: dict[str, str] = {}
        self._stopped_early: dict[str, str] = {}
        self._over: set[str] = set()
        self._losses: Counter[str] = Counter()
        self._most_live = 0
        self._heard: dict[str, tuple[float, dict[str, str]]] = {}
        self._began: dict[str, float] = {}
        self._started = time.monotonic()
        self._looked = 0.0
        self._first: tuple[float, float] | None = None

    def take_over(self) -> bool:
        """Queue what is certain, taking over what other studies have finished; whether nothing is left to run."""
        add_certain(self.plan)
        for arm in self.plan.exhausted:
            self._say_exhausted(arm)
        self._enqueue(self.plan.missing())
        if not self._queue and not self.plan.unasked():
            self._advance()
        return self.done

    def begin(self, slots: int, started: float) -> None:
        """Start handing out jobs, at most `slots` at a time; `started` is when the study was, by the clock."""
        self.slots = slots
        self._started = started
        study = self.plan.study
        journal = self.plan.journal
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
        """The next trial to start, if there is room for one; also None when there is none left (see `done`)."""
        if len(self.live) >= self.slots or self.stopped:
            return None
        while not self._queue and self._ask():
            pass
        if not self._queue:
            return None
        job = self._queue.popleft()
        self.live[job.fingerprint] = job
        self._most_live = max(self._most_live, len(self.live))
        self.recorder.started(job)
        self._show()
        return job

    def _ask(self) -> bool:
        """Add to the queue what a search suggests, or the second stage; whether anything was added or is over."""
        arms = [arm.name for arm in self.plan.study.arms]
        for place in range(len(arms)):
            arm = arms[(self._turn + place) % len(arms)]
            if not self.plan.unasked(arm) or not self._suggesters[arm].ready():
                continue
            self._turn += place + 1
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
            f"{where}the space holds only {count} of the {wanted} configurations asked for; all are run"
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
        """Whether so many workers, of those that there have been, are to wait for jobs that are still to come."""
        more = bool(self.plan.unasked()) or not self._advanced
        return more and not self.stopped and len(self.live) + waiting <= min(self.slots, self._most_live)

    @property
    def done(self) -> bool:
        """Whether nothing is left to be started, again or for the first time."""
        return not self._queue and not self.live and not self.plan.unasked() and self._advanced

    def description(self, job: Job) -> dict[str, Any]:
        """What a worker needs to run a job, as plain data."""
        mirror = mirror_of(self.plan, job)
        return {
            "trial": job.trial.dump(),
            "fingerprint": job.fingerprint,
            "folder": str(mirror.local),
            "remote": mirror.remote,
            "cpus": self.options.cpus,
        }

    def placed(self, fingerprint: str, place: dict[str, str]) -> None:
        """A trial has begun, or goes on, on a worker."""
        now = time.monotonic()
        if not self.start_up_seconds:
            self.start_up_seconds = now - self._started
            self.plan.journal.record_start_up(self.start_up_seconds)
        self._heard[fingerprint] = now, place
        self._began.setdefault(fingerprint, now)
        self.recorder.placed(fingerprint, place)

    def result(self, fingerprint: str, points: list[dict[str, float]], problems: list[str], done: bool) -> bool:
        """A trial reported, perhaps for the last time; whether it is to be stopped."""
        job = self.live[fingerprint]
        if done:
            self._over.add(fingerprint)
        if fingerprint in self._heard:
            self._heard[fingerprint] = time.monotonic(), self._heard[fingerprint][1]
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
        """A trial's process or node has gone; it is started again, unless that has been tried often enough."""
        self._losses[fingerprint] += 1
        over = fingerprint in self._over or fingerprint in self._stopped_early
        if over or fingerprint in self._hung or self._losses[fingerprint] > RETRIES:
            self.ended(fingerprint, None if over else reason)
            return
        job = self.live.pop(fingerprint)
        self._heard.pop(fingerprint, None)
        self._queue.appendleft(job)
        self.observer.problem(f"{describe(job)} ({fingerprint}) lost its worker, and goes on from its checkpoint")

    def ended(self, fingerprint: str, failure: str | None) -> None:
        """A trial is over, or has failed for the reason given, or was cut short with the study."""
        complete = self._over | set(self._stopped_early) | set(self._hung)
        if failure is None and fingerprint not in complete:
            return
        job = self.live.pop(fingerprint)
        self._heard.pop(fingerprint, None)
        self.trial_seconds += time.monotonic() - self._began.get(fingerprint, time.monotonic())
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
        """Places of trials from which nothing was heard for too long; they are to be ended."""
        now, limit = time.monotonic(), self.plan.study.hang_seconds
        places = []
        for fingerprint, (heard, place) in self._heard.items():
            if now - heard > limit and fingerprint in self.live:
                self._hung[fingerprint] = f"hung: nothing was heard of it for {limit:g} s (hang_seconds)"
                self._heard[fingerprint] = now, place
                places.append(place)
        return places

    def look_at_disk(self) -> bool:
        """Whether the study has to stop for want of disk; looks every few seconds."""
        now = time.monotonic()
        if now - self._looked > SECONDS_BETWEEN_LOOKS and not self.stopped:
            self._looked = now
            folder, quota = self.plan.journal.folder, self.options.quota_gb
            free = shutil.disk_usage(folder).free
            taken = folder_bytes(folder) if quota is not None else 0
            if quota is not None and taken > quota * 1e9:
                self.stopped = (
                    f"{folder} takes {taken / 1e9:.3g} GB; the quota is {quota:g} GB: raise --quota-gb, or free some "
                    "(gfe-study doctor shows what takes space), and resume"
                )
            elif free < LEAST_FREE_BYTES:
                self.stopped = f"{folder}: {free / 1e6:.0f} MB are left on its disk; free some, and resume"
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
        """From the share of the study done since the first result, which leaves the start of the workers out."""
        now, share = time.monotonic(), self._share()
        if self._first is None:
            self._first = (now, share) if self.trial_seconds or self._began else None
            return None
        since, before = self._first
        return (1 - share) * (now - since) / (share - before) if share > before else None

    def _share(self) -> float:
        """Trials done, and the parts of those under way, over all."""
        done = float(len(self.plan.finished()))
        for name, job in self.live.items():
            points = self.plan.journal.points.get(name)
            done += points[-1][names.IMAGES_SEEN] / job.trial.budget.images if points else 0.0
        return min(1.0, done / self.plan.total)


def describe(job: Job) -> str:
    """A trial for a line of text: `trial 3 seed 0 of arm 'adjoint'`."""
    arm = f" of arm {job.arm!r}" if job.arm else ""
    return f"trial {job.number} seed {job.seed}{arm}"


def folder_bytes(folder: Any) -> int:
    """What the files below a folder take."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
