"""DINEOF: empirical orthogonal functions of data with gaps, by iterated truncated SVD (Beckers & Rixen 2003).

Shapes: N training samples seen, L components, D values of a sample.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from gfe_study.likelihoods.base import Observed
from gfe_study.methods.pca import PCA, PCALearner

ROUNDS = 300
"""At most."""
SETTLED = 1e-4
"""It ends once the filled values change by no more than this, root mean square, relative to the spread of the data."""


class DINEOFLearner(PCALearner):
    """W the singular vectors of the filled data, times the standard deviation along each; μ its mean."""

    def axes(self, target: Observed) -> tuple[Tensor, Tensor, Tensor]:
        known_ND = torch.ones_like(target.value_BD, dtype=torch.bool) if target.known_BD is None else target.known_BD
        rounds = self.settings.rounds or ROUNDS
        return axes_by_iteration(target.value_BD.double(), known_ND, self.trial.model.latent_dim, rounds)


def axes_by_iteration(value_ND: Tensor, known_ND: Tensor, count: int, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fill gaps with the mean, then over and over with the best approximation of rank `count`, until they stay.

    Returns W (D, L), zero beyond the rank; the mean (D,); and the mean squared error at the observed values.
    """
    number, size = value_ND.shape
    kept = min(count, number, size)
    mean_D = (value_ND * known_ND).sum(0) / known_ND.sum(0).clamp(min=1)
    filled_ND = torch.where(known_ND, value_ND, mean_D)
    spread = (filled_ND - mean_D).square().mean().sqrt()
    for _ in range(rounds):
        mean_D = filled_ND.mean(0)
        _, singular, axes_KD = torch.linalg.svd(filled_ND - mean_D, full_matrices=False)
        axes_KD = axes_KD[:kept]
        fit_ND = (filled_ND - mean_D) @ axes_KD.t() @ axes_KD + mean_D
        change = (fit_ND - filled_ND).masked_fill(known_ND, 0.0).square().mean().sqrt()
        filled_ND = torch.where(known_ND, value_ND, fit_ND)
        if bool(change <= SETTLED * spread):
            break
    weight_DL = value_ND.new_zeros(size, count)
    weight_DL[:, :kept] = axes_KD.t() * (singular[:kept] / number**0.5)
    error = (fit_ND - value_ND).masked_fill(~known_ND, 0.0).square().sum() / known_ND.sum()
    return weight_DL, mean_D, error


class DINEOF(PCA):
    """Iterated truncated SVD, with which oceanographers fill fields under clouds. `model.latent_dim` modes, to be
    chosen by withheld validation values; new samples are projected onto the modes by their observed values."""

    colour = "#717581"
    learner = DINEOFLearner

    ridge: None = None
    rounds: Annotated[int, Field(gt=0)] | None = None
    """Largest number of rounds; None: 300."""
