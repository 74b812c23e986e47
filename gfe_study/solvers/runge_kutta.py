"""Explicit Runge–Kutta schemes, and the path of states that a solver walked with one of them.

Shapes: B batch, S solver state, N nodes of a path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from gfe_study.solvers.fields import Flow

Time = float | Tensor
"""One time for the whole batch, or one per sample, shape (B,)."""

Rate = Callable[[Time, Tensor], Tensor]
"""(t, s) -> ds/dt, shape (B, S)."""


@dataclass(frozen=True)
class Scheme:
    """An explicit Runge–Kutta scheme by its Butcher tableau.

    Stage i is k_i = f(t + c_i h, s + h Σ_{j<i} a_ij k_j); the step is s + h Σ_i b_i k_i.
    """

    order: int
    times: tuple[float, ...]
    """c_i."""
    stages: tuple[tuple[float, ...], ...]
    """a_ij, row i of length i."""
    weights: tuple[float, ...]
    """b_i."""

    def step(self, rate: Rate, t0: Time, length: Time, state_BS: Tensor) -> Tensor:
        """The state at t0 + length, from the state at t0. One rate per stage."""
        h = length[:, None] if isinstance(length, Tensor) else length
        slopes: list[Tensor] = []
        for c, row in zip(self.times, self.stages, strict=True):
            t = t0 if c == 0 else t0 + c * length
            slopes.append(rate(t, _moved(state_BS, h, row, slopes)))
        return _moved(state_BS, h, self.weights, slopes)


def _moved(state_BS: Tensor, h: float | Tensor, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    used = [weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight]
    return state_BS + h * sum(used[1:], used[0]) if used else state_BS


EULER = Scheme(order=1, times=(0.0,), stages=((),), weights=(1.0,))

RK4 = Scheme(
    order=4,
    times=(0.0, 0.5, 0.5, 1.0),
    stages=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
    weights=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
)

DOPRI5 = Scheme(
    order=5,
    times=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
    stages=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    ),
    weights=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
"""Dormand & Prince (1980), the fifth-order solution."""


@dataclass(frozen=True)
class Path:
    """The accepted steps of every sample: from node n to node n + 1 by one step of `scheme`.

    A sample that ended sooner stays where it ended: its last steps have length zero. Where the length of a step
    was chosen by looking at the loss, the choice is data: derivatives hold the lengths fixed.

    Attributes:
        time_NB: flow time of each node.
        length_NB: length of each step, one row less. Not the difference of two times: the sum of many long steps
            has rounded away what a short one was.
        state_NBS: solver state of each node.
    """

    flow: Flow
    scheme: Scheme
    tau: float
    time_NB: Tensor
    length_NB: Tensor
    state_NBS: Tensor

    def __len__(self) -> int:
        """Steps of the sample that took most."""
        return len(self.time_NB) - 1
