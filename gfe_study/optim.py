"""Optimisers of the decoder's (and encoder's) weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field

from gfe_study.config import Component
from gfe_study.config.base import Section

if TYPE_CHECKING:
    from gfe_study.config import Trial


def _scheduled(value: Any) -> Any:
    pairs = [(0, value)] if isinstance(value, int) else value
    try:
        starts, numbers = zip(*pairs, strict=True)
        whole = all(type(number) is int for number in (*starts, *numbers))
        sensible = whole and starts[0] == 0 and min(numbers) > 0 and all(a < b for a, b in pairwise(starts))
    except (TypeError, ValueError):
        sensible = False
    if not sensible:
        raise ValueError(
            "Input should be a whole number above 0, or pairs [images seen, number] from 0 images on in "
            "increasing order"
        )
    return value


Schedule = Annotated[int | tuple[tuple[int, int], ...], BeforeValidator(_scheduled)]
"""A number, or pairs [images seen, number]: each number holds from those images on."""


def starts_of(schedule: Schedule) -> list[int]:
    """Images seen from which on its numbers hold."""
    return [0] if isinstance(schedule, int) else [images for images, _ in schedule]


def scheduled(schedule: Schedule, images_seen: int) -> int:
    """The number that a schedule holds for the batch that follows `images_seen` images."""
    if isinstance(schedule, int):
        return schedule
    return [number for images, number in schedule if images <= images_seen][-1]


class Average(Section):
    """A running average of the weights, for evaluation: θ̄ ← θ̄ + (w + 1)/(t + w) (θ − θ̄) after weight update t.

    The polynomial-decay average of Shamir & Zhang (2013): at any time it weighs about the last 1/w of all updates
    most, so that it needs no end to be known. Training goes on from θ; losses, measures, checkpoints for use and
    snapshots are of θ̄.
    """

    window: int = Field(20, ge=0)
    """w; 0 averages all updates alike."""


class Optimiser(Component, ABC):
    """Settings of an optimiser, and of the batches it is fed.

    The loss of a batch is the sum over its samples, so a larger batch wants a smaller learning rate.
    """

    lr: float = Field(5e-4, gt=0)
    """Learning rate at the start. A batch's loss is the sum over its samples."""
    lr_half_images: int | None = Field(None, gt=0)
    """Images seen at which the learning rate is half of `lr`: lr / (1 + images seen / this); None: constant."""
    decay: Literal["linear", "cosine"] | None = None
    """How the learning rate also falls, to zero at the end of `budget.images`: in proportion to what is left of it, or
    along half a cosine, which stays high for longer; None: not."""
    batch_size: Schedule = 16
    """New training images per batch; a number, or a schedule of pairs [images seen, number]."""
    updates_per_batch: Schedule = 1
    """Weight updates on each batch, its latents solved on from where they were; its images count as seen once.
    A number, or a schedule of pairs [images seen, number]."""
    update_size: int | None = Field(None, gt=0)
    """Images per weight update: to the new ones of the batch come as many seen before as make up this number, drawn at
    random from all of them; their latents are kept, and solved on from where they were. None: the new ones alone."""
    weight_decay: float | None = Field(None, gt=0)
    """Decoupled weight decay (Loshchilov & Hutter, arXiv:1711.05101): every update takes away lr times this share of
    every weight. None: no decay."""
    average: Average | None = None
    """Averaged weights for evaluation; None: the weights as they are."""

    def check_trial(self, trial: Trial) -> None:
        """Raise `ValueError` if its schedule has no end to go to."""
        other = "nfe" if trial.budget.nfe is not None else "seconds" if trial.budget.seconds is not None else None
        if self.decay is not None and other is not None:
            raise ValueError(
                f"optim.decay: given {self.decay} with budget.{other}, under which nobody knows after how many images "
                "training ends; allowed: null, or a budget of images alone"
            )

    def lr_at(self, images_seen: int, budget_images: int) -> float:
        """Learning rate of the batch that follows `images_seen` images."""
        lr = self.lr if self.lr_half_images is None else self.lr / (1 + images_seen / self.lr_half_images)
        if self.decay is None:
            return lr
        left = max(0.0, 1 - images_seen / budget_images)
        return lr * (left if self.decay == "linear" else (1 - math.cos(math.pi * left)) / 2)

    def replayed(self, new: int, seen: int) -> int:
        """Number of the `seen` images before a batch that join each of its weight updates."""
        return 0 if self.update_size is None else min(max(0, self.update_size - new), seen)

    @abstractmethod
    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The torch optimiser over these parameters."""


class RMSprop(Optimiser):
    """RMSprop with the papers' constants."""

    alpha: float = Field(0.9, ge=0, lt=1)
    """Decay of the running mean of squared gradients."""
    eps: float = Field(1e-6, gt=0)
    """ε, added to the root of the mean square of the gradient."""

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return _decoupled(
            torch.optim.RMSprop(parameters, lr=self.lr, alpha=self.alpha, eps=self.eps), self.weight_decay
        )


class Adam(Optimiser):
    """Adam, which the paper's text names beside RMSprop."""

    beta1: float = Field(0.9, ge=0, lt=1)
    """β₁: how much of the mean gradient is kept at every step."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """β₂: how much of the mean square of the gradient is kept."""
    eps: float = Field(1e-8, gt=0)
    """ε, added to the root of the mean square of the gradient."""

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        betas = self.beta1, self.beta2
        return _decoupled(torch.optim.Adam(parameters, lr=self.lr, betas=betas, eps=self.eps), self.weight_decay)


def _decoupled(optimiser: torch.optim.Optimizer, decay: float | None) -> torch.optim.Optimizer:
    """An optimiser that shrinks the weights before each of its steps, in proportion to the learning rate."""
    if decay is not None:

        def shrink(stepping: torch.optim.Optimizer, *_: Any) -> None:
            with torch.no_grad():
                for group in stepping.param_groups:
                    stepped = [weight for weight in group["params"] if weight.grad is not None]
                    torch._foreach_mul_(stepped, 1 - group["lr"] * decay)

        optimiser.register_step_pre_hook(shrink)
    return optimiser
