"""Whether replicates of one configuration would be quicker as one stacked trial than one after the other.

One loss and latent gradient of five decoders: each by itself, as trials do it; all in one `torch.func.vmap` over
stacked weights; and the bare batched products, below which no stacking can go.
"""

from __future__ import annotations

import pandas as pd
import torch
from torch.func import functional_call, grad, stack_module_state, vmap

from benchmarks.common import LOSS, Bench, console, seconds
from gfe_study.likelihoods.base import Observed
from gfe_study.models.base import Decoder
from gfe_study.solvers.objective import Objective

SEEDS = 5
BATCHES = (1, 16, 64)


def run(bench: Bench) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = bench.trial(preset="best").model
    decoders: list[Decoder] = [model.decoder(bench.splits.shape).to(device) for _ in range(SEEDS)]
    stacked, _ = stack_module_state(decoders)
    stacked = {name: weight.detach() for name, weight in stacked.items()}
    weights = [weight for name, weight in stacked.items() if name.endswith("weight")]
    rows = []
    for batch in BATCHES:
        target = Observed(bench.images(batch).value_BD.to(device))
        latent = torch.randn(SEEDS, batch, weights[0].shape[2], device=device)
        objectives = [Objective(decoder, LOSS, target) for decoder in decoders]

        @torch.no_grad()
        def by_themselves(latent: torch.Tensor = latent, objectives: list[Objective] = objectives) -> None:
            for start, objective in zip(latent, objectives, strict=True):
                _, pullback = objective.evaluate(start)
                pullback(None)
            _wait(device)

        def loss(params: dict[str, torch.Tensor], z: torch.Tensor, target: Observed = target) -> torch.Tensor:
            loss_B: torch.Tensor = LOSS(functional_call(decoders[0], params, (z,)), target)
            return loss_B.sum()

        def together(latent: torch.Tensor = latent) -> None:
            vmap(grad(loss, argnums=1))(stacked, latent)
            _wait(device)

        inputs = [torch.randn(SEEDS, batch, weight.shape[2], device=device) for weight in weights]
        outputs = [torch.randn(SEEDS, batch, weight.shape[1], device=device) for weight in weights]

        @torch.no_grad()
        def floor(inputs: list[torch.Tensor] = inputs, outputs: list[torch.Tensor] = outputs) -> None:
            for x, g, weight in zip(inputs, outputs, weights, strict=True):
                torch.bmm(x, weight.transpose(1, 2))
                torch.bmm(g, weight)
            _wait(device)

        alone, stack, least = seconds(by_themselves, together, floor, repeats=15, calls=10)
        rows.append(
            {
                "batch": batch,
                "each by itself, ms": 1e3 * alone,
                "stacked, ms": 1e3 * stack,
                "stacked ÷ by itself": stack / alone,
                "floor of stacking ÷ by itself": least / alone,
            }
        )
    numbers = {"each by itself, ms": "{:.2f}", "stacked, ms": "{:.2f}"}
    numbers |= {"stacked ÷ by itself": "{:.2f}", "floor of stacking ÷ by itself": "{:.2f}"}
    console.print(f"device: {device}")
    bench.keep("seeds", f"{SEEDS} seeds: one loss and latent gradient", pd.DataFrame(rows), numbers)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
