"""What every target promises.

Shapes: B points, L latent, K modes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gfe_study.config import Component, InputError
from gfe_study.config.trial import build, named


class Target(Component, ABC):
    """A known distribution p_t on R^L, a mixture of K isotropic normals of equal weights and widths."""

    @property
    @abstractmethod
    def width(self) -> float:
        """Standard deviation of every mode along every axis."""

    @property
    @abstractmethod
    def modes(self) -> int:
        """K."""

    @abstractmethod
    def means(self, latent_dim: int) -> Tensor:
        """Means of the modes, shape (K, L).

        Raises:
            ValueError: the target does not exist in so few dimensions.
        """

    def mode_log_density(self, latent_BL: Tensor) -> Tensor:
        """log N(z; mean_k, width² I) of every mode, nats, shape (B, K); differentiable."""
        mean_KL = self.means(latent_BL.shape[1]).to(latent_BL)
        scaled_BKL = (latent_BL[:, None] - mean_KL) / self.width
        return -scaled_BKL.square().sum(-1) / 2 - latent_BL.shape[1] / 2 * math.log(2 * math.pi * self.width**2)

    def log_density(self, latent_BL: Tensor) -> Tensor:
        """log p_t(z), nats, shape (B,); differentiable."""
        return self.mode_log_density(latent_BL).logsumexp(1) - math.log(self.modes)

    def sample(self, count: int, latent_dim: int, generator: torch.Generator) -> Tensor:
        """Draws from p_t, shape (count, L), float32, on the CPU."""
        mean_KL = self.means(latent_dim)
        noise_BL = torch.randn(count, latent_dim, generator=generator)
        chosen_B = torch.randint(self.modes, (count,), generator=generator)
        return mean_KL[chosen_B] + self.width * noise_BL


def parse_target(name: str, assigned: Mapping[str, Any]) -> Target:
    """A target by its name, with settings under the key `target`, as `parse_assignments` gives them.

    Raises:
        InputError: an unknown name or setting, a value out of range, or settings of something else.
    """
    for key in assigned:
        if key != "target":
            raise InputError(f"--set {key}: unknown key; allowed: settings of the target, like target.radius=4")
    settings = named("target", assigned.get("target", {}))
    if not isinstance(settings, Mapping):
        raise InputError(f"--set target: given {settings!r}; allowed: a name, or settings like target.radius=4")
    target = build("target", {"name": name, **settings})
    assert isinstance(target, Target)
    return target
