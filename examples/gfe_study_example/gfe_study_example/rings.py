"""Drawn rings: images of 8 × 8 pixels that need no download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field

from gfe_study.data.base import Dataset
from gfe_study.data.split import Scale, Split, Splits, hold_out, image_shape

SIDE = 8


class Rings(Dataset):
    """A ring around a centre, both by chance. The label is 1 where the ring is wide."""

    example = {"count": 400}

    count: int = Field(1000, ge=20)
    """Images: one in five to validate, one in five to test."""

    def read(self, folders: list[Path], *, download: bool) -> Splits:
        draw = np.random.default_rng(1)
        x, y, radius = (draw.uniform(low, high, (self.count, 1, 1)) for low, high in ((2, 5), (2, 5), (1, 4)))
        down, right = np.mgrid[:SIDE, :SIDE]
        distance = np.abs(np.hypot(down - y, right - x) - radius)
        pixels = np.round(255 * np.exp(-2 * distance**2)).astype(np.uint8)
        everything = Split(
            pixels.reshape(self.count, -1), (radius[:, 0, 0] > 2.5).astype(np.int64), scale=Scale.of_levels(255)
        )
        rest, test = hold_out(everything, self.count // 5, "rings/test")
        train, val = hold_out(rest, self.count // 5, "rings/val")
        return Splits(train, val, test, image_shape(SIDE, SIDE))
