"""Running a study: Ray Tune runs the missing trials, and the journal records their results.

Every start takes the same steps: read the study and its journal, make the plan, and hand the missing trials to Ray,
unfinished ones first. Continuing a study needs none of Ray's own state.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from gfe_study import names
from gfe_study.config import InputError, Study, to_yaml
from gfe_study.data.base import data_folders
from gfe_study.mlflow_view import COMPARISON, STUDY_FILE, link
from gfe_study.provenance import provenance
from gfe_study.study.driver import Driver, Observer, Options
from gfe_study.study.images import Images
from gfe_study.study.journal import Journal
from gfe_study.study.plan import Job, Plan
from gfe_study.study.recorder import Recorder, mirror_of
from gfe_study.study.reuse import finished_elsewhere
from gfe_study.study.runner import CONTINUATION
from gfe_study.study.session import ray_session
from gfe_study.study.storage import remote_folder, study_folder
from gfe_study.tracking import Tracker, writable

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
        comparison: address of the study's comparison in MLflow's UI, on the store's server or the one of `make ui`.
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


def run_sweep(study: Study, label: str, options: Options, observer: Observer) -> Outcome:
    """Run, extend or continue a study.

    Raises:
        InputError: the data, the folder or the store cannot be used (before any trial starts), or the journal can no
            longer be written.
    """
    started = time.monotonic()
    folders = list(dict.fromkeys([*data_folders(), *map(Path, options.data_folders)]))
    options = replace(options, data_folders=tuple(map(str, folders))).granted(study.resources)
    images = Images.of_study(study, folders, download=True)
    folder = study_folder(options.storage, label)
    writable(folder, "choose another --storage")
    tracker = Tracker(label)
    with Journal.open(folder, remote_folder(options.storage, label)) as journal:
        source = {"source": study.source, "source_sha256": study.source_sha256}
        recorded = {key: value for key, value in asdict(options).items() if key != "again"}
        journal.record_study(study.model_dump(mode="json"), source, recorded)
        plan = Plan.make(study, images.sha256, journal)
        if options.again and not journal.again:
            _run_again(plan, tracker)
        observer.planned(plan, images.of(study.example(study.arms[0])))
        shared = _tags(study, label)
        declared = to_yaml(study.model_dump(mode="json"))
        tracker.open_study(shared, study.question, {STUDY_FILE: declared})
        recorder = Recorder(plan, tracker, shared, images.entropy_floor, observer.problem)
        outcome = Outcome(plan, comparison=tracker.page(link(tracker.experiment_id, COMPARISON)))
        with contextlib.ExitStack() as at_last:  # Ray is shut down only once everything is recorded
            try:
                if plan.missing() or plan.unasked() or len(study.stages()) > 1:
                    _run_missing(recorder, options, images, observer, outcome, started, at_last)
            except BaseException:
                recorder.close(interrupted=True)
                raise
            outcome.delivered = recorder.close(outcome.interrupted)
        outcome.seconds |= {"total": time.monotonic() - started, "tracking": recorder.tracking_seconds}
        return outcome


def _tags(study: Study, label: str) -> dict[str, str]:
    space = Path(study.source)
    return {
        **provenance(),
        names.STUDY: label,
        names.SPACE: space.name,
        names.SPACE_SHA256: study.source_sha256,
    }


def _run_again(plan: Plan, tracker: Tracker) -> None:
    jobs = plan.finished()
    plan.journal.record_again([job.fingerprint for job in jobs])
    for job in jobs:
        tracker.supersede(job.fingerprint)
        mirror_of(plan, job).remove(*CONTINUATION, *names.KEPT_FILES)


def _run_missing(
    recorder: Recorder,
    options: Options,
    images: Images,
    observer: Observer,
    outcome: Outcome,
    started: float,
    at_last: contextlib.ExitStack,
) -> None:
    plan = recorder.plan
    driver = Driver(recorder, observer, options, finished_elsewhere(plan.journal.folder, options))
    if driver.take_over():
        outcome.taken_over = driver.taken_over
        return
    observer.starting_ray()
    ray_started = time.monotonic()
    ray = at_last.enter_context(ray_session(options.address))
    from gfe_study.study.tune_bridge import Bridge, fit

    driver.begin(_slots(ray.cluster_resources(), options), started)
    observer.ray_started(time.monotonic() - ray_started, driver.slots)
    fit(Bridge(driver), plan.journal.folder / RAY_FOLDER, options, images.loaded)
    outcome.interrupted = not driver.done
    outcome.damaged = driver.damaged
    outcome.taken_over = driver.taken_over
    outcome.stopped = driver.stopped
    outcome.slots = driver.slots
    outcome.seconds = {"start_up": driver.start_up_seconds, "trials": driver.trial_seconds}
    if driver.broken is not None:
        raise driver.broken


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
