"""Several datasets: Friedman's test and the critical-difference diagram."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure

from gfe_study import names
from gfe_study.analysis.judge.evidence import Evidence
from gfe_study.analysis.report.exhibits.base import Exhibit
from gfe_study.analysis.report.style import INK, PAGE, drawing, figure
from gfe_study.analysis.stats.ranks import Ranks, friedman
from gfe_study.metrics import DIVERGED, info_of, mode_of

DATASET_KEY = "data.name"


def datasets(evidence: Evidence) -> Iterator[Exhibit]:
    """Of a factorial over methods and datasets, or any study whose arms come on several datasets."""
    scores = scores_of(evidence)
    if scores is None or len(scores) < 2:
        return
    found = friedman(scores, mode_of(evidence.metric), confidence=evidence.confidence)
    table = scores.rename_axis("dataset").reset_index()
    lacking = ", ".join(found.left_out)
    left_out = f" Left out, since some method has no result on them: {lacking}." if lacking else ""
    yield Exhibit(
        "datasets",
        "Methods over several datasets",
        f"Mean {evidence.label(evidence.metric)} over seeds. {found.text[:1].upper()}{found.text[1:]}.{left_out}",
        _diagram(found) if found.reason is None else None,
        table,
        {str(column): info_of(evidence.metric).format for column in scores},
    )


def scores_of(evidence: Evidence) -> pd.DataFrame | None:
    """Datasets × methods: means over the seeds of the chosen configurations. None without several methods.

    A method is an arm less its dataset: of a factorial, its other levels; else the arm's name.
    """
    chosen = evidence.chosen
    chosen = chosen[~chosen["failed"] & ~chosen[DIVERGED]]
    if chosen[names.DATASET].nunique() < 2 or evidence.metric not in chosen:
        return None
    named = chosen.assign(of=[evidence.arm_without(arm, DATASET_KEY) for arm in chosen[names.ARM]])
    scores = named.pivot_table(index=names.DATASET, columns="of", values=evidence.metric, aggfunc="mean")
    order = list(dict.fromkeys(named["of"]))
    return scores[order] if len(order) > 1 else None


def _diagram(found: Ranks) -> Figure:
    methods = found.mean_ranks
    count = len(methods)
    assert found.critical_difference is not None
    with drawing():
        fig = figure(PAGE, 0.9 + 0.22 * ((count + 1) // 2) + 0.1 * len(found.cliques))
        axes = fig.add_subplot()
        axes.set_xlim(0.5, count + 0.5)
        axes.set_ylim(-1.0 - 0.6 * ((count + 1) // 2) - 0.35 * len(found.cliques), 1.2)
        axes.set_axis_off()
        axes.plot([1, count], [0, 0], color=INK, linewidth=0.8)
        for tick in range(1, count + 1):
            axes.plot([tick, tick], [0, 0.15], color=INK, linewidth=0.8)
            axes.text(tick, 0.25, str(tick), ha="center", va="bottom")
        axes.plot([1, 1 + found.critical_difference], [0.95, 0.95], color=INK, linewidth=1.4)
        axes.text(
            1 + found.critical_difference / 2, 1.0, f"CD = {found.critical_difference:.2f}", ha="center", va="bottom"
        )
        below = -0.35 * len(found.cliques)
        half = (count + 1) // 2
        for place, (method, rank) in enumerate(methods.items()):
            left = place < half
            depth = below - 0.5 - 0.6 * (place if left else count - 1 - place)
            end = 0.9 if left else count + 0.1
            axes.plot([rank, rank, end], [0, depth, depth], color=INK, linewidth=0.6)
            axes.text(end, depth, f" {method} ({rank:.2f}) ", ha="right" if left else "left", va="center")
        for place, clique in enumerate(found.cliques):
            ends = [methods[name] for name in clique]
            level = -0.25 - 0.3 * place
            axes.plot([min(ends) - 0.05, max(ends) + 0.05], [level, level], color=INK, linewidth=2.5)
    return fig
