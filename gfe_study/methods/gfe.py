"""Gradient flow encoding: a decoder trained at the latents that a flow finds."""

from __future__ import annotations

import torch
from torch import Tensor

from gfe_study.likelihoods.base import Observed
from gfe_study.methods.base import Diverged, Encoding, Learner, Method


class GFELearner(Learner):
    """z* by the trial's solver from the trial's start; dL/dθ by the trial's gradient."""

    encodes_by_flow = True

    def update(self, target: Observed, index_B: Tensor, updates: int) -> Encoding:
        trial = self.trial
        forward_B = backward_B = torch.zeros(len(target), device=target.value_BD.device)
        latent_BL = self.start(target, index_B)
        if not bool(latent_BL.isfinite().all()):
            raise Diverged
        for number in range(updates):
            solver = trial.solver.for_training(resumed=number > 0)
            objective = self.objective(target, index_B)
            solution = solver.solve(trial.flow, objective, latent_BL, keep_path=trial.gradient.needs_path)
            latent_BL = solution.latent_BL
            if not bool(latent_BL.isfinite().all()):
                raise Diverged
            self.optimiser.zero_grad(set_to_none=True)
            done = trial.gradient.backward(objective, solution)
            if not bool(done.loss_B.isfinite().all()):
                raise Diverged
            self.start.backward(objective)
            # The sum of a tensor that holds NaN or an infinity is one or the other.
            sums = [weight.grad.sum() for weight in self.networks.parameters() if weight.grad is not None]
            if not bool(torch.stack(sums).isfinite().all()):
                raise Diverged
            self.optimiser.step()
            self.updated(latent_BL, index_B, again=number > 0)
            forward_B = forward_B + solution.nfe_forward_B + done.nfe_forward_B
            backward_B = backward_B + solution.nfe_backward_B + done.nfe_backward_B
        self.start.remember(latent_BL, index_B)
        return Encoding(latent_BL, done.loss_B, forward_B, backward_B)

    def updated(self, latent_BL: Tensor, index_B: Tensor, *, again: bool) -> None:
        """Called after every step of the optimiser, with the latents it was made at; `again`: on the same images."""

    def encode(self, target: Observed, encoding: str | None = None) -> Encoding:
        return self.encode_by_flow(target)


class GFE(Method):
    """Gradient flow encoding, arXiv:2412.00864: no encoder; z* is the end of a gradient flow."""

    learner = GFELearner
