"""The verdict of a study: each arm against its reference, paired by seed, at equal budgets and equal tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from gfe_study import names
from gfe_study.analysis.diagnostics import Diagnostic, diagnose
from gfe_study.analysis.stats import Interval, Paired, holm, mean_interval, paired
from gfe_study.config import Range

ARM, NUMBER, FINGERPRINT = "arm", "number", "fingerprint"


@dataclass(frozen=True)
class Row:
    """One arm of the verdict.

    Attributes:
        configuration: number of the best configuration tried, which represents the arm.
        seeds: seeds with a usable result.
        images: images seen at the point of comparison; None if the seeds ended at different numbers.
        value: mean of the metric over the seeds.
        seconds, nfe: mean training seconds, and mean decoder evaluations and pullbacks, per seed.
        reference: the arm that this one is compared with; None for a reference itself.
        paired: result of the comparison, paired by seed; None if there is none.
        p_holm: p-value, adjusted by Holm's method over the study's comparisons.
        seconds_ratio, nfe_ratio: `seconds` and `nfe` over the shared seeds, divided by the reference's.
        lost: number of seeds that failed or diverged.
        cut: whether the arms are compared before the end of one of them, because their budgets differ.
        alone: why the arm has no comparison although it is not a reference.
        text: the verdict in words.
    """

    arm: str
    configuration: int
    seeds: list[int]
    images: int | None
    value: Interval
    seconds: float
    nfe: float
    reference: str | None = None
    paired: Paired | None = None
    p_holm: float | None = None
    seconds_ratio: float | None = None
    nfe_ratio: float | None = None
    lost: int = 0
    cut: bool = False
    alone: str = ""
    text: str = ""

    def as_dict(self) -> dict[str, Any]:
        compared = vars(self.paired) if self.paired is not None else None
        return {**vars(self), "value": vars(self.value), "paired": compared}


@dataclass(frozen=True)
class Verdict:
    """The comparison of a study's arms.

    Attributes:
        warnings: what was cut or skipped to make the arms comparable, and what limits the comparison.
    """

    metric: str
    margin: float | None
    confidence: float
    rows: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "rows": [row.as_dict() for row in self.rows]}


def judge(
    trials: pd.DataFrame,
    curves: pd.DataFrame,
    references: Mapping[str, str | None],
    *,
    metric: str,
    select: str,
    mode: Literal["min", "max"] = "min",
    margin: float | None = None,
    confidence: float = 0.95,
    equal: str = names.IMAGES_SEEN,
    budgets: Mapping[str, float] | None = None,
    as_declared: bool = False,
    alone: Mapping[str, str] | None = None,
) -> Verdict:
    """Compare every arm with its reference.

    Each arm is represented by its best configuration: the one with the fewest lost seeds; ties are broken by the mean
    of `select` over the remaining seeds. If the arms finished unequal numbers of configurations, only the first n of
    each are considered, n being the smallest number. If the arms have unequal budgets, they are compared where the
    smaller budget ends. Both cases are reported as warnings.

    Args:
        trials: one row per finished or failed trial: `arm`, `number`, `seed`, `fingerprint`, `diverged`, `failed`,
            and metrics.
        curves: one row per (fingerprint, images seen), with metrics.
        references: arm -> the arm that it is compared with, or None; the result keeps this order.
        metric: the metric to compare; lower is better.
        select: the metric that chooses the configuration of each arm.
        mode: whether lower or higher values of `select` are better.
        equal: unit of the budgets: `images_seen`, `train_seconds`, or `nfe_forward` for decoder evaluations.
        budgets: arm -> budget in that unit; taken from the trials if not given.
        as_declared: compare arms of unequal budgets each at its own end, and add a warning.
        alone: arm -> why it has no comparison.
    """
    verdict = Verdict(metric, margin, confidence)
    there = trials[trials[ARM].isin(references)] if len(trials) else trials
    if not len(there) or metric not in there.columns:
        verdict.warnings.append(f"no finished trial reports {metric}; nothing can be compared")
        return verdict
    there = _equally_tuned(there, verdict.warnings)
    chosen = {
        str(arm): best_configuration(group, select, mode).set_index("seed")
        for arm, group in there.groupby(ARM, sort=False)
    }
    causes: dict[str, list[str]] = {}
    given = budgets or {arm: float(rows.loc[_usable(rows, metric), equal].max()) for arm, rows in chosen.items()}
    rows = []
    for arm, reference in references.items():
        if arm not in chosen:
            causes.setdefault("arm {arms} has no complete configuration; it is not compared", []).append(arm)
            continue
        beside = reference if reference in chosen else None
        limit = _limit(arm, beside, given, equal, causes, as_declared=as_declared)
        rows.append(_row(arm, beside, chosen, curves, equal, limit, verdict, causes, (alone or {}).get(arm, "")))
    verdict.warnings.extend(cause.replace("{arms}", ", ".join(map(repr, arms))) for cause, arms in causes.items())
    compared = [row for row in rows if row.paired is not None and row.paired.p_value is not None]
    adjusted = holm([float(row.paired.p_value) for row in compared if row.paired and row.paired.p_value is not None])
    by_arm = dict(zip([row.arm for row in compared], adjusted, strict=True))
    for row in rows:
        verdict.rows.append(_with_words(row, by_arm.get(row.arm), len(compared), verdict))
    return verdict


def _usable(rows: pd.DataFrame, metric: str) -> pd.Series[bool]:
    return ~rows["diverged"] & ~rows["failed"] & rows[metric].notna()


def _equally_tuned(trials: pd.DataFrame, warnings: list[str]) -> pd.DataFrame:
    tried = {arm: sorted(group[NUMBER].unique()) for arm, group in trials.groupby(ARM, sort=False)}
    fewest = min(len(numbers) for numbers in tried.values())
    if all(len(numbers) == fewest for numbers in tried.values()):
        return trials
    counts = ", ".join(f"{arm!s} {len(numbers)}" for arm, numbers in tried.items())
    warnings.append(
        f"unequal numbers of tuning trials ({counts}): only the first {fewest} of each are compared, because more "
        "trials alone give a better best result"
    )
    kept = {(arm, number) for arm, numbers in tried.items() for number in numbers[:fewest]}
    return trials[[pair in kept for pair in zip(trials[ARM], trials[NUMBER], strict=True)]]


def best_configuration(group: pd.DataFrame, select: str, mode: str) -> pd.DataFrame:
    """Return the rows of an arm's best configuration: fewest lost seeds, then best mean of `select` over the rest."""
    usable = _usable(group, select)
    lost = (~usable).groupby(group[NUMBER]).sum()
    sign = 1 if mode == "min" else -1
    means = (sign * group[select].where(usable)).groupby(group[NUMBER]).mean()
    ranks = pd.DataFrame({"lost": lost, "mean": means}).sort_values(["lost", "mean"], kind="stable")
    return group[group[NUMBER] == ranks.index[0]].sort_values("seed")


def _limit(
    arm: str,
    reference: str | None,
    budgets: Mapping[str, float],
    equal: str,
    causes: dict[str, list[str]],
    *,
    as_declared: bool,
) -> float | None:
    """Return the smaller of two unequal budgets; None if they are equal or declared to differ."""
    if reference is None:
        return None
    mine, other = budgets[arm], budgets[reference]
    if mine == other or math.isnan(mine) or math.isnan(other):
        return None
    unit = UNITS[equal]
    what = f"unequal budgets: {{arms}} had {mine:,.4g} {unit} and {reference!r} {other:,.4g}"
    if as_declared:
        causes.setdefault(f"{what}, as the study declares; each is compared at its own end", []).append(arm)
        return None
    causes.setdefault(f"{what}; compared at the last point of both within {min(mine, other):,.4g}", []).append(arm)
    return min(mine, other)


UNITS = {
    names.IMAGES_SEEN: "images",
    names.TRAIN_SECONDS: "seconds of training",
    names.NFE_FORWARD: "decoder evaluations",
}
OVERSHOOT = 1.05
"""A trial with a budget in seconds or evaluations stops after the batch that reaches it, so it exceeds the budget."""


def _row(
    arm: str,
    reference: str | None,
    chosen: Mapping[str, pd.DataFrame],
    curves: pd.DataFrame,
    equal: str,
    limit: float | None,
    verdict: Verdict,
    causes: dict[str, list[str]],
    alone: str,
) -> Row:
    rows = chosen[arm]
    lost = int((~_usable(rows, verdict.metric)).sum())
    if lost:
        cause = f"arm {{arms}}: {lost} of {len(rows)} seeds failed, diverged or report no {verdict.metric}; not counted"
        causes.setdefault(cause, []).append(arm)
    own = rows[_usable(rows, verdict.metric)]
    other = chosen[reference][_usable(chosen[reference], verdict.metric)] if reference is not None else own.iloc[:0]
    if limit is not None:
        own, other = _cut(own, other, curves, equal, limit, verdict.metric)
    shared = sorted(set(own.index) & set(other.index))
    compared = None
    ratios: tuple[float | None, float | None] = (None, None)
    if reference is not None and shared:
        compared = paired(
            [float(value) for value in own.loc[shared, verdict.metric]],
            [float(value) for value in other.loc[shared, verdict.metric]],
            margin=verdict.margin,
            confidence=verdict.confidence,
        )
        ratios = (_ratio(own, other, shared, _seconds), _ratio(own, other, shared, _nfe))
        missing = sorted(set(rows.index) ^ set(chosen[reference].index))
        if missing:
            seeds = ", ".join(map(str, missing))
            cause = f"{{arms}} and {reference!r}: seeds {seeds} exist for one of them only; not counted"
            causes.setdefault(cause, []).append(arm)
    images = {int(seen) for seen in own[names.IMAGES_SEEN]} if len(own) else set()
    return Row(
        arm,
        int(rows[NUMBER].iloc[0]),
        [int(seed) for seed in own.index],
        images.pop() if len(images) == 1 else None,
        mean_interval([float(value) for value in own[verdict.metric]], verdict.confidence)
        if len(own)
        else Interval(math.nan, None, None, 0, verdict.confidence),
        float(_seconds(own).mean()) if len(own) else math.nan,
        float(_nfe(own).mean()) if len(own) else math.nan,
        reference,
        compared,
        None,
        *ratios,
        lost=lost,
        cut=limit is not None,
        alone=alone,
    )


def _cut(
    own: pd.DataFrame, other: pd.DataFrame, curves: pd.DataFrame, equal: str, limit: float, metric: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the points of two arms to compare within a limit; for images, the last point that all seeds share."""
    reached = curves[curves[metric].notna()].copy()
    spent = _nfe(reached) if equal == names.NFE_FORWARD else reached[equal]
    within = limit if equal == names.IMAGES_SEEN else limit * OVERSHOOT
    reached = reached[spent <= within]
    if equal == names.IMAGES_SEEN:
        every = [set(reached[reached[FINGERPRINT] == name][equal]) for name in (*own[FINGERPRINT], *other[FINGERPRINT])]
        common = set.intersection(*every) if every else set()
        reached = reached[reached[equal] == max(common)] if common else reached.iloc[:0]
    last = reached.sort_values(names.IMAGES_SEEN).groupby(FINGERPRINT).last()
    cut = []
    for rows in (own, other):
        seeds = {str(name): seed for seed, name in rows[FINGERPRINT].items()}
        there = last[last.index.isin(list(seeds))]
        cut.append(there.set_index(pd.Index([seeds[str(name)] for name in there.index], name="seed")).sort_index())
    return cut[0], cut[1]


def _seconds(rows: pd.DataFrame) -> pd.Series[float]:
    return rows[names.TRAIN_SECONDS]


def _nfe(rows: pd.DataFrame) -> pd.Series[float]:
    return (rows[names.NFE_FORWARD] + rows[names.NFE_BACKWARD]) * rows[names.IMAGES_SEEN]


def _ratio(rows: pd.DataFrame, other: pd.DataFrame, seeds: Sequence[int], of: Any) -> float | None:
    below = float(of(other.loc[list(seeds)]).mean())
    return float(of(rows.loc[list(seeds)]).mean()) / below if below > 0 else None


def _with_words(row: Row, p_holm: float | None, family: int, verdict: Verdict) -> Row:
    return Row(**{**vars(row), "p_holm": p_holm, "text": _words(row, p_holm, family, verdict)})


def _words(row: Row, p_holm: float | None, family: int, verdict: Verdict) -> str:
    where = f" at {row.images:,} images" if row.cut and row.images is not None else " within the smaller budget"
    lost = f"; {row.lost} seeds lost" if row.lost else ""
    return f"{_found(row, p_holm, family, verdict)}{where if row.cut and row.paired is not None else ''}{lost}"


def _found(row: Row, p_holm: float | None, family: int, verdict: Verdict) -> str:
    compared = row.paired
    if compared is None:
        if row.alone:
            return row.alone
        if row.reference is not None:
            return (
                f"not comparable with {row.reference}: no seed of both has finished, or has a point within the budget"
            )
        return (
            "no interval: one seed" if row.value.count == 1 else "reference" if row.value.count else "no seed finished"
        )
    match compared.verdict:
        case "one seed":
            return "no interval: one seed"
        case "equivalent":
            return f"equivalent to {row.reference} within {verdict.margin:g}"
        case "better" | "worse" as found:
            doubt = ""
            if family > 1 and p_holm is not None and p_holm > 1 - verdict.confidence:
                doubt = f" (but p {p_holm:.2g} over {family} comparisons, Holm)"
            return f"{found} than {row.reference}{doubt}"
        case _:
            needed = compared.seeds_to_decide
            return f"undecided: {f'about {needed} seeds' if needed else 'more than 10,000 seeds'} would decide"


def diagnostics(
    trials: pd.DataFrame,
    compared: pd.DataFrame,
    ranges: Mapping[str, Mapping[str, Range]],
    mode: Literal["min", "max"],
) -> list[Diagnostic]:
    """Return signs of a bad sweep; see `analysis.diagnostics`.

    Args:
        trials: one row per trial of the search with an outcome, as for `diagnose`.
        compared: the same for the stage whose arms are compared, which may be a later one with seeds of its own.
        ranges: arm -> the searched keys that apply to it, and their ranges.
    """
    found = []
    for arm, searched in ranges.items():
        own = trials[trials[ARM] == arm]
        if searched and len(own):
            found += diagnose(own, searched, mode, arms_compared=False)
    if len(ranges) > 1 and len(compared):
        whole = diagnose(compared, {}, mode, arms_compared=True)
        known = {(each.kind, each.arm) for each in found}
        found += [each for each in whole if (each.kind, each.arm) not in known and each.kind != "flat"]
    elif not any(ranges.values()) and len(trials):
        found += [each for each in diagnose(trials, {}, mode, arms_compared=False) if each.kind == "diverged"]
    return found
