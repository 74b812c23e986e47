"""What a person sees who opens a study in MLflow's UI, in a real browser."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import Opened, browser_program, open_page
from mlflow import MlflowClient
from stores import free_port
from sweeps import environment, gfe_study

from gfe_study import names
from gfe_study.config import Study, Trial, space_files
from gfe_study.metrics import ENCODE_NFE, IMAGES_SEEN, NFE_FORWARD, TEST_LOSS, TRAIN_SECONDS, VAL_LOSS
from gfe_study.study.plan import Job
from gfe_study.study.recorder import run_name
from gfe_study.tracking import views
from gfe_study.tracking.client import Tracker
from gfe_study.tracking.views import COMPARISON, KEEP, LISTED, NOTE, SHARED_VIEW, TRIALS

SHORTEST_LIMIT = 5000
"""Characters that MLflow 3.10 lets an experiment's tag have; newer versions allow 20,000."""
SECONDS_LIMIT = 90.0
OWN_ERRORS = ("Failed to load resource: the server responded with a status of 404", "null ResizeObserver loop")
"""Of MLflow's pages anywhere: they ask a server without logins who is logged in, and lay out charts in two rounds."""
METRICS = (
    TEST_LOSS,
    VAL_LOSS,
    IMAGES_SEEN,
    NFE_FORWARD,
    ENCODE_NFE,
    TRAIN_SECONDS,
)
TWO_ARMS: dict[str, Any] = {
    "question": "Does a decoder without an encoder beat an autoencoder after as few images?",
    "fixed": {
        "preset": "paper",
        "model": {"latent_dim": 8, "hidden": [32, 64]},
        "data": {"name": "digits"},
        "eval": {"schedule": [32, 64, 128, 256], "val_images": 32, "test_images": 32, "mixed": False},
    },
    "scientific": {"arms": {"ae": {"method": "ae"}, "gfe": {"method": "gfe", "solver.max_nfe": 12}}},
    "budget": {"images": 512},
    "seeds": 2,
}


def tags_of(study: Study, note: str = "") -> dict[str, str]:
    return views.experiment_tags(study, "label", "7", 1_700_000_000_000, note)


def unpacked(value: str) -> dict[str, Any]:
    text = zlib.decompress(base64.b64decode(value.removeprefix("deflate;")))
    state: dict[str, Any] = json.loads(text)
    return state


def states(study: Study) -> dict[str, dict[str, Any]]:
    tags = tags_of(study)
    return {key: unpacked(tags[SHARED_VIEW + key]) for key in (COMPARISON, TRIALS) if SHARED_VIEW + key in tags}


@pytest.mark.parametrize("space", sorted(space_files()))
def test_the_views_of_every_space_fit_a_tag(space: str) -> None:
    study = Study.load(space_files()[space])
    tags = tags_of(study)
    assert max(map(len, tags.values())) <= SHORTEST_LIMIT
    for key, state in states(study).items():
        listed = json.loads(tags[SHARED_VIEW + key + LISTED])
        assert unpacked(listed["state"]) == state
        assert isinstance(listed["name"], str)
        assert isinstance(listed["createdAt"], int)
        sections = {section["uuid"] for section in state["compareRunSections"]}
        assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} <= sections
    for key in study.nuisance:
        assert f"params.`{key}`" in states(study)[COMPARISON]["selectedColumns"]


@pytest.mark.parametrize(
    ("space", "groups", "last_stage"),
    [
        ("table1", [("tag", names.ARM)], False),  # arms, seeds
        ("solvers", [("tag", names.ARM)], True),  # arms, a search inside each, its winners with new seeds
        ("ae_fair", [("tag", names.ARM)], True),  # arms, a search inside each, its winners with new seeds
        ("amd", [], False),  # a search
    ],
)
def test_only_runs_differing_in_seed_are_grouped(space: str, groups: list[tuple[str, str]], last_stage: bool) -> None:
    shown = states(Study.load(space_files()[space]))
    given = shown[COMPARISON]["groupBy"] or {"groupByKeys": []}
    assert [(key["mode"], key["groupByData"]) for key in given["groupByKeys"]] == groups
    assert (f"tags.{names.STAGE} = '1'" in shown[COMPARISON]["searchFilter"]) == last_stage
    assert (TRIALS in shown) == bool(groups)
    if groups:
        assert shown[TRIALS]["groupBy"] is None


def test_searches_with_seeds_group_configurations() -> None:
    study = Study.load(space_files()["amd"], seeds=3)
    assert views.grouping(study) == [("tag", names.ARM)]


def test_arms_that_are_not_named_are_counted() -> None:
    arms = {f"rate {k}": {"optim.lr": 1e-3 * k} for k in range(1, 41)}
    study = Study.build({**TWO_ARMS, "scientific": {"arms": arms}}, "many.yaml")
    told = views.description(study, "many", "7")
    assert "`rate 8` and 32 more, 2 seeds each" in told
    assert "rate 9" not in told
    assert max(map(len, tags_of(study).values())) <= SHORTEST_LIMIT


def test_notes_stay_when_a_description_is_renewed() -> None:
    study = Study.build(TWO_ARMS, "two.yaml")
    first = tags_of(study)
    assert first[NOTE].startswith(TWO_ARMS["question"])
    assert tags_of(study, first[NOTE]) == first
    noted = first[NOTE] + "\n\nSeed 1 looks odd."
    more = Study.build({**TWO_ARMS, "seeds": 3}, "two.yaml")
    again = tags_of(more, noted)[NOTE]
    assert "3 seeds each" in again
    assert "2 seeds each" not in again
    assert again.endswith(f"{KEEP}\n\nSeed 1 looks odd.")
    assert tags_of(more, again)[NOTE] == again


def test_a_persons_own_description_is_kept() -> None:
    study = Study.build(TWO_ARMS, "two.yaml")
    note = tags_of(study, "My own words.")[NOTE]
    assert note.endswith(f"{KEEP}\n\nMy own words.")
    assert tags_of(study, f"{study.question}\n")[NOTE] == tags_of(study)[NOTE]


def test_the_tracker_writes_only_what_changed(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'store.db'}"
    declared = yaml.safe_dump(TWO_ARMS)
    for _ in range(2):
        tracker = Tracker("two", uri)
        tracker.open_study({}, TWO_ARMS["question"], {views.STUDY_FILE: declared})
        experiment = tracker.client.get_experiment(tracker.experiment_id)
        study = views.read_study(declared)
        assert experiment.creation_time is not None
        wanted = views.experiment_tags(study, "two", tracker.experiment_id, experiment.creation_time)
        assert {key: experiment.tags.get(key) for key in wanted} == wanted
    tracker.client.set_experiment_tag(tracker.experiment_id, NOTE, wanted[NOTE] + "\n\nMine.")
    tracker.client.set_experiment_tag(tracker.experiment_id, SHARED_VIEW + "mine", "{}")
    Tracker("two", uri).open_study({}, "?", {views.STUDY_FILE: yaml.safe_dump({**TWO_ARMS, "seeds": 5})})
    after = tracker.client.get_experiment(tracker.experiment_id).tags
    assert "5 seeds each" in after[NOTE]
    assert after[NOTE].endswith("\n\nMine.")
    assert after[SHARED_VIEW + "mine"] == "{}"


@pytest.mark.parametrize(
    ("params", "arm", "name"),
    [
        ({"solver.beta": 0.75, "optim.lr": 1.23456e-3}, "", "gfe·amd_spectral β=0.75 lr=0.00123 seed 2"),
        ({"solver.tau": 100.0}, "adjoint, rk4", "adjoint, rk4 τ=100 seed 2"),
        ({}, "", "gfe·amd_spectral seed 2"),
    ],
)
def test_a_run_is_named_after_what_sets_it_apart(params: dict[str, Any], arm: str, name: str) -> None:
    trial = Trial.build({"method": "gfe", "solver": {"name": "amd_spectral"}}, where="test")
    job = Job(0, 2, params, trial, "f", "d", arm)
    assert run_name(job) == name
    assert f"{run_name(job, with_seed=False)} seed 2" == name


@dataclass(frozen=True)
class Server:
    """MLflow's server over the store of a study of two arms with two seeds each."""

    address: str
    store: str
    experiment_id: str

    def at(self, place: str) -> str:
        return f"{self.address}/{place}"

    def view(self, key: str, *, charts: bool = True) -> str:
        return self.at(views.link(self.experiment_id, key, charts=charts))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    browser_program()
    folder = tmp_path_factory.mktemp("ui")
    (folder / "two.yaml").write_text(yaml.safe_dump(TWO_ARMS, sort_keys=False))
    done = gfe_study(folder, "sweep", "two.yaml")
    assert done.returncode == 0, done.stderr
    store = f"sqlite:///{folder / 'mlflow.db'}"
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--backend-store-uri", store]
    quiet = environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", MLFLOW_DISABLE_TELEMETRY="true")
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,
            env=quiet,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_for_server(address, process, folder / "server.log")
        experiment = MlflowClient(tracking_uri=store).get_experiment_by_name("two")
        assert experiment is not None
        yield Server(address, store, experiment.experiment_id)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def wait_for_server(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS_LIMIT
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)


def assert_well_behaved(opened: Opened) -> None:
    assert opened.leaving() == []
    assert [error for error in opened.errors if not error.startswith(OWN_ERRORS)] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_experiment_leads_to_the_comparison(server: Server) -> None:
    with open_page(server.at("#/experiments")) as listed:
        listed.wait_for("two")
        listed.page.get_by_role("link", name="two").click()
        advert = listed.page.get_by_role("button", name="Got it")
        listed.page.add_locator_handler(advert, lambda button: button.click())
        listed.wait_for(TWO_ARMS["question"])
        opened = listed.follow("Open the comparison")
        opened.wait_for("Group: gfe")
        opened.wait_for("Group: ae")
        opened.wait_for("gfe (test_loss)")
        told = opened.text()
        for title in ("Loss over images seen, nats per pixel", "What it costs", "Group by: arm", "Sort: test_loss"):
            assert title in told
        assert "share key" not in told
        assert_well_behaved(opened)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tables_show_what_is_compared(server: Server) -> None:
    with open_page(server.view(TRIALS, charts=False), width=1800) as opened:
        for name in ("ae seed 0", "ae seed 1", "gfe seed 0", "gfe seed 1"):
            opened.wait_for(name)
        columns = [names.ARM, names.SEED, *METRICS]
        places = [left_edge(opened, name) for name in columns]
        assert places == sorted(places)
        assert "4 matching runs" in opened.text()
        assert_well_behaved(opened)


def left_edge(opened: Opened, column: str) -> float:
    box = opened.page.get_by_role("columnheader", name=column, exact=True).first.bounding_box()
    assert box is not None, column
    return box["x"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_menu_lists_the_views(server: Server) -> None:
    with open_page(server.at(f"#/experiments/{server.experiment_id}/runs?workflowType=machine_learning")) as opened:
        opened.page.get_by_role("button", name="Views").click()
        opened.wait_for("Every trial, best first")
        opened.page.get_by_text("Comparison: means over seeds").click()
        opened.wait_for("Group: gfe")
        assert_well_behaved(opened)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("tag", "shown"),
    [
        ("deflate;bm90IHpsaWI=", "share key is invalid"),  # cannot be read: a notice, and MLflow's default page
        ('{"fieldOfTomorrow": {"groupBy": 3}}', "5 matching runs"),  # nothing known in it: MLflow's default view
        ("", "Group: gfe"),  # ours, with a field more and one less
    ],
)
def test_a_foreign_view_leaves_the_page_usable(server: Server, tag: str, shown: str) -> None:
    client = MlflowClient(tracking_uri=server.store)
    if not tag:
        state = states(Study.build(TWO_ARMS, "two.yaml"))[COMPARISON]
        del state["columnWidths"]
        tag = json.dumps({**state, "fieldOfTomorrow": 1})
    client.set_experiment_tag(server.experiment_id, SHARED_VIEW + "other", tag)
    with open_page(server.view("other", charts=False)) as opened:
        opened.wait_for(shown)
        opened.wait_for(TWO_ARMS["question"])
        assert opened.leaving() == []
