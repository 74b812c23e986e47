"""The papers' own numbers: arXiv:2412.00864 (gradient flow encoding), losses in nats per pixel on test images."""

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


def column_of(method: str) -> str | None:
    """The papers' column that a method belongs to; None if they have none."""
    return {"ae": AE, "gfe": GFE}.get(method)
