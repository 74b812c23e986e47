"""The importance-weighted autoencoder for data with missing values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from gfe_study.config import InputError, Trial
from gfe_study.data.base import load_splits
from gfe_study.likelihoods.base import Observed
from gfe_study.methods.base import Batch
from gfe_study.methods.miwae import MIWAELearner
from gfe_study.training import train

SMALL: dict[str, Any] = {
    "method": {"name": "miwae", "draws": 3, "imputation_draws": 400},
    "likelihood": "gaussian",
    "data": {"name": "digits", "hide": {"fraction": 0.5}},
    "model": {"latent_dim": 2, "hidden": [6]},
    "budget": {"images": 160},
    "eval": {"schedule": [160], "val_images": 30, "test_images": 30, "withhold": {"fraction": 0.2}},
}


def learner_of(**changes: Any) -> tuple[MIWAELearner, Observed]:
    trial = Trial.build(SMALL, changes)
    splits = load_splits(trial)
    learner = trial.method.create(trial, splits.shape, torch.device("cpu"))
    assert isinstance(learner, MIWAELearner)
    return learner, splits.train.batch(slice(0, 8))


def test_its_bound_is_that_of_the_paper() -> None:
    """Checked against the densities themselves, value by value, in float64."""
    learner, target = learner_of()
    mean_BL, log_variance_BL = learner.posterior.moments(target.as_input(mask=True))
    noise_BKL = torch.randn(8, 3, 2, generator=torch.Generator().manual_seed(0))
    _, _, found_BK = learner._drawn(target, mean_BL, log_variance_BL, noise_BKL)
    assert target.known_BD is not None
    for row in range(8):
        q = torch.distributions.Normal(mean_BL[row].double(), (log_variance_BL[row].double() / 2).exp())
        for k in range(3):
            z = (q.mean + q.stddev * noise_BKL[row, k].double()).detach()
            x_D = learner.decoder(z.float()[None])[0].double()
            likelihood = torch.distributions.Normal(x_D, 1.0).log_prob(target.value_BD[row].double())
            prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()
            expected = likelihood[target.known_BD[row]].sum() + prior - q.log_prob(z).sum()
            assert float(found_BK[row, k].detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_an_update_decodes_every_draw() -> None:
    learner, target = learner_of()
    before = {name: each.clone() for name, each in learner.networks.state_dict().items()}
    torch.manual_seed(0)
    updated = learner.update([Batch(target, torch.arange(8))], 8)
    assert (updated.nfe_forward, updated.nfe_backward, updated.encoder_passes) == (24, 24, 16)
    assert any(not torch.equal(before[name], each) for name, each in learner.networks.state_dict().items())


def test_more_draws_never_loosen_the_mean_bound() -> None:
    learner, target = learner_of()
    moments = learner.posterior.moments(target.as_input(mask=True))
    noise_BKL = torch.randn(8, 4000, 2, generator=torch.Generator().manual_seed(0))
    _, _, weight_BK = learner._drawn(target, *moments, noise_BKL)
    bounds = [
        float((weight_BK.view(8, -1, k).logsumexp(2) - math.log(k)).mean().detach()) for k in (1, 4, 20, 200, 4000)
    ]
    assert bounds == sorted(bounds)


def test_imputed_values_are_the_posterior_mean() -> None:
    """Against a sum over a grid of all latents."""
    learner, target = learner_of()
    found_BD = learner.predict(target, learner.encode(target).latent_BL)
    axis = torch.linspace(-6, 6, 161)
    grid_ML = torch.cartesian_prod(axis, axis)
    output_MD = learner.decoder(grid_ML).detach()
    assert target.known_BD is not None
    for row in range(3):
        known_D = target.known_BD[row]
        square_M = (output_MD - target.value_BD[row]).square()[:, known_D].sum(1)
        weight_M = (-(square_M + grid_ML.square().sum(1)) / 2).softmax(0)
        expected_D = weight_M @ output_MD
        spread = float((weight_M @ output_MD.square() - expected_D.square()).clamp(min=0).sqrt().max())
        assert float((found_BD[row] - expected_D).abs().max()) < 0.5 * spread


def test_imputation_does_not_depend_on_the_batch() -> None:
    learner, target = learner_of(likelihood="bernoulli")
    together = learner.predict(target, learner.encode(target).latent_BL)
    alone = torch.cat([learner.predict(target[slice(i, i + 1)], torch.zeros(1, 2)) for i in range(8)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_it_learns_to_impute() -> None:
    trial = Trial.build(SMALL, {"budget": {"images": 4000}, "eval": {"schedule": [160, 4000]}, "optim": {"lr": 5e-3}})
    points = [step.metrics for step in train(trial, load_splits(trial)) if step.metrics is not None]
    assert points[-1]["test_withheld_rmse"] < 0.95 * points[0]["test_withheld_rmse"]
    assert np.isfinite(points[-1]["test_withheld_loss"])


def test_a_weight_of_the_divergence_is_refused() -> None:
    with pytest.raises(InputError, match=r"method\.beta: given 0\.5 with method=miwae"):
        Trial.build(SMALL, {"method": {"beta": 0.5}})
