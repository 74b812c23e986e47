"""What every latent solver promises, and what it returns.

Shapes: B batch, L latent, S solver state (L, or 2L for a second-order flow).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from gfe_study.config import Component
from gfe_study.models.base import Products
from gfe_study.solvers.objective import Objective
from gfe_study.solvers.runge_kutta import Path, Scheme

if TYPE_CHECKING:
    from gfe_study.solvers.fields import Flow


class Result(IntEnum):
    """Why a sample's solve ended."""

    REACHED_TAU = 0
    SLOPE = 1
    NO_DESCENT = 2
    MAX_NFE = 3
    NONFINITE = 4
    UNDERFLOW = 5
    STALLED = 6


MESSAGES = {
    Result.REACHED_TAU: "the flow was followed to its end, t = τ",
    Result.SLOPE: "the convergence curve became flatter than `min_slope`",
    Result.NO_DESCENT: "no step of the line search lowered the loss by more than rounding: the latent is at a minimum, "
    "or the first step far too short",
    Result.MAX_NFE: "stopped at `max_nfe` decoder evaluations before the flow ended; raise it to go on",
    Result.NONFINITE: "the loss became NaN or infinite; try smaller steps or a lower learning rate",
    Result.STALLED: "no step that the line search tried lowered the loss, though it has a slope; allow more backtracks "
    "or a shorter first step",
    Result.UNDERFLOW: "the adaptive step became shorter than time can resolve; raise `rtol` and `atol`",
}


@dataclass(frozen=True)
class Solution:
    """Where the flow of each sample ended. All tensors are detached.

    Attributes:
        latent_BL: z* of each sample.
        loss_B: ℓ(y, D(z*)), nats per value.
        time_B: flow time reached, τ or the τ′ at which the sample stopped.
        result_B: `Result` codes.
        num_steps_B: accepted steps.
        nfe_forward_B: decoder evaluations, per sample.
        nfe_backward_B: decoder pullbacks, per sample.
        path: the steps along the flow, if they were asked for and the solver follows one.
    """

    latent_BL: Tensor
    loss_B: Tensor
    time_B: Tensor
    result_B: Tensor
    num_steps_B: Tensor
    nfe_forward_B: Tensor
    nfe_backward_B: Tensor
    path: Path | None = None


def joined(one: Solution, other: Solution) -> Solution:
    """The solutions of two batches as one, without their paths."""
    parts = {each.name: [getattr(one, each.name), getattr(other, each.name)] for each in fields(Solution)}
    return Solution(path=None, **{name: torch.cat(both) for name, both in parts.items() if name != "path"})


StepObserver = Callable[[dict[str, Tensor]], None] | None
"""Called after every step, for tests and convergence figures; None: nothing is. Its argument holds at least `latent`,
shape (K, L), and `time`, shape (K,), of the samples that are still active; `row`, shape (K,), says which these are,
unless all are."""


class Solver(Component, ABC):
    """Follows a flow from z₀ for each sample of a batch. Settings are fields; `solve` is the algorithm.

    No result of a sample depends on the other samples of its batch, but for the rounding of matrix products, whose
    order depends on their shapes; where a loss is flat or has several minima, many steps may amplify that.
    """

    products: Products = "float32"
    """The type in which the decoder multiplies matrices while latents are looked for. `bf16` takes half the memory and
    is faster where the processor multiplies it; latents, losses, weights and their gradients stay float32."""

    scheme: ClassVar[Scheme | None] = None
    """What its steps along a flow are; None for a minimiser that follows none."""

    @abstractmethod
    def solve(
        self, flow: Flow, objective: Objective, start_BL: Tensor, observe: StepObserver = None, keep_path: bool = False
    ) -> Solution:
        """Follow `flow` of `objective` from `start_BL`, shape (B, L).

        Args:
            flow: right-hand side.
            objective: the batch's losses as functions of its latents.
            start_BL: z₀.
            observe: called after every round.
            keep_path: also return every accepted step, which `gradient.adjoint` and `gradient.unrolled` need.

        Raises:
            ValueError: a start is not finite; the message names the samples.
        """

    def not_differentiable(self) -> str | None:
        """Why a derivative through its steps makes no sense; None if it does."""
        return None if self.scheme is not None else "follows no flow whose steps could be differentiated"

    def for_training(self, *, resumed: bool) -> Self:
        """The solver as it is used on a training batch; `resumed`: on from where it ended before a weight update."""
        return self

    def for_encoding(self) -> Self:
        """The solver without the settings that only a training batch has."""
        return self


class BadStart(ValueError):
    """A start latent is NaN or infinite."""


def check_start(start_BL: Tensor) -> None:
    """Raise `BadStart` naming the samples whose start is NaN or infinite."""
    finite_B = start_BL.isfinite().all(-1)
    if not bool(finite_B.all()):
        bad = (~finite_B).nonzero().flatten().tolist()
        raise BadStart(f"NaN or infinite start latent of sample {', '.join(map(str, bad[:5]))} of the batch")


def full_like_batch(start_BL: Tensor, value: float) -> Tensor:
    """A tensor of shape (B,) with the dtype and device of the latents."""
    return torch.full((len(start_BL),), value, dtype=start_BL.dtype, device=start_BL.device)
