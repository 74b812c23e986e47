"""Autoencoder: the mirrored encoder, the same loss and optimiser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from gfe_study import names
from gfe_study.methods.base import Diverged, Encoding, Learner, Method, seeded

if TYPE_CHECKING:
    from gfe_study.config import Trial
    from gfe_study.data.base import ImageShape


class AutoencoderLearner(Learner):
    """z = E(y). Its `mixed` encoding is the papers': this decoder, with latents found by gradient flow."""

    encodings = (names.MIXED,)

    def build_networks(self, shape: ImageShape, device: torch.device) -> dict[str, nn.Module]:
        with seeded(self.trial.seed, "encoder"):
            self.encoder = self.trial.model.encoder(shape).to(device)
        return {"encoder": self.encoder}

    def update(self, target_BD: Tensor, index_B: Tensor, updates: int) -> Encoding:
        for _ in range(updates):
            self.optimiser.zero_grad(set_to_none=True)
            latent_BL = self.encoder(target_BD)
            loss_B = self.loss(self.decoder(latent_BL), target_BD)
            if not bool(loss_B.isfinite().all()):
                raise Diverged
            loss_B.sum().backward()
            self.optimiser.step()
        self.start.remember(latent_BL.detach(), index_B)
        passes_B = torch.full((len(target_BD),), float(updates), device=target_BD.device)
        return Encoding(latent_BL.detach(), loss_B.detach(), passes_B, passes_B)

    @torch.no_grad()
    def encode(self, target_BD: Tensor, encoding: str | None = None) -> Encoding:
        if encoding == names.MIXED:
            return self.encode_by_flow(target_BD)
        latent_BL = self.encoder(target_BD)
        none_B = torch.zeros(len(target_BD), device=target_BD.device)
        return Encoding(latent_BL, self.loss(self.decoder(latent_BL), target_BD), none_B, none_B)


class Autoencoder(Method):
    """Autoencoder, the papers' baseline. Its test images are also encoded by flow: `mixed_test_loss`."""

    name: Literal["ae"] = "ae"
    learner = AutoencoderLearner

    def check_trial(self, trial: Trial) -> None:
        if trial.start.name == "previous":
            raise ValueError(
                "start.name: given 'previous' with method=ae, which solves for no latent of a training image; "
                "allowed: encoder, mean, zero"
            )
        if trial.gradient.name != "approx":
            raise ValueError(
                f"gradient.name: given {trial.gradient.name!r} with method=ae, whose latents come from an encoder and "
                "whose decoder is trained through it; allowed: approx"
            )
