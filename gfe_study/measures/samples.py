"""Decoded samples of a target: the images that a trained decoder makes up.

Shapes: N images, L latent, D values of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gfe_study.methods.base import Learner

SAMPLES_SEED = 20201029
"""The same latents are decoded at every point of every trial: numbers and pictures differ by the decoder alone."""
DECODE_BATCH = 500


def decode_all(learner: Learner, latent_NL: Tensor) -> Tensor:
    """Reconstructions of many latents, decoded in batches; shape (N, D), scaled as the samples are."""
    return torch.cat([learner.decode(latent_BL) for latent_BL in latent_NL.split(DECODE_BATCH)])


def sampled_images(learner: Learner, count: int, device: torch.device) -> Tensor | None:
    """Decoded samples of the learner's target, shape (count, D), scaled; None of a method without one.

    The first images are the same whatever the count.
    """
    target = learner.trial.target
    if target is None:
        return None
    batches = []
    for number in range(-(-count // DECODE_BATCH)):
        generator = torch.Generator().manual_seed(SAMPLES_SEED + number)
        batches.append(target.sample(DECODE_BATCH, learner.trial.model.latent_dim, generator))
    return decode_all(learner, torch.cat(batches)[:count].to(device))
