"""Entropy of the latents: how much of the target distribution they fill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from gfe_study.data.base import Splits
from gfe_study.density.entropy import latent_entropy, normal_entropy
from gfe_study.measures.base import Measure
from gfe_study.metrics import ENTROPY_GAP, LATENT_ENTROPY, NORMAL_ENTROPY, MetricInfo, info_of

if TYPE_CHECKING:
    from gfe_study.methods.base import Learner


class Entropy(Measure):
    """KDE entropy of the whitened latents, beside that of as many samples of a standard normal.

    `latent_entropy` and `normal_entropy` are of all latents, and `entropy_gap` is their difference;
    `latent_entropy_1000` and so on are of the first so many: an estimate from more samples is lower.
    """

    example = {"samples": [50]}

    metrics: ClassVar[tuple[MetricInfo, ...]] = tuple(
        map(
            info_of,
            (
                LATENT_ENTROPY,
                NORMAL_ENTROPY,
                ENTROPY_GAP,
                f"{LATENT_ENTROPY}_<samples>",
                f"{NORMAL_ENTROPY}_<samples>",
            ),
        )
    )
    samples: tuple[Annotated[int, Field(gt=1)], ...] = ()
    """Numbers of latents beside all of them; one that exceeds `eval.test_images` is left out."""

    def values(self, learner: Learner, splits: Splits, latent_NL: Tensor) -> dict[str, float]:
        count, dimensions = latent_NL.shape
        found: dict[str, float] = {}
        for samples in sorted({count, *(samples for samples in self.samples if samples < count)}):
            try:
                entropy, normal = latent_entropy(latent_NL[:samples]), normal_entropy(samples, dimensions)
            except ValueError:  # latents that have collapsed, or that are too few, have none
                continue
            if samples in self.samples:
                found |= {f"{LATENT_ENTROPY}_{samples}": entropy, f"{NORMAL_ENTROPY}_{samples}": normal}
            if samples == count:
                found |= {LATENT_ENTROPY: entropy, NORMAL_ENTROPY: normal}
                found[ENTROPY_GAP] = normal - entropy
        return found
