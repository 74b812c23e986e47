"""Which tracking store is used, and errors of a store in one line. Imports MLflow only to connect."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, unquote_plus, urlparse
from urllib.request import url2pathname

from gfe_study.config import InputError

URI_VARIABLE = "MLFLOW_TRACKING_URI"
DEFAULT_STORE = "sqlite:///mlflow.db"
ALLOWED = "sqlite:///FILE, postgresql://USER:PASSWORD@HOST/DATABASE or http://HOST:PORT"
HOST, PORT = "127.0.0.1", 5000
UI = f"http://{HOST}:{PORT}"
"""Address at which `gfe-study ui` shows a store that is not a server."""
ARTIFACTS = "mlartifacts"
"""Folder of the artifacts, beside an sqlite store."""
BUSY_TIMEOUT_S = 30.0
"""How long to wait for another process that is writing an sqlite file."""


class TrackingError(InputError):
    """The tracking store cannot be used; the message names the store and the reason."""


def store_uri() -> str:
    """Return the store's URI: `MLFLOW_TRACKING_URI`, or `mlflow.db` in the working folder."""
    return os.environ.get(URI_VARIABLE) or DEFAULT_STORE


def scheme(uri: str) -> str:
    """Return the kind of a store: `sqlite`, `postgresql`, `http`, …; without the driver of a database."""
    return uri.partition(":")[0].partition("+")[0]


def is_server(uri: str) -> bool:
    """Return whether a store is a server, which decides by itself where artifacts go."""
    return scheme(uri) in ("http", "https", "databricks")


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an sqlite store; None for other stores."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def local_folder(uri: str) -> Path | None:
    """Return the folder of an artifact URI if it is local; None otherwise."""
    parts = urlparse(uri)
    return Path(url2pathname(parts.path)) if parts.scheme in ("", "file") else None


def without_password(uri: str) -> str:
    """Return a store's URI with its passwords masked.

    A password may hold / or @ although they should be encoded, so it ends at the last @.
    """
    return _QUERY.sub(r"\1***", _USER.sub(r"\1***@", uri))


_USER = re.compile(r"(?<=://)([^/@:]*:)(.*)@", re.DOTALL)
_QUERY = re.compile(r"([?&](?:ssl)?password=)([^&]*)", re.IGNORECASE)


def masked(text: str, uri: str) -> str:
    """Return text without the passwords of a URI, as they are written there or decoded, whole or in part."""
    written = [found[2] for pattern in (_USER, _QUERY) for found in pattern.finditer(uri)]
    parts = [part for password in written for part in re.split(r"[/?#@:]", password) if len(part) > 2]
    forms = {form for part in (*written, *parts) for form in (part, unquote(part), unquote_plus(part)) if form}
    for form in sorted(forms, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", "***", text)
    return text


def check_sqlite(uri: str) -> None:
    """Raise `TrackingError` if the file of an sqlite store is not a database, `InputError` if it is not writable."""
    path = sqlite_file(uri)
    if path is None:
        return
    if path.is_file() and path.stat().st_size and not path.read_bytes()[:16].startswith(b"SQLite format 3\0"):
        raise TrackingError(f"{path}: not an sqlite database; set {URI_VARIABLE} to {ALLOWED}")
    writable(path.absolute().parent, f"set {URI_VARIABLE} to a store elsewhere")


def writable(folder: Path, remedy: str) -> None:
    """Raise `InputError` unless files can be created in `folder`; a mode without write bits counts as read-only."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.stat().st_mode & 0o222:  # root could write there despite the mode
        raise InputError(f"{there}: marked read-only; {remedy}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".gfe-study-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); {remedy}") from error


def ui_address(uri: str) -> str:
    """Return where MLflow's UI shows a store: on its server, or on that of `gfe-study ui`."""
    return without_password(uri).rstrip("/") if is_server(uri) else UI


@contextlib.contextmanager
def explained(uri: str, verb: str = "used") -> Iterator[None]:
    """Turn whatever a store, its driver or the network raises into a `TrackingError`."""
    try:
        yield
    except InputError:
        raise
    except ImportError as error:  # psycopg without its library names no module
        missing = error.name or "psycopg"
        package = "'gfe-study[postgres]'" if missing == "psycopg" else missing
        raise TrackingError(
            f"{URI_VARIABLE}: given {without_password(uri)}; {missing} is not installed; pip install {package}"
        ) from error
    except Exception as error:  # MLflow passes on any exception of its store or the network
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        lines = [line for line in lines if "Query-invoked autoflush" not in line]  # SQLAlchemy's: when, not why
        reason = masked(lines[0], uri)[:160] if lines else type(error).__name__
        full = getattr(error, "errno", None) == errno.ENOSPC or "disk is full" in str(error)
        remedy = "free some space" if full else f"set {URI_VARIABLE} to {ALLOWED}"
        raise TrackingError(
            f"{without_password(uri)}: the tracking store cannot be {verb} ({reason}); {remedy}"
        ) from error
