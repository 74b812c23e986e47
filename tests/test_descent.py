"""The solvers that descend otherwise than AMD: spectral AMD, accelerated AMD, L-BFGS, Gauss–Newton."""

from __future__ import annotations

import copy
import itertools
from functools import partial

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import CONSTANT, Problem, image_problem, image_problems, linear_problem, properties, scalar_problem, solve
from torch import Tensor

from gfe_study.likelihoods.base import Observed
from gfe_study.solvers.amd import AMD
from gfe_study.solvers.base import MESSAGES, Result, Solver
from gfe_study.solvers.fields import NesterovFlow
from gfe_study.solvers.gauss_newton import GaussNewton
from gfe_study.solvers.lbfgs import LBFGS, inverse_hessian_factors, newer_inverse
from gfe_study.solvers.nesterov_amd import NesterovAMD
from gfe_study.solvers.spectral import SpectralAMD


@pytest.mark.parametrize("solver", [AMD(), SpectralAMD(), NesterovAMD(), LBFGS(), GaussNewton()], ids=str)
def test_descending_solvers_refuse_nesterov_flow(solver: Solver) -> None:
    problem = image_problem()
    with pytest.raises(ValueError, match=f"{solver.name} cannot follow"):
        solver.solve(NesterovFlow(), problem.objective(), problem.start())


def losses_of_accepted_steps(solver: Solver, problem: Problem) -> list[list[float]]:
    """ℓ of every sample at its start and after every accepted step."""
    first = problem.loss(problem.decoder(problem.start()), problem.target).tolist()
    losses, steps = [[loss] for loss in first], [0] * len(first)

    def observe(active: dict[str, Tensor]) -> None:
        columns = (active["row"].tolist(), active["num_steps"].tolist(), active["loss"].tolist())
        for sample, num_steps, loss in zip(*columns, strict=True):
            if num_steps > steps[sample]:
                steps[sample] = num_steps
                losses[sample].append(loss)

    solve(solver, problem, observe=observe)
    return losses


MONOTONE = [SpectralAMD(memory=1, max_nfe=40), NesterovAMD(max_nfe=80), LBFGS(max_nfe=40), GaussNewton(max_nfe=40)]


@pytest.mark.parametrize("solver", MONOTONE, ids=lambda solver: solver.name)
@pytest.mark.parametrize("seed", range(5))
def test_every_accepted_step_lowers_the_loss(solver: Solver, seed: int) -> None:
    for losses in losses_of_accepted_steps(solver, image_problem(batch=8, seed=seed, gain=4)):
        assert len(losses) > 3
        assert all(later < sooner for sooner, later in itertools.pairwise(losses))


spectral_settings = st.builds(
    SpectralAMD,
    beta=st.floats(0.1, 0.8),
    s_initial=st.floats(1, 200),
    memory=st.sampled_from([1, 2, 5]),
    sigma=st.sampled_from([0.0, 1e-4, 0.2]),
    tau=st.sampled_from([10.0, 50.0, 1e4, 1e7]),
    min_slope=st.sampled_from([1e-3, 1e-5]),
    max_nfe=st.sampled_from([3, 12, 25]),  # longer, and what rounding decides decides all
)


@properties
@given(spectral_settings, image_problems)
def test_a_spectral_step_is_that_of_the_secant(solver: SpectralAMD, problem: Problem) -> None:
    """It also passes the test of a non-monotone search, as the oracle does."""
    solution = oracles.check_followed(partial(oracles.spectral, solver), solver, problem, rel=1e-8, latent_rel=1e-6)
    assert bool((solution.time_B <= solver.tau).all())


def test_a_search_that_rises_returns_its_best() -> None:
    """A longer memory accepts steps that raise the loss."""
    problem, rises = image_problem(batch=32, gain=6), 0
    solver = SpectralAMD(memory=10, max_nfe=40, min_slope=0)
    solution = solve(solver, problem)
    for sample, losses in enumerate(losses_of_accepted_steps(solver, problem)):
        rises += sum(later > sooner for sooner, later in itertools.pairwise(losses))
        assert solution.loss_B[sample].item() == min(losses)
        assert solution.num_steps_B[sample] == losses.index(min(losses))
    assert rises > 0
    torch.testing.assert_close(
        solution.loss_B, problem.loss(problem.decoder(solution.latent_BL), problem.target).detach()
    )


# A line search that ends in vain


SEARCHING: dict[str, Solver] = {
    "amd": AMD(min_slope=0, tau=1e6, max_nfe=1000),
    "amd_spectral": SpectralAMD(min_slope=0, max_nfe=1000),
    "amd_nesterov": NesterovAMD(min_slope=0, max_nfe=1000),
    "lbfgs": LBFGS(min_slope=0),
    "gauss_newton": GaussNewton(min_slope=0),
}


def scaled(problem: Problem, factor: float, dtype: torch.dtype) -> Problem:
    """The problem with a decoder of `factor` times its latent: curvatures are `factor`² times what they were."""
    decoder = copy.deepcopy(problem.decoder)
    with torch.no_grad():
        next(decoder.parameters()).mul_(factor)
    return Problem(decoder.to(dtype), problem.loss, Observed(problem.target_BD.to(dtype)))


@pytest.mark.parametrize("name", ["amd", "amd_spectral", "amd_nesterov", "lbfgs"])
def test_the_last_round_needs_no_gradient(name: str) -> None:
    problem = image_problem()

    def rounds(max_nfe: int) -> tuple[list[int], list[list[list[float]]]]:
        """Pullbacks so far and latents, after every round."""
        objective, pullbacks, latents = problem.objective(), [], []

        def observe(active: dict[str, Tensor]) -> None:
            pullbacks.append(int(objective.nfe_backward_B.sum()))
            latents.append(active["latent"].tolist())

        solver = SEARCHING[name].model_copy(update={"max_nfe": max_nfe})
        solver.solve(CONSTANT, objective, problem.start(), observe)
        return pullbacks, latents

    pullbacks, latents = rounds(12)
    saved = 0
    for max_nfe in range(5, 9):
        capped, found = rounds(max_nfe)
        last = len(capped) - 1
        assert found == latents[: last + 1]
        assert capped == [*pullbacks[:last], pullbacks[last - 1]]
        saved += pullbacks[last] - pullbacks[last - 1]
    assert saved > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "factor"), [("amd", 1e6), ("amd_nesterov", 1e6), ("amd_spectral", 1e8)])
def test_steps_all_too_long_are_no_minimum(name: str, factor: float, dtype: torch.dtype) -> None:
    """40 times 0.75 or 20 times 0.25 of the first step do not reach the one that this decoder bears."""
    problem = scaled(image_problem(), factor, dtype)
    solution = solve(SEARCHING[name], problem)
    assert solution.result_B.tolist() == [Result.STALLED] * 4
    assert solution.num_steps_B.tolist() == [0] * 4
    found = solve(SEARCHING["gauss_newton"], problem).loss_B
    assert (found < solution.loss_B).all()
    for advice in ("more backtracks", "shorter first step"):
        assert advice in MESSAGES[Result.STALLED]
    more = {"max_backtracks": 200}
    assert Result.STALLED not in solve(SEARCHING[name].model_copy(update=more), problem).result_B


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_lbfgs_bears_any_scale_of_a_decoder(dtype: torch.dtype) -> None:
    """But first steps that are far too long stall it."""
    plain, problem = (scaled(image_problem(gain=1), factor, dtype) for factor in (1.0, 1e8))
    found = solve(LBFGS(max_nfe=30, min_slope=0), problem)
    torch.testing.assert_close(found.loss_B, solve(LBFGS(max_nfe=30, min_slope=0), plain).loss_B, rtol=1e-4, atol=0)
    stalled = solve(LBFGS(s_initial=1e18, max_backtracks=3), problem)
    assert stalled.result_B.tolist() == [Result.STALLED] * 4
    assert stalled.num_steps_B.tolist() == [0] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["amd_spectral", "lbfgs", "gauss_newton"])
def test_a_minimum_is_no_stall(name: str, dtype: torch.dtype) -> None:
    problem = scaled(image_problem(batch=8, gain=1), 1, dtype)
    problem = Problem(problem.decoder, problem.loss, problem.target[1:5])  # others have none, or one far away
    solution = solve(SEARCHING[name], problem)
    assert solution.result_B.tolist() == [Result.NO_DESCENT] * 4
    assert (problem.gradient(solution.latent_BL).norm(dim=1) < 1e-3).all()


@pytest.mark.parametrize("name", ["amd", "amd_nesterov"])
def test_where_the_latent_rounds_is_no_stall(name: str) -> None:
    """A loss of next to nothing rounds with its latent: a step that is none promises more than its own rounding."""
    solution = solve(SEARCHING[name], scalar_problem([1.0, 0.3, 0.77, 123.456], weight=0.7))
    assert solution.result_B.tolist() == [Result.NO_DESCENT] * 4
    # From far away, steps that are all too long are a stall even so.
    far_BL = torch.full((1, 1), 1e3, dtype=torch.float64)
    problem = scalar_problem([1.0], weight=1e6)
    solution = SEARCHING[name].solve(CONSTANT, problem.objective(), far_BL)
    assert solution.result_B.tolist() == [Result.STALLED]


def test_no_visible_fall_is_not_called_a_stall() -> None:
    """A first step far too short promises a fall below rounding: the message leaves both open."""
    for name in ("amd", "amd_nesterov", "amd_spectral", "lbfgs"):
        solution = solve(SEARCHING[name], scaled(image_problem(), 1e-6, torch.float32))
        assert solution.result_B.tolist() == [Result.NO_DESCENT] * 4, name
    assert "at a minimum, or the first step far too short" in MESSAGES[Result.NO_DESCENT]


def test_too_little_damping_stalls_gauss_newton() -> None:
    """From a start where its first steps overshoot, with no room for damping."""
    problem = image_problem(gain=5)
    start_BL = 3 * torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    short = GaussNewton(damping=1e-6, max_damping=1e-5, min_slope=0)
    results = short.solve(CONSTANT, problem.objective(), start_BL).result_B
    assert Result.STALLED in results


def test_momentum_is_dropped_before_a_rise() -> None:
    problem, momentum = image_problem(gain=2), []
    solve(
        NesterovAMD(max_nfe=150, min_slope=0),
        problem,
        observe=lambda a: momentum.append(dict(zip(a["row"].tolist(), a["momentum"].tolist(), strict=True))),
    )
    series = [m[0] for m in momentum if 0 in m]
    assert max(series) > 3
    assert any(later == 0 < sooner for sooner, later in itertools.pairwise(series))


@pytest.mark.parametrize(
    ("s_initial", "sigma", "first"),
    [(1.5, 0.0, 1.5), (1.5, 0.4, 0.75), (3.0, 0.0, 1.5), (3.0, 0.4, 0.75), (1.1, 0.4, 1.1)],
)
def test_lbfgs_asks_for_sufficient_descent(s_initial: float, sigma: float, first: float) -> None:
    """Under ½(z − 1)² a step s along −∇ℓ lowers the loss where s < 2, and enough where s < 2 − 2σ."""
    solver = LBFGS(s_initial=s_initial, beta=0.5, sigma=sigma, damping=1e-9)  # u is z then
    reached: list[float] = []
    problem = scalar_problem([1.0])
    solve(solver, problem, observe=lambda active: reached.extend(active["latent"][:, 0].tolist()))
    assert next(z for z in reached if z != 0) == pytest.approx(first)


@pytest.mark.parametrize("pairs", [1, 3, 6])
def test_compact_form_is_the_two_loop_recursion(pairs: int) -> None:
    generator = torch.Generator().manual_seed(pairs)
    basis = torch.randn(5, 4, 4, dtype=torch.float64, generator=generator)
    hessian = basis @ basis.mT + 0.1 * torch.eye(4)
    moves = torch.randn(5, pairs, 4, dtype=torch.float64, generator=generator)
    turns = moves @ hessian
    moves[2, 0] = turns[2, 0] = 0  # a pair that is not used
    grad = torch.randn(5, 4, dtype=torch.float64, generator=generator)
    scale = torch.rand(5, dtype=torch.float64, generator=generator) + 0.5
    rows = torch.cat([moves, turns, grad[:, None]], 1)
    inverse = torch.zeros(5, pairs, pairs, dtype=torch.float64)
    for newest in range(pairs):
        # As they came, one by one: the newest is the last row, and what is not there yet is zero.
        products = torch.zeros(5, pairs, 1, dtype=torch.float64)
        products[:, pairs - 1 - newest :] = moves[:, : newest + 1] @ turns[:, newest, :, None]
        inverse = newer_inverse(inverse, products, products[:, -1, 0] > 0)
    factors = inverse_hessian_factors(rows @ rows.mT, inverse, scale)
    found = -(factors.mT @ rows)[:, 0]
    for k in range(5):
        expected = oracles.two_loop(grad[k], list(moves[k]), list(turns[k]), scale[k])
        torch.testing.assert_close(found[k], expected)


lbfgs_settings = st.builds(
    LBFGS,
    pairs=st.sampled_from([1, 2, 6]),
    damping=st.sampled_from([1e-2, 1.0, 30.0]),
    beta=st.floats(0.1, 0.6),
    s_initial=st.floats(0.1, 30),
    sigma=st.sampled_from([1e-4, 0.2, 0.45]),
    window=st.sampled_from([1, 3]),
    min_slope=st.sampled_from([1e-3, 1e-5]),
    max_backtracks=st.sampled_from([1, 20]),
    max_nfe=st.sampled_from([2, 3, 8, 16]),
)


@properties
@given(lbfgs_settings, image_problems)
def test_lbfgs_is_the_two_loop_recursion(solver: LBFGS, problem: Problem) -> None:
    """Its metric is that of the origin."""
    solution = solve(solver, problem)
    for sample in range(len(problem.target_BD)):
        path = oracles.lbfgs(solver, problem, sample)
        assert solution.latent_BL[sample].tolist() == pytest.approx(path.latent, rel=1e-5, abs=1e-7)
        assert solution.loss_B[sample].item() == pytest.approx(path.losses[-1], rel=1e-8)
        assert solution.num_steps_B[sample] == path.num_steps
        assert solution.nfe_forward_B[sample] == path.nfe_forward
        assert solution.nfe_backward_B[sample] == path.nfe_backward
        assert solution.result_B[sample] == path.result


def test_gauss_newton_needs_one_step_when_linear() -> None:
    problem = linear_problem()
    solution = solve(GaussNewton(damping=1e-12, max_nfe=8), problem)
    _, minimiser = problem._gram_and_end()
    torch.testing.assert_close(solution.latent_BL, minimiser, rtol=0, atol=1e-9)
    assert (solution.nfe_forward_B <= 3 * 4).all()


@pytest.mark.parametrize("max_nfe", [6, 8, 20, 50])
def test_gauss_newton_keeps_to_its_cap(max_nfe: int) -> None:
    problem = image_problem(gain=3)
    solution = solve(GaussNewton(max_nfe=max_nfe, min_slope=0), problem)
    assert (solution.nfe_forward_B <= max_nfe).all()
    assert (solution.num_steps_B > 0).all()
