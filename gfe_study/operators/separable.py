"""Operators that act on each axis of a sample by itself: a blur, and averages of neighbours.

Shapes: S values along an axis, T measured ones.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from gfe_study.config import InputError
from gfe_study.operators.base import Dims, Operator

REACH = 4
"""Widths at which a blur ends: beyond, a missing value is missed by nobody."""


class Separable(Operator):
    """The same kind of matrix along every side of a sample, and nothing across channels."""

    @abstractmethod
    def along(self, side: int) -> Tensor:
        """What it does along an axis of a length, float64, shape (T, S)."""

    def apply(self, values: Tensor) -> Tensor:
        return _along_each(values, [_made(self, side) for side in values.shape[2:]])

    def adjoint(self, values: Tensor, dims: Dims) -> Tensor:
        return _along_each(values, [_made(self, side).t() for side in dims[1:]])


@lru_cache(maxsize=64)
def _made(operator: Separable, side: int) -> Tensor:
    return operator.along(side)


def _along_each(values: Tensor, matrices: list[Tensor]) -> Tensor:
    for axis, matrix in enumerate(matrices, start=2):
        values = (values.movedim(axis, -1) @ matrix.to(values).t()).movedim(-1, axis)
    return values


class Blur(Separable):
    """A normal blur along every side: of what an imperfect lens, or the diffusion of a field, leaves.

    It ends at four widths. At the edges its weights are those inside, divided by their sum: what is constant stays as
    it is.
    """

    example: ClassVar[Mapping[str, Any]] = {"width": 1.0}

    width: float = Field(gt=0)
    """Its standard deviation, in places."""

    def along(self, side: int) -> Tensor:
        place_S = torch.arange(side, dtype=torch.float64)
        distance_SS = (place_S[:, None] - place_S).abs() / self.width
        weight_SS = (-distance_SS.square() / 2).exp().masked_fill(distance_SS > REACH, 0.0)
        return weight_SS / weight_SS.sum(1, keepdim=True)


class Downsample(Separable):
    """The means of blocks of neighbouring values: a coarser sensor, to be resolved beyond."""

    example: ClassVar[Mapping[str, Any]] = {"factor": 1}

    factor: int = Field(gt=0)
    """How many values along every side make one."""

    def measured_dims(self, dims: Dims) -> Dims:
        if any(side % self.factor for side in dims[1:]):
            allowed = [factor for factor in range(2, min(dims[1:]) + 1) if not any(side % factor for side in dims[1:])]
            raise InputError(
                f"data.observe.factor: given {self.factor} with sides of {' × '.join(map(str, dims[1:]))}; "
                f"allowed: {', '.join(map(str, allowed)) or 'none, the sides have no common divisor'}"
            )
        return dims[0], *(side // self.factor for side in dims[1:])

    def along(self, side: int) -> Tensor:
        eye = torch.eye(side // self.factor, dtype=torch.float64)
        return eye.repeat_interleave(self.factor, 1) / self.factor
