"""What missing values mean in methods, metrics and files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gfe_study.config import InputError, Trial
from gfe_study.data.base import load_splits
from gfe_study.data.split import Scale, Shape, Split, Splits
from gfe_study.likelihoods.base import Observed
from gfe_study.likelihoods.gaussian import GaussianLoss
from gfe_study.measures.errors import errors
from gfe_study.methods.base import Batch, Learner
from gfe_study.methods.vae import VAELearner
from gfe_study.starts.encoder import EncoderStarter
from gfe_study.study.artifacts import write_best
from gfe_study.study.encoding import encode_file
from gfe_study.training import train

CPU = torch.device("cpu")
B, D = 6, 8
SMALL: dict[str, Any] = {
    "likelihood": "gaussian",
    "data": {"name": "digits"},
    "model": {"latent_dim": 3, "hidden": [5]},
    "budget": {"images": 16},
    "eval": {"schedule": [16], "val_images": 8, "test_images": 8},
}


def learner_of(**changes: Any) -> Learner:
    trial = Trial.build(SMALL, changes)
    return trial.method.create(trial, Shape(1, (D,), mask=True), CPU)


@pytest.fixture
def target() -> Observed:
    generator = torch.Generator().manual_seed(0)
    known_BD = torch.rand(B, D, generator=generator) < 0.5
    known_BD[:, 0] = True
    return Observed(torch.randn(B, D, generator=generator), known_BD)


def count_of(target: Observed) -> Tensor:
    assert target.known_BD is not None
    return target.known_BD.sum(1)


def split_with_gaps(count: int, seed: int) -> Split:
    generator = np.random.default_rng(seed)
    known_ND = generator.random((count, D)) < 0.7
    known_ND[:, 0] = True
    return Split(
        generator.normal(300, 20, (count, D)).astype(np.float32), observed_ND=known_ND, scale=Scale(300.0, 20.0)
    )


def splits_with_gaps() -> Splits:
    train_split, val, test = (split_with_gaps(count, seed) for seed, count in enumerate((32, 8, 8)))
    return Splits(train_split, val, test, Shape(1, (D,), mask=True))


def with_nan(split: Split) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The stored values, NaN where they are missing."""
    assert split.observed_ND is not None
    return np.where(split.observed_ND, split.values_ND.astype(float), np.nan)


@pytest.mark.parametrize(("mask_channel", "width"), [(None, 2 * D), (True, 2 * D), (False, D)])
def test_an_encoder_reads_the_mask_by_default(mask_channel: bool | None, width: int, target: Observed) -> None:
    learner = learner_of(method={"name": "ae", "mask_channel": mask_channel})
    encoder = learner.networks["encoder"]
    assert next(encoder.parameters()).shape[1] == width
    assert learner.encode(target).latent_BL.shape == (B, 3)


def test_observed_values_share_the_divergence(target: Observed) -> None:
    """Weighed by the share that is observed, the bound is Σ_j ℓ_j + KL, over the size of a sample."""
    learner, before = learner_of(method="vae"), learner_of(method="vae")
    assert isinstance(before, VAELearner)
    torch.manual_seed(3)
    learner.update([Batch(target, torch.arange(B))], B)
    torch.manual_seed(3)
    mean_BL, log_variance_BL = before.posterior.moments(target.as_input(mask=True))
    drawn_BL = mean_BL + (log_variance_BL / 2).exp() * torch.randn(mean_BL.shape)
    loss_B = before.loss(before.decoder(drawn_BL), target) * count_of(target)
    divergence_B = (log_variance_BL.exp() + mean_BL.square() - 1 - log_variance_BL).sum(1) / 2
    ((loss_B + divergence_B) / D).sum().backward()
    found, expected = ([weight.grad for weight in each.networks.parameters()] for each in (learner, before))
    torch.testing.assert_close(found, expected)


def test_an_encoder_start_weighs_its_samples(target: Observed) -> None:
    """Each counts by how many of its values are observed."""
    learner = learner_of(start="encoder")
    start = learner.start
    assert isinstance(start, EncoderStarter)
    start.backward(learner.objective(target))
    found = [weight.grad for weight in start.encoder.parameters()]
    for weight in learner.networks.parameters():
        weight.grad = None
    latent_BL = start.encoder(target.as_input(mask=True))
    (learner.loss(learner.decoder(latent_BL), target) * count_of(target) / D).sum().backward()
    torch.testing.assert_close(found, [weight.grad for weight in start.encoder.parameters()])


def test_errors_are_in_the_units_of_the_data() -> None:
    """Only observed values count."""
    split = split_with_gaps(20, 0)
    trial = Trial.build(SMALL)
    learner = trial.method.create(trial, Shape(1, (D,), mask=True), CPU)
    latent_NL = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    decoded_ND = learner.decode(latent_NL).numpy().astype(float) * 20 + 300
    y_ND = with_nan(split)
    error_ND = decoded_ND - y_ND
    about_ND = y_ND - np.nanmean(y_ND, axis=0)
    relative_N = np.sqrt(np.nansum(error_ND**2, 1) / np.nansum(y_ND**2, 1))
    expected = {
        "rmse": math.sqrt(np.nanmean(error_ND**2)),
        "mae": np.nanmean(np.abs(error_ND)),
        "r2": 1 - np.nansum(error_ND**2) / np.nansum(about_ND**2),
        "relative_l2": relative_N.mean(),
    }
    assert errors(learner, split, latent_NL) == pytest.approx(expected, rel=1e-4)


def test_a_sample_of_zeros_has_no_relative_error() -> None:
    values_ND = np.random.default_rng(0).uniform(1, 2, (5, D))
    values_ND[[0, 3]] = 0
    trial = Trial.build(SMALL)
    learner = trial.method.create(trial, Shape(1, (D,), mask=True), CPU)
    latent_NL = torch.zeros(5, 3)
    error_ND, others = learner.decode(latent_NL).numpy() - values_ND, [1, 2, 4]
    relative_N = np.linalg.norm(error_ND[others], axis=1) / np.linalg.norm(values_ND[others], axis=1)
    assert errors(learner, Split(values_ND), latent_NL)["relative_l2"] == pytest.approx(relative_N.mean(), rel=1e-5)


def r2_of(values_ND: np.ndarray, missing: slice = slice(0)) -> tuple[float, float]:
    """The share of variance that a fresh decoder explains, without some samples, and what it is by NumPy."""
    observed_ND = np.ones(values_ND.shape, bool)
    observed_ND[missing] = False
    split = Split(values_ND, observed_ND=observed_ND)
    trial = Trial.build(SMALL)
    learner = trial.method.create(trial, Shape(1, (values_ND.shape[1],), mask=True), CPU)
    latent_NL = torch.zeros(len(values_ND), 3)
    error_ND = (learner.decode(latent_NL).numpy().astype(float) - values_ND)[observed_ND]
    there_ND = values_ND[observed_ND.all(1)]
    expected = 1 - (error_ND**2).sum() / ((there_ND - there_ND.mean(axis=0)) ** 2).sum()
    return errors(learner, split, latent_NL)["r2"], expected


@pytest.mark.parametrize("count", [7, 700])
def test_equal_samples_leave_nothing_to_explain(count: int) -> None:
    """The squares of 0.1 add up to what rounding makes of them."""
    assert math.isnan(r2_of(np.full((count, D), 0.1, np.float32))[0])


@pytest.mark.parametrize("missing", [slice(0), slice(1), slice(600)])
@pytest.mark.parametrize("offset", [0.0, 1.0, 1e4])
def test_nearly_equal_samples_keep_their_variance(offset: float, missing: slice) -> None:
    values_ND = offset + np.random.default_rng(0).integers(0, 4, (1200, D)) / 1024
    found, expected = r2_of(values_ND, missing)
    assert found == pytest.approx(expected, rel=1e-6)


def test_pca_learns_the_scale_of_what_it_leaves() -> None:
    splits = splits_with_gaps()
    changes = {"method": "pca", "likelihood": {"name": "gaussian", "sigma": "learned"}}
    *_, last = train(Trial.build(SMALL, changes), splits)
    loss = last.state.learner.loss
    assert isinstance(loss, GaussianLoss)
    assert (
        0.1 < float(loss.scale(torch.zeros(1)).detach()) < 0.999
    )  # 1 before, and the unit variance is partly explained


def test_an_unobserved_sample_has_no_loss(tmp_path: Path) -> None:
    """It is still encoded and reconstructed."""
    splits = splits_with_gaps()
    *_, last = train(Trial.build(SMALL), splits)
    write_best(tmp_path, last.state, splits)
    stored = with_nan(splits.test)
    stored[2] = np.nan
    np.save(tmp_path / "mine.npy", stored)
    summary = encode_file(tmp_path / "best.pt", tmp_path / "mine.npy", tmp_path / "out.npz", {})
    with np.load(tmp_path / "out.npz") as found:
        assert np.isnan(found["loss"]).tolist() == [row == 2 for row in range(8)]
        assert np.isfinite(found["reconstruction"]).all()
        assert summary["loss"] == pytest.approx(np.nanmean(found["loss"]), rel=1e-6)
        error = found["reconstruction"] - stored
    assert summary["rmse"] == pytest.approx(math.sqrt(np.nanmean(error**2)), rel=1e-4)


def test_a_missing_sigma_of_the_data_is_asked_for() -> None:
    """Already when the data are loaded, before anything starts."""
    with pytest.raises(InputError, match=r"likelihood\.sigma: given 'data', and no array 'sigma' lies beside"):
        load_splits(Trial.build(SMALL, {"likelihood": {"name": "gaussian", "sigma": "data"}}))
