"""How much of the normal the latents fill, and what that costs: Table 2 of the GEN paper (arXiv:2010.15283)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np
import pandas as pd

from gfe_study import names
from gfe_study.analysis.judge.evidence import Evidence
from gfe_study.analysis.report import paper
from gfe_study.analysis.report.exhibits.base import Exhibit, level_text, seeds_text
from gfe_study.analysis.report.exhibits.curves import mean_curves, show_means
from gfe_study.analysis.report.style import INK, draw_mean, drawing, figure, legend, log_axis, styles
from gfe_study.analysis.store.tidy import PARAMS
from gfe_study.metrics import (
    FID,
    IMAGES_SEEN,
    LATENT_ENTROPY,
    NORMAL_ENTROPY,
    TEST_ENTROPY_GAP,
    TEST_LOSS,
    classifier_distance,
    label_of,
    unit_of,
)

DIMENSIONS = f"{PARAMS}model.latent_dim"
PARTS = (f"{PARAMS}data.train_images", f"{PARAMS}data.held_out")
"""Parameters of a trial that trained on a part of its dataset."""
SD = "±"
NORMAL = "samples of the normal"
DISTANCE = "Fréchet distance"


def entropy(evidence: Evidence) -> Iterator[Exhibit]:
    """The table beside the paper's, the entropy in the course of training, and losses and distances."""
    points = evidence.chosen_curves
    if LATENT_ENTROPY in points and np.isfinite(points[LATENT_ENTROPY]).any():
        yield _table(evidence)
        yield _curves(evidence)
    ends = evidence.chosen_ends
    distances = {str(name): classifier_distance(str(name)) for name in ends[names.DATASET].unique()}
    if FID in ends or any(kind in ends for name in distances for kind in _kinds(name)):
        yield _costs(evidence)


def entropies(evidence: Evidence) -> pd.DataFrame:
    """One row per arm, or samples of the normal, and number of latents, at the end of training.

    Columns: `arm`, `method`, `dimensions`, `samples` (0 for all test images), `seeds` that have an entropy, `of`
    so many, `mean`, `sd` (NaN of one seed), `paper` (NaN where its table has no such cell).
    """
    ends = evidence.chosen_ends
    counts = sorted(int(found[1]) for name in ends if (found := re.fullmatch(rf"{LATENT_ENTROPY}_(\d+)", str(name))))
    if not counts or ends.loc[ends[LATENT_ENTROPY].notna(), _key(LATENT_ENTROPY, counts[0])].isna().any():
        counts.append(0)  # some have fewer test images than the fewest latents
    own = [
        _cell(name, str(group[names.METHOD].iloc[0]), group, count, LATENT_ENTROPY)
        for name in evidence.arms
        if len(group := ends[ends[names.ARM] == name])
        for count in counts
    ]
    normal = [
        _cell(NORMAL, paper.NORMAL, group, count, NORMAL_ENTROPY)
        for _, group in ends.groupby(_dimensions(ends), sort=True)
        for count in counts
    ]
    order = list(paper.GEN_TABLE_2)
    rows = pd.DataFrame([*own, *normal])
    place = rows["method"].map(lambda method: order.index(method) if method in order else len(order))
    return rows.iloc[np.argsort(place.to_numpy(), kind="stable")].reset_index(drop=True)


def _cell(name: str, method: str, group: pd.DataFrame, count: int, metric: str) -> dict[str, object]:
    mean, sd = _mean_and_sd(group, _key(metric, count))
    return {
        names.ARM: name or method,
        "method": method,
        "dimensions": _dimensions(group).iloc[0],
        "samples": count,
        "seeds": int(np.isfinite(group.get(_key(metric, count), pd.Series(dtype="float64"))).sum()),
        "of": len(group),
        "mean": mean,
        "sd": sd if method != paper.NORMAL else math.nan,
        "paper": paper.GEN_TABLE_2.get(method, {}).get(count, math.nan) if _like_the_papers(group) else math.nan,
    }


def _key(metric: str, count: int) -> str:
    return f"{metric}_{count}" if count else metric


def _dimensions(ends: pd.DataFrame) -> pd.Series:
    known = ends[DIMENSIONS] if DIMENSIONS in ends else pd.Series(math.nan, ends.index)
    return pd.to_numeric(known, errors="coerce").fillna(0).astype("int64")


def _like_the_papers(group: pd.DataFrame) -> bool:
    whole = all(group[key].isin(["None", "nan"]).all() for key in PARTS if key in group)
    same = set(group[names.DATASET]) == {paper.DATASET} and set(_dimensions(group)) == {paper.GEN_LATENT_DIM}
    return whole and same


def _table(evidence: Evidence) -> Exhibit:
    cells = entropies(evidence)
    several = cells["dimensions"].nunique() > 1
    rows, formats = [], {}
    for (name, dimensions), group in cells.groupby([names.ARM, "dimensions"], sort=False):
        row: dict[str, object] = {names.ARM: name}
        row |= {"latent dimensions": dimensions} if several else {}
        seeds = sorted({int(count) for count in group["seeds"] if count}) or [0]
        row["seeds"] = "" if name == NORMAL else "–".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
        for cell in group.to_dict("records"):
            text = f"{cell['samples']:,}" if cell["samples"] else "all"
            for column, value in ((f"{text} latents", "mean"), (f"{SD} ({text})", "sd"), (f"paper ({text})", "paper")):
                row[column], formats[column] = cell[value], ".3f"
        rows.append(row)
    table = pd.DataFrame(rows).dropna(axis="columns", how="all")
    title = "entropy of the latents, beside that of the normal"
    theirs = bool(cells["paper"].notna().any())
    return Exhibit(
        "entropy",
        f"Table 2 of the GEN paper: {title}" if theirs else title.capitalize(),
        _caption(cells, theirs=theirs),
        table=table,
        formats=formats,
        data=cells,
    )


def _caption(cells: pd.DataFrame, *, theirs: bool) -> str:
    which = "the first so many" if cells["samples"].any() else "all"
    exact = ", ".join(
        f"{size / 2 * math.log(2 * math.pi * math.e):.2f} in {size}" for size in sorted({*cells["dimensions"]} - {0})
    )
    own = f"; its own entropy is {exact} dimensions" if exact else ""
    paper_text = (
        f" Paper: arXiv:2010.15283, Table 2, means of 5 models on MNIST with {paper.GEN_LATENT_DIM} latent dimensions."
        if theirs
        else ""
    )
    arms = cells[cells["method"] != paper.NORMAL].groupby(names.ARM, sort=False)[["seeds", "of"]].max()
    lost = "; ".join(
        f"{row['of'] - row['seeds']} of {row['of']} of {name}"
        for name, row in arms.iterrows()
        if row["seeds"] < row["of"]
    )
    left_out = f" Left out, having no entropy since their latents collapsed: {lost}." if lost else ""
    return (
        "Nats, by a kernel density estimate (arXiv:2010.15283, supplement, eq. 4–5) of the whitened latents of "
        f"{which} test images at the end of training; mean {SD} s.d. over seeds. The same estimate of as many samples "
        f"of the normal is what latents that fill it have{own}.{paper_text}{left_out}"
    )


def _curves(evidence: Evidence) -> Exhibit:
    points = evidence.chosen_curves
    points = points[np.isfinite(points[LATENT_ENTROPY])]
    means = mean_curves(points, LATENT_ENTROPY, evidence.confidence)
    counts = set(means.groupby(names.ARM)["seeds"].max())
    look = styles(evidence.trials, evidence.arms)
    ends = evidence.chosen_ends
    normal = ends.groupby(_dimensions(ends))[NORMAL_ENTROPY].mean().dropna()
    with drawing():
        fig = figure()
        axes = fig.add_subplot()
        for arm in evidence.arms:
            own = means[means[names.ARM] == arm]
            if len(own):
                draw_mean(axes, own, IMAGES_SEEN, look[arm], f"{arm or 'all'} (n = {own['seeds'].max()})")
        for dimensions, value in normal.items():
            where = f", {dimensions} dimensions" if len(normal) > 1 else ""
            text = f"{NORMAL}{where} ({value:.2f})"
            axes.axhline(value, color=INK, linestyle=":", linewidth=0.8, label=text)
        show_means(axes)
        log_axis(axes, list(means[IMAGES_SEEN]), most=5)
        axes.set_xlabel(label_of(IMAGES_SEEN))
        axes.set_ylabel(label_of(LATENT_ENTROPY))
        legend(fig)
    shade = f", shaded: {level_text(evidence.confidence)} Student intervals" if counts != {1} else ""
    return Exhibit(
        "entropy_over_images",
        "Entropy of the latents in the course of training",
        f"Of the whitened latents of all test images that are evaluated, "
        f"mean over seeds ({seeds_text(counts)}{shade}). Dotted: as many samples of the standard normal.",
        fig,
        data=means,
    )


def _kinds(dataset: str) -> dict[str, str]:
    """Metrics of the Fréchet distance, and the columns that show them."""
    return {
        classifier_distance(dataset): DISTANCE,
        classifier_distance(dataset, "reconstruction"): "of reconstructions",
        classifier_distance(dataset, "floor"): "its floor",
    }


def _costs(evidence: Evidence) -> Exhibit:
    ends = evidence.chosen_ends
    plain = [arm for arm in evidence.arms if set(ends.loc[ends[names.ARM] == arm, names.METHOD]) == {"ae"}]
    reference = plain[0] if len(plain) == 1 and ends[names.DATASET].nunique() == 1 else None
    beside = float(ends.loc[ends[names.ARM] == reference, TEST_LOSS].mean())
    rows = []
    for arm in evidence.arms:
        own = ends[ends[names.ARM] == arm]
        if not len(own):
            continue
        row: dict[str, object] = {names.ARM: arm or str(own[names.METHOD].iloc[0]), "seeds": len(own)}
        row["test loss"], row[f"{SD} (loss)"] = loss, _ = _mean_and_sd(own, TEST_LOSS)
        row[f"× {reference}"] = loss / beside
        row["entropy gap"], row[f"{SD} (gap)"] = _mean_and_sd(own, TEST_ENTROPY_GAP)
        for metric, text in _kinds(str(own[names.DATASET].iloc[0])).items():
            row[text], spread = _mean_and_sd(own, metric)
            row |= {f"{SD} (distance)": spread} if text == DISTANCE else {}
        row["FID"], row[f"{SD} (FID)"] = _mean_and_sd(own, FID)
        rows.append(row)
    table = pd.DataFrame(rows)
    numbers = [str(column) for column in table if column not in (names.ARM, "seeds")]
    table[numbers] = table[numbers].astype("float64")
    table = table.dropna(axis="columns", how="all")
    of_loss = ("test loss", f"{SD} (loss)")
    formats = {
        column: ".4f" if column in of_loss else ".3f" if "gap" in column or "×" in column else ".3g"
        for column in numbers
    }
    ratio = f" × {reference}: the ratio of the means to that arm's." if reference else ""
    gap = " Entropy gap: what the latents lack of the entropy of as many samples of the normal, nats." * (
        "entropy gap" in table
    )
    distances = [text for text in _kinds("").values() if text in table]
    distance = (
        " Squared Fréchet distance between as many decoded samples of the target and test images, in the features "
        "of a classifier that this project trained on the dataset: no FID, and comparable within this table alone. Its "
        "floor is that of validation images; that of reconstructions is what the decoder reaches with the latents of "
        "images. An arm without a target has no samples."
        if distances
        else ""
    )
    return Exhibit(
        "generation",
        "What filling the normal costs, and what it gives",
        f"Test loss in {unit_of(TEST_LOSS, evidence.values)}, at the end of training; mean {SD} s.d. over seeds."
        f"{ratio}{gap}{distance}",
        table=table,
        formats=formats,
    )


def _mean_and_sd(own: pd.DataFrame, metric: str) -> tuple[float, float]:
    values = own.get(metric, pd.Series(dtype="float64"))
    there = values[np.isfinite(values)]
    return float(there.mean()), float(there.std(ddof=1))
