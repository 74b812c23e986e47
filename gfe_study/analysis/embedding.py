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
PERPLEXITY = 30.0
SEED = 0
WORTH_PROCESSES = 2000
"""Latents in all maps together from which on processes pay for their start."""

Floats = NDArray[np.floating[Any]]


def of_use(latent_NL: Floats) -> bool:
    """Whether there are enough latents to measure or draw, all of them finite."""
    return len(latent_NL) >= FEWEST and bool(np.isfinite(latent_NL).all())


def label_accuracy(latent_NL: Floats, label_N: NDArray[np.int64]) -> float:
    """Share of images whose class is that of most of their nearest neighbours, themselves left out.

    NaN of fewer than `FEWEST` images, or latents that are not finite.
    """
    if not of_use(latent_NL):
        return float("nan")
    predicted_N = KNeighborsClassifier(NEIGHBOURS).fit(latent_NL, label_N).predict(None)
    return float((predicted_N == label_N).mean())


def embed(latent_NL: Floats) -> Floats:
    """t-SNE in two dimensions (van der Maaten and Hinton 2008), (N, 2), from the principal axes; seeded.

    Latents that do not differ, but for rounding, are all at the origin.
    """
    perplexity = min(PERPLEXITY, (len(latent_NL) - 1) / 3)
    centred_NL = latent_NL - latent_NL.mean(axis=0, dtype=np.float64)
    spread = np.abs(centred_NL).max()
    if spread <= np.finfo(latent_NL.dtype).eps * np.abs(latent_NL).max():
        return np.zeros((len(latent_NL), 2))
    # Of a tiny spread, squared distances underflow, and scikit-learn ends the process; a map has no scale.
    with threadpool_limits(1):  # its threads wait for one another in a busy loop, which a shared machine makes long
        made: Floats = TSNE(perplexity=perplexity, init="pca", random_state=SEED).fit_transform(centred_NL / spread)
    return made


def embed_all(sets: Sequence[Floats]) -> list[Floats]:
    """`embed` of each, several at a time."""
    jobs = -1 if sum(map(len, sets)) >= WORTH_PROCESSES else 1
    made: list[Floats] = Parallel(n_jobs=jobs)(delayed(embed)(latent_NL) for latent_NL in sets)
    return made


def trusted(latent_NL: Floats, map_N2: Floats) -> float:
    """Trustworthiness of a map (Venna and Kaski 2001): 1 where neighbours on the map are neighbours in latent space."""
    neighbours = min(NEIGHBOURS, (len(latent_NL) - 1) // 2)
    return float(trustworthiness(latent_NL, map_N2, n_neighbors=neighbours))
