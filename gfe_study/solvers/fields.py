"""Flows: the right-hand side ds/dt of the ordinary differential equation that a latent follows.

A flow is a field over a solver state s of shape (B, S), so that every fixed-grid solver works on every flow.

Shapes: B batch, L latent, S = L (first order) or 2L (second order).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, Protocol

import torch
from torch import Tensor

from gfe_study.config import Component
from gfe_study.solvers.runge_kutta import Time

Alpha = Literal["exponential", "constant"]


class Gradient(Protocol):
    """What a flow needs to know of the loss."""

    def gradient(self, latent_BL: Tensor) -> Tensor:
        """∇_z ℓ of the whole batch, shape (B, L)."""
        ...


def alpha_at(schedule: Alpha, t: Time, tau: float) -> Time:
    """The weight α(t) of the gradient: e^{−2t/τ}, or 1. A column, shape (B, 1), where times are per sample."""
    if schedule == "constant":
        return 1.0
    return torch.exp(-2 * t[:, None] / tau) if isinstance(t, Tensor) else math.exp(-2 * t / tau)


class Flow(Component, ABC):
    """A right-hand side. `alpha` weighs the gradient over flow time."""

    alpha: Alpha

    @abstractmethod
    def lift(self, latent_BL: Tensor) -> Tensor:
        """The solver state s(0), shape (B, S), of a start z₀."""

    @abstractmethod
    def latent(self, state_BS: Tensor) -> Tensor:
        """The latent z inside a state, shape (B, L)."""

    @abstractmethod
    def derivative(self, objective: Gradient, t: Time, tau: float, state_BS: Tensor) -> Tensor:
        """ds/dt at time t, shape (B, S). One decoder evaluation and one pullback per sample.

        Differentiable in the state, and in θ, where `objective.gradient` is.
        """


class GradientFlow(Flow):
    """dz/dt = −α(t) ∇_z ℓ(y, D(z; θ)), arXiv:2412.00864 eq. 2."""

    alpha: Alpha = "exponential"
    """α(t): `exponential` is e^{−2t/τ}; `constant` is 1, and what AMD follows."""

    def lift(self, latent_BL: Tensor) -> Tensor:
        return latent_BL

    def latent(self, state_BS: Tensor) -> Tensor:
        return state_BS

    def derivative(self, objective: Gradient, t: Time, tau: float, state_BS: Tensor) -> Tensor:
        return -alpha_at(self.alpha, t, tau) * objective.gradient(state_BS)


class NesterovFlow(Flow):
    """dz/dt = v, dv/dt = −3/t · v − α(t) ∇_z ℓ, v(0) = 0: the second-order flow, eq. 7–8 with the signs mended.

    At t = 0 the damping term is 0/0. Near it v(t) = c·t, so v′ = −3c − ∇ℓ = c gives c = −∇ℓ/4: that limit,
    dv/dt(0) = −α(0) ∇ℓ/4, is used there in place of the papers' 3/(t + ε), whose transient on the scale of ε
    makes the first step of a grid coarser than ε point uphill.
    """

    alpha: Alpha = "constant"
    """α(t): `constant` is eq. 7–8; `exponential` is e^{−2t/τ}."""

    def lift(self, latent_BL: Tensor) -> Tensor:
        return torch.cat([latent_BL, torch.zeros_like(latent_BL)], dim=-1)

    def latent(self, state_BS: Tensor) -> Tensor:
        return state_BS[:, : state_BS.shape[1] // 2]

    def derivative(self, objective: Gradient, t: Time, tau: float, state_BS: Tensor) -> Tensor:
        latent_BL, velocity_BL = state_BS.chunk(2, dim=-1)
        force_BL = -alpha_at(self.alpha, t, tau) * objective.gradient(latent_BL)
        if isinstance(t, Tensor):
            at_0 = (t == 0)[:, None]
            damping = torch.where(at_0, 0.0, 3 / t[:, None].masked_fill(at_0, 1.0))
            acceleration_BL = torch.where(at_0, force_BL / 4, force_BL) - damping * velocity_BL
        else:
            acceleration_BL = force_BL / 4 if t == 0 else force_BL - 3 / t * velocity_BL
        return torch.cat([velocity_BL, acceleration_BL], dim=-1)
