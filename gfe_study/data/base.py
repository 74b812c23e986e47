"""Samples and their splits. No training here.

Values are kept as they were stored, and scaled when a batch is taken.

Shapes: N samples, D values of each.
"""

from __future__ import annotations

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from gfe_study.config import Component, InputError
from gfe_study.device import has_room
from gfe_study.likelihoods.base import Observed
from gfe_study.metrics import Values
from gfe_study.names import DATA_DIR_VARIABLE

if TYPE_CHECKING:
    from gfe_study.config import Trial
    from gfe_study.likelihoods.base import Likelihood

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
    """

    values_ND: Array
    labels_N: np.ndarray[Any, np.dtype[np.int64]] | None = None
    observed_ND: np.ndarray[Any, np.dtype[np.bool_]] | None = None
    sigma_ND: Array | None = None
    scale: Scale = Scale()

    def __len__(self) -> int:
        return len(self.values_ND)

    def batch(self, index: slice | Array, device: torch.device | None = None) -> Observed:
        """The chosen samples, scaled. On a GPU with room for it the whole split is kept, as it is stored."""
        values_BD, known, sigma = self._chosen(index, device)
        assert values_BD is not None
        return Observed(self.scale.apply(values_BD), known, None if sigma is None else self.scale.spread(sigma))

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
        labels_N, observed_ND, sigma_ND = self.labels_N, self.observed_ND, self.sigma_ND
        return Split(
            self.values_ND[index],
            None if labels_N is None else labels_N[index],
            None if observed_ND is None else observed_ND[index],
            None if sigma_ND is None else sigma_ND[index],
            self.scale,
        )

    def digest(self) -> bytes:
        """SHA-256 of everything that is stored, in order."""
        content = hashlib.sha256()
        if self.values_ND.dtype != np.uint8:
            content.update(str(self.values_ND.dtype).encode())
        observed_ND = self.observed_ND
        for start in range(0, len(self), AT_ONCE):
            values_ND = np.ascontiguousarray(self.values_ND[start : start + AT_ONCE])
            if observed_ND is not None:
                values_ND = np.where(observed_ND[start : start + AT_ONCE], values_ND, 0).astype(values_ND.dtype)
            content.update(values_ND.reshape(-1).data)
        if self.labels_N is not None:
            content.update(np.ascontiguousarray(self.labels_N, dtype=np.int64).data)
        for part in (observed_ND, self.sigma_ND):
            if part is not None:
                content.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
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


class Dataset(Component, ABC):
    """A dataset by name; its settings are fields."""

    outlast_name = frozenset({"train_images", "subset_seed", "held_out"})

    noun: ClassVar[str] = "pixel"
    """What one of a sample's values is called: `pixel`, or `value` of data that are not images."""

    train_images: int | None = Field(None, gt=0)
    """Different training images there are: a stratified subset, contained in every larger one; None for all."""
    subset_seed: int = Field(0, ge=0)
    """Which subset."""
    held_out: int | None = None
    """A class that is left out of training and validation and stays in the test split; None for no class."""
    scale: Literal["standard", "minmax", "none"] | None = None
    """How stored values become those that the decoder reproduces, fitted on what is observed of the training samples:
    zero mean and unit variance, the range to [0, 1], or as they are. Vectors are scaled by value, samples with
    channels by channel, all others as a whole. None: images from black 0 to white 1, anything else as it is. Whatever
    is shown or written is in the data's own units."""

    @property
    def whole(self) -> Self:
        """The dataset with all of its samples, as they are stored."""
        everything = {"train_images": None, "subset_seed": 0, "held_out": None, "scale": None}
        return self.model_copy(update=everything)

    @property
    def label(self) -> str:
        """What texts call the dataset."""
        return self.name

    @property
    def called(self) -> Values:
        """What its values are called and measured in, for texts about it."""
        return Values(self.noun, getattr(self, "unit", None) or "")

    @abstractmethod
    def read(self, folders: list[Path], *, download: bool) -> Splits:
        """The whole splits, from the first of `folders` that holds the files; see `load`."""

    def sources(self, folders: list[Path]) -> list[Path]:
        """Return the files that `read` may read, whether they exist or not; none if the data comes with a package."""
        return []

    def load(self, folders: list[Path] | None = None, *, download: bool = False) -> Splits:
        """Return the scaled splits, without `held_out`, and with the training split cut to `train_images`.

        Args:
            folders: where to look; None stands for `data_folders()`.
            download: fetch what is in none of them, under a lock.

        Raises:
            DataError: the files are nowhere, cannot be fetched, or are damaged, or hold too few samples, or not the
                class that is held out.
        """
        splits = self.read(data_folders() if folders is None else folders, download=download)
        if self.held_out is not None:
            splits = self._without(splits, self.held_out)
        if self.train_images is not None:
            if self.train_images > len(splits.train):
                raise DataError(
                    f"data.train_images: given {self.train_images}; allowed: at most {len(splits.train)}, "
                    f"the training samples of {self.name}"
                )
            splits = replace(splits, train=nested_subset(splits.train, self.train_images, self.subset_seed))
        if self.scale is None:
            return splits
        scale = fitted_scale(self.scale, splits)
        train, val, test = (replace(split, scale=scale) for split in splits.parts.values())
        return replace(splits, train=train, val=val, test=test)

    def _without(self, splits: Splits, label: int) -> Splits:
        parts = [(part, part.labels_N) for part in (splits.train, splits.val) if part.labels_N is not None]
        if len(parts) < 2 or splits.test.labels_N is None:
            raise DataError(f"data.held_out: given {label}, and {self.name} has no labels; allowed: null")
        classes = np.unique(parts[0][1]).tolist()
        allowed = [each for each in classes if all((labels_N != each).any() for _, labels_N in parts)]
        if label not in allowed:
            raise DataError(
                f"data.held_out: given {label}; allowed: a class that {self.name} trains on beside others"
                + (f": {', '.join(map(str, allowed))}" if allowed else "; it has one alone")
            )
        train, val = (part.take(labels_N != label) for part, labels_N in parts)
        return replace(splits, train=train, val=val)


def fitted_scale(kind: Literal["standard", "minmax", "none"], splits: Splits) -> Scale:
    """The scale of a kind, fitted on the observed values of the training split; a constant is only shifted."""
    train, shape = splits.train, splits.shape
    levels = train.scale.levels
    if kind == "none":
        return Scale(levels=levels)
    by_value = len(shape.sides) == 1 and shape.axis is None
    groups = shape.size if by_value else shape.channels

    def reduced(function: Any, start: Array, combine: Any) -> Array:
        """A reduction over samples and over the values of a group, shape (groups,)."""
        for begin in range(0, len(train), AT_ONCE):
            rows = slice(begin, begin + AT_ONCE)
            values = np.asarray(train.values_ND[rows], dtype=np.float64)
            known = np.ones(values.shape, bool) if train.observed_ND is None else train.observed_ND[rows]
            grouped = (part.reshape(len(values), groups, -1) for part in (values, known))
            start = combine(start, function(*grouped))
        return start

    zero = np.zeros(groups)
    if kind == "minmax":
        lowest = reduced(lambda v, k: v.min((0, 2), where=k, initial=np.inf), zero + np.inf, np.minimum)
        highest = reduced(lambda v, k: v.max((0, 2), where=k, initial=-np.inf), zero - np.inf, np.maximum)
        shift, factor = lowest, highest - lowest
    else:
        count = np.maximum(reduced(lambda v, k: k.sum((0, 2)), zero, np.add), 1)
        shift = reduced(lambda v, k: v.sum((0, 2), where=k), zero, np.add) / count
        centre = shift[None, :, None]
        square = reduced(lambda v, k: np.square(v - centre).sum((0, 2), where=k), zero, np.add)
        factor = np.sqrt(square / count)
    seen = np.isfinite(shift) & np.isfinite(factor)
    # What varies by rounding alone is constant.
    varies = seen & (factor > 1e-12 * np.abs(np.where(seen, shift, 0)))
    shift, factor = np.where(seen, shift, 0.0), np.where(varies, factor, 1.0)
    if train.values_ND.dtype != np.float64:  # `apply` computes in float32, and `undo` must know the same numbers
        shift, factor = (each.astype(np.float32).astype(np.float64) for each in (shift, factor))
    if groups == 1:
        return Scale(float(shift[0]), float(factor[0]), levels)
    shifts, factors = (torch.from_numpy(each).repeat_interleave(shape.size // groups) for each in (shift, factor))
    return Scale(shifts, factors, levels)


def load_splits(trial: Trial, folders: list[Path] | None = None, *, download: bool = False) -> Splits:
    """The splits of a trial; see `Dataset.load`.

    Raises:
        InputError: they cannot be had, a value is outside the domain of the trial's likelihood, or a measure cannot be
            taken of them.
    """
    splits = trial.data.load(folders, download=download)
    check_data(trial, splits)
    return splits


def check_data(trial: Trial, splits: Splits) -> None:
    """Raise `InputError` if a value is outside the domain of the trial's likelihood, or a measure cannot be taken."""
    for measure in trial.eval.measures or ():
        measure.check_data(splits)
    likelihood = trial.likelihood
    if likelihood.needs_sigma and splits.train.sigma_ND is None:
        raise DataError(
            "likelihood.sigma: given 'data', and no array 'sigma' lies beside the samples; allowed: a number, learned"
        )
    for part, split in splits.parts.items():
        if split.values_ND.dtype == np.uint8 and split.observed_ND is None and isinstance(split.scale.factor, float):
            kinds = np.flatnonzero(np.bincount(split.values_ND.reshape(-1), minlength=256)).astype(np.uint8)
            split = Split(kinds[:, None], scale=split.scale)
        for batch in split.batches():
            if not bool(batch.value_BD.isfinite().all()):
                given = trial.data.scale or "null"
                raise DataError(
                    f"data.scale: given {given} with {part} values beyond what 32 bits hold; allowed: standard, minmax"
                )
            if not likelihood.accepts(batch):
                known = batch.known(batch.value_BD)
                raise DataError(
                    f"likelihood.name: given {likelihood.name!r}, which is for {likelihood.domain}, with {part} values "
                    f"from {known.min():g} to {known.max():g} (data.scale: {trial.data.scale or 'not given'}); "
                    "allowed: another likelihood or scale"
                )


def data_folders() -> list[Path]:
    """Where data files are looked for, first to last."""
    given = os.environ.get(DATA_DIR_VARIABLE)
    return [*([Path(given).expanduser().resolve()] if given else []), Path("data").resolve()]
