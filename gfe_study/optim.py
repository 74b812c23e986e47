"""Optimisers of the decoder's (and encoder's) weights."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field

from gfe_study.config import Section


class Optimiser(Section, ABC):
    """Settings of an optimiser, and of the batches it is fed.

    The loss of a batch is the sum over its samples, so a larger batch wants a smaller learning rate.
    """

    name: str
    lr: float = Field(5e-4, gt=0)
    batch_size: int = Field(16, gt=0)
    """Training images per batch."""
    updates_per_batch: int = Field(1, gt=0)
    """Weight updates on each batch, its latents solved on from where they were; its images count as seen once."""

    @abstractmethod
    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The torch optimiser over these parameters."""


class RMSprop(Optimiser):
    """RMSprop with the papers' constants."""

    name: Literal["rmsprop"] = "rmsprop"
    alpha: float = Field(0.9, ge=0, lt=1)
    """Decay of the running mean of squared gradients."""
    eps: float = Field(1e-6, gt=0)

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(parameters, lr=self.lr, alpha=self.alpha, eps=self.eps)


class Adam(Optimiser):
    """Adam, which the paper's text names beside RMSprop."""

    name: Literal["adam"] = "adam"
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps)
