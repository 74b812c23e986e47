"""Optimisers of the decoder's (and encoder's) weights."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from pydantic import Field, field_validator

from gfe_study.config import Component


class Optimiser(Component, ABC):
    """Settings of an optimiser, and of the batches it is fed.

    The loss of a batch is the sum over its samples, so a larger batch wants a smaller learning rate.
    """

    lr: float = Field(5e-4, gt=0)
    lr_half_images: int | None = Field(None, gt=0)
    """Images seen at which the learning rate is half of `lr`: lr / (1 + images seen / this); None: constant."""
    batch_size: int = Field(16, gt=0)
    """Training images per batch."""
    updates_per_batch: int | tuple[tuple[int, int], ...] = 1
    """Weight updates on each batch, its latents solved on from where they were; its images count as seen once.

    A number, or a schedule of pairs [images seen, updates]: each number of updates holds from those images on.
    """

    @field_validator("updates_per_batch", mode="before")
    @classmethod
    def _schedule_makes_sense(cls, value: Any) -> Any:
        pairs = [(0, value)] if isinstance(value, int) else value
        try:
            starts, updates = zip(*pairs, strict=True)
            whole = all(type(number) is int for number in (*starts, *updates))
            sensible = whole and starts[0] == 0 and min(updates) > 0 and all(a < b for a, b in pairwise(starts))
        except (TypeError, ValueError):
            sensible = False
        if not sensible:
            raise ValueError(
                "Input should be a whole number above 0, or pairs [images seen, updates] from 0 images on in "
                "increasing order"
            )
        return value

    def lr_at(self, images_seen: int) -> float:
        """Learning rate of the batch that follows `images_seen` images; it does not depend on the budget."""
        return self.lr if self.lr_half_images is None else self.lr / (1 + images_seen / self.lr_half_images)

    def updates_at(self, images_seen: int) -> int:
        """Weight updates on the batch that follows `images_seen` images."""
        if isinstance(self.updates_per_batch, int):
            return self.updates_per_batch
        return [updates for images, updates in self.updates_per_batch if images <= images_seen][-1]

    @abstractmethod
    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The torch optimiser over these parameters."""


class RMSprop(Optimiser):
    """RMSprop with the papers' constants."""

    alpha: float = Field(0.9, ge=0, lt=1)
    """Decay of the running mean of squared gradients."""
    eps: float = Field(1e-6, gt=0)

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(parameters, lr=self.lr, alpha=self.alpha, eps=self.eps)


class Adam(Optimiser):
    """Adam, which the paper's text names beside RMSprop."""

    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps)
