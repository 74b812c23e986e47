"""Crossings of two curves and their confidence sets: by hand, against SciPy's test, and on simulated studies."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from gfe_study.analysis.stats.crossing import Crossing, find_crossings

SIZES = np.array([100.0, 300.0, 1000.0, 3000.0, 10_000.0])
SPREAD = np.array([-1.0, 0.0, 1.0])


def crossings(differences: object, sizes: NDArray[np.float64] = SIZES, confidence: float = 0.95) -> Crossing:
    return find_crossings("gfe", "ae", "images seen", sizes, np.array(differences, dtype=np.float64), confidence)


def around(means: list[float], sd: float) -> NDArray[np.float64]:
    """Three seeds whose differences have these means and this s.d. at every size."""
    return np.array(means) + sd * SPREAD[:, None]


def inside(found: Crossing, size: float) -> bool:
    return any(region.low <= size <= region.high for region in found.regions or [])


def test_a_crossing_by_hand() -> None:
    found = crossings(around([-2.0, 2.0], 0.1), np.array([10.0, 1000.0]))
    # The mean difference is 4 u - 2 over 100^u times 10, and its interval ± 4.303 · 0.1 / √3.
    half = 4.302652729911275 * 0.1 / math.sqrt(3) / 4
    assert found.at == pytest.approx([100.0])
    assert found.ahead == ["gfe", "ae"]
    assert found.regions is not None
    (region,) = found.regions
    assert (region.low, region.high) == pytest.approx((10 * 100 ** (0.5 - half), 10 * 100 ** (0.5 + half)))
    assert (region.crossings, region.open_below, region.open_above) == (tuple(found.at), False, False)
    assert found.text == (
        "gfe and ae cross at 100 images seen: gfe is lower before, then ae; interval from 75.1 to 133 (95 %, 3 seeds)"
    )


def test_the_arm_ahead_is_the_better_one() -> None:
    differences = around([-2.0, 2.0], 0.1)
    sizes = np.array([10.0, 1000.0])
    for better, ahead in (("lower", ["gfe", "ae"]), ("higher", ["ae", "gfe"])):
        found = find_crossings("gfe", "ae", "images seen", sizes, differences, 0.95, better)  # type: ignore[arg-type]
        assert found.ahead == ahead
        assert f"{ahead[0]} is {better} before, then {ahead[1]}" in found.text


@given(st.integers(0, 10_000), st.integers(2, 10), st.floats(0.05, 3), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
@settings(max_examples=60)
def test_the_confidence_set_inverts_the_t_test(seed: int, count: int, noise: float, confidence: float) -> None:
    """It is where the paired t-test does not reject."""
    generator = np.random.default_rng(seed)
    differences = generator.normal(size=5) + noise * (generator.normal(size=(count, 5)) + generator.normal())
    found = crossings(differences, confidence=confidence)
    places = np.linspace(math.log(100), math.log(10_000), 401)
    curves = np.array([np.interp(places, np.log(SIZES), row) for row in differences])
    p_values = stats.ttest_1samp(curves, 0.0).pvalue
    for place, p_value in zip(places[1:-1], p_values[1:-1], strict=True):
        if abs(p_value - (1 - confidence)) > 1e-6:
            assert inside(found, math.exp(place)) == (p_value > 1 - confidence)
    assert found.regions is not None
    for region in found.regions:
        ends = [(region.low, region.open_below), (region.high, region.open_above)]
        for end in (end for end, is_open in ends if not is_open):
            at_end = [float(np.interp(math.log(end), np.log(SIZES), row)) for row in differences]
            assert stats.ttest_1samp(at_end, 0.0).pvalue == pytest.approx(1 - confidence, rel=1e-4)
        assert region.open_below == (region.low == SIZES[0])
        assert region.open_above == (region.high == SIZES[-1])
    # Every crossing of the means is in exactly one part.
    assert [size for region in found.regions for size in region.crossings] == found.at


@given(st.lists(st.integers(-3, 3), min_size=5, max_size=5))
def test_the_means_cross_where_they_change_sign(means: list[int]) -> None:
    found = crossings([means])
    signs = [np.sign(mean) for mean in means if mean]
    changes = sum(left != right for left, right in pairwise(signs))
    assert len(found.at) == changes
    assert found.at == sorted(found.at)
    assert len(found.ahead) == changes + 1
    for size in found.at:
        assert np.interp(math.log(size), np.log(SIZES), means) == pytest.approx(0, abs=1e-9)


def test_several_crossings_have_an_interval_each() -> None:
    found = crossings(around([-1.0, 1.0, -1.0, 1.0, 1.0], 0.05))
    assert found.at == pytest.approx([math.sqrt(3e4), math.sqrt(3e5), math.sqrt(3e6)])
    assert found.ahead == ["gfe", "ae", "gfe", "ae"]
    assert found.regions is not None
    assert [len(region.crossings) for region in found.regions] == [1, 1, 1]
    assert "cross at 173, 548 and 1,730 images seen: gfe is lower before, then ae, then gfe, then ae" in found.text
    assert len(list(found.rows())) == 3


def test_crossings_not_told_apart_share_a_region() -> None:
    found = crossings(around([-1.0, 0.1, -0.1, 1.0, 1.0], 0.15))
    assert found.regions is not None
    (region,) = found.regions
    assert region.crossings == tuple(found.at)
    assert len(found.at) == 3
    assert "3 of them not told from one another" in found.text
    assert {row[1:] for row in found.rows()} == {(region.low, region.high)}


def test_arms_told_apart_everywhere_do_not_cross() -> None:
    found = crossings(around([-1.0, -2.0, -1.0, -1.0, -1.0], 0.1))
    assert (found.at, found.regions, found.ahead) == ([], [], ["gfe"])
    assert found.text == (
        "gfe and ae do not cross from 100 to 10,000 images seen: gfe is lower throughout, told apart at every size "
        "(95 %, 3 seeds)"
    )
    assert all(math.isnan(number) for row in found.rows() for number in row)


def test_arms_told_apart_nowhere_have_no_bounds() -> None:
    found = crossings(around([-1.0, -1.0, 0.5, 1.0, 1.0], 5.0))
    assert found.regions is not None
    assert [(region.low, region.high) for region in found.regions] == [(100, 10_000)]
    assert (found.regions[0].open_below, found.regions[0].open_above) == (True, True)
    assert "unbounded: they are told apart at no size" in found.text


def test_an_interval_at_an_end_may_go_beyond_it() -> None:
    found = crossings(around([0.1, 0.3, -2.0, -2.0, -2.0], 0.2))
    assert found.regions is not None
    (region,) = found.regions
    assert (region.low, region.open_below, region.open_above) == (100, True, False)
    assert "interval from 100 or below to " in found.text


def test_means_may_cross_where_not_told_apart() -> None:
    """Even if the means that were observed do not cross."""
    found = crossings(around([-2.0, -2.0, -0.1, -2.0, -2.0], 0.2))
    assert found.at == []
    assert found.regions is not None
    (region,) = found.regions
    assert region.low < 1000 < region.high
    assert "gfe is lower throughout; not told apart from" in found.text
    assert "where they may cross" in found.text


def test_a_region_without_a_crossing_is_told_too() -> None:
    found = crossings(around([2.0, -2.0, -0.1, -2.0, -2.0], 0.2))
    assert found.regions is not None
    assert [len(region.crossings) for region in found.regions] == [1, 0]
    assert "either (95 %" in found.text


def test_touching_or_equal_curves_do_not_cross() -> None:
    assert crossings([[1.0, 1.0, 0.0, 1.0, 1.0]] * 2).at == []
    same = crossings(np.zeros((3, 5)))
    assert (same.at, same.ahead) == ([], ["neither"])
    assert same.regions is not None
    assert [(region.low, region.high) for region in same.regions] == [(100, 10_000)]
    # Equal from 300 to 3,000, and the other way round beyond.
    assert crossings([[1.0, 0.0, 0.0, 0.0, -1.0]]).at == pytest.approx([math.sqrt(9e5)])


def test_rounding_alone_makes_no_crossing() -> None:
    """0.1 + 0.2 − 0.3 is 3e-17, and its negative is not."""
    seeds = np.outer([0.1, 0.2, -0.3], [1.0, -1.0, 1.0, -1.0, 1.0])
    assert (seeds.mean(axis=0) != 0).all()
    found = crossings(seeds)
    assert (found.at, found.ahead) == ([], ["neither"])


def test_seeds_without_spread_cross_in_a_point() -> None:
    found = crossings([[-1.0, 1.0, 1.0, 1.0, 1.0]] * 3)
    assert found.regions is not None
    (region,) = found.regions
    assert region.low == pytest.approx(region.high)
    assert region.low == pytest.approx(math.sqrt(3e4))


def test_one_seed_crosses_without_an_interval() -> None:
    found = crossings([[-1.0, 1.0, 1.0, 1.0, 1.0]])
    assert found.regions is None
    assert found.text.endswith("gfe is lower before, then ae (no interval: one seed)")
    ((size, low, high),) = found.rows()
    assert size == found.at[0]
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize(
    ("sizes", "seeds", "said"),
    [(SIZES, 0, "a seed that has all"), (SIZES[:1], 3, "two sizes"), (SIZES[:0], 3, "two sizes")],
)
def test_what_cannot_cross_says_why(sizes: NDArray[np.float64], seeds: int, said: str) -> None:
    found = crossings(np.ones((seeds, len(sizes))), sizes)
    assert (found.at, found.regions) == ([], None)
    assert f"they do not share {said}" in found.text


@pytest.mark.parametrize("count", [3, 5, 10])
def test_true_crossings_are_covered_as_promised(count: int) -> None:
    studies, generator = 1200, np.random.default_rng(count)
    true = np.array([-0.3, -0.2, 0.15, 0.3, 0.2])
    crossing = math.exp(np.interp(0.0, true[1:3], np.log(SIZES[1:3])))
    # A seed's own shift, slope and noise at every size, which shrinks as the images grow in number.
    shifts, slopes = generator.normal(size=(2, studies, count, 1))
    noise = generator.normal(size=(studies, count, len(SIZES)))
    seeds = 0.1 * shifts + 0.1 * slopes * np.linspace(-1, 1, 5) + noise * np.linspace(0.3, 0.1, 5)
    covered = [inside(crossings(true + study), crossing) for study in seeds]
    assert 0.93 <= np.mean(covered) <= 0.97
