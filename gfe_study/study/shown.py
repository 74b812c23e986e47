"""Samples as they are shown: images as bytes, anything else as values in the data's own units.

Shapes: N samples, D values of each.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gfe_study.data.split import Scale, Shape, are_images
from gfe_study.io.pictures import Array, is_image, plane, value_range
from gfe_study.likelihoods.base import Observed

TILE_PIXELS = 56
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
    if are_images(shape, scale):
        shades_ND = (scale.shade(values_ND) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        pictures = np.moveaxis(shades_ND.reshape(-1, *shape.dims), 1, -1)
        return pictures if shape.channels == 3 else pictures[..., 0]
    stored_ND = scale.undo(values_ND)
    if known_ND is not None:
        stored_ND = stored_ND.masked_fill(~known_ND, torch.nan)
    return stored_ND.float().cpu().numpy().reshape(-1, *shape.dims)


def grid(rows: list[Array]) -> Image.Image:
    """Shown samples in rows, enlarged, on a grey ground. Values are coloured from the lowest to the highest of all.

    What `torchvision.utils.make_grid` would draw, whose import takes longer than a short trial.
    """
    if is_image(rows[0]):
        grey = rows[0].ndim == 3
        tiles = [list(np.repeat(row[..., None], 3, axis=-1) if grey else row) for row in rows]
    else:
        low, high = value_range(rows)
        tiles = [[_coloured(plane(each), low, high) for each in row] for row in rows]
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


def _coloured(values: Array, low: float, high: float) -> Array:
    share = np.nan_to_num((values - low) / max(high - low, np.finfo(float).tiny))
    stops = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(share, stops, [colour[i] for colour in COLOURS]) for i in range(3)]
    coloured = np.stack(channels, -1).round()
    return np.where(np.isfinite(values)[..., None], coloured, MISSING).astype(np.uint8)
