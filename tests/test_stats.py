"""Intervals, paired comparisons and fronts, against SciPy, by hand, and on simulated seeds."""

from __future__ import annotations

import math
import warnings
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special, stats

from gfe_study.analysis.stats.intervals import (
    EXACT_UP_TO,
    FEWEST_PAIRS,
    FLIPS,
    MOST_SEEDS,
    Paired,
    describe_interval,
    describe_p,
    holm,
    mean_interval,
    paired,
    pareto,
    seeds_to_decide,
    seeds_to_reach,
    smallest_p,
    subtract,
    tied,
)

# Eighths: sums and differences of them are exact, so that properties hold to the bit.
eighths = st.integers(-800, 800).map(lambda number: number / 8)
arms = st.integers(1, 8).flatmap(
    lambda count: st.tuples(*[st.lists(eighths, min_size=count, max_size=count) for _ in range(2)])
)


def normal(seed: int, *shape: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=shape)


def arms_apart(count: int, difference: float, sd: float) -> Paired:
    """A comparison whose differences have exactly this mean and this s.d."""
    values = np.arange(count) - (count - 1) / 2
    differences = difference + sd * values / values.std(ddof=1)
    return paired(differences, np.zeros(count))


# Intervals of a mean.


def test_the_interval_of_a_mean_by_hand() -> None:
    found = mean_interval([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)
    assert (found.mean, found.count, found.confidence) == (2.0, 3, 0.95)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_the_interval_of_a_mean_is_scipys(confidence: float) -> None:
    values = normal(0, 7)
    found = mean_interval(values, confidence)
    expected = stats.t.interval(confidence, 6, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)


def test_one_value_has_no_interval() -> None:
    assert astuple(mean_interval([0.3])) == (0.3, None, None, 1, 0.95)


def test_equal_values_give_a_point_interval() -> None:
    assert astuple(mean_interval([0.1] * 3)) == (0.1, 0.1, 0.1, 3, 0.95)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [[1.0, 2.0]]])
def test_an_interval_needs_finite_numbers(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values: "):
        mean_interval(values)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_a_confidence_is_a_probability(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence must lie in"):
        mean_interval([1.0, 2.0], confidence)


# Paired comparisons: their figures.


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_the_paired_comparison_is_scipys_t_test(count: int) -> None:
    treatment, reference = normal(count, 2, count)
    found = paired(treatment, reference)
    expected = stats.ttest_rel(treatment, reference)
    assert found.count == count
    assert found.difference == pytest.approx(np.mean(treatment) - np.mean(reference))
    assert found.sd == pytest.approx(np.std(treatment - reference, ddof=1))
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_the_sign_flip_test_is_scipys_exact_one(count: int) -> None:
    treatment, reference = normal(count, 2, count)
    expected = stats.permutation_test(
        (treatment, reference),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
    )
    assert paired(treatment, reference).p_permutation == pytest.approx(expected.pvalue)


def test_the_sign_flip_test_by_hand() -> None:
    # Of the 8 sums ±1 ±2 ±4, the 4 of ±5 and ±7 are at least 5 in size.
    assert paired([-1.0, 2.0, 4.0], [0.0] * 3).p_permutation == 0.5
    assert paired([1.0, 2.0, 4.0], [0.0] * 3).p_permutation == 0.25


def test_signs_are_drawn_alike_every_time() -> None:
    """They are drawn where there are too many pairs for the exact test."""
    count = EXACT_UP_TO + 4
    treatment, reference = normal(3, 2, count) + np.array([[0.5], [0.0]])
    found = paired(treatment, reference)
    flips = 1 - 2 * ((np.arange(2 ** (count - 1))[:, None] >> np.arange(count)) & 1)
    differences = treatment - reference
    exact = np.mean(np.abs(flips @ differences) >= abs(differences.sum()) - 1e-9)
    assert found.p_permutation == pytest.approx(exact, abs=5 * math.sqrt(exact / FLIPS))
    assert found == paired(treatment, reference)


def test_signs_drawn_never_give_a_p_value_of_zero() -> None:
    found = paired(np.linspace(1, 2, 30), np.zeros(30))
    assert found.p_permutation == found.smallest_p == 1 / (FLIPS + 1)


@pytest.mark.parametrize("count", [1, 3, 5, 14])
def test_few_pairs_have_a_smallest_p_value(count: int) -> None:
    """That of the sign-flip test."""
    found = paired(np.linspace(1, 2, count), np.zeros(count))
    assert found.p_permutation == found.smallest_p == smallest_p(count) == 2 / 2**count


def test_the_effect_size_by_hand() -> None:
    found = arms_apart(4, 0.6, 0.3)
    # J(3) = Γ(3 / 2) / (√(3 / 2) Γ(1)) = √(π / 6).
    assert found.effect_size == pytest.approx(2 * math.sqrt(math.pi / 6))


def test_the_effect_size_is_unbiased() -> None:
    samples = normal(4, 4000, 5) + 0.5
    sizes = [paired(sample, np.zeros(5)).effect_size or 0.0 for sample in samples]
    assert np.mean(sizes) == pytest.approx(0.5, abs=4 * float(np.std(sizes)) / math.sqrt(4000))


def test_two_pairs_have_no_effect_size() -> None:
    assert paired([1.0, 2.0], [0.0, 0.5]).effect_size is None


def test_one_pair_gives_only_its_difference() -> None:
    found = paired([0.2], [0.5])
    assert astuple(found) == (1, pytest.approx(-0.3), None, None, None, None, 1.0, 1.0, None)


# 0.3 - 0.2 and 0.2 - 0.1 are not the same number.
@pytest.mark.parametrize("reference", [[1.0, 2.0, 3.0], [0.1, 0.2, 0.7]])
def test_equal_differences_give_a_point_interval(reference: list[float]) -> None:
    treatment = [value + 0.1 for value in reference]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = paired(treatment, reference)
        same = paired(reference, reference)
    assert found.low == found.high == found.difference == pytest.approx(0.1)
    assert (found.p_value, found.p_permutation, found.effect_size) == (0.0, 0.25, None)
    assert astuple(same) == (3, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.25, None)


@pytest.mark.parametrize(
    ("treatment", "reference", "said"),
    [
        ([1.0], [1.0, 2.0], "as many values of both arms, got 1 and 2"),
        ([], [], "treatment: one value per seed"),
        ([1.0, math.nan], [1.0, 2.0], "treatment: every value must be finite"),
        ([1.0, 2.0], [1.0, -math.inf], "reference: every value must be finite"),
    ],
)
def test_a_comparison_needs_finite_pairs(treatment: list[float], reference: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        paired(treatment, reference)


def test_the_level_of_a_pair_is_a_probability() -> None:
    with pytest.raises(ValueError, match="confidence must lie in"):
        paired([1.0], [2.0], confidence=1)


@given(arms)
def test_swapping_the_arms_mirrors_the_comparison(pair: tuple[list[float], list[float]]) -> None:
    forth, back = (paired(*given) for given in (pair, pair[::-1]))
    assert (back.difference, back.sd) == (-forth.difference, forth.sd)
    assert (back.p_value, back.p_permutation) == (forth.p_value, forth.p_permutation)
    if forth.low is not None and forth.high is not None:
        assert (back.low, back.high) == (-forth.high, -forth.low)
    if forth.effect_size is not None:
        assert back.effect_size == -forth.effect_size


@given(arms, eighths)
def test_what_both_arms_share_does_not_count(pair: tuple[list[float], list[float]], shift: float) -> None:
    treatment, reference = (np.array(values) for values in pair)
    assert paired(treatment + shift, reference + shift) == paired(treatment, reference)


@given(arms, st.permutations(range(8)))
def test_the_order_of_the_seeds_does_not_count(pair: tuple[list[float], list[float]], order: list[int]) -> None:
    kept = [index for index in order if index < len(pair[0])]
    found = paired([pair[0][index] for index in kept], [pair[1][index] for index in kept])
    expected = paired(*pair)
    assert (found.difference, found.p_permutation) == pytest.approx((expected.difference, expected.p_permutation))


# Numbers of seeds.


@pytest.mark.parametrize(
    ("difference", "power", "expected"),
    # The paired t-test at 5 %, two-sided, with Cohen's small, medium and large effects.
    [(0.2, 0.8, 199), (0.5, 0.8, 34), (0.8, 0.8, 15), (1.0, 0.8, 10), (0.5, 0.9, 44)],
)
def test_seeds_to_decide_are_those_of_the_tables(difference: float, power: float, expected: int) -> None:
    assert seeds_to_decide(difference, 1.0, power=power) == expected
    assert seeds_to_decide(-3 * difference, 3.0, power=power) == expected
    assert seeds_to_decide(difference, 1.0, power=power, least=expected + 1) == expected + 1


@given(st.floats(0.03, 5), st.floats(0.5, 0.99), st.floats(0.6, 0.95), st.integers(1, 20))
def test_seeds_to_decide_are_the_fewest(effect: float, confidence: float, power: float, family: int) -> None:
    def reached(count: int) -> float:
        critical = stats.t.isf((1 - confidence) / family / 2, count - 1)
        return float(stats.nct.sf(critical, count - 1, effect * math.sqrt(count)))

    count = seeds_to_decide(effect, 1.0, family=family, confidence=confidence, power=power)
    if count is None:
        assert reached(MOST_SEEDS) < power + 1e-9
        return
    assert reached(count) >= power - 1e-9
    assert count == FEWEST_PAIRS or reached(count - 1) < power + 1e-9


def test_limits_of_seeds_to_decide() -> None:
    assert seeds_to_decide(0.0, 1.0) is None
    assert seeds_to_decide(0.0, 0.0) is None
    assert seeds_to_decide(0.01, 1.0) is None
    assert seeds_to_decide(0.03, 1.0) is not None
    assert seeds_to_decide(1.0, 0.0) == seeds_to_decide(1.0, 1e-9) == seeds_to_decide(0.0, 0.0, margin=1.0) == 3
    assert seeds_to_decide(0.0, 1e-9, margin=1.0) == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"difference": math.nan}, "a finite difference and a finite sd"),
        ({"sd": -1.0}, "a finite difference and a finite sd"),
        ({"sd": math.inf}, "a finite difference and a finite sd"),
        ({"power": 80}, "power must lie in"),
        ({"confidence": 95}, "confidence must lie in"),
        ({"margin": 0.0}, "margin must be > 0, got 0"),
        ({"family": 0}, "comparisons must be at least 1"),
    ],
    ids=str,
)
def test_impossible_comparisons_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        seeds_to_decide(**{"difference": 1.0, "sd": 1.0, **given})


@pytest.mark.parametrize(("level", "family", "expected"), [(0.05, 1, 6), (0.05, 10, 9), (0.01, 1, 8), (0.25, 1, 3)])
def test_seeds_to_reach_a_level_by_hand(level: float, family: int, expected: int) -> None:
    assert seeds_to_reach(level, family) == expected


@given(st.floats(1e-6, 0.5), st.integers(1, 50))
def test_seeds_to_reach_are_the_fewest(level: float, family: int) -> None:
    def reached(count: int) -> bool:
        return min(holm([smallest_p(count)] + [1.0] * (family - 1))) <= level

    count = seeds_to_reach(level, family)
    if count is None:
        assert not reached(MOST_SEEDS)
    else:
        assert reached(count)
        assert count == 1 or not reached(count - 1)


def test_limits_of_seeds_to_reach() -> None:
    assert seeds_to_reach(1e-6) is None
    with pytest.raises(ValueError, match="level must lie in"):
        seeds_to_reach(5)
    with pytest.raises(ValueError, match="comparisons must be at least 1"):
        seeds_to_reach(family=0)


@given(
    st.floats(0, 2), st.floats(-1.2, 1.2), st.integers(3, 9), st.sampled_from([0.8, 0.9, 0.95, 0.99]), st.integers(1, 9)
)
@settings(max_examples=60)
def test_with_a_margin_they_are_the_first_that_do(
    difference: float, log_sd: float, least: int, confidence: float, family: int
) -> None:
    margin, sd = 1.0, 10**log_sd
    needed = seeds_to_decide(difference, sd, family=family, margin=margin, confidence=confidence, least=least)
    if needed is None:
        return
    # The search bisects, and must find what going through the counts one by one finds.
    counts = np.union1d(np.arange(least, min(least + 20, needed) + 1), np.geomspace(least, needed, 30).round())
    reached = decided(counts, difference, sd, family, margin, confidence)
    # 0.002: what the classes of standard deviations, on both sides, are wrong by.
    assert (reached[counts < needed] < 0.8 + 0.002).all()
    assert reached[-1] > 0.8 - 0.002


def decided(
    counts: NDArray[np.float64], difference: float, sd: float, family: int, margin: float, confidence: float
) -> NDArray[np.float64]:
    """Probabilities of a verdict, but for the wrong sign, all averaged over 500 classes of standard deviations."""
    freedom, error = counts[:, None] - 1, sd / np.sqrt(counts[:, None])
    deviations = np.sqrt(special.gammaincinv(freedom / 2, (np.arange(500) + 0.5) / 500) / (freedom / 2))
    apart, inner = (stats.t.isf((1 - confidence) / each / 2, freedom) * error * deviations for each in (family, 1))
    # Of the means that do not leave out 0, those whose interval stays inside the margin.
    reach = np.clip(np.minimum(apart, margin - inner), 0, None)
    inside = special.ndtr((reach - difference) / error) - special.ndtr((-reach - difference) / error)
    shares: np.ndarray[Any, np.dtype[np.float64]] = np.mean(special.ndtr((difference - apart) / error) + inside, axis=1)
    return shares


# Words.


def test_an_interval_in_words() -> None:
    assert describe_interval(mean_interval([1.0, 2.0, 3.0]), 2) == "2.00 ± 2.48 (95 %, 3 seeds)"
    assert describe_interval(mean_interval([1.0, 2.0], 0.999)) == "1.5000 ± 318.3096 (99.9 %, 2 seeds)"
    assert describe_interval(mean_interval([0.11364])) == "0.1136 (no interval: one seed)"


def test_p_values_in_words() -> None:
    assert describe_p(paired([1.0], [2.0])) == "no p-value: one seed"
    few = paired([1.0, 2.0, 4.0], [0.0] * 3)
    assert describe_p(few) == "p 0.12 (paired t), 0.25 (sign flips, the smallest that 3 seeds can give)"
    assert describe_p(paired([-1.0, 2.0, 4.0], [0.0] * 3)) == "p 0.37 (paired t), 0.5 (sign flips)"


# Many comparisons, and fronts.


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
def test_holm_takes_probabilities(wrong: float) -> None:
    with pytest.raises(ValueError, match="p-values lie in"):
        holm([0.5, wrong])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_raw_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    bonferroni = [min(1.0, len(p_values) * p) for p in p_values]
    assert all(p <= a <= b for p, a, b in zip(p_values, adjusted, bonferroni, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert list(np.array(adjusted)[order]) == sorted(adjusted)


def test_the_front_by_hand() -> None:
    points = [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0), (2.0, 2.0), (2.5, 2.0), (1.0, 4.0), (math.inf, 0.5)]
    assert pareto(points) == [1, 2, 0, 6]
    assert pareto([]) == []
    with pytest.raises(ValueError, match="not a number"):
        pareto([(0.0, math.nan)])


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 6).map(float), st.integers(0, 6).map(float)), max_size=12))
def test_the_front_is_what_nothing_dominates(points: list[tuple[float, float]]) -> None:
    def dominated(point: tuple[float, float]) -> bool:
        return any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points)

    front = pareto(points)
    assert {points[index] for index in front} == {point for point in points if not dominated(point)}
    assert [points[index][0] for index in front] == sorted({points[index][0] for index in front})
    assert front == [points.index(points[index]) for index in front]


# Rounding


@settings(max_examples=100)
@given(
    st.lists(st.integers(1, 6), max_size=8),
    st.sampled_from([1e-300, 1e-30, 0.3, 1.0, 1e19, 1e300]),
    st.lists(st.integers(-1, 1), min_size=8, max_size=8),
)
def test_values_that_differ_by_rounding_are_tied(places: list[int], scale: float, ulps: list[int]) -> None:
    exact = [scale * place for place in places]
    rounded = [value + ulp * float(np.spacing(value)) for value, ulp in zip(exact, ulps, strict=False)]
    found = tied(rounded)
    assert (stats.rankdata(found) == stats.rankdata(exact)).all()
    np.testing.assert_allclose(found, exact, rtol=1e-14, atol=0)
    assert (subtract(rounded, exact) == 0).all()
    assert (np.sign(subtract(rounded[1:], rounded[:-1])) == np.sign(np.diff(places))).all()


def test_what_is_no_number_has_no_tie() -> None:
    values = [math.inf, 2.0, math.nan, 1.0, -math.inf, math.inf, 1.0 + 5e-16]
    np.testing.assert_array_equal(tied(values), [math.inf, 2.0, math.nan, 1.0, -math.inf, math.inf, 1.0])


def test_small_differences_are_not_all_rounding() -> None:
    """Rounding goes by the two values, not by the largest of all."""
    assert tied([1e6, 0.1, 0.1 + 1e-12]).tolist() == [1e6, 0.1, 0.1 + 1e-12]
    assert subtract([1e6, 0.1], [1e6, 0.1 + 1e-12])[1] != 0


def test_differences_that_are_rounding_are_zero() -> None:
    compared = paired([0.1 + 0.2, 0.5, 0.6], [0.3, 0.5, 0.5])
    assert compared.difference == pytest.approx(0.1 / 3)
    assert paired([0.3, 0.5, 0.6], [0.1 + 0.2, 0.5, 0.5]) == compared


def test_rounding_puts_no_point_on_the_front() -> None:
    assert pareto([(0.3, 2.0), (0.1 + 0.2, 1.0), (0.3, 3.0)]) == [1]
    assert pareto([(1.0, 0.1 + 0.2), (2.0, 0.3)]) == [0]
