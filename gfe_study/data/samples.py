"""Samples of one file, which a trained decoder is to encode, some at a time.

Shapes: N samples, D values of each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gfe_study.data.base import AT_ONCE, Shape, Split
from gfe_study.data.files import Unsuitable, blamed_on, reading
from gfe_study.data.readers import ROWS, Table, read_contents
from gfe_study.data.stored import check_array, kept, kept_sigma, known_values, rows_of

BESIDE = frozenset({"labels", "observed", "sigma", "groups"})


@dataclass(frozen=True)
class Samples:
    """The samples in a file.

    Attributes:
        name: of their array.
        shape: of a sample.
        dtype: in the file.
        flat: whether the file holds samples as (N, D), channels first, and not as the decoder's data was.
    """

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    flat: bool
    _where: str
    _values: Any
    _observed: Any
    _sigma: Any

    def __len__(self) -> int:
        return int(self._values.shape[0])

    def batches(self, count: int = AT_ONCE) -> Iterator[Split]:
        """All samples as they are stored, without a scale, at most `count` at a time; others are not kept in memory.

        Raises:
            DataError: a value is infinite, or nothing of a sample is observed, or the file is damaged.
        """
        for start in range(0, len(self), count):
            with blamed_on(self._where):
                yield self._batch(slice(start, min(start + count, len(self))))

    def _batch(self, rows: slice) -> Split:
        def some(raw: Any) -> Any:
            with reading():
                return None if raw is None else np.asarray(raw[rows])

        values = kept(some(self._values), self.name)
        known = known_values(values, some(self._observed), self.name, rows.start)
        sigma = some(self._sigma)
        if sigma is not None:
            sigma = kept_sigma(sigma, known, values.shape, self.name, rows.start)
        values_ND, known_ND, sigma_ND = (None if each is None else self._flat(each) for each in (values, known, sigma))
        if known_ND is not None and (empty := np.flatnonzero(~known_ND.any(1))).size:
            raise Unsuitable(
                f"{self.name}: sample {rows.start + empty[0]} has no observed value; allowed: at least one"
            )
        assert values_ND is not None
        return Split(values_ND, observed_ND=known_ND, sigma_ND=sigma_ND)

    def _flat(self, values: Any) -> Any:
        return values if self.flat else self.shape.from_file(values)


def read_samples(
    path: Path,
    shape: Shape,
    option: str = "--images",
    *,
    columns: Sequence[str] | None = None,
    without: Collection[str] = (),
) -> Samples:
    """The samples in a file of any format that `Arrays` reads; few of them are in memory at one time.

    Of a file with several arrays, `path` names one after a colon: `fields.npz:test`. An array `test_observed`, or else
    `observed`, tells which of its values are observed, and `test_sigma` or `sigma` their standard errors.

    Args:
        path: a file or a folder.
        shape: of the decoder's samples; the file may hold them as the decoder's data was, or as (N, D).
        option: where the path was given, for errors.
        columns: of a table, those that make a sample; None: all but `labels` and `groups`.
        without: of a table, other columns that are no values.

    Raises:
        DataError: there is no such file or array, or its samples are of another shape.
    """
    name = None
    if not path.exists() and ":" in path.name:
        before, _, name = str(path).rpartition(":")
        path = Path(before)
    where = f"{option} {path}"
    with blamed_on(where):
        if not path.exists():
            raise Unsuitable("not found; allowed: a file or a folder")
        contents = read_contents(path)
        if isinstance(contents, Table):
            contents = {ROWS: rows_of(contents, columns, {*BESIDE, *without})}
        samples = [each for each in contents if each not in BESIDE and not each.endswith(("_observed", "_sigma"))]
        if name is None and len(samples) != 1:
            raise Unsuitable(
                f"holds {len(samples)} arrays; allowed: one, or {path.name}:NAME"
                + (f", NAME one of {', '.join(samples)}" if samples else "")
            )
        name = samples[0] if name is None else name
        if name not in contents:
            raise Unsuitable(f"given the array {name!r}; allowed: {', '.join(samples)}")
        with reading():
            values = contents[name]
        check_array(values, name)
        found, flat = tuple(values.shape[1:]), (shape.size,)
        if found not in (shape.file, flat):
            allowed = dict.fromkeys(f"(N, {', '.join(map(str, each))})" for each in (shape.file, flat))
            raise Unsuitable(f"{name}: given shape {tuple(values.shape)}; allowed: {' or '.join(allowed)}")
        beside = []
        for kind in ("observed", "sigma"):
            with reading():
                array = next((contents[each] for each in (f"{name}_{kind}", kind) if each in contents), None)
            if array is not None and tuple(array.shape) != tuple(values.shape):
                raise Unsuitable(f"{kind}: given shape {tuple(array.shape)}; allowed: {tuple(values.shape)}, as {name}")
            beside.append(array)
    return Samples(name, shape, np.dtype(values.dtype), found == flat, where, values, *beside)
