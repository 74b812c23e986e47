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
from gfe_study.density.whitening import Whitening, rounding

TOLERANCE = 1e-4
"""Of the bandwidth, relative to itself: the entropy is flat there."""
NARROWEST = 1e-4
"""Bandwidth, in standard deviations of the latents, below which they are taken for copies of one another."""


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
    scale = math.sqrt(float(latent_ML.double().var(0).mean()))
    if scale <= float(rounding(latent_ML).max()):
        raise ValueError("latents are copies of one another")
    upper = 1.001 * math.sqrt(2) * scale
    lower = upper / 4
    while excess(lower) <= 0:
        lower, upper = lower / 2, lower
        if lower < NARROWEST * scale:
            raise ValueError("latents are copies of one another")
    bandwidth = float(brentq(excess, lower, upper, xtol=TOLERANCE * upper))
    if bandwidth not in log_likelihood:
        excess(bandwidth)
    return -log_likelihood[bandwidth], bandwidth


def latent_entropy(latent_ML: Tensor) -> float:
    """Entropy of whitened latents, nats: at most that of the standard normal, but for the estimate's own bias.

    Raises:
        ValueError: as `Whitening.fit` and `leave_one_out`.
    """
    return leave_one_out(Whitening.fit(latent_ML)(latent_ML))[0]


@lru_cache(maxsize=64)
def normal_entropy(count: int, dimensions: int) -> float:
    """What `latent_entropy` makes of so many samples of a standard normal, whose entropy is l/2 log 2πe."""
    return latent_entropy(torch.randn(count, dimensions, generator=torch.Generator().manual_seed(0)))
