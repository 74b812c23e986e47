"""Samples of one file, which a trained decoder is to encode, some at a time.

Shapes: N samples, D values of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from gfe_study.data.files import Unsuitable, blamed_on, reading
from gfe_study.data.readers import ROWS, Contents, Table, read_contents
from gfe_study.data.split import Array, Shape, Split
from gfe_study.data.stored import check_array, kept, kept_sigma, known_values, rows_of

BESIDE = ("labels", "observed", "sigma", "groups")
"""What may lie beside the samples, by default under these names."""


@dataclass(frozen=True)
class Samples:
    """The samples in a file.

    Attributes:
        name: of their array.
        values: (N, *file), or (N, D) with channels first; read when it is sliced.
        observed: which values are observed, alike; None: all but NaN.
        sigma: the values' standard errors, alike; None if unknown.
        shape: of a sample.
        where: what errors begin with.
    """

    name: str
    values: Any
    observed: Any
    sigma: Any
    shape: Shape
    where: str

    def __len__(self) -> int:
        return int(self.values.shape[0])

    @property
    def flat(self) -> bool:
        """Whether the file holds samples as (N, D), and not as the decoder's data was."""
        return tuple(self.values.shape[1:]) == (self.shape.size,)

    def batch(self, rows: slice) -> Split:
        """Some samples as they are stored, without labels and scale; all that is read of the file.

        Raises:
            DataError: an observed value is infinite, or its sigma not positive, or the file is damaged.
        """
        first, _, _ = rows.indices(len(self))
        with blamed_on(self.where):
            values = kept(self._read(self.values, rows), self.name)
            given = None if self.observed is None else self._read(self.observed, rows)
            known = known_values(values, given, self.name, first)
            sigma = None
            if self.sigma is not None:
                sigma = kept_sigma(self._read(self.sigma, rows), known, values.shape, self.name, first)
        return Split(
            self._flatten(values),
            observed_ND=None if known is None else self._flatten(known),
            sigma_ND=None if sigma is None else self._flatten(sigma),
        )

    @staticmethod
    def _read(array: Any, rows: slice) -> Array:
        with reading():
            return np.asarray(array[rows])

    def _flatten(self, values: Array) -> Array:
        return values if self.flat else self.shape.from_file(values)


def read_samples(
    path: Path,
    shape: Shape,
    option: str = "--images",
    *,
    columns: Sequence[str] | None = None,
    names: Mapping[str, str] = MappingProxyType({}),
) -> Samples:
    """The samples in a file of any format that `Arrays` reads. Only tables and archives are in memory as a whole.

    Of a file with several arrays, `path` names one after a colon: `fields.npz:test`. An array `test_observed`, or else
    `observed`, tells which of its values are observed, and `test_sigma` or `sigma` their standard errors. Labels and
    groups are no values.

    Args:
        path: a file or a folder.
        shape: of the decoder's samples; the file may hold them as the decoder's data was, or as (N, D).
        option: where the path was given, for errors.
        columns: of a table, those that make a sample; None: all but labels and groups.
        names: what `labels`, `observed`, `sigma` and `groups` are called, where it is something else.

    Raises:
        DataError: there is no such file or array, or its samples are of another shape.
    """
    name = None
    if not path.exists() and ":" in path.name:
        before, _, name = str(path).rpartition(":")
        path = Path(before)
    where = f"{option} {path}"
    called = {kind: names.get(kind, kind) for kind in BESIDE}
    beside = {*BESIDE, *called.values()}
    with blamed_on(where):
        if not path.exists():
            raise Unsuitable("not found; allowed: a file or a folder")
        contents = read_contents(path)
        if isinstance(contents, Table):
            contents = {ROWS: rows_of(contents, columns, beside)}
        endings = tuple(f"_{called[kind]}" for kind in ("observed", "sigma"))
        samples = [each for each in contents if each not in beside and not each.endswith(endings)]
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
        shapes = shape.file, (shape.size,)
        if tuple(values.shape[1:]) not in shapes:
            allowed = dict.fromkeys(f"(N, {', '.join(map(str, each))})" for each in shapes)
            raise Unsuitable(f"{name}: given shape {tuple(values.shape)}; allowed: {' or '.join(allowed)}")
        observed, sigma = (
            _beside(contents, name, called[kind], kind, tuple(values.shape)) for kind in ("observed", "sigma")
        )
    return Samples(name, values, observed, sigma, shape, where)


def _beside(contents: Contents, name: str, called: str, kind: str, shape: tuple[int, ...]) -> Any:
    with reading():
        array = next((contents[each] for each in (f"{name}_{called}", called) if each in contents), None)
    if array is not None and tuple(array.shape) != shape:
        raise Unsuitable(f"{kind}: given shape {tuple(array.shape)}; allowed: {shape}, as {name}")
    return array
