"""Files in MNIST's format, of any height and width. Shapes: N images, D pixels."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

from gfe_study.data.idx import IDX, read_idx
from gfe_study.data.mnist import MNIST, FashionMNIST, SegMNIST
from gfe_study.data.split import DataError, Shape, Splits

Array = np.ndarray[Any, Any]
CODES = {"u1": 8, "i1": 9, ">i2": 11, ">i4": 12, ">f4": 13, ">f8": 14}
DRAW = np.random.default_rng(0)
TRAIN, TEST = (DRAW.integers(0, 256, (count, 5, 9), dtype=np.uint8) for count in (60, 20))


def idx(array: Array, kind: str = "u1") -> bytes:
    """Magic number with type and number of axes, their lengths, the values."""
    return struct.pack(f">HBB{array.ndim}I", 0, CODES[kind], array.ndim, *array.shape) + array.astype(kind).tobytes()


def write(folder: Path, test: str = "t10k", prefix: str = "", ending: str = "", labels: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, images in (("train", TRAIN), (test, TEST)):
        files = {f"{prefix}{part}-images-idx3-ubyte{ending}": idx(images)}
        if labels:
            files[f"{prefix}{part}-labels-idx1-ubyte{ending}"] = idx(np.arange(len(images)) % 26 + 1)
        for name, content in files.items():
            (folder / name).write_bytes(gzip.compress(content) if ending else content)


def load(path: Path) -> Splits:
    return IDX(path=str(path)).load([])


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4)])
def test_files_are_what_torchvision_reads(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    values = DRAW.integers(0, 100, shape)
    (tmp_path / "a").write_bytes(idx(values, kind))
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx(values, kind)))
    for file in ("a", "a.gz"):
        found = read_idx(tmp_path / file)
        np.testing.assert_array_equal(found, values)
        assert found.dtype == np.dtype(kind).newbyteorder("=")
    assert read_sn3_pascalvincent_tensor(str(tmp_path / "a")).tolist() == values.tolist()


@pytest.mark.parametrize("test", ["t10k", "test"])
@pytest.mark.parametrize("prefix", ["", "emnist-letters-"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_images_of_any_size_and_labels_are_read(test: str, prefix: str, ending: str, tmp_path: Path) -> None:
    write(tmp_path, test, prefix, ending)
    splits = load(tmp_path)
    assert splits.shape == Shape(1, (5, 9))
    assert [len(split) for split in splits.parts.values()] == [50, 10, 20]
    np.testing.assert_array_equal(splits.test.values_ND, TEST.reshape(20, 45))
    assert splits.test.labels_N is not None
    assert splits.test.labels_N.tolist() == list(range(1, 21))
    assert splits.test.batch(slice(None)).value_BD.max() <= 1
    seen = {row.tobytes() for split in (splits.train, splits.val) for row in split.values_ND}
    assert seen == {image.tobytes() for image in TRAIN}


def test_one_of_several_is_named_by_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "raw", "test", "emnist-letters-", ".gz")
    write(tmp_path / "raw", "test", "emnist-digits-", ".gz")
    with pytest.raises(DataError, match=r"several datasets; allowed: one of .*/emnist-digits, .*/emnist-letters$"):
        load(tmp_path / "raw")
    monkeypatch.setenv("GFE_DATA_DIR", str(tmp_path))
    data = IDX(path="raw/emnist-letters")
    assert len(data.load().train) == 50
    names = {path.name for path in data.sources([tmp_path]) if path.is_file()}
    assert names == {path.name for path in (tmp_path / "raw").glob("emnist-letters-*")}


def test_a_file_goes_before_its_compressed_copy(tmp_path: Path) -> None:
    write(tmp_path, ending=".gz")
    write(tmp_path)
    for file in tmp_path.glob("*.gz"):
        file.write_bytes(b"damaged")
    assert len(load(tmp_path).test) == 20


def test_labels_may_be_missing_or_qmnists(tmp_path: Path) -> None:
    write(tmp_path, labels=False)
    assert load(tmp_path).train.labels_N is None
    for part, count in (("train", 60), ("t10k", 20)):
        more = np.stack([np.arange(count), np.full(count, 7)], 1)
        (tmp_path / f"{part}-labels-idx2-int").write_bytes(idx(more, ">i4"))
    labels_N = load(tmp_path).test.labels_N
    assert labels_N is not None
    assert labels_N.tolist() == list(range(20))


def test_sizes_are_in_the_fingerprint(tmp_path: Path) -> None:
    shas = set()
    for number, (height, width) in enumerate(((5, 9), (9, 5))):
        write(tmp_path / str(number))
        for part, images in (("train", TRAIN), ("t10k", TEST)):
            content = idx(images.reshape(-1, height, width))
            (tmp_path / str(number) / f"{part}-images-idx3-ubyte").write_bytes(content)
        shas.add(load(tmp_path / str(number)).sha256)
    assert len(shas) == 2


@pytest.mark.parametrize("part", ["train", "t10k"])
@pytest.mark.parametrize("kept", [0, 3, 10, 400, 10**4])
def test_a_file_of_another_length_is_one_line(part: str, kept: int, tmp_path: Path) -> None:
    write(tmp_path)
    file = tmp_path / f"{part}-images-idx3-ubyte"
    file.write_bytes((file.read_bytes() + bytes(10**4))[:kept])
    assert_one_line(tmp_path, f"data.path: {file}: cannot be read ({file.name} ")


def assert_one_line(path: Path, *words: str) -> None:
    with pytest.raises(DataError) as error:
        load(path)
    assert "\n" not in str(error.value)
    assert "allowed: " in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_bad_folders_are_one_line(tmp_path: Path) -> None:
    assert_one_line(tmp_path, "data.path: given", "looked in", "train-images-idx3-ubyte")
    write(tmp_path)
    test = tmp_path / "t10k-images-idx3-ubyte"
    test.write_bytes(idx(TEST.reshape(-1, 9, 5)))
    assert_one_line(tmp_path, "given images of 9 × 5 pixels; allowed: 5 × 9")
    test.write_bytes(idx(TEST.reshape(20, 45)))
    assert_one_line(tmp_path, "holds uint8 of shape (20, 45)")
    test.write_bytes(idx(TEST[:0]))
    assert_one_line(tmp_path, "shape (0, 5, 9)")
    test.write_bytes(idx(TEST[:9]))
    assert_one_line(tmp_path, "9 images, 20 labels")
    test.unlink()
    assert_one_line(tmp_path, "given train images alone; allowed: train and t10k or test")
    write(tmp_path)
    for content in ("images-idx3", "labels-idx1"):
        file = tmp_path / f"train-{content}-ubyte"
        file.write_bytes(idx(read_idx(file)[:5]))
    assert_one_line(tmp_path, "given 5 images; allowed: at least 6")


@pytest.mark.parametrize("dataset", [MNIST(), FashionMNIST(), SegMNIST()], ids=lambda dataset: dataset.name)
def test_labels_beyond_nine_are_kept(dataset: MNIST, tmp_path: Path) -> None:
    raw = tmp_path / dataset.homes[0]
    raw.mkdir(parents=True)
    labels = {"train": np.arange(60) % 12, "t10k": np.arange(24) % 12}
    for part, label_N in labels.items():
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(np.zeros((len(label_N), 28, 28))))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(label_N))
    splits = dataset.load([tmp_path])
    trained, tested = (
        set(split.labels_N.tolist()) for split in (splits.train, splits.test) if split.labels_N is not None
    )
    if dataset.name == "seg_mnist":
        assert (trained, tested) == ({0, 1, 2, 3, 4}, {5, 6, 7, 8, 9})
    else:
        assert trained == tested == set(range(12))


def test_the_splits_of_mnist_are_what_they_were(mnist_folder: Path) -> None:
    assert MNIST().load([mnist_folder]).sha256[:16] == "0626f6339d43457a"
    assert SegMNIST().load([mnist_folder]).sha256[:16] == "5e94fa0cf014e749"
