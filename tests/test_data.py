"""Shapes: N images, D pixels."""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labels import labels_of
from sklearn.datasets import load_digits
from torchvision.datasets import MNIST as TorchvisionMNIST

from gfe_study.config import InputError, Trial
from gfe_study.data.base import load_splits
from gfe_study.data.digits import Digits
from gfe_study.data.mnist import MNIST, FashionMNIST, SegMNIST
from gfe_study.data.split import DataError, Scale, Shape, Split, Splits, hold_out, image_shape
from gfe_study.likelihoods.bernoulli import Bernoulli


def contents(*splits: Split) -> Counter[tuple[bytes, int]]:
    """How often each labelled image occurs."""
    return Counter(
        (hashlib.md5(row.tobytes()).digest(), int(label))
        for split in splits
        for row, label in zip(split.values_ND, labels_of(split), strict=True)
    )


def sizes(splits: Splits) -> tuple[int, int, int]:
    return len(splits.train), len(splits.val), len(splits.test)


@given(st.integers(1, 300), st.data(), st.text(max_size=5))
@settings(max_examples=50, deadline=None, derandomize=True, database=None)
def test_hold_out_shares_no_image_and_loses_none(size: int, data: st.DataObject, purpose: str) -> None:
    count = data.draw(st.integers(0, size))
    indices = np.arange(size)
    everything = Split(np.stack([indices // 256, indices % 256], axis=1).astype(np.uint8), indices)
    kept, held = hold_out(everything, count, purpose)
    assert (len(kept), len(held)) == (size - count, count)
    assert sorted([*labels_of(kept), *labels_of(held)]) == indices.tolist()
    for part in (kept, held):
        assert np.array_equal(part.values_ND, everything.values_ND[part.labels_N])


def test_hold_out_draws_by_purpose() -> None:
    everything = Split(np.zeros((100, 1), np.uint8), np.arange(100))
    drawn = [set(labels_of(hold_out(everything, 30, purpose)[1])) for purpose in ("a/val", "b/val", "a/val")]
    assert drawn[0] == drawn[2] != drawn[1]
    assert drawn[0] != set(range(70, 100))


def test_images_are_scaled_to_the_unit_interval() -> None:
    split = Split(np.array([[0, 4, 8], [16, 1, 2]], np.uint8), np.array([0, 1]), scale=Scale.of_levels(16))
    images = split.batch(np.array([1, 0])).value_BD
    assert images.dtype == torch.float32
    assert images.tolist() == [[1, 0.0625, 0.125], [0, 0.25, 0.5]]
    assert split.batch(slice(0, 1)).value_BD.tolist() == [[0, 0.25, 0.5]]
    assert split.values_ND.tolist() == [[0, 4, 8], [16, 1, 2]]


def test_entropy_floor_is_the_mean_pixel_entropy() -> None:
    split = Split(np.array([[0, 8, 16, 4]], np.uint8), np.array([0]), scale=Scale.of_levels(16))
    quarter = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    splits = Splits(split, split, split, image_shape(2, 2))
    assert splits.floor(Bernoulli(), 1) == pytest.approx((math.log(2) + quarter) / 4)


def test_digits_are_split_into_disjoint_parts(digits: Splits) -> None:
    bundle = load_digits()
    everything = Split(bundle.data.astype(np.uint8), bundle.target)
    assert sizes(digits) == (1197, 300, 300)
    assert contents(digits.train, digits.val, digits.test) == contents(everything)
    assert digits.shape == Shape(1, (8, 8))
    assert digits.train.batch(slice(None)).value_BD.max() == 1
    assert set(labels_of(digits.val)) == set(labels_of(digits.test)) == set(range(10))


def test_digits_are_the_same_at_each_load(digits: Splits) -> None:
    again = Digits().load()
    assert again.sha256 == digits.sha256
    for part in ("train", "val", "test"):
        assert np.array_equal(getattr(again, part).values_ND, getattr(digits, part).values_ND)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_one_image_or_label_changes_a_fingerprint(digits: Splits, part: str) -> None:
    split = getattr(digits, part)
    pixels, labels = split.values_ND.copy(), split.labels_N.copy()
    pixels[-1, -1] ^= 1
    labels[-1] += 1
    parts = {name: getattr(digits, name) for name in ("train", "val", "test")}
    others = [Split(pixels, split.labels_N, scale=split.scale), Split(split.values_ND, labels, scale=split.scale)]
    changed = [Splits(**{**parts, part: other}, shape=digits.shape) for other in others]
    assert len({digits.sha256, *(splits.sha256 for splits in changed)}) == 3


def test_mnist_is_split_into_disjoint_parts(mnist_folder: Path) -> None:
    splits = MNIST().load([mnist_folder])
    assert sizes(splits) == (55_000, 5_000, 10_000)
    assert splits.shape.size == 784
    raw = TorchvisionMNIST(str(mnist_folder), train=True)
    everything = Split(raw.data.numpy().reshape(60_000, 784), raw.targets.numpy())
    assert contents(splits.train, splits.val) == contents(everything)
    assert not contents(splits.train).keys() & contents(splits.val).keys()
    raw_test = TorchvisionMNIST(str(mnist_folder), train=False)
    assert np.array_equal(splits.test.values_ND, raw_test.data.numpy().reshape(10_000, 784))
    assert splits.floor(Bernoulli(), 10_000) == pytest.approx(0.0581, abs=1e-4)


def test_seg_mnist_is_tested_on_unseen_digits(mnist_folder: Path) -> None:
    splits = SegMNIST().load([mnist_folder])
    assert set(labels_of(splits.train)) == set(labels_of(splits.val)) == {0, 1, 2, 3, 4}
    assert set(labels_of(splits.test)) == {5, 6, 7, 8, 9}
    assert sizes(splits) == (25_596, 5_000, 4_861)
    assert not contents(splits.train).keys() & contents(splits.val).keys()


def test_the_fashion_excerpt_is_split_like_mnist(fashion_folder: Path) -> None:
    splits = FashionMNIST().load([fashion_folder])
    assert sizes(splits) == (500, 100, 300)
    assert not contents(splits.train).keys() & contents(splits.val).keys()
    assert splits.sha256 == FashionMNIST().load([fashion_folder]).sha256


# Files that are missing or damaged


def idx(array: np.ndarray) -> bytes:
    """The file format of MNIST: magic number with type and rank, sizes, bytes."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def tiny_mnist(tmp_path: Path) -> Path:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 20)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(random.integers(0, 256, (count, 28, 28))))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(count) % 10))
    return tmp_path


def test_a_small_excerpt_holds_out_a_sixth(tiny_mnist: Path) -> None:
    assert sizes(MNIST().load([tiny_mnist / "elsewhere", tiny_mnist])) == (50, 10, 20)


@pytest.mark.parametrize(
    ("name", "place"),
    {
        "mnist": "MNIST/raw",
        "fashion_mnist": "FashionMNIST/raw",
        "seg_mnist": "MNIST/raw",
        "svhn": "SVHN",
        "celeba": "celeba",
    }.items(),
)
def test_missing_data_says_where_it_looked(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It also says what to set."""
    monkeypatch.setenv("GFE_DATA_DIR", str(tmp_path / "mine"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as error:
        Trial.build({"data": name}).data.load()
    text = str(error.value)
    assert "\n" not in text
    for words in (f"{name} not found", f"{tmp_path}/mine/{place}", f"{tmp_path}/data/{place}", "set GFE_DATA_DIR"):
        assert words in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte", "train-labels-idx1-ubyte"])
@pytest.mark.parametrize("kept", [0, 10, 49])
def test_a_truncated_file_is_called_damaged(tiny_mnist: Path, file: str, kept: int) -> None:
    """The message names its folder and the cause."""
    path = tiny_mnist / "MNIST" / "raw" / file
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError) as error:
        MNIST().load([tiny_mnist])
    text = str(error.value)
    assert "\n" not in text
    assert f"{path.parent} is damaged (" in text
    assert "damaged ()" not in text


def test_images_must_be_as_many_as_their_labels(tiny_mnist: Path) -> None:
    (tiny_mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(30) % 10))
    with pytest.raises(DataError, match="is damaged"):
        MNIST().load([tiny_mnist])


def test_a_failed_download_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchvisionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(DataError) as error:
        MNIST().load([tmp_path], download=True)
    text = str(error.value)
    assert "\n" not in text
    for words in ("mnist not found", f"{tmp_path}/MNIST/raw", "download failed (", "set GFE_DATA_DIR"):
        assert words in text


@pytest.mark.parametrize("counts", [(30, 100, 300), (1, 2, 1197)])
def test_subsets_are_nested_stratified_and_seeded(counts: tuple[int, ...], digits: Splits) -> None:
    subsets = [Digits(train_images=count).load() for count in counts]
    for smaller, larger in itertools.pairwise(subsets):
        size = len(smaller.train)
        assert np.array_equal(larger.train.values_ND[:size], smaller.train.values_ND)
    for subset in subsets:
        shares = np.bincount(labels_of(digits.train), minlength=10) / len(digits.train)
        found = np.bincount(labels_of(subset.train), minlength=10)
        assert np.abs(found - shares * len(subset.train)).max() <= 1.5
        assert subset.test.digest() == digits.test.digest()
        assert subset.val.digest() == digits.val.digest()
    other = Digits(train_images=counts[0], subset_seed=1).load()
    assert other.train.digest() != subsets[0].train.digest()


def test_too_many_training_images_are_refused() -> None:
    with pytest.raises(DataError, match=r"data.train_images: given 1198; allowed: at most 1197"):
        Digits(train_images=1198).load()


def test_a_likelihood_refuses_impossible_values() -> None:
    trial = Trial.build({"data": {"name": "digits", "scale": "none"}})
    with pytest.raises(InputError, match=r"likelihood\.name: given 'bernoulli', which is for values from 0 to 1, with"):
        load_splits(trial)
    load_splits(Trial.build({"data": {"name": "digits", "scale": "minmax"}}))
    load_splits(Trial.build({"likelihood": "poisson"}))


def test_values_beyond_32_bits_need_a_scale(tmp_path: Path) -> None:
    large = 1e45 * np.random.default_rng(0).random((9, 4))
    np.savez(tmp_path / "large.npz", train=large, val=large, test=large)
    layers: dict[str, Any] = {"likelihood": "gaussian", "data": {"name": "arrays", "path": str(tmp_path / "large.npz")}}
    with pytest.raises(InputError, match=r"data\.scale: given none with train values beyond what 32 bits hold"):
        load_splits(Trial.build(layers, {"data": {"scale": "none"}}))
    load_splits(Trial.build(layers))
