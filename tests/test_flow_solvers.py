"""The solvers that follow a flow whatever it does to the loss: Euler and RK4 on a fixed grid, and dopri5."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import CONSTANT, Problem, image_problem, linear_problem, properties, solve
from torch import Tensor
from torchdiffeq import odeint

from gfe_study.solvers.amd import AMD
from gfe_study.solvers.base import Result
from gfe_study.solvers.dopri5 import Dopri5
from gfe_study.solvers.fields import GradientFlow, NesterovFlow
from gfe_study.solvers.fixed_grid import RK4, Euler, FixedGrid, logarithmic_grid
from gfe_study.solvers.spectral import SpectralAMD


def clock(alpha: str, tau: float) -> float:
    """∫₀^τ α dt."""
    return tau if alpha == "constant" else tau / 2 * (1 - math.exp(-2))


@pytest.mark.parametrize("alpha", ["constant", "exponential"])
def test_rk4_hits_the_closed_form(alpha: str) -> None:
    problem = linear_problem()
    solution = solve(RK4(tau=4, slices=120), problem, GradientFlow(alpha=alpha))
    torch.testing.assert_close(solution.latent_BL, problem.gradient_flow(clock(alpha, 4)), rtol=0, atol=1e-7)
    assert solution.result_B.tolist() == [Result.REACHED_TAU] * 4
    assert solution.time_B.tolist() == [4.0] * 4
    assert solution.num_steps_B.tolist() == [119] * 4
    # Four gradients a step, and the loss at the end.
    assert solution.nfe_forward_B.tolist() == [4 * 119 + 1] * 4
    assert solution.nfe_backward_B.tolist() == [4 * 119] * 4


@pytest.mark.parametrize("alpha", ["constant", "exponential"])
@pytest.mark.parametrize("base", [1.0, 1.01, 4.0])
@pytest.mark.parametrize(("kind", "order", "tolerance"), [(Euler, 1, 0.15), (RK4, 4, 0.5)])
def test_fixed_grids_are_of_their_textbook_order(
    kind: type[FixedGrid], order: int, tolerance: float, base: float, alpha: str
) -> None:
    problem = linear_problem()
    exact = problem.gradient_flow(clock(alpha, 4))
    errors = []
    for steps in (32, 64):
        solution = solve(kind(tau=4, slices=steps + 1, base=base), problem, GradientFlow(alpha=alpha))
        errors.append((solution.latent_BL - exact).norm().item())
    assert order - tolerance < math.log2(errors[0] / errors[1]) < order + tolerance


@pytest.mark.parametrize("alpha", ["constant", "exponential"])
def test_dopri5_is_exact_within_its_tolerance(alpha: str) -> None:
    problem = linear_problem(batch=2)
    exact, errors = problem.gradient_flow(clock(alpha, 2)), []
    for tolerance in (1e-4, 1e-7, 1e-10):
        solver = Dopri5(tau=2, rtol=tolerance, atol=tolerance)
        solution = solve(solver, problem, GradientFlow(alpha=alpha))
        assert solution.result_B.tolist() == [Result.REACHED_TAU] * 2
        assert solution.time_B.tolist() == [2.0] * 2
        errors.append((solution.latent_BL - exact).abs().max().item())
        assert errors[-1] < 20 * tolerance
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_dopri5_ends_at_its_cap_in_its_last_state() -> None:
    """The last that it accepted."""
    problem, seen = image_problem(gain=5), []
    stiff = Dopri5(tau=1e6, max_nfe=100)
    solution = solve(stiff, problem, observe=lambda step: seen.append((step["row"].item(), step["latent"][0])))
    assert solution.result_B.tolist() == [Result.MAX_NFE] * 4
    assert (solution.nfe_forward_B <= 100).all()
    assert (solution.nfe_forward_B > 90).all()
    assert ((solution.time_B > 0) & (solution.time_B < 1e6)).all()
    for sample in range(4):
        last = [latent for row, latent in seen if row == sample][-1]
        assert torch.equal(solution.latent_BL[sample], last)


def reference_rate(problem: Problem, flow: Any, tau: float) -> Callable[[Tensor, Tensor], Tensor]:
    """ds/dt from the equations, by autograd, for torchdiffeq."""

    def rate(t: Tensor, state: Tensor) -> Tensor:
        alpha = torch.exp(-2 * t / tau) if flow.alpha == "exponential" else 1.0
        if isinstance(flow, GradientFlow):
            return -alpha * problem.gradient(state)
        latent, velocity = state.chunk(2, dim=-1)
        force = -alpha * problem.gradient(latent)
        return torch.cat([velocity, force / 4 if t == 0 else force - 3 / t * velocity], dim=-1)

    return rate


FINE = [(RK4(tau=3, slices=38), "rk4"), (RK4(tau=3, slices=38), "dopri5"), (Euler(tau=3, slices=38), "euler")]
CONTROLLED = (Dopri5(tau=3, rtol=1e-9, atol=1e-10), "rk4")


@pytest.mark.parametrize(("solver", "method"), [*FINE, CONTROLLED])
@pytest.mark.parametrize("flow", [GradientFlow(), CONSTANT, NesterovFlow(), NesterovFlow(alpha="exponential")], ids=str)
def test_flow_solvers_agree_with_torchdiffeq(flow: Any, solver: Any, method: str) -> None:
    problem = image_problem(batch=2)
    solution = solve(solver, problem, flow)
    grid = torch.tensor(logarithmic_grid(3, 76 if solver is CONTROLLED[0] else 38), dtype=torch.float64)
    reached = odeint(
        reference_rate(problem, flow, solver.tau),
        flow.lift(problem.start()),
        grid[[0, -1]] if method == "dopri5" else grid,
        method=method,
        rtol=1e-9,
        atol=1e-9,
    )
    torch.testing.assert_close(solution.latent_BL, reached[-1, :, :2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [AMD, SpectralAMD])
def test_amd_of_equal_steps_is_torchdiffeqs_euler(kind: Any) -> None:
    problem, step = image_problem(), 1 / 16
    lengths = {"s_initial": step, "s_max": step, "min_slope": 0, "tau": 4}
    solution = solve(kind(**lengths, **({"s_min": step} if kind is SpectralAMD else {})), problem)
    times = torch.arange(65, dtype=torch.float64) * step
    reached = odeint(reference_rate(problem, CONSTANT, 4), problem.start(), times, method="euler")
    assert solution.result_B.tolist() == [Result.REACHED_TAU] * 4
    torch.testing.assert_close(solution.latent_BL, reached[-1], rtol=0, atol=1e-10)


@given(st.floats(1e-3, 1e6), st.integers(2, 200))
@properties
def test_logarithmic_steps_grow_to_base_4(tau: float, slices: int) -> None:
    grid = logarithmic_grid(tau, slices)
    assert (grid[0], grid[-1], len(grid)) == (0.0, tau, slices)
    steps = [b - a for a, b in itertools.pairwise(grid)]
    ratios = [b / a for a, b in itertools.pairwise(steps)]
    assert ratios == pytest.approx([4 ** (1 / (slices - 1))] * (slices - 2), rel=1e-6)


def test_rk4_shows_every_time_of_the_grid() -> None:
    seen: list[float] = []
    solve(RK4(tau=3, slices=6), image_problem(), observe=lambda step: seen.append(step["time"][0].item()))
    assert seen == logarithmic_grid(3, 6)[1:]
