"""Stores with crashed, empty, broken and doubled runs: each is named, and what counts is what should."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from stores import STUDY, fresh, opened, point, trial

from gfe_study import names
from gfe_study.analysis.judge.irregular import Irregularity, ended, irregularities, usable
from gfe_study.analysis.judge.verdict import judge
from gfe_study.analysis.store.load import Store
from gfe_study.metrics import DIVERGED, TEST_LOSS, VAL_LOSS
from gfe_study.tracking.client import Tracker
from gfe_study.tracking.runs import Change


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return fresh(tmp_path / "store.db")


def frames(uri: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    runs, points, _ = Store(uri).frames(STUDY)
    return runs, points


def found(uri: str) -> list[tuple[str, str, str]]:
    """Kind, name and text of every irregularity, run ids left out of the text."""
    listed = irregularities(*frames(uri))
    assert all(f"({each.run_id[:8]})" in each.text for each in listed)
    run_ids = set(frames(uri)[0]["run_id"])
    texts: list[tuple[str, str, str]] = []
    for each in listed:
        text = each.text
        for run_id in run_ids:
            text = text.replace(f" ({run_id[:8]})", "")
        texts.append((each.kind, each.name, text))
    return texts


def by_hand(tracker: Tracker, trial: Change, values: list[tuple[int, float]], status: str) -> str:
    """A run made with MLflow's own client, which takes any number of one fingerprint, and NaN; returns its id."""
    tags = {**trial.initial_tags, names.FINGERPRINT: trial.fingerprint, names.ROLE: names.ROLE_TRIAL}
    run = tracker.client.create_run(tracker.experiment_id, run_name=trial.name, tags=tags)
    for step, value in values:
        tracker.client.log_metric(run.info.run_id, VAL_LOSS, value, step=step)
    tracker.client.set_terminated(run.info.run_id, status)
    return str(run.info.run_id)


def test_a_sound_study_has_none(uri: str) -> None:
    opened(uri).write([trial("f1", [point(480), point(960)]), trial("f2", [point(480)], seed=1)])
    assert irregularities(*frames(uri)) == []


def test_no_runs_have_none(uri: str) -> None:
    opened(uri)
    runs, curves = frames(uri)
    assert irregularities(runs, curves) == []
    assert [len(frame) for frame in (*ended(runs, curves), *usable(*ended(runs, curves)))] == [0] * 4


@pytest.mark.parametrize(
    ("points", "status", "ending", "expected"),
    [
        (
            2,
            "FAILED",
            {names.FAILURE: "MemoryError:\n no more."},
            ["failed after 960 images seen: MemoryError: no more."],
        ),
        (1, "FAILED", {}, ["failed after 480 images seen, and does not say why."]),
        (0, "FAILED", {}, ["failed before its first point, and does not say why.", "holds no metric."]),
        (1, "KILLED", {}, ["was killed after 480 images seen: it is left out."]),
        (0, "KILLED", {}, ["was killed before its first point: it is left out.", "holds no metric."]),
        (1, None, {}, ["is still running: it is left out."]),
        (0, None, {}, ["is still running: it is left out."]),
        (0, "SCHEDULED", {}, ["has not begun: it is left out."]),
        (0, "FINISHED", {}, ["holds no metric."]),
        (2, "FINISHED", {DIVERGED: "true"}, ["diverged after 960 images seen."]),
    ],
)
def test_how_a_run_ended_is_said(
    uri: str, points: int, status: str | None, ending: dict[str, str], expected: list[str]
) -> None:
    logged = [point(480 * (k + 1)) for k in range(points)]
    tracker = opened(uri)
    tracker.write([trial("f1", logged, None)])
    tracker.write([trial("f1", logged, status, ending=ending)])
    assert [text for _, _, text in found(uri)] == [f"run of f1 {text}" for text in expected]


def test_a_metric_that_is_not_finite_is_said(uri: str) -> None:
    tracker = opened(uri)
    run_id = by_hand(tracker, trial("f1", []), [(480, 0.5), (960, math.nan), (1440, math.nan)], "FINISHED")
    tracker.client.log_metric(run_id, TEST_LOSS, math.inf, step=1440)
    said = "at {} of 3 points, from {} images seen on."
    assert found(uri) == [
        ("not finite", "run of f1", f"run of f1 has test_loss infinite {said.format(1, '1,440')}"),
        ("not finite", "run of f1", f"run of f1 has val_loss NaN {said.format(2, 960)}"),
    ]


def test_repeated_and_late_points_are_said(uri: str) -> None:
    tracker = opened(uri)
    run_id = by_hand(tracker, trial("f1", []), [(480, 0.5)], "FINISHED")
    now = 4_000_000_000_000
    for later, step in enumerate((1440, 960, 1440)):
        tracker.client.log_metric(run_id, VAL_LOSS, 0.25, timestamp=now + later, step=step)
    assert [(kind, text) for kind, _, text in found(uri)] == [
        (
            "repeated",
            "run of f1 logged metrics more than once at 1 of 3 points, from 1,440 images seen on: "
            "the last values count.",
        ),
        (
            "late",
            "run of f1 logged points after others with more images, at 1 of 3 points, from 960 images seen on: "
            "they are put in order.",
        ),
    ]


def test_a_stranger_is_named_and_left_out(uri: str) -> None:
    tracker = opened(uri)
    tracker.write([trial("f1", [point(480)])])
    for tags in ({}, {names.FINGERPRINT: "f2", names.SEED: "0"}, {names.FINGERPRINT: "f3", names.GROUP: "g"}):
        run = tracker.client.create_run(tracker.experiment_id, run_name="odd", tags=tags)
        tracker.client.log_metric(run.info.run_id, VAL_LOSS, 0.1, step=480)
        tracker.client.set_terminated(run.info.run_id)
    assert [text for _, _, text in found(uri)] == [
        "odd is no trial of this study, having no fingerprint and no seed: it is left out.",
        "odd is no trial of this study, having no seed: it is left out.",
    ]
    trials, points = ended(*frames(uri))
    assert list(trials[names.FINGERPRINT]) == ["f1", "f2"]
    assert list(points["run_id"].unique()) == sorted(trials["run_id"])


@pytest.mark.parametrize(
    ("runs", "counts"),
    [
        ([(1, "FINISHED"), (2, "FINISHED")], 1),
        ([(2, "FINISHED"), (2, "FINISHED")], 0),
        ([(3, "KILLED"), (2, "FINISHED"), (1, "FINISHED")], 1),
        ([(3, "RUNNING"), (1, "FAILED")], 1),
        ([(0, "FINISHED"), (1, "FAILED")], 0),
    ],
)
def test_one_of_two_runs_of_a_trial_counts(uri: str, runs: list[tuple[int, str]], counts: int) -> None:
    tracker = opened(uri)
    ids = [
        by_hand(tracker, trial("f1", []), [(480 * (k + 1), 0.5) for k in range(points)], status)
        for points, status in runs
    ]
    listed = [each for each in irregularities(*frames(uri)) if each.kind == "duplicate"]
    assert {each.run_id for each in listed} == {*ids} - {ids[counts]}
    assert listed[0] == Irregularity(
        "duplicate",
        listed[0].run_id,
        "run of f1",
        f"run of f1 ({listed[0].run_id[:8]}) is a second run of one trial: run of f1 ({ids[counts][:8]}) counts, "
        "this does not.",
    )
    trials, points = ended(*frames(uri))
    assert list(trials["run_id"]) == [ids[counts]]
    assert set(points["run_id"]) <= {ids[counts]}


def test_a_run_shared_by_two_arms_is_not_doubled(uri: str) -> None:
    tracker = opened(uri)
    tracker.write([trial("f1", [point(480)])])
    tracker.write([Change("f1", tags={names.SHARED_BY: '[[0, "a", 0], [0, "b", 3]]'})])
    runs, curves = frames(uri)
    assert irregularities(runs, curves) == []
    trials, points = usable(*ended(runs, curves))
    assert trials[["arm", "number"]].to_numpy().tolist() == [["a", 0], ["b", 3]]
    assert len(points) == 1


def test_a_verdict_comes_from_a_messy_store(uri: str) -> None:
    """Runs that failed, diverged, still run, are duplicates or foreign do not disturb it."""
    tracker = opened(uri)
    for seed in range(5):
        for arm, loss in (("a", 0.5), ("b", 0.4)):
            value = loss + 0.01 * (seed % 3) + 0.001 * seed * (arm == "a")
            points = [point(480, 2 * value), point(960, value)]
            tracker.write([trial(f"{arm}{seed}", points, arm=arm, seed=seed, group=arm)])
    crashed = trial("a5", [point(480, 9.0)], "FAILED", seed=5, group="a")
    diverged = [point(480, 0.1), point(960, 0.1, diverged=1.0)]
    tracker.write([crashed, trial("b5", diverged, arm="b", seed=5, group="b"), trial("b6", [point(480)], None)])
    by_hand(tracker, trial("a0", [], group="a"), [(480, 0.0)], "FINISHED")
    tracker.client.create_run(tracker.experiment_id)
    runs, curves = frames(uri)
    kinds = [each.kind for each in irregularities(runs, curves)]
    assert sorted(kinds) == ["diverged", "duplicate", "failed", "foreign", "running", "running"]
    trials, curve = ended(runs, curves)
    assert (len(trials), str(trials["number"].dtype), str(trials["seed"].dtype)) == (12, "int64", "int64")
    verdict = judge(trials, curve, {"a": None, "b": "a"}, metric=TEST_LOSS, select=VAL_LOSS)
    reference, other = verdict.rows
    assert (reference.seeds, other.seeds, reference.lost, other.lost) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], 1, 1)
    assert other.paired is not None
    assert other.paired.difference == pytest.approx(-0.1 - 0.002)
    assert other.verdict == "better"
    fine, _ = usable(*ended(runs, curves))
    assert sorted(fine[names.FINGERPRINT]) == [f"{arm}{seed}" for arm in "ab" for seed in range(5)]
