"""A plan as tidy pandas frames, for statistics."""

from __future__ import annotations

import math

import pandas as pd

from gfe_study import names
from gfe_study.study.journal import FAILED
from gfe_study.study.plan import Job, Plan


def trials_frame(plan: Plan) -> pd.DataFrame:
    """One row per trial that has an outcome; columns as for `analysis.judgement`."""
    rows = []
    for (stage, arm), there in plan.configurations.items():
        for configuration in there.values():
            for seed, name in zip(plan.study.seeds_of(stage), configuration.fingerprints, strict=True):
                outcome = plan.journal.outcomes.get(name)
                if outcome is None:
                    continue
                points = plan.journal.points.get(name)
                last = points[-1] if points and outcome.state != FAILED else {}
                value = last.get(plan.study.metric.name, math.nan)
                rows.append(
                    {
                        **last,
                        **configuration.params,
                        "arm": arm,
                        "stage": stage,
                        "number": configuration.number,
                        "seed": seed,
                        "fingerprint": name,
                        "value": value,
                        "diverged": bool(last.get(names.DIVERGED, 0.0)),
                        "failed": outcome.state == FAILED,
                        "state": outcome.state,
                    }
                )
    return pd.DataFrame(rows)


def curves_frame(plan: Plan) -> pd.DataFrame:
    """One row per (fingerprint, images seen) of every trial, with its metrics."""
    return pd.DataFrame(
        [
            {"fingerprint": name, **point}
            for name in plan.jobs
            for point in plan.journal.points.get(name, [])
            if not point.get(names.DIVERGED)
        ]
    )


def objectives(plan: Plan, arm: str) -> list[tuple[Job, float, float]]:
    """Of a search with two objectives: one trial, and both means, of every complete configuration of an arm."""
    against = plan.study.metric.against
    found = []
    for configuration in plan.ranked(0, arm) if against else ():
        first, second = plan.mean(configuration), plan.mean(configuration, against)
        if first is not None and second is not None and math.isfinite(first) and math.isfinite(second):
            found.append((plan.jobs[configuration.fingerprints[0]], first, second))
    return found
