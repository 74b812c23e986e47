"""Images in colour, from training to every picture of them. Shapes: N images, D pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gfe_study import names, registry
from gfe_study.config import InputError, Trial
from gfe_study.data.split import Scale, Split, Splits, image_shape
from gfe_study.io.checkpoint import read_checkpoint, write_checkpoint
from gfe_study.metrics import DIVERGED, VAL_LOSS
from gfe_study.study.artifacts import read_learner, write_best, write_reconstruction
from gfe_study.study.encoding import encode_file
from gfe_study.study.probe import PROBED_BYTES, probe_excerpt
from gfe_study.study.snapshots import PICTURES, write_snapshot
from gfe_study.training import TrainingState, train

SHAPE = image_shape(10, 12, 3)
TINY: dict[str, Any] = {
    "preset": "paper",
    "model": {"name": "conv", "latent_dim": 4, "channels": [6, 8]},
    "solver": {"name": "amd", "max_nfe": 12, "s_max": 100},
    "optim": {"lr": 3e-3},
    "eval": {"schedule": [16], "val_images": 20, "test_images": 20},
    "budget": {"images": 320},
}
CPU = torch.device("cpu")


def sky_and_grass(count: int, seed: int) -> Split:
    """Blue above, green below, red on the left of some: no two channels, rows or columns are alike."""
    draw = np.random.default_rng(seed)
    images = np.zeros((count, *SHAPE.dims), np.uint8)
    images[:, 2, :5] = draw.integers(150, 256, (count, 1, 1))
    images[:, 1, 5:] = draw.integers(100, 256, (count, 1, 1))
    labels = draw.integers(0, 2, count)
    images[:, 0, :, :4] = 200 * labels[:, None, None]
    return Split(images.reshape(count, -1), labels, scale=Scale.of_levels(255))


@pytest.fixture(scope="module")
def splits() -> Splits:
    train, val, test = (sky_and_grass(count, seed) for seed, count in enumerate((200, 30, 30)))
    return Splits(train, val, test, shape=SHAPE)


def run(splits: Splits, *changes: dict[str, Any], folder: Path | None = None) -> TrainingState:
    state = None
    for _, metrics, state in train(Trial.build(TINY, *changes), splits):
        if metrics is not None and folder is not None:
            write_snapshot(folder, state, splits)
    assert state is not None
    return state


@pytest.fixture(scope="module")
def trained(splits: Splits) -> TrainingState:
    return run(splits)


def pictures(images_ND: Tensor) -> np.ndarray:
    """(N, height, width, channels) in [0, 1]."""
    return images_ND.reshape(-1, *SHAPE.dims).permute(0, 2, 3, 1).numpy()


def test_pictures_have_their_channels_last(splits: Splits) -> None:
    """Grey pictures have no axis of channels."""
    values_ND = splits.test.values_ND
    assert (splits.shape, splits.shape.size) == (SHAPE, 360)
    assert np.array_equal(SHAPE.to_file(values_ND), values_ND.reshape(-1, 3, 10, 12).transpose(0, 2, 3, 1))
    assert np.array_equal(SHAPE.from_file(SHAPE.to_file(values_ND)), values_ND)
    grey = image_shape(15, 24, 1)
    assert np.array_equal(grey.to_file(values_ND), values_ND.reshape(-1, 15, 24))
    assert np.array_equal(grey.from_file(grey.to_file(values_ND)), values_ND)


@pytest.mark.parametrize("model", registry.names("model"))
@pytest.mark.parametrize("method", ["gfe", "ae"])
def test_every_architecture_learns_colours(splits: Splits, method: str, model: str) -> None:
    changes = {"method": method, **({"model": {"name": model}} if model != "conv" else {})}
    first, *_, last = run(splits, changes).points
    assert last[VAL_LOSS] < first[VAL_LOSS] - 0.05
    assert last[DIVERGED] == 0


def test_best_networks_keep_the_shape_of_images(trained: TrainingState, splits: Splits, tmp_path: Path) -> None:
    write_best(tmp_path, trained, splits)
    learner, shape, *_ = read_learner(tmp_path / names.BEST_CHECKPOINT, {}, CPU)
    assert shape == SHAPE
    latent = torch.randn(2, 4)
    assert torch.equal(learner.decode(latent), trained.learner.decode(latent))


def test_networks_of_older_versions_are_of_images(digits: Splits, tmp_path: Path) -> None:
    """They were written before data of any shape could be read."""
    state = run(digits, {"budget": {"images": 16}, "model": {"name": "mlp", "latent_dim": 4, "hidden": [8]}})
    write_best(tmp_path, state, digits)
    path = tmp_path / names.BEST_CHECKPOINT
    content = read_checkpoint(path, CPU)
    del content["shape"], content["scale"]
    content |= {"height": 8, "width": 8}
    write_checkpoint(path, content)
    learner, shape, scale, _ = read_learner(path, {}, CPU)
    assert shape == image_shape(8, 8, 1)
    assert scale.state_dict() == digits.train.scale.state_dict()
    latent = torch.randn(2, 4)
    assert torch.equal(learner.decode(latent), state.learner.decode(latent))


def test_reconstructions_are_drawn_in_colour(trained: TrainingState, splits: Splits, tmp_path: Path) -> None:
    write_reconstruction(tmp_path, trained.learner, splits, CPU)
    with Image.open(tmp_path / names.RECONSTRUCTION) as image:
        drawn = np.asarray(image)
    scale = 5  # to 56 pixels' height, about
    high, wide = scale * 11, scale * 13
    assert drawn.shape == (2 * high + scale, 10 * wide + scale, 3)
    targets = splits.test.batch(slice(0, 10))
    decoded = trained.learner.decode(trained.learner.encode(targets).latent_BL)
    for row, expected in enumerate(map(pictures, (targets.value_BD, decoded))):
        for column in range(10):
            corner = drawn[row * high + scale :, column * wide + scale :]
            cell = corner[: 10 * scale : scale, : 12 * scale : scale]
            np.testing.assert_allclose(cell / 255, expected[column], atol=1 / 255)


def test_snapshots_keep_the_colours(splits: Splits, tmp_path: Path) -> None:
    state = run(splits, folder=tmp_path)
    with np.load(tmp_path / names.SNAPSHOTS) as found:
        targets = found["target"]
        assert (targets.shape, targets.dtype) == ((PICTURES, 10, 12, 3), np.uint8)
        np.testing.assert_array_equal(targets, SHAPE.to_file(splits.test.values_ND[:PICTURES]))
        decoded = pictures(state.learner.decode(torch.from_numpy(found["320/latent"][:PICTURES])))
        np.testing.assert_allclose(found["320/reconstruction"] / 255, decoded, atol=0.51 / 255)


def test_colours_are_encoded_in_either_layout(trained: TrainingState, splits: Splits, tmp_path: Path) -> None:
    write_best(tmp_path, trained, splits)
    values_ND = splits.test.values_ND[:7]
    found = {}
    for layout, images in (("flat", values_ND), ("pictures", SHAPE.to_file(values_ND))):
        np.save(tmp_path / "images.npy", images)
        out = tmp_path / f"{layout}.npz"
        summary = encode_file(tmp_path / names.BEST_CHECKPOINT, tmp_path / "images.npy", out, {})
        with np.load(out) as codes:
            found[layout] = dict(codes)
        assert summary["images"] == 7
        assert found[layout]["reconstruction"].shape == images.shape
    np.testing.assert_array_equal(found["flat"]["latent"], found["pictures"]["latent"])
    np.testing.assert_array_equal(SHAPE.to_file(found["flat"]["reconstruction"]), found["pictures"]["reconstruction"])
    x, y = found["pictures"]["reconstruction"] / 255, SHAPE.to_file(values_ND) / 255
    entropy = -(y * np.log(x) + (1 - y) * np.log(1 - x)).mean(axis=(1, 2, 3))
    assert found["pictures"]["loss"] == pytest.approx(entropy, rel=1e-4)


@pytest.mark.parametrize("given", [(7, 3, 10, 12), (7, 10, 12), (7, 120), (0, 10, 12, 3)])
def test_images_of_another_shape_are_refused(
    trained: TrainingState, splits: Splits, tmp_path: Path, given: tuple[int, ...]
) -> None:
    """The message names the shapes that are allowed."""
    write_best(tmp_path, trained, splits)
    np.save(tmp_path / "images.npy", np.zeros(given, np.uint8))
    with pytest.raises(InputError) as error:
        encode_file(tmp_path / names.BEST_CHECKPOINT, tmp_path / "images.npy", tmp_path / "out.npz", {})
    allowed = "no axis of length 0" if given[0] == 0 else "(N, 10, 12, 3) or (N, 360)"
    assert f"given shape {given}; allowed: {allowed}" in str(error.value)


def test_a_probe_gets_no_more_than_it_looks_at() -> None:
    trial = Trial.build(TINY, {"eval": {"test_images": 400}})
    large = Split(np.zeros((6000, 3 * 64 * 64), np.uint8), np.zeros(6000, np.int64))
    excerpt = probe_excerpt(trial, Splits(large, large, large, shape=image_shape(64, 64, 3)))
    assert excerpt.shape == image_shape(64, 64, 3)
    assert [len(split) for split in excerpt.parts.values()] == [PROBED_BYTES // 12288, 20, 400]
