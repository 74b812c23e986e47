"""What a person sees who opens a study in MLflow's UI: a description, and views with columns, groups and charts.

MLflow's UI keeps a shared view as an experiment tag, `mlflow.sharedViewState.<key>`: the state of its page as JSON,
`deflate;` and base64 of zlib's output. `?viewStateShareKey=<key>` opens it. Newer versions list those in a menu,
*Views*, that are wrapped in `{"name", "createdAt", "state"}`, which older ones cannot open: every view is written both
ways. The format is MLflow's own and may change (read in 3.10 and 3.17). The UI takes the fields it knows and sets the
rest aside; at a view that it cannot read it gives notice and shows its default page.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import yaml

from gfe_study import names
from gfe_study.config import Study
from gfe_study.metrics import (
    ENCODE_NFE,
    IMAGES_SEEN,
    NFE_FORWARD,
    TEST_LOSS,
    TRAIN_LOSS,
    TRAIN_SECONDS,
    VAL_LOSS,
    Values,
    counterpart_on_test,
    info_of,
    is_loss,
    mode_of,
    unit_and_direction,
    unit_of,
)

NOTE = "mlflow.note.content"
"""Tag that the UI shows, as Markdown, above an experiment's runs."""
SHARED_VIEW = "mlflow.sharedViewState."
COMPARISON, TRIALS = "comparison", "trials"
"""Keys of the views: trials grouped as they are compared, and every trial by itself."""
LISTED = "-listed"
"""Ends the key of the form of a view that the menu lists."""

STUDY_FILE = "study.yaml"
"""Artifact of a study's parent run: the study with all options that it was started with."""
KEEP = "*Notes below this line are kept when the study is run again.*"
FIRST_COLUMNS = {"attributes.`Run Name`": 260, "runDateAndNestInfo": 130}
"""Always there: a run's name, and when it was made."""
OTHERS = "Model metrics"
"""The UI's own name of a section of charts."""
POSITIVE_LOSSES = ("bernoulli", "poisson")
"""Likelihoods of discrete values, whose losses are never negative."""
MOST_NAMES = 8
"""Arms that a description names; the table has the others."""


def read_study(declared: str) -> Study:
    """The study of a `STUDY_FILE`. Raises `InputError`."""
    return Study.build(yaml.safe_load(declared), STUDY_FILE)


def experiment_tags(study: Study, label: str, experiment_id: str, created: int, note: str = "") -> dict[str, str]:
    """The tags of a study's experiment: its description and its views.

    The same study gives the same tags, so that they can be written at every start.

    Args:
        label: the study's name, as commands take it.
        created: when the experiment was made, in milliseconds since 1970: the date of the views.
        note: the experiment's description as it stands; what was added to ours is kept.
    """
    tags = {NOTE: f"{description(study, label, experiment_id)}\n\n{KEEP}{kept_notes(note, study.question)}"}
    for key, (name, state) in views(study).items():
        packed = _packed(state)
        listed = {"name": name, "createdAt": created, "updatedAt": created, "state": packed}
        tags[SHARED_VIEW + key] = packed
        tags[SHARED_VIEW + key + LISTED] = json.dumps(listed, ensure_ascii=False)
    return tags


def kept_notes(note: str, question: str) -> str:
    """What a person wrote into a description: all below `KEEP`, or all of one that is not ours."""
    ours, found, below = note.partition(KEEP)
    if found:
        return below.rstrip()
    return f"\n\n{ours.strip()}" if ours.strip() not in ("", question.strip()) else ""


def link(experiment_id: str, key: str, *, charts: bool = True) -> str:
    """Address of a view, relative to the server's: with its charts beside the runs, or as a table."""
    query = {"workflowType": "machine_learning", "viewStateShareKey": key}
    return f"#/experiments/{experiment_id}/runs?{urlencode(query | ({'compareRunsMode': 'CHART'} if charts else {}))}"


def description(study: Study, label: str, experiment_id: str) -> str:
    """A study's description in Markdown; the first line, all that the UI shows until it is unfolded, says the most."""
    metric, _ = ranking(study)
    curves = link(experiment_id, COMPARISON)
    places = [f"[as curves]({curves}) or [as a table]({link(experiment_id, COMPARISON, charts=False)})"]
    if TRIALS in views(study):
        places.append(f"[every trial, best first]({link(experiment_id, TRIALS, charts=False)})")
    told = [
        f"{study.question.strip()} [Open the comparison]({curves})",
        f"**What is compared**: {_compared(study)}",
        f"**How to read it**: ranked by `{metric}`. {_units(study)} {_how_to_read(study)} "
        "*Step* is the number of training images seen.",
        f"**Where**: the comparison {', '.join(places)}; they are also in the menu *Views*. "
        f"Intervals, tests and the verdict: `gfe-study report {label}`.",
    ]
    return "\n\n".join(told)


def _compared(study: Study) -> str:
    stage = study.stages()[-1]
    seeds = len(study.seeds_of(stage))
    each = f"{seeds} {'seed' if seeds == 1 else 'seeds'} each"
    searched = ", ".join(f"`{key}`" for key in study.nuisance)
    if len(study.arms) == 1:
        drawn = f"values of {searched}" if searched else "one configuration"
        return f"{drawn}, {each}."
    arms = [arm.name for arm in study.arms]
    more = f" and {len(arms) - MOST_NAMES} more" if len(arms) > MOST_NAMES else ""
    shown = ", ".join(f"`{name}`" for name in arms[:MOST_NAMES])
    tuned = f" Searched anew inside every arm: {searched}." if searched else ""
    chosen = (
        " Shown are the runs of each arm's best configurations with new seeds; they start once the search is over, "
        "until then see every trial."
        if study.then is not None
        else ""
    )
    return f"{shown}{more}, {each}.{tuned}{chosen}"


def _units(study: Study) -> str:
    """Say the units and better directions of the losses, and of what else a study optimises or compares by."""
    values = study.values
    told = [f"Losses are {unit_and_direction(VAL_LOSS, values)}."]
    for name in _others(study):
        known = unit_and_direction(name, values)
        told.append(f"`{name}`: {info_of(name).description.removesuffix('.')}{f' ({known})' if known else ''}.")
    return " ".join(told)


def _others(study: Study) -> list[str]:
    """Return the metrics that a study optimises or compares by and that are no losses and no costs."""
    asked = (study.compare.metric if len(study.arms) > 1 else None, study.metric.name, study.metric.against)
    metrics = dict.fromkeys(name for name in asked if name is not None)
    metrics |= {counterpart_on_test(name): None for name in [*metrics]}
    return [name for name in metrics if info_of(name).group in ("quality", "measure")]


def _how_to_read(study: Study) -> str:
    if not grouping(study):
        return "A line is one trial."
    return (
        "A row is a group of seeds with the means of its trials, which unfold below it; a line is the mean, "
        "its band reaches from the lowest to the highest."
    )


def ranking(study: Study) -> tuple[str, bool]:
    """The metric by which runs are sorted, and whether the lowest comes first."""
    if len(study.arms) > 1:
        return study.compare.metric, mode_of(study.compare.metric) == "min"
    return study.metric.name, study.metric.mode == "min"


def grouping(study: Study) -> list[tuple[str, str]]:
    """Tags and parameters that runs which differ in their seed alone have in common; none where a mean means nothing.

    The arm's tag of a study without arms is the configuration.
    """
    stage = study.stages()[-1]
    seeds = len(study.seeds_of(stage))
    if len(study.arms) == 1:
        return [("tag", names.ARM)] if seeds > 1 else []
    several = any(study.configurations(arm, stage) > 1 for arm in study.arms)
    if several and seeds == 1:
        return []
    return [("tag", names.ARM), *(("param", key) for key in study.nuisance if several)]


def views(study: Study) -> dict[str, tuple[str, dict[str, Any]]]:
    """Key -> name and state of the views of a study."""
    groups = grouping(study)
    if not groups and study.then is None:
        return {COMPARISON: ("Trials, best first", _state(study, [], last_stage=False))}
    name = "Comparison: means over seeds" if groups else "Comparison"
    return {
        COMPARISON: (name, _state(study, groups, last_stage=study.then is not None)),
        TRIALS: ("Every trial, best first", _state(study, [], last_stage=False)),
    }


def _state(study: Study, groups: list[tuple[str, str]], *, last_stage: bool) -> dict[str, Any]:
    """The state of MLflow's page of runs: all fields, since some versions fill none in."""
    metric, lowest_first = ranking(study)
    columns = _columns(study)
    sections, charts = _charts(study, grouped=bool(groups))
    stage = f" AND tags.{names.STAGE} = '{study.stages()[-1]}'" if last_stage else ""
    folded = {f"tag.{names.ARM}.{arm.name}": False for arm in study.arms} if len(groups) == 1 else {}
    return {
        "searchFilter": f"tags.{names.ROLE} = '{names.ROLE_TRIAL}'{stage}",
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": lowest_first,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": [*columns],
        "columnOrder": [*FIRST_COLUMNS, *columns],
        "columnWidths": {**FIRST_COLUMNS, **columns},
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
        "viewMaximized": False,
        "runListHidden": False,
        "groupBy": {
            "aggregateFunction": "average",
            "groupByKeys": [{"mode": mode, "groupByData": key} for mode, key in groups],
        }
        if groups
        else None,
        "groupsExpanded": folded,
        "useGroupedValuesInCharts": True,
        "autoRefreshEnabled": True,
        "hideEmptyCharts": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _columns(study: Study) -> dict[str, int]:
    """Columns in their order, with their widths in pixels."""
    metric, _ = ranking(study)
    losses = dict.fromkeys([metric, *_others(study), study.metric.name, TEST_LOSS, VAL_LOSS])
    costs = [IMAGES_SEEN, NFE_FORWARD, ENCODE_NFE, TRAIN_SECONDS]
    return {
        **({f"tags.`{names.ARM}`": 120} if len(study.arms) > 1 else {}),
        f"tags.`{names.SEED}`": 70,
        **{f"params.`{key}`": 110 for key in study.nuisance},
        **{f"metrics.`{name}`": 105 for name in [*losses, *costs]},
    }


def _charts(study: Study, *, grouped: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Sections of charts, and the charts in them. Of the metrics left over the UI fills `OTHERS`, which is folded."""
    metric, _ = ranking(study)
    every = dict.fromkeys([metric, study.metric.name, TEST_LOSS, VAL_LOSS, TRAIN_LOSS])
    losses = [name for name in every if is_loss(name)]
    values, of_losses = study.values, _loss_scale(study)
    # Over seconds the UI takes no means: it joins the points of all seeds of a group.
    scale = of_losses if is_loss(metric) else "linear"
    seconds = _line(TRAIN_SECONDS, scale="linear") if grouped else _line(metric, scale=scale, over=TRAIN_SECONDS)
    sections = {
        **{_over_images(name, values): [_line(name, scale="linear")] for name in _others(study)},
        f"Loss over images seen, {unit_of(VAL_LOSS, values)}": [_line(name, scale=of_losses) for name in losses],
        "What it costs": [seconds, *(_line(name, scale="linear") for name in (NFE_FORWARD, ENCODE_NFE))],
        "What was searched, and what came of it": [_parallel([*study.nuisance], metric)] if study.nuisance else [],
    }
    sections = {title: cards for title, cards in sections.items() if cards}
    charts = [
        {**chart, "uuid": f"{title}: {place}", "metricSectionId": title}
        for title, cards in sections.items()
        for place, chart in enumerate(cards)
    ]
    return [*(_section(title) for title in sections), _section(OTHERS, display=False)], charts


def _loss_scale(study: Study) -> str:
    """Return the scale of an axis of losses: logarithmic, unless a likelihood's losses can be negative."""
    positive = all(study.example(arm).likelihood.name in POSITIVE_LOSSES for arm in study.arms)
    return "log" if positive else "linear"


def _over_images(metric: str, values: Values) -> str:
    label, unit = info_of(metric).label, unit_of(metric, values)
    return f"{label[:1].upper()}{label[1:]} over images seen{f', {unit}' if unit else ''}"


def _section(title: str, *, display: bool = True) -> dict[str, Any]:
    kind = {"isReordered": True, "deleted": False, "isGenerated": False}
    return {"uuid": title, "name": title, "display": display, **kind}


def _line(metric: str, over: str = "", scale: str = "log") -> dict[str, Any]:
    """A curve over images seen on a logarithmic axis, or over another metric.

    The UI's bands reach down to 0 on a linear axis, which leaves little height to the differences between losses.
    """
    return {
        "type": "LINE",
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "xAxisKey": "metric" if over else "step",
        "selectedXAxisMetricKey": over,
        "xAxisScaleType": "linear" if over else "log",
        "useGlobalXaxisKey": False,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "scaleType": scale,
        "range": {},
        "ignoreOutliers": False,
        "lineSmoothness": 0,
        "useGlobalLineSmoothing": True,
        "displayPoints": True,
        "runsCountToCompare": 20,
        "deleted": False,
        "isGenerated": False,
    }


def _parallel(params: list[str], metric: str) -> dict[str, Any]:
    """Parallel coordinates of searched parameters and of what they gave."""
    return {
        "type": "PARALLEL",
        "selectedParams": params,
        "selectedMetrics": [metric],
        "showAllRuns": True,
        "runsCountToCompare": 20,
        "deleted": False,
        "isGenerated": False,
    }


def _packed(state: Mapping[str, Any]) -> str:
    compact = json.dumps(state, separators=(",", ":"), ensure_ascii=False)
    return f"deflate;{base64.b64encode(zlib.compress(compact.encode(), 9)).decode()}"
