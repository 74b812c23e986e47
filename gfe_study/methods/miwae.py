"""Importance-weighted autoencoder for data with missing values.

Shapes: B batch, K draws of a latent per sample, L latent, D values of a sample.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from gfe_study.likelihoods.base import Observed
from gfe_study.methods.vae import VAE, VAELearner

if TYPE_CHECKING:
    from gfe_study.config import Trial

DRAWN_AT_ONCE = 4096
"""Draws, of all samples, that are decoded together."""
NOISE_SEED = 20190610
"""The same draws for every sample, so that what is imputed does not depend on the rest of the batch."""


class MIWAELearner(VAELearner):
    """The bound −log 1/K Σ_k p(y|z_k) p(z_k)/q(z_k|y) per observed value, y being what is observed, z_k ~ q(z|y)."""

    settings: MIWAE

    @property
    def draws(self) -> int:
        return self.settings.draws

    def bound(self, target: Observed, mean_BL: Tensor, log_variance_BL: Tensor) -> tuple[Tensor, Tensor]:
        noise_BKL = torch.randn(len(target), self.draws, mean_BL.shape[1]).to(mean_BL)
        _, loss_BK, log_weight_BK = self._drawn(target, mean_BL, log_variance_BL, noise_BKL)
        return loss_BK.mean(1), (math.log(self.draws) - log_weight_BK.logsumexp(1)) / target.count_B

    def _drawn(
        self, target: Observed, mean_BL: Tensor, log_variance_BL: Tensor, noise_BKL: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decoder outputs (B, K, D) at draws of q, their ℓ (B, K), and log p(y|z) p(z)/q(z|y) (B, K)."""
        count, draws, _ = noise_BKL.shape
        latent_BKL = mean_BL[:, None] + (log_variance_BL[:, None] / 2).exp() * noise_BKL
        output_MD = self.decoder(latent_BKL.flatten(0, 1))
        each_M = torch.arange(count, device=mean_BL.device).repeat_interleave(draws)
        loss_BK = self.loss(output_MD, target[each_M]).view(count, draws)
        # The constants of the two normals are the same.
        ratio_BK = (noise_BKL.square() + log_variance_BL[:, None] - latent_BKL.square()).sum(2) / 2
        values = torch.as_tensor(target.count_B, device=mean_BL.device).reshape(-1, 1)
        return output_MD.view(count, draws, -1), loss_BK, ratio_BK - values * loss_BK

    @torch.no_grad()
    def predict(self, target: Observed, latent_BL: Tensor) -> Tensor:
        """E[y | what is observed], by self-normalised importance sampling, as the decoder would give it."""
        if self.encodes_by_flow:
            return super().predict(target, latent_BL)
        generator = torch.Generator().manual_seed(NOISE_SEED)
        noise_KL = torch.randn(self.settings.imputation_draws, latent_BL.shape[1], generator=generator).to(latent_BL)
        found = []
        at_once = max(1, DRAWN_AT_ONCE // len(noise_KL))
        for start in range(0, len(target), at_once):
            part = target[slice(start, start + at_once)]
            mean_BL, log_variance_BL = self.posterior.moments(part.as_input(mask=self.shape.mask))
            noise_BKL = noise_KL.expand(len(part), -1, -1)
            output_BKD, _, log_weight_BK = self._drawn(part, mean_BL, log_variance_BL, noise_BKL)
            mean_BD = (log_weight_BK.softmax(1)[:, :, None] * self.loss.mean(output_BKD)).sum(1)
            found.append(self.loss.output_of(mean_BD))
        return torch.cat(found)


class MIWAE(VAE):
    """MIWAE, arXiv:1812.02633: a variational autoencoder whose bound is of what is observed alone, and tighter the
    more latents are drawn. What is missing is imputed by the mean over draws, each weighed by its importance."""

    colour = "#b9ac70"
    example = {"draws": 3, "imputation_draws": 5}

    learner = MIWAELearner
    draws: int = Field(20, gt=0)
    """K: latents that are drawn per sample in training."""
    imputation_draws: int = Field(200, gt=0)
    """Latents that are drawn per sample where missing values are predicted."""

    def check_trial(self, trial: Trial) -> None:
        super().check_trial(trial)
        if self.beta != 1:
            raise ValueError(f"method.beta: given {self.beta:g} with method=miwae, whose bound has none; allowed: 1")
