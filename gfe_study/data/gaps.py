"""Values that are taken away on purpose, as `config.gaps` says.

Shapes: N samples, D values of each.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from gfe_study.config.gaps import Gaps, Hide
from gfe_study.data.split import AT_ONCE, Array, DataError, Shape, Split, Splits, seeded


def taken(gaps: Gaps, split: Split, shape: Shape, purpose: str) -> Array:
    """Which observed values of a split are taken away, bool, shape (N, D).

    Args:
        split: samples.
        shape: of a sample.
        purpose: different purposes take different values.

    Raises:
        DataError: gaps are to be like those of the data, which has none.
    """
    generator = seeded(f"gaps/{purpose}/{gaps.seed}")
    found = np.zeros(split.values_ND.shape, bool)
    donors = np.arange(0) if split.observed_ND is None else np.flatnonzero(~split.observed_ND.all(1))
    if gaps.kind == "like" and not len(donors):
        key, _, part = purpose.partition("/")
        raise DataError(
            f"{key}.kind: given like, and the {part} split has no missing values; allowed: random, block, columns"
        )
    for start in range(0, len(split), AT_ONCE):
        rows = slice(start, min(start + AT_ONCE, len(split)))
        known = np.ones(found[rows].shape, bool) if split.observed_ND is None else split.observed_ND[rows]
        if gaps.kind == "like":
            assert split.observed_ND is not None
            gone = ~split.observed_ND[generator.choice(donors, len(known))]
        else:
            gone = _drawn(gaps, len(known), shape, generator)
        lost_N = ~(known & ~gone).any(1)
        gone[lost_N, np.where(known, generator.random(known.shape, np.float32), -1).argmax(1)[lost_N]] = False
        found[rows] = known & gone
    return found


def _drawn(gaps: Gaps, count: int, shape: Shape, generator: np.random.Generator) -> Array:
    assert gaps.fraction is not None
    if gaps.kind == "random":
        return generator.random((count, shape.size), np.float32) < gaps.fraction
    gone = np.zeros((count, *shape.dims), bool)
    if gaps.kind == "columns":
        columns = generator.random((count, shape.sides[-1]), np.float32) < gaps.fraction
        gone |= columns.reshape(count, *[1] * len(shape.sides), -1)
    else:
        share = gaps.fraction ** (1 / len(shape.sides))
        sizes = [max(1, round(side * share)) for side in shape.sides]
        corners = [generator.integers(0, side - size + 1, count) for side, size in zip(shape.sides, sizes, strict=True)]
        inside = np.ones((count, *shape.sides), bool)
        for axis, (side, size, corner) in enumerate(zip(shape.sides, sizes, corners, strict=True)):
            place = np.arange(side) - corner[:, None]
            along = [1] * len(shape.sides)
            along[axis] = side
            inside &= ((place >= 0) & (place < size)).reshape(count, *along)
        gone |= inside[:, None]
    return gone.reshape(count, math.prod(shape.dims))


def hidden(hide: Hide, splits: Splits) -> Splits:
    """The splits without the values that are hidden."""

    def without(name: str, split: Split) -> Split:
        if name not in hide.splits:
            return split
        return replace(split, observed_ND=_left(split, taken(hide, split, splits.shape, f"data.hide/{name}")))

    return replace(splits.changed(without), shape=replace(splits.shape, mask=True))


def withheld(gaps: Gaps | None, splits: Splits) -> Splits:
    """The splits whose validation and test samples lack what is withheld, and remember it."""
    if gaps is None:
        return splits

    def without(name: str, split: Split) -> Split:
        if name == "train":
            return split
        gone = taken(gaps, split, splits.shape, f"eval.withhold/{name}")
        return replace(split, observed_ND=_left(split, gone), withheld_ND=gone)

    return replace(splits.changed(without), shape=replace(splits.shape, mask=True))


def _left(split: Split, taken: Array) -> Array:
    return ~taken if split.observed_ND is None else split.observed_ND & ~taken
