"""What the statistics promise, on simulated seeds: coverage, false alarms, power, and error rates over a family."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from gfe_study.analysis.stats.intervals import MOST_SEEDS, Paired, holm, mean_interval, paired, seeds_to_decide

COUNTS = [3, 5, 10]
APART = 8.0


def normal(seed: int, *shape: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=shape)


def compared(differences: NDArray[np.float64]) -> Paired:
    return paired(differences, np.zeros(len(differences)))


def interval_bounds(
    differences: NDArray[np.float64], confidence: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Student's bounds of many samples at once, one sample per row."""
    count = differences.shape[1]
    half = stats.t.ppf((1 + confidence) / 2, count - 1) * stats.sem(differences, axis=1)
    found = differences.mean(axis=1) - half, differences.mean(axis=1) + half
    first = paired(differences[0], np.zeros(count), confidence=confidence)
    assert (first.low, first.high) == pytest.approx((found[0][0], found[1][0]))
    return found


# Coverage and false alarms.


@pytest.mark.parametrize("count", COUNTS)
def test_the_interval_of_a_mean_covers(count: int) -> None:
    found = [mean_interval(sample) for sample in normal(count, 4000, count) + APART]
    covered = [each.low <= APART <= each.high for each in found if each.low is not None and each.high is not None]
    assert len(covered) == 4000
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.parametrize("count", COUNTS)
def test_paired_intervals_cover_as_promised(count: int) -> None:
    """And false alarms are as rare as promised."""
    # Both arms share their seed's part of the noise.
    shared, treatments, references = normal(10 + count, 3, 3000, count)
    treatments, references = shared + 0.3 * treatments, shared + 0.3 * references
    apart, same = (
        [paired(shift + first, second) for first, second in zip(treatments, references, strict=True)]
        for shift in (APART, 0.0)
    )
    covered = [each.low <= APART <= each.high for each in apart if each.low is not None and each.high is not None]
    assert len(covered) == 3000
    assert 0.93 <= np.mean(covered) <= 0.97
    # Of the same samples without the difference the interval leaves out 0, and the test alarms, as often.
    assert 0.03 <= np.mean([each.p_value is not None and each.p_value <= 0.05 for each in same]) <= 0.07
    assert np.mean([each.low is None or each.high is None or not each.low <= 0 <= each.high for each in same]) <= 0.07
    # The sign-flip test has few p-values, and reaches of its level what these allow.
    reachable = math.floor(0.05 * 2 ** (count - 1)) / 2 ** (count - 1)
    assert np.mean([each.p_permutation <= 0.05 for each in same]) == pytest.approx(reachable, abs=0.013)


@pytest.mark.parametrize("count", COUNTS)
def test_the_sign_flip_test_is_exact(count: int) -> None:
    """At every level that it can reach."""
    # Without a difference all signs of the differences are as likely as one another, whatever their sizes.
    sizes = np.abs(normal(40 + count, count))
    p_values = np.array([compared(sizes * np.array(signs)).p_permutation for signs in product((-1, 1), repeat=count)])
    for p_value in np.unique(p_values):
        assert np.mean(p_values <= p_value) == pytest.approx(p_value)


# Power.


@pytest.mark.parametrize("effect", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("family", [1, 5])
def test_seeds_to_decide_do_four_times_in_five(effect: float, family: int) -> None:
    count = seeds_to_decide(effect, 1.0, family=family)
    assert count is not None
    low, high = interval_bounds(normal(31, 4000, count) + effect, 1 - 0.05 / family)
    assert np.mean((low > 0) | (high < 0)) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("difference", [0.0, 0.3, 0.5, 0.7, 1.2])
@pytest.mark.parametrize("family", [1, 5])
def test_so_they_do_with_a_margin(difference: float, family: int) -> None:
    sd, margin = 2.0, 1.0
    count = seeds_to_decide(difference, sd, family=family, margin=margin)
    assert count is not None
    assert count <= (seeds_to_decide(difference, sd, family=family) or MOST_SEEDS)
    samples = difference + sd * normal(32, 4000, count)
    (low, high), apart = interval_bounds(samples), interval_bounds(samples, 1 - 0.05 / family)
    decided = (apart[0] > 0) | (apart[1] < 0) | ((low > -margin) & (high < margin))
    assert np.mean(decided) == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize("effects", [(0.8, 0.8, 0.8), (0.8, 0.0, 0.0)], ids=str)
def test_the_seeds_of_a_family_survive_holm(effects: tuple[float, ...]) -> None:
    """With so many seeds a comparison is decided after Holm's adjustment at least four times in five."""
    count = seeds_to_decide(effects[0], 1.0, family=len(effects))
    assert count is not None
    samples = normal(34, 3000, len(effects), count) + np.array(effects)[:, None]
    p_values = stats.ttest_1samp(samples, 0.0, axis=2).pvalue
    decided = [holm(list(row))[0] <= 0.05 for row in p_values]
    assert np.mean(decided) >= 0.8 - 0.02
    assert effects[1] or np.mean(decided) <= 0.8 + 0.03


# Equivalence.


def equivalent(samples: NDArray[np.float64], margin: float) -> NDArray[np.bool_]:
    """Which rows are equivalent, by the inclusion of the interval."""
    low, high = interval_bounds(samples)
    return (low > -margin) & (high < margin)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("margin", [0.5, 2.0, 8.0])
def test_arms_a_margin_apart_seldom_pass_as_equal(count: int, margin: float) -> None:
    for difference in (-margin, margin, 1.2 * margin):
        samples = difference + normal(50 + count, 20_000, count)
        # Each of the two one-sided tests is at half of 5 %; three standard errors are 0.0033.
        assert np.mean(equivalent(samples, margin)) <= 0.025 + 0.0035


@pytest.mark.parametrize("count", COUNTS)
def test_at_a_wide_margin_errors_reach_the_level(count: int) -> None:
    """Arms are falsely called equivalent as often as the level allows."""
    assert np.mean(equivalent(30.0 + normal(60 + count, 20_000, count), 30.0)) == pytest.approx(0.025, abs=0.004)


def test_equivalence_has_the_power_asked_for() -> None:
    """Arms that are alike are found alike four times in five."""
    margin = 1.0
    sample = np.linspace(-1.15, 1.15, 5)
    count = seeds_to_decide(0.0, sample.std(ddof=1), margin=margin)
    assert count is not None
    samples = sample.std(ddof=1) * normal(33, 4000, count)
    assert np.mean(equivalent(samples, margin)) == pytest.approx(0.8, abs=0.04)


# A family of comparisons.


@pytest.mark.parametrize("effects", [[0.0] * 5, [0.0, 0.0, 0.0, 2.0, 5.0]], ids=["none differs", "two differ"])
@pytest.mark.parametrize("count", COUNTS)
def test_holm_keeps_the_error_rate_of_a_family(effects: list[float], count: int) -> None:
    studies = 4000
    # All arms are compared with the same reference, so that the tests hang together.
    arms = normal(70 + count, studies, 1 + len(effects), count)
    treatments = arms[:, 1:] + np.array(effects)[:, None]
    p_values = stats.ttest_rel(treatments, arms[:, :1], axis=2).pvalue
    same = np.array(effects) == 0
    adjusted = np.array([holm(list(row)) for row in p_values])
    three_standard_errors = 3 * math.sqrt(0.05 * 0.95 / studies)
    assert np.mean((adjusted[:, same] <= 0.05).any(axis=1)) <= 0.05 + three_standard_errors
    # Without it the family errs more often than its members.
    assert np.mean((p_values[:, same] <= 0.05).any(axis=1)) >= 0.08
