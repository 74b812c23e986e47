"""Figures, drawn to be read at column width."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from gfe_study import names

BEST, FIRST, OTHERS, FLOOR = "#0072B2", "#D55E00", "#B8B8B8", "#000000"  # of Okabe and Ito's palette
WIDTH_INCHES, HEIGHT_INCHES, DPI = 5.2, 3.4, 300


def data_efficiency(trials: pd.DataFrame, points: pd.DataFrame, metric: str = names.TEST_LOSS) -> Figure:
    """Loss over training images seen: every trial in grey, the first and the best (by `val_loss`) in colour.

    The dashed line is the entropy floor of the test images, below which no decoder can go.
    """
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), layout="constrained")
        axes = figure.add_subplot()
        done = trials[trials["status"] == "FINISHED"]
        best = done.sort_values(names.VAL_LOSS)["run_id"].iloc[0]
        first = trials["run_id"].iloc[-1]  # the store lists the newest first
        for run_id, curve in points.groupby("run_id"):
            if run_id not in (best, first):
                axes.plot(curve[names.IMAGES_SEEN], curve[metric], color=OTHERS, linewidth=0.8, zorder=1)
        highlights = [(best, BEST, "best trial")]
        if first != best:
            highlights.insert(0, (first, FIRST, "first trial"))
        for run_id, colour, label in highlights:
            shown = points[points["run_id"] == run_id]
            text = f"{label}, ends at {shown[metric].iloc[-1]:.4f}"
            axes.plot(shown[names.IMAGES_SEEN], shown[metric], "o-", color=colour, markersize=3.5, label=text, zorder=2)
        if len(points["run_id"].unique()) > len(highlights):
            axes.plot([], [], color=OTHERS, linewidth=0.8, label="other trials")
        if names.ENTROPY_FLOOR in trials:
            floor = float(trials[names.ENTROPY_FLOOR].iloc[0])
            axes.axhline(floor, color=FLOOR, linestyle="--", linewidth=0.9, label=f"entropy floor {floor:.4f}")
        axes.set_xscale("log")
        ticks = sorted(points[names.IMAGES_SEEN].unique())
        axes.set_xticks(ticks[:: max(1, len(ticks) // 6)])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel("training images seen")
        axes.set_ylabel(f"{metric.replace('_', ' ')} (nats per pixel)")
        figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
        return figure


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG (300 dpi) and SVG; returns the files."""
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    for file in files:
        figure.savefig(file, dpi=DPI)
    return files
