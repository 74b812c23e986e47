"""A plan as tidy pandas frames, for statistics."""

from __future__ import annotations

import math

import pandas as pd

from gfe_study import names
from gfe_study.config import Range
from gfe_study.study.journal import FAILED, STOPPED
from gfe_study.study.plan import Job, Plan


def trials_frame(plan: Plan, stage: int) -> pd.DataFrame:
    """One row per trial of a stage that has an outcome.

    Columns: `arm`, `number`, `seed`, `fingerprint`, `value` (the study's metric), `diverged`, `failed`, the last
    point's metrics, and the searched keys.
    """
    rows = []
    for (of_stage, arm), there in plan.configurations.items():
        for configuration in there.values() if of_stage == stage else ():
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


def ranges_of(plan: Plan, arm: str) -> dict[str, Range]:
    """The searched keys that apply in an arm, as its best configuration has them, and what they are drawn from."""
    ranked = plan.ranked(0, arm)
    point = ranked[0].params if ranked else plan.study.completed({}, arm)
    drawn: dict[str, Range] = {}
    for key in point:
        found = plan.study.range_of(key, arm, point)
        if found is not None:
            drawn[key] = found
    return drawn


def complete(frame: pd.DataFrame, seeds: int) -> pd.DataFrame:
    """The rows of configurations all of whose seeds have ended, in failure or not, and none of them early."""
    if not len(frame):
        return frame
    over = frame[frame["state"] != STOPPED]
    counts = over.groupby(["arm", "number"])["seed"].transform("count")
    return over[counts == seeds]


def objectives(plan: Plan, arm: str) -> list[tuple[Job, float, float]]:
    """Of a search with two objectives: one trial, and both means, of every complete configuration of an arm."""
    against = plan.study.metric.against
    found = []
    for configuration in plan.ranked(0, arm) if against else ():
        first, second = plan.mean(configuration), plan.mean(configuration, against)
        if first is not None and second is not None and math.isfinite(first) and math.isfinite(second):
            found.append((plan.jobs[configuration.fingerprints[0]], first, second))
    return found
