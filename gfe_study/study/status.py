"""The state of a study, from its journal alone."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from gfe_study.metrics import DIVERGED, VAL_LOSS, result_of
from gfe_study.study.journal import FAILED, FINISHED, Journal


def state_of(journal: Journal) -> dict[str, Any]:
    """Return trials by state, the best value of the last stage so far, and failures with their reasons, as plain data.

    Only trials that belong to the study as it was last declared count; `former` is the number of those that do not.
    """
    metric = (journal.study or {}).get("study", {}).get("metric", {"name": VAL_LOSS, "mode": "min"})
    stages = {name: member.stage for member in journal.membership for name in member.fingerprints}
    members = list(stages)
    outcomes = {name: journal.outcomes[name] for name in members if name in journal.outcomes}
    states = Counter(outcomes[name].state if name in outcomes else "unfinished" for name in members)
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
        "trials": dict(states),
        "former": len(journal.begun() - set(members)),
        "best": {"fingerprint": best, "metric": metric["name"], "value": values[best]} if best else None,
        "failures": [
            {"fingerprint": name, "reason": outcome.reason}
            for name, outcome in outcomes.items()
            if outcome.state == FAILED
        ],
    }
