from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from problems import image_problem, linear_problem

from gfe_study.solvers.fields import Alpha, GradientFlow, NesterovFlow, alpha_at
from gfe_study.solvers.fixed_grid import RK4

SCHEDULES: dict[Alpha, Any] = {"constant": lambda t, tau: 1.0, "exponential": lambda t, tau: math.exp(-2 * t / tau)}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t", [0.0, 1.5, 10.0])
def test_alpha(schedule: Alpha, t: float) -> None:
    assert alpha_at(schedule, t, 10.0) == pytest.approx(SCHEDULES[schedule](t, 10.0), rel=1e-15)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gradient_flow_descends_at_the_rate_alpha(schedule: Alpha) -> None:
    problem = image_problem()
    z = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rate = GradientFlow(alpha=schedule).derivative(problem.objective(), 3.0, 10.0, z)
    torch.testing.assert_close(rate, -SCHEDULES[schedule](3.0, 10.0) * problem.gradient(z))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nesterov_flow_is_damped_by_3_over_t(schedule: Alpha) -> None:
    problem = image_problem()
    z, v = torch.randn(2, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    flow = NesterovFlow(alpha=schedule)
    rate = flow.derivative(problem.objective(), 3.0, 10.0, torch.cat([z, v], dim=1))
    force = -SCHEDULES[schedule](3.0, 10.0) * problem.gradient(z)
    torch.testing.assert_close(rate, torch.cat([v, force - 3 / 3.0 * v], dim=1))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nesterov_flow_has_its_limit_at_t_0(schedule: Alpha) -> None:
    problem, flow = image_problem(), NesterovFlow(alpha=schedule)
    at_0 = flow.derivative(problem.objective(), 0.0, 10.0, flow.lift(problem.start()))
    # Where v = c·t, dv/dt must be c: the velocity that the limit starts is the one that the damping keeps.
    t = 1e-7
    state = torch.cat([problem.start(), t * at_0[:, 2:]], dim=1)
    soon = flow.derivative(problem.objective(), t, 10.0, state)
    torch.testing.assert_close(at_0[:, 2:], soon[:, 2:], rtol=1e-6, atol=1e-12)
    assert at_0[:, 2:].abs().min() > 0
    assert torch.equal(at_0[:, :2], problem.start())


@pytest.mark.parametrize("t", [0.5, 3.0, 12.0])
def test_nesterov_flow_hits_its_closed_form(t: float) -> None:
    problem = linear_problem()
    solution = RK4(tau=t, slices=151).solve(NesterovFlow(), problem.objective(), problem.start())
    torch.testing.assert_close(solution.latent_BL, problem.nesterov_flow(t), rtol=0, atol=1e-6)


@pytest.mark.parametrize("first_step", [1e-6, 1e-2, 1.0])
def test_the_first_nesterov_step_goes_downhill(first_step: float) -> None:
    problem, flow = image_problem(), NesterovFlow()
    state = RK4(tau=10).step(flow, problem.objective(), 0.0, first_step, flow.lift(problem.start()))
    moved = flow.latent(state) - problem.start()
    assert ((moved * problem.gradient(problem.start())).sum(-1) < 0).all()
    before = problem.loss(problem.decoder(problem.start()), problem.target)
    after = problem.loss(problem.decoder(flow.latent(state)), problem.target)
    assert (after < before).all()


@pytest.mark.parametrize("flow", [GradientFlow(), NesterovFlow()], ids=str)
def test_a_lifted_latent_comes_back(flow: GradientFlow | NesterovFlow) -> None:
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(flow.latent(flow.lift(z)), z)
