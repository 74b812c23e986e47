"""Adaptive minimise distance (AMD), arXiv:2412.00864 eq. 9–10 and Algorithm 1, per sample.

Shapes: B batch, K samples still active, L latent, W slope window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from gfe_study.solvers.base import Result, full_like_batch
from gfe_study.solvers.descent import Ended, first_fields, rows_of
from gfe_study.solvers.line_search import Backtracking, Tested, history
from gfe_study.solvers.objective import Objective
from gfe_study.solvers.runge_kutta import EULER


@dataclass
class _Candidate(Tested):
    """What AMD tries next."""

    trial_step: Tensor
    """s_n, the step that m = 0 tries."""
    fraction: Tensor
    """β^m of the next candidate."""
    step: Tensor
    """min(β^m s_n, τ − t), the step of the next candidate."""


class AMD(Backtracking[_Candidate]):
    """Explicit Euler along −∇_z ℓ, each step the longest of s_n, β s_n, β² s_n, … that lowers the sample's loss.

    Per sample at step n: ŝ_n = max(κ s_{n−1}, s₀), s_n = min(ŝ_n, s_max); the smallest m = 0, 1, … with
    ℓ(z − β^m s_n g) < ℓ(z) − σ β^m s_n ‖g‖², g = ∇_z ℓ(z); δt = min(β^m s_n, τ − t); z ← z − δt g; t ← t + δt.
    The step that τ cuts short is the step that is tested, so every accepted step lowers the loss.

    One decoder evaluation per candidate and one pullback per accepted step: the gradient comes from the
    activations of the evaluation that accepted the point.

    Not an error-controlled ODE solver: it follows the flow only as far as that lowers the loss. A sample stops
    at t = τ, when no m ≤ `max_backtracks` lowers its loss, when its convergence curve has become flatter than
    `min_slope`, or after `max_nfe` evaluations.
    """

    colour = "#3f90da"
    example = {"s_max": 300, "max_nfe": 60, "tau": 200, "min_slope": 1e-5}
    ascending = ("s_initial", "s_max")

    s_initial: float = Field(1.0, gt=0)
    """s₀, the first step and the least that a step starts from."""
    s_max: float = Field(10.0, gt=0)
    """The longest step."""
    kappa: float = Field(1.1, ge=1)
    """κ, the factor by which the step grows from one step to the next."""
    sigma: float = Field(0.0, ge=0, lt=1)
    """σ, the Armijo constant: 0 is the papers' rule; the published code has 1e-5 · s_max."""
    tau: float = Field(1e4, gt=0)
    """End of the flow."""
    scale_update: Literal["accepted", "scale"] = "accepted"
    """What κ multiplies: the accepted step β^m s_n (the published code), or s_n itself (the text)."""

    scheme = EULER

    def _first(self, objective: Objective, start_BL: Tensor) -> _Candidate:
        first, steps = first_fields(objective, start_BL), full_like_batch(start_BL, self.s_initial)
        return _Candidate(
            **first,
            trial_step=steps,
            fraction=torch.ones_like(steps),
            step=steps.clamp(max=self.tau),
            past_loss=history(first["loss"], self.window),
        )

    def _round(self, objective: Objective, active: _Candidate, last: bool) -> Ended:
        candidate = torch.addcmul(active.latent, active.step[:, None], active.grad, value=-1)
        loss, pullback = objective.evaluate(candidate, rows_of(active, objective))
        active.promised = active.step * active.grad.square().sum(-1)
        accepted = self.lowers(loss, active.loss, active.promised)
        everyone = bool(accepted.all())

        def advance(new: Tensor | float, old: Tensor) -> Tensor:
            if everyone:
                return new if isinstance(new, Tensor) else torch.full_like(old, new)
            mask = accepted if old.dim() == 1 else accepted[:, None]
            return torch.where(mask, new, old)

        grad = active.grad
        if not last:
            if everyone:
                grad = pullback(None)
            elif len(index := accepted.nonzero().flatten()):
                grad = grad.index_copy(0, index, pullback(index))
        flat = self.flat(active, accepted, loss)
        time = active.time + active.step
        # What is left after so many sums is rounding: a step of that length could not lower a loss.
        time = torch.where(self.tau - time <= 4 * torch.finfo(time.dtype).eps * self.tau, self.tau, time)
        used = active.fraction * active.trial_step if self.scale_update == "accepted" else active.trial_step
        grown = (used * self.kappa).clamp_(self.s_initial, self.s_max)

        active.time = advance(time, active.time)
        active.length = advance(active.step, active.length)
        active.latent = advance(candidate, active.latent)
        active.grad = grad
        active.loss = advance(loss, active.loss)
        active.num_steps = active.num_steps + accepted
        active.fraction = advance(1.0, active.fraction * self.beta)
        active.trial_step = advance(grown, active.trial_step)
        left = self.tau - active.time
        least = self.beta ** (self.max_backtracks + 0.5)
        if not everyone:
            # Every step that τ cuts is the same candidate: it is not tried twice.
            cut = ~accepted & (active.trial_step * active.fraction >= left) & (active.fraction > least)
            while bool(cut.any()):
                active.fraction = torch.where(cut, active.fraction * self.beta, active.fraction)
                cut = cut & (active.trial_step * active.fraction >= left) & (active.fraction > least)
        active.step = torch.minimum(active.trial_step * active.fraction, left)
        return [
            (Result.SLOPE, flat),
            (Result.REACHED_TAU, active.time >= self.tau),
            (Result.NO_DESCENT, active.fraction <= least),
        ]
