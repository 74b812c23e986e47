"""The verdict of a study and the signs of a bad sweep, computed as the study declares.

Trials are given as a frame, from a journal or from the tracking store: one row per trial with an outcome, with `arm`,
`stage`, `number`, `seed`, `fingerprint`, `state`, `diverged`, `failed`, `value` (the study's metric), the metrics of
its result, `verdict.CONDITIONS`, and the searched keys that apply.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from gfe_study import names
from gfe_study.analysis.judge.diagnostics import Diagnostic, diagnose, doubts, linear_is_enough
from gfe_study.analysis.judge.irregular import FINISHED
from gfe_study.analysis.judge.verdict import Verdict, judge
from gfe_study.analysis.store.tidy import RUN_ID, STOPPED
from gfe_study.config import Budget, InputError, Range, Study
from gfe_study.metrics import DIVERGED, IMAGES_SEEN, NFE, TRAIN_SECONDS


def verdict_of(study: Study, trials: pd.DataFrame, curves: pd.DataFrame) -> Verdict | None:
    """Compare a study's arms at the last stage with results; return None if the study compares nothing.

    Args:
        study: the study.
        trials: one row per trial, as described above.
        curves: one row per (fingerprint, images seen), with metrics.

    Raises:
        InputError: see `in_order`.
    """
    trials = in_order(study, trials)
    if study.scientific is None:
        return None
    stage, judged = judged_trials(study, trials)
    given = {arm.name: study.example(arm, stage).budget for arm in study.arms}
    equal, budgets = shared_budget(given)
    verdict = judge(
        judged,
        curves,
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
        values=study.values,
        stopped_by_validation=any(budget.patience is not None for budget in given.values()),
        fixed=[arm.name for arm in study.arms if not study.searches(arm.name)],
    )
    tried = {arm: count for arm, count in tuned(study, trials).items() if study.searches(arm)}
    if stage and len(set(tried.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in tried.items())
        fewest = min((count for count in tried.values() if count), default=0)
        verdict.warnings.insert(
            0, f"unequal numbers of tuning trials ({counts}): winners were chosen among the first {fewest} of each"
        )
    return verdict


def shared_budget(given: Mapping[str, Budget]) -> tuple[str, dict[str, float]]:
    """Return the unit in which arms are compared, which the first one's budget says, and every arm's budget in it."""
    first = next(iter(given.values()))
    if first.nfe is not None:
        return NFE, {name: float(budget.nfe or math.inf) for name, budget in given.items()}
    if first.seconds is not None:
        return TRAIN_SECONDS, {name: budget.seconds or math.inf for name, budget in given.items()}
    return IMAGES_SEEN, {name: float(budget.images) for name, budget in given.items()}


def in_order(study: Study | None, trials: pd.DataFrame) -> pd.DataFrame:
    """Sort trials as the study declares its arms, so that no statement depends on the order in which they ran.

    Every statement about trials begins here.

    Raises:
        InputError: two rows are one seed of one configuration.
    """
    if not len(trials):
        return trials
    place = [names.STAGE, names.ARM, names.NUMBER, names.SEED]
    twice = trials[trials.duplicated(place, keep=False)]
    if len(twice):
        where, rows = next(iter(twice.groupby(place, sort=False)))
        key = ", ".join(f"{name} {value!r}" for name, value in zip(place, where, strict=True))
        one, other = rows[RUN_ID if RUN_ID in rows else names.FINGERPRINT].iloc[:2]
        remedy = f"delete the other run, or set its tag {names.ROLE} to {names.ROLE_SUPERSEDED!r}"
        raise InputError(f"trials: {key}: given {one} and {other}; allowed: one trial ({remedy})")
    if study is None:
        return trials
    places = {arm.name: number for number, arm in enumerate(study.arms)}
    keys = trials[place].assign(arm=trials[names.ARM].map(places).fillna(len(places)))
    order = keys.sort_values([names.ARM, names.STAGE, names.NUMBER, names.SEED], kind="stable")
    return trials.loc[order.index].reset_index(drop=True)


def judged_trials(study: Study, trials: pd.DataFrame) -> tuple[int, pd.DataFrame]:
    """Return the last stage with complete configurations (the first if none has any) and their trials."""
    for stage in reversed(study.stages()):
        found = complete(of_stage(trials, stage), len(study.seeds_of(stage)))
        if len(found) or stage == 0:
            return stage, found
    raise AssertionError("a study has a first stage")


def of_stage(trials: pd.DataFrame, stage: int) -> pd.DataFrame:
    return trials[trials[names.STAGE] == stage] if len(trials) else trials


def complete(trials: pd.DataFrame, seeds: int) -> pd.DataFrame:
    """Return the rows of the configurations whose seeds have all ended, failed or not, without early stopping."""
    if not len(trials):
        return trials
    over = trials[trials["state"] != STOPPED]
    counts = over.groupby([names.ARM, names.NUMBER])[names.SEED].transform("nunique")
    return over[counts == seeds]


def tuned(study: Study, trials: pd.DataFrame) -> dict[str, int]:
    """Return how many configurations of each arm completed the first stage."""
    found = complete(of_stage(trials, 0), len(study.seeds_of(0)))
    if len(found):
        counts = found[found["state"] == FINISHED].groupby([names.ARM, names.NUMBER])[names.SEED].nunique()
        ended = counts[counts == len(study.seeds_of(0))].groupby(level=names.ARM).size().to_dict()
    else:
        ended = {}
    return {arm.name: int(ended.get(arm.name, 0)) for arm in study.arms}


def signs_of(study: Study, trials: pd.DataFrame, verdict: Verdict | None) -> list[Diagnostic]:
    """Return signs of a bad search in the study's first stage, and of comparisons that decide nothing.

    Args:
        study: the study.
        trials: one row per trial, as described above.
        verdict: that of `verdict_of`.

    Raises:
        InputError: see `in_order`.
    """
    trials = in_order(study, trials)
    first = of_stage(trials, 0)
    if not len(first):
        return []
    found: list[Diagnostic] = []
    for arm, searched in searched_ranges(study, first).items():
        found += diagnose(first[first[names.ARM] == arm], searched, study.metric.mode) if searched else []
    known = {(sign.kind, sign.arm) for sign in found}
    stage, _ = judged_trials(study, trials)
    last = diagnose(of_stage(trials, stage), {}, study.metric.mode)
    found += [sign for sign in last if sign.kind == "diverged" and (sign.kind, sign.arm) not in known]
    if verdict is None:
        return found
    linear = [arm.name for arm in study.arms if study.example(arm).method.linear]
    return found + doubts(verdict) + linear_is_enough(verdict, linear)


def searched_ranges(study: Study, trials: pd.DataFrame) -> Mapping[str, dict[str, Range]]:
    """Return arm -> the searched keys that apply to its best trial, and their ranges."""
    sign = study.metric.sign
    found: dict[str, dict[str, Range]] = {}
    for arm in study.arms:
        own = trials[(trials[names.ARM] == arm.name) & ~trials["failed"] & ~trials[DIVERGED]]
        own = own[own[study.metric.name].notna()] if study.metric.name in own else own.iloc[:0]
        if len(own):
            best = own.iloc[int((sign * own[study.metric.name]).argmin())]
            point = {key: best[key] for key in study.nuisance if key in best}
        else:
            point = study.completed({}, arm)
        ranges = {key: study.range_of(key, arm, point) for key in study.nuisance}
        found[arm.name] = {key: drawn for key, drawn in ranges.items() if drawn is not None}
    return found
