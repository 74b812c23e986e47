"""Semi-amortised encoding: an encoder proposes, the flow improves.

Shapes: B batch, L latent, D values of a sample.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gfe_study.data.split import Shape
from gfe_study.likelihoods.base import Observed
from gfe_study.models.base import Model
from gfe_study.solvers.objective import Objective
from gfe_study.starts.base import Start, Starter


class EncoderStarter(Starter):
    """z₀ = E(y); E descends ℓ(y, D(E(y))) with the decoder's weights held, unless the method trains it itself."""

    forward_passes = 1

    def __init__(self, encoder: nn.Module, *, mask: bool, trained_by_method: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.mask = mask
        self.trained_by_method = trained_by_method
        self.backward_passes = 0 if trained_by_method else 2

    @torch.no_grad()
    def forward(self, target: Observed, index_B: Tensor | None = None) -> Tensor:
        latent_BL: Tensor = self.encoder(target.as_input(mask=self.mask))
        return latent_BL

    def backward(self, objective: Objective) -> None:
        if not self.trained_by_method:
            with torch.enable_grad():
                latent_BL = self.encoder(objective.target.as_input(mask=self.mask))
            grad_BL = objective.gradient(latent_BL.detach())
            share_B = objective.target.share_B
            latent_BL.backward(grad_BL if share_B is None else grad_BL * share_B[:, None])


class Encoder(Start):
    """z₀ = E(y): the mirrored encoder, trained beside the decoder on the reconstruction from z₀ itself."""

    def create(self, model: Model, shape: Shape, encoder: nn.Module | None) -> EncoderStarter:
        own = model.encoder(shape) if encoder is None else encoder
        return EncoderStarter(own, mask=shape.mask, trained_by_method=encoder is not None)
