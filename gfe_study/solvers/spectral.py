"""Spectral AMD: AMD's acceptance with the Barzilai–Borwein secant step as its trial step, per sample.

Shapes: B batch, K samples still active, L latent, M loss memory, W slope window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from gfe_study.solvers.base import Result, full_like_batch
from gfe_study.solvers.descent import Chosen, Ended, first_fields, rows_of
from gfe_study.solvers.line_search import Backtracking, Tested, history, remembered
from gfe_study.solvers.objective import Objective
from gfe_study.solvers.runge_kutta import EULER


@dataclass
class _Candidate(Tested):
    """What is tried next, and the best point so far; `past_loss` are the lowest losses up to each point."""

    step: Tensor
    """Length of the next candidate's step."""
    backtracks: Tensor
    """m of the next candidate."""
    allowed: Tensor
    """Losses of the last M accepted points, shape (K, M)."""
    best_loss: Tensor
    best_latent: Tensor
    best_time: Tensor
    best_steps: Tensor

    def end(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.best_latent, self.best_loss, self.best_time, self.best_steps


class SpectralAMD(Backtracking[_Candidate]):
    """Explicit Euler along −∇_z ℓ with Barzilai–Borwein steps, accepted by AMD's decrease test.

    Per sample: s = ⟨Δz, Δz⟩ / |⟨Δz, Δg⟩| of its last two points (Barzilai & Borwein 1988), clipped to
    [s_min, s_max]; the smallest m with ℓ(z − β^m s g) < max of its last `memory` losses − σ β^m s ‖g‖²
    (Grippo, Lampariello & Lucidi 1986; `memory: 1` is AMD's monotone test); the best point seen is returned. The
    secant step is the inverse of a curvature that the flow has just met, so that the flow's stiff directions
    are damped in turn instead of bounding every step: tens of evaluations where AMD needs a thousand.

    One decoder evaluation per candidate and one pullback per accepted step.
    """

    colour = "#e76300"
    example = {"s_initial": 10, "min_slope": 1e-5, "tau": 3e3, "max_nfe": 25}
    ascending = ("s_min", "s_initial", "s_max")

    beta: float = Field(0.25, gt=0, lt=1)
    """β, the factor by which a rejected step shrinks."""
    s_initial: float = Field(30.0, gt=0)
    """The first step, before there is a secant."""
    s_min: float = Field(1e-3, gt=0)
    """The shortest secant step."""
    s_max: float = Field(1e5, gt=0)
    """The longest secant step."""
    memory: int = Field(10, ge=1)
    """Losses that the decrease test looks back on; 1 accepts falls only."""
    sigma: float = Field(1e-4, ge=0, lt=1)
    """σ, the Armijo constant."""
    tau: float = Field(1e7, gt=0)
    """End of the flow."""
    min_slope: float = Field(1e-6, ge=0)
    """Stop where the lowest loss falls by less than this per accepted step, mean over the window; nats per value."""
    max_backtracks: int = Field(20, ge=0)
    """The largest m tried."""

    scheme = EULER

    def not_differentiable(self) -> str | None:
        if self.memory == 1:
            return None
        return (
            "accepts steps that raise the loss, far longer than the flow bears, so that a derivative through them "
            "explodes (solver.memory=1 does not)"
        )

    def _first(self, objective: Objective, start_BL: Tensor) -> _Candidate:
        first = first_fields(objective, start_BL)
        loss = first["loss"]
        return _Candidate(
            **first,
            step=full_like_batch(start_BL, min(self.s_initial, self.tau)),
            backtracks=torch.zeros_like(first["row"]),
            past_loss=history(loss, self.window),
            allowed=loss[:, None].repeat(1, self.memory),
            best_loss=loss,
            best_latent=first["latent"],
            best_time=first["time"],
            best_steps=first["num_steps"],
        )

    def _round(self, objective: Objective, active: _Candidate, last: bool) -> Ended:
        step = active.step
        candidate = torch.addcmul(active.latent, step[:, None], active.grad, value=-1)
        loss, pullback = objective.evaluate(candidate, rows_of(active, objective))
        active.promised = step * active.grad.square().sum(1)
        accepted = self.lowers(loss, active.allowed.amax(1), active.promised)
        flat = torch.zeros_like(accepted)
        active.backtracks = (active.backtracks + 1).masked_fill_(accepted, 0)
        active.step = step * self.beta
        if chosen := Chosen(accepted):
            if not last:
                grad = pullback(chosen.index)
                secant = self._secant(chosen.take(step), chosen.take(active.grad), grad)
                active.step = chosen.put(active.step, secant)
                active.grad = chosen.put(active.grad, grad)
            active.latent = chosen.put(active.latent, chosen.take(candidate))
            active.loss = chosen.put(active.loss, chosen.take(loss))
            active.time = active.time + step * accepted
            active.length = chosen.put(active.length, chosen.take(step))
            active.num_steps = active.num_steps + accepted
            flat = self._note(active, accepted)
        active.step = torch.minimum(active.step, self.tau - active.time)
        return [
            (Result.SLOPE, flat),
            (Result.REACHED_TAU, active.time >= self.tau),
            (Result.NO_DESCENT, active.backtracks > self.max_backtracks),
        ]

    def _secant(self, step_K: Tensor, old_KL: Tensor, new_KL: Tensor) -> Tensor:
        """⟨Δz, Δz⟩ / |⟨Δz, Δg⟩| where Δz = −s g: s ⟨g, g⟩ / |⟨g, Δg⟩|, clipped; no curvature asks for `s_max`."""
        curvature = (old_KL * (new_KL - old_KL)).sum(1).abs_()
        secant = step_K * old_KL.square().sum(1) / curvature
        return secant.nan_to_num_(self.s_max).clamp_(self.s_min, self.s_max)

    def _note(self, active: _Candidate, accepted: Tensor) -> Tensor:
        """Remember accepted points, and return whether the best has become flat."""
        improved = active.loss < active.best_loss
        active.best_latent = torch.where(improved[:, None], active.latent, active.best_latent)
        active.best_loss = torch.where(improved, active.loss, active.best_loss)
        active.best_time = torch.where(improved, active.time, active.best_time)
        active.best_steps = torch.where(improved, active.num_steps, active.best_steps)
        active.allowed = remembered(active.allowed, active.loss, accepted)
        return self.flat(active, accepted, active.best_loss)
