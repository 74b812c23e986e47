"""A study with nothing left to do says so at once, and only then."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from stores import fresh
from sweeps import environment, gfe_study
from test_one_route import BASE, Quiet, at_once

from gfe_study import names
from gfe_study.config import Study
from gfe_study.io.storage import Storage
from gfe_study.study.images import Images
from gfe_study.study.journal import JOURNAL_FILE, Journal
from gfe_study.study.options import Options
from gfe_study.study.settled import file_states, settled, start_key
from gfe_study.study.sweep import Outcome, run_sweep
from gfe_study.tracking.uri import URI_VARIABLE

LABEL = "small"
ARMS = {"arms": {"a": {}, "b": {"optim.batch_size": 8}}}


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The storage of a study that has settled."""
    monkeypatch.setenv(URI_VARIABLE, fresh(tmp_path / "store.db"))
    folder = str(tmp_path / "results")
    study = Study.build({**BASE, "seeds": 1, "scientific": ARMS}, "small.yaml")

    def settle(outcome: Outcome) -> tuple[str, dict[str, Any], list[Any]]:
        return "key", {"trials": {"finished": len(outcome.plan.jobs)}}, [["sentence", "done", ""]]

    run_sweep(study, LABEL, Options(folder), Quiet(), settle, at_once)
    return folder


def test_a_settled_study_is_recognised(storage: str) -> None:
    found = settled(Storage(storage), LABEL, "key")
    assert found is not None
    assert (found.summary, found.lines) == ({"trials": {"finished": 2}}, [["sentence", "done", ""]])
    assert settled(Storage(storage), LABEL, "another key") is None
    assert settled(Storage(storage), "another study", "key") is None
    assert settled(Storage("s3://bucket/results"), LABEL, "key") is None


def append(storage: str) -> None:
    with Journal.open(Path(storage) / LABEL) as journal:
        journal.record_start_up(1.0)


def cut(storage: str) -> None:
    file = Path(storage) / LABEL / JOURNAL_FILE
    file.write_bytes(file.read_bytes()[:-1])


def newer(storage: str) -> None:
    with (Path(storage) / LABEL / JOURNAL_FILE).open("a") as file:
        file.write('{"event": "unheard of"}\n')


def lose_store(storage: str) -> None:
    Path(storage).with_name("store.db").unlink()


def lose_run(storage: str) -> None:
    client = MlflowClient()
    experiment = client.get_experiment_by_name(LABEL)
    assert experiment is not None
    run, *_ = client.search_runs([experiment.experiment_id], f"tags.{names.ROLE} = '{names.ROLE_TRIAL}'")
    client.delete_run(run.info.run_id)


@pytest.mark.parametrize("change", [append, cut, newer, lose_store, lose_run])
def test_a_change_unsettles_a_study(storage: str, change: Callable[[str], None]) -> None:
    change(storage)
    assert settled(Storage(storage), LABEL, "key") is None


@pytest.mark.parametrize("changes", ["never", "while trials run", "afterwards"])
def test_changed_images_unsettle_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: str) -> None:
    """A result belongs to the images that were there before it; a change while trials run is a change."""
    monkeypatch.setenv(URI_VARIABLE, fresh(tmp_path / "store.db"))
    images = tmp_path / "images"
    images.write_bytes(b"pixels")
    monkeypatch.setattr(Images, "sources", lambda self: [images])

    def changing(*given: Any) -> Any:
        if changes == "while trials run":
            images.write_bytes(b"other pixels")
        return at_once(*given)

    study, options = Study.build({**BASE, "seeds": 1, "scientific": ARMS}, "small.yaml"), Options(str(tmp_path / "r"))
    run_sweep(study, LABEL, options, Quiet(), lambda _: ("key", {"trials": {"finished": 2}}, []), changing)  # type: ignore[arg-type]
    if changes == "afterwards":
        images.write_bytes(b"other pixels")
    assert (settled(Storage(options.storage), LABEL, "key") is not None) == (changes == "never")


def test_a_failed_trial_leaves_something_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URI_VARIABLE, fresh(tmp_path / "store.db"))
    monkeypatch.setattr("test_one_route.made_up", lambda run: ([], "MemoryError: no more"))
    study = Study.build({**BASE, "seeds": 1, "scientific": ARMS}, "small.yaml")
    options = Options(str(tmp_path / "results"))
    outcome = run_sweep(study, LABEL, options, Quiet(), lambda _: pytest.fail("settled"), at_once)
    assert len(outcome.failed) == 2
    assert Journal.read(tmp_path / "results" / LABEL).settled is None


def test_changed_files_have_another_state(tmp_path: Path) -> None:
    there, gone = tmp_path / "images", tmp_path / "none"
    there.write_bytes(b"pixels")
    before = file_states([there, gone])
    assert before[str(gone)] == []
    os.utime(there, ns=(1, 1))
    assert file_states([there, gone]) != before


def test_the_key_follows_command_and_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {start_key(["sweep", "a"]), start_key(["sweep", "b"])}
    for variable in (URI_VARIABLE, names.DATA_DIR_VARIABLE):
        monkeypatch.setenv(variable, str(tmp_path))
        keys.add(start_key(["sweep", "a"]))
    monkeypatch.chdir(tmp_path)
    keys.add(start_key(["sweep", "a"]))
    assert len(keys) == 5


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_finished_sweep_loads_nothing_large(tmp_path: Path) -> None:
    line = ["sweep", "smoke", "--trials", "2"]
    first = gfe_study(tmp_path, *line)
    assert first.returncode == 0, first.stderr
    command = [sys.executable, "-X", "importtime", "-m", "gfe_study", *line]
    again = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert again.returncode == 0
    told, imported = [], set()
    for text in again.stderr.splitlines():
        if text.startswith("import time:"):
            imported.add(text.rpartition("|")[2].strip())
        else:
            told.append(text)
    assert not {"torch", "mlflow", "ray", "optuna", "pandas", "scipy"} & imported
    assert "2 trials of 256 images, preset paper; 2 already finished" in "\n".join(told)
    best = next(text for text in first.stderr.splitlines() if text.startswith("Best: "))
    assert best in told
    more = gfe_study(tmp_path, "sweep", "smoke", "--trials", "3")
    assert "3 of 3 trials finished" in more.stderr
