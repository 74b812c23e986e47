"""How long the rest of a study takes, told from the work that is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gfe_study.config import Budget
from gfe_study.metrics import EVAL_SECONDS, IMAGES_SEEN, PASSES, TRAIN_SECONDS

LEAST_SHARE = 0.05
"""Below this share of its budget a trial tells nothing: its first steps are slower than the rest."""

Kind = tuple[int, str]
"""Stage and arm: trials that are taken to be alike."""


@dataclass(frozen=True)
class Begun:
    """A trial that runs.

    Attributes:
        kind: what it is like.
        seconds: how long it has run.
        share: the share of its budget that it spent in this time.
        before: the share that it had spent before, in earlier starts of the study.
    """

    kind: Kind
    seconds: float
    share: float
    before: float = 0.0


class Pace:
    """What trials took that ended, by kind."""

    def __init__(self) -> None:
        self._ended: dict[Kind, tuple[float, int]] = {}

    def note(self, kind: Kind, seconds: float) -> None:
        """A trial of a kind took so long."""
        total, count = self._ended.get(kind, (0.0, 0))
        self._ended[kind] = total + seconds, count + 1

    def expected(self, kind: Kind) -> float | None:
        """Seconds of a trial: the mean of its own kind, or else of its arm, or else of all; None if none ended."""
        for alike in ([kind], [known for known in self._ended if known[1] == kind[1]], [*self._ended]):
            found = [self._ended[known] for known in alike if known in self._ended]
            if found:
                return sum(total for total, _ in found) / sum(count for _, count in found)
        return None

    def left(self, waiting: Mapping[Kind, int], running: Sequence[Begun], slots: int) -> float | None:
        """Seconds until all trials have ended; None while too little is done to tell.

        Args:
            waiting: how many trials of each kind have not begun.
            running: those that have.
            slots: how many run at a time.
        """
        told = Pace()
        told._ended = dict(self._ended)
        for trial in running:
            if trial.share >= LEAST_SHARE and trial.kind not in self._ended:
                told.note(trial.kind, trial.seconds / trial.share)
        remaining = []
        for trial in running:
            # A trial that has come far tells its own length; patience may end it long before its budget.
            whole = told.expected(trial.kind) if trial.share < 0.5 else trial.seconds / trial.share
            if whole is None:
                return None
            remaining.append(max(0.0, whole * (1 - trial.before) - trial.seconds))
        work = sum(remaining)
        for kind, count in waiting.items():
            each = told.expected(kind)
            if each is None and count:
                return None
            work += count * (each or 0.0)
        return max([work / max(1, slots), *remaining])


def spent(point: Mapping[str, float]) -> float:
    """Seconds that a trial has taken up to a point."""
    return point.get(TRAIN_SECONDS, 0.0) + point.get(EVAL_SECONDS, 0.0)


def share_of(budget: Budget, point: Mapping[str, float]) -> float:
    """The share of a trial's budget that is spent, by the limit that is nearest."""
    images = point[IMAGES_SEEN]
    shares = [images / budget.images]
    if budget.seconds is not None:
        shares.append(point.get(TRAIN_SECONDS, 0.0) / budget.seconds)
    if budget.nfe is not None:
        shares.append(sum(point.get(name, 0.0) for name in PASSES) * images / budget.nfe)
    return min(1.0, max(shares))
