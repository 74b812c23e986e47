"""Where two curves measured over seeds cross, and within which sizes that can be told."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gfe_study.analysis.stats.intervals import ROUNDING, critical_value
from gfe_study.metrics import Better


@dataclass(frozen=True)
class Region:
    """Sizes next to one another at which two arms are not told apart.

    Attributes:
        low, high: its ends.
        crossings: the sizes within it at which the mean curves cross; none, one or several.
        open_below, open_above: it reaches the smallest, the largest size measured, and may go on beyond.
    """

    low: float
    high: float
    crossings: tuple[float, ...]
    open_below: bool
    open_above: bool


@dataclass(frozen=True)
class Crossing:
    """Where the mean curves of two arms cross.

    Attributes:
        first, second: the arms.
        sizes: the smallest and the largest size that both have; None if there is none.
        count: seeds.
        at: sizes at which the mean curves cross, ascending.
        ahead: the arm with the better mean before, between and after them; empty if there is nothing to compare.
        regions: the confidence set in parts, ascending; None for one seed, empty where the arms are told apart
            everywhere. Every crossing lies in one of them.
        text: all of it in words.
    """

    first: str
    second: str
    sizes: tuple[float, float] | None
    count: int
    at: list[float]
    ahead: list[str]
    regions: list[Region] | None
    text: str

    def rows(self) -> Iterator[tuple[float, float, float]]:
        """Size, low and high of every crossing and of every region without one, NaN for what there is not."""
        if self.regions is None:
            yield from ((size, math.nan, math.nan) for size in self.at or [math.nan])
            return
        for region in self.regions:
            yield from ((size, region.low, region.high) for size in region.crossings or (math.nan,))
        if not self.regions:
            yield math.nan, math.nan, math.nan


def find_crossings(
    first: str,
    second: str,
    unit: str,
    sizes: NDArray[np.float64],
    differences: NDArray[np.float64],
    confidence: float,
    better: Better = "lower",
) -> Crossing:
    """Crossings of two mean curves, straight in log size between the sizes measured, and their confidence set.

    The set holds every size at which the paired t-test of the two curves does not reject at 1 - `confidence` (as
    Fieller 1954 inverts the test of a ratio). Where the curves of all seeds are straight, so are the mean difference
    and, squared, its variance a parabola: the ends are roots of quadratics. A size where the true curves, joined in
    the same way, cross is in the set with probability `confidence`; several are so one by one, not all at once. The
    set may be one interval, several, empty (told apart at every size), or reach an end of the sizes measured.

    Args:
        first, second: the arms' names.
        unit: what sizes count.
        sizes: (n,), positive, ascending.
        differences: value of the first minus that of the second, (seeds, n), finite.
        confidence: of the set.
        better: whether lower or higher values are better.
    """
    count = len(differences)
    ends = (float(sizes[0]), float(sizes[-1])) if len(sizes) else None
    if ends is None or ends[0] == ends[1] or not count:
        lacking = "two sizes" if ends is None or ends[0] == ends[1] else "a seed that has all of their sizes"
        text = f"{first} and {second}: no crossing to look for, since they do not share {lacking}"
        return Crossing(first, second, ends, count, [], [], None, text)
    logs = np.log(sizes)
    means = differences.mean(axis=0)
    means[np.abs(means) <= ROUNDING * np.abs(differences).max(axis=0)] = 0
    at, signs = _zeros(logs, means)
    arms = (first, second) if better == "lower" else (second, first)
    ahead = [{-1: arms[0], 1: arms[1], 0: "neither"}[sign] for sign in signs]
    regions = _regions(sizes, logs, differences, at, confidence) if count > 1 else None
    text = _words(first, second, unit, ends, count, at, ahead, better, regions, confidence)
    return Crossing(first, second, ends, count, at, ahead, regions, text)


def _zeros(logs: NDArray[np.float64], means: NDArray[np.float64]) -> tuple[list[float], list[int]]:
    """Sizes at which the mean difference changes its sign, and its signs around them.

    Where it is 0 over a stretch, the middle of that; where it touches 0 and turns back, none.
    """
    apart = np.flatnonzero(means)
    if not len(apart):
        return [], [0]
    signs = [int(np.sign(means[apart[0]]))]
    at = []
    for left, right in pairwise(apart):
        sign = int(np.sign(means[right]))
        if sign == signs[-1]:
            continue
        if right == left + 1:
            share = means[left] / (means[left] - means[right])
            zero = logs[left] + share * (logs[right] - logs[left])
        else:
            zero = (logs[left + 1] + logs[right - 1]) / 2
        at.append(math.exp(zero))
        signs.append(sign)
    return at, signs


def _regions(
    sizes: NDArray[np.float64],
    logs: NDArray[np.float64],
    differences: NDArray[np.float64],
    at: Sequence[float],
    confidence: float,
) -> list[Region]:
    count = len(differences)
    factor = critical_value(count, confidence) ** 2 / count
    means = differences.mean(axis=0)
    centred = differences - means
    pieces: list[tuple[float, float]] = []
    for index in range(len(logs) - 1):
        # On the piece the difference of the means is m + u M, u in [0, 1], and that of a seed from it c + u C.
        start, slope = means[index], means[index + 1] - means[index]
        deviation, turn = centred[:, index], centred[:, index + 1] - centred[:, index]
        # The test does not reject where the quadratic (m + u M)² - t² s²(u) / n is at most 0.
        coefficients = [
            slope**2 - factor * (turn @ turn) / (count - 1),
            2 * (start * slope - factor * (deviation @ turn) / (count - 1)),
            start**2 - factor * (deviation @ deviation) / (count - 1),
        ]
        roots = np.roots(coefficients)
        inside = roots[np.isreal(roots)].real
        knots = np.unique([0.0, *inside[(inside > 0) & (inside < 1)], 1.0])
        places = np.interp(knots, [0.0, 1.0], logs[index : index + 2])
        accepted = np.polyval(coefficients, (knots[:-1] + knots[1:]) / 2) <= 0
        pieces += [(float(places[part]), float(places[part + 1])) for part in np.flatnonzero(accepted)]
    # Without any spread a crossing is a region by itself.
    pieces += [(math.log(size), math.log(size)) for size in at]
    return [_region(low, high, sizes, logs, at) for low, high in _joined(pieces)]


def _joined(pieces: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    joined: list[tuple[float, float]] = []
    for low, high in sorted(pieces):
        if joined and low <= joined[-1][1] + 1e-12:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return joined


def _region(
    low: float, high: float, sizes: NDArray[np.float64], logs: NDArray[np.float64], at: Sequence[float]
) -> Region:
    open_below, open_above = low <= logs[0], high >= logs[-1]
    ends = (float(sizes[0]) if open_below else math.exp(low), float(sizes[-1]) if open_above else math.exp(high))
    within = tuple(size for size in at if low - 1e-12 <= math.log(size) <= high + 1e-12)
    return Region(*ends, within, bool(open_below), bool(open_above))


def _words(
    first: str,
    second: str,
    unit: str,
    ends: tuple[float, float],
    count: int,
    at: Sequence[float],
    ahead: Sequence[str],
    better: Better,
    regions: Sequence[Region] | None,
    confidence: float,
) -> str:
    pair = f"{first} and {second}"
    over = f"from {_number(ends[0])} to {_number(ends[1])} {unit}"
    if not at:
        found = f"{pair} do not cross {over}"
        found += f": {ahead[0]} is {better} throughout" if ahead[0] != "neither" else ": their means are equal"
    else:
        found = f"{pair} cross at {_listed([_number(size) for size in at])} {unit}"
        found += f": {ahead[0]} is {better} before" + "".join(f", then {arm}" for arm in ahead[1:])
    if regions is None:
        return f"{found} (no interval: one seed)"
    level = f"{100 * confidence:g} %, {count} seeds"
    if not regions:
        return f"{found}, told apart at every size ({level})"
    if len(regions) == 1 and regions[0].open_below and regions[0].open_above:
        return f"{found}; the interval is unbounded: they are told apart at no size {over} ({level})"
    told = []
    for region in regions:
        span = _span(region)
        match len(region.crossings):
            case 0:
                told.append(f"not told apart {span} either" if at else f"not told apart {span}, where they may cross")
            case 1:
                told.append(f"interval {span}" if len(at) == 1 else f"of {_number(region.crossings[0])}, {span}")
            case several:
                told.append(f"{several} of them not told from one another, {span}")
    return f"{found}; {'; '.join(told)} ({level})"


def _span(region: Region) -> str:
    low, high = _number(region.low), _number(region.high)
    beyond = " or below" if region.open_below else ""
    return f"from {low}{beyond} to {high}{' or beyond' if region.open_above else ''}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _number(size: float) -> str:
    """Three digits of a size that is no whole number, all of one that is."""
    return f"{size if size.is_integer() else float(f'{size:.3g}'):,.12g}"
