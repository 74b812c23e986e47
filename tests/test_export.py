"""A study's trials in files of other programs, and the program that reads Optuna's."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from test_api import without_ray  # noqa: F401
from test_one_route import BASE
from typer.testing import CliRunner

from gfe_study import InputError, Study, results, run
from gfe_study.analysis.store.export import export
from gfe_study.cli.app import app

SEARCHED = {
    **BASE,
    "scientific": {"arms": {"one": {}, "other": {"method": "ae"}}},
    "nuisance": {
        "optim.lr": {"loguniform": [1e-4, 1e-2]},
        "optim.lr_half_images": {"choice": [None, 4000]},
        "optim.update_size": {"int": [64, 90]},
        "prior_precision": {"uniform": [0.1, 1.0], "when": {"method": "gfe"}},
    },
    "trials": 4,
    "seeds": 1,
}


@pytest.fixture
def searched(without_ray: Path) -> Any:  # noqa: F811
    return run(Study.build(SEARCHED, "mine"), storage=without_ray, progress=False)


def loaded(file: Path, name: str) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=JournalStorage(JournalFileBackend(str(file))))


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_tables_hold_every_trial(searched: Any, tmp_path: Path, form: Any) -> None:
    file = export(searched, form, tmp_path / "trials")
    read = pd.read_csv(file) if form == "csv" else pd.read_parquet(file)
    assert len(read) == len(searched.trials) == 8
    assert list(read["fingerprint"]) == list(searched.trials["fingerprint"])
    assert read["value"].to_numpy() == pytest.approx(searched.trials["value"].to_numpy())


def test_optuna_reads_parameters_and_curves(searched: Any, tmp_path: Path) -> None:
    file = export(searched, "optuna", tmp_path / "mine.log")
    for arm in ("one", "other"):
        study = loaded(file, f"mine: {arm}")
        rows = searched.trials[searched.trials["arm"] == arm]
        assert [trial.value for trial in study.trials] == pytest.approx(list(rows["value"]))
        assert study.best_trial.value == pytest.approx(rows["value"].min())
        assert [trial.params["optim.lr"] for trial in study.trials] == pytest.approx(list(rows["optim.lr"]))
        halves = [json.loads(trial.params["optim.lr_half_images"]) for trial in study.trials]
        assert halves == [None if pd.isna(each) else each for each in rows["optim.lr_half_images"]]
        assert all(("prior_precision" in trial.params) == (arm == "one") for trial in study.trials)
        for trial, (_, row) in zip(study.trials, rows.iterrows(), strict=True):
            assert trial.user_attrs["fingerprint"] == row["fingerprint"]
            curve = searched.curves[searched.curves["fingerprint"] == row["fingerprint"]]
            assert [*trial.intermediate_values] == [int(images) for images in curve["images_seen"]]
            assert [*trial.intermediate_values.values()] == pytest.approx(list(curve["val_loss"]))


def test_stopped_is_pruned_and_failed_is_failed(searched: Any, tmp_path: Path) -> None:
    searched.trials.loc[0, "state"] = "stopped"
    searched.trials.loc[1, ["failed", "state"]] = True, "failed"
    file = export(searched, "optuna", tmp_path / "mine.log")
    states = {
        trial.user_attrs["fingerprint"]: trial.state.name
        for arm in ("one", "other")
        for trial in loaded(file, f"mine: {arm}").trials
    }
    expected = ["PRUNED", "FAIL", *["COMPLETE"] * 6]
    assert [states[name] for name in searched.trials["fingerprint"]] == expected


def test_a_file_is_never_written_over(searched: Any, tmp_path: Path) -> None:
    file = export(searched, "csv", tmp_path / "trials.csv")
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"--out: given .*trials\.csv, which exists; allowed: a new file"):
        export(searched, "csv", file)
    assert file.read_bytes() == before


def test_the_command_names_the_file(searched: Any, without_ray: Path, monkeypatch: Any, tmp_path: Path) -> None:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, ["export", "mine", "--storage", str(without_ray), "--format", "optuna"])
    assert shown.exit_code == 0, shown.output
    assert "optuna-dashboard mine.log" in shown.output
    assert (tmp_path / "mine.log").exists()
    assert results("mine", without_ray).label == "mine"


def test_the_dashboard_opens_it(searched: Any, tmp_path: Path) -> None:
    file = export(searched, "optuna", tmp_path / "mine.log")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("optuna-dashboard")
    served = subprocess.Popen([program, str(file), "--port", str(port)], stderr=subprocess.DEVNULL)
    try:
        studies = told(f"http://127.0.0.1:{port}/api/studies")["study_summaries"]
        assert {each["study_name"] for each in studies} == {"mine: one", "mine: other"}
        shown = told(f"http://127.0.0.1:{port}/api/studies/{studies[0]['study_id']}?after=0")
        assert len(shown["trials"]) == 4
        assert {each["state"] for each in shown["trials"]} == {"Complete"}
    finally:
        served.terminate()
        served.wait(20)


def told(address: str) -> Any:
    for _ in range(120):
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                return json.loads(answer.read())
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{address} does not answer")
