"""Gradient flow encoding: a decoder trained at the latents that a flow finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gfe_study.data.split import Split
from gfe_study.likelihoods.base import Observed
from gfe_study.methods.base import Batch, Diverged, Encoding, Learner, Method, Updated
from gfe_study.solvers.base import BadStart, Solution, joined
from gfe_study.solvers.objective import Objective

if TYPE_CHECKING:
    from gfe_study.config import Trial

LATENTS = "latents"


class GFELearner(Learner):
    """z* by the trial's solver from the trial's start; dL/dθ by the trial's gradient.

    New samples are solved from the start, under the solver's `train_max_nfe`. Everything later goes on from where it
    was, under `resume_max_nfe`: new samples after a weight update, and samples that are replayed, whose latents are
    kept from one time to the next.
    """

    encodes_by_flow = True
    latent_NL: Tensor
    """The last z* of every training sample, where samples are replayed."""

    def see(self, train: Split) -> None:
        if self.trial.optim.update_size is not None:
            weight = next(self.decoder.parameters())
            self.latent_NL = weight.new_zeros(len(train), self.trial.model.latent_dim)

    def update(self, batches: Sequence[Batch], new: int) -> Updated:
        forward: Tensor | float = 0.0
        backward: Tensor | float = 0.0
        encoder_passes = new * self.start.forward_passes
        latent_BL = batches[0].target.value_BD.new_empty(0)
        first: Objective | None = None
        for number, (target, index_B) in enumerate(batches):
            objective = self.objective(target, index_B)
            spent = [objective]
            if first is not None:
                objective.adopt(first)
            if number:
                start_BL = latent_BL[:new] if len(target) == new else self._kept(latent_BL[:new], index_B[new:])
                solution = self._solve(objective, start_BL, resumed=True)
            elif len(target) == new:
                solution = self._solve(objective, self.start(target, index_B), resumed=False)
            else:
                fresh = self.objective(target[:new], index_B[:new])
                seen = self.objective(target[new:], index_B[new:])
                spent += [fresh, seen]
                seen.adopt(fresh)
                objective.adopt(fresh)
                solution = joined(
                    self._solve(fresh, self.start(target[:new], index_B[:new]), resumed=False),
                    self._solve(seen, self.latent_NL[index_B[new:]], resumed=True),
                )
            first = objective
            latent_BL = solution.latent_BL
            self.optimiser.zero_grad(set_to_none=True)
            done = self.trial.gradient.backward(objective, solution)
            self.start.backward(objective)
            # The sum of a tensor that holds NaN or an infinity is one or the other.
            sums = [weight.grad.sum() for weight in self.networks.parameters() if weight.grad is not None]
            if not bool(torch.stack([done.loss_B.sum(), latent_BL.sum(), *sums]).isfinite().all()):
                raise Diverged
            self.optimiser.step()
            if self.trial.optim.update_size is not None:
                self.latent_NL[index_B[new:]] = latent_BL[new:]
            self.updated(latent_BL[:new], index_B[:new], again=number > 0)
            forward = forward + sum(each.nfe_forward_B.sum() for each in spent) + done.nfe_forward_B.sum()
            backward = backward + sum(each.nfe_backward_B.sum() for each in spent) + done.nfe_backward_B.sum()
            encoder_passes += len(target) * self.start.backward_passes
        if self.trial.optim.update_size is not None:
            self.latent_NL[index_B[:new]] = latent_BL[:new]
        self.start.remember(latent_BL[:new], target[:new], index_B[:new])
        ended_B = solution.result_B[:new]
        return Updated(latent_BL[:new], done.loss_B[:new], forward, backward, encoder_passes, ended_B)

    def _kept(self, new_BL: Tensor, old_K: Tensor) -> Tensor:
        return torch.cat([new_BL, self.latent_NL[old_K]])

    def _solve(self, objective: Objective, start_BL: Tensor, *, resumed: bool) -> Solution:
        solver, keep_path = self.trial.solver.for_training(resumed=resumed), self.trial.gradient.needs_path
        try:
            return solver.solve(self.trial.flow, objective, start_BL, keep_path=keep_path)
        except BadStart as error:
            raise Diverged from error

    def updated(self, latent_BL: Tensor, index_B: Tensor, *, again: bool) -> None:
        """Called after every step of the optimiser, with the new samples' latents it was made at.

        Args:
            latent_BL: z*.
            index_B: places of the samples in the training split.
            again: whether it is not the first step on them.
        """

    def encode(self, target: Observed, encoding: str | None = None) -> Encoding:
        return self.encode_by_flow(target)

    def state_dict(self) -> dict[str, Any]:
        kept = {} if self.trial.optim.update_size is None else {LATENTS: self.latent_NL}
        return {**super().state_dict(), **kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.trial.optim.update_size is not None:
            self.latent_NL.copy_(state[LATENTS])


class GFE(Method):
    """Gradient flow encoding, arXiv:2412.00864: no encoder; z* is the end of a gradient flow."""

    learner = GFELearner

    def check_trial(self, trial: Trial) -> None:
        super().check_trial(trial)
        if trial.optim.update_size is not None and trial.gradient.needs_path:
            raise ValueError(
                f"optim.update_size: given {trial.optim.update_size} with gradient.name={trial.gradient.name}, which "
                "differentiates the steps from the start; allowed: null, or gradient.name=approx"
            )
