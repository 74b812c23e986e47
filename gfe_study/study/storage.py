"""Where a study keeps its files: a folder, or an fsspec URL with a local folder in front of it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gfe_study import names
from gfe_study.config import InputError

JOURNAL_FILE = "journal.jsonl"
MIRRORS = ".mirrors"
"""Below the working folder's `results`: local copies of studies whose storage is a URL."""


def is_url(storage: str) -> bool:
    """Whether a storage is an fsspec URL like `s3://bucket/results`."""
    return "://" in storage


def study_folder(storage: str, label: str) -> Path:
    """The local folder of a study's journal and its trials' files."""
    if not is_url(storage):
        return Path(storage).absolute() / label
    digest = hashlib.sha256(storage.rstrip("/").encode()).hexdigest()[:12]
    return Path("results").absolute() / MIRRORS / digest / label


def remote_folder(storage: str, label: str) -> str | None:
    """The URL of a study's files; None where the storage is a local folder."""
    return f"{storage.rstrip('/')}/{label}" if is_url(storage) else None


def studies_of(storage: str) -> list[str]:
    """Labels of the studies in a storage."""
    if is_url(storage):
        return Mirror(Path(), storage).folders()
    return sorted(path.parent.name for path in Path(storage).glob(f"*/{JOURNAL_FILE}"))


class Mirror:
    """Files of a local folder kept in step with a remote one. Without a remote, nothing is done.

    A file appears on the remote side whole or not at all: it is put beside its place and moved there.

    Args:
        local: the folder that is worked in.
        remote: an fsspec URL, or None.

    Raises:
        InputError: the URL's protocol is unknown, or the library that speaks it is not installed; later, the storage
            does not answer.
    """

    def __init__(self, local: Path, remote: str | None) -> None:
        self.local = local
        self.remote = remote
        self._fs: Any = None
        self._root = ""
        if remote is not None:
            import fsspec

            try:
                self._fs, self._root = fsspec.core.url_to_fs(remote)
            except (ImportError, ValueError) as error:
                raise InputError(f"--storage: given {remote!r}; {error}") from error

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # every protocol has its own
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise InputError(f"{self.remote or self.local}: the storage cannot be used ({reason})") from error

    def read(self, name: str) -> bytes:
        """The content of a remote file; empty if there is none."""
        if self._fs is None:
            return b""
        with self._explained():
            return bytes(self._fs.cat_file(self._path(name))) if self._fs.exists(self._path(name)) else b""

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def fetch(self, *wanted: str) -> None:
        """Bring files here, over what lies here; those the remote does not have are left alone."""
        for name in wanted if self._fs is not None else ():
            with self._explained():
                if self._fs.exists(self._path(name)):
                    self.local.mkdir(parents=True, exist_ok=True)
                    beside = self.local / f".{name}.fetched"
                    self._fs.get_file(self._path(name), str(beside))
                    beside.replace(self.local / name)

    def push(self, *wanted: str) -> None:
        """Bring files there; those that do not lie here are left alone."""
        for name in wanted if self._fs is not None else ():
            if (self.local / name).exists():
                with self._explained():
                    self._fs.makedirs(self._root, exist_ok=True)
                    beside = self._path(f".{name}.part")
                    self._fs.put_file(str(self.local / name), beside)
                    self._fs.mv(beside, self._path(name))

    def push_checkpoint(self) -> None:
        """Bring the checkpoint there, the one it replaces staying as the previous one."""
        if self._fs is None:
            return
        there = self._path(names.CHECKPOINT)
        with self._explained():
            if self._fs.exists(there):
                self._fs.mv(there, self._path(names.PREVIOUS_CHECKPOINT))
        self.push(names.CHECKPOINT)

    def remove(self, *unwanted: str) -> None:
        """Remove files on both sides."""
        for name in unwanted:
            with self._explained():
                (self.local / name).unlink(missing_ok=True)
                if self._fs is not None and self._fs.exists(self._path(name)):
                    self._fs.rm_file(self._path(name))

    def folders(self) -> list[str]:
        """Names of the folders on the remote side."""
        if self._fs is None:
            return []
        with self._explained():
            listed = self._fs.ls(self._root, detail=True) if self._fs.exists(self._root) else []
        return sorted(
            str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in listed if entry["type"] == "directory"
        )
