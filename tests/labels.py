"""Labels of splits that have them."""

from __future__ import annotations

import numpy as np

from gfe_study.data.split import Split


def labels_of(split: Split) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The labels, shape (N,); a failure if there are none."""
    assert split.labels_N is not None
    labels_N: np.ndarray[tuple[int], np.dtype[np.int64]] = split.labels_N
    return labels_N
