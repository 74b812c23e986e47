"""Reading a tracking store that is a database: a few statements for hundreds of runs.

Only four tables that MLflow has had since its first releases are read.
"""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd
import sqlalchemy as sa

from gfe_study.analysis.store.tidy import RUN_ID, Rows
from gfe_study.tracking.database import open_engine
from gfe_study.tracking.uri import scheme

RUNS_AT_ONCE = 100
"""In one statement: while it reads, who writes an sqlite file has to wait."""
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SYSTEM_METRICS = "system/"
"""Beginning of the names of what MLflow logs by itself: their steps are no numbers of images."""

RUNS = sa.table(
    "runs",
    *map(sa.column, ("run_uuid", "name", "status", "start_time", "end_time", "lifecycle_stage", "experiment_id")),
)
TAGS, PARAMS = (sa.table(name, *map(sa.column, ("run_uuid", "key", "value"))) for name in ("tags", "params"))
METRICS = sa.table("metrics", *map(sa.column, ("run_uuid", "key", "value", "is_nan", "step", "timestamp")))


def is_database(uri: str) -> bool:
    """Whether a store's URI is a database's, and not a server's."""
    return scheme(uri) in DATABASES


class Database:
    """The rows of a database; see `tidy` for what the frames hold.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: it cannot be read.
    """

    def __init__(self, uri: str) -> None:
        self._engine = open_engine(uri)
        if scheme(uri) == "sqlite":
            sa.event.listen(self._engine, "connect", lambda made, _: made.execute("PRAGMA query_only = ON"))

    def rows(self, experiment_id: str) -> Rows:
        """The runs of an experiment, deleted ones left out."""
        columns = [RUNS.c.run_uuid.label(RUN_ID), *(RUNS.c[name] for name in ("name", "status"))]
        ours = (RUNS.c.experiment_id == int(experiment_id), RUNS.c.lifecycle_stage == "active")
        runs = self._read(sa.select(*columns, RUNS.c.start_time, RUNS.c.end_time).where(*ours))
        tags, params = (self._of_runs(table, runs[RUN_ID]) for table in (TAGS, PARAMS))
        return Rows(runs, tags, params)

    def history(self, runs: pd.Series) -> pd.DataFrame:
        """Return `run_id`, `key`, `value`, `step` and `timestamp` of every value of the runs' metrics."""
        found = self._of_runs(METRICS, runs, "is_nan", "step", "timestamp")
        values = found["value"].astype("float64").mask(found["is_nan"].astype("bool"))
        return found.drop(columns="is_nan").assign(value=values)

    def _of_runs(self, table: sa.TableClause, runs: pd.Series, *columns: str) -> pd.DataFrame:
        """Run, key and value, and further columns, of the rows of runs; MLflow's own metrics left out."""
        every = (table.c.run_uuid.label(RUN_ID), *(table.c[name] for name in ("key", "value", *columns)))
        wanted = list(runs.unique())
        parts = [wanted[start : start + RUNS_AT_ONCE] for start in range(0, max(1, len(wanted)), RUNS_AT_ONCE)]
        ours = table.c.key.not_like(f"{SYSTEM_METRICS}%")
        read = [self._read(sa.select(*every).where(table.c.run_uuid.in_(part), ours)) for part in parts]
        return pd.concat(read, ignore_index=True)

    def _read(self, statement: sa.Select[Any]) -> pd.DataFrame:
        with self._engine.connect() as connection:
            result = connection.execute(statement)
            assert result.cursor is not None
            # The driver's own rows: SQLAlchemy's, and pandas' look at each value, double the time of many.
            rows, names = result.cursor.fetchall(), list(result.keys())
        columns = zip(*rows, strict=True) if rows else itertools.repeat(())
        return pd.DataFrame({name: list(column) for name, column in zip(names, columns, strict=False)}, dtype="object")
