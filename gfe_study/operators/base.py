"""What every observation operator promises, and how one stands between a decoder and its likelihood.

An instrument does not measure a sample y but Ay, with A linear: some of its values, a blurred image, coarse averages.
Latents are then found, and decoders trained, by minimising ℓ(Ay, A D(z)), D(z) the mean that the likelihood has of y.

Shapes: N samples, D values of each, M measured values.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from gfe_study.config import Component

Dims = tuple[int, ...]
"""(channels, *sides) of a sample."""
Map = Callable[[Tensor], Tensor]


class Operator(Component, ABC):
    """A linear map A, in the data's own units. In a configuration: `data: {observe: {name: blur, width: 2}}`."""

    selects: ClassVar[bool] = False
    """Whether it gives some of a sample's values as they are, and nothing else."""

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
        gain_D: the scale of every value; None where all have one, which is then that of what is measured.
        norm_M: the scale of every measured value; None likewise.
    """

    operator: Operator
    dims: Dims
    measured: Dims
    gain_D: Tensor | None = None
    norm_M: Tensor | None = None

    def apply(self, values_ND: Tensor) -> Tensor:
        """(N, D) -> (N, M), differentiable as often as one likes."""
        applied_NM: Tensor = _Linear.apply(values_ND, self.scaled, self.scaled_adjoint)
        return applied_NM

    def adjoint(self, values_NM: Tensor) -> Tensor:
        """(N, M) -> (N, D), differentiable likewise."""
        pulled_ND: Tensor = _Linear.apply(values_NM, self.scaled_adjoint, self.scaled)
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

    def scaled(self, values_ND: Tensor) -> Tensor:
        """A of scaled values, in the scale of what is measured."""
        if self.gain_D is None or self.norm_M is None:
            return self.raw(values_ND)
        return self.raw(values_ND * self.gain_D.to(values_ND)) / self.norm_M.to(values_ND)

    def scaled_adjoint(self, values_NM: Tensor) -> Tensor:
        """Its adjoint."""
        if self.gain_D is None or self.norm_M is None:
            return self.raw_adjoint(values_NM)
        return self.raw_adjoint(values_NM / self.norm_M.to(values_NM)) * self.gain_D.to(values_NM)

    @cached_property
    def rest_M(self) -> Tensor:
        """1 − A1, float64: 0, and not what rounding leaves, where A gives means."""
        rest_M = 1 - self.scaled(torch.ones(1, math.prod(self.dims), dtype=torch.float64))[0]
        return rest_M.masked_fill(rest_M.abs() < 1e-6, 0.0)


class _Linear(torch.autograd.Function):
    """A linear map that need not be made of what autograd knows: its derivative is its transpose, and the other way."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, linear: Map, transpose: Map) -> Tensor:
        ctx.linear, ctx.transpose = linear, transpose
        return linear(values.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _Linear.apply(grads[0], ctx.transpose, ctx.linear), None, None
