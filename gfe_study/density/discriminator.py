"""The divergence as a network trained to tell two distributions apart sees it: an adversary's estimate.

Shapes: N pairs of distributions, each with a network of its own; M samples, B of a batch, L latent.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from gfe_study.targets.base import Target

WIDTH_PER_DIMENSION = 10
"""Units of a hidden layer for every latent dimension."""
HIDDEN_LAYERS = 3
LEARNING_RATE = 3e-3
BATCH = 100
"""Latents of an update, and as many samples of the target."""
HELD_OUT = 0.2
"""Share of the latents that training does not see, which says which state is the best."""
CHECK_EVERY, PATIENCE, MOST_UPDATES = 20, 200, 2000
"""Updates between two looks at what is held out; without progress before training ends; at most."""
PROGRESS = 5e-4
"""What the best states' mean divergence must rise by to count as progress, nats."""


class Discriminators:
    """N multilayer perceptrons of one shape, evaluated and trained at once: no weight is shared."""

    def __init__(self, count: int, latent_dim: int, generator: torch.Generator) -> None:
        widths = [latent_dim, *[WIDTH_PER_DIMENSION * latent_dim] * HIDDEN_LAYERS, 1]
        self.layers = [
            (_uniform(count, fan_in, fan_out, fan_in, generator), _uniform(count, 1, fan_out, fan_in, generator))
            for fan_in, fan_out in pairwise(widths)
        ]

    def parameters(self) -> list[Tensor]:
        return [part for layer in self.layers for part in layer]

    def __call__(self, latent_NBL: Tensor) -> Tensor:
        """log p_e/p_t as each network has learnt it, shape (N, B)."""
        *hidden, (weight, bias) = self.layers
        for weight_NIO, bias_N1O in hidden:
            latent_NBL = F.leaky_relu(torch.baddbmm(bias_N1O, latent_NBL, weight_NIO), 0.2)
        return torch.baddbmm(bias, latent_NBL, weight).squeeze(-1)

    def divergence(self, encoded_NBL: Tensor, drawn_NBL: Tensor) -> Tensor:
        """log 2 less the cross-entropy, which is the divergence where the networks are right; shape (N,), nats."""
        logit_NB = self(torch.cat([encoded_NBL, drawn_NBL], 1))  # one pass: the products are small
        encoded, drawn = logit_NB.split([encoded_NBL.shape[1], drawn_NBL.shape[1]], 1)
        return math.log(2) + (F.logsigmoid(encoded).mean(1) + F.logsigmoid(-drawn).mean(1)) / 2


def discriminator_divergence(
    fitted_NML: Tensor, encoded_NML: Tensor, drawn_NML: Tensor, target: Target, generator: torch.Generator
) -> Tensor:
    """The divergence between N sets of latents and a target, as N discriminators estimate it; shape (N,), nats.

    Each is trained by cross-entropy on a part of its latents, against samples of the target drawn anew for every
    update, until they no longer get better at telling the rest from the target; each one's best state is what counts.

    Args:
        fitted_NML: what the networks are trained on, and stopped by.
        encoded_NML: other latents of the same N distributions, for the estimate.
        drawn_NML: samples of the target, for the estimate.
        target: p_t.
        generator: of the weights and of what training draws.
    """
    count, samples, latent_dim = fitted_NML.shape
    held_out = max(1, round(HELD_OUT * samples))
    training_NML, checking_NML = fitted_NML[:, held_out:], fitted_NML[:, :held_out]
    against_NML = target.sample(count * samples, latent_dim, generator).view(count, samples, latent_dim)
    networks = Discriminators(count, latent_dim, generator)
    optimiser = torch.optim.Adam(networks.parameters(), lr=LEARNING_RATE, fused=True)
    best_N = torch.full((count,), -torch.inf)
    kept = [part.detach().clone() for part in networks.parameters()]
    progress_at, reached = 0, -math.inf
    for update in range(1, MOST_UPDATES + 1):
        chosen_B = torch.randint(training_NML.shape[1], (BATCH,), generator=generator)
        drawn_NBL = target.sample(count * BATCH, latent_dim, generator).view(count, BATCH, latent_dim)
        optimiser.zero_grad()
        (-networks.divergence(training_NML[:, chosen_B], drawn_NBL).sum()).backward()
        optimiser.step()
        if update % CHECK_EVERY:
            continue
        with torch.no_grad():
            now_N = networks.divergence(checking_NML, against_NML)
            better_N = now_N > best_N
            best_N = torch.where(better_N, now_N, best_N)
            for best, part in zip(kept, networks.parameters(), strict=True):
                best[better_N] = part[better_N]
        if float(best_N.mean()) > reached + PROGRESS:
            progress_at, reached = update, float(best_N.mean())
        elif update - progress_at >= PATIENCE:
            break
    with torch.no_grad():
        for best, part in zip(kept, networks.parameters(), strict=True):
            part.copy_(best)
        return networks.divergence(encoded_NML, drawn_NML)


def _uniform(count: int, rows: int, columns: int, fan_in: int, generator: torch.Generator) -> Tensor:
    """Weights as torch's linear layers start: uniform in ±1/√fan_in."""
    bound = 1 / math.sqrt(fan_in)
    return torch.empty(count, rows, columns).uniform_(-bound, bound, generator=generator).requires_grad_()
