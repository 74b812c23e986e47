"""Several decoders that predict together."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from gfe_study.api import train
from gfe_study.config import Trial
from gfe_study.data.base import load_splits
from gfe_study.likelihoods.bernoulli import BernoulliLoss
from gfe_study.likelihoods.poisson import PoissonLoss
from gfe_study.methods.base import Batch
from gfe_study.posterior import posterior_of
from gfe_study.study.prior import _loss, _masked

SMALL: dict[str, Any] = {
    "preset": "holes",
    "data": {"name": "digits", "hide": {"fraction": 0.5, "splits": ["train"]}},
    "method": {"ensemble": 3, "posterior_noise": {"ramp_images": 300}},
    "model": {"latent_dim": 5, "hidden": [20]},
    "budget": {"images": 1000},
    "eval": {"schedule": [1000], "val_images": 50, "test_images": 200, "withhold": {"fraction": 0.5}},
}


@pytest.fixture(scope="module")
def together() -> Any:
    return train(Trial.build(SMALL), device="cpu")


def test_it_goes_on_from_a_saved_state_to_the_bit(together: Any) -> None:
    trial, splits = together.trial, load_splits(together.trial)
    learner, other = (trial.method.create(trial, splits.shape, torch.device("cpu")) for _ in range(2))
    rows = np.arange(20)
    batch = Batch(splits.train.batch(rows), torch.from_numpy(rows))
    for each in (learner, other):
        each.see(splits.train)
    for step in range(2):
        if step:
            other.load_state_dict(copy.deepcopy(learner.state_dict()))
        for each in (learner, other)[: 1 + step]:
            torch.manual_seed(step)
            with each.training():
                each.update([batch], 20)
    weights = learner.networks.state_dict()
    assert all(torch.equal(weight, other.networks.state_dict()[name]) for name, weight in weights.items())
    assert all(len(member.optimiser.state) for member in other.members)


def test_the_first_member_is_a_trial_on_its_own() -> None:
    """Without noise, which all members draw from one generator."""
    plain = {"method": {"ensemble": None, "posterior_noise": None}}
    alone = train(Trial.build(SMALL, plain), device="cpu").decoder._learner
    first, *others = train(
        Trial.build(SMALL, {"method": {"posterior_noise": None}}), device="cpu"
    ).decoder._learner.members
    assert len(others) == 2
    for name, weight in alone.decoder.state_dict().items():
        assert torch.equal(weight, first.decoder.state_dict()[name])
        assert not torch.equal(weight, others[0].decoder.state_dict()[name])


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_it_predicts_the_mean_of_its_members(likelihood: str) -> None:
    learner = train(Trial.build(SMALL, {"likelihood": likelihood}), device="cpu").decoder._learner
    target = load_splits(learner.trial).test.batch(slice(0, 30))
    found = learner.encode(target)
    assert found.latent_BL.shape == (30, 15)
    parts = [member.encode(target) for member in learner.members]
    means = [member.decode(part.latent_BL) for member, part in zip(learner.members, parts, strict=True)]
    expected_BD = torch.stack(means).mean(0)
    torch.testing.assert_close(learner.decode(found.latent_BL), expected_BD)
    torch.testing.assert_close(
        learner.loss.mean(learner.predict(target, found.latent_BL)), expected_BD, rtol=1e-4, atol=1e-5
    )
    assert float(found.nfe_forward_B.sum()) == sum(float(part.nfe_forward_B.sum()) for part in parts) + 30


def test_it_is_better_than_its_members(together: Any) -> None:
    learner, test = together.decoder._learner, load_splits(together.trial).test
    target, truth = test.batch(slice(0, 200)), test.withheld().batch(slice(0, 200))

    def error(each: Any) -> float:
        output_BD = each.predict(target, each.encode(target).latent_BL)
        return float((each.loss.mean(output_BD) - truth.value_BD)[truth.known_BD].square().mean())

    assert error(learner) < min(error(member) for member in learner.members)


def test_error_bars_are_those_of_a_mixture(together: Any) -> None:
    learner = together.decoder._learner
    target = load_splits(together.trial).test.batch(slice(0, 5))
    latent_BL = learner.encode(target).latent_BL
    found = posterior_of(learner, target, latent_BL)
    assert found.covariance_BLL.shape == (5, 15, 15)
    assert not found.covariance_BLL[:, :5, 5:].any()
    parts = [*zip(learner.members, latent_BL.chunk(3, 1), strict=True)]
    means = np.stack([member.decode(part).numpy() for member, part in parts])
    variances = np.stack([posterior_of(member, target, part).std_BD.numpy() ** 2 for member, part in parts])
    np.testing.assert_allclose(found.std_BD.numpy() ** 2, variances.mean(0) + means.var(0), rtol=1e-3, atol=1e-6)


def test_another_prior_reaches_the_members(together: Any) -> None:
    learner = together.decoder._learner
    val = load_splits(together.trial).val.take(slice(0, 30))
    masked = _masked(val, np.random.default_rng(0).random((10, 64)) < 0.5)
    assert _loss(learner, masked, 0.01) != _loss(learner, masked, 100.0)


def test_members_agree_where_float32_saturates() -> None:
    same = torch.tensor([-120.0, -30.0, 0.0, 16.0, 17.0, 60.0])
    assert BernoulliLoss().mixed(torch.stack([same[None]] * 3)) == pytest.approx(same[None], rel=1e-5, abs=1e-5)
    apart = BernoulliLoss().mixed(torch.tensor([[[2.0]], [[-1.0]]]))
    assert float(apart.sigmoid()) == pytest.approx(float(torch.tensor([2.0, -1.0]).sigmoid().mean()))
    rates = PoissonLoss().mixed(torch.tensor([[[2.0]], [[-1.0]]]))
    assert float(rates.exp()) == pytest.approx(float(torch.tensor([2.0, -1.0]).exp().mean()))


def test_its_likelihood_averages_its_members() -> None:
    likelihood = {"name": "gaussian", "sigma": "learned"}
    learner = train(Trial.build(SMALL, {"likelihood": likelihood}), device="cpu").decoder._learner
    rhos = [member.loss.get_parameter("rho").detach() for member in learner.members]
    assert len({float(rho) for rho in rhos}) == 3
    assert float(learner.loss.get_parameter("rho")) == pytest.approx(float(torch.stack(rhos).mean()))
