"""Statements about a study as data: the ranking, the verdict, the Pareto front, and signs of a bad sweep."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gfe_study.analysis.judge.diagnostics import Diagnostic
from gfe_study.analysis.judge.judgement import signs_of, verdict_of
from gfe_study.analysis.judge.verdict import Verdict
from gfe_study.analysis.stats.intervals import pareto
from gfe_study.metrics import sign_of
from gfe_study.study.frames import curves_frame, objectives, trials_frame
from gfe_study.study.journal import FINISHED
from gfe_study.study.plan import Job, Plan
from gfe_study.study.sweep import Outcome


def ranked(plan: Plan) -> list[tuple[Job, float]]:
    """Return the trials that have finished their budget, best first; those that diverged are infinitely bad."""
    finished = (job for job in plan.finished() if plan.state(job) == FINISHED)
    valued = [(job, value) for job in finished if (value := plan.value(job)) is not None]
    return sorted(valued, key=lambda pair: plan.study.metric.sign * pair[1])


def verdict(plan: Plan) -> Verdict | None:
    """Compare a study's arms at the last stage with results; return None if the study compares nothing."""
    return verdict_of(plan.study, trials_frame(plan.study, plan.journal), curves_frame(plan.journal))


def signs(plan: Plan) -> list[Diagnostic]:
    """Return signs of a bad search or of too few seeds; empty until the first stage is over."""
    trials = trials_frame(plan.study, plan.journal)
    return signs_of(plan.study, trials, verdict(plan)) if plan.stage_over(0) else []


def front(plan: Plan) -> list[tuple[Job, float, float]]:
    """Return each arm's Pareto-optimal configurations: no other one of the arm beats them in both objectives."""
    found = []
    metric = plan.study.metric
    first_sign, second_sign = metric.sign, sign_of(metric.against) if metric.against else 1
    for arm in plan.study.arms:
        valued = objectives(plan, arm.name)
        found += [valued[at] for at in pareto([(first_sign * one, second_sign * other) for _, one, other in valued])]
    return found


def summary(outcome: Outcome) -> dict[str, Any]:
    """Return the result of a sweep as plain data."""
    plan = outcome.plan
    best = [
        {"fingerprint": job.fingerprint, "arm": job.arm, "params": job.params, "value": value}
        for job, value in filter(None, [plan.best()])
    ]
    judged = verdict(plan)
    return {
        "trials": dict(sorted(Counter(plan.state(job) for job in plan.jobs.values()).items())),
        "best": best,
        "verdict": judged.as_dict() if judged is not None else None,
        "pareto": [{"fingerprint": job.fingerprint, "values": values} for job, *values in front(plan)],
        "notes": [sign.as_dict() for sign in signs(plan)],
        "holes": [vars(hole) for hole in plan.study.holes],
        "failures": {job.fingerprint: plan.journal.outcomes[job.fingerprint].reason for job in plan.failed()},
        "taken_over": outcome.taken_over,
        "problems": [
            *outcome.damaged,
            *([outcome.stopped] if outcome.stopped else []),
            *(f"arm {arm!r}: fewer configurations exist than requested" for arm in plan.short),
        ],
        "slots": outcome.slots,
        "seconds": outcome.seconds,
    }
