"""Real values with errors of heavy tails.

Shapes: B batch, D values of a sample.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from gfe_study.likelihoods.base import Observed
from gfe_study.likelihoods.location import Learned, LocationLikelihood, LocationLoss, Positive


class StudentTLoss(LocationLoss):
    """−log of Student's t: (ν + 1)/2 log(1 + r²/ν) + log s + log B(ν/2, ½) + ½ log ν, r = (x − y)/s.

    Its Hessian is negative where |r| > √ν; solvers take the Fisher information (ν + 1)/((ν + 3) s²) instead.
    """

    def __init__(self, dof: float, scale: float | Learned) -> None:
        super().__init__(scale)
        self.dof = dof
        self.log_normaliser = math.lgamma(dof / 2) + math.lgamma(0.5) - math.lgamma((dof + 1) / 2) + math.log(dof) / 2

    def values(self, output_BD: Tensor, target: Observed) -> Tensor:
        scale = self.scale(output_BD)
        square_BD = ((output_BD - target.value_BD) / scale).square()
        return (square_BD / self.dof).log1p() * ((self.dof + 1) / 2) + (scale.log() + self.log_normaliser)

    def slope(self, output_BD: Tensor, target: Observed) -> Tensor:
        scale = self.scale(output_BD)
        ratio_BD = (output_BD - target.value_BD) / scale
        return (self.dof + 1) * ratio_BD / ((self.dof + ratio_BD.square()) * scale)

    def bend(self, output_BD: Tensor, target: Observed) -> Tensor:
        fisher = (self.dof + 1) / (self.dof + 3) / self.scale(output_BD).square()
        return fisher * torch.ones_like(output_BD)

    def second(self, output_BD: Tensor, target: Observed) -> Tensor:
        scale = self.scale(output_BD)
        square_BD = ((output_BD - target.value_BD) / scale).square()
        return (self.dof + 1) * (self.dof - square_BD) / ((self.dof + square_BD) * scale).square()

    def variance(self, output_BD: Tensor, target: Observed | None = None) -> Tensor:
        """Infinite of two degrees of freedom or fewer."""
        inflated = self.dof / (self.dof - 2) if self.dof > 2 else math.inf
        return inflated * self.scale(output_BD).square()

    def noise(self, shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        half = torch.full(shape, self.dof / 2, dtype=dtype, device=generator.device)
        chi_square_BD = 2 * torch._standard_gamma(half, generator=generator)
        normal_BD = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
        return normal_BD * (self.dof / chi_square_BD).sqrt()


class StudentT(LocationLikelihood):
    """Errors of heavy tails (Lange, Little & Taylor 1989): outliers weigh little. s is in units of the scaled data."""

    dof: float = Field(4.0, gt=0)
    """ν, degrees of freedom: the fewer, the heavier the tails; the mean exists above 1."""
    scale: Positive | Learned = 1.0
    """s, or "learned": one for all values, 1 before training; "each": one for each value, likewise."""

    def loss(self) -> StudentTLoss:
        return StudentTLoss(self.dof, self.scale)
