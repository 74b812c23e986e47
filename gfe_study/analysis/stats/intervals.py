"""Intervals, paired comparisons and Pareto fronts for runs repeated over a handful of seeds.

Intervals are Student's: at 3 to 10 seeds their coverage is the nominal one where that of the bootstrap is not.
Arms are compared seed by seed, which takes out of the noise whatever two runs with the same seed share.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from gfe_study.metrics import Mode

EXACT_UP_TO = 14
"""Pairs up to which the sign-flip test goes through every assignment of signs."""
FLIPS = 99_999
"""Assignments of signs drawn at random above that."""
FEWEST_PAIRS = 3
"""Pairs below which nothing is decided: two give hardly an estimate of the noise."""
POWER = 0.8
"""Probability of a decision that a number of seeds is to give."""
MOST_SEEDS = 10_000
"""Where the search for a number of seeds gives up."""

ROUNDING = 4 * float(np.finfo(np.float64).eps)
"""Two values that differ by no more than this share of the larger one differ by rounding; they count as equal."""

_CLASSES = (np.arange(256) + 0.5) / 256


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval; `low` and `high` are None for a single value."""

    mean: float
    low: float | None
    high: float | None
    count: int
    confidence: float


@dataclass(frozen=True)
class Paired:
    """A treatment against its reference, paired by seed. What needs a standard deviation is None for one seed.

    Attributes:
        count: pairs.
        difference: mean of treatment - reference.
        sd: standard deviation of the differences.
        low, high: Student's interval of the mean difference.
        p_value: paired t-test, two-sided.
        p_permutation: sign-flip test of the mean difference, two-sided; exact up to `EXACT_UP_TO` pairs, else
            (1 + b) / (1 + `FLIPS`) with b of `FLIPS` random assignments at least as extreme (Phipson and Smyth 2010).
        smallest_p: the least that `p_permutation` can be with this many pairs; 2 / 2^count where it is exact.
        effect_size: standardised mean difference of pairs d_z = difference / s.d., times Hedges's correction (1981)
            for small samples; None below 3 pairs, where the correction does not exist, and for a s.d. of 0.
    """

    count: int
    difference: float
    sd: float | None
    low: float | None
    high: float | None
    p_value: float | None
    p_permutation: float
    smallest_p: float
    effect_size: float | None


def subtract(one: ArrayLike, other: ArrayLike) -> NDArray[np.float64]:
    """Differences of finite values, one − other; 0 where they are no more than `ROUNDING`."""
    values, others = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    differences = values - others
    rounding = ROUNDING * np.maximum(np.abs(values), np.abs(others))
    return np.where(np.abs(differences) <= rounding, 0.0, differences)


def tied(values: ArrayLike) -> NDArray[np.float64]:
    """Values for a ranking, (n,): finite ones that differ by no more than `ROUNDING` are made equal."""
    sample = np.array(values, dtype=np.float64)
    places = np.argsort(sample, kind="stable")
    places = places[np.isfinite(sample[places])]
    ranked = sample[places]
    first = np.append(True, subtract(ranked[1:], ranked[:-1]) != 0)[: len(ranked)]
    sample[places] = ranked[first][np.cumsum(first) - 1]
    return sample


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Student's interval of a mean, x̄ ± t(n - 1, (1 + confidence) / 2) s / √n.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    sample = _sample(values, "values")
    check_share(confidence, "confidence")
    mean, sd = _mean_and_sd(sample)
    if len(sample) == 1:
        return Interval(mean, None, None, 1, confidence)
    half = critical_value(len(sample), confidence) * sd / math.sqrt(len(sample))
    return Interval(mean, mean - half, mean + half, len(sample), confidence)


def paired(treatment: ArrayLike, reference: ArrayLike, *, confidence: float = 0.95) -> Paired:
    """Compare two arms run with the same seeds; entry i of both is the same seed.

    Args:
        treatment: metric of the treatment, one value per seed.
        reference: metric of the reference, in the same order of seeds.
        confidence: of the interval.

    Raises:
        ValueError: arms of unequal length, no values, a value that is not finite, or an impossible confidence.
    """
    treated, referred = _sample(treatment, "treatment"), _sample(reference, "reference")
    if len(treated) != len(referred):
        raise ValueError(f"pairs need as many values of both arms, got {len(treated)} and {len(referred)}")
    check_share(confidence, "confidence")
    differences = subtract(treated, referred)
    # Equal differences of unequal values differ by the rounding of these.
    rounding = ROUNDING * float(np.maximum(np.abs(treated), np.abs(referred)).max())
    mean, sd = _mean_and_sd(differences, rounding)
    if sd == 0:
        differences = np.full(len(differences), mean)
    count = len(differences)
    p_permutation, smallest = _sign_flips(differences), smallest_p(count)
    if count == 1:
        return Paired(1, mean, None, None, None, None, p_permutation, smallest, None)
    error = sd / math.sqrt(count)
    half = critical_value(count, confidence) * error
    statistic = abs(mean) / error if error else math.inf if mean else 0.0
    p_value = 2 * float(special.stdtr(count - 1, -statistic))
    effect = _hedges(mean, sd, count)
    return Paired(count, mean, sd, mean - half, mean + half, p_value, p_permutation, smallest, effect)


def seeds_to_decide(
    difference: float,
    sd: float,
    *,
    family: int = 1,
    margin: float | None = None,
    confidence: float = 0.95,
    power: float = POWER,
    least: int = FEWEST_PAIRS,
) -> int | None:
    """The fewest pairs that decide a comparison with probability `power`, if the true differences are as given.

    A comparison is decided where the interval leaves out 0, on the side of `difference`, at the confidence
    1 - (1 - `confidence`) / `family`: its p-value is then small enough whatever Holm makes of the others. It is also
    decided where the interval at `confidence` lies inside (-`margin`, `margin`).

    Args:
        difference: true mean of the differences.
        sd: true standard deviation of the differences.
        family: number of comparisons that Holm's method adjusts for.
        margin: differences smaller than this are of no interest; None asks for no equivalence.
        confidence: 1 - the level of the tests.
        power: the probability wanted.
        least: the smallest answer.

    Returns:
        None if `MOST_SEEDS` do not suffice.

    Raises:
        ValueError: a number that is not finite, a negative s.d., or an impossible option.
    """
    if not math.isfinite(difference) or not math.isfinite(sd) or sd < 0:
        raise ValueError(f"a finite difference and a finite sd >= 0 are needed, got {difference} and {sd}")
    if margin is not None and not margin > 0:
        raise ValueError(f"margin must be > 0, got {margin}")
    _check_family(family)
    check_share(confidence, "confidence")
    check_share(power, "power")
    if sd == 0:
        return least if difference or margin is not None else None
    return _fewest(lambda pairs: _decided(pairs, difference, sd, family, margin, confidence), power, least)


def smallest_p(count: int) -> float:
    """The least p-value that the two-sided sign-flip test of so many pairs can give: 2 / 2^count where it is exact."""
    return max(2.0 ** (1 - count), 1 / (FLIPS + 1) if count > EXACT_UP_TO else 0.0)


def seeds_to_reach(level: float = 0.05, family: int = 1) -> int | None:
    """The fewest pairs whose sign-flip test can give a p-value of at most `level` once Holm has adjusted it.

    The smallest of `family` p-values is multiplied by their number: 6 pairs for one comparison at 5 %, 9 for ten.
    None if no number does, since the test draws no more than `FLIPS` assignments.

    Raises:
        ValueError: a level outside (0, 1), or an empty family.
    """
    check_share(level, "level")
    _check_family(family)
    return next((count for count in range(1, MOST_SEEDS) if family * smallest_p(count) <= level), None)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that keep the familywise error rate (Holm 1979), in the order given.

    The i-th smallest of m is max over j <= i of (m - j + 1) p_(j), at most 1.

    Raises:
        ValueError: a value outside [0, 1].
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values lie in [0, 1], got {list(p_values)}")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        adjusted[index] = float(min(1.0, largest))
    return adjusted


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other dominates, both coordinates minimised, by the first coordinate.

    A point dominates another if it is at most as large in both coordinates and smaller in one; coordinates that differ
    by rounding are equal. Of equal points the first is kept.

    Raises:
        ValueError: a coordinate that is not a number.
    """
    if any(math.isnan(coordinate) for point in points for coordinate in point):
        raise ValueError("a point with a coordinate that is not a number can be neither on the front nor off it")
    firsts, seconds = (tied(coordinates) for coordinates in np.reshape(points, (-1, 2)).T)
    front: list[int] = []
    for index in np.lexsort((seconds, firsts)).tolist():
        if not front or seconds[index] < seconds[front[-1]]:
            front.append(index)
    return front


def describe_interval(interval: Interval, digits: int = 4) -> str:
    """A mean and its interval in words: "0.1136 ± 0.0021 (95 %, 5 seeds)", "0.1136 (no interval: one seed)"."""
    if interval.low is None or interval.high is None:
        return f"{interval.mean:.{digits}f} (no interval: one seed)"
    half = (interval.high - interval.low) / 2
    return f"{interval.mean:.{digits}f} ± {half:.{digits}f} ({100 * interval.confidence:g} %, {interval.count} seeds)"


def describe_p(compared: Paired) -> str:
    """Both p-values of a comparison in words, and whether more seeds alone could make the second one smaller."""
    if compared.p_value is None:
        return "no p-value: one seed"
    least = f", the smallest that {compared.count} seeds can give"
    at_least = least if compared.p_permutation <= compared.smallest_p else ""
    return f"p {compared.p_value:.2g} (paired t), {compared.p_permutation:.2g} (sign flips{at_least})"


def check_mode(mode: str) -> None:
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")


def check_share(share: float, what: str) -> None:
    if not 0 < share < 1:
        raise ValueError(f"{what} must lie in (0, 1), got {share}")


def _check_family(family: int) -> None:
    if family < 1:
        raise ValueError(f"family: the number of comparisons must be at least 1, got {family}")


def critical_value(count: int, confidence: float) -> float:
    """Student's t(n - 1, (1 + confidence) / 2) of n = `count` values."""
    return float(special.stdtrit(count - 1, (1 + confidence) / 2))


def _sample(values: ArrayLike, what: str) -> NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample):
        raise ValueError(f"{what}: one value per seed is needed, at least one; got shape {sample.shape}")
    if not np.isfinite(sample).all():
        raise ValueError(f"{what}: every value must be finite, got {sample.tolist()}")
    return sample


def _mean_and_sd(sample: NDArray[np.float64], rounding: float = 0.0) -> tuple[float, float]:
    """Mean and s.d. (n - 1 in the denominator); values that differ by no more than `rounding` are constant."""
    if float(np.ptp(sample)) <= rounding:
        constant = float(sample[0])
        return (constant if abs(constant) > rounding else 0.0), 0.0
    return float(sample.mean()), float(sample.std(ddof=1))


def _hedges(mean: float, sd: float, count: int) -> float | None:
    """d_z J(n - 1), with J(m) = Γ(m / 2) / (√(m / 2) Γ((m - 1) / 2))."""
    freedom = count - 1
    if freedom < 2 or sd == 0:
        return None
    correction = math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    return mean / sd * correction


def _sign_flips(differences: NDArray[np.float64]) -> float:
    """Two-sided p-value of the mean under random signs of the differences."""
    count = len(differences)
    # Sums of the same terms in another order are ties.
    extreme = abs(float(differences.sum())) - 1e-12 * float(np.abs(differences).sum())
    if count <= EXACT_UP_TO:
        # The last sign stays: flipping all of them gives the same |sum|.
        flips = (np.arange(2 ** (count - 1))[:, None] >> np.arange(count)) & 1
        return float(np.mean(np.abs((1 - 2 * flips) @ differences) >= extreme))
    generator = np.random.default_rng(0)
    as_extreme, left = 0, FLIPS
    while left:
        drawn = min(left, max(1, 2_000_000 // count))
        signs = 1.0 - 2.0 * generator.integers(0, 2, (drawn, count), dtype=np.int8)
        as_extreme += int(np.count_nonzero(np.abs(signs @ differences) >= extreme))
        left -= drawn
    return (1 + as_extreme) / (1 + FLIPS)


def _decided(count: int, difference: float, sd: float, family: int, margin: float | None, confidence: float) -> float:
    """Probability that `count` pairs decide a comparison, as `seeds_to_decide` says.

    The first of its two ways is noncentral t. With q the half width of the interval that has to leave out 0, and r that
    of the one that has to be inside ±margin, the second adds |x̄| < min(q, margin - r): normal in x̄ given the sample's
    s.d., averaged over this, a multiple of √χ²_{n - 1}, at the midpoints of 256 equally likely classes.
    """
    freedom, error = count - 1, sd / math.sqrt(count)
    critical = critical_value(count, 1 - (1 - confidence) / family)
    missed = float(special.nctdtr(freedom, abs(difference) / error, critical))
    # It gives NaN for probabilities that underflow.
    seen = 1.0 if math.isnan(missed) else 1 - missed
    if margin is None:
        return seen
    deviations = error * np.sqrt(special.gammaincinv(freedom / 2, _CLASSES) / (freedom / 2))
    reach = np.minimum(critical * deviations, margin - critical_value(count, confidence) * deviations)
    reach = np.maximum(reach, 0)
    inside = special.ndtr((reach - difference) / error) - special.ndtr((-reach - difference) / error)
    return seen + float(inside.mean())


def _fewest(probability: Callable[[int], float], wanted: float, least: int) -> int | None:
    """The fewest pairs, `least` or more, with the probability wanted; it grows with the pairs."""
    counts = range(least, MOST_SEEDS + 1)
    position = bisect_left(counts, wanted, key=probability)
    return counts[position] if position < len(counts) else None
