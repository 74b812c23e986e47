"""Per-sample distances ℓ(y, x) between an image y and the decoder's output x.

Every loss returns one number per sample, shape (B,). Reductions over the batch belong to callers: the
training loss of a batch is the sum, which sets the scale of the learning rate; a reported loss is the mean.

Shapes: B batch, D pixels.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Loss(Protocol):
    """A per-sample distance and its derivative with respect to the decoder's output."""

    def __call__(self, output_BD: Tensor, target_BD: Tensor) -> Tensor:
        """The distance of each sample, shape (B,)."""
        ...

    def gradient(self, output_BD: Tensor, target_BD: Tensor) -> Tensor:
        """∂ℓ/∂output of each sample, shape (B, D)."""
        ...

    def curvature(self, output_BD: Tensor, target_BD: Tensor) -> Tensor:
        """∂²ℓ/∂output² of each sample, shape (B, D): diagonal, since pixels add up. Not negative."""
        ...


class BernoulliNLL:
    """Binary cross-entropy with logits, mean over the D pixels: nats per pixel, the papers' number.

    Evaluated as max(x, 0) − x·y + log(1 + e^{−|x|}), finite at any logit x.
    """

    def __call__(self, output_BD: Tensor, target_BD: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(output_BD, target_BD, reduction="none").mean(-1)

    def gradient(self, output_BD: Tensor, target_BD: Tensor) -> Tensor:
        return output_BD.sigmoid().sub_(target_BD).div_(target_BD.shape[-1])

    def curvature(self, output_BD: Tensor, target_BD: Tensor) -> Tensor:
        white = output_BD.sigmoid()
        return white * (1 - white) / target_BD.shape[-1]


class SquaredError:
    """Half the squared Euclidean distance, ½‖x − y‖²: the loss whose flow is linear under a linear decoder."""

    def __call__(self, output_BD: Tensor, target_BD: Tensor) -> Tensor:
        return (output_BD - target_BD).square().sum(-1) / 2

    def gradient(self, output_BD: Tensor, target_BD: Tensor) -> Tensor:
        return output_BD - target_BD

    def curvature(self, output_BD: Tensor, target_BD: Tensor) -> Tensor:
        return torch.ones_like(output_BD)
