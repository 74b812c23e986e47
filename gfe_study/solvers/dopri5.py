"""torchdiffeq's adaptive Dormand–Prince solver, every sample on its own.

Shapes: B batch, L latent, S solver state, N nodes.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torchdiffeq import odeint

from gfe_study.solvers import runge_kutta
from gfe_study.solvers.base import Result, Solution, Solver, StepObserver, check_start
from gfe_study.solvers.fields import Flow
from gfe_study.solvers.objective import Objective
from gfe_study.solvers.runge_kutta import Path


class _Capped(Exception):
    """The next evaluation would pass `max_nfe`."""


class Dopri5(Solver):
    """Dormand–Prince 5(4) with error control, arXiv:2412.00864 section 3.3's stiff comparator, by torchdiffeq.

    torchdiffeq has one step size for all that it integrates, so each sample is integrated alone: its step, and
    therefore its result, does not depend on its batch. That makes it slow. An explicit solver's step is bounded by
    the flow's stiffest direction (h < about 3.3 / λ), so that stiff flows end at `max_nfe`; such a sample keeps the
    last state that was accepted.
    """

    colour = "#b9ac70"
    example = {"tau": 6, "max_nfe": 40}

    tau: float = Field(1000.0, gt=0)
    """End of the flow, in units of time per (nat per value)."""
    rtol: float = Field(1e-4, gt=0)
    """Relative tolerance of a step."""
    atol: float = Field(1e-5, gt=0)
    """Absolute tolerance of a step."""
    max_nfe: int = Field(2000, ge=16)
    """Decoder evaluations per sample after which it stops wherever it is."""

    scheme = runge_kutta.DOPRI5

    @torch.no_grad()
    def solve(
        self, flow: Flow, objective: Objective, start_BL: Tensor, observe: StepObserver = None, keep_path: bool = False
    ) -> Solution:
        check_start(start_BL)
        walks = [_Walk(self, flow, objective, row, start_BL, observe) for row in range(len(start_BL))]
        results = [walk.run() for walk in walks]
        latent_BL = flow.latent(torch.cat([walk.states[-1] for walk in walks])).contiguous()
        loss_B, _ = objective.evaluate(latent_BL)
        result_B = torch.tensor(results, device=start_BL.device)
        return Solution(
            latent_BL=latent_BL,
            loss_B=loss_B,
            time_B=start_BL.new_tensor([walk.times[-1] for walk in walks]),
            result_B=result_B.masked_fill(~loss_B.isfinite(), Result.NONFINITE),
            num_steps_B=torch.tensor([len(walk.times) - 1 for walk in walks], device=start_BL.device),
            nfe_forward_B=objective.nfe_forward_B,
            nfe_backward_B=objective.nfe_backward_B,
            path=_path(self, flow, walks) if keep_path else None,
        )


class _Walk:
    """One sample's integration: the right-hand side that torchdiffeq calls, and the states that it accepted."""

    def __init__(
        self, solver: Dopri5, flow: Flow, objective: Objective, row: int, start_BL: Tensor, observe: StepObserver
    ) -> None:
        self.solver = solver
        self.flow = flow
        self.objective = objective
        self.rows = torch.tensor([row], device=start_BL.device)
        self.observe = observe
        self.nfe = 0
        self.times = [0.0]
        self.states = [flow.lift(start_BL[row : row + 1])]

    def run(self) -> Result:
        """Integrate to τ, or as far as it goes."""
        end = torch.tensor([0.0, self.solver.tau], dtype=torch.float64, device=self.rows.device)
        try:
            reached = odeint(
                self,
                self.states[0],
                end,
                rtol=self.solver.rtol,
                atol=self.solver.atol,
                method="dopri5",
                options={"step_t": end[1:]},  # ends a step there, where it would be interpolated
            )
        except _Capped:
            return Result.MAX_NFE
        except AssertionError as error:  # what torchdiffeq raises where it cannot go on
            return Result.UNDERFLOW if "underflow" in str(error) else Result.NONFINITE
        self._accept(self.solver.tau, reached[-1])
        return Result.REACHED_TAU

    def __call__(self, t: Tensor, state_1S: Tensor) -> Tensor:
        # The loss at the end is one evaluation more.
        if self.nfe + 1 >= self.solver.max_nfe:
            raise _Capped
        self.nfe += 1
        return self.flow.derivative(self, float(t), self.solver.tau, state_1S)

    def gradient(self, latent_1L: Tensor) -> Tensor:
        """∇_z ℓ of this sample."""
        _, pullback = self.objective.evaluate(latent_1L, self.rows)
        return pullback(None)

    def callback_step(self, t0: Tensor, state_1S: Tensor, step: Tensor) -> None:
        """torchdiffeq is about to try a step from a state that it has accepted."""
        self._accept(float(t0), state_1S)

    def _accept(self, t: float, state_1S: Tensor) -> None:
        if t <= self.times[-1]:
            return
        self.times.append(t)
        self.states.append(state_1S)
        if self.observe is not None:
            self.observe({"row": self.rows, "latent": self.flow.latent(state_1S), "time": state_1S.new_tensor([t])})


def _path(solver: Dopri5, flow: Flow, walks: list[_Walk]) -> Path:
    count = max(len(walk.times) for walk in walks)
    state_NBS = torch.stack(
        [torch.cat(walk.states + walk.states[-1:] * (count - len(walk.states))) for walk in walks], dim=1
    )
    times = [walk.times + walk.times[-1:] * (count - len(walk.times)) for walk in walks]
    time_NB = torch.tensor(times, dtype=torch.float64, device=state_NBS.device).t()
    length_NB = time_NB.diff(dim=0).to(state_NBS.dtype)
    return Path(flow, solver.scheme, solver.tau, time_NB.to(state_NBS.dtype), length_NB, state_NBS)
