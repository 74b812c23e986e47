"""The user's own data: arrays of any shape, whose values may be missing.

Shapes: N samples, D values of each.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from gfe_study.config import Section, suggestion
from gfe_study.data.files import OwnFiles, Unsuitable, blamed_on, reading
from gfe_study.data.readers import ROWS, Contents, Pictures, Table, read_contents
from gfe_study.data.samples import BESIDE
from gfe_study.data.split import Array, DataError, Scale, Split, Splits, seeded
from gfe_study.data.stored import (
    Channels,
    check_array,
    kept,
    kept_groups,
    kept_labels,
    kept_sigma,
    known_values,
    loaded,
    rows_of,
    sample_shape,
)

PARTS = ("train", "val", "test")
IMAGE_LEVELS = {np.dtype(np.uint8): 255, np.dtype(np.bool_): 1}
"""Types that make images of samples with two axes, and perhaps channels, and the value of white."""


class SplitSettings(Section):
    """How samples are split that a file does not split."""

    val: float = Field(0.2, gt=0, lt=1)
    """Share of the samples that validates; of the training samples if the file has a test split."""
    test: float = Field(0.2, gt=0, lt=1)
    """Share of the samples that tests."""
    by: Literal["random", "order", "group"] | None = None
    """`random` draws samples; `order` trains on the first and tests on the last; `group` draws groups, which stay
    whole. None: by group if the file has groups, else at random."""

    @model_validator(mode="after")
    def _some_are_left_to_train_on(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(f"val + test: given {self.val:g} + {self.test:g}; allowed: a sum below 1")
        return self


class Arrays(OwnFiles):
    """Arrays from a file: `.npy`, `.npz`, HDF5, zarr, netCDF, a table (CSV, TSV, Parquet), or a folder of images.

    The first axis counts the samples. A file holds them as `train`, `test` and perhaps `val`, or as one array, which is
    split; a folder may hold such arrays as `.npy` files. The rows of a table are samples. A folder of images may have a
    folder for every class, and above those `train`, `test` and perhaps `val`.

    Values are numbers or Booleans and are kept as they are. NaN is a missing value. Samples with two axes, and perhaps
    channels, are images if they are Booleans or 8-bit without sign: white is 1 after scaling. All others are scaled
    only if `scale` is given, 8-bit vectors and volumes too.
    """

    immaterial = frozenset({"path", "array", "columns", *BESIDE, "channels", "split", "unit"})
    noun = "value"

    array: str | None = None
    """Name of the array that holds the samples, to be split; None: the only one, or else `train`, `val` and `test`."""
    columns: tuple[str, ...] | None = None
    """Columns of a table that make a sample; None: all but labels and groups."""
    labels: str | None = None
    """Name of the array, or column, of classes: whole numbers or text. None: `labels` if there is one. The names of
    this and the three below begin with `train_`, `val_` or `test_` if the file has these splits."""
    observed: str | None = None
    """Name of the array that tells which values are observed. None: `observed` if there is one."""
    sigma: str | None = None
    """Name of the array of the values' standard errors. None: `sigma` if there is one."""
    groups: str | None = None
    """Name of the array, or column, of groups that a split keeps whole. None: `groups` if there is one."""
    channels: Channels | None = None
    """Which axis of a sample holds channels. None: of three axes or more the first, else the last, if it is at most 4
    long; else none."""
    split: SplitSettings = SplitSettings()
    """How samples are split that the file does not split."""
    unit: str | None = None
    """The values' unit, for tables and figures."""

    @model_validator(mode="after")
    def _groups_are_kept_whole(self) -> Self:
        if self.groups is not None and self.split.by not in (None, "group"):
            raise ValueError(f"groups: given {self.groups!r}, and split.by {self.split.by!r}; allowed: split.by group")
        return self

    def read(self, folders: list[Path], *, download: bool) -> Splits:
        path = next((place for place in self.places(folders) if place.exists()), None)
        if path is None:
            raise self.missing(folders, "a file or a folder")
        with blamed_on(f"data.path: {path}"):
            contents = read_contents(path)
            if isinstance(contents, Table):
                contents = self._rows(contents)
            elif self.columns is not None:
                raise DataError(f"data.columns: given {', '.join(self.columns)}, and {path} is no table; allowed: null")
            names = self._names(contents)
            parts = {part: self._part(contents, part, name) for part, name in names.items()}
            _check_alike(parts)
            return self._splits(contents, parts)

    def sources(self, folders: list[Path]) -> list[Path]:
        places = self.places(folders)
        return [*places, *(file for place in places if place.is_dir() for file in sorted(place.rglob("*")))]

    @property
    def beside(self) -> dict[str, str]:
        """What `labels`, `observed`, `sigma` and `groups` are called in files, where that is given."""
        return {kind: name for kind in BESIDE if (name := getattr(self, kind)) is not None}

    def _rows(self, table: Table) -> Contents:
        """The rows of a table as an array of samples, beside its labels and groups."""
        for kind in ("observed", "sigma"):
            if (given := getattr(self, kind)) is not None:
                raise DataError(f"data.{kind}: given {given!r}, with a table; allowed: null")
        beside = {name: table[name] for kind in ("labels", "groups") if (name := self._named(kind, "")) in table}
        for kind, given in (("labels", self.labels), ("groups", self.groups)):
            if given is not None and given not in table:
                raise DataError(f"data.{kind}: given {given!r}; {suggestion(given, list(table))}")
        return {**beside, ROWS: rows_of(table, self.columns, beside)}

    def _names(self, contents: Contents) -> dict[str, str]:
        """The names of the arrays of samples by split; of an array that is to be split under ``""``."""
        names = list(contents)
        if self.array is not None:
            if self.array not in names:
                raise DataError(f"data.array: given {self.array!r}; {suggestion(self.array, names)}")
            return {"": self.array}
        samples = [name for name in names if name not in {self._named(kind, "") for kind in BESIDE}]
        if len(samples) == 1:
            return {"": samples[0]}
        parts = {part: part for part in PARTS if part in samples}
        if {"train", "test"} <= parts.keys():
            return parts
        if parts:
            raise Unsuitable(
                f"given {' and '.join(parts)} alone; allowed: train and test, with or without val, or data.array"
            )
        if not samples:
            raise Unsuitable("holds no array of samples; allowed: one, or train and test")
        raise Unsuitable(
            f"holds several arrays; allowed: data.array: {', '.join(samples)}; or arrays called train and test"
        )

    def _named(self, kind: str, part: str) -> str:
        name: str = getattr(self, kind) or kind
        return f"{part}_{name}" if part else name

    def _beside(self, contents: Contents, kind: str, part: str) -> Array | None:
        """An array that lies beside the samples; None if there is none and none is asked for."""
        name = self._named(kind, part)
        if name in contents:
            with reading():
                return loaded(contents[name])
        if getattr(self, kind) is not None:
            raise DataError(f"data.{kind}: given {getattr(self, kind)!r}; {suggestion(name, list(contents))}")
        return None

    def _part(self, contents: Contents, part: str, name: str) -> Part:
        with reading():
            raw = contents[name]
        check_array(raw, name)
        values = kept(loaded(raw), name)
        known = known_values(values, self._beside(contents, "observed", part), name)
        sigma = self._beside(contents, "sigma", part)
        labels = self._beside(contents, "labels", part)
        return Part(
            name,
            np.dtype(raw.dtype),
            values,
            known,
            None if sigma is None else kept_sigma(sigma, known, values.shape, name),
            None if labels is None else kept_labels(labels, len(values)),
        )

    def _splits(self, contents: Contents, parts: Mapping[str, Part]) -> Splits:
        first = next(iter(parts.values()))
        channels = self.channels
        if channels is None and isinstance(contents, Pictures):
            channels = "last" if first.values.ndim == 4 else "none"
        shape = sample_shape(first.values.shape[1:], channels)
        levels = IMAGE_LEVELS.get(first.dtype) if len(shape.sides) == 2 else None
        scale = Scale() if levels is None else Scale.of_levels(levels)
        dtype = np.result_type(*(part.values for part in parts.values()))
        labels = _coded({name: part.labels for name, part in parts.items()})
        splits = {}
        for split, (name, rows) in self._divided(contents, parts).items():
            part = parts[name]
            arrays = (part.values, part.known, part.sigma)
            values_ND, known_ND, sigma_ND = (None if each is None else shape.from_file(each[rows]) for each in arrays)
            if known_ND is not None and (empty := np.flatnonzero(~known_ND.any(1))).size:
                place = np.arange(len(part.values))[rows][empty].min()
                raise Unsuitable(
                    f"{part.name}: sample {place}, of the {split} split, has no observed value; allowed: at least one"
                )
            assert values_ND is not None
            labels_N = labels[name]
            splits[split] = Split(
                values_ND.astype(dtype, copy=False),
                None if labels_N is None else labels_N[rows],
                known_ND,
                sigma_ND,
                scale,
            )
        shape = replace(shape, mask=any(split.observed_ND is not None for split in splits.values()))
        train, val, test = (splits[split] for split in PARTS)
        return Splits(train, val, test, shape, f"{shape.dims} {levels}")

    def _divided(self, contents: Contents, parts: Mapping[str, Part]) -> dict[str, tuple[str, slice | Array]]:
        """Return split -> the part that it comes from, and its rows there."""
        whole: dict[str, tuple[str, slice | Array]] = {part: (part, slice(None)) for part in parts if part}
        if "val" in parts:
            if self.groups is not None:
                raise DataError(f"data.groups: given {self.groups!r}, and nothing is left to split; allowed: null")
            return whole
        source = "train" if whole else ""
        count = len(parts[source].values)
        groups = self._beside(contents, "groups", source)
        by = self.split.by or ("random" if groups is None else "group")
        shares = {"val": self.split.val} if whole else {"val": self.split.val, "test": self.split.test}
        divided: Mapping[str, slice | Array]
        if by == "group":
            if groups is None:
                raise DataError(
                    f"data.split.by: given 'group', without an array {self._named('groups', source)!r}; "
                    "allowed: random, order, or data.groups"
                )
            divided = by_group(kept_groups(groups, count), shares)
        else:
            divided = by_sample(count, shares, draw=by == "random")
        return whole | {split: (source, rows) for split, rows in divided.items()}


@dataclass(frozen=True)
class Part:
    """Samples as a file holds them, (N, *file).

    Attributes:
        name: of their array.
        dtype: in the file.
        values: as they are kept.
        known: which of them are observed; None if all are.
        sigma: their standard errors; None if unknown.
        labels: (N,), int64 or text; None if there are none.
    """

    name: str
    dtype: np.dtype[Any]
    values: Array
    known: Array | None
    sigma: Array | None
    labels: Array | None


def by_sample(count: int, shares: Mapping[str, float], *, draw: bool) -> dict[str, slice | Array]:
    """The rows of `train` and of every split that has a share, disjoint: drawn, or in the file's order."""
    sizes = {split: round(share * count) for split, share in shares.items()}
    sizes = {"train": count - sum(sizes.values()), **sizes}
    for split, size in sizes.items():
        if size < 1:
            raise Unsuitable(
                f"given {count} sample{'s' * (count > 1)}, which leaves none to the {split} split; "
                "allowed: more samples, or another data.split"
            )
    ends = np.cumsum(list(sizes.values()))
    rows = [slice(int(end - size), int(end)) for end, size in zip(ends, sizes.values(), strict=True)]
    order = seeded("arrays/random").permutation(count) if draw else None
    return {split: part if order is None else order[part] for split, part in zip(sizes, rows, strict=True)}


def by_group(group_N: Array, shares: Mapping[str, float]) -> dict[str, Array]:
    """The same, drawn by group: every group is in one split alone, and every split has at least one.

    Args:
        group_N: the number of every sample's group, from 0.
        shares: of the samples, which sizes of groups allow to be reached roughly.
    """
    generator = seeded("arrays/group")
    sizes = np.bincount(group_N)
    splits = ["train", *shares]
    if len(sizes) < len(splits):
        raise Unsuitable(
            f"groups: given {len(sizes)} group{'s' * (len(sizes) > 1)}; allowed: at least {len(splits)}, "
            f"one for each of {', '.join(splits)}"
        )
    order = generator.permutation(len(sizes))
    ends = np.cumsum(sizes[order])
    wanted = len(group_N) * (1 - sum(shares.values()) + np.cumsum([0.0, *shares.values()]))
    cuts = [0]
    for place, end in enumerate(wanted[:-1]):
        first, last = cuts[-1], len(sizes) - len(splits) + place  # which leave a group to each split
        cuts.append(first + 1 + int(np.abs(ends[first : last + 1] - end).argmin()))
    cuts.append(len(sizes))
    split_of_group = np.empty(len(sizes), dtype=np.int64)
    for number, (begin, end) in enumerate(itertools.pairwise(cuts)):
        split_of_group[order[begin:end]] = number
    drawn = generator.permutation(len(group_N))
    return {split: drawn[split_of_group[group_N[drawn]] == number] for number, split in enumerate(splits)}


def _check_alike(parts: Mapping[str, Part]) -> None:
    first, *others = parts.values()
    for part in others:
        if part.values.shape[1:] != first.values.shape[1:]:
            raise Unsuitable(
                f"{part.name}: given samples of shape {part.values.shape[1:]}; "
                f"allowed: {first.values.shape[1:]}, as {first.name}"
            )
        if part.dtype != first.dtype and {part.dtype, first.dtype} & IMAGE_LEVELS.keys():
            raise Unsuitable(f"{part.name}: given {part.dtype}; allowed: {first.dtype}, as {first.name}")
        if (part.sigma is None) != (first.sigma is None):
            raise Unsuitable("sigma: given for some splits; allowed: for all, or for none")


def _coded(labels: Mapping[str, Array | None]) -> dict[str, Array | None]:
    """Labels that are text as the numbers of their place in the alphabet."""
    given = [each for each in labels.values() if each is not None]
    text = [each for each in given if each.dtype.kind == "U"]
    if not text:
        return dict(labels)
    if len(text) < len(given):
        raise Unsuitable("labels: given text and numbers; allowed: one of them")
    classes = np.unique(np.concatenate(text))
    return {name: None if each is None else np.searchsorted(classes, each) for name, each in labels.items()}
