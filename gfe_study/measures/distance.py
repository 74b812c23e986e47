"""The Fréchet distance between two sets of features.

Shapes: N and M images, F features.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor


def frechet_distance(one_NF: Tensor, other_MF: Tensor) -> float:
    """The squared Fréchet distance of the normals fitted to two sets: ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½).

    What is called FID under one network's features (Heusel et al., arXiv:1706.08500). With Σ = RᵀR from a QR
    decomposition of the centred features, the trace of the root is the sum of the singular values of R₁ R₂ᵀ: in
    float64, exact also where features are constant or images fewer than features. Few images bias it upwards:
    compare distances between sets of the same sizes only.

    Raises:
        ValueError: a set holds fewer than two images, NaN or an infinity.
    """
    means, roots, spread = [], [], 0.0
    for features in (one_NF, other_MF):
        values = features.detach().cpu().double().numpy()
        if len(values) < 2 or not np.isfinite(values).all():
            raise ValueError("features of fewer than two images, or NaN or infinite ones")
        means.append(values.mean(0))
        centred = (values - means[-1]) / np.sqrt(len(values) - 1)
        roots.append(np.linalg.qr(centred)[1])
        spread += float(np.square(centred).sum())
    overlap = float(np.linalg.svdvals(roots[0] @ roots[1].T).sum())
    return max(0.0, float(np.square(means[0] - means[1]).sum()) + spread - 2 * overlap)
