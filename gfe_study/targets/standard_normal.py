"""The standard normal distribution: the usual prior."""

import torch
from torch import Tensor

from gfe_study.targets.base import Target


class StandardNormal(Target):
    """N(0, I)."""

    @property
    def width(self) -> float:
        return 1.0

    @property
    def modes(self) -> int:
        return 1

    def means(self, latent_dim: int) -> Tensor:
        return torch.zeros(1, latent_dim)
