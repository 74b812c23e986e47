"""Loss against seconds, or against a second objective: what no other configuration beats in both."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from gfe_study import names
from gfe_study.analysis.judge.evidence import Evidence
from gfe_study.analysis.report.exhibits.base import Exhibit, capitalised
from gfe_study.analysis.report.style import INK, drawing, figure, legend, plain_log, styles
from gfe_study.analysis.stats.intervals import pareto as front_of
from gfe_study.metrics import ENCODE_SECONDS, TRAIN_SECONDS, VAL_ENTROPY_GAP, info_of, noun_of, sign_of

LEAST_SPREAD = 1.2
"""Largest over smallest time below which, as of trials that were all given so many seconds, there is no trade."""
DRAWN = (ENCODE_SECONDS, VAL_ENTROPY_GAP)
"""Second objectives that losses are drawn against; under others, and without one, they are against training time."""
TIMES = (TRAIN_SECONDS, ENCODE_SECONDS)


def pareto(evidence: Evidence) -> Iterator[Exhibit]:
    """Every complete configuration by its training time, or second objective, and its loss, with the front of all."""
    against = evidence.study.metric.against if evidence.study is not None else None
    axis = against if against in DRAWN else TRAIN_SECONDS
    if evidence.trials[names.DATASET].nunique() > 1 or axis not in evidence.trials:
        return  # losses do not compare, or no trial has the objective
    valued = evidence.configurations(*({axis} - {*TIMES})).dropna(subset=["value"])
    table = valued.dropna(subset=[axis])
    if len(table) < 2 or (axis in TIMES and table[axis].max() < LEAST_SPREAD * table[axis].min()):
        return
    metric = evidence.chosen_by
    signs = sign_of(axis), sign_of(metric)
    places = zip(table[axis], table["value"], strict=True)
    on_front = front_of([(signs[0] * float(x), signs[1] * float(y)) for x, y in places])
    table = table.assign(on_front=[place in set(on_front) for place in range(len(table))])
    look = styles(evidence.trials, evidence.arms)
    with drawing():
        fig = figure()
        axes = fig.add_subplot()
        for arm in evidence.arms:
            own = table[table[names.ARM] == arm]
            axes.plot(own[axis], own["value"], look[arm].marker, color=look[arm].colour, label=arm or "configurations")
        front = table[table["on_front"]].sort_values(axis)
        axes.step(front[axis], front["value"], where="post", color=INK, linewidth=0.8, label="Pareto front", zorder=0)
        if table[axis].min() > 0 and table[axis].max() > 5 * table[axis].min():
            plain_log(axes, "x")
        axes.set_xlabel(evidence.label(axis))
        axes.set_ylabel(evidence.label(metric))
        legend(fig)
    yield Exhibit(
        "pareto",
        f"{capitalised(noun_of(metric))} against {'time' if axis in TIMES else f'the {noun_of(axis)}'}",
        f"Every complete configuration, mean over its seeds; {len(front)} of {len(table)} are on the front: no other "
        "is better in both. "
        f"{_about(axis, len(valued) - len(table))}",
        fig,
        table=_shown(front, axis, metric),
        formats={axis: ".3g", metric: info_of(metric).format},
        data=table,
    )


def _about(axis: str, left_out: int) -> str:
    if axis in TIMES:
        return "Seconds are comparable only between trials on one machine with equal load."
    told = f" Not shown: {left_out} whose latents have collapsed and have no entropy." if left_out else ""
    return (
        "The gap is the entropy of samples of the standard normal minus that of as many whitened latents of "
        f"validation images, by a kernel density estimate; it is 0 if the latents are normal.{told}"
    )


def _shown(front: pd.DataFrame, axis: str, metric: str) -> pd.DataFrame:
    shown = front.drop(columns=["on_front"]).rename(columns={"value": metric})
    other = {*TIMES} - {axis}
    shown = shown.drop(columns=[name for name in other if name in shown]).dropna(axis="columns", how="all")
    return shown.drop(columns=[names.ARM]) if set(shown[names.ARM]) == {""} else shown
