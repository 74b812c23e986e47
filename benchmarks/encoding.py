"""Every solver, encoding test images with one decoder: loss over evaluations and over seconds."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.common import COLOURS, LOSS, RECIPES, Bench, seconds
from gfe_study import registry
from gfe_study.config import PRESETS
from gfe_study.likelihoods.base import Observed
from gfe_study.models.base import Decoder, Products
from gfe_study.models.mlp import MLP
from gfe_study.solvers.base import Result, Solver
from gfe_study.solvers.fields import GradientFlow
from gfe_study.solvers.lbfgs import LBFGS
from gfe_study.solvers.objective import Objective
from gfe_study.starts.base import Starter
from gfe_study.starts.nearest import Nearest

FLOW = GradientFlow(alpha="constant")
PAPER = {key: value for key, value in PRESETS["paper"]["solver"].items() if key != "name"}
BATCH = 250
FEW, MANY, REPEATS = 64, 1000, 5


def budgets(name: str) -> Iterator[Solver]:
    """A solver, allowed more and more evaluations."""
    kind = registry.component("solver", name)
    if name == "amd":
        yield from (kind(**PAPER, max_nfe=nfe) for nfe in (25, 50, 100, 200, 400, 800))
        yield kind(**PAPER)
    elif name in ("euler", "rk4"):
        # Uniform steps of AMD's own longest: about as long as the stiffest samples bear.
        counts = (13, 25, 50, 100, 200, 400, 1001) if name == "euler" else (13, 25, 50, 100, 250)
        yield from (kind(tau=10.0 * (slices - 1), slices=slices, base=1.0) for slices in counts)
    elif name == "dopri5":
        yield from (kind(tau=1e4, max_nfe=nfe) for nfe in (50, 100, 200, 400))
    elif name == "gauss_newton":
        yield from (kind(max_nfe=21 * count, min_slope=0) for count in (3, 4, 5, 6, 8, 10, 14))
    else:
        yield from (kind(max_nfe=nfe, min_slope=0) for nfe in (4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64, 100))
        if name == "amd_nesterov":
            yield from (kind(max_nfe=nfe, min_slope=0) for nfe in (200, 400))


def measure(bench: Bench, decoder: Decoder, solver: Solver, count: int) -> dict[str, Any]:
    rows = [measure_once(bench.images(count), decoder, solver)]
    while len(rows) < REPEATS and rows[0]["seconds"] < 1:
        rows.append(measure_once(bench.images(count), decoder, solver))
    return {**rows[0], "solver": solver.name, "seconds": statistics.median(row["seconds"] for row in rows)}


def measure_once(images: Observed, decoder: Decoder, solver: Solver) -> dict[str, float]:
    count = len(images)
    loss = forward = backward = unfinished = 0.0
    started = time.perf_counter()
    for begin in range(0, len(images), BATCH):
        target = images[begin : begin + BATCH]
        objective = Objective(decoder, LOSS, target)
        start = torch.zeros(len(target), next(decoder.parameters()).shape[1])
        solution = solver.solve(FLOW, objective, start)
        loss += solution.loss_B.sum().item()
        forward += solution.nfe_forward_B.sum().item()
        backward += solution.nfe_backward_B.sum().item()
        unfinished += (solution.result_B == Result.MAX_NFE).sum().item()
    taken = time.perf_counter() - started
    return {
        "loss": loss / count,
        "evaluations": forward / count,
        "pullbacks": backward / count,
        "seconds": taken,
        "stopped by its cap": unfinished / count,
    }


def run(bench: Bench) -> None:
    for recipe in RECIPES:
        decoder = bench.decoder(recipe)
        curves = pd.DataFrame(
            [measure(bench, decoder, solver, FEW) for name in sorted(COLOURS) for solver in budgets(name)]
        )
        curves.to_csv(bench.out / f"encoding_{recipe}_curves.csv", index=False)
        title = f"Encoding {FEW} test images, decoder: {recipe}"
        bench.keep(f"encoding_{recipe}", title, summary(curves), FORMATS)
        fast = pd.DataFrame(list(quickest(bench, decoder)))
        title = f"L-BFGS to the loss of the paper's AMD, {FEW} test images, decoder: {recipe}"
        bench.keep(f"encoding_{recipe}_quickest", title, fast, QUICKEST_FORMATS)
        bench.draw(f"encoding_{recipe}", 2, functools.partial(plot, curves=curves))
        many = pd.DataFrame(list(until_reference(bench, decoder)))
        title = f"Encoding {MANY:,} test images, decoder: {recipe}"
        bench.keep(f"encoding_{recipe}_{MANY}", title, summary(many), FORMATS)


def quickest(bench: Bench, decoder: Decoder) -> Iterator[dict[str, Any]]:
    """L-BFGS with as few evaluations as reach the loss of the paper's AMD, which takes turns with it."""
    target, amd = bench.images(FEW), registry.component("solver", "amd")(**PAPER)
    zero = torch.zeros(FEW, next(decoder.parameters()).shape[1])
    near = nearest(bench, decoder)(target)

    def encode(solver: Solver, start: Tensor, products: Products) -> Tensor:
        return solver.solve(FLOW, Objective(decoder, LOSS, target, products=products), start).latent_BL

    def loss(latent: Tensor) -> float:
        with torch.no_grad():
            return float(LOSS(decoder(latent), target).mean())

    goal = loss(encode(amd, zero, "float32"))
    variants: list[tuple[str, Tensor, Products]] = [
        ("zero", zero, "float32"),
        ("zero", zero, "bf16"),
        ("nearest", near, "float32"),
        ("nearest", near, "bf16"),
    ]
    for name, start, products in variants:
        for nfe in range(3, 60):
            solver = LBFGS(max_nfe=nfe, min_slope=0)
            if (reached := loss(encode(solver, start, products))) <= goal:
                break
        slow, fast = seconds(
            functools.partial(encode, amd, zero, "float32"),
            functools.partial(encode, solver, start, products),
            repeats=REPEATS,
        )
        yield {
            "start": name,
            "products": products,
            "nfe": nfe,
            "loss": reached,
            "amd's loss": goal,
            "ms": 1e3 * fast,
            "faster": slow / fast,
        }


def nearest(bench: Bench, decoder: Decoder) -> Starter:
    """A start that knows the latents of training images."""
    latent_dim = next(decoder.parameters()).shape[1]
    settings = Nearest()
    starter: Starter = settings.create(MLP(latent_dim=latent_dim), bench.splits.shape, None)
    for begin in range(0, settings.samples, BATCH):
        target = bench.splits.train.batch(slice(begin, begin + BATCH))
        start = torch.zeros(len(target), latent_dim)
        found = LBFGS(max_nfe=30).solve(FLOW, Objective(decoder, LOSS, target), start)
        starter.remember(found.latent_BL, target, torch.arange(len(target)))
    return starter


def until_reference(bench: Bench, decoder: Decoder) -> Iterator[dict[str, Any]]:
    """The paper's AMD, then what is fast: budgets up to the one that reaches AMD's loss, and its default."""
    reference = measure(bench, decoder, registry.component("solver", "amd")(**PAPER), MANY)
    yield reference
    for name in ("amd_nesterov", "amd_spectral", "lbfgs", "gauss_newton"):
        for solver in budgets(name):
            row = measure(bench, decoder, solver, MANY)
            yield row
            if row["loss"] <= reference["loss"]:
                break
        yield measure(bench, decoder, registry.component("solver", name)(), MANY)


QUICKEST_FORMATS = {"loss": "{:.4f}", "amd's loss": "{:.4f}", "ms": "{:.1f}", "faster": "{:.0f}×"}
FORMATS = {
    "lowest loss": "{:.4f}",
    "with nfe": "{:.0f}",
    "nfe to amd's loss": "{:.0f}",
    "s to it": "{:.3f}",
    "fewer nfe": "{:.0f}×",
    "faster": "{:.0f}×",
}


def stop_of_amd(curves: pd.DataFrame) -> pd.Series:
    """Where the paper's AMD stopped of itself."""
    return curves[curves["solver"] == "amd"].iloc[-1]


def summary(curves: pd.DataFrame) -> pd.DataFrame:
    """One row a solver: the lowest loss it reached, and what it cost to reach the loss at which AMD stopped."""
    reference = stop_of_amd(curves)
    rows = []
    for name, curve in curves.groupby("solver"):
        best = curve.sort_values("loss").iloc[0]
        row = {"solver": name, "lowest loss": best["loss"], "with nfe": best["evaluations"]}
        if len(reached := curve[curve["loss"] <= reference["loss"]]):
            first = reached.sort_values("evaluations").iloc[0]
            row["nfe to amd's loss"] = first["evaluations"]
            row["s to it"] = first["seconds"]
            row["fewer nfe"] = reference["evaluations"] / first["evaluations"]
            row["faster"] = reference["seconds"] / first["seconds"]
        rows.append(row)
    return pd.DataFrame(rows).sort_values("nfe to amd's loss", na_position="last")


def plot(figure: Figure, curves: pd.DataFrame) -> None:
    by_evaluations, by_seconds = figure.subplots(1, 2, sharey=True)
    for axes, column, text in (
        (by_evaluations, "evaluations", "decoder evaluations per image"),
        (by_seconds, "seconds", "seconds for 64 images, one thread"),
    ):
        for name, curve in curves.groupby("solver"):
            ordered = curve.sort_values("evaluations")
            axes.plot(
                ordered[column],
                ordered["loss"],
                "o-",
                markersize=2.5,
                linewidth=1.2,
                color=COLOURS[str(name)],
                label=str(name),
            )
        axes.axhline(stop_of_amd(curves)["loss"], color="#D55E00", linestyle=":", linewidth=1, label="where amd stops")
        axes.set_xscale("log")
        axes.set_xlabel(text)
    by_evaluations.set_ylim(0.98 * curves["loss"].min(), 0.31)
    by_evaluations.set_ylabel("test loss (nats per pixel)")
    handles, labels = by_evaluations.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False, fontsize=8)
