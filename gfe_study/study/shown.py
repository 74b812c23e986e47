"""Samples as they are shown: images as bytes, anything else as values in the data's own units.

Shapes: N samples, D values of each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gfe_study.data.base import Scale, Shape
from gfe_study.likelihoods.base import Observed

Array = np.ndarray[Any, Any]

TILE_PIXELS = 56
STRIP = 4
"""How many times as wide as high a vector is drawn."""
COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""From the lowest to the highest value: five of matplotlib's viridis."""
MISSING = 128
"""The grey of a missing value."""


def shown(samples: Tensor | Observed, shape: Shape, scale: Scale) -> Array:
    """Samples, (N, D) and scaled, as they are kept for figures.

    Of images (N, height, width) or (N, height, width, 3), uint8; of other data (N, channels, *sides), float32, in the
    data's units, NaN where a value is missing.
    """
    values_ND, known_ND = (samples.value_BD, samples.known_BD) if isinstance(samples, Observed) else (samples, None)
    if scale.levels is not None and len(shape.sides) == 2 and shape.channels in (1, 3) and not shape.mask:
        shades_ND = (scale.shade(values_ND) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        pictures = np.moveaxis(shades_ND.reshape(-1, *shape.dims), 1, -1)
        return pictures if shape.channels == 3 else pictures[..., 0]
    stored_ND = scale.undo(values_ND)
    if known_ND is not None:
        stored_ND = stored_ND.masked_fill(~known_ND, torch.nan)
    return stored_ND.float().cpu().numpy().reshape(-1, *shape.dims)


def flat_picture(values: Array) -> Array:
    """One shown sample that is no image, (channels, *sides), as a plane: channels side by side, a volume's middle."""
    if values.ndim == 2:  # a vector or a signal, as a strip
        return np.repeat(values, max(1, values.shape[1] // (STRIP * len(values))), axis=0)
    if values.ndim == 4:
        values = values[:, values.shape[1] // 2]
    return np.concatenate(list(values), axis=1)


def grid(rows: list[Array]) -> Image.Image:
    """Shown samples in rows, enlarged, on a grey ground. Values are coloured from the lowest to the highest of all.

    What `torchvision.utils.make_grid` would draw, whose import takes longer than a short trial.
    """
    if rows[0].dtype == np.uint8:
        tiles = [[np.broadcast_to(each[..., None], (*each.shape, 3)) if each.ndim == 2 else each for each in row]
                 for row in rows]  # fmt: skip
    else:
        finite = [row[np.isfinite(row)] for row in rows]
        known = np.concatenate(finite) if any(map(len, finite)) else np.zeros(1)
        tiles = [
            [_coloured(flat_picture(each), float(known.min()), float(known.max())) for each in row] for row in rows
        ]
    height, width = tiles[0][0].shape[:2]
    scale = max(1, TILE_PIXELS // height)
    down, across = scale * height + scale, scale * width + scale
    canvas = np.full((len(tiles) * down + scale, len(tiles[0]) * across + scale, 3), MISSING, dtype=np.uint8)
    for i, row in enumerate(tiles):
        for j, tile in enumerate(row):
            enlarged = tile.repeat(scale, axis=0).repeat(scale, axis=1)
            top, left = scale + i * down, scale + j * across
            canvas[top : top + scale * height, left : left + scale * width] = enlarged
    return Image.fromarray(canvas)


def _coloured(plane: Array, low: float, high: float) -> Array:
    share = np.nan_to_num((plane - low) / max(high - low, np.finfo(float).tiny))
    stops = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(share, stops, [colour[i] for colour in COLOURS]) for i in range(3)]
    coloured = np.stack(channels, -1).round()
    return np.where(np.isfinite(plane)[..., None], coloured, MISSING).astype(np.uint8)
