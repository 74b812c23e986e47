"""What the study engine itself costs: 16 trials of some seconds, and 500 tiny ones, as whole sweeps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks.common import Bench, console
from gfe_study.config import InputError
from gfe_study.metrics import TRAIN_SECONDS

TRIALS, SECONDS = 16, 5.0
TINY_TRIALS, TINY_PART = 500, 100

SPACE: dict[str, Any] = {
    "question": "What does the engine cost?",
    "fixed": {
        "preset": "paper",
        "solver": {"name": "euler", "tau": 100, "slices": 12},
        "data": {"name": "digits"},
        "eval": {"val_images": 32, "test_images": 32},
    },
    "nuisance": {"optim.lr": {"loguniform": [1e-4, 1e-3]}},
    "sampler": "random",
    "scheduler": "none",
    "parallel": 100,
}


@dataclass(frozen=True)
class Swept:
    """A sweep: what it printed for machines, and when each of its trials ended, by the clock."""

    told: dict[str, Any]
    points: list[dict[str, float]]
    ends: list[float]


def sweep(**declared: Any) -> Swept:
    """Run a sweep in a process and a folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "engine.yaml").write_text(yaml.safe_dump({**SPACE, **declared}))
        command = [sys.executable, "-m", "gfe_study", "sweep", "engine.yaml", "--json"]
        kept = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
        root = str(Path(__file__).resolve().parents[1])
        done = subprocess.run(
            command, cwd=folder, env={**kept, "PYTHONPATH": root}, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise InputError(f"benchmark study: the sweep failed: {done.stderr.strip().splitlines()[-1]}")
        entries = [json.loads(line) for line in (folder / "results/engine/journal.jsonl").read_text().splitlines()]
        last = {e["fingerprint"]: e["points"][-1] for e in entries if e["event"] == "points"}
        ends = [e["time"] for e in entries if e["event"] == "outcome"]
        return Swept(json.loads(done.stdout), list(last.values()), ends)


def run(bench: Bench) -> None:
    """Overhead over the trials' own seconds, growth with the number of trials, and the tracking store's share."""
    console.print(f"{TRIALS} trials of {SECONDS:g} s …")
    long = sweep(trials=TRIALS, budget={"seconds": SECONDS})
    seconds, slots = long.told["seconds"], long.told["slots"]
    own = sum(point[TRAIN_SECONDS] for point in long.points)
    wall = seconds["total"] - seconds["start_up"]
    rows = [
        ("trials", TRIALS),
        ("slots", slots),
        ("start-up, s", seconds["start_up"]),
        ("wall after start-up, s", wall),
        ("trials' own training over slots, s", own / slots),
        ("wall after start-up over that", wall / (own / slots)),
    ]
    console.print(f"{TINY_TRIALS} tiny trials …")
    tiny = sweep(
        trials=TINY_TRIALS,
        budget={"images": 64},
        fixed={**SPACE["fixed"], "model": {"name": "mlp", "latent_dim": 8, "hidden": [32, 64]}},
    )
    begun = tiny.ends[0]
    rows += [
        ("tiny trials", TINY_TRIALS),
        ("seconds of the first 100 after the first", tiny.ends[TINY_PART] - begun),
        ("seconds of the last 100", tiny.ends[-1] - tiny.ends[-1 - TINY_PART]),
        ("last over first", (tiny.ends[-1] - tiny.ends[-1 - TINY_PART]) / (tiny.ends[TINY_PART] - begun)),
        ("tracking calls, % of wall", 100 * tiny.told["seconds"]["tracking"] / tiny.told["seconds"]["total"]),
    ]
    table = pd.DataFrame([(name, f"{value:.3g}") for name, value in rows], columns=["study engine", "value"])
    bench.keep("study", "The study engine", table, {})
