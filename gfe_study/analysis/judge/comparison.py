"""Two arms of two studies, or of one, compared as a study compares its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd

from gfe_study import names
from gfe_study.analysis.judge.judgement import in_order, judged_trials, shared_budget, tuned
from gfe_study.analysis.judge.verdict import Verdict, best_configuration, judge, usable
from gfe_study.config import InputError, Trial, flatten
from gfe_study.metrics import IMAGES_SEEN, is_loss

if TYPE_CHECKING:
    from gfe_study.api import Result


@dataclass(frozen=True, eq=False)
class Side:
    """An arm of a study, as it is compared.

    Attributes:
        result: the study.
        arm: its name; empty in a study without arms.
        trials: those of its best configuration, of the last stage with results.
        tuned: how many configurations that one was chosen among.
    """

    result: Result
    arm: str
    trials: pd.DataFrame
    tuned: int

    @property
    def name(self) -> str:
        return f"{self.result.label}:{self.arm}" if self.arm else self.result.label

    @property
    def trial(self) -> Trial:
        study = self.result.study
        return study.example(next(arm for arm in study.arms if arm.name == self.arm), self.stage)

    @property
    def stage(self) -> int:
        return int(self.trials[names.STAGE].iloc[0])


def compare(reference: Side, other: Side) -> Verdict:
    """Compare two arms by the metric that the reference's study compares, paired by seed.

    Each is represented by the configuration that its own study finds best. Whatever else differs in how they were
    evaluated is among the verdict's warnings.

    Raises:
        InputError: they are the same arm, of different data, or their losses mean different things.
    """
    if reference.name == other.name:
        raise InputError(f"compare: given {other.name!r} twice; allowed: two studies, or two arms, as STUDY:ARM")
    study = reference.result.study
    metric, select = study.compare.metric, study.metric
    sides, trials = (reference, other), (reference.trial, other.trial)
    one, two = (flatten(trial.dump()) for trial in trials)
    labels = [trial.data.label for trial in trials]
    if labels[0] != labels[1]:
        raise InputError(f"{other.name}: its data is {labels[1]}; allowed: {labels[0]}, as of {reference.name}")
    for key in ("likelihood.name", "data.scale"):
        if is_loss(metric) and one.get(key) != two.get(key):
            raise InputError(
                f"{other.name}: its {key} is {two.get(key)}, and {metric} of {reference.name} is measured with "
                f"{one.get(key)}; "
                "allowed: the same, or a study whose compare.metric is an error in the data's units, like test_rmse"
            )
    equal, budgets = shared_budget({side.name: trial.budget for side, trial in zip(sides, trials, strict=True)})
    verdict = judge(
        pd.concat([side.trials.assign(arm=side.name, number=0) for side in sides], ignore_index=True),
        pd.concat([side.result.curves for side in sides], ignore_index=True).drop_duplicates(
            [names.FINGERPRINT, IMAGES_SEEN]
        ),
        {reference.name: None, other.name: reference.name},
        metric=metric,
        select=select.name,
        mode=select.mode,
        margin=study.compare.margin,
        confidence=study.compare.confidence,
        equal=equal,
        budgets=budgets,
        as_declared=study.compare.budgets == "as_declared",
        values=study.values,
        stopped_by_validation=any(trial.budget.patience is not None for trial in trials),
    )
    for place, side in enumerate(sides[: len(verdict.rows)]):
        verdict.rows[place] = replace(verdict.rows[place], configuration=int(side.trials[names.NUMBER].iloc[0]))
    seeds = [sorted(set(side.trials[names.SEED])) for side in sides]
    if not {*seeds[0]} & {*seeds[1]}:
        told = " and ".join(
            f"{side.name} has {', '.join(map(str, own))}" for side, own in zip(sides, seeds, strict=True)
        )
        verdict.warnings.append(f"no seed is shared, so that nothing can be paired: {told}")
    if reference.tuned != other.tuned:
        counts = ", ".join(f"{side.name} {side.tuned}" for side in sides)
        verdict.warnings.append(f"unequal numbers of tuning trials ({counts}): more give a better best result")
    shared = [key for key in {**one, **two} if key.startswith(("data.", "eval."))]
    differing = [key for key in shared if one.get(key) != two.get(key)]
    if differing:
        told = ", ".join(f"{key} {one.get(key)} and {two.get(key)}" for key in differing)
        verdict.warnings.append(f"evaluated under different conditions: {told}")
    return verdict


def side_of(result: Result, arm: str | None) -> Side:
    """An arm of a study, or the arm that is best by its study's metric.

    Raises:
        InputError: there is no such arm, or none of its configurations is complete.
    """
    study = result.study
    arms = [each.name for each in study.arms]
    if arm is not None and arm not in arms:
        allowed = ", ".join(filter(None, arms)) or f"{result.label} alone, which has no arms"
        raise InputError(f"{result.label}:{arm}: no such arm; allowed: {allowed}")
    trials = in_order(study, result.trials)
    _, judged = judged_trials(study, trials)
    metric = study.metric
    best = {
        str(name): best_configuration(rows, metric.name, metric.mode)
        for name, rows in (judged.groupby(names.ARM, sort=False) if metric.name in judged else ())
        if arm is None or name == arm
    }
    sound = {name: rows.loc[usable(rows, metric.name), metric.name] for name, rows in best.items()}
    ranks = {
        name: (len(best[name]) - len(values), metric.sign * values.mean())
        for name, values in sound.items()
        if len(values)
    }
    if not ranks:
        where = result.label if arm is None else f"{result.label}:{arm}"
        raise InputError(f"{where}: no configuration is complete; resume the study first")
    chosen = min(ranks, key=lambda name: ranks[name])
    return Side(result, chosen, best[chosen], tuned(study, trials)[chosen])
