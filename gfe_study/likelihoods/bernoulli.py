"""Values between 0 and 1: grey levels, shares, probabilities.

Shapes: B batch, D values of a sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from gfe_study.likelihoods.base import Likelihood, Loss, Observed

if TYPE_CHECKING:
    from gfe_study.operators.base import Instrument


ROUNDING = 1e-5
"""By which an instrument's values may lie outside."""


class BernoulliLoss(Loss):
    """Binary cross-entropy of logits x: max(x, 0) − xy + log(1 + e^{−|x|}), finite at any x."""

    def values(self, output_BD: Tensor, target: Observed) -> Tensor:
        return F.binary_cross_entropy_with_logits(output_BD, target.value_BD, reduction="none")

    def slope(self, output_BD: Tensor, target: Observed) -> Tensor:
        return output_BD.sigmoid().sub_(target.value_BD)

    def bend(self, output_BD: Tensor, target: Observed) -> Tensor:
        return self.mean_slope(output_BD)

    def mean(self, output_BD: Tensor) -> Tensor:
        return output_BD.sigmoid()

    def mixed(self, output_NBD: Tensor) -> Tensor:
        # In float32 a mean of nearly 1 is 1, and its logit infinite.
        return F.logsigmoid(output_NBD).logsumexp(0) - F.logsigmoid(-output_NBD).logsumexp(0)

    def through(self, output_BD: Tensor, instrument: Instrument) -> Tensor:
        # 1 − Aσ(x) as Aσ(−x) + 1 − A1, which has digits left where Aσ(x) is nearly 1.
        mean_BM, other_BM = (instrument.apply((sign * output_BD).sigmoid()) for sign in (1, -1))
        other_BM = other_BM + instrument.rest_M.to(output_BD)
        least = torch.finfo(output_BD.dtype).tiny
        return mean_BM.clamp(min=least).log() - other_BM.clamp(min=least).log()

    def mean_slope(self, output_BD: Tensor) -> Tensor:
        mean_BD = output_BD.sigmoid()
        return mean_BD * (1 - mean_BD)

    def variance(self, output_BD: Tensor, target: Observed | None = None) -> Tensor:
        return self.mean_slope(output_BD)

    def sample(self, output_BD: Tensor, generator: torch.Generator, target: Observed | None = None) -> Tensor:
        return torch.bernoulli(self.mean(output_BD), generator=generator)


class Bernoulli(Likelihood):
    """Binary cross-entropy with logits: the number in the tables of arXiv:2412.00864."""

    domain = "values from 0 to 1"

    def loss(self) -> BernoulliLoss:
        return BernoulliLoss()

    def accepts(self, target: Observed) -> bool:
        return bool(((target.value_BD >= 0) & (target.value_BD <= 1)).all())

    def accepts_means(self, target: Observed) -> bool:
        return bool(((target.value_BD >= -ROUNDING) & (target.value_BD <= 1 + ROUNDING)).all())

    def floor(self, target: Observed) -> Tensor:
        """Mean binary entropy of the values; 0.0581 on MNIST's test images."""
        exact = target.double()
        y_BD = exact.value_BD.clamp(0, 1)  # an instrument's rounding may have left it
        entropy_BD = -(torch.xlogy(y_BD, y_BD) + torch.xlogy(1 - y_BD, 1 - y_BD))
        return BernoulliLoss._mean(entropy_BD, exact)
