"""CelebFaces Attributes (Liu et al. 2015): aligned faces of celebrities, in the folder that torchvision makes.

Shapes: N images, D pixels.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from filelock import FileLock
from pydantic import Field

from gfe_study.data.files import FileDataset
from gfe_study.data.split import DataError, Scale, Split, Splits, image_shape
from gfe_study.io.cache import CACHE_DIR_VARIABLE, cache_folder

if TYPE_CHECKING:
    import pandas as pd

ALIGNED = (178, 218)
"""Width and height of the images as they are distributed."""
CROP = 148
"""Side of the square about their centre that is kept: the face, little of what is behind it."""
PARTS = {"train": 0, "val": 1, "test": 2}
"""As the list of the official partition names them."""
AT_ONCE = 4096
"""Images that wait to be decoded at one time."""
CACHE = "gfe_study_cache"

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class CelebA(FileDataset):
    """Faces in colour, in the official partition: 162,770 to train on, 19,867 to validate, 19,962 to test.

    The middle 148 × 148 pixels, resized. Images are decoded once: what comes of it is kept beside them, or among the
    user's cached files where that folder cannot be written, and mapped into memory.
    """

    size: int = Field(64, gt=0, le=CROP)
    """Height and width they are resized to."""
    attribute: str = "Male"
    """Of the 40 attributes, the one whose absence (0) and presence (1) are the labels."""

    homes = ("celeba",)
    files = ("img_align_celeba", "list_eval_partition.txt", "list_attr_celeba.txt")

    def fetch(self, folder: Path) -> None:
        from torchvision import datasets

        datasets.CelebA(str(folder), download=True)

    def read_files(self, home: Path) -> Splits:
        listed = _read_list(home / "list_eval_partition.txt", None, first=0)[1]
        attributes = _read_list(home / "list_attr_celeba.txt", "infer", first=1)
        if self.attribute not in attributes:
            raise DataError(
                f"data.attribute: given {self.attribute!r}; allowed: {', '.join(sorted(map(str, attributes.columns)))}"
            )
        listed = listed.sort_values(kind="stable")  # every part becomes a slice, which is not copied
        pixels_ND = _decoded(home, [str(file) for file in listed.index], self.size)
        labels_N = (attributes.loc[listed.index, self.attribute].to_numpy() > 0).astype(np.int64)
        splits = []
        for number in PARTS.values():
            begin, end = np.searchsorted(listed.to_numpy(), [number, number + 1])
            splits.append(Split(pixels_ND[begin:end], labels_N[begin:end], scale=Scale.of_levels(255)))
        train, val, test = splits
        return Splits(train, val, test, image_shape(self.size, self.size, 3))


def _read_list(path: Path, header: Literal["infer"] | None, first: int) -> pd.DataFrame:
    """A list with one line per image, by the name of its file; its columns are numbers from 1 without a header."""
    import pandas as pd

    table = pd.read_csv(path, sep=r"\s+", index_col=0, header=header, skiprows=first)
    if not all(kind.kind == "i" for kind in table.dtypes):
        raise ValueError(f"{path.name} does not hold whole numbers alone")
    return table


def _decoded(home: Path, files: list[str], size: int) -> Pixels:
    """The images of those files, (N, D), channels first: from the cache, or decoded into it."""
    images = home / "img_align_celeba"
    name = f"celeba_{size}_{_state(images, files)}.npy"
    shape = (len(files), 3 * size * size)
    folders = (home / CACHE, cache_folder())
    for folder in folders:
        found = _read_cached(folder / name, shape)
        if found is not None:
            return found
    refused = []
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f".{name}.lock"):
                found = _read_cached(folder / name, shape)  # another process may have decoded them meanwhile
                if found is None:
                    _write_decoded(images, files, size, folder / name)
                    found = _read_cached(folder / name, shape)
        except OSError as error:
            refused.append(f"{folder}: {error.strerror or error}")
        else:
            assert found is not None
            return found
    raise DataError(
        f"data.name: celeba: decoded images can be kept nowhere ({'; '.join(refused)}); set {CACHE_DIR_VARIABLE} to a "
        "folder that can be written"
    )


def _state(images: Path, files: list[str]) -> str:
    """What changes when an image does."""
    content = hashlib.sha256(f"{ALIGNED} {CROP}".encode())
    for file in files:
        found = (images / file).stat()
        content.update(f"/{file} {found.st_size} {found.st_mtime_ns}".encode())
    return content.hexdigest()[:16]


def _read_cached(path: Path, shape: tuple[int, int]) -> Pixels | None:
    """Mapped into memory, not read; None of a file that is missing or damaged."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return np.asarray(found) if found.shape == shape and found.dtype == np.uint8 else None


def _write_decoded(images: Path, files: list[str], size: int, path: Path) -> None:
    """Raises `ValueError` if an image is damaged, `OSError` if the file cannot be written."""
    beside = path.with_name(f".{path.name}")
    try:
        with beside.open("wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(files), 3 * size * size)}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(files), AT_ONCE):
                some = [images / name for name in files[start : start + AT_ONCE]]
                for pixels_D in pool.map(_decode, some, [size] * len(some)):
                    file.write(pixels_D.tobytes())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _decode(path: Path, size: int) -> Pixels:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.size != ALIGNED:
                raise ValueError(f"it is {image.width} × {image.height}, where {ALIGNED[0]} × {ALIGNED[1]} is aligned")
            left, top = ((side - CROP) // 2 for side in ALIGNED)
            face = image.convert("RGB").crop((left, top, left + CROP, top + CROP))
            resized = face.resize((size, size), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError) as error:  # which Pillow raises of a damaged image
        raise ValueError(f"{path.name}: {error}") from error
    return np.moveaxis(np.asarray(resized), -1, 0).reshape(-1)
