"""Studies read through a real server are those in its database."""

from __future__ import annotations

import gc
import math
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError

import pytest
from pandas.testing import assert_frame_equal
from stores import STUDY, fresh, opened, point, server, trial

from gfe_study import names
from gfe_study.analysis.store import load
from gfe_study.analysis.store.load import Store
from gfe_study.metrics import VAL_LOSS
from gfe_study.tracking.uri import TrackingError


@contextmanager
def without_bulk(address: str) -> Iterator[tuple[str, Counter[str]]]:
    """A way to a server that knows no history of many runs, as old ones do; and the calls it was asked for."""
    asked: Counter[str] = Counter()

    class Forward(BaseHTTPRequestHandler):
        def answer(self) -> None:
            path = self.path.partition("?")[0]
            asked[path.rpartition("/")[2]] += 1
            if path == load.BULK_PATH:
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
            headers = {"Content-Type": self.headers.get("Content-Type", "application/json")}
            request = urllib.request.Request(address + self.path, body, headers, method=self.command)
            try:
                with urllib.request.urlopen(request) as answer:
                    status, content = answer.status, answer.read()
            except HTTPError as error:
                status, content = error.code, error.read()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None: ...

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Forward)
    Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}", asked
    finally:
        proxy.shutdown()
        proxy.server_close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_server_gives_what_its_database_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = fresh(tmp_path / "server.db")
    tracker = opened(uri)
    many = [
        trial(f"{i:04d}", [point(480, i / 9), point(960, i / 7)], group=f"{i // 5}", seed=i % 5) for i in range(1100)
    ]
    tracker.write([*many, trial("running", [point(480)], None), trial("new", [], None)])
    client = tracker.client
    stranger = client.create_run(tracker.experiment_id)
    for step, value in ((1, 0.5), (2, math.nan), (1, 0.25), (3, -math.inf)):
        client.log_metric(stranger.info.run_id, VAL_LOSS, value, step=step)
    small = opened(uri, "small")
    small.write([trial(f"{i}", [point(480 * k, 1 / k) for k in range(1, 4)]) for i in range(3)])
    direct = Store(uri)
    with server(tmp_path) as address, without_bulk(address) as (old_address, asked):
        remote, old = Store(address), Store(old_address)
        assert remote.studies() == direct.studies()
        runs, curves, _ = remote.frames(STUDY)
        assert (len(runs), curves["run_id"].nunique()) == (1103, 1102)
        assert_frame_equal(runs, direct.frames(STUDY)[0])
        assert_frame_equal(curves, direct.frames(STUDY)[1])
        for answered, stored in zip(old.frames("small")[:2], direct.frames("small")[:2], strict=True):
            assert_frame_equal(answered, stored)
        assert asked["get-history-bulk"] == 1
        assert asked["get-history"] == 3 * len(point(1))
        for most in (4, 3):  # of an answer that was cut there, fewer runs are asked for, and of one run, pages
            monkeypatch.setattr(load, "BULK_VALUES", most)
            assert_frame_equal(remote.frames("small")[1], direct.frames("small")[1])

        served = opened(address, "served")  # its artifacts are the server's
        served.write([trial("f1", [], None)])
        (run_id,) = remote.frames("served")[0]["run_id"]
        file = remote.artifact(run_id, names.TRIAL_FILE)
        assert file is not None
        assert file.read_text() == "seed: 0\n"
        assert remote.artifact(run_id, names.TRIAL_FILE) == file
        assert remote.artifact(run_id, "nothing") is None
        passing = Store(address)
        brought = passing.artifact(run_id, names.TRIAL_FILE)
        assert brought is not None
        assert brought.exists()
        del passing
        gc.collect()
        assert file.exists()
        assert not brought.exists()
        assert remote.question("served") == "Which?"
        (tmp_path / "report").mkdir()
        (tmp_path / "report" / "report.html").write_text("<html>")
        remote.log_report("served", tmp_path / "report")
        parent = remote.parent("served")
        assert parent is not None
        page = remote.artifact(parent.run_id, "report/report.html")
        assert page is not None
        assert page.read_text() == "<html>"
    with pytest.raises(TrackingError, match="the tracking store cannot be read"):
        remote.studies()
