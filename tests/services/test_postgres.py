"""Studies whose tracking store is PostgreSQL, with an MLflow server in front of it and without."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import quote

import pytest
from stores import free_port, fresh, opened, point, server, trial
from sweeps import LONGER_STEPS, children, finished_count, gfe_study, history, longer_space, started, wait_until
from test_tracking import delivered

from gfe_study import names
from gfe_study.metrics import IMAGES_SEEN, VAL_LOSS
from gfe_study.tracking.client import Tracker
from gfe_study.tracking.database import MAX_LENGTHS
from gfe_study.tracking.uri import URI_VARIABLE, TrackingError

pytest.importorskip("psycopg", reason="psycopg is not installed; pip install 'gfe-study[postgres]'")

from services.postgres import PASSWORD, Postgres, missing, postgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    if missing():
        pytest.skip(missing())
    with postgres(free_port()) as started:
        yield started


# The writer.


def test_postgresql_holds_what_sqlite_does(database: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two starts, an interruption and a failure leave the same runs, and everything is read in the same way."""
    monkeypatch.chdir(tmp_path)
    uri = database.database("same")
    (tmp_path / "sqlite").mkdir()
    assert delivered(uri, tmp_path, bulk=True) == delivered(
        fresh(tmp_path / "store.db"), tmp_path / "sqlite", bulk=True
    )


def test_values_too_long_for_postgresql_are_cut(
    database: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tracker, longest = opened(database.database("long")), MAX_LENGTHS["postgresql"]
    assert longest is not None
    tracker.write([trial("aa", [], ending={names.FAILURE: "x" * (longest + 1)}, params={"key": "y" * (longest + 1)})])
    run = next(run for run in tracker.client.search_runs([tracker.experiment_id]) if run.data.params)
    assert (run.data.tags[names.FAILURE], run.data.params["key"]) == ("x" * longest, "y" * longest)


def test_a_restarted_postgres_gets_what_it_missed(
    database: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = database.database("restarted")
    tracker = opened(uri)
    tracker.write([trial("aa", [point(32)], None)])
    database.stop()
    for attempt in (lambda: tracker.write([trial("aa", [point(32), point(64)])]), lambda: Tracker("amd", uri)):
        with pytest.raises(TrackingError, match="Connection refused") as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert PASSWORD not in str(caught.value)
    database.start()
    with suppress(TrackingError):  # MLflow's client may hold a connection that is gone
        tracker.write([trial("aa", [point(32), point(64)])])
    tracker.write([trial("aa", [point(32), point(64)])])
    assert tracker.is_closed("aa")


# Whole studies.


@contextmanager
def watched(secrets: list[bytes]) -> Iterator[list[bytes]]:
    """Yield the arguments of any process that showed a secret in them meanwhile."""
    shown: list[bytes] = []
    over = Event()

    def look() -> None:
        while not over.wait(0.1):
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    arguments = process.read_bytes()
                    shown.extend(arguments for secret in secrets if secret in arguments)

    watcher = Thread(target=look)
    watcher.start()
    try:
        yield shown
    finally:
        over.set()
        watcher.join()


@contextmanager
def store(kind: str, database: Postgres, folder: Path) -> Iterator[tuple[str, str]]:
    """A store with a password in its URI, and the URI of its database."""
    uri = database.database(f"whole_{kind}")
    if kind == "database":
        yield uri, uri
    else:
        with server(folder, backend=uri) as address:
            scheme, _, place = address.partition("://")
            yield f"{scheme}://me:{quote(PASSWORD, safe='')}@{place}", uri


@pytest.mark.parametrize("kind", ["database", "server"])
def test_output_is_json_without_the_password(kind: str, database: Postgres, tmp_path: Path) -> None:
    """No command, error, file, store or process argument shows the password, and `--json` prints one value."""
    study, beside = tmp_path / "study", tmp_path / "server"
    study.mkdir()
    beside.mkdir()
    secrets = [form.encode() for form in (PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD))]
    shown = b""

    def run(*command: str) -> Any:
        nonlocal shown
        done = gfe_study(study, *command, "--json", **{URI_VARIABLE: uri})
        assert done.returncode == 0, done.stderr
        assert "%|" not in done.stderr  # a progress bar
        shown += (done.stdout + done.stderr).encode()
        return json.loads(done.stdout)

    with watched(secrets) as in_arguments:
        with store(kind, database, beside) as (uri, of_database):
            assert run("sweep", "smoke", "--trials", "2")["trials"] == {"finished": 2}
            assert run("status")["smoke"]["trials"] == {"finished": 2}
            assert any(file.endswith("report.html") for file in run("report", "smoke"))
            assert run("train", "--config", str(next((study / "results").rglob("best.pt"))))[names.FINGERPRINT]
            assert all(finding["ok"] for finding in run("doctor"))
            assert [run.info.status for run in children(study, "smoke", of_database)] == ["FINISHED"] * 2
            dump = database.dump(of_database)
            if kind == "database":
                database.stop()
        try:
            down = gfe_study(study, "sweep", "smoke", "--trials", "3", **{URI_VARIABLE: uri})
        finally:
            if kind == "database":
                database.start()
    assert (down.returncode, down.stdout) == (2, "")
    assert "the tracking store cannot be used" in down.stderr
    assert in_arguments == []
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    texts: dict[Any, bytes] = {"output": shown, "error": down.stderr.encode(), "dump": dump, **files}
    assert [where for where, text in texts.items() for secret in secrets if secret in text] == []


def test_driver_and_server_killed_amid_a_sweep(database: Postgres, tmp_path: Path) -> None:
    """Both are killed; the study is resumed on a new server: each trial is there once, with each step once."""
    longer_space(tmp_path)
    uri, port = database.database("killed"), free_port()
    settings = {URI_VARIABLE: f"http://127.0.0.1:{port}"}

    def under_way() -> bool:
        done = finished_count(tmp_path, "longer")
        assert done < 8, "the sweep was too fast to be killed"
        return done >= 2 and any(run.info.status == "RUNNING" for run in children(tmp_path, "longer", uri))

    line = ["sweep", "longer.yaml", "--trials", "8"]
    with server(tmp_path, port, uri), started(tmp_path, *line, **settings) as process:
        wait_until(under_way, process, tmp_path / "output.log")
        os.killpg(process.pid, signal.SIGKILL)
    assert any(run.info.status == "RUNNING" for run in children(tmp_path, "longer", uri))
    with server(tmp_path, port, uri):
        resumed = gfe_study(tmp_path, "resume", "longer", "--json", **settings)
        assert resumed.returncode == 0, resumed.stderr
        assert json.loads(resumed.stdout)["trials"] == {"finished": 8}
        reported = gfe_study(tmp_path, "report", "longer", **settings)
        assert reported.returncode == 0, reported.stderr
    runs = children(tmp_path, "longer", uri)
    assert len(runs) == len({run.data.tags[names.FINGERPRINT] for run in runs}) == 8
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        for metric in (VAL_LOSS, IMAGES_SEEN):
            assert [step for step, *_ in history(tmp_path, run, metric, uri)] == LONGER_STEPS
    kept = {path.parent.parent.name for path in (tmp_path / "a").rglob(names.TRIAL_FILE)}
    assert {run.info.run_id for run in runs} <= kept
