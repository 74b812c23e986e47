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
    """
    sums_P: Tensor = _LogKernelSum.apply(point_PL, centre_ML.detach(), bandwidth, own_P)
    dimensions = point_PL.shape[1]
    counted: float | Tensor = float(len(centre_ML))
    if own_P is not None:
        counted = (len(centre_ML) - (own_P >= 0).to(point_PL.dtype)).log()
    else:
        counted = math.log(counted)
    return sums_P - counted - dimensions / 2 * math.log(2 * math.pi * bandwidth**2)


def blocks(points: int, centres: int) -> Iterator[slice]:
    """Slices of the points, each of at most `BLOCK` pairs."""
    size = max(1, BLOCK // max(1, centres))
    for start in range(0, points, size):
        yield slice(start, min(start + size, points))


def squared_distances(point_PL: Tensor, centre_ML: Tensor) -> Tensor:
    """‖z − z_i‖², shape (P, M)."""
    middle_L = centre_ML.mean(0)  # far from the origin, the expanded square would lose its digits
    point_PL, centre_ML = point_PL - middle_L, centre_ML - middle_L
    norms_PM = point_PL.square().sum(1, keepdim=True) + centre_ML.square().sum(1)
    return torch.addmm(norms_PM, point_PL, centre_ML.t(), alpha=-2.0).clamp_(min=0.0)


def kernel_weights(squared_PM: Tensor, bandwidth: float, own_P: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """log Σ_i exp(−d_i²/2h²), shape (P,), and the shares w_i of that sum, shape (P, M)."""
    exponent_PM = squared_PM / (-2 * bandwidth**2)
    if own_P is not None:
        rows = (own_P >= 0).nonzero().flatten()
        exponent_PM[rows, own_P[rows]] = -torch.inf
    top_P1 = exponent_PM.amax(1, keepdim=True)
    weight_PM = exponent_PM.sub_(top_P1).clamp_(min=NEGLIGIBLE).exp_()
    total_P1 = weight_PM.sum(1, keepdim=True)
    return (top_P1 + total_P1.log()).squeeze(1), weight_PM.div_(total_P1)


class _LogKernelSum(torch.autograd.Function):
    """log Σ_i exp(−‖z − z_i‖²/2h²), with its gradient found on the way: no pair outlives its block."""

    @staticmethod
    def forward(ctx: Any, point_PL: Tensor, centre_ML: Tensor, bandwidth: float, own_P: Tensor | None) -> Tensor:
        log_sum_P = point_PL.new_empty(len(point_PL))
        slope_PL = torch.empty_like(point_PL) if ctx.needs_input_grad[0] else None
        for rows in blocks(len(point_PL), len(centre_ML)):
            squared = squared_distances(point_PL[rows], centre_ML)
            log_sum_P[rows], weight = kernel_weights(squared, bandwidth, None if own_P is None else own_P[rows])
            if slope_PL is not None:
                slope_PL[rows] = (weight @ centre_ML - point_PL[rows]) / bandwidth**2
        if slope_PL is not None:
            ctx.save_for_backward(slope_PL)
        return log_sum_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor | None, ...]:
        (slope_PL,) = ctx.saved_tensors
        return grad_P[:, None] * slope_PL, None, None, None
