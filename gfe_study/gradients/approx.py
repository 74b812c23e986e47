"""The approximate gradient, arXiv:2412.00864 eq. 5–6."""

from typing import Literal

import torch
from torch import Tensor

from gfe_study.gradients.base import Differentiated, Gradient
from gfe_study.losses import Loss
from gfe_study.models.base import Decoder
from gfe_study.solvers.base import Solution


class Approximate(Gradient):
    """dL/dθ ≈ ∂_θ ℓ(y, D(z*; θ)) with z* held fixed: exact where the flow has converged, ∇_z ℓ(z*) = 0.

    One decoder evaluation and one backward pass.
    """

    name: Literal["approx"] = "approx"

    def backward(self, decoder: Decoder, loss: Loss, target_BD: Tensor, solution: Solution) -> Differentiated:
        loss_B = loss(decoder(solution.latent_BL), target_BD)
        if bool(loss_B.isfinite().all()):
            loss_B.sum().backward()
        once_B = torch.ones_like(solution.nfe_forward_B)
        return Differentiated(loss_B.detach(), once_B, once_B)
