"""Many runs at a time into an MLflow store that is an sqlite file of this machine.

MLflow's client takes some 90 ms for a short trial, one transaction a call; here the runs of many trials are one
transaction of prepared statements. Only the five tables that MLflow has had since its first releases are written,
and only if they look as they are known to.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from gfe_study import names

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
SECONDS_TO_WAIT = 30.0
"""For another process that is writing."""


@dataclass
class RunRow:
    """What is to be written of one run.

    Attributes:
        created: milliseconds since the epoch at which a new run starts; None for one that is there.
        metrics: (name, value, milliseconds, step), finite values only, steps increasing for each name.
        ended: milliseconds since the epoch at which it ended; None while it goes on.
    """

    run_id: str
    name: str
    artifact_uri: str
    status: str
    created: int | None = None
    ended: int | None = None
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)


class SqliteStore:
    """The runs of one experiment in an sqlite store.

    Raises:
        sqlite3.Error: the file cannot be read or written.
    """

    def __init__(self, path: Path, experiment_id: str) -> None:
        self._path = path
        self._experiment_id = experiment_id

    @classmethod
    def known(cls, path: Path, experiment_id: str) -> SqliteStore | None:
        """The store, if its tables are the known ones; else None, and MLflow's client is to be used."""
        store = cls(path, experiment_id)
        with store._connection() as connection:
            for table, columns in COLUMNS.items():
                if {row[1] for row in connection.execute(f"PRAGMA table_info({table})")} != columns:
                    return None
        return store

    def _connection(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=SECONDS_TO_WAIT)

    def last_step(self, run_id: str) -> float:
        """The largest number of images seen that a run holds; −1 without any."""
        query = "SELECT MAX(step) FROM metrics WHERE run_uuid = ? AND key = ?"
        with self._connection() as connection:
            (found,) = connection.execute(query, (run_id, names.IMAGES_SEEN)).fetchone()
        return -1.0 if found is None else float(found)

    def write(self, rows: Iterable[RunRow]) -> None:
        """Write runs, new ones and ones that are there, in one transaction."""
        rows = list(rows)
        connection = self._connection()
        try:
            with connection:
                self._write(connection, rows)
        finally:
            connection.close()

    def _write(self, connection: sqlite3.Connection, rows: list[RunRow]) -> None:
        connection.executemany(
            "INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time,"
            " source_version, lifecycle_stage, artifact_uri, experiment_id)"
            " VALUES (?, ?, 'UNKNOWN', '', '', 'unknown', 'RUNNING', ?, '', 'active', ?, ?)",
            [
                (row.run_id, row.name, row.created, row.artifact_uri, int(self._experiment_id))
                for row in rows
                if row.created is not None
            ],
        )
        connection.executemany(
            "UPDATE runs SET status = ?, end_time = ? WHERE run_uuid = ?",
            [(row.status, row.ended, row.run_id) for row in rows],
        )
        connection.executemany(
            "INSERT OR REPLACE INTO tags (key, value, run_uuid) VALUES (?, ?, ?)",
            [(key, value, row.run_id) for row in rows for key, value in row.tags.items()],
        )
        connection.executemany(
            "INSERT OR IGNORE INTO params (key, value, run_uuid) VALUES (?, ?, ?)",
            [(key, value, row.run_id) for row in rows for key, value in row.params.items()],
        )
        connection.executemany(
            "INSERT OR IGNORE INTO metrics (key, value, timestamp, step, is_nan, run_uuid) VALUES (?, ?, ?, ?, 0, ?)",
            [(*entry, row.run_id) for row in rows for entry in row.metrics],
        )
        latest = {(entry[0], row.run_id): entry for row in rows for entry in row.metrics}
        connection.executemany(
            "INSERT OR REPLACE INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid)"
            " VALUES (?, ?, ?, ?, 0, ?)",
            [(*entry, run_id) for (_, run_id), entry in latest.items()],
        )
