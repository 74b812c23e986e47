"""What every latent solver promises, and what it returns.

Shapes: B batch, L latent, S solver state (L, or 2L for a second-order flow).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gfe_study.config import Section
from gfe_study.solvers.objective import Objective

if TYPE_CHECKING:
    from gfe_study.solvers.fields import Flow


class Result(IntEnum):
    """Why a sample's solve ended."""

    REACHED_TAU = 0
    SLOPE = 1
    NO_DESCENT = 2
    MAX_NFE = 3
    NONFINITE = 4


MESSAGES = {
    Result.REACHED_TAU: "the flow was followed to its end, t = τ",
    Result.SLOPE: "the convergence curve became flatter than `min_slope`",
    Result.NO_DESCENT: "no step of the line search lowered the loss; the latent is as good as rounding allows",
    Result.MAX_NFE: "stopped at `max_nfe` decoder evaluations before the flow ended; raise it to go on",
    Result.NONFINITE: "the loss became NaN or infinite; try smaller steps or a lower learning rate",
}


@dataclass(frozen=True)
class Solution:
    """Where the flow of each sample ended. All tensors are detached.

    Attributes:
        latent_BL: z* of each sample.
        loss_B: ℓ(y, D(z*)), nats per pixel.
        time_B: flow time reached, τ or the τ′ at which the sample stopped.
        result_B: `Result` codes.
        num_steps_B: accepted steps.
        nfe_forward_B: decoder evaluations, per sample.
        nfe_backward_B: decoder pullbacks, per sample.
    """

    latent_BL: Tensor
    loss_B: Tensor
    time_B: Tensor
    result_B: Tensor
    num_steps_B: Tensor
    nfe_forward_B: Tensor
    nfe_backward_B: Tensor


StepObserver = Callable[[dict[str, Tensor]], None]
"""Called after every round of an adaptive solver; for tests and convergence figures."""


class Solver(Section, ABC):
    """Follows a flow from z₀ for each sample of a batch. Settings are fields; `solve` is the algorithm.

    No result of a sample depends on the other samples of its batch, beyond rounding.
    """

    name: str

    @abstractmethod
    def solve(
        self, flow: Flow, objective: Objective, start_BL: Tensor, observe: StepObserver | None = None
    ) -> Solution:
        """Follow `flow` of `objective` from `start_BL`, shape (B, L).

        Raises:
            ValueError: a start is not finite; the message names the samples.
        """

    def check_trial(self, trial: Any) -> None:
        """Raise `ValueError` if this solver cannot serve the trial's other choices."""


def check_start(start_BL: Tensor) -> None:
    """Raise `ValueError` naming the samples whose start is NaN or infinite."""
    bad = (~start_BL.isfinite().all(-1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"NaN or infinite start latent of sample {', '.join(map(str, bad[:5]))} of the batch")


def full_like_batch(start_BL: Tensor, value: float) -> Tensor:
    """A tensor of shape (B,) with the dtype and device of the latents."""
    return torch.full((len(start_BL),), value, dtype=start_BL.dtype, device=start_BL.device)
