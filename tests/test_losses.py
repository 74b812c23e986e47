from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gfe_study.losses import BernoulliNLL, Loss, SquaredError

LOSSES = [BernoulliNLL(), SquaredError()]


@pytest.fixture
def output_and_target() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        5 * torch.randn(6, 9, dtype=torch.float64, generator=generator),
        torch.rand(6, 9, dtype=torch.float64, generator=generator),
    )


def test_bernoulli_nll_is_the_mean_cross_entropy_of_a_samples_pixels(output_and_target: tuple[Tensor, Tensor]) -> None:
    output, target = output_and_target
    for row, loss in enumerate(BernoulliNLL()(output, target)):
        p, y = output[row].sigmoid(), target[row]
        torch.testing.assert_close(loss, F.binary_cross_entropy(p, y))
        torch.testing.assert_close(loss, -(y * p.log() + (1 - y) * (1 - p).log()).mean())


def test_squared_error_is_half_the_squared_distance(output_and_target: tuple[Tensor, Tensor]) -> None:
    output, target = output_and_target
    expected = [torch.dist(a, b).item() ** 2 / 2 for a, b in zip(output, target, strict=True)]
    assert SquaredError()(output, target).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_gradient_is_autograds_and_changes_nothing(loss: Loss, output_and_target: tuple[Tensor, Tensor]) -> None:
    output, target = output_and_target
    kept = output.clone(), target.clone()
    gradient = loss.gradient(output, target)
    assert torch.equal(output, kept[0])
    assert torch.equal(target, kept[1])
    output.requires_grad_()
    (expected,) = torch.autograd.grad(loss(output, target).sum(), output)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bernoulli_nll_is_exact_where_logits_are_huge(dtype: torch.dtype) -> None:
    output = torch.tensor([[1e4], [-1e4], [1e4], [-1e4]], dtype=dtype)
    target = torch.tensor([[1.0], [0.0], [0.0], [1.0]], dtype=dtype)
    assert BernoulliNLL()(output, target).tolist() == [0, 0, 1e4, 1e4]
    assert BernoulliNLL().gradient(output, target).flatten().tolist() == [0, 0, 1, -1]
