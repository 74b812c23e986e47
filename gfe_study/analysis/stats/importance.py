"""How much of a search's results each searched key accounts for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import optuna
import pandas as pd
from optuna.importance import BaseImportanceEvaluator, FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.trial import create_trial

from gfe_study.analysis.stats.intervals import tied
from gfe_study.config import Range
from gfe_study.distributions import distribution, told_to_optuna
from gfe_study.metrics import Mode

optuna.logging.set_verbosity(optuna.logging.WARNING)

FEWEST = 10
"""Configurations below which importances say nothing."""
KEYS = 2
SEED = 0
PED_ANOVA, FANOVA = "PED-ANOVA", "fANOVA"


def importances(configurations: pd.DataFrame, ranges: Mapping[str, Range], mode: Mode = "min") -> pd.DataFrame | None:
    """Share of each searched key, by PED-ANOVA (Watanabe et al., IJCAI 2023) and fANOVA (Hutter et al., ICML 2014).

    PED-ANOVA tells what sets the best tenth of the configurations apart from the others; fANOVA what the variance of
    the loss over the whole space is due to, by a random forest. Both sum to 1.

    Args:
        configurations: one row each, with `value` and the searched keys; rows in which one of either is missing are
            left out, and so are those that lie outside its range, and keys without one.

    Returns:
        `key` and a column for each method, the most important first; None below `FEWEST` configurations or `KEYS`
        keys, or where all values are equal but for rounding.
    """
    keys = [key for key in ranges if key in configurations]
    known = configurations.dropna(subset=["value"])
    told = pd.DataFrame(
        {key: known[key].map(lambda value, key=key: told_to_optuna(value, ranges[key])) for key in keys},
        index=known.index,  # of which an arm without searched keys would have none
    )
    known = known[told.notna().all(axis="columns")]
    values = tied(known["value"])
    if len(known) < FEWEST or len(keys) < KEYS or np.ptp(values) == 0:
        return None
    values = (values - np.median(values)) / np.ptp(values)  # the forest takes a variance below 2e-16 for none
    study = optuna.create_study(direction="minimize" if mode == "min" else "maximize")
    distributions = {key: distribution(ranges[key]) for key in keys}
    for params, value in zip(told.loc[known.index].to_dict("records"), values, strict=True):
        named = {str(key): each for key, each in params.items()}
        study.add_trial(create_trial(params=named, distributions=distributions, value=float(value)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluators: dict[str, BaseImportanceEvaluator] = {
            PED_ANOVA: PedAnovaImportanceEvaluator(),
            FANOVA: FanovaImportanceEvaluator(seed=SEED),
        }
        found = {
            name: optuna.importance.get_param_importances(study, evaluator=evaluator, params=keys)
            for name, evaluator in evaluators.items()
        }
    table = pd.DataFrame(found).rename_axis("key").reset_index()
    return table.sort_values([PED_ANOVA, FANOVA], ascending=False, ignore_index=True)
