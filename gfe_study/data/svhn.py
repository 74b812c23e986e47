"""Street View House Numbers (Netzer et al. 2011): the cropped digits, as MATLAB files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gfe_study.data.files import FileDataset
from gfe_study.data.split import Scale, Split, Splits, hold_out, image_shape


class SVHN(FileDataset):
    """32 × 32 house numbers in colour: 68,257 to train on, 5,000 to validate, 26,032 to test.

    Of an excerpt in the same format a sixth is held out to validate.
    """

    homes = ("SVHN", ".")  # torchvision makes no folder of its own
    files = ("train_32x32.mat", "test_32x32.mat")

    def fetch(self, folder: Path) -> None:
        from torchvision import datasets

        for part in ("train", "test"):
            datasets.SVHN(str(folder / self.homes[0]), split=part, download=True)

    def read_files(self, home: Path) -> Splits:
        train, test = (_read_split(home / file) for file in self.files)
        train, val = hold_out(train, min(5000, len(train) // 6), f"{self.name}/val")
        return Splits(train, val, test, image_shape(32, 32, 3))


def _read_split(file: Path) -> Split:
    from scipy.io import loadmat

    content = loadmat(file, variable_names=["X", "y"])
    for variable in ("X", "y"):
        if variable not in content:
            raise ValueError(f"{file.name} holds no {variable}")
    images, labels = content["X"], content["y"].ravel()
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)):
        raise ValueError(
            f"{file.name}: X is {images.dtype} of shape {images.shape}, where (32, 32, 3, {len(labels)}) of uint8 "
            "belongs to the labels"
        )
    pixels = np.ascontiguousarray(np.moveaxis(images, (3, 2), (0, 1)).reshape(len(labels), 3 * 32 * 32))
    labels = labels.astype(np.int64) % 10  # the file calls the digit 0 ten
    return Split(pixels, labels, scale=Scale.of_levels(255))
