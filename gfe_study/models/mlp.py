"""Multilayer perceptron decoder and encoder: l → 150 → 300 → 600 → d, ELU between, linear last.

Shapes: K rows of a batch, L latent, D values of a sample, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gfe_study.data.split import Shape
from gfe_study.likelihoods.base import Loss, Observed
from gfe_study.models.base import Decoder, Model, Products, Vjp

_elu_backward = torch.ops.aten.elu_backward.default

WIDEST = 2**16
"""The widest layer that is no slip of the pen."""


class MLPDecoder(Decoder):
    """Linear layers of the given widths with ELU between; logits last.

    Args:
        widths: of the latent, the hidden layers and the output.
        skip: whether a linear map of the latent is added to the output.
    """

    def __init__(self, widths: list[int], *, skip: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.skip = nn.Linear(widths[0], widths[-1], bias=False) if skip else None

    def linears(self) -> list[nn.Linear]:
        """The layers, from the latent outwards."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, latent_KL: Tensor) -> Tensor:
        hidden_KH = latent_KL
        *inner, last = self.linears()
        for layer in inner:
            hidden_KH = F.elu(layer(hidden_KH))
        logits_KD: Tensor = last(hidden_KH)
        return logits_KD if self.skip is None else logits_KD + self.skip(latent_KL)

    def frozen(self, products: Products = "float32") -> FrozenMLP:
        layers = [(layer.weight.detach(), layer.bias.detach()) for layer in self.linears()]
        skip = None if self.skip is None else self.skip.weight.detach()
        return FrozenMLP(layers, torch.bfloat16 if products == "bf16" else layers[0][0].dtype, skip)

    def linearize(self, latent_KL: Tensor) -> tuple[Tensor, Vjp]:
        return self.frozen().linearize(latent_KL)

    def jacobian(self, latent_KL: Tensor) -> tuple[Tensor, Tensor]:
        return self.frozen().jacobian(latent_KL)

    def latent_gradient(
        self, loss: Loss, latent_KL: Tensor, target: Observed, into: list[Tensor] | None = None
    ) -> Tensor:
        if target.instrument is not None:  # ∂²ℓ/∂x² is no diagonal then
            return super().latent_gradient(loss, latent_KL, target)
        weights: list[Tensor] = [part for layer in self.linears() for part in (layer.weight, layer.bias)]
        if self.skip is not None:
            weights.append(self.skip.weight)
        if into is not None:
            weights = [weight.detach() for weight in weights]
        grad_KL: Tensor = _LatentGradient.apply(loss, into, target, latent_KL, *loss.parameters(), *weights)
        return grad_KL


class FrozenMLP:
    """The weights as they are now, without graph, in the type in which products are taken."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]], dtype: torch.dtype, skip: Tensor | None = None) -> None:
        self.dtype, self.given = dtype, layers[0][0].dtype
        self.skip = None if skip is None else skip.to(dtype)
        self.weights = [weight.to(dtype) for weight, _ in layers]
        self.biases = [bias.to(dtype) for _, bias in layers]

    def _activations(self, latent_KL: Tensor) -> tuple[list[Tensor], Tensor]:
        hidden = [latent_KL.detach().to(self.dtype)]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden.append(F.elu_(F.linear(hidden[-1], weight, bias)))
        logits_KD = F.linear(hidden[-1], self.weights[-1], self.biases[-1])
        if self.skip is not None:
            logits_KD = torch.addmm(logits_KD, hidden[0], self.skip.t())
        return hidden, logits_KD.to(self.given)

    def linearize(self, latent_KL: Tensor) -> tuple[Tensor, Vjp]:
        """As `Decoder.linearize`. ELU's derivative is recovered from its output: only activations are kept."""
        hidden, logits_KD = self._activations(latent_KL)

        def vjp(grad: Tensor, selected: Tensor | None) -> Tensor:
            output_grad = grad = grad.to(self.dtype)
            for weight, activation in zip(reversed(self.weights[1:]), reversed(hidden[1:]), strict=True):
                kept = activation if selected is None else activation[selected]
                grad = _elu_backward(torch.mm(grad, weight), 1.0, 1.0, 1.0, True, kept)
            pulled = torch.mm(grad, self.weights[0])
            if self.skip is not None:
                pulled = torch.addmm(pulled, output_grad, self.skip)
            return pulled.to(self.given)

        return logits_KD, vjp

    def jacobian(self, latent_KL: Tensor) -> tuple[Tensor, Tensor]:
        """As `Decoder.jacobian`. The tangents of the first layer are its weights: the others cost products."""
        hidden, logits_KD = self._activations(latent_KL)
        tangent_KLH = self.weights[0].t().expand(len(latent_KL), -1, -1)
        for weight, activation in zip(self.weights[1:], hidden[1:], strict=True):
            tangent_KLH = (tangent_KLH * (activation + 1).clamp_(max=1.0)[:, None]) @ weight.t()
        if self.skip is not None:
            tangent_KLH = tangent_KLH + self.skip.t()
        return logits_KD, tangent_KLH.to(self.given)


class _LatentGradient(torch.autograd.Function):
    """∇_z ℓ of a multilayer perceptron, and its vector–Jacobian product in z and θ.

    The product ∂⟨a, ∇_z ℓ⟩/∂(z, θ) is the derivative along a of ∂ℓ/∂(z, θ) (Pearlmutter 1994): one pass of
    tangents forward and one backward beside the activations that the gradient itself left. Autograd through its
    own backward pass keeps more than twice as much.
    """

    @staticmethod
    def forward(
        ctx: Any, loss: Loss, into: list[Tensor] | None, target: Observed, latent_KL: Tensor, *weights: Tensor
    ) -> Tensor:
        ctx.scales = len(list(loss.parameters()))
        weights = weights[ctx.scales :]
        weights, skip = (weights[:-1], weights[-1:]) if len(weights) % 2 else (weights, ())
        layers = list(_layers(weights))
        hidden = [latent_KL]
        for weight, bias in layers[:-1]:
            hidden.append(F.elu_(torch.addmm(bias, hidden[-1], weight.t())))
        output_KD = torch.addmm(layers[-1][1], hidden[-1], layers[-1][0].t())
        for weight in skip:
            output_KD.addmm_(latent_KL, weight.t())
        pulled = [loss.gradient(output_KD, target)]
        for (weight, _), activation in zip(reversed(layers[1:]), reversed(hidden[1:]), strict=True):
            pulled.append(_elu_backward(pulled[-1] @ weight, 1.0, 1.0, 1.0, True, activation))
        ctx.loss, ctx.into, ctx.target = loss, into, target
        ctx.save_for_backward(output_KD, *weights, *hidden, *pulled[1:], *skip)
        grad_KL = pulled[-1] @ layers[0][0]
        for weight in skip:
            grad_KL.addmm_(pulled[0], weight)
        return grad_KL

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, direction_KL: Tensor) -> tuple[Tensor | None, ...]:
        output_KD, *saved = ctx.saved_tensors
        skip = [saved.pop()] if len(saved) % 4 == 0 else []
        count = len(saved) // 4 + 1  # of layers: two weights and two activations each, but for the last
        weights = saved[0 : 2 * count : 2]
        hidden = saved[2 * count : 3 * count]
        pulled = [*reversed(saved[3 * count :]), ctx.loss.gradient(output_KD, ctx.target)]
        tangents, preactivations = [direction_KL], []
        for weight, activation in zip(weights[:-1], hidden[1:], strict=True):
            preactivations.append(tangents[-1] @ weight.t())
            tangents.append(preactivations[-1] * (activation + 1).clamp_(max=1.0))
        tangent_KD = tangents[-1] @ weights[-1].t()
        for weight in skip:
            tangent_KD.addmm_(direction_KL, weight.t())
        turned = turned_KD = ctx.loss.hessian(output_KD, ctx.target) * tangent_KD
        scales: list[Tensor | None] = []
        if ctx.scales:  # of a likelihood with weights of its own, the gradient along the tangent depends on them
            with torch.enable_grad():
                along = (ctx.loss.gradient(output_KD.detach(), ctx.target) * tangent_KD).sum()
            scales = list(torch.autograd.grad(along, list(ctx.loss.parameters()), allow_unused=True))
        products: list[Tensor | None] = [None] * (2 * count + len(skip))
        for i in reversed(range(count)):
            # Both terms of a weight's product in one: what it costs is writing the result.
            left, right = torch.cat([turned, pulled[i]]).t(), torch.cat([hidden[i], tangents[i]])
            if ctx.into is None:
                products[2 * i : 2 * i + 2] = [left @ right, turned.sum(0)]
            else:
                ctx.into[2 * i].addmm_(left, right)
                ctx.into[2 * i + 1].add_(turned.sum(0))
            turned = turned @ weights[i]
            if i:
                turned = _elu_backward(turned, 1.0, 1.0, 1.0, True, hidden[i])
                # ELU's second derivative equals its first below zero, and vanishes above.
                turned += (pulled[i - 1] * preactivations[i - 1]).masked_fill_(hidden[i] >= 0, 0.0)
        for weight in skip:
            turned = turned.addmm(turned_KD, weight)
            left, right = torch.cat([turned_KD, pulled[-1]]).t(), torch.cat([hidden[0], direction_KL])
            if ctx.into is None:
                products[-1] = left @ right
            else:
                ctx.into[-1].addmm_(left, right)
        return None, None, None, turned, *scales, *products


def _layers(weights: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """Weight and bias of each layer."""
    return zip(weights[::2], weights[1::2], strict=True)


class MLP(Model):
    """The papers' architecture; the encoder is the decoder mirrored."""

    example = {"latent_dim": 3, "hidden": [11, 9]}

    latent_dim: int = Field(20, gt=0, le=WIDEST)
    """L: how many numbers make a latent."""
    hidden: tuple[Annotated[int, Field(gt=0, le=WIDEST)], ...] = (150, 300, 600)
    """Widths of the decoder's hidden layers, from the latent outwards; none make it linear."""
    skip: Literal[True] | None = None
    """True adds a linear map of the latent to the decoder's output, for the hidden layers to improve on."""
    latent_gain: float | None = Field(None, gt=0)
    """Factor on the initial weights that the decoder reads its latent with; None: 1. An autoencoder's free latents
    grow some ten times longer than those held to a unit normal, whose decoder had to grow by as much instead."""

    def decoder(self, shape: Shape) -> MLPDecoder:
        decoder = MLPDecoder([self.latent_dim, *self.hidden, shape.size], skip=bool(self.skip))
        if self.latent_gain is not None:
            with torch.no_grad():
                for reading in (decoder.linears()[0], decoder.skip):
                    if reading is not None:
                        reading.weight.mul_(self.latent_gain)
        return decoder

    def encoder(self, shape: Shape, outputs: int | None = None) -> MLPDecoder:
        return MLPDecoder([shape.input_size, *reversed(self.hidden), self.latent_dim if outputs is None else outputs])
