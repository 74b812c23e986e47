"""Iterated truncated SVD, against numpy.

Shapes: N samples, D values of each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gfe_study.api import train
from gfe_study.config import InputError, Trial
from gfe_study.methods.dineof import axes_by_iteration


def samples(seed: int = 0) -> tuple[Any, Any]:
    """On a plane but for a little noise, two values in five missing."""
    draw = np.random.default_rng(seed)
    values_ND = draw.normal(size=(80, 2)) @ draw.normal(size=(2, 12)) + 4 + 0.1 * draw.normal(size=(80, 12))
    return values_ND, draw.random(values_ND.shape) < 0.6


def test_gaps_hold_what_the_truncated_svd_gives() -> None:
    """The fixed point: gaps and the approximation of rank two agree, and numpy finds the same."""
    values_ND, known_ND = samples()
    filled_ND = np.where(known_ND, values_ND, 0.0)
    filled_ND = np.where(known_ND, values_ND, filled_ND.sum(0) / known_ND.sum(0))
    for _ in range(2000):
        mean_D = filled_ND.mean(0)
        left, singular, right = np.linalg.svd(filled_ND - mean_D, full_matrices=False)
        filled_ND = np.where(known_ND, values_ND, (left[:, :2] * singular[:2]) @ right[:2] + mean_D)
    weight_DL, mean_D, error = axes_by_iteration(torch.from_numpy(values_ND), torch.from_numpy(known_ND), 2, 2000)
    axes_DL = (weight_DL / weight_DL.norm(dim=0)).numpy()
    np.testing.assert_allclose(axes_DL @ axes_DL.T, right[:2].T @ right[:2], atol=2e-3)
    np.testing.assert_allclose(mean_D, filled_ND.mean(0), atol=2e-3)
    np.testing.assert_allclose(weight_DL.norm(dim=0), singular[:2] / np.sqrt(80), rtol=2e-3)
    assert float(error) == pytest.approx(0.01, rel=0.4)
    truth_ND = values_ND[~known_ND]
    assert np.square(filled_ND[~known_ND] - truth_ND).mean() < 0.05 * truth_ND.var()


def test_of_complete_samples_it_is_pca() -> None:
    values_ND, known_ND = samples()
    weight_DL, mean_D, _ = axes_by_iteration(
        torch.from_numpy(values_ND), torch.ones_like(torch.from_numpy(known_ND)), 2, 5
    )
    _, singular, right = np.linalg.svd(values_ND - values_ND.mean(0), full_matrices=False)
    np.testing.assert_allclose(mean_D, values_ND.mean(0))
    np.testing.assert_allclose(
        np.abs(weight_DL.numpy().T @ right[:2].T), np.diag(singular[:2]) / np.sqrt(80), atol=1e-9
    )


def test_what_a_gap_holds_plays_no_part() -> None:
    """And modes beyond the rank are zero."""
    values_ND, known_ND = samples()
    spoiled_ND = np.where(known_ND, values_ND, 1e3)
    first, second = (
        axes_by_iteration(torch.from_numpy(each[:5]), torch.from_numpy(known_ND[:5]), 8, 50)[0]
        for each in (values_ND, spoiled_ND)
    )
    assert torch.equal(first, second)
    assert not first[:, 5:].any()


def test_a_trial_of_it_imputes_and_has_no_ridge() -> None:
    settings: dict[str, Any] = {
        "method": {"name": "dineof", "rounds": 40},
        "data": {"name": "digits", "hide": {"fraction": 0.4, "splits": ["train"]}},
        "model": {"latent_dim": 6},
        "budget": {"images": 1197},
        "eval": {"schedule": [1197], "withhold": {"fraction": 0.4}},
    }
    found = {
        method: train(Trial.build(settings, {"method": method}), device="cpu").points.iloc[-1]["test_withheld_rmse"]
        for method in ("dineof", "mean")
    }
    assert found["dineof"] < 0.85 * found["mean"]
    with pytest.raises(InputError, match=r"method\.ridge: given 3"):
        Trial.build(settings, {"method": {"ridge": 3}})
