"""Kernel density estimates with isotropic Gaussian kernels.

Shapes: P points, M centres, L latent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 2**19
"""Pairs of a point and a centre that are held at once."""
ROUNDING = 1e-4
"""Of an exponent, at most."""
NEGLIGIBLE = -80.0
"""Logarithm of the smallest share of a kernel: e to less is a denormal number, which is slow and adds nothing."""


def log_density(point_PL: Tensor, centre_ML: Tensor, bandwidth: float, own_P: Tensor | None = None) -> Tensor:
    """log p̂(z), nats, shape (P,): p̂(z) = (1/m) Σ_i N(z; z_i, h² I), normalised.

    Evaluated by log-sum-exp in blocks: finite in any dimension, with memory that does not grow with P·M. Its
    derivative with respect to the points is (Σ_i w_i z_i − z)/h², w the softmax over the kernels; the centres are
    constants.

    Args:
        point_PL: z.
        centre_ML: z_i.
        bandwidth: h.
        own_P: the centre that is the point itself, which is left out of its estimate, or −1; None: none is.

    Raises:
        ValueError: there are no centres, or none but the point's own.
    """
    count, dimensions = centre_ML.shape
    if count <= (own_P is not None):
        raise ValueError(f"a density estimate of {count} centres; allowed: at least one beside the point's own")
    sums_P: Tensor = _LogKernelSum.apply(point_PL, centre_ML.detach(), bandwidth, own_P)
    counted = math.log(count) if own_P is None else (count - (own_P >= 0).to(sums_P.dtype)).log()
    return sums_P - counted - log_normaliser(dimensions, bandwidth)


def log_normaliser(dimensions: int, bandwidth: float) -> float:
    """log (2πh²)^(l/2): what a kernel is divided by."""
    return dimensions / 2 * math.log(2 * math.pi * bandwidth**2)


def log_kernel_sum(point_PL: Tensor, centre_ML: Tensor, bandwidth: float, own_P: Tensor | None = None) -> Tensor:
    """log Σ_i exp(−‖z − z_i‖²/2h²), shape (P,). Arguments as of `log_density`."""
    log_sum_P = point_PL.new_empty(len(point_PL))
    for rows, _, _, exponent in _exponents(point_PL, centre_ML, bandwidth, own_P):
        top, weight = _relative(exponent)
        log_sum_P[rows] = top + weight.sum(1).log()
    return log_sum_P


def kernel_moments(
    point_PL: Tensor, centre_ML: Tensor, bandwidth: float, own_P: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`log_kernel_sum`, shape (P,), and what the kernels' shares w_i of that sum tell of where the centres lie.

    These are Σ_i w_i (z_i − z), shape (P, L), and Σ_i w_i ‖z_i − z‖², shape (P,).
    """
    log_sum_P, spread_P = point_PL.new_empty(2, len(point_PL))
    offset_PL = torch.empty_like(point_PL)
    dimensions = point_PL.shape[1]
    for rows, point, centre, exponent in _exponents(point_PL, centre_ML, bandwidth, own_P):
        top, weight = _relative(exponent)
        summed = weight @ centre
        total = summed[:, -1]
        log_sum_P[rows] = top + total.log()
        mean = summed[:, :-1] / total[:, None]  # of the scaled centres, and of −‖z_i‖²/2
        offset = mean[:, :dimensions] - point[:, :dimensions]
        # ‖z‖² − 2 z·E[z_i] + E‖z_i‖²
        spread = -2 * (point[:, -1] + (point[:, :dimensions] * mean[:, :dimensions]).sum(1) + mean[:, dimensions])
        offset_PL[rows], spread_P[rows] = offset * bandwidth, spread.clamp_(min=0.0) * bandwidth**2
    return log_sum_P, offset_PL, spread_P


def _exponents(
    point_PL: Tensor, centre_ML: Tensor, bandwidth: float, own_P: Tensor | None
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Slices of the points, and for each −‖z − z_i‖²/2h² as the product of two matrices.

    These are (z, 1, −‖z‖²/2) and (z_i, −‖z_i‖²/2, 1), in units of h, around the centres' mean. Far from it the squares
    cancel, as of tight clusters: where float32 would be more than `ROUNDING` off, everything is float64.
    """
    for dtype in (point_PL.dtype, torch.float64):
        middle_L = centre_ML.to(dtype).mean(0)
        centre, point = ((each.to(dtype) - middle_L) / bandwidth for each in (centre_ML, point_PL))
        half_M1, half_P1 = (each.square().sum(1, keepdim=True) / -2 for each in (centre, point))
        if -float(torch.cat([half_M1, half_P1]).min()) * torch.finfo(dtype).eps < ROUNDING:
            break
    centre = torch.cat([centre, half_M1, torch.ones_like(half_M1)], 1)
    point = torch.cat([point, torch.ones_like(half_P1), half_P1], 1)
    size = max(1, BLOCK // len(centre))
    for start in range(0, len(point), size):
        rows = slice(start, start + size)
        exponent_PM = point[rows] @ centre.t()
        if own_P is not None:
            own = own_P[rows]
            known = (own >= 0).nonzero().flatten()
            exponent_PM[known, own[known]] = -torch.inf
        yield rows, point[rows], centre, exponent_PM


def _relative(exponent_PM: Tensor) -> tuple[Tensor, Tensor]:
    """The largest exponent of every row, and exp(exponent − largest), in place of the exponents."""
    top_P1 = exponent_PM.amax(1, keepdim=True)
    return top_P1.squeeze(1), exponent_PM.sub_(top_P1).clamp_(min=NEGLIGIBLE).exp_()


class _LogKernelSum(torch.autograd.Function):
    """`log_kernel_sum`, with its gradient found on the way: no pair outlives its block."""

    @staticmethod
    def forward(ctx: Any, point_PL: Tensor, centre_ML: Tensor, bandwidth: float, own_P: Tensor | None) -> Tensor:
        if not ctx.needs_input_grad[0]:
            return log_kernel_sum(point_PL, centre_ML, bandwidth, own_P)
        log_sum_P, offset_PL, _ = kernel_moments(point_PL, centre_ML, bandwidth, own_P)
        ctx.save_for_backward(offset_PL / bandwidth**2)
        return log_sum_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor | None, ...]:
        (slope_PL,) = ctx.saved_tensors
        return grad_P[:, None] * slope_PL, None, None, None
