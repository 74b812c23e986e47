"""Images and their splits. No training here.

Pixels are kept as they were stored (uint8) and scaled to [0, 1] when a batch is taken.

Shapes: N images, D pixels.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from gfe_study.config import InputError, Section
from gfe_study.names import DATA_DIR_VARIABLE

SPLIT_SEED = 20241201
"""Seeds every split: the splits of a dataset are the same for all trials of all studies."""


class DataError(InputError):
    """A dataset cannot be had; the message says where it was looked for and what to set."""


class ImageShape(NamedTuple):
    """Of an image, whose pixels are kept channels first: (channels, height, width)."""

    channels: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        """D: the numbers that make an image."""
        return self.channels * self.height * self.width

    @property
    def picture(self) -> tuple[int, ...]:
        """Of an image as pictures are shown and exchanged: (height, width) if grey, else (height, width, channels)."""
        return (self.height, self.width) if self.channels == 1 else (self.height, self.width, self.channels)

    def to_pictures(self, images_ND: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """(N, D), channels first, to (N, *picture)."""
        return np.moveaxis(images_ND.reshape(-1, *self), 1, -1).reshape(-1, *self.picture)

    def from_pictures(self, pictures: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """(N, *picture) to (N, D), channels first."""
        channels_last = pictures.reshape(-1, self.height, self.width, self.channels)
        return np.moveaxis(channels_last, -1, 1).reshape(-1, self.pixels)


@dataclass(frozen=True)
class Split:
    """Images of one split, as stored.

    Attributes:
        pixels_ND: uint8.
        labels_N: int64.
        levels: the stored value of a white pixel: 255, or 16 for `digits`.
    """

    pixels_ND: np.ndarray[Any, np.dtype[np.uint8]]
    labels_N: np.ndarray[Any, np.dtype[np.int64]]
    levels: int = 255

    def __len__(self) -> int:
        return len(self.pixels_ND)

    def images(self, index: slice | np.ndarray[Any, Any], device: torch.device | None = None) -> Tensor:
        """The chosen images, (N, D), float32 in [0, 1]."""
        # Of Ray's object store come read-only arrays, which torch does not like to share.
        pixels_ND = np.require(self.pixels_ND[index], requirements="W")
        return torch.from_numpy(pixels_ND).to(device, torch.float32).div_(self.levels)

    def take(self, index: slice | np.ndarray[Any, Any]) -> Split:
        """The split that holds the chosen images only."""
        return Split(self.pixels_ND[index], self.labels_N[index], self.levels)

    def digest(self) -> bytes:
        """SHA-256 of pixels and labels, in order."""
        content = hashlib.sha256(np.ascontiguousarray(self.pixels_ND).reshape(-1).data)
        content.update(np.ascontiguousarray(self.labels_N, dtype=np.int64).data)
        return content.digest()


@dataclass(frozen=True)
class Splits:
    """Disjoint train, validation and test splits of a dataset of images of `height` × `width` pixels.

    Attributes:
        channels: 1 for grey images, 3 for red, green and blue.
    """

    train: Split
    val: Split
    test: Split
    height: int
    width: int
    channels: int = 1

    @property
    def parts(self) -> dict[str, Split]:
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def shape(self) -> ImageShape:
        return ImageShape(self.channels, self.height, self.width)

    @property
    def pixels(self) -> int:
        """D, channels counted."""
        return self.shape.pixels

    def test_floor(self, count: int) -> float:
        """`entropy_floor` of the first `count` test images, or of all if they are fewer."""
        return entropy_floor(self.test.take(slice(count)))

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of all three splits."""
        return hashlib.sha256(b"".join(split.digest() for split in self.parts.values())).hexdigest()


def entropy_floor(split: Split) -> float:
    """Mean binary entropy of the pixels, nats per pixel: no decoder's cross-entropy can be lower.

    0.0581 on MNIST's test images.
    """
    counts = np.bincount(split.pixels_ND.ravel(), minlength=split.levels + 1)
    p = np.arange(len(counts)) / split.levels
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -(np.nan_to_num(p * np.log(p)) + np.nan_to_num((1 - p) * np.log(1 - p)))
    return float((counts * entropy).sum() / counts.sum())


def hold_out(split: Split, count: int, purpose: str) -> tuple[Split, Split]:
    """Two disjoint parts of a split, the second of `count` images, drawn by `SPLIT_SEED` and `purpose`."""
    words = np.frombuffer(hashlib.sha256(f"{SPLIT_SEED}/{purpose}".encode()).digest(), dtype=np.uint32)
    order = np.random.default_rng(words).permutation(len(split))
    return split.take(order[: len(split) - count]), split.take(order[len(split) - count :])


def nested_subset(split: Split, count: int, seed: int) -> Split:
    """The first `count` images of an order in which every beginning holds the classes in their proportions.

    Orders of one seed are the same for every `count`: a smaller subset is contained in every larger one.
    """
    return split.take(nested_order(split.labels_N, seed)[:count])


def nested_order(labels_N: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, Any]:
    """An order of images, shape (N,), in which every beginning holds the classes in their proportions."""
    place_N = np.empty(len(labels_N))
    generator = np.random.default_rng([SPLIT_SEED, seed])
    for label in np.unique(labels_N):
        members = np.flatnonzero(labels_N == label)
        # Each class spread evenly over [0, 1), from an offset of its own.
        place_N[generator.permutation(members)] = (np.arange(len(members)) + generator.random()) / len(members)
    return np.argsort(place_N, kind="stable")


class Dataset(Section, ABC):
    """A dataset by name; its settings are fields."""

    outlast_name = frozenset({"train_images", "subset_seed", "held_out"})

    levels: ClassVar[int] = 255
    """The stored value of a white pixel."""

    name: str
    train_images: int | None = Field(None, gt=0)
    """Different training images there are: a stratified subset, contained in every larger one; None for all."""
    subset_seed: int = Field(0, ge=0)
    """Which subset."""
    held_out: int | None = None
    """A class that is left out of training and validation and stays in the test split; None for no class."""

    @abstractmethod
    def read(self, folders: list[Path], *, download: bool) -> Splits:
        """The whole splits, from the first of `folders` that holds the files; see `load`."""

    def sources(self, folders: list[Path]) -> list[Path]:
        """Return the files that `read` may read, whether they exist or not; none if the data comes with a package."""
        return []

    def load(self, folders: list[Path] | None = None, *, download: bool = False) -> Splits:
        """The splits, `held_out` left out, and then the training part cut to `train_images`.

        Args:
            folders: where to look; None stands for `data_folders()`.
            download: fetch what is in none of them, under a lock.

        Raises:
            DataError: the files are nowhere, cannot be fetched, or are damaged, or hold too few images, or not the
                class that is held out.
        """
        splits = self.read(data_folders() if folders is None else folders, download=download)
        if self.held_out is not None:
            splits = self._without(splits, self.held_out)
        if self.train_images is None:
            return splits
        if self.train_images > len(splits.train):
            raise DataError(
                f"data.train_images: given {self.train_images}; allowed: at most {len(splits.train)}, "
                f"the training images of {self.name}"
            )
        return replace(splits, train=nested_subset(splits.train, self.train_images, self.subset_seed))

    def _without(self, splits: Splits, label: int) -> Splits:
        parts = splits.train, splits.val
        classes = np.unique(splits.train.labels_N).tolist()
        allowed = [each for each in classes if all((part.labels_N != each).any() for part in parts)]
        if label not in allowed:
            raise DataError(
                f"data.held_out: given {label}; allowed: a class that {self.name} trains on beside others"
                + (f": {', '.join(map(str, allowed))}" if allowed else "; it has one alone")
            )
        train, val = (part.take(part.labels_N != label) for part in parts)
        return replace(splits, train=train, val=val)


def data_folders() -> list[Path]:
    """Where image files are looked for, first to last."""
    given = os.environ.get(DATA_DIR_VARIABLE)
    return [*([Path(given).expanduser().resolve()] if given else []), Path("data").resolve()]
