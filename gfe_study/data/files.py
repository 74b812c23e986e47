"""Datasets read from files: looked for under `GFE_DATA_DIR`, then `./data`; some are downloaded into `./data`."""

from __future__ import annotations

import contextlib
import io
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock

from gfe_study.data.base import Dataset
from gfe_study.data.split import DataError, Splits
from gfe_study.names import DATA_DIR_VARIABLE


class FileDataset(Dataset):
    """A dataset whose files the user has, or torchvision fetches."""

    homes: ClassVar[tuple[str, ...]]
    """Where the files may lie in a folder of datasets; the first is where they are downloaded to."""
    files: ClassVar[tuple[str, ...]]
    """Those that must be there."""

    @abstractmethod
    def read_files(self, home: Path) -> Splits:
        """The splits, from a folder that holds the files. What it raises tells how they are damaged."""

    @abstractmethod
    def fetch(self, folder: Path) -> None:
        """Download the files into a folder of datasets, by torchvision. May print, and raise anything."""

    def read(self, folders: list[Path], *, download: bool) -> Splits:
        for folder in folders:
            if (home := self._home_in(folder)) is not None:
                return self._read_from(home)
        looked = ", ".join(str(folder / home) for folder in folders for home in self.homes)
        missing = f"data.name: {self.name} not found; looked in {looked}"
        remedy = f"set {DATA_DIR_VARIABLE} to the folder that holds {self.homes[0]}"
        if not download:
            raise DataError(f"{missing}; {remedy}")
        into = Path("data").resolve()
        try:
            into.mkdir(parents=True, exist_ok=True)
            with FileLock(into / f".{Path(self.homes[0]).parts[0]}.lock"), _silence():
                if self._home_in(into) is None:  # nobody fetched them while this waited
                    self.fetch(into)
        except Exception as error:  # torchvision raises whatever its mirrors made of it
            raise DataError(f"{missing}; download failed ({reason(error)}); {remedy}") from error
        return self._read_from(self._home_in(into) or into / self.homes[0])

    def sources(self, folders: list[Path]) -> list[Path]:
        return [folder / home / file for folder in folders for home in self.homes for file in self.files]

    def _home_in(self, folder: Path) -> Path | None:
        homes = (folder / home for home in self.homes)
        return next((home for home in homes if all((home / file).exists() for file in self.files)), None)

    def _read_from(self, home: Path) -> Splits:
        try:
            splits = self.read_files(home)
            for part, split in splits.parts.items():
                if split.labels_N is not None and len(split) != len(split.labels_N):
                    raise ValueError(f"{part}: {len(split)} images, {len(split.labels_N)} labels")
                if not len(split):
                    raise ValueError(f"no {part} images")
        except DataError:
            raise
        except Exception as error:  # the libraries that read files say it in many ways
            raise DataError(
                f"data.name: {self.name}: {home} is damaged ({reason(error)}); remove it to have it downloaded anew"
            ) from error
        return splits


class OwnFiles(Dataset):
    """A dataset of the user's own files."""

    immaterial = frozenset({"path"})

    path: str
    """A file or a folder: absolute, or below the working directory, `GFE_DATA_DIR` or `./data`."""

    @property
    def label(self) -> str:
        return Path(self.path).stem or self.name

    def places(self, folders: list[Path]) -> list[Path]:
        """Where the files may be, first to last."""
        given = Path(self.path).expanduser()
        return list(dict.fromkeys(folder / given for folder in (Path.cwd(), *folders)))

    def missing(self, folders: list[Path], wanted: str) -> DataError:
        """The error of files that are in none of the places."""
        looked = ", ".join(map(str, self.places(folders)))
        return DataError(
            f"data.path: given {self.path!r}; looked in {looked}; allowed: {wanted}, "
            f"absolute or below a folder that {DATA_DIR_VARIABLE} names"
        )


class Unsuitable(Exception):
    """A file cannot be used. The message says what is given and what is allowed, but not where."""


@contextlib.contextmanager
def blamed_on(where: str) -> Iterator[None]:
    """Turn `Unsuitable` into a `DataError` that begins with `where`."""
    try:
        yield
    except Unsuitable as error:
        raise DataError(f"{where}: {error}") from error


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Turn what libraries raise over a file into `Unsuitable`."""
    try:
        yield
    except (Unsuitable, MemoryError):
        raise
    except Exception as error:  # the libraries that read files say it in many ways
        raise Unsuitable(f"cannot be read ({reason(error)}); allowed: a file that is whole") from error


def reason(error: Exception) -> str:
    """What an error of a library says, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextlib.contextmanager
def _silence() -> Any:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
