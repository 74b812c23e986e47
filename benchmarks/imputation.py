"""Values missing from a table: the protocol of the MIWAE paper (arXiv:1812.02633) on scikit-learn's breast-cancer data.

569 samples of 30 values, standardised; half of all values are removed at random, and what remains is all that anybody
sees. Every method fills in the samples it was fitted to. The mean squared error at what was removed is given for five
masks. Settings are chosen once for each method, on another mask, by how well a tenth of what remains is filled in when
it is removed as well.

Shapes: N samples, D values of each.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer

from benchmarks.common import Bench, console
from gfe_study.config import Trial
from gfe_study.config.trial import unflatten
from gfe_study.data.split import Array, Shape, Split, Splits
from gfe_study.metrics import DIVERGED, WITHHELD_RMSE
from gfe_study.training import train

MASKS = 5
MISSING = 0.5
HELD_OUT = 0.1
"""Share of what remains that settings are chosen by."""
DRAWS = 16
"""Settings that are tried for every method."""
BASE: dict[str, Any] = {
    "preset": "holes",
    "data": {"name": "arrays", "path": "breast_cancer"},
    "likelihood": {"name": "gaussian", "sigma": "learned"},
    "eval": {"val_images": 1, "test_images": 569, "mixed": False, "common": False},
}
NETWORKS: dict[str, Sequence[Any]] = {
    "model.latent_dim": (5, 10, 20),
    "optim.lr": (1e-3, 3e-3, 6e-3),
    "optim.weight_decay": (None, 0.3, 1.0, 5.0),
    "likelihood.sigma": ("learned", "each"),
    "budget.images": (25_000, 60_000, 150_000),
}
ENCODERS = {**NETWORKS, "model.hidden": ([128, 128], [256]), "method.input_noise": (None, 0.2, 0.5)}


@dataclass(frozen=True)
class Arm:
    """A method of the platform, and the choices for each of its settings."""

    layer: Mapping[str, Any]
    choices: Mapping[str, Sequence[Any]]


ARMS = {
    "mean": Arm({"method": "mean"}, {}),
    "PCA": Arm(
        {"method": "pca"},
        {
            "model.latent_dim": (3, 5, 8, 12, 20),
            "method.ridge": (1.0, 3.0, 10.0, 30.0),
            "prior_precision": (0.5, 1.0, 2.0, 4.0),
        },
    ),
    "DINEOF": Arm({"method": "dineof"}, {"model.latent_dim": (1, 2, 3, 4, 5, 6, 8, 12)}),
    "AE": Arm({"method": "ae"}, ENCODERS),
    "MIWAE": Arm({"method": "miwae"}, ENCODERS),
    "GFE": Arm(
        {"method": "gfe"},
        {
            **NETWORKS,
            "model.hidden": ([600], [128, 128], [100]),
            "prior_precision": (0.5, 1.0, 2.0, 4.0),
            "method.posterior_noise.width": (0.1, 0.3, 1.0),
        },
    ),
}


def run(bench: Bench) -> None:
    values_ND = load_breast_cancer().data
    values_ND = (values_ND - values_ND.mean(0)) / values_ND.std(0)
    rows = [_row(name, arm, values_ND) for name, arm in ARMS.items()]
    for name, imputer in (("KNNImputer", KNNImputer()), ("IterativeImputer", IterativeImputer(random_state=0))):
        rows.append({"method": name, **_summary([_of_scikit_learn(imputer, values_ND, mask) for mask in range(MASKS)])})
        console.print(rows[-1])
    numbers = {"mean squared error": "{:.3f}", "s.d.": "{:.3f}"}
    bench.keep("imputation", "Breast cancer, half of all values missing", pd.DataFrame(rows), numbers)


def _row(name: str, arm: Arm, values_ND: Array) -> dict[str, Any]:
    draw = random.Random(0)
    drawn = [{key: draw.choice(choices) for key, choices in arm.choices.items()} for _ in range(DRAWS)]
    drawn = list({str(settings): settings for settings in drawn}.values())
    scored = Parallel(n_jobs=-1)(delayed(_held_out)(arm, settings, values_ND) for settings in drawn)
    best = min(range(len(drawn)), key=lambda place: scored[place])
    found = Parallel(n_jobs=-1)(delayed(_imputed)(arm, drawn[best], values_ND, mask) for mask in range(MASKS))
    row = {"method": name, **_summary(found)}
    console.print({**row, "settings": drawn[best]})
    return row


def _summary(errors: Sequence[float]) -> dict[str, float]:
    return {"mean squared error": float(np.mean(errors)), "s.d.": float(np.std(errors, ddof=1))}


def _held_out(arm: Arm, settings: Mapping[str, Any], values_ND: Array) -> float:
    seen_ND = _seen(values_ND, MASKS)
    held_ND = seen_ND & (np.random.default_rng(0).random(values_ND.shape) < HELD_OUT)
    return _error(arm, settings, values_ND, seen_ND & ~held_ND, held_ND, MASKS)


def _imputed(arm: Arm, settings: Mapping[str, Any], values_ND: Array, mask: int) -> float:
    seen_ND = _seen(values_ND, mask)
    return _error(arm, settings, values_ND, seen_ND, ~seen_ND, mask)


def _seen(values_ND: Array, mask: int) -> Array:
    seen_ND: Array = np.asarray(np.random.default_rng([mask, 1]).random(values_ND.shape) >= MISSING)
    return seen_ND


def _error(
    arm: Arm, settings: Mapping[str, Any], values_ND: Array, seen_ND: Array, scored_ND: Array, seed: int
) -> float:
    """Mean squared error where values are scored and not seen, of samples that the method is trained on."""
    there_N = seen_ND.any(1)
    known = Split(values_ND[there_N], observed_ND=seen_ND[there_N])
    shown = replace(known, withheld_ND=scored_ND[there_N])
    splits = Splits(known, shown, shown, Shape(1, (values_ND.shape[1],), mask=True))
    trial = Trial.build(BASE, arm.layer, unflatten(settings), {"seed": seed})
    trial = Trial.build(trial.dump(), {"eval": {"schedule": [trial.budget.images]}})
    *_, last = train(trial, splits)
    assert last.metrics is not None
    return float("inf") if last.metrics[DIVERGED] else float(last.metrics[f"test_{WITHHELD_RMSE}"]) ** 2


def _of_scikit_learn(imputer: Any, values_ND: Array, mask: int) -> float:
    seen_ND = _seen(values_ND, mask)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        filled_ND = imputer.fit_transform(np.where(seen_ND, values_ND, np.nan))
    return float(np.square(filled_ND - values_ND)[~seen_ND].mean())
