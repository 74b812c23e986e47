"""What a search found: its best by scientific value, by searched key, and what more trials would have brought."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gfe_study import names
from gfe_study.analysis.evidence import Evidence
from gfe_study.analysis.exhibits.base import Exhibit
from gfe_study.analysis.importance import FANOVA, FEWEST, PED_ANOVA, importances
from gfe_study.analysis.judgement import of_stage
from gfe_study.analysis.stats import Mode
from gfe_study.analysis.style import GREY, PAGE, PALETTE, drawing, figure, label, legend, styles
from gfe_study.analysis.tuning import expected_best_over
from gfe_study.config import Range, Study

PANELS = 4
"""In a row."""


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
    sign = 1 if study.metric.mode == "min" else -1
    with drawing():
        fig = figure(height=2.2)
        axes = fig.add_subplot()
        for place, arm in enumerate(evidence.arms):
            own = table[(table[names.ARM] == arm) & table["value"].notna()]
            if not len(own):
                continue
            jitter = np.random.default_rng(place).uniform(-0.12, 0.12, len(own))
            axes.plot(place + jitter, own["value"], ".", color=GREY, alpha=0.7, label="_")
            best = sign * float((sign * own["value"]).min())
            axes.plot([place], [best], look[arm].marker, color=look[arm].colour, markersize=6)
            axes.annotate(f"{best:.4f}", (place, best), xytext=(6, -3), textcoords="offset points", fontsize=7)
        axes.set_xticks(range(len(evidence.arms)), evidence.arms, rotation=20 if len(evidence.arms) > 4 else 0)
        axes.set_xlim(-0.5, len(evidence.arms) - 0.3)
        axes.set_ylabel(label(study.metric.name))
    counts = table.groupby(names.ARM)["value"].count()
    return Exhibit(
        "isolation",
        "Best over the nuisance parameters, by scientific value",
        f"Every configuration that was tried (grey, {counts.min()} to {counts.max()} an arm, mean over its seeds) and "
        "the best of each arm. A best of few trials is a draw of luck; the verdict's seeds are the comparison.",
        fig,
        data=table,
    )


def _slices(evidence: Evidence, study: Study, table: pd.DataFrame) -> Iterator[Exhibit]:
    ranges = {(arm, key): drawn for arm, searched in evidence.ranges.items() for key, drawn in searched.items()}
    keys = [key for key in study.nuisance if any(name == key for _, name in ranges) and table[key].notna().any()]
    if not keys:
        return
    rows = -(-len(keys) // PANELS)
    look = styles(evidence.trials, evidence.arms)
    with drawing():
        fig = figure(PAGE, 1.6 * rows + 0.3)
        grid = fig.subplots(rows, min(PANELS, len(keys)), squeeze=False, sharey=True).ravel()
        for axes in grid[len(keys) :]:
            axes.set_axis_off()
        for key, axes in zip(keys, grid, strict=False):
            for arm in evidence.arms:
                drawn = ranges.get((arm, key))
                own = table[(table[names.ARM] == arm) & table["value"].notna()]
                if drawn is not None:
                    _slice(axes, own, key, drawn, look[arm].colour if len(evidence.arms) > 1 else PALETTE[0], arm)
            axes.set_xlabel(key)
        values = table["value"].dropna()
        grid[0].set_ylim(top=float(values.quantile(0.9)) + 0.3 * float(np.ptp(values)) * 0.2)
        for line in range(rows):
            grid[line * min(PANELS, len(keys))].set_ylabel(label(study.metric.name), fontsize=7)
        if len(evidence.arms) > 1:
            legend(fig)
    yield Exhibit(
        "slices",
        "Loss over each searched value",
        "Every configuration once in each panel; the worst tenth may lie above. A best at the edge of a panel asks for "
        "a wider range.",
        fig,
        data=table,
    )


def _slice(axes: Axes, own: pd.DataFrame, key: str, drawn: Range, colour: str, arm: str) -> None:
    if drawn.kind == "choice":
        texts = [str(value) for value in drawn.values]
        places = own[key].map(lambda value: texts.index(str(_same(value))) if str(_same(value)) in texts else np.nan)
        axes.plot(places, own["value"], ".", color=colour, label=arm or "_")
        axes.set_xticks(range(len(texts)), texts)
        axes.set_xlim(-0.5, len(texts) - 0.5)
        return
    axes.plot(own[key].astype("float64"), own["value"], ".", color=colour, label=arm or "_")
    if drawn.kind.startswith("log"):
        axes.set_xscale("log")


def _same(value: object) -> object:
    """A choice as it was declared: pandas has floats for whole numbers beside missing ones, and NaN for None."""
    if isinstance(value, float):
        return None if np.isnan(value) else int(value) if value.is_integer() else value
    return value


def _importances(evidence: Evidence, study: Study, table: pd.DataFrame) -> Iterator[Exhibit]:
    found = {
        arm: importances(table[table[names.ARM] == arm], evidence.ranges.get(arm, {}), study.metric.mode)
        for arm in evidence.arms
    }
    known = {arm: each for arm, each in found.items() if each is not None}
    if not known:
        return
    with drawing():
        fig = figure(PAGE if len(known) > 1 else 3.4, 0.5 + 0.22 * max(map(len, known.values())))
        for axes, (arm, each) in zip(fig.subplots(1, len(known), squeeze=False)[0], known.items(), strict=True):
            place = np.arange(len(each))
            axes.barh(place - 0.2, each[PED_ANOVA], 0.38, color=PALETTE[0], label=f"{PED_ANOVA}: among the best tenth")
            axes.barh(place + 0.2, each[FANOVA], 0.38, color=PALETTE[1], label=f"{FANOVA}: over the whole space")
            axes.set_yticks(place, each["key"])
            axes.invert_yaxis()
            axes.set_xlabel("share")
            axes.set_title(arm)
        legend(fig)
    whole = pd.concat([each.assign(arm=arm) for arm, each in known.items()], ignore_index=True)
    counts = table.groupby(names.ARM)["value"].count()
    told = ", ".join(f"{counts[arm]} configurations{f' of {arm}' if arm else ''}" for arm in known)
    yield Exhibit(
        "importance",
        "Importance of the searched values",
        f"Of {told}; below about {5 * FEWEST} configurations such shares are rough.",
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
        values = own["value"].mask(own["failed"] | own[names.DIVERGED])
        means = values.groupby(own[names.NUMBER]).mean()
        seconds = own[names.TRAIN_SECONDS].fillna(0.0).groupby(own[names.NUMBER]).sum()
        if means.notna().sum() > 1:
            tables.append(expected_best_over(seconds, means, mode, confidence=evidence.confidence).assign(arm=arm))
    if not tables:
        return
    whole = pd.concat(tables, ignore_index=True)
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
        left.set_ylabel(f"expected best\n{label(study.metric.name)}", fontsize=7)
        if len(evidence.arms) > 1:
            legend(fig)
    yield Exhibit(
        "expected_best",
        "What tuning brings: the expected best of so many trials",
        "The unbiased (U-statistic) estimate of the best of k trials drawn from those that were run, by their number "
        "and by their mean training time; shaded where an interval can be had, up to a quarter of the trials. Of a "
        "search that learns it is what the same trials in random order would have given.",
        fig,
        data=whole,
    )
