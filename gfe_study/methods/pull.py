"""Pulling latents to a target: the Jensen–Shannon term of arXiv:2010.15283, Algorithm 1, with a lagging density.

Shapes: B batch, L latent, M latents that the density is made of.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gfe_study.config import InputError, Section
from gfe_study.data.split import Split, nested_order
from gfe_study.density.bandwidth import optimal_bandwidth, usable_bandwidth
from gfe_study.density.kde import log_density, log_normaliser
from gfe_study.targets.base import Target
from gfe_study.targets.standard_normal import StandardNormal

if TYPE_CHECKING:
    from gfe_study.config import Trial

FEWEST = 64
"""Latents that a density is made of, at least; with fewer nothing is pulled yet."""
UNLABELLED = -1
OWN_SHARE = 0.1
"""Of a kernel that a latent adds to its own density."""
LABELS_SEED = 0
ONE_MODE = StandardNormal()
"""A mode in units of its width."""


class Pull(Section):
    """How strongly, and by which density, latents are pulled to the trial's target."""

    weight: float = Field(0.01, ge=0)
    """λ of eq. 3: the term's weight beside the reconstruction loss in nats per value."""
    kde_samples: int = Field(10_000, ge=FEWEST)
    """m: latents that the density is made of: those of the training images seen last, as many as there are."""
    refresh_updates: int = Field(10, gt=0)
    """k_b: the density is made anew after so many weight updates."""
    saturating: bool = False
    """Whether the term is log p̂/(p_t + p̂), eq. 3 to the letter: its pull vanishes where p̂ is much denser than the
    target, and it has no lower bound where p̂ has the thinner tail. If not, log (p_t + p̂)/p_t, which pulls most
    strongly where the other does not, and is bounded. They are the two losses of a GAN's generator; over all
    densities p̂, each is least at p̂ = p_t."""
    labelled: int = Field(0, ge=0)
    """Training images whose label is used: each is pulled to its class's mode. A stratified choice, the same for all
    seeds, contained in every larger one."""

    def check_target(self, trial: Trial) -> None:
        """Raise `ValueError` if labels are to be used and the target's modes are not their classes."""
        target = trial.target
        if self.labelled and target is not None and target.modes == 1:
            raise ValueError(
                f"method.labelled: given {self.labelled} with target.name={target.name}, which has one mode; "
                "allowed: 0, or target.name=mixture_of_gaussians"
            )


class Puller(nn.Module):
    """The term at work. What it remembers are buffers, so that it is saved with the networks.

    The density is made of the images trained on last, each counted once; until as many as `kde_samples` have been
    seen it grows with them, and its bandwidth shrinks. No image that has not been trained on yet takes part.
    """

    latent_ML: Tensor
    index_M: Tensor
    recent_index_M: Tensor
    recent_latent_ML: Tensor

    def __init__(self, pull: Pull, target: Target, latent_dim: int, *, keeps_latents: bool) -> None:
        super().__init__()
        self.pull, self.target, self.latent_dim = pull, target, latent_dim
        most = pull.kde_samples
        self.register_buffer("latent_ML", torch.zeros(most, latent_dim))
        self.register_buffer("index_M", torch.full((most,), -1))
        self.register_buffer("recent_index_M", torch.full((most,), -1))
        self.register_buffer("recent_latent_ML", torch.zeros(most if keeps_latents else 0, latent_dim))
        self.members = 0
        """Latents in the density."""
        self.size = 0
        """Samples that its bandwidth is for."""
        self.seen = 0
        """Images trained on."""
        self.updates = 0
        """Weight updates since it was made."""
        self.images = 0
        """In the training split; 0 if it was not shown."""
        self.label_N: Tensor | None = None
        self._bandwidths: dict[tuple[str, int], float | None] = {}

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.members, self.size, self.seen, self.updates])

    def set_extra_state(self, state: Tensor) -> None:
        self.members, self.size, self.seen, self.updates = state.tolist()

    def see(self, train: Split) -> None:
        """Take the training split's size and labels, and find the bandwidths.

        Raises:
            BandwidthError: the density would have to be as wide as the target.
            InputError: labels are to be used and there are not as many, or too few to act, or one has no mode.
        """
        self.images = len(train)
        if self.pull.labelled:
            self._see_labels(train)
        usable_bandwidth(self.target, self.latent_dim, self.capacity)
        for size in self._sizes():
            self.bandwidth(self.target, size)

    def _see_labels(self, train: Split) -> None:
        if train.labels_N is None:
            raise InputError(f"method.labelled: given {self.pull.labelled}, and the data has no labels; allowed: 0")
        if self.pull.labelled > len(train):
            raise InputError(f"method.labelled: given {self.pull.labelled}; allowed: at most {len(train)}")
        if (first := int(train.labels_N.min())) < 0:
            raise InputError(f"method.labelled: class {first} has no mode; allowed: labels from 0")
        if (last := int(train.labels_N.max())) >= self.target.modes:
            raise InputError(f"method.labelled: class {last} has no mode; allowed: a target with {last + 1} modes")
        chosen = nested_order(train.labels_N, LABELS_SEED)[: self.pull.labelled]
        labels_N = np.full(len(train), UNLABELLED)
        labels_N[chosen] = train.labels_N[chosen]
        self.label_N = torch.from_numpy(labels_N).to(self.latent_ML.device)
        of_a_class = int(np.bincount(train.labels_N[chosen]).max())
        if (known := of_a_class * self.capacity / len(train)) < FEWEST:
            raise InputError(
                f"method.labelled: given {self.pull.labelled}, some {known:.0f} of a class in a density of "
                f"{self.capacity:,} of {len(train):,} images; allowed: enough for {FEWEST}"
            )
        for size in self._sizes():
            if size <= of_a_class:
                self.bandwidth(ONE_MODE, size)

    @property
    def capacity(self) -> int:
        """Latents in a full density."""
        return min(self.pull.kde_samples, self.images or self.pull.kde_samples)

    def _sizes(self) -> list[int]:
        """Sizes of a growing density: powers of two from `FEWEST`, and the largest there is room for."""
        powers = range(FEWEST.bit_length() - 1, self.capacity.bit_length())
        return sorted({self.capacity, *(2**power for power in powers)})

    def _size_of(self, count: int) -> int:
        """The largest of the sizes that so many latents fill; 0 if they are too few."""
        return max((size for size in self._sizes() if size <= count), default=0)

    def bandwidth(self, target: Target, samples: int) -> float | None:
        """h_opt in latent units, or None where latents would collapse."""
        key = (target.name, samples)
        if key not in self._bandwidths:
            found = optimal_bandwidth(target, self.latent_dim, samples)
            self._bandwidths[key] = None if found.collapses else found.h_opt
        return self._bandwidths[key]

    @torch.no_grad()
    def remember(self, index_B: Tensor, latent_BL: Tensor, *, again: bool) -> None:
        """Note a weight update on images, by their places in the training split; `again`: those of the last one."""
        self.updates += 1
        if again:
            self.seen -= len(index_B)
        place_B = (self.seen + torch.arange(len(index_B), device=index_B.device)) % self.capacity
        self.recent_index_M[place_B] = index_B
        if len(self.recent_latent_ML):
            self.recent_latent_ML[place_B] = latent_BL
        self.seen += len(index_B)

    @property
    def due(self) -> bool:
        """Whether the density is to be made anew."""
        return self.updates >= self.pull.refresh_updates or (not self.size and self.seen >= FEWEST)

    @torch.no_grad()
    def refresh(self, latents_of: Callable[[Tensor], Tensor] | None = None) -> int:
        """Make the density anew, of the images trained on last. Too few make none. Returns how many were encoded.

        Args:
            latents_of: latents (M, L) of training images by their places (M,); None: those remembered.
        """
        self.updates = 0
        self.size = self._size_of(min(self.seen, self.capacity))
        backwards_M = (self.seen - 1 - np.arange(self.size)) % self.capacity
        # Sorted; of an image seen twice, at the end of one epoch and the start of the next, the last time counts.
        index, first = np.unique(self.recent_index_M.cpu().numpy()[backwards_M], return_index=True)
        index_M = torch.from_numpy(index).to(self.index_M.device)
        self.members = len(index)
        self.index_M[: self.members] = index_M
        if not self.members:
            return 0
        if latents_of is None:
            self.latent_ML[: self.members] = self.recent_latent_ML[torch.from_numpy(backwards_M[first])]
            return 0
        self.latent_ML[: self.members] = latents_of(index_M)
        return self.members

    @torch.no_grad()
    def follow(self, latents_of: Callable[[Tensor], Tensor], count: int) -> int:
        """Carry all latents of the density along with the encoder, by the affine map that some of them took.

        Between two times it is made anew, most of how latents move is common to them: left behind, the density would
        drive them away from where they no longer are.

        Args:
            latents_of: as of `refresh`.
            count: latents that are encoded for it, about; these are exact.

        Returns how many were encoded.
        """
        if not self.members:
            return 0
        step = max(1, self.members // count)
        chosen = torch.arange(self.updates % step, self.members, step, device=self.index_M.device)
        moved_KL = latents_of(self.index_M[chosen])
        latent_ML = self.latent_ML[: self.members]
        homogeneous_MH = F.pad(latent_ML, (0, 1), value=1.0).double()
        known_KH = homogeneous_MH[chosen]
        # A little ridge: directions in which no latent differs are left as they are.
        gram_HH = known_KH.t() @ known_KH + 1e-6 * len(chosen) * torch.eye(known_KH.shape[1]).to(known_KH)
        change_HL = torch.linalg.solve(gram_HH, known_KH.t() @ (moved_KL - latent_ML[chosen]).double())
        latent_ML += (homogeneous_MH @ change_HL).to(latent_ML)
        latent_ML[chosen] = moved_KL
        return len(chosen)

    @property
    def active(self) -> bool:
        """Whether there is a density, narrower than the target, and it has a weight."""
        return self._current() is not None

    def _current(self) -> float | None:
        """The density's bandwidth, if there is one to be pulled by."""
        return self.bandwidth(self.target, self.size) if self.size and self.pull.weight else None

    def term(self, latent_BL: Tensor, index_B: Tensor | None = None) -> Tensor | None:
        """λ times the term of each latent, shape (B,), differentiable in it; None while there is no density.

        Args:
            latent_BL: z.
            index_B: places of the images in the training split, each of which is left out of its own density; None
                for images that are not trained on.
        """
        bandwidth = self._current()
        if bandwidth is None:
            return None
        centre_ML, index_M = self.latent_ML[: self.members], self.index_M[: self.members]
        own_B = None if index_B is None else places(index_B, index_M)
        density_B = self._guarded(log_density(latent_BL, centre_ML, bandwidth, own_B), self.members, bandwidth)
        ratio_B = density_B - self.target.log_density(latent_BL)
        if self.label_N is not None and index_B is not None:
            ratio_B = self._to_their_modes(ratio_B, latent_BL, index_B)
        return self.pull.weight * (F.logsigmoid(ratio_B) if self.pull.saturating else F.softplus(ratio_B))

    def _to_their_modes(self, ratio_B: Tensor, latent_BL: Tensor, index_B: Tensor) -> Tensor:
        """Of labelled images, the ratio of their class's density to their class's mode."""
        assert self.label_N is not None
        index_M = self.index_M[: self.members]
        label_B, label_M = self.label_N[index_B], self.label_N[index_M]
        for label in label_B[label_B != UNLABELLED].unique().tolist():
            alike = (label_M == label).nonzero().flatten()
            size = self._size_of(len(alike))
            bandwidth = self.bandwidth(ONE_MODE, size) if size else None
            if bandwidth is None:
                continue
            rows = (label_B == label).nonzero().flatten()
            own = places(index_B[rows], index_M[alike])
            width = self.target.width * bandwidth
            density = log_density(latent_BL[rows], self.latent_ML[alike], width, own)
            density = self._guarded(density, len(alike), width)
            mode = self.target.mode_log_density(latent_BL[rows])[:, label]
            ratio_B = ratio_B.index_copy(0, rows, density - mode)
        return ratio_B

    def _guarded(self, density_B: Tensor, members: int, bandwidth: float) -> Tensor:
        """log density with a share of the point's own kernel, which moves with it.

        Without it a latent beyond all others sees a density with a thinner tail than the target's, and is driven out
        without end.
        """
        own = math.log(OWN_SHARE / members) - log_normaliser(self.latent_dim, bandwidth)
        return torch.logaddexp(density_B, torch.full_like(density_B, own))


def places(index_B: Tensor, sorted_M: Tensor) -> Tensor:
    """Where each number is among sorted different ones, or −1."""
    place_B = torch.searchsorted(sorted_M, index_B).clamp_(max=max(len(sorted_M) - 1, 0))
    if not len(sorted_M):
        return torch.full_like(index_B, -1)
    return torch.where(sorted_M[place_B] == index_B, place_B, -1)
