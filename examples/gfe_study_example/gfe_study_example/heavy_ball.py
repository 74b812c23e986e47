"""Gradient descent with momentum, for a fixed number of steps.

Shapes: B batch, L latent.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gfe_study.solvers.base import Result, Solution, Solver, StepObserver, check_start
from gfe_study.solvers.fields import Flow
from gfe_study.solvers.objective import Objective


class HeavyBall(Solver):
    """z ← z + v, v ← μ v − s ∇_z ℓ (Polyak 1964); the best point on the way is the latent. It follows no flow."""

    colour = "#832db6"
    example = {"steps": 10}

    steps: int = Field(30, gt=0)
    step_size: float = Field(1.0, gt=0)
    """s."""
    momentum: float = Field(0.8, ge=0, lt=1)
    """μ."""

    def solve(
        self, flow: Flow, objective: Objective, start_BL: Tensor, observe: StepObserver = None, keep_path: bool = False
    ) -> Solution:
        check_start(start_BL)
        latent_BL, velocity_BL = start_BL, torch.zeros_like(start_BL)
        best_BL, (best_B, pullback) = latent_BL, objective.evaluate(latent_BL)
        finite_B = best_B.isfinite()
        for step in range(self.steps):
            velocity_BL = self.momentum * velocity_BL - self.step_size * pullback(None)
            latent_BL = latent_BL + velocity_BL
            loss_B, pullback = objective.evaluate(latent_BL)
            better_B = loss_B < best_B  # never where either is NaN
            best_B = torch.where(better_B, loss_B, best_B)
            best_BL = torch.where(better_B[:, None], latent_BL, best_BL)
            if observe is not None:
                observe({"latent": best_BL, "time": torch.full_like(best_B, (step + 1) * self.step_size)})
        ended = torch.full_like(best_B, Result.MAX_NFE, dtype=torch.long)
        return Solution(
            latent_BL=best_BL,
            loss_B=best_B,
            time_B=torch.full_like(best_B, self.steps * self.step_size),
            result_B=ended.masked_fill(~finite_B, Result.NONFINITE),
            num_steps_B=torch.full_like(ended, self.steps),
            nfe_forward_B=objective.nfe_forward_B,
            nfe_backward_B=objective.nfe_backward_B,
        )
