"""The gradient with respect to decoder weights. Shapes: B batch, L latent, S solver state."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import oracles
import pytest
import torch
from problems import LinearProblem, Problem, SmoothDecoder, image_problem, linear_problem, smooth_problem
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from gfe_study import registry
from gfe_study.gradients.adjoint import Adjoint
from gfe_study.gradients.approx import Approximate
from gfe_study.gradients.base import Gradient
from gfe_study.gradients.unrolled import Unrolled
from gfe_study.likelihoods.base import Observed
from gfe_study.models.mlp import MLPDecoder
from gfe_study.solvers.amd import AMD
from gfe_study.solvers.base import Solution, Solver
from gfe_study.solvers.dopri5 import Dopri5
from gfe_study.solvers.fields import Flow, GradientFlow, NesterovFlow, alpha_at
from gfe_study.solvers.fixed_grid import RK4, Euler, FixedGrid
from gfe_study.solvers.runge_kutta import Path, Time
from gfe_study.solvers.spectral import SpectralAMD

FLOWS: list[Flow] = [GradientFlow(), GradientFlow(alpha="constant"), NesterovFlow(), NesterovFlow(alpha="exponential")]
CONSTANT = GradientFlow(alpha="constant")
UNIFORM, LOGARITHMIC = 1.0, 4.0

Case = tuple[Solver, Flow]
CASES: list[Case] = [
    *itertools.product([Euler(tau=6, slices=13, base=base) for base in (UNIFORM, LOGARITHMIC)], FLOWS),
    *itertools.product([RK4(tau=6, slices=7)], FLOWS),
    *itertools.product([Dopri5(tau=6)], FLOWS),
    (AMD(s_max=40, tau=90, min_slope=1e-4), CONSTANT),
    (SpectralAMD(s_initial=1, max_nfe=14), CONSTANT),
]
FIXED_STEPS = [case for case in CASES if isinstance(case[0], FixedGrid)]


def label(value: object) -> str:
    if isinstance(value, tuple):
        return "-".join(map(label, value))
    return f"{value.name} {value.alpha}" if isinstance(value, Flow) else getattr(value, "name", str(value))


def solve(problem: Problem, case: Case, keep_path: bool = True) -> Solution:
    solver, flow = case
    return solver.solve(flow, problem.objective(), problem.start(), keep_path=keep_path)


def differentiate(problem: Problem, gradient: Gradient, solution: Solution) -> Tensor:
    """dL/dθ as one vector."""
    problem.decoder.zero_grad(set_to_none=True)
    done = gradient.backward(problem.objective(), solution)
    torch.testing.assert_close(done.loss_B, solution.loss_B, rtol=1e-9, atol=1e-12)
    return torch.cat([weight.grad.flatten() for weight in problem.decoder.parameters() if weight.grad is not None])


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def slopes(problem: Problem, case: Case, directions: Tensor, step: float = 1e-5) -> Tensor:
    """⟨dL/dθ, d⟩ of each direction d, a row, by central differences of the whole solve."""
    weights = list(problem.decoder.parameters())
    theta = parameters_to_vector(weights).detach()

    def total(moved: Tensor) -> Tensor:
        vector_to_parameters(moved, weights)
        return solve(problem, case, keep_path=False).loss_B.sum()

    found = [(total(theta + step * d) - total(theta - step * d)) / (2 * step) for d in directions]
    vector_to_parameters(theta, weights)
    return torch.stack(found)


@pytest.fixture(scope="module", params=CASES, ids=label)
def solved(request: pytest.FixtureRequest) -> tuple[Problem, Solution]:
    problem = image_problem(gain=3)
    return problem, solve(problem, request.param)


def test_adjoint_is_autograd_through_the_solve(solved: tuple[Problem, Solution]) -> None:
    """In its discrete form, the default."""
    problem, solution = solved
    adjoint, unrolled = (differentiate(problem, gradient, solution) for gradient in (Adjoint(), Unrolled()))
    assert relative(adjoint, unrolled) < 1e-11
    # The test has something to see: the flow has not converged.
    assert relative(differentiate(problem, Approximate(), solution), unrolled) > 1e-3


@pytest.mark.parametrize("case", [*FIXED_STEPS, (AMD(s_max=9, tau=20, min_slope=0), CONSTANT)], ids=label)
def test_adjoint_is_the_slope_of_the_loss(case: Case) -> None:
    """In its discrete form, the default."""
    problem = image_problem(batch=3)
    adjoint = differentiate(problem, Adjoint(), solve(problem, case))
    # What is wrong with any weight shows along a random direction.
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(4, len(adjoint), dtype=torch.float64, generator=generator)
    assert relative(directions @ adjoint, slopes(problem, case, directions)) < 1e-6


@functools.cache
def exact_gradient(flow: Flow) -> Tensor:
    """dL/dθ of the smooth problem's flow up to τ = 3, right to nine digits."""
    problem = smooth_problem()
    return differentiate(problem, Adjoint(), solve(problem, (RK4(tau=3, slices=97), flow)))


@pytest.mark.parametrize("flow", FLOWS[:2], ids=label)
def test_adjoint_of_adaptive_steps_is_the_flows(flow: Flow) -> None:
    problem, exact = smooth_problem(), exact_gradient(flow)
    controlled = differentiate(problem, Adjoint(), solve(problem, (Dopri5(tau=3, rtol=1e-9, atol=1e-10), flow)))
    assert relative(controlled, exact) < 1e-7


@pytest.mark.parametrize("base", [UNIFORM, LOGARITHMIC])
@pytest.mark.parametrize("alpha", ["constant", "exponential"])
def test_adjoint_of_euler_is_equations_2_to_4(alpha: str, base: float) -> None:
    problem, flow = image_problem(), GradientFlow(alpha=alpha)
    solution = solve(problem, (Euler(tau=6, slices=9, base=base), flow))
    path = solution.path
    assert path is not None
    times = path.time_NB[:, 0].tolist()
    alphas = [float(alpha_at(flow.alpha, t, 6.0)) for t in times[:-1]]
    steps = [b - a for a, b in itertools.pairwise(times)]
    expected = oracles.euler_adjoint(problem, alphas, steps, list(path.state_NBS))
    adjoint = differentiate(problem, Adjoint(), solution)
    assert relative(adjoint, torch.cat([part.flatten() for part in expected])) < 1e-12


def closed_form(problem: LinearProblem, flow_end: Callable[[], Tensor]) -> Tensor:
    """dL/dθ by autograd through the flow's closed form."""
    weights = list(problem.decoder.parameters())
    for weight in weights:
        weight.grad = None
    total = problem.loss(problem.decoder(flow_end()), problem.target).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, weights)])


@pytest.mark.parametrize("form", ["discrete", "continuous"])
def test_a_linear_decoder_meets_its_closed_form(form: str) -> None:
    problem = linear_problem()
    (layer,) = problem.decoder.linears()
    weight, bias = layer.weight, layer.bias

    def flow_end() -> Tensor:
        gram = weight.t() @ weight
        end_BL = torch.linalg.solve(gram, weight.t() @ (problem.target_BD - bias).t()).t()
        ended_BL: Tensor = end_BL - end_BL @ torch.matrix_exp(-gram * 0.2)
        return ended_BL

    solution = solve(problem, (RK4(tau=0.2, slices=101, base=1), CONSTANT))
    adjoint = differentiate(problem, Adjoint(form=form), solution)
    assert relative(adjoint, closed_form(problem, flow_end)) < {"discrete": 1e-10, "continuous": 2e-5}[form]


@pytest.mark.parametrize("flow", FLOWS, ids=label)
@pytest.mark.parametrize(
    ("solver", "form", "order"),
    [(Euler, "continuous", 1), (Euler, "discrete", 1), (RK4, "continuous", 2), (RK4, "discrete", 4)],
)
def test_adjoint_converges_at_the_order_of_theory(solver: type[FixedGrid], form: str, order: int, flow: Flow) -> None:
    problem, exact = smooth_problem(), exact_gradient(flow)
    slices = (21, 41) if order < 4 else (17, 33)
    errors = [
        relative(differentiate(problem, Adjoint(form=form), solve(problem, (solver(tau=3, slices=n), flow))), exact)
        for n in slices
    ]
    assert order - 0.35 < math.log2(errors[0] / errors[1]) < order + 0.6


@pytest.mark.parametrize("flow", [CONSTANT, NesterovFlow()], ids=label)
def test_approximate_gradient_tends_to_the_exact(flow: Flow) -> None:
    """As the flow converges."""
    problem = linear_problem()
    errors = []
    for tau in (2.0, 8.0, 32.0, 128.0):
        solution = solve(problem, (RK4(tau=tau, slices=int(tau) + 1, base=1.0), flow))
        errors.append(
            relative(differentiate(problem, Approximate(), solution), differentiate(problem, Adjoint(), solution))
        )
    assert all(later < 0.6 * sooner for sooner, later in itertools.pairwise(errors))
    assert errors[-1] < 0.02


@pytest.fixture(scope="module", params=[CASES[0], CASES[6], CASES[-2], CASES[-1]], ids=label)
def company(request: pytest.FixtureRequest) -> list[tuple[Problem, Solution]]:
    """A batch, and each of its samples alone."""
    together = image_problem(batch=4, gain=3)
    alone = [dataclasses.replace(together, target=together.target[row : row + 1]) for row in range(4)]
    solved = [(problem, solve(problem, request.param)) for problem in (together, *alone)]
    if isinstance(request.param[0], AMD):
        assert len(solved[0][1].num_steps_B.unique()) > 2
    return solved


@pytest.mark.parametrize("gradient", [Approximate(), Adjoint(), Adjoint(form="continuous"), Unrolled()], ids=str)
def test_a_gradient_ignores_neighbouring_samples(company: list[tuple[Problem, Solution]], gradient: Gradient) -> None:
    together, *alone = (differentiate(problem, gradient, solution) for problem, solution in company)
    assert relative(together, torch.stack(alone).sum(0)) < 1e-11


def test_path_ends_where_the_solution_is(solved: tuple[Problem, Solution]) -> None:
    problem, solution = solved
    path = solution.path
    assert path is not None
    torch.testing.assert_close(path.flow.latent(path.state_NBS[-1]), solution.latent_BL)
    torch.testing.assert_close(path.time_NB[-1], solution.time_B)
    assert torch.equal(path.flow.latent(path.state_NBS[0]), problem.start())
    assert (path.time_NB.diff(dim=0) >= 0).all()
    assert torch.equal((path.length_NB > 0).sum(0), solution.num_steps_B)
    torch.testing.assert_close(path.length_NB.sum(0), solution.time_B)


@pytest.mark.parametrize("case", CASES, ids=label)
def test_float32_steps_lead_from_node_to_node(case: Case) -> None:
    double = image_problem(batch=3, gain=3)
    problem = Problem(copy.deepcopy(double.decoder).float(), double.loss, Observed(double.target_BD.float()))
    solution = solve(problem, case)
    path = solution.path
    assert path is not None
    for n in range(len(path)):

        def rate(t: Time, state: Tensor) -> Tensor:
            return path.flow.derivative(problem.objective(), t, path.tau, state)

        reached = path.scheme.step(rate, path.time_NB[n], path.length_NB[n], path.state_NBS[n])
        torch.testing.assert_close(reached.detach(), path.state_NBS[n + 1], rtol=2e-6, atol=2e-6)


def passes(gradient: Gradient, problem: Problem, solution: Solution) -> int:
    done = gradient.backward(problem.objective(), solution)
    counts = (solution.nfe_forward_B, solution.nfe_backward_B, done.nfe_forward_B, done.nfe_backward_B)
    return int(sum(count[0] for count in counts))


def test_adjoint_costs_five_passes_a_slice() -> None:
    problem, steps = image_problem(), 40
    solution = solve(problem, (Euler(tau=6, slices=steps + 1), GradientFlow()))
    # And three at the end: the loss there, and its gradient.
    assert passes(Adjoint(), problem, solution) == 5 * steps + 3


class Counting(SmoothDecoder):
    """Counts the rows it evaluates."""

    rows = 0

    def forward(self, latent_KL: Tensor) -> Tensor:
        self.rows += len(latent_KL)
        return super().forward(latent_KL)


@pytest.mark.parametrize("name", registry.names("gradient"))
@pytest.mark.parametrize("case", [CASES[8], CASES[-2]], ids=label)
def test_the_evaluations_told_are_the_decoders(name: str, case: Case) -> None:
    problem = smooth_problem(batch=5)
    decoder = Counting(2, 9, 7).double()
    decoder.load_state_dict(problem.decoder.state_dict())
    problem = dataclasses.replace(problem, decoder=decoder)
    gradient, solution = registry.component("gradient", name)(), solve(problem, case)
    decoder.rows = 0
    done = gradient.backward(problem.objective(), solution)
    assert done.nfe_forward_B.sum() == decoder.rows


def saved_bytes(run: Callable[[], Any], there: Sequence[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass at the worst moment, beside tensors that are there anyway."""
    alive: dict[int, int] = {}
    worst = 0
    known = {tensor.untyped_storage().data_ptr() for tensor in there}

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor, self.key = tensor, tensor.untyped_storage().data_ptr()
            nonlocal worst
            if self.key not in known:
                alive[self.key] = tensor.untyped_storage().nbytes()
            worst = max(worst, sum(alive.values()))

        def __del__(self) -> None:
            alive.pop(self.key, None)

    with saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        run()
    return worst


def test_the_memory_of_adjoint_ignores_the_slices() -> None:
    """It is at most twice that of approx; that of unrolling grows with the slices."""
    torch.manual_seed(0)
    decoder = MLPDecoder([20, 150, 300, 600, 784]).double()
    base = image_problem(batch=1)
    target = torch.rand(16, 784, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    problem = Problem(decoder, base.loss, Observed(target))
    kept = {}
    for slices in (3, 9):
        solution = solve(problem, (Euler(tau=6, slices=slices), GradientFlow()))
        for gradient in (Approximate(), Adjoint(), Unrolled()):
            path = solution.path
            assert path is not None
            there = [*decoder.parameters(), path.state_NBS, path.length_NB, path.time_NB, problem.target_BD]
            run = functools.partial(differentiate, problem, gradient, solution)
            kept[gradient.name, slices] = saved_bytes(run, there)
    assert kept["adjoint", 9] == kept["adjoint", 3] <= 2 * kept["approx", 3]
    assert kept["unrolled", 9] > 2 * kept["unrolled", 3]


def test_a_path_knows_its_length() -> None:
    path = Path(CONSTANT, Euler().scheme, 1.0, torch.zeros(4, 2), torch.zeros(3, 2), torch.zeros(4, 2, 3))
    assert len(path) == 3
