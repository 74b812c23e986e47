"""A study's trials as tidy pandas frames, from its journal's record of which trials belong to it."""

from __future__ import annotations

import math

import pandas as pd

from gfe_study import names
from gfe_study.config import Study
from gfe_study.metrics import DIVERGED, result_of
from gfe_study.study.journal import FAILED, Journal
from gfe_study.study.plan import Job, Plan


def trials_frame(study: Study, journal: Journal) -> pd.DataFrame:
    """Return one row per member of the study that has an outcome; the columns are those of `analysis.judgement`."""
    rows = []
    for member in journal.membership:
        for seed, name in zip(member.seeds, member.fingerprints, strict=True):
            outcome = journal.outcomes.get(name)
            if outcome is None:
                continue
            points = journal.points.get(name)
            result = result_of(points) if points and outcome.state != FAILED else {}
            rows.append(
                {
                    **result,
                    **member.params,
                    **{key: outcome.run.get(key, "") for key in (names.DEVICE, names.THREADS, names.SIDE_BY_SIDE)},
                    "arm": member.arm,
                    "stage": member.stage,
                    "number": member.number,
                    "seed": seed,
                    "fingerprint": name,
                    "value": result.get(study.metric.name, math.nan),
                    "diverged": bool(result.get(DIVERGED, 0.0)),
                    "failed": outcome.state == FAILED,
                    "state": outcome.state,
                }
            )
    return pd.DataFrame(rows)


def curves_frame(journal: Journal) -> pd.DataFrame:
    """Return one row per (fingerprint, images seen) of every trial of the study, with its metrics."""
    members = dict.fromkeys(name for member in journal.membership for name in member.fingerprints)
    return pd.DataFrame(
        [
            {"fingerprint": name, **point}
            for name in members
            for point in journal.points.get(name, [])
            if not point.get(DIVERGED)
        ]
    )


def objectives(plan: Plan, arm: str) -> list[tuple[Job, float, float]]:
    """Return one trial and both means of every complete configuration of an arm, in a search with two objectives."""
    against = plan.study.metric.against
    found = []
    for configuration in plan.ranked(0, arm) if against else ():
        first, second = plan.mean(configuration), plan.mean(configuration, against)
        if first is not None and second is not None and math.isfinite(first) and math.isfinite(second):
            found.append((plan.jobs[configuration.fingerprints[0]], first, second))
    return found
