"""Files that a user brings: scaled as the decoder's data was, refused in one line, never overwritten."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gfe_study import names
from gfe_study.config import InputError, Trial
from gfe_study.data.base import load_splits
from gfe_study.data.mnist import MNIST
from gfe_study.data.split import DataError, Splits
from gfe_study.io.checkpoint import read_checkpoint
from gfe_study.posterior import posterior_of
from gfe_study.study.artifacts import read_learner, write_best
from gfe_study.study.encoding import encode_file, encoding_notes
from gfe_study.trained import TrainedDecoder
from gfe_study.training import train


@pytest.fixture
def decoder(digits: Splits, tmp_path: Path) -> Path:
    solver, model = {"name": "amd", "max_nfe": 12}, {"latent_dim": 3, "hidden": [8]}
    trial = Trial.build({"data": "digits", "solver": solver, "model": model, "budget": {"images": 160}})
    *_, (_, _, state) = train(trial, digits)
    write_best(tmp_path, state, digits)
    return tmp_path / names.BEST_CHECKPOINT


def trained_on(path: Path, **changes: Any) -> Path:
    """The best.pt of a short trial of a user's own data."""
    trial = Trial.build(
        {
            "solver": {"name": "lbfgs", "max_nfe": 6},
            "model": {"latent_dim": 2, "hidden": [4]},
            "likelihood": "gaussian",
            "data": {"name": "arrays", "path": str(path)},
            "budget": {"images": 64},
        },
        changes,
    )
    splits = load_splits(trial)
    *_, (_, _, state) = train(trial, splits)
    write_best(path.parent, state, splits)
    return path.parent / names.BEST_CHECKPOINT


def test_columns_are_found_by_their_names(tmp_path: Path) -> None:
    """They are those that the decoder was trained on, in whatever order."""
    rows = "".join(f"{i},{'xy'[i % 2]},{i % 7},{i % 3}\n" for i in range(40))
    (tmp_path / "a.csv").write_text("id,kind,a,b\n" + rows)
    (tmp_path / "b.csv").write_text("b,a\n" + "".join(f"{i % 3},{i % 7}\n" for i in range(40)))
    decoder = trained_on(tmp_path / "a.csv", data={"columns": ["a", "b"], "labels": "kind"})
    found = []
    for name in ("a.csv", "b.csv"):
        encode_file(decoder, tmp_path / name, tmp_path / "out.npz", {})
        with np.load(tmp_path / "out.npz") as archive:
            found.append(archive["latent"])
    np.testing.assert_array_equal(*found)


def test_standard_deviations_have_the_files_units(tmp_path: Path) -> None:
    values = 50 + 10 * np.random.default_rng(1).normal(size=(60, 5)) @ np.random.default_rng(2).normal(size=(5, 5))
    values[::3, 2] = np.nan
    np.save(tmp_path / "a.npy", values)
    settings: dict[str, Any] = {"likelihood": {"sigma": "learned"}, "prior_precision": 1.0}
    plain = trained_on(tmp_path / "a.npy", **settings)
    encode_file(plain, tmp_path / "a.npy", tmp_path / "out.npz", {}, std=True)
    with np.load(tmp_path / "out.npz") as archive:
        std, covariance = archive["std"], archive["latent_covariance"]
    learner, _, scale, _ = read_learner(plain, {}, torch.device("cpu"))
    target = replace(load_splits(learner.trial).train, values_ND=values, observed_ND=~np.isnan(values)).batch(slice(60))
    known = posterior_of(learner, target, learner.encode(target).latent_BL)
    np.testing.assert_allclose(std, known.std_BD.double() * torch.as_tensor(scale.factor), rtol=1e-5)
    np.testing.assert_allclose(covariance, known.covariance_BLL, rtol=1e-5)
    measured = {"eval": {"measures": ["coverage"], "withhold": {"fraction": 0.3}}}
    calibrated = trained_on(tmp_path / "a.npy", **settings, **measured)
    factor = read_checkpoint(calibrated)["metrics"]["calibration"]
    assert factor != 1
    encode_file(calibrated, tmp_path / "a.npy", tmp_path / "out.npz", {}, std=True)
    with np.load(tmp_path / "out.npz") as archive:
        np.testing.assert_allclose(archive["std"], factor * std, rtol=1e-5)  # the training samples lack nothing more
    changes: dict[str, Any] = {"prior_precision": 2.0}
    uncalibrated = encode_file(calibrated, tmp_path / "a.npy", tmp_path / "out.npz", changes, std=True)
    assert uncalibrated["calibration"] == 1
    assert "not calibrated" in "".join(encoding_notes(uncalibrated))
    likelihood = {"likelihood": {"name": "gaussian", "sigma": 0.5}}
    fixed = trained_on(tmp_path / "a.npy", **{**settings, "likelihood": {"sigma": 1.0}}, **measured)
    assert encode_file(fixed, tmp_path / "a.npy", tmp_path / "out.npz", {}, std=True)["calibration"] != 1
    assert encode_file(fixed, tmp_path / "a.npy", tmp_path / "out.npz", likelihood, std=True)["calibration"] == 1
    with pytest.raises(InputError, match="prior_precision: given null with --std"):
        encode_file(trained_on(tmp_path / "a.npy"), tmp_path / "a.npy", tmp_path / "out.npz", {}, std=True)


def test_the_prior_is_tuned_to_the_gaps_of_a_file(tmp_path: Path) -> None:
    """Few values are observed there, so that a stronger prior than the trial's does better; it is found again."""
    draw = np.random.default_rng(1)
    values = draw.normal(size=(300, 3)) @ draw.normal(size=(3, 10)) + 0.7 * draw.normal(size=(300, 10))
    np.save(tmp_path / "a.npy", values)
    training = {"model": {"latent_dim": 3, "hidden": []}, "budget": {"images": 6000}, "eval": {"schedule": [6000]}}
    decoder = trained_on(tmp_path / "a.npy", prior_precision=0.01, **training)
    gone = np.where(draw.random(values.shape) < 0.6, np.nan, values)
    gone[:, 0] = values[:, 0]
    np.save(tmp_path / "gone.npy", gone)
    errors = {}
    for precision in (0.01, 1.0, 100.0):
        changes = {"prior_precision": precision}
        encode_file(decoder, tmp_path / "gone.npy", tmp_path / "out.npz", changes)
        with np.load(tmp_path / "out.npz") as archive:
            errors[precision] = np.square(archive["reconstruction"] - values)[np.isnan(gone)].mean()
    found = encode_file(decoder, tmp_path / "gone.npy", tmp_path / "out.npz", {}, tuning=True, std=True)
    with np.load(tmp_path / "out.npz") as archive:
        tuned = np.square(archive["reconstruction"] - values)[np.isnan(gone)].mean()
    assert 0.01 < found["prior_precision"] < 100
    assert tuned < min(errors[0.01], errors[100.0])
    assert tuned < 1.05 * errors[1.0]
    with np.load(tmp_path / "out.npz") as archive:
        error, std = np.abs(archive["reconstruction"] - values), archive["std"]
    assert 0.93 < (error < 1.96 * std)[np.isnan(gone)].mean() < 0.97
    assert found["calibration"] != 1
    with pytest.raises(InputError, match=r"--tune-prior: .* has no sample of which something is missing"):
        encode_file(decoder, tmp_path / "a.npy", tmp_path / "out.npz", {}, tuning=True)
    by_encoder = trained_on(tmp_path / "a.npy", method="ae")
    with pytest.raises(InputError, match="--tune-prior: given with method=ae"):
        encode_file(by_encoder, tmp_path / "gone.npy", tmp_path / "out.npz", {}, tuning=True)


def test_a_mask_is_called_as_the_decoders_was(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    values, seen = draw.normal(size=(40, 5)), draw.random((40, 5)) < 0.7
    seen[:, 0] = True
    losses = []
    for content in (-999.0, 0.0):
        np.savez(tmp_path / "a.npz", x=np.where(seen, values, content), seen=seen)
        decoder = trained_on(tmp_path / "a.npz", data={"array": "x", "observed": "seen"})
        losses.append(encode_file(decoder, tmp_path / "a.npz", tmp_path / "out.npz", {})["loss"])
    assert losses[0] == losses[1]


def test_a_file_without_needed_errors_is_one_line(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(40, 5))
    np.savez(tmp_path / "a.npz", x=values, sigma=np.full(values.shape, 0.3))
    np.save(tmp_path / "b.npy", values)
    decoder = trained_on(tmp_path / "a.npz", likelihood={"sigma": "data"})
    with pytest.raises(InputError, match=r"likelihood\.sigma: given 'data', and the data has no sigma"):
        encode_file(decoder, tmp_path / "b.npy", tmp_path / "out.npz", {})
    assert encode_file(decoder, tmp_path / "b.npy", tmp_path / "out.npz", {"likelihood": {"sigma": 0.3}})["rmse"] < 5


def test_outputs_keep_their_meaning_from_training(tmp_path: Path) -> None:
    """Another scale is refused, and so is a likelihood that takes outputs for something else."""
    np.save(tmp_path / "a.npy", np.random.default_rng(1).random((40, 5)))
    decoder = trained_on(tmp_path / "a.npy")
    for changes, told in (
        ({"data": {"scale": "minmax"}}, r"data\.scale: given minmax; allowed: standard"),
        ({"likelihood": "bernoulli"}, r"likelihood\.name: given 'bernoulli', .* trained with 'gaussian'"),
    ):
        with pytest.raises(InputError, match=told):
            encode_file(decoder, tmp_path / "a.npy", tmp_path / "out.npz", changes)
    assert encode_file(decoder, tmp_path / "a.npy", tmp_path / "out.npz", {"likelihood": "student_t"})["rmse"] < 1


def encoded(decoder: Path, images: np.ndarray, **changes: Any) -> dict[str, np.ndarray]:
    folder = decoder.parent
    np.save(folder / "images.npy", images)
    encode_file(decoder, folder / "images.npy", folder / "out.npz", changes)
    with np.load(folder / "out.npz") as found:
        return dict(found)


def test_a_decoder_encodes_as_its_trial_does(tmp_path: Path) -> None:
    """By flow where the trial says so or whoever encodes asks for it, and by the encoder again on demand."""
    images = np.random.default_rng(1).random((40, 5))
    found = {}
    for encode in (None, "flow"):
        (tmp_path / str(encode)).mkdir()
        np.save(tmp_path / str(encode) / "a.npy", images)
        decoder = trained_on(tmp_path / str(encode) / "a.npy", method={"name": "ae", "encode": encode})
        for asked in (None, "flow"):
            found[encode, asked] = encoded(decoder, images, method={"encode": asked})
        as_trained = encoded(decoder, images)
        np.testing.assert_array_equal(as_trained["latent"], found[encode, encode]["latent"])
        np.testing.assert_array_equal(TrainedDecoder.read(decoder).encode(images), as_trained["latent"])
    for encode in (None, "flow"):
        for name in ("latent", "loss"):
            np.testing.assert_array_equal(found[None, encode][name], found["flow", encode][name])
        assert (found[None, encode]["nfe_forward"] > 0).all() == (encode == "flow")
        assert (found[None, encode]["stopped"] == "encoder").all() == (encode is None)
    assert (found[None, "flow"]["loss"] < found[None, None]["loss"]).mean() > 0.9


def test_whole_numbers_are_scaled_as_in_training(decoder: Path, digits: Splits) -> None:
    """White is 16 in scikit-learn's digits, so the same picture as floats gives the same latents."""
    values_ND = digits.test.values_ND[:20]
    whole, real = encoded(decoder, values_ND), encoded(decoder, (values_ND / 16).astype(np.float32))
    np.testing.assert_array_equal(whole["latent"], real["latent"])
    np.testing.assert_array_equal(whole["loss"], real["loss"])
    with pytest.raises(InputError, match="given values from 0 to 255; allowed"):
        encoded(decoder, np.array([[0] * 63 + [255]], dtype=np.uint8))


@pytest.mark.parametrize("link", [False, True])
def test_a_file_that_is_read_is_not_written(decoder: Path, link: bool) -> None:
    folder = decoder.parent
    np.save(folder / "images.npy", np.zeros((3, 64), np.float32))
    for read, what in ((folder / "images.npy", "--images"), (decoder, "the decoder")):
        before, out = read.read_bytes(), read
        if link:
            out = folder / f"link to {read.name}"
            out.symlink_to(read)
        with pytest.raises(InputError, match=f"which is {what}; allowed: another file"):
            encode_file(decoder, folder / "images.npy", out, {})
        assert read.read_bytes() == before


def test_a_truncated_archive_is_one_line(decoder: Path) -> None:
    folder = decoder.parent
    np.savez(folder / "whole.npz", images=np.zeros((3, 64), np.float32))
    (folder / "cut.npz").write_bytes((folder / "whole.npz").read_bytes()[:-40])
    with pytest.raises(InputError, match=r"cut\.npz: cannot be read"):
        encode_file(decoder, folder / "cut.npz", folder / "out.npz", {})
    assert not (folder / "out.npz").exists()


def idx(file: Path, content: np.ndarray) -> None:
    """Write an IDX file of unsigned bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, content.ndim]) + np.array(content.shape, dtype=">u4").tobytes()
    file.write_bytes(header + content.astype(np.uint8).tobytes())


@pytest.mark.parametrize(
    ("shape", "count", "message"),
    [
        ((14, 56), 20, "given images of 14 × 56 pixels; allowed: 28 × 28"),
        ((28, 28), 5, "given 5 training and 20 test images; allowed: at least 6 of each"),
    ],
)
def test_sound_files_are_not_called_damaged(tmp_path: Path, shape: tuple[int, int], count: int, message: str) -> None:
    """Not even where they do not fit."""
    for part, images in (("train", count), ("t10k", 20)):
        idx(tmp_path / "MNIST" / "raw" / f"{part}-images-idx3-ubyte", np.zeros((images, *shape)))
        idx(tmp_path / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte", np.zeros(images))
    with pytest.raises(DataError) as caught:
        MNIST(name="mnist").load([tmp_path])
    assert message in str(caught.value)
    assert "damaged" not in str(caught.value)
    shutil.rmtree(tmp_path / "MNIST")


def test_encoding_may_have_its_own_instrument(tmp_path: Path) -> None:
    """Whatever the training withheld, and however the method was trained."""
    values = np.random.default_rng(1).normal(size=(60, 8))
    values[::2, :3] = np.nan
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "coarse.npy", np.random.default_rng(2).normal(size=(5, 4)))
    scored = {"eval": {"measures": ["coverage"], "withhold": {"kind": "like"}}, "prior_precision": 1.0}
    for method in ("gfe", "pca"):
        decoder = trained_on(tmp_path / "a.npy", method=method, likelihood={"sigma": "learned"}, **scored)
        changes = {"data": {"observe": {"name": "downsample", "factor": 2}}}
        assert encode_file(decoder, tmp_path / "coarse.npy", tmp_path / "out.npz", changes)["images"] == 5
