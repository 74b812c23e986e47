"""The journal of a study: an append-only record of what was asked, reached and finished.

It is the truth that every start of a study reads; Ray's and Optuna's states are rebuilt from it, and MLflow
is brought level with it. One JSON object a line; every line is flushed to the disk before anything acts on it.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from gfe_study import names
from gfe_study.config import InputError
from gfe_study.study.storage import JOURNAL_FILE, Mirror

FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
"""Outcomes. `stopped` is early stopping: the trial is over, short of its budget."""


@dataclass(frozen=True)
class Asked:
    """A trial that was planned.

    `number` counts the configurations of its arm, `stage` is 1 for a winner that is replicated.
    """

    number: int
    seed: int
    params: dict[str, Any]
    fingerprint: str
    trial: dict[str, Any]
    arm: str = ""
    stage: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: `finished` (diverged or not), `stopped` or `failed`, with a reason.

    `origin` is the study it was taken over from, if it was not run here; `run` is where and how it ran.
    """

    state: str
    reason: str = ""
    origin: str = ""
    run: dict[str, str] = field(default_factory=dict)


def _content(folder: Path, remote: str | None) -> bytes:
    """The longer of the journals here and there: both are beginnings of the same one."""
    local = folder / JOURNAL_FILE
    here = local.read_bytes() if local.exists() else b""
    there = Mirror(folder, remote).read(JOURNAL_FILE)
    return there if len(there) > len(here) else here


@dataclass
class Journal:
    """A study's journal in memory, in step with its file.

    Opening takes the study's lock, so that no two sweeps write one journal; use it as a context.

    Attributes:
        folder: the study's folder.
        study: the study as it was last run, and how (`options`); None before the first run.
        asked: planned trials by fingerprint, in the order they were asked.
        points: metrics of each trial, by fingerprint, in order of images seen.
        outcomes: how trials ended, by fingerprint; a failed trial that is tried again loses its entry.
        again: trials that are to be run once more, and have no outcome since.
        parallel: configurations that the searches may have under way, as of the first start.
        start_up_seconds: from the last start to its first trial under way; 0 if there was none.
    """

    folder: Path
    study: dict[str, Any] | None = None
    asked: dict[str, Asked] = field(default_factory=dict)
    points: dict[str, list[dict[str, float]]] = field(default_factory=lambda: defaultdict(list))
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    start_up_seconds: float = 0.0
    again: set[str] = field(default_factory=set)
    parallel: int | None = None
    _descriptor: int | None = None
    _lock: FileLock | None = None
    _mirror: Mirror | None = None

    @classmethod
    def read(cls, folder: Path, remote: str | None = None) -> Self:
        """The journal of a folder, to look at; empty if there is none yet.

        Args:
            remote: URL of the study's folder, where its storage is one; the journal is brought here from there.

        Raises:
            InputError: a line that is not the last is damaged; the message names it. Or the URL cannot be used.
        """
        return cls._parsed(folder, _content(folder, remote))

    @classmethod
    def _parsed(cls, folder: Path, content: bytes) -> Self:
        journal = cls(folder)
        for line in content.split(b"\n")[:-1]:  # what follows the last newline was cut by a kill
            journal._take(line)
        return journal

    @classmethod
    def open(cls, folder: Path, remote: str | None = None) -> Self:
        """The journal of a folder, to write; creates the folder. `remote` as in `read`.

        Raises:
            InputError: another process has it open, the folder cannot be written, or a line is damaged.
        """
        lock = FileLock(folder / ".lock")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(f"{folder}: another sweep of this study is running; wait for it, or end it") from error
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another --storage") from error
        try:
            content = _content(folder, remote)
            journal = cls._parsed(folder, content)
            journal._lock = lock
            journal._mirror = Mirror(folder, remote)
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
            self.push()
        if self._lock is not None:
            self._lock.release()

    @property
    def remote(self) -> str | None:
        """URL of the study's folder, where its storage is one and the journal is open for writing."""
        return self._mirror.remote if self._mirror is not None else None

    def push(self) -> None:
        """Bring the journal to the study's URL, where its storage is one."""
        if self._mirror is not None:
            self._mirror.push(JOURNAL_FILE)

    def record_study(self, study: dict[str, Any], source: dict[str, str], options: dict[str, Any]) -> None:
        """A start of the study, with everything `resume` needs; `source` is the space's file and its hash."""
        self._append("study", study=study, source=source, options=options)

    def record_asked(self, asked: Asked) -> None:
        self._append("asked", **vars(asked))

    def record_points(self, fingerprint: str, points: list[dict[str, float]]) -> list[dict[str, float]]:
        """Record those of the points that are new; returns them."""
        known = self.points[fingerprint]
        last = known[-1][names.IMAGES_SEEN] if known else -1.0
        new = [point for point in points if point[names.IMAGES_SEEN] > last]
        if new:
            self._append("points", fingerprint=fingerprint, points=new)
        return new

    def record_outcome(self, fingerprint: str, outcome: Outcome) -> None:
        self._append("outcome", fingerprint=fingerprint, **vars(outcome))

    def record_taken_over(self, fingerprint: str, points: list[dict[str, float]], outcome: Outcome) -> None:
        """A trial that another study has finished, whole in one line."""
        self._append("taken over", fingerprint=fingerprint, points=points, outcome=vars(outcome))

    def record_again(self, fingerprints: list[str]) -> None:
        """Finished trials are to be run once more; their points and outcomes no longer count."""
        self._append("again", fingerprints=fingerprints)

    def record_parallel(self, configurations: int) -> None:
        """How many configurations of an arm may be under way at once; later starts keep to it."""
        self._append("parallel", configurations=configurations)

    def record_start_up(self, seconds: float) -> None:
        """The first trial of a start is under way, so long after it began."""
        self._append("start-up", seconds=seconds)

    def record_retry(self, fingerprint: str) -> None:
        """A failed trial is about to be tried again."""
        self._append("retry", fingerprint=fingerprint)

    def _append(self, event: str, **content: Any) -> None:
        assert self._descriptor is not None, "the journal is open for reading only"
        line = json.dumps({"event": event, "time": time.time(), **content}, ensure_ascii=False).encode()
        end = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, line + b"\n")
            if written <= len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, end)
            path = self.folder / JOURNAL_FILE
            raise InputError(f"{path}: cannot be written ({error.strerror}); mend that, and resume") from error
        self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            self._apply(entry)
        except (ValueError, KeyError, TypeError) as error:
            path = self.folder / JOURNAL_FILE
            raise InputError(f"{path}: damaged line {line[:60]!r}; remove it to go on without it") from error

    def _apply(self, entry: dict[str, Any]) -> None:
        match entry.pop("event"):
            case "study":
                self.study = {key: entry[key] for key in ("study", "source", "options")}
            case "asked":
                entry.pop("time")
                asked = Asked(**entry)
                self.asked[asked.fingerprint] = asked
            case "points":
                self.points[entry["fingerprint"]].extend(entry["points"])
            case "outcome":
                content = {key: entry[key] for key in ("state", "reason", "origin", "run") if key in entry}
                self.outcomes[entry["fingerprint"]] = Outcome(**content)
                self.again.discard(entry["fingerprint"])
            case "taken over":
                self.points[entry["fingerprint"]] = entry["points"]
                self.outcomes[entry["fingerprint"]] = Outcome(**entry["outcome"])
            case "again":
                self.again |= set(entry["fingerprints"])
                for name in entry["fingerprints"]:
                    self.points.pop(name, None)
                    self.outcomes.pop(name, None)
            case "parallel":
                self.parallel = entry["configurations"]
            case "start-up":
                self.start_up_seconds = entry["seconds"]
            case "retry":
                self.outcomes.pop(entry["fingerprint"], None)
