"""Any linear map, from a file.

Shapes: D values of a sample, M measured values.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import PrivateAttr
from torch import Tensor

from gfe_study.config import InputError
from gfe_study.operators.base import Dims, Operator


class Matrix(Operator):
    """A y of a matrix A with M rows, one for each measured value, and D columns: values in the order of a sample,
    channels first."""

    immaterial = frozenset({"path"})

    path: str
    """A `.npy` file of shape (M, D)."""

    _read: list[Any] = PrivateAttr(default_factory=list)
    """What was read of the file: it goes along to workers that may not have it."""

    def measured_dims(self, dims: Dims) -> Dims:
        rows, columns = self.matrix.shape
        if columns != math.prod(dims):
            raise InputError(
                f"data.observe.path: given {self.path}, a matrix of shape ({rows}, {columns}); "
                f"allowed: (any, {math.prod(dims)}), of samples of {math.prod(dims)} values"
            )
        return 1, rows

    def apply(self, values: Tensor) -> Tensor:
        return (values.flatten(1) @ self.matrix.to(values).t())[:, None]

    def adjoint(self, values: Tensor, dims: Dims) -> Tensor:
        return (values.flatten(1) @ self.matrix.to(values)).reshape(-1, *dims)

    def identity(self) -> str:
        return hashlib.sha256(self.matrix.numpy().tobytes()).hexdigest()

    @property
    def matrix(self) -> Tensor:
        """A, float64.

        Raises:
            InputError: the file cannot be read, or holds no finite matrix.
        """
        if not self._read:
            where = f"data.observe.path: {self.path}"
            try:
                found = np.load(Path(self.path).expanduser(), allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise InputError(f"{where}: cannot be read ({error}); allowed: a .npy file") from error
            if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind not in "biuf":
                raise InputError(f"{where}: given {getattr(found, 'shape', 'several arrays')}; allowed: a matrix")
            if not np.isfinite(found).all():
                raise InputError(f"{where}: holds NaN or infinite values; allowed: finite ones")
            self._read.append(torch.from_numpy(found.astype(np.float64)))
        matrix: Tensor = self._read[0]
        return matrix
