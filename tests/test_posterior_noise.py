"""The noise that a decoder is trained with, from the posterior of the latents."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from gfe_study.config import InputError, Trial
from gfe_study.data.base import load_splits
from gfe_study.methods.base import Batch
from gfe_study.methods.gfe import GFELearner, LatentNoise, PosteriorNoise
from gfe_study.training import TrainingState, train, train_batch

SMALL: dict[str, Any] = {
    "method": {"name": "gfe", "posterior_noise": {}},
    "prior_precision": 2.0,
    "likelihood": "gaussian",
    "data": {"name": "digits", "train_images": 40, "hide": {"fraction": 0.5}},
    "model": {"latent_dim": 3, "hidden": [6]},
    "optim": {"batch_size": 8, "update_size": None, "updates_per_batch": 1},
    "budget": {"images": 80},
    "eval": {"schedule": [80], "val_images": 10, "test_images": 10, "mixed": False, "common": False},
}


def learner_of(trial: Trial) -> tuple[GFELearner, Batch]:
    splits = load_splits(trial)
    learner = trial.method.create(trial, splits.shape, torch.device("cpu"))
    learner.see(splits.train)
    assert isinstance(learner, GFELearner)
    return learner, Batch(splits.train.batch(slice(0, 8)), torch.arange(8))


def covariance(learner: GFELearner, batch: Batch, row: int, latent_BL: Tensor) -> Tensor:
    """λ (JᵀHJ + λI)⁻¹ of a sample, by autograd in float64: H is 1 where a value is observed."""
    decoder = learner.decoder.double()
    jacobian_DL = torch.autograd.functional.jacobian(lambda z: decoder(z[None])[0], latent_BL[row].double())
    decoder.float()
    assert batch.target.known_BD is not None
    seen_DL = jacobian_DL[batch.target.known_BD[row]]
    precision = 2.0 * torch.eye(3, dtype=torch.float64)
    found: Tensor = 2.0 * torch.linalg.inv(seen_DL.T @ seen_DL + precision)
    return found


def test_it_draws_from_the_tempered_posterior() -> None:
    learner, batch = learner_of(Trial.build(SMALL))
    latent_BL = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    posterior = LatentNoise(PosteriorNoise(width=0.5), 8, 3, torch.device("cpu"))
    objective = learner.objective(batch.target, batch.index_B)
    torch.manual_seed(0)
    drawn = torch.stack([posterior.noisy(objective, latent_BL, batch.index_B) - latent_BL for _ in range(4000)])
    for row in (0, 5):
        expected = covariance(learner, batch, row, latent_BL)
        root = posterior.root_NLL[row].double()
        torch.testing.assert_close(root @ root.T, expected, rtol=1e-4, atol=1e-6)
        # Five standard errors of a variance.
        torch.testing.assert_close(drawn[:, row].T.cov().double(), 0.25 * expected, rtol=0.12, atol=0.01)
        assert drawn[:, row].mean(0).abs().max() < 0.05


def test_a_covariance_is_kept_for_some_updates() -> None:
    """Every sample counts its own updates."""
    learner, batch = learner_of(Trial.build(SMALL))
    posterior = LatentNoise(PosteriorNoise(refresh=3), 8, 3, torch.device("cpu"))
    first, second = batch.index_B[:5], batch.index_B[3:]
    asked: list[list[int]] = []
    for index_B in (first, second, first, first, second):
        objective = learner.objective(batch.target[index_B], index_B)
        posterior.noisy(objective, torch.zeros(5, 3), index_B)
        asked.append(objective.nfe_forward_B.tolist())
    # Samples 3 and 4 are in every update, so that their third refresh is one update earlier than the others'.
    assert asked == [[4] * 5, [0, 0, 4, 4, 4], [0] * 5, [0, 0, 0, 4, 4], [0] * 5]


def test_the_width_rises_with_the_images_seen() -> None:
    learner, batch = learner_of(Trial.build(SMALL))
    posterior = LatentNoise(PosteriorNoise(ramp_images=40), 8, 3, torch.device("cpu"))
    objective = learner.objective(batch.target, batch.index_B)
    sizes = []
    for posterior.images_seen in (0, 10, 40, 400):
        torch.manual_seed(0)
        sizes.append(posterior.noisy(objective, torch.zeros(8, 3), batch.index_B))
    assert not sizes[0].any()
    torch.testing.assert_close(sizes[1], sizes[2] / 4)
    assert torch.equal(sizes[2], sizes[3])


def test_only_the_decoder_sees_the_noise() -> None:
    """Latents are those of the trial without it until the weights differ, and replayed ones are kept without it."""
    replay = {"optim": {"update_size": 12}}
    noises: list[dict[str, Any] | None] = [None, {}]
    plain, noisy = (Trial.build(SMALL, replay, {"method": {"posterior_noise": noise}}) for noise in noises)
    states = []
    for trial in (plain, noisy):
        splits = load_splits(trial)
        learner = trial.method.create(trial, splits.shape, torch.device("cpu"))
        learner.see(splits.train)
        states.append(TrainingState(learner, torch.device("cpu")))
        torch.manual_seed(0)
        train_batch(states[-1], splits.train, 8)
    without, with_noise = (state.learner for state in states)
    assert isinstance(without, GFELearner)
    assert isinstance(with_noise, GFELearner)
    assert torch.equal(without.latent_NL, with_noise.latent_NL)
    assert without.latent_NL.any()
    assert states[0].loss_sum != states[1].loss_sum
    pairs = zip(without.decoder.parameters(), with_noise.decoder.parameters(), strict=True)
    assert not all(torch.equal(*pair) for pair in pairs)
    # One evaluation and three tangents per image, of the first weight update with it.
    assert states[1].nfe_forward - states[0].nfe_forward == 8 * 4


def test_a_resumed_trial_is_the_same_to_the_bit() -> None:
    trial = Trial.build(SMALL, {"method": {"posterior_noise": {"ramp_images": 60, "refresh": 2}}})
    splits = load_splits(trial)
    *_, whole = train(trial, splits)
    *_, saved = (step.state.state_dict() for step in islice(train(trial, splits), 7))
    *_, resumed = train(trial, splits, saved)
    assert whole.metrics is not None
    assert resumed.metrics is not None
    for name in ("train_loss", "val_loss", "test_loss"):
        assert resumed.metrics[name] == whole.metrics[name]


def test_a_learned_likelihood_learns_beside_it() -> None:
    """The covariances depend on a learned scale, and are held while it is learned."""
    learned = {"likelihood": {"name": "gaussian", "sigma": "learned"}, "optim": {"lr": 3e-3}}
    trial = Trial.build(SMALL, learned, {"budget": {"images": 800}, "eval": {"schedule": [800]}})
    *_, last = train(trial, load_splits(trial))
    sigma = float(last.state.learner.loss.scale(torch.zeros(())).detach())  # type: ignore[operator]
    assert 0.3 < sigma < 0.98


def test_it_makes_another_trial() -> None:
    noises: list[dict[str, Any] | None] = [None, {}, {"width": 0.5}, {"ramp_images": 3}, {"refresh": 1}]
    trials = [Trial.build(SMALL, {"method": {"posterior_noise": noise}}) for noise in noises]
    assert len({trial.fingerprint("") for trial in trials}) == len(noises)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prior_precision": None}, "prior_precision: given null with method.posterior_noise"),
        ({"preset": "paper", "gradient": "adjoint", "solver": "rk4"}, r"gradient\.name: given 'adjoint' with"),
        ({"method": {"posterior_noise": {"width": 0}}}, "width"),
    ],
)
def test_what_it_cannot_be_used_with_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Trial.build(SMALL, changes)
