"""The bandwidth at which a kernel density estimate of a target is hardest to tell from the target itself.

arXiv:2010.15283, section 3 and its supplement, eq. 3. Shapes: P points, M centres, L latent.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, Literal

import torch
from scipy.optimize import brentq, fixed_point
from torch import Tensor

from gfe_study.config import InputError
from gfe_study.density.kde import kernel_moments, log_normaliser
from gfe_study.io.cache import cached
from gfe_study.targets.base import Target

TRIALS = 10
"""Sets of samples whose h_opt is averaged, as in the paper."""
POINTS = (1000, 16000)
"""Samples on which the divergence is estimated: at least the first number, and the second divided by L: in few
dimensions J is flattest, and its maximum needs the most of them."""
TOLERANCE = 1e-5
"""Of h_opt relative to the target's width."""
WIDEST = 4.0
"""Bandwidths are searched up to so many times the target's width."""
CACHE_VERSION = 2
"""Raised by hand whenever the numbers change."""

Method = Literal["root", "fixed-point"]
"""How h_opt is found: both ways agree to 1e-3."""


class BandwidthError(InputError):
    """There is no bandwidth to train with; the message says what would help."""


@dataclass(frozen=True)
class Bandwidth:
    """h_opt of several sets of samples, in units of the latent space.

    Attributes:
        h_opt: their mean.
        std: their standard deviation.
        width: the target's, σ of its modes: latents that match it have the variance σ² − h².
    """

    h_opt: float
    std: float
    width: float

    @property
    def collapses(self) -> bool:
        """Whether nothing of the latents' variance would be left."""
        return self.h_opt >= self.width


class Samples:
    """m centres z_i and the points at which the divergence is estimated, all drawn from the target.

    Since p_e = p_t here, every point serves as z′ and as z″: J = E[log σ(r) + log σ(−r)], r = log p̂_h − log p_t,
    with half the variance of two separate sets.
    """

    def __init__(self, target: Target, latent_dim: int, samples: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        points = max(POINTS[0], POINTS[1] // latent_dim)
        self.target = target
        self.centre_ML = target.sample(samples, latent_dim, generator)
        self.point_PL = target.sample(points, latent_dim, generator)
        self.target_P = target.log_density(self.point_PL)

    def divergence(self, bandwidth: float) -> float:
        """J(h), constants dropped: what h_opt maximises."""
        ratio_P, _ = self._ratio_and_spread(bandwidth)
        logsigmoid = torch.nn.functional.logsigmoid
        return float((logsigmoid(ratio_P) + logsigmoid(-ratio_P)).mean())

    def slope(self, bandwidth: float) -> float:
        """h³ ∂J/∂h = E[(1 − 2σ(r)) (Σ_i w_i ‖z − z_i‖² − l h²)], w the shares of the kernels."""
        ratio_P, spread_P = self._ratio_and_spread(bandwidth)
        excess_P = spread_P - self.point_PL.shape[1] * bandwidth**2
        return float(((1 - 2 * ratio_P.sigmoid()) * excess_P).mean())

    def update(self, bandwidth: float) -> float:
        """The h at which `slope` would vanish if r and w were those of the given one: the fixed point's update."""
        ratio_P, spread_P = self._ratio_and_spread(bandwidth)
        sign_P = 1 - 2 * ratio_P.sigmoid()
        squared = float((sign_P * spread_P).mean() / (self.point_PL.shape[1] * sign_P.mean()))
        return math.sqrt(squared) if squared > 0 else math.nan

    def _ratio_and_spread(self, bandwidth: float) -> tuple[Tensor, Tensor]:
        """r and Σ_i w_i ‖z − z_i‖² of every point, float64, shape (P,)."""
        count, dimensions = self.centre_ML.shape
        log_sum_P, _, spread_P = kernel_moments(self.point_PL, self.centre_ML, bandwidth)
        constant = math.log(count) + log_normaliser(dimensions, bandwidth)
        return (log_sum_P - constant - self.target_P).double(), spread_P.double()


def by_root(samples: Samples, guess: float | None = None) -> float:
    """h_opt of some samples: the root of ∂J/∂h, between bounds that grow around a guess until they hold it.

    Raises:
        BandwidthError: J grows all the way to `WIDEST` widths of the target.
    """
    width = samples.target.width
    lower, upper = (0.95 * guess, 1.05 * guess) if guess is not None else (0.2 * width, width)
    known: dict[float, float] = {}

    def slope(bandwidth: float) -> float:
        if bandwidth not in known:
            known[bandwidth] = samples.slope(bandwidth)
        return known[bandwidth]

    while slope(lower) < 0 and lower > 1e-3 * width:
        lower, upper = lower / 1.5, lower
    while slope(upper) > 0:
        if upper > WIDEST * width:
            raise BandwidthError(f"no bandwidth up to {WIDEST:g} times the target's width maximises the divergence")
        lower, upper = upper, upper * 1.3
    return float(brentq(slope, lower, upper, xtol=TOLERANCE * width))


def by_fixed_point(samples: Samples, guess: float | None = None) -> float:
    """h_opt of some samples: the fixed point of `Samples.update`, accelerated by Steffensen's method.

    Raises:
        BandwidthError: it does not converge from the guess (by default 0.8 of the target's width).
    """
    start = guess if guess is not None else 0.8 * samples.target.width

    def update(bandwidth: float) -> float:
        return samples.update(float(bandwidth))

    try:
        found = float(fixed_point(update, start, xtol=TOLERANCE, maxiter=50))
    except (RuntimeError, ValueError, ZeroDivisionError) as error:
        raise BandwidthError(f"the fixed point was not found from h = {start:g} ({error})") from error
    if not math.isfinite(found):
        raise BandwidthError(f"the fixed point was not found from h = {start:g}")
    return found


def optimal_bandwidth(
    target: Target, latent_dim: int, samples: int, trials: int = TRIALS, method: Method = "root"
) -> Bandwidth:
    """h_opt of a target for m = `samples` centres in L = `latent_dim` dimensions; the same on every machine.

    Found once and kept in the cache folder, where any process finds it.

    Raises:
        ValueError: the target does not exist in so few dimensions.
        BandwidthError: nothing maximises the divergence, or the fixed point was not found.
    """
    return cached(
        f"bandwidth/{target.name}-l{latent_dim}-m{samples}",
        [target.model_dump(mode="json"), latent_dim, samples, trials, method, POINTS, CACHE_VERSION],
        lambda: _found(target, latent_dim, samples, trials, method),
        asdict,
        _loaded,
    )


def usable_bandwidth(target: Target, latent_dim: int, samples: int) -> float:
    """h_opt, where latents can be trained with it.

    Raises:
        BandwidthError: h_opt is as wide as the target's modes, so that the latents would collapse: σ² − h² ≤ 0.
    """
    found = optimal_bandwidth(target, latent_dim, samples)
    if found.collapses:
        raise BandwidthError(refusal(found, target, latent_dim, samples))
    return found.h_opt


def refusal(found: Bandwidth, target: Target, latent_dim: int, samples: int) -> str:
    """Why latents cannot be trained with a bandwidth that collapses, and what would help."""
    return (
        f"h_opt is {found.h_opt:.3f} for {samples:,} samples in {latent_dim} latent dimensions, not below the "
        f"width {found.width:g} of {target.name}: latents would collapse to a variance of {found.width:g}² − h² ≤ 0; "
        "allowed: more samples, or fewer latent dimensions"
    )


def _found(target: Target, latent_dim: int, samples: int, trials: int, method: Method) -> Bandwidth:
    solve = by_root if method == "root" else by_fixed_point
    found: list[float] = []
    for trial in range(trials):
        found.append(solve(Samples(target, latent_dim, samples, trial), found[-1] if found else None))
    # Rounding leaves out what another order of summation could change.
    spread = stdev(found) if trials > 1 else 0.0
    return Bandwidth(round(fmean(found), 4), round(spread, 4), target.width)


def _loaded(kept: Any) -> Bandwidth:
    found = Bandwidth(**kept)
    if not all(math.isfinite(value) for value in (found.h_opt, found.std, found.width)) or found.h_opt <= 0:
        raise ValueError("not a bandwidth")
    return found
