"""What every solver promises."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import CONSTANT, Problem, image_problem, linear_problem, solve
from torch import Tensor

from gfe_study import registry
from gfe_study.models.base import Linearizable
from gfe_study.models.mlp import MLPDecoder
from gfe_study.solvers.amd import AMD
from gfe_study.solvers.base import Result, Solution, Solver
from gfe_study.solvers.descent import DescentSolver
from gfe_study.solvers.dopri5 import Dopri5
from gfe_study.solvers.fixed_grid import RK4, Euler
from gfe_study.solvers.gauss_newton import GaussNewton
from gfe_study.solvers.lbfgs import LBFGS
from gfe_study.solvers.nesterov_amd import NesterovAMD
from gfe_study.solvers.spectral import SpectralAMD

PER_SAMPLE = ("loss_B", "time_B", "result_B", "num_steps_B", "nfe_forward_B", "nfe_backward_B")


def rows(solution: Solution, row: Any) -> dict[str, Tensor]:
    return {name: getattr(solution, name)[row] for name in ("latent_BL", *PER_SAMPLE)}


OVERFLOWING = [
    AMD(tau=5),
    RK4(tau=5, slices=9),
    Euler(tau=5, slices=40),
    Dopri5(tau=5),
    SpectralAMD(s_initial=1, tau=5),
    NesterovAMD(max_nfe=60),
    LBFGS(s_initial=1),
    GaussNewton(),
]


@pytest.mark.parametrize("solver", OVERFLOWING, ids=lambda solver: solver.name)
def test_a_sample_that_overflows_is_reported_and_leaves_the_others_alone(solver: Solver) -> None:
    problem = linear_problem()
    start = problem.start()
    alone = solve(solver, problem)
    start[2] = 1e200
    beside = solver.solve(CONSTANT, problem.objective(), start)
    assert beside.result_B[2] == Result.NONFINITE
    others = [0, 1, 3]
    assert Result.NONFINITE not in beside.result_B[others]
    torch.testing.assert_close(rows(beside, others), rows(alone, others), rtol=1e-12, atol=1e-12)


class CountingDecoder(MLPDecoder):
    """Counts the rows it evaluates and pulls back."""

    evaluated = pulled_back = 0

    def frozen(self) -> Linearizable:  # type: ignore[override]
        return self

    def linearize(self, latent_KL: Tensor) -> tuple[Tensor, Callable[[Tensor, Tensor | None], Tensor]]:
        output_KD, vjp = super().frozen().linearize(latent_KL)
        self.evaluated += len(latent_KL)

        def counting(grad: Tensor, selected: Tensor | None) -> Tensor:
            self.pulled_back += len(grad)
            return vjp(grad, selected)

        return output_KD, counting


COUNTED = [
    AMD(s_max=300, max_nfe=30, tau=50),
    RK4(slices=6),
    Euler(slices=6),
    Dopri5(tau=5, max_nfe=40),
    SpectralAMD(max_nfe=30),
    NesterovAMD(max_nfe=30),
    LBFGS(max_nfe=30),
]


@pytest.mark.parametrize("solver", COUNTED, ids=lambda solver: solver.name)
def test_counters_add_up_to_what_the_decoder_did(solver: Solver) -> None:
    problem = image_problem(batch=9, gain=3)
    decoder = CountingDecoder([2, 9, 7]).double()
    decoder.load_state_dict(problem.decoder.state_dict())
    solution = solve(solver, Problem(decoder, problem.loss, problem.target))
    assert solution.nfe_forward_B.sum() == decoder.evaluated
    assert solution.nfe_backward_B.sum() == decoder.pulled_back


ALONE = [
    AMD(s_max=300, max_nfe=60, tau=200, min_slope=1e-5),
    RK4(tau=20, slices=12),
    Euler(tau=20, slices=12),
    Dopri5(tau=6, max_nfe=40),
    SpectralAMD(s_initial=10, min_slope=1e-5, tau=3e3, max_nfe=25),
    NesterovAMD(s_max=300, max_nfe=60, min_slope=1e-5),
    LBFGS(max_nfe=14, min_slope=1e-4),
    GaussNewton(max_nfe=40),
]


def companies(batch: int) -> list[slice]:
    """The samples in other company: the first ones alone, the others in ever larger groups."""
    return [slice(a, b) for a, b in itertools.pairwise([*range(batch // 8 + 1), batch // 4, batch // 2, batch])]


@pytest.mark.parametrize("solver", ALONE, ids=lambda solver: solver.name)
def test_a_sample_does_not_depend_on_its_batch(solver: Solver) -> None:
    batch = 64 if isinstance(solver, DescentSolver) else 16
    problem = image_problem(batch=batch, seed=3)
    together = solve(solver, problem)
    if isinstance(solver, DescentSolver):
        # They ended for different reasons, after different numbers of evaluations.
        assert len(Counter(together.result_B.tolist())) > 1
        assert len(Counter(together.nfe_forward_B.tolist())) > 3
    for row in companies(batch):
        apart = solver.solve(CONSTANT, problem.objective(row), problem.start()[row])
        torch.testing.assert_close(rows(together, row), rows(apart, slice(None)), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", registry.names("solver"))
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_numbers_are_refused_by_sample(name: str, bad: float) -> None:
    solver, problem = registry.component("solver", name)(), image_problem()
    start = problem.start()
    start[2, 1] = bad
    with pytest.raises(ValueError, match=r"start latent of sample 2\b"):
        solver.solve(CONSTANT, problem.objective(), start)
    problem.target_BD[3, 0] = bad
    with pytest.raises(ValueError, match=r"values in sample 3\b"):
        problem.objective()


MINIMISERS = [
    AMD(s_max=1.0, s_initial=0.1, min_slope=0),
    SpectralAMD(s_initial=0.1, min_slope=0),
    SpectralAMD(s_initial=0.1, min_slope=0, memory=1),
    NesterovAMD(s_initial=0.1, s_max=1.0, min_slope=0),
    LBFGS(s_initial=0.1, min_slope=0),
    LBFGS(s_initial=0.1, min_slope=0, pairs=1),
    GaussNewton(min_slope=0),
    RK4(tau=100, slices=200, base=1),
    Euler(tau=100, slices=200, base=1),
    Dopri5(tau=60, rtol=1e-6, atol=1e-7),
]


@pytest.mark.parametrize("solver", MINIMISERS, ids=str)
def test_every_solver_reaches_the_minimiser_of_a_linear_decoder(solver: Solver) -> None:
    problem = linear_problem()
    _, minimiser = problem._gram_and_end()
    solution = solve(solver, problem)
    torch.testing.assert_close(solution.latent_BL, minimiser, rtol=0, atol=2e-6)
    torch.testing.assert_close(solution.loss_B, problem.loss(problem.decoder(minimiser), problem.target).detach())


def test_different_solvers_agree_on_a_minimum_of_the_cross_entropy() -> None:
    problem = image_problem(gain=1.0)
    # The loss of sample 0 has no minimiser: it falls on and on.
    problem = dataclasses.replace(problem, target=problem.target[1:])
    solvers: list[Solver] = [
        SpectralAMD(min_slope=0),
        LBFGS(min_slope=0),
        GaussNewton(min_slope=0),
        NesterovAMD(min_slope=0),
    ]
    solutions = [solve(solver, problem) for solver in solvers]
    for solution in solutions:
        torch.testing.assert_close(solution.loss_B, solutions[0].loss_B, rtol=1e-10, atol=0)
        assert problem.gradient(solution.latent_BL).abs().max() < 1e-7
