"""Delivers what the journal holds to the tracking store.

The store may be slow or temporarily unavailable, so a separate thread writes to it and no trial waits. The journal
holds what the store has missed, and the thread delivers it once the store answers again.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from gfe_study import interrupts, names
from gfe_study.config import InputError, Trial, flatten, to_yaml
from gfe_study.io.storage import UPLOAD_RETRY_S, StorageError
from gfe_study.layout import number
from gfe_study.metrics import DIVERGED
from gfe_study.provenance import package_versions
from gfe_study.study.journal import FAILED, FINISHED
from gfe_study.study.plan import Job, Plan
from gfe_study.study.reuse import Finished
from gfe_study.study.runner import CONTINUATION, FAILURE_FILE
from gfe_study.tracking.client import Tracker
from gfe_study.tracking.runs import FAILED as RUN_FAILED
from gfe_study.tracking.runs import FINISHED as RUN_FINISHED
from gfe_study.tracking.runs import KILLED as RUN_KILLED
from gfe_study.tracking.runs import RUNNING, Change

RETRY_INTERVAL_S = 10.0
DELIVERY_INTERVAL_S = 2.0
"""Points are collected for this long and delivered together; a trial that ends within it needs the fewest calls."""
GREEK = {"alpha": "α", "beta": "β", "kappa": "κ", "sigma": "σ", "tau": "τ"}
"""Symbols that the papers use for settings."""


class Recorder:
    """The only writer of a study's runs while the study is running; the engine's `Sink`.

    A thread writes the store every few seconds.

    Args:
        plan: the study's plan; its journal is open for writing.
        tracker: the store, with the study's parent run open; only this object uses it from now on.
        tags: tags that all runs of this start share.
        floor_of: returns the lowest loss that any decoder can reach on a trial's test samples, or None.
        on_problem: called with one line about a problem that does not end the study.
    """

    def __init__(
        self,
        plan: Plan,
        tracker: Tracker,
        tags: dict[str, str],
        floor_of: Callable[[Trial], float | None],
        on_problem: Callable[[str], None],
    ) -> None:
        self.plan = plan
        self._floor_of = floor_of
        self.tracker = tracker
        self.tracking_seconds = 0.0
        self._tags = tags
        self._on_problem = on_problem
        self._behind: dict[str, Job] = {}
        self._unlabelled = set(tracker.fingerprints())
        self._store_failing = False
        self._journal_waits = False
        self._changed = threading.Condition()
        self._storing = threading.Lock()
        self._closing = False
        self._versions = package_versions()
        self._kept: dict[str, list[tuple[int, float, str]]] = {}
        for job in self.plan.finished():
            self._tidy(job)
            if not self.tracker.is_closed(job.fingerprint):
                self._behind[job.fingerprint] = job
        for job in self.plan.failed():  # a kill may have come before the failure was delivered
            if not self.tracker.has_failed(job.fingerprint):
                self._behind[job.fingerprint] = job
        self._thread = threading.Thread(target=self._deliver_for_ever, name="tracking", daemon=True)
        self._thread.start()

    def changed(self, job: Job) -> None:
        """Deliver what the journal has of a trial; if the trial is over, remove the files that nothing needs."""
        if self.plan.over(job.fingerprint):
            self._tidy(job)
        self._deliver(job)

    def added(self, fingerprints: Sequence[str]) -> None:
        """Update the runs of trials that have joined another configuration."""
        with self._changed:
            self._unlabelled.update(fingerprints)
            self._changed.notify()

    def copy_files(self, job: Job, found: Finished) -> None:
        """Copy the files of a trial that is about to be reused from another study."""
        try:
            found.copy_files(self.plan.trial_folder(job).local)
        except OSError as error:
            self._on_problem(f"the decoder of {job.fingerprint} cannot be copied from {found.study} ({error.strerror})")

    def _tidy(self, job: Job) -> None:
        """Remove the checkpoints of a trial that is over, and decoders that are no longer among an arm's best."""
        self._remove(job, *CONTINUATION)
        value = self.plan.value(job)
        if value is None:
            return
        sign = self.plan.study.metric.sign
        kept = self._kept.setdefault(job.arm, [])
        # Later stages sort first: their trials are the replicated winners.
        kept.append((-job.stage, sign * value, job.fingerprint))
        kept.sort()
        for _, _, name in kept[self.plan.study.keep :]:
            self._remove(self.plan.jobs[name], *names.KEPT_FILES)
        del kept[self.plan.study.keep :]

    def _remove(self, job: Job, *unwanted: str) -> None:
        folder = self.plan.trial_folder(job)
        if folder.remote is not None and interrupts.asked():
            return  # several calls for each trial; the next start removes what is left
        try:
            folder.remove(*unwanted)
        except InputError as error:  # a leftover file must not abort the study
            self._on_problem(str(error))

    def flush(self) -> bool:
        """Update the store now; return whether it holds all that the journal holds."""
        self._level()
        return self._is_level()

    def close(self, interrupted: bool) -> bool:
        """Deliver the rest and end the parent run; return False if the store is still incomplete."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._level()
        while self._journal_waits and not interrupted and not interrupts.asked():
            time.sleep(UPLOAD_RETRY_S)
            self._upload_journal()
        try:
            for job in self.plan.missing():
                if job.fingerprint not in self.plan.journal.outcomes and self.tracker.is_running(job.fingerprint):
                    self.tracker.kill(job.fingerprint)
            self._close_orphans()
            best = self.plan.best()
            named = (best[0].fingerprint, f"{best[1]:.6f}") if best else ("", "")  # an edit may leave none
            tags = dict(zip((names.BEST_FINGERPRINT, names.BEST_VALUE), named, strict=True))
            files = self._best_files(best[0] if best else None)
            self.tracker.close_study(RUN_KILLED if interrupted else RUN_FINISHED, tags, files or [])
        except (InputError, OSError) as error:
            self._on_problem(str(error))
            return False
        return self._is_level() and files is not None

    def _best_files(self, best: Job | None) -> list[Path] | None:
        """Store the kept decoders, and return the best trial's files; None if the storage is away."""
        try:
            self._keep_best()
            return self._files(best, names.BEST_CHECKPOINT, names.RECONSTRUCTION) if best is not None else []
        except StorageError as error:
            if not self._journal_waits:  # otherwise the same has been said before
                self._on_problem(str(error))
            return None

    def _is_level(self) -> bool:
        return not (self._behind or self._unlabelled or self._journal_waits)

    def _close_orphans(self) -> None:
        """End the runs that a kill left open and whose trials no longer belong to the study."""
        journal = self.plan.journal
        for name in self.tracker.orphans():
            if name in self.plan.jobs:
                continue
            outcome, points = journal.outcomes.get(name), list(journal.points.get(name, []))
            status = RUN_KILLED if outcome is None else RUN_FAILED if outcome.state == FAILED else RUN_FINISHED
            self.tracker.write([Change(name, status=status, points=points)])

    def _keep_best(self) -> None:
        """Store the kept decoders as artifacts of their runs, and remove all others from the store."""
        kept = {entry[-1] for entries in self._kept.values() for entry in entries}
        for job in self.plan.finished():
            files = self._files(job, *names.KEPT_FILES) if job.fingerprint in kept else []
            self.tracker.keep_decoder(job.fingerprint, files)

    def _label(self, fingerprint: str) -> Change:
        """Return the name and tags that show which configurations a trial belongs to now, if to any."""
        members, job = self.plan.members.get(fingerprint), self.plan.jobs.get(fingerprint)
        if not members or job is None:
            return Change(fingerprint, tags={names.ROLE: names.ROLE_FORMER})
        first = members[0]
        places = [[each.stage, each.arm, each.number] for each in members]
        tags = {
            names.ROLE: names.ROLE_TRIAL,
            names.ARM: first.arm or run_name(job, with_seed=False),
            names.STAGE: str(first.stage),
            names.NUMBER: str(first.number),
            names.SHARED_BY: json.dumps(places, ensure_ascii=False) if len(places) > 1 else "",
        }
        return Change(fingerprint, run_name(job), tags=tags)

    def _deliver(self, job: Job) -> None:
        with self._changed:
            self._behind[job.fingerprint] = job
            self._changed.notify()

    def _deliver_for_ever(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or bool(self._behind or self._unlabelled))
                pause = RETRY_INTERVAL_S if self._store_failing else DELIVERY_INTERVAL_S
                if self._changed.wait_for(self._is_closing, timeout=pause):
                    return
            self._level()

    def _is_closing(self) -> bool:
        return self._closing

    def _level(self) -> None:
        """Update the runs of all trials that lag behind the journal, as far as the store answers."""
        with self._storing:
            self._level_alone()

    def _level_alone(self) -> None:
        started = time.perf_counter()
        self._upload_journal()
        try:
            self._label_all()
            jobs = [self._behind.pop(name) for name in list(self._behind)]  # later events add the trial again
            try:
                self.tracker.write(self._changes(jobs))
            except BaseException:
                for job in jobs:
                    self._behind.setdefault(job.fingerprint, job)
                raise
        except (InputError, OSError) as error:
            if not self._store_failing:
                self._on_problem(f"{error}; points are kept in the journal and delivered once the store answers again")
            self._store_failing = True
        else:
            self._store_failing = False
        finally:
            self.tracking_seconds += time.perf_counter() - started

    def _upload_journal(self) -> None:
        try:
            self.plan.journal.push()
        except InputError as error:
            if not self._journal_waits:
                waits = isinstance(error, StorageError)
                self._on_problem(f"{error}; the journal waits and is uploaded once it answers" if waits else str(error))
            self._journal_waits = True
        else:
            self._journal_waits = False

    def _label_all(self) -> None:
        with self._changed:
            waiting, self._unlabelled = self._unlabelled, set()
        try:
            self.tracker.write([self._label(fingerprint) for fingerprint in waiting])
        except BaseException:
            with self._changed:
                self._unlabelled |= waiting
            raise

    def _changes(self, jobs: list[Job]) -> list[Change]:
        """Return what the store must hold of trials; one whose files cannot be fetched now stays behind, alone."""
        changes = []
        for job in jobs:
            try:
                changes.append(self._change(job))
            except StorageError:
                self._behind.setdefault(job.fingerprint, job)
        return changes

    def _change(self, job: Job) -> Change:
        """Return what the run of a trial must hold, by the journal."""
        journal = self.plan.journal
        outcome = journal.outcomes.get(job.fingerprint)  # read before the points: once it exists, they are complete
        change = replace(self._opening(job), points=list(journal.points.get(job.fingerprint, [])))
        if outcome is None:
            return change
        diverged = bool(change.points and change.points[-1].get(DIVERGED))
        tags = {
            DIVERGED: str(diverged).lower(),
            names.FAILURE: outcome.reason if outcome.state == FAILED else "",
            names.STOPPED_EARLY: outcome.reason if outcome.state not in (FAILED, FINISHED) else "",
            names.REUSED_FROM: outcome.origin,
            **outcome.run,
        }
        if outcome.state == FAILED:
            return replace(change, status=RUN_FAILED, tags=tags, files=self._files(job, FAILURE_FILE))
        kept = self._files(job, *names.KEPT_FILES)
        tags |= {names.DECODER: "kept"} if kept else {}
        return replace(change, status=RUN_FINISHED, tags=tags, files=[*self._files(job, names.RECONSTRUCTION), *kept])

    def _files(self, job: Job, *wanted: str) -> list[Path]:
        folder = self.plan.trial_folder(job)
        folder.fetch(*wanted)
        files = (folder.local / name for name in wanted)
        return [file for file in files if file.exists()]

    def _opening(self, job: Job) -> Change:
        """Return the change that opens the run of a trial."""
        name = run_name(job)
        if self.tracker.is_open(job.fingerprint):
            return Change(job.fingerprint, name, RUNNING)
        dumped = job.trial.dump()
        tags = {
            **self._tags,
            **trial_tags(job.trial, job.dataset_sha256),
            **{key: value for key, value in self._label(job.fingerprint).tags.items() if value},
            **floor_tag(self._floor_of(job.trial)),
            names.VERSIONS: self._versions,
        }
        texts = {names.TRIAL_FILE: to_yaml(dumped)}
        return Change(job.fingerprint, name, RUNNING, initial_tags=tags, params=flatten(dumped), texts=texts)


def floor_tag(floor: float | None) -> dict[str, str]:
    """Return the tag of a trial whose loss has a lower bound; nothing for one whose loss has none."""
    return {} if floor is None else {names.ENTROPY_FLOOR: f"{floor:.6f}"}


def trial_tags(trial: Trial, dataset_sha256: str) -> dict[str, str]:
    """Return the tags of every trial's run, within a study or not."""
    return {
        names.GROUP: trial.group(dataset_sha256),
        names.SEED: str(trial.seed),
        names.METHOD: trial.method.name,
        names.PRESET: trial.preset,
        names.DATASET: trial.data.label,
        names.DATASET_SHA256: dataset_sha256,
        names.VALUE_NOUN: trial.data.called.noun,
        names.UNIT: trial.data.called.unit,
    }


def run_name(job: Job, *, with_seed: bool = True) -> str:
    """Name a run by what distinguishes its trial: `gfe·amd β=0.75 s_max=10 seed 0`, or `adjoint, rk4 seed 0`."""
    trial = job.trial
    method = trial.method.name if trial.method.name != "gfe" else f"gfe·{trial.solver.name}"
    searched = settings(job, written=GREEK)
    return " ".join(filter(None, [job.arm or method, searched, f"seed {job.seed}" if with_seed else ""]))


def settings(job: Job, written: Mapping[str, str] = MappingProxyType({})) -> str:
    """Format a trial's searched values: `beta=0.75 s_max=10`; `written` maps keys to the symbols to use instead."""
    shown = [(key.rpartition(".")[2], number(value, 3)) for key, value in job.params.items()]
    return " ".join(f"{written.get(name, name)}={value}" for name, value in shown)


def artifact_files(folder: Path) -> list[Path]:
    files = (folder / name for name in (*names.KEPT_FILES, names.RECONSTRUCTION))
    return [file for file in files if file.exists()]
