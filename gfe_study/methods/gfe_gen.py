"""Generative gradient flow encoding: no encoder, and latents that follow a known distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from gfe_study.data.split import Split
from gfe_study.methods.base import TargetedMethod
from gfe_study.methods.gfe import GFELearner
from gfe_study.methods.pull import FEWEST, Pull, Puller
from gfe_study.solvers.objective import LatentTerm

if TYPE_CHECKING:
    from gfe_study.config import Trial
    from gfe_study.data.split import Shape


class GFEGENLearner(GFELearner):
    """The flow descends ℓ(y, D(z)) + λ log (p_t + p̂)/p_t, p̂ the density of the latents found for training images.

    At its end, where the gradient of the sum vanishes, the derivative of ℓ with respect to the decoder at fixed z* is
    that of the sum: the term does not know the decoder.
    """

    settings: GFEGEN

    def build_networks(self, shape: Shape, device: torch.device) -> dict[str, nn.Module]:
        trial = self.trial
        self.puller = Puller(self.settings, self.target, trial.model.latent_dim, keeps_latents=True).to(device)
        return {**super().build_networks(shape, device), "puller": self.puller}

    def see(self, train: Split) -> None:
        super().see(train)
        self.puller.see(train)

    def latent_term_of(self, index_B: Tensor | None) -> LatentTerm | None:
        if not self.puller.active:
            return None

        def term(latent_KL: Tensor, rows_K: Tensor | None) -> Tensor:
            index_K = index_B if index_B is None or rows_K is None else index_B[rows_K]
            found_K = self.puller.term(latent_KL, index_K)
            assert found_K is not None
            return found_K

        return term

    def updated(self, latent_BL: Tensor, index_B: Tensor, *, again: bool) -> None:
        self.puller.remember(index_B, latent_BL, again=again)
        if self.puller.due:
            self.puller.refresh()


class GFEGEN(Pull, TargetedMethod):
    """Gradient flow encoding whose latents are pulled to a target, so that the decoder can be sampled from.

    The density is made of latents as they were found, up to `kde_samples` images ago: none is found anew for it.
    """

    colour = "#3f90da"
    example = {"kde_samples": 70, "refresh_updates": 2}

    learner = GFEGENLearner
    kde_samples: int = Field(1000, ge=FEWEST)
    """m: latents that the density is made of: those of the training images seen last, as many as there are."""

    def check_trial(self, trial: Trial) -> None:
        super().check_trial(trial)
        self.check_target(trial)
        if self.saturating:
            raise ValueError(
                "method.saturating: given true with method=gfe_gen, whose latents it lets run to infinity, since no "
                "encoder holds them together; allowed: false"
            )
        if trial.gradient.name != "approx":
            raise ValueError(
                f"gradient.name: given {trial.gradient.name!r} with method=gfe_gen, whose flow also follows the "
                "density of the latents; allowed: approx"
            )
