"""scikit-learn's 1,797 handwritten digits of 8 × 8 pixels in 17 grey levels: real images, no download."""

from pathlib import Path

import numpy as np

from gfe_study.data.base import Dataset
from gfe_study.data.split import Scale, Split, Splits, hold_out, image_shape

LEVELS = 16
"""The stored value of a white pixel."""


class Digits(Dataset):
    """8 × 8 handwritten digits: 1,197 to train on, 300 to validate, 300 to test."""

    def read(self, folders: list[Path], *, download: bool) -> Splits:
        from sklearn.datasets import load_digits

        bundle = load_digits()
        everything = Split(bundle.data.astype(np.uint8), bundle.target.astype(np.int64), scale=Scale.of_levels(LEVELS))
        rest, test = hold_out(everything, 300, "digits/test")
        train, val = hold_out(rest, 300, "digits/val")
        return Splits(train, val, test, image_shape(8, 8))
