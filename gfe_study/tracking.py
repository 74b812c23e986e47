"""MLflow, written to by the driver alone.

An experiment is a study, its parent run the study's record, a child run one trial, found again by its
`fingerprint` tag. The step of every metric is the number of images seen. Every call can be repeated: runs are
reopened, stored steps are skipped.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from filelock import FileLock

from gfe_study import names
from gfe_study.config import InputError

URI_VARIABLE = "MLFLOW_TRACKING_URI"
DEFAULT_STORE = "sqlite:///mlflow.db"

# Defaults only: what the user has set goes before. A server that is down must not hold a study up.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric, Param, Run, RunTag  # noqa: E402
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
    """The tracking store cannot be used; the message names it and says why."""


def store_uri() -> str:
    """The store: `MLFLOW_TRACKING_URI`, or `mlflow.db` in the working folder."""
    return os.environ.get(URI_VARIABLE) or DEFAULT_STORE


def _without_password(text: str, uri: str) -> str:
    password = urlparse(uri).password
    return text.replace(f":{password}@", ":***@") if password else text


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def check_sqlite(uri: str) -> None:
    """Raise `TrackingError` if an sqlite store's file is no database or cannot be written."""
    path = _sqlite_file(uri)
    if path is None:
        return
    if path.is_file() and path.stat().st_size and not path.read_bytes()[:16].startswith(b"SQLite format 3\0"):
        raise TrackingError(
            f"{path}: not an sqlite database; allowed: {URI_VARIABLE}=sqlite:///FILE or http://HOST:PORT"
        )
    writable(path.absolute().parent, f"set {URI_VARIABLE} to a store elsewhere")


def writable(folder: Path, remedy: str) -> None:
    """Raise `InputError` unless files can be made in `folder`, a mode without write bits counting as no."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.stat().st_mode & 0o222:  # root could write there all the same
        raise InputError(f"{there}: is marked read-only; {remedy}")
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
    except Exception as error:  # MLflow hands on whatever its store or the network raised
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = _without_password(lines[0], uri)[:160] if lines else type(error).__name__
        remedy = f"set {URI_VARIABLE} to sqlite:///FILE or http://HOST:PORT"
        line = _without_password(f"{uri}: the tracking store cannot be used ({reason}); {remedy}", uri)
        raise TrackingError(line) from error


def connect(uri: str) -> MlflowClient:
    """A client of a store that answers; an sqlite store is made if it is not there. Raises `TrackingError`."""
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
    """Make an sqlite store beside its place and rename it: one half made by a killed process cannot be mended."""
    if path.exists() and path.stat().st_size:
        return
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists() and path.stat().st_size:
            return
        beside = path.absolute().with_name(f".{path.name}.new")
        for suffix in ("", "-journal", "-wal", "-shm"):
            beside.with_name(beside.name + suffix).unlink(missing_ok=True)
        _answering(f"sqlite:///{beside}")
        os.replace(beside, path)


@dataclass(frozen=True)
class RunSpec:
    """What a trial's run is opened with."""

    fingerprint: str
    name: str
    tags: dict[str, str]
    params: dict[str, Any]
    texts: dict[str, str]
    """Artifacts given as text, by file name."""


class Tracker:
    """The runs of one study in the store.

    Raises:
        TrackingError: the store is none, cannot be reached, or cannot be written.
    """

    def __init__(self, study: str, uri: str | None = None) -> None:
        self.uri = uri or store_uri()
        self.study = study
        self.client = connect(self.uri)
        with _explained(self.uri):
            self.experiment_id = self._experiment()
            self._runs = {run.data.tags.get(names.FINGERPRINT, ""): run for run in self._search(CHILDREN)}
        self._open: dict[str, float] = {}
        self.parent_id: str | None = None

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.study)
        if found is not None and found.lifecycle_stage != "active":
            raise TrackingError(
                f"the experiment {self.study!r} is deleted in the tracking store; restore it, or give another --study"
            )
        if found is not None:
            return str(found.experiment_id)
        return str(self.client.create_experiment(self.study, artifact_location=self._artifact_location()))

    def _artifact_location(self) -> str | None:
        if urlparse(self.uri).scheme in ("http", "https", "databricks"):
            return None  # the server's affair
        path = _sqlite_file(self.uri)
        folder = path.absolute().parent if path is not None else Path.cwd()
        return (folder / "mlartifacts" / self.study).as_uri()

    def _search(self, wanted: str) -> Iterator[Run]:
        token: str | None = None
        while True:
            page = self.client.search_runs([self.experiment_id], wanted, max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def open_study(self, tags: dict[str, str], description: str, texts: dict[str, str]) -> None:
        """Find or make the parent run, and mark it running."""
        with _explained(self.uri):
            parents = list(self._search(PARENT))
            if parents:
                self.parent_id = parents[0].info.run_id
                self.client.update_run(self.parent_id, status=RUNNING)
            else:
                given = {names.ROLE: names.ROLE_STUDY, MLFLOW_RUN_NAME: self.study}
                self.parent_id = self.client.create_run(self.experiment_id, tags=given).info.run_id
                self.client.set_experiment_tag(self.experiment_id, MLFLOW_RUN_NOTE, description)
            self.client.log_batch(
                self.parent_id, tags=[RunTag(*tag) for tag in {**tags, MLFLOW_RUN_NOTE: description}.items()]
            )
            for name, text in texts.items():
                self.client.log_text(self.parent_id, text, name)

    def close_study(self, status: str, tags: dict[str, str], files: list[Path]) -> None:
        """End the parent run, with tags that name the best trial, and that trial's files."""
        assert self.parent_id is not None
        with _explained(self.uri):
            self.client.log_batch(self.parent_id, tags=[RunTag(*tag) for tag in tags.items()])
            for file in files:
                self.client.log_artifact(self.parent_id, str(file))
            self.client.set_terminated(self.parent_id, status)

    def is_closed(self, fingerprint: str) -> bool:
        """Whether a trial's run is there and finished, as of the last look."""
        run = self._runs.get(fingerprint)
        return run is not None and run.info.status == FINISHED and fingerprint not in self._open

    def is_running(self, fingerprint: str) -> bool:
        """Whether a trial's run is marked running, by this process or by one that was killed."""
        run = self._runs.get(fingerprint)
        return fingerprint in self._open or (run is not None and run.info.status == RUNNING)

    def open_trial(self, spec: RunSpec) -> None:
        """Find or make a trial's run, and mark it running. Does nothing if this process has it open."""
        if spec.fingerprint in self._open:
            return
        with _explained(self.uri):
            run = self._runs.get(spec.fingerprint)
            if run is None:
                # All tags at once, so that a run that exists can always be found again by its fingerprint.
                tags = {
                    **spec.tags,
                    names.FINGERPRINT: spec.fingerprint,
                    names.ROLE: names.ROLE_TRIAL,
                    MLFLOW_RUN_NAME: spec.name,
                    MLFLOW_PARENT_RUN_ID: self.parent_id or "",
                }
                run = self.client.create_run(self.experiment_id, tags=tags)
            elif run.info.status != RUNNING:
                self.client.update_run(run.info.run_id, status=RUNNING)
            run_id = run.info.run_id
            self.client.log_batch(run_id, params=[Param(key, str(value)) for key, value in spec.params.items()])
            for name, text in spec.texts.items():
                self.client.log_text(run_id, text, name)
            self._open[spec.fingerprint] = self._last_step(run_id)
            self._runs[spec.fingerprint] = run

    def deliver(self, fingerprint: str, points: list[dict[str, float]]) -> None:
        """Log those points of an open trial that the store does not hold yet."""
        last = self._open[fingerprint]
        new = [point for point in points if point[names.IMAGES_SEEN] > last]
        if new:
            with _explained(self.uri):
                self._log(self._runs[fingerprint].info.run_id, new)
            self._open[fingerprint] = new[-1][names.IMAGES_SEEN]

    def close_trial(self, fingerprint: str, status: str, tags: dict[str, str], files: list[Path]) -> None:
        """End an open trial's run. It can be opened again."""
        run = self._runs[fingerprint]
        with _explained(self.uri):
            worth_it = {key: value for key, value in tags.items() if value or key in run.data.tags}
            self.client.log_batch(run.info.run_id, tags=[RunTag(*tag) for tag in worth_it.items()])
            for file in files:
                self.client.log_artifact(run.info.run_id, str(file))
            self.client.set_terminated(run.info.run_id, status)
            self._runs[fingerprint] = self.client.get_run(run.info.run_id)
        self._open.pop(fingerprint, None)

    def orphans(self) -> list[str]:
        """Fingerprints of runs that are marked running."""
        return [fingerprint for fingerprint, run in self._runs.items() if run.info.status == RUNNING]

    def close_orphan(self, fingerprint: str) -> None:
        """Mark a run that nobody is writing to as killed."""
        with _explained(self.uri):
            self.client.set_terminated(self._runs[fingerprint].info.run_id, KILLED)

    def _last_step(self, run_id: str) -> float:
        history = self.client.get_metric_history(run_id, names.IMAGES_SEEN)
        return max((float(entry.step) for entry in history), default=-1.0)

    def _log(self, run_id: str, points: list[dict[str, float]]) -> None:
        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, int(point[names.IMAGES_SEEN])) for point in points for name, value in point.items()
        ]
        for start in range(0, len(metrics), METRICS_PER_CALL):
            self.client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_CALL])


def provenance(folder: Path) -> dict[str, str]:
    """Tags that say where a run comes from: host, and git commit and state of `folder` where there are any."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    tags = {names.HOST: socket.gethostname()}
    commit = git("rev-parse", "HEAD")
    if commit:
        tags[names.GIT_COMMIT] = commit
        tags[names.GIT_DIRTY] = str(bool(git("status", "--porcelain", "--untracked-files=no"))).lower()
    return tags
