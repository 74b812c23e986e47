"""The papers' Tables 1 and 2: our numbers, theirs, and the difference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import pandas as pd

from gfe_study import names
from gfe_study.analysis.judge.evidence import Evidence, floors_of
from gfe_study.analysis.report import paper
from gfe_study.analysis.report.exhibits.base import Exhibit, capitalised, level_text, seeds_text
from gfe_study.analysis.stats.intervals import mean_interval
from gfe_study.analysis.store.tidy import PARAMS, RUN_ID, until_result
from gfe_study.metrics import IMAGES_SEEN, MIXED_TEST_LOSS, TEST_LOSS, unit_of

OURS, HALF, THEIRS, DIFFERENCE = "ours", "±", "paper", "ours − paper"
FORMATS = {"images seen": ",.0f", OURS: ".4f", HALF: ".4f", THEIRS: ".4f", DIFFERENCE: "+.4f"}


def table_1(evidence: Evidence) -> Iterator[Exhibit]:
    """Test loss by images seen of AE, GFE and mixed, where the study has an autoencoder and gradient flow encoding."""
    points = _on_all_images(evidence)
    methods = set(points[names.METHOD])
    if not {"ae", "gfe"} <= methods or not points[TEST_LOSS].notna().any() or evidence.values.noun != "pixel":
        return
    if points[names.DATASET].nunique() > 1:
        return
    rows = []
    for name, column, own, metric in _columns(evidence, points):
        same = set(own[names.DATASET]) == {paper.DATASET}
        for images, theirs in paper.TABLE_1[column].items():
            losses = own.loc[own[IMAGES_SEEN] == images, metric].dropna()
            if len(losses):
                about = {"images seen": images, "column": column, "arm": name}
                rows.append(_row(about, losses, evidence, theirs if same else None))
    if not rows:
        return
    table = pd.DataFrame(rows).sort_values("images seen", kind="stable", ignore_index=True)
    dataset = points[names.DATASET].iloc[0]
    other = (
        "" if dataset == paper.DATASET else f" The paper's numbers are of MNIST: {dataset} has none to compare with."
    )
    yield Exhibit(
        "table_1",
        "Table 1 of the paper: test loss after few training images",
        f"{_caption(evidence, table, points)}{other}",
        table=table,
        formats=FORMATS,
    )


def _on_all_images(evidence: Evidence) -> pd.DataFrame:
    """Points of the trials that could see the whole training set: the papers count images seen, not different ones."""
    limit = evidence.chosen.get(f"{PARAMS}data.train_images")
    whole = evidence.chosen if limit is None else evidence.chosen[limit.isna() | (limit == "None")]
    return evidence.chosen_curves[evidence.chosen_curves[RUN_ID].isin(whole[RUN_ID])]


def _columns(evidence: Evidence, points: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame, str]]:
    """Arm, the paper's column, its points and the metric, AE first and mixed last as in the paper."""
    arms = evidence.arms
    for wanted in ("ae", "gfe"):
        for arm in arms:
            own = points[(points[names.ARM] == arm) & (points[names.METHOD] == wanted)]
            column = paper.column_of(wanted)
            if len(own) and column is not None:
                yield arm, column, own, TEST_LOSS
    for arm in arms:
        own = points[(points[names.ARM] == arm) & (points[names.METHOD] == "ae")]
        if len(own) and own[MIXED_TEST_LOSS].notna().any():
            yield f"{arm}, encoded by flow", paper.MIXED, own, MIXED_TEST_LOSS


def table_2(evidence: Evidence) -> Iterator[Exhibit]:
    """Test loss at the end of training by dataset, where the study has AE and GFE on one of the papers' datasets."""
    points = until_result(_on_all_images(evidence))
    ends = points[points[IMAGES_SEEN] == points.groupby(RUN_ID)[IMAGES_SEEN].transform("max")]
    ends = ends[ends[names.DATASET].isin(paper.TABLE_2) & ends[names.METHOD].isin(["ae", "gfe"])]
    if ends[names.DATASET].nunique() < 2 or set(ends[names.METHOD]) != {"ae", "gfe"}:
        return
    rows = []
    for dataset in paper.TABLE_2:
        for arm in evidence.arms:
            own = ends[(ends[names.ARM] == arm) & (ends[names.DATASET] == dataset)]
            column = paper.column_of(str(own[names.METHOD].iloc[0])) if len(own) else None
            losses = own[TEST_LOSS].dropna()
            if column is None or not len(losses):
                continue
            about = {
                "dataset": dataset,
                "column": column,
                "arm": arm,
                "images seen": float(own[IMAGES_SEEN].mean()),
                "images seen, paper": paper.TABLE_2_IMAGES[column],
            }
            rows.append(_row(about, losses, evidence, paper.TABLE_2[dataset][column]))
    if not rows:
        return
    table = pd.DataFrame(rows)
    yield Exhibit(
        "table_2",
        "Table 2 of the paper: test loss at the end of training, by dataset",
        _caption(evidence, table, ends),
        table=table,
        formats={**FORMATS, "images seen, paper": ",.0f"},
    )


def _row(about: Mapping[str, object], losses: pd.Series, evidence: Evidence, theirs: float | None) -> dict[str, object]:
    found = mean_interval(losses, evidence.confidence)
    half = math.nan if found.high is None else found.high - found.mean
    known = math.nan if theirs is None else theirs
    return {**about, "seeds": found.count, OURS: found.mean, HALF: half, THEIRS: known, DIFFERENCE: found.mean - known}


def _caption(evidence: Evidence, table: pd.DataFrame, points: pd.DataFrame) -> str:
    half = (
        ""
        if table[HALF].isna().all()
        else f" ± is half of the {level_text(evidence.confidence)} Student interval of the mean."
    )
    known = evidence.chosen.get(f"{PARAMS}eval.test_images", pd.Series(dtype="str"))
    images = sorted({int(float(value)) for value in known.dropna()})
    tested = (
        f"the first {' to '.join(f'{count:,}' for count in dict.fromkeys((images[0], images[-1])))}"
        if images
        else "the"
    )
    floors = ", ".join(f"{floor:.4f} on {name}" for name, floor in floors_of(points).items())
    lowest = f" (lowest possible loss {floors})" if floors else ""
    unit = capitalised(unit_of(TEST_LOSS, evidence.values))
    return (
        f"{unit}, {seeds_text(set(table['seeds']))}; the paper gives one number each, and no number of seeds. "
        f"Ours on {tested} test images{lowest}; the paper's on all 10,000.{half}"
    )
