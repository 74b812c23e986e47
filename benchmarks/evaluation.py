"""One gradient evaluation of the decoder against the bare matrix products of the same shapes."""

from __future__ import annotations

import pandas as pd
import torch

from benchmarks.common import LOSS, Bench, seconds
from gfe_study.likelihoods.base import Observed
from gfe_study.models.base import Decoder
from gfe_study.models.mlp import MLPDecoder
from gfe_study.solvers.objective import Objective

BATCHES = (1, 8, 16, 64, 250)


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
