"""MNIST, FashionMNIST and SegMNIST, read by torchvision.

Looked for under `GFE_DATA_DIR`, then `./data`, then downloaded into `./data`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from filelock import FileLock

from gfe_study.data.base import DATA_DIR_VARIABLE, DataError, Dataset, Split, Splits, hold_out

if TYPE_CHECKING:
    import torchvision


class MNIST(Dataset):
    """28 × 28 handwritten digits: 55,000 to train on, 5,000 to validate, 10,000 to test, in MNIST's own order."""

    name: Literal["mnist", "fashion_mnist", "seg_mnist"] = "mnist"

    torchvision_name: ClassVar[str] = "MNIST"
    train_labels: ClassVar[tuple[int, ...]] = tuple(range(10))
    test_labels: ClassVar[tuple[int, ...]] = tuple(range(10))

    def read(self, folders: list[Path], *, download: bool) -> Splits:
        for folder in folders:
            if self._is_in(folder):
                return self._splits(folder)
        looked = ", ".join(str(folder / self.torchvision_name / "raw") for folder in folders)
        remedy = f"set {DATA_DIR_VARIABLE} to the folder that holds {self.torchvision_name}/raw"
        if not download:
            raise DataError(f"data.name: {self.name} not found; looked in {looked}; {remedy}")
        into = Path("data").resolve()
        self._download(into, looked, remedy)
        return self._splits(into)

    def _download(self, folder: Path, looked: str, remedy: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f".{self.torchvision_name}.lock"), _silence():
                self._dataset_class()(str(folder), download=True)
        except Exception as error:  # torchvision raises whatever its mirrors made of it
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(
                f"data.name: {self.name} not found; looked in {looked}; download failed ({reason}); {remedy}"
            ) from error

    @classmethod
    def _dataset_class(cls) -> Callable[..., torchvision.datasets.MNIST]:
        from torchvision import datasets

        found: Callable[..., torchvision.datasets.MNIST] = getattr(datasets, cls.torchvision_name)
        return found

    def _is_in(self, folder: Path) -> bool:
        raw = folder / self.torchvision_name / "raw"
        parts = ("images-idx3-ubyte", "labels-idx1-ubyte")
        return all((raw / f"{split}-{part}").is_file() for split in ("train", "t10k") for part in parts)

    def _splits(self, folder: Path) -> Splits:
        try:
            train, test = (self._read_split(folder, train=part) for part in (True, False))
        except Exception as error:  # torchvision and numpy say it in many ways
            raise DataError(
                f"data.name: {self.name}: {folder / self.torchvision_name / 'raw'} is damaged ({error}); "
                "remove it to have it downloaded anew"
            ) from error
        # A sixth of a small excerpt; MNIST's usual 5,000 of the full training set.
        train, val = hold_out(train, min(5000, len(train) // 6), f"{self.name}/val")
        return Splits(train, val, test, height=28, width=28)

    def _read_split(self, folder: Path, *, train: bool) -> Split:
        raw = self._dataset_class()(str(folder), train=train)
        labels = raw.targets.numpy().astype(np.int64)
        if len(raw.data) != len(labels):
            raise ValueError(f"{len(raw.data)} images, {len(labels)} labels")
        pixels = raw.data.numpy().reshape(len(labels), -1)
        kept = np.isin(labels, self.train_labels if train else self.test_labels)
        return Split(pixels[kept], labels[kept])


class FashionMNIST(MNIST):
    """28 × 28 pieces of clothing, split like MNIST; an excerpt in the same format is split alike."""

    name: Literal["fashion_mnist"] = "fashion_mnist"
    torchvision_name = "FashionMNIST"


class SegMNIST(MNIST):
    """MNIST segregated by label: trained and validated on digits 0–4, tested on digits 5–9."""

    name: Literal["seg_mnist"] = "seg_mnist"
    train_labels = tuple(range(5))
    test_labels = tuple(range(5, 10))


@contextlib.contextmanager
def _silence() -> Any:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
