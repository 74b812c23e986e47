"""Gauss–Newton with Levenberg–Marquardt damping, per sample: latents are small, so the normal equations are tiny.

Shapes: B batch, K samples still active, L latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from gfe_study.solvers.base import Result
from gfe_study.solvers.descent import Active, DescentSolver, Ended, fields_at, rows_of
from gfe_study.solvers.objective import Objective

if TYPE_CHECKING:
    from gfe_study.config import Trial


@dataclass
class _Candidate(Active):
    normal: Tensor
    """Jᵀ diag(∂²ℓ/∂D²) J at the latent, shape (K, L, L)."""
    damping: Tensor
    """μ, as a share of the mean of the normal matrix's diagonal."""
    growth: Tensor
    """The factor by which μ grows when the next candidate is rejected."""


class GaussNewton(DescentSolver[_Candidate]):
    """Minimises ℓ by (JᵀWJ + μ I) Δz = −∇_z ℓ, W = diag(∂²ℓ/∂D²), J = ∂D/∂z; it follows no flow.

    A step is accepted if it lowers the sample's loss. μ follows the ratio of the fall to the fall that the
    quadratic model promised (Nielsen 1999; Madsen, Nielsen & Tingleff 2004, algorithm 3.16), and is relative to
    the mean curvature, so that a mean over values needs no other constants than a sum.

    1 + L decoder evaluations per candidate: the tangents are evaluations too, and are counted so. They go
    through the matrix products together, so that a candidate costs less than that many evaluations in seconds.
    """

    colour = "#717581"
    example = {"max_nfe": 40}

    damping: float = Field(1e-2, gt=0)
    """μ at the start, as a share of the mean curvature."""
    min_slope: float = Field(1e-6, ge=0)
    """Stop where an accepted step lowers the loss by less than this; nats per value."""
    max_damping: float = Field(1e8, gt=0)
    """Stop where μ has grown beyond this: no step lowers the loss."""
    max_nfe: int = Field(1000, gt=0)
    """Decoder evaluations per sample, tangents included, after which it stops wherever it is."""

    refused = "it minimises the loss and follows no flow"

    def check_trial(self, trial: Trial) -> None:
        super().check_trial(trial)
        least = 2 * (1 + trial.model.latent_dim)
        for name in ("max_nfe", "train_max_nfe", "resume_max_nfe"):
            given = getattr(self, name)
            if given is not None and given < least:
                raise ValueError(
                    f"solver.{name}: given {given} with solver.name=gauss_newton, whose first step takes {least} "
                    f"evaluations of {trial.model.latent_dim} latents; allowed: {least} or more"
                )

    def _first(self, objective: Objective, start_BL: Tensor) -> _Candidate:
        loss, grad, normal = objective.normal_equations(start_BL)
        return _Candidate(
            **fields_at(start_BL, loss, grad),
            normal=normal,
            damping=torch.full_like(loss, self.damping),
            growth=torch.full_like(loss, 2.0),
        )

    def _round(self, objective: Objective, active: _Candidate, last: bool) -> Ended:
        scale = active.normal.diagonal(dim1=1, dim2=2).mean(1)
        # A decoder that ignores its latent has no curvature at all; the step is then zero, and refused.
        shift = active.damping * scale + torch.finfo(scale.dtype).tiny
        damped = active.normal + torch.diag_embed(shift[:, None].expand_as(active.grad))
        factor, failed = torch.linalg.cholesky_ex(damped)
        step = -torch.cholesky_solve(active.grad[..., None], factor)[..., 0].masked_fill((failed > 0)[:, None], 0.0)
        active.promised = (step * (shift[:, None] * step - active.grad)).sum(1) / 2
        loss, grad, normal = objective.normal_equations(active.latent + step, rows_of(active, objective))
        fall = active.loss - loss
        accepted = fall > 0
        ratio = fall / active.promised
        shrink = (1 - (2 * ratio - 1) ** 3).clamp(min=1 / 3, max=2.0)
        active.damping = active.damping * torch.where(accepted, shrink, active.growth)
        active.growth = torch.where(accepted, 2.0, active.growth * 2)
        column = accepted[:, None]
        active.latent = torch.where(column, active.latent + step, active.latent)
        active.grad = torch.where(column, grad, active.grad)
        active.normal = torch.where(column[..., None], normal, active.normal)
        active.loss = torch.where(accepted, loss, active.loss)
        active.num_steps = active.num_steps + accepted
        return [
            (Result.SLOPE, accepted & (fall < self.min_slope)),
            (Result.NO_DESCENT, active.damping > self.max_damping),
            (Result.MAX_NFE, objective.nfe_forward_B[active.row] + 1 + active.latent.shape[1] > self.max_nfe),
        ]
