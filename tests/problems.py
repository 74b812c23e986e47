"""Problems to solve for latents: linear ones, whose flows have closed forms, and small images.

Shapes: B batch, L latent, D pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gfe_study.likelihoods.base import Loss, Observed
from gfe_study.likelihoods.bernoulli import BernoulliLoss
from gfe_study.likelihoods.gaussian import GaussianLoss
from gfe_study.models.base import Decoder
from gfe_study.models.mlp import MLPDecoder
from gfe_study.solvers.base import Solution, Solver
from gfe_study.solvers.fields import GradientFlow
from gfe_study.solvers.objective import Objective

CONSTANT = GradientFlow(alpha="constant")
# Derandomised, as a suite that guards others' work must not fail by chance.
properties = settings(max_examples=30, deadline=None, derandomize=True, database=None)


class SquaredError(GaussianLoss):
    """Half the squared Euclidean distance, ½‖x − y‖²: the loss whose flow is linear under a linear decoder."""

    def __init__(self) -> None:
        super().__init__(1.0)

    def forward(self, output_BD: Tensor, target: Observed) -> Tensor:
        return (output_BD - target.value_BD).square().sum(-1) / 2

    def gradient(self, output_BD: Tensor, target: Observed) -> Tensor:
        return output_BD - target.value_BD

    def curvature(self, output_BD: Tensor, target: Observed) -> Tensor:
        return torch.ones_like(output_BD)

    hessian = curvature


@dataclass(frozen=True)
class Problem:
    """A decoder, a loss and targets, in float64; the flow starts from zero."""

    decoder: Decoder
    loss: Loss
    target: Observed
    precision: float | None = None

    @property
    def target_BD(self) -> Tensor:
        return self.target.value_BD

    def objective(self, rows: slice = slice(None)) -> Objective:
        return Objective(self.decoder, self.loss, self.target[rows], precision=self.precision)

    def start(self) -> Tensor:
        return self.target_BD.new_zeros(len(self.target_BD), next(self.decoder.parameters()).shape[1])

    def gradient(self, latent_BL: Tensor) -> Tensor:
        """∇_z ℓ by autograd."""
        latent_BL = latent_BL.detach().requires_grad_()
        with torch.enable_grad():
            total = self.loss(self.decoder(latent_BL), self.target).sum()
        return torch.autograd.grad(total, latent_BL)[0]


@dataclass(frozen=True)
class LinearProblem(Problem):
    """½‖Wz + b − y‖²: both flows have a closed form from zero."""

    decoder: MLPDecoder

    def _gram_and_end(self) -> tuple[Tensor, Tensor]:
        (layer,) = self.decoder.linears()
        weight, bias = layer.weight.detach(), layer.bias.detach()
        gram = weight.t() @ weight
        return gram, torch.linalg.solve(gram, weight.t() @ (self.target_BD - bias).t()).t()

    def gradient_flow(self, clock: float) -> Tensor:
        """z = (I − e^{−W'W s}) (W'W)⁻¹ W'(y − b) at s = ∫ α dt."""
        gram, end_BL = self._gram_and_end()
        return end_BL - end_BL @ torch.matrix_exp(-gram * clock)

    def nesterov_flow(self, t: float) -> Tensor:
        """Per eigenvalue λ of W'W: z = z∞ (1 − 2 J₁(√λ t) / (√λ t)) (Su, Boyd & Candès 2016)."""
        gram, end_BL = self._gram_and_end()
        eigenvalues, basis = torch.linalg.eigh(gram)
        phase = eigenvalues.sqrt().numpy() * t
        travelled = torch.from_numpy(np.asarray(1 - 2 * scipy.special.j1(phase) / phase))
        latent_BL: Tensor = end_BL @ basis * travelled @ basis.t()
        return latent_BL


def _decoder(widths: list[int], seed: int, gain: float) -> MLPDecoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = MLPDecoder(widths).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(gain)
    return decoder


def linear_problem(batch: int = 4, seed: int = 0) -> LinearProblem:
    """Six pixels from three latents; the eigenvalues of W'W are of the order of 1."""
    pixels = torch.rand(batch, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return LinearProblem(_decoder([3, 6], seed, gain=1.5), SquaredError(), Observed(pixels))


def scalar_problem(targets: list[float], weight: float = 1.0) -> Problem:
    """½(w·z − y)² in one dimension: steps can be followed by hand."""
    decoder = MLPDecoder([1, 1]).double()
    with torch.no_grad():
        (layer,) = decoder.linears()
        layer.weight.fill_(weight)
        layer.bias.zero_()
    return Problem(decoder, SquaredError(), Observed(torch.tensor(targets, dtype=torch.float64)[:, None]))


def image_problem(batch: int = 4, seed: int = 0, gain: float = 2.0) -> Problem:
    """Cross-entropy of seven pixels from two latents through a hidden layer."""
    pixels = torch.rand(batch, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Problem(_decoder([2, 9, 7], seed, gain), BernoulliLoss(), Observed(pixels))


class SmoothDecoder(Decoder):
    """tanh between two linear layers: ELU's second derivative jumps at 0, which hides an order above 1 or 2."""

    def __init__(self, latent: int, hidden: int, pixels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(latent, hidden), nn.Tanh(), nn.Linear(hidden, pixels))

    def forward(self, latent_KL: Tensor) -> Tensor:
        output_KD: Tensor = self.net(latent_KL)
        return output_KD


def smooth_problem(batch: int = 3, seed: int = 0) -> Problem:
    """Cross-entropy of seven pixels from two latents through a decoder that knows nothing but autograd."""
    problem = image_problem(batch, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = SmoothDecoder(2, 9, 7).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(2)
    return Problem(decoder, problem.loss, problem.target)


image_problems = st.builds(image_problem, st.just(2), st.integers(0, 10**6), st.sampled_from([2.0, 5.0]))


def solve(solver: Solver, problem: Problem, flow: Any = CONSTANT, **options: Any) -> Solution:
    return solver.solve(flow, problem.objective(), problem.start(), **options)
