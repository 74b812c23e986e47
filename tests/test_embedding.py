"""Latents of any size have a map, and ones that differ by rounding have none. Shapes: N images, L latent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gfe_study.analysis.stats.embedding import embed, label_accuracy, normalised, trusted

Floats = NDArray[np.floating[Any]]

LABEL_N = np.arange(60) % 2


def groups(dimensions: int = 4) -> Floats:
    """Two groups of latents, by their label."""
    drawn: Floats = np.random.default_rng(0).standard_normal((60, dimensions)) + 10 * LABEL_N[:, None]
    return drawn


def apart(map_N2: Floats | None) -> bool:
    """Whether the groups lie farther from one another than they are wide."""
    assert map_N2 is not None
    assert np.isfinite(map_N2).all()
    middle = [map_N2[group == LABEL_N].mean(axis=0) for group in (0, 1)]
    within = max(np.linalg.norm(map_N2[group == LABEL_N] - middle[group], axis=1).mean() for group in (0, 1))
    return bool(np.linalg.norm(middle[0] - middle[1]) > within)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-19, 1.0, 1e19, 1e30, 1e37])
def test_the_size_of_latents_does_not_count(scale: float, dtype: type) -> None:
    """Squared distances of all but one of these over- or underflow in float32; scikit-learn then ends the process."""
    plain = groups()
    scaled: Floats = (scale * plain).astype(dtype)
    map_N2 = embed(scaled)
    assert apart(map_N2)
    assert map_N2 is not None
    assert label_accuracy(scaled, LABEL_N) == 1
    assert trusted(scaled, map_N2) == pytest.approx(trusted(plain, map_N2), abs=0.02)
    assert trusted(scaled, map_N2) > 0.9


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_doubles_are_not_rounded_to_float32(scale: float) -> None:
    assert apart(embed(scale * groups()))
    assert label_accuracy(scale * groups(), LABEL_N) == 1


@pytest.mark.parametrize(
    "latent_NL",
    [
        np.zeros((60, 4)),
        np.full((60, 4), 1e30),
        np.full((60, 4), 1e-30, np.float32),
        3 + np.random.default_rng(0).integers(-2, 3, (60, 4)) * np.spacing(3.0),
        (1 + 1e-7 * np.random.default_rng(0).standard_normal((60, 4))).astype(np.float32),
        np.full((60, 4), np.nan),
        np.where(np.arange(240).reshape(60, 4) == 7, np.inf, 1.0),
        groups()[:5],
    ],
)
def test_latents_that_do_not_differ_have_no_map(latent_NL: Floats) -> None:
    assert normalised(latent_NL) is None
    assert embed(latent_NL) is None
    assert np.isnan(label_accuracy(latent_NL, LABEL_N[: len(latent_NL)]))


def test_dimensions_of_mere_rounding_do_not_count() -> None:
    constant_N1 = (1e6 + np.random.default_rng(1).standard_normal((60, 1)) * 0.3).astype(np.float32)
    assert np.ptp(constant_N1) > 0
    latent_NL = np.hstack([groups(1).astype(np.float32) / 10, constant_N1])
    assert label_accuracy(latent_NL, LABEL_N) == 1


def test_where_latents_lie_does_not_count() -> None:
    map_N2 = embed(groups())
    assert map_N2 is not None
    assert trusted(groups() + 1e9, map_N2) == pytest.approx(trusted(groups(), map_N2), abs=0.01)


def test_an_outlier_leaves_the_others_apart() -> None:
    latent_NL = groups()
    latent_NL[0] = 1e30
    assert label_accuracy(latent_NL, LABEL_N) >= 59 / 60


def test_one_dimension_has_a_map() -> None:
    assert apart(embed(groups(1)))
