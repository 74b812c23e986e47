"""Charts to look around in: the curve of every trial, and all settings that a search tried side by side.

They are specifications of Vega-Lite; the page brings the library.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from gfe_study import names
from gfe_study.analysis.judge.evidence import Evidence
from gfe_study.analysis.report.exhibits.base import Chart, Exhibit, capitalised
from gfe_study.analysis.report.style import styles
from gfe_study.analysis.store.tidy import RUN_ID
from gfe_study.config import Study
from gfe_study.layout import number
from gfe_study.metrics import IMAGES_SEEN, label_of, text_of

MOST_POINTS = 5000
"""Points drawn in all curves together, so that the page stays small and the browser quick."""
LEAST_CONFIGURATIONS = 3
HEIGHT = 340
# The colour of the text around a chart, so that it can be read on a light and on a dark page.
CONFIG: dict[str, Any] = {
    "background": "transparent",
    "view": {"stroke": "transparent"},
    "axis": dict.fromkeys(("labelColor", "titleColor", "domainColor", "tickColor"), "currentColor")
    | {"gridColor": "#8883", "labelLimit": 240},
    "legend": {"labelColor": "currentColor", "titleColor": "currentColor", "labelLimit": 300},
    "text": {"color": "currentColor"},
}


def explore(evidence: Evidence) -> Iterator[Exhibit]:
    """Yield the curves of any study that has some, and the settings of one that searches."""
    if evidence.chosen_by in evidence.curves:
        points = evidence.curves[evidence.curves[evidence.chosen_by].map(math.isfinite)]
        if len(points):
            yield _every_trial(evidence, points)
    if evidence.study is not None and evidence.study.nuisance:
        table = evidence.configurations()
        table = table[table["value"].notna()]
        if len(table) >= LEAST_CONFIGURATIONS:
            yield _settings(evidence, evidence.study, table)


def _chart(**parts: Any) -> Chart:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": HEIGHT,
        "config": CONFIG,
        **parts,
    }


def _one_of(name: str, field: str, values: list[Any]) -> dict[str, Any]:
    """A menu that leaves what has one value of a field."""
    menu = {"input": "select", "options": [None, *values], "labels": ["all", *map(str, values)], "name": f"{name} "}
    return {"name": name, "select": {"type": "point", "fields": [field]}, "bind": menu}


def _shown_where(*params: str) -> dict[str, Any]:
    shown = {"and": [{"param": param} for param in params]}
    return {"condition": {"test": shown, "value": 0.85}, "value": 0.05}


def _every_trial(evidence: Evidence, points: pd.DataFrame) -> Exhibit:
    metric, arms = evidence.chosen_by, evidence.arms
    look = styles(evidence.trials, arms)
    every = -(-len(points) // MOST_POINTS)
    points = points.iloc[::-1].iloc[::every].iloc[::-1] if every > 1 else points  # the last ones stay
    told = [arm or "all" for arm in points[names.ARM]]
    data = pd.DataFrame(
        {
            "arm": told,
            "trial": [
                f"{arm} #{number_} seed {seed}{' (replicate)' if stage else ''}"
                for arm, number_, seed, stage in zip(
                    told, points[names.NUMBER], points[names.SEED], points[names.STAGE], strict=True
                )
            ],
            "seed": points[names.SEED].astype("Int64").astype(object),
            "images": points[IMAGES_SEEN].astype(int),
            "value": [float(f"{value:.5g}") for value in points[metric]],
            "run": points[RUN_ID].str[:8],
        }
    )
    seeds = sorted(data["seed"].dropna().unique().tolist())
    shown = ["arms", *(["seeds"] if len(seeds) > 1 else [])]
    params: list[dict[str, Any]] = [
        {"name": "arms", "select": {"type": "point", "fields": ["arm"]}, "bind": "legend"},
        *([_one_of("seeds", "seed", seeds)] if len(seeds) > 1 else []),
    ]
    colour: dict[str, Any] = {"value": look[arms[0]].colour}
    if len(arms) > 1:
        scale = {"domain": [arm or "all" for arm in arms], "range": [look[arm].colour for arm in arms]}
        legend = {"title": None, "orient": "bottom", "columns": 2, "symbolLimit": 60}
        colour = {"field": "arm", "type": "nominal", "scale": scale, "legend": legend}
    label = evidence.label(metric)
    chart = _chart(
        data={"values": data.to_dict("records")},
        params=params if len(arms) > 1 else params[1:],
        mark={"type": "line", "point": {"size": 18}, "strokeWidth": 1.3},
        encoding={
            "x": {
                "field": "images",
                "type": "quantitative",
                "scale": {"type": "log" if (data["images"] > 0).all() else "linear", "nice": False},
                "axis": {"title": label_of(IMAGES_SEEN), "format": "~s"},
            },
            "y": {"field": "value", "type": "quantitative", "scale": {"zero": False}, "axis": {"title": label}},
            "color": colour,
            "detail": {"field": "run"},
            "opacity": _shown_where(*(shown if len(arms) > 1 else shown[1:])),
            "tooltip": [
                {"field": "trial"},
                {"field": "images", "type": "quantitative", "format": ","},
                {"field": "value", "type": "quantitative", "title": label},
            ],
        },
    )
    if len(arms) == 1 and len(seeds) < 2:
        del chart["encoding"]["opacity"]
    toggled = ["Click an arm below the chart to see it alone, with Shift to add more"] if len(arms) > 1 else []
    toggled += ["the menu chooses a seed"] if len(seeds) > 1 else []
    thinned = f"Every {every}th point is drawn." if every > 1 else ""
    told_so = f"{'; '.join(toggled)}." if toggled else ""
    caption = " ".join(f"{capitalised(label)} of each trial at its evaluations. {told_so} {thinned}".split())
    return Exhibit("every_trial", "Every trial", caption, chart=chart)


def _settings(evidence: Evidence, study: Study, table: pd.DataFrame) -> Exhibit:
    """Parallel coordinates: an axis for each searched key, a line for each configuration."""
    metric, arms = evidence.chosen_by, evidence.arms
    tried = [(record, _tried(study, record)) for record in table.to_dict("records")]
    points = [point for _, point in tried]
    axes = {key: found for key in study.nuisance if (found := _axis(study, key, points)) is not None}
    low, high = float(table["value"].min()), float(table["value"].max())
    axes[metric] = _Axis({}, {0.0: text_of(metric, low), 1.0: text_of(metric, high)})
    about, rows = [], []
    for record, point in tried:
        value = float(record["value"])
        trial = f"{record[names.ARM]} #{record[names.NUMBER]}".strip()
        about.append(
            {
                "trial": trial,
                "arm": record[names.ARM],
                "result": float(f"{value:.6g}"),
                "shown": text_of(metric, value),
                "settings": "; ".join(f"{key} {_text(each)}" for key, each in point.items()),
            }
        )
        places = {key: axes[key].places[_text(each)] for key, each in point.items() if key in axes}
        places[metric] = (value - low) / (high - low) if high > low else 0.5
        rows += [{"trial": trial, "key": key, "place": round(place, 4)} for key, place in places.items()]
    marks = [{"key": key, "place": at, "text": text} for key, axis in axes.items() for at, text in axis.labels.items()]
    several = len(arms) > 1
    lines = {
        "data": {"values": rows},
        "transform": [
            {
                "lookup": "trial",
                "from": {"data": {"values": about}, "key": "trial", "fields": ["arm", "result", "shown", "settings"]},
            }
        ],
        "params": [_one_of("arm", "arm", arms)] if several else [],
        "mark": {"type": "line", "point": {"size": 24}, "strokeWidth": 1.4, "interpolate": "monotone"},
        "encoding": {
            "detail": {"field": "trial"},
            "color": {
                "field": "result",
                "type": "quantitative",
                "scale": {"scheme": "viridis", "reverse": study.metric.mode == "min"},
                "legend": {"title": metric, "gradientLength": 160},
            },
            **({"opacity": _shown_where("arm")} if several else {}),
            "tooltip": [{"field": "trial"}, {"field": "shown", "title": metric}, {"field": "settings"}],
        },
    }
    labels = {
        "data": {"values": marks},
        "mark": {"type": "text", "align": "left", "dx": 6, "fontSize": 10, "opacity": 0.8},
        "encoding": {"text": {"field": "text"}},
    }
    upright = {"title": None, "labelAngle": -20, "grid": True}
    x = {"field": "key", "type": "nominal", "sort": list(axes), "axis": upright}
    y = {"field": "place", "type": "quantitative", "axis": None, "scale": {"domain": [-0.06, 1.06]}}
    caption = (
        f"Settings that the search tried, a line for each. {capitalised(evidence.label(metric))} colours "
        "them, on the last axis. Point at a line to read it."
    )
    keys = [key for key in study.nuisance if key in table]
    data = table[[names.ARM, names.NUMBER, *keys, "value"]].rename(columns={"value": metric})
    chart = _chart(encoding={"x": x, "y": y}, layer=[lines, labels])
    return Exhibit("settings", "Settings that were tried", caption, chart=chart, data=data)


def _tried(study: Study, record: dict[Any, Any]) -> dict[str, Any]:
    """The searched keys that apply to a configuration, and its values of them; None may be a choice."""
    point: dict[str, Any] = {}
    for key in study.nuisance:
        drawn = study.range_of(key, str(record[names.ARM]), point)
        value = record.get(key)
        missing = value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
        if drawn is not None and (drawn.kind == "choice" or not missing):
            point[key] = None if missing else value
    return point


@dataclass(frozen=True)
class _Axis:
    """Where values stand between 0 and 1, by their text, and what is written there."""

    places: dict[Any, float]
    labels: dict[float, str]


def _axis(study: Study, key: str, points: list[dict[str, Any]]) -> _Axis | None:
    """Numbers where they are between the lowest and the highest, choices one beside another; None without any."""
    values = [point[key] for point in points if key in point]
    ranges = study.nuisance[key]
    if not values:
        return None
    if any(drawn.kind == "choice" for drawn in ranges):
        declared = [_text(value) for drawn in ranges for value in drawn.values if drawn.kind == "choice"]
        texts = list(dict.fromkeys([*(text for text in declared if text in map(_text, values)), *map(_text, values)]))
        places = {text: place / max(1, len(texts) - 1) for place, text in enumerate(texts)}
        return _Axis(places, {place: text for text, place in places.items()})
    scale = math.log if any(drawn.kind.startswith("log") for drawn in ranges) else float
    low, high = scale(min(values)), scale(max(values))
    places = {_text(value): (scale(value) - low) / (high - low) if high > low else 0.5 for value in values}
    return _Axis(places, {place: text for text, place in places.items() if place in (0.0, 0.5, 1.0)})


def _text(value: Any) -> str:
    """A value of a searched key where there is little room: of a section its name."""
    if isinstance(value, Mapping):
        return str(value.get("name", value))
    return "null" if value is None else number(value, 3)
