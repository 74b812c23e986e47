"""The evidence of a study: everything that the tracking store holds of it, for exhibits and reports."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from gfe_study import names
from gfe_study.analysis.judge.diagnostics import Diagnostic
from gfe_study.analysis.judge.irregular import Irregularity, ended, irregularities, usable
from gfe_study.analysis.judge.judgement import (
    complete,
    in_order,
    judged_trials,
    of_stage,
    searched_ranges,
    signs_of,
    verdict_of,
)
from gfe_study.analysis.judge.verdict import Verdict, best_configuration, passes
from gfe_study.analysis.store.load import Parent, Store
from gfe_study.analysis.store.tidy import PARAMS, RUN_ID, measured, until_result
from gfe_study.config import InputError, Range, Study
from gfe_study.metrics import (
    DIVERGED,
    ENCODE_SECONDS,
    IMAGES_SEEN,
    STANDARD,
    TEST_LOSS,
    TRAIN_SECONDS,
    VAL_LOSS,
    Values,
    label_of,
    mode_of,
)

FALLBACK_METRIC = TEST_LOSS

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything that the store holds of a study.

    Attributes:
        name: name of the study.
        store: the store.
        study: declaration of the study; None if it is lost, or if no sweep made the experiment.
        question: the question that the study answers.
        parent: the study's own run.
        runs, points: all runs of the study and their points, as `Store.frames` returns them.
        num_former: number of further runs, of trials that no longer belong to the study.
    """

    name: str
    store: Store
    study: Study | None
    question: str
    parent: Parent | None
    runs: pd.DataFrame
    points: pd.DataFrame
    num_former: int = 0

    @classmethod
    def load(cls, store: Store, name: str) -> Evidence:
        """Read a study. Raises `InputError` if the store has no such study or an invalid declaration of it."""
        runs, points, num_former = store.frames(name)
        declared = store.declaration(name)
        study = Study.build(declared, f"{name}: study.yaml") if declared is not None else None
        return cls(name, store, study, store.question(name), store.parent(name), runs, points, num_former)

    @cached_property
    def irregularities(self) -> list[Irregularity]:
        """Problems of the runs, each with the run's name."""
        return irregularities(self.runs, self.points)

    @cached_property
    def _ended(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        return ended(self.runs, self.points)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """Trials with an outcome, as `judgement` expects them, with searched keys as columns of numbers or choices.

        A result is that of the last point up to its result: latents that have collapsed since an earlier one have no
        entropy.

        Raises:
            InputError: see `judgement.in_order`.
        """
        trials, points = self._ended
        trials = in_order(self.study, trials)
        last = until_result(points).drop_duplicates(RUN_ID, keep="last").set_index(RUN_ID)
        without = trials[DIVERGED] | ~trials[RUN_ID].isin(last.index)
        logged = [name for name in (*STANDARD, *measured(points)) if name in trials]
        ends = {name: trials[name].where(without, trials[RUN_ID].map(last[name])) for name in logged}
        trials = trials.assign(**ends)
        trials = trials.assign(value=trials[self.chosen_by])
        return trials if self.study is None else trials.join(self._searched(self.study, trials))

    @cached_property
    def curves(self) -> pd.DataFrame:
        """Points of the trials with a result, and each trial's `arm`, `stage`, `number`, `seed` and `dataset`."""
        trials, points = usable(*self._ended)
        about = [RUN_ID, names.ARM, names.STAGE, names.NUMBER, names.SEED, names.METHOD, names.DATASET]
        curves = points.merge(trials[[*about, names.ENTROPY_FLOOR]], on=RUN_ID)
        return curves.assign(nfe=passes(curves))

    @cached_property
    def verdict(self) -> Verdict | None:
        """The comparison of the study's arms; None if it compares nothing."""
        if self.study is None or not len(self.trials):
            return None
        return verdict_of(self.study, self.trials, self.curves)

    @cached_property
    def signs(self) -> list[Diagnostic]:
        """Signs of a bad sweep."""
        return [] if self.study is None else signs_of(self.study, self.trials, self.verdict)

    @cached_property
    def ranges(self) -> Mapping[str, dict[str, Range]]:
        """Arm -> the searched keys that apply to its best trial, and their ranges."""
        return {} if self.study is None else searched_ranges(self.study, of_stage(self.trials, 0))

    @property
    def arms(self) -> list[str]:
        """Names of the arms with trials, in the declared order; one empty name if the study has no arms."""
        there = list(dict.fromkeys(self.trials[names.ARM]))
        declared = [arm.name for arm in self.study.arms] if self.study is not None else []
        return [arm for arm in declared if arm in there] + [arm for arm in there if arm not in declared]

    def arm_without(self, arm: str, factor: str) -> str:
        """Return the name of an arm without one factor: its other levels in a factorial, its own name otherwise."""
        return ", ".join(level for key, level in self.levels(arm) if key != factor) or arm

    def levels(self, arm: str) -> tuple[tuple[str, str], ...]:
        """Return an arm's (factor, level) pairs in a factorial; none otherwise."""
        arms = self.study.arms if self.study is not None else []
        return next((own.levels for own in arms if own.name == arm), ())

    @property
    def confidence(self) -> float:
        return self.study.compare.confidence if self.study is not None else 0.95

    @property
    def chosen_by(self) -> str:
        """The metric that ranks the configurations of an arm."""
        return self.study.metric.name if self.study is not None else VAL_LOSS

    @property
    def metric(self) -> str:
        """The metric that compares the arms."""
        return self.study.compare.metric if self.study is not None else FALLBACK_METRIC

    @cached_property
    def values(self) -> Values:
        """What the values of the study's data are called; of a study whose declaration is lost, as its runs say."""
        if self.study is not None:
            return self.study.values
        known = self.runs[self.runs[names.VALUE_NOUN] != ""]
        return Values.shared(Values(*each) for each in zip(known[names.VALUE_NOUN], known[names.UNIT], strict=True))

    def label(self, metric: str) -> str:
        """Return the label of a metric with its unit on the study's data."""
        return label_of(metric, self.values)

    @cached_property
    def chosen(self) -> pd.DataFrame:
        """The trials that represent their arms: all seeds of each arm's best configuration in the last stage.

        The best configuration has the fewest lost seeds, then the best mean of the study's metric. An arm without a
        complete configuration is represented by the best of its incomplete ones.
        """
        if self.study is not None:
            stage, judged = judged_trials(self.study, self.trials)
            missing = [arm for arm in self.arms if arm not in set(judged[names.ARM])] if len(judged) else self.arms
            rest = of_stage(self.trials, stage)
            judged = pd.concat([judged, rest[rest[names.ARM].isin(missing)]])
        else:
            judged = self.trials
        mode = self.study.metric.mode if self.study is not None else mode_of(self.chosen_by)
        best = [best_configuration(group, "value", mode) for _, group in judged.groupby(names.ARM, sort=False)]
        kept = pd.concat(best).index if best else judged.index
        return judged[judged.index.isin(kept)].sort_values(names.SEED, kind="stable", ignore_index=True)

    @cached_property
    def chosen_curves(self) -> pd.DataFrame:
        """Points of the chosen trials that have a result."""
        return self.curves.merge(self.chosen[[RUN_ID, names.ARM, names.STAGE, names.NUMBER]])

    @cached_property
    def chosen_ends(self) -> pd.DataFrame:
        """The result of each of those trials, with the trial's parameters (`params.<dotted key>`)."""
        curves = until_result(self.chosen_curves)
        last = curves[IMAGES_SEEN] == curves.groupby(RUN_ID)[IMAGES_SEEN].transform("max")
        params = [column for column in self.chosen if str(column).startswith(PARAMS)]
        places = [RUN_ID, names.ARM, names.STAGE, names.NUMBER]
        return curves[last].merge(self.chosen[[*places, *params]], on=places)

    def configurations(self, *more: str) -> pd.DataFrame:
        """Return one row per complete configuration of the first stage.

        The columns are `arm`, `number`, `value` (mean over the seeds, NaN if one was lost), the means of
        `train_seconds` and `encode_seconds`, and the searched keys.

        Args:
            more: further metrics to average; NaN if a seed lacks one.
        """
        seeds = len(self.study.seeds_of(0)) if self.study is not None else 1
        trials = complete(of_stage(self.trials, 0), seeds)
        lost = trials["failed"] | trials[DIVERGED]
        table = trials.assign(value=trials["value"].where(~lost))
        keys = list(self.study.nuisance) if self.study is not None else []
        first = {key: (key, "first") for key in keys if key in table}
        grouped = table.groupby([names.ARM, names.NUMBER], sort=False)
        means = grouped[["value", TRAIN_SECONDS, ENCODE_SECONDS, *more]].mean(skipna=False)
        return (means.join(grouped.agg(**first)) if first else means).reset_index()

    def snapshots(self, run_id: str) -> Arrays | None:
        """Return the arrays of a trial's `SNAPSHOTS`, recorded at several points of training; None if not kept."""
        file = self.store.artifact(run_id, names.SNAPSHOTS)
        if file is None:
            return None
        try:
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as content:
                return {key: content[key] for key in content.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{file}: damaged ({error}); allowed: {names.SNAPSHOTS} of a trial") from error

    @staticmethod
    def _searched(study: Study, trials: pd.DataFrame) -> pd.DataFrame:
        rows: list[dict[str, Any]] = []
        for record in trials.to_dict("records"):
            point: dict[str, Any] = {}
            for key in study.nuisance:
                text = record.get(f"{PARAMS}{key}", record.get(f"{PARAMS}{key}.name"))
                arm = str(record[names.ARM])
                known = arm in {each.name for each in study.arms}
                drawn = study.range_of(key, arm, point) if known else None
                if drawn is not None and isinstance(text, str):
                    point[key] = _value(drawn, text)
            rows.append(point)
        return pd.DataFrame(rows, index=trials.index, columns=list(study.nuisance))


def floors_of(trials: pd.DataFrame) -> dict[str, float]:
    """Return dataset -> the lowest test loss that any decoder can reach, of the datasets that have such a floor.

    Args:
        trials: rows with `dataset` and `entropy_floor`.
    """
    known = trials[trials[names.ENTROPY_FLOOR].notna()]
    floors = known.groupby(names.DATASET)[names.ENTROPY_FLOOR].first()
    return {str(name): float(value) for name, value in floors.items()}


def _value(drawn: Range, text: str) -> Any:
    """Convert the store's text of a searched value back to the value."""
    if drawn.kind != "choice":
        number = float(text)
        return int(number) if drawn.kind in ("int", "logint") else number
    for value in drawn.values:
        if str(value) == text or _number(value) == _number(text) is not None:
            return value
    return text


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
