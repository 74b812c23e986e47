"""Loss over training images and over seconds: gradient flow encoding against an autoencoder that was tuned.

Where the learning rate falls to zero, the loss before the end means little: there, every budget is a trial of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.common import Bench, console
from gfe_study.metrics import COMMON_TEST_LOSS, IMAGES_SEEN, NFE_FORWARD, TEST_LOSS, TRAIN_SECONDS
from gfe_study.training import train

ANY_TIME = (480, 960, 1920, 3840, 5760, 11_520, 23_040)
GFE_BUDGETS = (7_500, 15_000, 30_000, 60_000)
AE_BUDGETS = (60_000, 120_000, 240_000, 480_000, 720_000)
AE: dict[str, object] = {
    "preset": "paper",
    "method": "ae",
    "optim": {"name": "adam", "beta2": 0.99, "lr": 1e-3, "batch_size": 64, "decay": "linear"},
}
"""What serves an autoencoder on MNIST: it ends twelve epochs at .078 where the paper's has .084."""
COLOURS = {"gfe, best": "#009E73", "gfe, best_epoch": "#0072B2", "ae": "#D55E00"}


def run(bench: Bench) -> None:
    points = pd.DataFrame(measured(bench))
    points.to_csv(bench.out / "training_curves.csv", index=False)
    bench.keep("training", "Test loss by its own encoder, and by flow", points[["trial", *FORMATS]], FORMATS)
    bench.draw("training", 2, lambda figure: plot(figure, points))


def measured(bench: Bench) -> Iterator[dict[str, Any]]:
    yield from trial(bench, "gfe, best", ANY_TIME, preset="best")
    for budget in GFE_BUDGETS:
        yield from trial(bench, "gfe, best_epoch", [budget], preset="best_epoch")
    for budget in AE_BUDGETS:
        yield from trial(bench, "ae", [budget], **AE)


def trial(bench: Bench, label: str, at: Sequence[int], **layers: object) -> Iterator[dict[str, Any]]:
    """What a trial had reached, and spent, after these images."""
    layers |= {"budget": {"images": at[-1]}, "eval": {"schedule": list(at), "val_images": 1, "mixed": False}}
    for step in train(bench.trial(**layers), bench.splits):
        if step.metrics is not None:
            point = {"trial": label, **{name: step.metrics[name] for name in KEPT}}
            yield point
    console.print(f"{label}: {point[COMMON_TEST_LOSS]:.4f} after {point[TRAIN_SECONDS]:.1f} s")


KEPT = (IMAGES_SEEN, TRAIN_SECONDS, TEST_LOSS, COMMON_TEST_LOSS, NFE_FORWARD)
FORMATS = {IMAGES_SEEN: "{:,.0f}", TRAIN_SECONDS: "{:.1f}", TEST_LOSS: "{:.4f}", COMMON_TEST_LOSS: "{:.4f}"}


def plot(figure: Figure, points: pd.DataFrame) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, spent in ((left, IMAGES_SEEN), (right, TRAIN_SECONDS)):
        for label, trials in points.groupby("trial", sort=False):
            colour = COLOURS[str(label)]
            axes.plot(trials[spent], trials[COMMON_TEST_LOSS], "o-", markersize=3, color=colour, label=label)
        encoded = points[points["trial"] == "ae"]
        axes.plot(encoded[spent], encoded[TEST_LOSS], "o:", markersize=3, color=COLOURS["ae"], label="ae, its encoder")
        axes.set_xscale("log")
    left.set_xlabel("training images seen")
    right.set_xlabel("seconds of training, one thread")
    left.set_ylabel("test loss (nats per pixel)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=8)
