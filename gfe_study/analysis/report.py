"""A study's page: what was asked, what ran, and the evidence."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

import pandas as pd

from gfe_study import names
from gfe_study.analysis.figures import data_efficiency, save
from gfe_study.analysis.load import curves, question, runs
from gfe_study.config import InputError
from gfe_study.tracking import connect, store_uri

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th { border-bottom: 2px solid #444 } img { max-width: 42rem; width: 100% } .note { color: #555 }
"""


def write_report(study: str, folder: Path) -> list[Path]:
    """Write `report.html` (self-contained), `trials.csv` and the figures; returns the files.

    Raises:
        InputError: the store has no such study, or no finished trial of it.
    """
    client = connect(store_uri())
    trials = runs(client, study)
    finished = trials[trials["status"] == "FINISHED"] if len(trials) else trials
    if not len(finished) or names.VAL_LOSS not in finished:
        raise InputError(f"study {study!r} has no finished trial yet; run gfe-study resume {study}")
    points = curves(client, trials)
    folder.mkdir(parents=True, exist_ok=True)
    table = summary(trials)
    csv = folder / "trials.csv"
    table.to_csv(csv, index=False)
    figures = save(data_efficiency(trials, points), folder / "data_efficiency")
    page = folder / "report.html"
    page.write_text(_page(study, question(client, study), trials, table, figures[0]), encoding="utf-8")
    return [page, csv, *figures]


def summary(trials: pd.DataFrame) -> pd.DataFrame:
    """One row per trial, best validation loss first: what differs between trials, and the final metrics."""
    params = [column for column in trials if str(column).startswith("params.") and trials[column].nunique() > 1]
    losses = [names.VAL_LOSS, names.TEST_LOSS, names.MIXED_TEST_LOSS, names.TRAIN_LOSS]
    counts = [names.IMAGES_SEEN, names.IMAGES_USED]
    wanted = [*losses, *counts, names.NFE_FORWARD, names.ENCODE_NFE, names.TRAIN_SECONDS, names.DIVERGED]
    metrics = [name for name in wanted if name in trials]
    table = trials[["status", *metrics, *params, names.SEED, names.FINGERPRINT]].copy()
    for column in params:
        numbers = pd.to_numeric(table[column], errors="coerce")
        table[column] = numbers if numbers.notna().all() else table[column]
    return table.rename(columns=lambda name: name.removeprefix("params.")).sort_values(names.VAL_LOSS)


def _page(study: str, asked: str, trials: pd.DataFrame, table: pd.DataFrame, figure: Path) -> str:
    best = table.iloc[0]
    floor = float(trials[names.ENTROPY_FLOOR].iloc[0])
    dataset = trials[names.DATASET].iloc[0]
    states = ", ".join(f"{count} {str(state).lower()}" for state, count in trials["status"].value_counts().items())
    seeds = trials[names.SEED].nunique()
    picture = base64.b64encode(figure.read_bytes()).decode()
    verdict = (
        f"Best trial {best[names.FINGERPRINT]}: validation {best[names.VAL_LOSS]:.4f}, "
        f"test {best[names.TEST_LOSS]:.4f} nats per pixel, "
        f"{best[names.TEST_LOSS] - floor:.4f} above the entropy floor {floor:.4f} of {dataset}'s test images."
    )
    if names.IMAGES_USED in best:
        verdict += (
            f" It saw {best[names.IMAGES_SEEN]:,.0f} training images, counted once, or {best[names.IMAGES_USED]:,.0f} "
            "counted once per weight update that they took part in."
        )
    caution = "One seed: no interval, and no claim beyond these runs." if seeds == 1 else f"{seeds} seeds."
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(study)}</title><style>{STYLE}</style></head><body>
<h1>{escape(study)}</h1>
<p><strong>{escape(asked)}</strong></p>
<p>{escape(verdict)} <span class="note">{caution} Trials: {escape(states)}.</span></p>
<img alt="Test loss over training images seen" src="data:image/png;base64,{picture}">
<h2>Trials</h2>
{table.to_html(index=False, float_format=_number, na_rep="")}
</body></html>
"""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) and abs(value) >= 10 else f"{value:.4g}"
