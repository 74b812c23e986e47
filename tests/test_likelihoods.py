"""Every likelihood against torch.distributions and autograd, with missing values, in float64."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import CONSTANT, Problem, SmoothDecoder, SquaredError
from torch import Tensor, distributions

from gfe_study import registry
from gfe_study.config import InputError, Trial
from gfe_study.data.split import Shape, Split, Splits
from gfe_study.estimator import GradientFlowEncoder
from gfe_study.gradients.adjoint import Adjoint
from gfe_study.gradients.approx import Approximate
from gfe_study.gradients.base import Gradient
from gfe_study.gradients.unrolled import Unrolled
from gfe_study.likelihoods.base import Likelihood, Loss, Observed
from gfe_study.likelihoods.bernoulli import Bernoulli, BernoulliLoss
from gfe_study.likelihoods.gaussian import Gaussian
from gfe_study.likelihoods.location import LocationLoss
from gfe_study.likelihoods.poisson import Poisson
from gfe_study.likelihoods.student_t import StudentT
from gfe_study.models.mlp import MLPDecoder
from gfe_study.solvers.base import Solver
from gfe_study.solvers.fields import GradientFlow, NesterovFlow
from gfe_study.solvers.objective import Objective
from gfe_study.training import train

B, L, D = 5, 3, 7
CASES: dict[str, Likelihood] = {
    "bernoulli": Bernoulli(),
    "gaussian": Gaussian(sigma=0.7),
    "gaussian learned": Gaussian(sigma="learned"),
    "gaussian of the data": Gaussian(sigma="data"),
    "poisson": Poisson(),
    "student_t": StudentT(dof=3, scale=0.6),
    "student_t learned": StudentT(scale="learned"),
}


def test_every_likelihood_is_tested() -> None:
    assert {case.name for case in CASES.values()} == set(registry.names("likelihood"))


def observed(likelihood: Likelihood, *, missing: bool, seed: int = 0) -> Observed:
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(B, D, dtype=torch.float64, generator=generator)
    value_BD = {"bernoulli": uniform, "poisson": (6 * uniform).floor()}.get(likelihood.name, 4 * uniform - 2)
    known_BD = torch.rand(B, D, generator=generator) < 0.6
    known_BD[0], known_BD[1] = False, True
    known_BD[0, 2] = True
    sigma_BD = 0.3 + torch.rand(B, D, dtype=torch.float64, generator=generator)
    of_data = getattr(likelihood, "sigma", None) == "data"
    return Observed(value_BD, known_BD if missing else None, sigma_BD if of_data else None)


def outputs(seed: int = 1) -> Tensor:
    return 2 * torch.randn(B, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def made(likelihood: Likelihood) -> Loss:
    """The loss, with another scale than 1 if that is learned."""
    loss = likelihood.loss().double()
    for weight in loss.parameters():
        torch.nn.init.constant_(weight, 0.05)
    return loss


def distribution(likelihood: Likelihood, output_BD: Tensor, target: Observed) -> distributions.Distribution:
    learned = math.exp(0.5)
    match likelihood:
        case Bernoulli():
            return distributions.Bernoulli(logits=output_BD, validate_args=False)
        case Gaussian():
            if likelihood.sigma == "data":
                assert target.sigma_BD is not None
                return distributions.Normal(output_BD, target.sigma_BD)
            return distributions.Normal(output_BD, learned if isinstance(likelihood.sigma, str) else likelihood.sigma)
        case Poisson():
            return distributions.Poisson(output_BD.exp())
        case StudentT():
            scale = learned if isinstance(likelihood.scale, str) else likelihood.scale
            return distributions.StudentT(likelihood.dof, output_BD, scale)
    raise AssertionError(likelihood)


either = pytest.mark.parametrize("missing", [False, True], ids=["complete", "with gaps"])
every = pytest.mark.parametrize("likelihood", CASES.values(), ids=CASES)


@every
@either
def test_a_loss_is_a_mean_negative_log_likelihood(likelihood: Likelihood, missing: bool) -> None:
    """Of what is observed: missing values do not count."""
    target, output_BD = observed(likelihood, missing=missing), outputs()
    log_BD = distribution(likelihood, output_BD, target).log_prob(target.value_BD)
    known_BD = torch.ones(B, D, dtype=torch.bool) if target.known_BD is None else target.known_BD
    expected = torch.stack([-log_BD[row][known_BD[row]].mean() for row in range(B)])
    torch.testing.assert_close(made(likelihood)(output_BD, target), expected)
    torch.testing.assert_close(made(likelihood)(output_BD, target), expected)  # by what it remembers of the target


@every
@either
def test_gradient_and_hessian_are_autograds(likelihood: Likelihood, missing: bool) -> None:
    """And the curvature is never negative."""
    target, loss = observed(likelihood, missing=missing), made(likelihood)
    output_BD = outputs().requires_grad_()
    (slope_BD,) = torch.autograd.grad(loss(output_BD, target).sum(), output_BD, create_graph=True)
    (bend_BD,) = torch.autograd.grad(slope_BD.sum(), output_BD)
    kept = output_BD.detach().clone(), target.value_BD.clone()
    given = output_BD.detach()
    torch.testing.assert_close(loss.gradient(given, target), slope_BD.detach())
    torch.testing.assert_close(loss.hessian(given, target), bend_BD)
    assert bool((loss.curvature(given, target) >= 0).all())
    if likelihood.name != "student_t":
        torch.testing.assert_close(loss.curvature(given, target), bend_BD)
    assert torch.equal(given, kept[0])
    assert torch.equal(target.value_BD, kept[1])


def test_student_t_takes_the_expected_hessian() -> None:
    """For its curvature: the mean of the Hessian over the distribution."""
    likelihood = CASES["student_t"]
    assert isinstance(likelihood, StudentT)
    assert not isinstance(likelihood.scale, str)
    y = torch.linspace(-400, 400, 2_000_001, dtype=torch.float64)[:, None]
    density = distributions.StudentT(likelihood.dof, 0.0, likelihood.scale).log_prob(y).exp()
    loss, target = made(likelihood), Observed(y)
    expected = torch.trapezoid((loss.hessian(torch.zeros_like(y), target) * density)[:, 0], y[:, 0])
    assert float(expected) == pytest.approx(
        float(loss.curvature(torch.zeros(1, 1).double(), Observed(y[:1]))), rel=1e-5
    )


@every
def test_the_mean_and_its_slope_are_exact(likelihood: Likelihood) -> None:
    target, output_BD, loss = observed(likelihood, missing=False), outputs().requires_grad_(), made(likelihood)
    mean_BD = distribution(likelihood, output_BD, target).mean
    torch.testing.assert_close(loss.mean(output_BD), mean_BD)
    (slope_BD,) = torch.autograd.grad(mean_BD.sum(), output_BD)
    torch.testing.assert_close(loss.mean_slope(output_BD.detach()), slope_BD)


@every
def test_samples_have_the_right_mean_and_spread(likelihood: Likelihood) -> None:
    if likelihood == CASES["student_t learned"]:
        likelihood = StudentT(dof=8, scale="learned")  # a variance that few draws find
    if likelihood == CASES["student_t"]:
        likelihood = StudentT(dof=8, scale=0.6)
    target, output_BD = observed(likelihood, missing=False), outputs()
    generator, loss = torch.Generator().manual_seed(0), made(likelihood)
    drawn = torch.stack([loss.sample(output_BD, generator, target) for _ in range(4000)])
    known = distribution(likelihood, output_BD, target)
    error = known.variance.sqrt() / math.sqrt(4000)
    assert bool(((drawn.mean(0) - known.mean).abs() < 5 * error).all())
    torch.testing.assert_close(drawn.std(0), known.variance.sqrt().expand(B, D), rtol=0.15, atol=0.02)
    again = loss.sample(output_BD, torch.Generator().manual_seed(0), target)
    assert torch.equal(again, drawn[0])


@pytest.mark.parametrize("likelihood", [Bernoulli(), Poisson()], ids=lambda each: each.name)
@either
def test_the_floor_is_the_loss_of_the_best_output(likelihood: Likelihood, missing: bool) -> None:
    target = observed(likelihood, missing=missing)
    best_BD = target.value_BD.logit() if likelihood.name == "bernoulli" else target.value_BD.clamp(min=1e-30).log()
    floor_B = likelihood.floor(target)
    assert floor_B is not None
    torch.testing.assert_close(floor_B, likelihood.loss()(best_BD, target))
    assert bool((likelihood.loss()(best_BD + 0.1, target) > floor_B).all())


@pytest.mark.parametrize("count", [0.0, 1.0, 1e3, 1e5])
def test_large_counts_lose_no_digits_in_float32(count: float) -> None:
    count_BD = torch.full((1, 1), count)
    rate_BD = torch.full((1, 1), math.log(max(count, 0.1)) + 1e-3)
    exact = Poisson().loss()(rate_BD.double(), Observed(count_BD.double()))
    assert float(Poisson().loss()(rate_BD, Observed(count_BD))) == pytest.approx(float(exact), rel=1e-5)


def test_far_above_a_count_the_loss_is_linear() -> None:
    target, loss = Observed(torch.tensor([[0.0, 3.0]]).double()), Poisson().loss()
    edge_BD = target.value_BD.log1p() + 5
    for step in (-1e-6, 1e-6, 2.0, 80.0):
        output_BD = (edge_BD + step).requires_grad_()
        value_B = loss(output_BD, target)
        (slope_BD,) = torch.autograd.grad(value_B.sum(), output_BD, create_graph=True)
        (bend_BD,) = torch.autograd.grad(slope_BD.sum(), output_BD)
        torch.testing.assert_close(loss.gradient(output_BD.detach(), target), slope_BD.detach())
        torch.testing.assert_close(loss.hessian(output_BD.detach(), target), bend_BD)
        torch.testing.assert_close(slope_BD.detach(), (edge_BD.exp() - target.value_BD) / 2, rtol=1e-5, atol=0)
        straight_B = loss(edge_BD, target) + step * ((edge_BD.exp() - target.value_BD) / 2).sum()
        torch.testing.assert_close(value_B.detach(), straight_B, rtol=1e-5, atol=0)


def test_counts_are_learned_from_a_far_off_start() -> None:
    """Gradient flow encoding recovers from first rates that are far off."""
    generator = torch.Generator().manual_seed(0)
    rate_ND = (1 + torch.randn(160, 2, generator=generator) @ torch.randn(2, 8, generator=generator) / 2).exp()
    split = Split(torch.poisson(rate_ND, generator=generator).numpy())
    trial = Trial.build({"likelihood": "poisson", "budget": {"images": 96}, "eval": {"schedule": [16]}})
    *_, last = train(trial, Splits(split, split, split, Shape(1, (8,))))
    floor = Splits(split, split, split, Shape(1, (8,))).floor(trial.likelihood, 160)
    assert last.metrics is not None
    assert floor is not None
    assert last.metrics["val_loss"] - floor < 0.05


@pytest.mark.parametrize("likelihood", [Gaussian(), StudentT()], ids=lambda each: each.name)
def test_real_values_have_no_floor(likelihood: Likelihood) -> None:
    assert likelihood.floor(observed(likelihood, missing=False)) is None


@pytest.mark.parametrize(
    ("likelihood", "inside", "outside"),
    [(Bernoulli(), [0, 0.5, 1], [[-1e-3], [1.001]]), (Poisson(), [0, 1, 300], [[0.5], [-1]])],
    ids=["bernoulli", "poisson"],
)
def test_a_likelihood_knows_its_domain(likelihood: Likelihood, inside: list[float], outside: list[list[float]]) -> None:
    assert likelihood.accepts(Observed(torch.tensor([inside], dtype=torch.float32)))
    for value in outside:
        assert not likelihood.accepts(Observed(torch.tensor([value])))
        missing = Observed(torch.tensor([value * 2]), torch.tensor([[False, False]]))
        assert likelihood.accepts(missing)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropy_of_huge_logits_is_exact(dtype: torch.dtype) -> None:
    output = torch.tensor([[1e4], [-1e4], [1e4], [-1e4]], dtype=dtype)
    target = Observed(torch.tensor([[1.0], [0.0], [0.0], [1.0]], dtype=dtype))
    assert BernoulliLoss()(output, target).tolist() == [0, 0, 1e4, 1e4]
    assert BernoulliLoss().gradient(output, target).flatten().tolist() == [0, 0, 1, -1]


def test_squared_error_is_half_a_squared_distance() -> None:
    output_BD, target = outputs(), Observed(outputs(2))
    expected = [torch.dist(a, b).item() ** 2 / 2 for a, b in zip(output_BD, target.value_BD, strict=True)]
    assert SquaredError()(output_BD, target).tolist() == pytest.approx(expected)
    torch.testing.assert_close(Gaussian().loss()(output_BD, target) * D - D / 2 * math.log(2 * math.pi),
                               SquaredError()(output_BD, target))  # fmt: skip


# Missing values


@every
def test_a_missing_values_content_changes_nothing(likelihood: Likelihood) -> None:
    target, loss = observed(likelihood, missing=True), made(likelihood)
    assert target.known_BD is not None
    output_BD = outputs()
    for content in (math.nan, math.inf, -1e30, 0.5):
        other = Observed(target.value_BD.masked_fill(~target.known_BD, content), target.known_BD, target.sigma_BD)
        for function in (loss, loss.gradient, loss.curvature, loss.hessian):
            assert torch.equal(function(output_BD, other), function(output_BD, target))
        assert torch.equal(other.as_input(mask=True), target.as_input(mask=True))


@every
def test_overflow_at_a_missing_value_does_no_harm(likelihood: Likelihood) -> None:
    target, loss = observed(likelihood, missing=True), made(likelihood)
    assert target.known_BD is not None
    output_BD = outputs().masked_fill(~target.known_BD, 1e30).requires_grad_()
    value_B = loss(output_BD, target)
    (slope_BD,) = torch.autograd.grad(value_B.sum(), output_BD)
    assert bool(value_B.isfinite().all())
    assert bool(slope_BD.isfinite().all())
    assert torch.equal(slope_BD.masked_select(~target.known_BD), torch.zeros(int((~target.known_BD).sum())).double())


def test_an_encoder_reads_what_is_observed() -> None:
    target = Observed(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[True, False, True]]))
    assert target.as_input(mask=False).tolist() == [[1, 0, 3]]
    assert target.as_input(mask=True).tolist() == [[1, 0, 3, 1, 0, 1]]
    assert Observed(target.value_BD).as_input(mask=True).tolist() == [[1, 0, 3, 1, 1, 1]]


def test_rows_of_a_batch_keep_what_is_theirs() -> None:
    target = observed(CASES["gaussian of the data"], missing=True)
    rows = torch.tensor([3, 1])
    loss, output_BD = made(CASES["gaussian of the data"]), outputs()
    torch.testing.assert_close(loss(output_BD[rows], target[rows]), loss(output_BD, target)[rows])
    counts = observed(Poisson(), missing=True)
    whole = Poisson().loss()(output_BD, counts)  # its constant is remembered now
    torch.testing.assert_close(Poisson().loss()(output_BD[rows], counts[rows]), whole[rows])
    assert target.share_B is not None
    torch.testing.assert_close(target.share_B * D, target.known_BD.sum(1).double())  # type: ignore[union-attr]


# Through solvers and gradients


def decoder_of(seed: int = 3, kind: str = "mlp") -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = MLPDecoder([L, 6, D]) if kind == "mlp" else SmoothDecoder(L, 6, D)
    return made.double()


def problem_of(likelihood: Likelihood, kind: str = "mlp", precision: float | None = 0.4) -> Problem:
    return Problem(decoder_of(kind=kind), made(likelihood), observed(likelihood, missing=True), precision)


def total(problem: Problem, latent_BL: Tensor) -> Tensor:
    """What is minimised, by hand: ℓ and the prior, weighed by the share that is observed; shape (B,)."""
    target = problem.target
    assert target.known_BD is not None
    count_B = target.known_BD.sum(1)
    prior_B = (problem.precision or 0.0) * latent_BL.square().sum(1) / (2 * count_B)
    total_B: Tensor = (problem.loss(problem.decoder(latent_BL), target) + prior_B) * count_B / D
    return total_B


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@every
@pytest.mark.parametrize("kind", ["mlp", "autograd"])
@pytest.mark.parametrize("gradient", [Approximate(), Adjoint(), Unrolled()], ids=lambda each: each.name)
@pytest.mark.parametrize("flow", [GradientFlow(), NesterovFlow()], ids=lambda each: each.name)
def test_gradients_are_autograds(likelihood: Likelihood, kind: str, gradient: Gradient, flow: Any) -> None:
    """Relative to autograd through steps that are written out here."""
    problem = problem_of(likelihood, kind)
    solver = registry.component("solver", "rk4").model_validate({"tau": 3.0, "slices": 4})
    assert isinstance(solver, Solver)
    objective = problem.objective()
    solution = solver.solve(flow, objective, problem.start(), keep_path=True)
    done = gradient.backward(objective, solution)
    weights = [*problem.decoder.parameters(), *problem.loss.parameters()]
    found = [weight.grad for weight in weights]
    own = copy.deepcopy(problem)
    if gradient.needs_path:
        path = solution.path
        assert path is not None
        state = torch.cat([own.start()] * (2 if flow.name == "nesterov" else 1), 1)

        def rate(t: Any, state_BS: Tensor) -> Tensor:
            rate_BS: Tensor = flow.derivative(_Autograd(own), t, path.tau, state_BS)
            return rate_BS

        for n in range(len(path)):
            state = path.scheme.step(rate, path.time_NB[n], path.length_NB[n], state)
        latent_BL = state[:, :L]
    else:
        latent_BL = solution.latent_BL
    total(own, latent_BL).sum().backward()
    own_weights = [*own.decoder.parameters(), *own.loss.parameters()]
    for ours, theirs in zip(found, own_weights, strict=True):
        assert ours is not None
        assert theirs.grad is not None
        assert relative(ours, theirs.grad) < 1e-8
    torch.testing.assert_close(done.loss_B, problem.loss(problem.decoder(solution.latent_BL), problem.target).detach())


@dataclasses.dataclass
class _Autograd:
    """∇_z of ℓ and the prior, by autograd alone."""

    problem: Problem

    def gradient(self, latent_BL: Tensor) -> Tensor:
        if not latent_BL.requires_grad:
            latent_BL = latent_BL.detach().requires_grad_()
        problem = self.problem
        count_B = problem.target.known_BD.sum(1)  # type: ignore[union-attr]
        per_value_B = total(problem, latent_BL) * D / count_B
        return torch.autograd.grad(per_value_B.sum(), latent_BL, create_graph=True)[0]


@every
def test_the_objective_agrees_with_autograd(likelihood: Likelihood) -> None:
    problem = problem_of(likelihood)
    count_B = problem.target.known_BD.sum(1)  # type: ignore[union-attr]
    latent_BL = torch.randn(B, L, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    rows = torch.tensor([4, 0, 2])
    z = latent_BL.clone().requires_grad_()
    per_value_B = total(problem, z) * D / count_B
    (expected,) = torch.autograd.grad(per_value_B.sum(), z)
    objective = problem.objective()
    loss_B, pullback = objective.evaluate(latent_BL)
    torch.testing.assert_close(loss_B, per_value_B.detach())
    assert relative(pullback(None), expected) < 1e-10
    assert relative(pullback(torch.tensor([1, 3])), expected[[1, 3]]) < 1e-10
    loss_K, pullback = objective.evaluate(latent_BL[rows], rows)
    torch.testing.assert_close(loss_K, per_value_B.detach()[rows])
    assert relative(pullback(torch.tensor([2, 0])), expected[[2, 4]]) < 1e-10
    loss_K, grad_KL, normal_KLL = objective.normal_equations(latent_BL[rows], rows)
    torch.testing.assert_close(loss_K, per_value_B.detach()[rows])
    assert relative(grad_KL, expected[rows]) < 1e-10
    output_KD, jacobian_KLD = problem.decoder.jacobian(latent_BL[rows])
    curved = problem.loss.curvature(output_KD, problem.target[rows]).detach()
    matrix = torch.einsum("kld,kd,kmd->klm", jacobian_KLD, curved, jacobian_KLD)
    assert problem.precision is not None
    matrix += torch.eye(L).double() * (problem.precision / count_B[rows])[:, None, None]
    torch.testing.assert_close(normal_KLL, matrix.detach())


@pytest.mark.parametrize("name", registry.names("solver"))
@every
def test_every_solver_descends_every_likelihood(name: str, likelihood: Likelihood) -> None:
    """To a lower loss than at the start, which the gaps' content does not change, nor the rest of the batch."""
    problem = problem_of(likelihood)
    solver = registry.component("solver", name)()
    assert isinstance(solver, Solver)
    quick = {"tau": 20.0, "slices": 40} if name in ("euler", "rk4") else {"tau": 20.0} if name == "dopri5" else {}
    solver = solver.model_copy(update=quick)
    solution = solver.solve(CONSTANT, problem.objective(), problem.start())
    count_B = problem.target.known_BD.sum(1)  # type: ignore[union-attr]
    before, after = (total(problem, z).detach() * D / count_B for z in (problem.start(), solution.latent_BL))
    assert bool((after < before).all())
    torch.testing.assert_close(solution.loss_B, after)
    target = problem.target
    filled = Observed(target.value_BD.masked_fill(~target.known_BD, 9e9), target.known_BD, target.sigma_BD)  # type: ignore[operator]
    again = solver.solve(CONSTANT, dataclasses.replace(problem, target=filled).objective(), problem.start())
    assert torch.equal(again.latent_BL, solution.latent_BL)
    alone = solver.solve(CONSTANT, problem.objective(slice(2, 3)), problem.start()[2:3])
    torch.testing.assert_close(alone.latent_BL, solution.latent_BL[2:3], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "solver",
    [
        {"name": "lbfgs", "min_slope": 1e-16},
        {"name": "gauss_newton", "min_slope": 1e-16},
        {"name": "amd_spectral", "min_slope": 1e-16, "window": 20},
    ],
    ids=lambda each: each["name"],
)
def test_linear_decoding_is_probabilistic_pca(solver: dict[str, Any]) -> None:
    """With λ = 1: ⟨z⟩ = (WᵀW + σ²I)⁻¹ Wᵀ(y − μ), over the observed values of each sample."""
    settings = {key: value for key, value in solver.items() if key != "name"}
    found = registry.component("solver", solver["name"]).model_validate({"name": solver["name"], **settings})
    assert isinstance(found, Solver)
    generator = torch.Generator().manual_seed(7)
    linear = MLPDecoder([L, D]).double()
    target = observed(Gaussian(), missing=True)
    assert target.known_BD is not None
    sigma = 0.5
    problem = Problem(linear, Gaussian(sigma=sigma).loss(), target, precision=1.0)
    start_BL = torch.randn(B, L, dtype=torch.float64, generator=generator)
    latent_BL = found.solve(CONSTANT, problem.objective(), start_BL).latent_BL
    (layer,) = linear.linears()
    weight, bias = layer.weight.detach(), layer.bias.detach()
    for row in range(B):
        known = target.known_BD[row]
        seen, y = weight[known], target.value_BD[row][known] - bias[known]
        mean = torch.linalg.solve(seen.t() @ seen + sigma**2 * torch.eye(L).double(), seen.t() @ y)
        torch.testing.assert_close(latent_BL[row], mean, rtol=0, atol=1e-5)


# In a configuration


def test_bernoulli_is_the_default_likelihood() -> None:
    """A likelihood is a section of the settings, and decides how the data may be scaled."""
    assert Trial.build().likelihood == Bernoulli()
    assert Trial.build({"likelihood": {"name": "gaussian", "sigma": "learned"}}).likelihood == Gaussian(sigma="learned")
    assert Trial.build({"likelihood": "gaussian"}).data.scale == "standard"
    assert Trial.build({"likelihood": "gaussian", "data": {"scale": "none"}}).data.scale == "none"
    assert Trial.build({"likelihood": "poisson"}).data.scale == "none"
    with pytest.raises(InputError, match=r"likelihood: given 'gausian'; did you mean 'gaussian'"):
        Trial.build({"likelihood": "gausian"})
    with pytest.raises(InputError, match=r"data.scale: given 'standard' with likelihood=poisson"):
        Trial.build({"likelihood": "poisson", "data": {"scale": "standard"}})


def test_likelihood_and_prior_identify_a_trial() -> None:
    trial = Trial.build({"seed": 3})
    assert trial.fingerprint("x") != Trial.build({"seed": 3, "likelihood": "gaussian"}).fingerprint("x")
    assert trial.fingerprint("x") != Trial.build({"seed": 3, "prior_precision": 1.0}).fingerprint("x")


def test_cross_entropy_is_torchs() -> None:
    target = Observed(torch.rand(4, 6))
    output_BD = torch.randn(4, 6)
    expected = F.binary_cross_entropy_with_logits(output_BD, target.value_BD, reduction="none").mean(-1)
    assert torch.equal(BernoulliLoss()(output_BD, target), expected)


def test_observed_values_must_be_finite() -> None:
    value_BD = torch.tensor([[1.0, 2.0], [math.nan, 1.0], [0.0, math.inf]])
    with pytest.raises(ValueError, match="NaN or infinite values in sample 1, 2 of the batch"):
        Objective(MLPDecoder([1, 2]), Gaussian().loss(), Observed(value_BD))
    Objective(MLPDecoder([1, 2]), Gaussian().loss(), Observed(value_BD, value_BD.isfinite()))


@pytest.mark.parametrize("sigma", [0.0, 1e-30, math.nan])
def test_the_error_of_a_missing_value_is_ignored(sigma: float) -> None:
    """In units of another size it may be scaled to 0, or to what has no square."""
    target, loss = observed(CASES["gaussian of the data"], missing=True), made(CASES["gaussian of the data"])
    assert target.sigma_BD is not None
    assert target.known_BD is not None
    sigma_BD = target.sigma_BD.masked_fill(~target.known_BD, sigma).float()
    value_BD, output_BD = target.value_BD.float(), outputs().float()
    other = Observed(value_BD, target.known_BD, sigma_BD)
    target = Observed(value_BD, target.known_BD, target.sigma_BD.float())
    for function in (loss, loss.gradient, loss.curvature, loss.hessian):
        assert torch.equal(function(output_BD, other), function(output_BD, target))


@pytest.mark.parametrize(("name", "key"), [("gaussian", "sigma"), ("student_t", "scale")])
def test_each_value_may_have_an_error_of_its_own(name: str, key: str) -> None:
    """Columns on a plane, with errors of .3 and 1 in turns; a table of one σ would be wrong about all of them."""
    draw = np.random.default_rng(0)
    noise = draw.normal(size=(400, 30)) if name == "gaussian" else draw.standard_t(4, size=(400, 30))
    X = draw.normal(size=(400, 2)) @ draw.normal(size=(2, 30)) * 1.5 + np.array([0.3, 1.0] * 15) * noise
    settings: dict[str, Any] = {"hidden_layer_sizes": (), "scale": "none", "random_state": 0}
    encoder = GradientFlowEncoder(2, likelihood={"name": name, key: "each"}, **settings).fit(X)
    loss = encoder._learner.loss
    assert isinstance(loss, LocationLoss)
    found_D = loss.scale(torch.zeros(1)).detach().numpy()
    assert found_D.shape == (30,)
    small, large = np.median(found_D[::2]), np.median(found_D[1::2])
    assert 0.2 < small < 0.55
    assert 0.8 < large < 1.4
    again = GradientFlowEncoder(2, likelihood={"name": name, key: "learned"}, epochs=1, **settings)
    assert again.fit(X)._learner.loss.get_parameter("rho").shape == ()
    with pytest.raises(InputError, match=r"data\.observe: given 'identity' with a learned error of each value"):
        Trial.build({"likelihood": {"name": name, key: "each"}, "data": {"observe": "identity"}})
