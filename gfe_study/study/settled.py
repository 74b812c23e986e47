"""A study with nothing left to do says so from its journal's last line, without loading torch, MLflow or the images.

The line holds what the last start showed, and what that depended on: the command, this package and those it uses, the
images' files, and the store. If any of them has changed, the study is planned as usual.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from gfe_study.config import TRAINING_VERSION
from gfe_study.io.storage import JOURNAL_FILE, Storage
from gfe_study.names import DATA_DIR_VARIABLE, ROLE, ROLE_TRIAL
from gfe_study.provenance import PACKAGE, own_version, package_versions
from gfe_study.study.events import NewerRecord, Settled, read_record
from gfe_study.tracking.uri import BUSY_TIMEOUT_S, sqlite_file, store_uri

LONGEST_LINE = 4_000_000


def start_key(command: Any) -> str:
    """Return a hash of all that decides what a start would do, apart from the images and the store's content.

    Args:
        command: plain data that describes the command and the content of its files.
    """
    code = sorted(file_states(PACKAGE.rglob("*.py")).items())
    surroundings = [os.environ.get(DATA_DIR_VARIABLE), str(Path.cwd()), store_uri()]
    content = [command, surroundings, own_version(), package_versions(), TRAINING_VERSION, code]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def file_states(files: Iterable[Path]) -> dict[str, list[int]]:
    """Return the size and the time of the last change of files; files that are gone have neither."""
    return {str(file): _state(file) for file in files}


def _state(file: Path) -> list[int]:
    try:
        found = file.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def settled(storage: Storage, label: str, key: str) -> Settled | None:
    """Return what a study found when nothing was left to do; None if there may be something to do.

    Args:
        storage: where the study is; one on a URL is always planned, because another machine may have changed it.
        label: the study's name.
        key: the `start_key` of the command.
    """
    store = sqlite_file(store_uri())
    if storage.is_url or store is None:
        return None
    record = _last_record(storage.folder(label).local / JOURNAL_FILE)
    if record is None or record.key != key or record.files != file_states(map(Path, record.files)):
        return None
    trials = sum(record.summary["trials"].values())
    return record if store.exists() and _count_finished(store, label) == trials else None


def _count_finished(store: Path, label: str) -> int:
    """Return how many finished trials of an active experiment an sqlite store holds; 0 if it cannot be read."""
    query = (
        "SELECT COUNT(*) FROM runs JOIN experiments USING (experiment_id) JOIN tags USING (run_uuid)"
        " WHERE experiments.name = ? AND experiments.lifecycle_stage = 'active' AND runs.lifecycle_stage = 'active'"
        " AND runs.status = 'FINISHED' AND tags.key = ? AND tags.value = ?"
    )
    try:
        with closing(sqlite3.connect(store, timeout=BUSY_TIMEOUT_S)) as connection:
            (found,) = connection.execute(query, (label, ROLE, ROLE_TRIAL)).fetchone()
    except sqlite3.Error:
        return 0
    return int(found)


def _last_record(journal: Path) -> Settled | None:
    try:
        with journal.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LONGEST_LINE))
            *_, last, rest = [b"", b"", *file.read().split(b"\n")]
        record = read_record(last) if not rest else None
    except (OSError, ValueError, NewerRecord):  # the usual start reports what is wrong with the journal
        return None
    return record if isinstance(record, Settled) else None
