"""MLflow on a real sqlite store: found again, never twice, nothing lost."""

import contextlib
import sqlite3
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from stores import fresh

from gfe_study import names
from gfe_study.config import InputError
from gfe_study.interrupts import Interrupted
from gfe_study.metrics import DIVERGED, IMAGES_SEEN, VAL_LOSS
from gfe_study.tracking import client as client_module
from gfe_study.tracking.client import ClientWriter, Tracker, connect
from gfe_study.tracking.database import DatabaseWriter
from gfe_study.tracking.runs import FAILED, FINISHED, KILLED, RUNNING, Change
from gfe_study.tracking.uri import (
    DEFAULT_STORE,
    URI_VARIABLE,
    TrackingError,
    check_sqlite,
    explained,
    masked,
    without_password,
    writable,
)

OPENING = Change(
    "f" * 16,
    "gfe·amd seed 0",
    RUNNING,
    initial_tags={names.SEED: "0"},
    params={"solver.beta": 0.75},
    texts={names.TRIAL_FILE: "seed: 0\n"},
)


def point(images: int) -> dict[str, float]:
    return {IMAGES_SEEN: float(images), VAL_LOSS: 1 / images, DIVERGED: 0.0}


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return fresh(tmp_path / "store.db")


def start(uri: str) -> Tracker:
    tracker = Tracker("amd", uri)
    tracker.open_study({names.SPACE: "amd.yaml"}, "Which?", {"study.yaml": "question: Which?\n"})
    return tracker


def steps(uri: str, run_id: str, metric: str = VAL_LOSS) -> list[int]:
    return [entry.step for entry in MlflowClient(tracking_uri=uri).get_metric_history(run_id, metric)]


def test_a_trial_stays_one_run_over_restarts(uri: str) -> None:
    for reached in (1, 2, 3):  # each turn a driver that is killed without a word
        tracker = start(uri)
        points = [point(480 * k) for k in range(1, reached + 1)]
        tracker.write([replace(OPENING, points=points)])
    tracker.write([replace(OPENING, status=FINISHED, points=points, tags={DIVERGED: "false"})])
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([tracker.experiment_id])
    assert sorted(run.data.tags[names.ROLE] for run in runs) == [names.ROLE_STUDY, names.ROLE_TRIAL]
    child = next(run for run in runs if run.data.tags[names.ROLE] == names.ROLE_TRIAL)
    assert child.info.status == FINISHED
    assert child.data.tags["mlflow.parentRunId"] == tracker.parent_id
    assert child.data.params == {"solver.beta": "0.75"}
    assert steps(uri, child.info.run_id) == [480, 960, 1440]
    assert steps(uri, child.info.run_id, IMAGES_SEEN) == [480, 960, 1440]
    assert [file.path for file in client.list_artifacts(child.info.run_id)] == [names.TRIAL_FILE]


def test_runs_left_by_a_killed_driver_are_orphans(uri: str) -> None:
    start(uri).write([OPENING])
    tracker = start(uri)
    assert tracker.orphans() == [OPENING.fingerprint]
    assert tracker.is_running(OPENING.fingerprint)
    tracker.kill(OPENING.fingerprint)
    assert start(uri).orphans() == []


def test_a_closed_trial_can_be_opened_again(uri: str) -> None:
    tracker = start(uri)
    tracker.write([replace(OPENING, points=[point(480)])])
    tracker.kill(OPENING.fingerprint)
    assert not tracker.is_closed(OPENING.fingerprint)
    tracker.write([replace(OPENING, points=[point(480), point(960)])])
    tracker.write([replace(OPENING, status=FINISHED, points=[point(480), point(960)])])
    assert tracker.is_closed(OPENING.fingerprint)
    run = next(r for r in tracker.client.search_runs([tracker.experiment_id]) if names.FINGERPRINT in r.data.tags)
    assert steps(uri, run.info.run_id) == [480, 960]


def test_a_restart_goes_on_with_the_parent_run(uri: str) -> None:
    """The parent run names the best trial of the last start."""
    first = start(uri)
    first.close_study(KILLED, {names.BEST_FINGERPRINT: "a"}, [])
    second = start(uri)
    assert second.parent_id == first.parent_id
    second.close_study(FINISHED, {names.BEST_FINGERPRINT: "b"}, [])
    assert second.parent_id is not None
    parent = second.client.get_run(second.parent_id)
    assert (parent.info.status, parent.data.tags[names.BEST_FINGERPRINT]) == (FINISHED, "b")


def test_a_deleted_experiment_is_reported_as_such(uri: str) -> None:
    tracker = start(uri)
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(InputError, match="'amd' is deleted"):
        start(uri)


def test_a_store_in_a_folder_with_odd_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a URI, % and ? mean something; in a folder's name they do not."""
    folder = tmp_path / "per%20cent what?x=1 hash#q ünï"
    folder.mkdir()
    monkeypatch.chdir(folder)
    connect(DEFAULT_STORE)
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", ".mlflow.db.lock"}
    assert list(tmp_path.iterdir()) == [folder]


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    file.write_text("remember the milk, and to make backups of the store")
    with pytest.raises(InputError, match=r"notes\.db: not an sqlite database"):
        check_sqlite(f"sqlite:///{file}")
    assert file.read_text().startswith("remember")


@pytest.mark.parametrize(
    "address",
    ["nosuch://place", "http://127.0.0.1:9", "postgresql://127.0.0.1:9/runs", "sqlite:////proc/none/store.db"],
)
def test_a_store_that_cannot_be_used_is_one_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And soon: MLflow itself tries a database for 100 s."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        connect(address)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "address",
    [
        "http://me:hunter2@127.0.0.1:9",
        "http://me:%25hunter2%21@127.0.0.1:9",
        "http://me:1/hunter2@x@127.0.0.1:9",  # neither / nor @ is encoded, as they should be
        "http://me:x@hunter2@127.0.0.1:9",
        "http://me:hunter2[@127.0.0.1:9",
        "postgresql://me:hunter2@127.0.0.1:9/runs",
        "postgresql://me:hunter2@127.0.0.1:nine/runs",
        "postgresql:///runs?host=127.0.0.1&port=9&user=me&password=hunter2",
    ],
)
def test_a_password_in_the_address_is_not_shown(address: str) -> None:
    with pytest.raises(InputError) as caught:
        connect(address)
    assert str(caught.value).startswith(without_password(address))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "text", "shown"),
    [
        ("https://me:p%20w%2Fx@db", "login as me with p w/x failed", "login as me with *** failed"),  # decoded
        ("https://me:p%20w%2Fx@db", "https://me:p%20w%2Fx@db/api: no answer", "https://me:***@db/api: no answer"),
        ("https://me:p%20w%2Fx@db", "a clip w/x, a p w/xs", "a clip w/x, a p w/xs"),
        ("https://me:c++%2F@db", "'c++/' is refused", "'***' is refused"),
        ("https://me:secret/x@db", "the port 'secret' is no number", "the port '***' is no number"),
        ("postgresql:///runs?user=me&password=p+w", "me, p w: refused", "me, ***: refused"),
    ],
)
def test_a_password_is_masked_in_any_form(uri: str, text: str, shown: str) -> None:
    assert masked(text, uri) == shown


def test_a_missing_driver_names_the_extra(
    typed: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(URI_VARIABLE, "postgresql://me:hunter2@127.0.0.1:9/runs")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    code, out, err = typed("sweep", "smoke", "--json")
    assert (code, out) == (2, "")
    given = f"{URI_VARIABLE}: given postgresql://me:***@127.0.0.1:9/runs"
    assert f"error: {given}; psycopg is not installed; pip install 'gfe-study[postgres]'\n" in err


def test_even_root_may_not_use_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(InputError, match="choose another"):
            writable(tmp_path, "choose another")
    finally:
        tmp_path.chmod(0o755)


def delivered(uri: str, folder: Path, *, bulk: bool) -> dict[str, Any]:
    """What a store holds of three trials, one of them interrupted, after two starts."""
    (folder / names.RECONSTRUCTION).write_bytes(b"a picture")
    tags, params = {names.SEED: "0", names.ARM: "a"}, {"optim.lr": 1e-3, "x": None}
    aa, bb, cc = (
        replace(OPENING, fingerprint=name, name=f"run of {name}", initial_tags=tags, params=params)
        for name in ("aa", "bb", "cc")
    )
    two = [point(32), point(64)]
    ended = {DIVERGED: "false", names.FAILURE: ""}
    picture = [folder / names.RECONSTRUCTION]
    for start in range(2):
        tracker = Tracker("both", uri)
        assert isinstance(tracker._writer, DatabaseWriter)
        if not bulk:
            tracker._writer = ClientWriter(tracker.client, uri, tracker.experiment_id)
        tracker.open_study({}, "?", {})
        if start == 0:
            tracker.write([aa, replace(bb, points=[point(32)])])
            tracker.write([replace(aa, status=FINISHED, tags=ended, points=two, files=picture)])
            assert tracker.is_closed("aa")
            assert tracker.is_running("bb")
        else:
            tracker.write([replace(bb, points=two)])
            failed = replace(bb, status=FAILED, tags={names.FAILURE: "no more"}, points=two)
            tracker.write([failed, cc])
            assert tracker.orphans() == ["cc"]
            tracker.write([Change("aa", "another name", tags={names.ARM: "b", names.SHARED_BY: ""})])
            tracker.write(
                [Change("cc", tags={names.SHARED_BY: "[]"}), Change("never seen", "x", tags={names.ARM: "x"})]
            )
            tracker.write([Change("cc", tags={names.SHARED_BY: ""})])
            tracker.kill("cc")
    found = {}
    for run in tracker.client.search_runs([tracker.experiment_id], f"tags.{names.ROLE} = '{names.ROLE_TRIAL}'"):
        tags = {key: value for key, value in run.data.tags.items() if key != "mlflow.parentRunId"}
        assert run.data.tags["mlflow.parentRunId"] == tracker.parent_id
        history = {
            key: [(entry.step, entry.value) for entry in tracker.client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }
        artifacts = sorted(entry.path for entry in tracker.client.list_artifacts(run.info.run_id))
        times = (run.info.start_time > 0, run.info.end_time is not None and run.info.end_time > 0)
        about = (run.info.run_name, run.info.status, run.info.lifecycle_stage, run.info.user_id, times)
        found[tags[names.FINGERPRINT]] = (about, tags, run.data.params, run.data.metrics, history, artifacts)
    return found


def test_bulk_writes_equal_those_of_the_client(tmp_path: Path) -> None:
    for name in ("bulk", "client"):
        (tmp_path / name).mkdir()
    bulk = delivered(fresh(tmp_path / "bulk" / "store.db"), tmp_path / "bulk", bulk=True)
    client = delivered(fresh(tmp_path / "client" / "store.db"), tmp_path / "client", bulk=False)
    assert bulk == client
    assert {name: run[0][1] for name, run in bulk.items()} == {"aa": "FINISHED", "bb": "FAILED", "cc": "KILLED"}
    assert (bulk["aa"][0][0], bulk["aa"][1][names.ARM]) == ("another name", "b")
    assert (bulk["cc"][0][0], bulk["cc"][1][names.SHARED_BY]) == ("run of cc", "")
    assert names.SHARED_BY not in bulk["aa"][1]
    assert bulk["bb"][4][VAL_LOSS] == [(32, 1 / 32), (64, 1 / 64)]


def test_unknown_tables_are_left_to_mlflow(tmp_path: Path) -> None:
    uri = fresh(tmp_path / "store.db")
    Tracker("x", uri)
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("ALTER TABLE metrics ADD COLUMN unit TEXT")
    assert isinstance(Tracker("x", uri)._writer, ClientWriter)


@pytest.mark.parametrize("call", ["create_run", "log_batch"])
def test_a_call_with_a_lost_answer_is_made_once(uri: str, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = start(uri)
    tracker._writer = ClientWriter(tracker.client, uri, tracker.experiment_id)  # as with a server
    real = getattr(tracker.client, call)
    lost: list[Any] = []

    def answer_lost(*given: Any, **named: Any) -> Any:
        answer = real(*given, **named)
        if not lost:
            lost.append(answer)
            raise TimeoutError("the answer did not come")
        return answer

    monkeypatch.setattr(tracker.client, call, answer_lost)
    for points in ([point(32)], [point(32), point(64)]):
        for _ in range(2):
            with contextlib.suppress(TrackingError):
                tracker.write([replace(OPENING, points=points)])
    runs = tracker.client.search_runs([tracker.experiment_id], f"tags.{names.ROLE} = '{names.ROLE_TRIAL}'")
    assert len(lost) == len(runs) == 1
    history = tracker.client.get_metric_history(runs[0].info.run_id, VAL_LOSS)
    assert [entry.step for entry in history] == [32, 64]


def test_a_lost_commit_writes_nothing_twice(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database commits, and the connection breaks before it says so."""
    tracker = start(uri)
    writer = tracker._writer
    assert isinstance(writer, DatabaseWriter)
    real = writer._engine.dialect.do_commit
    lost: list[Any] = []

    def commit(connection: Any) -> None:
        real(connection)
        if len(lost) < 2:
            lost.append(connection)
            raise ConnectionResetError("the answer did not come")

    monkeypatch.setattr(writer._engine.dialect, "do_commit", commit)
    for images in (32, 64, 128):
        with contextlib.suppress(TrackingError):
            tracker.write([replace(OPENING, points=[point(each) for each in (32, 64, 128) if each <= images])])
    wanted = f"tags.{names.ROLE} = '{names.ROLE_TRIAL}'"
    (run,) = tracker.client.search_runs([tracker.experiment_id], wanted)
    assert (len(lost), steps(uri, run.info.run_id)) == (2, [32, 64, 128])


@pytest.mark.parametrize("failing", ["points", "artifact"])
def test_one_failing_call_loses_nothing(uri: str, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials written side by side, as to a server: all are over before the error is raised, and none is there twice."""
    tracker = start(uri)
    tracker._writer = ClientWriter(tracker.client, uri, tracker.experiment_id)
    tracker._writer.batch = 3
    called: list[str] = []
    log_batch, repository = tracker.client.log_batch, get_artifact_repository

    def points(run_id: str, **given: Any) -> None:
        called.append("points")
        if called.count("points") == 1:
            time.sleep(0.5)  # in the meantime, another trial fails
        if failing == "points" and called.count("points") == 2:
            raise TimeoutError("no answer")
        log_batch(run_id, **given)

    def artifact(*given: Any, **named: Any) -> Any:
        called.append("artifact")
        if failing == "artifact" and called.count("artifact") == 1:
            raise TimeoutError("no answer")
        return repository(*given, **named)

    monkeypatch.setattr(tracker.client, "log_batch", points)
    monkeypatch.setattr("gfe_study.tracking.client.get_artifact_repository", artifact)
    trials = [replace(OPENING, fingerprint=f"{i}", status=FINISHED, points=[point(32)]) for i in range(5)]
    for number_finished in (2, 5):
        with contextlib.suppress(TrackingError):
            tracker.write(trials)
        runs = tracker.client.search_runs([tracker.experiment_id], f"tags.{names.ROLE} = '{names.ROLE_TRIAL}'")
        finished = [run.info.run_id for run in runs if run.info.status == FINISHED]
        assert len(finished) == number_finished
        assert all(steps(uri, run_id) == [32] for run_id in finished)
        assert all(tracker.client.list_artifacts(run_id) for run_id in finished)
    assert len(runs) == 5


def test_an_unwritable_artifact_leaves_no_run(uri: str, tmp_path: Path) -> None:
    tracker = start(uri)
    (tmp_path / "folder").mkdir()
    other = replace(OPENING, fingerprint="bb")
    broken = replace(other, status=FINISHED, files=[tmp_path / "folder"])
    for _ in range(3):
        with pytest.raises(TrackingError):
            tracker.write([replace(OPENING, points=[point(32)]), broken])
    wanted = f"tags.{names.ROLE} = '{names.ROLE_TRIAL}'"
    assert tracker.client.search_runs([tracker.experiment_id], wanted) == []
    tracker.write([replace(OPENING, points=[point(32)]), other])
    assert len(tracker.client.search_runs([tracker.experiment_id], wanted)) == 2


def test_a_full_disk_is_named_whatever_noticed_it() -> None:
    autoflush = "(raised as a result of Query-invoked autoflush; consider using a session.no_autoflush block)"
    for error in (RuntimeError(f"{autoflush}\n(sqlite3.OperationalError) database or disk is full"), OSError(28, "")):
        with pytest.raises(TrackingError) as caught, explained("sqlite:///store.db"):
            raise error
        assert "autoflush" not in str(caught.value)
        assert str(caught.value).endswith("; free some space")


@pytest.mark.parametrize("written", [True, False])
def test_an_interrupted_opening_doubles_no_run(uri: str, monkeypatch: pytest.MonkeyPatch, written: bool) -> None:
    tracker = start(uri)
    real = tracker._writer.write

    def interrupted(changes: Any) -> None:
        if written:
            real(changes)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(tracker._writer, "write", interrupted)
        with pytest.raises(Interrupted):
            tracker.write([OPENING])
    tracker.kill(OPENING.fingerprint)
    wanted = f"tags.{names.ROLE} = '{names.ROLE_TRIAL}'"
    runs = tracker.client.search_runs([tracker.experiment_id], wanted)
    assert [run.info.status for run in runs] == [KILLED] * written
    tracker.write([OPENING])
    (run,) = tracker.client.search_runs([tracker.experiment_id], wanted)
    assert run.data.tags[names.SEED] == "0"


def test_a_point_is_never_divided_between_calls(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery that fails halfway is continued after the last point that the store has."""
    monkeypatch.setattr(client_module, "METRICS_PER_CALL", 4)
    tracker = start(uri)
    tracker._writer = ClientWriter(tracker.client, tracker.uri, tracker.experiment_id)
    real, calls = tracker.client.log_batch, []

    def fails_later(*given: Any, **named: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            raise TimeoutError("the server is gone")
        return real(*given, **named)

    monkeypatch.setattr(tracker.client, "log_batch", fails_later)
    change = replace(OPENING, points=[point(32 * k) for k in range(1, 6)])
    with pytest.raises(TrackingError):
        tracker.write([change])
    tracker.write([change])
    (run,) = tracker.client.search_runs([tracker.experiment_id], f"tags.{names.ROLE} = '{names.ROLE_TRIAL}'")
    for metric in point(32):
        assert steps(uri, run.info.run_id, metric) == [32, 64, 96, 128, 160]
