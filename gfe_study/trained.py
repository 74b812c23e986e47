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
from gfe_study.data.samples import Samples
from gfe_study.data.split import Scale, Shape
from gfe_study.likelihoods.base import Observed
from gfe_study.methods.base import Encoding, Learner
from gfe_study.study.artifacts import read_learner
from gfe_study.study.encoding import encodings, scale_of, shape_in_file
from gfe_study.training import ENCODE_BATCH


class TrainedDecoder(nn.Module):
    """A decoder, and the encoding of samples by the method that trained it.

    Attributes:
        trial: the configuration that it was trained with.
        shape: the shape of a sample.
    """

    def __init__(self, learner: Learner, shape: Shape, scale: Scale, seen_D: Tensor | None = None) -> None:
        super().__init__()
        self.networks = learner.networks
        self.trial: Trial = learner.trial
        self.shape = shape
        self._learner = learner
        self._scale = scale
        self._seen_D = seen_D
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

    def encode(self, samples: Any) -> Tensor:
        """Return the latents of samples, shape (N, L).

        Args:
            samples: an array or tensor of N samples, each in the shape of the training data or flat, in the units of
                the training data; of images whole numbers as they were stored, or floats in [0, 1]. NaN is a missing
                value. With `data.observe`, what the instrument measured of them.

        Raises:
            InputError: samples of another shape, type or domain.
        """
        return torch.cat([found.latent_BL for _, found in self.encodings(samples)])

    def encodings(self, samples: Any) -> list[tuple[Observed, Encoding]]:
        """Return the samples as the decoder reproduces them and their encodings, in batches; see `encode`."""
        given = samples.detach().cpu().numpy() if isinstance(samples, Tensor) else np.asarray(samples)
        if given.dtype.kind not in "biuf":
            raise InputError(f"samples: given {given.dtype}; allowed: numbers")
        shape = shape_in_file(self._learner, self.shape)
        shapes = shape.file, (shape.size,)
        if given.shape[1:] not in shapes or not len(given):
            allowed = " or ".join(dict.fromkeys(f"(N, {', '.join(map(str, each))})" for each in shapes))
            raise InputError(f"samples: given shape {given.shape}; allowed: {allowed}")
        stored = Samples("samples", given, None, None, shape, "samples")
        return list(
            encodings(self._learner, stored, self.shape, scale_of(stored, self._scale), self._seen_D, self._device)
        )

    def decode(self, latents: Any) -> Tensor:
        """Return the reconstructions of latents (N, L), in the shape and the units of the data; of images in [0, 1]."""
        latent_NL = torch.as_tensor(latents, dtype=torch.float32, device=self._device)
        decoded_ND = torch.cat([self._learner.decode(latent_BL) for latent_BL in latent_NL.split(ENCODE_BATCH)])
        stored_ND = self._shades.undo(decoded_ND).float().cpu().numpy()
        return torch.from_numpy(np.ascontiguousarray(self.shape.to_file(stored_ND))).to(self._device)

    def forward(self, latents: Any) -> Tensor:
        """Return `decode(latents)`."""
        return self.decode(latents)

    @property
    def _shades(self) -> Scale:
        """The scale of floats: images are then shades from 0 to 1."""
        return self._scale.of_shades() if self._scale.levels is not None else self._scale

    @property
    def _device(self) -> torch.device:
        return next(self.networks.parameters()).device
