"""The decoder contract.

Shapes: K rows of a batch, L latent, D pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gfe_study.config import Section

Vjp = Callable[[Tensor, Tensor | None], Tensor]
"""(∂ℓ/∂output of the selected rows, selection or None for all) -> ∂ℓ/∂z of the selected rows."""


class Decoder(nn.Module):
    """D(z; θ): latents (K, L) to logits (K, D)."""

    def linearize(self, latent_KL: Tensor) -> tuple[Tensor, Vjp]:
        """D(z) and the map g ↦ gᵀ ∂D/∂z, by autograd. A decoder may know a cheaper way and override this."""
        latent_KL = latent_KL.detach().requires_grad_()
        with torch.enable_grad():
            output_KD = self(latent_KL)

        def vjp(grad: Tensor, selected: Tensor | None) -> Tensor:
            if selected is not None:
                grad = torch.zeros_like(output_KD).index_copy_(0, selected, grad)
            (grad_KL,) = torch.autograd.grad(output_KD, latent_KL, grad)
            return grad_KL if selected is None else grad_KL[selected]

        return output_KD.detach(), vjp


class Model(Section, ABC):
    """An architecture: builds a decoder, and the mirrored encoder, for images of D pixels."""

    name: str
    latent_dim: int

    @abstractmethod
    def decoder(self, pixels: int) -> Decoder:
        """A decoder with weights drawn from torch's global generator."""

    @abstractmethod
    def encoder(self, pixels: int) -> nn.Module:
        """The mirrored encoder, (K, D) -> (K, L), with weights drawn from torch's global generator."""
