"""The convolutional model.

Shapes: K rows of a batch, L latent, D pixels.
"""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import Problem, properties, solve
from torch import Tensor, nn

from gfe_study import registry
from gfe_study.config import InputError, Trial
from gfe_study.data.split import Shape, image_shape
from gfe_study.gradients.adjoint import Adjoint
from gfe_study.gradients.unrolled import Unrolled
from gfe_study.likelihoods.base import Observed
from gfe_study.likelihoods.bernoulli import BernoulliLoss
from gfe_study.models.conv import Conv, ConvDecoder
from gfe_study.solvers.base import Result
from gfe_study.solvers.fixed_grid import RK4

MODEL = Conv(latent_dim=3, channels=(4, 5))
COLOUR = image_shape(9, 10, 3)
SELECTIONS = [None, torch.tensor([3, 0]), torch.tensor([], dtype=torch.long), torch.arange(5)]


@pytest.fixture
def decoder() -> ConvDecoder:
    torch.manual_seed(0)
    decoder = MODEL.decoder(COLOUR).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(2)
    return decoder


@pytest.fixture
def latents() -> Tensor:
    return 2 * torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def problem(decoder: ConvDecoder) -> Problem:
    generator = torch.Generator().manual_seed(3)
    return Problem(
        decoder, BernoulliLoss(), Observed(torch.rand(5, COLOUR.size, dtype=torch.float64, generator=generator))
    )


shapes = st.builds(image_shape, st.integers(1, 40), st.integers(1, 40), st.integers(1, 3))


@given(shapes, st.lists(st.integers(1, 3), min_size=1, max_size=5))
@properties
def test_images_of_any_sides_are_made_and_read(shape: Shape, channels: list[int]) -> None:
    model = Conv(latent_dim=2, channels=channels)
    images = model.decoder(shape)(torch.zeros(2, 2))
    assert images.shape == (2, shape.size)
    assert model.encoder(shape)(images).shape == (2, 2)
    assert model.encoder(shape, outputs=4)(images).shape == (2, 4)


@pytest.mark.parametrize(
    ("shape", "sides"),
    [
        (image_shape(28, 28, 1), [(14, 14), (7, 7), (7, 7)]),
        (image_shape(32, 32, 3), [(16, 16), (8, 8), (4, 4)]),
        (image_shape(8, 8, 1), [(4, 4), (4, 4), (4, 4)]),
        (image_shape(45, 9, 3), [(22, 4), (11, 4), (5, 4)]),
    ],
)
def test_sides_are_halved_until_they_are_small(shape: Shape, sides: list[tuple[int, int]]) -> None:
    found: list[tuple[int, ...]] = []

    def note(layer: nn.Module, given: tuple[Tensor], output: Tensor) -> None:
        found.append(tuple(output.shape[2:]))

    encoder, decoder = Conv().encoder(shape), Conv().decoder(shape)
    for layer in [*encoder.layers, *decoder.layers]:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(note)
    encoder(decoder(torch.zeros(1, 20)))
    assert found[3:] == sides
    assert found[:3] == [*sides[-2::-1], shape.sides]


@pytest.mark.parametrize("shape", [COLOUR, image_shape(28, 28, 1), image_shape(13, 3, 2)], ids=str)
def test_decoder_layers_transpose_the_encoders(shape: Shape) -> None:
    encoder, decoder = Conv().encoder(shape), Conv().decoder(shape)
    down = [layer for layer in encoder.layers if isinstance(layer, nn.Conv2d)]
    up = [layer for layer in decoder.layers if isinstance(layer, nn.ConvTranspose2d)]
    image = torch.rand(1, *shape.dims)
    for inwards, outwards in zip(down, reversed(up), strict=True):
        outwards.weight = inwards.weight
        inwards.bias = outwards.bias = None
        smaller = inwards(image)
        other = torch.randn_like(smaller)
        torch.testing.assert_close((smaller * other).sum(), (image * outwards(other)).sum(), rtol=1e-4, atol=1e-4)
        image = smaller.detach()


def test_elu_stands_between_the_layers() -> None:
    """And nothing looks at the batch."""
    for network in (Conv().encoder(COLOUR), Conv().decoder(COLOUR)):
        weighty = [bool(list(layer.parameters())) for layer in network.layers]
        kinds = {type(layer) for layer, weight in zip(network.layers, weighty, strict=True) if not weight}
        assert kinds == {nn.ELU, nn.Flatten, nn.Unflatten}
        assert sum(isinstance(layer, nn.ELU) for layer in network.layers) == sum(weighty) - 1
        assert list(network.buffers()) == []


@pytest.mark.parametrize("selected", SELECTIONS, ids=str)
def test_linearize_gives_output_and_derivative(decoder: ConvDecoder, latents: Tensor, selected: Tensor | None) -> None:
    output, vjp = decoder.frozen().linearize(latents)
    chosen = torch.arange(5) if selected is None else selected
    grad = torch.randn(len(chosen), COLOUR.size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    z = latents[chosen].requires_grad_()
    (expected,) = torch.autograd.grad(decoder(z), z, grad)
    torch.testing.assert_close(output, decoder(latents).detach())
    torch.testing.assert_close(vjp(grad, selected), expected)
    assert not output.requires_grad
    assert all(parameter.grad is None for parameter in decoder.parameters())


def test_latent_gradient_can_be_differentiated(decoder: ConvDecoder, latents: Tensor) -> None:
    loss, target = BernoulliLoss(), Observed(torch.rand(5, COLOUR.size, dtype=torch.float64))
    z = latents.clone().requires_grad_()
    gradient = decoder.latent_gradient(loss, z, target)
    (expected,) = torch.autograd.grad(loss(decoder(z), target).sum(), z)
    torch.testing.assert_close(gradient.detach(), expected)
    direction, step = torch.randn_like(latents), 1e-6
    products = torch.autograd.grad(gradient, [z, *decoder.parameters()], direction, allow_unused=True)

    def first_order(at: Tensor) -> list[Tensor]:
        at = at.detach().requires_grad_()
        return list(torch.autograd.grad(loss(decoder(at), target).sum(), [at, *decoder.parameters()]))

    # The product along a direction is the derivative along it of ∂ℓ/∂(z, θ).
    ahead, behind = first_order(latents + step * direction), first_order(latents - step * direction)
    for product, late, early in zip(products, ahead, behind, strict=True):
        found = torch.zeros_like(late) if product is None else product
        torch.testing.assert_close(found, (late - early) / (2 * step), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", registry.names("solver"))
def test_every_solver_encodes_with_it(problem: Problem, name: str) -> None:
    solution = solve(registry.component("solver", name)(), problem)
    first = problem.loss(problem.decoder(problem.start()), problem.target).detach()
    assert (solution.loss_B < first).all()
    assert Result.NONFINITE not in solution.result_B
    torch.testing.assert_close(
        solution.loss_B, problem.loss(problem.decoder(solution.latent_BL), problem.target).detach()
    )


def test_adjoint_is_autograd_through_the_solve(problem: Problem) -> None:
    solution = solve(RK4(tau=6, slices=5), problem, keep_path=True)
    found = []
    for gradient in (Adjoint(), Unrolled()):
        own = dataclasses.replace(problem, decoder=copy.deepcopy(problem.decoder))
        gradient.backward(own.objective(), solution)
        found.append([parameter.grad for parameter in own.decoder.parameters()])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("channels", [[], [0], ["many"]])
def test_channels_that_are_none_are_refused(channels: list[object]) -> None:
    with pytest.raises(InputError, match=r"model\.channels"):
        Trial.build({"model": {"name": "conv", "channels": channels}})


def test_samples_of_too_many_axes_are_refused() -> None:
    with pytest.raises(InputError, match="given conv, with samples of 4 axes; allowed: up to 3"):
        Conv().decoder(Shape(1, (2, 2, 2, 2)))
