"""MNIST, FashionMNIST and SegMNIST, downloaded by torchvision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from gfe_study.data.files import FileDataset
from gfe_study.data.idx import MIN_IMAGES, read_images, validation_size
from gfe_study.data.split import DataError, Split, Splits, hold_out, image_shape

if TYPE_CHECKING:
    import torchvision


HEIGHT, WIDTH = 28, 28


class MNIST(FileDataset):
    """28 × 28 handwritten digits: 55,000 to train on, 5,000 to validate, 10,000 to test, in MNIST's own order."""

    homes = ("MNIST/raw",)
    files = tuple(f"{part}-{content}-ubyte" for part in ("train", "t10k") for content in ("images-idx3", "labels-idx1"))
    torchvision_name: ClassVar[str] = "MNIST"
    train_labels: ClassVar[tuple[int, ...] | None] = None
    """Labels of the images to train and validate on; None: all."""
    test_labels: ClassVar[tuple[int, ...] | None] = None

    def fetch(self, folder: Path) -> None:
        self._dataset_class()(str(folder), download=True)

    def read_files(self, home: Path) -> Splits:
        train, test = (self._read_split(home, train=part) for part in (True, False))
        if min(len(train), len(test)) < MIN_IMAGES:
            raise DataError(
                f"data.name: {self.name}: {home}: given {len(train)} training and {len(test)} test images; "
                f"allowed: at least {MIN_IMAGES} of each"
            )
        train, val = hold_out(train, validation_size(len(train)), f"{self.name}/val")
        return Splits(train, val, test, image_shape(HEIGHT, WIDTH))

    @classmethod
    def _dataset_class(cls) -> Callable[..., torchvision.datasets.MNIST]:
        from torchvision import datasets

        found: Callable[..., torchvision.datasets.MNIST] = getattr(datasets, cls.torchvision_name)
        return found

    def _read_split(self, home: Path, *, train: bool) -> Split:
        images, labels = self.files[:2] if train else self.files[2:]
        split, size = read_images(home / images, home / labels)
        if size != (HEIGHT, WIDTH):
            given = " × ".join(map(str, size))
            raise DataError(
                f"data.name: {self.name}: {home}: given images of {given} pixels; allowed: {HEIGHT} × {WIDTH}"
            )
        kept = self.train_labels if train else self.test_labels
        if kept is None or split.labels_N is None:
            return split
        return split.take(np.isin(split.labels_N, kept))


class FashionMNIST(MNIST):
    """28 × 28 pieces of clothing, split like MNIST; an excerpt in the same format is split alike."""

    homes = ("FashionMNIST/raw",)
    torchvision_name = "FashionMNIST"


class SegMNIST(MNIST):
    """MNIST segregated by label: trained and validated on digits 0–4, tested on digits 5–9."""

    train_labels = tuple(range(5))
    test_labels = tuple(range(5, 10))
