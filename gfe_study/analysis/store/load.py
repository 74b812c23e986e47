"""The tracking store as tidy pandas frames: the only way from MLflow to the analysis."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import sqlalchemy as sa
from mlflow import MlflowClient
from mlflow.entities import Experiment, Run
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.file_utils import get_local_path_or_none
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from mlflow.utils.rest_utils import http_request, verify_rest_response

from gfe_study import names
from gfe_study.analysis.store.database import SYSTEM_METRICS, Database, is_database
from gfe_study.analysis.store.tidy import RUN_ID, Rows, points_frame, runs_frame
from gfe_study.config import InputError, read_yaml
from gfe_study.tracking.client import PARENT, connect
from gfe_study.tracking.uri import ARTIFACTS, explained, scheme, store_uri, ui_address
from gfe_study.tracking.views import STUDY_FILE

REPORT = "report"
"""Folder of the report among the artifacts of a study's own run."""
DEFAULT_EXPERIMENT = "Default"
PAGE = 1000
BULK_PATH = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
BULK_RUNS = 80
"""Runs in one call: a server takes 100, and the line of a request may have 4,094 characters."""
BULK_VALUES = 25_000
"""A server returns at most this many values, without saying that there are more."""


@dataclass(frozen=True)
class Parent:
    """A study's own run: `status` and `tags` as MLflow has them, times in UTC."""

    run_id: str
    status: str
    tags: dict[str, str]
    start_time: pd.Timestamp
    end_time: pd.Timestamp | None


class _Reader(Protocol):
    def rows(self, experiment_id: str) -> Rows: ...

    def history(self, runs: pd.Series) -> pd.DataFrame: ...


class Store:
    """The studies of a tracking store.

    Files downloaded by `artifact` exist for the lifetime of this object.

    Args:
        uri: of the store; `MLFLOW_TRACKING_URI`, or `mlflow.db` in the working folder, if not given.

    Raises:
        TrackingError: the URI names no store, or it cannot be reached; every method may raise this.
        InputError: of every method that takes a study: the store has no such study; the message names those it has.
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri or store_uri()
        self._client = connect(self.uri)
        self._reader: _Reader = Database(self.uri) if is_database(self.uri) else _Server(self._client, self.uri)
        self._downloads: Path | None = None

    def studies(self) -> list[str]:
        """Names of the studies, in alphabetical order."""
        with explained(self.uri, "read"):
            return sorted(found.name for found in self._experiments() if found.name != DEFAULT_EXPERIMENT)

    def frames(self, study: str) -> tuple[pd.DataFrame, pd.DataFrame, int]:
        """Return the runs of a study, their points, and how many runs no longer belong to the study.

        The runs are one row per trial of the study, by start time; deleted, superseded and former ones are excluded.
        A run without the tags of a trial (a stranger's, or one that crashed early) is a row with empty fields; a
        trial that several configurations share is a row for each. Columns, of which all but the last two kinds are
        always there:

        - `run_id`, `name`, `status` (MLflow's), `start_time`, `end_time` (UTC; `NaT` while it runs);
        - `state`: `finished`, `stopped` (early), `failed`, `running`, `killed` or `scheduled`;
        - `arm` ("" without arms), `stage`, `number` of the configuration in its arm (that of the tag, else its place
          by start time; `NA` without either), `seed` (`NA` if not known);
        - `fingerprint`, `group`, `method`, `preset`, `dataset`, `dataset_sha256`, `value_noun`, `unit`, `device`,
          `host`, `gfe_study_version`, `git_commit`, `git_dirty`, `versions`, `failure`, `stopped_early`,
          `reused_from`: text, "" if not known;
        - `entropy_floor`, in the unit of the losses; NaN if there is none;
        - `diverged`, `failed`: bool;
        - the metrics of `metrics.STANDARD`, and any others that were logged: the last finite
          value;
        - `params.<dotted key>`: text, missing where it was not logged.

        The points are one row per (trial, images seen), in that order. Columns: `run_id`, `fingerprint`,
        `images_seen` (the step), the metrics of `metrics.STANDARD` and any others that were logged (where one was
        logged several times, the last), and remarks: `repeated` (a metric was logged there more than once), `late` (it
        was logged after a point with more images), `not_finite` (names of the metrics that are NaN or infinite there,
        separated by commas).

        Raises:
            InputError: the last start of the study ended before it had brought the runs level with the declaration.
        """
        self._check_level(study)
        experiment = self._experiment(study)
        with explained(self.uri, "read"):
            rows = self._reader.rows(experiment.experiment_id).trials()
            points = points_frame(rows, self._reader.history(rows.runs[RUN_ID]))
        declared = self.declaration(study)
        armless = declared is not None and not declared.get("scientific")
        return runs_frame(rows, points, armless=armless), points, rows.num_former

    def _check_level(self, study: str) -> None:
        run = self._parent_run(study)
        levelled = run.data.tags.get(names.LEVELLED) if run is not None else None
        file = self.artifact(run.info.run_id, STUDY_FILE) if run is not None else None
        if levelled and file is not None and hashlib.sha256(file.read_bytes()).hexdigest() != levelled:
            raise InputError(
                f"study {study!r}: its last start ended before its runs were brought level with its declaration; "
                "resume the study first"
            )

    def parent(self, study: str) -> Parent | None:
        """The study's own run; None of an experiment that has none."""
        run = self._parent_run(study)
        if run is None:
            return None
        start, end = (
            pd.Timestamp(time, unit="ms", tz="UTC") if time else None
            for time in (run.info.start_time, run.info.end_time)
        )
        assert start is not None
        return Parent(run.info.run_id, run.info.status, dict(run.data.tags), start, end)

    def declaration(self, study: str) -> dict[str, Any] | None:
        """The study as it was declared, for `config.Study`; None where the store does not hold it.

        Raises:
            InputError: it is no YAML.
        """
        run = self._parent_run(study)
        file = self.artifact(run.info.run_id, STUDY_FILE) if run is not None else None
        return read_yaml(file) if file is not None else None

    def question(self, study: str) -> str:
        """What the study asks: as it was declared, else the note of its own run, or of its experiment."""
        declared = self.declaration(study) or {}
        run = self._parent_run(study)
        noted = run.data.tags if run is not None else self._experiment(study).tags
        return str(declared.get("question") or noted.get(MLFLOW_RUN_NOTE, ""))

    def runs_page(self, study: str) -> str:
        """Address of a study's runs in MLflow's UI, on the store's server or on that of `gfe-study ui`."""
        with explained(self.uri, "read"):
            return f"{ui_address(self.uri)}/#/experiments/{self._experiment(study).experiment_id}/runs"

    def artifact(self, run_id: str, name: str) -> Path | None:
        """A file among a run's artifacts, here or brought here; None if it is not there."""
        with explained(self.uri, "read"):
            folder = self._folder(self._client.get_run(run_id))
            if folder is not None:
                return folder / name if (folder / name).exists() else None
            if self._downloads is None:
                self._downloads = Path(tempfile.mkdtemp(prefix="gfe-study-"))
                weakref.finalize(self, shutil.rmtree, self._downloads, ignore_errors=True)
            file = self._downloads / run_id / name
            if not file.exists():
                above = name.rpartition("/")[0]
                if name not in {entry.path for entry in self._client.list_artifacts(run_id, above or None)}:
                    return None
                file.parent.mkdir(parents=True, exist_ok=True)
                self._client.download_artifacts(run_id, name, str(file.parent))
            return file

    def log_report(self, study: str, folder: Path) -> None:
        """Keep all files of a folder as artifacts of the study's own run, under `report/`.

        Raises:
            InputError: the study has no run of its own.
        """
        run = self._parent_run(study)
        if run is None:
            raise InputError(f"study {study!r} has no run of its own in the store, to keep a report with")
        with explained(self.uri, "read"):
            there = self._folder(run)
            if there is None:
                self._client.log_artifacts(run.info.run_id, str(folder), REPORT)
            else:
                shutil.copytree(folder, there / REPORT, dirs_exist_ok=True)

    def _experiments(self) -> Iterator[Experiment]:
        token: str | None = None
        while True:
            page = self._client.search_experiments(max_results=PAGE, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _experiment(self, study: str) -> Experiment:
        with explained(self.uri, "read"):
            found = self._client.get_experiment_by_name(study)
        if found is None:
            known = ", ".join(self.studies()) or "none yet"
            raise InputError(f"study {study!r} is not in the store; allowed: {known}")
        if found.lifecycle_stage != "active":
            raise InputError(f"study {study!r} is deleted in the store; restore its experiment")
        return found

    def _parent_run(self, study: str) -> Run | None:
        experiment = self._experiment(study)
        with explained(self.uri, "read"):
            found = self._client.search_runs([experiment.experiment_id], PARENT, max_results=1)
        return found[0] if found else None

    def _folder(self, run: Run) -> Path | None:
        """The folder of a run's artifacts on this machine; None if they are elsewhere."""
        local = get_local_path_or_none(run.info.artifact_uri)
        if local is None:
            return None
        folder = Path(local)
        if self.uri.startswith("sqlite") and not folder.exists():
            # MLflow stores absolute paths: of a store that was moved, artifacts are beside it.
            file = Path(sa.make_url(self.uri).database or "").absolute()
            study = self._client.get_experiment(run.info.experiment_id).name
            beside = file.parent / ARTIFACTS / study / run.info.run_id / "artifacts"
            return beside if beside.exists() else folder
        return folder


class _Server:
    """The rows of a tracking server; see `tidy` for what the frames hold."""

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self._client = client
        self._uri = uri
        self._bulk = scheme(uri) in ("http", "https")
        self._logged: dict[str, list[str]] = {}

    def rows(self, experiment_id: str) -> Rows:
        runs = list({run.info.run_id: run for run in self._runs(experiment_id)}.values())
        about = [
            (run.info.run_id, run.info.run_name, run.info.status, run.info.start_time, run.info.end_time)
            for run in runs
        ]
        self._logged = {run.info.run_id: list(run.data.metrics) for run in runs}
        tags, params = (
            [(run.info.run_id, *pair) for run in runs for pair in getattr(run.data, kind).items()]
            for kind in ("tags", "params")
        )
        long = [RUN_ID, "key", "value"]
        return Rows(
            pd.DataFrame(about, columns=[RUN_ID, "name", "status", "start_time", "end_time"]),
            pd.DataFrame(tags, columns=long),
            pd.DataFrame(params, columns=long),
        )

    def _runs(self, experiment_id: str) -> Iterator[Run]:
        token: str | None = None
        while True:  # oldest first, so that runs begun meanwhile shift no page
            order = ["attributes.start_time ASC"]
            page = self._client.search_runs([experiment_id], order_by=order, max_results=PAGE, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def history(self, runs: pd.Series) -> pd.DataFrame:
        logged: dict[str, list[str]] = defaultdict(list)
        for run_id in runs:
            for key in self._logged[run_id]:
                if not key.startswith(SYSTEM_METRICS):
                    logged[key].append(run_id)
        values = [
            (run_id, key, step, timestamp, value)
            for key, its_runs in logged.items()
            for start in range(0, len(its_runs), BULK_RUNS)
            for run_id, step, timestamp, value in self._values(key, its_runs[start : start + BULK_RUNS])
        ]
        return pd.DataFrame(values, columns=[RUN_ID, "key", "step", "timestamp", "value"])

    def _values(self, key: str, runs: list[str]) -> Iterator[tuple[str, int, int, float]]:
        found = self._in_bulk(key, runs) if self._bulk else None
        if found is None or (len(found) >= BULK_VALUES and len(runs) == 1):
            for run_id in runs:
                for entry in self._client.get_metric_history(run_id, key):
                    yield run_id, entry.step, entry.timestamp, entry.value
        elif len(found) >= BULK_VALUES:
            yield from self._values(key, runs[: len(runs) // 2])
            yield from self._values(key, runs[len(runs) // 2 :])
        else:
            yield from ((entry["run_id"], entry["step"], entry["timestamp"], entry["value"]) for entry in found)

    def _in_bulk(self, key: str, runs: list[str]) -> list[dict[str, Any]] | None:
        """Every value of a metric in many runs; None of a server that does not know the call."""
        query = {"run_id": runs, "metric_key": key, "max_results": BULK_VALUES}
        answer = http_request(get_default_host_creds(self._uri), BULK_PATH, "GET", params=query)
        if answer.status_code in (404, 405, 501):
            self._bulk = False
            return None
        found: list[dict[str, Any]] = verify_rest_response(answer, BULK_PATH).json()["metrics"]
        return found
