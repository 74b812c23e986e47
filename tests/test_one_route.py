"""However a study is edited, the terminal, `--json`, the report and MLflow's tags say the same, to the last digit."""

from __future__ import annotations

import copy
import json
import random
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from stores import fresh, server
from sweeps import children, gfe_study

from gfe_study import names, results
from gfe_study.analysis.judge.evidence import Evidence
from gfe_study.analysis.report.exhibits.verdict import verdict_table
from gfe_study.analysis.store.load import Store
from gfe_study.config import InputError, Study
from gfe_study.data.split import Splits
from gfe_study.metrics import (
    DIVERGED,
    IMAGES_SEEN,
    NFE_BACKWARD,
    NFE_FORWARD,
    RMSE,
    SINCE_BEST,
    TEST_LOSS,
    TRAIN_SECONDS,
    VAL_LOSS,
    of_split,
)
from gfe_study.study.engine import Engine, Observer
from gfe_study.study.frames import trials_frame
from gfe_study.study.options import Options
from gfe_study.study.status import state_of
from gfe_study.study.sweep import Outcome, run_sweep
from gfe_study.study.trial_run import TrialRun
from gfe_study.tracking.uri import URI_VARIABLE
from gfe_study.view.console import best_blocks
from gfe_study.view.statements import signs, summary, verdict

TEST_RMSE = of_split("test", RMSE)
BASE: dict[str, Any] = {
    "question": "Which is better?",
    "fixed": {
        "preset": "paper",
        "solver": {"name": "amd", "max_nfe": 4},
        "model": {"hidden": [4], "latent_dim": 2},
        "data": {"name": "digits"},
    },
    "budget": {"images": 64},
    "seeds": 3,
}
ARMS = {"slow": {"optim.lr": 1e-5}, "fast": {"optim.lr": 1e-2}, "middle": {"optim.lr": 1e-3}}
FACTORS = {"optim.lr": [1e-5, 1e-2], "optim.batch_size": [8, 16]}
SEARCH = {"solver.beta": {"uniform": [0.3, 0.95]}}


class Quiet:
    """An observer that ignores every message."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def made_up(run: TrialRun) -> tuple[list[dict[str, float]], str | None]:
    """The points of a trial, which depend on its configuration alone; some trials diverge, and some fail."""
    luck = random.Random(run.job.fingerprint)
    if luck.random() < 0.04:
        return [], "MemoryError: no more"
    diverges, points = luck.random() < 0.06, []
    for images in (32, 64):
        overfits = 0.2 if run.job.trial.budget.patience is not None and images == 64 else 0.0
        loss = 0.5 + 0.1 * luck.random() + run.job.trial.optim.lr / images + overfits
        costs = {TRAIN_SECONDS: images * luck.random(), NFE_FORWARD: 4.0, NFE_BACKWARD: 0.0}
        losses = {VAL_LOSS: loss, TEST_LOSS: loss + 0.01 * luck.random()}
        losses[TEST_RMSE] = 2 * losses[TEST_LOSS]
        losses = {} if diverges and images == 64 else losses
        points.append({IMAGES_SEEN: float(images), **costs, **losses, DIVERGED: float(not losses)})
        if run.job.trial.budget.patience is not None:
            points[-1][SINCE_BEST] = float(overfits > 0)
    return points, None


@contextmanager
def at_once(
    engine: Engine, options: Options, images: Mapping[str, Splits], observer: Observer, started: float
) -> Iterator[None]:
    """A backend whose trials end as soon as they are asked for."""
    engine.begin(2, started)
    while not engine.done:
        run = engine.next_run()
        if run is None:  # the second stage held finished trials only
            continue
        place = {names.HOST: "here", names.DEVICE: "cpu", names.THREADS: "1"}
        engine.placed(run.job.fingerprint, run.attempts, place)
        points, failure = made_up(run)
        engine.reported(run.job.fingerprint, run.attempts, points, done=True, failure=failure)
    yield


def sweep(declared: dict[str, Any], folder: Path, label: str = "edited") -> Outcome:
    study = Study.build(declared, f"{label}.yaml")
    return run_sweep(study, label, Options(str(folder / "results")), Quiet(), backend=at_once)


def check(outcome: Outcome, label: str = "edited") -> None:
    plan, evidence = outcome.plan, Evidence.load(Store(), label)
    here, there = verdict(plan), evidence.verdict
    told, reported = (json.dumps(each.as_dict()) if each else "" for each in (here, there))
    assert told == reported
    assert json.dumps(summary(outcome)["verdict"]) == (told or "null")
    in_python = results(label, plan.journal.folder.parent)
    assert (json.dumps(in_python.verdict.as_dict()) if in_python.verdict else "") == told
    assert in_python.trials.equals(trials_frame(plan.study, plan.journal))
    if here is not None and there is not None:
        assert verdict_table(here).equals(verdict_table(there))
    if plan.stage_over(0):
        assert [sign.as_dict() for sign in signs(plan)] == [sign.as_dict() for sign in evidence.signs]
    state, best = state_of(plan.journal), plan.best()
    assert evidence.num_former == len(plan.orphaned) == state["former"]
    ended = sum(count for word, count in state["trials"].items() if word not in ("running", "interrupted", "planned"))
    assert ended == sum(job.fingerprint in plan.journal.outcomes for job in plan.jobs.values())
    if not plan.exhausted:
        assert sum(state["trials"].values()) == plan.total
    assert plan.journal.membership == plan.membership()
    assert (state["best"] or {}).get("fingerprint") == (best[0].fingerprint if best else None)
    if best is not None:
        found = in_python.best
        assert (found.fingerprint, found.seed, found.trial) == (best[0].fingerprint, best[0].seed, best[0].trial)
    check_tags(outcome, label)


def check_tags(outcome: Outcome, label: str) -> None:
    """Every member is a run under its own name, arm, stage, number and seed; no other run is a trial of the study."""
    client, plan = MlflowClient(), outcome.plan
    experiment = client.get_experiment_by_name(label)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.{names.ROLE} = '{names.ROLE_TRIAL}'")
    by_name = {run.data.tags[names.FINGERPRINT]: run for run in runs}
    assert len(runs) == len(by_name)
    members: dict[str, list[list[Any]]] = {}
    for each in plan.journal.membership:
        for seed, fingerprint in zip(each.seeds, each.fingerprints, strict=True):
            members.setdefault(fingerprint, []).append([each.stage, each.arm, each.number])
            assert by_name[fingerprint].data.tags[names.SEED] == str(seed)
    assert set(by_name) == set(members)
    for fingerprint, places in members.items():
        tags, name = by_name[fingerprint].data.tags, by_name[fingerprint].info.run_name
        stage, arm, number = places[0]
        assert (tags[names.STAGE], tags[names.NUMBER]) == (str(stage), str(number))
        assert not arm or (tags[names.ARM] == arm and name.startswith(arm))
        assert json.loads(tags.get(names.SHARED_BY) or "null") == (places if len(places) > 1 else None)


class Editor:
    """Edits a study as a person would, at random."""

    def __init__(self, seed: int) -> None:
        self.luck = random.Random(seed)
        self.declared = copy.deepcopy(BASE)
        self.declared["scientific"] = {"arms": dict(list(ARMS.items())[:2])}

    def edit(self) -> str:
        kinds = ["swap", "rename", "add", "remove", "reference", "design", "setting", "more seeds", "fewer seeds"]
        kind = self.luck.choice([*kinds, "patience", "search", "more trials", "fewer trials", "data", "second stage"])
        getattr(self, kind.replace(" ", "_"))()
        return kind

    @property
    def arms(self) -> dict[str, Any]:
        if "arms" not in self.declared["scientific"]:
            self.declared["scientific"] = {"arms": dict(ARMS)}
            self.declared.pop("compare", None)
        arms: dict[str, Any] = self.declared["scientific"]["arms"]
        return arms

    def swap(self) -> None:
        one, *_, other = self.arms
        self.arms[one], self.arms[other] = self.arms[other], self.arms[one]

    def rename(self) -> None:
        chosen = self.luck.choice(list(self.arms))
        renamed = {(f"{name}’" if name == chosen else name): changes for name, changes in self.arms.items()}
        self.declared["scientific"] = {"arms": renamed}
        self.declared.pop("compare", None)

    def add(self) -> None:
        self.arms[f"arm {self.luck.randrange(100)}"] = {"optim.lr": self.luck.choice([2e-3, 3e-3, 4e-3, 5e-3])}

    def remove(self) -> None:
        if len(self.arms) > 2:
            del self.arms[self.luck.choice(list(self.arms))]
            self.declared.pop("compare", None)

    def reference(self) -> None:
        self.declared["compare"] = {"reference": self.luck.choice(list(self.arms))}

    def design(self) -> None:
        """Arms give way to a factorial, or a factorial gets another factor."""
        before = self.declared["scientific"].get("factorial", {})
        count = 1 if len(before) == 2 else len(before) + 1
        self.declared["scientific"] = {"factorial": dict(list(FACTORS.items())[:count])}
        self.declared.pop("compare", None)

    def setting(self) -> None:
        self.declared["fixed"]["model"]["latent_dim"] = self.luck.choice([2, 3])

    def data(self) -> None:
        self.declared["fixed"]["data"] = self.luck.choice([{"name": "digits"}, {"name": "digits", "train_images": 64}])

    def more_seeds(self) -> None:
        self.declared["seeds"] = min(6, self.declared["seeds"] + self.luck.choice([1, 2]))

    def fewer_seeds(self) -> None:
        self.declared["seeds"] = max(1, self.declared["seeds"] - 1)

    def patience(self) -> None:
        budget = self.declared["budget"]
        budget["patience"] = None if budget.get("patience") else 1

    def search(self) -> None:
        if self.declared.pop("nuisance", None) is None:
            self.declared |= {"nuisance": SEARCH, "trials": 2, "sampler": "random"}
        else:
            for key in ("trials", "sampler", "then"):
                self.declared.pop(key, None)

    def more_trials(self) -> None:
        if "nuisance" in self.declared:
            self.declared["trials"] += 1

    def fewer_trials(self) -> None:
        if "nuisance" in self.declared:
            self.declared["trials"] = max(1, self.declared["trials"] - 1)

    def second_stage(self) -> None:
        if "nuisance" in self.declared and self.declared.pop("then", None) is None:
            self.declared["then"] = {"best": 1, "seeds": 3}


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_trials_count_at_their_lowest_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped by validation: everywhere, its value is the test loss where its validation loss was lowest."""
    monkeypatch.setenv(URI_VARIABLE, fresh(tmp_path / "store.db"))
    declared = {**copy.deepcopy(BASE), "scientific": {"arms": ARMS}, "seeds": 4}
    declared["budget"] = {"images": 64, "patience": 1}
    outcome = sweep(declared, tmp_path)
    check(outcome)
    found, journal = verdict(outcome.plan), outcome.plan.journal
    assert found is not None
    ends = lowest = 0.0
    for arm in found.rows:
        member = next(each for each in journal.membership if each.arm == arm.arm)
        points = [journal.points[member.fingerprints[member.seeds.index(seed)]] for seed in arm.seeds]
        best = [min(of, key=lambda point: point[VAL_LOSS]) for of in points]
        assert arm.value.mean == pytest.approx(sum(point[TEST_LOSS] for point in best) / len(best))
        assert arm.seconds == pytest.approx(sum(point[TRAIN_SECONDS] for point in best) / len(best))
        lowest, ends = lowest + arm.value.mean, ends + sum(of[-1][TEST_LOSS] for of in points) / len(best)
    assert lowest != pytest.approx(ends)
    assert found.as_dict()["stopped_by_validation"]
    assert "each trial at its lowest validation loss" in str(found)
    trials = Evidence.load(Store(), "edited").trials
    usable = trials[~trials["failed"] & ~trials[DIVERGED]]
    assert (usable[TEST_RMSE] == 2 * usable[TEST_LOSS]).all()
    best_of_all = results("edited", tmp_path / "results").best
    assert best_of_all.metrics[SINCE_BEST] == 0
    assert best_of_all.metrics[VAL_LOSS] == outcome.plan.best()[1]  # type: ignore[index]
    told = "\n".join(str(block) for block in best_blocks(outcome.plan))
    assert f"{best_of_all.metrics[TEST_LOSS]:.4f}" in told


@settings(max_examples=4, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(seed=st.integers(0, 10**6))
def test_edited_studies_have_one_route(seed: int) -> None:
    edit_at_random(seed)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=40, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(seed=st.integers(0, 10**6))
def test_many_edited_studies_have_one_route(seed: int) -> None:
    edit_at_random(seed)


def edit_at_random(seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch, folder() as where:
        patch.setenv(URI_VARIABLE, fresh(where / "store.db"))
        editor = Editor(seed)
        check(sweep(editor.declared, where))
        for _ in range(6):
            before = copy.deepcopy(editor.declared)
            editor.edit()
            try:
                Study.build(editor.declared, "edited.yaml")
            except InputError:  # an edit that is refused changes nothing
                editor.declared = before
                continue
            if editor.luck.random() < 0.2:
                check(sweep(editor.declared, where, "another"), "another")  # whose trials are reused
            check(sweep(editor.declared, where))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_edited_study_on_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(tmp_path) as uri:
        monkeypatch.setenv(URI_VARIABLE, uri)
        editor = Editor(0)
        check(sweep(editor.declared, tmp_path))
        for edit in (editor.swap, editor.fewer_seeds, editor.rename, editor.design, editor.more_seeds):
            edit()
            check(sweep(editor.declared, tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_edited_study_on_the_command_line(tmp_path: Path) -> None:
    """The sweep's `--json`, the report's `verdict.csv` and MLflow's tags, after real trials and real edits."""
    declared = {**copy.deepcopy(BASE), "scientific": {"arms": dict(list(ARMS.items())[:2])}}
    declared["fixed"]["eval"] = {"schedule": [32], "val_images": 32, "test_images": 32}
    arms = declared["scientific"]["arms"]
    swapped = {"arms": {"slow": arms["fast"], "fast": arms["slow"]}}
    renamed = {"arms": {"reference": arms["slow"], "fast": arms["fast"]}}
    factorial = {"factorial": {"optim.lr": [1e-5, 1e-2]}}
    for scientific, seeds in [(declared["scientific"], 3), (swapped, 3), (renamed, 3), (factorial, 3), (factorial, 2)]:
        edited = {**declared, "scientific": scientific, "seeds": seeds}
        (tmp_path / "edited.yaml").write_text(yaml.safe_dump(edited, sort_keys=False))
        swept = gfe_study(tmp_path, "sweep", "edited.yaml", "--json")
        assert swept.returncode == 0, swept.stderr
        assert gfe_study(tmp_path, "report", "edited").returncode == 0
        rows = json.loads(swept.stdout)["verdict"]["rows"]
        table = pd.read_csv(tmp_path / "results" / "edited" / "report" / "verdict.csv")
        told = [(row["arm"], len(row["seeds"]), row["value"]["mean"]) for row in rows]
        assert told == list(table[["arm", "seeds", "mean"]].itertuples(index=False, name=None))
        tagged = [run.data.tags for run in children(tmp_path, "edited")]
        tags = sorted((tag[names.ARM], tag[names.SEED]) for tag in tagged if tag[names.ROLE] == names.ROLE_TRIAL)
        assert tags == sorted((arm, str(seed)) for arm, _, _ in told for seed in range(seeds))
    page = (tmp_path / "results" / "edited" / "report" / "report.html").read_text()
    assert "2 earlier trials that no longer belong to this study" in page
