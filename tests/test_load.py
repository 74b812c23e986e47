"""From real tracking stores to tidy frames: nothing lost, nothing made up, whatever is missing."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from stores import STUDY, fresh, opened, point, trial

from gfe_study import names
from gfe_study.analysis.judge.irregular import ended
from gfe_study.analysis.store.load import Store
from gfe_study.config import InputError, Study
from gfe_study.metrics import DIVERGED, IMAGES_SEEN, TEST_LOSS, VAL_LOSS
from gfe_study.study.engine import declare
from gfe_study.study.frames import curves_frame, trials_frame
from gfe_study.study.journal import FAILED, FINISHED, Journal, Outcome
from gfe_study.study.plan import Plan
from gfe_study.study.recorder import Recorder
from gfe_study.tracking.runs import Change
from gfe_study.tracking.uri import TrackingError


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return fresh(tmp_path / "store.db")


def test_a_trial_is_a_row_of_all_that_was_logged(uri: str) -> None:
    ending = {DIVERGED: "false", names.STOPPED_EARLY: "among the worst"}
    tags = {names.ARM: "b", names.STAGE: "1", names.NUMBER: "7", names.SEED: "3", names.DEVICE: "H100"}
    params = {"optim.lr": 1e-3, "solver.name": "amd"}
    points = [point(480, 0.5), point(960, 0.25)]
    opened(uri).write([trial("f1", points, params=params, ending=ending, **tags), trial("f2", [])])
    first, second = Store(uri).frames(STUDY)[0].to_dict("records")
    expected = {"arm": "b", "stage": 1, "number": 7, "seed": 3, "fingerprint": "f1", "group": "g", "device": "H100"}
    expected |= {"name": "run of f1", "status": "FINISHED", "state": "stopped", "stopped_early": "among the worst"}
    expected |= {"diverged": False, "failed": False, "failure": "", "preset": "", "entropy_floor": 0.058}
    expected |= {"params.optim.lr": "0.001", "params.solver.name": "amd", "val_loss": 0.25, "images_seen": 960.0}
    assert {key: first[key] for key in expected} == expected
    assert first["start_time"].tzinfo is not None
    assert first["end_time"] >= first["start_time"] > pd.Timestamp("2024-01-01", tz="UTC")
    assert (second["state"], second["seed"], second["arm"]) == ("finished", 0, "a")
    assert pd.isna(second["params.optim.lr"])
    assert math.isnan(second["val_loss"])


def test_columns_have_types_even_without_runs(uri: str) -> None:
    store = Store(uri)
    tracker = opened(uri)
    none, no_points, _ = store.frames(STUDY)
    tracker.write([trial("f1", [point(480)])])
    one, a_point, _ = store.frames(STUDY)
    assert (len(none), len(no_points), len(one), len(a_point)) == (0, 0, 1, 1)
    assert none.dtypes.to_dict() == one.dtypes.to_dict()
    assert no_points.dtypes.to_dict() == a_point.drop(columns=DIVERGED).dtypes.to_dict()
    types = {"run_id": "str", "stage": "int64", "number": "Int64", "seed": "Int64", "arm": "str", "diverged": "bool"}
    types |= {"failed": "bool", "val_loss": "float64", "entropy_floor": "float64", "start_time": "datetime64[ms, UTC]"}
    assert {name: str(one[name].dtype) for name in types} == types
    assert {name: str(a_point[name].dtype) for name in ("images_seen", "late")} == {
        "images_seen": "int64",
        "late": "bool",
    }


def test_parent_and_discarded_runs_are_no_trials(uri: str) -> None:
    """The study's own run and runs that were superseded or deleted have no row."""
    tracker = opened(uri)
    tracker.write([trial(name, [point(480)]) for name in ("kept", "superseded", "deleted")])
    tracker.supersede("superseded")
    store = Store(uri)
    run_ids = dict(store.frames(STUDY)[0][[names.FINGERPRINT, "run_id"]].to_numpy())
    tracker.client.delete_run(run_ids["deleted"])
    assert list(store.frames(STUDY)[0][names.FINGERPRINT]) == ["kept"]
    assert list(store.frames(STUDY)[1][names.FINGERPRINT]) == ["kept"]


def test_a_run_without_our_tags_has_empty_fields(uri: str) -> None:
    tracker = opened(uri)
    run = tracker.client.create_run(tracker.experiment_id, tags={"seed": "half", "stage": "1.5", "shared_by": "[[0"})
    for name in ("accuracy", "name", "late", "system/cpu_utilization_percentage"):
        tracker.client.log_metric(run.info.run_id, name, 0.5, step=1)
    store = Store(uri)
    (row,) = store.frames(STUDY)[0].to_dict("records")
    assert (row["run_id"], row["name"], row["arm"], row["stage"]) == (run.info.run_id, run.info.run_name, "", 0)
    assert pd.isna([row["seed"], row["number"], row["end_time"]]).all()
    assert (row["accuracy"], row["fingerprint"], row["state"], row["diverged"]) == (0.5, "", "running", False)
    assert "system/cpu_utilization_percentage" not in row
    (there,) = store.frames(STUDY)[1].to_dict("records")
    assert (there["images_seen"], there["accuracy"], there["late"], there["fingerprint"]) == (1, 0.5, False, "")


def test_a_trial_that_arms_share_is_a_row_of_each(uri: str) -> None:
    tracker = opened(uri)
    shared = json.dumps([[0, "a", 2], [0, "b", 0], [1, "b", 0]])
    tracker.write([trial("own", [point(480)], number=1), trial("both", [point(480)], number=2)])
    tracker.write([Change("both", tags={names.SHARED_BY: shared})])
    store = Store(uri)
    runs = store.frames(STUDY)[0]
    rows = runs[["fingerprint", "stage", "arm", "number"]].to_numpy().tolist()
    assert sorted(rows) == [["both", 0, "a", 2], ["both", 0, "b", 0], ["both", 1, "b", 0], ["own", 0, "a", 1]]
    assert str(runs["number"].dtype) == "Int64"
    assert list(store.frames(STUDY)[1]["fingerprint"].sort_values()) == ["both", "own"]


def test_missing_numbers_follow_the_start_times(uri: str) -> None:
    """Configurations without a number are counted in the order in which they were started."""
    tracker = opened(uri)
    started: list[tuple[str, str, dict[str, Any]]] = [
        ("f1", "first", {}),
        ("f2", "second", {}),
        ("f3", "first", {names.SEED: 1}),
        ("f4", "other arm", {names.ARM: "b"}),
        ("f5", "numbered", {names.NUMBER: 1}),
        ("f6", "numbered", {names.SEED: 1}),
    ]
    for name, group, tags in started:
        tracker.write([trial(name, [], group=group, **tags)])
        time.sleep(0.002)
    runs = Store(uri).frames(STUDY)[0].set_index("fingerprint")
    assert runs["number"].to_dict() == {"f1": 0, "f2": 2, "f3": 0, "f4": 0, "f5": 1, "f6": 1}


def test_a_study_without_arms_has_none(uri: str) -> None:
    tracker = opened(uri, declared="question: Which?\nscientific: null\n")
    tracker.write([trial("f1", [], arm="gfe·amd β=0.75")])
    assert list(Store(uri).frames(STUDY)[0]["arm"]) == [""]


def test_a_metric_is_its_last_finite_value(uri: str) -> None:
    """Curves keep the values that are not finite."""
    tracker = opened(uri)
    tracker.write([trial("f1", [point(480, 0.5)], None)])
    (run_id,) = Store(uri).frames(STUDY)[0]["run_id"]
    log = tracker.client.log_metric
    for step, value in ((960, 0.25), (1440, math.nan), (1920, math.inf)):
        log(run_id, VAL_LOSS, value, step=step)
    log(run_id, TEST_LOSS, 0.75, step=960)
    log(run_id, DIVERGED, 1.0, step=1920)
    (row,) = Store(uri).frames(STUDY)[0].to_dict("records")
    assert (row["val_loss"], row["test_loss"], row["diverged"]) == (0.25, 0.75, True)
    curve = Store(uri).frames(STUDY)[1].set_index(IMAGES_SEEN)
    assert list(curve.index) == [480, 960, 1440, 1920]
    assert curve["val_loss"].to_dict() == pytest.approx(
        {480: 0.5, 960: 0.25, 1440: math.nan, 1920: math.inf}, nan_ok=True
    )
    assert list(curve["not_finite"]) == ["", "", "val_loss", "val_loss"]
    assert list(curve[DIVERGED].fillna(-1)) == [0.0, -1.0, -1.0, 1.0]


def test_the_last_of_repeated_values_counts(uri: str) -> None:
    """Points that were logged again or too late are marked."""
    tracker = opened(uri)
    tracker.write([trial("f1", [point(480, 0.5)], None), trial("f2", [point(480), point(960)])])
    (run_id,) = Store(uri).frames(STUDY)[0].query("fingerprint == 'f1'")["run_id"]
    now = int(time.time() * 1000) + 1000
    for step, value, later in ((1440, 0.3, 0), (960, 0.4, 1), (480, 0.6, 2), (960, 0.45, 3)):
        tracker.client.log_metric(run_id, VAL_LOSS, value, timestamp=now + later, step=step)
    curves = Store(uri).frames(STUDY)[1]
    curve = curves[curves["run_id"] == run_id].set_index(IMAGES_SEEN)
    assert curve["val_loss"].to_dict() == {480: 0.6, 960: 0.45, 1440: 0.3}
    assert curve["repeated"].to_dict() == {480: True, 960: True, 1440: False}
    assert curve["late"].to_dict() == {480: False, 960: True, 1440: False}
    assert not curves[curves["run_id"] != run_id][["repeated", "late"]].to_numpy().any()


def test_the_store_gives_the_journals_frames(uri: str, tmp_path: Path) -> None:
    declared = {
        "question": "Does it help?",
        "fixed": {"preset": "paper", "solver": {"name": "amd", "max_nfe": 12}, "data": {"name": "digits"}},
        "scientific": {"arms": {"a": {"solver.beta": 0.9}, "b": {"method": "ae"}}},
        "budget": {"images": 64},
        "seeds": 3,
    }
    with Journal.open(tmp_path / "study") as journal:
        study = Study.build(declared, "my.yaml")
        plan = Plan.make(study, "0" * 64, journal)
        declare(plan)
        recorder = Recorder(plan, opened(uri), {}, lambda _: 0.05, print)
        for place, job in enumerate(plan.jobs.values()):
            journal.record_points(job.fingerprint, [point(32, 0.5), point(64, 0.4 + place / 100)])
            if place == 1:
                journal.record_points(job.fingerprint, [point(96, 0.4, diverged=1.0)])
            where = {names.DEVICE: f"cpu {place}"} if place else {}
            ending = Outcome(FAILED, "MemoryError: no more", run=where) if place == 4 else Outcome(FINISHED, run=where)
            journal.record_outcome(job.fingerprint, ending)
            recorder.changed(job)
        assert recorder.close(interrupted=False)
        wanted, points = trials_frame(study, journal), curves_frame(journal)
    store = Store(uri)
    trials, curves = ended(*store.frames(STUDY)[:2])
    keys = ["arm", "stage", "number", "seed", "fingerprint", "diverged", "failed", "state"]
    keys += [names.DEVICE, names.THREADS, names.SIDE_BY_SIDE]
    ordered = [frame.sort_values("fingerprint", ignore_index=True) for frame in (trials, wanted)]
    assert ordered[0][keys].to_dict("records") == ordered[1][keys].to_dict("records")
    metrics = [name for name in point(1) if name != DIVERGED]
    over = ordered[1][~ordered[1]["failed"]].index
    assert_frame_equal(ordered[0].loc[over, metrics], ordered[1].loc[over, metrics])
    by = ["fingerprint", IMAGES_SEEN]
    left, right = (frame.sort_values(by, ignore_index=True)[[*by, VAL_LOSS]] for frame in (curves, points))
    assert_frame_equal(left, right, check_dtype=False)


# Studies, their own run, and files.


def test_studies_and_what_they_declare(uri: str) -> None:
    tracker = opened(uri)
    opened(uri, "other", "question: What?\n")
    store = Store(uri)
    assert store.studies() == [STUDY, "other"]
    assert store.declaration(STUDY) == {"question": "Which?", "scientific": {"arms": {"a": {}, "b": {"method": "ae"}}}}
    assert (store.question(STUDY), store.question("other")) == ("Which?", "What?")
    parent = store.parent(STUDY)
    assert parent is not None
    assert (parent.run_id, parent.status, parent.tags[names.STUDY]) == (tracker.parent_id, "RUNNING", STUDY)
    assert parent.start_time.tzinfo is not None
    assert parent.end_time is None


def test_an_ordinary_experiment_declares_nothing(uri: str, tmp_path: Path) -> None:
    """One that is no study."""
    store = Store(uri)
    experiment = opened(uri).client.create_experiment("by hand", tags={"mlflow.note.content": "Why?"})
    opened(uri).client.create_run(experiment)
    assert (store.declaration("by hand"), store.parent("by hand"), store.question("by hand")) == (None, None, "Why?")
    with pytest.raises(InputError, match="'by hand' has no run of its own"):
        store.log_report("by hand", tmp_path)


def test_an_unknown_study_is_told_the_known_ones(uri: str) -> None:
    store = Store(uri)
    with pytest.raises(InputError, match="study 'amd' is not in the store; allowed: none yet"):
        store.frames(STUDY)[0]
    tracker = opened(uri)
    with pytest.raises(InputError, match="study 'adm' is not in the store; allowed: amd"):
        store.frames("adm")[1]
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(InputError, match="study 'amd' is deleted"):
        store.parent(STUDY)


def test_a_store_that_breaks_is_one_line(uri: str, tmp_path: Path) -> None:
    opened(uri)
    store = Store(uri)
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("DROP TABLE metrics")
    with pytest.raises(TrackingError, match=r"store\.db: the tracking store cannot be read \(.*metrics") as caught:
        store.frames(STUDY)[0]
    assert "\n" not in str(caught.value)


def test_a_store_is_read_while_it_is_written(uri: str, tmp_path: Path) -> None:
    """Neither the reader nor the writer waits for the other."""
    opened(uri).write([trial("f1", [point(480)])])
    store = Store(uri)
    writer = sqlite3.connect(tmp_path / "store.db", timeout=0, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE runs SET name = 'changed'")
    assert set(store.frames(STUDY)[0]["name"]) == {"run of f1"}
    assert len(store.frames(STUDY)[1]) == 1
    writer.execute("COMMIT")
    writer.close()
    assert set(store.frames(STUDY)[0]["name"]) == {"changed"}


def test_a_moved_store_finds_its_artifacts(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "a ter"
    before.mkdir()
    uri = fresh(before / "store.db")
    opened(uri).write([trial("f1", [point(480)])])
    (run_id,) = Store(uri).frames(STUDY)[0]["run_id"]
    shutil.move(before, after)
    store = Store(f"sqlite:///{after}/store.db")
    file = store.artifact(run_id, names.TRIAL_FILE)
    assert file is not None
    assert file.is_relative_to(after)
    assert file.read_text() == "seed: 0\n"
    assert store.artifact(run_id, "nothing") is None
    assert store.declaration(STUDY) is not None
    (tmp_path / "report" / "figures").mkdir(parents=True)
    (tmp_path / "report" / "figures" / "a.svg").write_text("<svg/>")
    store.log_report(STUDY, tmp_path / "report")
    parent = store.parent(STUDY)
    assert parent is not None
    logged = store.artifact(parent.run_id, "report/figures/a.svg")
    assert logged is not None
    assert logged.is_relative_to(after)
    assert not before.exists()


@pytest.mark.slow
def test_a_thousand_runs_are_read_in_ten_seconds(uri: str) -> None:
    metrics = {f"metric_{k}": k / 7 for k in range(7)}
    points = [point(480 * k, 1 / k, **metrics) for k in range(1, 21)]
    assert len(points[0]) == 14
    opened(uri).write([trial(f"{i:04d}", points, group=f"{i // 5}", seed=i % 5) for i in range(1000)])
    started = time.perf_counter()
    runs, curves, _ = Store(uri).frames(STUDY)
    assert time.perf_counter() - started <= 10
    assert (len(runs), len(curves)) == (1000, 20_000)
    assert curves["metric_6"].notna().all()
