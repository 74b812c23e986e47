"""The decoder contract.

Shapes: K rows of a batch, L latent, D values of a sample.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gfe_study.config import Component
from gfe_study.data.split import Shape
from gfe_study.likelihoods.base import Loss, Observed

# In a fresh process every ELU, expm1 and cross-entropy runs five to eleven times too slowly with some builds of torch
# on some processors (seen on two machines), until one vector of tanh has been computed by the library that they share,
# SLEEF; from then on, in all threads, to the same bits. The time goes at the return from its expm1. It is neither
# lazy binding nor pages that are not there yet, and `torch.tanh` does not do it.
F.gelu(torch.zeros(64), approximate="tanh")

# Torch's own rules of forward differentiation, which `Decoder.jacobian` uses, are what it warns of.
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)

Products = Literal["float32", "bf16"]
"""The type in which matrix products are taken; `float32` stands for the type of the latents."""

Vjp = Callable[[Tensor, Tensor | None], Tensor]
"""(∂ℓ/∂output of the selected rows, selection or None for all) -> ∂ℓ/∂z of the selected rows."""


class Linearizable(Protocol):
    """What a solver needs of a decoder."""

    def linearize(self, latent_KL: Tensor) -> tuple[Tensor, Vjp]:
        """D(z), shape (K, D), and the map g ↦ gᵀ ∂D/∂z, without an autograd graph of θ."""
        ...

    def jacobian(self, latent_KL: Tensor) -> tuple[Tensor, Tensor]:
        """D(z), shape (K, D), and ∂D/∂z, shape (K, L, D)."""
        ...


class Decoder(nn.Module):
    """D(z; θ): latents (K, L) to what a likelihood takes for its parameters, logits or means, (K, D)."""

    def frozen(self, products: Products = "float32") -> Linearizable:
        """The decoder with its weights as they are now, for many evaluations; it may be laid out for speed.

        Args:
            products: the type in which it multiplies; what goes in and comes out keeps the type of the latents.
        """
        return self if products == "float32" else _Autocast(self)

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

    def jacobian(self, latent_KL: Tensor) -> tuple[Tensor, Tensor]:
        """D(z), shape (K, D), and ∂D/∂z, shape (K, L, D): L tangents per row, by forward differentiation."""
        latent_KL = latent_KL.detach()
        basis_LKL = torch.eye(latent_KL.shape[1]).to(latent_KL)[:, None].expand(-1, *latent_KL.shape)

        def along(tangent_KL: Tensor) -> tuple[Tensor, Tensor]:
            output_KD, tangent_KD = torch.func.jvp(self, (latent_KL,), (tangent_KL,))[:2]
            return output_KD, tangent_KD

        with torch.no_grad():
            output_LKD, tangent_LKD = torch.func.vmap(along)(basis_LKL)
        return output_LKD[0], tangent_LKD.transpose(0, 1)

    def latent_gradient(
        self, loss: Loss, latent_KL: Tensor, target: Observed, into: list[Tensor] | None = None
    ) -> Tensor:
        """∇_z ℓ, shape (K, L), differentiable once more in z and in θ; what the full adjoint differentiates.

        Args:
            loss: per-sample distance.
            latent_KL: latents that require a gradient.
            target: samples.
            into: a tensor per weight, to which a decoder may add the weights' part of the vector–Jacobian product
                itself; autograd is then told that the weights have none.
        """
        total = loss(self(latent_KL), target).sum()
        (grad_KL,) = torch.autograd.grad(total, latent_KL, create_graph=True)
        return grad_KL


class _Autocast:
    """A decoder whose products torch takes in bfloat16, where it knows how."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def linearize(self, latent_KL: Tensor) -> tuple[Tensor, Vjp]:
        with torch.autocast(latent_KL.device.type, torch.bfloat16):
            output_KD, vjp = self.decoder.linearize(latent_KL)

        def pulled(grad: Tensor, selected: Tensor | None) -> Tensor:
            return vjp(grad.to(output_KD.dtype), selected).to(latent_KL.dtype)

        return output_KD.to(latent_KL.dtype), pulled

    def jacobian(self, latent_KL: Tensor) -> tuple[Tensor, Tensor]:
        return self.decoder.jacobian(latent_KL)


class Model(Component, ABC):
    """An architecture: builds a decoder, and the mirrored encoder, for samples of a shape, D numbers each."""

    latent_dim: int

    @abstractmethod
    def decoder(self, shape: Shape) -> Decoder:
        """A decoder with weights drawn from torch's global generator."""

    @abstractmethod
    def encoder(self, shape: Shape, outputs: int | None = None) -> nn.Module:
        """The mirrored encoder, (K, `shape.input_size`) -> (K, L), with weights drawn from torch's global generator.

        Args:
            shape: of the samples.
            outputs: how many numbers it gives per sample; None stands for L.
        """
