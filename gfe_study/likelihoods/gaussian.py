"""Real values with errors of one size, or of sizes that the data gives.

Shapes: B batch, D values of a sample.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gfe_study.config import InputError
from gfe_study.likelihoods.base import LOG_2PI, Observed
from gfe_study.likelihoods.location import Learned, LocationLikelihood, LocationLoss, Positive


class GaussianLoss(LocationLoss):
    """½((x − y)/σ)² + log σ + ½ log 2π, x the mean.

    Args:
        sigma: σ of every value; "learned": one σ for all, 1 before training; "each": one for each value; "data": each
            value of each sample has the target's.
    """

    def __init__(self, sigma: float | Learned | Literal["data"]) -> None:
        super().__init__(1.0 if sigma == "data" else sigma)
        self.of_data = sigma == "data"

    def scale(self, like: Tensor, target: Observed | None = None) -> Tensor:
        if not self.of_data:
            return super().scale(like)
        if target is None or target.sigma_BD is None:
            raise InputError("likelihood.sigma: given 'data', and the data has no sigma; allowed: a number, or learned")
        return target.sigma_BD

    def values(self, output_BD: Tensor, target: Observed) -> Tensor:
        scale = self.scale(output_BD, target)
        return ((output_BD - target.value_BD) / scale).square() / 2 + (scale.log() + LOG_2PI / 2)

    def slope(self, output_BD: Tensor, target: Observed) -> Tensor:
        return (output_BD - target.value_BD) / self.scale(output_BD, target).square()

    def bend(self, output_BD: Tensor, target: Observed) -> Tensor:
        return self.scale(output_BD, target).square().reciprocal() * torch.ones_like(output_BD)

    def variance(self, output_BD: Tensor, target: Observed | None = None) -> Tensor:
        """With errors from the data, 0 where none is given: nobody knows how far off a measurement there would be."""
        variance_BD = self.scale(output_BD, target).square()
        if self.of_data and target is not None and target.known_BD is not None:
            variance_BD = variance_BD.masked_fill(~target.known_BD, 0.0)
        return variance_BD

    def noise(self, shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)


class Gaussian(LocationLikelihood):
    """Normal errors about the decoder's output. σ is in units of the scaled data, as the loss is.

    With a fixed σ it is least squares. `learned` fits one σ to the training data, `each` one for each value of a
    sample: columns of a table, stations. `data` takes the standard deviation of every value from the data
    (`data.sigma`).
    """

    sigma: Positive | Learned | Literal["data"] = 1.0
    """σ, in units of the scaled data; how it is found where it is no number."""

    @property
    def needs_sigma(self) -> bool:
        return self.sigma == "data"

    def loss(self) -> GaussianLoss:
        return GaussianLoss(self.sigma)
