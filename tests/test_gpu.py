"""The same results on a GPU as on the CPU. Skipped, with a word, where there is no CUDA device."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from typing import Any

import pytest
import torch
from problems import Problem, image_problem
from torch import Tensor

from gfe_study import registry
from gfe_study.config import Trial
from gfe_study.data.split import Splits
from gfe_study.likelihoods.base import Observed
from gfe_study.methods.ae import EncoderMethod
from gfe_study.methods.closed_form import ClosedForm
from gfe_study.metrics import VAL_LOSS
from gfe_study.solvers.base import Solution, Solver
from gfe_study.solvers.fields import GradientFlow
from gfe_study.training import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: GPU results are not compared here"),
]

METHODS_AND_STARTS = [
    (method, start)
    for method, start in itertools.product(registry.names("method"), registry.names("start"))
    if start == "zero" or not issubclass(registry.component("method", method), ClosedForm)
    if start != "previous" or not issubclass(registry.component("method", method), EncoderMethod)
]
FEW: dict[str, dict[str, Any]] = {
    "amd": {"s_max": 100, "max_nfe": 25},
    "amd_nesterov": {"s_max": 100, "max_nfe": 25},
    "amd_spectral": {"s_initial": 10, "max_nfe": 15},
    "dopri5": {"tau": 10},
    "euler": {"tau": 10, "slices": 12},
    "gauss_newton": {"max_nfe": 20},
    "lbfgs": {"max_nfe": 12},
    "rk4": {"tau": 10, "slices": 8},
}


def on(device: str, problem: Problem) -> Problem:
    return dataclasses.replace(
        problem, decoder=copy.deepcopy(problem.decoder).to(device), target=Observed(problem.target_BD.to(device))
    )


def solve(problem: Problem, solver: Solver) -> Solution:
    flow = GradientFlow(alpha="constant")
    return solver.solve(flow, problem.objective(), problem.start(), keep_path=True)


@pytest.mark.parametrize("name", registry.names("solver"))
def test_a_solver_gives_the_same_on_both(name: str) -> None:
    solver = registry.component("solver", name)(**FEW.get(name, {}))
    problem = image_problem(batch=32)
    here, there = (solve(on(device, problem), solver) for device in ("cpu", "cuda"))
    torch.testing.assert_close(there.latent_BL.cpu(), here.latent_BL, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(there.loss_B.cpu(), here.loss_B, rtol=1e-8, atol=1e-10)
    assert torch.equal(there.nfe_forward_B.cpu(), here.nfe_forward_B)
    assert torch.equal(there.result_B.cpu(), here.result_B)


@pytest.mark.parametrize("name", registry.names("gradient"))
@pytest.mark.parametrize("solver", ["euler", "rk4", "amd", "amd_spectral", "dopri5"])
def test_a_gradient_is_the_same_on_both(name: str, solver: str) -> None:
    gradients: list[list[Tensor]] = []
    for device in ("cpu", "cuda"):
        problem = on(device, image_problem(batch=8))
        solution = solve(problem, registry.component("solver", solver)(**FEW[solver]))
        registry.component("gradient", name)().backward(problem.objective(), solution)
        gradients.append([w.grad.cpu() for w in problem.decoder.parameters() if w.grad is not None])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("method", "start"), METHODS_AND_STARTS)
def test_training_gives_the_same_on_both(method: str, start: str, digits: Splits) -> None:
    """To the precision of float32."""
    trial = Trial.build(
        {"method": method, "start": start, "model": {"hidden": [48]}, "solver": {"name": "lbfgs", "max_nfe": 8}},
        {"budget": {"images": 320}, "eval": {"val_images": 40, "test_images": 40}},
    )
    losses = []
    for device in ("cpu", "cuda"):
        *_, last = train(trial, digits, device=device)
        assert last.metrics is not None
        losses.append(last.metrics[VAL_LOSS])
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)
