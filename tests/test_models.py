"""Decoders, the objective that flows follow, and gradients with respect to decoder weights."""

from __future__ import annotations

import pytest
import torch
from problems import LinearProblem, image_problem, linear_problem
from torch import Tensor, nn

from gfe_study.config import CHOICES
from gfe_study.config.trial import choice_class
from gfe_study.gradients.approx import Approximate
from gfe_study.losses import SquaredError
from gfe_study.models.base import Decoder
from gfe_study.models.mlp import MLP, MLPDecoder
from gfe_study.solvers.amd import AMD
from gfe_study.solvers.base import Solution
from gfe_study.solvers.fields import GradientFlow

SELECTIONS = [None, torch.tensor([3, 0]), torch.tensor([], dtype=torch.long), torch.arange(5)]


@pytest.fixture(params=[[3, 7], [3, 11, 7], [3, 8, 9, 10, 7]], ids=str)
def decoder(request: pytest.FixtureRequest) -> MLPDecoder:
    torch.manual_seed(0)
    return MLPDecoder(request.param).double()


@pytest.fixture
def latents() -> Tensor:
    return 3 * torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("selected", SELECTIONS, ids=str)
@pytest.mark.parametrize("linearize", [MLPDecoder.linearize, Decoder.linearize], ids=["mlp", "by autograd"])
def test_linearize_is_the_decoder_and_its_derivative(
    linearize: object, decoder: MLPDecoder, latents: Tensor, selected: Tensor | None
) -> None:
    output, vjp = linearize(decoder, latents)
    chosen = torch.arange(5) if selected is None else selected
    grad = torch.randn(len(chosen), 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    z = latents[chosen].requires_grad_()
    expected_output = decoder(z)
    (expected,) = torch.autograd.grad(expected_output, z, grad)
    torch.testing.assert_close(output[chosen], expected_output.detach())
    torch.testing.assert_close(vjp(grad, selected), expected)
    assert not output.requires_grad
    assert all(parameter.grad is None for parameter in decoder.parameters())


def test_elu_stands_between_the_layers(decoder: MLPDecoder, latents: Tensor) -> None:
    *inner, last = decoder.layers
    chain = nn.Sequential(*(layer for linear in inner for layer in (linear, nn.ELU())), last)
    torch.testing.assert_close(decoder(latents), chain(latents))


def test_the_encoder_mirrors_the_decoder() -> None:
    model = MLP(latent_dim=4, hidden=(6, 8))
    widths = [tuple(layer.weight.shape) for layer in model.decoder(10).layers]
    assert widths == [(6, 4), (8, 6), (10, 8)]
    assert [tuple(layer.weight.shape) for layer in model.encoder(10).layers] == [s[::-1] for s in reversed(widths)]


@pytest.mark.parametrize("name", CHOICES["model"])
def test_every_model_maps_latents_to_images_and_back(name: str) -> None:
    model = choice_class("model", name)()
    images = model.decoder(64)(torch.zeros(3, model.latent_dim))
    assert images.shape == (3, 64)
    assert model.encoder(64)(images).shape == (3, model.latent_dim)


@pytest.mark.parametrize("evaluated", [None, torch.tensor([4, 1, 2])], ids=str)
@pytest.mark.parametrize("selected", [None, torch.tensor([2, 0])], ids=str)
def test_pullback_is_the_gradient_of_the_rows_asked_for(evaluated: Tensor | None, selected: Tensor | None) -> None:
    problem = image_problem(batch=5)
    rows = torch.arange(5) if evaluated is None else evaluated
    z = torch.randn(len(rows), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    objective = problem.objective()
    loss, pullback = objective.evaluate(z, evaluated)
    gradient = pullback(selected)

    z.requires_grad_()
    expected_loss = problem.loss(problem.decoder(z), problem.target_BD[rows])
    (expected,) = torch.autograd.grad(expected_loss.sum(), z)
    chosen = torch.arange(len(rows)) if selected is None else selected
    torch.testing.assert_close(loss, expected_loss.detach())
    torch.testing.assert_close(gradient, expected[chosen])
    assert objective.nfe_forward_B.nonzero().flatten().tolist() == sorted(rows.tolist())
    assert objective.nfe_backward_B.nonzero().flatten().tolist() == sorted(rows[chosen].tolist())


def solved(problem: LinearProblem, tau: float) -> Solution:
    solver = AMD(tau=tau, s_initial=0.01, s_max=0.01, min_slope=0)
    return solver.solve(GradientFlow(alpha="constant"), problem.objective(), problem.start())


def test_approximate_gradient_is_autograds_at_the_latents_held_fixed() -> None:
    problem = image_problem()
    solution = AMD(max_nfe=10).solve(GradientFlow(alpha="constant"), problem.objective(), problem.start())
    loss_B = Approximate().backward(problem.decoder, problem.loss, problem.target_BD, solution)
    parameters = list(problem.decoder.parameters())
    latent_BL = solution.latent_BL.clone()
    total = problem.loss(problem.decoder(latent_BL), problem.target_BD).sum()
    torch.testing.assert_close([p.grad for p in parameters], list(torch.autograd.grad(total, parameters)))
    torch.testing.assert_close(loss_B, solution.loss_B)
    assert not loss_B.requires_grad


def test_approximate_gradient_tends_to_the_exact_one_as_the_flow_converges() -> None:
    problem = linear_problem()
    parameters = list(problem.decoder.parameters())
    gaps = []
    for tau in (1.0, 5.0, 25.0):
        problem.decoder.zero_grad()
        Approximate().backward(problem.decoder, problem.loss, problem.target_BD, solved(problem, tau))
        approximate = torch.cat([p.grad.flatten() for p in parameters])
        exact = torch.cat([g.flatten() for g in torch.autograd.grad(exact_loss(problem, tau), parameters)])
        gaps.append(((approximate - exact).norm() / exact.norm()).item())
    assert gaps[0] > 5 * gaps[1] > 25 * gaps[2]


def exact_loss(problem: LinearProblem, tau: float) -> Tensor:
    """The loss at the closed form of z(τ), differentiable through it."""
    weight, bias = problem.decoder.layers[0].weight, problem.decoder.layers[0].bias
    gram = weight.t() @ weight
    end_LB = torch.linalg.solve(gram, weight.t() @ (problem.target_BD - bias).t())
    latent_BL = (end_LB - torch.matrix_exp(-gram * tau) @ end_LB).t()
    return SquaredError()(problem.decoder(latent_BL), problem.target_BD).sum()


def test_no_gradient_is_computed_where_a_loss_is_not_finite() -> None:
    problem = image_problem()
    solution = AMD(max_nfe=3).solve(GradientFlow(alpha="constant"), problem.objective(), problem.start())
    with torch.no_grad():
        problem.decoder.layers[0].weight[0, 0] = torch.nan
    loss_B = Approximate().backward(problem.decoder, problem.loss, problem.target_BD, solution)
    assert loss_B.isnan().all()
    assert all(parameter.grad is None for parameter in problem.decoder.parameters())
