"""What a study has come to: ranking, verdict, Pareto front, signs of a bad sweep; all as data."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gfe_study.analysis.diagnostics import Diagnostic
from gfe_study.analysis.judgement import signs_of, verdict_of
from gfe_study.analysis.stats import pareto
from gfe_study.analysis.verdict import Verdict
from gfe_study.study.frames import curves_frame, objectives, trials_frame
from gfe_study.study.plan import Job, Plan
from gfe_study.study.sweep import Outcome


def ranked(plan: Plan) -> list[tuple[Job, float]]:
    """Finished trials, best first."""
    valued = [(job, value) for job in plan.finished() if (value := plan.value(job)) is not None]
    return sorted(valued, key=lambda pair: pair[1], reverse=plan.study.metric.mode == "max")


def verdict(plan: Plan) -> Verdict | None:
    """The comparison of a study's arms at its last stage that has results; None if it compares nothing."""
    return verdict_of(plan.study, trials_frame(plan), curves_frame(plan))


def signs(plan: Plan) -> list[Diagnostic]:
    """Signs that the study was a bad one, from its first stage, once that is over."""
    return signs_of(plan.study, trials_frame(plan)) if plan.stage_over(0) else []


def front(plan: Plan) -> list[tuple[Job, float, float]]:
    """The configurations of each arm that no other of it beats in both objectives."""
    found = []
    for arm in plan.study.arms:
        valued = objectives(plan, arm.name)
        sign = 1 if plan.study.metric.mode == "min" else -1
        found += [valued[place] for place in pareto([(sign * first, second) for _, first, second in valued])]
    return found


def summary(outcome: Outcome) -> dict[str, Any]:
    """A sweep's end as plain data."""
    plan = outcome.plan
    best = [
        {"fingerprint": job.fingerprint, "arm": job.arm, "params": job.params, "value": value}
        for job, value in ranked(plan)[:1]
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
            *(f"arm {arm!r}: fewer configurations than asked for" for arm in plan.short),
        ],
        "slots": outcome.slots,
        "seconds": outcome.seconds,
    }
