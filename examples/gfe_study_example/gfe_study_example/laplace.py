"""Real values with errors in proportion to e^{−|error|}.

Shapes: B batch, D values of a sample.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from gfe_study.likelihoods.base import Likelihood, Loss, Observed


class LaplaceLoss(Loss):
    """|x − y|/b + log 2b, x the median and the mean.

    Its Hessian is zero wherever it exists; solvers take the Fisher information 1/b² instead.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def values(self, output_BD: Tensor, target: Observed) -> Tensor:
        return (output_BD - target.value_BD).abs() / self.scale + math.log(2 * self.scale)

    def slope(self, output_BD: Tensor, target: Observed) -> Tensor:
        return (output_BD - target.value_BD).sign() / self.scale

    def bend(self, output_BD: Tensor, target: Observed) -> Tensor:
        return torch.full_like(output_BD, 1 / self.scale**2)

    def second(self, output_BD: Tensor, target: Observed) -> Tensor:
        return torch.zeros_like(output_BD)

    def mean(self, output_BD: Tensor) -> Tensor:
        return output_BD

    def mean_slope(self, output_BD: Tensor) -> Tensor:
        return torch.ones_like(output_BD)

    def sample(self, output_BD: Tensor, generator: torch.Generator, target: Observed | None = None) -> Tensor:
        # The difference of two exponential variables is Laplace distributed.
        shape = (2, *output_BD.shape)
        drawn = torch.empty(shape, dtype=output_BD.dtype, device=generator.device).exponential_(generator=generator)
        return output_BD + self.scale * (drawn[0] - drawn[1]).to(output_BD.device)


class Laplace(Likelihood):
    """Absolute errors: an outlier pulls no harder than any other value. b is in units of the scaled data."""

    example = {"scale": 0.5}
    domain = "any real values"
    implies = {"data.scale": "standard"}

    scale: float = Field(1.0, gt=0)
    """b."""

    def loss(self) -> LaplaceLoss:
        return LaplaceLoss(self.scale)

    def accepts(self, target: Observed) -> bool:
        return True

    def floor(self, target: Observed) -> Tensor:
        """ℓ where every output equals its value: log 2b."""
        return target.value_BD.new_full((len(target),), math.log(2 * self.scale), dtype=torch.float64)
