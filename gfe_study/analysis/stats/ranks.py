"""Several methods over several datasets: Friedman's test, and which methods their mean ranks tell apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from gfe_study.analysis.stats.intervals import check_mode, check_share, tied
from gfe_study.metrics import Mode

PERMUTATIONS = 9_999
"""Assignments of ranks that the permutation test goes through, or draws where there are more."""
FEWEST_METHODS = 3


@dataclass(frozen=True)
class Ranks:
    """Mean ranks of methods over datasets, and what can be said of them. What needs a test is None without one.

    Attributes:
        mean_ranks: method -> mean over the datasets of its rank, 1 the best; best first. Methods whose scores differ by
            rounding share theirs.
        datasets: number of datasets that every method has a score on.
        left_out: datasets that some method has no score on.
        statistic: Friedman's χ², with methods - 1 degrees of freedom, corrected for ties.
        p_value: of the χ² distribution, which holds for many datasets.
        p_permutation: of the same statistic with the ranks of every dataset in random order: exact where there are
            at most `PERMUTATIONS` orders, else (1 + b) / (1 + `PERMUTATIONS`) with b random ones at least as extreme.
        critical_difference: mean ranks at least this far apart differ (Nemenyi), all pairs at once at `confidence`.
        cliques: the largest groups of methods not told apart, best first; a method alone is none. Where
            `p_permutation` does not reject, all of them (Demšar 2006 goes on to pairs only after a rejection).
        reason: why there is no test; None if there is one.
        confidence: 1 - the level of the tests.
    """

    mean_ranks: dict[str, float]
    datasets: int
    left_out: list[str]
    statistic: float | None
    p_value: float | None
    p_permutation: float | None
    critical_difference: float | None
    cliques: list[list[str]]
    reason: str | None
    confidence: float

    @property
    def rejected(self) -> bool:
        """Whether the methods differ at all, by the permutation test."""
        return self.p_permutation is not None and self.p_permutation <= 1 - self.confidence

    @property
    def text(self) -> str:
        """What was found, in words."""
        over = f"{len(self.mean_ranks)} methods over {self.datasets} datasets"
        if self.reason is not None:
            return f"{over}: no test: {self.reason}"
        found = "they differ" if self.rejected else "no difference found"
        return (
            f"{over}: {found} (Friedman χ²({len(self.mean_ranks) - 1}) = {self.statistic:.2f}, p {self.p_value:.2g}, "
            f"by permutation {self.p_permutation:.2g}); mean ranks {self.critical_difference:.2f} apart differ "
            "(Nemenyi)"
        )


def friedman(scores: pd.DataFrame, mode: Mode = "min", confidence: float = 0.95) -> Ranks:
    """Friedman's test of equal methods, and Nemenyi's critical difference (Demšar 2006).

    CD = q √(k (k + 1) / (6 N)) for k methods on N datasets, q the quantile of the studentised range of k means with
    infinite degrees of freedom, over √2. A dataset counts once whatever its seeds: give means over seeds.

    There is a `reason` instead of a test for fewer than `FEWEST_METHODS` methods, for so few datasets that not even
    a method first on all of them could be told from one last on all of them, and for methods that always tie.

    Args:
        scores: datasets × methods. A dataset with a NaN is left out; an infinite score, as of a method that
            diverges, is a rank as good as any.
        mode: whether lower or higher is better.
        confidence: 1 - the level of the tests.

    Raises:
        ValueError: a method or a dataset named twice, or an impossible option.
    """
    check_mode(mode)
    check_share(confidence, "confidence")
    for what, labels in (("method", scores.columns), ("dataset", scores.index)):
        if labels.has_duplicates:
            raise ValueError(f"every {what} must be named once, got {list(labels)}")
    complete = scores.dropna()
    left_out = [str(name) for name in scores.index if name not in complete.index]
    scored = pd.DataFrame([tied(row) for row in complete.to_numpy()], columns=complete.columns, dtype="float64")
    ranks = scored.rank(axis=1, ascending=mode == "min").to_numpy(dtype=np.float64)
    methods = [str(name) for name in scores.columns]
    means = ranks.mean(axis=0) if len(ranks) else np.full(len(methods), np.nan)
    order = np.argsort(means, kind="stable")
    mean_ranks = {methods[index]: float(means[index]) for index in order}
    reason = _impossible(ranks, len(methods), confidence)
    if reason is not None:
        return Ranks(mean_ranks, len(ranks), left_out, None, None, None, None, [], reason, confidence)
    test = stats.friedmanchisquare(*ranks.T)
    p_permutation = _permutation_test(ranks)
    difference = _nemenyi(len(methods), confidence) / math.sqrt(len(ranks))
    cliques = _cliques(mean_ranks, difference) if p_permutation <= 1 - confidence else [list(mean_ranks)]
    statistic, p_value = float(test.statistic), float(test.pvalue)
    return Ranks(
        mean_ranks, len(ranks), left_out, statistic, p_value, p_permutation, difference, cliques, None, confidence
    )


def datasets_to_compare(methods: int, confidence: float = 0.95) -> int:
    """The fewest datasets on which the best and the worst of so many methods could be told apart.

    Both steps must be able to: the critical difference lets in k - 1 ranks, the most there are between two methods,
    and (k!)^(1 - N), the smallest p-value of the permutation test without ties, is below the level.
    """
    check_share(confidence, "confidence")
    if methods < FEWEST_METHODS:
        raise ValueError(f"Friedman's test needs at least {FEWEST_METHODS} methods, got {methods}")
    by_ranks = math.ceil((_nemenyi(methods, confidence) / (methods - 1)) ** 2)
    by_orders = 1 + math.ceil(-math.log(1 - confidence) / math.lgamma(methods + 1))
    return max(by_ranks, by_orders)


def _impossible(ranks: NDArray[np.float64], methods: int, confidence: float) -> str | None:
    if methods < FEWEST_METHODS:
        return f"Friedman's test needs at least {FEWEST_METHODS} methods; compare 2 by pairs over the datasets"
    needed = datasets_to_compare(methods, confidence)
    if len(ranks) < needed:
        return f"{len(ranks)} datasets cannot tell any of {methods} methods apart at {confidence:.0%}; {needed} could"
    return "every method ties with every other on every dataset" if np.ptp(ranks) == 0 else None


def _nemenyi(methods: int, confidence: float) -> float:
    """The critical difference of one dataset."""
    quantile = float(stats.studentized_range.ppf(confidence, methods, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / 6)


def _permutation_test(ranks: NDArray[np.float64]) -> float:
    # χ² grows with the sum of the squared rank sums; ties change its scale only.
    def squared_sums(*rows: Any, axis: int) -> Any:
        return np.square(sum(rows)).sum(axis=axis)

    found = stats.permutation_test(
        tuple(ranks),
        squared_sums,
        permutation_type="pairings",
        n_resamples=PERMUTATIONS,
        alternative="greater",
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def _cliques(mean_ranks: dict[str, float], difference: float) -> list[list[str]]:
    """Largest runs of two or more methods, of those sorted by rank, less than the difference apart."""
    methods = list(mean_ranks)
    cliques: list[list[str]] = []
    reached = 0
    for first, method in enumerate(methods):
        run = [other for other in methods[first:] if mean_ranks[other] - mean_ranks[method] < difference]
        if len(run) > 1 and first + len(run) > reached:
            cliques.append(run)
        reached = max(reached, first + len(run))
    return cliques
