"""The likelihood contract: per-sample distances ℓ(y, x) between observations y and the decoder's output x.

Every loss returns one number per sample, shape (B,), in nats per observed value:
ℓ(y, x) = Σ_j w_j ℓ_j(y_j, x_j) / Σ_j w_j. Reductions over the batch belong to callers: the training loss of a batch is
the sum, which sets the scale of the learning rate; a reported loss is the mean.

Shapes: B batch, D values of a sample.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from gfe_study.config import Component

if TYPE_CHECKING:
    from gfe_study.operators.base import Instrument

LOG_2PI = math.log(2 * math.pi)
HALVINGS = 60
"""Of the interval in which an output is looked for, and doublings of that interval before."""


@dataclass(frozen=True, eq=False)
class Observed:
    """A batch of samples, as a decoder is to reproduce them, and which of their values are known.

    Attributes:
        value_BD: scaled values, finite; what stands in place of a missing one has no influence.
        known_BD: which values are observed; None if all are.
        sigma_BD: standard deviation of each value's error, scaled, 1 where none is observed; None if the data has none.
        memo: numbers per sample, shape (B,), that a likelihood computes once.
        instrument: what the values were measured through, D of them then being those that it gives; None: nothing.
    """

    value_BD: Tensor
    known_BD: Tensor | None = None
    sigma_BD: Tensor | None = None
    memo: dict[str, Tensor] = field(default_factory=dict)
    instrument: Instrument | None = None
    weight_BD: Tensor | None = field(init=False, default=None)
    """w_j / Σ w_j; None where each is 1/D. All zero in a sample of which nothing is observed."""
    share_B: Tensor | None = field(init=False, default=None)
    """Σ w_j / D, the share of the values that is observed; None where all are."""

    def __post_init__(self) -> None:
        if self.known_BD is not None:
            weight_BD = self.known_BD.to(self.value_BD.dtype)
            count_B = weight_BD.sum(-1)
            object.__setattr__(self, "value_BD", self.value_BD.masked_fill(~self.known_BD, 0.0))
            if self.sigma_BD is not None:
                object.__setattr__(self, "sigma_BD", self.sigma_BD.masked_fill(~self.known_BD, 1.0))
            object.__setattr__(self, "weight_BD", weight_BD / count_B.clamp(min=1.0)[:, None])
            object.__setattr__(self, "share_B", count_B / weight_BD.shape[1])

    def __len__(self) -> int:
        return len(self.value_BD)

    def __getitem__(self, rows: Tensor | slice) -> Observed:
        """Some samples of the batch."""
        parts = (self.known_BD, self.sigma_BD)
        known, sigma = (part if part is None else part[rows] for part in parts)
        memo = {name: part[rows] for name, part in self.memo.items()}
        return Observed(self.value_BD[rows], known, sigma, memo, self.instrument)

    @property
    def count_B(self) -> Tensor | int:
        """Observed values of each sample; a single number where all are."""
        size = self.value_BD.shape[1]
        return size if self.share_B is None else (self.share_B * size).clamp(min=1.0)

    def double(self) -> Observed:
        """The batch in float64."""
        sigma_BD = None if self.sigma_BD is None else self.sigma_BD.double()
        return replace(self, value_BD=self.value_BD.double(), sigma_BD=sigma_BD, memo={})

    def as_input(self, *, mask: bool) -> Tensor:
        """What an encoder reads, shape (B, D): missing values are 0; (B, 2D) with `mask`, 1 where observed.

        Of what an instrument measured it is the adjoint's, which has the shape of a sample.
        """
        if self.instrument is not None:
            value_BD = self.instrument.adjoint(self.value_BD)
            if not mask:
                return value_BD
            known_BM = torch.ones_like(self.value_BD) if self.known_BD is None else self.known_BD.to(value_BD.dtype)
            return torch.cat([value_BD, (self.instrument.adjoint(known_BM) != 0).to(value_BD.dtype)], 1)
        if not mask:
            return self.value_BD
        known_BD = torch.ones_like(self.value_BD) if self.known_BD is None else self.known_BD.to(self.value_BD.dtype)
        return torch.cat([self.value_BD, known_BD], 1)

    def fewer(self, kept_BD: Tensor) -> Observed:
        """The same samples, of which no more is observed than these values, bool, shape (B, D)."""
        return replace(self, known_BD=kept_BD if self.known_BD is None else self.known_BD & kept_BD, memo={})

    def known(self, values_BD: Tensor) -> Tensor:
        """Those of some values, shape (B, D), that stand where this batch is observed; flat."""
        return values_BD.flatten() if self.known_BD is None else values_BD[self.known_BD]

    def weighed(self, loss_B: Tensor) -> Tensor:
        """Losses per observed value, each times the share that is observed: the likelihood of what was observed."""
        return loss_B if self.share_B is None else loss_B * self.share_B


class Loss(nn.Module, ABC):
    """ℓ(y, x) of a likelihood, x the decoder's output. Its weights, if any, are trained beside the decoder's."""

    def sized(self, size: int) -> None:
        """Be told D, once, before there is an optimiser: a loss may have weights for every value."""

    @abstractmethod
    def values(self, output_BD: Tensor, target: Observed) -> Tensor:
        """ℓ_j of each value, nats, shape (B, D); without what depends on the target alone, see `constant`."""

    @abstractmethod
    def slope(self, output_BD: Tensor, target: Observed) -> Tensor:
        """∂ℓ_j/∂x_j, shape (B, D), a new tensor."""

    @abstractmethod
    def bend(self, output_BD: Tensor, target: Observed) -> Tensor:
        """What solvers take for ∂²ℓ_j/∂x_j², shape (B, D), a new tensor: not negative."""

    def second(self, output_BD: Tensor, target: Observed) -> Tensor:
        """∂²ℓ_j/∂x_j² itself, shape (B, D), a new tensor; of any sign."""
        return self.bend(output_BD, target)

    @abstractmethod
    def mean(self, output_BD: Tensor) -> Tensor:
        """E[y | x], shape (B, D): what is shown as the reconstruction."""

    def through(self, output_BD: Tensor, instrument: Instrument) -> Tensor:
        """The output whose mean is what an instrument makes of the mean of an output, (B, D) -> (B, M): A E[y | x].

        Differentiable. By default the mean is the output itself; a loss that has another overrides this.
        """
        return instrument.apply(output_BD)

    @torch.no_grad()
    def output_of(self, mean_BD: Tensor) -> Tensor:
        """The output whose mean is this, of values one by one, by bisection: `mean` increases in every value."""
        value_BD = mean_BD.double()
        low_BD, high_BD = -torch.ones_like(value_BD), torch.ones_like(value_BD)
        for _ in range(HALVINGS):
            low_BD = torch.where(self.mean(low_BD) > value_BD, 2 * low_BD, low_BD)
            high_BD = torch.where(self.mean(high_BD) < value_BD, 2 * high_BD, high_BD)
        for _ in range(HALVINGS):
            middle_BD = (low_BD + high_BD) / 2
            above_BD = self.mean(middle_BD) > value_BD
            low_BD = torch.where(above_BD, low_BD, middle_BD)
            high_BD = torch.where(above_BD, middle_BD, high_BD)
        return ((low_BD + high_BD) / 2).to(mean_BD.dtype)

    def mixed(self, output_NBD: Tensor) -> Tensor:
        """The output whose mean is the mean of the means of N outputs, (N, B, D) -> (B, D)."""
        return self.output_of(self.mean(output_NBD).mean(0))

    @abstractmethod
    def mean_slope(self, output_BD: Tensor) -> Tensor:
        """∂E[y_j | x_j]/∂x_j, shape (B, D)."""

    def variance(self, output_BD: Tensor, target: Observed | None = None) -> Tensor:
        """Var[y | x], of a shape that broadcasts against (B, D); `target` as of `sample`. 0 unless it is overridden."""
        return torch.zeros_like(output_BD)

    @abstractmethod
    def sample(self, output_BD: Tensor, generator: torch.Generator, target: Observed | None = None) -> Tensor:
        """A draw of y given x, shape (B, D); `target` gives the errors of values where the data has them."""

    def constant(self, target: Observed) -> Tensor | None:
        """The part of each value's ℓ_j that depends on the target alone, shape (B, D); None if there is none."""
        return None

    def forward(self, output_BD: Tensor, target: Observed) -> Tensor:
        """ℓ of each sample, nats per observed value, shape (B,)."""
        loss_B = self._mean(self.values(self._shown(self.seen(output_BD, target), target), target), target)
        constant_B = target.memo.get("constant")
        if constant_B is None and (constant_BD := self.constant(target)) is not None:
            constant_B = target.memo["constant"] = self._mean(constant_BD, target)
        return loss_B if constant_B is None else loss_B + constant_B

    def gradient(self, output_BD: Tensor, target: Observed) -> Tensor:
        """∂ℓ/∂x of each sample, shape (B, D)."""
        if target.instrument is None:
            return self._weigh(self.slope(self._shown(output_BD, target), target), target)
        with torch.enable_grad():
            output_BD = output_BD.detach().requires_grad_()
            seen_BM = self.seen(output_BD, target)
        slope_BM = self._weigh(self.slope(self._shown(seen_BM.detach(), target), target), target)
        (slope_BD,) = torch.autograd.grad(seen_BM, output_BD, slope_BM)
        return slope_BD

    def curvature(self, output_BD: Tensor, target: Observed) -> Tensor:
        """The diagonal of ∂²ℓ/∂x² that solvers use, shape (B, D): not negative. Values add up: it is diagonal.

        Through an instrument, x is what it gives, shape (B, M).
        """
        return self._weigh(self.bend(self._shown(self.seen(output_BD, target), target), target), target)

    def hessian(self, output_BD: Tensor, target: Observed) -> Tensor:
        """The diagonal of ∂²ℓ/∂x² itself, shape (B, D)."""
        return self._weigh(self.second(self._shown(output_BD, target), target), target)

    def seen(self, output_BD: Tensor, target: Observed) -> Tensor:
        """The output as the target was measured, (B, D) -> (B, M); itself without an instrument."""
        return output_BD if target.instrument is None else self.through(output_BD, target.instrument)

    def seen_jacobian(self, output_KD: Tensor, jacobian_KLD: Tensor, target: Observed) -> Tensor:
        """∂x/∂z of the output x as the target was measured, of that of the output: (K, L, D) -> (K, L, M)."""
        if target.instrument is None:
            return jacobian_KLD
        mean_KLD = jacobian_KLD * self.mean_slope(output_KD)[:, None]
        applied_KLM = target.instrument.apply(mean_KLD.flatten(0, 1)).view(*jacobian_KLD.shape[:2], -1)
        steepness_KM = self.mean_slope(self.seen(output_KD, target))
        return applied_KLM / steepness_KM.clamp(min=torch.finfo(steepness_KM.dtype).eps)[:, None]

    @staticmethod
    def _shown(output_BD: Tensor, target: Observed) -> Tensor:
        # An output that overflows where nothing is observed would make NaN of its weight 0.
        return output_BD if target.known_BD is None else output_BD.masked_fill(~target.known_BD, 0.0)

    @staticmethod
    def _mean(value_BD: Tensor, target: Observed) -> Tensor:
        return value_BD.mean(-1) if target.weight_BD is None else (value_BD * target.weight_BD).sum(-1)

    @staticmethod
    def _weigh(value_BD: Tensor, target: Observed) -> Tensor:
        if target.weight_BD is None:
            return value_BD.div_(value_BD.shape[-1])
        return value_BD.mul_(target.weight_BD)


class Likelihood(Component, ABC):
    """Settings of a likelihood. In a configuration, `likelihood: gaussian` is short for `{name: gaussian}`."""

    domain: ClassVar[str]
    """The values that it is made for, in words."""

    @property
    def needs_sigma(self) -> bool:
        """Whether the data has to give the standard deviation of every value's error."""
        return False

    @abstractmethod
    def loss(self) -> Loss:
        """ℓ, with fresh weights if it has any."""

    @abstractmethod
    def accepts(self, target: Observed) -> bool:
        """Whether all observed values lie in the domain."""

    def accepts_means(self, target: Observed) -> bool:
        """The same of what an instrument makes of such values, which lies between them but for rounding."""
        return self.accepts(target)

    def admits(self, target: Observed) -> bool:
        """Whether samples lie in the domain, as they are or as they were measured."""
        return self.accepts(target) if target.instrument is None else self.accepts_means(target)

    def floor(self, target: Observed) -> Tensor | None:
        """The lowest ℓ that any decoder can reach, per sample, shape (B,); None if there is no such bound."""
        return None
