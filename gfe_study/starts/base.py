"""What every start promises.

Shapes: B batch, L latent, D values of a sample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from gfe_study.config import Component
from gfe_study.data.split import Shape
from gfe_study.likelihoods.base import Observed
from gfe_study.models.base import Model
from gfe_study.solvers.objective import Objective


class Starter(nn.Module, ABC):
    """A start at work. What it has learnt are its buffers and weights, so that they are saved with the networks.

    The start of a sample depends on what was trained on before, never on the rest of its batch.
    """

    forward_passes: int = 0
    """Passes of a sample through an encoder to find its start."""
    backward_passes: int = 0
    """Forward and backward passes of a sample through an encoder in `backward`."""

    @abstractmethod
    def forward(self, target: Observed, index_B: Tensor | None = None) -> Tensor:
        """z₀ of samples, shape (B, L), detached.

        Args:
            target: samples.
            index_B: their places in the training split; None for samples that are not trained on.
        """

    def backward(self, objective: Objective) -> None:
        """Add the gradients of its own weights, if it has any, before the optimiser steps."""

    @torch.no_grad()
    def remember(self, latent_BL: Tensor, target: Observed, index_B: Tensor) -> None:
        """Take note of the z* of training samples; arguments as of `forward`."""


class Start(Component, ABC):
    """Settings of a start."""

    @abstractmethod
    def create(self, model: Model, shape: Shape, encoder: nn.Module | None) -> Starter:
        """A fresh start for samples of a shape, weights drawn from torch's global generator.

        Args:
            model: architecture of the decoder.
            shape: of the samples.
            encoder: one that the method trains anyway, if it has one.
        """
