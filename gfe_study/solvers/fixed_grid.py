"""Solvers on a fixed grid of flow times.

Shapes: B batch, L latent, S solver state.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from gfe_study.solvers.base import Result, Solution, Solver, StepObserver, check_start, full_like_batch
from gfe_study.solvers.fields import Flow
from gfe_study.solvers.objective import Objective


def logarithmic_grid(tau: float, slices: int, base: float = 4.0) -> list[float]:
    """t_i = τ (b^{i/(N−1)} − 1)/(b − 1), i = 0 … N−1: finest at the start, where the flow is fastest."""
    times = [tau * (base ** (i / (slices - 1)) - 1) / (base - 1) for i in range(slices)]
    return [0.0, *times[1:-1], tau]


class RK4(Solver):
    """Classical Runge–Kutta on the fixed logarithmic grid. Order 4; four gradients per step; no step control."""

    name: Literal["rk4"] = "rk4"
    tau: float = Field(1000.0, gt=0)
    """End of the flow, in units of time per (nat per pixel)."""
    slices: int = Field(50, ge=2)
    """Grid times t_0 … t_{N−1}, the papers' N; N − 1 steps."""
    base: float = Field(4.0, gt=1)
    """Base b of the logarithmic grid: its last step is about b times its first."""

    def step(self, flow: Flow, objective: Objective, t0: float, t1: float, state_BS: Tensor) -> Tensor:
        """The state at t1, from the state at t0."""
        h, middle = t1 - t0, (t0 + t1) / 2

        def slope(t: float, state: Tensor) -> Tensor:
            return flow.derivative(objective, t, self.tau, state)

        k1 = slope(t0, state_BS)
        k2 = slope(middle, state_BS + h / 2 * k1)
        k3 = slope(middle, state_BS + h / 2 * k2)
        k4 = slope(t1, state_BS + h * k3)
        return state_BS + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    @torch.no_grad()
    def solve(
        self, flow: Flow, objective: Objective, start_BL: Tensor, observe: StepObserver | None = None
    ) -> Solution:
        check_start(start_BL)
        times = logarithmic_grid(self.tau, self.slices, self.base)
        state_BS = flow.lift(start_BL)
        for t0, t1 in pairwise(times):
            state_BS = self.step(flow, objective, t0, t1, state_BS)
            if observe is not None:
                observe({"latent": flow.latent(state_BS), "time": full_like_batch(start_BL, t1)})
        latent_BL = flow.latent(state_BS).contiguous()
        loss_B, _ = objective.evaluate(latent_BL)
        reached_B = torch.full_like(objective.nfe_forward_B, Result.REACHED_TAU)
        return Solution(
            latent_BL=latent_BL,
            loss_B=loss_B,
            time_B=full_like_batch(start_BL, self.tau),
            result_B=reached_B.masked_fill(~loss_B.isfinite(), Result.NONFINITE),
            num_steps_B=torch.full_like(reached_B, len(times) - 1),
            nfe_forward_B=objective.nfe_forward_B,
            nfe_backward_B=objective.nfe_backward_B,
        )
