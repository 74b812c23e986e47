"""Writes many runs at a time to an MLflow store that is an sqlite file or a PostgreSQL database.

MLflow's client makes several calls for a short trial, each a transaction; here the runs of many trials are one
transaction of prepared statements. Only the five tables that MLflow has had since its first releases are written,
and only if they have the columns that this module knows.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import sqlalchemy as sa

from gfe_study.metrics import IMAGES_SEEN
from gfe_study.tracking.runs import RUNNING, Change, Run
from gfe_study.tracking.uri import BUSY_TIMEOUT_S, local_folder, scheme, sqlite_file

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
PLACEHOLDERS = {"sqlite": "?", "postgresql": "%s"}
"""The databases that are written; all else in the statements is the same in both."""
MAX_LENGTHS = {"sqlite": None, "postgresql": 8000}
"""Longest value of a tag or parameter, in characters; longer ones are cut, as by MLflow's client."""
CONNECT_TIMEOUT_S = 20


def open_engine(uri: str) -> sa.Engine:
    """Return an engine of a database; each use opens a new connection, since a server may have restarted."""
    path = sqlite_file(uri)
    if path is not None:  # in its name, % and ? have no special meaning
        url, options = sa.URL.create("sqlite", database=str(path)), {"timeout": BUSY_TIMEOUT_S}
    else:
        url = sa.make_url(uri)
        limited = scheme(uri) == "postgresql" and "connect_timeout" not in url.query
        options = {"connect_timeout": CONNECT_TIMEOUT_S} if limited else {}
    return sa.create_engine(url, poolclass=sa.NullPool, connect_args=options)


class DatabaseWriter:
    """The runs of one experiment in an sqlite file or a PostgreSQL database.

    Args:
        engine: the database's.
        experiment_id: the experiment.
        artifacts: URI of the folder of its artifacts, on this machine.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database cannot be read or written.
    """

    batch = 200

    def __init__(self, engine: sa.Engine, experiment_id: str, artifacts: str) -> None:
        self._engine = engine
        self._experiment_id = experiment_id
        self._artifacts = artifacts

    @classmethod
    def known(cls, uri: str, experiment_id: str, artifacts: str) -> DatabaseWriter | None:
        """Return a writer if the tables are the known ones; None if MLflow's client must be used."""
        if scheme(uri) not in PLACEHOLDERS or local_folder(artifacts) is None:
            return None
        engine = open_engine(uri)
        with engine.connect() as connection:
            inspector = sa.inspect(connection)
            for table, columns in COLUMNS.items():
                if {column["name"] for column in inspector.get_columns(table)} != columns:
                    return None
        return cls(engine, experiment_id, artifacts)

    def last_step(self, run: Run) -> float:
        query = self._sql("SELECT MAX(step) FROM metrics WHERE run_uuid = ? AND key = ?")
        with self._engine.connect() as connection:
            found = connection.exec_driver_sql(query, (run.run_id, IMAGES_SEEN)).scalar()
        return -1.0 if found is None else float(found)

    def _sql(self, text: str) -> str:
        return text.replace("?", PLACEHOLDERS[self._engine.dialect.name])

    def write(self, changes: Sequence[Change]) -> None:
        now = int(time.time() * 1000)
        new = [change for change in changes if change.is_new]
        for change in new:
            change.run.run_id = uuid.uuid4().hex
            change.run.artifact_uri = f"{self._artifacts}/{change.run.run_id}/artifacts"
        try:
            for change in changes:
                _keep(change)
            with self._engine.begin() as connection:
                self._write(connection, new, changes, now)
        except BaseException:
            for change in new:
                change.run.run_id = ""
            raise

    def _write(self, connection: sa.Connection, new: list[Change], changes: Sequence[Change], now: int) -> None:
        def execute(statement: str, rows: list[tuple[Any, ...]]) -> None:
            if rows:
                connection.exec_driver_sql(self._sql(statement), rows)

        longest = MAX_LENGTHS[connection.dialect.name]
        execute(
            "INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time,"
            " source_version, lifecycle_stage, artifact_uri, experiment_id)"
            " VALUES (?, ?, 'UNKNOWN', '', '', 'unknown', 'RUNNING', ?, '', 'active', ?, ?)",
            [
                (change.run.run_id, change.name, now, change.run.artifact_uri, int(self._experiment_id))
                for change in new
            ],
        )
        execute(
            "UPDATE runs SET name = ? WHERE run_uuid = ?",
            [(change.name, change.run.run_id) for change in changes if change.name != change.run.name],
        )
        execute(
            "UPDATE runs SET status = ?, end_time = ? WHERE run_uuid = ?",
            [
                (change.status, None if change.status == RUNNING else now, change.run.run_id)
                for change in changes
                if change.status is not None
            ],
        )
        execute(
            "INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)"
            " ON CONFLICT (key, run_uuid) DO UPDATE SET value = excluded.value",
            [(key, value[:longest], change.run.run_id) for change in changes for key, value in change.tags.items()],
        )
        execute(
            "INSERT INTO params (key, value, run_uuid) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            [
                (key, str(value)[:longest], change.run.run_id)
                for change in changes
                for key, value in change.params.items()
            ],
        )
        metrics = [
            (name, value, now, int(point[IMAGES_SEEN]), change.run.run_id)
            for change in changes
            for point in change.points
            for name, value in point.items()
        ]
        rest = "(key, value, timestamp, step, is_nan, run_uuid) VALUES (?, ?, ?, ?, FALSE, ?) ON CONFLICT"
        execute(f"INSERT INTO metrics {rest} DO NOTHING", metrics)
        latest = {(entry[0], entry[-1]): entry for entry in metrics}
        execute(
            f"INSERT INTO latest_metrics {rest} (key, run_uuid) DO UPDATE SET value = excluded.value,"
            " timestamp = excluded.timestamp, step = excluded.step, is_nan = excluded.is_nan",
            list(latest.values()),
        )


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
