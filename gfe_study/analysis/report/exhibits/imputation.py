"""What methods make of values that were withheld from them: errors over the share missing, pictures, error bars."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import fill

import numpy as np
import pandas as pd

from gfe_study import names
from gfe_study.analysis.judge.evidence import Evidence
from gfe_study.analysis.report.exhibits.base import Exhibit, level_text, seeds_text, shaded_text
from gfe_study.analysis.report.exhibits.snapshots import Snapshots, all_snapshots, chosen_text, draw_rows
from gfe_study.analysis.report.style import PAGE, clipped, draw_mean, drawing, figure, legend, styles
from gfe_study.analysis.stats.intervals import mean_interval
from gfe_study.analysis.store.tidy import PARAMS
from gfe_study.metrics import COVERAGE_68, COVERAGE_95, DIVERGED, WITHHELD

KIND, FRACTION = (f"{PARAMS}eval.withhold.{name}" for name in ("kind", "fraction"))
MOST_FIGURES = 5
"""That show imputed samples: one for each kind of gaps."""
MOST_PICTURES = 8
LABEL_LETTERS = 34
"""Letters that fit along the axis of a figure one column wide."""
NOMINAL = {COVERAGE_68: 0.68, COVERAGE_95: 0.95}


def imputation(evidence: Evidence) -> Iterator[Exhibit]:
    """Everything that is shown of a study that withholds values."""
    yield from _over_the_share(evidence)
    yield from _pictures(evidence)
    yield from _coverage(evidence)


def _over_the_share(evidence: Evidence) -> Iterator[Exhibit]:
    """Errors over the share of the values that was withheld at random."""
    trials, metric = evidence.chosen, evidence.metric
    if WITHHELD not in metric.split("_") or FRACTION not in trials or metric not in trials:
        return
    share = pd.to_numeric(trials[FRACTION], errors="coerce")
    usable = (trials[KIND] == "random") & share.notna() & trials[metric].notna()
    usable &= ~trials["failed"] & ~trials[DIVERGED]
    lines = [_line(evidence, arm) for arm in trials[names.ARM]]
    found = trials.assign(share=100 * share, **{names.ARM: lines})[usable]
    if found.groupby([names.ARM, "share"])["seed"].apply(lambda seeds: seeds.duplicated().any()).any():
        return  # arms differ in more than the method and the share
    several = found.groupby(names.ARM)["share"].nunique()
    found = found[found[names.ARM].isin(several[several > 1].index)]
    rows = []
    for (arm, at), group in found.groupby([names.ARM, "share"], sort=False):
        interval = mean_interval(group[metric], evidence.confidence)
        row = {names.ARM: arm, "share": at, "mean": interval.mean, "low": interval.low, "high": interval.high}
        rows.append({**row, "seeds": len(group)})
    if not rows:
        return
    points = pd.DataFrame(rows).sort_values("share", kind="stable")
    arms = list(dict.fromkeys(found[names.ARM]))
    look = styles(found, arms)
    with drawing():
        fig = figure()
        axes = fig.add_subplot()
        for arm in arms:
            draw_mean(axes, points[points[names.ARM] == arm], "share", look[arm], arm)
        axes.set_xlabel("values withheld, %")
        axes.set_ylabel(fill(evidence.label(metric), LABEL_LETTERS))
        legend(fig)
    yield Exhibit(
        "missing_share",
        "Error over the share of the values that is missing",
        f"Values withheld at random from every test sample. {shaded_text(set(points['seeds']), evidence.confidence)}.",
        fig,
        data=points,
    )


def _line(evidence: Evidence, arm: str) -> str:
    """An arm's level of the compared factor, in a factorial; else its name."""
    return next((level for key, level in evidence.levels(arm) if _compared(evidence, key)), arm)


def _beside(evidence: Evidence, arm: str) -> str:
    """An arm's levels of all other factors; empty if it has none."""
    return ", ".join(level for key, level in evidence.levels(arm) if not _compared(evidence, key))


def _compared(evidence: Evidence, factor: str) -> bool:
    compared = evidence.study.compare.factor if evidence.study is not None else None
    return factor in (compared, f"{compared}.name")  # as levels that are names alone are called


def _pictures(evidence: Evidence) -> Iterator[Exhibit]:
    """Test samples as they are, as methods saw them, and as methods filled them; a figure for each kind of gaps."""
    groups: dict[str, dict[str, Snapshots]] = {}
    for each in all_snapshots(evidence):
        if each.has(each.points[-1], "imputed"):
            groups.setdefault(_beside(evidence, each.arm), {}).setdefault(each.arm, each)
    told = f" {MOST_FIGURES} of {len(groups)} kinds of gaps." if len(groups) > MOST_FIGURES else ""
    for place, (gaps, shown) in enumerate([*groups.items()][:MOST_FIGURES]):
        yield _filled(evidence, gaps, list(shown.values()), f"imputations{place + 1 if place else ''}", told)


def _filled(evidence: Evidence, gaps: str, shown: list[Snapshots], key: str, told: str) -> Exhibit:
    whole = evidence.values.whole
    rows: list[tuple[str, np.ndarray]] = [(f"test {whole}s", shown[0].arrays["truth"])]
    if "seen" in shown[0].arrays:
        rows.append(("as they were seen", shown[0].arrays["seen"]))
    spreads: list[tuple[str, np.ndarray]] = []
    for each in shown:
        name = clipped(_line(evidence, each.arm) if gaps else each.arm) or "imputed"
        rows.append((name, each.of(each.points[-1], "imputed")))
        if each.has(each.points[-1], "std"):
            spreads.append((f"{name}: s.d.", each.of(each.points[-1], "std")))
    count = min(MOST_PICTURES, *(len(samples) for _, samples in [*rows, *spreads]))
    with drawing():
        fig = figure(PAGE, 0.6 * (len(rows) + len(spreads)) + 0.3)
        grid = fig.subplots(len(rows) + len(spreads), count, squeeze=False)
        for part, lines in ((rows, grid[: len(rows)]), (spreads, grid[len(rows) :])):
            if part:  # each with colours of its own
                draw_rows(lines, part, evidence.values.unit)
    spread = " Below: the standard deviation of every value given what was seen." if spreads else ""
    return Exhibit(
        key,
        f"What was withheld, and what methods make of it{f': {gaps}' if gaps else ''}",
        f"The first {count} test {whole}s, none picked: whole, without what was withheld, and with every value as each "
        f"method gives it, at the end of training ({chosen_text(evidence, shown)}).{spread}{told}",
        fig,
    )


def _coverage(evidence: Evidence) -> Iterator[Exhibit]:
    """The share of the withheld values that lie within their intervals."""
    ends = evidence.chosen_ends
    if not set(NOMINAL) <= set(ends) or not ends[COVERAGE_95].notna().any():
        return
    rows = []
    for arm in evidence.arms:
        own = ends[(ends[names.ARM] == arm) & ends[COVERAGE_95].notna()]
        for metric, nominal in NOMINAL.items() if len(own) else ():
            interval = mean_interval(own[metric], evidence.confidence)
            row = {names.ARM: arm, "nominal": nominal, "share": interval.mean, "seeds": len(own)}
            rows.append({**row, "low": interval.low, "high": interval.high})
    points = pd.DataFrame(rows)
    arms = list(dict.fromkeys(points[names.ARM]))
    with drawing():
        fig = figure(PAGE, 0.28 * len(arms) + 0.9)
        for axes, nominal in zip(fig.subplots(1, len(NOMINAL), sharey=True), NOMINAL.values(), strict=True):
            own = points[points["nominal"] == nominal]
            place = [arms.index(arm) for arm in own[names.ARM]]
            low, high = (own[end].astype("float64").fillna(own["share"]) for end in ("low", "high"))
            spread = np.stack([own["share"] - low, high - own["share"]])
            axes.errorbar(100 * own["share"], place, xerr=100 * spread, fmt="o", color="#444444", capsize=2)
            axes.axvline(100 * nominal, color="#999999", linestyle="--", linewidth=0.8)
            axes.set_yticks(range(len(arms)), [clipped(arm) or "all" for arm in arms])
            axes.set_ylim(len(arms) - 0.5, -0.5)
            axes.set_xlabel(f"withheld values within {100 * nominal:.0f} % intervals, %")
    yield Exhibit(
        "coverage",
        "Whether error bars hold what they claim to",
        "The share of the withheld test values that lie within their 68 % and 95 % intervals; dashed: what it should "
        f"be. {seeds_text(set(points['seeds'])).capitalize()}; bars: {level_text(evidence.confidence)} Student "
        "intervals.",
        fig,
        data=points,
    )
