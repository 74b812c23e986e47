"""Counts.

Shapes: B batch, D values of a sample.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gfe_study.likelihoods.base import Likelihood, Loss, Observed

if TYPE_CHECKING:
    from gfe_study.config import Trial
    from gfe_study.operators.base import Instrument


FAR = 5.0
"""Beyond a rate of e⁵ = 148 times a count and one, ℓ_j goes on as a straight line."""


LARGEST = 80.0
"""A logarithm of a rate whose sums with others float32 still holds."""


class PoissonLoss(Loss):
    """e^x − yx + log y!, x the logarithm of the rate.

    Evaluated as y (e^d − 1 − d) with d = x − log y, which is 0 where the rate is y, and the rest, which depends on y
    alone: the three terms as they stand cancel, and of large counts float32 has no digit left of what they differ by.

    Far above the count it is a straight line: latents that were found before a weight update can make the logarithm of
    a rate 70 after it, and a gradient of e⁷⁰ would end training, since optimisers keep its square.
    """

    def values(self, output_BD: Tensor, target: Observed) -> Tensor:
        none_BD = target.value_BD == 0
        count_BD = target.value_BD.masked_fill(none_BD, 1.0)
        near_BD = self._near(output_BD, target)
        above_BD = near_BD - count_BD.log()
        # Of y = 0 it is e^x, which is e^d − 1 − d with y = 1, and x + 1.
        curve_BD = count_BD * (above_BD.expm1() - above_BD) + (near_BD + 1).masked_fill(~none_BD, 0.0)
        return curve_BD + (output_BD - near_BD) * (near_BD.detach().exp() - target.value_BD)

    @staticmethod
    def _near(output_BD: Tensor, target: Observed) -> Tensor:
        return torch.minimum(output_BD, target.value_BD.log1p() + FAR)

    def constant(self, target: Observed) -> Tensor:
        return least(target.value_BD.double()).to(target.value_BD.dtype)

    def slope(self, output_BD: Tensor, target: Observed) -> Tensor:
        return self._near(output_BD, target).exp().sub_(target.value_BD)

    def bend(self, output_BD: Tensor, target: Observed) -> Tensor:
        return self._near(output_BD, target).exp()

    def second(self, output_BD: Tensor, target: Observed) -> Tensor:
        near_BD = self._near(output_BD, target)
        return near_BD.exp().masked_fill(near_BD < output_BD, 0.0)

    def mean(self, output_BD: Tensor) -> Tensor:
        return output_BD.exp()

    def mixed(self, output_NBD: Tensor) -> Tensor:
        return output_NBD.logsumexp(0) - math.log(len(output_NBD))

    def through(self, output_BD: Tensor, instrument: Instrument) -> Tensor:
        mean_BM = instrument.apply(self.mean(output_BD.clamp(max=LARGEST)))
        return mean_BM.clamp(min=torch.finfo(mean_BM.dtype).tiny).log()

    def mean_slope(self, output_BD: Tensor) -> Tensor:
        return output_BD.exp()

    def variance(self, output_BD: Tensor, target: Observed | None = None) -> Tensor:
        return self.mean(output_BD)

    def sample(self, output_BD: Tensor, generator: torch.Generator, target: Observed | None = None) -> Tensor:
        return torch.poisson(self.mean(output_BD), generator=generator)


def least(count_BD: Tensor) -> Tensor:
    """The lowest ℓ_j of each count: y − y log y + log y!."""
    return count_BD - torch.xlogy(count_BD, count_BD) + torch.lgamma(count_BD + 1)


class Poisson(Likelihood):
    """Counts of independent events; the decoder's output is the logarithm of their rate."""

    domain = "counts: whole numbers from 0"
    implies = {"data.scale": "none"}

    def loss(self) -> PoissonLoss:
        return PoissonLoss()

    def accepts(self, target: Observed) -> bool:
        return bool(((target.value_BD >= 0) & (target.value_BD == target.value_BD.round())).all())

    def accepts_means(self, target: Observed) -> bool:
        return bool((target.value_BD >= 0).all())

    def floor(self, target: Observed) -> Tensor:
        """ℓ where every rate equals its count."""
        exact = target.double()
        return PoissonLoss._mean(least(exact.value_BD), exact)

    def check_trial(self, trial: Trial) -> None:
        if trial.data.scale not in (None, "none"):
            raise ValueError(
                f"data.scale: given {trial.data.scale!r} with likelihood=poisson, which is of whole numbers; "
                "allowed: none"
            )
