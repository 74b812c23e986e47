"""Starts that are the same for every image.

Shapes: B batch, L latent, D values of a sample.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from gfe_study.data.split import Shape
from gfe_study.likelihoods.base import Observed
from gfe_study.models.base import Model
from gfe_study.starts.base import Start, Starter


class ConstantStarter(Starter):
    """One latent for all; the mean of the training latents if `decay` is given, else zero."""

    latent_L: Tensor
    weight: Tensor

    def __init__(self, latent_dim: int, decay: float | None = None) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("latent_L", torch.zeros(latent_dim), persistent=decay is not None)
        self.register_buffer("weight", torch.zeros(()), persistent=decay is not None)

    def forward(self, target: Observed, index_B: Tensor | None = None) -> Tensor:
        return (self.latent_L / self.weight.clamp(min=1e-12)).to(target.value_BD.dtype).repeat(len(target), 1)

    @torch.no_grad()
    def remember(self, latent_BL: Tensor, target: Observed, index_B: Tensor) -> None:
        if self.decay is not None:
            kept = self.decay ** len(latent_BL)
            self.latent_L.mul_(kept).add_(latent_BL.mean(0), alpha=1 - kept)
            self.weight.mul_(kept).add_(1 - kept)


class Zero(Start):
    """z₀ = 0: the papers' start."""

    def create(self, model: Model, shape: Shape, encoder: nn.Module | None) -> ConstantStarter:
        return ConstantStarter(model.latent_dim)


class Mean(Start):
    """z₀ is the mean of the training latents, the recent ones counting most since the decoder has moved on."""

    decay: float = Field(0.999, gt=0, lt=1)
    """What is left of an image's weight in the mean after one more image."""

    def create(self, model: Model, shape: Shape, encoder: nn.Module | None) -> ConstantStarter:
        return ConstantStarter(model.latent_dim, self.decay)
