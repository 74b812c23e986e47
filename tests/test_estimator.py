"""Gradient flow encoding as an estimator of scikit-learn."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from gfe_study import GradientFlowEncoder, InputError, Trial
from gfe_study.data.base import load_splits
from gfe_study.data.split import Scale, Shape, Split
from gfe_study.estimator import _held_out
from gfe_study.methods.base import Learner
from gfe_study.study.artifacts import read_learner
from gfe_study.study.encoding import encode_file

FAST: dict[str, Any] = {"hidden_layer_sizes": (16,), "epochs": 4, "batch_size": 8, "random_state": 0}


def plane(count: int = 60, features: int = 6) -> np.ndarray:
    """Samples on a plane, far from 0 and of unequal spread."""
    generator = np.random.default_rng(0)
    latent = generator.normal(size=(count, 2))
    return 50.0 + latent @ generator.normal(size=(2, features)) * np.linspace(1, 9, features)


def encoder(**settings: Any) -> GradientFlowEncoder:
    return GradientFlowEncoder(**{"n_components": 2, **FAST, **settings})


@pytest.fixture(scope="module")
def fitted() -> GradientFlowEncoder:
    return encoder(epochs=30).fit(plane())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_is_an_estimator_of_scikit_learn() -> None:
    check_estimator(GradientFlowEncoder())


def test_it_learns(fitted: GradientFlowEncoder) -> None:
    X = plane()
    latent = fitted.transform(X)
    assert latent.shape == (60, 2)
    assert fitted.score(X) > 0.9
    rebuilt = fitted.inverse_transform(latent)
    assert rebuilt.shape == X.shape
    explained = 1 - np.square(X - rebuilt).sum() / np.square(X - X.mean(0)).sum()
    assert fitted.score(X) == pytest.approx(explained, abs=1e-4)
    assert fitted.score(X) > encoder(epochs=1).fit(X).score(X)
    assert list(fitted.get_feature_names_out()) == ["gradientflowencoder0", "gradientflowencoder1"]
    assert (fitted.n_features_in_, fitted.n_iter_) == (6, 30)
    assert np.isfinite(fitted.loss_)


def test_missing_values_are_filled_in(fitted: GradientFlowEncoder) -> None:
    X = plane()
    gone = X.copy()
    gone[::2, 1] = gone[1::3, 4] = np.nan
    known = ~np.isnan(gone)
    filled = fitted.impute(gone)
    assert np.array_equal(filled[known], gone[known])
    reconstructed = fitted.inverse_transform(fitted.transform(gone))
    assert np.array_equal(filled[~known], reconstructed[~known])
    error, spread = (filled - X)[~known], (X - X.mean(0))[~known]
    assert np.square(error).mean() < 0.25 * np.square(spread).mean()
    assert encoder().fit(gone).score(gone) > 0
    assert GradientFlowEncoder().__sklearn_tags__().input_tags.allow_nan


def test_what_fills_a_missing_value_is_ignored(fitted: GradientFlowEncoder) -> None:
    gone = plane()
    gone[:, 3] = np.nan
    first = fitted.transform(gone)
    assert not np.allclose(first, fitted.transform(plane()))
    assert np.allclose(first[:5], fitted.transform(gone[:5]), atol=1e-9)  # nor have the neighbours


def test_standard_deviations_are_exact() -> None:
    """A linear decoder and errors of a known size give the closed form of probabilistic PCA."""
    X = plane(200)
    X += np.random.default_rng(1).normal(size=X.shape)
    gone = X.copy()
    gone[::2, 1:4] = np.nan
    settings: dict[str, Any] = {"hidden_layer_sizes": (), "scale": "none", "prior_precision": 1.0, "epochs": 60}
    fitted = encoder(likelihood={"name": "gaussian", "sigma": 1.0}, **settings).fit(gone)
    weight_DL = fitted._learner.decoder.get_parameter("layers.0.weight").detach().numpy()
    latent, latent_std = fitted.transform(gone, return_std=True)
    assert np.array_equal(latent, fitted.transform(gone))
    filled, std = fitted.impute(gone, return_std=True)
    assert np.array_equal(filled, fitted.impute(gone))
    missing = np.isnan(gone)
    assert (std[missing] > 1).all()
    assert not std[~missing].any()
    for row in range(2):
        seen_KL = weight_DL[~missing[row]]
        covariance_LL = np.linalg.inv(seen_KL.T @ seen_KL + np.eye(2))
        assert latent_std[row] == pytest.approx(np.sqrt(np.diag(covariance_LL)), rel=1e-6)
        expected = np.sqrt(np.einsum("dl,lm,dm->d", weight_DL, covariance_LL, weight_DL) + 1)
        assert std[row][missing[row]] == pytest.approx(expected[missing[row]], rel=1e-6)


def test_intervals_cover_values_that_nobody_saw() -> None:
    """σ is fixed at five times what it is: what was held out tells by how much the intervals are too wide."""
    draw = np.random.default_rng(2)
    X = draw.normal(size=(600, 2)) @ draw.normal(size=(2, 12)) + 0.2 * draw.normal(size=(600, 12))
    gone = np.where(draw.random(X.shape) < 0.3, np.nan, X)
    settings: dict[str, Any] = {"likelihood": {"name": "gaussian", "sigma": 1.0}, "scale": "none", "epochs": 10}
    fitted = encoder(**settings).fit(gone)
    assert 0.15 < fitted.calibration_ < 0.5
    filled, std = fitted.impute(gone, return_std=True)
    missing = np.isnan(gone)
    assert 0.93 < (np.abs(filled - X)[missing] < 1.96 * std[missing]).mean() < 0.97
    spoiled = np.where(missing, np.nan, X)
    assert encoder(**settings).fit(spoiled).calibration_ == fitted.calibration_
    assert encoder(**settings).fit(X).calibration_ == 1.0


def test_what_is_held_out_is_not_trained_on() -> None:
    split = Split(np.ones((900, 20)), observed_ND=np.random.default_rng(0).random((900, 20)) < 0.5)
    kept, held = _held_out(split, 0)
    assert held is not None
    assert kept.observed_ND is not None
    assert held.withheld_ND is not None
    assert held.observed_ND is not None
    assert kept.withheld_ND is None
    assert split.observed_ND is not None
    gone_ND = split.observed_ND & ~kept.observed_ND
    assert gone_ND.sum() == held.withheld_ND.sum() == pytest.approx(500 * 10 * 0.05, rel=0.3)
    assert not (held.withheld_ND & held.observed_ND).any()
    assert kept.observed_ND.any(1).all() or not split.observed_ND.any(1).all()


def test_held_out_is_the_gap_of_another_sample() -> None:
    """Gaps are the left or the right half."""
    observed_ND = np.ones((400, 8), bool)
    observed_ND[:200, :4] = observed_ND[200:300, 4:] = False
    kept, held = _held_out(Split(np.ones((400, 8)), observed_ND=observed_ND), 0)
    assert kept.observed_ND is not None
    assert held is not None
    assert held.withheld_ND is not None
    halves = {(bool(row[:4].any()), bool(row[4:].any())) for row in held.withheld_ND}
    assert halves == {(True, False), (False, True)}
    assert (held.withheld_ND.sum(1) == 4).all()
    assert kept.observed_ND.any(1).all()


def test_a_features_only_value_is_not_held_out() -> None:
    for seed in range(20):
        observed_ND = np.random.default_rng(seed).random((300, 40)) < 0.5
        observed_ND[:, 7] = np.arange(300) == 5
        kept, held = _held_out(Split(np.ones((300, 40)), observed_ND=observed_ND), seed)
        assert held is not None
        assert kept.observed_ND is not None
        assert kept.observed_ND[5, 7]


def test_what_a_mask_hides_has_no_influence() -> None:
    X = plane()
    gone = np.random.default_rng(0).random(X.shape) < 0.2
    as_nan = np.where(gone, np.nan, X)
    masked = np.ma.array(np.where(gone, -9999.0, X), mask=gone)
    one, other = encoder().fit(as_nan), encoder().fit(masked)
    assert np.array_equal(one.impute(as_nan), other.impute(masked))


def test_a_feature_that_nobody_saw_stays_missing(tmp_path: Path) -> None:
    X = plane()
    X[::3, 1] = np.nan
    X[:, 4] = np.nan
    with pytest.warns(UserWarning, match="1 of 6 features have no observed value"):
        fitted = encoder(prior_precision=1.0).fit(X)
    given = np.where(np.isnan(X), 7.0, X)  # what is known of it later tells nothing of the others
    given[:, 0] = np.nan
    unknown = given.copy()
    unknown[:, 4] = np.nan
    filled = fitted.impute(given)
    assert np.array_equal(filled[:, :4], fitted.impute(unknown)[:, :4])
    assert np.array_equal(filled[:, 4], given[:, 4])
    fitted.save(tmp_path / "encoder.pt")
    for each in (fitted, GradientFlowEncoder.load(tmp_path / "encoder.pt")):
        filled, std = each.impute(X, return_std=True)
        expected = np.zeros(X.shape, bool)
        expected[:, 4] = True
        assert np.array_equal(np.isnan(filled), expected)
        assert np.array_equal(np.isnan(std), expected)
    np.save(tmp_path / "x.npy", X)
    found = encode_file(tmp_path / "encoder.pt", tmp_path / "x.npy", tmp_path / "out.npz", {}, std=True)
    with np.load(tmp_path / "out.npz") as archive:
        assert np.isnan(archive["reconstruction"][:, 4]).all()
        assert np.isnan(archive["std"][:, 4]).all()
        assert np.isfinite(archive["reconstruction"][:, :4]).all()
    assert found["unseen"] == 1
    with pytest.raises(InputError, match="--tune-prior: given with an estimator's file"):
        encode_file(tmp_path / "encoder.pt", tmp_path / "x.npy", tmp_path / "out.npz", {}, tuning=True)


def test_standard_deviations_need_a_prior() -> None:
    fitted = encoder(prior_precision=None).fit(plane())
    for asked in (fitted.transform, fitted.impute):
        with pytest.raises(InputError, match="prior_precision: given None with return_std"):
            asked(plane(), return_std=True)


def test_the_seed_decides() -> None:
    X = plane()
    state = torch.get_rng_state()
    one, same, other = (encoder(random_state=seed).fit(X).transform(X) for seed in (3, 3, 4))
    assert np.array_equal(one, same)
    assert not np.allclose(one, other)
    assert torch.equal(state, torch.get_rng_state())


def test_the_scale_is_fitted_on_the_samples() -> None:
    X = plane()
    shifted = encoder().fit(1000 * X + 7)
    assert np.allclose(shifted.transform(1000 * X + 7), encoder().fit(X).transform(X), atol=1e-3)
    assert encoder().fit(X).trial_.data.scale == "standard"
    assert encoder(scale="minmax").fit(X).trial_.data.scale == "minmax"
    binary = (X.mean(0) < X).astype(float)
    bernoulli = encoder(likelihood="bernoulli").fit(binary)
    assert bernoulli.trial_.data.scale is None
    rebuilt = bernoulli.inverse_transform(bernoulli.transform(binary))
    assert 0 <= rebuilt.min() <= rebuilt.max() <= 1


def test_settings_reach_the_trial() -> None:
    trial = (
        encoder(
            solver={"name": "amd", "max_nfe": 30},
            likelihood={"name": "student_t"},
            batch_size=7,
            epochs=2,
            learning_rate=3e-3,
        )
        .fit(plane())
        .trial_
    )
    settings = trial.dump()
    assert (trial.solver.name, settings["solver"]["max_nfe"], trial.likelihood.name) == ("amd", 30, "student_t")
    assert (trial.optim.batch_size, trial.optim.lr, trial.budget.images) == (7, 3e-3, 120)
    assert (trial.model.latent_dim, settings["model"]["hidden"]) == (2, [16])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"likelihood": "gausian"}, "GradientFlowEncoder: likelihood: given 'gausian'.*did you mean 'gaussian'"),
        ({"epochs": 0}, "budget.images: given 0"),
        ({"learning_rate": -1.0}, "optim.lr: given -1.0"),
        ({"n_components": 0}, "model.latent_dim: given 0"),
        ({"likelihood": "bernoulli"}, "allowed"),
        ({"learning_rate": 1e12, "epochs": 8}, "diverged"),
    ],
)
def test_what_cannot_be_trained_is_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        encoder(**settings).fit(plane())
    assert "\n" not in str(caught.value)


def test_the_defaults_suit_likelihood_and_samples() -> None:
    """By name alone a likelihood learns its scale, and few samples are seen often."""
    fitted = encoder(epochs=None, hidden_layer_sizes=(), batch_size=400).fit(plane(1600)[:, :3])
    assert (fitted.n_iter_, fitted.trial_.budget.images) == (20, 32_000)
    assert fitted.trial_.likelihood.model_dump() == {"name": "gaussian", "sigma": "learned"}
    few = encoder(epochs=None, likelihood="student_t", batch_size=30).fit(plane(30))
    assert (few.n_iter_, few.trial_.budget.images) == (1000, 30_000)
    assert few.trial_.dump()["likelihood"]["scale"] == "learned"
    assert encoder(likelihood="poisson").fit(np.ones((9, 2))).trial_.likelihood.name == "poisson"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("data", ["digits", "terrain"])
def test_it_imputes_better_than_scikit_learn(data: str) -> None:
    """Half of all values missing at random, three masks; every sixth patch of the terrain, as the rivals are slow."""
    trial = Trial.build({"data": data, "likelihood": "gaussian"})
    X = load_splits(trial).train.values_ND.astype(float)[:: 6 if data == "terrain" else 1]
    for seed in range(3):
        gone = np.less(np.random.default_rng(seed).random(X.shape), 0.5)
        gone[gone.all(1), 0] = False
        holes = np.where(gone, np.nan, X)
        own = GradientFlowEncoder(likelihood="gaussian", random_state=seed).fit(holes).impute(holes)
        found = [own, *(each.fit_transform(holes) for each in (KNNImputer(), IterativeImputer(random_state=0)))]
        errors = [np.sqrt(np.square((each - X)[gone]).mean()) for each in found]
        assert errors[0] < 0.97 * min(errors[1:])


def test_it_works_in_a_pipeline_and_a_grid_search() -> None:
    X = pd.DataFrame(plane(), columns=list("abcdef"))
    pipeline = make_pipeline(StandardScaler(), encoder(scale="none"))
    pipeline.set_output(transform="pandas")
    found = pipeline.fit_transform(X)
    assert list(found) == ["gradientflowencoder0", "gradientflowencoder1"]
    search = GridSearchCV(encoder(), {"epochs": [1, 12]}, cv=2).fit(X)
    assert search.best_params_ == {"epochs": 12}  # the higher score is the better one
    assert clone(search.best_estimator_).get_params()["hidden_layer_sizes"] == (16,)


def test_it_is_kept_and_read(fitted: GradientFlowEncoder, tmp_path: Path) -> None:
    X = plane()
    expected = fitted.transform(X)
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.transform(X), expected)
    file = tmp_path / "encoder.pt"
    fitted.save(file)
    loaded = GradientFlowEncoder.load(file)
    assert np.array_equal(loaded.transform(X), expected)
    assert np.array_equal(loaded.inverse_transform(expected), fitted.inverse_transform(expected))
    assert {**loaded.get_params(), "random_state": 0} == fitted.get_params()
    assert (loaded.n_features_in_, loaded.n_iter_, loaded.loss_) == (6, 30, fitted.loss_)
    assert loaded.calibration_ == fitted.calibration_
    learner, shape, *_ = read_learner(file, {}, torch.device("cpu"))  # as `gfe-study encode` does
    assert isinstance(learner, Learner)
    assert shape == Shape(1, (6,))


def test_names_of_features_are_kept(tmp_path: Path) -> None:
    X = pd.DataFrame(plane(), columns=list("abcdef"))
    encoder().fit(X).save(tmp_path / "encoder.pt")
    loaded = GradientFlowEncoder.load(tmp_path / "encoder.pt")
    assert list(loaded.feature_names_in_) == list("abcdef")
    with pytest.raises(ValueError, match="feature names"):
        loaded.transform(X.rename(columns={"a": "z"}))


def test_it_must_be_fitted_first(tmp_path: Path) -> None:
    unfitted, X = encoder(), plane()
    for call in (
        lambda: unfitted.transform(X),
        lambda: unfitted.score(X),
        lambda: unfitted.save(tmp_path / "x.pt"),
        lambda: unfitted.inverse_transform([[0.0, 0.0]]),
    ):
        with pytest.raises(NotFittedError):
            call()


def test_it_needs_neither_ray_nor_mlflow() -> None:
    code = (
        "import sys; from gfe_study import GradientFlowEncoder; print({'ray', 'mlflow', 'matplotlib'} & {*sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_splits_know_what_is_missing() -> None:
    from gfe_study.estimator import _split

    assert _split(plane(), Scale()).observed_ND is None
    gone = plane()
    gone[0, 0] = np.nan
    found: Split = _split(gone, Scale())
    assert found.observed_ND is not None
    assert found.observed_ND.sum() == gone.size - 1
