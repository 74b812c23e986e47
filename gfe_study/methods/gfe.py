"""Gradient flow encoding: a decoder trained at the latents that a flow finds.

Shapes: N training samples, B batch, K rows of it, L latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from gfe_study.config import Section
from gfe_study.data.split import Split
from gfe_study.likelihoods.base import Observed
from gfe_study.methods.base import Batch, Diverged, Encoding, Learner, Method, Updated
from gfe_study.methods.ensemble import EnsembleLearner
from gfe_study.methods.noise import dropout, masked
from gfe_study.solvers.base import BadStart, Solution, joined
from gfe_study.solvers.objective import Objective

if TYPE_CHECKING:
    from gfe_study.config import Trial
    from gfe_study.data.split import Shape

LATENTS = "latents"
NOISE = "noise"


class PosteriorNoise(Section):
    """Noise of the latents that the decoder is trained at: ε ~ N(0, w² λ (JᵀHJ + λI)⁻¹).

    With w = 1 it is Laplace's approximation to the posterior of a sample's latent, tempered by the precision λ of the
    prior: the decoder is trained wherever the latent might as well be, widest where least of a sample is observed.
    """

    width: float = Field(1.0, gt=0)
    """w."""
    ramp_images: int = Field(0, ge=0)
    """Training images seen over which the width rises from 0."""
    refresh: int = Field(5, gt=0)
    """How many weight updates a sample takes part in before its JᵀHJ is computed again."""


class GFELearner(Learner):
    """z* by the trial's solver from the trial's start; dL/dθ by the trial's gradient.

    New samples are solved from the start, under the solver's `train_max_nfe`. Everything later goes on from where it
    was, under `resume_max_nfe`: new samples after a weight update, and samples that are replayed, whose latents are
    kept from one time to the next.
    """

    encodes_by_flow = True
    latent_NL: Tensor
    """The last z* of every training sample, where samples are replayed."""
    noise: LatentNoise | None = None

    @property
    def plain(self) -> GFE:
        """The method's own; those of a plain GFE in a method that extends it."""
        return self.trial.method if isinstance(self.trial.method, GFE) else GFE()

    def see(self, train: Split) -> None:
        weight = next(self.decoder.parameters())
        if self.trial.optim.update_size is not None:
            self.latent_NL = weight.new_zeros(len(train), self.trial.model.latent_dim)
        if (noise := self.plain.posterior_noise) is not None:
            self.noise = LatentNoise(noise, len(train), self.trial.model.latent_dim, weight.device)

    def update(self, batches: Sequence[Batch], new: int) -> Updated:
        forward: Tensor | float = 0.0
        backward: Tensor | float = 0.0
        encoder_passes = new * self.start.forward_passes
        latent_BL = batches[0].target.value_BD.new_empty(0)
        first: Objective | None = None
        for number, (whole, index_B) in enumerate(batches):
            target = masked(whole, self.plain.input_noise)
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
            if self.noise is not None:
                solution = replace(solution, latent_BL=self.noise.noisy(objective, latent_BL, index_B))
            with dropout(self.plain.dropout, self.decoder):
                judged = objective if target is whole else self.objective(whole, index_B)
                done = self.trial.gradient.backward(judged, solution)
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
        if self.noise is not None:
            self.noise.images_seen += new
        if self.trial.optim.update_size is not None:
            self.latent_NL[index_B[:new]] = latent_BL[:new]
        self.start.remember(latent_BL[:new], whole[:new], index_B[:new])
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
        kept: dict[str, Any] = {} if self.trial.optim.update_size is None else {LATENTS: self.latent_NL}
        if self.noise is not None:
            kept[NOISE] = self.noise.state_dict()
        return {**super().state_dict(), **kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.trial.optim.update_size is not None:
            self.latent_NL.copy_(state[LATENTS])
        if self.noise is not None:
            self.noise.load_state_dict(state[NOISE])


class LatentNoise:
    """What `PosteriorNoise` draws from: a root of the covariance of every training sample's latent."""

    def __init__(self, settings: PosteriorNoise, samples: int, latent_dim: int, device: torch.device) -> None:
        self.settings = settings
        self.root_NLL = torch.zeros(samples, latent_dim, latent_dim, device=device)
        self.updates_N = torch.zeros(samples, dtype=torch.long, device=device)
        self.images_seen = 0

    @torch.no_grad()
    def noisy(self, objective: Objective, latent_BL: Tensor, index_B: Tensor) -> Tensor:
        """Latents with noise; `index_B` are their samples' places in the training split.

        Drawn from torch's global generator on the CPU, so that a trial draws the same on every device.
        """
        due_K = (self.updates_N[index_B] % self.settings.refresh == 0).nonzero().flatten()
        if len(due_K):
            self.root_NLL[index_B[due_K]] = _root(objective, latent_BL, due_K)
        self.updates_N[index_B] += 1
        ramp = self.settings.ramp_images
        width = self.settings.width * (1.0 if self.images_seen >= ramp else self.images_seen / ramp)
        drawn_BL = torch.randn(latent_BL.shape).to(latent_BL)
        return latent_BL + width * (self.root_NLL[index_B] @ drawn_BL[..., None])[..., 0]

    def state_dict(self) -> dict[str, Any]:
        return {"root": self.root_NLL, "updates": self.updates_N, "images_seen": self.images_seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.root_NLL.copy_(state["root"])
        self.updates_N.copy_(state["updates"])
        self.images_seen = state["images_seen"]


def _root(objective: Objective, latent_BL: Tensor, rows_K: Tensor) -> Tensor:
    """R with R Rᵀ = λ (JᵀHJ + λI)⁻¹ of some rows of a batch, shape (K, L, L); 0 where it cannot be found."""
    assert objective.pull_B is not None
    _, _, normal_KLL = objective.curvature(latent_BL[rows_K], rows_K)  # per observed value, as λ/n is
    factor_KLL, failed_K = torch.linalg.cholesky_ex(normal_KLL)
    scaled_KLL = torch.diag_embed(objective.pull_B[rows_K].sqrt()[:, None].expand(latent_BL[rows_K].shape))
    root_KLL = torch.linalg.solve_triangular(factor_KLL.mT, scaled_KLL, upper=True)
    lost_K = (failed_K > 0) | ~root_KLL.isfinite().all(-1).all(-1)
    found_KLL: Tensor = root_KLL.masked_fill(lost_K[:, None, None], 0.0)
    return found_KLL


class GFE(Method):
    """Gradient flow encoding, arXiv:2412.00864: no encoder; z* is the end of a gradient flow."""

    learner = GFELearner

    posterior_noise: PosteriorNoise | None = None
    """The decoder is trained at z* + ε; None: at z* itself. It needs `prior_precision`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the decoder's hidden activations that drop out where the weights' gradient is taken; None: none. Latents
    are found with the whole decoder."""
    input_noise: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Masking noise: share of a sample's values that the flow does not see in training, while the decoder is trained to
    give all of them; None: none."""
    ensemble: int | None = Field(None, ge=2, le=64)
    """How many decoders are trained, each by itself, whose mean predicts; None: one. Training costs as many times as
    much."""

    def create(self, trial: Trial, shape: Shape, device: torch.device) -> Learner:
        if self.ensemble is None:
            return super().create(trial, shape, device)
        one = trial.model_copy(update={"method": self.model_copy(update={"ensemble": None})})

        def member(seed: int) -> Learner:
            return GFELearner(one.with_seed(seed), shape, device)

        return EnsembleLearner(trial, shape, device, member, self.ensemble)

    def check_trial(self, trial: Trial) -> None:
        super().check_trial(trial)
        if trial.optim.update_size is not None and trial.gradient.needs_path:
            raise ValueError(
                f"optim.update_size: given {trial.optim.update_size} with gradient.name={trial.gradient.name}, which "
                "differentiates the steps from the start; allowed: null, or gradient.name=approx"
            )
        if self.posterior_noise is not None and trial.prior_precision is None:
            raise ValueError(
                "prior_precision: given null with method.posterior_noise, which is as wide as the prior makes it; "
                "allowed: a positive number"
            )
        noisy = [key for key in ("posterior_noise", "dropout", "input_noise") if getattr(self, key)]
        if noisy and trial.gradient.name != "approx":
            raise ValueError(
                f"gradient.name: given {trial.gradient.name!r} with method.{noisy[0]}: the loss of the weights is not "
                "the one that the flow descends; allowed: approx"
            )
