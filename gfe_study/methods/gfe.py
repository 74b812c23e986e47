"""Gradient flow encoding: a decoder trained at the latents that a flow finds."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gfe_study.methods.base import Diverged, Encoding, Learner, Method
from gfe_study.solvers.base import Solution
from gfe_study.solvers.objective import Objective


class GFELearner(Learner):
    """z* by the trial's solver; dL/dθ by the trial's gradient."""

    def update(self, target_BD: Tensor) -> Encoding:
        forward_B = backward_B = torch.zeros(len(target_BD), device=target_BD.device)
        start_BL = target_BD.new_zeros(len(target_BD), self.trial.model.latent_dim)
        for _ in range(self.trial.optim.updates_per_batch):
            solution = self._solve(target_BD, start_BL)
            self.optimiser.zero_grad(set_to_none=True)
            loss_B = self.trial.gradient.backward(self.decoder, self.loss, target_BD, solution)
            if not bool(loss_B.isfinite().all()):
                raise Diverged
            self.optimiser.step()
            start_BL = solution.latent_BL
            forward_B = forward_B + solution.nfe_forward_B + 1
            backward_B = backward_B + solution.nfe_backward_B + 1
        return Encoding(start_BL, loss_B, forward_B, backward_B)

    def _solve(self, target_BD: Tensor, start_BL: Tensor) -> Solution:
        objective = Objective(self.decoder, self.loss, target_BD)
        solution: Solution = self.trial.solver.solve(self.trial.flow, objective, start_BL)
        if not bool(solution.latent_BL.isfinite().all()):
            raise Diverged
        return solution

    def encode(self, target_BD: Tensor, encoding: str | None = None) -> Encoding:
        return self.encode_by_flow(target_BD)


class GFE(Method):
    """Gradient flow encoding, arXiv:2412.00864: no encoder; z* is the end of a gradient flow."""

    name: Literal["gfe"] = "gfe"
    learner = GFELearner
