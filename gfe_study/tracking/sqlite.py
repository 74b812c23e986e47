"""Writes many runs at a time to an MLflow store that is an sqlite file of this machine.

MLflow's client needs some 90 ms for a short trial, one transaction per call; here the runs of many trials are one
transaction of prepared statements. Only the five tables that MLflow has had since its first releases are written,
and only if they have the columns that this module knows.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
import uuid
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from gfe_study import names
from gfe_study.tracking.runs import RUNNING, Change, Run
from gfe_study.tracking.uri import local_folder

COLUMNS = {
    "runs": {
        "run_uuid", "name", "source_type", "source_name", "entry_point_name", "user_id", "status", "start_time",
        "end_time", "deleted_time", "source_version", "lifecycle_stage", "artifact_uri", "experiment_id",
    },
    "tags": {"key", "value", "run_uuid"},
    "params": {"key", "value", "run_uuid"},
    "metrics": {"key", "value", "timestamp", "step", "is_nan", "run_uuid"},
    "latest_metrics": {"key", "value", "timestamp", "step", "is_nan", "run_uuid"},
}  # fmt: skip
TIMEOUT_S = 30.0
"""How long to wait for another process that is writing."""


class SqliteWriter:
    """The runs of one experiment in an sqlite store.

    Args:
        path: the store's file.
        experiment_id: the experiment.
        artifacts: URI of the folder of its artifacts, on this machine.

    Raises:
        sqlite3.Error: the file cannot be read or written.
    """

    batch = 200

    def __init__(self, path: Path, experiment_id: str, artifacts: str) -> None:
        self._path = path
        self._experiment_id = experiment_id
        self._artifacts = artifacts

    @classmethod
    def known(cls, path: Path, experiment_id: str, artifacts: str) -> SqliteWriter | None:
        """Return a writer if the tables are the known ones; None if MLflow's client must be used."""
        with closing(_connect(path)) as connection:
            for table, columns in COLUMNS.items():
                if {row[1] for row in connection.execute(f"PRAGMA table_info({table})")} != columns:
                    return None
        return cls(path, experiment_id, artifacts)

    def last_step(self, run: Run) -> float:
        query = "SELECT MAX(step) FROM metrics WHERE run_uuid = ? AND key = ?"
        with closing(_connect(self._path)) as connection:
            (found,) = connection.execute(query, (run.run_id, names.IMAGES_SEEN)).fetchone()
        return -1.0 if found is None else float(found)

    def find(self, fingerprint: str) -> Run | None:
        return None  # a transaction that failed has created nothing

    def write(self, changes: Sequence[Change]) -> None:
        now = int(time.time() * 1000)
        new = [change for change in changes if change.is_new]
        for change in new:
            change.run.run_id = uuid.uuid4().hex
            change.run.artifact_uri = f"{self._artifacts}/{change.run.run_id}/artifacts"
        try:
            for change in changes:
                _keep(change)
            with closing(_connect(self._path)) as connection, connection:
                self._write(connection, new, changes, now)
        except BaseException:
            for change in new:
                change.run.run_id = ""
            raise

    def _write(self, connection: sqlite3.Connection, new: list[Change], changes: Sequence[Change], now: int) -> None:
        connection.executemany(
            "INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time,"
            " source_version, lifecycle_stage, artifact_uri, experiment_id)"
            " VALUES (?, ?, 'UNKNOWN', '', '', 'unknown', 'RUNNING', ?, '', 'active', ?, ?)",
            [
                (change.run.run_id, change.name, now, change.run.artifact_uri, int(self._experiment_id))
                for change in new
            ],
        )
        connection.executemany(
            "UPDATE runs SET name = ? WHERE run_uuid = ?",
            [(change.name, change.run.run_id) for change in changes if change.name != change.run.name],
        )
        connection.executemany(
            "UPDATE runs SET status = ?, end_time = ? WHERE run_uuid = ?",
            [
                (change.status, None if change.status == RUNNING else now, change.run.run_id)
                for change in changes
                if change.status is not None
            ],
        )
        connection.executemany(
            "INSERT OR REPLACE INTO tags (key, value, run_uuid) VALUES (?, ?, ?)",
            [(key, value, change.run.run_id) for change in changes for key, value in change.tags.items()],
        )
        connection.executemany(
            "INSERT OR IGNORE INTO params (key, value, run_uuid) VALUES (?, ?, ?)",
            [(key, str(value), change.run.run_id) for change in changes for key, value in change.params.items()],
        )
        metrics = [
            (name, value, now, int(point[names.IMAGES_SEEN]), change.run.run_id)
            for change in changes
            for point in change.points
            for name, value in point.items()
        ]
        rest = "(key, value, timestamp, step, is_nan, run_uuid) VALUES (?, ?, ?, ?, 0, ?)"
        connection.executemany(f"INSERT OR IGNORE INTO metrics {rest}", metrics)
        latest = {(entry[0], entry[-1]): entry for entry in metrics}
        connection.executemany(f"INSERT OR REPLACE INTO latest_metrics {rest}", latest.values())


def count_finished(path: Path, experiment: str) -> int:
    """Return how many finished trials of an active experiment an sqlite store holds; 0 if it cannot be read."""
    query = (
        "SELECT COUNT(*) FROM runs JOIN experiments USING (experiment_id) JOIN tags USING (run_uuid)"
        " WHERE experiments.name = ? AND experiments.lifecycle_stage = 'active' AND runs.lifecycle_stage = 'active'"
        " AND runs.status = 'FINISHED' AND tags.key = ? AND tags.value = ?"
    )
    try:
        with closing(_connect(path)) as connection:
            (found,) = connection.execute(query, (experiment, names.ROLE, names.ROLE_TRIAL)).fetchone()
    except sqlite3.Error:
        return 0
    return int(found)


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=TIMEOUT_S)


def _keep(change: Change) -> None:
    """Copy artifacts into a run's folder."""
    folder = local_folder(change.run.artifact_uri)
    if folder is None or not (change.texts or change.files):
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in change.texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    for file in change.files:
        with suppress(FileNotFoundError):  # removed meanwhile: another trial took its place among the best
            shutil.copyfile(file, folder / file.name)
