"""Latents in numbers and in two dimensions.

Shapes: N images, L latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn.manifold import TSNE, trustworthiness
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

NEIGHBOURS = 10
FEWEST = 30
"""Images below which neither is of use."""
ROUNDING = 16
"""Differences up to so many times the precision of latents are rounding."""
PERPLEXITY = 30.0
SEED = 0
WORTH_PROCESSES = 2000
"""Latents in all maps together from which on processes pay for their start."""

Floats = NDArray[np.floating[Any]]


def normalised(latent_NL: Floats) -> Floats | None:
    """Latents about their median, the largest deviation 1, float64: squared distances neither over- nor underflow.

    Dimensions in which they differ by no more than rounding are 0. None of fewer than `FEWEST` latents, of ones that
    are not finite, and where no dimension is left.
    """
    if len(latent_NL) < FEWEST or not np.isfinite(latent_NL).all():
        return None
    largest_L = np.abs(latent_NL).max(axis=0).astype(np.float64)
    share_NL = latent_NL / np.where(largest_L > 0, largest_L, 1)
    share_NL -= np.median(share_NL, axis=0)
    share_NL[:, np.ptp(share_NL, axis=0) <= ROUNDING * np.finfo(latent_NL.dtype).eps] = 0
    deviation_NL = share_NL * (largest_L / max(largest_L.max(), np.finfo(np.float64).tiny))
    spread = np.abs(deviation_NL).max()
    return deviation_NL / spread if spread > 0 else None


def label_accuracy(latent_NL: Floats, label_N: NDArray[np.int64]) -> float:
    """Share of images whose class is that of most of their nearest neighbours, themselves left out.

    NaN of latents that cannot be `normalised`.
    """
    near_NL = normalised(latent_NL)
    if near_NL is None:
        return float("nan")
    predicted_N = KNeighborsClassifier(NEIGHBOURS).fit(near_NL, label_N).predict(None)
    return float((predicted_N == label_N).mean())


def embed(latent_NL: Floats) -> Floats | None:
    """t-SNE in two dimensions (van der Maaten and Hinton 2008), (N, 2), from the principal axes; seeded.

    None of latents that cannot be `normalised`.
    """
    near_NL = normalised(latent_NL)
    if near_NL is None:
        return None
    perplexity = min(PERPLEXITY, (len(near_NL) - 1) / 3)
    near_NL = np.pad(near_NL, ((0, 0), (0, max(0, 2 - near_NL.shape[1]))))  # there are two principal axes
    with threadpool_limits(1):  # its threads wait for one another in a busy loop, which a shared machine makes long
        made: Floats = TSNE(perplexity=perplexity, init="pca", random_state=SEED).fit_transform(near_NL)
    return made


def embed_all(sets: Sequence[Floats]) -> list[Floats | None]:
    """`embed` of each, several at a time."""
    jobs = -1 if sum(map(len, sets)) >= WORTH_PROCESSES else 1
    made: list[Floats | None] = Parallel(n_jobs=jobs)(delayed(embed)(latent_NL) for latent_NL in sets)
    return made


def trusted(latent_NL: Floats, map_N2: Floats) -> float:
    """Trustworthiness of a map (Venna and Kaski 2001): 1 where neighbours on the map are neighbours in latent space."""
    neighbours = min(NEIGHBOURS, (len(latent_NL) - 1) // 2)
    return float(trustworthiness(normalised(latent_NL), map_N2, n_neighbors=neighbours))
