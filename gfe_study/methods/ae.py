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
        for number in range(updates):
            self.optimiser.zero_grad(set_to_none=True)
            latent_BL = self.encoder(target_BD)
            loss_B = self.loss(self.decoder(latent_BL), target_BD)
            term_B = self.latent_term(latent_BL, index_B)
            total_B = loss_B if term_B is None else loss_B + term_B
            if not bool(total_B.isfinite().all()):
                raise Diverged
            total_B.sum().backward()
            self.optimiser.step()
            self.updated(latent_BL.detach(), index_B, again=number > 0)
        self.start.remember(latent_BL.detach(), index_B)
        passes_B = torch.full((len(target_BD),), float(updates), device=target_BD.device)
        return Encoding(latent_BL.detach(), loss_B.detach(), passes_B, passes_B)

    def latent_term(self, latent_BL: Tensor, index_B: Tensor) -> Tensor | None:
        """What is added to each image's loss for where its latent is, shape (B,); None for nothing."""
        return None

    def updated(self, latent_BL: Tensor, index_B: Tensor, *, again: bool) -> None:
        """Called after every step of the optimiser, with the latents before it; `again`: on the same images."""

    @torch.no_grad()
    def encode(self, target_BD: Tensor, encoding: str | None = None) -> Encoding:
        if encoding == names.MIXED:
            return self.encode_by_flow(target_BD)
        latent_BL = self.encoder(target_BD)
        none_B = torch.zeros(len(target_BD), device=target_BD.device)
        return Encoding(latent_BL, self.loss(self.decoder(latent_BL), target_BD), none_B, none_B)


class EncoderMethod(Method):
    """A method whose latents come from an encoder. Test images are also encoded by flow: `mixed_test_loss`."""

    def check_trial(self, trial: Trial) -> None:
        super().check_trial(trial)
        if trial.start.name == "previous":
            raise ValueError(
                f"start.name: given 'previous' with method={self.name}, which solves for no latent of a training "
                "image; allowed: encoder, mean, zero"
            )
        if trial.gradient.name != "approx":
            raise ValueError(
                f"gradient.name: given {trial.gradient.name!r} with method={self.name}, whose latents come from an "
                "encoder and whose decoder is trained through it; allowed: approx"
            )


class Autoencoder(EncoderMethod):
    """Autoencoder, the papers' baseline."""

    name: Literal["ae"] = "ae"
    learner = AutoencoderLearner
