"""Real values with errors of one size, or of sizes that the data gives.

Shapes: B batch, D values of a sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gfe_study.config import InputError
from gfe_study.likelihoods.base import LOG_2PI, PER_STEP, Likelihood, Loss, Observed

if TYPE_CHECKING:
    pass

Positive = Annotated[float, Field(gt=0)]


class GaussianLoss(Loss):
    """½((x − y)/σ)² + log σ + ½ log 2π, x the mean.

    Args:
        sigma: σ of every value, "learned": one σ for all, 1 before training, "data": σ of each value is the target's.
    """

    log_scale: Tensor

    def __init__(self, sigma: float | Literal["learned", "data"]) -> None:
        super().__init__()
        self.of_data = sigma == "data"
        self.learned = sigma == "learned"
        if self.learned:
            self.rho = nn.Parameter(torch.zeros(()))
        else:
            self.sigma = 1.0 if isinstance(sigma, str) else float(sigma)

    def scale(self, target: Observed | None, like: Tensor) -> Tensor:
        """σ, of a shape that broadcasts against (B, D)."""
        if self.learned:
            return (PER_STEP * self.rho).exp().to(like.dtype)
        if not self.of_data:
            return torch.full((), self.sigma, dtype=like.dtype, device=like.device)
        if target is None or target.sigma_BD is None:
            raise InputError("likelihood.sigma: given 'data', and the data has no sigma; allowed: a number, or learned")
        return target.sigma_BD

    def values(self, output_BD: Tensor, target: Observed) -> Tensor:
        scale = self.scale(target, output_BD)
        return ((output_BD - target.value_BD) / scale).square() / 2 + (scale.log() + LOG_2PI / 2)

    def slope(self, output_BD: Tensor, target: Observed) -> Tensor:
        return (output_BD - target.value_BD) / self.scale(target, output_BD).square()

    def bend(self, output_BD: Tensor, target: Observed) -> Tensor:
        return self.scale(target, output_BD).square().reciprocal() * torch.ones_like(output_BD)

    def mean(self, output_BD: Tensor) -> Tensor:
        return output_BD

    def mean_slope(self, output_BD: Tensor) -> Tensor:
        return torch.ones_like(output_BD)

    def sample(self, output_BD: Tensor, generator: torch.Generator, target: Observed | None = None) -> Tensor:
        noise_BD = torch.randn(output_BD.shape, generator=generator, dtype=output_BD.dtype, device=generator.device)
        return output_BD + self.scale(target, output_BD) * noise_BD.to(output_BD.device)


class Gaussian(Likelihood):
    """Normal errors about the decoder's output. σ is in units of the scaled data, as the loss is.

    With a fixed σ it is least squares. `learned` fits one σ to the training data. `data` takes the standard deviation
    of every value from the data (`data.sigma`).
    """

    sigma: Positive | Literal["learned", "data"] = 1.0
    domain = "any real values"
    implies = {"data.scale": "standard"}

    def loss(self) -> GaussianLoss:
        return GaussianLoss(self.sigma)

    def accepts(self, target: Observed) -> bool:
        return True
