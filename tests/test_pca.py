"""PCA as a method, against scikit-learn and numpy."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA as SklearnPCA

from gfe_study.config import InputError, Trial
from gfe_study.data.base import load_splits
from gfe_study.data.split import Split, Splits
from gfe_study.likelihoods.base import Observed
from gfe_study.methods.base import Batch
from gfe_study.methods.pca import PCALearner, axes_with_gaps, principal_axes
from gfe_study.metrics import TRAIN_SECONDS, VAL_LOSS
from gfe_study.models.mlp import MLPDecoder
from gfe_study.study.artifacts import read_learner, write_best
from gfe_study.training import Metrics, TrainingState, train

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "method": "pca",
    "model": {"latent_dim": 5},
    "data": {"scale": "none"},
    "budget": {"images": 400},
    "eval": {"schedule": [100], "val_images": 50, "test_images": 50},
}


def factors(number: int, size: int, count: int, noise: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    latent, axes = (torch.randn(*shape, dtype=torch.float64, generator=generator)
                    for shape in ((number, count), (count, size)))  # fmt: skip
    return latent @ axes + 3 + noise * torch.randn(number, size, dtype=torch.float64, generator=generator)


def test_a_ridge_helps_axes_of_few_samples() -> None:
    """It holds them together, and so do fewer rounds."""
    generator = torch.Generator().manual_seed(0)
    axes_DL = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    value = torch.randn(60, 3, generator=generator, dtype=torch.float64) @ axes_DL.t()
    value += 0.5 * torch.randn(60, 20, generator=generator, dtype=torch.float64)
    known = torch.rand(60, 20, generator=generator) < 0.5
    errors, sizes = {}, {}
    for ridge in (0.0, 3.0, 1e9):
        weight, mean, noise = axes_with_gaps(value, known, 12, ridge)
        seen_NDL = weight * known[..., None]
        matrix_NLL = seen_NDL.mT @ seen_NDL + noise * torch.eye(12)
        latent = torch.linalg.solve(matrix_NLL, ((value - mean) * known) @ weight)
        errors[ridge] = float(((latent @ weight.t() + mean - value)[~known]).square().mean())
        sizes[ridge] = float(weight.norm())
    assert errors[3.0] < 0.9 * errors[0.0]
    assert sizes[0.0] > sizes[3.0] > sizes[1e9]
    assert sizes[1e9] < 1e-3
    few, many = (axes_with_gaps(value, known, 3, 0.0, rounds)[0] for rounds in (2, 200))
    assert not torch.allclose(few, many, rtol=1e-3)


def test_axes_and_noise_are_sklearns() -> None:
    value = factors(60, 9, 3, 0.3)
    weight, mean, noise = principal_axes(value, 3)
    theirs = SklearnPCA(3).fit(value.numpy())
    unbiased = 59 / 60  # scikit-learn divides by n − 1
    np.testing.assert_allclose(mean, theirs.mean_)
    assert float(noise) == pytest.approx(theirs.noise_variance_ * unbiased)
    covariance = (weight @ weight.t() + noise * torch.eye(9)).numpy()
    np.testing.assert_allclose(covariance, theirs.get_covariance() * unbiased, atol=1e-10)


def test_components_beyond_the_samples_are_zero() -> None:
    weight, mean, noise = principal_axes(factors(3, 9, 3, 0.3), 5)
    assert torch.equal(weight[:, 3:], torch.zeros(9, 2).double())
    assert bool(weight.isfinite().all())
    assert bool(mean.isfinite().all())
    assert float(noise) >= 0


def test_complete_samples_reach_the_closed_form() -> None:
    """Expectation maximisation ends where the closed form is."""
    value = factors(80, 7, 2, 0.5)
    weight, mean, noise = principal_axes(value, 2)
    found, centre, spread = axes_with_gaps(value, torch.ones(80, 7, dtype=torch.bool), 2)
    np.testing.assert_allclose(centre, mean, atol=1e-6)
    assert float(spread) == pytest.approx(float(noise), rel=1e-3)
    np.testing.assert_allclose(found @ found.t(), weight @ weight.t(), atol=2e-2)


def test_what_stands_in_gaps_plays_no_part() -> None:
    """The axes and the noise are found in spite of the gaps."""
    value = factors(300, 12, 2, 0.05)
    known = torch.rand(300, 12, generator=torch.Generator().manual_seed(1)) < 0.7
    weight, mean, noise = axes_with_gaps(value, known, 2)
    other = axes_with_gaps(value.masked_fill(~known, 1e9), known, 2)
    for one, two in zip((weight, mean, noise), other, strict=True):
        assert torch.equal(one, two)
    assert float(noise) == pytest.approx(0.05**2, rel=0.1)
    wanted = torch.linalg.svd(principal_axes(value, 2)[0], full_matrices=False)[0]
    found = torch.linalg.svd(weight, full_matrices=False)[0]
    assert float(torch.linalg.svdvals(wanted.t() @ found).min()) > 0.999


def log_likelihood(value: np.ndarray, known: np.ndarray, weight: np.ndarray, mean: np.ndarray, noise: float) -> float:
    """Log-likelihood of the observed values: each sample's are normal with its own covariance."""
    total = 0.0
    for sample, seen in zip(value, known, strict=True):
        covariance = weight[seen] @ weight[seen].T + noise * np.eye(int(seen.sum()))
        total += float(multivariate_normal(mean[seen], covariance).logpdf(sample[seen]))
    return total


def test_the_likelihood_climbs_to_its_maximum() -> None:
    """Against the marginal likelihood by scipy, which no part of the method computes."""
    value = factors(60, 8, 2, 0.4)
    known = torch.rand(60, 8, generator=torch.Generator().manual_seed(2)) < 0.6
    known[~known.any(1), 0] = True
    found = [axes_with_gaps(value, known, 2, rounds=rounds) for rounds in (*range(1, 25), 4000)]
    reached = [
        log_likelihood(value.numpy(), known.numpy(), weight.numpy(), mean.numpy(), float(noise))
        for weight, mean, noise in found
    ]
    assert all(later > earlier - 1e-7 for earlier, later in pairwise(reached))
    assert reached[-1] > reached[0] + 5
    # A step to any side, of any of the parts, is no better.
    weight, mean, noise = (part.numpy() for part in found[-1])
    draw = np.random.default_rng(0)
    for size in (1e-2, 3e-2):
        for _ in range(20):
            around = weight + size * draw.normal(size=weight.shape), mean + size * draw.normal(size=mean.shape)
            assert log_likelihood(value.numpy(), known.numpy(), *around, float(noise)) < reached[-1] + 1e-3
        for factor in (1 - size, 1 + size):
            assert (
                log_likelihood(value.numpy(), known.numpy(), weight, mean, float(factor * noise)) < reached[-1] + 1e-3
            )


def test_a_round_with_gaps_follows_the_equations() -> None:
    """Tipping & Bishop's equations in loops, in float64."""
    value, known = factors(40, 6, 2, 0.4).numpy(), np.random.default_rng(3).random((40, 6)) < 0.7
    known[~known.any(1), 0] = True
    before, after = (
        [part.numpy() for part in axes_with_gaps(torch.from_numpy(value), torch.from_numpy(known), 2, rounds=rounds)]
        for rounds in (3, 4)
    )
    weight, mean, noise = before
    inverse = [np.linalg.inv(weight[seen].T @ weight[seen] + noise * np.eye(2)) for seen in known]
    latent = [m @ weight[o].T @ (y - mean)[o] for y, o, m in zip(value, known, inverse, strict=True)]
    both = np.zeros((6, 3))
    for j in range(6):
        system, right = np.zeros((3, 3)), np.zeros(3)
        for n in np.flatnonzero(known[:, j]):
            one = np.append(latent[n], 1.0)
            system += np.outer(one, one)
            system[:2, :2] += noise * inverse[n]
            right += value[n, j] * one
        both[j] = np.linalg.solve(system, right)
    total = 0.0
    for n, j in zip(*np.nonzero(known), strict=True):
        total += (value[n, j] - both[j] @ np.append(latent[n], 1.0)) ** 2
        total += noise * both[j, :2] @ inverse[n] @ both[j, :2]
    np.testing.assert_allclose(after[0], both[:, :2], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(after[1], both[:, 2], rtol=1e-6, atol=1e-8)
    assert float(after[2]) == pytest.approx(total / known.sum(), rel=1e-7)


@pytest.mark.parametrize("unit", [1e-30, 1e-6, 1e9])
def test_gaps_are_filled_alike_in_any_unit(unit: float) -> None:
    value = factors(100, 12, 2, 0.05)
    known = torch.rand(100, 12, generator=torch.Generator().manual_seed(1)) < 0.7
    weight, mean, noise = axes_with_gaps(value, known, 2)
    found, centre, spread = axes_with_gaps(value * unit, known, 2)
    np.testing.assert_allclose((found @ found.t()) / unit**2, weight @ weight.t(), atol=1e-3)
    np.testing.assert_allclose(centre / unit, mean, atol=1e-4)
    assert float(spread / unit**2) == pytest.approx(float(noise), rel=1e-3)


def test_equal_values_have_axes_of_length_zero() -> None:
    weight, mean, noise = axes_with_gaps(torch.full((9, 4), 3.0).double(), torch.eye(9, 4) == 0, 2)
    assert torch.equal(weight, torch.zeros(4, 2).double())
    np.testing.assert_allclose(mean, 3.0)
    assert 0 < float(noise) < 1e-15


def last(trial: Trial, splits: Splits, **more: Any) -> tuple[Metrics, TrainingState]:
    *_, end = ((step.metrics, step.state) for step in train(trial, splits, **more) if step.metrics is not None)
    return end


def test_a_trial_matches_sklearn_on_samples_seen(digits: Splits) -> None:
    trial = Trial.build(SMALL)
    splits = trial.data.load()
    metrics, state = last(trial, splits)
    assert isinstance(state.learner, PCALearner)
    seen = splits.train.values_ND[state.learner.seen_N.numpy()].astype(float)
    assert len(seen) == 400
    theirs = SklearnPCA(5).fit(seen)
    test = splits.test.values_ND[:50].astype(float)
    back = theirs.inverse_transform(theirs.transform(test))
    assert metrics["test_rmse"] == pytest.approx(np.sqrt(np.square(back - test).mean()), rel=1e-5)
    assert metrics["test_mae"] == pytest.approx(np.abs(back - test).mean(), rel=1e-4)
    total = np.square(test - test.mean(0)).sum()
    assert metrics["test_r2"] == pytest.approx(1 - np.square(back - test).sum() / total, rel=1e-5)
    relative = np.linalg.norm(back - test, axis=1) / np.linalg.norm(test, axis=1)
    assert metrics["test_relative_l2"] == pytest.approx(relative.mean(), rel=1e-5)
    assert metrics[TRAIN_SECONDS] > 0


def test_an_interrupted_trial_ends_the_same() -> None:
    trial = Trial.build(SMALL)
    splits = trial.data.load()
    whole, _ = last(trial, splits)
    steps = train(trial, splits)
    halfway = next(step.state.state_dict() for step in steps if step.images_seen >= 200)
    resumed, _ = last(trial, splits, state=halfway)
    for name in ("test_rmse", VAL_LOSS):
        assert resumed[name] == whole[name]


def test_latents_are_least_squares_over_the_known() -> None:
    trial = Trial.build(SMALL)
    learner = trial.method.create(trial, trial.data.load().shape, CPU)
    learner.see(Split(factors(50, 64, 4, 0.1).float().numpy()))
    value = factors(6, 64, 4, 0.1, seed=3).float()
    learner.update([Batch(Observed(value), torch.arange(6))], 6)
    known = torch.rand(6, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    latent = learner.encode(Observed(value, known)).latent_BL
    assert isinstance(learner.decoder, MLPDecoder)
    (linear,) = learner.decoder.linears()
    for row in range(6):
        seen = known[row]
        expected = np.linalg.lstsq(
            linear.weight.detach().numpy()[seen], (value[row] - linear.bias.detach()).numpy()[seen], rcond=None
        )[0]
        np.testing.assert_allclose(latent[row], expected, atol=2e-3)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"likelihood": "bernoulli"}, "likelihood.name: given 'bernoulli' with method=pca"),
        ({"likelihood": {"name": "gaussian", "sigma": "data"}}, "likelihood.name: given 'gaussian' with method=pca"),
        ({"start": "mean"}, "start.name: given 'mean' with method=pca"),
    ],
)
def test_what_it_cannot_do_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        Trial.build(SMALL, changes)


def test_pca_squares_errors_of_standardised_data() -> None:
    trial = Trial.build({"method": "pca"})
    assert trial.likelihood.name == "gaussian"
    assert trial.data.scale == "standard"


def test_imputed_values_may_be_kept_within_range(tmp_path: Path) -> None:
    """The range is that of the training data observed."""
    hide = {"data": {"hide": {"fraction": 0.5}}, "eval": {"withhold": {"fraction": 0.3}}}
    given: list[dict[str, Any]] = [{}, {"method": {"name": "pca", "clip": True}}]
    free, kept = (Trial.build(SMALL, hide, changes) for changes in given)
    splits = load_splits(free)
    states = [list(train(trial, splits))[-1] for trial in (free, kept)]
    target = splits.test.batch(slice(0, 50))
    found = [s.state.learner.predict(target, s.state.learner.encode(target).latent_BL) for s in states]
    assert splits.train.observed_ND is not None
    seen = splits.train.batch(slice(None)).value_BD[torch.from_numpy(splits.train.observed_ND)]
    assert float(found[0].min()) < float(seen.min())
    assert torch.equal(found[1], found[0].clamp(seen.min(), seen.max()))
    scores = [s.metrics["test_withheld_rmse"] for s in states if s.metrics is not None]
    assert scores[1] < scores[0]
    write_best(tmp_path, states[1].state, splits)
    learner, *_ = read_learner(tmp_path / "best.pt", {}, torch.device("cpu"))
    assert torch.equal(learner.predict(target, learner.encode(target).latent_BL), found[1])
