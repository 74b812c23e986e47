"""Modes on a circle: one for every class, where some of the images are labelled."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gfe_study.targets.base import Target


class MixtureOfGaussians(Target):
    """Isotropic normals of equal weight, their means evenly spread over a circle in the first two dimensions.

    The first mode is at (radius, 0), the others follow counter-clockwise: mode k is that of class k.
    """

    components: int = Field(10, gt=0)
    """Modes."""
    radius: float = Field(4.0, gt=0)
    """Distance of every mean from the origin."""
    mode_width: float = Field(0.5, gt=0)
    """Standard deviation of every mode along every axis."""

    @property
    def width(self) -> float:
        return self.mode_width

    @property
    def modes(self) -> int:
        return self.components

    def means(self, latent_dim: int) -> Tensor:
        if latent_dim < 2:
            raise ValueError(
                f"target.name: given 'mixture_of_gaussians' in {latent_dim} latent dimension; allowed: 2 or more"
            )
        angle_K = 2 * torch.pi * torch.arange(self.components) / self.components
        mean_KL = torch.zeros(self.components, latent_dim)
        mean_KL[:, 0], mean_KL[:, 1] = self.radius * angle_K.cos(), self.radius * angle_K.sin()
        return mean_KL
