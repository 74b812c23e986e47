"""What likelihoods of real values have in common: the decoder gives the mean, and errors are in units of a scale.

Shapes: B batch, D values of a sample.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gfe_study.likelihoods.base import Likelihood, Loss, Observed

if TYPE_CHECKING:
    from gfe_study.config import Trial

Learned = Literal["learned", "each"]
"""One scale for all values, or one for each."""
Positive = Annotated[float, Field(gt=0)]
PER_STEP = 10.0
"""A learned scale is exp(10 ρ) of a weight ρ, so that an optimiser whose steps have the length of the learning rate
moves it in hundreds of updates, not in thousands."""


class LocationLoss(Loss):
    """A loss of (x − y)/s, x the mean.

    Args:
        scale: s of every value; "learned": one s for all, 1 before training; "each": one for each value, likewise.
    """

    def __init__(self, scale: float | Learned) -> None:
        super().__init__()
        self.fixed: float | None = None
        self.by_value = scale == "each"
        if isinstance(scale, str):
            self.rho = nn.Parameter(torch.zeros(()))
        else:
            self.fixed = float(scale)

    def sized(self, size: int) -> None:
        if self.by_value:
            self.rho = nn.Parameter(self.rho.new_zeros(size))

    def scale(self, like: Tensor, target: Observed | None = None) -> Tensor:
        """s, of a shape that broadcasts against (B, D)."""
        if self.fixed is None:
            return (PER_STEP * self.rho).exp().to(like.dtype)
        return torch.full((), self.fixed, dtype=like.dtype, device=like.device)

    @torch.no_grad()
    def learn(self, variance: Tensor) -> None:
        """Set a learned scale to the root of a variance, one number or one for each value if there is a scale for each.

        One that is not learned stays.
        """
        if self.fixed is None:
            self.rho.copy_(variance.clamp(min=1e-12).log() / (2 * PER_STEP))

    def mean(self, output_BD: Tensor) -> Tensor:
        return output_BD

    def mixed(self, output_NBD: Tensor) -> Tensor:
        return output_NBD.mean(0)

    def mean_slope(self, output_BD: Tensor) -> Tensor:
        return torch.ones_like(output_BD)

    def sample(self, output_BD: Tensor, generator: torch.Generator, target: Observed | None = None) -> Tensor:
        noise_BD = self.noise(output_BD.shape, output_BD.dtype, generator).to(output_BD.device)
        return output_BD + self.scale(output_BD, target) * noise_BD

    @abstractmethod
    def noise(self, shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        """Draws of (y − x)/s, on the generator's device."""


class LocationLikelihood(Likelihood):
    """Errors of real values, whose scale is in units of the scaled data."""

    domain = "any real values"
    implies = {"data.scale": "standard"}

    def accepts(self, target: Observed) -> bool:
        return True

    def check_trial(self, trial: Trial) -> None:
        super().check_trial(trial)
        if trial.data.observe is not None and "each" in (getattr(self, key, None) for key in ("sigma", "scale")):
            raise ValueError(
                f"data.observe: given {trial.data.observe.name!r} with a learned error of each value, and it measures "
                "others; allowed: null"
            )
