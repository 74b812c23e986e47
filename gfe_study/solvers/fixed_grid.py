"""Solvers on a fixed grid of flow times.

Shapes: B batch, L latent, S solver state, N nodes.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Self

import torch
from pydantic import Field
from torch import Tensor

from gfe_study.solvers import runge_kutta
from gfe_study.solvers.base import Result, Solution, Solver, StepObserver, check_start, full_like_batch
from gfe_study.solvers.fields import Flow
from gfe_study.solvers.objective import Objective
from gfe_study.solvers.runge_kutta import Path, Time


def logarithmic_grid(tau: float, slices: int, base: float = 4.0) -> list[float]:
    """t_i = τ (b^{i/(N−1)} − 1)/(b − 1), i = 0 … N−1: finest at the start, where the flow is fastest.

    Base 1 is its limit, the uniform grid t_i = τ i/(N − 1).
    """
    if base == 1:
        times = [tau * i / (slices - 1) for i in range(slices)]
    else:
        rate = math.log(base)
        times = [tau * math.expm1(rate * i / (slices - 1)) / math.expm1(rate) for i in range(slices)]
    return [0.0, *times[1:-1], tau]


class FixedGrid(Solver):
    """An explicit Runge–Kutta scheme on the fixed logarithmic grid, the same for every sample; no step control."""

    tau: float = Field(1000.0, gt=0)
    """End of the flow, in units of time per (nat per value)."""
    slices: int = Field(50, ge=2)
    """Grid times t_0 … t_{N−1}, the papers' N; N − 1 steps."""
    train_slices: int | None = Field(None, ge=2)
    """The same for a training batch; None: `slices`."""
    base: float = Field(4.0, ge=1)
    """Base b of the logarithmic grid: its last step is about b times its first; 1 is the uniform grid."""

    def for_training(self, *, resumed: bool) -> Self:
        return self if self.train_slices is None else self.model_copy(update={"slices": self.train_slices})

    def for_encoding(self) -> Self:
        return self.model_copy(update={"train_slices": None})

    def step(self, flow: Flow, objective: Objective, t0: float, t1: float, state_BS: Tensor) -> Tensor:
        """The state at t1, from the state at t0."""
        assert self.scheme is not None

        def rate(t: Time, state: Tensor) -> Tensor:
            return flow.derivative(objective, t, self.tau, state)

        return self.scheme.step(rate, t0, t1 - t0, state_BS)

    @torch.no_grad()
    def solve(
        self, flow: Flow, objective: Objective, start_BL: Tensor, observe: StepObserver = None, keep_path: bool = False
    ) -> Solution:
        check_start(start_BL)
        times = logarithmic_grid(self.tau, self.slices, self.base)
        state_BS = flow.lift(start_BL)
        states = [state_BS]
        for t0, t1 in pairwise(times):
            state_BS = self.step(flow, objective, t0, t1, state_BS)
            if keep_path:
                states.append(state_BS)
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
            path=self._path(flow, times, states) if keep_path else None,
        )

    def _path(self, flow: Flow, times: list[float], states: list[Tensor]) -> Path:
        assert self.scheme is not None
        state_NBS = torch.stack(states)
        time_N = torch.tensor(times, dtype=state_NBS.dtype, device=state_NBS.device)
        time_NB = time_N[:, None].expand(-1, state_NBS.shape[1])
        return Path(flow, self.scheme, self.tau, time_NB, time_NB.diff(dim=0), state_NBS)


class Euler(FixedGrid):
    """Explicit Euler on the fixed logarithmic grid. Order 1; one gradient per step.

    Stable where h < 2 / λ, λ the largest curvature of ℓ times α: the papers' stiffness of section 3.3.
    """

    colour = "#a96b59"
    example = {"tau": 20, "slices": 12}

    scheme = runge_kutta.EULER


class RK4(FixedGrid):
    """Classical Runge–Kutta on the fixed logarithmic grid. Order 4; four gradients per step."""

    colour = "#bd1f01"
    example = {"tau": 20, "slices": 12}

    scheme = runge_kutta.RK4
