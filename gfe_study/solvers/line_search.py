"""Backtracking along a direction, per sample: the tests that all descent methods share, and a round for most of them.

Shapes: B batch, K samples still active, L latent, W window.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from gfe_study.solvers.base import Result
from gfe_study.solvers.descent import Active, DescentSolver, Ended, rows_of
from gfe_study.solvers.objective import Objective


@dataclass
class Tested(Active):
    """Samples whose candidates are tested by `Backtracking`."""

    past_loss: Tensor
    """Losses of the last W accepted points, the newest last, shape (K, W); infinite before the start."""


T = TypeVar("T", bound=Tested)


class Backtracking(DescentSolver[T]):
    """A step s is accepted if ℓ falls below a reference by σ times what the slope promised (Armijo 1966); else β s is
    tried. A sample ends where its loss has become flat, or where nothing is left to try."""

    beta: float = Field(0.75, gt=0, lt=1)
    """β, the factor by which a rejected step shrinks."""
    sigma: float = Field(0.0, ge=0, lt=1)
    """σ, the Armijo constant; 0 accepts any fall."""
    min_slope: float = Field(1e-6, ge=0)
    """Stop where the loss falls by less than this per accepted step, mean over the window; nats per value."""
    window: int = Field(5, ge=1)
    """Accepted steps over which that slope is taken."""
    max_backtracks: int = Field(40, ge=0)
    """The largest number of times that one step is shrunk."""

    ascending: ClassVar[tuple[str, ...]] = ()
    """Settings of which none may exceed the next."""

    @model_validator(mode="after")
    def _steps_are_ordered(self) -> Self:
        for lower, upper in pairwise(self.ascending):
            low, high = getattr(self, lower), getattr(self, upper)
            if low > high:
                raise ValueError(f"{lower} ({low:g}) exceeds {upper} ({high:g})")
        return self

    def lowers(self, loss: Tensor, reference: Tensor, promised: Tensor) -> Tensor:
        """Whether each candidate is accepted; never where a loss is NaN.

        Args:
            loss: of the candidates, shape (K,).
            reference: what they have to lie below.
            promised: by how much each would have lowered its loss had it kept its slope.
        """
        return loss < (torch.sub(reference, promised, alpha=self.sigma) if self.sigma else reference)

    def flat(self, active: T, accepted: Tensor, loss: Tensor) -> Tensor:
        """Whether these accepted losses have fallen by less than `min_slope` per step. Remembers them."""
        fall = active.past_loss[:, 0] - loss
        active.past_loss = remembered(active.past_loss, loss, accepted)
        return accepted & (fall < self.min_slope * self.window)


def history(loss: Tensor, size: int) -> Tensor:
    """The last losses of samples that have only had one, shape (K, size): infinite before it."""
    past = torch.full((len(loss), size), torch.inf, dtype=loss.dtype, device=loss.device)
    past[:, -1] = loss
    return past


def remembered(past: Tensor, loss: Tensor, accepted: Tensor) -> Tensor:
    """The last losses, the newest last, of samples some of which accepted another."""
    return torch.where(accepted[:, None], torch.cat([past[:, 1:], loss[:, None]], 1), past)


@dataclass
class Directed(Tested):
    """Samples that look for a lower loss along a direction."""

    direction: Tensor
    """From the last accepted point to the next candidate, if the whole step is taken; shape (K, L)."""
    promise: Tensor
    """⟨direction, ∇ℓ⟩, negative: the slope of ℓ along it."""
    step: Tensor
    """Length of the next candidate along the direction."""
    backtracks: Tensor


D = TypeVar("D", bound=Directed)


def directed(first: dict[str, Tensor], direction: Tensor, promise: Tensor, window: int) -> dict[str, Tensor]:
    """The fields of `Directed` for the whole batch at its start, where those of `Active` are known."""
    return {
        **first,
        "past_loss": history(first["loss"], window),
        "direction": direction,
        "promise": promise,
        "step": torch.ones_like(promise),
        "backtracks": torch.zeros_like(first["row"]),
    }


class LineSearch(Backtracking[D]):
    """Candidates z + s d with s = 1, β, β², … along a direction d that `_turn` chooses after every accepted step.

    One decoder evaluation and one pullback per candidate, no pullback at the last that `max_nfe` allows.
    """

    def _move(self, objective: Objective, active: D) -> tuple[Tensor, Tensor]:
        """s d, in the coordinates in which directions are, and the candidate that it leads to."""
        move = active.step[:, None] * active.direction
        return move, active.latent + move

    @abstractmethod
    def _turn(self, objective: Objective, active: D, accepted: Tensor, move: Tensor, grad: Tensor) -> None:
        """Choose `direction` and `promise` of the samples that accepted; all others keep theirs.

        Args:
            accepted: which samples these are, shape (K,).
            move: s d of the candidates, shape (K, L).
            grad: ∇_z ℓ there, shape (K, L). `active` still has latent and gradient of the points before.
        """

    def _round(self, objective: Objective, active: D, last: bool) -> Ended:
        # Every operation is on all samples, and what was rejected is put back: on tensors this small, choosing
        # rows would take longer, and a GPU would have to tell the host which they are.
        move, candidate = self._move(objective, active)
        loss, pullback = objective.evaluate(candidate, rows_of(active, objective))
        active.promised = -active.step * active.promise
        accepted = self.lowers(loss, active.loss, active.promised)
        flat = self.flat(active, accepted, loss)
        if not last:
            grad = pullback(None)
            self._turn(objective, active, accepted, move, grad)
            active.grad = torch.where(accepted[:, None], grad, active.grad)
        active.latent = torch.where(accepted[:, None], candidate, active.latent)
        active.loss = torch.where(accepted, loss, active.loss)
        active.num_steps = active.num_steps + accepted
        active.backtracks = (active.backtracks + 1).masked_fill_(accepted, 0)
        active.step = (active.step * self.beta).masked_fill_(accepted, 1.0)
        return [(Result.SLOPE, flat), (Result.NO_DESCENT, active.backtracks > self.max_backtracks)]
