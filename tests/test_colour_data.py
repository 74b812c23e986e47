"""SVHN and CelebA, from small files in their true formats; classes held out. Shapes: N images, D pixels."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labels import labels_of
from PIL import Image
from scipy.io import savemat
from torchvision import datasets as torchvision_datasets

from gfe_study import registry
from gfe_study.config import InputError, Trial
from gfe_study.data.celeba import CACHE, CROP, CelebA
from gfe_study.data.digits import Digits
from gfe_study.data.files import FileDataset
from gfe_study.data.mnist import SegMNIST
from gfe_study.data.split import DataError, Splits, image_shape
from gfe_study.data.svhn import SVHN

COUNTS = {"train": 40, "test": 12}


@pytest.fixture
def svhn(tmp_path: Path) -> Path:
    """Random colours; the digits 1, 2, … 9, 0 in turn, of which the file calls the last one ten."""
    (tmp_path / "SVHN").mkdir()
    draw = np.random.default_rng(0)
    for part, count in COUNTS.items():
        images = draw.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        savemat(tmp_path / "SVHN" / f"{part}_32x32.mat", {"X": images, "y": labels}, do_compression=True)
    return tmp_path


PEOPLE = {"000001.jpg": 0, "000002.jpg": 2, "000003.jpg": 0, "000004.jpg": 1, "000005.jpg": 0, "000006.jpg": 2}
SMILING = {"000001.jpg": 1, "000002.jpg": -1, "000003.jpg": -1, "000004.jpg": 1, "000005.jpg": 1, "000006.jpg": 1}
COLOURS = {name: (40 * number, 250 - 40 * number, 128) for number, name in enumerate(PEOPLE)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GFE_CACHE_DIR", str(tmp_path / "cached"))
    return tmp_path / "cached"


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    """Faces of one colour each in a white frame as wide as what is cropped; lists as they are distributed."""
    images = tmp_path / "celeba" / "img_align_celeba"
    images.mkdir(parents=True)
    for name, colour in COLOURS.items():
        picture = Image.new("RGB", (178, 218), "white")
        picture.paste(colour, (15, 35, 15 + CROP, 35 + CROP))
        picture.save(images / name, quality=100, subsampling=0)
    home = images.parent
    (home / "list_eval_partition.txt").write_text("".join(f"{name} {part}\n" for name, part in PEOPLE.items()))
    rows = "".join(f"{name} {1:2d} {SMILING[name]:2d}\n" for name in PEOPLE)
    (home / "list_attr_celeba.txt").write_text(f"{len(PEOPLE)}\nMale Smiling \n{rows}")
    return tmp_path


def sizes(splits: Splits) -> tuple[int, ...]:
    return tuple(len(split) for split in splits.parts.values())


# SVHN


def test_svhn_is_what_torchvision_reads(svhn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the channels first."""
    splits = SVHN().load([svhn / "elsewhere", svhn])
    assert splits.shape == image_shape(32, 32, 3)
    assert sizes(splits) == (34, 6, 12)
    # Torchvision knows the checksums of the full files alone.
    unchecked = {part: [*entry[:2], None] for part, entry in torchvision_datasets.SVHN.split_list.items()}
    monkeypatch.setattr(torchvision_datasets.SVHN, "split_list", unchecked)
    for part, ours in (("test", [splits.test]), ("train", [splits.train, splits.val])):
        theirs = torchvision_datasets.SVHN(str(svhn / "SVHN"), split=part)
        wanted = {image.tobytes(): label for image, label in zip(theirs.data, theirs.labels, strict=True)}
        found = {
            image.tobytes(): label
            for split in ours
            for image, label in zip(split.values_ND, labels_of(split), strict=True)
        }
        assert found == wanted
    assert np.array_equal(labels_of(splits.test), [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2])
    assert splits.sha256 == SVHN().load([svhn]).sha256 == SVHN().load([svhn / "SVHN"]).sha256


@pytest.mark.parametrize("kept", [0, 10, 100, 5000])
def test_a_truncated_matlab_file_is_refused(svhn: Path, kept: int) -> None:
    path = svhn / "SVHN" / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:kept])
    assert_one_line(SVHN(), svhn, f"{path.parent} is damaged (", "remove it")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({"X": np.zeros((32, 32, 3, 5), np.uint8)}, "test_32x32.mat holds no y"),
        ({"X": np.zeros((32, 32, 3, 5), np.uint8), "y": np.ones((4, 1))}, "(32, 32, 3, 5)"),
        ({"X": np.zeros((32, 32, 3, 5)), "y": np.ones((5, 1))}, "float64"),
        ({"X": np.zeros((32, 32, 3, 0), np.uint8), "y": np.ones((0, 1))}, "no test images"),
    ],
)
def test_a_matlab_file_of_other_data_is_refused(svhn: Path, content: dict[str, np.ndarray], word: str) -> None:
    savemat(svhn / "SVHN" / "test_32x32.mat", content)
    assert_one_line(SVHN(), svhn, "is damaged (", word)


# CelebA


def test_celeba_is_split_cropped_and_labelled(celeba: Path) -> None:
    """It follows the official partition, and the chosen attribute is the label."""
    splits = CelebA(size=20, attribute="Smiling").load([celeba])
    assert splits.shape == image_shape(20, 20, 3)
    for split, number in zip(splits.parts.values(), (0, 1, 2), strict=True):
        names = [name for name, part in PEOPLE.items() if part == number]
        assert labels_of(split).tolist() == [max(0, SMILING[name]) for name in names]
        # No white: the frame is cut away. A plane for each channel.
        planes = split.values_ND.reshape(-1, 3, 400).astype(int)
        colours = np.array([COLOURS[name] for name in names])
        assert np.abs(planes - colours[:, :, None])[:, :, 105:-105].max() <= 3
        assert np.abs(planes - colours[:, :, None]).max() <= 12  # JPEG blurs the edge of the frame
    assert splits.train.batch(np.array([2])).value_BD.shape == (1, 1200)
    assert CelebA().load([celeba]).shape == image_shape(64, 64, 3)
    assert labels_of(CelebA().load([celeba]).train).tolist() == [1, 1, 1]


def test_images_stay_decoded_until_one_changes(celeba: Path) -> None:
    first = CelebA().load([celeba])
    home = celeba / "celeba"
    images = {path: path.read_bytes() for path in (home / "img_align_celeba").iterdir()}
    times = {path: path.stat() for path in images}
    for path, content in images.items():  # of the same size and age: whoever decoded them would fail
        path.write_bytes(b"x" * len(content))
        os.utime(path, ns=(times[path].st_atime_ns, times[path].st_mtime_ns))
    assert CelebA().load([celeba]).sha256 == first.sha256
    assert [path.suffix for path in (home / CACHE).iterdir() if not path.name.startswith(".")] == [".npy"]
    for path, content in images.items():
        path.write_bytes(content)
    Image.new("RGB", (178, 218), "black").save(home / "img_align_celeba" / "000003.jpg")
    changed = CelebA().load([celeba])
    assert changed.train.values_ND[1].max() == 0
    assert np.array_equal(changed.train.values_ND[[0, 2]], first.train.values_ND[[0, 2]])


@pytest.mark.parametrize("kept", [0, 50, 1000])
def test_a_damaged_cache_is_decoded_anew(celeba: Path, kept: int) -> None:
    first = CelebA().load([celeba])
    (cached,) = (celeba / "celeba" / CACHE).glob("*.npy")
    content = cached.read_bytes()
    cached.unlink()  # which leaves what is mapped into memory as it is
    cached.write_bytes(content[:kept])
    assert CelebA().load([celeba]).sha256 == first.sha256
    assert cached.read_bytes() == content


def test_decoded_images_fall_back_to_the_cache(celeba: Path, cache: Path) -> None:
    """Where the dataset's own folder cannot be written; if neither can, one line says so."""
    (celeba / "celeba" / CACHE).write_text("in the way")
    first = CelebA().load([celeba])
    assert len(list(cache.glob("*.npy"))) == 1
    assert CelebA().load([celeba]).sha256 == first.sha256
    for path in cache.iterdir():
        path.unlink()
    cache.rmdir()
    cache.write_text("in the way, too")
    assert_one_line(CelebA(), celeba, "can be kept nowhere", "set GFE_CACHE_DIR")


def test_nothing_is_left_of_a_failed_decoding(celeba: Path) -> None:
    path = celeba / "celeba" / "img_align_celeba" / "000004.jpg"
    path.write_bytes(path.read_bytes()[:300])
    assert_one_line(CelebA(), celeba, "is damaged (000004.jpg: ")
    assert [found for found in (celeba / "celeba" / CACHE).iterdir() if "lock" not in found.name] == []


def _other_side(home: Path) -> None:
    Image.new("RGB", (100, 90)).save(home / "img_align_celeba" / "000001.jpg")


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "000005.jpg": lambda home: (home / "img_align_celeba" / "000005.jpg").unlink(),
    "100 × 90": _other_side,
    "000006.jpg": lambda home: (home / "list_attr_celeba.txt").write_text(
        "5\nMale\n" + "".join(f"{name} 1\n" for name in list(PEOPLE)[:5])
    ),
    "list_eval_partition.txt": lambda home: (home / "list_eval_partition.txt").write_text("000001.jpg train\n"),
    "no val images": lambda home: (home / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg 2\n"),
    "is damaged (": lambda home: (home / "list_eval_partition.txt").write_text(""),
}


@pytest.mark.parametrize("word", DAMAGES)
def test_mismatched_lists_and_images_are_refused(celeba: Path, word: str) -> None:
    DAMAGES[word](celeba / "celeba")
    assert_one_line(CelebA(), celeba, "celeba is damaged (", word)


def test_an_unknown_attribute_is_refused(celeba: Path) -> None:
    assert_one_line(CelebA(attribute="Smilng"), celeba, "data.attribute: given 'Smilng'; allowed: Male, Smiling")
    with pytest.raises(InputError, match=r"data.size.*149.*148"):
        Trial.build({"data": {"name": "celeba", "size": 149}})


# Of every dataset that is read from files


def assert_one_line(dataset: FileDataset, folder: Path, *words: str) -> None:
    with pytest.raises(DataError) as error:
        dataset.load([folder])
    text = str(error.value)
    assert "\n" not in text
    assert "()" not in text
    for word in words:
        assert word in text


def test_a_failed_download_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = {
        part: ["http://127.0.0.1:9/", *entry[1:]] for part, entry in torchvision_datasets.SVHN.split_list.items()
    }
    monkeypatch.setattr(torchvision_datasets.SVHN, "split_list", nowhere)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as error:
        SVHN().load([tmp_path], download=True)
    assert "\n" not in str(error.value)
    for word in ("svhn not found", "download failed (", "set GFE_DATA_DIR"):
        assert word in str(error.value)


# A class held out


@pytest.mark.parametrize("label", [0, 7])
def test_only_the_test_split_has_a_held_out_class(label: int, digits: Splits) -> None:
    splits = Digits(held_out=label).load()
    for part in ("train", "val"):
        whole, left = digits.parts[part], splits.parts[part]
        others = labels_of(whole) != label
        assert np.array_equal(left.values_ND, whole.values_ND[others])
        assert np.array_equal(labels_of(left), labels_of(whole)[others])
    assert splits.test.digest() == digits.test.digest()
    assert label in labels_of(splits.test)
    assert splits.sha256 != digits.sha256
    few = Digits(held_out=label, train_images=100).load()
    assert sizes(few) == (100, len(splits.val), 300)
    assert label not in labels_of(few.train)


def test_every_dataset_can_hold_a_class_out(svhn: Path, celeba: Path) -> None:
    for name in registry.names("data"):
        assert "held_out" in registry.component("data", name).model_fields
    assert set(labels_of(SVHN(held_out=3).load([svhn]).train)) == {0, 1, 2, 4, 5, 6, 7, 8, 9}
    smiling = CelebA(attribute="Smiling")
    assert labels_of(smiling.load([celeba]).train).tolist() == [1, 0, 1]
    assert labels_of(CelebA(attribute="Smiling", held_out=0).load([celeba]).train).tolist() == [1, 1]


def test_an_impossible_held_out_class_is_refused(mnist_folder: Path, celeba: Path) -> None:
    with pytest.raises(DataError, match=r"data\.held_out: given 10; allowed: .* digits .*: 0, 1, 2, .* 9$"):
        Digits(held_out=10).load()
    with pytest.raises(DataError, match=r"data\.held_out: given 7; allowed: .*: 0, 1, 2, 3, 4$"):
        SegMNIST(held_out=7).load([mnist_folder])
    with pytest.raises(DataError, match=r"data\.held_out: given 1; allowed: .*; it has one alone$"):
        CelebA(held_out=1).load([celeba])


def test_holding_out_no_class_changes_no_trial(digits: Splits) -> None:
    given = Trial.build({"data": {"name": "digits", "held_out": None}})
    assert given.fingerprint("of a dataset") == Trial.build({}).fingerprint("of a dataset")
    held = Trial.build({"data": {"name": "digits", "held_out": 3}})
    assert held.fingerprint("of a dataset") != given.fingerprint("of a dataset")
