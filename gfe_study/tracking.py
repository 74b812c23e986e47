"""Writes to MLflow; only the driver uses it.

An experiment holds one study: the parent run describes the study, and each child run is one trial, identified by its
`fingerprint` tag. The step of every metric is the number of images seen. Every call can be repeated: runs are reopened
and stored steps are skipped.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from filelock import FileLock

from gfe_study import mlflow_view, names
from gfe_study.config import InputError
from gfe_study.sqlite_store import RunRow, SqliteStore

URI_VARIABLE = "MLFLOW_TRACKING_URI"
DEFAULT_STORE = "sqlite:///mlflow.db"
UI = "http://127.0.0.1:5000"
"""Address at which `make ui` shows a store that is not a server."""
ARTIFACTS = "mlartifacts"
"""Folder of the artifacts, beside an sqlite store."""

# These are defaults; the user's settings take precedence. A server that is down must not delay a study, and a call
# that MLflow retries by itself may take effect twice, so this module looks up what failed before it delivers it again.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric, Param, Run, RunTag  # noqa: E402
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository  # noqa: E402
from mlflow.utils.mlflow_tags import (  # noqa: E402
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NAME,
    MLFLOW_RUN_NOTE,
)

PARENT = f"tags.{names.ROLE} = '{names.ROLE_STUDY}'"
CHILDREN = f"tags.{names.ROLE} = '{names.ROLE_TRIAL}'"
FINISHED, FAILED, KILLED, RUNNING = "FINISHED", "FAILED", "KILLED", "RUNNING"
METRICS_PER_CALL = 900


class TrackingError(InputError):
    """The tracking store cannot be used; the message names the store and the reason."""


def store_uri() -> str:
    """Return the store's URI: `MLFLOW_TRACKING_URI`, or `mlflow.db` in the working folder."""
    return os.environ.get(URI_VARIABLE) or DEFAULT_STORE


def without_password(uri: str) -> str:
    """Return a store's URI with its password masked."""
    return _without_password(uri, uri)


def _without_password(text: str, uri: str) -> str:
    password = urlparse(uri).password
    return text.replace(f":{password}@", ":***@") if password else text


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def check_sqlite(uri: str) -> None:
    """Raise `TrackingError` if the file of an sqlite store is not a database, `InputError` if it is not writable."""
    path = _sqlite_file(uri)
    if path is None:
        return
    if path.is_file() and path.stat().st_size and not path.read_bytes()[:16].startswith(b"SQLite format 3\0"):
        raise TrackingError(
            f"{path}: not an sqlite database; allowed: {URI_VARIABLE}=sqlite:///FILE or http://HOST:PORT"
        )
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


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # MLflow passes on any exception of its store or the network
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = _without_password(lines[0], uri)[:160] if lines else type(error).__name__
        remedy = f"set {URI_VARIABLE} to sqlite:///FILE or http://HOST:PORT"
        line = _without_password(f"{uri}: the tracking store cannot be used ({reason}); {remedy}", uri)
        raise TrackingError(line) from error


def connect(uri: str) -> MlflowClient:
    """Connect to a store and check that it answers; create a missing sqlite store. Raises `TrackingError`."""
    check_sqlite(uri)
    for logger in ("alembic", "mlflow"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    with _explained(uri):
        path = _sqlite_file(uri)
        if path is not None:
            _make_sqlite(path)
        return _answering(uri)


def _answering(uri: str) -> MlflowClient:
    client = MlflowClient(tracking_uri=uri)
    client.search_experiments(max_results=1)
    return client


def _make_sqlite(path: Path) -> None:
    """Create an sqlite store under a temporary name, then rename it: a kill midway would leave it beyond repair."""
    if path.exists() and path.stat().st_size:
        return
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists() and path.stat().st_size:
            return
        for leftover in path.parent.glob(f".{path.name}.new*"):
            leftover.unlink()
        # The path is not made absolute, because a % or ? in a parent folder's name has a special meaning in a URI. The
        # name is unique, because MLflow keeps one store per URI for the lifetime of the process.
        beside = path.with_name(f".{path.name}.new-{uuid.uuid4().hex}")
        _answering(f"sqlite:///{beside}")
        os.replace(beside, path)


@dataclass(frozen=True)
class RunSpec:
    """The initial content of a trial's run."""

    fingerprint: str
    name: str
    tags: dict[str, str]
    params: dict[str, Any]
    texts: dict[str, str]
    """Text artifacts by file name."""


@dataclass(frozen=True)
class End:
    """How a trial's run ends: its status, further tags, and files to store as artifacts."""

    status: str
    tags: dict[str, str]
    files: list[Path]


@dataclass(frozen=True)
class Delivery:
    """What the store must hold of a trial: all of its points so far, and its end if it has ended."""

    spec: RunSpec
    points: list[dict[str, float]]
    end: End | None = None


@dataclass
class _Known:
    """A run in the store."""

    run_id: str
    artifact_uri: str
    status: str
    tags: dict[str, str]


class Tracker:
    """The runs of one study in the store.

    Raises:
        TrackingError: the store is invalid, unreachable or not writable.
    """

    def __init__(self, study: str, uri: str | None = None) -> None:
        self.uri = uri or store_uri()
        self.study = study
        self.client = connect(self.uri)
        with _explained(self.uri):
            self.experiment_id = self._experiment()
            self._runs = {run.data.tags.get(names.FINGERPRINT, ""): _known(run) for run in self._search(CHILDREN)}
            path = _sqlite_file(self.uri)
            local = path is not None and _local_folder(self.artifact_location) is not None
            self._sqlite = SqliteStore.known(path, self.experiment_id) if path is not None and local else None
        self._unsure: set[str] = set()
        self._open: dict[str, float] = {}
        self.parent_id: str | None = None

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.study)
        if found is None:
            made = self.client.create_experiment(self.study, artifact_location=self._artifact_location())
            found = self.client.get_experiment(made)
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"the experiment {self.study!r} is deleted in the tracking store; restore it or choose another --study"
            )
        self.artifact_location = str(found.artifact_location)
        return str(found.experiment_id)

    def _artifact_location(self) -> str | None:
        if urlparse(self.uri).scheme in ("http", "https", "databricks"):
            return None  # the server decides
        path = _sqlite_file(self.uri)
        folder = path.absolute().parent if path is not None else Path.cwd()
        return (folder / ARTIFACTS / self.study).as_uri()

    def _search(self, wanted: str) -> Iterator[Run]:
        token: str | None = None
        while True:
            page = self.client.search_runs([self.experiment_id], wanted, max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def open_study(self, tags: dict[str, str], description: str, texts: dict[str, str]) -> None:
        """Find or create the parent run, and mark it as running."""
        with _explained(self.uri):
            parents = list(self._search(PARENT))
            if parents:
                self.parent_id = parents[0].info.run_id
                self.client.update_run(self.parent_id, status=RUNNING)
            else:
                given = {names.ROLE: names.ROLE_STUDY, MLFLOW_RUN_NAME: self.study}
                self.parent_id = self.client.create_run(self.experiment_id, tags=given).info.run_id
            self.client.log_batch(
                self.parent_id, tags=[RunTag(*tag) for tag in {**tags, MLFLOW_RUN_NOTE: description}.items()]
            )
            for name, text in texts.items():
                self.client.log_text(self.parent_id, text, name)
            self._describe_experiment(description, texts.get(mlflow_view.STUDY_FILE))

    def _describe_experiment(self, description: str, declared: str | None) -> None:
        there = self.client.get_experiment(self.experiment_id)
        wanted = {MLFLOW_RUN_NOTE: description}
        if declared is not None:
            study, made, note = mlflow_view.read_study(declared), there.creation_time, there.tags.get(MLFLOW_RUN_NOTE)
            wanted = mlflow_view.experiment_tags(study, self.study, self.experiment_id, made or 0, note or "")
        for key, value in wanted.items():
            if there.tags.get(key) != value:
                self.client.set_experiment_tag(self.experiment_id, key, value)

    def close_study(self, status: str, tags: dict[str, str], files: list[Path]) -> None:
        """End the parent run, with tags that name the best trial and with that trial's files."""
        assert self.parent_id is not None
        with _explained(self.uri):
            self.client.log_batch(self.parent_id, tags=[RunTag(*tag) for tag in tags.items()])
            for file in files:
                self.client.log_artifact(self.parent_id, str(file))
            self.client.set_terminated(self.parent_id, status)

    def page(self, path: str) -> str:
        """Return the address of a page of MLflow's UI, on the store's server or on the one of `make ui`."""
        server = urlparse(self.uri).scheme in ("http", "https")
        return f"{without_password(self.uri).rstrip('/') if server else UI}/{path}"

    def is_open(self, fingerprint: str) -> bool:
        """Return whether this process has opened a trial's run, so that only points and the end are missing."""
        return fingerprint in self._open

    def is_closed(self, fingerprint: str) -> bool:
        """Return whether a trial's run exists and is finished, as far as this process knows."""
        run = self._runs.get(fingerprint)
        return run is not None and run.status == FINISHED and fingerprint not in self._open

    def is_running(self, fingerprint: str) -> bool:
        """Return whether a trial's run is marked as running, by this process or by one that was killed."""
        run = self._runs.get(fingerprint)
        return fingerprint in self._open or (run is not None and run.status == RUNNING)

    def bring_level(self, deliveries: Sequence[Delivery]) -> None:
        """Update the runs of trials with deliveries; an sqlite store is updated in a single transaction."""
        if self._sqlite is not None:
            with _explained(self.uri):
                self._write_rows(self._sqlite, deliveries)
            return
        for delivery in deliveries:
            fingerprint, end = delivery.spec.fingerprint, delivery.end
            try:
                self.open_trial(delivery.spec, delivery.points)
                if end is not None:
                    self.close_trial(fingerprint, end.status, end.tags, end.files)
            except TrackingError:
                # The call may have taken effect although its answer was lost: look the run up before the next one.
                self._open.pop(fingerprint, None)
                self._unsure.add(fingerprint)
                raise

    def _write_rows(self, store: SqliteStore, deliveries: Sequence[Delivery]) -> None:
        now = int(time.time() * 1000)
        rows, after = [], []
        for delivery in deliveries:
            spec, end = delivery.spec, delivery.end
            run = self._runs.get(spec.fingerprint)
            new = run is None
            if run is None:
                run_id = uuid.uuid4().hex
                run = _Known(run_id, f"{self.artifact_location}/{run_id}/artifacts", RUNNING, {})
            last = self._open.get(spec.fingerprint, -1.0 if new else store.last_step(run.run_id))
            points = [point for point in delivery.points if point[names.IMAGES_SEEN] > last]
            tags = self._all_tags(spec) if new else {}
            if end is not None:
                tags |= {key: value for key, value in end.tags.items() if value or key in run.tags}
            rows.append(
                RunRow(
                    run.run_id,
                    spec.name,
                    run.artifact_uri,
                    status=RUNNING if end is None else end.status,
                    created=now if new else None,
                    ended=None if end is None else now,
                    tags=tags,
                    params={key: str(value) for key, value in spec.params.items()} if last < 0 else {},
                    metrics=[
                        (name, value, now, int(point[names.IMAGES_SEEN]))
                        for point in points
                        for name, value in point.items()
                    ],
                )
            )
            seen = max([last, *(point[names.IMAGES_SEEN] for point in points)])
            after.append((delivery, run, tags, seen))
            # Artifacts are written before rows, so that a finished run in the store always has them all.
            texts = spec.texts if spec.fingerprint not in self._open else {}
            _keep(run, texts, end.files if end is not None else [])
        store.write(rows)
        for delivery, run, tags, seen in after:
            fingerprint, end = delivery.spec.fingerprint, delivery.end
            self._runs[fingerprint] = run
            run.tags.update(tags)
            run.status = RUNNING if end is None else end.status
            self._open[fingerprint] = seen
            if end is not None:
                del self._open[fingerprint]

    def _all_tags(self, spec: RunSpec) -> dict[str, str]:
        return {
            **spec.tags,
            names.FINGERPRINT: spec.fingerprint,
            names.ROLE: names.ROLE_TRIAL,
            MLFLOW_RUN_NAME: spec.name,
            MLFLOW_PARENT_RUN_ID: self.parent_id or "",
        }

    def open_trial(self, spec: RunSpec, points: list[dict[str, float]] | None = None) -> None:
        """Find or create a trial's run, mark it as running, and log the points that it lacks."""
        points = points or []
        if spec.fingerprint in self._open:
            self.deliver(spec.fingerprint, points)
            return
        with _explained(self.uri):
            run = self._runs.get(spec.fingerprint)
            last = -1.0
            if run is None and spec.fingerprint in self._unsure:
                wanted = f"{CHILDREN} AND tags.{names.FINGERPRINT} = '{spec.fingerprint}'"
                run = next((_known(found) for found in self._search(wanted)), None)
            if run is None:
                # All tags in one call, so that every existing run can be found by its fingerprint.
                run = _known(self.client.create_run(self.experiment_id, tags=self._all_tags(spec)))
            else:
                last = self._last_step(run.run_id)
                if run.status != RUNNING:
                    self.client.update_run(run.run_id, status=RUNNING)
                    run.status = RUNNING
            self._runs[spec.fingerprint] = run
            self._log(run.run_id, points, spec.params if last < 0 else {}, last)
            for name, text in spec.texts.items():
                self.client.log_text(run.run_id, text, name)
            self._open[spec.fingerprint] = max([last, *(point[names.IMAGES_SEEN] for point in points)])

    def deliver(self, fingerprint: str, points: list[dict[str, float]]) -> None:
        """Log the points of an open trial that the store lacks."""
        last = self._open[fingerprint]
        if points and points[-1][names.IMAGES_SEEN] > last:
            with _explained(self.uri):
                self._log(self._runs[fingerprint].run_id, points, {}, last)
            self._open[fingerprint] = points[-1][names.IMAGES_SEEN]

    def close_trial(self, fingerprint: str, status: str, tags: dict[str, str], files: list[Path]) -> None:
        """End an open trial's run, which can be reopened."""
        run = self._runs[fingerprint]
        with _explained(self.uri):
            worth_it = {key: value for key, value in tags.items() if value or key in run.tags}
            self.client.log_batch(run.run_id, tags=[RunTag(*tag) for tag in worth_it.items()])
            for file in files:
                with contextlib.suppress(
                    FileNotFoundError
                ):  # removed meanwhile: another trial took its place among the best
                    self.client.log_artifact(run.run_id, str(file))
            self.client.set_terminated(run.run_id, status)
            run.status = status
            run.tags.update(worth_it)
        self._open.pop(fingerprint, None)

    def keep_decoder(self, fingerprint: str, files: list[Path]) -> None:
        """Store a trial's `KEPT_FILES` unless the run has them; with no files, remove them if the store can."""
        run = self._runs.get(fingerprint)
        if run is None or (run.tags.get(names.DECODER) == "kept") == bool(files):
            return
        with _explained(self.uri):
            for file in files:
                self.client.log_artifact(run.run_id, str(file))
            for name in names.KEPT_FILES if not files else ():
                with contextlib.suppress(NotImplementedError, OSError):
                    get_artifact_repository(run.artifact_uri).delete_artifacts(name)
            self.tag_trial(fingerprint, {names.DECODER: "kept" if files else "removed"})

    def tag_trial(self, fingerprint: str, tags: dict[str, str]) -> None:
        """Set the tags of a trial's run that are missing or differ."""
        run = self._runs.get(fingerprint)
        new = {key: value for key, value in tags.items() if run is not None and run.tags.get(key) != value}
        if run is not None and new:
            with _explained(self.uri):
                self.client.log_batch(run.run_id, tags=[RunTag(*tag) for tag in new.items()])
            run.tags.update(new)

    def supersede(self, fingerprint: str) -> None:
        """Mark a trial's run as superseded: the trial runs again and is logged to a new run."""
        run = self._runs.pop(fingerprint, None)
        if run is not None:
            with _explained(self.uri):
                self.client.set_tag(run.run_id, names.ROLE, names.ROLE_SUPERSEDED)

    def orphans(self) -> list[str]:
        """Return the fingerprints of the runs that are marked as running."""
        return [fingerprint for fingerprint, run in self._runs.items() if run.status == RUNNING]

    def close_orphan(self, fingerprint: str) -> None:
        """Mark a run that no process is writing to as killed."""
        with _explained(self.uri):
            self.client.set_terminated(self._runs[fingerprint].run_id, KILLED)

    def _last_step(self, run_id: str) -> float:
        history = self.client.get_metric_history(run_id, names.IMAGES_SEEN)
        return max((float(entry.step) for entry in history), default=-1.0)

    def _log(self, run_id: str, points: list[dict[str, float]], params: dict[str, Any], last: float) -> None:
        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, int(point[names.IMAGES_SEEN]))
            for point in points
            if point[names.IMAGES_SEEN] > last
            for name, value in point.items()
        ]
        given = [Param(key, str(value)) for key, value in params.items()]
        for start in range(0, max(len(metrics), bool(given)), METRICS_PER_CALL):
            self.client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_CALL], params=given)
            given = []


def _known(run: Run) -> _Known:
    return _Known(run.info.run_id, str(run.info.artifact_uri), str(run.info.status), dict(run.data.tags))


def _keep(run: _Known, texts: dict[str, str], files: list[Path]) -> None:
    """Copy artifacts into a run's local folder."""
    folder = _local_folder(run.artifact_uri)
    if folder is None or not (texts or files):
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile: another trial took its place among the best
            shutil.copyfile(file, folder / file.name)


def _local_folder(uri: str) -> Path | None:
    """Return the folder of an artifact URI if it is local; None otherwise."""
    parts = urlparse(uri)
    if parts.scheme not in ("", "file"):
        return None
    return Path(url2pathname(parts.path))
