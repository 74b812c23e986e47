"""A trained decoder as a torch module, for use outside a study.

Shapes: N samples, D values of a sample, L latents.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gfe_study.config import InputError, Trial
from gfe_study.data.base import ImageShape
from gfe_study.methods.base import Learner
from gfe_study.study.artifacts import read_learner
from gfe_study.training import ENCODE_BATCH


class TrainedDecoder(nn.Module):
    """A decoder, and the encoding of samples by the method that trained it.

    Attributes:
        trial: the configuration that it was trained with.
        shape: the shape of a sample.
    """

    def __init__(self, learner: Learner, shape: ImageShape, levels: int) -> None:
        super().__init__()
        self.networks = learner.networks
        self.trial: Trial = learner.trial
        self.shape = shape
        self._learner = learner
        self._levels = levels
        self.eval()

    @classmethod
    def read(cls, path: Path, device: str | torch.device = "cpu", **changes: Any) -> TrainedDecoder:
        """Read a `best.pt`.

        Args:
            path: the file.
            device: where the networks go.
            changes: sections of the configuration that override the trial's own, such as another solver.

        Raises:
            InputError: there is no such file, or it is damaged, or its networks do not fit the changes.
        """
        return cls(*read_learner(path, changes, torch.device(device)))

    @torch.no_grad()
    def encode(self, samples: Any) -> Tensor:
        """Return the latents of samples, shape (N, L).

        Args:
            samples: an array or tensor of shape (N, D), channels first, or of N pictures; floats in [0, 1], or uint8 as
                the training data were stored.

        Raises:
            InputError: samples of another shape or type.
        """
        target_ND = self._target(samples)
        batches = target_ND.split(ENCODE_BATCH)
        return torch.cat([self._learner.encode(target_BD).latent_BL for target_BD in batches])

    def decode(self, latents: Any) -> Tensor:
        """Return the reconstructions of latents (N, L), shape (N, D), in [0, 1]."""
        latent_NL = torch.as_tensor(latents, dtype=torch.float32, device=self._device)
        return torch.cat([self._learner.decode(latent_BL) for latent_BL in latent_NL.split(ENCODE_BATCH)])

    def forward(self, latents: Any) -> Tensor:
        """Return `decode(latents)`."""
        return self.decode(latents)

    @property
    def _device(self) -> torch.device:
        return next(self.networks.parameters()).device

    def _target(self, samples: Any) -> Tensor:
        given = samples.detach().cpu().numpy() if isinstance(samples, Tensor) else np.asarray(samples)
        picture, flat = self.shape.picture, (self.shape.pixels,)
        if given.shape[1:] not in (picture, flat) or not len(given):
            raise InputError(f"samples: given shape {given.shape}; allowed: (N, {flat[0]}) or (N, *{picture})")
        flat_ND = given if given.shape[1:] == flat else self.shape.from_pictures(given)
        if given.dtype == np.uint8:
            flat_ND = flat_ND / self._levels
        elif not np.issubdtype(given.dtype, np.floating):
            raise InputError(f"samples: given {given.dtype}; allowed: floats in [0, 1], or uint8")
        return torch.as_tensor(np.ascontiguousarray(flat_ND, dtype=np.float32), device=self._device)
