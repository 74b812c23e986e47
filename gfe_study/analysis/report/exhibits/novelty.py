"""How well images of a class that training never saw are told from the others (arXiv:2010.15283, eq. 10–11)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gfe_study import names
from gfe_study.analysis.judge.evidence import Evidence
from gfe_study.analysis.report.exhibits.base import Exhibit, seeds_text
from gfe_study.analysis.report.style import GREY, PAGE, drawing, figure, legend, styles
from gfe_study.analysis.stats.intervals import subtract
from gfe_study.analysis.store.tidy import PARAMS
from gfe_study.metrics import NOVELTY_AUROC, RECONSTRUCTION_AUROC

HELD_OUT_KEY = "data.held_out"
METHOD, CLASS, NOVELTY, RECONSTRUCTION = "method", "class", "novelty", "reconstruction"
MEAN = "mean"


def novelty(evidence: Evidence) -> Iterator[Exhibit]:
    """Novelty and reconstruction error alone, by the class that was held out."""
    cells = areas_by_class(evidence)
    if cells is None:
        return
    table, told = _table(cells)
    yield Exhibit(
        "novelty",
        "Novelty: classes that training never saw",
        "Area under the ROC curve of telling test images of the held-out class from the others, at the end of "
        f"training; 0.5 is chance. Novelty: by the negative log-probability of eq. 10–11, the first column of each "
        f"method; reconstruction: by the squared error alone. Means over seeds ({seeds_text(set(cells['seeds']))}). "
        f"{told}",
        _figure(evidence, cells),
        table,
        {column: "+.3f" if column.endswith("difference") else ".3f" for column in map(str, table)},
        cells,
    )


def areas_by_class(evidence: Evidence) -> pd.DataFrame | None:
    """One row per (method, held-out class): `method` (an arm less its class), `class`, `seeds`, and the means over
    these of `novelty` and `reconstruction`, over the seeds that have both; None if there are none."""
    key = f"{PARAMS}{HELD_OUT_KEY}"
    ends = evidence.chosen_ends
    metrics = {NOVELTY: NOVELTY_AUROC, RECONSTRUCTION: RECONSTRUCTION_AUROC}
    if key not in ends or not set(metrics.values()) <= {*ends}:
        return None
    there = ends.assign(**{CLASS: pd.to_numeric(ends[key], errors="coerce")})
    there = there.dropna(subset=[CLASS, *metrics.values()])
    if not len(there):
        return None
    arms = [evidence.arm_without(arm, HELD_OUT_KEY) for arm in there[names.ARM]]
    of = [arm or str(method) for arm, method in zip(arms, there[names.METHOD], strict=True)]
    named = there.astype({CLASS: "int64"})
    named[METHOD] = of
    grouped = named.groupby([METHOD, CLASS], sort=False)
    cells = grouped.agg(
        seeds=(names.SEED, "nunique"), **{column: (metric, "mean") for column, metric in metrics.items()}
    )
    declared = dict(zip(there[names.ARM], of, strict=True))
    order = list(dict.fromkeys(declared[arm] for arm in evidence.arms if arm in declared))
    cells = cells.reset_index()
    return cells.iloc[np.lexsort((cells[CLASS], cells[METHOD].map(order.index)))].reset_index(drop=True)


def _table(cells: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Classes × methods with the mean of each column, and what they come to in words."""
    classes = sorted(set(cells[CLASS]))
    columns: dict[str, pd.Series] = {}
    told = []
    for method, group in cells.groupby(METHOD, sort=False):
        own = group.set_index(CLASS).reindex(classes)
        difference = own[NOVELTY] - own[RECONSTRUCTION]
        for column, values in (
            (NOVELTY, own[NOVELTY]),
            (RECONSTRUCTION, own[RECONSTRUCTION]),
            ("difference", difference),
        ):
            columns[f"{method}: {column}"] = values
        wins = int((subtract(own[NOVELTY], own[RECONSTRUCTION]) > 0).sum())
        told.append(
            f"{method}: novelty {group[NOVELTY].mean():.3f}, reconstruction {group[RECONSTRUCTION].mean():.3f} "
            f"({difference.mean():+.3f}), novelty higher in {wins} of {len(group)} classes."
        )
    table = pd.DataFrame(columns)
    means = table.mean().to_frame().T
    table = pd.concat([table, means], ignore_index=True)
    table.insert(0, CLASS, [*map(str, classes), MEAN])
    return table, " ".join(told)


def _figure(evidence: Evidence, cells: pd.DataFrame) -> Figure:
    methods = list(dict.fromkeys(cells[METHOD]))
    classes = sorted(set(cells[CLASS]))
    trials = evidence.trials
    look = styles(
        trials.assign(**{names.ARM: [evidence.arm_without(arm, HELD_OUT_KEY) for arm in trials[names.ARM]]}), methods
    )
    with drawing():
        fig = figure(PAGE, 2.2)
        axes = fig.add_subplot()
        axes.axhline(0.5, color=GREY, linewidth=0.6, zorder=0)
        for place, method in enumerate(methods):
            own = cells[cells[METHOD] == method]
            at = own[CLASS].map(classes.index) + 0.6 * ((place + 0.5) / len(methods) - 0.5)
            colour, marker = look[method].colour, look[method].marker
            axes.vlines(at, own[RECONSTRUCTION], own[NOVELTY], color=colour, linewidth=0.8)
            axes.plot(at, own[NOVELTY], marker, color=colour, label=f"{method}, novelty")
            axes.plot(
                at, own[RECONSTRUCTION], marker, color=colour, mfc="white", label=f"{method}, reconstruction alone"
            )
        axes.set_xticks(range(len(classes)), [str(each) for each in classes])
        axes.set_xlabel("held-out class")
        axes.set_ylabel("area under the ROC curve")
        legend(fig)
    return fig
