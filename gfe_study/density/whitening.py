"""The linear map under which latents have mean 0 and covariance I.

Shapes: M latents, L latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

ROUNDING = 16
"""Differences up to so many times the precision of latents are rounding."""
SMALLEST = 1e-6
"""Standard deviation along a principal axis, relative to the largest, up to which latents lie in fewer dimensions."""


@dataclass(frozen=True)
class Whitening:
    """The map of some latents.

    Attributes:
        mean_L: their mean, float64.
        map_LL: what they are multiplied by, less their mean, float64.
        log_volume: log |det map|.
    """

    mean_L: Tensor
    map_LL: Tensor
    log_volume: float

    @classmethod
    def fit(cls, latent_ML: Tensor) -> Self:
        """Of latents: a scaling of each dimension, then a rotation and a scaling of each principal axis.

        Raises:
            ValueError: they lie in fewer dimensions than L but for rounding, are not finite, or are too few.
        """
        count, dimensions = latent_ML.shape
        if not bool(latent_ML.isfinite().all()):
            raise ValueError("latents are NaN or infinite")
        if count <= dimensions:
            raise ValueError(f"{count} latents in {dimensions} dimensions; allowed: more latents than dimensions")
        rounding_L = rounding(latent_ML)
        mean_L = latent_ML.double().mean(0)
        deviation_L = latent_ML.double().std(0)
        flat = ValueError(f"latents lie in fewer than {dimensions} dimensions")
        if bool((deviation_L == 0).any()):
            raise flat
        scaled_ML = (latent_ML.double() - mean_L) / deviation_L
        variance_L, axis_LL = torch.linalg.eigh(scaled_ML.t() @ scaled_ML / (count - 1))
        spread_L = variance_L.clamp(min=0).sqrt()
        least_L = (axis_LL.square().t() @ (rounding_L / deviation_L).square()).sqrt()
        if bool((spread_L <= least_L.clamp(min=SMALLEST * float(spread_L[-1]))).any()):
            raise flat
        map_LL = axis_LL / deviation_L[:, None] / spread_L
        return cls(mean_L, map_LL, -float(deviation_L.log().sum() + spread_L.log().sum()))

    def __call__(self, latent_NL: Tensor) -> Tensor:
        """Latents under the map, float64."""
        white_NL: Tensor = (latent_NL.double() - self.mean_L) @ self.map_LL
        return white_NL


def rounding(latent_ML: Tensor) -> Tensor:
    """Differences of latents that are rounding, for each dimension, float64, shape (L,)."""
    return ROUNDING * torch.finfo(latent_ML.dtype).eps * latent_ML.double().abs().amax(0)
