"""The records of a study's journal: one typed record per event, and how a line is read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from gfe_study.metrics import IMAGES_SEEN

FORMAT = 2
"""Raised when a record changes in a way that an earlier version of this package would misread."""
FINISHED: Final = "finished"
STOPPED: Final = "stopped"
FAILED: Final = "failed"
"""Outcomes. `stopped` is early stopping: the trial is over, short of its budget."""
State = Literal["finished", "stopped", "failed"]
SNIPPET_LETTERS = 60

checked = with_config(ConfigDict(extra="forbid"))
"""Decorates a record: a line that is read must have every field, no others, and values of the right types."""


@checked
@dataclass(frozen=True)
class Configuration:
    """One point of an arm's space in a stage, and its trials.

    Attributes:
        stage: 0 for the first stage; 1 for winners that are replicated.
        arm: name of the arm; empty in a study that compares nothing.
        number: identifies the configuration within its arm.
        params: values of the searched keys.
        seeds: seeds of its trials.
        fingerprints: the trials, in the order of `seeds`.
    """

    stage: int
    arm: str
    number: int
    params: dict[str, Any]
    seeds: list[int]
    fingerprints: list[str]


@checked
@dataclass(frozen=True)
class Membership:
    """Which trials belong to the study as it is declared now; replaces all that was said before."""

    configurations: list[Configuration]


@checked
@dataclass(frozen=True)
class Asked:
    """One trial of a configuration; journals of format 1 have this record in place of `Configuration`."""

    number: int
    seed: int
    params: dict[str, Any]
    fingerprint: str
    trial: dict[str, Any]
    arm: str = ""
    stage: int = 0


@checked
@dataclass(frozen=True)
class Outcome:
    """How a trial ended: `finished` (diverged or not), `stopped` or `failed`, with a reason.

    `origin` is the study that ran it, if it was not this one; `run` is where and how it ran.
    """

    state: State
    reason: str = ""
    origin: str = ""
    run: dict[str, str] = field(default_factory=dict)


@checked
@dataclass(frozen=True)
class Started:
    """A start of the study, with everything that `resume` needs, and the format of the records that follow."""

    study: dict[str, Any]
    source: dict[str, str]
    options: dict[str, Any]
    format: int = 0


@checked
@dataclass(frozen=True)
class Placed:
    """A trial starts or continues on a worker: host, device, threads, and how many trials run side by side there."""

    fingerprint: str
    place: dict[str, str]


@checked
@dataclass(frozen=True)
class Reached:
    """New points of a trial."""

    fingerprint: str
    points: list[dict[str, float]]


@checked
@dataclass(frozen=True)
class Ended(Outcome):
    """A trial ended."""

    fingerprint: str = ""


@checked
@dataclass(frozen=True)
class Reused:
    """A trial that another study has finished, complete in one line."""

    fingerprint: str
    points: list[dict[str, float]]
    outcome: Outcome


@checked
@dataclass(frozen=True)
class Again:
    """Finished trials are run once more; their points and outcomes no longer count."""

    fingerprints: list[str]


@checked
@dataclass(frozen=True)
class Parallel:
    """How many configurations of an arm may be unfinished at once."""

    configurations: int


@checked
@dataclass(frozen=True)
class FirstPlaced:
    """The first trial of a start runs, so many seconds after the start."""

    seconds: float


@checked
@dataclass(frozen=True)
class Retried:
    """A failed trial is tried again."""

    fingerprint: str


@checked
@dataclass(frozen=True)
class Settled:
    """Nothing is left to do, and what a start that has nothing to do shows.

    Attributes:
        key: of everything that decides whether anything is left to do.
        files: the images' files, each with its size and the time of its last change.
        summary: the results as plain data.
        lines: the results as text.
    """

    key: str
    files: dict[str, list[int]]
    summary: dict[str, Any]
    lines: list[Any]


Record = (
    Started
    | Membership
    | Configuration
    | Asked
    | Placed
    | Reached
    | Ended
    | Reused
    | Again
    | Parallel
    | FirstPlaced
    | Retried
    | Settled
)
EVENTS: dict[str, type[Record]] = {
    "study": Started,
    "membership": Membership,
    "configuration": Configuration,
    "asked": Asked,
    "placed": Placed,
    "points": Reached,
    "outcome": Ended,
    "taken over": Reused,
    "again": Again,
    "parallel": Parallel,
    "start-up": FirstPlaced,
    "retry": Retried,
    "settled": Settled,
}
NAMES = {record: event for event, record in EVENTS.items()}
_READERS = {event: TypeAdapter(record) for event, record in EVENTS.items()}


class NewerRecord(Exception):
    """A record that this version does not know: nothing is damaged."""


def read_record(line: bytes) -> Record:
    """The record of a line. Raises `NewerRecord`, or `ValueError` with the reason if the line is damaged."""
    entry = json.loads(line)
    if not isinstance(entry, dict):
        raise ValueError("not an object")
    event, _ = entry.pop("event", None), entry.pop("time", None)
    if not isinstance(event, str):
        raise ValueError("no event")
    if event not in _READERS:
        raise NewerRecord(f"event {event!r}")
    try:
        record: Record = _READERS[event].validate_python(entry)
    except ValidationError as error:
        first = error.errors()[0]
        field_name = ".".join(map(str, first["loc"]))
        if first["type"] == "unexpected_keyword_argument":
            raise NewerRecord(f"field {field_name!r}") from error
        raise ValueError(f"{field_name}: {first['msg']}") from error
    if isinstance(record, Started) and record.format > FORMAT:
        raise NewerRecord(f"format {record.format}")
    if isinstance(record, Reached | Reused) and any(IMAGES_SEEN not in point for point in record.points):
        raise ValueError(f"a point without {IMAGES_SEEN}")
    return record
