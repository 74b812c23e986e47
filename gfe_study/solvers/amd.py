"""Adaptive minimise distance (AMD), arXiv:2412.00864 eq. 9–10 and Algorithm 1, per sample.

Shapes: B batch, K samples still active, L latent, W slope window.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from gfe_study.solvers.base import Result, Solution, Solver, StepObserver, check_start, full_like_batch
from gfe_study.solvers.fields import Flow, GradientFlow
from gfe_study.solvers.objective import Objective

if TYPE_CHECKING:
    from gfe_study.config import Trial


@dataclass
class _Active:
    """Everything that is per sample, for the samples still on their way; a row is a sample."""

    row: Tensor
    latent: Tensor
    grad: Tensor
    loss: Tensor
    time: Tensor
    trial_step: Tensor
    """s_n, the step that m = 0 tries."""
    fraction: Tensor
    """β^m of the next candidate."""
    step: Tensor
    """min(β^m s_n, τ − t), the step of the next candidate."""
    num_steps: Tensor
    past_loss: Tensor
    """Ring of the losses of the last W accepted points, shape (K, W)."""

    def keep(self, kept: Tensor) -> _Active:
        return _Active(*(getattr(self, field.name)[kept] for field in fields(self)))


class AMD(Solver):
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

    name: Literal["amd"] = "amd"
    beta: float = Field(0.75, gt=0, lt=1)
    """β, the factor by which a rejected step shrinks."""
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
    min_slope: float = Field(1e-6, ge=0)
    """Stop where the loss falls by less than this per accepted step, mean over the window; nats per pixel."""
    window: int = Field(5, ge=1)
    """Accepted steps over which that slope is taken."""
    max_backtracks: int = Field(40, ge=0)
    """The largest m tried."""
    max_nfe: int = Field(10_000, gt=0)
    """Decoder evaluations per sample after which it stops wherever it is."""
    scale_update: Literal["accepted", "scale"] = "accepted"
    """What κ multiplies: the accepted step β^m s_n (the published code), or s_n itself (the text)."""

    implies = {"flow.alpha": "constant"}

    @model_validator(mode="after")
    def _steps_are_ordered(self) -> Self:
        if self.s_initial > self.s_max:
            raise ValueError(f"s_initial ({self.s_initial:g}) exceeds s_max ({self.s_max:g})")
        return self

    def check_trial(self, trial: Trial) -> None:
        self._check_flow(trial.flow)

    def _check_flow(self, flow: Flow) -> None:
        if not isinstance(flow, GradientFlow):
            raise ValueError(
                f"solver.name: amd cannot follow flow.name={flow.name}: its test needs a descent direction and "
                "momentum is none; allowed: flow.name=gradient, or solver.name=rk4"
            )
        if flow.alpha != "constant":
            raise ValueError(
                f"flow.alpha: given {flow.alpha!r} with solver.name=amd, which chooses its steps itself; "
                "allowed: constant"
            )

    @torch.no_grad()
    def solve(
        self, flow: Flow, objective: Objective, start_BL: Tensor, observe: StepObserver | None = None
    ) -> Solution:
        self._check_flow(flow)
        check_start(start_BL)
        solution = _blank(objective, start_BL)
        active = self._first(objective, start_BL)
        finite = active.loss.isfinite() & active.grad.isfinite().all(-1)
        active = _retire(active, ~finite, Result.NONFINITE, solution)
        for _ in range(self.max_nfe - 1):
            if not len(active.row):
                return solution
            slope = self._round(objective, active)
            if observe is not None:
                observe({field.name: getattr(active, field.name).clone() for field in fields(active)})
            at_end = active.time >= self.tau
            stuck = active.fraction < self.beta ** (self.max_backtracks + 0.5)
            ended = at_end | stuck | (slope < self.min_slope)
            if bool(ended.any()):
                code = torch.where(at_end, int(Result.REACHED_TAU), int(Result.SLOPE))
                active = _retire(active, ended, code.masked_fill(stuck, Result.NO_DESCENT), solution)
        _retire(active, torch.ones_like(active.row, dtype=torch.bool), Result.MAX_NFE, solution)
        return solution

    def _first(self, objective: Objective, start_BL: Tensor) -> _Active:
        loss, pullback = objective.evaluate(start_BL)
        steps = full_like_batch(start_BL, self.s_initial)
        return _Active(
            row=torch.arange(len(start_BL), device=start_BL.device),
            latent=start_BL.clone(),
            grad=pullback(None),
            loss=loss,
            time=torch.zeros_like(steps),
            trial_step=steps,
            fraction=torch.ones_like(steps),
            step=steps.clamp(max=self.tau),
            num_steps=torch.zeros_like(objective.nfe_forward_B),
            past_loss=torch.full((len(loss), self.window), torch.inf, dtype=loss.dtype, device=loss.device),
        )

    def _round(self, objective: Objective, active: _Active) -> Tensor:
        """Try one candidate for every active sample and advance, in place, those whose loss it lowers.

        Returns the slope of each sample's convergence curve, infinite where no step was accepted.
        """
        candidate = torch.addcmul(active.latent, active.step[:, None], active.grad, value=-1)
        rows = None if len(active.row) == len(objective.target_BD) else active.row
        loss, pullback = objective.evaluate(candidate, rows)
        bound = active.loss
        if self.sigma:
            bound = bound - self.sigma * active.step * active.grad.square().sum(-1)
        accepted = loss < bound
        everyone = bool(accepted.all())

        def advance(new: Tensor | float, old: Tensor) -> Tensor:
            if everyone:
                return new if isinstance(new, Tensor) else torch.full_like(old, new)
            mask = accepted if old.dim() == 1 else accepted[:, None]
            return torch.where(mask, new, old)

        grad = active.grad
        if everyone:
            grad = pullback(None)
        elif len(index := accepted.nonzero().flatten()):
            grad = grad.index_copy(0, index, pullback(index))
        slope = advance(self._slope(active, loss), full_like_batch(candidate, torch.inf))
        time = active.time + active.step
        # What is left after so many sums is rounding: a step of that length could not lower a loss.
        time = torch.where(self.tau - time <= 4 * torch.finfo(time.dtype).eps * self.tau, self.tau, time)
        used = active.fraction * active.trial_step if self.scale_update == "accepted" else active.trial_step
        grown = (used * self.kappa).clamp_(self.s_initial, self.s_max)

        active.time = advance(time, active.time)
        active.latent = advance(candidate, active.latent)
        active.grad = grad
        active.loss = advance(loss, active.loss)
        active.num_steps = active.num_steps + accepted
        active.fraction = advance(1.0, active.fraction * self.beta)
        active.trial_step = advance(grown, active.trial_step)
        left = self.tau - active.time
        if not everyone:
            # Every step that τ cuts is the same candidate: it is not tried twice.
            while bool((same := ~accepted & (active.trial_step * active.fraction >= left)).any()):
                active.fraction = torch.where(same, active.fraction * self.beta, active.fraction)
        active.step = torch.minimum(active.trial_step * active.fraction, left)
        return slope

    def _slope(self, active: _Active, loss: Tensor) -> Tensor:
        """Fall of the loss per accepted step over the last W, if this step is accepted. Writes the ring.

        A rejected sample writes the same loss to the same place when it is next asked.
        """
        active.past_loss.scatter_(1, (active.num_steps % self.window)[:, None], active.loss[:, None])
        oldest = active.past_loss.gather(1, ((active.num_steps + 1) % self.window)[:, None])[:, 0]
        return (oldest - loss) / self.window


def _blank(objective: Objective, start_BL: Tensor) -> Solution:
    return Solution(
        latent_BL=torch.empty_like(start_BL),
        loss_B=torch.empty_like(start_BL[:, 0]),
        time_B=torch.empty_like(start_BL[:, 0]),
        result_B=torch.empty_like(objective.nfe_forward_B),
        num_steps_B=torch.empty_like(objective.nfe_forward_B),
        nfe_forward_B=objective.nfe_forward_B,
        nfe_backward_B=objective.nfe_backward_B,
    )


def _retire(active: _Active, ended: Tensor, code: Tensor | int, solution: Solution) -> _Active:
    """Write the samples that ended into the solution, and return the others."""
    if not bool(ended.any()):
        return active
    row = active.row[ended]
    solution.latent_BL[row] = active.latent[ended]
    solution.loss_B[row] = active.loss[ended]
    solution.time_B[row] = active.time[ended]
    solution.result_B[row] = code[ended] if isinstance(code, Tensor) else code
    solution.num_steps_B[row] = active.num_steps[ended]
    return active.keep((~ended).nonzero().flatten())
