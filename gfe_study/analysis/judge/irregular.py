"""Runs that are not as they should be, each named, and the rows that count in spite of them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from gfe_study import names
from gfe_study.analysis.store.tidy import LATE, NAME, NOT_FINITE, REPEATED, RUN_ID, START_TIME, STATE, STOPPED
from gfe_study.metrics import DIVERGED, IMAGES_SEEN

Kind = Literal[
    "foreign", "failed", "killed", "running", "no metric", "not finite", "diverged", "duplicate", "repeated", "late"
]

FINISHED, FAILED, KILLED = "finished", "failed", "killed"
OVER = (FINISHED, STOPPED, FAILED)
"""States of trials that have an outcome."""


@dataclass(frozen=True)
class Irregularity:
    """What is wrong with one run.

    Attributes:
        kind: see `irregularities`.
        text: one sentence that names the run.
    """

    kind: Kind
    run_id: str
    name: str
    text: str


def irregularities(runs: pd.DataFrame, curves: pd.DataFrame) -> list[Irregularity]:
    """What is wrong with the runs of a study, in their order; a run may be named for several reasons.

    - "foreign": it has no fingerprint or no seed: a stranger's, or it ended before it had any;
    - "failed" (with its reason), "killed", "running" (or not begun), "diverged";
    - "no metric": it is over, and no metric was logged;
    - "not finite": a metric is NaN or infinite; one for each metric;
    - "duplicate": another run of the same fingerprint counts: a finished one goes before a failed one before others,
      then that with the most points, then the first;
    - "repeated": a metric was logged more than once at the same number of images;
    - "late": points were logged after others with more images.

    Args:
        runs, curves: the runs and points of `load.Store.frames`.
    """
    points: Mapping[Hashable, pd.DataFrame] = dict(iter(curves.groupby(RUN_ID, sort=False)))
    once = runs.drop_duplicates(RUN_ID)
    called = {
        str(run_id): f"{name or 'a run without name'} ({run_id[:8]})"
        for run_id, name in zip(once[RUN_ID], once[NAME], strict=True)
    }
    instead = _duplicates(runs, curves)
    found = []
    for run in once.to_dict("records"):
        run_id = str(run[RUN_ID])
        told: list[tuple[Kind, str]] = [*_as_it_ended(run, points.get(run_id))]
        if run_id in instead:
            told.append(("duplicate", f"is a second run of one trial: {called[instead[run_id]]} counts, this does not"))
        told += _as_logged(points[run_id]) if run_id in points else []
        found += [Irregularity(kind, run_id, str(run[NAME]), f"{called[run_id]} {text}.") for kind, text in told]
    return found


def ended(runs: pd.DataFrame, curves: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The trials that have an outcome, failed and diverged ones too, and their points: what `judge` takes.

    Strangers, trials that are not over, and the runs that do not count of trials that have several are left out, and
    so are the points that only mark a divergence. `number` and `seed` are whole numbers.
    """
    ours = (runs[names.FINGERPRINT] != "") & runs[names.SEED].notna()
    counts = ours & runs[STATE].isin(OVER) & ~runs[RUN_ID].isin(list(_duplicates(runs, curves)))
    trials = runs[counts].reset_index(drop=True).astype({names.NUMBER: "int64", names.SEED: "int64"})
    there = curves[RUN_ID].isin(trials[RUN_ID])
    if DIVERGED in curves:
        there &= curves[DIVERGED].fillna(0.0) == 0
    return trials, curves[there].reset_index(drop=True)


def usable(trials: pd.DataFrame, points: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Keep the trials and points of `ended` that have a result: the trial has points, and did not fail or diverge."""
    fine = ~trials["failed"] & ~trials[DIVERGED] & trials[RUN_ID].isin(points[RUN_ID])
    trials = trials[fine].reset_index(drop=True)
    return trials, points[points[RUN_ID].isin(trials[RUN_ID])].reset_index(drop=True)


def _duplicates(runs: pd.DataFrame, curves: pd.DataFrame) -> dict[str, str]:
    """Runs that do not count, and for each the one that does in its place."""
    once = runs[runs[names.FINGERPRINT] != ""].drop_duplicates(RUN_ID)
    several = once[once.duplicated(names.FINGERPRINT, keep=False)]
    ranked = several.assign(
        outcome=several[STATE].map({FINISHED: 0, STOPPED: 0, FAILED: 1}).fillna(2),
        points=-several[RUN_ID].map(curves[RUN_ID].value_counts()).fillna(0).astype("int64"),
    ).sort_values(["outcome", "points", START_TIME], kind="stable")
    first = ranked.groupby(names.FINGERPRINT)[RUN_ID].transform("first")
    return {str(own): str(counts) for own, counts in zip(ranked[RUN_ID], first, strict=True) if own != counts}


def _as_it_ended(run: dict[Hashable, Any], points: pd.DataFrame | None) -> Iterator[tuple[Kind, str]]:
    reached = f"after {_images(points[IMAGES_SEEN].iloc[-1])}" if points is not None else "before its first point"
    lacking = [key for key in (names.FINGERPRINT, names.SEED) if pd.isna(run[key]) or run[key] == ""]
    if lacking:
        yield "foreign", f"is no trial of this study, having no {' and no '.join(lacking)}: it is left out"
    state = run[STATE]
    if state == FAILED:
        reason = " ".join(str(run[names.FAILURE]).split()).rstrip(".")
        yield "failed", f"failed {reached}{f': {reason}' if reason else ', and does not say why'}"
    elif state == KILLED:
        yield "killed", f"was killed {reached}: it is left out"
    elif state not in OVER:
        yield "running", f"{'is still running' if state == 'running' else 'has not begun'}: it is left out"
    if points is None and (state in OVER or state == KILLED):
        yield "no metric", "holds no metric"
    if run[DIVERGED]:
        yield "diverged", f"diverged {reached}"


def _as_logged(points: pd.DataFrame) -> Iterator[tuple[Kind, str]]:
    odd = points[points[NOT_FINITE] != ""]
    for metric in sorted({name for text in odd[NOT_FINITE] for name in text.split(",")}):
        there = odd[[metric in text.split(",") for text in odd[NOT_FINITE]]]
        what = "infinite" if metric in there and np.isinf(there[metric]).any() else "NaN"
        yield "not finite", f"has {metric} {what} {_where(there, points)}"
    again, late = points[points[REPEATED]], points[points[LATE]]
    if len(again):
        yield "repeated", f"logged metrics more than once {_where(again, points)}: the last values count"
    if len(late):
        yield "late", f"logged points after others with more images, {_where(late, points)}: they are put in order"


def _images(count: float) -> str:
    return f"{int(count):,} images seen"


def _where(some: pd.DataFrame, points: pd.DataFrame) -> str:
    return f"at {len(some)} of {len(points)} points, from {_images(some[IMAGES_SEEN].iloc[0])} on"
