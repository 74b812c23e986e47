"""What a trial is measured by beside its losses. Shapes: N images, F features, L latent, D pixels."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from problems import image_problem, smooth_problem
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from gfe_study import names
from gfe_study.config import InputError, Trial
from gfe_study.data.split import Split, Splits, image_shape
from gfe_study.density.entropy import latent_entropy, normal_entropy
from gfe_study.io.cache import CACHE_DIR_VARIABLE
from gfe_study.io.storage import Mirror
from gfe_study.measures import classifier as classifiers
from gfe_study.measures import novelty
from gfe_study.measures.base import Latents
from gfe_study.measures.classifier import Classifier, restored, trained
from gfe_study.measures.distance import frechet_distance
from gfe_study.measures.entropy import Entropy
from gfe_study.measures.fid import inception, inception_features
from gfe_study.measures.novelty import LatentDensity, decoded_with_volume, log_probability, noise_variance
from gfe_study.measures.preparation import prepared, write_prepared
from gfe_study.measures.samples import sampled_images
from gfe_study.methods.base import Learner
from gfe_study.metrics import (
    FID,
    LATENT_ENTROPY,
    NORMAL_ENTROPY,
    NOVELTY_AUROC,
    RECONSTRUCTION_AUROC,
    TEST_ENTROPY_GAP,
    VAL_ENTROPY_GAP,
    VAL_LOSS,
    classifier_distance,
)
from gfe_study.models.mlp import MLPDecoder
from gfe_study.study.images import Images
from gfe_study.training import train

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "preset": "gen",
    "method": "vae",
    "data": {"name": "digits", "held_out": 3},
    "model": {"latent_dim": 3, "hidden": [32]},
    "optim": {"lr": 3e-3},
    "budget": {"images": 600},
    "eval": {"val_images": 100, "test_images": 200, "mixed": False},
}


def normals(count: int, features: int, seed: int) -> Tensor:
    """Features whose mean is exactly 0 and covariance exactly I."""
    draw = torch.randn(count, features, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    draw -= draw.mean(0)
    white: Tensor = draw @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(draw.t()))).t()
    return white


def learned(trial: Trial, splits: Splits) -> tuple[Learner, Latents]:
    """The method at the end of a trial, and the latents that its measures are given."""
    *_, last = train(trial, splits)
    learner, counts = last.state.learner, (trial.eval.val_images, trial.eval.test_images)
    encoded = (
        learner.encode(split.batch(slice(n))) for split, n in zip((splits.val, splits.test), counts, strict=True)
    )
    return learner, Latents(*(each.latent_BL for each in encoded))


def last_point(splits: Splits, *changes: dict[str, Any]) -> dict[str, float]:
    trial = Trial.build(SMALL, *changes)
    points = [metrics for _, metrics, _ in train(trial, prepared(trial, splits)) if metrics is not None]
    return points[-1]


@pytest.fixture(scope="module")
def without_threes() -> Splits:
    return Trial.build(SMALL).data.load()


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_DIR_VARIABLE, str(folder))
        yield folder


def test_frechet_of_normals_is_the_closed_form() -> None:
    one, other = normals(50, 3, 0), normals(70, 3, 1)
    width, shift = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 0.0, -4.0])
    expected = 25 + float((width - 1).square().sum())
    assert frechet_distance(one, other * width + shift) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-12)
    mix = torch.randn(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    covariances = [(each.t() @ each).numpy() for each in mix]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(one @ mix[0], other @ mix[1]) == pytest.approx(expected, rel=1e-9)


def test_frechet_takes_fewer_images_than_features() -> None:
    u, v = torch.randn(2, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = 2 * float(u @ u + v @ v - 2 * (u @ v).abs())  # Σ = 2uuᵀ and 2vvᵀ, of rank one
    assert frechet_distance(torch.stack([u, -u]), torch.stack([v, -v])) == pytest.approx(expected, rel=1e-12)
    constant = torch.ones(5, 40)
    assert frechet_distance(constant, constant + 0.5) == pytest.approx(10)


@pytest.mark.parametrize("features", [torch.ones(1, 4), torch.full((5, 4), math.nan)])
def test_frechet_refuses_what_has_no_covariance(features: Tensor) -> None:
    with pytest.raises(ValueError, match="fewer than two images"):
        frechet_distance(torch.ones(5, 4), features)


FRECHET = Trial.build(SMALL, {"data": {"held_out": None}, "eval": {"measures": ["frechet"]}})
OTHERS = Trial.build(FRECHET.dump(), {"data": {"held_out": 3, "train_images": 100}, "likelihood": "gaussian"})
"""A trial that sees fewer images of the same dataset, in other units."""


def weights_of(splits: Splits) -> dict[str, Tensor]:
    """The classifier that came with them."""
    (weights,) = splits.prepared.values()
    return weights


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_classifier_sees_training_images_alone(digits: Splits) -> None:
    before = torch.get_rng_state()
    weights = trained(digits)
    assert torch.equal(torch.get_rng_state(), before)
    classifier = restored(digits.shape, weights)
    assert torch.equal(torch.get_rng_state(), before)
    image_ND = digits.test.batch(slice(None)).value_BD
    with torch.no_grad():
        found = classifier(image_ND).argmax(1).numpy()
    assert float(np.mean(found == digits.test.labels_N)) > 0.95
    assert classifier.features(image_ND).shape == (300, classifiers.FEATURES)

    lost = Split(np.full((5, 64), math.nan, np.float32), np.full(5, 11), scale=digits.test.scale)
    assert same(trained(replace(digits, val=lost, test=lost)), weights)
    assert not same(trained(replace(digits, train=digits.train.take(slice(1, None)))), weights)


def test_trials_of_a_dataset_share_a_classifier(cached: Path, digits: Splits) -> None:
    assert same(weights_of(prepared(OTHERS, OTHERS.data.load())), trained(digits))
    (file,) = (cached / "prepared").glob("*.pt")
    written = file.stat().st_mtime_ns
    whole = prepared(FRECHET, FRECHET.data.load())
    assert file.stat().st_mtime_ns == written
    assert prepared(FRECHET, whole) is whole
    file.write_bytes(b"no checkpoint")
    assert same(weights_of(prepared(FRECHET, FRECHET.data.load())), weights_of(whole))


def test_a_study_keeps_its_classifier(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Splits
) -> None:
    """Whoever resumes it elsewhere has the same, and so has a study beside it, whose trials it may reuse."""

    def found(trial: Trial, folder: Mirror) -> dict[str, Tensor]:
        images = Images([], download=False)
        images.prepare([trial], folder)
        return weights_of(images.of(trial))

    remote = f"file://{tmp_path / 'remote'}"
    first = found(FRECHET, Mirror(tmp_path / "here" / "one", f"{remote}/one"))
    (file,) = (tmp_path / "remote" / "one" / names.PREPARED_FOLDER).glob("*.pt")
    changed = {name: weight + 1 for name, weight in first.items()}
    write_prepared(file, changed)
    monkeypatch.setenv(CACHE_DIR_VARIABLE, str(tmp_path / "cache of another machine"))
    assert same(found(OTHERS, Mirror(tmp_path / "there" / "one", f"{remote}/one")), changed)
    assert same(found(FRECHET, Mirror(tmp_path / "there" / "two")), changed)
    assert same(found(FRECHET, Mirror(tmp_path / "nowhere" / "two")), first)

    (own,) = (tmp_path / "there" / "two").rglob("*.pt")
    write_prepared(own, first)
    assert same(found(FRECHET, Mirror(tmp_path / "there" / "two")), first)
    own.write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match=r"^\S*/there/two/prepared/classifier-v1-\w{16}\.pt: not a checkpoint"):
        found(FRECHET, Mirror(tmp_path / "there" / "two"))


def test_no_classifier_replaces_a_missing_one(digits: Splits) -> None:
    with pytest.raises(InputError, match=r"^eval\.measures: given frechet, and its classifier did not come"):
        next(step for step in train(FRECHET, digits) if step.metrics is not None)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 5, 9)])
def test_the_classifier_is_built_for_any_shape(shape: tuple[int, int, int]) -> None:
    classifier = Classifier(image_shape(*shape[1:], shape[0]), 4)
    assert classifier(torch.rand(2, math.prod(shape))).shape == (2, 4)


def test_images_of_one_class_train_no_classifier(digits: Splits) -> None:
    alone = Split(digits.train.values_ND[:50], np.zeros(50, np.int64), scale=digits.train.scale)
    with pytest.raises(InputError, match="one class; allowed: of several"):
        trained(Splits(alone, digits.val, digits.test, digits.shape))


@pytest.mark.slow
def test_the_classifier_of_mnist_finds_98_percent(mnist_folder: Path) -> None:
    splits = Trial.build({"data": "mnist"}).data.load([mnist_folder])
    classifier = restored(splits.shape, trained(splits))
    with torch.no_grad():
        parts = [classifier(splits.test.batch(slice(i, i + 500)).value_BD).argmax(1) for i in range(0, 10_000, 500)]
    assert float(np.mean(torch.cat(parts).numpy() == splits.test.labels_N)) >= 0.98


def test_the_number_of_samples_changes_none(digits: Splits) -> None:
    trial = Trial.build(SMALL)
    learner = trial.method.create(trial, digits.shape, CPU)
    few, many = sampled_images(learner, 7, CPU), sampled_images(learner, 600, CPU)
    assert few is not None
    assert many is not None
    torch.testing.assert_close(few, many[:7])
    assert many.shape == (600, 64)
    assert len(many.unique(dim=0)) == 600


def test_frechet_is_also_of_real_images(cached: Path, digits: Splits) -> None:
    """Theirs is the floor, below that of samples and of reconstructions; an autoencoder has no samples."""
    whole = {"data": {"held_out": None}, "eval": {"measures": ["frechet"]}}
    name = classifier_distance("digits")
    assert name == "fd_digits_classifier"
    metrics = last_point(digits, whole)
    assert 0 < metrics[f"{name}_floor"] < min(metrics[f"{name}_reconstruction"], metrics[name])
    assert last_point(digits, whole)[name] == metrics[name]
    alone = last_point(digits, whole, {"method": "ae"})
    assert {key for key in alone if key.startswith("fd_")} == {f"{name}_floor", f"{name}_reconstruction"}


def test_frechet_takes_images_of_the_right_splits(cached: Path) -> None:
    trial = Trial.build(FRECHET.dump(), {"eval": {"measures": [{"name": "frechet", "images": 60}]}})
    splits = prepared(trial, trial.data.load())
    learner, latents = learned(Trial.build(trial.dump(), {"eval": {"measures": None}}), splits)
    classifier = restored(splits.shape, weights_of(splits))
    sampled = sampled_images(learner, 60, CPU)
    assert sampled is not None
    images = {
        "": sampled,
        "reconstruction": learner.decode(latents.test_NL[:60]),
        "floor": splits.val.batch(slice(60)).value_BD,
    }
    test_NF = classifier.features(splits.test.batch(slice(60)).value_BD)
    expected = {
        classifier_distance("digits", kind): frechet_distance(test_NF, classifier.features(each))
        for kind, each in images.items()
    }
    (measure,) = trial.eval.measures or ()
    assert measure.values(learner, splits, latents) == pytest.approx(expected, rel=1e-6)


def test_entropies_are_of_the_first_latents(digits: Splits) -> None:
    """Beside each is that of as many samples of the normal."""
    trial = Trial.build(SMALL, {"data": {"held_out": None}})
    learner = trial.method.create(trial, digits.shape, CPU)
    draw = torch.Generator().manual_seed(0)
    val_VL, test_NL = torch.randn(40, 3, generator=draw) ** 3, torch.rand(70, 3, generator=draw)
    found = Entropy(samples=(50, 70, 100)).values(learner, digits, Latents(val_VL, test_NL))
    expected = {
        f"{LATENT_ENTROPY}{name}": latent_entropy(test_NL[:n]) for name, n in (("", 70), ("_50", 50), ("_70", 70))
    }
    expected |= {f"{NORMAL_ENTROPY}{name}": normal_entropy(n, 3) for name, n in (("", 70), ("_50", 50), ("_70", 70))}
    expected[TEST_ENTROPY_GAP] = normal_entropy(70, 3) - latent_entropy(test_NL)
    expected[VAL_ENTROPY_GAP] = normal_entropy(40, 3) - latent_entropy(val_VL)
    assert found == expected
    assert min(found[TEST_ENTROPY_GAP], found[VAL_ENTROPY_GAP]) > 0


def full_jacobian(decoder: nn.Module, latent_L: Tensor) -> Tensor:
    found: Tensor = torch.autograd.functional.jacobian(lambda z: decoder(z[None])[0].sigmoid(), latent_L)
    return found


@pytest.mark.parametrize("problem", [image_problem, smooth_problem])
def test_equations_10_and_11_give_the_probability(problem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem(batch=5)
    draw = torch.Generator().manual_seed(1)
    latent_NL, train_ML, val_VL = (torch.randn(n, 2, dtype=torch.float64, generator=draw) for n in (5, 30, 20))
    density = LatentDensity.fit(train_ML, val_VL)
    covariance = density.bandwidth**2 * torch.cov(train_ML.t())
    kernels = MultivariateNormal(train_ML, covariance.expand(30, 2, 2))
    expected = MixtureSameFamily(Categorical(torch.ones(30)), kernels).log_prob(latent_NL)
    torch.testing.assert_close(density.log_density(latent_NL), expected.double())
    slopes = [full_jacobian(given.decoder, latent_L) for latent_L in latent_NL]
    expected -= torch.stack([torch.logdet(slope.t() @ slope) / 2 for slope in slopes])
    decoded = given.decoder(latent_NL).sigmoid()
    expected += Independent(Normal(decoded, math.sqrt(0.3)), 1).log_prob(given.target_BD)
    found = log_probability(given.decoder, given.loss, density, 0.3, given.target_BD, latent_NL)
    torch.testing.assert_close(found, expected)
    monkeypatch.setattr(novelty, "JACOBIAN_NUMBERS", 1)
    torch.testing.assert_close(
        log_probability(given.decoder, given.loss, density, 0.3, given.target_BD, latent_NL), found
    )


def test_no_linear_map_changes_the_probability() -> None:
    given = image_problem(batch=6)
    draw = torch.Generator().manual_seed(3)
    latent_NL, train_ML, val_VL = (torch.randn(n, 2, dtype=torch.float64, generator=draw) for n in (6, 40, 25))
    mapped = MLPDecoder([2, 9, 7]).double()
    assert isinstance(given.decoder, MLPDecoder)
    mapped.load_state_dict(given.decoder.state_dict())
    turn = torch.tensor([[1.0, 2.0], [-0.5, 3.0]], dtype=torch.float64)
    with torch.no_grad():
        mapped.linears()[0].weight.copy_(given.decoder.linears()[0].weight @ torch.linalg.inv(turn))
    one = log_probability(
        given.decoder, given.loss, LatentDensity.fit(train_ML, val_VL), 0.1, given.target_BD, latent_NL
    )
    density = LatentDensity.fit(train_ML @ turn.t(), val_VL @ turn.t())
    torch.testing.assert_close(
        log_probability(mapped, given.loss, density, 0.1, given.target_BD, latent_NL @ turn.t()), one
    )


def test_a_latent_that_is_ignored_has_no_volume() -> None:
    decoder, loss = image_problem().decoder, image_problem().loss
    assert isinstance(decoder, MLPDecoder)
    with torch.no_grad():
        decoder.linears()[0].weight[:, 1] = 0
    assert decoded_with_volume(decoder, loss, torch.ones(3, 2, dtype=torch.float64))[1].tolist() == [-math.inf] * 3


def test_two_latents_seen_as_one_have_no_volume() -> None:
    """Their slopes are parallel but for the rounding of float32, and not however small one of them is."""
    decoder, loss = image_problem().decoder, image_problem().loss
    assert isinstance(decoder, MLPDecoder)
    weight = decoder.linears()[0].weight
    latent_NL = torch.ones(3, 2)
    volume_N = decoded_with_volume(decoder.float(), loss.float(), latent_NL)[1]
    with torch.no_grad():
        weight[:, 1] *= 1e-12
    (shrunk_N, shift) = decoded_with_volume(decoder, loss, latent_NL)[1], math.log(1e-12)
    assert bool((shrunk_N - volume_N - shift).abs().max() < 1)
    with torch.no_grad():
        weight[:, 1] = 0.3 * weight[:, 0]
    assert decoded_with_volume(decoder, loss, latent_NL)[1].tolist() == [-math.inf] * 3


def test_collapsed_latents_have_no_density() -> None:
    flat = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    flat[:, 1] = 0
    with pytest.raises(ValueError, match="fewer than 2 dimensions"):
        LatentDensity.fit(flat, flat)
    flat[:, 1] = 0.3 * flat[:, 0]  # but for rounding, of which Cholesky's root would make a density
    with pytest.raises(ValueError, match="fewer than 2 dimensions"):
        LatentDensity.fit(flat, flat)
    with pytest.raises(ValueError, match="NaN"):
        LatentDensity.fit(flat / 0, flat)
    with pytest.raises(ValueError, match="NaN"):
        LatentDensity.fit(torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), flat / 0)


def test_the_bandwidth_is_the_likeliest() -> None:
    draw = torch.Generator().manual_seed(0)
    train_ML, val_VL = torch.randn(200, 2, generator=draw), torch.randn(100, 2, generator=draw)
    density = LatentDensity.fit(train_ML, val_VL)
    best = float(density.log_density(val_VL).mean())
    for factor in (0.8, 1.25):
        other = replace(density, bandwidth=density.bandwidth * factor)
        assert float(other.log_density(val_VL).mean()) < best


def test_the_noise_of_independent_pixels_is_found() -> None:
    error = 0.3 * torch.randn(4000, 50, generator=torch.Generator().manual_seed(0))
    assert noise_variance(error.square().sum(1), 50) == pytest.approx(0.09, rel=0.05)
    assert noise_variance(1e-30 * error.square().sum(1), 50) == pytest.approx(0.09e-30, rel=0.05)


@pytest.mark.parametrize("errors", [torch.tensor([0.1]), 0.1 + 1e-8 * torch.arange(9), torch.zeros(5)])
def test_rounding_of_errors_is_no_noise(errors: Tensor) -> None:
    assert noise_variance(errors, 50) == 0


@pytest.mark.parametrize("method", ["vae", "ae", "gfe"])
def test_novelty_tells_the_held_out_class(without_threes: Splits, method: str) -> None:
    flow = {"preset": "best", "solver": {"name": "lbfgs", "max_nfe": 10}}
    metrics = last_point(
        without_threes,
        {"method": method, "target": None if method != "vae" else {"name": "standard_normal"}},
        flow if method == "gfe" else {},
        {"eval": {"measures": [{"name": "novelty", "train_images": 300}]}},
    )
    assert 0 < metrics[RECONSTRUCTION_AUROC] < 1
    assert 0 < metrics[NOVELTY_AUROC] < 1
    assert metrics[NOVELTY_AUROC] != metrics[RECONSTRUCTION_AUROC]


def test_novelty_is_the_share_of_pairs_in_order(without_threes: Splits) -> None:
    """By the density of training latents and the noise of validation images, counted pair by pair."""
    trial = Trial.build(SMALL, {"eval": {"measures": [{"name": "novelty", "train_images": 300}]}})
    learner, latents = learned(Trial.build(trial.dump(), {"eval": {"measures": None}}), without_threes)
    train_ML = learner.encode(without_threes.train.batch(slice(300))).latent_BL
    (image_VD, decoded_VD), (image_ND, decoded_ND) = (
        (split.batch(slice(len(latent))).value_BD, learner.decode(latent))
        for split, latent in ((without_threes.val, latents.val_VL), (without_threes.test, latents.test_NL))
    )
    variance = noise_variance((image_VD - decoded_VD).square().sum(1), 64)
    density = LatentDensity.fit(train_ML, latents.val_VL)
    log_N = log_probability(learner.decoder, learner.loss, density, variance, image_ND, latents.test_NL)
    assert without_threes.test.labels_N is not None
    novel_N = torch.from_numpy(without_threes.test.labels_N[:200] == 3)

    def share(score_N: Tensor) -> float:
        return float((score_N[novel_N][:, None] > score_N[~novel_N]).double().mean())

    expected = {NOVELTY_AUROC: share(-log_N), RECONSTRUCTION_AUROC: share((image_ND - decoded_ND).square().sum(1))}
    (measure,) = trial.eval.measures or ()
    assert measure.values(learner, without_threes, latents) == pytest.approx(expected, abs=1e-9)


def test_novelty_is_left_out_without_a_density(without_threes: Splits) -> None:
    trial = Trial.build(SMALL, {"eval": {"measures": ["novelty"]}})
    learner = trial.method.create(trial, without_threes.shape, CPU)
    with torch.no_grad():
        for weight in learner.networks["encoder"].parameters():
            weight.zero_()
    (measure,) = trial.eval.measures or ()
    val_VL, test_NL = (
        learner.encode(split.batch(slice(200))).latent_BL for split in (without_threes.val, without_threes.test)
    )
    found = measure.values(learner, without_threes, Latents(val_VL, test_NL))
    assert set(found) == {RECONSTRUCTION_AUROC}
    assert measure.values(learner, without_threes, Latents(val_VL, test_NL[:1])) == {}


def test_novelty_needs_a_class_that_is_held_out() -> None:
    with pytest.raises(InputError, match=r"novelty .*data\.held_out"):
        Trial.build({"eval": {"measures": ["novelty"]}})


def test_measures_change_no_trial(cached: Path, without_threes: Splits) -> None:
    measured = last_point(without_threes, {"eval": {"schedule": [300], "measures": ["entropy", "frechet", "novelty"]}})
    plain = last_point(without_threes, {"eval": {"schedule": [300]}})
    assert measured[VAL_LOSS] == plain[VAL_LOSS]
    assert set(plain) < set(measured)


@pytest.fixture
def fid_of(digits: Splits) -> Any:
    def values(weights: Path) -> dict[str, float]:
        trial = Trial.build(SMALL, {"eval": {"measures": [{"name": "fid", "weights": str(weights), "images": 6}]}})
        learner = trial.method.create(trial, digits.shape, CPU)
        (measure,) = trial.eval.measures or ()
        found: dict[str, float] = measure.values(learner, digits, Latents(torch.zeros(20, 3), torch.zeros(20, 3)))
        return found

    return values


def test_fid_says_what_it_needs(fid_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(InputError, match=r"pip install gfe-study\[fid\]"):
        fid_of(tmp_path / "weights.pth")


def test_fid_refuses_weights_that_it_cannot_use(fid_of: Any, tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity")
    file = tmp_path / "weights.pth"
    with pytest.raises(InputError, match="no such file"):
        fid_of(file)
    file.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match="damaged"):
        fid_of(file)


@pytest.mark.slow
def test_fid_is_a_distance_of_inception_features(fid_of: Any, digits: Splits, tmp_path: Path) -> None:
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    file = tmp_path / "weights.pth"
    torch.save({}, file)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(extractor, "load_state_dict", lambda self, state: None)
        network = extractor("random", ["2048"], feature_extractor_weights_path=str(file))
    before = torch.get_rng_state()
    torch.save(network.state_dict(), file)
    found = fid_of(file)
    assert torch.equal(torch.get_rng_state(), before)
    trial = Trial.build(SMALL)
    samples = sampled_images(trial.method.create(trial, digits.shape, CPU), 6, CPU)
    assert samples is not None
    features = []
    for image_ND in (digits.test.batch(slice(6)).value_BD, samples):
        colour = (image_ND * 255).round().to(torch.uint8).view(-1, 1, 8, 8).repeat(1, 3, 1, 1)
        features.append(network(colour)[0])
    torch.testing.assert_close(inception_features(inception(str(file), CPU), samples, digits.shape), features[1])
    assert found == {FID: pytest.approx(frechet_distance(*features), rel=1e-4)}
    assert found[FID] > 0
