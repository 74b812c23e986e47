"""A study's trials in files that other programs read."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from gfe_study import names
from gfe_study.config import InputError, Study
from gfe_study.distributions import distribution, told_to_optuna
from gfe_study.metrics import IMAGES_SEEN
from gfe_study.study.events import STOPPED

if TYPE_CHECKING:
    from gfe_study.api import Result

Format = Literal["csv", "parquet", "optuna"]
ENDINGS: dict[Format, str] = {"csv": ".csv", "parquet": ".parquet", "optuna": ".log"}


def export(result: Result, form: Format, out: Path | None = None) -> Path:
    """Write what came of a study, and return the file.

    - `csv`, `parquet`: one row per trial, as `Result.trials`.
    - `optuna`: Optuna's journal, which `optuna-dashboard` opens. Every arm is a study of its own, with the trials of
      the first stage: one for each configuration and seed, its value the study's metric, its curve the intermediate
      values.

    Args:
        result: the study.
        form: the format.
        out: the file; None: the study's name, in the working folder.

    Raises:
        InputError: no trial has ended, or the file is there already or cannot be written.
    """
    file = Path(f"{result.label}{ENDINGS[form]}") if out is None else out
    if not len(result.trials):
        raise InputError(f"study {result.label!r}: no trial has ended; resume the study first")
    if file.exists():
        raise InputError(f"--out: given {file}, which exists; allowed: a new file")
    try:
        if form == "optuna":
            _to_optuna(result, file)
        elif form == "csv":
            result.trials.to_csv(file, index=False)
        else:
            result.trials.to_parquet(file, index=False)
    except OSError as error:
        raise InputError(f"--out {file}: cannot be written ({error.strerror})") from error
    except ImportError as error:
        raise InputError(
            "--format: given parquet, and pyarrow is missing; allowed: csv, or install gfe-study[data]"
        ) from error
    return file


def _to_optuna(result: Result, file: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = JournalStorage(JournalFileBackend(str(file)))
    curves = {str(name): rows for name, rows in result.curves.groupby(names.FINGERPRINT)}
    first = result.trials[result.trials[names.STAGE] == 0]
    direction = StudyDirection.MINIMIZE if result.study.metric.mode == "min" else StudyDirection.MAXIMIZE
    for arm, trials in first.groupby(names.ARM, sort=False):
        label = ": ".join(filter(None, [result.label, str(arm)]))
        told = optuna.create_study(storage=storage, study_name=label, direction=direction)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            told.set_metric_names([result.study.metric.name])
        told.set_user_attr("question", result.study.question)
        told.add_trials([_trial(result.study, str(arm), row, curves) for _, row in trials.iterrows()])


def _trial(study: Study, arm: str, row: pd.Series[Any], curves: Mapping[str, pd.DataFrame]) -> FrozenTrial:
    point: dict[str, Any] = {}
    params: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}
    for key in study.nuisance:
        drawn = study.range_of(key, arm, point)
        value = None if drawn is None or key not in row else told_to_optuna(row[key], drawn)
        if drawn is not None and value is not None:
            distributions[key] = distribution(drawn)
            params[key] = int(value) if isinstance(distributions[key], IntDistribution) else value
            point[key] = json.loads(value) if isinstance(value, str) else value
    metric, curve = study.metric.name, curves.get(str(row[names.FINGERPRINT]))
    steps: dict[int, float] = {}
    if curve is not None and metric in curve:
        known = curve[curve[metric].notna()]
        steps = {int(images): float(value) for images, value in zip(known[IMAGES_SEEN], known[metric], strict=True)}
    ended = not row["failed"] and not row["diverged"] and pd.notna(row["value"])
    return create_trial(
        state=TrialState.FAIL if not ended else TrialState.PRUNED if row["state"] == STOPPED else TrialState.COMPLETE,
        params=params,
        distributions=distributions,
        value=float(row["value"]) if ended else None,
        intermediate_values=steps,
        user_attrs={
            names.NUMBER: int(row[names.NUMBER]),
            names.SEED: int(row[names.SEED]),
            names.FINGERPRINT: str(row[names.FINGERPRINT]),
        },
    )
