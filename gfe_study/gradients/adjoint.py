"""The full adjoint, arXiv:2412.00864 eq. 2–4, with the signs of its derivation made to agree.

Shapes: B batch, K rows of it, L latent, S solver state, N nodes of the path.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gfe_study.gradients.base import Differentiated, Gradient, PathObjective, add_gradients, weights_of
from gfe_study.solvers.base import Solution
from gfe_study.solvers.objective import Objective
from gfe_study.solvers.runge_kutta import Path, Time


class Adjoint(Gradient):
    """dL/dθ through the whole flow: a costate is carried back over the solver's own slices.

    With s' = f(t, s; θ) the flow, a(τ) = ∂ℓ/∂s(τ), da/dt = −(∂f/∂s)ᵀ a and
    dL/dθ = ∂_θ ℓ(z(τ); θ) + ∫₀^τ (∂f/∂θ)ᵀ a dt. For the gradient flow, f = −α(t) ∇_z ℓ, this is eq. 2–4:
    da/dt = α H a and dL/dθ = ∂_θ ℓ − ∫ α ∂_θ[aᵀ ∇_z ℓ] dt; for the second-order flow a is (a_z, a_v).

    `discrete` differentiates every step as the solver took it: exact for the numbers the solver gave, whatever its
    order and grid, as autograd through the whole solve is. `continuous` integrates the equations above by Heun's
    rule on the nodes: what the papers do, of order 2 in the slices where the nodes themselves are. Both keep one
    slice's graph at a time, and take every weight and the costate out of one vector–Jacobian product; neither builds
    a Hessian or a Jacobian. A step length that the solver chose by looking at the loss is held fixed. Where a batch
    has several updates, its flow goes on from the last z*, and this is the gradient of the flow from there.

    Per Euler slice: one evaluation, one backward pass, and one through both; with the forward solve's two, the
    papers' five decoder passes per slice.
    """

    form: Literal["discrete", "continuous"] = "discrete"
    """Differentiate the solver's steps, or integrate the adjoint equation on its nodes."""

    needs_path = True

    def backward(self, objective: Objective, solution: Solution) -> Differentiated:
        path = self.path_of(solution)
        passes_B = torch.zeros_like(solution.nfe_forward_B)
        weights = weights_of(objective)
        with torch.enable_grad():
            state_BS = path.state_NBS[-1].detach().requires_grad_()
            latent_BL = path.flow.latent(state_BS)
            loss_B = objective.loss(objective.decoder(latent_BL), objective.target)
            total = objective.target.weighed(loss_B + objective.prior(latent_BL)).sum()
        if bool(loss_B.isfinite().all()):
            *gradients, costate_BS = torch.autograd.grad(total, [*weights, state_BS])
            add_gradients(weights, gradients)
            for n in reversed(range(len(path))):
                moving_B = path.length_NB[n] > 0
                rows = slice(None) if bool(moving_B.all()) else moving_B.nonzero().flatten()
                slice_ = _Slice(objective, path, n, rows)
                back = slice_.discrete if self.form == "discrete" else slice_.continuous
                costate_KS, evaluations = back(costate_BS[rows])
                costate_BS[rows] = costate_KS
                passes_B[rows] += evaluations
        return Differentiated(loss_B.detach(), passes_B + 1, 2 * passes_B + 1)


class _Slice:
    """One slice of the path, for the rows that moved in it."""

    def __init__(self, objective: Objective, path: Path, n: int, rows: slice | Tensor) -> None:
        self.weights = weights_of(objective)
        into = [weight.grad for weight in objective.decoder.parameters() if weight.grad is not None]
        all_trained = len(into) == len(list(objective.decoder.parameters()))
        self.objective = PathObjective(objective, rows, into if all_trained else None)
        self.path = path
        self.t0_K, self.t1_K = path.time_NB[n][rows], path.time_NB[n + 1][rows]
        self.length_K = path.length_NB[n][rows]
        self.state0_KS, self.state1_KS = path.state_NBS[n][rows], path.state_NBS[n + 1][rows]

    def rate(self, t: Time, state_KS: Tensor) -> Tensor:
        return self.path.flow.derivative(self.objective, t, self.path.tau, state_KS)

    def discrete(self, costate_KS: Tensor) -> tuple[Tensor, int]:
        """The costate before the step, and the evaluations spent; adds to the weights' gradients."""
        with torch.enable_grad():
            state_KS = self.state0_KS.detach().requires_grad_()
            reached_KS = self.path.scheme.step(self.rate, self.t0_K, self.length_K, state_KS)
        *gradients, costate_KS = torch.autograd.grad(
            reached_KS, [*self.weights, state_KS], costate_KS, allow_unused=True
        )
        add_gradients(self.weights, gradients)
        return costate_KS, self.objective.evaluations

    def continuous(self, costate_KS: Tensor) -> tuple[Tensor, int]:
        """The same by Heun's rule on da/dt = −(∂f/∂s)ᵀ a, backwards."""
        half_K1 = self.length_K[:, None] / 2
        late_KS = self._pull(self.t1_K, self.state1_KS, costate_KS, half_K1)
        early_KS = self._pull(self.t0_K, self.state0_KS, costate_KS + 2 * late_KS, half_K1)
        return costate_KS + late_KS + early_KS, self.objective.evaluations

    def _pull(self, t_K: Tensor, state_KS: Tensor, costate_KS: Tensor, weight_K1: Tensor) -> Tensor:
        with torch.enable_grad():
            state_KS = state_KS.detach().requires_grad_()
            rate_KS = self.rate(t_K, state_KS)
        *gradients, pulled_KS = torch.autograd.grad(
            rate_KS, [*self.weights, state_KS], weight_K1 * costate_KS, allow_unused=True
        )
        add_gradients(self.weights, gradients)
        return pulled_KS
