"""Signs of a bad sweep: a best value at the edge of its range, noise mistaken for a result, diverged trials."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from gfe_study.analysis.judge.verdict import Verdict
from gfe_study.analysis.stats.intervals import FEWEST_PAIRS, subtract
from gfe_study.config import Range
from gfe_study.metrics import Mode

Kind = Literal["boundary", "flat", "noise", "diverged", "few", "linear"]

EDGE = 0.05
"""Share of a range's width, at either end, that counts as its boundary."""
FLAT = 0.005
"""Least relative gain of the best configuration over the median one, if no repeated seeds measure the noise."""
BLOWN_UP = 0.1
"""Share of diverged and failed trials that counts as a sign."""
MOSTLY = 0.75
"""Least share of the diverged and failed trials in one place for it to count as their cause."""
CHANCE = 0.05
"""Significance level of the test that they lie there by chance, corrected for the number of places tested."""
_MIN_RANKED = 3

Seen = tuple[str, str]
"""A finding and its remedy."""


@dataclass(frozen=True)
class Diagnostic:
    """One sign of a bad sweep.

    Attributes:
        kind: which sign; see `diagnose` and `doubts`.
        arm: the arm that shows the sign; None if it concerns the whole study or there are no arms.
        finding: the observation with its figures, without the name of the arm.
        remedy: what to do about it.
    """

    kind: Kind
    arm: str | None
    finding: str
    remedy: str

    @property
    def text(self) -> str:
        return f"{self.finding}: {self.remedy}"

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "arm": self.arm, "text": self.text}


@dataclass(frozen=True)
class Note:
    """One cause as a sentence, and one line per arm if the findings differ."""

    text: str
    details: tuple[str, ...] = ()


def notes(signs: Sequence[Diagnostic]) -> list[Note]:
    """Group signs into one note per cause, with the arms that share it."""
    causes: dict[tuple[Kind, str], list[Diagnostic]] = {}
    for sign in signs:
        causes.setdefault((sign.kind, sign.remedy), []).append(sign)
    found = []
    for (_, remedy), seen in causes.items():
        arms = [sign.arm for sign in seen if sign.arm is not None]
        where = f"{_named(arms)}: " if arms else ""
        if len({sign.finding for sign in seen}) == 1:
            found.append(Note(f"{where}{seen[0].text}"))
        else:
            found.append(Note(f"{where}{remedy}", tuple(f"{sign.arm}: {sign.finding}" for sign in seen)))
    return found


def _named(arms: Sequence[str]) -> str:
    """Name arms: `arm 'amd'`, or `3 arms (amd; euler; rk4)`."""
    return f"arm {arms[0]!r}" if len(arms) == 1 else f"{len(arms)} arms ({'; '.join(arms)})"


def diagnose(trials: pd.DataFrame, ranges: Mapping[str, Range], mode: Mode = "min") -> list[Diagnostic]:
    """Return the signs within each arm that the results of a sweep are unreliable; empty if there are none.

    A trial is finished if its value is finite and it neither diverged nor failed; a configuration is finished if all
    its trials are. The best configuration of an arm is the one with the best mean among the finished configurations
    with the most seeds. The signs:

    - "boundary": a value of the best configuration lies within `EDGE` of an end of its range, on the range's own
      scale; an integer lies at the end itself.
    - "flat": the best configuration beats the median one by less than the noise of the seeds (the pooled s.d. within
      configurations) or, with one seed each, by less than `FLAT` of it.
    - "diverged": at least `BLOWN_UP` of the ended trials diverged or failed. They are attributed to half of a range,
      or to a choice, if that holds `MOSTLY` of them and is more common among them than among the finished trials
      (Mann-Whitney test for a range, Fisher's test for a choice, Bonferroni correction over the keys).
    - "few": the arm has fewer than 3 finished configurations per searched key, plus 4, unless its space is smaller.

    Args:
        trials: one row per trial; columns `arm`, `number` (of the configuration), `seed`, `value` (the final metric,
            NaN if there is none), `diverged`, `failed`, and one per searched key, NaN where it is not searched.
        ranges: the range of every searched key.
        mode: whether lower or higher values are better.
    """
    if not len(trials):
        return []
    frame = trials.assign(value=pd.to_numeric(trials["value"], errors="coerce"))
    frame["blown_up"] = frame["diverged"].astype(bool) | frame["failed"].astype(bool)
    frame["finished"] = np.isfinite(frame["value"]) & ~frame["blown_up"]
    found: list[Diagnostic] = []
    for label, arm in frame.groupby("arm", sort=False, dropna=False):
        name = str(label) if label and not pd.isna(label) else None
        searched = {key: drawn for key, drawn in ranges.items() if key in arm and arm[key].notna().any()}
        complete = arm[arm.groupby("number")["finished"].transform("all")]
        means = complete.groupby("number")["value"].agg(["mean", "size"])
        # A mean over fewer seeds is more likely to rank first by luck.
        first = means.sort_values(["size", "mean"], ascending=[False, mode == "min"]).index[:1]
        winner = complete[complete["number"].isin(first)]
        own: dict[Kind, Iterator[Seen]] = {
            "diverged": _diverged(arm, searched),
            "boundary": _boundary(winner.iloc[0], searched) if len(means) > 1 else iter(()),
            "flat": _flat(complete, mode),
            "few": _few_configurations(len(means), searched),
        }
        found += [Diagnostic(kind, name, *each) for kind, seen in own.items() for each in seen]
    return found


def doubts(verdict: Verdict) -> list[Diagnostic]:
    """Return the signs that a study is too small for its comparisons; empty if there are none.

    - "noise": nothing is decided, and the s.d. of the differences paired by seed, pooled over the comparisons, exceeds
      the largest difference of two arms' means.
    - "few": a comparison has fewer than `FEWEST_PAIRS` paired seeds.
    """
    signs: dict[Kind, Iterator[Seen]] = {"noise": _noise(verdict), "few": _few_seeds(verdict)}
    return [Diagnostic(kind, None, *each) for kind, seen in signs.items() for each in seen]


def linear_is_enough(verdict: Verdict, linear: Collection[str]) -> list[Diagnostic]:
    """Return the sign "linear": of the linear arms, those that nothing that was compared with them is better than."""
    found = []
    for arm in linear:
        words = [row.verdict for row in verdict.rows if row.reference == arm]
        if words and set(words) <= {"worse", "equivalent"}:
            found.append(Diagnostic("linear", arm, "no other method is better", "PCA is enough for this data"))
    return found


def _position(drawn: Range, value: float) -> float:
    """Return the position of a number in its range, on the range's own scale: 0 at the low end, 1 at the high end."""
    low, high = (float(end) for end in drawn.values)
    value = min(max(value, low), high)
    if drawn.kind in ("loguniform", "logint"):
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def _described(key: str, drawn: Range) -> str:
    return f"{key} ({drawn.kind} {drawn.values[0]:g} to {drawn.values[-1]:g})"


def _boundary(best: pd.Series[Any], searched: Mapping[str, Range]) -> Iterator[Seen]:
    for key, drawn in searched.items():
        value = pd.to_numeric(best[key], errors="coerce") if drawn.kind != "choice" else math.nan
        if math.isnan(value):
            continue
        position = _position(drawn, float(value))
        edge = 0.0 if drawn.kind in ("int", "logint") else EDGE
        if edge < position < 1 - edge:
            continue
        side, beyond = ("lower", "downwards") if position <= edge else ("upper", "upwards")
        at = f"within {EDGE:.0%} of" if edge else "at"
        yield f"the best {_described(key, drawn)} is {value:.4g}, {at} the {side} end", f"widen the range {beyond}"


def _flat(complete: pd.DataFrame, mode: Mode) -> Iterator[Seen]:
    configurations = complete.groupby("number")["value"]
    means = configurations.mean()
    if len(means) < _MIN_RANKED:
        return
    best, median = float(means.min() if mode == "min" else means.max()), float(means.median())
    spread = abs(float(subtract(best, median)))
    repeats = len(complete) - len(means)
    if repeats:
        noise = math.sqrt(float(((complete["value"] - configurations.transform("mean")) ** 2).sum()) / repeats)
        against = f"less than the {noise:.3g} (s.d.) that the seed alone causes"
        remedy = "keep the default, or search other keys, wider ranges or longer budgets"
    else:
        noise = FLAT * abs(median)
        against = f"less than {FLAT:.1%} of it"
        remedy = "repeat the best over several seeds before trusting it, or search other keys or wider ranges"
    if spread < noise or spread == 0:
        yield f"the search found nothing: best {best:.5g}, median {median:.5g}, {spread:.3g} apart, {against}", remedy


def _diverged(arm: pd.DataFrame, searched: Mapping[str, Range]) -> Iterator[Seen]:
    ended = arm[arm["finished"] | arm["blown_up"]]
    bad = ended[ended["blown_up"]]
    if not len(bad) or len(bad) < BLOWN_UP * len(ended):
        return
    diverged = int(bad["diverged"].astype(bool).sum())
    kinds = {"diverged": diverged, "failed": len(bad) - diverged}
    counts = " and ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    where, remedy = _where(ended, searched) or ("", "read their messages, then narrow the ranges or fix the cause")
    yield f"of {len(ended)} trials {counts} ({len(bad) / len(ended):.0%}){where}", remedy


def _where(ended: pd.DataFrame, searched: Mapping[str, Range]) -> tuple[str, str] | None:
    """Return the half of a range, or the choice, that most blown-up trials share, and a remedy."""
    bad = ended["blown_up"]
    places = []
    for key, drawn in searched.items():
        for inside, p_value, place, remedy in _places(ended[key], bad, key, drawn):
            share = inside[bad].mean()
            if share >= MOSTLY and share > inside[~bad].mean() and p_value * len(searched) <= CHANCE:
                count, others = int(inside[bad].sum()), int(inside[~bad].sum())
                text = f", {count} of them, and {others} of the other {int((~bad).sum())}, {place}"
                places.append((p_value, text, remedy))
    return min(places)[1:] if places else None


def _places(
    values: pd.Series[Any], bad: pd.Series[bool], key: str, drawn: Range
) -> Iterator[tuple[pd.Series[bool], float, str, str]]:
    """Yield per place: which trials lie in it, the p-value that bad ones do so by chance, its name, and a remedy."""
    if drawn.kind == "choice":
        for value in drawn.values:
            inside = values.map(lambda given, value=value: bool(given == value))
            table = [[int((inside & bad).sum()), int((~inside & bad).sum())]]
            table += [[int((inside & ~bad).sum()), int((~inside & ~bad).sum())]]
            p_value = len(drawn.values) * float(stats.fisher_exact(table, "greater").pvalue)
            yield inside, p_value, f"with {key} = {value}", f"exclude {value}, or search it separately"
        return
    numbers = pd.to_numeric(values, errors="coerce")
    positions = numbers.map(lambda value: _position(drawn, value), na_action="ignore").astype(float)
    blown_up, finished = positions[bad].dropna(), positions[~bad].dropna()
    if not len(blown_up) or not len(finished):
        return
    p_value = float(stats.mannwhitneyu(blown_up, finished).pvalue)
    yield positions < 0.5, p_value, f"in the lower half of {_described(key, drawn)}", "raise its lower end"
    yield positions >= 0.5, p_value, f"in the upper half of {_described(key, drawn)}", "lower its upper end"


def _few_configurations(finished: int, searched: Mapping[str, Range]) -> Iterator[Seen]:
    if not searched:
        return
    needed = min(3 * len(searched) + 4, math.prod(_size(drawn) for drawn in searched.values()))
    if finished < needed:
        keys = "1 searched key" if len(searched) == 1 else f"{len(searched)} searched keys"
        configurations = "1 finished configuration" if finished == 1 else f"{finished} finished configurations"
        yield f"{configurations} for {keys}", f"run at least {needed:g}, or search fewer keys"


def _size(drawn: Range) -> float:
    """Return the number of values that a key can take."""
    match drawn.kind:
        case "choice":
            return len(drawn.values)
        case "int" | "logint":
            return float(drawn.values[1] - drawn.values[0] + 1)
        case _:
            return math.inf


def _noise(verdict: Verdict) -> Iterator[Seen]:
    rows = [row for row in verdict.rows if row.verdict is not None]
    pairs = [(row.paired, row) for row in rows if row.paired is not None and row.paired.sd is not None]
    if not pairs or any(row.verdict != "undecided" for row in rows):
        return
    squares = sum((found.count - 1) * float(found.sd or 0.0) ** 2 for found, _ in pairs)
    noise = math.sqrt(squares / sum(found.count - 1 for found, _ in pairs))
    largest, row = max(((abs(found.difference), row) for found, row in pairs), key=lambda pair: pair[0])
    if noise > largest:
        yield (
            f"the seed changes the difference of two arms by {noise:.3g} (s.d.), more than the largest difference of "
            f"their means, {largest:.3g} ({row.arm} and {row.reference})",
            "read the intervals, not the order",
        )


def _few_seeds(verdict: Verdict) -> Iterator[Seen]:
    pairs = {row.arm: row.paired.count if row.paired else 0 for row in verdict.rows if row.verdict is not None}
    short = [f"{arm} {count}" for arm, count in pairs.items() if count < FEWEST_PAIRS]
    if short:
        shown = f"{', '.join(short[:4])}{', …' if len(short) > 4 else ''}"
        yield (
            f"fewer than {FEWEST_PAIRS} paired seeds in {len(short)} of {len(pairs)} comparisons ({shown})",
            f"run at least {FEWEST_PAIRS}; fewer decide nothing",
        )
