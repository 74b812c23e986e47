"""The expected best of k tuning trials: against all subsets, against the truth, and where its interval holds."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import integrate, stats

from gfe_study.analysis.stats.tuning import INTERVAL_UP_TO, expected_best, expected_best_over, order_weights

losses = st.lists(st.floats(-10, 10), min_size=1, max_size=8)


def true_best(distribution: stats.rv_continuous, trials: int) -> float:
    """E min of k draws, ∫ F⁻¹(u) k (1 - u)^(k - 1) du."""
    found, _ = integrate.quad(lambda u: distribution.ppf(u) * trials * (1 - u) ** (trials - 1), 0, 1, limit=200)
    return float(found)


def plug_in(samples: NDArray[np.float64], trials: int) -> float:
    """Mean over samples, one a row, of the minimum of k draws from each with replacement (Dodge et al. 2019)."""
    count = samples.shape[1]
    at_least = (1 - np.arange(count + 1) / count) ** trials
    return float((np.sort(samples, axis=1) @ (at_least[:-1] - at_least[1:])).mean())


@given(losses, st.sampled_from(["min", "max"]))
def test_it_is_the_mean_best_over_all_subsets(values: list[float], mode: str) -> None:
    best = min if mode == "min" else max
    found = expected_best(values, mode)  # type: ignore[arg-type]
    for trials, expected in zip(found["trials"], found["expected_best"], strict=True):
        assert expected == pytest.approx(np.mean([best(some) for some in combinations(values, trials)]), abs=1e-12)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8))
def test_the_standard_error_is_the_jackknifes(values: list[float]) -> None:
    found, count = expected_best(values), len(values)
    for trials in range(1, count):
        without = [
            np.mean([min(some) for some in combinations(values[:index] + values[index + 1 :], trials)])
            for index in range(count)
        ]
        expected = math.sqrt((count - 1) / count * float(np.square(without - np.mean(without)).sum()))
        assert found["standard_error"][trials - 1] == pytest.approx(expected, abs=1e-7)
    assert math.isnan(found["standard_error"][count - 1])


def test_one_trial_has_the_mean_and_all_the_best() -> None:
    values = [0.5, 0.2, 0.9, 0.4, 0.7]
    found = expected_best(values)
    assert found["expected_best"][0] == pytest.approx(np.mean(values))
    assert found["standard_error"][0] == pytest.approx(stats.sem(values))
    assert found["expected_best"][4] == 0.2
    assert (np.diff(found["expected_best"]) < 0).all()


def test_it_is_unbiased_unlike_the_plug_in_form() -> None:
    count, studies = 20, 1000
    samples = np.random.default_rng(0).normal(size=(20 * studies, count))
    ours = np.array([expected_best(sample)["expected_best"] for sample in samples[:studies]])
    for trials in (1, 5, 10, 20):
        of, true = ours[:, trials - 1], true_best(stats.norm(), trials)
        error = of.std() / math.sqrt(studies)
        assert of.mean() == pytest.approx(true, abs=3 * error)
        if trials > 1:
            assert plug_in(samples, trials) > true + 3 * error
    # Of 20 trials out of 20 it expects 11 % too little.
    assert plug_in(samples, 20) / true_best(stats.norm(), 20) == pytest.approx(0.89, abs=0.006)


@pytest.mark.parametrize("distribution", [stats.norm(), stats.expon(), stats.beta(0.5, 1)], ids=lambda d: d.dist.name)
@pytest.mark.parametrize("count", [20, 50])
def test_the_interval_covers_where_it_is_given(distribution: stats.rv_continuous, count: int) -> None:
    studies = 400
    samples = distribution.rvs((studies, count), random_state=count)
    found = [expected_best(sample) for sample in samples]
    errors = np.array([table["standard_error"] for table in found])
    expected = np.array([table["expected_best"] for table in found])
    for trials in (1, 2, count // 8, count // 4):
        true = true_best(distribution, trials)
        covered = [table["low"][trials - 1] <= true <= table["high"][trials - 1] for table in found]
        assert 0.83 <= np.mean(covered) <= 0.98  # 88 to 95 %, and three standard errors of 400 studies
    # The standard error holds further than the interval, and errs on the large side.
    for trials in (count // 4, count // 2, count - 1):
        root_mean_square = math.sqrt(np.mean(np.square(errors[:, trials - 1])))
        assert 0.93 <= root_mean_square / expected[:, trials - 1].std() <= 2.0


@pytest.mark.parametrize("count", [1, 3, 4, 9, 20])
def test_intervals_end_at_a_quarter_of_the_trials(count: int) -> None:
    found = expected_best(np.random.default_rng(count).normal(size=count))
    given_up_to = found["trials"][found["low"].notna() & found["high"].notna()].max()
    assert (0 if math.isnan(given_up_to) else given_up_to) == int(INTERVAL_UP_TO * count)
    assert found["standard_error"].notna().sum() == count - 1


# Failed trials.


@pytest.mark.parametrize("failed", [math.nan, math.inf, -math.inf])
def test_a_failed_trial_counts_as_the_worst(failed: float) -> None:
    assert expected_best([0.3, failed, 0.5]).equals(expected_best([0.3, 0.5, 0.5]))
    assert expected_best([0.3, failed, 0.5], "max").equals(expected_best([0.3, 0.3, 0.5], "max"))
    assert expected_best([0.3, failed, 0.5], worst=0.7).equals(expected_best([0.3, 0.7, 0.5]))
    # Left out, it would flatter the search.
    absent = expected_best([0.3, 0.5])["expected_best"]
    assert (expected_best([0.3, failed, 0.5])["expected_best"][:2] > absent).all()


@given(losses)
def test_the_modes_mirror_each_other(values: list[float]) -> None:
    least, most = expected_best(values), expected_best([-value for value in values], "max")
    assert most["expected_best"].tolist() == (-least["expected_best"]).tolist()
    assert most["standard_error"].equals(least["standard_error"])
    assert (-most["high"]).equals(least["low"])


def test_the_order_of_the_trials_does_not_count() -> None:
    values = np.random.default_rng(3).normal(size=12)
    assert expected_best(values).equals(expected_best(values[::-1]))


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        ([], {}, "at least one"),
        ([[1.0, 2.0]], {}, r"got shape \(1, 2\)"),
        ([math.nan, math.inf], {}, "none of 2 trials has a finite value"),
        ([1.0, math.nan], {"worst": 0.5}, "worst must be finite and no better than any trial's value, 1; got 0.5"),
        ([1.0, math.nan], {"worst": math.inf}, "worst must be finite"),
        ([1.0, math.nan], {"worst": 1.5, "mode": "max"}, "no better than any trial's value, 1; got 1.5"),
        ([1.0], {"mode": "least"}, "mode must be one of min, max"),
        ([1.0], {"confidence": 95}, "confidence must lie in"),
    ],
)
def test_what_cannot_be_told_is_refused(values: list[float], options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        expected_best(values, **options)  # type: ignore[arg-type]


# Many trials, and seconds.


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_the_weights_are_shares_of_the_subsets(count: int) -> None:
    weights = order_weights(count)
    assert weights.sum(axis=1) == pytest.approx(np.ones(count))
    for trials in {1, (count + 1) // 2, count}:
        subsets = math.comb(count, trials)
        exact = [math.comb(count - place, trials - 1) / subsets for place in range(1, count + 1)]
        assert weights[trials - 1] == pytest.approx(exact, rel=1e-9, abs=1e-300)


def test_each_trial_costs_the_mean_seconds_of_all() -> None:
    values, seconds = [0.5, math.nan, 0.4], [10.0, 1.0, 4.0]
    found = expected_best_over(seconds, values)
    assert found["seconds"].tolist() == [5.0, 10.0, 15.0]
    assert found.drop(columns="seconds").equals(expected_best(values))


@pytest.mark.parametrize("seconds", [[1.0], [1.0, -1.0], [1.0, math.nan]])
def test_every_trial_needs_a_time(seconds: list[float]) -> None:
    with pytest.raises(ValueError, match="one finite time >= 0 for each of 2 trials"):
        expected_best_over(seconds, [0.1, 0.2])
