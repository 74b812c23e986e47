"""How the loss at z* is differentiated with respect to the decoder's weights.

Shapes: B batch, D pixels.
"""

from abc import ABC, abstractmethod

from torch import Tensor

from gfe_study.config import Section
from gfe_study.losses import Loss
from gfe_study.models.base import Decoder
from gfe_study.solvers.base import Solution


class Gradient(Section, ABC):
    """Adds dL/dθ, L the sum of ℓ over the batch, to the `.grad` of the decoder's weights."""

    name: str

    @abstractmethod
    def backward(self, decoder: Decoder, loss: Loss, target_BD: Tensor, solution: Solution) -> Tensor:
        """Returns ℓ of each sample at its z*, shape (B,), detached.

        Where ℓ of a sample is not finite, no gradient is computed: the caller stops the trial.
        """
