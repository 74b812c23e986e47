"""What a study has come to: ranking, verdict, Pareto front, signs of a bad sweep; all as data."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from gfe_study import names
from gfe_study.analysis.diagnostics import Diagnostic
from gfe_study.analysis.stats import pareto
from gfe_study.analysis.verdict import Verdict, diagnostics, judge
from gfe_study.study.frames import complete, curves_frame, objectives, ranges_of, trials_frame
from gfe_study.study.images import example
from gfe_study.study.plan import Job, Plan
from gfe_study.study.sweep import Outcome


def ranked(plan: Plan) -> list[tuple[Job, float]]:
    """Finished trials, best first."""
    valued = [(job, value) for job in plan.finished() if (value := plan.value(job)) is not None]
    return sorted(valued, key=lambda pair: pair[1], reverse=plan.study.metric.mode == "max")


def verdict_of(plan: Plan) -> Verdict | None:
    """The comparison of a study's arms at its last stage that has results; None if it compares nothing."""
    study = plan.study
    if study.scientific is None:
        return None
    for stage in reversed(study.stages()):
        trials = complete(trials_frame(plan, stage), len(study.seeds_of(stage)))
        if len(trials):
            break
    given = {arm.name: example(study, arm.name, stage).budget for arm in study.arms}
    first = given[study.arms[0].name]
    if first.nfe is not None:
        equal, budgets = names.NFE_FORWARD, {name: float(b.nfe or math.inf) for name, b in given.items()}
    elif first.seconds is not None:
        equal, budgets = names.TRAIN_SECONDS, {name: b.seconds or math.inf for name, b in given.items()}
    else:
        equal, budgets = names.IMAGES_SEEN, {name: float(b.images) for name, b in given.items()}
    verdict = judge(
        trials,
        curves_frame(plan),
        {arm.name: arm.reference for arm in study.arms},
        metric=study.compare.metric,
        select=study.metric.name,
        mode=study.metric.mode,
        margin=study.compare.margin,
        confidence=study.compare.confidence,
        equal=equal,
        budgets=budgets,
        as_declared=study.compare.budgets == "as_declared",
        alone={arm.name: arm.alone for arm in study.arms if arm.alone},
    )
    tried = {name: len(numbers) for name, numbers in plan.tuned().items()}
    if stage and len(set(tried.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in tried.items())
        verdict.warnings.insert(
            0,
            f"unequal numbers of tuning trials ({told}): winners were chosen among the first "
            f"{plan.fewest_tuned()} of each",
        )
    return verdict


def signs(plan: Plan) -> list[Diagnostic]:
    """Signs that the study was a bad one, from its first stage."""
    study = plan.study
    if not plan.stage_over(0):
        return []
    ranges = {arm.name: ranges_of(plan, arm.name) for arm in study.arms}
    return diagnostics(trials_frame(plan, 0), ranges, study.metric.mode)


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
    verdict = verdict_of(plan)
    return {
        "trials": dict(sorted(Counter(plan.state(job) for job in plan.jobs.values()).items())),
        "best": best,
        "verdict": verdict.as_dict() if verdict is not None else None,
        "pareto": [{"fingerprint": job.fingerprint, "values": values} for job, *values in front(plan)],
        "notes": [vars(sign) for sign in signs(plan)],
        "holes": [vars(hole) for hole in plan.study.holes],
        "failures": {job.fingerprint: plan.journal.outcomes[job.fingerprint].reason for job in plan.failed()},
        "taken_over": outcome.taken_over,
        "problems": [*outcome.damaged, *([outcome.stopped] if outcome.stopped else [])],
        "slots": outcome.slots,
        "seconds": outcome.seconds,
    }
