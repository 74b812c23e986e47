"""What a file's arrays must hold, and how it is kept: checks that are the same for every format.

Every check raises `Unsuitable`, with the name of the array and the first sample that fails.

Shapes: N samples, (N, *file) as in files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from gfe_study.config import suggestion
from gfe_study.data.files import Unsuitable, reading
from gfe_study.data.split import AT_ONCE, Array, Shape

Channels = Literal["first", "last", "none"]

MAX_CHANNELS = 4
"""An axis that is longer holds channels only if the user says so."""
MAX_SINGLE, MAX_DOUBLE = 2**24, 2**53
"""Whole numbers up to these are exact in float32, in float64."""


def check_array(raw: Any, name: str) -> None:
    """Refuse what cannot be samples, by shape and type; nothing is read."""
    shape, dtype = tuple(raw.shape), np.dtype(raw.dtype)
    if len(shape) < 2:
        raise Unsuitable(f"{name}: given shape {shape}; allowed: (N, …), the samples first, and at least one axis more")
    if 0 in shape:
        raise Unsuitable(f"{name}: given shape {shape}; allowed: no axis of length 0")
    check_numbers(dtype, name)


def check_numbers(dtype: np.dtype[Any], name: str) -> None:
    """Refuse text, complex numbers, dates and objects."""
    if dtype.kind not in "biuf":
        raise Unsuitable(f"{name}: given {dtype}; allowed: real or whole numbers, or Booleans")


def loaded(raw: Any) -> Array:
    """An array of any format in memory, or mapped into it."""
    with reading():
        return raw if isinstance(raw, np.ndarray) else np.asarray(raw[...])


def kept(values: Array, name: str) -> Array:
    """Numbers as they are kept: uint8, float32 or float64, without a copy if they are of such a type."""
    kind, width = values.dtype.kind, values.dtype.itemsize
    if kind == "b" or values.dtype == np.uint8:
        return values.view(np.uint8)
    if kind == "f":
        return values.astype(np.float32 if width <= 4 else np.float64, copy=False)
    largest = max(abs(int(values.min())), abs(int(values.max())))
    if largest > MAX_DOUBLE:
        raise Unsuitable(f"{name}: given whole numbers up to {largest}; allowed: up to 2⁵³, which are kept exactly")
    return values.astype(np.float32 if largest <= MAX_SINGLE else np.float64)


def known_values(values: Array, given: Array | None, name: str, first: int = 0) -> Array | None:
    """Which values are observed, as bool: given so, and not NaN; None if all are. Refuses infinite values.

    Args:
        values: as they are kept.
        given: an array of the same shape that says which are observed; None: all.
        name: what errors call the values.
        first: the number of the first sample.
    """
    if given is not None:
        if given.shape != values.shape:
            raise Unsuitable(f"observed: given shape {given.shape}; allowed: {values.shape}, as {name}")
        if given.dtype.kind not in "biuf" or not ((given == 0) | (given == 1)).all():
            raise Unsuitable("observed: given other values than true and false; allowed: Booleans, or 0 and 1")
    elif values.dtype == np.uint8:
        return None
    found = None
    for rows in _slices(len(values)):
        finite = np.isfinite(values[rows])
        known = np.ones(finite.shape, bool) if given is None else given[rows].astype(bool)
        if not finite.all():
            known &= ~np.isnan(values[rows])
            if (infinite := known & ~finite).any():
                place = first + rows.start + int(_first_row(infinite))
                raise Unsuitable(
                    f"{name}: sample {place} has an infinite value; allowed: finite ones, NaN where missing"
                )
        if not known.all():
            if found is None:
                found = np.ones(values.shape, bool)
            found[rows] = known
    return found


def kept_sigma(sigma: Array, known: Array | None, shape: tuple[int, ...], name: str, first: int = 0) -> Array:
    """Standard deviations as they are kept, 1 where nothing is observed."""
    if sigma.shape != shape:
        raise Unsuitable(f"sigma: given shape {sigma.shape}; allowed: {shape}, as {name}")
    check_numbers(sigma.dtype, "sigma")
    sigma = kept(sigma, "sigma")
    if sigma.dtype == np.uint8:
        sigma = sigma.astype(np.float32)
    for rows in _slices(len(sigma)):
        wrong = ~((sigma[rows] > 0) & np.isfinite(sigma[rows]))
        if known is not None:
            wrong &= known[rows]
        if wrong.any():
            place = int(_first_row(wrong))
            value = sigma[rows][place][wrong[place]].flat[0]
            raise Unsuitable(
                f"sigma: sample {first + rows.start + place} has {value:g}; allowed: positive where a value is observed"
            )
    return sigma if known is None else np.where(known, sigma, sigma.dtype.type(1))


def kept_labels(labels: Array, count: int) -> Array:
    """The class of every sample, (N,): int64, or text."""
    labels = _one_each(labels, count, "labels")
    if labels.dtype.kind == "U":
        return labels
    if labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels == np.trunc(labels)).all():
        return labels.astype(np.int64)
    if labels.dtype.kind not in "biu":
        raise Unsuitable(f"labels: given {_kind(labels)}; allowed: whole numbers, or text, one for each sample")
    return labels.astype(np.int64)


def kept_groups(groups: Array, count: int) -> Array:
    """The number of every sample's group, (N,)."""
    groups = _one_each(groups, count, "groups")
    missing = groups.dtype.kind == "f" and np.isnan(groups).any()
    if missing or groups.dtype.kind not in "biufU":
        raise Unsuitable(
            f"groups: given {'NaN' if missing else _kind(groups)}; allowed: numbers or text, one for each sample"
        )
    return np.unique(groups, return_inverse=True)[1]


def rows_of(table: Mapping[str, Array], columns: Sequence[str] | None, without: Collection[str]) -> Array:
    """The rows of a table as samples, (N, D).

    Args:
        table: columns by name, each (N,).
        columns: those that make a sample; None: all.
        without: those that do not, of all.
    """
    columns = [name for name in table if name not in without] if columns is None else columns
    if not columns:
        raise Unsuitable("given no column of values; allowed: at least one")
    for name in columns:
        if name not in table:
            raise Unsuitable(f"given no column {name!r}; {suggestion(name, list(table))}")
        if not len(table[name]):
            raise Unsuitable("given no rows; allowed: at least one")
        if table[name].dtype.kind not in "biuf":
            raise Unsuitable(
                f"column {name!r}: given {_cells(table[name])}; allowed: numbers; "
                "or leave it out of data.columns, or name it as data.labels or data.groups"
            )
    return np.column_stack([kept(table[name], f"column {name!r}") for name in columns])


def sample_shape(file: tuple[int, ...], channels: Channels | None) -> Shape:
    """The shape of samples that are `file` in a file; `channels` None is guessed."""
    if channels is None:
        guesses: dict[Channels, bool] = {"first": file[0] <= MAX_CHANNELS, "last": file[-1] <= MAX_CHANNELS}
        channels = next((axis for axis, short in guesses.items() if short and len(file) > 2), "none")
    if channels == "none":
        return Shape(1, file)
    if len(file) < 2:
        raise Unsuitable(f"given samples of one axis, and data.channels: {channels}; allowed: null, none")
    return Shape(file[0], file[1:], "first") if channels == "first" else Shape(file[-1], file[:-1], "last")


def _slices(count: int) -> Iterator[slice]:
    return (slice(start, min(start + AT_ONCE, count)) for start in range(0, count, AT_ONCE))


def _first_row(wrong: Array) -> int:
    return int(np.flatnonzero(wrong.reshape(len(wrong), -1).any(1))[0])


def _one_each(array: Array, count: int, name: str) -> Array:
    if array.shape not in ((count,), (count, 1)):
        raise Unsuitable(f"{name}: given shape {array.shape}; allowed: ({count},), one for each sample")
    return array.reshape(count)


def _kind(array: Array) -> str:
    return {"f": "numbers that are not whole", "O": "objects or empty cells"}.get(array.dtype.kind, str(array.dtype))


def _cells(column: Array) -> str:
    """What cells hold that are not numbers."""
    if column.dtype.kind not in "OU":
        return str(column.dtype)
    return f"text like {str(next((cell for cell in column if not _is_number(cell)), column[0]))[:20]!r}"


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True
