"""What a start finds when the one before was killed at a bad moment, and other ways to disagree."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import test_one_route
from stores import fresh
from test_one_route import ARMS, BASE, Quiet, at_once, check, sweep

from gfe_study import names
from gfe_study.analysis.judge.evidence import Evidence
from gfe_study.analysis.store.load import Store
from gfe_study.config import InputError, Study
from gfe_study.metrics import DIVERGED, IMAGES_SEEN, NFE_BACKWARD, NFE_FORWARD, TEST_LOSS, TRAIN_SECONDS, VAL_LOSS
from gfe_study.study import sweep as sweeping
from gfe_study.study.forecast import forecast
from gfe_study.study.journal import Journal
from gfe_study.study.options import Options
from gfe_study.study.recorder import Recorder
from gfe_study.study.sweep import Outcome, run_sweep
from gfe_study.study.trial_run import TrialRun
from gfe_study.tracking.client import Tracker
from gfe_study.tracking.uri import URI_VARIABLE
from gfe_study.view.statements import summary, verdict

TWO_ARMS = {**BASE, "scientific": {"arms": dict(list(ARMS.items())[:2])}}


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(URI_VARIABLE, fresh(tmp_path / "store.db"))
    return tmp_path


def trials(loss: Callable[[TrialRun], float] = lambda run: 0.5, **last: float) -> Callable[[TrialRun], Any]:
    """Trials that all end, with a loss of their own."""

    def points(run: TrialRun) -> tuple[list[dict[str, float]], str | None]:
        costs = {TRAIN_SECONDS: 1.0, NFE_FORWARD: 4.0, NFE_BACKWARD: 0.0, DIVERGED: 0.0}
        value = loss(run) + 1e-3 * run.job.seed
        found = {IMAGES_SEEN: 64.0, **costs, VAL_LOSS: value, TEST_LOSS: value, **last}
        return [found], None

    return points


def again(declared: dict[str, Any], folder: Path) -> Outcome:
    options = Options(str(folder / "results"), again=True, reuse=False)
    return run_sweep(Study.build(declared, "edited.yaml"), "edited", options, Quiet(), backend=at_once)


def dies(*_: object, **__: object) -> Any:
    raise Killed


@contextmanager
def killed(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> Iterator[None]:
    """Where this is reached the process ends."""
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dies)
        with pytest.raises(Killed):
            yield


def test_arms_may_share_their_winners(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second stage fixes what distinguishes the arms, so that one arm's winners are the other's."""
    monkeypatch.setattr(test_one_route, "made_up", trials())
    declared = copy.deepcopy(BASE)
    declared |= {
        "scientific": {"arms": {"a": {"solver.beta": 0.5}, "b": {"solver.beta": 0.75}}},
        "nuisance": {"optim.lr": {"choice": [1e-3, 1e-2]}},
        "sampler": "grid",
        "seeds": 1,
        "then": {"best": 1, "seeds": 3, "fixed": {"solver": {"beta": 0.6}}},
    }
    outcome = sweep(declared, folder)
    check(outcome)
    judged = verdict(outcome.plan)
    assert judged is not None
    assert [(row.arm, len(row.seeds)) for row in judged.rows] == [("a", 3), ("b", 3)]


def test_trials_run_again_after_a_kill(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kill comes when the journal says that trials run again and their old runs are not set aside yet."""
    monkeypatch.setattr(test_one_route, "made_up", trials(lambda run: 0.5))
    sweep(TWO_ARMS, folder)
    monkeypatch.setattr(test_one_route, "made_up", trials(lambda run: 0.1))
    with killed(monkeypatch, Tracker, "supersede"):
        again(TWO_ARMS, folder)
    outcome = sweep(TWO_ARMS, folder)
    check(outcome)
    assert outcome.plan.best() is not None
    losses = sorted(Store().frames("edited")[0][VAL_LOSS])
    assert losses == pytest.approx([0.1, 0.1, 0.101, 0.101, 0.102, 0.102])


def test_an_edit_does_not_disarm_no_reuse(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_one_route, "made_up", trials())
    sweep(TWO_ARMS, folder)
    with killed(monkeypatch, Tracker, "supersede"):
        again(TWO_ARMS, folder)
    edited = copy.deepcopy(TWO_ARMS)
    edited["fixed"]["model"]["latent_dim"] = 3
    sweep(edited, folder)
    monkeypatch.setattr(test_one_route, "made_up", trials(lambda run: 0.1))
    check(again(edited, folder))
    losses = sorted(Store().frames("edited")[0][VAL_LOSS])
    assert losses == pytest.approx([0.1, 0.1, 0.101, 0.101, 0.102, 0.102])


def test_a_failure_outlives_a_kill(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure that the store has not heard of is delivered, although nothing more runs in this start."""
    fails = lambda run: ([], "MemoryError: no more") if run.job.seed == 1 else trials()(run)  # noqa: E731
    monkeypatch.setattr(test_one_route, "made_up", fails)
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "_deliver", lambda *_: None)
        sweep(TWO_ARMS, folder)
    monkeypatch.setattr(sweeping, "_run_missing", lambda *_: None)  # stopped before it could try again
    outcome = sweep(TWO_ARMS, folder)
    check(outcome)
    assert len(outcome.failed) == 2
    assert list(Store().frames("edited")[0]["failed"]).count(True) == 2


def test_a_store_that_failed_once_is_made_level(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_one_route, "made_up", trials())
    sweep(TWO_ARMS, folder)
    edited = {**TWO_ARMS, "seeds": 2}
    real, calls = Tracker.write, []

    def fails_once(self: Tracker, changes: Any) -> None:
        calls.append(changes)
        if len(calls) == 1:
            raise InputError("the store does not answer")
        real(self, changes)

    monkeypatch.setattr(Tracker, "write", fails_once)
    check(sweep(edited, folder))


def test_a_report_waits_for_a_level_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that ends between the journal's record and the store's tags leaves a report that says so."""
    monkeypatch.setattr(test_one_route, "made_up", trials())
    sweep(TWO_ARMS, folder)
    with killed(monkeypatch, sweeping, "Recorder"):
        sweep({**TWO_ARMS, "seeds": 2}, folder)
    with pytest.raises(InputError, match="before its runs were brought level"):
        Evidence.load(Store(), "edited")
    check(sweep({**TWO_ARMS, "seeds": 2}, folder))


def test_nothing_finished_names_no_best(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_one_route, "made_up", trials())
    sweep(TWO_ARMS, folder)
    monkeypatch.setattr(test_one_route, "made_up", lambda run: ([], "MemoryError: no more"))
    edited = copy.deepcopy(TWO_ARMS)
    edited["fixed"]["model"]["latent_dim"] = 3
    outcome = sweep(edited, folder)
    parent = Store().parent("edited")
    assert parent is not None
    assert parent.tags[names.BEST_FINGERPRINT] == ""
    assert summary(outcome)["best"] == []


def test_diverged_trials_are_no_best(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_one_route, "made_up", trials(diverged=1.0))
    outcome = sweep(TWO_ARMS, folder)
    check(outcome)
    assert outcome.plan.best() is None


def test_a_test_loss_lost_at_the_end_stays_lost(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It overflowed, which ends no trial; nothing takes the one of an earlier point for it."""

    def points(run: TrialRun) -> tuple[list[dict[str, float]], str | None]:
        (end,), failure = trials()(run)
        early = {**end, IMAGES_SEEN: 32.0, TEST_LOSS: 0.1}
        lost = {TEST_LOSS} if run.job.arm == "fast" and run.job.seed == 1 else set()
        return [early, {name: value for name, value in end.items() if name not in lost}], failure

    monkeypatch.setattr(test_one_route, "made_up", points)
    outcome = sweep(TWO_ARMS, folder)
    check(outcome)
    judged = verdict(outcome.plan)
    assert judged is not None
    assert [(row.arm, row.lost) for row in judged.rows] == [("slow", 0), ("fast", 1)]


def test_reused_files_are_there_before_the_record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_one_route, "made_up", trials())
    sweep(TWO_ARMS, folder, "first")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "record_reused", dies)
        copied: list[object] = []
        patch.setattr(Recorder, "copy_files", lambda self, job, found: copied.append(job))
        with pytest.raises(Killed):
            sweep(TWO_ARMS, folder)
    assert len(copied) == 1


def test_a_plan_without_reuse_counts_all_trials(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_one_route, "made_up", trials())
    sweep(TWO_ARMS, folder)
    study, storage = Study.build(TWO_ARMS, "edited.yaml"), str(folder / "results")
    extended = forecast(study, "edited", Options(storage), probe=False)
    repeated = forecast(study, "edited", Options(storage, again=True, reuse=False), probe=False)
    assert (extended.done, extended.images) == (6, 0)
    assert (repeated.done, repeated.images) == (0, 6 * 64)


def test_a_name_that_is_no_text_can_be_recorded(tmp_path: Path) -> None:
    """Linux allows file names that no encoding explains; Python shows them with surrogates."""
    name = "space \udcff.yaml"
    with Journal.open(tmp_path) as journal:
        journal.record_study({}, {"source": name}, {})
    study = Journal.read(tmp_path).study
    assert study is not None
    assert study["source"] == {"source": name}
