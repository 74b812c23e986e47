"""Loss over training images and over seconds: gradient flow encoding against autoencoders that were tuned."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.common import Bench, console
from gfe_study.config import Trial
from gfe_study.metrics import IMAGES_SEEN, IMAGES_USED, NFE_FORWARD, TEST_LOSS, TRAIN_SECONDS
from gfe_study.training import train

GOAL = {"mnist": 0.0955}
"""Test loss whose time is compared."""
TARGETS = (480, 960, 1920, 3840, 5760)
AE_IMAGES, AE_SECONDS = 400_000, 150.0
AE_GRID = [(64, 2e-3), (128, 4e-3), (128, 2e-3), (64, 1e-3), (32, 1e-3), (128, 1e-3)]
"""Batch and learning rate; one that is behind the quickest so far is not run on."""


def run(bench: Bench) -> None:
    goal = GOAL.get(bench.data)
    rows = curve(bench, "gfe, preset best", gfe(bench), None)
    quickest = AE_SECONDS
    for batch, lr in AE_GRID:
        points = curve(bench, f"ae, batch {batch}, Adam {lr:g}", autoencoder(bench, batch, lr), goal, quickest)
        if goal is not None and points[-1][TEST_LOSS] <= goal:
            quickest = min(quickest, points[-1][TRAIN_SECONDS])
        rows += points
    rows += curve(bench, "gfe, preset best, again", gfe(bench), None)
    curves = pd.DataFrame(rows)
    curves.to_csv(bench.out / "training_curves.csv", index=False)
    bench.keep("training", "Test loss after images seen", at_targets(curves), FORMATS)
    bench.keep("training_time", f"Until a test loss of {goal}", until_goal(curves, goal), FORMATS)
    bench.draw("training", 2, lambda figure: plot(figure, curves, goal))


def gfe(bench: Bench) -> Trial:
    points = [480, 960, 1440, *range(1920, 5761, 240)]
    return bench.trial(preset="best", eval={"schedule": points, "val_images": 1, "common": False})


def autoencoder(bench: Bench, batch: int, lr: float) -> Trial:
    return bench.trial(
        preset="paper",
        method="ae",
        optim={"name": "adam", "lr": lr, "batch_size": batch},
        budget={"images": AE_IMAGES},
        eval={"schedule": list(range(4000, AE_IMAGES, 4000)), "val_images": 1, "mixed": False, "common": False},
    )


def curve(bench: Bench, label: str, trial: Trial, goal: float | None, most: float = math.inf) -> list[dict[str, Any]]:
    """The points of one trial, up to the one that reaches the goal or has taken the `most` seconds."""
    rows: list[dict[str, Any]] = []
    for step in train(trial, bench.splits):
        if step.metrics is None:
            continue
        rows.append({"trial": label, **{name: step.metrics[name] for name in KEPT}})
        if (goal is not None and step.metrics[TEST_LOSS] <= goal) or rows[-1][TRAIN_SECONDS] > most:
            break
    console.print(f"{label}: {rows[-1][TEST_LOSS]:.4f} after {rows[-1][TRAIN_SECONDS]:.1f} s")
    return rows


KEPT = (IMAGES_SEEN, IMAGES_USED, TEST_LOSS, TRAIN_SECONDS, NFE_FORWARD)
FORMATS = {
    "last loss": "{:.4f}",
    "images seen": "{:,.0f}",
    "images used": "{:,.0f}",
    "seconds": "{:.1f}",
    **{f"{images:,}": "{:.4f}" for images in TARGETS},
}


def at_targets(curves: pd.DataFrame) -> pd.DataFrame:
    """One row a trial that was evaluated there."""
    rows = []
    for label, points in curves.groupby("trial", sort=False):
        at = points.set_index(IMAGES_SEEN)[TEST_LOSS]
        if set(TARGETS) <= set(at.index):
            rows.append({"trial": label, **{f"{images:,}": at[images] for images in TARGETS}})
    return pd.DataFrame(rows)


def until_goal(curves: pd.DataFrame, goal: float | None) -> pd.DataFrame:
    """What each trial had spent when it reached the goal; where it did not, at its end."""
    rows = []
    for label, points in curves.groupby("trial", sort=False):
        reached = points[points[TEST_LOSS] <= (goal if goal is not None else -math.inf)]
        point = reached.iloc[0] if len(reached) else points.iloc[-1]
        rows.append(
            {
                "trial": label,
                "loss": f"{point[TEST_LOSS]:.4f}" + ("" if len(reached) else " (not reached)"),
                "images seen": point[IMAGES_SEEN],
                "images used": point[IMAGES_USED],
                "seconds": point[TRAIN_SECONDS],
            }
        )
    return pd.DataFrame(rows)


def plot(figure: Figure, curves: pd.DataFrame, goal: float | None) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    quickest = curves[curves["trial"].str.startswith("ae")].groupby("trial")[TEST_LOSS].min().idxmin()
    for label, points in curves.groupby("trial", sort=False):
        if str(label).endswith("again"):
            continue
        ours = str(label).startswith("gfe")
        colour = "#009E73" if ours else "#D55E00" if label == quickest else "#B8B8B8"
        text = str(label) if ours or label == quickest else None
        for axes, column in ((left, IMAGES_SEEN), (right, TRAIN_SECONDS)):
            axes.plot(
                points[column],
                points[TEST_LOSS],
                "-",
                linewidth=1.6 if text else 0.8,
                color=colour,
                label=text,
                zorder=2 if text else 1,
            )
    left.plot([], [], color="#B8B8B8", linewidth=0.8, label="ae, other settings")
    for axes in (left, right):
        if goal is not None:
            axes.axhline(goal, color="black", linestyle=":", linewidth=1)
        axes.set_xscale("log")
    left.set_ylim(top=0.2)
    left.set_xlabel("training images seen")
    right.set_xlabel("seconds of training, one thread")
    left.set_ylabel("test loss (nats per pixel)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=8)
