"""Entropy of a set of latents by a kernel density estimate.

arXiv:2010.15283, supplement, eq. 4–5. Shapes: M latents, L latent.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from scipy.optimize import brentq
from torch import Tensor

from gfe_study.density.kde import kernel_moments, log_normaliser

TOLERANCE = 1e-4
"""Of the bandwidth, relative to the latents' standard deviation: the entropy is flat there."""
NARROWEST = 1e-4
"""Bandwidth below which latents are taken for copies of one another, in the same units."""


def whitened(latent_ML: Tensor) -> Tensor:
    """Latents of mean 0 and covariance I, float64, by a rotation and a scaling of each principal axis.

    Raises:
        ValueError: they lie in fewer dimensions than L, are not finite, or are too few.
    """
    latent_ML = latent_ML.double()
    count, dimensions = latent_ML.shape
    if not bool(latent_ML.isfinite().all()):
        raise ValueError("latents are NaN or infinite")
    if count <= dimensions:
        raise ValueError(f"{count} latents in {dimensions} dimensions; allowed: more latents than dimensions")
    centred_ML = latent_ML - latent_ML.mean(0)
    variance_L, axis_LL = torch.linalg.eigh(centred_ML.t() @ centred_ML / (count - 1))
    if float(variance_L[0]) <= 1e-12 * float(variance_L[-1]):
        raise ValueError(f"latents lie in fewer than {dimensions} dimensions")
    white_ML: Tensor = centred_ML @ axis_LL / variance_L.sqrt()
    return white_ML


def leave_one_out(latent_ML: Tensor) -> tuple[float, float]:
    """Entropy of latents by the kernel density estimate that leaves each one out, nats, and its bandwidth.

    H ≈ −(1/m) Σ_i log (1/(m−1)) Σ_{j≠i} N(z_i − z_j; 0, h² I). The bandwidth is the one under which the left-out
    latents are likeliest: the fixed point of h² ← (1/(l m)) Σ_i Σ_{j≠i} w_ij ‖z_j − z_i‖². Iterating that takes
    hundreds of rounds in few dimensions; its fixed point is found as a root.

    Raises:
        ValueError: there is but one latent, or they are copies of one another, so that no density explains them.
    """
    count, dimensions = latent_ML.shape
    if count < 2:
        raise ValueError("an entropy of 1 latent; allowed: 2 or more")
    point_ML = latent_ML.float()
    own_M = torch.arange(count, device=point_ML.device)
    log_likelihood: dict[float, float] = {}

    def excess(bandwidth: float) -> float:
        """The next bandwidth less this one."""
        log_sum_M, _, spread_M = kernel_moments(point_ML, point_ML, bandwidth, own_M)
        constant = math.log(count - 1) + log_normaliser(dimensions, bandwidth)
        log_likelihood[bandwidth] = float(log_sum_M.double().mean()) - constant
        return math.sqrt(float(spread_M.double().mean()) / dimensions) - bandwidth

    # Kernels weigh what is near more than what is far, so that the next bandwidth never exceeds that of equal weights.
    scale = math.sqrt(float(point_ML.double().var(0).mean()))
    if scale == 0:
        raise ValueError("latents are copies of one another")
    upper = 1.001 * math.sqrt(2) * scale
    lower = upper / 4
    while excess(lower) <= 0:
        lower, upper = lower / 2, lower
        if lower < NARROWEST * scale:
            raise ValueError("latents are copies of one another")
    bandwidth = float(brentq(excess, lower, upper, xtol=TOLERANCE * scale))
    if bandwidth not in log_likelihood:
        excess(bandwidth)
    return -log_likelihood[bandwidth], bandwidth


def latent_entropy(latent_ML: Tensor) -> float:
    """Entropy of whitened latents, nats: at most that of the standard normal, but for the estimate's own bias.

    Raises:
        ValueError: as `whitened`.
    """
    return leave_one_out(whitened(latent_ML))[0]


@lru_cache(maxsize=64)
def normal_entropy(count: int, dimensions: int) -> float:
    """What `latent_entropy` makes of so many samples of a standard normal, whose entropy is l/2 log 2πe."""
    return latent_entropy(torch.randn(count, dimensions, generator=torch.Generator().manual_seed(0)))
