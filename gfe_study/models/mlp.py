"""Multilayer perceptron decoder and encoder: l → 150 → 300 → 600 → d, ELU between, linear last.

Shapes: K rows of a batch, L latent, D pixels, H hidden.
"""

from itertools import pairwise
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gfe_study.models.base import Decoder, Model, Vjp

WIDEST = 2**16
"""The widest layer that is no slip of the pen."""


class MLPDecoder(Decoder):
    """Linear layers of the given widths with ELU between; logits last."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))

    def _linears(self) -> list[nn.Linear]:
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, latent_KL: Tensor) -> Tensor:
        hidden_KH = latent_KL
        *inner, last = self._linears()
        for layer in inner:
            hidden_KH = F.elu(layer(hidden_KH))
        logits_KD: Tensor = last(hidden_KH)
        return logits_KD

    @torch.no_grad()
    def linearize(self, latent_KL: Tensor) -> tuple[Tensor, Vjp]:
        # ELU's derivative is recovered from its output, so that nothing but the activations is kept.
        *inner, last = [(layer.weight, layer.bias) for layer in self._linears()]
        activations: list[Tensor] = []
        hidden_KH = latent_KL
        for weight, bias in inner:
            hidden_KH = F.elu_(torch.addmm(bias, hidden_KH, weight.t()))
            activations.append(hidden_KH)
        logits_KD = torch.addmm(last[1], hidden_KH, last[0].t())

        @torch.no_grad()
        def vjp(grad: Tensor, selected: Tensor | None) -> Tensor:
            grad = grad @ last[0]
            for activation, (weight, _) in zip(reversed(activations), reversed(inner), strict=True):
                kept = activation if selected is None else activation[selected]
                grad = torch.ops.aten.elu_backward(grad, 1.0, 1.0, 1.0, True, kept) @ weight
            return grad

        return logits_KD, vjp


class MLP(Model):
    """The papers' architecture; the encoder is the decoder mirrored."""

    name: Literal["mlp"] = "mlp"
    latent_dim: int = Field(20, gt=0, le=WIDEST)
    hidden: tuple[Annotated[int, Field(gt=0, le=WIDEST)], ...] = (150, 300, 600)
    """Widths of the decoder's hidden layers, from the latent outwards."""

    def decoder(self, pixels: int) -> MLPDecoder:
        return MLPDecoder([self.latent_dim, *self.hidden, pixels])

    def encoder(self, pixels: int) -> MLPDecoder:
        return MLPDecoder([pixels, *reversed(self.hidden), self.latent_dim])
