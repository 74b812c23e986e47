"""Decoders, the objective that flows follow, and gradients with respect to decoder weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import SquaredError, image_problem
from torch import Tensor, nn

from gfe_study.data.split import image_shape
from gfe_study.likelihoods.base import Loss, Observed
from gfe_study.likelihoods.bernoulli import BernoulliLoss
from gfe_study.models.base import Decoder
from gfe_study.models.mlp import MLP, MLPDecoder

SELECTIONS = [None, torch.tensor([3, 0]), torch.tensor([], dtype=torch.long), torch.arange(5)]


WIDTHS = ([3, 7], [3, 11, 7], [3, 8, 9, 10, 7])


@pytest.fixture(params=[(widths, skip) for widths in WIDTHS for skip in (False, True)], ids=str)
def decoder(request: pytest.FixtureRequest) -> MLPDecoder:
    torch.manual_seed(0)
    widths, skip = request.param
    return MLPDecoder(widths, skip=skip).double()


@pytest.fixture
def latents() -> Tensor:
    return 3 * torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("selected", SELECTIONS, ids=str)
@pytest.mark.parametrize("linearize", [MLPDecoder.linearize, Decoder.linearize], ids=["mlp", "by autograd"])
def test_linearize_gives_output_and_derivative(
    linearize: Callable[..., Any], decoder: MLPDecoder, latents: Tensor, selected: Tensor | None
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


@pytest.mark.parametrize("jacobian", [MLPDecoder.jacobian, Decoder.jacobian], ids=["mlp", "by autograd"])
def test_jacobian_is_the_derivative_by_latents(
    jacobian: Callable[..., Any], decoder: MLPDecoder, latents: Tensor
) -> None:
    output, tangents = jacobian(decoder, latents)
    torch.testing.assert_close(output, decoder(latents).detach())
    for row in range(5):
        expected = torch.autograd.functional.jacobian(decoder, latents[row])
        torch.testing.assert_close(tangents[row], expected.t())
    assert not tangents.requires_grad


@pytest.mark.parametrize("loss", [BernoulliLoss(), SquaredError()], ids=lambda loss: type(loss).__name__)
def test_latent_gradient_is_autograds(loss: Loss, decoder: MLPDecoder, latents: Tensor) -> None:
    """And so is its derivative."""
    generator = torch.Generator().manual_seed(2)
    target = Observed(torch.rand(5, 7, dtype=torch.float64, generator=generator))
    direction = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    found = []
    for way in (MLPDecoder.latent_gradient, Decoder.latent_gradient):
        z = latents.clone().requires_grad_()
        gradient = way(decoder, loss, z, target)
        products = torch.autograd.grad(gradient, [z, *decoder.parameters()], direction, materialize_grads=True)
        found.append([gradient.detach(), *products])
    torch.testing.assert_close(*found)
    z, into = latents.clone().requires_grad_(), [torch.zeros_like(weight) for weight in decoder.parameters()]
    (product,) = torch.autograd.grad(decoder.latent_gradient(loss, z, target, into), z, direction)
    torch.testing.assert_close([product, *into], found[1][1:])


def test_a_skip_bypasses_the_layers_and_their_elu(decoder: MLPDecoder, latents: Tensor) -> None:
    *inner, last = decoder.linears()
    chain = nn.Sequential(*(layer for linear in inner for layer in (linear, nn.ELU())), last)
    past = 0.0 if decoder.skip is None else latents @ decoder.skip.weight.t()
    torch.testing.assert_close(decoder(latents), chain(latents) + past)


def test_a_skip_changes_no_other_weight() -> None:
    shape, decoders = image_shape(2, 5, 1), []
    for skip in (None, True):
        torch.manual_seed(0)
        decoders.append(MLP(latent_dim=4, hidden=(6,), skip=skip).decoder(shape))
    plain, skipping = (dict(each.named_parameters()) for each in decoders)
    assert skipping.keys() - plain.keys() == {"skip.weight"}
    assert all(torch.equal(plain[name], skipping[name]) for name in plain)


def test_the_encoder_mirrors_the_decoder() -> None:
    model, shape = MLP(latent_dim=4, hidden=(6, 8)), image_shape(2, 5, 1)
    decoder, encoder = model.decoder(shape), model.encoder(shape)
    assert isinstance(decoder, MLPDecoder)
    widths = [tuple(layer.weight.shape) for layer in decoder.linears()]
    assert widths == [(6, 4), (8, 6), (10, 8)]
    mirrored = [tuple(layer.weight.shape) for layer in encoder.modules() if isinstance(layer, nn.Linear)]
    assert mirrored == [s[::-1] for s in reversed(widths)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_sample_that_is_not_finite_is_named(bad: float) -> None:
    problem = image_problem()
    problem.target_BD[3, 0] = bad
    with pytest.raises(ValueError, match=r"values in sample 3\b"):
        problem.objective()


@pytest.mark.parametrize("evaluated", [None, torch.tensor([4, 1, 2])], ids=str)
@pytest.mark.parametrize("selected", [None, torch.tensor([2, 0])], ids=str)
def test_pullback_is_the_gradient_of_chosen_rows(evaluated: Tensor | None, selected: Tensor | None) -> None:
    problem = image_problem(batch=5)
    rows = torch.arange(5) if evaluated is None else evaluated
    z = torch.randn(len(rows), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    objective = problem.objective()
    loss, pullback = objective.evaluate(z, evaluated)
    gradient = pullback(selected)

    z.requires_grad_()
    expected_loss = problem.loss(problem.decoder(z), problem.target[rows])
    (expected,) = torch.autograd.grad(expected_loss.sum(), z)
    chosen = torch.arange(len(rows)) if selected is None else selected
    torch.testing.assert_close(loss, expected_loss.detach())
    torch.testing.assert_close(gradient, expected[chosen])
    assert objective.nfe_forward_B.nonzero().flatten().tolist() == sorted(rows.tolist())
    assert objective.nfe_backward_B.nonzero().flatten().tolist() == sorted(rows[chosen].tolist())
