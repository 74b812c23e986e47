"""The approximate gradient, arXiv:2412.00864 eq. 5–6."""

import torch

from gfe_study.gradients.base import Differentiated, Gradient
from gfe_study.solvers.base import Solution
from gfe_study.solvers.objective import Objective


class Approximate(Gradient):
    """dL/dθ ≈ ∂_θ ℓ(y, D(z*; θ)) with z* held fixed: exact where the flow has converged, ∇_z ℓ(z*) = 0.

    One decoder evaluation and one backward pass.
    """

    def backward(self, objective: Objective, solution: Solution) -> Differentiated:
        target = objective.target
        loss_B = objective.loss(objective.decoder(solution.latent_BL), target)
        if bool(loss_B.isfinite().all()):
            target.weighed(loss_B).sum().backward()
        once_B = torch.ones_like(solution.nfe_forward_B)
        return Differentiated(loss_B.detach(), once_B, once_B)
