"""Conversion of a tracking store's rows to tidy pandas frames."""

from __future__ import annotations

import itertools
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from gfe_study import names
from gfe_study.metrics import DIVERGED, IMAGES_SEEN, SINCE_BEST, STANDARD, ordered
from gfe_study.tracking.runs import FAILED, FINISHED

RUN_ID, NAME, STATUS, STATE = "run_id", "name", "status", "state"
START_TIME, END_TIME = "start_time", "end_time"
FAILED_COLUMN = "failed"
PARAMS = "params."
STOPPED = "stopped"
"""State of a finished trial that was stopped before its budget was spent."""
REMARKS = REPEATED, LATE, NOT_FINITE = "repeated", "late", "not_finite"
"""Columns of remarks on a point: whether a metric was logged more than once; whether the point was logged after a later
one; which metrics are NaN or infinite, separated by commas."""

TEXTS = (
    names.FINGERPRINT,
    names.GROUP,
    names.METHOD,
    names.PRESET,
    names.DATASET,
    names.DATASET_SHA256,
    names.VALUE_NOUN,
    names.UNIT,
    names.DEVICE,
    names.THREADS,
    names.SIDE_BY_SIDE,
    names.HOST,
    names.GFE_STUDY_VERSION,
    names.GIT_COMMIT,
    names.GIT_DIRTY,
    names.VERSIONS,
    names.FAILURE,
    names.STOPPED_EARLY,
    names.REUSED_FROM,
)
"""Tags that become text columns unchanged."""
TAGS = (
    *TEXTS,
    names.ARM,
    names.STAGE,
    names.NUMBER,
    names.SEED,
    names.ENTROPY_FLOOR,
    DIVERGED,
    names.ROLE,
    names.SHARED_BY,
)
"""Tags that are read."""
OTHER_ROLES = (names.ROLE_STUDY, names.ROLE_SUPERSEDED, names.ROLE_FORMER)
"""Roles of runs that take part in no statement about a study."""
LARGEST = sys.float_info.max
"""The number that MLflow stores for infinity."""


def measured(points: pd.DataFrame) -> list[str]:
    """Return the metrics of a frame of points that not every trial has, in the order of the reference."""
    always = {RUN_ID, names.FINGERPRINT, DIVERGED, SINCE_BEST, *REMARKS, *STANDARD}
    return ordered(str(column) for column in points if column not in always)


def until_result(points: pd.DataFrame, trial: str = RUN_ID) -> pd.DataFrame:
    """Return the points of each trial up to its result, which is the last of them; see `metrics.result_of`.

    Args:
        points: by images seen within each trial.
        trial: the column that tells trials apart.
    """
    if SINCE_BEST not in points:
        return points
    diverged = points[DIVERGED] > 0 if DIVERGED in points else False
    result = (~(points[SINCE_BEST] > 0) | diverged).astype("int64").reset_index(drop=True)
    kept: pd.Series[int] = result[::-1].groupby(points[trial].to_numpy()[::-1]).cummax()[::-1]
    return points[kept.to_numpy() > 0]


@dataclass(frozen=True)
class Rows:
    """The runs of an experiment in a store, without deleted runs.

    Attributes:
        runs: `run_id`, `name`, `status`, and `start_time` and `end_time` in milliseconds since the epoch.
        tags, params: `run_id`, `key`, `value`, as text.
        num_former: number of runs excluded because their trials no longer belong to the study.
    """

    runs: pd.DataFrame
    tags: pd.DataFrame
    params: pd.DataFrame
    num_former: int = 0

    def trials(self) -> Rows:
        """Return the rows of the trials that belong to the study and were not superseded."""
        roles = self.tags[self.tags["key"] == names.ROLE]
        others = roles[roles["value"].isin(OTHER_ROLES)][RUN_ID]
        former = int((roles["value"] == names.ROLE_FORMER).sum())
        runs, tags, params = (frame[~frame[RUN_ID].isin(others)] for frame in (self.runs, self.tags, self.params))
        return Rows(runs, tags, params, former)


def runs_frame(rows: Rows, points: pd.DataFrame, *, armless: bool) -> pd.DataFrame:
    """Return one row per trial and configuration that it belongs to; the columns are those of `Store.frames`.

    Args:
        rows: the runs.
        points: their points, as `points_frame` returns them.
        armless: whether the study compares no arms; its arm tags then only distinguish runs and are dropped.
    """
    about = rows.runs.drop_duplicates(RUN_ID).sort_values([START_TIME, NAME, RUN_ID], ignore_index=True)
    runs = pd.Index(about[RUN_ID].astype("str"))
    tagged = _wide(rows.tags[rows.tags["key"].isin(TAGS)], runs).reindex(columns=list(TAGS))
    tags = pd.DataFrame({tag: _text(tagged[tag]) for tag in TAGS})
    status = _text(about[STATUS])
    stopped = (status == FINISHED) & (tags[names.STOPPED_EARLY] != "").to_numpy()
    columns = {
        RUN_ID: about[RUN_ID].astype("str"),
        NAME: _text(about[NAME]),
        STATUS: status,
        STATE: status.str.lower().mask(stopped, STOPPED),
        START_TIME: _moment(about[START_TIME]),
        END_TIME: _moment(about[END_TIME]),
        names.ARM: "" if armless else tags[names.ARM],
        names.STAGE: _whole(tags[names.STAGE]).fillna(0).astype("int64"),
        names.NUMBER: _whole(tags[names.NUMBER]),
        names.SEED: _whole(tags[names.SEED]),
        **{tag: tags[tag] for tag in TEXTS},
        names.ENTROPY_FLOOR: pd.to_numeric(tags[names.ENTROPY_FLOOR], errors="coerce").astype("float64"),
        DIVERGED: tags[DIVERGED] == "true",
        FAILED_COLUMN: status == FAILED,
    }
    head = pd.DataFrame({name: getattr(column, "array", column) for name, column in columns.items()}, index=runs)
    trials = _numbered(_shared(head.astype({names.ARM: "str"}), list(tags[names.SHARED_BY]))).reset_index(drop=True)
    others = [name for name in points if name in REMARKS or (name in head and name != DIVERGED)]
    if DIVERGED in points:
        trials[DIVERGED] |= trials[RUN_ID].map(points.groupby(RUN_ID)[DIVERGED].last()).fillna(0.0) != 0
    counted = until_result(points)
    finite = counted.drop(columns=[*others, DIVERGED], errors="ignore").replace([np.inf, -np.inf], np.nan)
    metrics = finite.groupby(counted[RUN_ID]).last()  # of each metric, the last value that is there
    more = sorted(name for name in map(str, metrics) if name not in STANDARD and metrics[name].notna().any())
    metrics = metrics[[*STANDARD, *more]].astype("float64")
    params = _wide(rows.params, runs).astype("str").rename(columns=lambda key: f"{PARAMS}{key}")
    return trials.join(metrics, on=RUN_ID).join(params, on=RUN_ID)


def _wide(long: pd.DataFrame, runs: pd.Index) -> pd.DataFrame:
    """Return one row per run and one column per key, in alphabetical order."""
    once = long.drop_duplicates([RUN_ID, "key"], keep="last")
    return once.pivot(index=RUN_ID, columns="key", values="value").reindex(runs).rename_axis(columns=None)


def _text(values: pd.Series) -> pd.Series:
    return values.astype("object").where(values.notna(), "").astype("str")


def _whole(texts: pd.Series) -> pd.Series:
    numbers = pd.to_numeric(texts, errors="coerce").astype("float64")
    return numbers.where(numbers % 1 == 0).astype("Int64")


def _moment(milliseconds: pd.Series) -> pd.Series:
    return pd.to_datetime(pd.to_numeric(milliseconds), unit="ms", utc=True).astype("datetime64[ms, UTC]")


def _shared(frame: pd.DataFrame, shared_by: list[str]) -> pd.DataFrame:
    """Repeat each row for every configuration that its trial belongs to."""
    places = [names.STAGE, names.ARM, names.NUMBER]
    own = frame[places].itertuples(index=False, name=None)
    belongs = [_configurations(text) or [place] for text, place in zip(shared_by, own, strict=True)]
    rows = [row for row, there in enumerate(belongs) for _ in there]
    expanded = frame.take(rows)
    for column, values in zip(places, zip(*itertools.chain(*belongs), strict=True), strict=False):
        expanded[column] = list(values)
    return expanded.astype(frame[places].dtypes.to_dict())


def _configurations(text: str) -> list[tuple[Any, ...]]:
    try:
        return [(int(stage), str(arm), int(number)) for stage, arm, number in json.loads(text)]
    except (ValueError, TypeError):  # a tag that gfe-study did not write
        return []


def _numbered(frame: pd.DataFrame) -> pd.DataFrame:
    """Number the configurations that lack a number, in the order in which they were started within their arm."""
    configurations = frame[names.GROUP].where(frame[names.GROUP] != "", frame[names.FINGERPRINT])
    numbers = list(frame[names.NUMBER])
    places = list(zip(frame[names.STAGE], frame[names.ARM], strict=True))
    known = {
        (place, configuration): number
        for place, configuration, number in zip(places, configurations, numbers, strict=True)
        if configuration and number is not pd.NA
    }
    taken = {(place, number) for place, number in zip(places, numbers, strict=True) if number is not pd.NA}
    free: dict[Any, Iterator[int]] = defaultdict(itertools.count)
    for row, key in enumerate(zip(places, configurations, strict=True)):
        if numbers[row] is pd.NA and key[1]:
            if key not in known:
                known[key] = next(number for number in free[key[0]] if (key[0], number) not in taken)
            numbers[row] = known[key]
    return frame.assign(**{names.NUMBER: pd.array(numbers, dtype="Int64")})


def points_frame(rows: Rows, history: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (trial, images seen); the columns are those of `Store.frames`.

    Args:
        rows: the runs.
        history: `run_id`, `key`, `step`, `timestamp` (milliseconds), `value` of every metric at every step.
    """
    runs, run_ids = pd.factorize(history[RUN_ID], sort=True)
    keys, metrics = pd.factorize(history["key"], sort=True)
    stored = history["value"].astype("float64")
    logged = pd.DataFrame(
        {
            RUN_ID: runs,
            IMAGES_SEEN: history["step"].astype("int64"),
            "key": keys,
            "timestamp": history["timestamp"].astype("int64"),
            "value": stored.mask(stored >= LARGEST, np.inf).mask(stored <= -LARGEST, -np.inf),
        }
    )
    point = [RUN_ID, IMAGES_SEEN]
    logged = logged.sort_values([*point, "timestamp", "value"], na_position="first", kind="stable", ignore_index=True)
    replaced = logged.duplicated([*point, "key"], keep="last")
    last = logged[~replaced]
    values = last.pivot(index=point, columns="key", values="value")
    values.columns = [str(name) for name in metrics[values.columns]]
    odd = last[~np.isfinite(last["value"])].sort_values("key")
    odd = odd.assign(key=metrics[odd["key"]])
    remarks = pd.DataFrame(
        {
            REPEATED: replaced.groupby([logged[name] for name in point]).any().astype("bool"),
            LATE: _late(logged.groupby(point)["timestamp"].min()),
            NOT_FINITE: _text(odd.groupby(point)["key"].agg(",".join).reindex(values.index)),
        }
    )
    own = {*point, names.FINGERPRINT, *remarks}
    wanted = [name for name in STANDARD if name not in own]
    wanted += sorted({*values} - own - {*wanted})
    frame = pd.concat([values.reindex(columns=wanted).astype("float64"), remarks], axis=1).reset_index()
    tags = rows.tags[rows.tags["key"] == names.FINGERPRINT].set_index(RUN_ID)["value"].to_dict()
    frame[RUN_ID] = pd.Series(list(run_ids[frame[RUN_ID]]), dtype="str")
    frame.insert(1, names.FINGERPRINT, _text(frame[RUN_ID].map(tags)))
    return frame


def _late(first: pd.Series) -> pd.Series:
    """Return which points were logged later than a point of the same run with more images.

    `first` is the earliest timestamp of each point, indexed by (run, images seen).
    """
    backwards = first[::-1]
    soonest_after = backwards.groupby(level=0).cummin().groupby(level=0).shift()[::-1]
    return first > soonest_after
