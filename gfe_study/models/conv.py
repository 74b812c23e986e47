"""Convolutional encoder and decoder for signals, images and volumes of any sides and number of channels.

Shapes: K rows of a batch, L latent, D values of a sample.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from gfe_study.config import InputError
from gfe_study.data.split import Shape
from gfe_study.models.base import Decoder, Model
from gfe_study.models.mlp import WIDEST

SMALLEST_HALVED = 8
"""A side shorter than this is not halved any more."""

Sides = tuple[int, ...]
"""One length per axis."""

CONVOLUTIONS: dict[int, tuple[type[nn.Module], type[nn.Module]]] = {
    1: (nn.Conv1d, nn.ConvTranspose1d),
    2: (nn.Conv2d, nn.ConvTranspose2d),
    3: (nn.Conv3d, nn.ConvTranspose3d),
}
"""By the number of axes: downwards and upwards."""


class Halving:
    """One layer between a larger feature map and one of half its sides, rounded down; a small side is kept.

    Kernels are of 4 where a side is halved, which covers every pixel equally often (3 would leave a checkerboard),
    and of 3 where it is not.
    """

    def __init__(self, larger: Sides) -> None:
        self.stride: Sides = tuple(2 if side >= SMALLEST_HALVED else 1 for side in larger)
        self.kernel: Sides = tuple(stride + 2 for stride in self.stride)
        self.smaller: Sides = tuple(side // stride for side, stride in zip(larger, self.stride, strict=True))
        self.remainder: Sides = tuple(side % stride for side, stride in zip(larger, self.stride, strict=True))
        self._down, self._up = CONVOLUTIONS[len(larger)]

    def down(self, channels: int, outputs: int) -> nn.Module:
        return self._down(channels, outputs, self.kernel, self.stride, padding=1)

    def up(self, channels: int, outputs: int) -> nn.Module:
        return self._up(channels, outputs, self.kernel, self.stride, padding=1, output_padding=self.remainder)


def _halvings(shape: Shape, count: int) -> list[Halving]:
    """From the sample inwards."""
    if len(shape.sides) not in CONVOLUTIONS:
        raise InputError(f"model.name: given conv, with samples of {len(shape.sides)} axes; allowed: up to 3, or mlp")
    layers, side = [], shape.sides
    for _ in range(count):
        layers.append(Halving(side))
        side = layers[-1].smaller
    return layers


class ConvDecoder(Decoder):
    """A linear layer, then transposed convolutions, ELU between; the last is linear."""

    def __init__(self, latent_dim: int, channels: tuple[int, ...], shape: Shape) -> None:
        super().__init__()
        halvings = _halvings(shape, len(channels))
        innermost = (channels[-1], *halvings[-1].smaller)
        layers: list[nn.Module] = [
            nn.Linear(latent_dim, math.prod(innermost)),
            nn.Unflatten(1, innermost),
        ]
        outwards = pairwise([*reversed(channels), shape.channels])
        for halving, (inner, outer) in zip(reversed(halvings), outwards, strict=True):
            layers += [nn.ELU(), halving.up(inner, outer)]
        self.layers = nn.Sequential(*layers, nn.Flatten())

    def forward(self, latent_KL: Tensor) -> Tensor:
        output_KD: Tensor = self.layers(latent_KL)
        return output_KD


class ConvEncoder(nn.Module):
    """Convolutions with ELU between, then a linear layer: the decoder mirrored."""

    def __init__(self, shape: Shape, channels: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        halvings = _halvings(shape, len(channels))
        layers: list[nn.Module] = [nn.Unflatten(1, (shape.input_channels, *shape.sides))]
        for halving, (outer, inner) in zip(halvings, pairwise([shape.input_channels, *channels]), strict=True):
            layers += [halving.down(outer, inner), nn.ELU()]
        innermost = channels[-1] * math.prod(halvings[-1].smaller)
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(innermost, outputs))

    def forward(self, input_KD: Tensor) -> Tensor:
        output_KL: Tensor = self.layers(input_KD)
        return output_KL


class Conv(Model):
    """Strided convolutions, each halving the sides until these are small; no normalisation over the batch.

    28 × 28 pixels become 14 × 14, then 7 × 7, and stay so; 32 × 32 become 4 × 4 in three layers.
    """

    example = {"latent_dim": 3, "channels": [4, 5]}

    latent_dim: int = Field(20, gt=0, le=WIDEST)
    """L: how many numbers make a latent."""
    channels: Annotated[tuple[Annotated[int, Field(gt=0, le=WIDEST)], ...], Field(min_length=1)] = (32, 64, 128)
    """Of the encoder's feature maps, from the sample inwards; the decoder's are the same from the latent outwards."""

    def decoder(self, shape: Shape) -> ConvDecoder:
        return ConvDecoder(self.latent_dim, self.channels, shape)

    def encoder(self, shape: Shape, outputs: int | None = None) -> ConvEncoder:
        return ConvEncoder(shape, self.channels, self.latent_dim if outputs is None else outputs)
