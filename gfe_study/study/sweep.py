"""Running a study: Ray Tune runs the missing trials, and the journal records their results.

Every start takes the same steps: read the study and its journal, make the plan, and hand the missing trials to Ray,
unfinished ones first. Continuing a study needs none of Ray's own state.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from gfe_study import interrupts, names
from gfe_study.config import InputError, Study, to_yaml
from gfe_study.data.base import data_folders
from gfe_study.data.split import Splits
from gfe_study.io.storage import Storage
from gfe_study.provenance import provenance
from gfe_study.study.disk import DiskWatch
from gfe_study.study.engine import Engine, Observer, declare
from gfe_study.study.images import Images
from gfe_study.study.journal import Journal, Settled
from gfe_study.study.options import Options
from gfe_study.study.plan import Job, Plan
from gfe_study.study.recorder import Recorder
from gfe_study.study.reuse import reusable
from gfe_study.study.runner import CONTINUATION
from gfe_study.study.settled import file_states
from gfe_study.tracking.client import Tracker
from gfe_study.tracking.runs import FAILED
from gfe_study.tracking.uri import writable
from gfe_study.tracking.views import COMPARISON, STUDY_FILE, link

RAY_FOLDER = "ray"


@dataclass
class Outcome:
    """How a start of a study ended.

    Attributes:
        plan: the plan at the end of this start.
        interrupted: whether the start ended before all trials did.
        delivered: whether the tracking store is complete.
        damaged: one line per damaged checkpoint.
        taken_over: study -> number of its finished trials that were reused.
        stopped: why the study was stopped early; empty if it was not.
        slots: how many trials could run at a time; 0 if Ray was not needed.
        seconds: wall time of this start by part: `start_up`, `total`, `trials` (summed over all trials), `tracking`.
        comparison: address of the study's comparison in MLflow's UI, on the store's server or that of `gfe-study ui`.
    """

    plan: Plan
    interrupted: bool = False
    delivered: bool = True
    damaged: list[str] = field(default_factory=list)
    taken_over: dict[str, int] = field(default_factory=dict)
    stopped: str = ""
    slots: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    comparison: str = ""

    @property
    def failed(self) -> list[Job]:
        return self.plan.failed()

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do: every trial is over, and the tracking store has all of them."""
        plan = self.plan
        ended = not (self.interrupted or self.stopped or self.damaged)
        return ended and self.delivered and not plan.missing() and not plan.unasked()


class Backend(Protocol):
    """Runs an engine's trials until the engine is done or must stop."""

    def __call__(
        self, engine: Engine, options: Options, images: Mapping[str, Splits], observer: Observer, started: float
    ) -> contextlib.AbstractContextManager[None]:
        """Run the trials on entering the context, and release the resources on leaving it."""


def run_sweep(
    study: Study,
    label: str,
    options: Options,
    observer: Observer,
    settle: Callable[[Outcome], tuple[str, dict[str, Any], list[Any]]] | None = None,
    backend: Backend | None = None,
) -> Outcome:
    """Run, extend or continue a study.

    Args:
        study: the study.
        label: its name.
        options: how to run it.
        observer: receives progress and problems.
        settle: returns the key, summary and lines of the journal's last record once nothing is left to do; see
            `Settled`. None to record nothing.
        backend: runs the trials; Ray by default.

    Raises:
        InputError: the data, the folder or the store cannot be used (before any trial starts), or the journal can no
            longer be written.
    """
    started = time.monotonic()
    folders = list(dict.fromkeys([*data_folders(), *map(Path, options.data_folders)]))
    options = replace(options, data_folders=tuple(map(str, folders))).granted(study.resources)
    images = Images.of_study(study, folders, download=True)
    folder = Storage(options.storage).folder(label)
    files = file_states(images.sources())
    writable(folder.local, "choose another --storage")
    folder.check()
    images.prepare((study.example(arm, stage) for stage in study.stages() for arm in study.arms), folder)
    # What follows is not torn apart by a signal: it ends where no more trials are handed out.
    with interrupts.deferred(), Journal.open(folder) as journal:
        source = {"source": study.source, "source_sha256": study.source_sha256}
        recorded = {key: value for key, value in asdict(options).items() if key != "again"}
        journal.record_study(study.model_dump(mode="json"), source, recorded)
        plan = Plan.make(study, images.sha256, journal)
        if options.again and not journal.again & set(plan.jobs):
            journal.record_again([job.fingerprint for job in plan.finished()])
        tracker = Tracker(label)  # after the journal is locked: another sweep may have added runs before
        _set_aside(plan, tracker)
        observer.planned(plan, images.of(study.example(study.arms[0])))
        outcome = Outcome(plan, comparison=tracker.page(link(tracker.experiment_id, COMPARISON)))
        recorder, level = _open_store(plan, tracker, label, images, observer)
        with contextlib.ExitStack() as at_last:  # the backend ends only once everything is recorded
            try:
                if plan.missing() or plan.unasked() or len(study.stages()) > 1:
                    _run_missing(recorder, options, images, observer, outcome, started, at_last, backend)
            except BaseException:
                recorder.close(interrupted=True)
                raise
            outcome.delivered = recorder.close(outcome.interrupted)
            outcome.interrupted |= interrupts.asked() and not outcome.delivered
        if outcome.delivered:
            tracker.tag_study(level)
        if settle is not None and outcome.complete and folder.remote is None:  # a study at a URL is always planned
            key, shown, lines = settle(Outcome(plan, comparison=outcome.comparison))
            journal.record_settled(Settled(key, files, shown, lines))
        outcome.seconds |= {"total": time.monotonic() - started, "tracking": recorder.tracking_seconds}
        return outcome


def _open_store(
    plan: Plan, tracker: Tracker, label: str, images: Images, observer: Observer
) -> tuple[Recorder, dict[str, str]]:
    """Open the study's own run, and bring the runs of its trials level with the study as it is declared now.

    Returns the recorder, and the tag that says that all names and tags agree with the declaration in the store.
    """
    study, shared = plan.study, _tags(plan.study, label)
    pending = {**shared, names.LEVELLED: "pending"}  # so that no report mixes the old runs with the new membership
    declared = to_yaml(study.model_dump(mode="json"))
    tracker.open_study(pending, study.question, {STUDY_FILE: declared})
    try:
        declare(plan)
    except InputError:
        tracker.close_study(FAILED, {}, [])
        raise
    recorder = Recorder(plan, tracker, shared, images.floor, observer.problem)
    level = {names.LEVELLED: hashlib.sha256(declared.encode()).hexdigest()}
    if recorder.flush():
        tracker.tag_study(level)
    return recorder, level


def _tags(study: Study, label: str) -> dict[str, str]:
    space = Path(study.source)
    return {
        **provenance(),
        names.STUDY: label,
        names.SPACE: space.name,
        names.SPACE_SHA256: study.source_sha256,
    }


def _set_aside(plan: Plan, tracker: Tracker) -> None:
    """Set aside runs and files of trials that are run again and have not begun, also if an earlier start was killed."""
    for name in plan.journal.again & set(plan.jobs):
        if not plan.journal.points.get(name) and name not in plan.journal.outcomes:
            tracker.supersede(name)
            plan.trial_folder(plan.jobs[name]).remove(*CONTINUATION, *names.KEPT_FILES)


def _run_missing(
    recorder: Recorder,
    options: Options,
    images: Images,
    observer: Observer,
    outcome: Outcome,
    started: float,
    at_last: contextlib.ExitStack,
    backend: Backend | None,
) -> None:
    plan = recorder.plan
    engine = Engine(plan, recorder, observer, time.monotonic, reusable(plan.journal, options))
    outcome.taken_over = engine.taken_over
    if engine.take_over():
        return
    outcome.interrupted = interrupts.asked()
    if outcome.interrupted:
        return
    at_last.enter_context((backend or ray_backend)(engine, options, images.loaded, observer, started))
    outcome.interrupted = not engine.done
    outcome.damaged = engine.damaged
    outcome.stopped = engine.stopped if not engine.done else ""  # a stop after the last trial stops nothing
    outcome.slots = engine.slots
    outcome.seconds = {"start_up": engine.start_up_seconds, "trials": engine.trial_seconds}
    if engine.broken is not None:
        raise engine.broken


@contextlib.contextmanager
def ray_backend(
    engine: Engine, options: Options, images: Mapping[str, Splits], observer: Observer, started: float
) -> Iterator[None]:
    """Run trials on a local Ray, or on the cluster at `options.address`. Raises `InputError` if it cannot be used."""
    from gfe_study.study.ray_session import ray_session

    observer.starting_ray()
    ray_started = time.monotonic()
    with ray_session(options.address) as ray:
        from gfe_study.study.ray_tune import Bridge, fit

        engine.begin(_slots(ray.cluster_resources(), options), started)
        observer.ray_started(time.monotonic() - ray_started, engine.slots)
        folder = engine.plan.journal.folder
        if not interrupts.asked():
            fit(Bridge(engine, options, DiskWatch(folder, options.quota_gb)), folder / RAY_FOLDER, images)
        yield


def _slots(resources: dict[str, float], options: Options) -> int:
    """Return how many trials fit at once. Raises `InputError` if not even one does."""
    wanted = {"CPU": options.cpus, "GPU": options.gpus}
    for kind, amount in wanted.items():
        if amount > resources.get(kind, 0.0):
            raise InputError(
                f"--{kind.lower()}s-per-trial: given {amount:g}; allowed: at most {resources.get(kind, 0.0):g}, "
                f"the {kind}s of this Ray"
            )
    return options.slots_in(resources)
