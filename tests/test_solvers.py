"""What solvers find: the minimisers of problems whose minimisers are known, and of one another."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from problems import image_problem, linear_problem, solve

from gfe_study.solvers.amd import AMD
from gfe_study.solvers.base import Solver
from gfe_study.solvers.dopri5 import Dopri5
from gfe_study.solvers.fixed_grid import RK4, Euler
from gfe_study.solvers.gauss_newton import GaussNewton
from gfe_study.solvers.lbfgs import LBFGS
from gfe_study.solvers.nesterov_amd import NesterovAMD
from gfe_study.solvers.spectral import SpectralAMD

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
def test_every_solver_finds_the_linear_minimiser(solver: Solver) -> None:
    problem = linear_problem()
    _, minimiser = problem._gram_and_end()
    solution = solve(solver, problem)
    torch.testing.assert_close(solution.latent_BL, minimiser, rtol=0, atol=2e-6)
    torch.testing.assert_close(solution.loss_B, problem.loss(problem.decoder(minimiser), problem.target).detach())


def test_solvers_agree_on_a_cross_entropy_minimum() -> None:
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
