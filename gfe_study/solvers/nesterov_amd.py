"""Accelerated AMD: Nesterov's extrapolation with AMD's step selection, per sample.

Shapes: B batch, K samples still active, L latent, W slope window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from gfe_study.solvers.base import Result, full_like_batch
from gfe_study.solvers.descent import Ended, first_fields, rows_of
from gfe_study.solvers.line_search import Backtracking, Tested, history
from gfe_study.solvers.objective import Objective


@dataclass
class _Candidate(Tested):
    """`latent` and `loss` are the last accepted point's; `grad` is the gradient at `origin`."""

    origin: Tensor
    """The extrapolated point y from which steps are tried, shape (K, L)."""
    origin_loss: Tensor
    testing: Tensor
    """Whether the next evaluation is a candidate; else it is the extrapolated point itself."""
    momentum: Tensor
    """k, accepted steps since the last restart."""
    trial_step: Tensor
    backtracks: Tensor


class NesterovAMD(Backtracking[_Candidate]):
    """y = z + k/(k + 3) (z − z_previous); z ← y − β^m s ∇ℓ(y) with AMD's smallest m; restart where ℓ would rise.

    Momentum alone is no descent direction, so a decrease cannot be asked of it. What is asked here: the
    gradient step must lower the loss below that at y (AMD's test, at y); and the point that it reaches must lie
    below the last accepted one. Where it does not, the momentum is dropped (k = 0, y = z), from where AMD's
    test is a descent from z itself. Accepted points descend strictly, as AMD's do; between restarts they are
    the accelerated method of Nesterov (1983), whose limit is the second-order flow of eq. 7–8; restarts are
    the function scheme of O'Donoghue & Candès (2015).

    Two decoder evaluations (the extrapolated point, the candidate) and one pullback per accepted step.
    """

    colour = "#92dadd"
    example = {"s_max": 300, "max_nfe": 60, "min_slope": 1e-5}
    ascending = ("s_initial", "s_max")

    s_initial: float = Field(1.0, gt=0)
    """s₀, the first step and the least that a step starts from."""
    s_max: float = Field(1e4, gt=0)
    """The longest step."""
    kappa: float = Field(1.5, ge=1)
    """κ, the factor by which the step grows from one accepted step to the next."""
    sigma: float = Field(0.0, ge=0, lt=1)
    """σ, the Armijo constant of the test at y."""

    refused = "its momentum is its own, on top of the first-order flow"

    def _first(self, objective: Objective, start_BL: Tensor) -> _Candidate:
        first = first_fields(objective, start_BL)
        loss = first["loss"]
        return _Candidate(
            **first,
            origin=first["latent"],
            origin_loss=loss,
            testing=torch.ones_like(loss, dtype=torch.bool),
            momentum=torch.zeros_like(loss),
            trial_step=full_like_batch(start_BL, self.s_initial),
            backtracks=torch.zeros_like(first["row"]),
            past_loss=history(loss, self.window),
        )

    def _round(self, objective: Objective, active: _Candidate, last: bool) -> Ended:
        testing, step = active.testing, active.trial_step * self.beta ** active.backtracks.to(active.trial_step.dtype)
        point = active.origin - (step * testing)[:, None] * active.grad
        loss, pullback = objective.evaluate(point, rows_of(active, objective))
        active.promised = step * active.grad.square().sum(1)
        descends = testing & self.lowers(loss, active.origin_loss, active.promised)
        accepted = descends & (loss < active.loss)
        # The step is right for y, but it does not make up for the momentum; nor can one from a y of no finite loss.
        bad_origin = ~testing & ~loss.isfinite()
        restarted = (descends & ~accepted) | bad_origin

        momentum = torch.where(accepted, active.momentum + 1, active.momentum).masked_fill_(restarted, 0.0)
        ahead = (momentum / (momentum + 3))[:, None] * (point - active.latent)
        base = torch.where(accepted[:, None], point, active.latent)
        origin = torch.where(accepted[:, None], base + ahead, active.origin)
        origin = torch.where(restarted[:, None], active.latent, origin)
        flat = self.flat(active, accepted, loss)
        grown = (step * self.kappa).clamp(self.s_initial, self.s_max)
        if not last and len(arrived := (~testing & ~bad_origin).nonzero().flatten()):
            active.grad = active.grad.index_copy(0, arrived, pullback(arrived))
        active.origin_loss = torch.where(testing, active.origin_loss, loss)
        active.time = active.time + step * accepted
        active.latent, active.origin, active.momentum = base, origin, momentum
        active.num_steps = active.num_steps + accepted
        active.loss = torch.where(accepted, loss, active.loss)
        active.trial_step = torch.where(accepted, grown, torch.where(restarted & testing, step, active.trial_step))
        active.backtracks = torch.where(testing & ~descends, active.backtracks + 1, 0)
        active.testing = ~(accepted | restarted)
        return [
            (Result.SLOPE, flat),
            (Result.NO_DESCENT, active.backtracks > self.max_backtracks),
        ]
