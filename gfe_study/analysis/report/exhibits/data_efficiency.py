"""Loss over the number of DIFFERENT training images: curves, areas, and where they cross."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from gfe_study import names
from gfe_study.analysis.judge.evidence import Evidence
from gfe_study.analysis.report.exhibits.base import Exhibit, shaded_text
from gfe_study.analysis.report.style import draw_mean, drawing, figure, legend, log_axis, styles
from gfe_study.analysis.stats.efficiency import DataEfficiency
from gfe_study.analysis.store.tidy import PARAMS
from gfe_study.metrics import DIVERGED, UNIQUE_IMAGES, info_of, label_of, noun_of

SIZE_KEY = "data.train_images"
FEWEST_SIZES = 2


def data_efficiency(evidence: Evidence) -> Iterator[Exhibit]:
    """Of a study that trains the same arms on training sets of several sizes."""
    losses = losses_by_size(evidence)
    if losses is None:
        return
    curve = DataEfficiency.from_frame(losses, UNIQUE_IMAGES, evidence.metric, evidence.confidence)
    points = curve.points()
    look = styles(losses, curve.arms)
    with drawing():
        fig = figure()
        axes = fig.add_subplot()
        for arm in curve.arms:
            own = points[points[names.ARM] == arm]
            ends = dict.fromkeys((own["seeds"].min(), own["seeds"].max()))
            told = f"{arm} (n = {'–'.join(map(str, ends))})"
            draw_mean(axes, own, UNIQUE_IMAGES, look[arm], told)
        log_axis(axes, list(points[UNIQUE_IMAGES]))
        axes.set_xlabel(label_of(UNIQUE_IMAGES))
        axes.set_ylabel(evidence.label(evidence.metric))
        legend(fig)
    crossings = curve.crossings()
    told = " ".join(f"{text}." for text in dict.fromkeys(crossings["text"]))
    told_of = noun_of(evidence.metric)
    yield Exhibit(
        "data_efficiency",
        f"{told_of[:1].upper()}{told_of[1:]} over {label_of(UNIQUE_IMAGES)}",
        "Training sets nested in one another, classes in their proportions; as many epochs as the budget allows. "
        f"{shaded_text(set(points['seeds']), evidence.confidence)}. "
        f"{told} The table: mean {told_of} over the logarithm of the size "
        "(area under the curve).",
        fig,
        curve.areas(),
        {**dict.fromkeys(("mean", "low", "high"), info_of(evidence.metric).format), "from": ",.0f", "to": ",.0f"},
        points,
    )


def losses_by_size(evidence: Evidence) -> pd.DataFrame | None:
    """One row per (arm less its size, seed, size) at the end of training; None unless there are several sizes."""
    key = f"{PARAMS}{SIZE_KEY}"
    trials = evidence.chosen
    if key not in trials or evidence.metric not in trials:
        return None
    sizes = pd.to_numeric(trials[key], errors="coerce")
    usable = trials[sizes.notna() & ~trials["failed"] & ~trials[DIVERGED]].assign(**{UNIQUE_IMAGES: sizes})
    if usable[UNIQUE_IMAGES].nunique() < FEWEST_SIZES:
        return None
    usable = usable.assign(**{names.ARM: [evidence.arm_without(arm, SIZE_KEY) for arm in usable[names.ARM]]})
    several = usable.groupby(names.ARM)[UNIQUE_IMAGES].nunique()
    usable = usable[usable[names.ARM].isin(several[several >= FEWEST_SIZES].index)]
    return usable if len(usable) else None
