"""One gradient evaluation of the decoder, and a whole solve, against the bare matrix products of the same shapes."""

from __future__ import annotations

import subprocess
import sys

import pandas as pd
import torch

from benchmarks.common import LOSS, Bench, seconds
from gfe_study.likelihoods.base import Observed
from gfe_study.models.base import Decoder, Products
from gfe_study.models.mlp import MLPDecoder
from gfe_study.solvers.fields import GradientFlow
from gfe_study.solvers.lbfgs import LBFGS
from gfe_study.solvers.objective import Objective

BATCHES = (1, 8, 16, 64, 250)
SOLVE_NFE = 12
FLOW = GradientFlow(alpha="constant")
FRESH = """
import time, torch
torch.set_num_threads(1)
values = torch.randn(16, 600)
def elu():
    began = time.perf_counter()
    for _ in range(500):
        torch.nn.functional.elu(values)
    return (time.perf_counter() - began) / 500
elu()
before = elu()
torch.nn.functional.gelu(torch.zeros(64), approximate="tanh")
elu()
print(before, elu())
"""
"""Seconds of an ELU in a fresh process, before and after what `models.base` does when it is imported."""


def run(bench: Bench) -> None:
    decoder = bench.decoder()
    assert isinstance(decoder, MLPDecoder)
    weights = [layer.weight.detach() for layer in decoder.linears()]
    rows = []
    for batch in BATCHES:
        target = bench.images(batch)
        latent = torch.randn(batch, weights[0].shape[1], generator=torch.Generator().manual_seed(0))
        whole = Objective(decoder, LOSS, target)
        inputs = [torch.randn(batch, weight.shape[1]) for weight in weights]
        outputs = [torch.randn(batch, weight.shape[0]) for weight in weights]

        @torch.no_grad()
        def products(inputs: list[torch.Tensor] = inputs, outputs: list[torch.Tensor] = outputs) -> None:
            for x, g, weight in zip(inputs, outputs, weights, strict=True):
                torch.mm(x, weight.t())
                torch.mm(g, weight)

        @torch.no_grad()
        def ours(latent: torch.Tensor = latent, objective: Objective = whole) -> None:
            _, pullback = objective.evaluate(latent)
            pullback(None)

        def autograd(latent: torch.Tensor = latent, target: Observed = target) -> None:
            Decoder.latent_gradient(decoder, LOSS, latent.clone().requires_grad_(), target)

        def plain(latent: torch.Tensor = latent, target: Observed = target) -> None:
            z = latent.clone().requires_grad_()
            torch.autograd.grad(LOSS(decoder(z), target).sum(), z)

        floor, fused, by_autograd, with_graph = seconds(products, ours, plain, autograd, repeats=15, calls=20)
        rows.append(
            {
                "batch": batch,
                "floor, ms": 1e3 * floor,
                "ours, ms": 1e3 * fused,
                "÷ floor": fused / floor,
                "autograd ÷ floor": by_autograd / floor,
                "with its graph ÷ floor": with_graph / floor,
            }
        )
    numbers = {"floor, ms": "{:.2f}", "ours, ms": "{:.2f}", "÷ floor": "{:.2f}"}
    numbers |= {"autograd ÷ floor": "{:.2f}", "with its graph ÷ floor": "{:.2f}"}
    bench.keep(
        "evaluation", "One loss and its latent gradient; floor: its bare matrix products", pd.DataFrame(rows), numbers
    )
    solves = pd.DataFrame([solve(bench, decoder, batch, products) for batch in (16, 128) for products in PRODUCTS])
    numbers = {"products, ms": "{:.2f}", "evaluation ÷ products": "{:.2f}", "solve ÷ products": "{:.2f}"}
    bench.keep("solve", f"L-BFGS with {SOLVE_NFE} evaluations; products: those it needs, alone", solves, numbers)
    before, after = map(float, subprocess.check_output([sys.executable, "-c", FRESH], text=True).split())
    fresh = pd.DataFrame([{"ELU in a fresh process, µs": 1e6 * before, "once woken, µs": 1e6 * after}])
    bench.keep("fresh", "An ELU of 16 × 600 values", fresh, {str(name): "{:.1f}" for name in fresh})


PRODUCTS: tuple[Products, ...] = ("float32", "bf16")


def solve(bench: Bench, decoder: MLPDecoder, batch: int, products: Products) -> dict[str, object]:
    """A solve against the products of its evaluations and pullbacks, in the same type."""
    target = bench.images(batch)
    weights = Objective(decoder, LOSS, target, products=products).frozen.weights  # type: ignore[attr-defined]
    start = torch.zeros(batch, weights[0].shape[1])
    whole = Objective(decoder, LOSS, target, products=products)
    inputs = [torch.randn(batch, weight.shape[1]).to(weight.dtype) for weight in weights]
    outputs = [torch.randn(batch, weight.shape[0]).to(weight.dtype) for weight in weights]
    solver = LBFGS(max_nfe=SOLVE_NFE, min_slope=0)

    @torch.no_grad()
    def bare() -> None:
        for x, weight in zip(inputs, weights, strict=True):
            torch.nn.functional.linear(x, weight)
        for g, weight in zip(reversed(outputs), reversed(weights), strict=True):
            torch.mm(g, weight)

    def evaluation() -> None:
        _, pullback = whole.evaluate(start)
        pullback(None)

    def solving() -> None:
        solver.solve(FLOW, Objective(decoder, LOSS, target, products=products), start)

    floor, one = seconds(bare, evaluation, repeats=15, calls=20)
    alone, all_of_it = seconds(lambda: [bare() for _ in range(SOLVE_NFE)], solving, repeats=15)
    return {
        "batch": batch,
        "type": products,
        "products, ms": 1e3 * floor,
        "evaluation ÷ products": one / floor,
        "solve ÷ products": all_of_it / alone,
    }
