"""The journal of a study: an append-only record of what was asked, reached and finished.

It is the truth that every start of a study reads; Ray's and Optuna's states are rebuilt from it, and MLflow
is brought level with it. One JSON object a line; every line is flushed to the disk before anything acts on it.
"""

from __future__ import annotations

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

JOURNAL_FILE = "journal.jsonl"
FINISHED, FAILED = "finished", "failed"


@dataclass(frozen=True)
class Asked:
    """A trial that was planned: configuration number, seed, searched values, and the resolved trial."""

    number: int
    seed: int
    params: dict[str, Any]
    fingerprint: str
    trial: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: `finished` (diverged or not) or `failed`, with a reason."""

    state: str
    reason: str = ""


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
    """

    folder: Path
    study: dict[str, Any] | None = None
    asked: dict[str, Asked] = field(default_factory=dict)
    points: dict[str, list[dict[str, float]]] = field(default_factory=lambda: defaultdict(list))
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    _descriptor: int | None = None
    _lock: FileLock | None = None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The journal of a folder, to look at; empty if there is none yet.

        Raises:
            InputError: a line that is not the last is damaged; the message names it.
        """
        journal = cls(folder)
        path = folder / JOURNAL_FILE
        if path.exists():
            for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last newline was cut by a kill
                journal._take(line)
        return journal

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The journal of a folder, to write; creates the folder.

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
            journal = cls.read(folder)
            journal._lock = lock
            path = folder / JOURNAL_FILE
            journal._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            content = path.read_bytes()
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
        if self._lock is not None:
            self._lock.release()

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

    def record_retry(self, fingerprint: str) -> None:
        """A failed trial is about to be tried again."""
        self._append("retry", fingerprint=fingerprint)

    def _append(self, event: str, **content: Any) -> None:
        assert self._descriptor is not None, "the journal is open for reading only"
        line = json.dumps({"event": event, "time": time.time(), **content}, ensure_ascii=False).encode()
        os.write(self._descriptor, line + b"\n")
        os.fsync(self._descriptor)
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
                self.outcomes[entry["fingerprint"]] = Outcome(entry["state"], entry["reason"])
            case "retry":
                self.outcomes.pop(entry["fingerprint"], None)
