"""What a trial costs in each kind of tracking store: sqlite, PostgreSQL, and an MLflow server on either."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd

from benchmarks.common import Bench, console
from benchmarks.reading import delivery
from gfe_study import names
from gfe_study.config import to_yaml
from gfe_study.tracking.client import Tracker
from tests.stores import free_port, server

TURNS, TRIALS_PER_TURN, POINTS = 5, 40, 6


@contextlib.contextmanager
def stores(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the URIs of new stores, which are removed at the end; a store that cannot be started here is skipped."""
    with contextlib.ExitStack() as running:
        databases = {"sqlite": f"sqlite:///{folder / 'store.db'}"}
        backends = {"sqlite": ""}
        try:
            from tests.services.postgres import missing, postgres

            lacking = missing()
        except ModuleNotFoundError as error:
            lacking = f"{error.name} is not installed; pip install 'gfe-study[postgres]'"
        if lacking:
            console.print(f"skipping PostgreSQL: {lacking}", markup=False)
        else:
            started = running.enter_context(postgres(free_port()))
            databases["PostgreSQL"], backends["PostgreSQL"] = map(started.database, ("direct", "served"))
        for name, backend in backends.items():
            (folder / name).mkdir()
            address = running.enter_context(server(folder / name, backend=backend))
            databases[f"server on {name}"] = address
        yield databases


def run(bench: Bench) -> None:
    """Milliseconds for a short finished trial; the stores take turns."""
    text = to_yaml(bench.trial(preset="best").dump())
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name), stores(Path(name)) as uris:
        trackers = {store: Tracker("tracking", uri) for store, uri in uris.items()}
        times: dict[str, list[float]] = {store: [] for store in uris}
        for turn in range(TURNS + 1):
            for store, tracker in trackers.items():
                if turn == 0:
                    tracker.open_study({}, "What does a trial cost?", {})
                first = turn * TRIALS_PER_TURN
                trials = [
                    replace(delivery(number, POINTS), texts={names.TRIAL_FILE: text})
                    for number in range(first, first + TRIALS_PER_TURN)
                ]
                began = time.perf_counter()
                tracker.write(trials)
                times[store].append(1e3 * (time.perf_counter() - began) / TRIALS_PER_TURN)
    rows = [
        {"store": store, "ms a trial": statistics.median(taken[1:]), "at most": max(taken[1:])}
        for store, taken in times.items()
    ]
    table = pd.DataFrame(rows)
    table["× sqlite"] = table["ms a trial"] / table["ms a trial"][0]
    formats = {"ms a trial": "{:.1f}", "at most": "{:.1f}", "× sqlite": "{:.0f}"}
    bench.keep("tracking", f"Writing {TURNS * TRIALS_PER_TURN} short trials to a store", table, formats)
