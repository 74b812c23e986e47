"""Nonlinear conjugate gradients.

Shapes: B batch, K samples still active, L latent.
"""

import torch
from pydantic import Field
from torch import Tensor

from gfe_study.solvers.descent import first_fields
from gfe_study.solvers.line_search import Directed, LineSearch, directed
from gfe_study.solvers.objective import Objective


class ConjugateGradients(LineSearch[Directed]):
    """d ← −a ∇ℓ + max(0, b) d, b = ⟨∇ℓ, ∇ℓ − ∇ℓ_old⟩ / ‖∇ℓ_old‖² (Polak & Ribière 1969; cut at 0 as by Gilbert &
    Nocedal 1992), for each sample by itself."""

    colour = "#a96b59"
    example = {"max_nfe": 30}
    refused = "it minimises the loss and follows no flow"

    step_size: float = Field(30.0, gt=0)
    """a, the share of the gradient in a new direction."""

    def _first(self, objective: Objective, start_BL: Tensor) -> Directed:
        first = first_fields(objective, start_BL)
        down_BL = -self.step_size * first["grad"]
        return Directed(**directed(first, down_BL, (down_BL * first["grad"]).sum(1), self.window))

    def _turn(self, objective: Objective, active: Directed, accepted: Tensor, move: Tensor, grad: Tensor) -> None:
        old, down = active.grad, -self.step_size * grad
        share = (grad * (grad - old)).sum(1) / old.square().sum(1)
        direction = down + share.nan_to_num(0.0).clamp(min=0)[:, None] * active.direction
        uphill = (direction * grad).sum(1) >= 0  # mixed in, the old direction would do harm
        direction = torch.where(uphill[:, None], down, direction)
        active.direction = torch.where(accepted[:, None], direction, active.direction)
        active.promise = torch.where(accepted, (direction * grad).sum(1), active.promise)
