"""The tracking store as tidy pandas frames."""

from __future__ import annotations

from typing import Any

import pandas as pd
from mlflow import MlflowClient

from gfe_study import names
from gfe_study.config import InputError

PAGE = 1000


def runs(client: MlflowClient, study: str) -> pd.DataFrame:
    """One row per trial: `run_id`, `name`, `status`, tags, `params.*`, and the last value of every metric.

    Raises:
        InputError: the store has no such study.
    """
    experiment = client.get_experiment_by_name(study)
    if experiment is None:
        known = sorted(found.name for found in client.search_experiments() if found.name != "Default")
        raise InputError(f"study {study!r} is not in the store; allowed: {', '.join(known) or 'none yet'}")
    rows: list[dict[str, Any]] = []
    token: str | None = None
    wanted = f"tags.{names.ROLE} = '{names.ROLE_TRIAL}'"
    while True:
        page = client.search_runs([experiment.experiment_id], wanted, max_results=PAGE, page_token=token)
        for run in page:
            tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
            params = {f"params.{key}": value for key, value in run.data.params.items()}
            info = {"run_id": run.info.run_id, "name": run.info.run_name, "status": run.info.status}
            rows.append({**info, **tags, **params, **run.data.metrics})
        token = page.token
        if not token:
            return pd.DataFrame(rows)


def question(client: MlflowClient, study: str) -> str:
    """What the study asks: the note of its experiment."""
    experiment = client.get_experiment_by_name(study)
    return str(experiment.tags.get("mlflow.note.content", "")) if experiment is not None else ""


def curves(client: MlflowClient, trials: pd.DataFrame) -> pd.DataFrame:
    """One row per (trial, images seen): `run_id`, `images_seen`, and every loss logged there."""
    losses = (names.TRAIN_LOSS, names.VAL_LOSS, names.TEST_LOSS, names.MIXED_TEST_LOSS)
    rows = [
        {"run_id": run_id, names.IMAGES_SEEN: entry.step, "metric": metric, "value": entry.value}
        for run_id in trials["run_id"]
        for metric in losses
        if metric in trials.columns
        for entry in client.get_metric_history(run_id, metric)
    ]
    if not rows:
        return pd.DataFrame(columns=["run_id", names.IMAGES_SEEN])
    tidy = pd.DataFrame(rows).pivot_table(index=["run_id", names.IMAGES_SEEN], columns="metric", values="value")
    return tidy.reset_index().sort_values(["run_id", names.IMAGES_SEEN], ignore_index=True)
