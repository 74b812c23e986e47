"""Methods that pull their latents to a target. Shapes: B batch, L latent, M latents of the density."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gfe_study.config import InputError, Trial
from gfe_study.data.split import Split, Splits
from gfe_study.density.bandwidth import BandwidthError, optimal_bandwidth
from gfe_study.methods.aae import AAELearner
from gfe_study.methods.base import Batch, Learner
from gfe_study.methods.gfe_gen import GFEGENLearner
from gfe_study.methods.pull import OWN_SHARE, Pull, Puller, places
from gfe_study.methods.vae import VAELearner
from gfe_study.metrics import TEST_ENTROPY_GAP, TEST_LOSS
from gfe_study.targets.mixture_of_gaussians import MixtureOfGaussians
from gfe_study.targets.standard_normal import StandardNormal
from gfe_study.training import train

SMALL: dict[str, Any] = {
    "preset": "gen",
    "model": {"latent_dim": 3, "hidden": [32]},
    "optim": {"lr": 2e-3, "batch_size": 16},
    "eval": {"schedule": [10], "val_images": 50, "test_images": 300, "mixed": False, "measures": ["entropy"]},
}


def small(method: str | dict[str, Any], **changes: Any) -> Trial:
    return Trial.build(SMALL, {"method": method}, changes)


def puller(most: int, train_images: int, keeps_latents: bool = True, **settings: Any) -> Puller:
    made = Puller(Pull(kde_samples=most, **settings), StandardNormal(), 3, keeps_latents=keeps_latents)
    made.see(Split(np.zeros((train_images, 4), np.uint8), np.arange(train_images) % 10))
    return made


def stream(made: Puller, order: list[int], batch: int = 16) -> Iterator[int]:
    """Latents of image i are (i, 0, 0) plus the number of images seen before: the last time tells."""
    for start in range(0, len(order), batch):
        index = torch.tensor(order[start : start + batch])
        latent = torch.zeros(len(index), 3)
        latent[:, 0], latent[:, 1] = index, start
        made.remember(index, latent, again=False)
        yield start + len(index)


# What the density is made of


def test_places_of_numbers_among_sorted_ones() -> None:
    assert places(torch.tensor([5, 1, 7, 0]), torch.tensor([1, 5, 6])).tolist() == [1, 0, -1, -1]
    assert places(torch.tensor([5]), torch.tensor([], dtype=torch.long)).tolist() == [-1]


def test_the_density_holds_the_last_images_seen() -> None:
    made = puller(most=300, train_images=1000)
    order = np.random.default_rng(0).permutation(1000).tolist()
    sizes = set()
    for seen in stream(made, order):
        made.refresh()
        sizes.add(made.size)
        expected = order[max(0, seen - made.size) : seen] if made.size else []
        assert sorted(expected) == made.index_M[: made.members].tolist()
        assert made.latent_ML[: made.members, 0].tolist() == sorted(expected)
        assert made.active == (made.size >= 64)
    assert sizes == {0, 64, 128, 256, 300}


def test_the_last_latent_of_an_image_counts() -> None:
    made = puller(most=100, train_images=100)
    order = [*range(100), *range(99, -1, -1)]
    for _ in stream(made, order[:150], batch=10):
        pass
    made.refresh()
    index = made.index_M[: made.members]
    assert index.tolist() == sorted(set(order[50:150]))
    assert (made.latent_ML[: made.members, 1] >= 50).all()
    twice = index >= 50
    assert (made.latent_ML[: made.members, 1][twice] >= 100).all()


def test_a_refresh_encodes_the_latents_anew() -> None:
    made = puller(most=64, train_images=200, keeps_latents=False)
    for _ in stream(made, list(range(96))):
        pass
    made.refresh(lambda index_M: index_M[:, None] * torch.tensor([1.0, 2.0, 3.0]))
    assert made.latent_ML[: made.members].tolist() == [[i, 2 * i, 3 * i] for i in range(32, 96)]


def test_repeated_updates_count_their_images_once() -> None:
    made = puller(most=64, train_images=200, refresh_updates=4)
    index = torch.arange(16)
    for again in (False, True, True):
        made.remember(index, torch.zeros(16, 3), again=again)
    assert (made.seen, made.updates) == (16, 3)
    assert not made.due
    made.remember(index + 16, torch.zeros(16, 3), again=False)
    assert made.due


# The term


def filled(**settings: Any) -> Puller:
    made = puller(most=64, train_images=64, **settings)
    latent_ML = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    made.remember(torch.arange(64), latent_ML, again=False)
    made.refresh()
    return made


@pytest.mark.parametrize("saturating", [True, False])
def test_the_term_leaves_out_the_image_itself(saturating: bool) -> None:
    made = filled(weight=0.3, saturating=saturating)
    point_BL = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    index_B = torch.tensor([3, 60, 7, 7, 0])
    found_B = made.term(point_BL, index_B)
    assert found_B is not None
    bandwidth = optimal_bandwidth(StandardNormal(), 3, 64).h_opt
    for point_L, index, found in zip(point_BL, index_B, found_B, strict=True):
        others_ML = made.latent_ML[torch.arange(64) != index]
        kernels = -(others_ML - point_L).square().sum(1) / (2 * bandwidth**2)
        own = torch.log(torch.tensor([OWN_SHARE]))
        log_sum = torch.cat([kernels - math.log(63), own - math.log(64)]).logsumexp(0)
        density = log_sum - 3 / 2 * math.log(2 * math.pi * bandwidth**2)
        ratio = density - StandardNormal().log_density(point_L[None])
        expected = F.logsigmoid(ratio) if saturating else torch.log1p(ratio.exp())
        torch.testing.assert_close(found[None], 0.3 * expected)


def test_a_test_image_meets_every_training_latent() -> None:
    made = filled()
    point_BL = made.latent_ML[:4].clone()
    everyone, without = made.term(point_BL), made.term(point_BL, torch.arange(4))
    assert everyone is not None
    assert without is not None
    assert (everyone > without).all()


def move(made: Puller, latent_ML: Tensor, step_size: float, steps: int) -> None:
    """Particles without a decoder descend the term of the density that they make themselves."""
    optimiser, every_M = torch.optim.SGD([latent_ML], lr=step_size), torch.arange(len(latent_ML))
    for _ in range(steps):
        made.remember(every_M, latent_ML.detach(), again=False)
        made.refresh()
        optimiser.zero_grad()
        term = made.term(latent_ML, every_M)
        assert term is not None
        term.sum().backward()
        optimiser.step()


def test_free_latents_fill_the_target() -> None:
    """Particles without a decoder, from ten tight clusters far off."""
    generator = torch.Generator().manual_seed(0)
    cluster = 3 * torch.randn(10, 3, generator=generator)
    latent_ML = (cluster.repeat(30, 1) + 0.1 * torch.randn(300, 3, generator=generator)).requires_grad_()
    made = puller(most=300, train_images=300, weight=1.0)
    move(made, latent_ML, 0.05, 400)
    variance = latent_ML.detach().var(0)
    bandwidth = optimal_bandwidth(StandardNormal(), 3, 300).h_opt
    assert latent_ML.detach().mean(0).abs().max() < 0.15
    assert 1 - bandwidth**2 - 0.1 < variance.min() <= variance.max() < 1.1


def test_a_label_pulls_an_image_to_its_mode() -> None:
    target = MixtureOfGaussians(components=4, radius=3.0, mode_width=0.5)
    pull = Pull(kde_samples=400, labelled=400, weight=1.0)
    made = Puller(pull, target, 2, keeps_latents=True)
    labels_N = np.arange(400) % 4
    made.see(Split(np.zeros((400, 4), np.uint8), labels_N))
    latent_ML = (0.1 * torch.randn(400, 2, generator=torch.Generator().manual_seed(0))).requires_grad_()
    move(made, latent_ML, 0.02, 300)
    nearest = torch.cdist(latent_ML.detach(), target.means(2)).argmin(1).numpy()
    assert (nearest == labels_N).mean() > 0.98


# Refusals: one line


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method": "ae", "target": "standard_normal"}, "target.name: given 'standard_normal' with method=ae"),
        ({"method": {"name": "gen", "labelled": 5}}, "method.labelled: given 5 with target.name=standard_normal"),
        (
            {"method": "vae", "target": "mixture_of_gaussians"},
            "target.name: given 'mixture_of_gaussians' with method=vae",
        ),
        ({"method": {"name": "gfe_gen", "saturating": True}}, "method.saturating: given true with method=gfe_gen"),
        (
            {"method": "gfe_gen", "gradient": "adjoint", "solver": "rk4"},
            "gradient.name: given 'adjoint' with method=gfe_gen",
        ),
        ({"method": "gen", "target": "standard_norml"}, "did you mean 'standard_normal'?"),
        ({"eval": {"measures": ["entorpy"]}}, "did you mean 'entropy'?"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as caught:
        Trial.build({"preset": "gen"}, changes)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_density_as_wide_as_a_target_is_refused() -> None:
    trial = small("gen", model={"latent_dim": 40, "hidden": [8]}, data={"name": "digits", "train_images": 600})
    digits = trial.data.load()
    with pytest.raises(BandwidthError, match="collapse"):
        next(train(trial, digits))


def test_a_class_without_a_mode_is_refused(digits: Splits) -> None:
    changes = {"method": {"name": "gen", "labelled": 100}, "target": {"name": "mixture_of_gaussians", "components": 5}}
    with pytest.raises(ValueError, match="class 9 has no mode"):
        next(train(Trial.build(SMALL, changes), digits))


def test_a_negative_class_is_refused(digits: Splits) -> None:
    assert digits.train.labels_N is not None
    train_ = dataclasses.replace(digits.train, labels_N=digits.train.labels_N - 1)
    changes = {"method": {"name": "gen", "labelled": 700}, "target": "mixture_of_gaussians"}
    with pytest.raises(InputError, match="class -1 has no mode"):
        next(train(Trial.build(SMALL, changes), dataclasses.replace(digits, train=train_)))


def test_too_few_labels_to_act_are_refused(digits: Splits) -> None:
    changes = {"method": {"name": "gen", "labelled": 100}, "target": "mixture_of_gaussians"}
    with pytest.raises(
        ValueError, match=r"method\.labelled: given 100, some 11 of a class in a density of .*enough for 64"
    ):
        next(train(Trial.build(SMALL, changes), digits))


# The methods


def trained(trial: Trial, digits: Splits) -> tuple[dict[str, float], Learner]:
    last = None
    for progress in train(trial, digits):
        last = progress
    assert last is not None
    assert last.metrics is not None
    return last.metrics, last.state.learner


BUDGET = {"images": 4000}


@pytest.fixture(scope="module")
def autoencoder(digits: Splits) -> tuple[dict[str, float], Learner]:
    return trained(small("ae", budget=BUDGET), digits)


@pytest.mark.parametrize("method", ["gen", "aae", "vae"])
def test_an_encoder_learns_to_fill_the_normal(
    method: str, autoencoder: tuple[dict[str, float], Learner], digits: Splits
) -> None:
    own: dict[str, dict[str, Any]] = {
        "gen": {"weight": 0.05, "refresh_updates": 2},
        "aae": {"weight": 0.05, "hidden": [64, 64]},
        "vae": {},
    }
    settings = {"name": method, **own[method]}
    plain, unpulled = autoencoder
    metrics, learner = trained(small(settings, budget=BUDGET), digits)
    with torch.no_grad():
        images_BD = digits.test.batch(slice(0, 300))
        size, free = (float(who.encode(images_BD).latent_BL.square().mean()) for who in (learner, unpulled))
    assert 0.3 < size < 2 < free
    assert metrics[TEST_LOSS] < 1.25 * plain[TEST_LOSS]
    if method == "gen":
        assert metrics[TEST_ENTROPY_GAP] < plain[TEST_ENTROPY_GAP]


def test_flow_latents_are_pulled_to_the_normal(digits: Splits) -> None:
    flow = {"preset": "best", "model": {"latent_dim": 3, "hidden": [32]}, "budget": {"images": 640}}
    few = {"eval": {"schedule": [640], "test_images": 60, "val_images": 10}}
    found = {}
    for method in ("gfe", "gfe_gen"):
        metrics, learner = trained(Trial.build(SMALL, flow, few, {"method": method}), digits)
        latent_BL = learner.encode(digits.test.batch(slice(0, 60))).latent_BL
        found[method] = metrics[TEST_LOSS], float(latent_BL.std(0).mean())
    assert found["gfe"][1] > 3
    assert 0.5 < found["gfe_gen"][1] < 1.5
    assert found["gfe_gen"][0] < 1.2 * found["gfe"][0]


def begun(trial: Trial, digits: Splits, images: int) -> Learner:
    for progress in train(trial, digits):
        if progress.images_seen >= images:
            return progress.state.learner
    raise AssertionError


def test_the_flow_descends_the_loss_and_the_term(digits: Splits) -> None:
    learner = begun(small("gfe_gen", solver={"name": "lbfgs"}), digits, 160)
    target = digits.test.batch(slice(0, 6))
    objective = learner.objective(target)
    latent_BL = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)) / 2
    slope_BL = objective.gradient(latent_BL)
    rows = torch.tensor([4, 1])
    loss_K, pullback = objective.evaluate(latent_BL[rows], rows)
    torch.testing.assert_close(pullback(None), slope_BL[rows])
    torch.testing.assert_close(pullback(torch.tensor([1])), slope_BL[1:2])

    def total(at_BL: Tensor) -> Tensor:
        assert isinstance(learner, GFEGENLearner)
        term_B = learner.puller.term(at_BL)
        assert term_B is not None
        loss_B: Tensor = learner.loss(learner.decoder(at_BL), target) + term_B
        return loss_B

    at_BL = latent_BL.clone().requires_grad_()
    (expected_BL,) = torch.autograd.grad(total(at_BL).sum(), at_BL)
    torch.testing.assert_close(slope_BL, expected_BL)
    torch.testing.assert_close(loss_K, total(latent_BL)[rows].detach())


def test_the_reported_loss_leaves_out_the_pull(digits: Splits) -> None:
    learner = begun(small("gfe_gen", solver={"name": "lbfgs"}), digits, 160)
    target = digits.test.batch(slice(0, 20))
    encoded = learner.encode(target)
    with torch.no_grad():
        expected_B = learner.loss(learner.decoder(encoded.latent_BL), target)
    torch.testing.assert_close(encoded.loss_B, expected_B)
    alone = learner.encode(target[3:4])
    torch.testing.assert_close(alone.latent_BL, encoded.latent_BL[3:4], rtol=1e-2, atol=1e-2)


def test_the_evidence_bound_agrees_with_torch(digits: Splits) -> None:
    trial = small({"name": "vae", "beta": 0.5}, optim={"name": "adam", "lr": 1e-12})
    learner = begun(trial, digits, 16)
    target = digits.train.batch(slice(0, 8))
    learner.optimiser.zero_grad()
    torch.manual_seed(5)
    learner.update([Batch(target, torch.arange(8))], 8)
    given = {
        name: weight.grad.clone() for name, weight in learner.networks.named_parameters() if weight.grad is not None
    }
    learner.optimiser.zero_grad()
    assert isinstance(learner, VAELearner)
    mean_BL, log_variance_BL = learner.posterior.moments(target.value_BD)
    posterior = torch.distributions.Normal(mean_BL, (log_variance_BL / 2).exp())
    torch.manual_seed(5)
    logits_BD = learner.decoder(posterior.rsample())
    likelihood = torch.distributions.Bernoulli(logits=logits_BD, validate_args=False).log_prob(target.value_BD).mean(1)
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(1)
    (-likelihood + 0.5 * divergence / 64).sum().backward()
    for name, weight in learner.networks.named_parameters():
        if name in given:
            assert weight.grad is not None
            torch.testing.assert_close(weight.grad, given[name], rtol=1e-3, atol=1e-5)


def test_the_discriminator_has_its_own_optimiser(digits: Splits) -> None:
    learner = begun(small({"name": "aae", "hidden": [16]}), digits, 16)
    assert isinstance(learner, AAELearner)
    own = {id(weight) for weight in learner.discriminator.parameters()}
    stepped = {id(weight) for group in learner.optimiser.param_groups for weight in group["params"]}
    assert not own & stepped
    before = [weight.clone() for weight in learner.discriminator.parameters()]
    learner.update([Batch(digits.train.batch(slice(0, 16)), torch.arange(16))], 16)
    after = list(learner.discriminator.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(bool(weight.isfinite().all()) for weight in after)


def test_latents_are_carried_with_the_encoder() -> None:
    """An affine drift is followed exactly; what is encoded for it is exact whatever the drift."""
    made = puller(most=200, train_images=200, keeps_latents=False)
    table_ND = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    made.remember(torch.arange(200), torch.zeros(200, 3), again=False)
    made.refresh(lambda index_M: table_ND[index_M])
    turn_DD = torch.eye(3) + 0.1 * torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    drifted_ND = table_ND @ turn_DD + torch.tensor([0.3, -0.2, 0.1])
    made.follow(lambda index_M: drifted_ND[index_M], 20)
    torch.testing.assert_close(made.latent_ML[: made.members], drifted_ND, rtol=1e-3, atol=1e-3)
    bent_ND = drifted_ND.tanh()
    encoded: list[int] = []

    def latents_of(index_M: Tensor) -> Tensor:
        encoded.extend(index_M.tolist())
        return bent_ND[index_M]

    before_ML = made.latent_ML[: made.members].clone()
    made.follow(latents_of, 20)
    assert 20 <= len(encoded) <= 40
    torch.testing.assert_close(made.latent_ML[encoded], bent_ND[encoded])
    left = [index for index in range(200) if index not in encoded]
    assert (made.latent_ML[left] - bent_ND[left]).norm() < (before_ML[left] - bent_ND[left]).norm()


def test_equal_latents_are_followed_too() -> None:
    made = puller(most=64, train_images=64, keeps_latents=False)
    made.remember(torch.arange(64), torch.zeros(64, 3), again=False)
    made.refresh(lambda index_M: torch.zeros(len(index_M), 3))
    made.follow(lambda index_M: torch.ones(len(index_M), 3), 8)
    torch.testing.assert_close(made.latent_ML, torch.ones(64, 3), rtol=1e-4, atol=1e-4)
