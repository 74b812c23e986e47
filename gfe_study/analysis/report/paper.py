"""The papers' own numbers.

arXiv:2412.00864 (gradient flow encoding): losses in nats per pixel on test images. arXiv:2010.15283 (GENs): entropies
of latents, nats.
"""

from __future__ import annotations

from typing import Final

DATASET: Final = "mnist"
AE, GFE, MIXED = "AE", "GFE", "mixed"

TABLE_1: Final[dict[str, dict[int, float]]] = {
    AE: {480: 0.2660, 960: 0.2618, 1920: 0.2488, 3840: 0.2195, 5760: 0.1954},
    GFE: {480: 0.2098, 960: 0.1987, 1920: 0.1558, 3840: 0.1336, 5760: 0.1136},
    MIXED: {480: 0.2634, 960: 0.2525, 1920: 0.2323, 3840: 0.2038, 5760: 0.1829},
}
"""Column -> images seen -> loss, on MNIST."""

TABLE_2: Final[dict[str, dict[str, float]]] = {
    "mnist": {AE: 0.0843, GFE: 0.0830},
    "seg_mnist": {AE: 0.1205, GFE: 0.1135},
    "fashion_mnist": {AE: 0.2752, GFE: 0.2764},
}
"""Dataset -> column -> loss, of AE after 12 epochs (720,000 images seen) and GFE after one (60,000)."""
TABLE_2_IMAGES: Final = {AE: 720_000, GFE: 60_000}

NORMAL: Final = "normal"
GEN_TABLE_2: Final[dict[str, dict[int, float]]] = {
    "aae": {1000: 6.552, 2000: 8.408, 5000: 8.742, 10_000: 9.862},
    "vae": {1000: 10.478, 2000: 10.483, 5000: 10.347, 10_000: 10.130},
    "gen": {1000: 11.681, 2000: 11.622, 5000: 11.497, 10_000: 11.464},
    NORMAL: {1000: 11.668, 2000: 11.621, 5000: 11.575, 10_000: 11.538},
}
"""Method, or samples of the normal -> number of latents -> entropy, mean of 5 models: arXiv:2010.15283, Table 2, on
MNIST with `GEN_LATENT_DIM` latent dimensions."""
GEN_LATENT_DIM: Final = 8


def column_of(method: str) -> str | None:
    """The papers' column that a method belongs to; None if they have none."""
    return {"ae": AE, "gfe": GFE}.get(method)
