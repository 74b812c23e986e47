"""Generative encoding networks: an autoencoder whose latents are pulled to a known distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from gfe_study.data.split import Split
from gfe_study.methods.ae import AutoencoderLearner, EncoderMethod
from gfe_study.methods.base import TargetedMethod
from gfe_study.methods.pull import Pull, Puller

if TYPE_CHECKING:
    from gfe_study.config import Trial
    from gfe_study.data.split import Shape

ENCODE_BATCH = 1000
"""Training images encoded at once for the density."""


class GENLearner(AutoencoderLearner):
    """ℓ(y, D(E(y))) + λ times the term of `Pull` at E(y): arXiv:2010.15283, Algorithm 1 and eq. 3."""

    settings: GEN

    def build_networks(self, shape: Shape, device: torch.device) -> dict[str, nn.Module]:
        trial = self.trial
        self.puller = Puller(self.settings, self.target, trial.model.latent_dim, keeps_latents=False).to(device)
        return {**super().build_networks(shape, device), "puller": self.puller}

    def see(self, train: Split) -> None:
        super().see(train)
        self.train = train
        self.puller.see(train)

    def latent_term(self, latent_BL: Tensor, index_B: Tensor) -> Tensor | None:
        return self.puller.term(latent_BL, index_B)

    def updated(self, latent_BL: Tensor, index_B: Tensor, *, again: bool) -> int:
        self.puller.remember(index_B, latent_BL, again=again)
        if self.puller.due:
            return self.puller.refresh(self._latents_of)
        if followed := self.settings.followed:
            return self.puller.follow(self._latents_of, followed)
        return 0

    def _latents_of(self, index_M: Tensor) -> Tensor:
        parts = index_M.cpu().numpy()
        device = index_M.device
        starts = range(0, len(parts), ENCODE_BATCH)
        batches = (self.train.batch(parts[i : i + ENCODE_BATCH], device) for i in starts)
        return torch.cat([self.encoder(batch.as_input(mask=self.shape.mask)) for batch in batches])


class GEN(Pull, TargetedMethod, EncoderMethod):
    """Generative encoding network, arXiv:2010.15283: latents follow the target, as a kernel density estimate sees it.

    At convergence they have the target's variance less h².
    """

    colour = "#bd1f01"
    example = {"kde_samples": 70, "refresh_updates": 2}

    learner = GENLearner
    followed: int = Field(0, ge=0)
    """Latents of the density that are encoded at every update, to carry the others along with the encoder until all
    are encoded anew; 0, as in the paper: none, so that the density lags."""

    def check_trial(self, trial: Trial) -> None:
        super().check_trial(trial)
        self.check_target(trial)
