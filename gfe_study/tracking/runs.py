"""What a tracking store must hold for each trial, and the protocol for its writers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

FINISHED, FAILED, KILLED, RUNNING = "FINISHED", "FAILED", "KILLED", "RUNNING"


@dataclass
class Run:
    """A run in the store; a new one has no id until it is written.

    Attributes:
        last_step: the largest number of images seen that the run holds, −1 without any; None unless this process has
            opened the run and it has not ended since.
    """

    run_id: str
    artifact_uri: str
    name: str
    status: str
    tags: dict[str, str]
    last_step: float | None = None


@dataclass(frozen=True)
class Change:
    """What the run of a trial must hold from now on; `Tracker.write` leaves out what the run holds already.

    Attributes:
        fingerprint: the trial.
        name: name of the run; empty to keep the one it has.
        status: its status, `RUNNING` opens or reopens it; None to leave it. None and `KILLED` create no run.
        tags: tags to set; empty values only replace others.
        points: all points of the trial so far, in order of images seen.
        files: files to store as artifacts; those that have been removed meanwhile are skipped.
        initial_tags, params: further tags and the parameters of a new run.
        texts: text artifacts by file name, of a run that this process opens.
        run: the run as the store has it, filled in by `Tracker.write`.
    """

    fingerprint: str
    name: str = ""
    status: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    points: list[dict[str, float]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    initial_tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    run: Run = field(default_factory=lambda: Run("", "", "", RUNNING, {}))

    @property
    def is_new(self) -> bool:
        return not self.run.run_id


class Writer(Protocol):
    """Writes the runs of one experiment.

    Attributes:
        batch: how many changes to write at once.
    """

    batch: int

    def last_step(self, run: Run) -> float:
        """Return the largest number of images seen that a run holds; −1 without any."""

    def write(self, changes: Sequence[Change]) -> None:
        """Write changes; a new run gets its id. A finished run in the store has all of its artifacts.

        After an error, any of the changes may have been written, in part or completely.
        """
