"""Counts.

Shapes: B batch, D values of a sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gfe_study.likelihoods.base import Likelihood, Loss, Observed

if TYPE_CHECKING:
    from gfe_study.config import Trial


class PoissonLoss(Loss):
    """e^x − yx + log y!, x the logarithm of the rate."""

    def values(self, output_BD: Tensor, target: Observed) -> Tensor:
        return output_BD.exp() - target.value_BD * output_BD

    def constant(self, target: Observed) -> Tensor:
        return torch.lgamma(target.value_BD + 1)

    def slope(self, output_BD: Tensor, target: Observed) -> Tensor:
        return output_BD.exp().sub_(target.value_BD)

    def bend(self, output_BD: Tensor, target: Observed) -> Tensor:
        return output_BD.exp()

    def mean(self, output_BD: Tensor) -> Tensor:
        return output_BD.exp()

    def mean_slope(self, output_BD: Tensor) -> Tensor:
        return output_BD.exp()

    def sample(self, output_BD: Tensor, generator: torch.Generator, target: Observed | None = None) -> Tensor:
        return torch.poisson(self.mean(output_BD), generator=generator)


class Poisson(Likelihood):
    """Counts of independent events; the decoder's output is the logarithm of their rate."""

    domain = "counts: whole numbers from 0"
    implies = {"data.scale": "none"}

    def loss(self) -> PoissonLoss:
        return PoissonLoss()

    def accepts(self, target: Observed) -> bool:
        return bool(((target.value_BD >= 0) & (target.value_BD == target.value_BD.round())).all())

    def floor(self, target: Observed) -> Tensor:
        """ℓ where every rate equals its count."""
        exact = target.double()
        y_BD = exact.value_BD
        return PoissonLoss._mean(y_BD - torch.xlogy(y_BD, y_BD) + torch.lgamma(y_BD + 1), exact)

    def check_trial(self, trial: Trial) -> None:
        if getattr(trial.data, "scale", None) not in (None, "none"):
            raise ValueError(
                f"data.scale: given {trial.data.scale!r} with likelihood=poisson, which is of whole numbers; "
                "allowed: none"
            )
