"""Start from where similar training samples ended.

Shapes: B batch, L latent, D values of a sample, M samples kept, K neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from gfe_study.data.split import Shape
from gfe_study.likelihoods.base import Observed
from gfe_study.models.base import Model
from gfe_study.starts.base import Start, Starter

if TYPE_CHECKING:
    from gfe_study.config import Trial


class NearestStarter(Starter):
    """The mean latent of the nearest of the last M training samples."""

    value_MD: Tensor
    known_MD: Tensor | None
    latent_ML: Tensor
    seen: Tensor

    def __init__(self, latent_dim: int, shape: Shape, neighbours: int, samples: int) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.register_buffer("value_MD", torch.zeros(samples, shape.size))
        self.register_buffer("known_MD", torch.zeros(samples, shape.size, dtype=torch.bool) if shape.mask else None)
        self.register_buffer("latent_ML", torch.zeros(samples, latent_dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def forward(self, target: Observed, index_B: Tensor | None = None) -> Tensor:
        count = min(int(self.seen), len(self.value_MD))
        if not count:
            return target.value_BD.new_zeros(len(target), self.latent_ML.shape[1])
        nearest_BK = self._distance(target, count).topk(min(self.neighbours, count), largest=False).indices
        return self.latent_ML[nearest_BK].mean(1).to(target.value_BD.dtype)

    def _distance(self, target: Observed, count: int) -> Tensor:
        """Mean squared difference over the values observed in both, shape (B, M); up to a constant per sample, if all
        values are observed."""
        value_MD = self.value_MD[:count].to(target.value_BD.dtype)
        if self.known_MD is None and target.known_BD is None:
            return value_MD.square().sum(1) - 2 * target.value_BD @ value_MD.t()
        known_MD, known_BD = (
            torch.ones_like(values) if known is None else known[: len(values)].to(values.dtype)
            for known, values in ((self.known_MD, value_MD), (target.known_BD, target.value_BD))
        )
        both_BM = known_BD @ known_MD.t()
        square_BM = target.value_BD.square() @ known_MD.t() + known_BD @ value_MD.square().t()
        distance_BM = (square_BM - 2 * target.value_BD @ value_MD.t()) / both_BM
        return distance_BM.masked_fill(both_BM == 0, torch.inf)

    @torch.no_grad()
    def remember(self, latent_BL: Tensor, target: Observed, index_B: Tensor) -> None:
        place_B = (self.seen + torch.arange(len(target), device=self.seen.device)) % len(self.value_MD)
        self.value_MD[place_B] = target.value_BD.to(self.value_MD.dtype)
        self.latent_ML[place_B] = latent_BL.to(self.latent_ML.dtype)
        if self.known_MD is not None:
            self.known_MD[place_B] = torch.tensor(True) if target.known_BD is None else target.known_BD
        self.seen += len(target)


class Nearest(Start):
    """z₀ is the mean latent of the nearest training samples, by Euclidean distance: for encoding many samples.

    The last `samples` training samples and their latents are kept, and saved with the decoder. With nothing to choose
    from it starts at zero.
    """

    neighbours: int = Field(3, gt=0)
    """Samples whose latents are averaged."""
    samples: int = Field(2000, gt=0)
    """Training samples that are kept."""

    def check_trial(self, trial: Trial) -> None:
        super().check_trial(trial)
        if trial.data.observe is not None:
            raise ValueError(
                "start.name: given 'nearest' with data.observe, and it compares samples value by value; "
                "allowed: another start"
            )

    def create(self, model: Model, shape: Shape, encoder: nn.Module | None) -> NearestStarter:
        return NearestStarter(model.latent_dim, shape, self.neighbours, self.samples)
