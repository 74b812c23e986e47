"""Loss over images seen, over evaluations and over seconds, and above the lowest possible loss (Figures 3 and 4)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from gfe_study import names
from gfe_study.analysis.judge.evidence import Evidence, floors_of
from gfe_study.analysis.report import paper
from gfe_study.analysis.report.exhibits.base import Exhibit, capitalised, level_text, seeds_text
from gfe_study.analysis.report.style import (
    GREY,
    INK,
    PALETTE,
    colour_of,
    draw_mean,
    drawing,
    figure,
    legend,
    log_axis,
    plain_log,
    styles,
)
from gfe_study.analysis.stats.intervals import mean_interval
from gfe_study.analysis.store.tidy import RUN_ID
from gfe_study.metrics import (
    COMMON_TEST_LOSS,
    IMAGES_SEEN,
    MIXED_TEST_LOSS,
    TEST_LOSS,
    TRAIN_SECONDS,
    info_of,
    is_loss,
    label_of,
    sign_of,
    text_of,
    unit_of,
)

AXES = {
    IMAGES_SEEN: "loss_over_images",
    TRAIN_SECONDS: "loss_over_seconds",
    "nfe": "loss_over_evaluations",
}
"""What a curve runs over, and the key of the exhibit of a loss."""
TEST_LOSSES = (TEST_LOSS, MIXED_TEST_LOSS, COMMON_TEST_LOSS)
"""The losses that the lowest possible one, of the test samples, is a floor of."""
MARGIN = 0.06
"""Of a y axis, beyond the mean curves."""


def curves(evidence: Evidence) -> Iterator[Exhibit]:
    """One figure for every axis, and one of what is left above the floor."""
    points = evidence.chosen_curves
    if not len(points) or evidence.metric not in points or points[evidence.metric].notna().sum() == 0:
        return
    if len(evidence.arms) < 2 and evidence.study is not None and evidence.study.scientific is None:
        yield from _search(evidence)
        return
    means = mean_curves(points, evidence.metric, evidence.confidence)
    for axis, key in AXES.items():
        if means[axis].notna().any():
            named = key if is_loss(evidence.metric) else key.replace("loss", evidence.metric)
            yield _over(evidence, means, axis, named)
    if evidence.metric in TEST_LOSSES and (points[evidence.metric] > points[names.ENTROPY_FLOOR]).any():
        yield _excess(evidence, points)


def mean_curves(points: pd.DataFrame, metric: str, confidence: float) -> pd.DataFrame:
    """Mean over seeds and its interval at every evaluation: `arm`, `images_seen`, mean `train_seconds` and `nfe`,
    `seeds`, `mean`, `low`, `high`.

    Where the runs of an arm were evaluated at different images seen (the last point of a budget told in seconds),
    those that at least half of its seeds share are kept, and the ends of all seeds as one point at their mean.
    """
    rows = []
    for arm, own in points[points[metric].notna()].groupby(names.ARM, sort=False):
        seeds = own[RUN_ID].nunique()
        last = own.groupby(RUN_ID)[IMAGES_SEEN].transform("max") == own[IMAGES_SEEN]
        ends_apart = own.loc[last, IMAGES_SEEN].nunique() > 1
        place = own[IMAGES_SEEN].where(~(last & ends_apart), -1)
        for at, group in own.groupby(place, sort=True):
            if at != -1 and len(group) * 2 < seeds:
                continue
            found = mean_interval(group[metric], confidence)
            axes = [float(group[axis].mean()) for axis in AXES]
            rows.append((arm, *axes, found.count, found.mean, found.low, found.high))
    table = pd.DataFrame(rows, columns=[names.ARM, *AXES, "seeds", "mean", "low", "high"])
    table[["low", "high"]] = table[["low", "high"]].astype("float64")
    order = {arm: place for place, arm in enumerate(dict.fromkeys(table[names.ARM]))}
    return table.sort_values(
        [names.ARM, IMAGES_SEEN], key=lambda of: of.map(order) if of.name == names.ARM else of, ignore_index=True
    )


def _over(evidence: Evidence, means: pd.DataFrame, axis: str, key: str) -> Exhibit:
    look = styles(evidence.trials, evidence.arms)
    with drawing():
        fig = figure()
        axes = fig.add_subplot()
        for arm in evidence.arms:
            own = means[(means[names.ARM] == arm) & (means[axis] > 0)].sort_values(axis)
            if not len(own):
                continue
            draw_mean(axes, own, axis, look[arm], f"{arm or 'all'} (n = {_seeds(own)})")
        if axis == IMAGES_SEEN:
            _papers_own(axes, evidence, means)
        _draw_floor(axes, evidence.metric, evidence.chosen_curves)
        show_means(axes)
        log_axis(axes, list(means[axis]), most=5)
        axes.set_xlabel(label_of(axis))
        axes.set_ylabel(evidence.label(evidence.metric))
        legend(fig)
    counts = set(means.groupby(names.ARM)["seeds"].max())
    shade = "" if counts == {1} else _shade_text(evidence.confidence)
    about = {
        IMAGES_SEEN: "training images seen, repetitions counted, as in the papers",
        TRAIN_SECONDS: "seconds spent in training updates, without evaluation; comparable only on one machine "
        "with equal load",
        "nfe": "passes through decoder and encoder spent in training, all images together",
    }[axis]
    return Exhibit(
        key,
        f"{capitalised(info_of(evidence.metric).label)} over {label_of(axis)}",
        f"Each arm's chosen configuration, mean of its seeds ({seeds_text(counts)}), over {about}.{shade}",
        fig,
        data=means,
    )


def _shade_text(confidence: float) -> str:
    return f" Shaded: {level_text(confidence)} Student intervals of the mean over seeds, cut where they leave the axes."


def show_means(axes: Axes) -> None:
    """Let the lines fill the axes: an interval over two or three seeds may be many times as wide."""
    heights = np.array([height for line in axes.lines for height in np.asarray(line.get_ydata(), dtype=np.float64)])
    if not np.isfinite(heights).any():
        return
    low, high = float(np.nanmin(heights)), float(np.nanmax(heights))
    if axes.get_yscale() == "log":
        ratio = max(high / low, 1.2) ** MARGIN
        axes.set_ylim(low / ratio, high * ratio)
    else:
        room = MARGIN * max(high - low, 0.02 * abs(high))
        axes.set_ylim(low - room, high + room)


def _seeds(own: pd.DataFrame) -> str:
    counts = sorted(set(own["seeds"]))
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"


def _papers_own(axes: Axes, evidence: Evidence, means: pd.DataFrame) -> None:
    """The papers' Table 1 as open circles, where the study asks the same of the same dataset."""
    trials = evidence.chosen
    if set(trials[names.DATASET]) != {paper.DATASET} or evidence.metric != TEST_LOSS:
        return
    reached = float(means[IMAGES_SEEN].max())
    for column in dict.fromkeys(filter(None, map(paper.column_of, trials[names.METHOD]))):
        known = {at: loss for at, loss in paper.TABLE_1[column].items() if at <= reached}
        colour = {paper.AE: colour_of("method", "ae"), paper.GFE: colour_of("solver", "amd")}[column]
        if known:
            text = f"{column}, the paper's Table 1"
            axes.plot(list(known), list(known.values()), "o", mfc="none", color=colour, label=text, markersize=4.5)


def _draw_floor(axes: Axes, metric: str, points: pd.DataFrame) -> None:
    if metric not in TEST_LOSSES:
        return
    for dataset, floor in floors_of(points).items():
        where = f" of {dataset}" if len(floors_of(points)) > 1 else ""
        axes.axhline(floor, color=INK, linestyle=":", linewidth=0.8, label=f"lowest possible{where} {floor:.4f}")


def _excess(evidence: Evidence, points: pd.DataFrame) -> Exhibit:
    above = points.assign(excess=points[evidence.metric] - points[names.ENTROPY_FLOOR])
    means = mean_curves(above, "excess", evidence.confidence)
    counts = set(means.groupby(names.ARM)["seeds"].max())
    look = styles(evidence.trials, evidence.arms)
    with drawing():
        fig = figure()
        axes = fig.add_subplot()
        for arm in evidence.arms:
            own = means[(means[names.ARM] == arm) & (means["mean"] > 0)]
            if not len(own):
                continue  # below the floor: of other images
            own = own.assign(low=own["low"].clip(lower=np.finfo(float).tiny))  # the axis is logarithmic
            draw_mean(axes, own, IMAGES_SEEN, look[arm], f"{arm or 'all'} (n = {_seeds(own)})")
        log_axis(axes, list(means[IMAGES_SEEN]), most=5)
        plain_log(axes, "y")
        show_means(axes)
        axes.set_xlabel(label_of(IMAGES_SEEN))
        axes.set_ylabel(f"above the lowest possible\n({unit_of(evidence.metric, evidence.values)})")
        legend(fig)
    shade = "" if counts == {1} else _shade_text(evidence.confidence)
    floors = ", ".join(f"{floor:.4f} on {dataset}" for dataset, floor in floors_of(points).items())
    return Exhibit(
        "excess_over_floor",
        "What is left above the lowest possible loss",
        f"{capitalised(info_of(evidence.metric).label)} less the lowest that any decoder can reach "
        f"({floors}); {seeds_text(counts)}.{shade}",
        fig,
        data=means,
    )


def _cut_worst(axes: Axes, ends: NDArray[np.float64], metric: str) -> None:
    """Let the axis end where only the worst of the curves' ends lie beyond it."""
    room = 0.05 * float(np.nanmax(np.abs(ends)))
    if sign_of(metric) == 1:
        axes.set_ylim(top=float(np.nanquantile(ends, 0.97)) + room)
    else:
        axes.set_ylim(bottom=float(np.nanquantile(ends, 0.03)) - room)


def _search(evidence: Evidence) -> Iterator[Exhibit]:
    """A search without arms: every trial, the first and the best of them in colour."""
    points = evidence.curves
    best = evidence.chosen[RUN_ID].iloc[0]
    first = evidence.trials.sort_values([names.NUMBER, names.SEED])[RUN_ID].iloc[0]
    marked = {first: (PALETTE[1], "first trial"), best: (PALETTE[0], "best trial")}
    with drawing():
        fig = figure()
        axes = fig.add_subplot()
        others = [run_id for run_id in points[RUN_ID].unique() if run_id not in marked]
        for place, run_id in enumerate(others):
            curve = points[points[RUN_ID] == run_id]
            text = f"{len(others)} other trials" if place == 0 else "_"
            axes.plot(curve[IMAGES_SEEN], curve[evidence.metric], color=GREY, alpha=0.5, linewidth=0.7, label=text)
        for run_id, (colour, text) in marked.items():
            curve = points[points[RUN_ID] == run_id]
            if len(curve):
                axes.plot(
                    curve[IMAGES_SEEN],
                    curve[evidence.metric],
                    "o-",
                    color=colour,
                    label=f"{text}, ends at {text_of(evidence.metric, curve[evidence.metric].iloc[-1])}",
                )
        _papers_own(axes, evidence, points)
        _draw_floor(axes, evidence.metric, points)
        log_axis(axes, list(points[IMAGES_SEEN]), most=5)
        ends = points.groupby(RUN_ID)[evidence.metric].agg(["first", "last"]).to_numpy()
        _cut_worst(axes, ends, evidence.metric)
        axes.set_xlabel(label_of(IMAGES_SEEN))
        axes.set_ylabel(evidence.label(evidence.metric))
        legend(fig)
    seeds = int(evidence.trials.groupby(names.NUMBER)[names.SEED].nunique().max())
    yield Exhibit(
        AXES[IMAGES_SEEN],
        f"{capitalised(info_of(evidence.metric).label)} over {label_of(IMAGES_SEEN)}",
        f"Every trial of the search. The best is the best of {points[RUN_ID].nunique()}, so another "
        f"run of it will probably be worse. {seeds_text({seeds}).capitalize()} of each configuration.",
        fig,
        data=points[[RUN_ID, names.NUMBER, names.SEED, IMAGES_SEEN, evidence.metric]],
    )
