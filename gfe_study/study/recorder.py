"""Brings what happens to trials into the journal first, and from there into the tracking store.

The store may be slow, or away for a while: a thread of its own writes to it, so that no trial waits. What it has
missed is in the journal, and is delivered when it is back.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from gfe_study import names
from gfe_study.config import InputError, Trial, flatten, to_yaml
from gfe_study.layout import number
from gfe_study.provenance import package_versions
from gfe_study.study.journal import FAILED, FINISHED, Outcome, State
from gfe_study.study.plan import Job, Plan
from gfe_study.study.reuse import Finished
from gfe_study.study.runner import CONTINUATION, FAILURE_FILE
from gfe_study.study.storage import Mirror
from gfe_study.tracking import FAILED as RUN_FAILED
from gfe_study.tracking import FINISHED as RUN_FINISHED
from gfe_study.tracking import KILLED as RUN_KILLED
from gfe_study.tracking import Delivery, End, RunSpec, Tracker

SECONDS_BETWEEN_ATTEMPTS = 10.0
TRIALS_AT_ONCE = 200
"""In one delivery."""
SECONDS_BETWEEN_DELIVERIES = 2.0
"""Points wait so long for others to be delivered with; a trial that ends within it costs the fewest calls."""
GREEK = {"alpha": "α", "beta": "β", "kappa": "κ", "sigma": "σ", "tau": "τ"}
"""Settings as the papers write them."""


class Recorder:
    """The only writer of a study's journal and of its runs while it goes on.

    The journal is written by the caller's thread, at once; the store by another, every few seconds.

    Args:
        plan: the study's plan; its journal is open for writing.
        tracker: the store, with the study's parent run open; used by this object alone from now on.
        tags: tags common to all runs of this start.
        floor_of: entropy floor of the test images of a trial, nats per pixel.
        on_problem: told, in one line, what went wrong without ending the study.
    """

    def __init__(
        self,
        plan: Plan,
        tracker: Tracker,
        tags: dict[str, str],
        floor_of: Callable[[Trial], float],
        on_problem: Callable[[str], None],
    ) -> None:
        self.plan = plan
        self._floor_of = floor_of
        self.tracker = tracker
        self.tracking_seconds = 0.0
        self._tags = tags
        self._on_problem = on_problem
        self._places: dict[str, dict[str, str]] = {}
        self._behind: dict[str, Job] = {}
        self._away = False
        self._changed = threading.Condition()
        self._storing = threading.Lock()
        self._closing = False
        self._versions = package_versions()
        self._kept: dict[str, list[tuple[int, float, str]]] = {}
        for job in self.plan.finished():
            self._tidy(job)
            if not self.tracker.is_closed(job.fingerprint):
                self._behind[job.fingerprint] = job
        self._thread = threading.Thread(target=self._deliver_for_ever, name="tracking", daemon=True)
        self._thread.start()

    def started(self, job: Job) -> None:
        """A trial is handed to Ray."""
        if self.plan.state(job) == FAILED:
            self.plan.journal.record_retry(job.fingerprint)
        elif job.fingerprint not in self.plan.journal.asked:
            self.plan.journal.record_asked(job.asked())
        self._deliver(job)

    def placed(self, fingerprint: str, place: dict[str, str]) -> None:
        """A trial runs at a place: host, device, GPUs."""
        self._places[fingerprint] = place

    def reached(self, job: Job, points: list[dict[str, float]]) -> None:
        """A trial reported points, perhaps ones it has reported before."""
        if self.plan.journal.record_points(job.fingerprint, points):
            self._deliver(job)

    def finished(self, job: Job, state: State = FINISHED, reason: str = "") -> None:
        """A trial ended: at its budget, by diverging, or because it was stopped early."""
        self.plan.journal.record_outcome(job.fingerprint, Outcome(state, reason, run=self._run(job)))
        self._tidy(job)
        self._deliver(job)

    def taken_over(self, job: Job, found: Finished) -> None:
        """A trial need not be run: another study has."""
        if job.fingerprint not in self.plan.journal.asked:
            self.plan.journal.record_asked(job.asked())
        try:
            found.copy_files(self.plan.trial_folder(job))
        except OSError as error:
            self._on_problem(f"the decoder of {job.fingerprint} cannot be copied from {found.study} ({error.strerror})")
        outcome = Outcome(FINISHED, origin=found.study, run=found.outcome.run)
        self.plan.journal.record_taken_over(job.fingerprint, found.points, outcome)
        self._tidy(job)
        self._deliver(job)

    def failed(self, job: Job, reason: str) -> None:
        """A trial ended without result; its checkpoints stay."""
        self.plan.journal.record_outcome(job.fingerprint, Outcome(FAILED, reason, run=self._run(job)))
        self._deliver(job)

    def _run(self, job: Job) -> dict[str, str]:
        place = self._places.get(job.fingerprint, {})
        return {key: place[key] for key in (names.HOST, names.DEVICE, names.GPUS) if place.get(key)}

    def _tidy(self, job: Job) -> None:
        """Remove what a trial that is over needs no more, and decoders that are no longer among an arm's best."""
        self._remove(job, *CONTINUATION)
        value = self.plan.value(job)
        if value is None:
            return
        sign = 1 if self.plan.study.metric.mode == "min" else -1
        kept = self._kept.setdefault(job.arm, [])
        kept.append((-job.stage, sign * value, job.fingerprint))
        kept.sort()
        for _, _, name in kept[self.plan.study.keep :]:
            self._remove(self.plan.jobs[name], *names.KEPT_FILES)
        del kept[self.plan.study.keep :]

    def _remove(self, job: Job, *unwanted: str) -> None:
        try:
            mirror_of(self.plan, job).remove(*unwanted)
        except InputError as error:  # a file too many is no reason to end a study
            self._on_problem(str(error))

    def flush(self) -> None:
        """Bring the store level now, as far as it can be."""
        self._level()

    def close(self, interrupted: bool) -> bool:
        """Last delivery and the end of the parent run; False if the store could not be brought level."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._level()
        try:
            for job in self.plan.missing():
                if self.tracker.is_running(job.fingerprint):
                    self.tracker.close_trial(job.fingerprint, RUN_KILLED, {}, [])
            self._close_orphans()
            self._keep_best()
            self._say_shared()
            best = self.plan.best()
            tags = {names.BEST_FINGERPRINT: best[0].fingerprint, names.BEST_VALUE: f"{best[1]:.6f}"} if best else {}
            files = self._files(best[0], names.BEST_CHECKPOINT, names.RECONSTRUCTION) if best else []
            self.tracker.close_study(RUN_KILLED if interrupted else RUN_FINISHED, tags, files)
        except (InputError, OSError) as error:
            self._on_problem(str(error))
            return False
        return not self._behind

    def _close_orphans(self) -> None:
        """Runs of trials that no longer belong to the study, of which a kill left some open."""
        journal = self.plan.journal
        for name in self.tracker.orphans():
            if name in self.plan.jobs:
                continue
            outcome, points = journal.outcomes.get(name), list(journal.points.get(name, []))
            status = RUN_KILLED if outcome is None else RUN_FAILED if outcome.state == FAILED else RUN_FINISHED
            self.tracker.bring_level([Delivery(RunSpec(name, name, {}, {}, {}), points, End(status, {}, []))])

    def _keep_best(self) -> None:
        """The decoders that are kept are artifacts of their runs, and no others."""
        kept = {entry[-1] for entries in self._kept.values() for entry in entries}
        for job in self.plan.finished():
            files = self._files(job, *names.KEPT_FILES) if job.fingerprint in kept else []
            self.tracker.keep_decoder(job.fingerprint, files)

    def _say_shared(self) -> None:
        """Trials that several arms came to are one run each, which says so."""
        places: dict[str, list[tuple[int, str, int]]] = {}
        for (stage, arm), there in self.plan.configurations.items():
            for configuration in there.values():
                for name in configuration.fingerprints:
                    places.setdefault(name, []).append((stage, arm, configuration.number))
        for name, shared in places.items():
            if len(shared) > 1:
                self.tracker.tag_trial(name, {names.SHARED_BY: json.dumps(shared, ensure_ascii=False)})

    def _deliver(self, job: Job) -> None:
        with self._changed:
            self._behind[job.fingerprint] = job
            self._changed.notify()

    def _deliver_for_ever(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or bool(self._behind))
                pause = SECONDS_BETWEEN_ATTEMPTS if self._away else SECONDS_BETWEEN_DELIVERIES
                if self._changed.wait_for(self._is_closing, timeout=pause):
                    return
            self._level()

    def _is_closing(self) -> bool:
        return self._closing

    def _level(self) -> None:
        """Bring the runs of all trials that are behind level with the journal, as far as the store answers."""
        with self._storing:
            self._level_alone()

    def _level_alone(self) -> None:
        started = time.perf_counter()
        try:
            self.plan.journal.push()
            jobs = [self._behind.pop(name) for name in list(self._behind)]  # what comes from here on puts it back
            try:
                for start in range(0, len(jobs), TRIALS_AT_ONCE):
                    self.tracker.bring_level([self._delivery(job) for job in jobs[start : start + TRIALS_AT_ONCE]])
            except BaseException:
                for job in jobs:
                    self._behind.setdefault(job.fingerprint, job)
                raise
        except (InputError, OSError) as error:
            if not self._away:
                self._on_problem(f"{error}; points are kept in the journal and delivered when it is back")
            self._away = True
        else:
            self._away = False
        finally:
            self.tracking_seconds += time.perf_counter() - started

    def _delivery(self, job: Job) -> Delivery:
        journal = self.plan.journal
        outcome = journal.outcomes.get(job.fingerprint)  # before the points: they are complete once it is there
        points = list(journal.points.get(job.fingerprint, []))
        if outcome is None:
            return Delivery(self._spec(job), points)
        diverged = bool(points and points[-1].get(names.DIVERGED))
        tags = {
            names.DIVERGED: str(diverged).lower(),
            names.FAILURE: outcome.reason if outcome.state == FAILED else "",
            names.STOPPED_EARLY: outcome.reason if outcome.state not in (FAILED, FINISHED) else "",
            names.REUSED_FROM: outcome.origin,
            **outcome.run,
        }
        if outcome.state == FAILED:
            return Delivery(self._spec(job), points, End(RUN_FAILED, tags, self._files(job, FAILURE_FILE)))
        kept = self._files(job, *names.KEPT_FILES)
        tags |= {names.DECODER: "kept"} if kept else {}
        return Delivery(
            self._spec(job), points, End(RUN_FINISHED, tags, [*self._files(job, names.RECONSTRUCTION), *kept])
        )

    def _files(self, job: Job, *wanted: str) -> list[Path]:
        mirror_of(self.plan, job).fetch(*wanted)
        files = (self.plan.trial_folder(job) / name for name in wanted)
        return [file for file in files if file.exists()]

    def _spec(self, job: Job) -> RunSpec:
        trial = job.trial
        if self.tracker.is_open(job.fingerprint):
            return RunSpec(job.fingerprint, run_name(job), {}, {}, {})
        dumped = trial.dump()
        tags = {
            **self._tags,
            **trial_tags(trial, job.dataset_sha256),
            names.ARM: job.arm or run_name(job, with_seed=False),
            names.STAGE: str(job.stage),
            names.NUMBER: str(job.number),
            names.ENTROPY_FLOOR: f"{self._floor_of(trial):.6f}",
            names.VERSIONS: self._versions,
        }
        text = to_yaml(dumped)
        return RunSpec(job.fingerprint, run_name(job), tags, flatten(dumped), {names.TRIAL_FILE: text})


def trial_tags(trial: Trial, dataset_sha256: str) -> dict[str, str]:
    """What every trial's run is tagged with, of a study or not."""
    return {
        names.GROUP: trial.group(dataset_sha256),
        names.SEED: str(trial.seed),
        names.METHOD: trial.method.name,
        names.PRESET: trial.preset,
        names.DATASET: trial.data.name,
        names.DATASET_SHA256: dataset_sha256,
    }


def mirror_of(plan: Plan, job: Job) -> Mirror:
    """A trial's folder, and its counterpart where the study's storage is a URL."""
    folder, remote = plan.trial_folder(job), plan.journal.remote
    return Mirror(folder, f"{remote}/{folder.parent.name}/{folder.name}" if remote is not None else None)


def run_name(job: Job, *, with_seed: bool = True) -> str:
    """What tells a trial from its neighbours: `gfe·amd β=0.75 s_max=10 seed 0`, or `adjoint, rk4 seed 0`."""
    trial = job.trial
    method = trial.method.name if trial.method.name != "gfe" else f"gfe·{trial.solver.name}"
    told = settings(job, written=GREEK)
    return " ".join(filter(None, [job.arm or method, told, f"seed {job.seed}" if with_seed else ""]))


def settings(job: Job, written: Mapping[str, str] = MappingProxyType({})) -> str:
    """The searched values of a trial: `beta=0.75 s_max=10`; `written` gives other names for some of the keys."""
    shown = [(key.rpartition(".")[2], number(value, 3)) for key, value in job.params.items()]
    return " ".join(f"{written.get(name, name)}={value}" for name, value in shown)


def artifact_files(folder: Path) -> list[Path]:
    files = (folder / name for name in (*names.KEPT_FILES, names.RECONSTRUCTION))
    return [file for file in files if file.exists()]
