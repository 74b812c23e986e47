"""Adversarial autoencoder: a discriminator in latent space tells encoded images from draws of the target."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gfe_study.methods.ae import AutoencoderLearner, EncoderMethod
from gfe_study.methods.base import Diverged, TargetedMethod, seeded

if TYPE_CHECKING:
    from gfe_study.data.split import Shape


class AAELearner(AutoencoderLearner):
    """ℓ(y, D(E(y))) − λ log C(E(y)), and C trained to tell E(y) from draws of the target, arXiv:1511.05644."""

    settings: AAE

    def build_networks(self, shape: Shape, device: torch.device) -> dict[str, nn.Module]:
        trial = self.trial
        with seeded(trial.seed, "discriminator"):
            widths = [trial.model.latent_dim, *self.settings.hidden]
            layers = [part for i, o in pairwise(widths) for part in (nn.Linear(i, o), nn.ReLU())]
            self.discriminator = nn.Sequential(*layers, nn.Linear(widths[-1], 1)).to(device)
        self.discriminator_optimiser = torch.optim.Adam(
            self.discriminator.parameters(), lr=self.settings.discriminator_lr, betas=(0.5, 0.999)
        )
        return {**super().build_networks(shape, device), "discriminator": self.discriminator}

    def trained(self) -> Iterable[nn.Parameter]:
        own = {id(weight) for weight in self.discriminator.parameters()}
        return [weight for weight in super().trained() if id(weight) not in own]

    def latent_term(self, latent_BL: Tensor, index_B: Tensor) -> Tensor | None:
        self.discriminator.requires_grad_(False)
        fooled_B = F.softplus(-self.discriminator(latent_BL).squeeze(1))
        self.discriminator.requires_grad_(True)
        return self.settings.weight * fooled_B

    def updated(self, latent_BL: Tensor, index_B: Tensor, *, again: bool) -> int:
        # Drawn on the CPU, so that a trial draws the same on every device.
        drawn_BL = self.target.sample(latent_BL.shape[0], latent_BL.shape[1], torch.default_generator).to(latent_BL)
        self.discriminator_optimiser.zero_grad(set_to_none=True)
        loss = F.softplus(-self.discriminator(drawn_BL)).mean() + F.softplus(self.discriminator(latent_BL)).mean()
        if not bool(loss.isfinite()):
            raise Diverged
        loss.backward()
        self.discriminator_optimiser.step()
        return 0

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "discriminator_optimiser": self.discriminator_optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.discriminator_optimiser.load_state_dict(state["discriminator_optimiser"])


class AAE(TargetedMethod, EncoderMethod):
    """Adversarial autoencoder, arXiv:1511.05644."""

    colour = "#92dadd"
    example = {"hidden": [16]}

    learner = AAELearner
    weight: float = Field(0.01, ge=0)
    """λ: weight of the adversary's term beside the reconstruction loss in nats per value."""
    hidden: tuple[int, ...] = (1000, 1000)
    """Widths of the discriminator's hidden layers."""
    discriminator_lr: float = Field(2e-4, gt=0)
    """Learning rate of the discriminator's Adam (β₁ 0.5)."""
