"""Tracking stores with trials whose metrics are given, and a real server."""

from __future__ import annotations

import functools
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gfe_study import names
from gfe_study.metrics import DIVERGED, IMAGES_SEEN, NFE_BACKWARD, NFE_FORWARD, TEST_LOSS, TRAIN_SECONDS, VAL_LOSS
from gfe_study.tracking.client import Tracker, connect
from gfe_study.tracking.runs import RUNNING, Change

STUDY = "amd"
DECLARED = "question: Which?\nscientific:\n  arms: {a: {}, b: {method: ae}}\n"


@functools.cache
def _empty() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        connect(f"sqlite:///{folder}/store.db")
        return (Path(folder) / "store.db").read_bytes()


def fresh(file: Path) -> str:
    """URI of an empty sqlite store, made once and copied: MLflow takes seconds to make one."""
    file.write_bytes(_empty())
    return f"sqlite:///{file}"


def opened(uri: str, study: str = STUDY, declared: str = DECLARED) -> Tracker:
    tracker = Tracker(study, uri)
    tracker.open_study({names.STUDY: study}, "Which one?", {"study.yaml": declared})
    return tracker


def point(images: int, loss: float = 0.5, **more: float) -> dict[str, float]:
    costs = {TRAIN_SECONDS: images / 100, NFE_FORWARD: 12.0, NFE_BACKWARD: 0.0}
    losses = {VAL_LOSS: loss, TEST_LOSS: loss + 0.01}
    return {IMAGES_SEEN: float(images), **costs, **losses, DIVERGED: 0.0, **more}


def trial(
    fingerprint: str,
    points: list[dict[str, float]],
    status: str | None = "FINISHED",
    *,
    group: str = "g",
    params: dict[str, Any] | None = None,
    ending: dict[str, str] | None = None,
    **tags: Any,
) -> Change:
    """A trial's run as a study logs it; a status of None leaves it running."""
    about = {names.ARM: "a", names.STAGE: "0", names.SEED: "0", names.GROUP: group, names.ENTROPY_FLOOR: "0.058"}
    about |= {key: str(value) for key, value in tags.items()}
    return Change(
        fingerprint,
        f"run of {fingerprint}",
        status or RUNNING,
        ending or {},
        points,
        initial_tags=about,
        params=params or {},
        texts={names.TRIAL_FILE: "seed: 0\n"},
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(folder: Path, port: int | None = None, backend: str = "") -> Iterator[str]:
    """A real `mlflow server` on `server.db` of a folder, or on a database; killed at the end. Yields its address."""
    port = port or free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "a")]
    settings = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": backend or f"sqlite:///{folder / 'server.db'}",  # no arguments show its password
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, env=settings, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + 90
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert process.poll() is None, (folder / "server.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 9)
            process.wait()


def without_library(page: str) -> str:
    """A report's page without the library that draws its charts."""
    return re.sub(r"<script type=.module.*?</script>", "", page, flags=re.DOTALL)
