"""Samples as pictures: what files of a trial and figures of a report have in common. Arrays only."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

STRIP = 4
"""How many times as wide as high a vector is drawn where no line can be."""


def is_image(samples: Array) -> bool:
    """Whether shown samples are images, kept as bytes; else they are values, (N, channels, *sides)."""
    return bool(samples.dtype == np.uint8)


def is_line(samples: Array) -> bool:
    """Whether shown samples are vectors or signals."""
    return not is_image(samples) and samples.ndim == 3


def plane(values: Array) -> Array:
    """One sample that is no image, (channels, *sides), as (height, width).

    Channels stand side by side; of a volume it is the middle slice; a vector is a strip.
    """
    if values.ndim == 2:
        return np.repeat(values, max(1, values.shape[1] // (STRIP * len(values))), axis=0)
    if values.ndim == 4:
        values = values[:, values.shape[1] // 2]
    return np.concatenate(list(values), axis=1)


def value_range(arrays: list[Array]) -> tuple[float, float]:
    """The lowest and the highest value that is not missing; (0, 1) if there is none."""
    finite = [array[np.isfinite(array)] for array in arrays]
    known = np.concatenate(finite) if any(map(len, finite)) else np.array([0.0, 1.0])
    return float(known.min()), float(known.max())
