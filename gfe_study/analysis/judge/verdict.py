"""The verdict of a study: each arm against its reference, paired by seed, at equal budgets and equal tuning."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any, Literal

import pandas as pd

from gfe_study import names
from gfe_study.analysis.judge.verdict_table import verdict_table
from gfe_study.analysis.stats.intervals import (
    FEWEST_PAIRS,
    MOST_SEEDS,
    Interval,
    Paired,
    holm,
    mean_interval,
    paired,
    seeds_to_decide,
    tied,
)
from gfe_study.analysis.store.tidy import until_result
from gfe_study.metrics import (
    IMAGES_SEEN,
    NFE,
    PASSES,
    PIXELS,
    TRAIN_SECONDS,
    Better,
    Values,
    info_of,
    unit_of,
)

WIDTH = 120
"""Columns of the terminal that a printed verdict may fill."""
ARM, NUMBER, FINGERPRINT = "arm", "number", "fingerprint"

Word = Literal["better", "worse", "equivalent", "undecided"]

CONDITIONS = {
    names.DEVICE: ("device", "on {}"),
    names.THREADS: ("number of threads", "with a thread count of {}"),
    names.SIDE_BY_SIDE: ("number of trials side by side", "{} at a time"),
}
"""What seconds depend on besides the arm: a tag of a trial, its name, and how trials ran."""


@dataclass(frozen=True)
class Row:
    """One arm of the verdict.

    Attributes:
        configuration: number of the best configuration tried, which represents the arm.
        seeds: seeds with a usable result.
        images: images seen at the point of comparison; None if the seeds ended at different numbers.
        value: mean of the metric over the seeds.
        seconds, nfe: mean training seconds, and mean passes through decoder and encoder, per seed.
        reference: the arm that this one is compared with; None for a reference itself.
        paired: result of the comparison, paired by seed; None if there is none.
        p_holm: p-value, adjusted by Holm's method over the study's comparisons.
        seconds_ratio, nfe_ratio: `seconds` and `nfe` over the shared seeds, divided by the reference's; no ratio of
            seconds if these trials ran under unequal or unknown `CONDITIONS`.
        ended: number of seeds that ended, with or without a result.
        lost: number of those that failed, diverged or lack the metric.
        cut: whether the arms are compared before the end of one of them, because their budgets differ.
        alone: why the arm has no comparison although it is not a reference.
        verdict: see `judge`; None without a reference.
        seeds_to_decide: pairs that would decide an undecided comparison; None if there is no such number.
        text: the verdict in words, and why it is undecided.
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
    ended: int = 0
    lost: int = 0
    cut: bool = False
    alone: str = ""
    verdict: Word | None = None
    seeds_to_decide: int | None = None
    text: str = ""

    def as_dict(self) -> dict[str, Any]:
        compared = vars(self.paired) if self.paired is not None else None
        return {**vars(self), "value": vars(self.value), "paired": compared}


@dataclass(frozen=True)
class Verdict:
    """The comparison of a study's arms.

    Attributes:
        better: whether lower or higher values of the metric are better.
        values: what the values of the data are called, for the unit.
        stopped_by_validation: whether trials have a `budget.patience`: their results are those of their points with the
            lowest validation loss, costs up to there included.
        warnings: what was cut or skipped to make the arms comparable, and what limits the comparison.
    """

    metric: str
    margin: float | None
    confidence: float
    rows: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    better: Better = "lower"
    values: Values = PIXELS
    stopped_by_validation: bool = False

    @property
    def taken(self) -> str:
        """How captions say at which point of a trial its results were taken; empty at the end of its budget."""
        return ", each trial at its lowest validation loss" if self.stopped_by_validation else ""

    def as_dict(self) -> dict[str, Any]:
        unit = unit_of(self.metric, self.values)
        about = {"metric": self.metric, "unit": unit, "better": self.better, "margin": self.margin}
        rows = [row.as_dict() for row in self.rows]
        about |= {"confidence": self.confidence, "stopped_by_validation": self.stopped_by_validation}
        return {**about, "rows": rows, "warnings": self.warnings}

    def __str__(self) -> str:
        lines = [line.plain for line in verdict_table(self).lines(WIDTH)]
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])

    def _repr_html_(self) -> str:
        warnings = "".join(f"<p>warning: {escape(text)}</p>" for text in self.warnings)
        return f"{verdict_table(self).html()}{warnings}"


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
    equal: str = IMAGES_SEEN,
    budgets: Mapping[str, float] | None = None,
    as_declared: bool = False,
    alone: Mapping[str, str] | None = None,
    values: Values = PIXELS,
    stopped_by_validation: bool = False,
    fixed: Collection[str] = (),
) -> Verdict:
    """Compare every arm with its reference.

    Each arm is represented by its best configuration: the one with the fewest lost seeds; ties are broken by the mean
    of `select` over the remaining seeds. If the arms finished unequal numbers of configurations, only the first n of
    each are considered, n being the smallest number. If the arms have unequal budgets, they are compared where the
    smaller budget ends. Both cases are reported as warnings.

    The verdict of a comparison:

    - "equivalent": the interval of the difference lies inside (-margin, margin), even where it leaves out 0. This is
      two one-sided tests at half of 1 - `confidence` each (Schuirmann 1987), half their customary level;
    - "better", "worse": the p-value of the paired t-test, adjusted by Holm's method, is at most 1 - `confidence`;
    - "undecided": neither; or fewer than `FEWEST_PAIRS` pairs; or a share of the arm's seeds is lost that is larger
      than that of its reference. Nothing but "better" can be said of an arm whose reference lost the larger share.

    `Row.seeds_to_decide` takes the observed mean and s.d. of the differences for the true ones. It inherits the
    uncertainty of both, so it is a planning figure, not a guarantee.

    Args:
        trials: one row per finished or failed trial: `arm`, `number`, `seed`, `fingerprint`, `diverged`, `failed`,
            `CONDITIONS` as text ("" if unknown), and metrics.
        curves: one row per (fingerprint, images seen), with metrics.
        references: arm -> the arm that it is compared with, or None; the result keeps this order.
        metric: the metric to compare; `metrics` knows whether lower or higher values are better.
        select: the metric that chooses the configuration of each arm.
        mode: whether lower or higher values of `select` are better.
        equal: unit of the budgets: `images_seen`, `train_seconds`, or `nfe` for passes.
        budgets: arm -> budget in that unit; taken from the trials if not given.
        as_declared: compare arms of unequal budgets each at its own end, and add a warning.
        alone: arm -> why it has no comparison.
        values: what the values of the data are called.
        stopped_by_validation: as of `Verdict`.
        fixed: arms with nothing to tune, whose one configuration stands beside any number of others.
    """
    better = info_of(metric).better or "lower"
    verdict = Verdict(
        metric, margin, confidence, better=better, values=values, stopped_by_validation=stopped_by_validation
    )
    there = trials[trials[ARM].isin(references)] if len(trials) else trials
    if not len(there) or metric not in there.columns:
        verdict.warnings.append(f"no finished trial reports {metric}; nothing can be compared")
        return verdict
    there = _equally_tuned(there, fixed, verdict.warnings)
    chosen = {
        str(arm): best_configuration(group, select, mode).set_index("seed")
        for arm, group in there.groupby(ARM, sort=False)
    }
    causes: dict[str, list[str]] = {}
    given = budgets or {arm: float(rows.loc[usable(rows, metric), equal].max()) for arm, rows in chosen.items()}
    apart = alone or {}
    rows = {}
    for arm, reference in references.items():
        if arm not in chosen:
            causes.setdefault("arm {arms} has no complete configuration; it is not compared", []).append(arm)
            continue
        beside = reference if reference in chosen else None
        missing = f"not compared: {reference} has no complete configuration" if beside != reference else ""
        limit = _limit(arm, beside, given, equal, causes, as_declared=as_declared)
        rows[arm] = _row(arm, beside, chosen, curves, equal, limit, verdict, causes, missing or apart.get(arm, ""))
    verdict.warnings.extend(_named(cause, arms) for cause, arms in causes.items())
    tested = {arm: row.paired.p_value for arm, row in rows.items() if row.paired and row.paired.p_value is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    for arm, row in rows.items():
        beside_it = rows[row.reference] if row.reference is not None else None
        verdict.rows.append(_judged(replace(row, p_holm=adjusted.get(arm)), beside_it, len(tested), verdict))
    return verdict


def _named(cause: str, arms: Sequence[str]) -> str:
    return cause.replace("{they}", "it" if len(arms) == 1 else "they").replace("{arms}", ", ".join(map(repr, arms)))


def usable(rows: pd.DataFrame, metric: str) -> pd.Series[bool]:
    return ~rows["diverged"] & ~rows["failed"] & rows[metric].notna()


def _equally_tuned(trials: pd.DataFrame, fixed: Collection[str], warnings: list[str]) -> pd.DataFrame:
    tried = {arm: sorted(group[NUMBER].unique()) for arm, group in trials.groupby(ARM, sort=False) if arm not in fixed}
    fewest = min((len(numbers) for numbers in tried.values()), default=1)
    if all(len(numbers) == fewest for numbers in tried.values()):
        return trials
    counts = ", ".join(f"{arm!s} {len(numbers)}" for arm, numbers in tried.items())
    warnings.append(
        f"unequal numbers of tuning trials ({counts}): only the first {fewest} of each are compared, because more "
        "trials alone give a better best result"
    )
    kept = {(arm, number) for arm, numbers in tried.items() for number in numbers[:fewest]}
    there = [arm in fixed or (arm, number) in kept for arm, number in zip(trials[ARM], trials[NUMBER], strict=True)]
    return trials[there]


def best_configuration(group: pd.DataFrame, select: str, mode: str) -> pd.DataFrame:
    """Return the rows of an arm's best configuration: fewest lost seeds, then best mean of `select` over the rest."""
    sound = usable(group, select)
    lost = (~sound).groupby(group[NUMBER]).sum()
    sign = 1 if mode == "min" else -1
    means = (sign * group[select].where(sound)).groupby(group[NUMBER]).mean()
    ranks = pd.DataFrame({"lost": lost, "mean": tied(means)}).sort_values(["lost", "mean"], kind="stable")
    best: pd.DataFrame = group[group[NUMBER] == ranks.index[0]]
    return best.sort_values("seed")


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
    IMAGES_SEEN: "images",
    TRAIN_SECONDS: "seconds of training",
    NFE: "passes",
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
    lost = int((~usable(rows, verdict.metric)).sum())
    if lost:
        cause = f"arm {{arms}}: {lost} of {len(rows)} seeds failed, diverged or report no {verdict.metric}; not counted"
        causes.setdefault(cause, []).append(arm)
    own = rows[usable(rows, verdict.metric)]
    other = chosen[reference][usable(chosen[reference], verdict.metric)] if reference is not None else own.iloc[:0]
    if limit is not None:
        own, other = _cut(own, other, curves, equal, limit, verdict.metric)
    images = {int(seen) for seen in own[IMAGES_SEEN]} if len(own) else set()
    row = Row(
        arm,
        int(rows[NUMBER].iloc[0]),
        [int(seed) for seed in own.index],
        images.pop() if len(images) == 1 else None,
        mean_interval([float(value) for value in own[verdict.metric]], verdict.confidence)
        if len(own)
        else Interval(math.nan, None, None, 0, verdict.confidence),
        float(_seconds(own).mean()) if len(own) else math.nan,
        float(passes(own).mean()) if len(own) else math.nan,
        reference,
        ended=len(rows),
        lost=lost,
        cut=limit is not None,
        alone=alone,
    )
    return row if reference is None else _compared(row, own, other, chosen, reference, verdict, causes)


def _compared(
    row: Row,
    own: pd.DataFrame,
    other: pd.DataFrame,
    chosen: Mapping[str, pd.DataFrame],
    reference: str,
    verdict: Verdict,
    causes: dict[str, list[str]],
) -> Row:
    """Return the row with its comparison over the seeds that both arms have a usable result of."""
    shared = sorted(set(own.index) & set(other.index))
    if not shared:
        return row
    missing = sorted(set(chosen[row.arm].index) ^ set(chosen[reference].index))
    if missing:
        seeds = ", ".join(map(str, missing))
        cause = f"{{arms}} and {reference!r}: seeds {seeds} exist for one of them only; not counted"
        causes.setdefault(cause, []).append(row.arm)
    unlike = _unlike(chosen[row.arm].loc[shared], chosen[reference].loc[shared], reference)
    if unlike:
        causes.setdefault(f"seconds are not compared for {{arms}}: {unlike}", []).append(row.arm)
    treated, referred = ([float(value) for value in arm.loc[shared, verdict.metric]] for arm in (own, other))
    return replace(
        row,
        paired=paired(treated, referred, confidence=verdict.confidence),
        seconds_ratio=None if unlike else _ratio(own, other, shared, _seconds),
        nfe_ratio=_ratio(own, other, shared, passes),
    )


def _unlike(own: pd.DataFrame, other: pd.DataFrame, reference: str) -> str:
    """Return why the seconds of two arms do not compare; empty if all trials ran under the same conditions."""
    for tag, (what, how) in CONDITIONS.items():
        # A trial that was continued under other conditions has several values.
        mine, others = (sorted({part for text in rows[tag] for part in text.split("; ")}) for rows in (own, other))
        if "" in (*mine, *others):
            return f"the {what} was not recorded"
        if len({*mine, *others}) > 1:
            ran, beside = (how.format(" and ".join(each)) for each in (mine, others))
            return f"{{they}} ran {ran}, {reference!r} {beside}"
    return ""


def _cut(
    own: pd.DataFrame, other: pd.DataFrame, curves: pd.DataFrame, equal: str, limit: float, metric: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the points of two arms to compare within a limit; for images, within the last that all seeds share."""
    reached = curves[curves[metric].notna()].copy()
    spent = passes(reached) if equal == NFE else reached[equal]
    reached = reached[spent <= (limit if equal == IMAGES_SEEN else limit * OVERSHOOT)]
    if equal == IMAGES_SEEN:
        every = [set(reached[reached[FINGERPRINT] == name][equal]) for name in (*own[FINGERPRINT], *other[FINGERPRINT])]
        common = set.intersection(*every) if every else set()
        reached = reached[reached[equal] <= max(common)] if common else reached.iloc[:0]
    within = until_result(reached.sort_values(IMAGES_SEEN), FINGERPRINT)
    last = within.drop_duplicates(FINGERPRINT, keep="last").set_index(FINGERPRINT)
    cut = []
    for rows in (own, other):
        seeds = {str(name): seed for seed, name in rows[FINGERPRINT].items()}
        there = last[last.index.isin(list(seeds))]
        cut.append(there.set_index(pd.Index([seeds[str(name)] for name in there.index], name="seed")).sort_index())
    return cut[0], cut[1]


def _seconds(rows: pd.DataFrame) -> pd.Series[float]:
    return rows[TRAIN_SECONDS]


def passes(rows: pd.DataFrame) -> pd.Series[float]:
    """Return the passes through decoder and encoder that training took up to each row's point."""
    return rows.filter(items=PASSES).sum(axis=1, min_count=1) * rows[IMAGES_SEEN]


def _ratio(rows: pd.DataFrame, other: pd.DataFrame, seeds: Sequence[int], of: Any) -> float | None:
    below = float(of(other.loc[list(seeds)]).mean())
    return float(of(rows.loc[list(seeds)]).mean()) / below if below > 0 else None


def _judged(row: Row, reference: Row | None, family: int, verdict: Verdict) -> Row:
    """Return the row with its verdict; no other function decides."""
    lost = f"{row.lost} of {row.ended} seeds lost" if row.lost else ""
    if reference is None:
        found = {0: "no seed finished", 1: "no interval: one seed"}.get(row.value.count, "reference")
        return replace(row, text="; ".join(filter(None, [row.alone or found, lost])))
    word, reason, seeds = _decide(row, reference, family, verdict)
    words = _words(row, word, reason, verdict)
    more = "" if reason.startswith(lost) else f"; {lost}"
    return replace(row, verdict=word, seeds_to_decide=seeds, text=f"{words}{more}")


def _decide(row: Row, reference: Row, family: int, verdict: Verdict) -> tuple[Word, str, int | None]:
    """Return the verdict of a comparison, why it is undecided, and how many seeds would decide it."""
    found, p_holm = row.paired, row.p_holm
    if found is None:
        return "undecided", "no seed of both has finished, or has a point within the budget", None
    if found.count < FEWEST_PAIRS or found.sd is None or found.p_value is None or p_holm is None:
        return "undecided", f"at least {FEWEST_PAIRS} paired seeds are needed", None
    word = _by_numbers(found, p_holm, verdict)
    favourable = word == "better" or (word == "undecided" and _favours(found, verdict))
    if lost := _unlike_losses(row, reference, favourable):
        return "undecided", lost, None
    if word != "undecided":
        return word, "", None
    seeds = seeds_to_decide(
        found.difference,
        found.sd,
        family=family,
        margin=verdict.margin,
        confidence=verdict.confidence,
        least=found.count + 1,
    )
    reason = f"about {seeds} seeds would decide" if seeds else f"{MOST_SEEDS:,} seeds would not decide"
    if found.p_value <= 1 - verdict.confidence:
        reason = f"p {found.p_value:.2g}, {p_holm:.2g} after Holm over {family} comparisons; {reason}"
    return word, reason, seeds


def _by_numbers(found: Paired, p_holm: float, verdict: Verdict) -> Word:
    assert found.low is not None
    assert found.high is not None
    if verdict.margin is not None and max(-found.low, found.high) < verdict.margin:
        return "equivalent"
    if p_holm > 1 - verdict.confidence:
        return "undecided"
    return "better" if _favours(found, verdict) else "worse"


def _favours(found: Paired, verdict: Verdict) -> bool:
    """Return whether the mean difference is one for the better."""
    return found.difference < 0 if verdict.better == "lower" else found.difference > 0


def _unlike_losses(row: Row, reference: Row, favourable: bool) -> str:
    """Return how many seeds two arms lost, if that forbids a verdict, which may be favourable to the arm or not."""
    own, others = row.lost * reference.ended, reference.lost * row.ended
    if own == others or (own < others and favourable):
        return ""
    of = "" if row.ended == reference.ended else f" {reference.ended}"
    return f"{row.lost} of {row.ended} seeds lost, {reference.lost} of its reference's{of}"


def _words(row: Row, word: Word, reason: str, verdict: Verdict) -> str:
    if row.paired is None:
        return f"not comparable with {row.reference}: {reason}"
    at = f" at {row.images:,} images" if row.images is not None else " within the smaller budget"
    where = at if row.cut else ""
    if row.paired.count == 1:
        return f"no interval: one seed{where}"
    match word:
        case "equivalent":
            return f"equivalent to {row.reference} within {verdict.margin:g}{where}"
        case "undecided":
            return f"undecided{where}: {reason}"
        case _:
            return f"{word} than {row.reference}{where}"
