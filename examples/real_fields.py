"""Makes the files of `search_spaces/stations.yaml` and `ocean.yaml` from data that others publish.

    python examples/real_fields.py stations COmonthlyMet.rda data/stations.npz    # needs `pip install rdata`
    python examples/real_fields.py ocean ocean_atlas_subset.nc data/ocean.npz     # needs `pip install netCDF4`

docs/holes.md says where these come from.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

LEAST_STATIONS = 40
"""Skip months with fewer reporting stations."""
TESTED_YEARS = 5
"""Every fifth year tests, and the year after it validates."""
CELL = 10
"""Sides, in grid points of 2°, of the squares that go into one split as a whole: neighbouring profiles are alike."""

Array = np.ndarray[Any, Any]


def stations(source: Path) -> dict[str, Array]:
    """Monthly means of daily maxima at 376 stations in Colorado, 1895–1997, °C, one sample per month.

    From each value the station's mean in that calendar month is taken, over the training years: what is left is the
    weather, and not the season. NaN where a station reports nothing.
    """
    import rdata

    celsius = np.asarray(rdata.read_rda(source)["CO.tmax"], dtype=np.float64)  # (years, months, stations)
    year = np.arange(len(celsius))
    tests, validates = year % TESTED_YEARS == 0, year % TESTED_YEARS == 1
    parts = {"train": ~tests & ~validates, "val": validates, "test": tests}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a station may have no value in any training year
        season = np.nanmean(celsius[parts["train"]], 0)
    samples = {}
    for name, chosen in parts.items():
        months = (celsius[chosen] - season).reshape(-1, celsius.shape[2])
        samples[name] = months[np.isfinite(months).sum(1) >= LEAST_STATIONS].astype(np.float32)
    return samples


def ocean(source: Path) -> dict[str, Array]:
    """Monthly mean temperatures of the world's oceans at 19 depths, °C, one sample per profile; NaN below the floor."""
    from netCDF4 import Dataset

    with Dataset(source) as file:
        celsius = np.ma.filled(file["TEMP"][:].astype(np.float32), np.nan)  # (months, depths, latitudes, longitudes)
    months, depths, latitudes, longitudes = celsius.shape
    profiles = celsius.transpose(0, 2, 3, 1).reshape(-1, depths)
    row, column = np.divmod(np.arange(latitudes * longitudes), longitudes)
    group = np.tile((row // CELL) * longitudes + column // CELL, months)
    there = np.isfinite(profiles).sum(1) >= 2
    return {"profiles": profiles[there], "groups": group[there]}


if __name__ == "__main__":
    kinds = {"stations": stations, "ocean": ocean}
    if len(sys.argv) != 4 or sys.argv[1] not in kinds:
        sys.exit(__doc__)
    Path(sys.argv[3]).parent.mkdir(parents=True, exist_ok=True)
    found = kinds[sys.argv[1]](Path(sys.argv[2]))
    np.savez_compressed(sys.argv[3], **found)  # type: ignore[arg-type]
    for name, array in found.items():
        gaps = f", {np.isnan(array).mean():.1%} missing" if array.dtype.kind == "f" else ""
        print(f"{name}: {' × '.join(map(str, array.shape))}{gaps}")
