"""Convolutional encoder and decoder for images of any height, width and number of channels.

Shapes: K rows of a batch, L latent, D pixels.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from gfe_study.data.base import ImageShape
from gfe_study.models.base import Decoder, Model
from gfe_study.models.mlp import WIDEST

SMALLEST_HALVED = 8
"""A side shorter than this is not halved any more."""

Sides = tuple[int, int]
"""Height and width."""


class Halving:
    """One layer between a larger feature map and one of half its sides, rounded down; a small side is kept.

    Kernels are of 4 where a side is halved, which covers every pixel equally often (3 would leave a checkerboard),
    and of 3 where it is not.
    """

    def __init__(self, larger: Sides) -> None:
        height, width = larger
        down, across = (2 if side >= SMALLEST_HALVED else 1 for side in larger)
        self.stride: Sides = (down, across)
        self.kernel: Sides = (down + 2, across + 2)
        self.smaller: Sides = (height // down, width // across)
        self.remainder: Sides = (height % down, width % across)

    def down(self, channels: int, outputs: int) -> nn.Conv2d:
        return nn.Conv2d(channels, outputs, self.kernel, self.stride, padding=1)

    def up(self, channels: int, outputs: int) -> nn.ConvTranspose2d:
        return nn.ConvTranspose2d(channels, outputs, self.kernel, self.stride, padding=1, output_padding=self.remainder)


def _halvings(shape: ImageShape, count: int) -> list[Halving]:
    """From the image inwards."""
    layers, side = [], (shape.height, shape.width)
    for _ in range(count):
        layers.append(Halving(side))
        side = layers[-1].smaller
    return layers


class ConvDecoder(Decoder):
    """A linear layer, then transposed convolutions, ELU between; logits last."""

    def __init__(self, latent_dim: int, channels: tuple[int, ...], shape: ImageShape) -> None:
        super().__init__()
        halvings = _halvings(shape, len(channels))
        innermost = (channels[-1], *halvings[-1].smaller)
        layers: list[nn.Module] = [
            nn.Linear(latent_dim, ImageShape(*innermost).pixels),
            nn.Unflatten(1, innermost),
        ]
        outwards = pairwise([*reversed(channels), shape.channels])
        for halving, (inner, outer) in zip(reversed(halvings), outwards, strict=True):
            layers += [nn.ELU(), halving.up(inner, outer)]
        self.layers = nn.Sequential(*layers, nn.Flatten())

    def forward(self, latent_KL: Tensor) -> Tensor:
        logits_KD: Tensor = self.layers(latent_KL)
        return logits_KD


class ConvEncoder(nn.Module):
    """Convolutions with ELU between, then a linear layer: the decoder mirrored."""

    def __init__(self, shape: ImageShape, channels: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        halvings = _halvings(shape, len(channels))
        layers: list[nn.Module] = [nn.Unflatten(1, shape)]
        for halving, (outer, inner) in zip(halvings, pairwise([shape.channels, *channels]), strict=True):
            layers += [halving.down(outer, inner), nn.ELU()]
        innermost = ImageShape(channels[-1], *halvings[-1].smaller)
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(innermost.pixels, outputs))

    def forward(self, image_KD: Tensor) -> Tensor:
        output_KL: Tensor = self.layers(image_KD)
        return output_KL


class Conv(Model):
    """Strided convolutions, each halving height and width until these are small; no normalisation over the batch.

    28 × 28 pixels become 14 × 14, then 7 × 7, and stay so; 32 × 32 become 4 × 4 in three layers.
    """

    name: Literal["conv"] = "conv"
    latent_dim: int = Field(20, gt=0, le=WIDEST)
    channels: Annotated[tuple[Annotated[int, Field(gt=0, le=WIDEST)], ...], Field(min_length=1)] = (32, 64, 128)
    """Of the encoder's feature maps, from the image inwards; the decoder's are the same from the latent outwards."""

    def decoder(self, shape: ImageShape) -> ConvDecoder:
        return ConvDecoder(self.latent_dim, self.channels, shape)

    def encoder(self, shape: ImageShape, outputs: int | None = None) -> ConvEncoder:
        return ConvEncoder(shape, self.channels, self.latent_dim if outputs is None else outputs)
