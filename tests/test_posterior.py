"""Error bars of latents and values, and whether they cover what they claim to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gfe_study.config import InputError, Trial
from gfe_study.data.base import load_splits
from gfe_study.data.gaps import withheld
from gfe_study.data.split import Shape, Split, Splits
from gfe_study.likelihoods.base import Loss, Observed
from gfe_study.measures.coverage import ratios
from gfe_study.posterior import posterior_of
from gfe_study.training import train

D, L = 12, 3
LINEAR: dict[str, Any] = {
    "method": "pca",
    "prior_precision": 1.0,
    "likelihood": {"name": "gaussian", "sigma": "learned"},
    "data": {"name": "digits", "scale": "none"},
    "model": {"name": "mlp", "latent_dim": L, "hidden": []},
    "budget": {"images": 400},
    "eval": {
        "schedule": [400],
        "val_images": 200,
        "test_images": 200,
        "mixed": False,
        "common": False,
        "measures": ["coverage"],
        "withhold": {"fraction": 0.25, "seed": 3},
    },
}


def linear_data(noise: float = 0.5) -> tuple[Splits, Trial]:
    """Samples of a linear Gaussian model, some of their values missing."""
    generator = np.random.default_rng(0)
    axes_DL = generator.normal(size=(D, L))
    parts = []
    for count in (400, 200, 200):
        clean_ND = generator.normal(size=(count, L)) @ axes_DL.T
        known_ND = generator.random((count, D)) < 0.8
        known_ND[:, 0] = True
        parts.append(Split(clean_ND + noise * generator.normal(size=(count, D)), observed_ND=known_ND))
    trial = Trial.build(LINEAR)
    train_split, val, test = parts
    return withheld(trial.eval.withhold, Splits(train_split, val, test, Shape(1, (D,), mask=True))), trial


def test_error_bars_are_pcas_for_linear_data() -> None:
    """They are those of probabilistic PCA."""
    splits, trial = linear_data()
    *_, last = train(trial, splits)
    learner = last.state.learner
    target = splits.test.batch(slice(0, 20))
    found = posterior_of(learner, target, learner.encode(target).latent_BL)
    weight_DL = learner.decoder.get_parameter("layers.0.weight").detach().double().numpy()
    sigma = float(learner.loss.scale(torch.zeros(())).detach())  # type: ignore[operator]
    assert target.known_BD is not None
    for row, known_D in enumerate(target.known_BD.numpy()):
        seen_KL = weight_DL[known_D]
        covariance_LL = sigma**2 * np.linalg.inv(seen_KL.T @ seen_KL + sigma**2 * np.eye(L))
        std_D = np.sqrt(np.einsum("dl,lm,dm->d", weight_DL, covariance_LL, weight_DL) + sigma**2)
        assert found.covariance_BLL[row].numpy() == pytest.approx(covariance_LL, rel=1e-4, abs=1e-6)
        assert found.std_BD[row].numpy() == pytest.approx(std_D, rel=1e-4)


def test_linear_data_are_covered_as_claimed() -> None:
    splits, trial = linear_data()
    *_, last = train(trial, splits)
    assert last.metrics is not None
    count = len(ratios(last.state.learner, splits.test, last.state.test_latent_NL))  # type: ignore[arg-type]
    assert last.metrics["calibration"] == pytest.approx(1, abs=0.08)  # the model is the data's own
    for name, share in (("coverage_68", 0.68), ("coverage_95", 0.95)):
        assert abs(last.metrics[name] - share) < 4 * math.sqrt(share * (1 - share) / count) + 0.01


def test_the_factor_corrects_a_wrong_sigma() -> None:
    splits, _ = linear_data()
    trial = Trial.build(LINEAR, {"likelihood": {"sigma": 0.05}, "prior_precision": 0.01})
    *_, last = train(trial, splits)
    assert last.metrics is not None
    assert last.metrics["calibration"] > 3
    assert last.metrics["coverage_95"] == pytest.approx(0.95, abs=0.03)


def test_intervals_lie_about_the_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may be more than its decoder gives; here it is the truth."""
    splits, trial = linear_data()
    *_, last = train(trial, splits)
    latent_NL = last.state.test_latent_NL
    assert latent_NL is not None
    truth_ND = splits.test.withheld().batch(slice(None)).value_BD
    assert float(ratios(last.state.learner, splits.test, latent_NL[:20]).max()) > 1
    monkeypatch.setattr(last.state.learner, "predict", lambda target, latent_BL: truth_ND[: len(latent_BL)])
    assert float(ratios(last.state.learner, splits.test, latent_NL[:20]).max()) == 0


def test_the_factor_ignores_the_test_samples() -> None:
    splits, trial = linear_data()
    other = splits.changed(lambda name, split: split.take(slice(100, 200)) if name == "test" else split)
    points = []
    for each in (splits, other):
        *_, last = train(trial, each)
        assert last.metrics is not None
        points.append(last.metrics)
    assert points[0]["calibration"] == points[1]["calibration"]
    assert points[0]["coverage_95"] != points[1]["coverage_95"]


LIKELIHOODS: dict[str, Callable[[Tensor], Tensor]] = {
    "bernoulli": lambda x: torch.sigmoid(x) * (1 - torch.sigmoid(x)),
    "poisson": torch.exp,
    "gaussian": torch.ones_like,
    "student_t": lambda x: torch.full_like(x, 2.0),  # ν/(ν − 2) of four degrees of freedom
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_likelihoods_variance_is_that_of_draws(name: str) -> None:
    loss: Loss = Trial.build({"likelihood": name}).likelihood.loss()
    output_BD = torch.tensor([[-1.0, 0.0, 1.5]])
    expected = LIKELIHOODS[name](output_BD)
    torch.testing.assert_close(loss.variance(output_BD).expand(1, 3), expected)
    drawn = loss.sample(output_BD.expand(200_000, -1), torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.var(0)[None], expected, rtol=0.15 if name == "student_t" else 0.02, atol=0)


def test_errors_given_with_the_data_are_added() -> None:
    loss = Trial.build({"likelihood": {"name": "gaussian", "sigma": "data"}}).likelihood.loss()
    known = torch.tensor([[True, False, True]])
    target = Observed(torch.zeros(1, 3), known, torch.tensor([[2.0, 3.0, 0.5]]))
    assert loss.variance(torch.zeros(1, 3), target).tolist() == [[4.0, 0.0, 0.25]]


def test_curvature_is_taken_at_the_latent() -> None:
    """The covariance of a decoder that is not linear follows from its curvature there."""
    changes = {"method": "gfe", "likelihood": "bernoulli", "model": {"hidden": [5]}, "data": {"scale": None}}
    trial = Trial.build(LINEAR, changes, {"budget": {"images": 64}, "eval": {"schedule": [64]}})
    splits = load_splits(trial)
    *_, last = train(trial, splits)
    learner = last.state.learner
    target = splits.test.batch(slice(0, 3))
    latent_BL = learner.encode(target).latent_BL
    found = posterior_of(learner, target, latent_BL)
    decoder = learner.decoder.double()
    assert target.known_BD is not None
    for row in range(3):
        z = latent_BL[row].double()
        jacobian_DL = torch.autograd.functional.jacobian(lambda z: decoder(z[None])[0], z)
        mean_D = torch.sigmoid(decoder(z[None])[0]).detach()
        bend_D = (mean_D * (1 - mean_D)) * target.known_BD[row]
        covariance_LL = torch.linalg.inv(jacobian_DL.T @ (bend_D[:, None] * jacobian_DL) + torch.eye(L).double())
        torch.testing.assert_close(found.covariance_BLL[row].double(), covariance_LL, rtol=1e-3, atol=1e-5)
        slope_D = mean_D * (1 - mean_D)
        variance_D = slope_D**2 * ((jacobian_DL @ covariance_LL) * jacobian_DL).sum(1) + slope_D
        torch.testing.assert_close(found.std_BD[row].double(), variance_D.sqrt(), rtol=1e-3, atol=1e-6)


def test_coverage_needs_withholding_and_a_prior() -> None:
    with pytest.raises(InputError, match=r"eval\.withhold: given null with eval\.measures=coverage"):
        load_splits(Trial.build(LINEAR, {"eval": {"withhold": None}}))
    splits, _ = linear_data()
    *_, last = train(Trial.build(LINEAR, {"prior_precision": None}), splits)
    assert last.metrics is not None
    assert not {"coverage_95", "calibration"} & last.metrics.keys()
