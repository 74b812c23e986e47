"""Elevations: patches of a map of the Jacksboro fault in Tennessee, which matplotlib brings along."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import Field

from gfe_study.data.base import Dataset
from gfe_study.data.split import Array, DataError, Shape, Split, Splits, seeded

REGIONS = (6, 7)
"""Rows and columns of regions that the map is cut into."""
HELD_OUT = 8
"""Regions for validation, and as many for testing."""
STRIDES = {"train": 4, "val": 8, "test": 8}
"""Points between neighbouring patches of a region."""


class Terrain(Dataset):
    """Square patches of real elevations in metres, 90 m between points; no download.

    Patches overlap within a region of the map, and regions do not: each belongs to one split, as a patch that shares
    points with a training patch would test nothing.
    """

    noun = "value"
    unit: ClassVar[str] = "m"

    size: int = Field(16, ge=4, le=48)
    """Points along each side of a patch."""

    def read(self, folders: list[Path], *, download: bool) -> Splits:
        elevation = _elevation()
        rows, columns = (side // regions for side, regions in zip(elevation.shape, REGIONS, strict=True))
        order = seeded("terrain").permutation(np.arange(REGIONS[0] * REGIONS[1]))
        chosen = {"test": order[:HELD_OUT], "val": order[HELD_OUT : 2 * HELD_OUT], "train": order[2 * HELD_OUT :]}
        parts = {}
        for part, regions in chosen.items():
            patches = []
            for region in np.sort(regions):
                down, across = divmod(int(region), REGIONS[1])
                here = elevation[down * rows : (down + 1) * rows, across * columns : (across + 1) * columns]
                windows = sliding_window_view(here, (self.size, self.size))[:: STRIDES[part], :: STRIDES[part]]
                patches.append(windows.reshape(-1, self.size**2))
            parts[part] = Split(np.concatenate(patches))
        return Splits(parts["train"], parts["val"], parts["test"], Shape(1, (self.size, self.size)))


def _elevation() -> Array:
    from matplotlib.cbook import get_sample_data

    try:
        with np.load(get_sample_data("jacksboro_fault_dem.npz", asfileobj=False)) as content:
            return np.asarray(content["elevation"], dtype=np.float32)
    except (OSError, KeyError) as error:
        raise DataError(f"data.name: terrain: matplotlib's sample data cannot be read ({error})") from error
