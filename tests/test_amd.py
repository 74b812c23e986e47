"""AMD, arXiv:2412.00864 Algorithm 1."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import Problem, image_problem, image_problems, linear_problem, properties, scalar_problem, solve
from torch import Tensor

from gfe_study.likelihoods.base import Observed
from gfe_study.solvers.amd import AMD
from gfe_study.solvers.base import MESSAGES, Result

amd_settings = st.builds(
    AMD,
    beta=st.floats(0.2, 0.9),
    s_initial=st.floats(0.1, 40),
    s_max=st.sampled_from([40.0, 300.0]),
    kappa=st.floats(1, 3),
    sigma=st.sampled_from([0.0, 1e-3, 0.3]),
    tau=st.sampled_from([40.0, 300.0, 1e4]),
    min_slope=st.sampled_from([1e-5, 1e-3]),
    window=st.integers(1, 6),
    max_backtracks=st.sampled_from([1, 5, 40]),
    max_nfe=st.sampled_from([1, 9, 80, 81]),
    scale_update=st.sampled_from(["accepted", "scale"]),
)


@properties
@given(amd_settings, image_problems)
def test_amd_is_algorithm_1_on_each_sample_alone(solver: AMD, problem: Problem) -> None:
    oracles.check_followed(partial(oracles.amd, solver), solver, problem, rel=1e-10, latent_rel=1e-8)


Round = dict[str, Any]


def accepted_steps(solver: AMD, problem: Problem) -> list[tuple[int, Round, Round]]:
    """(sample, before, after) of every accepted step, from what the solver lets its observer see."""
    start = problem.start()
    first = {"num_steps": 0, "time": 0.0, "trial_step": solver.s_initial}
    loss_B = problem.loss(problem.decoder(start), problem.target)
    last: dict[int, Round] = {i: {**first, "latent": z, "loss": loss_B[i].item()} for i, z in enumerate(start)}
    steps = []

    def observe(active: dict[str, Tensor]) -> None:
        for k, sample in enumerate(active["row"].tolist()):
            now: Round = {name: active[name][k].item() for name in ("num_steps", "time", "trial_step", "loss")}
            now["latent"] = active["latent"][k]
            if now["num_steps"] > last[sample]["num_steps"]:
                steps.append((sample, last[sample], now))
            last[sample] = now

    solve(solver, problem, observe=observe)
    return steps


@properties
@given(amd_settings, image_problems)
def test_amd_takes_the_longest_step_that_descends(solver: AMD, problem: Problem) -> None:
    for sample, before, after in accepted_steps(solver, problem):
        evaluate = oracles.sample_of(problem, sample)
        dt, left = after["time"] - before["time"], solver.tau - before["time"]
        longest, reached = oracles.longest_step(solver, evaluate, before["latent"].tolist(), before["trial_step"], left)
        assert dt == pytest.approx(longest, rel=1e-9, abs=1e-9)
        assert after["latent"].tolist() == pytest.approx(reached, rel=1e-9, abs=1e-9)
        assert after["loss"] < before["loss"]
        assert after["time"] <= solver.tau
        assert solver.s_initial <= before["trial_step"] <= solver.s_max


@pytest.mark.parametrize(
    ("reason", "options"),
    [
        (Result.REACHED_TAU, {"tau": 7.3}),
        (Result.SLOPE, {"min_slope": 1e-3}),
        (Result.NO_DESCENT, {"min_slope": 0.0, "max_nfe": 100_000}),
        (Result.MAX_NFE, {"max_nfe": 9}),
    ],
)
def test_amd_says_why_each_sample_stopped(reason: Result, options: dict[str, float]) -> None:
    problem = linear_problem() if reason is Result.NO_DESCENT else image_problem()
    solution = solve(AMD(**options), problem)
    assert solution.result_B.tolist() == [reason] * 4
    assert reason in MESSAGES
    if reason is Result.REACHED_TAU:
        assert solution.time_B.tolist() == [7.3] * 4
    if reason is Result.NO_DESCENT:
        assert problem.gradient(solution.latent_BL).abs().max() < 1e-6
    if reason is Result.MAX_NFE:
        assert solution.nfe_forward_B.tolist() == [9] * 4


@properties
@given(st.floats(0.5, 10), st.floats(0.1, 5), st.floats(1.1, 50))
def test_amd_hits_tau_exactly_and_never_passes_it(tau: float, s_initial: float, kappa: float) -> None:
    times: list[float] = []
    solver = AMD(tau=tau, s_initial=s_initial, s_max=100, kappa=kappa, min_slope=0)
    solution = solve(solver, image_problem(gain=1), observe=lambda active: times.extend(active["time"].tolist()))
    assert solution.result_B.tolist() == [Result.REACHED_TAU] * 4
    assert solution.time_B.tolist() == [tau] * 4
    assert max(times) == tau


def test_a_sample_within_rounding_of_tau_is_there() -> None:
    # Ten times 0.1 is 1 − 1e-16: no step of the length that is left can lower a loss.
    solution = solve(AMD(tau=1, s_initial=0.1, s_max=0.1, min_slope=0), image_problem(gain=1))
    assert solution.result_B.tolist() == [Result.REACHED_TAU] * 4
    assert solution.time_B.tolist() == [1.0] * 4
    assert solution.nfe_forward_B.tolist() == [11] * 4


def test_tau_cuts_the_first_step_too() -> None:
    solution = solve(AMD(tau=0.6, s_initial=1.9), scalar_problem([1.0]))
    assert (solution.latent_BL.item(), solution.time_B.item(), solution.num_steps_B.item()) == (0.6, 0.6, 1)


def test_a_step_cut_by_tau_is_tried_once() -> None:
    solution = solve(AMD(s_initial=100, s_max=100, tau=0.2, beta=0.5, min_slope=0), scalar_problem([1.0], weight=4))
    assert solution.result_B.tolist() == [Result.REACHED_TAU]
    assert solution.nfe_forward_B.item() == 5  # the start, 0.2 and 0.195 in vain, 0.098, the rest


def test_amd_at_a_minimum_tries_every_m_and_stays() -> None:
    solution = solve(AMD(max_backtracks=6), scalar_problem([0.0]))
    assert solution.result_B.tolist() == [Result.NO_DESCENT]
    assert (solution.nfe_forward_B.item(), solution.nfe_backward_B.item()) == (1 + 7, 1)
    assert (solution.latent_BL.item(), solution.time_B.item(), solution.num_steps_B.item()) == (0, 0, 0)


@pytest.mark.parametrize(("scale_update", "second_step"), [("accepted", 1.5), ("scale", 1.8)])
def test_amd_grows_the_accepted_step_or_its_scale(scale_update: str, second_step: float) -> None:
    # Under ½(z − y)² a step lowers the loss where it is below 2: 3 is refused and halved, then 3 or 1.2 · 3 is.
    solver = AMD(s_initial=3, s_max=100, beta=0.5, kappa=1.2, scale_update=scale_update, max_nfe=5)
    steps = accepted_steps(solver, scalar_problem([1.0]))
    assert [after["time"] for _, _, after in steps] == pytest.approx([1.5, 1.5 + second_step])


@pytest.mark.parametrize(("sigma", "first_step"), [(0.0, 1.5), (0.4, 0.75)])
def test_amd_asks_for_sufficient_descent(sigma: float, first_step: float) -> None:
    # Under ½(z − y)² a step s lowers the loss enough where s < 2 − 2σ.
    steps = accepted_steps(AMD(s_initial=1.5, beta=0.5, sigma=sigma, max_nfe=3), scalar_problem([1.0]))
    assert steps[0][2]["time"] == first_step


@pytest.mark.parametrize("solver", [AMD(tau=1e-50), AMD(beta=0.05, max_nfe=3000, min_slope=0)], ids=str)
def test_amd_ends_where_float32_underflows(solver: AMD) -> None:
    double = scalar_problem([0.0, 1.0])
    problem = Problem(copy.deepcopy(double.decoder).float(), double.loss, Observed(double.target_BD.float()))
    solution = solve(solver, problem)
    assert Result.MAX_NFE not in solution.result_B
    assert (solution.nfe_forward_B < 200).all()
