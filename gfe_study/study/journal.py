"""The journal of a study: an append-only record of what belongs to it, and what its trials reached.

It is the truth that every start of a study reads. The states of Ray and Optuna are rebuilt from it, and MLflow is
updated to match it. Each line is one JSON object, a record of one event, and is flushed to the disk before anything
acts on it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from gfe_study.config import InputError
from gfe_study.io.storage import JOURNAL_FILE, Mirror, Storage, StorageError
from gfe_study.metrics import IMAGES_SEEN
from gfe_study.study.events import (
    FAILED,
    FINISHED,
    FORMAT,
    NAMES,
    SNIPPET_LETTERS,
    STOPPED,
    Again,
    Asked,
    Configuration,
    Ended,
    FirstPlaced,
    Membership,
    NewerRecord,
    Outcome,
    Parallel,
    Placed,
    Reached,
    Record,
    Retried,
    Reused,
    Settled,
    Started,
    State,
    read_record,
)

__all__ = [
    "FAILED",
    "FINISHED",
    "FORMAT",
    "JOURNAL_FILE",
    "STOPPED",
    "Configuration",
    "Journal",
    "Outcome",
    "Settled",
    "State",
]

PATIENCE_S = 1.0
"""How long a writer waits for the lock: `in_use` holds it for a moment."""


def _content(mirror: Mirror) -> bytes:
    """Return the longer of the local journal and the remote one, of which one must be the beginning of the other.

    Raises:
        InputError: both have lines that the other lacks. Two machines went on with the study; nothing is overwritten.
    """
    local = mirror.local / JOURNAL_FILE
    here = local.read_bytes() if local.exists() else b""
    there = mirror.read(JOURNAL_FILE)
    refuse_fork(here, there, str(local), f"{mirror.remote}/{JOURNAL_FILE}")
    return there if len(there) > len(here) else here


def refuse_fork(one: bytes, other: bytes, place: str, other_place: str) -> None:
    """Raise `InputError` unless the complete lines of one journal are the beginning of the other's."""
    lines, others = one.split(b"\n")[:-1], other.split(b"\n")[:-1]
    common = min(len(lines), len(others))
    if lines[:common] != others[:common]:
        number = next(n for n in range(common) if lines[n] != others[n]) + 1
        raise InputError(
            f"{place} and {other_place} differ from line {number} on: two machines went on with this study; "
            "keep one of the two files, and move the other one away"
        )


@dataclass
class Journal:
    """A study's journal in memory, in step with its file.

    Opening takes the study's lock, so that no two sweeps write one journal; use it as a context.

    Attributes:
        mirror: the study's folder.
        study: the study as it was last run, and how (`options`); None before the first run.
        membership: the configurations that belong to the study as it was last declared.
        known: all configurations that ever belonged to it, each once, in the order in which they were added.
        highest: the highest number of a configuration of the first stage that was ever used, by arm.
        places: where each trial has run, by fingerprint, without repetitions.
        points: metrics of each trial, by fingerprint, in order of images seen.
        outcomes: how trials ended, by fingerprint; a failed trial that is tried again loses its entry.
        changed: fingerprints of trials whose outcome changed, in the order of the changes.
        again: trials that are to be run once more, and have no outcome since.
        parallel: configurations that the searches may have under way, as of the first start.
        start_up_seconds: from the last start to its first trial under way; 0 if there was none.
        settled: what the last start found when nothing was left to do; None if anything was recorded since.
    """

    mirror: Mirror
    study: dict[str, Any] | None = None
    membership: list[Configuration] = field(default_factory=list)
    known: dict[tuple[Any, ...], Configuration] = field(default_factory=dict)
    highest: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[dict[str, str]]] = field(default_factory=lambda: defaultdict(list))
    points: dict[str, list[dict[str, float]]] = field(default_factory=lambda: defaultdict(list))
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    start_up_seconds: float = 0.0
    settled: Settled | None = None
    again: set[str] = field(default_factory=set)
    parallel: int | None = None
    _descriptor: int | None = None
    _lock: FileLock | None = None
    _pushed: int = -1

    @classmethod
    def read(cls, folder: Mirror | Path) -> Self:
        """Return the journal of a study's folder, to look at; empty if there is none yet.

        Raises:
            InputError: a line that is not the last is damaged; the message names it. Or the URL cannot be used.
        """
        mirror = folder if isinstance(folder, Mirror) else Mirror(folder)
        return cls._parsed(mirror, _content(mirror))

    @classmethod
    def of_study(cls, storage: Storage, label: str) -> Self:
        """Return the journal of a study that has begun, to look at. Raises `InputError` if there is no such study."""
        journal = cls.read(storage.folder(label))
        if journal.study is None:
            there = storage.studies()
            allowed = (
                f"available: {', '.join(there)}" if there else "it holds no study yet; start one with gfe-study sweep"
            )
            raise InputError(f"unknown study {label!r} in {storage.address}; {allowed}")
        return journal

    @classmethod
    def _parsed(cls, mirror: Mirror, content: bytes) -> Self:
        journal, folder = cls(mirror), mirror.local
        for number, line in enumerate(content.split(b"\n")[:-1], start=1):  # a kill may have cut the rest short
            try:
                journal._apply(read_record(line))
            except NewerRecord as error:
                raise InputError(
                    f"{folder / JOURNAL_FILE}: line {number} was written by a newer gfe-study ({error}); "
                    "update gfe-study to continue this study"
                ) from error
            except ValueError as error:
                snippet = line[:SNIPPET_LETTERS].decode(errors="replace")
                raise InputError(
                    f"{folder / JOURNAL_FILE}: damaged line {number} ({snippet!r}: {error}); "
                    "remove that line to continue without it"
                ) from error
        return journal

    @classmethod
    def open(cls, folder: Mirror | Path) -> Self:
        """Return the journal of a study's folder, to write; creates the folder.

        Raises:
            InputError: another process has it open, the folder cannot be written, or a line is damaged.
        """
        mirror = folder if isinstance(folder, Mirror) else Mirror(folder)
        folder = mirror.local
        lock = FileLock(folder / ".lock")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=PATIENCE_S)
        except Timeout as error:
            raise InputError(f"{folder}: another sweep of this study is running; wait for it, or end it") from error
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another --storage") from error
        try:
            content = _content(mirror)
            journal = cls._parsed(mirror, content)
            journal._lock = lock
            path = folder / JOURNAL_FILE
            if not path.exists() or path.stat().st_size < len(content):
                path.write_bytes(content)
            journal._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            os.ftruncate(journal._descriptor, content.rfind(b"\n") + 1)
        except BaseException:
            lock.release()
            raise
        return journal

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            with contextlib.suppress(StorageError):  # the next start uploads what is missing
                self.push()
        if self._lock is not None:
            self._lock.release()

    @property
    def folder(self) -> Path:
        """The study's folder on this machine."""
        return self.mirror.local

    def push(self) -> None:
        """Upload the journal if its storage is a URL that does not have all of it.

        Raises:
            InputError: another machine went on with the study meanwhile; its journal is not overwritten.
            StorageError: the URL does not answer.
        """
        local = self.folder / JOURNAL_FILE
        size = local.stat().st_size
        if self.mirror.remote is None:
            return
        if self.mirror.size(JOURNAL_FILE) == self._pushed:
            if size == self._pushed:
                return
        else:
            here, there = local.read_bytes(), self.mirror.read(JOURNAL_FILE)
            place = f"{self.mirror.remote}/{JOURNAL_FILE}"
            refuse_fork(here, there, str(local), place)
            if len(there) > here.rfind(b"\n") + 1:
                raise InputError(f"{place}: another machine goes on with this study; end one of the two")
        self.mirror.push(JOURNAL_FILE)
        self._pushed = size

    def record_study(self, study: dict[str, Any], source: dict[str, str], options: dict[str, Any]) -> None:
        """Record a start of the study; `source` is the space's file and its hash."""
        self._append(Started(study, source, options, FORMAT))

    def record_membership(self, configurations: list[Configuration]) -> None:
        """Record which configurations belong to the study, unless the journal says the same already."""
        if configurations != self.membership:
            self._append(Membership(configurations))

    def record_configuration(self, configuration: Configuration) -> None:
        """Record that one more configuration belongs to the study."""
        self._append(configuration)

    def record_placed(self, fingerprint: str, place: dict[str, str]) -> None:
        """Record where a trial runs."""
        self._append(Placed(fingerprint, place))

    def record_settled(self, settled: Settled) -> None:
        """Record that nothing is left to do."""
        self._append(settled)

    def record_points(self, fingerprint: str, points: list[dict[str, float]]) -> list[dict[str, float]]:
        """Record those of the points that are new; returns them."""
        known = self.points[fingerprint]
        last = known[-1][IMAGES_SEEN] if known else -1.0
        new = [point for point in points if point[IMAGES_SEEN] > last]
        if new:
            self._append(Reached(fingerprint, new))
        return new

    def record_outcome(self, fingerprint: str, outcome: Outcome) -> None:
        """Record how a trial ended."""
        self._append(Ended(**vars(outcome), fingerprint=fingerprint))

    def record_reused(self, fingerprint: str, points: list[dict[str, float]], outcome: Outcome) -> None:
        """Record a trial that another study has finished."""
        self._append(Reused(fingerprint, points, outcome))

    def record_again(self, fingerprints: list[str]) -> None:
        """Record that finished trials are run once more."""
        self._append(Again(fingerprints))

    def record_parallel(self, configurations: int) -> None:
        """Record how many configurations of an arm may be unfinished at once; later starts keep to it."""
        self._append(Parallel(configurations))

    def record_start_up(self, seconds: float) -> None:
        """Record how long after a start its first trial began to run."""
        self._append(FirstPlaced(seconds))

    def record_retry(self, fingerprint: str) -> None:
        """Record that a failed trial is tried again."""
        self._append(Retried(fingerprint))

    def _append(self, record: Record) -> None:
        assert self._descriptor is not None, "the journal is open for reading only"
        entry = {"event": NAMES[type(record)], "time": time.time(), **asdict(record)}
        line = json.dumps(entry).encode()  # names of files may hold what UTF-8 cannot encode
        end = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, line + b"\n")
            if written <= len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, end)
            path = self.folder / JOURNAL_FILE
            raise InputError(f"{path}: cannot be written ({error.strerror}); fix the problem and resume") from error
        self._apply(read_record(line))  # as a later start will read it

    def _apply(self, record: Record) -> None:
        self.settled = None
        match record:
            case Started():
                self.study = vars(record)
            case Membership():
                self.membership = []
                for configuration in record.configurations:
                    self._include(configuration)
            case Configuration():
                self._include(record)
            case Asked():
                fingerprints = [record.fingerprint]
                self._include(
                    Configuration(record.stage, record.arm, record.number, record.params, [record.seed], fingerprints)
                )
            case Placed():
                if record.place not in self.places[record.fingerprint]:
                    self.places[record.fingerprint].append(record.place)
            case Reached():
                self.points[record.fingerprint].extend(record.points)
            case Ended():
                self.outcomes[record.fingerprint] = Outcome(record.state, record.reason, record.origin, record.run)
                self.again.discard(record.fingerprint)
                self.changed.append(record.fingerprint)
            case Reused():
                self.points[record.fingerprint] = record.points
                self.outcomes[record.fingerprint] = record.outcome
                self.changed.append(record.fingerprint)
            case Again():
                self.forget(record.fingerprints)
            case Parallel():
                self.parallel = record.configurations
            case FirstPlaced():
                self.start_up_seconds = record.seconds
            case Retried():
                self.outcomes.pop(record.fingerprint, None)
                self.changed.append(record.fingerprint)
            case Settled():
                self.settled = record

    def in_use(self) -> bool:
        """Whether a process has it open to write."""
        if not (self.folder / ".lock").exists():
            return False
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # of somebody else, or on a disk that cannot be written
            return False

    def begun(self) -> set[str]:
        """Return all trials that ever ran or failed, whether they belong to the study or not."""
        return {*self.points, *self.outcomes, *self.places, *self.again}

    def forget(self, fingerprints: list[str]) -> None:
        """Drop the results of trials that are run once more."""
        self.again |= set(fingerprints)
        self.changed += fingerprints
        for name in fingerprints:
            for known in (self.points, self.outcomes, self.places):
                known.pop(name, None)

    def _include(self, configuration: Configuration) -> None:
        self.membership.append(configuration)
        stage, arm, number = configuration.stage, configuration.arm, configuration.number
        self.known.setdefault((stage, arm, number, *configuration.fingerprints), configuration)
        if stage == 0:
            self.highest[arm] = max(number, self.highest.get(arm, -1))
