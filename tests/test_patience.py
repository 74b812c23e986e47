"""Stopping by validation: when a trial ends, which of its points is its result, and that no interruption changes it."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_verdict import METRIC, curves, row

from gfe_study import names
from gfe_study.analysis.judge.verdict import judge
from gfe_study.analysis.store.tidy import RUN_ID, until_result
from gfe_study.config import Study, Trial
from gfe_study.io.checkpoint import read_checkpoint
from gfe_study.io.storage import Storage
from gfe_study.metrics import (
    DIVERGED,
    ENCODE_SECONDS,
    EVAL_SECONDS,
    IMAGES_SEEN,
    SINCE_BEST,
    TRAIN_SECONDS,
    VAL_LOSS,
    result_of,
)
from gfe_study.study.forecast import forecast
from gfe_study.study.options import Options
from gfe_study.study.runner import run_trial
from gfe_study.training import Metrics, train
from gfe_study.view.console import plan_lines, shape

SECONDS = {TRAIN_SECONDS, ENCODE_SECONDS, EVAL_SECONDS}
PATIENCE = 4


def overfitting(**budget: Any) -> Trial:
    """An autoencoder that soon overfits its few images, with ups and downs on the way."""
    return Trial.build(
        {
            "method": "ae",
            "model": {"latent_dim": 4, "hidden": [24]},
            "data": {"name": "digits", "train_images": 30},
            "optim": {"name": "adam", "lr": 0.05, "batch_size": 10},
            "eval": {"schedule": {"every": 60}, "val_images": 40, "test_images": 30, "mixed": False},
            "budget": {"images": 3000, **budget},
        }
    )


def points_of(trial: Trial, state: Any = None) -> list[Metrics]:
    *_, last = train(trial, trial.data.load(), state)
    return [{name: value for name, value in point.items() if name not in SECONDS} for point in last.state.points]


@pytest.fixture(scope="module")
def whole() -> list[Metrics]:
    """Points of the trial that is not stopped."""
    return points_of(overfitting())


@pytest.fixture(scope="module")
def stopped() -> list[Metrics]:
    return points_of(overfitting(patience=PATIENCE))


def waited(losses: list[float]) -> list[int]:
    """Evaluations since the lowest loss so far, at each."""
    return [place - min(range(place + 1), key=losses.__getitem__) for place in range(len(losses))]


def test_a_trial_ends_without_improvement(whole: list[Metrics], stopped: list[Metrics]) -> None:
    """The same trial to the bit, as far as it goes."""
    losses = [point[VAL_LOSS] for point in whole]
    counts = waited(losses)
    end = counts.index(PATIENCE)
    assert end < len(whole) - 5
    # What this trial is made for: a wait that is rewarded, and a fall that stays above the lowest.
    assert any(count and not after for count, after in itertools.pairwise(counts[:end]))
    assert any(counts[at] and losses[at] < losses[at - 1] for at in range(1, end))
    assert stopped == [{**point, SINCE_BEST: count} for point, count in zip(whole[: end + 1], counts, strict=False)]
    assert not any(SINCE_BEST in point for point in whole)


def test_the_result_is_at_the_lowest_loss(whole: list[Metrics], stopped: list[Metrics]) -> None:
    assert result_of(stopped) == min(stopped, key=lambda point: point[VAL_LOSS]) != stopped[-1]
    assert result_of(whole) == whole[-1]
    assert result_of([*stopped, {**stopped[-1], DIVERGED: 1.0}])[DIVERGED] == 1


@pytest.mark.parametrize("batches", [5, 57, 60])
def test_an_interruption_keeps_the_patience(batches: int, stopped: list[Metrics]) -> None:
    trial = overfitting(patience=PATIENCE)
    progress = train(trial, trial.data.load())
    for _ in range(batches):
        state = copy.deepcopy(next(progress).state.state_dict())
    torch.manual_seed(987)
    assert points_of(trial, state) == stopped
    *_, last = progress
    assert list(train(trial, trial.data.load(), last.state.state_dict())) == []


def test_patience_lets_improving_trials_go_on(whole: list[Metrics]) -> None:
    longest = max(waited([point[VAL_LOSS] for point in whole]))
    assert len(points_of(overfitting(patience=longest + 1))) == len(whole)
    assert len(points_of(overfitting(images=300, patience=longest))) == 5


def test_what_is_kept_of_a_trial_is_its_result(stopped: list[Metrics], tmp_path: Path) -> None:
    """The decoder, the snapshot that figures show, and the picture: none is of an overfitted end."""
    trial, mirror = overfitting(patience=PATIENCE), Storage(str(tmp_path)).folder("one", "trial")
    torch.set_num_threads(1)
    reported = [point for report in run_trial(trial, trial.data.load(), mirror) for point in report.points]
    result = result_of(reported)
    assert result[IMAGES_SEEN] == result_of(stopped)[IMAGES_SEEN] < reported[-1][IMAGES_SEEN]
    assert read_checkpoint(mirror.local / names.BEST_CHECKPOINT)["metrics"] == result
    with np.load(mirror.local / names.SNAPSHOTS) as kept:
        assert max(int(key.partition("/")[0]) for key in kept.files if "/" in key) == result[IMAGES_SEEN]
    assert (mirror.local / names.RECONSTRUCTION).stat().st_mtime < (mirror.local / names.CHECKPOINT).stat().st_mtime


TRIALS = st.lists(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6), min_size=1, max_size=4)


@given(TRIALS, st.booleans())
def test_tables_and_lists_have_the_same_result(trials: list[list[tuple[int, bool]]], patient: bool) -> None:
    """Of each trial the last row of `until_result` is `result_of`, also where some trials have no patience."""
    points: dict[str, list[dict[str, Any]]] = {}
    for run, given_points in enumerate(trials):
        losses = [loss for loss, _ in given_points]
        counts = waited([float(loss) for loss in losses])
        diverges = given_points[-1][1]
        points[f"run {run}"] = [
            {
                RUN_ID: f"run {run}",
                IMAGES_SEEN: place,
                VAL_LOSS: loss,
                DIVERGED: float(diverges and place == len(losses) - 1),
                **({SINCE_BEST: count} if patient or run % 2 else {}),
            }
            for place, (loss, count) in enumerate(zip(losses, counts, strict=True))
        ]
    frame = pd.DataFrame([point for own in points.values() for point in own])
    last = until_result(frame).drop_duplicates(RUN_ID, keep="last").set_index(RUN_ID)[IMAGES_SEEN]
    assert last.to_dict() == {run: result_of(own)[IMAGES_SEEN] for run, own in points.items()}


def test_budgets_are_cut_before_results_are_taken() -> None:
    """Within the smaller budget, each trial counts where its validation loss had been lowest by then."""
    rows = [row("a", seed, 0.3 + seed / 100, images=400) for seed in range(3)]
    rows += [row("b", seed, 0.2 + seed / 100, images=800) for seed in range(3)]
    points = curves(rows)
    for name, images in (("a", 400), ("b", 800)):
        own = points[points["arm"] == name]
        assert list(own[IMAGES_SEEN][:2]) == [images / 2, images]
    # b at 400 images is past its lowest, which an earlier point was.
    early = points[(points["arm"] == "b") & (points[IMAGES_SEEN] == 400)].assign(**{IMAGES_SEEN: 200.0, METRIC: 0.1})
    since = points[IMAGES_SEEN].map({200: 0.0, 400: 1.0, 800: 0.0}).where(points["arm"] == "b", 0.0)
    points = pd.concat([points.assign(**{SINCE_BEST: since}), early.assign(**{SINCE_BEST: 0.0})])
    verdict = judge(
        pd.DataFrame(rows), points, {"a": None, "b": "a"}, metric=METRIC, select=VAL_LOSS, stopped_by_validation=True
    )
    assert verdict.rows[1].value.mean == pytest.approx(0.1)
    assert verdict.rows[1].images == 200
    assert verdict.rows[0].value.mean == pytest.approx(0.31)
    assert math.isclose(verdict.rows[1].paired.difference, 0.1 - 0.31)  # type: ignore[union-attr]


@pytest.fixture
def study() -> Study:
    fixed = {key: value for key, value in overfitting().dump().items() if key not in ("budget", "seed")}
    budget = {"images": 3000, "patience": 4}
    return Study.build({"question": "?", "fixed": fixed, "budget": budget, "seeds": 2}, "patient.yaml")


def test_a_study_tells_of_patience(study: Study) -> None:
    assert "of 3,000 images or 4 evaluations without a lower validation loss" in shape(study)


@pytest.mark.slow
def test_a_plan_tells_of_patience(study: Study, tmp_path: Path) -> None:
    """Its time is that of whole budgets, at most."""
    expected = forecast(study, "patient", Options(str(tmp_path)), probe=True)
    assert expected.images == 6000
    assert any("less where validation stops trials" in line for line in plan_lines(study, expected))
