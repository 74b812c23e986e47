"""The file format of MNIST, read by ourselves, and datasets in that format.

Shapes: N images, D pixels.
"""

from __future__ import annotations

import gzip
import math
import re
from pathlib import Path

import numpy as np

from gfe_study.data.files import OwnFiles, blamed_on, reading
from gfe_study.data.split import Array, DataError, Scale, Split, Splits, hold_out, image_shape

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""The third byte of a file, and what the file holds."""
IMAGES = re.compile(r"(?P<set>.*?)(?P<part>train|t10k|test)-images[.-]idx3-ubyte(?:\.gz)?")
MIN_IMAGES = 6
"""With fewer training images, none is left for validation."""


class IDX(OwnFiles):
    """Grey images in the files of MNIST, such as EMNIST, KMNIST and QMNIST, of any height and width.

    The files are called `*train-images-idx3-ubyte` and `*t10k-images-idx3-ubyte` or `*test-images-idx3-ubyte`, and
    `labels-idx1-ubyte` instead of `images-idx3-ubyte`; `.gz` may follow. Labels may be missing. As of MNIST, 5,000
    training images are held out to validate, or a sixth if that is fewer.
    """

    path: str
    """The folder, absolute or below the working directory, `GFE_DATA_DIR` or `./data`; with the beginning of the files'
    names if the folder holds several datasets, like `EMNIST/raw/emnist-letters`."""

    def read(self, folders: list[Path], *, download: bool) -> Splits:
        for place in self.places(folders):
            found = _sets(place)
            if len(found) > 1:
                raise DataError(
                    f"data.path: {place}: holds several datasets; allowed: one of "
                    f"{', '.join(str(_folder(place) / name.rstrip('-')) for name in sorted(found))}"
                )
            if found:
                (files,) = found.values()
                return self._read(place, files)
        raise self.missing(folders, "a folder with files like train-images-idx3-ubyte")

    def sources(self, folders: list[Path]) -> list[Path]:
        images = [file for place in self.places(folders) for files in _sets(place).values() for file in files.values()]
        return [*self.places(folders), *images, *(labels for file in images if (labels := _labels_of(file)))]

    def _read(self, place: Path, files: dict[str, Path]) -> Splits:
        test = files.get("t10k", files.get("test"))
        if "train" not in files or test is None:
            raise DataError(
                f"data.path: {place}: given {', '.join(files)} images alone; allowed: train and t10k or test"
            )
        (train, train_size), (test_split, test_size) = (_read_pair(file) for file in (files["train"], test))
        if train_size != test_size:
            given, allowed = (" × ".join(map(str, size)) for size in (test_size, train_size))
            raise DataError(f"data.path: {test}: given images of {given} pixels; allowed: {allowed}, as in training")
        if len(train) < MIN_IMAGES:
            raise DataError(f"data.path: {files['train']}: given {len(train)} images; allowed: at least {MIN_IMAGES}")
        train, val = hold_out(train, validation_size(len(train)), f"{self.name}/val")
        return Splits(train, val, test_split, image_shape(*train_size), format=str(train_size))


def validation_size(count: int) -> int:
    """MNIST's usual 5,000 of the full training set; a sixth of a smaller one."""
    return min(5000, count // 6)


def read_images(images: Path, labels: Path | None) -> tuple[Split, tuple[int, int]]:
    """The images of a file, with their labels, and their height and width. Raises `ValueError` for damaged files."""
    pixels = read_idx(images)
    if pixels.ndim != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise ValueError(
            f"{images.name} holds {pixels.dtype} of shape {pixels.shape}, where (N, height, width) of uint8 are images"
        )
    count, height, width = pixels.shape
    labels_N = None
    if labels is not None:
        found = read_idx(labels)
        if found.ndim not in (1, 2) or found.dtype.kind == "f" or 0 in found.shape:
            raise ValueError(
                f"{labels.name} holds {found.dtype} of shape {found.shape}, where (N,) integers are labels"
            )
        # QMNIST has more about every image; its first column are the labels.
        labels_N = found.reshape(len(found), -1)[:, 0].astype(np.int64)
        if len(labels_N) != count:
            raise ValueError(f"{count} images, {len(labels_N)} labels")
    return Split(pixels.reshape(count, height * width), labels_N, scale=Scale.of_levels(255)), (height, width)


def read_idx(file: Path) -> Array:
    """The array in an IDX file, which may be compressed. Raises `ValueError` if it does not hold what it declares."""
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in TYPES:
        raise ValueError(f"{file.name} is not an IDX file")
    dtype, begin = np.dtype(TYPES[content[2]]), 4 + 4 * content[3]
    if len(content) < begin:
        raise ValueError(f"{file.name} ends after {len(content)} bytes, within its header of {begin}")
    shape = np.frombuffer(content, ">u4", offset=4, count=content[3]).tolist()
    declared = begin + dtype.itemsize * math.prod(shape)
    if len(content) != declared:
        raise ValueError(f"{file.name} holds {len(content)} bytes, where its header declares {declared}")
    values = np.frombuffer(content, dtype, offset=begin).reshape(shape)
    return values.astype(dtype.newbyteorder("="))


def _folder(place: Path) -> Path:
    return place if place.is_dir() else place.parent


def _sets(place: Path) -> dict[str, dict[str, Path]]:
    """The files of images in a folder, or of those whose names begin so, by dataset and by part."""
    found: dict[str, dict[str, Path]] = {}
    folder = _folder(place)
    beginning = "" if folder == place else place.name
    files = folder.iterdir() if folder.is_dir() else ()
    for file in sorted(files, reverse=True):  # of a file and its compressed copy, the file comes last and is taken
        named = IMAGES.fullmatch(file.name)
        if named and file.name.startswith(beginning):
            found.setdefault(named["set"], {})[named["part"]] = file
    return found


def _labels_of(images: Path) -> Path | None:
    begin, _, _ = images.name.rpartition("images")
    labels = re.compile(re.escape(begin) + r"labels[.-]idx[12]-(?:ubyte|int)(?:\.gz)?")
    return next((file for file in sorted(images.parent.iterdir()) if labels.fullmatch(file.name)), None)


def _read_pair(images: Path) -> tuple[Split, tuple[int, int]]:
    with blamed_on(f"data.path: {images}"), reading():
        return read_images(images, _labels_of(images))
