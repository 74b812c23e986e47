"""Where what is costly to compute, and the same for every study of this user, is kept."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

CACHE_DIR_VARIABLE = "GFE_CACHE_DIR"

Value = TypeVar("Value")


def cache_folder() -> Path:
    """`GFE_CACHE_DIR`, else `$XDG_CACHE_HOME/gfe-study`, else `~/.cache/gfe-study`; it need not exist yet."""
    if given := os.environ.get(CACHE_DIR_VARIABLE):
        return Path(given).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gfe-study"


def cached(
    name: str,
    identity: Any,
    compute: Callable[[], Value],
    dump: Callable[[Value], Any],
    load: Callable[[Any], Value],
) -> Value:
    """What `compute` gives, computed once by whichever process comes first, and then read from the cache folder.

    A file that is damaged is computed again; where nothing can be kept, so is everything.

    Args:
        name: of the file, below the cache folder, without its ending.
        identity: plain data of all that decides the value; another identity is another file.
        compute: the value; its exceptions are the caller's.
        dump: the value as plain data.
        load: the inverse; raises `ValueError`, `TypeError` or `KeyError` for data that is no such value.
    """
    digest = sha256(json.dumps(identity).encode()).hexdigest()[:8]
    path = cache_folder() / f"{name}-{digest}.json"

    def read() -> list[Value]:
        try:
            return [load(json.loads(path.read_text(encoding="utf-8")))]
        except (OSError, ValueError, TypeError, KeyError):
            return []

    if kept := read():
        return kept[0]
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:
        return compute()
    try:
        if kept := read():
            return kept[0]
        value = compute()
        with suppress(OSError):
            beside = path.with_suffix(".new")
            beside.write_text(json.dumps(dump(value)), encoding="utf-8")
            beside.replace(path)
        return value
    finally:
        lock.release()
