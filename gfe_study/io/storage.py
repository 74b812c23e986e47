"""Where studies keep their files: a folder, or an fsspec URL with a local copy of what is in use."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gfe_study import names
from gfe_study.config import InputError

JOURNAL_FILE = "journal.jsonl"
MIRRORS = ".mirrors"
"""Below the working folder's `results`: local copies of what is kept at URLs."""
BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
"""Protocols of object stores: they have no folders, and a study does not create their buckets."""
UPLOAD_RETRY_S = 3.0
SET_APART = f".{names.CHECKPOINT}.uploading"
MAX_LABEL_BYTES = 100
"""Longest study name: file systems limit file names to 255 bytes, and the name becomes part of longer ones."""
UPLOAD_ORDER = (names.BEST_CHECKPOINT, names.SNAPSHOTS, names.RECONSTRUCTION, names.CHECKPOINT)
"""The checkpoint comes last, so that whoever continues from it finds the best decoder of all points before it."""


FILES_WAIT = "files wait there and are uploaded once it answers; nothing is lost meanwhile"
FILES_UPLOADED = "the storage answers again, and everything is uploaded"


def about_uploads(waiting: str) -> str:
    """Say that files wait, and why; or, without a reason, that none does any more."""
    return f"{waiting}; {FILES_WAIT}" if waiting else FILES_UPLOADED


class StorageError(InputError):
    """A URL does not answer; the same call may succeed later."""


def is_url(text: str) -> bool:
    """Return whether a storage or a file is given as an fsspec URL like `s3://bucket/results`."""
    return "://" in text


@dataclass(frozen=True)
class Storage:
    """A storage of studies, one folder for each.

    Attributes:
        address: a folder, or an fsspec URL.
    """

    address: str

    @property
    def is_url(self) -> bool:
        return is_url(self.address)

    def folder(self, *below: str) -> Mirror:
        """Return the folder of a study, or one below it."""
        if not self.is_url:
            return Mirror(Path(self.address).absolute().joinpath(*below))
        address = self.address.rstrip("/")
        return Mirror(_copy_of(address).joinpath(*below), "/".join([address, *below]))

    def studies(self) -> list[str]:
        """Return the names of the studies."""
        if self.is_url:
            self.folder().check()
            return self.folder().folders_with(JOURNAL_FILE)
        return sorted(path.parent.name for path in Path(self.address).glob(f"*/{JOURNAL_FILE}"))


def checked_label(label: str, where: str) -> str:
    """Return a study's name. Raises `InputError`, which begins with `where`, if it cannot be a folder's name."""
    forbidden = any(character in "/\\:" or not character.isprintable() for character in label)
    if not label or label in (".", "..") or forbidden or len(label.encode()) > MAX_LABEL_BYTES:
        shown = label if len(label) <= MAX_LABEL_BYTES else f"{label[:20]}…"
        allowed = f"a name of at most {MAX_LABEL_BYTES} bytes, without / \\ : or control characters"
        raise InputError(f"{where}: given {shown!r}; allowed: {allowed}")
    return label


def _copy_of(address: str) -> Path:
    return Path("results").absolute() / MIRRORS / hashlib.sha256(address.encode()).hexdigest()[:12]


def local_file(given: str) -> Path:
    """Return a file as it is given, or the local copy of one that is given as a URL.

    Raises:
        InputError: the URL cannot be read, or there is no such file.
    """
    if not is_url(given):
        return Path(given)
    above, _, name = given.rpartition("/")
    mirror = Mirror(_copy_of(above), above)
    if not mirror.fetch(name):
        raise InputError(f"{given}: no such file")
    return mirror.local / name


class Mirror:
    """Files of a local folder, kept in step with a remote one if there is one.

    A file appears on the remote side whole or not at all: it is uploaded beside its place and moved there.

    Args:
        local: the folder that is worked in.
        remote: an fsspec URL, or None.

    Raises:
        InputError: the URL's protocol is unknown, or the library that speaks it is not installed.
        StorageError: of every method: the URL does not answer.
    """

    def __init__(self, local: Path, remote: str | None = None) -> None:
        self.local = local
        self.remote = remote
        self._fs: Any = None
        self._root = ""
        if remote is not None:
            import fsspec

            try:
                # Other machines write there too, so that no listing may be remembered.
                self._fs, self._root = fsspec.core.url_to_fs(remote, use_listings_cache=False)
            except ImportError as error:
                remedy = "s3fs is not installed; pip install 'gfe-study[s3]'" if remote.startswith("s3") else error
                raise InputError(f"--storage: given {remote!r}; {remedy}") from error
            except ValueError as error:
                raise InputError(f"--storage: given {remote!r}; {error}") from error

    def below(self, *below: str) -> Mirror:
        """Return a folder below this one."""
        remote = "/".join([self.remote, *below]) if self.remote is not None else None
        return Mirror(self.local.joinpath(*below), remote)

    def check(self) -> None:
        """Raise `InputError` if the URL is in a bucket that does not exist."""
        if self.remote is None or self.remote.partition("://")[0] not in BUCKETS:
            return
        bucket = self._root.partition("/")[0]
        with self._explained():
            if self._fs.exists(bucket):
                return
            try:  # whatever went wrong counts as not there for `exists`
                self._fs.ls(bucket)
            except FileNotFoundError as error:
                remedy = f"there is no bucket {bucket!r}: create it first"
                raise InputError(f"--storage: given {self.remote!r}; {remedy}") from error

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # every protocol has its own
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise StorageError(f"{self.remote or self.local}: the storage cannot be used ({reason})") from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def read(self, name: str) -> bytes:
        """Return the content of a remote file; empty if there is none."""
        if self._fs is None:
            return b""
        with self._explained():
            return bytes(self._fs.cat_file(self._path(name))) if self._fs.exists(self._path(name)) else b""

    def size(self, name: str) -> int:
        """Return the size of a remote file in bytes; 0 if there is none."""
        with self._explained():
            path = self._path(name)
            return int(self._fs.info(path)["size"]) if self._fs is not None and self._fs.exists(path) else 0

    def fetch(self, *wanted: str) -> list[str]:
        """Download files over the local ones; return the names of those that the remote side has."""
        found = []
        for name in wanted if self._fs is not None else ():
            with self._explained():
                if self._fs.exists(self._path(name)):
                    self.local.mkdir(parents=True, exist_ok=True)
                    beside = self.local / f".{name}.fetched"
                    self._fs.get_file(self._path(name), str(beside))
                    beside.replace(self.local / name)
                    found.append(name)
        return found

    def push(self, *wanted: str) -> None:
        """Upload files; those that do not exist locally are skipped."""
        for name in wanted if self._fs is not None else ():
            if (self.local / name).exists():
                with self._explained():
                    self._fs.mv(self._put_beside(self.local / name, name), self._path(name))

    def _put_beside(self, file: Path, name: str) -> str:
        """Upload a file beside the place of `name`, from where it can be moved there whole; return its path."""
        self._make_folder()
        beside = self._path(f".{name}.part")
        self._fs.put_file(str(file), beside)
        return beside

    def push_tree(self) -> None:
        """Upload everything in the folder, subfolders included."""
        if self._fs is not None:
            with self._explained():
                self._make_folder()
                self._fs.put(f"{self.local}/", f"{self._root}/", recursive=True)

    def _make_folder(self) -> None:
        if str(self.remote).partition("://")[0] not in BUCKETS:  # there it would create a missing bucket
            self._fs.makedirs(self._root, exist_ok=True)

    def push_checkpoint(self) -> None:
        """Upload the checkpoint set apart last; the one that it replaces stays as the previous one."""
        apart, there = self.local / SET_APART, self._path(names.CHECKPOINT)
        if self._fs is None or not apart.exists():
            return
        with self._explained():
            beside = self._put_beside(apart, names.CHECKPOINT)
            if self._fs.exists(there):
                self._fs.mv(there, self._path(names.PREVIOUS_CHECKPOINT))
            self._fs.mv(beside, there)
        apart.unlink()  # or it would keep the space of a checkpoint that is removed

    def set_checkpoint_apart(self) -> None:
        """Keep the checkpoint as it is now for `push_checkpoint`, under another name."""
        apart = self.local / SET_APART
        apart.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            try:
                os.link(self.local / names.CHECKPOINT, apart)
            except OSError:  # a file system without links
                shutil.copyfile(self.local / names.CHECKPOINT, apart)

    def remove(self, *unwanted: str) -> None:
        """Remove files on both sides."""
        for name in unwanted:
            with self._explained():
                (self.local / name).unlink(missing_ok=True)
                if self._fs is not None and self._fs.exists(self._path(name)):
                    self._fs.rm_file(self._path(name))

    def folders_with(self, name: str) -> list[str]:
        """Return the names of the remote folders below this one that hold a file of that name."""
        with self._explained():
            found = self._fs.glob(self._path(f"*/{name}")) if self._fs is not None else []
        return sorted(str(path).split("/")[-2] for path in found)


class Uploads:
    """Uploads a trial's files in the background, for as long as it takes: the trial goes on while its files wait.

    Use it as a context; leaving it abandons what still waits.

    Attributes:
        problem: why files wait; empty if the last attempt succeeded.
    """

    def __init__(self, mirror: Mirror) -> None:
        self.problem = ""
        self._mirror = mirror
        self._waiting: dict[str, int] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._upload_for_ever, name="uploads", daemon=True)

    def __enter__(self) -> Self:
        if self._mirror.remote is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def add(self, *changed: str) -> None:
        """Upload files that have changed, each as it is when its turn comes."""
        if self._mirror.remote is not None:
            with self._changed:
                for name in changed:
                    self._waiting[name] = self._waiting.get(name, 0) + 1
                self._changed.notify_all()

    def done(self, timeout: float) -> bool:
        """Wait until all files are uploaded, at most `timeout` seconds; return whether they are."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout)

    def _upload_for_ever(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or bool(self._waiting))
                if self._closing:
                    return
                name = next(name for name in UPLOAD_ORDER if name in self._waiting)
                version = self._waiting[name]
                if name == names.CHECKPOINT:
                    # As it is now, when all that it needs is uploaded: by the time that the URL answers, another one
                    # may have taken its place whose best decoder is not there yet.
                    self._mirror.set_checkpoint_apart()
            try:
                if name == names.CHECKPOINT:
                    self._mirror.push_checkpoint()
                else:
                    self._mirror.push(name)
            except StorageError as error:
                self.problem = str(error)
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, UPLOAD_RETRY_S)
                continue
            self.problem = ""
            with self._changed:
                if self._waiting[name] == version:  # otherwise it has changed again
                    del self._waiting[name]
                self._changed.notify_all()
