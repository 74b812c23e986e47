"""Samples and their splits, with what is known of every value. No training here.

Values are kept as they were stored, and scaled when a batch is taken.

Shapes: N samples, D values of each.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from gfe_study.config import InputError
from gfe_study.device import has_room
from gfe_study.likelihoods.base import Observed

if TYPE_CHECKING:
    from gfe_study.likelihoods.base import Likelihood
    from gfe_study.operators.base import Instrument

SPLIT_SEED = 20241201
"""Seeds every split: the splits of a dataset are the same for all trials of all studies."""
AT_ONCE = 4096
"""Samples that are looked at together where all of them are."""

Array = np.ndarray[Any, Any]


class DataError(InputError):
    """A dataset cannot be had; the message says where it was looked for and what to set."""


@dataclass(frozen=True)
class Shape:
    """The shape of a sample, whose values are kept flat, channels first.

    Attributes:
        channels: 1 for grey images, scalar fields, volumes and vectors; 3 for red, green and blue.
        sides: lengths of the other axes: (height, width) of an image, (D,) of a vector.
        axis: where files have the axis of the channels; None: they have none, and there is one channel.
        mask: whether encoders read, beside the values, which of them are observed.
    """

    channels: int
    sides: tuple[int, ...]
    axis: Literal["first", "last"] | None = None
    mask: bool = False

    @property
    def dims(self) -> tuple[int, ...]:
        """(channels, *sides)."""
        return (self.channels, *self.sides)

    @property
    def size(self) -> int:
        """D: the numbers that make a sample."""
        return math.prod(self.dims)

    @property
    def input_channels(self) -> int:
        """Channels that an encoder reads."""
        return self.channels * (2 if self.mask else 1)

    @property
    def input_size(self) -> int:
        """Numbers that an encoder reads."""
        return self.size * (2 if self.mask else 1)

    @property
    def file(self) -> tuple[int, ...]:
        """The shape of a sample in files."""
        if self.axis is None:
            return self.sides
        return self.dims if self.axis == "first" else (*self.sides, self.channels)

    def to_file(self, values_ND: Array) -> Array:
        """(N, D) to (N, *file)."""
        values = values_ND.reshape(-1, *self.dims)
        return np.moveaxis(values, 1, -1) if self.axis == "last" else values.reshape(-1, *self.file)

    def from_file(self, values: Array) -> Array:
        """(N, *file) to (N, D)."""
        if self.axis == "last":
            values = np.moveaxis(values, -1, 1)
        return values.reshape(len(values), self.size)


def image_shape(height: int, width: int, channels: int = 1) -> Shape:
    """The shape of an image; files have its channels last, if it has several."""
    return Shape(channels, (height, width), "last" if channels > 1 else None)


@dataclass(frozen=True, eq=False)
class Scale:
    """The map from stored values to those that a decoder reproduces: (value − shift) / factor.

    Attributes:
        shift: a number, or one for every value, shape (D,), float64.
        factor: likewise.
        levels: the stored value of a white pixel, of images: 255, or 16 for `digits`; None for other data.
    """

    shift: float | Tensor = 0.0
    factor: float | Tensor = 1.0
    levels: int | None = None

    @classmethod
    def of_levels(cls, levels: int) -> Scale:
        """Black to 0 and white to 1."""
        return cls(0.0, float(levels), levels)

    def apply(self, values_ND: Tensor) -> Tensor:
        """Stored values to scaled ones, float32, a new tensor."""
        # Of doubles the difference is taken first: their last digits may be all that varies.
        exact = values_ND.dtype == torch.float64
        values_ND = values_ND.to(torch.float64 if exact else torch.float32, copy=True)
        if isinstance(self.shift, Tensor) or self.shift:
            values_ND = values_ND.sub_(self._like(self.shift, values_ND))
        return values_ND.div_(self._like(self.factor, values_ND)).to(torch.float32)

    def spread(self, sigma_ND: Tensor) -> Tensor:
        """Standard deviations of stored values to those of scaled ones, float32."""
        return (sigma_ND / self._like(self.factor, sigma_ND)).to(torch.float32)

    def undo(self, scaled_ND: Tensor) -> Tensor:
        """Scaled values to stored ones, float64."""
        scaled_ND = scaled_ND.double()
        return scaled_ND * self._like(self.factor, scaled_ND) + self._like(self.shift, scaled_ND)

    def stretch(self, scaled_ND: Tensor) -> Tensor:
        """Differences of scaled values to those of stored ones, float64."""
        scaled_ND = scaled_ND.double()
        return scaled_ND * self._like(self.factor, scaled_ND)

    @property
    def _plain(self) -> bool:
        """Whether scaled values of images are shades."""
        return not isinstance(self.factor, Tensor) and (self.shift, self.factor) == (0.0, self.levels)

    def shade(self, scaled_ND: Tensor) -> Tensor:
        """Scaled values of images to shades from 0, black, to 1, white."""
        assert self.levels is not None
        return scaled_ND if self._plain else (self.undo(scaled_ND) / self.levels).to(scaled_ND.dtype)

    def of_shades(self) -> Scale:
        """The same for images that are stored as shades from 0 to 1."""
        assert self.levels is not None
        return Scale(self.shift / self.levels, self.factor / self.levels, self.levels)

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors."""
        return {"shift": self.shift, "factor": self.factor, "levels": self.levels}

    @staticmethod
    def _like(number: float | Tensor, values_ND: Tensor) -> float | Tensor:
        return number.to(values_ND) if isinstance(number, Tensor) else number


@dataclass(frozen=True)
class Split:
    """Samples of one split, as stored.

    Attributes:
        values_ND: uint8, float32 or float64. What a missing value holds has no meaning.
        labels_N: int64; None if there are none.
        observed_ND: bool; None if every value is observed.
        sigma_ND: standard deviation of every value's error, in the values' units; None if unknown.
        scale: what makes a decoder's values of the stored ones.
        withheld_ND: bool; values that are not observed, but known, for scoring what is imputed. None: none.
        instrument: what the samples are measured through before a method is shown them; None: nothing.
    """

    values_ND: Array
    labels_N: np.ndarray[Any, np.dtype[np.int64]] | None = None
    observed_ND: np.ndarray[Any, np.dtype[np.bool_]] | None = None
    sigma_ND: Array | None = None
    scale: Scale = Scale()
    withheld_ND: np.ndarray[Any, np.dtype[np.bool_]] | None = None
    instrument: Instrument | None = None

    def __len__(self) -> int:
        return len(self.values_ND)

    def withheld(self, *, also: bool = False) -> Split:
        """The same samples with those values observed that are withheld, and no others unless `also` is given."""
        known_ND = self.withheld_ND
        if also and known_ND is not None and self.observed_ND is not None:
            known_ND = known_ND | self.observed_ND
        return replace(self, observed_ND=known_ND, withheld_ND=None, instrument=None)

    @property
    def unmeasured(self) -> Split:
        """The same samples as they are, and not as they are measured."""
        return self if self.instrument is None else replace(self, instrument=None)

    def batch(self, index: slice | Array, device: torch.device | None = None) -> Observed:
        """The chosen samples, scaled, as they are measured. On a GPU with room for it the whole split is kept, as it is
        stored."""
        values_BD, known, sigma = self._chosen(index, device)
        assert values_BD is not None
        scaled_BD = self.scale.apply(values_BD)
        if self.instrument is None:
            return Observed(scaled_BD, known, None if sigma is None else self.scale.spread(sigma))
        if known is None:
            return Observed(self.instrument.apply(scaled_BD), instrument=self.instrument)
        # What a missing value holds must not reach a measured one.
        measured_BM = self.instrument.apply(scaled_BD.masked_fill(~known, 0.0))
        return Observed(measured_BM, self.instrument.known(known), instrument=self.instrument)

    def _chosen(self, index: slice | Array, device: torch.device | None) -> list[Tensor | None]:
        parts = (self.values_ND, self.observed_ND, self.sigma_ND)
        kept = None if device is None else self._kept_on(device)
        if kept is None:
            return [None if part is None else _tensor(part[index], device) for part in parts]
        place = index if isinstance(index, slice) else torch.from_numpy(index).to(device)
        return [None if part is None else part[place] for part in kept]

    def _kept_on(self, device: torch.device) -> list[Tensor | None] | None:
        """The stored values on a device; None where they have no room."""
        if device not in self._kept:
            parts = (self.values_ND, self.observed_ND, self.sigma_ND)
            room = has_room(sum(part.nbytes for part in parts if part is not None), device)
            self._kept[device] = [None if part is None else _tensor(part, device) for part in parts] if room else None
        return self._kept[device]

    @cached_property
    def _kept(self) -> dict[torch.device, list[Tensor | None] | None]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def batches(self, count: int | None = None) -> Iterator[Observed]:
        """The first `count` samples, or all, scaled, some at a time."""
        count = len(self) if count is None else min(count, len(self))
        for start in range(0, count, AT_ONCE):
            yield self.batch(slice(start, min(start + AT_ONCE, count)))

    def take(self, index: slice | Array) -> Split:
        """The split that holds the chosen samples only."""
        parts: dict[str, Any] = {
            name: None if (part := getattr(self, name)) is None else part[index]
            for name in ("values_ND", "labels_N", "observed_ND", "sigma_ND", "withheld_ND")
        }
        return replace(self, **parts)

    def digest(self) -> bytes:
        """SHA-256 of everything that is stored, in order."""
        content = hashlib.sha256()
        if self.values_ND.dtype != np.uint8:
            content.update(str(self.values_ND.dtype).encode())
        known_ND = self.observed_ND
        if self.withheld_ND is not None and known_ND is not None:
            known_ND = known_ND | self.withheld_ND
        for start in range(0, len(self), AT_ONCE):
            values_ND = np.ascontiguousarray(self.values_ND[start : start + AT_ONCE])
            if known_ND is not None:
                values_ND = np.where(known_ND[start : start + AT_ONCE], values_ND, 0).astype(values_ND.dtype)
            content.update(values_ND.reshape(-1).data)
        if self.labels_N is not None:
            content.update(np.ascontiguousarray(self.labels_N, dtype=np.int64).data)
        for part in (self.observed_ND, self.sigma_ND, self.withheld_ND):
            if part is not None:
                content.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        if self.instrument is not None:
            operator = self.instrument.operator
            told = operator.model_dump_json(exclude={"splits", *operator.immaterial})
            content.update(f"{told}{operator.identity()}".encode())
        return content.digest()


def _tensor(array: Array, device: torch.device | None) -> Tensor:
    # Of Ray's object store come read-only arrays, which torch does not like to share.
    return torch.from_numpy(np.require(array, requirements="W")).to(device)


@dataclass(frozen=True)
class Splits:
    """Disjoint train, validation and test splits of a dataset.

    Attributes:
        shape: of every sample.
        format: what the stored numbers mean, where the dataset's name does not say it; part of the fingerprint.
        prepared: what measures made of the whole dataset, by `Measure.prepares`; no part of the fingerprint.
    """

    train: Split
    val: Split
    test: Split
    shape: Shape
    format: str = ""
    prepared: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Split]:
        return {"train": self.train, "val": self.val, "test": self.test}

    def changed(self, change: Callable[[str, Split], Split]) -> Splits:
        """The splits after a change to each, given its name."""
        train, val, test = (change(name, split) for name, split in self.parts.items())
        return replace(self, train=train, val=val, test=test)

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of all three splits."""
        content = b"".join(split.digest() for split in self.parts.values())
        return hashlib.sha256(content + self.format.encode()).hexdigest()

    def floor(self, likelihood: Likelihood, count: int) -> float | None:
        """The lowest mean loss of the first `count` test samples, or of all, that any decoder can reach; None: none."""
        floors = [likelihood.floor(batch) for batch in self.test.batches(count)]
        known = [floor for floor in floors if floor is not None]
        return float(torch.cat(known).mean()) if known else None


def are_images(shape: Shape, scale: Scale) -> bool:
    """Whether samples are complete images in grey or in colour."""
    return scale.levels is not None and len(shape.sides) == 2 and shape.channels in (1, 3) and not shape.mask


def seeded(purpose: str) -> np.random.Generator:
    """The generator of a split, seeded by `SPLIT_SEED` and its purpose."""
    words = np.frombuffer(hashlib.sha256(f"{SPLIT_SEED}/{purpose}".encode()).digest(), dtype=np.uint32)
    return np.random.default_rng(words)


def hold_out(split: Split, count: int, purpose: str) -> tuple[Split, Split]:
    """Two disjoint parts of a split, the second of `count` samples, drawn by `SPLIT_SEED` and `purpose`."""
    order = seeded(purpose).permutation(len(split))
    return split.take(order[: len(split) - count]), split.take(order[len(split) - count :])


def nested_subset(split: Split, count: int, seed: int) -> Split:
    """The first `count` samples of an order in which every beginning holds the classes in their proportions.

    Orders of one seed are the same for every `count`: a smaller subset is contained in every larger one. Samples
    without labels are of one class.
    """
    labels_N = np.zeros(len(split), dtype=np.int64) if split.labels_N is None else split.labels_N
    return split.take(nested_order(labels_N, seed)[:count])


def nested_order(labels_N: Array, seed: int) -> Array:
    """An order of samples, shape (N,), in which every beginning holds the classes in their proportions."""
    place_N = np.empty(len(labels_N))
    generator = np.random.default_rng([SPLIT_SEED, seed])
    for label in np.unique(labels_N):
        members = np.flatnonzero(labels_N == label)
        # Each class spread evenly over [0, 1), from an offset of its own.
        place_N[generator.permutation(members)] = (np.arange(len(members)) + generator.random()) / len(members)
    return np.argsort(place_N, kind="stable")
