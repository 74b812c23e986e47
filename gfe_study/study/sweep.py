"""Running a study: what is missing is handed to Ray Tune, what comes back is recorded.

Every start is the same: read the study and its journal, plan, hand over what is missing, unfinished trials
first. Nothing of Ray's own state is needed to go on.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import yaml

from gfe_study import names
from gfe_study.config import InputError, Study
from gfe_study.data.base import Splits, entropy_floor
from gfe_study.data.mnist import data_folders
from gfe_study.study.journal import FAILED, FINISHED, Journal
from gfe_study.study.plan import Job, Plan
from gfe_study.study.recorder import Recorder
from gfe_study.study.searcher import Suggester
from gfe_study.study.session import ray_session
from gfe_study.tracking import Tracker, provenance, writable

RAY_FOLDER = "ray"


@dataclass(frozen=True)
class Options:
    """How a study is run; nothing here changes a trial's numbers."""

    storage: str = "results"
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    address: str | None = None
    data_folders: tuple[str, ...] = ()
    """Where the images were looked for when the study was last run; looked at after today's folders."""


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

    def ray_started(self, seconds: float, slots: int) -> None: ...

    def progress(self, snapshot: Snapshot) -> None: ...

    def problem(self, text: str) -> None: ...


@dataclass
class Outcome:
    """How a start of a study ended."""

    plan: Plan
    interrupted: bool
    delivered: bool
    damaged: list[str]
    """A line for every checkpoint that was found damaged."""

    @property
    def failed(self) -> list[Job]:
        return [job for job in self.plan.jobs.values() if self.plan.state(job) == FAILED]


def study_folder(storage: str, label: str) -> Path:
    """Where a study keeps its journal and its trials' files."""
    return Path(storage).absolute() / label


def run_sweep(study: Study, label: str, options: Options, observer: Observer) -> Outcome:
    """Run, extend or continue a study.

    Raises:
        InputError: before any trial starts, if the data, the folder or the store cannot be used.
    """
    folders = list(dict.fromkeys([*data_folders(), *map(Path, options.data_folders)]))
    options = replace(options, data_folders=tuple(map(str, folders)))
    splits = load_data(study, folders, download=True)
    folder = study_folder(options.storage, label)
    writable(folder, "choose another --storage")
    tracker = Tracker(label)
    with Journal.open(folder) as journal:
        source = {"source": study.source, "source_sha256": study.source_sha256}
        journal.record_study(study.model_dump(mode="json"), source, asdict(options))
        plan = Plan.make(study, splits.sha256, journal)
        observer.planned(plan, splits)
        space = Path(study.source)
        shared = {
            **provenance(space.absolute().parent),
            names.STUDY: label,
            names.SPACE: space.name,
            names.SPACE_SHA256: study.source_sha256,
            names.ENTROPY_FLOOR: f"{entropy_floor(splits.test):.6f}",
        }
        declared = yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        tracker.open_study(shared, study.question, {"study.yaml": declared})
        recorder = Recorder(plan, tracker, shared, observer.problem)
        outcome = Outcome(plan, interrupted=False, delivered=True, damaged=[])
        if plan.missing() or plan.unasked():
            try:
                _run_missing(recorder, options, observer, outcome)
            except InputError:
                recorder.close(interrupted=True)
                raise
        outcome.delivered = recorder.close(outcome.interrupted)
        return outcome


def load_data(study: Study, folders: list[Path], *, download: bool) -> Splits:
    """The study's dataset, from the first of the folders that holds it.

    Raises:
        InputError: it varies between trials, or cannot be had.
    """
    if any(key.startswith("data.") for key in study.nuisance):
        raise InputError(f"{study.source}: nuisance: data.* cannot be searched; its losses would not be comparable")
    point = {key: drawn.values[0] for key, drawn in study.nuisance.items()}
    starts = study.start_points()
    trial = study.trial(starts[0] if starts else point, seed=0)
    splits: Splits = trial.data.load(folders, download=download)
    return splits


def _run_missing(recorder: Recorder, options: Options, observer: Observer, outcome: Outcome) -> None:
    plan = recorder.plan
    started = time.monotonic()
    with ray_session(options.address) as ray:
        from gfe_study.study.tune_bridge import Bridge, fit

        slots = _slots(ray.cluster_resources(), options)
        observer.ray_started(time.monotonic() - started, slots)
        driver = Driver(recorder, observer, slots, options)
        fit(Bridge(driver), plan.journal.folder / RAY_FOLDER, options)
        outcome.interrupted = bool(driver.live) or not driver.done
        outcome.damaged = driver.damaged


def _slots(resources: dict[str, float], options: Options) -> int:
    """Trials that fit at once."""
    wanted = {"CPU": options.cpus_per_trial, "GPU": options.gpus_per_trial}
    for kind, amount in wanted.items():
        if amount > resources.get(kind, 0.0):
            raise InputError(
                f"--{kind.lower()}s-per-trial: given {amount:g}; allowed: at most {resources.get(kind, 0.0):g}, "
                f"the {kind}s of this Ray"
            )
    return min(int(resources[kind] // amount) for kind, amount in wanted.items() if amount > 0)


@dataclass
class Driver:
    """Decides what runs next and takes in what comes back; knows nothing of Ray."""

    recorder: Recorder
    observer: Observer
    slots: int
    options: Options
    live: dict[str, Job] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    exhausted: bool = False

    def __post_init__(self) -> None:
        self.plan = self.recorder.plan
        self._suggester = Suggester(self.plan)
        self._queue = deque(self.plan.missing())
        self._told: set[int] = set()
        self._started = time.monotonic()
        self._first: tuple[float, float] | None = None
        self._reported = False

    def next_job(self) -> Job | None:
        """The next trial to start, if there is room for one; also None when there is none left (see `done`)."""
        if len(self.live) >= self.slots:
            return None
        if not self._queue and self.plan.unasked() and not self.exhausted:
            number = self.plan.next_number()
            params = self._suggester.ask(number)
            if params is None:
                self.exhausted = True
                count = len(self.plan.numbers())
                self.observer.problem(f"the space holds only {count} different configurations; all are run")
            else:
                self._queue.extend(self.plan.add(number, params))
        if not self._queue:
            return None
        job = self._queue.popleft()
        self.live[job.fingerprint] = job
        self.recorder.started(job)
        self._show()
        return job

    @property
    def done(self) -> bool:
        """Whether nothing is left to be started."""
        return not self._queue and (self.exhausted or not self.plan.unasked())

    def description(self, job: Job) -> dict[str, Any]:
        """What a worker needs to run a job, as plain data."""
        return {
            "trial": job.trial.dump(),
            "fingerprint": job.fingerprint,
            "folder": str(self.plan.trial_folder(job)),
            "data_folders": list(self.options.data_folders),
            "cpus": self.options.cpus_per_trial,
        }

    def result(self, fingerprint: str, points: list[dict[str, float]], device: str, problems: list[str]) -> None:
        """A trial reported."""
        job = self.live[fingerprint]
        self._reported = True
        self.damaged.extend(problems)
        for problem in problems:
            self.observer.problem(problem)
        self.recorder.reached(job, points, device)
        self._show()

    def ended(self, fingerprint: str, failure: str | None) -> None:
        """A trial is over, or has failed for the reason given."""
        job = self.live.pop(fingerprint)
        if failure is None:
            self.recorder.finished(job)
        else:
            self.recorder.failed(job, failure)
            self.observer.problem(f"trial {job.number} seed {job.seed} ({job.fingerprint}) failed: {failure}")
        self._tell(job.number)
        self._show()

    def _tell(self, number: int) -> None:
        jobs = self.plan.numbers()[number]
        states = {self.plan.state(job) for job in jobs}
        if number in self._told or not states <= {FINISHED, FAILED}:
            return
        self._told.add(number)
        values = [value for job in jobs if (value := self.plan.value(job)) is not None]
        if len(values) == len(jobs):
            self._suggester.tell(number, values)
        else:
            self._suggester.tell_failed(number)

    def _images(self) -> float:
        points = self.plan.journal.points
        return sum(points[name][-1][names.IMAGES_SEEN] for name in self.plan.jobs if points.get(name))

    def _show(self) -> None:
        states = [self.plan.state(job) for job in self.plan.jobs.values() if job.fingerprint not in self.live]
        best = self.plan.best()
        self.observer.progress(
            Snapshot(
                total=self.plan.total,
                finished=states.count(FINISHED),
                running=len(self.live),
                failed=states.count(FAILED),
                best=best[1] if best else None,
                elapsed_seconds=time.monotonic() - self._started,
                remaining_seconds=self._remaining_seconds(),
            )
        )

    def _remaining_seconds(self) -> float | None:
        """From the images seen since the first report, which leaves the start of the workers out."""
        now, images = time.monotonic(), self._images()
        if self._first is None:
            self._first = (now, images) if images and self._reported else None
            return None
        since, before = self._first
        budget = next(iter(self.plan.jobs.values())).trial.budget.images
        left = self.plan.total * budget - images
        return left * (now - since) / (images - before) if images > before else None
