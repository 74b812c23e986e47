"""A latent remembered for every training image.

Shapes: B batch, L latent, D values of a sample, N training images seen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gfe_study.data.split import Shape
from gfe_study.likelihoods.base import Observed
from gfe_study.models.base import Model
from gfe_study.starts.base import Start, Starter


class PreviousStarter(Starter):
    """A table of latents that grows to the largest index it was given."""

    latent_NL: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("latent_NL", torch.zeros(0, latent_dim))

    def forward(self, target: Observed, index_B: Tensor | None = None) -> Tensor:
        if index_B is None:
            return target.value_BD.new_zeros(len(target), self.latent_NL.shape[1])
        self._grow(index_B)
        return self.latent_NL[index_B].to(target.value_BD.dtype)

    @torch.no_grad()
    def remember(self, latent_BL: Tensor, target: Observed, index_B: Tensor) -> None:
        self._grow(index_B)
        self.latent_NL[index_B] = latent_BL.to(self.latent_NL.dtype)

    def _grow(self, index_B: Tensor) -> None:
        needed = int(index_B.max()) + 1
        if needed > len(self.latent_NL):
            grown_NL = self.latent_NL.new_zeros(max(needed, 2 * len(self.latent_NL)), self.latent_NL.shape[1])
            grown_NL[: len(self.latent_NL)] = self.latent_NL
            self.latent_NL = grown_NL

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        saved = state_dict.get(f"{prefix}latent_NL")
        if saved is not None:
            self.latent_NL = self.latent_NL.new_zeros(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Previous(Start):
    """z₀ is where the flow of the same training image ended when it was last seen; zero for any other image."""

    def create(self, model: Model, shape: Shape, encoder: nn.Module | None) -> PreviousStarter:
        return PreviousStarter(model.latent_dim)
