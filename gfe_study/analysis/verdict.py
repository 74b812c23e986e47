"""What a study's arms come to: each against its reference, paired by seed, at equal budgets and equal tuning."""

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
        configuration: number of the configuration that stands for the arm, the best of those tried.
        seeds: seeds that count.
        images: images seen at which it is compared; None where seeds ended at different numbers.
        value: mean of the metric over the seeds.
        reference: the arm it is compared with, and `paired` how; None for a reference itself.
        p_holm: Holm's p over the study's comparisons.
        seconds_ratio, nfe_ratio: training seconds and decoder evaluations per seed, over the reference's.
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
    text: str = ""

    def as_dict(self) -> dict[str, Any]:
        compared = vars(self.paired) if self.paired is not None else None
        return {**vars(self), "value": vars(self.value), "paired": compared}


@dataclass(frozen=True)
class Verdict:
    """The comparison of a study's arms.

    Attributes:
        warnings: what was cut or left out to make the arms comparable, and what makes them hard to compare.
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
) -> Verdict:
    """Compare every arm with its reference.

    An arm is stood for by its best configuration, by the mean of `select` over its seeds. Arms of which unequal
    numbers of configurations are finished are cut to the first so many of each; with a budget told in images,
    arms that ended at different numbers are compared where the shorter one ended. Both is said.

    Args:
        trials: one row per trial that is over: `arm`, `number`, `seed`, `fingerprint`, `diverged`, and metrics.
        curves: one row per (fingerprint, images seen), with metrics.
        references: arm -> the arm that it is compared with, or None; in the order of the result.
        metric: what is compared; the smaller the better.
        select: the metric by which a configuration was chosen, of which `mode` is the better end.
        equal: the metric that the budget holds equal.
    """
    verdict = Verdict(metric, margin, confidence)
    there = trials[trials[ARM].isin(references)]
    if metric not in there.columns or not len(there):
        verdict.warnings.append(f"no finished trial reports {metric}; nothing can be compared")
        return verdict
    there = _equally_tuned(there, verdict.warnings)
    chosen = {arm: _best(group, select, mode) for arm, group in there.groupby(ARM, sort=False)}
    ends = {arm: rows[names.IMAGES_SEEN] for arm, rows in chosen.items()}
    rows = []
    for arm, reference in references.items():
        if arm not in chosen:
            verdict.warnings.append(f"arm {arm!r} has no complete configuration; it is left out")
            continue
        images = _common_images(arm, reference, ends, equal, verdict.warnings)
        rows.append(_row(arm, reference if reference in chosen else None, chosen, curves, images, verdict))
    compared = [row for row in rows if row.paired is not None and row.paired.p_value is not None]
    adjusted = holm([float(row.paired.p_value) for row in compared if row.paired and row.paired.p_value is not None])
    by_arm = dict(zip([row.arm for row in compared], adjusted, strict=True))
    for row in rows:
        verdict.rows.append(_with_words(row, by_arm.get(row.arm), len(compared), verdict))
    return verdict


def _equally_tuned(trials: pd.DataFrame, warnings: list[str]) -> pd.DataFrame:
    tried = {arm: sorted(group[NUMBER].unique()) for arm, group in trials.groupby(ARM, sort=False)}
    fewest = min(len(numbers) for numbers in tried.values())
    if all(len(numbers) == fewest for numbers in tried.values()):
        return trials
    told = ", ".join(f"{arm!s} {len(numbers)}" for arm, numbers in tried.items())
    warnings.append(
        f"unequal numbers of tuning trials ({told}): compared by the first {fewest} of each, since more trials "
        "alone make a better best"
    )
    kept = {(arm, number) for arm, numbers in tried.items() for number in numbers[:fewest]}
    return trials[[pair in kept for pair in zip(trials[ARM], trials[NUMBER], strict=True)]]


def _best(group: pd.DataFrame, select: str, mode: str) -> pd.DataFrame:
    """Rows of the best configuration of an arm, by the mean over its seeds; a divergence is the worst there is."""
    worst = math.inf if mode == "min" else -math.inf
    judged = group[select].where(~group["diverged"], worst)
    means = judged.groupby(group[NUMBER]).mean()
    number = means.idxmin() if mode == "min" else means.idxmax()
    return group[group[NUMBER] == number].sort_values("seed")


def _common_images(
    arm: str, reference: str | None, ends: Mapping[Any, pd.Series[Any]], equal: str, warnings: list[str]
) -> int | None:
    own = ends[arm]
    if reference is None or reference not in ends or equal != names.IMAGES_SEEN:
        return int(own.iloc[0]) if own.nunique() == 1 else None
    mine, other = int(own.max()), int(ends[reference].max())
    if mine != other:
        warnings.append(
            f"unequal budgets: {arm!r} saw {mine:,} images and {reference!r} {other:,}; compared at the last point "
            f"that both have, at most {min(mine, other):,}"
        )
    return min(mine, other)


def _row(
    arm: str,
    reference: str | None,
    chosen: Mapping[Any, pd.DataFrame],
    curves: pd.DataFrame,
    images: int | None,
    verdict: Verdict,
) -> Row:
    rows = chosen[arm].set_index("seed")
    values = _values(rows, verdict.metric)
    unusable = sorted(set(rows.index) - set(values))
    if unusable:
        verdict.warnings.append(
            f"arm {arm!r}: {len(unusable)} of {len(rows)} seeds diverged or report no {verdict.metric}; left out"
        )
    other = _values(chosen[reference].set_index("seed"), verdict.metric) if reference is not None else {}
    shared = sorted(set(values) & set(other))
    if reference is not None and images is not None:
        common = _point_of_both(chosen[arm], chosen[reference], curves, images, verdict.metric)
        if common is not None:
            images, values, other = common
            shared = sorted(set(values) & set(other))
    compared = None
    ratios: tuple[float | None, float | None] = (None, None)
    if reference is not None and shared:
        compared = paired(
            [values[seed] for seed in shared],
            [other[seed] for seed in shared],
            margin=verdict.margin,
            confidence=verdict.confidence,
        )
        beside = chosen[reference].set_index("seed")
        ratios = (_ratio(rows, beside, shared, _seconds), _ratio(rows, beside, shared, _nfe))
        missing = sorted(set(rows.index) ^ set(beside.index))
        if missing:
            told = ", ".join(map(str, missing))
            verdict.warnings.append(f"{arm!r} and {reference!r}: seeds {told} are there on one side only; left out")
    finite = list(values.values()) or [math.nan]
    return Row(
        arm,
        int(rows[NUMBER].iloc[0]),
        sorted(values),
        images,
        mean_interval(finite, verdict.confidence) if values else Interval(math.nan, None, None, 0, verdict.confidence),
        float(_seconds(rows).mean()),
        float(_nfe(rows).mean()),
        reference,
        compared,
        None,
        *ratios,
    )


def _values(rows: pd.DataFrame, metric: str) -> dict[int, float]:
    usable = rows[~rows["diverged"] & rows[metric].notna()]
    return dict(zip(map(int, usable.index), map(float, usable[metric]), strict=True))


def _point_of_both(
    arm: pd.DataFrame, reference: pd.DataFrame, curves: pd.DataFrame, images: int, metric: str
) -> tuple[int, dict[int, float], dict[int, float]] | None:
    """The last images seen, up to `images`, at which all seeds of both were evaluated, and the values there."""
    both = [_curves_of(rows, curves, metric) for rows in (arm, reference)]
    points = [set.intersection(*(set(curve) for curve in side.values())) for side in both if side]
    if len(points) < 2:
        return None
    common = [point for point in set.intersection(*points) if point <= images]
    if not common:
        return None
    at = max(common)
    mine, other = ({seed: curve[at] for seed, curve in side.items()} for side in both)
    return int(at), mine, other


def _curves_of(rows: pd.DataFrame, curves: pd.DataFrame, metric: str) -> dict[int, dict[float, float]]:
    usable = rows[~rows["diverged"]]
    seeds = dict(zip(usable[FINGERPRINT], usable["seed"], strict=True))
    there = curves[curves[FINGERPRINT].isin(list(seeds)) & curves[metric].notna()]
    return {
        int(seeds[name]): dict(zip(curve[names.IMAGES_SEEN], curve[metric], strict=True))
        for name, curve in there.groupby(FINGERPRINT)
    }


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
    compared = row.paired
    if compared is None:
        if row.value.count == 1:
            return "no interval: one seed"
        return "reference" if row.reference is None else f"not comparable with {row.reference!r}"
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
    trials: pd.DataFrame, ranges: Mapping[str, Mapping[str, Range]], mode: Literal["min", "max"]
) -> list[Diagnostic]:
    """Signs that a sweep was bad; see `analysis.diagnostics`.

    Args:
        trials: one row per trial with an outcome, as for `diagnose`.
        ranges: arm -> the searched keys that apply in it, and what they were drawn from.
    """
    found = []
    for arm, searched in ranges.items():
        own = trials[trials[ARM] == arm]
        if searched and len(own):
            found += diagnose(own, searched, mode, arms_compared=False)
    if len(ranges) > 1 and len(trials):
        whole = diagnose(trials, {}, mode, arms_compared=True)
        known = {(each.kind, each.arm) for each in found}
        found += [each for each in whole if (each.kind, each.arm) not in known and each.kind != "flat"]
    elif not any(ranges.values()) and len(trials):
        found += [each for each in diagnose(trials, {}, mode, arms_compared=False) if each.kind == "diverged"]
    return found
