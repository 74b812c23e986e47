"""The sample as it is."""

from __future__ import annotations

from torch import Tensor

from gfe_study.operators.base import Dims, Operator


class Identity(Operator):
    """A y = y: the reference that other operators are compared with."""

    selects = True

    def apply(self, values: Tensor) -> Tensor:
        return values

    def adjoint(self, values: Tensor, dims: Dims) -> Tensor:
        return values
