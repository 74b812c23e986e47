"""How the loss at z* is differentiated with respect to the decoder's weights.

Shapes: B batch, L latent, D values of a sample, S solver state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from gfe_study.config import Component
from gfe_study.solvers.base import Solution
from gfe_study.solvers.objective import Objective
from gfe_study.solvers.runge_kutta import Path

if TYPE_CHECKING:
    from gfe_study.config import Trial


@dataclass(frozen=True)
class Differentiated:
    """What differentiating a batch gave and cost.

    Attributes:
        loss_B: ℓ of each sample at its z*, detached.
        nfe_forward_B: decoder evaluations, per sample.
        nfe_backward_B: backward passes through the decoder, per sample; one through the gradient of another is
            one more.
    """

    loss_B: Tensor
    nfe_forward_B: Tensor
    nfe_backward_B: Tensor


class Gradient(Component, ABC):
    """Adds dL/dθ to the `.grad` of the weights θ of the decoder, and of the likelihood if it has any.

    L is the sum over the batch of what the latents were found by minimising, ℓ with the prior, each sample weighed by
    the share of its values that is observed.
    """

    needs_path: ClassVar[bool] = False
    """Whether it differentiates the steps of the solver, which must then be kept."""

    @abstractmethod
    def backward(self, objective: Objective, solution: Solution) -> Differentiated:
        """Differentiate at a solution of an objective.

        Where ℓ of a sample is not finite, no gradient is computed: the caller stops the trial.

        Raises:
            ValueError: the gradient needs the path and the solution has none.
        """

    def path_of(self, solution: Solution) -> Path:
        """The path of a solution. Raises `ValueError` if it was not kept."""
        if solution.path is None:
            raise ValueError(f"gradient.{self.name} needs the solver's path; solve with keep_path=True")
        return solution.path

    def check_trial(self, trial: Trial) -> None:
        """Raise `ValueError` if this gradient cannot serve the trial's other choices."""
        reason = trial.solver.not_differentiable()
        if self.needs_path and reason is not None:
            raise ValueError(
                f"gradient.name: given {self.name!r} with solver.name={trial.solver.name}, which {reason}; "
                "at a minimum approx is exact; allowed: approx"
            )


class PathObjective:
    """∇_z ℓ of some rows of an objective, with its autograd graph in z and in θ; counts its evaluations.

    `into` is as of `Decoder.latent_gradient`.
    """

    def __init__(
        self, objective: Objective, rows: slice | Tensor = slice(None), into: list[Tensor] | None = None
    ) -> None:
        self.into = into
        self.decoder = objective.decoder
        self.loss = objective.loss
        self.target = objective.target[rows]
        self.pull_B1 = None if objective.pull_B is None else objective.pull_B[rows, None]
        self.evaluations = 0

    def gradient(self, latent_BL: Tensor) -> Tensor:
        """∇_z ℓ, shape (B, L), differentiable."""
        self.evaluations += 1
        if not latent_BL.requires_grad:
            latent_BL = latent_BL.detach().requires_grad_()
        grad_BL = self.decoder.latent_gradient(self.loss, latent_BL, self.target, self.into)
        return grad_BL if self.pull_B1 is None else grad_BL + self.pull_B1 * latent_BL


def weights_of(objective: Objective) -> list[torch.nn.Parameter]:
    """The weights that are trained."""
    weights = [*objective.decoder.parameters(), *objective.loss.parameters()]
    return [weight for weight in weights if weight.requires_grad]


def add_gradients(weights: Iterable[torch.nn.Parameter], gradients: Iterable[Tensor | None]) -> None:
    """Add to `.grad`; None stands for zero."""
    for weight, gradient in zip(weights, gradients, strict=True):
        if gradient is not None:
            weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
