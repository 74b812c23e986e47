"""The state of a study, from its journal alone."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from gfe_study.config import Study
from gfe_study.metrics import DIVERGED, VAL_LOSS, result_of
from gfe_study.names import SIDE_BY_SIDE
from gfe_study.study.journal import FAILED, FINISHED, Journal
from gfe_study.study.pace import Begun, Kind, Pace, share_of, spent

PLANNED = "planned"


def _unasked(journal: Journal, study: Study | None) -> Counter[Kind]:
    """Trials that the search, or the second stage, has yet to choose; none once a sweep has run to its end."""
    if study is None or journal.settled is not None:
        return Counter()
    known = Counter((member.stage, member.arm) for member in journal.membership)
    return Counter(
        {
            (stage, arm.name): max(0, study.configurations(arm.name, stage) - known[stage, arm.name])
            * len(study.seeds_of(stage))
            for stage in study.stages()
            for arm in study.arms
        }
    )


def _seconds_left(journal: Journal, study: Study | None, unasked: Counter[Kind]) -> float | None:
    """How long a running sweep still takes; None if none runs, or if it cannot be told yet."""
    if study is None or not journal.in_use():
        return None
    pace, waiting, running, slots = Pace(), Counter(unasked), [], 1
    for member in journal.membership:
        kind = member.stage, member.arm
        for name in dict.fromkeys(member.fingerprints):
            points, placed = journal.points.get(name), journal.places.get(name)
            slots = max(slots, int(placed[-1].get(SIDE_BY_SIDE, 1))) if placed else slots
            if name in journal.outcomes:
                if points:
                    pace.note(kind, spent(points[-1]))
            elif points:
                budget = study.example(*kind[::-1]).budget
                running.append(Begun(kind, spent(points[-1]), share_of(budget, points[-1])))
            else:
                waiting[kind] += 1
    return pace.left(waiting, running, slots)


def state_of(journal: Journal) -> dict[str, Any]:
    """Return trials by state, the best value of the last stage so far, and failures with their reasons, as plain data.

    Only trials that belong to the study as it was last declared count; `former` is the number of those that do not. A
    trial without an end is `running` while a sweep of the study runs, and `interrupted` otherwise; `planned` are those
    that have not begun, chosen by the search or not. `seconds_left` is None unless a sweep runs.
    """
    metric = (journal.study or {}).get("study", {}).get("metric", {"name": VAL_LOSS, "mode": "min"})
    stages = {name: member.stage for member in journal.membership for name in member.fingerprints}
    members = list(stages)
    outcomes = {name: journal.outcomes[name] for name in members if name in journal.outcomes}
    begun, open_ = journal.begun(), "running" if journal.in_use() else "interrupted"
    states = Counter(
        outcomes[name].state if name in outcomes else open_ if name in begun else PLANNED for name in members
    )
    study = None if journal.study is None else Study.build(journal.study["study"], **journal.study["source"])
    unasked = _unasked(journal, study)
    states[PLANNED] += unasked.total()
    values = {
        name: result[metric["name"]]
        for name, outcome in outcomes.items()
        if outcome.state == FINISHED
        and (points := journal.points.get(name))
        and metric["name"] in (result := result_of(points))
        and not result.get(DIVERGED)
        and math.isfinite(result[metric["name"]])
    }
    last = max((stages[name] for name in values), default=0)  # the same choice as `Plan.best`
    sign = 1 if metric["mode"] == "min" else -1
    valued = {name: value for name, value in values.items() if stages[name] == last}
    best = min(valued, key=lambda name: (sign * valued[name], name), default=None)
    return {
        "trials": {state: count for state, count in states.items() if count},
        "former": len(begun - set(members)),
        "seconds_left": _seconds_left(journal, study, unasked),
        "best": {"fingerprint": best, "metric": metric["name"], "value": values[best]} if best else None,
        "failures": [
            {"fingerprint": name, "reason": outcome.reason}
            for name, outcome in outcomes.items()
            if outcome.state == FAILED
        ],
    }
