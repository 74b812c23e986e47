"""Optimal bandwidths beside the paper's: Table 1 of arXiv:2010.15283."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from gfe_study.density.bandwidth import Bandwidth, Method, optimal_bandwidth
from gfe_study.targets.standard_normal import StandardNormal

SAMPLES: Final = (250, 500, 1000, 2000, 4000, 8000)
PAPER: Final[dict[int, tuple[tuple[float, float] | None, ...]]] = {
    2: ((0.46, 0.08), (0.41, 0.04), (0.38, 0.03), (0.34, 0.02), (0.31, 0.03), (0.28, 0.01)),
    5: ((0.65, 0.03), (0.59, 0.02), (0.55, 0.02), (0.51, 0.01), (0.47, 0.01), (0.44, 0.01)),
    10: ((0.77, 0.02), (0.73, 0.01), (0.69, 0.01), (0.66, 0.01), (0.63, 0.01), (0.60, 0.01)),
    20: ((0.92, 0.01), (0.89, 0.01), (0.86, 0.00), (0.82, 0.01), (0.80, 0.00), (0.77, 0.00)),
    40: (None, None, None, (0.98, 0.00), (0.95, 0.00), (0.94, 0.00)),
}
"""Latent dimension -> h_opt and ± for every number of samples in `SAMPLES`; None where it is printed as > 1.

arXiv:2010.15283, Table 1: of the standard normal, over ten sets of samples.
"""
BESIDE: Final = 0.02
"""What a cell may differ from the paper's by, beyond the paper's ±."""


@dataclass(frozen=True)
class Cell:
    """One latent dimension and one number of samples."""

    latent_dim: int
    samples: int
    paper: tuple[float, float] | None
    ours: Bandwidth

    @property
    def within(self) -> bool | None:
        """Whether ours is the paper's but for its ± and `BESIDE`; None where the paper's is not a number."""
        if self.paper is None:
            return None
        value, spread = self.paper
        return abs(self.ours.h_opt - value) <= spread + BESIDE + 1e-9

    def as_dict(self) -> dict[str, Any]:
        """The cell as plain data."""
        paper = {"h_opt": self.paper[0], "std": self.paper[1]} if self.paper is not None else None
        return {
            "latent_dim": self.latent_dim,
            "samples": self.samples,
            "h_opt": self.ours.h_opt,
            "std": self.ours.std,
            "collapses": self.ours.collapses,
            "paper": paper,
            "within": self.within,
        }


def pairs() -> list[tuple[int, int]]:
    """Latent dimension and samples of every cell, row by row."""
    return [(latent_dim, samples) for latent_dim in PAPER for samples in SAMPLES]


def cells(method: Method = "root") -> Iterator[Cell]:
    """The table's cells in the order of `pairs`, each when it is found."""
    target = StandardNormal()
    for latent_dim, samples in pairs():
        paper = PAPER[latent_dim][SAMPLES.index(samples)]
        yield Cell(latent_dim, samples, paper, optimal_bandwidth(target, latent_dim, samples, method=method))
