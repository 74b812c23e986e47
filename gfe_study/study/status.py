"""The state of a study, from its journal alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gfe_study import names
from gfe_study.study.journal import FAILED, FINISHED, Journal


def state_of(journal: Journal) -> dict[str, Any]:
    """Trials by state, the best value so far, and failures with their reasons, as plain data."""
    metric = (journal.study or {}).get("study", {}).get("metric", {"name": names.VAL_LOSS, "mode": "min"})
    states = Counter(
        journal.outcomes[name].state if name in journal.outcomes else "unfinished" for name in journal.asked
    )
    values = {
        name: points[-1][metric["name"]]
        for name, points in journal.points.items()
        if name in journal.outcomes
        and journal.outcomes[name].state == FINISHED
        and metric["name"] in points[-1]
        and not points[-1][names.DIVERGED]
    }
    choose = min if metric["mode"] == "min" else max
    best = choose(values, key=lambda name: values[name], default=None)
    return {
        "trials": dict(states),
        "best": {"fingerprint": best, "metric": metric["name"], "value": values[best]} if best else None,
        "failures": [
            {"fingerprint": name, "reason": outcome.reason}
            for name, outcome in journal.outcomes.items()
            if outcome.state == FAILED
        ],
    }
