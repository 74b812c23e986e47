"""Sensors at some places, the same in all samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from gfe_study.operators.base import Dims, Operator


class Subsample(Operator):
    """The values at random places, in the order of the sample; all channels of a place.

    For places that differ from sample to sample, leave the others missing, or see `data.hide` and `eval.withhold`.
    """

    example: ClassVar[Mapping[str, Any]] = {"fraction": 0.5}
    selects = True

    fraction: float = Field(gt=0, le=1)
    """Share of the places that have a sensor; at least one has."""
    seed: int = Field(0, ge=0)
    """Another one puts the sensors elsewhere."""

    def measured_dims(self, dims: Dims) -> Dims:
        return dims[0], max(1, round(self.fraction * math.prod(dims[1:])))

    def apply(self, values: Tensor) -> Tensor:
        return values.flatten(2)[:, :, _places(self, tuple(values.shape[1:]))]

    def adjoint(self, values: Tensor, dims: Dims) -> Tensor:
        spread = values.new_zeros(len(values), dims[0], math.prod(dims[1:]))
        spread[:, :, _places(self, dims)] = values
        return spread.reshape(-1, *dims)


@lru_cache(maxsize=64)
def _places(operator: Subsample, dims: Dims) -> Tensor:
    order = torch.randperm(math.prod(dims[1:]), generator=torch.Generator().manual_seed(operator.seed))
    return order[: operator.measured_dims(dims)[1]].sort().values
