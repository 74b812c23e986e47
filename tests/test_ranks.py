"""Friedman's test and Nemenyi's critical difference: Demšar's worked example, and every table of a small design."""

from __future__ import annotations

import math
from itertools import permutations, product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gfe_study.analysis.stats.intervals import paired
from gfe_study.analysis.stats.ranks import Ranks, datasets_to_compare, friedman

# AUC of C4.5 with and without pruning (m) and tuned confidence (cf), on 14 datasets: Demšar 2006, table 6. The
# paper's ranks on "voting" come from digits that it does not print.
DEMSAR = pd.DataFrame(
    [
        [0.763, 0.768, 0.771, 0.798],
        [0.599, 0.591, 0.590, 0.569],
        [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898],
        [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685],
        [0.583, 0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000],
        [0.940, 0.962, 0.965, 0.962],
        [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.9752, 0.9751],
        [0.957, 0.978, 0.946, 0.970],
    ],
    columns=["C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf"],
)


def agreed(datasets: int, methods: int) -> pd.DataFrame:
    """Scores that rank the methods alike on every dataset."""
    return pd.DataFrame(np.tile(np.arange(methods, dtype=float), (datasets, 1)), columns=list("abcdefghij")[:methods])


def test_the_worked_example() -> None:
    found = friedman(DEMSAR, "max", confidence=0.9)
    assert found.mean_ranks == pytest.approx(
        {"C4.5+m+cf": 1.964, "C4.5+m": 2.0, "C4.5+cf": 2.893, "C4.5": 3.143}, abs=5e-4
    )
    assert list(found.mean_ranks) == ["C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5"]
    assert found.critical_difference == pytest.approx(1.12, abs=5e-3)
    # "Pure C4.5 is significantly worse than C4.5+m and C4.5+m+cf"; where C4.5+cf belongs cannot be told.
    assert found.cliques == [["C4.5+m+cf", "C4.5+m", "C4.5+cf"], ["C4.5+cf", "C4.5"]]
    # 9.28 in the paper, which does not correct for ties: SciPy divides by 1 - Σ (t³ - t) / (N k (k² - 1)).
    assert found.statistic == pytest.approx(9.28 / (1 - (3 * 6 + 60) / (14 * 4 * 15)), abs=0.01)
    assert found.p_value == pytest.approx(stats.chi2.sf(found.statistic, 3))
    assert found.p_permutation == pytest.approx(found.p_value, abs=0.01)
    assert found.rejected
    assert "they differ (Friedman χ²(3) = 10.2" in found.text


def test_no_pair_differs_at_five_per_cent() -> None:
    found = friedman(DEMSAR, "max")
    assert found.critical_difference == pytest.approx(1.25, abs=5e-3)
    assert found.cliques == [list(found.mean_ranks)]


@pytest.mark.parametrize(
    ("methods", "quantile"), [(3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (8, 3.031), (10, 3.164)]
)
def test_critical_difference_matches_the_tables(methods: int, quantile: float) -> None:
    found = friedman(agreed(9, methods))
    expected = quantile * math.sqrt(methods * (methods + 1) / (6 * 9))
    assert found.critical_difference == pytest.approx(expected, abs=1e-3)


def test_cliques_are_the_largest_close_runs() -> None:
    """The mean ranks of a run differ by less than the critical difference."""
    rows = [[1, 2, 3, 4, 5], [1, 3, 2, 5, 4]]
    few, many = (friedman(pd.DataFrame(rows * times, columns=list("abcde"))) for times in (5, 10))
    assert few.mean_ranks == many.mean_ranks == {"a": 1.0, "b": 2.5, "c": 2.5, "d": 4.5, "e": 4.5}
    assert (few.critical_difference, many.critical_difference) == pytest.approx((1.929, 1.364), abs=1e-3)
    assert few.cliques == [["a", "b", "c"], ["d", "e"]]
    assert many.cliques == [["b", "c"], ["d", "e"]]


def test_without_a_rejection_there_is_one_clique() -> None:
    found = friedman(pd.DataFrame(list(permutations([1.0, 2.0, 3.0])), columns=list("abc")))
    assert found.p_permutation == 1
    assert not found.rejected
    assert found.cliques == [["a", "b", "c"]]
    assert "no difference found" in found.text


def test_the_permutation_test_is_exact() -> None:
    # All tables of 3 datasets and 3 methods, up to the names of the methods, are as likely as one another.
    orders = list(permutations([1.0, 2.0, 3.0]))
    tables = [pd.DataFrame([orders[0], *rows], columns=list("abc")) for rows in product(orders, repeat=2)]
    p_values = np.array([friedman(table).p_permutation for table in tables])
    assert min(p_values) == pytest.approx(1 / 36)
    for p_value in np.unique(p_values):
        assert np.mean(p_values <= p_value + 1e-12) == pytest.approx(p_value)


def test_drawn_permutations_never_give_zero() -> None:
    """Drawn once more, they are the same."""
    found = friedman(agreed(12, 5))
    assert found == friedman(agreed(12, 5))
    assert found.p_permutation == 1 / 10_000


def test_scores_in_either_direction() -> None:
    least, most = friedman(DEMSAR), friedman(-DEMSAR, "max")
    assert least == most
    assert list(least.mean_ranks) == list(friedman(DEMSAR, "max").mean_ranks)[::-1]


def test_a_missing_score_drops_its_dataset() -> None:
    """An infinite score does not: it ranks last."""
    scores = agreed(5, 3)
    scores.index = list("vwxyz")
    scores.loc["w", "b"] = math.nan
    scores.loc["z", "a"] = math.inf
    found = friedman(scores)
    assert (found.datasets, found.left_out) == (4, ["w"])
    assert found.mean_ranks == {"a": 1.5, "b": 1.75, "c": 2.75}


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (agreed(9, 2), "needs at least 3 methods; compare 2 by pairs over the datasets"),
        (agreed(2, 3), "2 datasets cannot tell any of 3 methods apart at 95%; 3 could"),
        (agreed(0, 4), "0 datasets cannot tell any of 4 methods apart"),
        (agreed(4, 3) * 0, "every method ties"),
    ],
)
def test_the_impossible_is_said_and_not_computed(scores: pd.DataFrame, said: str) -> None:
    found = friedman(scores)
    assert found.reason is not None
    assert said in found.reason
    assert said in found.text
    nothing = (found.statistic, found.p_value, found.p_permutation, found.critical_difference)
    assert nothing == (None,) * 4
    assert found.cliques == []
    assert set(found.mean_ranks) == set(scores.columns)


@pytest.mark.parametrize("methods", [3, 4, 6])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_fewest_datasets_suffice_and_no_fewer(methods: int, confidence: float) -> None:
    """With one dataset less, no difference can be found."""
    needed = datasets_to_compare(methods, confidence)

    def of(datasets: int) -> Ranks:
        return friedman(agreed(datasets, methods), confidence=confidence)

    assert of(needed).rejected
    assert of(needed).cliques != [list("abcdef")[:methods]]
    assert of(needed - 1).reason is not None


def test_repeated_names_and_bad_options_fail() -> None:
    with pytest.raises(ValueError, match="every method must be named once"):
        friedman(agreed(4, 3).set_axis(["a", "a", "b"], axis="columns"))
    with pytest.raises(ValueError, match="every dataset must be named once"):
        friedman(agreed(3, 3).set_axis(["x", "x", "y"]))
    with pytest.raises(ValueError, match="mode must be one of"):
        friedman(agreed(4, 3), "least")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="confidence must lie in"):
        friedman(agreed(4, 3), confidence=95)
    with pytest.raises(ValueError, match="at least 3 methods, got 2"):
        datasets_to_compare(2)


def test_scores_that_differ_by_rounding_are_ties() -> None:
    """What the paired test takes for equal has no rank of its own: it is not called a difference of p = .0003."""
    exact = np.random.default_rng(0).uniform(0.1, 1.0, 10)
    scores = pd.DataFrame({"a": exact, "b": exact * (1 + 2.0**-52), "c": exact * (1 - 2.0**-52)})
    assert paired(scores["b"], scores["a"]).difference == 0
    found = friedman(scores)
    assert found.reason == "every method ties with every other on every dataset"
    assert found.mean_ranks == {"a": 2, "b": 2, "c": 2}
    worse = friedman(scores.assign(d=exact + 1e-9))
    assert worse.mean_ranks == {"a": 2, "b": 2, "c": 2, "d": 4}
