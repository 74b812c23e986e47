"""What a search found: its best by scientific value, by searched key, and what more trials would have brought."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gfe_study import names
from gfe_study.analysis.judge.evidence import Evidence
from gfe_study.analysis.judge.judgement import of_stage
from gfe_study.analysis.report.exhibits.base import Exhibit, capitalised
from gfe_study.analysis.report.style import (
    COLUMN,
    GREY,
    PAGE,
    PALETTE,
    clipped,
    drawing,
    figure,
    legend,
    log_axis,
    styles,
)
from gfe_study.analysis.stats.importance import FANOVA, FEWEST, PED_ANOVA, importances
from gfe_study.analysis.stats.tuning import expected_best_over
from gfe_study.analysis.store.tidy import STOPPED
from gfe_study.config import Range, Study
from gfe_study.distributions import place_of
from gfe_study.metrics import DIVERGED, TRAIN_SECONDS, Mode, noun_of, text_of

PANELS, WIDE_PANELS = 4, 2
"""In a row: of slices, and of importances."""
LONG_NAME = 16
"""Letters of an arm's name that a figure of a column's width has no room for."""
HEIGHT_OF_ROW, HEIGHT_OF_REST = 0.24, 0.7
EDGE = 0.04
"""Of a panel's width, beyond the ends of its range."""


def tuning(evidence: Evidence) -> Iterator[Exhibit]:
    """Of a study that searches: none of one that only compares."""
    study = evidence.study
    if study is None or not study.nuisance:
        return
    table = evidence.configurations()
    if table["value"].notna().sum() < 2:
        return
    if len(evidence.arms) > 1:
        yield _isolation(evidence, study, table)
    yield from _slices(evidence, study, table)
    yield from _importances(evidence, study, table)
    yield from _expected(evidence, study)


def _isolation(evidence: Evidence, study: Study, table: pd.DataFrame) -> Exhibit:
    look = styles(evidence.trials, evidence.arms)
    sign = study.metric.sign
    with drawing():
        width = COLUMN if max(map(len, evidence.arms)) <= LONG_NAME else PAGE
        fig = figure(width, HEIGHT_OF_REST + HEIGHT_OF_ROW * len(evidence.arms))
        axes = fig.add_subplot()
        for place, arm in enumerate(evidence.arms):
            own = table[(table[names.ARM] == arm) & table["value"].notna()]
            if not len(own):
                continue
            jitter = np.random.default_rng(place).uniform(-0.12, 0.12, len(own))
            axes.plot(own["value"], place + jitter, ".", color=GREY, alpha=0.7)
            best = sign * float((sign * own["value"]).min())
            axes.plot([best], [place], look[arm].marker, color=look[arm].colour, markersize=6)
            at = (1.01, place)
            axes.annotate(
                text_of(study.metric.name, best), at, xycoords=("axes fraction", "data"), va="center", fontsize=7
            )
        axes.set_yticks(range(len(evidence.arms)), [clipped(arm) for arm in evidence.arms])
        axes.set_ylim(len(evidence.arms) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(evidence.label(study.metric.name))
    tried = table.groupby(names.ARM)["value"].count()
    counts = " to ".join(str(count) for count in dict.fromkeys((tried.min(), tried.max())))
    return Exhibit(
        "isolation",
        "Best over the nuisance parameters, by scientific value",
        f"Every configuration that was tried (grey, {counts} per arm, mean over its seeds) and "
        "the best of each arm. The best of few trials is partly luck; compare arms by the verdict.",
        fig,
        data=table,
    )


def _slices(evidence: Evidence, study: Study, table: pd.DataFrame) -> Iterator[Exhibit]:
    ranges = {(arm, key): drawn for arm, searched in evidence.ranges.items() for key, drawn in searched.items()}
    keys = [key for key in study.nuisance if any(name == key for _, name in ranges) and table[key].notna().any()]
    if not keys:
        return
    drawn_of = {key: [drawn for (_, name), drawn in ranges.items() if name == key] for key in keys}
    rows = -(-len(keys) // PANELS)
    look = styles(evidence.trials, evidence.arms)
    with drawing():
        fig = figure(PAGE, 1.6 * rows + 0.3)
        grid = fig.subplots(rows, min(PANELS, len(keys)), squeeze=False, sharey=True).ravel()
        for axes in grid[len(keys) :]:
            axes.set_axis_off()
        for key, axes in zip(keys, grid, strict=False):
            for arm in evidence.arms:
                own = table[(table[names.ARM] == arm) & table["value"].notna()]
                if (arm, key) in ranges:
                    places = _places(own[key], drawn_of[key])
                    colour = look[arm].colour if len(evidence.arms) > 1 else PALETTE[0]
                    axes.plot(places, own["value"], ".", color=colour, label=arm or "_")
            _span(axes, drawn_of[key])
            axes.set_xlabel(key)
        values = table["value"].dropna()
        room = 0.06 * float(np.ptp(values))
        if study.metric.mode == "min":
            grid[0].set_ylim(top=float(values.quantile(0.9)) + room)
        else:
            grid[0].set_ylim(bottom=float(values.quantile(0.1)) - room)
        for line in range(rows):
            grid[line * min(PANELS, len(keys))].set_ylabel(evidence.label(study.metric.name), fontsize=7)
        if len(evidence.arms) > 1:
            legend(fig)
    yield Exhibit(
        "slices",
        f"{capitalised(noun_of(study.metric.name))} over each searched value",
        "Every configuration once in each panel; the worst tenth may lie outside. Each panel spans the "
        "searched range: a best value at its edge calls for a wider range.",
        fig,
        data=table,
    )


def _places(values: pd.Series, drawn: list[Range]) -> pd.Series:
    """Where values of a key stand on its axis: of choices, by their place among those of all arms."""
    choices = _choices(drawn)
    if choices:
        return values.map(lambda value: place_of(value, choices)).astype("float64")
    return pd.to_numeric(values, errors="coerce")


def _choices(drawn: list[Range]) -> list[object]:
    """Everything that any arm chooses from; empty of a range of numbers."""
    found: list[object] = []
    for each in drawn:
        if each.kind == "choice":
            found += [value for value in each.values if value not in found]
    return found


def _span(axes: Axes, drawn: list[Range]) -> None:
    """An axis over everything that was searched."""
    choices = _choices(drawn)
    if choices:
        axes.set_xticks(range(len(choices)), [str(value) for value in choices])
        axes.set_xlim(-0.5, len(choices) - 0.5)
        return
    low, high = min(each.values[0] for each in drawn), max(each.values[1] for each in drawn)
    there = [float(value) for line in axes.lines for value in np.asarray(line.get_xdata()) if np.isfinite(value)]
    low, high = min([low, *there]), max([high, *there])
    if any(each.kind.startswith("log") for each in drawn) and low > 0:
        decades = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        log_axis(axes, [low, *(10.0**exponent for exponent in decades), high], most=3)
        room = (high / low) ** EDGE
        axes.set_xlim(low / room, high * room)
    else:
        axes.set_xlim(low - EDGE * (high - low), high + EDGE * (high - low))


def _importances(evidence: Evidence, study: Study, table: pd.DataFrame) -> Iterator[Exhibit]:
    found = {
        arm: importances(table[table[names.ARM] == arm], evidence.ranges.get(arm, {}), study.metric.mode)
        for arm in evidence.arms
    }
    known = {arm: each for arm, each in found.items() if each is not None}
    if not known:
        return
    with drawing():
        columns = min(WIDE_PANELS, len(known))
        rows = -(-len(known) // columns)
        height = HEIGHT_OF_REST + 0.3 * max(map(len, known.values()))
        fig = figure(PAGE if columns > 1 else COLUMN, height * rows)
        grid = fig.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(known) :]:
            axes.set_axis_off()
        for axes, (arm, each) in zip(grid, known.items(), strict=False):
            place = np.arange(len(each))
            axes.barh(place - 0.2, each[PED_ANOVA], 0.38, color=PALETTE[0], label=f"{PED_ANOVA}: among the best tenth")
            axes.barh(place + 0.2, each[FANOVA], 0.38, color=PALETTE[1], label=f"{FANOVA}: over the whole space")
            axes.set_yticks(place, each["key"])
            axes.invert_yaxis()
            axes.set_xlabel("share")
            axes.set_title(clipped(arm))
        legend(fig)
    whole = pd.concat([each.assign(arm=arm) for arm, each in known.items()], ignore_index=True)
    counts = table.groupby(names.ARM)["value"].count()
    told = ", ".join(f"{counts[arm]} configurations{f' of {arm}' if arm else ''}" for arm in known)
    yield Exhibit(
        "importance",
        "Importance of the searched values",
        f"Of {told}; below about {5 * FEWEST} configurations such shares are rough. {FANOVA} says what makes "
        f"results differ anywhere in the space, often what tells bad from usable; {PED_ANOVA} what tells the best "
        "tenth from the rest. Where they disagree, go by the second: a key that only it finds important needs fine "
        f"tuning, and one that only {FANOVA} does needs no more than a sensible value.",
        fig,
        whole.drop(columns=[names.ARM]) if set(known) == {""} else whole,
        {PED_ANOVA: ".2f", FANOVA: ".2f"},
    )


def _expected(evidence: Evidence, study: Study) -> Iterator[Exhibit]:
    trials = of_stage(evidence.trials, 0)
    look = styles(evidence.trials, evidence.arms)
    mode: Mode = study.metric.mode
    tables = []
    for arm in evidence.arms:
        own = trials[trials[names.ARM] == arm].sort_values([names.NUMBER, names.SEED])
        values = own["value"].mask(own["failed"] | own[DIVERGED])
        means = values.groupby(own[names.NUMBER]).mean(skipna=False)
        seconds = own[TRAIN_SECONDS].fillna(0.0).groupby(own[names.NUMBER]).sum()
        if means.notna().sum() > 1:
            tables.append(expected_best_over(seconds, means, mode, confidence=evidence.confidence).assign(arm=arm))
    if not tables:
        return
    whole = pd.concat(tables, ignore_index=True)
    stopped = int((trials["state"] == STOPPED).sum())
    early = f" {stopped} trials that were stopped early count by the last value they had." if stopped else ""
    with drawing():
        fig = figure(PAGE, 2.3)
        left, right = fig.subplots(1, 2, sharey=True)
        for arm in evidence.arms:
            own = whole[whole["arm"] == arm]
            for axes, along in ((left, "trials"), (right, "seconds")):
                axes.plot(own[along], own["expected_best"], color=look[arm].colour, label=arm or "_")
                axes.fill_between(own[along], own["low"], own["high"], color=look[arm].colour, alpha=0.18, linewidth=0)
        left.set_xlabel("tuning trials")
        right.set_xlabel("training time of the tuning trials (s)")
        left.set_ylabel(f"expected best\n{evidence.label(study.metric.name)}", fontsize=7)
        if len(evidence.arms) > 1:
            legend(fig)
    yield Exhibit(
        "expected_best",
        "What tuning gains: the expected best of a number of trials",
        "The unbiased (U-statistic) estimate of the best of k trials drawn from those that were run, over their number "
        "and over their mean training time; the interval is shaded up to a quarter of the trials. For a search that "
        f"learns, it is what the same trials in random order would have given.{early}",
        fig,
        data=whole,
    )
