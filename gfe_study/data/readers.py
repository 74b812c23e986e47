"""Files that hold arrays: a reader for every format.

A reader is a function from a path to the arrays there, by name. An array has a `shape`, a `dtype` of NumPy, and gives
samples for a slice; it is read when it is sliced. To add a format, write a reader and name its endings in `READERS`.
Nothing is ever unpickled.

Shapes: N samples.
"""

from __future__ import annotations

import csv
import importlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gfe_study.data.files import Unsuitable, reading
from gfe_study.data.split import AT_ONCE, Array

if TYPE_CHECKING:
    import pandas as pd


Contents = Mapping[str, Any]
Reader = Callable[[Path], Contents]

PICTURE_ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
PICTURE_MODES = {"1": "L", "L": "L", "LA": "LA", "P": "RGB", "RGB": "RGB", "RGBA": "RGBA", "I;16": "I;16", "F": "F"}
"""Pillow's modes that are read, and what each is read as."""
ROWS = "rows"
"""The name of the samples that the rows of a table are."""


class Table(dict[str, Array]):
    """The columns of a table by name, each of shape (N,). Text is of NumPy's kind `U`, or `O` where cells are empty."""


class Pictures(dict[str, Any]):
    """The pictures of a folder, whose channels are last if there are several."""


def read_contents(path: Path) -> Contents:
    """The arrays in a file or a folder, by name.

    Raises:
        Unsuitable: the format is unknown or lacks its library, or the file is damaged.
    """
    lower = path.name.lower()
    reader = next((READERS[ending] for ending in READERS if lower.endswith(ending)), None)
    if reader is None and path.is_dir():
        reader = _folder
    if reader is None:
        raise Unsuitable(
            f"given a name with the ending {path.suffix!r}; allowed: {', '.join(READERS)}, or a folder of images"
        )
    with reading():
        return reader(path)


def library(name: str) -> Any:
    """An optional library. Raises `Unsuitable` if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unsuitable(f"needs {name}, which is not installed; allowed: pip install 'gfe-study[data]'") from error


def _npy(path: Path) -> Contents:
    _check_magic(path, np.lib.format.MAGIC_PREFIX)
    try:
        return {path.stem: np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))}
    except ValueError:  # an array without values cannot be mapped into memory
        return {path.stem: np.load(path, allow_pickle=False)}


class _Archive(Mapping[str, Array]):
    """The arrays of an `.npz` file, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            self._names: list[str] = list(found)

    def __getitem__(self, name: str) -> Array:
        with self._path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            array: Array = found[name]
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def _npz(path: Path) -> Contents:
    _check_magic(path, b"PK")
    return _Archive(path)


def _check_magic(path: Path, magic: bytes) -> None:
    # NumPy would take another file for a pickle, and advise to load it.
    with path.open("rb") as file:
        if file.read(len(magic)) != magic:
            raise ValueError(f"it is no {path.suffix} file")


def _hdf5(path: Path) -> Contents:
    h5py = library("h5py")
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item  # which keeps the file open for as long as it is needed

    h5py.File(path, "r").visititems(visit)
    return found


def _zarr(path: Path) -> Contents:
    zarr = library("zarr")
    store = zarr.storage.ZipStore(path, mode="r") if path.is_file() else path
    opened = zarr.open(store, mode="r")
    if isinstance(opened, zarr.Array):
        return {path.name.split(".")[0]: opened}
    return {name: item for name, item in opened.members(max_depth=None) if isinstance(item, zarr.Array)}


class _Variable:
    """A variable of a netCDF file, with missing values and packed numbers decoded."""

    def __init__(self, variable: Any) -> None:
        self.shape: tuple[int, ...] = variable.shape
        self.dtype: np.dtype[Any] = variable.dtype
        self._variable = variable

    def __getitem__(self, rows: Any) -> Array:
        return np.asarray(self._variable[rows].to_numpy())


def _netcdf(path: Path) -> Contents:
    library("h5netcdf")
    opened = library("xarray").open_dataset(path, decode_timedelta=False)
    return {str(name): _Variable(variable) for name, variable in opened.data_vars.items()}


def _csv(path: Path) -> Contents:
    return _text_table(path, ",")


def _tsv(path: Path) -> Contents:
    return _text_table(path, "\t")


def _text_table(path: Path, separator: str) -> Contents:
    import pandas as pd

    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file, delimiter=separator, skipinitialspace=True)
        names = next(rows, [])
        for row in rows:  # pandas takes a row that is too short for one whose last values are missing
            if row and len(row) != len(names):
                raise Unsuitable(f"line {rows.line_num}: given {len(row)} fields; allowed: {len(names)}, as in line 1")
    if len(set(names)) < len(names):
        raise Unsuitable("given two columns of one name; allowed: a name for each")
    table = pd.read_csv(
        path,
        sep=separator,
        index_col=False,
        skipinitialspace=True,
        encoding="utf-8-sig",
        low_memory=False,
    )
    return _columns(table)


def _parquet(path: Path) -> Contents:
    library("pyarrow")
    import pandas as pd

    return _columns(pd.read_parquet(path, engine="pyarrow"))


def _columns(table: pd.DataFrame) -> Table:
    import pandas as pd

    found = Table()
    for name, column in table.items():
        kind: Any = column.dtype
        if isinstance(kind, np.dtype) and kind.kind != "O":
            values = column.to_numpy()
        elif pd.api.types.is_numeric_dtype(kind):
            empty = column.isna().any()
            values = column.to_numpy(np.float64, na_value=np.nan) if empty else column.to_numpy(kind.numpy_dtype)
        else:
            values = column.to_numpy(object)
            if all(isinstance(value, str) for value in values):
                values = values.astype(np.str_)
        found[str(name)] = values
    return found


class _PictureFiles:
    """The pictures in some files, all of one size and mode."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        self._first = self._read(files[0])
        self.shape = (len(files), *self._first.shape)
        self.dtype = self._first.dtype

    def __getitem__(self, rows: Any) -> Array:
        files = self._files if rows is ... else self._files[rows]
        found = np.empty((len(files), *self._first.shape), self.dtype)
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(files), AT_ONCE):  # so that not all of them wait to be copied
                some = files[start : start + AT_ONCE]
                for place, picture in enumerate(pool.map(self._read, some), start):
                    if picture.shape != self._first.shape or picture.dtype != self.dtype:
                        raise Unsuitable(
                            f"{files[place].name}: given {_described(picture)}; "
                            f"allowed: {_described(self._first)}, as {self._files[0].name}"
                        )
                    found[place] = picture
        return found

    @staticmethod
    def _read(file: Path) -> Array:
        from PIL import Image

        try:
            with Image.open(file) as picture:
                mode = PICTURE_MODES.get(picture.mode)
                if mode is None:
                    raise Unsuitable(
                        f"{file.name}: given a picture of mode {picture.mode}; allowed: {', '.join(PICTURE_MODES)}"
                    )
                return np.asarray(picture if mode == picture.mode else picture.convert(mode))
        except (OSError, ValueError, SyntaxError) as error:  # which Pillow raises of a damaged image
            raise ValueError(f"{file.name}: {error}") from error


def _described(picture: Array) -> str:
    height, width, *channels = picture.shape
    count = channels[0] if channels else 1
    return f"{height} × {width} pixels of {count} channel{'s' * (count > 1)}, {picture.dtype}"


def _folder(path: Path) -> Contents:
    names = {entry.name for entry in path.iterdir()}
    if names & {"zarr.json", ".zgroup", ".zarray"}:
        return _zarr(path)
    if arrays := sorted(path.glob("*.npy")):
        return {name: array for file in arrays for name, array in _npy(file).items()}
    if "train" in names and names & {"val", "test"}:
        found = Pictures()
        for part in ("train", "val", "test"):
            if part in names:
                pictures = _pictures(path / part)
                found[part] = pictures["pictures"]
                if "labels" in pictures:
                    found[f"{part}_labels"] = pictures["labels"]
        return found
    return _pictures(path)


def _pictures(path: Path) -> Pictures:
    """The pictures of a folder, or of its folders, whose names are then the labels."""
    here = _picture_files(path)
    classes = {
        folder.name: files
        for folder in sorted(path.iterdir())
        if folder.is_dir() and not folder.name.startswith(".") and (files := _picture_files(folder))
    }
    if here and classes:
        raise Unsuitable(
            f"{path.name}/ holds images beside folders of images ({', '.join(classes)}); allowed: one of them"
        )
    if not here and not classes:
        raise Unsuitable(
            f"{path.name}/ holds no images; allowed: a folder of {', '.join(sorted(PICTURE_ENDINGS))} files, "
            "or with one folder for every class"
        )
    if here:
        return Pictures(pictures=_PictureFiles(here))
    labels = np.repeat(list(classes), [len(files) for files in classes.values()])
    return Pictures(pictures=_PictureFiles([file for files in classes.values() for file in files]), labels=labels)


def _picture_files(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in PICTURE_ENDINGS and not file.name.startswith(".") and file.is_file()
    )


READERS: dict[str, Reader] = {
    ".npy": _npy,
    ".npz": _npz,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".zarr": _zarr,
    ".zarr.zip": _zarr,
    ".nc": _netcdf,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
"""Ending of a name -> what reads it. A folder whose name has none of them holds `.npy` files or images."""
