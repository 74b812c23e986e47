"""Entropy of the latents: how much of the target distribution they fill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from gfe_study.data.split import Splits
from gfe_study.density.entropy import latent_entropy, normal_entropy
from gfe_study.measures.base import Latents, Measure
from gfe_study.metrics import (
    LATENT_ENTROPY,
    NORMAL_ENTROPY,
    TEST_ENTROPY_GAP,
    VAL_ENTROPY_GAP,
    MetricInfo,
    info_of,
)

if TYPE_CHECKING:
    from gfe_study.methods.base import Learner


class Entropy(Measure):
    """KDE entropy of the whitened latents, beside that of as many samples of a standard normal.

    `latent_entropy` and `normal_entropy` are of the latents of all test images, and `test_entropy_gap` is their
    difference; `latent_entropy_1000` and so on are of the first so many: an estimate from more samples is lower.
    `val_entropy_gap` is the difference for the validation images; it is what a search may use.
    """

    example = {"samples": [50]}

    metrics: ClassVar[tuple[MetricInfo, ...]] = tuple(
        map(
            info_of,
            (
                LATENT_ENTROPY,
                NORMAL_ENTROPY,
                VAL_ENTROPY_GAP,
                TEST_ENTROPY_GAP,
                f"{LATENT_ENTROPY}_<samples>",
                f"{NORMAL_ENTROPY}_<samples>",
            ),
        )
    )
    samples: tuple[Annotated[int, Field(gt=1)], ...] = ()
    """Numbers of test latents beside all of them; one that exceeds `eval.test_images` is left out."""

    def values(self, learner: Learner, splits: Splits, latents: Latents) -> dict[str, float]:
        found: dict[str, float] = {}
        if entropies := _entropies(latents.val_VL):
            latent, normal = entropies
            found[VAL_ENTROPY_GAP] = normal - latent
        count = len(latents.test_NL)
        for samples in sorted({count, *(samples for samples in self.samples if samples < count)}):
            if not (entropies := _entropies(latents.test_NL[:samples])):
                continue
            latent, normal = entropies
            if samples in self.samples:
                found |= {f"{LATENT_ENTROPY}_{samples}": latent, f"{NORMAL_ENTROPY}_{samples}": normal}
            if samples == count:
                found |= {LATENT_ENTROPY: latent, NORMAL_ENTROPY: normal, TEST_ENTROPY_GAP: normal - latent}
        return found


def _entropies(latent_ML: Tensor) -> tuple[float, float] | None:
    """Entropy of latents, and of as many samples of the normal; None of latents that collapsed or are too few."""
    try:
        return latent_entropy(latent_ML), normal_entropy(*latent_ML.shape)
    except ValueError:
        return None
