"""How long it takes to read a large study from an sqlite store."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd

from benchmarks.common import Bench, console, seconds
from gfe_study import names
from gfe_study.analysis.store.load import Store
from gfe_study.metrics import IMAGES_SEEN, STANDARD
from gfe_study.tracking.client import Tracker
from gfe_study.tracking.runs import FINISHED, Change

STUDY = "large"
RUNS, POINTS, METRIC_COUNT, PARAMS = 1000, 20, 14, 60
SEEDS, RUNS_AT_ONCE, REPEATS = 5, 200, 3


def delivery(number: int, points: int = POINTS) -> Change:
    """A finished trial with as much in it as a real one."""
    tags = {names.GROUP: str(number // SEEDS), names.SEED: str(number % SEEDS), names.ARM: "a", names.STAGE: "0"}
    params = {f"section.key_{key}": key / 7 for key in range(PARAMS)}
    logged = [
        {IMAGES_SEEN: 480.0 * point} | dict.fromkeys(STANDARD[1:METRIC_COUNT], number + 1 / point)
        for point in range(1, points + 1)
    ]
    name = f"run {number}"
    return Change(f"{number:016x}", name, FINISHED, points=logged, initial_tags=tags, params=params)


def run(bench: Bench) -> None:
    """Seconds for `frames` of a store with one large study."""
    console.print(f"a store of {RUNS:,} runs × {POINTS} points × {METRIC_COUNT} metrics …")
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{Path(folder) / 'store.db'}"
        tracker = Tracker(STUDY, uri)
        tracker.open_study({}, "How long does it take to read?", {})
        for start in range(0, RUNS, RUNS_AT_ONCE):
            tracker.write([delivery(number) for number in range(start, start + RUNS_AT_ONCE)])
        store = Store(uri)
        (of_frames,) = seconds(lambda: store.frames(STUDY), repeats=REPEATS)
        rows = len(store.frames(STUDY)[1])
    measured = [
        ("runs", RUNS),
        ("points", rows),
        ("values", rows * METRIC_COUNT),
        ("frames(), s", of_frames),
    ]
    shown = [(name, f"{value:,}" if isinstance(value, int) else f"{value:.3g}") for name, value in measured]
    table = pd.DataFrame(shown, columns=["reading", "value"])
    bench.keep("reading", "Reading a study from sqlite", table, {})
