"""MNIST, FashionMNIST and SegMNIST, read by torchvision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from gfe_study.data.base import DataError, Scale, Split, Splits, hold_out, image_shape
from gfe_study.data.files import FileDataset

if TYPE_CHECKING:
    import torchvision


HEIGHT, WIDTH = 28, 28
FEWEST_IMAGES = 6
"""With fewer training images, none is left for validation."""


class MNIST(FileDataset):
    """28 × 28 handwritten digits: 55,000 to train on, 5,000 to validate, 10,000 to test, in MNIST's own order."""

    name: Literal["mnist", "fashion_mnist", "seg_mnist"] = "mnist"

    homes = ("MNIST/raw",)
    files = tuple(f"{part}-{content}-ubyte" for part in ("train", "t10k") for content in ("images-idx3", "labels-idx1"))
    torchvision_name: ClassVar[str] = "MNIST"
    train_labels: ClassVar[tuple[int, ...]] = tuple(range(10))
    test_labels: ClassVar[tuple[int, ...]] = tuple(range(10))

    def fetch(self, folder: Path) -> None:
        self._dataset_class()(str(folder), download=True)

    def read_files(self, home: Path) -> Splits:
        train, test = (self._read_split(home, train=part) for part in (True, False))
        if min(len(train), len(test)) < FEWEST_IMAGES:
            raise DataError(
                f"data.name: {self.name}: {home}: given {len(train)} training and {len(test)} test images; "
                f"allowed: at least {FEWEST_IMAGES} of each"
            )
        # A sixth of a small excerpt; MNIST's usual 5,000 of the full training set.
        train, val = hold_out(train, min(5000, len(train) // 6), f"{self.name}/val")
        return Splits(train, val, test, image_shape(HEIGHT, WIDTH))

    @classmethod
    def _dataset_class(cls) -> Callable[..., torchvision.datasets.MNIST]:
        from torchvision import datasets

        found: Callable[..., torchvision.datasets.MNIST] = getattr(datasets, cls.torchvision_name)
        return found

    def _read_split(self, home: Path, *, train: bool) -> Split:
        raw = self._dataset_class()(str(home.parents[1]), train=train)
        labels = raw.targets.numpy().astype(np.int64)
        if len(raw.data) != len(labels):
            raise ValueError(f"{len(raw.data)} images, {len(labels)} labels")
        if tuple(raw.data.shape[1:]) != (HEIGHT, WIDTH):
            given = " × ".join(map(str, raw.data.shape[1:]))
            raise DataError(
                f"data.name: {self.name}: {home}: given images of {given} pixels; allowed: {HEIGHT} × {WIDTH}"
            )
        pixels = raw.data.numpy().reshape(len(labels), -1)
        kept = np.isin(labels, self.train_labels if train else self.test_labels)
        return Split(pixels[kept], labels[kept], scale=Scale.of_levels(255))


class FashionMNIST(MNIST):
    """28 × 28 pieces of clothing, split like MNIST; an excerpt in the same format is split alike."""

    name: Literal["fashion_mnist"] = "fashion_mnist"
    homes = ("FashionMNIST/raw",)
    torchvision_name = "FashionMNIST"


class SegMNIST(MNIST):
    """MNIST segregated by label: trained and validated on digits 0–4, tested on digits 5–9."""

    name: Literal["seg_mnist"] = "seg_mnist"
    train_labels = tuple(range(5))
    test_labels = tuple(range(5, 10))
