"""Writes the runs of a study to its tracking store; only the driver uses it.

An experiment holds one study: the parent run describes the study, and each child run is one trial, identified by its
`fingerprint` tag. The step of every metric is the number of images seen. Every call can be repeated: runs are reopened
and stored steps are skipped.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from gfe_study import names
from gfe_study.config import suggestion
from gfe_study.metrics import IMAGES_SEEN
from gfe_study.tracking import views
from gfe_study.tracking.database import PLACEHOLDERS, DatabaseWriter, open_engine
from gfe_study.tracking.runs import FAILED, FINISHED, KILLED, RUNNING, Change, Run, Writer
from gfe_study.tracking.uri import (
    ARTIFACTS,
    TrackingError,
    check_sqlite,
    explained,
    is_server,
    scheme,
    sqlite_file,
    store_uri,
    ui_address,
    without_password,
)

# These are defaults; the user's settings take precedence. A server that is down must not delay a study, and a call
# that MLflow retries by itself may take effect twice, so this module looks up what failed before it delivers it again.
# MLflow's lines about runs and its progress bars would mix with the output of commands.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric, Param, RunTag  # noqa: E402
from mlflow.entities import Run as MlflowRun  # noqa: E402
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository  # noqa: E402
from mlflow.utils.mlflow_tags import (  # noqa: E402
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NAME,
    MLFLOW_RUN_NOTE,
)

PARENT = f"tags.{names.ROLE} = '{names.ROLE_STUDY}'"
METRICS_PER_CALL = 800
"""A call takes 1,000 metrics, parameters and tags together."""
THREADS = 4
"""How many trials are written to a server side by side."""


def connect(uri: str) -> MlflowClient:
    """Connect to a store and check that it answers; create a missing sqlite store. Raises `TrackingError`."""
    check_sqlite(uri)
    for logger in ("alembic", "mlflow"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)  # errors are raised as well, and reported in one line
    with explained(uri):
        path = sqlite_file(uri)
        if path is not None:
            _make_sqlite(path)
        elif scheme(uri) in PLACEHOLDERS:
            open_engine(uri).connect().close()  # MLflow would try for 100 s
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


def experiment_of(study: str, uri: str) -> str:
    """Return the id of a study's experiment. Raises `TrackingError` if the store has none, or cannot be read."""
    client = connect(uri)
    with explained(uri):
        found = client.get_experiment_by_name(study)
        if found is None:
            known = [each.name for each in client.search_experiments(max_results=5) if each.name != "Default"]
            others = suggestion(study, known) if known else "nor another"
            raise TrackingError(f"{without_password(uri)}: holds no study {study!r}; {others}")
    return str(found.experiment_id)


class Tracker:
    """The runs of one study in the store.

    Raises:
        TrackingError: the store is invalid, unreachable or not writable.
    """

    def __init__(self, study: str, uri: str | None = None) -> None:
        self.uri = uri or store_uri()
        self.study = study
        self.client = connect(self.uri)
        self.parent_id: str | None = None
        self._unsure: set[str] = set()
        with explained(self.uri):
            self.experiment_id = self._experiment()
            self._runs = {run.data.tags[names.FINGERPRINT]: _known(run) for run in self._trials()}
            self._writer: Writer = DatabaseWriter.known(
                self.uri, self.experiment_id, self.artifact_location
            ) or ClientWriter(self.client, self.uri, self.experiment_id)

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
        if is_server(self.uri):
            return None  # the server decides
        path = sqlite_file(self.uri)
        folder = path.absolute().parent if path is not None else Path.cwd()
        return (folder / ARTIFACTS / self.study).as_uri()

    def _trials(self) -> Iterator[MlflowRun]:
        """Return the runs of trials that belong to the study, or belonged to it; a trial that runs again has two."""
        for role in (names.ROLE_FORMER, names.ROLE_TRIAL):
            for run in self._search(f"tags.{names.ROLE} = '{role}'"):
                if names.FINGERPRINT in run.data.tags:
                    yield run

    def _search(self, wanted: str) -> Iterator[MlflowRun]:
        token: str | None = None
        while True:
            page = self.client.search_runs([self.experiment_id], wanted, max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _find(self, fingerprint: str) -> Run | None:
        """Look up a run that may have been created although its answer was lost."""
        wanted = f"tags.{names.ROLE} = '{names.ROLE_TRIAL}' AND tags.{names.FINGERPRINT} = '{fingerprint}'"
        return next(map(_known, self._search(wanted)), None)

    def open_study(self, tags: dict[str, str], description: str, texts: dict[str, str]) -> None:
        """Find or create the parent run, and mark it as running."""
        with explained(self.uri):
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
            self._describe_experiment(description, texts.get(views.STUDY_FILE))

    def _describe_experiment(self, description: str, declared: str | None) -> None:
        there = self.client.get_experiment(self.experiment_id)
        wanted = {MLFLOW_RUN_NOTE: description}
        if declared is not None:
            study, made, note = views.read_study(declared), there.creation_time, there.tags.get(MLFLOW_RUN_NOTE)
            wanted = views.experiment_tags(study, self.study, self.experiment_id, made or 0, note or "")
        for key, value in wanted.items():
            if there.tags.get(key) != value:
                self.client.set_experiment_tag(self.experiment_id, key, value)

    def close_study(self, status: str, tags: dict[str, str], files: list[Path]) -> None:
        """End the parent run, with tags that name the best trial and with that trial's files."""
        self.tag_study(tags)
        assert self.parent_id is not None
        with explained(self.uri):
            for file in files:
                self.client.log_artifact(self.parent_id, str(file))
            self.client.set_terminated(self.parent_id, status)

    def page(self, path: str) -> str:
        """Return the address of a page of MLflow's UI, on the store's server or on that of `gfe-study ui`."""
        return f"{ui_address(self.uri)}/{path}"

    def tag_study(self, tags: dict[str, str]) -> None:
        """Set tags of the parent run."""
        assert self.parent_id is not None
        with explained(self.uri):
            self.client.log_batch(self.parent_id, tags=[RunTag(*tag) for tag in tags.items()])

    def fingerprints(self) -> list[str]:
        """Return the trials that have a run, those that no longer belong to the study included."""
        return list(self._runs)

    def is_open(self, fingerprint: str) -> bool:
        """Return whether this process has opened a trial's run, so that only points and the end are missing."""
        run = self._runs.get(fingerprint)
        return run is not None and run.last_step is not None

    def is_closed(self, fingerprint: str) -> bool:
        """Return whether a trial's run exists and is finished, as far as this process knows."""
        run = self._runs.get(fingerprint)
        return run is not None and run.status == FINISHED

    def has_failed(self, fingerprint: str) -> bool:
        """Return whether a trial's run is marked as failed."""
        run = self._runs.get(fingerprint)
        return run is not None and run.status == FAILED

    def is_running(self, fingerprint: str) -> bool:
        """Return whether a trial's run is marked as running, by this process or by one that was killed."""
        run = self._runs.get(fingerprint)
        return run is not None and run.status == RUNNING

    def write(self, changes: Sequence[Change]) -> None:
        """Bring the runs of trials level with changes."""
        for start in range(0, len(changes), self._writer.batch):
            part = changes[start : start + self._writer.batch]
            try:
                with explained(self.uri):
                    lacking = [self._lacking(change) for change in part]
                    written = [change for change in lacking if change is not None]
                    if written:
                        self._writer.write(written)
            except BaseException:
                # The call may have taken effect although its answer was lost: look the run up before the next one.
                for change in part:
                    self._unsure.add(change.fingerprint)
                    if change.fingerprint in self._runs:
                        self._runs[change.fingerprint].last_step = None
                raise
            for change in written:
                self._remember(change)

    def _lacking(self, change: Change) -> Change | None:
        """Return the part of a change that the store lacks; None if that is nothing."""
        run = self._runs.get(change.fingerprint)
        if run is None and change.fingerprint in self._unsure:
            run = self._find(change.fingerprint)
        if run is None:
            if change.status in (None, KILLED):
                return None
            # All tags are written with the run, so that every existing run can be found by its fingerprint.
            tags = {
                **change.initial_tags,
                **{key: value for key, value in change.tags.items() if value},
                names.FINGERPRINT: change.fingerprint,
                names.ROLE: names.ROLE_TRIAL,
                MLFLOW_RUN_NAME: change.name,
                MLFLOW_PARENT_RUN_ID: self.parent_id or "",
            }
            return replace(change, tags=tags, run=Run("", "", change.name, RUNNING, {}, last_step=-1.0))
        name = change.name or run.name
        tags = {key: value for key, value in change.tags.items() if run.tags.get(key, "") != value}
        tags |= {MLFLOW_RUN_NAME: name} if name != run.name else {}
        if change.status is None:
            return replace(change, name=name, tags=tags, run=run) if tags else None
        texts = change.texts if run.last_step is None else {}
        last = run.last_step = self._writer.last_step(run) if run.last_step is None else run.last_step
        points = [point for point in change.points if point[IMAGES_SEEN] > last]
        params = change.params if last < 0 else {}
        return replace(change, name=name, tags=tags, points=points, params=params, texts=texts, run=run)

    def _remember(self, change: Change) -> None:
        run = change.run
        self._runs[change.fingerprint] = run
        run.name = change.name
        run.tags.update(change.tags)
        if change.status is not None:
            run.status = change.status
            if change.status != RUNNING:
                run.last_step = None
            elif change.points:
                run.last_step = change.points[-1][IMAGES_SEEN]

    def kill(self, fingerprint: str) -> None:
        """End a trial's run that nobody writes to; the trial may be continued later."""
        self.write([Change(fingerprint, status=KILLED)])

    def keep_decoder(self, fingerprint: str, files: list[Path]) -> None:
        """Store a trial's `KEPT_FILES` unless the run has them; with no files, remove them if the store can."""
        run = self._runs.get(fingerprint)
        if run is None or (run.tags.get(names.DECODER) == "kept") == bool(files):
            return
        with explained(self.uri):
            for file in files:
                self.client.log_artifact(run.run_id, str(file))
            for name in names.KEPT_FILES if not files else ():
                with contextlib.suppress(NotImplementedError, OSError):
                    get_artifact_repository(run.artifact_uri, tracking_uri=self.uri).delete_artifacts(name)
        self.write([Change(fingerprint, tags={names.DECODER: "kept" if files else "removed"})])

    def supersede(self, fingerprint: str) -> None:
        """Mark a trial's run as superseded: the trial runs again and is logged to a new run."""
        self.write([Change(fingerprint, tags={names.ROLE: names.ROLE_SUPERSEDED})])
        self._runs.pop(fingerprint, None)

    def orphans(self) -> list[str]:
        """Return the fingerprints of the runs that are marked as running."""
        return [fingerprint for fingerprint, run in self._runs.items() if run.status == RUNNING]


class ClientWriter:
    """Writes runs by MLflow's client; for servers and for databases that `DatabaseWriter` does not write."""

    def __init__(self, client: MlflowClient, uri: str, experiment_id: str) -> None:
        self._client = client
        self._uri = uri
        self._experiment_id = experiment_id
        self.batch = THREADS if is_server(uri) else 1

    def last_step(self, run: Run) -> float:
        history = self._client.get_metric_history(run.run_id, IMAGES_SEEN)
        return max((float(entry.step) for entry in history), default=-1.0)

    def write(self, changes: Sequence[Change]) -> None:
        with ThreadPoolExecutor(self.batch, "tracking") as pool:  # leaving it waits for all, also after an error
            for written in [pool.submit(self._write, change) for change in changes]:
                written.result()

    def _write(self, change: Change) -> None:
        run = change.run
        tags = change.tags
        if change.is_new:
            made = _known(self._client.create_run(self._experiment_id, tags=tags))
            run.run_id, run.artifact_uri, tags = made.run_id, made.artifact_uri, {}
        if change.name != run.name:
            self._client.update_run(run.run_id, name=change.name)
        if change.status == RUNNING and run.status != RUNNING:
            self._client.update_run(run.run_id, status=RUNNING)
        self._log(change, tags)
        self._keep(change)
        if change.status not in (None, RUNNING):
            self._client.set_terminated(run.run_id, change.status)

    def _log(self, change: Change, tags: dict[str, str]) -> None:
        """Write tags, parameters and points, in one call if they are few enough."""
        now = int(time.time() * 1000)
        params = [Param(key, str(value)) for key, value in change.params.items()]
        given = [RunTag(*tag) for tag in tags.items()]
        parts: list[list[Metric]] = [[]] if params or given else []
        for point in change.points:  # never divided: the next delivery begins after the last point that is there
            metrics = [Metric(name, value, now, int(point[IMAGES_SEEN])) for name, value in point.items()]
            if not parts or len(parts[-1]) + len(metrics) > METRICS_PER_CALL:
                parts.append([])
            parts[-1].extend(metrics)
        for part in parts:
            self._client.log_batch(change.run.run_id, metrics=part, params=params, tags=given)
            params, given = [], []

    def _keep(self, change: Change) -> None:
        """Store artifacts; MLflow's client would read the whole run before it stores the first."""
        if not (change.texts or change.files):
            return
        artifacts = get_artifact_repository(change.run.artifact_uri, tracking_uri=self._uri)
        with tempfile.TemporaryDirectory() as folder:
            for name, text in change.texts.items():
                file = Path(folder) / name
                file.write_text(text, encoding="utf-8")
                artifacts.log_artifact(str(file))
        for file in change.files:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile: another trial took its place
                artifacts.log_artifact(str(file))


def _known(run: MlflowRun) -> Run:
    about = run.info
    return Run(about.run_id, str(about.artifact_uri), str(about.run_name), str(about.status), dict(run.data.tags))
