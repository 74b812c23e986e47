"""The state of one trial while its study runs, and the table of its transitions."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from gfe_study.study.plan import Job


class Status(StrEnum):
    """Where a trial stands. The last three are final: a trial that reached one of them never leaves it."""

    QUEUED = "queued"
    STARTING = "starting"
    """Handed to the backend, which has not placed it on a worker yet."""
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


class Event(StrEnum):
    """What happens to a trial."""

    HAND_OUT = "hand out"
    PLACE = "place"
    REPORT = "report"
    COMPLETE = "complete"
    HALVE = "halve"
    """Successive halving stops it."""
    RAISE = "raise"
    HANG = "hang"
    LOSE = "lose"
    """Its worker is lost, and it continues on another one."""
    GIVE_UP = "give up"
    """Its worker is lost, and it has had all of its attempts."""


TRANSITIONS = {
    (Status.QUEUED, Event.HAND_OUT): Status.STARTING,
    (Status.STARTING, Event.PLACE): Status.RUNNING,
    (Status.RUNNING, Event.REPORT): Status.RUNNING,
    (Status.RUNNING, Event.COMPLETE): Status.FINISHED,
    (Status.RUNNING, Event.HALVE): Status.STOPPED,
    (Status.STARTING, Event.RAISE): Status.FAILED,
    (Status.RUNNING, Event.RAISE): Status.FAILED,
    (Status.RUNNING, Event.HANG): Status.FAILED,
    (Status.STARTING, Event.LOSE): Status.QUEUED,
    (Status.RUNNING, Event.LOSE): Status.QUEUED,
    (Status.STARTING, Event.GIVE_UP): Status.FAILED,
    (Status.RUNNING, Event.GIVE_UP): Status.FAILED,
}
"""(status, event) -> the next status. An event that is not listed for a status came too late and changes nothing."""

FINAL = frozenset({Status.FINISHED, Status.STOPPED, Status.FAILED})


@dataclass
class TrialRun:
    """One trial of a start of a study.

    Attributes:
        job: the trial.
        status: where it stands.
        attempts: how often it was handed out in this start; a message of an earlier attempt is too late.
        place: where it runs; empty unless it runs.
        last_heartbeat: time of its last message, in seconds of the engine's clock.
        first_placed: time at which its first attempt was placed; None before that.
        share_before: the share of its budget that was spent by then, in earlier starts of the study.
        waiting: why its files wait to be uploaded; empty if none does.
    """

    job: Job
    status: Status = Status.QUEUED
    attempts: int = 0
    place: dict[str, str] = field(default_factory=dict)
    last_heartbeat: float = 0.0
    first_placed: float | None = None
    share_before: float = 0.0
    waiting: str = ""

    def after(self, event: Event) -> Status | None:
        """Return the status after an event; None if the event is too late to change anything."""
        return TRANSITIONS.get((self.status, event))

    def move(self, event: Event) -> None:
        """Make the transition of an event. Raises `KeyError` if the table has none."""
        self.status = TRANSITIONS[self.status, event]
        if event is Event.HAND_OUT:
            self.attempts += 1
        if self.status is not Status.RUNNING:
            self.place, self.waiting = {}, ""
