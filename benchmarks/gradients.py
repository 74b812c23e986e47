"""What the gradients with respect to the weights cost, beside the solve that they differentiate."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.common import LOSS, Bench, seconds
from gfe_study.gradients.adjoint import Adjoint
from gfe_study.gradients.approx import Approximate
from gfe_study.gradients.base import Gradient
from gfe_study.gradients.unrolled import Unrolled
from gfe_study.likelihoods.base import Observed
from gfe_study.models.base import Decoder
from gfe_study.solvers.base import Solution
from gfe_study.solvers.fields import GradientFlow
from gfe_study.solvers.fixed_grid import RK4, Euler, FixedGrid
from gfe_study.solvers.objective import Objective

BATCH, SLICES, TAU = 16, 50, 300.0


def kept_bytes(decoder: Decoder, gradient: Gradient, target: Observed, solution: Solution) -> int:
    """Bytes that autograd keeps for the backward pass at the worst moment; weights and the path not counted."""
    alive: dict[int, int] = {}
    worst = 0
    apart = {weight.untyped_storage().data_ptr() for weight in decoder.parameters()}
    if solution.path is not None:
        apart.add(solution.path.state_NBS.untyped_storage().data_ptr())

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal worst
            storage = tensor.untyped_storage()
            self.tensor, self.key = tensor, storage.data_ptr()
            if self.key not in apart:
                alive[self.key] = storage.nbytes()
            worst = max(worst, sum(alive.values()))

        def __del__(self) -> None:
            alive.pop(self.key, None)

    with saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        gradient.backward(Objective(decoder, LOSS, target), solution)
    return worst


def run(bench: Bench) -> None:
    decoder, target = bench.decoder(), bench.images(BATCH)
    latent = torch.randn(BATCH, next(decoder.parameters()).shape[1], generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def one_pass() -> None:
        decoder(latent)

    rows = []
    for solver in (Euler(tau=TAU, slices=SLICES + 1), RK4(tau=TAU, slices=SLICES + 1)):
        rows += [
            row(decoder, target, solver, gradient, one_pass) for gradient in (Approximate(), Adjoint(), Unrolled())
        ]
    formats = {"passes/slice": "{:.2f}", "ms": "{:.0f}", "ms/slice ÷ pass": "{:.1f}"}
    formats |= {"MiB kept": "{:.2f}", "÷ approx": "{:.2f}"}
    table = pd.DataFrame(rows)
    table["÷ approx"] = table["MiB kept"] / table["MiB kept"].iloc[0]
    bench.keep("gradients", f"Solve and gradient over {SLICES} slices, batch {BATCH}", table, formats)


def row(
    decoder: Decoder, target: Observed, solver: FixedGrid, gradient: Gradient, one_pass: object
) -> dict[str, object]:
    assert callable(one_pass)

    def solve() -> Solution:
        objective = Objective(decoder, LOSS, target)
        start = target.value_BD.new_zeros(len(target), next(decoder.parameters()).shape[1])
        return solver.solve(GradientFlow(), objective, start, keep_path=gradient.needs_path)

    def both() -> None:
        decoder.zero_grad(set_to_none=True)
        gradient.backward(Objective(decoder, LOSS, target), solve())

    solution = solve()
    done = gradient.backward(Objective(decoder, LOSS, target), solution)
    counts = (solution.nfe_forward_B, solution.nfe_backward_B, done.nfe_forward_B, done.nfe_backward_B)
    (taken,) = seconds(both, repeats=9)
    (evaluation,) = seconds(one_pass, repeats=15, calls=50)
    return {
        "solver": solver.name,
        "gradient": gradient.name,
        "passes/slice": sum(int(count[0]) for count in counts) / SLICES,
        "ms": 1e3 * taken,
        "ms/slice ÷ pass": taken / evaluation / SLICES,
        "MiB kept": kept_bytes(decoder, gradient, target, solution) / 2**20,
    }
