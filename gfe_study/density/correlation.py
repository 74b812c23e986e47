"""How well two estimates of the divergence follow a known change: Figure 1 of arXiv:2010.15283.

The latents are a mixture of two normals s apart along the first axis, whitened: mean 0 and covariance I at every s,
so that only the shape tells them from the standard normal. Shapes: S separations, M samples, L latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from scipy.integrate import quad
from scipy.stats import norm, pearsonr
from torch import Tensor

from gfe_study.density.bandwidth import usable_bandwidth
from gfe_study.density.discriminator import discriminator_divergence
from gfe_study.density.jsd import jsd
from gfe_study.targets.standard_normal import StandardNormal

SEPARATIONS: Final = tuple(0.5 * step for step in range(13))
"""s, in standard deviations of the two normals: 0 to 6."""
TRIALS: Final = 20
DRAWN: Final = 4
"""Samples of the standard normal for every one of the latents: it is known, and can be drawn from at will."""
LATENT_DIMS: Final = (2, 5, 10, 20)
SAMPLES: Final = (250, 1000, 4000)


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of an estimate with s: found over the separations of every trial, then averaged over the trials.

    Attributes:
        r: its mean.
        std: its standard deviation over the trials.
        mean: the mean estimate at each of `SEPARATIONS`, nats.
    """

    r: float
    std: float
    mean: tuple[float, ...]


@dataclass(frozen=True)
class Study:
    """Both estimates in one latent dimension and with one number of samples."""

    latent_dim: int
    samples: int
    kde: Correlation
    discriminator: Correlation

    def as_dict(self) -> dict[str, Any]:
        """r and its standard deviation of both, as plain data."""
        return {
            name: {"r": found.r, "std": found.std}
            for name, found in (("kde", self.kde), ("discriminator", self.discriminator))
        }


def whitened_mixture(separation: float, samples: int, latent_dim: int, generator: torch.Generator) -> Tensor:
    """Samples of two normals of width 1, `separation` apart, divided by their common standard deviation, (M, L)."""
    drawn_ML = torch.randn(samples, latent_dim, generator=generator)
    side_M = torch.randint(2, (samples,), generator=generator) - 0.5
    drawn_ML[:, 0] = (drawn_ML[:, 0] + separation * side_M) / math.sqrt(1 + separation**2 / 4)
    return drawn_ML


def exact_divergence(separation: float) -> float:
    """The divergence itself, nats, by quadrature: the other axes are normal, so that it is the first one's alone."""
    deviation = math.sqrt(1 + separation**2 / 4)
    mean, width = separation / 2 / deviation, 1 / deviation

    def integrand(z: float) -> float:
        mixed, plain = float(norm.pdf(z, mean, width) + norm.pdf(z, -mean, width)) / 2, float(norm.pdf(z))
        middle = (mixed + plain) / 2
        return sum(density * math.log(density / middle) for density in (mixed, plain) if density > 0) / 2

    return 2 * float(quad(integrand, 0, 12, limit=200)[0])


def correlate(latent_dim: int, samples: int, trials: int = TRIALS, advance: Callable[[], None] = lambda: None) -> Study:
    """Both estimates at every separation, from the same samples, in every trial.

    Of the latents either estimate is made of M samples (the centres of the kernels; what the discriminator is trained
    on) and evaluated on M others; of the standard normal it is evaluated on `DRAWN` times as many samples.

    Args:
        latent_dim: L.
        samples: M.
        trials: how often everything is drawn anew.
        advance: called after every trial.

    Raises:
        BandwidthError: so few samples in so many dimensions have no bandwidth.
    """
    target = StandardNormal()
    bandwidth = usable_bandwidth(target, latent_dim, samples)
    kde, discriminator = np.empty((2, trials, len(SEPARATIONS)))
    for trial in range(trials):
        generator = torch.Generator().manual_seed(trial)
        fitted_SML, encoded_SML = (
            torch.stack([whitened_mixture(s, samples, latent_dim, generator) for s in SEPARATIONS]) for _ in range(2)
        )
        drawn_SML = torch.randn(len(SEPARATIONS), DRAWN * samples, latent_dim, generator=generator)
        for place, (fitted, encoded, drawn) in enumerate(zip(fitted_SML, encoded_SML, drawn_SML, strict=True)):
            kde[trial, place] = float(jsd(encoded, drawn, fitted, target, bandwidth))
        discriminator[trial] = discriminator_divergence(fitted_SML, encoded_SML, drawn_SML, target, generator).numpy()
        advance()
    return Study(latent_dim, samples, _correlation(kde), _correlation(discriminator))


def _correlation(estimate_TS: np.ndarray) -> Correlation:
    r_T = [float(pearsonr(SEPARATIONS, estimate_S).statistic) for estimate_S in estimate_TS]
    spread = float(np.std(r_T, ddof=1)) if len(r_T) > 1 else 0.0
    return Correlation(round(float(np.mean(r_T)), 4), round(spread, 4), tuple(map(float, estimate_TS.mean(0))))
