"""What every observation operator promises, and how one stands between a decoder and its likelihood.

An instrument does not measure a sample y but Ay, with A linear: some of its values, a blurred image, coarse averages.
Latents are then found, and decoders trained, by minimising ℓ(Ay, A D(z)), D(z) the mean that the likelihood has of y.

Shapes: N samples, D values of each, M measured values.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from gfe_study.config import Component

Dims = tuple[int, ...]
"""(channels, *sides) of a sample."""


class Operator(Component, ABC):
    """A linear map A, in the data's own units. In a configuration: `data: {observe: {name: blur, width: 2}}`."""

    splits: tuple[Literal["train", "val", "test"], ...] = Field(("train", "val", "test"), min_length=1)
    """The splits that are measured through it. Of the others, whole samples are seen."""

    def measured_dims(self, dims: Dims) -> Dims:
        """The (channels, *sides) of what it makes of samples of `dims`; the same unless it is overridden.

        Raises:
            InputError: it cannot be applied to such samples.
        """
        return dims

    @abstractmethod
    def apply(self, values: Tensor) -> Tensor:
        """A of samples, (N, *dims) -> (N, *measured_dims(dims)), in the type and on the device of `values`."""

    @abstractmethod
    def adjoint(self, values: Tensor, dims: Dims) -> Tensor:
        """Aᵀ: (N, *measured_dims(dims)) -> (N, *dims), such that ⟨A x, y⟩ = ⟨x, Aᵀ y⟩."""

    def identity(self) -> str:
        """What tells apart operators of the same settings: the content of a file, say. Part of the data's hash."""
        return ""


@dataclass(frozen=True, eq=False)
class Instrument:
    """An operator as it acts on the scaled, flat values that a decoder reproduces.

    Attributes:
        operator: A.
        dims: (channels, *sides) of a sample.
        measured: the same of what is measured.
        gain_D: what a value's own scale is beside the scale of what is measured; None where all are 1.
    """

    operator: Operator
    dims: Dims
    measured: Dims
    gain_D: Tensor | None = None

    def apply(self, values_ND: Tensor) -> Tensor:
        """(N, D) -> (N, M), differentiable as often as one likes."""
        applied_NM: Tensor = _Applied.apply(values_ND, self)
        return applied_NM

    def adjoint(self, values_NM: Tensor) -> Tensor:
        """(N, M) -> (N, D), differentiable likewise."""
        pulled_ND: Tensor = _Pulled.apply(values_NM, self)
        return pulled_ND

    def known(self, known_ND: Tensor) -> Tensor:
        """Which measured values depend on no missing one, bool, (N, D) -> (N, M)."""
        # Random weights never cancel, whatever the operator's signs; a generator of its own leaves others alone.
        draw = torch.Generator().manual_seed(0)
        weight_D = 1 + torch.rand(known_ND.shape[1], generator=draw, dtype=torch.float64).to(known_ND.device)
        return self.raw(weight_D * ~known_ND) == 0

    def raw(self, values_ND: Tensor) -> Tensor:
        """A of values in the data's own units, (N, D) -> (N, M)."""
        return self.operator.apply(values_ND.reshape(-1, *self.dims)).flatten(1)

    def raw_adjoint(self, values_NM: Tensor) -> Tensor:
        """Aᵀ of the same, (N, M) -> (N, D)."""
        pulled = self.operator.adjoint(values_NM.reshape(-1, *self.measured), self.dims)
        return pulled.reshape(-1, math.prod(self.dims))

    def gain(self, values_ND: Tensor) -> Tensor:
        """Scaled values as multiples of the scale of what is measured; its own adjoint."""
        return values_ND if self.gain_D is None else values_ND * self.gain_D.to(values_ND)


class _Applied(torch.autograd.Function):
    """An operator need not be made of what autograd knows: its derivative is its adjoint."""

    @staticmethod
    def forward(ctx: Any, values_ND: Tensor, instrument: Instrument) -> Tensor:
        ctx.instrument = instrument
        return instrument.raw(instrument.gain(values_ND.detach()))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.instrument.adjoint(grads[0]), None


class _Pulled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_NM: Tensor, instrument: Instrument) -> Tensor:
        ctx.instrument = instrument
        return instrument.gain(instrument.raw_adjoint(values_NM.detach()))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.instrument.apply(grads[0]), None
