"""The mean of every value as a method."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gfe_study.config import InputError, Trial
from gfe_study.data.base import load_splits
from gfe_study.data.split import Split, Splits
from gfe_study.methods.mean import PRIOR_SAMPLES
from gfe_study.training import train

SMALL: dict[str, Any] = {
    "method": "mean",
    "data": {"name": "digits", "train_images": 60},
    "budget": {"images": 60},
    "eval": {"schedule": [60], "val_images": 30, "test_images": 30},
}


def known(split: Split) -> tuple[np.ndarray, np.ndarray]:
    values_ND = split.values_ND.astype(float)
    return values_ND, np.ones(values_ND.shape) if split.observed_ND is None else split.observed_ND.astype(float)


def means(splits: Splits) -> np.ndarray:
    values_ND, known_ND = known(splits.train)
    overall = (values_ND * known_ND).sum() / known_ND.sum()
    found: np.ndarray = ((values_ND * known_ND).sum(0) + PRIOR_SAMPLES * overall) / (known_ND.sum(0) + PRIOR_SAMPLES)
    return found


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson", "gaussian", "student_t"])
@pytest.mark.parametrize("hide", [None, {"fraction": 0.4}])
def test_it_reconstructs_the_observed_mean(likelihood: str, hide: dict[str, Any] | None) -> None:
    trial = Trial.build(SMALL, {"likelihood": likelihood, "data": {"hide": hide}})
    splits = load_splits(trial)
    *_, last = train(trial, splits)
    assert last.metrics is not None
    values_ND, known_ND = known(splits.test)
    error_ND = ((values_ND - means(splits)) * known_ND)[:30]
    expected = np.sqrt(np.square(error_ND).sum() / known_ND[:30].sum())
    assert last.metrics["test_rmse"] == pytest.approx(expected, rel=1e-5)
    assert last.metrics["test_loss"] < 10  # also where a pixel was black in all training images


def test_sigma_learns_the_spread_about_the_means() -> None:
    trial = Trial.build(SMALL, {"likelihood": {"name": "gaussian", "sigma": "learned"}})
    splits = load_splits(trial)
    *_, last = train(trial, splits)
    scaled_ND = splits.train.batch(slice(None)).value_BD.double().numpy()
    expected = np.sqrt(np.square(scaled_ND - scaled_ND.sum(0) / (60 + PRIOR_SAMPLES)).mean())
    assert float(last.state.learner.loss.scale(torch.zeros(())).detach()) == pytest.approx(expected, rel=1e-5)  # type: ignore[operator]


@pytest.mark.parametrize("value", [1e-30, 0.3, 1 - 1e-9])
def test_a_likelihoods_mean_is_inverted_anywhere(value: float) -> None:
    loss = Trial.build({"likelihood": "bernoulli"}).likelihood.loss()
    found = loss.output_of(torch.tensor([value], dtype=torch.float64))
    assert float(loss.mean(found)) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(
    ("section", "given", "allowed"), [("gradient", "adjoint", "approx"), ("start", "mean", "zero")]
)
def test_unused_sections_stay_at_their_defaults(section: str, given: str, allowed: str) -> None:
    message = rf"{section}\.name: given '{given}' with method=mean, which is solved in closed form; allowed: {allowed}"
    with pytest.raises(InputError, match=message):
        Trial.build(SMALL, {section: given})
