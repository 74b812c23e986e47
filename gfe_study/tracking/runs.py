"""What a tracking store must hold for each trial, and the protocol for its writers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

FINISHED, FAILED, KILLED, RUNNING = "FINISHED", "FAILED", "KILLED", "RUNNING"


@dataclass(frozen=True)
class RunSpec:
    """The initial content of a trial's run."""

    fingerprint: str
    name: str
    tags: dict[str, str]
    params: dict[str, Any]
    texts: dict[str, str]
    """Text artifacts by file name."""


@dataclass(frozen=True)
class End:
    """How a trial's run ends: its status, further tags, and files to store as artifacts."""

    status: str
    tags: dict[str, str]
    files: list[Path]


@dataclass(frozen=True)
class Delivery:
    """What the store must hold of a trial: all of its points so far, and its end if it has ended."""

    spec: RunSpec
    points: list[dict[str, float]]
    end: End | None = None


@dataclass(frozen=True)
class Label:
    """What a run's name and tags say about its place in the study; without a name, the run keeps its own."""

    name: str
    tags: dict[str, str]


@dataclass
class Run:
    """A run in the store; a new one has no id until it is written."""

    run_id: str
    artifact_uri: str
    name: str
    status: str
    tags: dict[str, str]


@dataclass
class Change:
    """A change to one run.

    Attributes:
        run: the run as the store has it.
        name: its name from now on.
        status: its status from now on; None to leave it, and `RUNNING` reopens it.
        tags: tags that are new or differ.
        params: parameters of a run that has no points yet.
        points: points that the store lacks, in order of images seen.
        texts: text artifacts by file name.
        files: files to store as artifacts; those that have been removed meanwhile are skipped.
    """

    run: Run
    name: str
    status: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    points: list[dict[str, float]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

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

    def find(self, fingerprint: str) -> Run | None:
        """Look up a run that may have been created although its answer was lost."""

    def write(self, changes: Sequence[Change]) -> None:
        """Write changes; a new run gets its id. A finished run in the store has all of its artifacts."""
