"""Timing, the decoder that is measured, and how results are kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import matplotlib
import pandas as pd
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from gfe_study.analysis.report.style import save
from gfe_study.config import Trial
from gfe_study.data.split import Splits
from gfe_study.likelihoods.base import Observed
from gfe_study.likelihoods.bernoulli import BernoulliLoss
from gfe_study.models.base import Decoder
from gfe_study.training import train

LOSS = BernoulliLoss()
DECODER_IMAGES = 1920
RECIPES: dict[str, dict[str, object]] = {
    "paper": {"preset": "paper", "solver": {"name": "lbfgs", "train_max_nfe": 20}},
    "best": {"preset": "best"},
}
"""`paper`: the paper's optimiser, its latents found by L-BFGS; `best`: that preset."""
COLOURS = {
    "amd": "#D55E00",
    "amd_nesterov": "#E69F00",
    "amd_spectral": "#0072B2",
    "dopri5": "#000000",
    "euler": "#999999",
    "gauss_newton": "#CC79A7",
    "lbfgs": "#009E73",
    "rk4": "#56B4E9",
}
"""Okabe and Ito's palette; a solver has the same colour in every figure."""

console = Console()


@dataclass(frozen=True)
class Bench:
    """What a part of the benchmark works on."""

    data: str
    out: Path

    @cached_property
    def splits(self) -> Splits:
        """The dataset, which not every part needs. Raises `InputError` if it cannot be had."""
        return Trial.build({"data": {"name": self.data}}, where="--data").data.load(download=True)

    def trial(self, **layers: object) -> Trial:
        return Trial.build({"data": {"name": self.data}}, layers)

    def images(self, count: int) -> Observed:
        """The first test images."""
        return self.splits.test.batch(slice(0, count))

    def decoder(self, recipe: str = "paper") -> Decoder:
        """The decoder of a recipe after 1,920 training images; trained once, then read."""
        file = self.out / f"decoder_{recipe}.pt"
        trial = self.trial(
            **RECIPES[recipe], budget={"images": DECODER_IMAGES}, eval={"val_images": 1, "test_images": 1}
        )
        decoder: Decoder = trial.model.decoder(self.splits.shape)
        fingerprint = trial.fingerprint(self.splits.sha256)
        if file.exists():
            saved = torch.load(file, weights_only=True)
            if saved["fingerprint"] == fingerprint:
                decoder.load_state_dict(saved["weights"])
                return decoder
        console.print(f"training a decoder on {DECODER_IMAGES:,} images ({recipe}) …")
        *_, last = train(trial, self.splits)
        weights = last.state.learner.decoder.state_dict()
        torch.save({"fingerprint": fingerprint, "weights": weights}, file)
        decoder.load_state_dict(weights)
        return decoder

    def keep(self, name: str, title: str, table: pd.DataFrame, formats: dict[str, str]) -> None:
        """Print a table, and write it as CSV (all digits) and Markdown."""
        table.to_csv(self.out / f"{name}.csv", index=False)
        shown = table.copy()
        for column in shown:
            text = formats.get(str(column), "{}")
            shown[column] = [text.format(value) if pd.notna(value) else "" for value in shown[column]]
        lines = ["| " + " | ".join(map(str, row)) + " |" for row in [[*shown.columns], ["---"] * len(shown.columns)]]
        lines += ["| " + " | ".join(row) + " |" for row in shown.astype(str).to_numpy()]
        (self.out / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        drawn = Table(title=title, title_justify="left")
        for column in shown:
            drawn.add_column(str(column), justify="left" if column == shown.columns[0] else "right")
        for row in shown.astype(str).to_numpy():
            drawn.add_row(*row)
        console.print(drawn)

    def draw(self, name: str, panels: int, plot: Callable[[Figure], None]) -> None:
        """Draw a figure of `panels` side by side, as PNG and SVG."""
        with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
            figure = Figure(figsize=(3.6 * panels, 3.3), layout="constrained")
            plot(figure)
            save(figure, self.out / name)


def seconds(*runs: Callable[[], object], repeats: int, calls: int = 1) -> list[float]:
    """Median seconds of each run; they take turns, so that what else the machine does hits all of them alike.

    A turn is `calls` calls in a row, as a solver makes them: what one finds in the caches, the one before left.
    """
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats + 1):
        for run, taken in zip(runs, times, strict=True):
            started = time.perf_counter()
            for _ in range(calls):
                run()
            taken.append((time.perf_counter() - started) / calls)
    return [statistics.median(taken[1:]) for taken in times]
