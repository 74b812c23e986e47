"""Planning, extending and searching, from a journal alone."""

import math
from pathlib import Path
from typing import Any

import pytest

from gfe_study import names
from gfe_study.config import Study, find_space
from gfe_study.study.journal import FINISHED, Journal, Outcome
from gfe_study.study.plan import Job, Plan
from gfe_study.study.searcher import Suggester

SHA = "0" * 64


def smoke(**options: Any) -> Study:
    return Study.load(find_space("smoke"), **options)


def finish(journal: Journal, job: Job, value: float, *, diverged: bool = False) -> None:
    journal.record_asked(job.asked())
    last = {names.IMAGES_SEEN: 256.0, names.VAL_LOSS: value, names.DIVERGED: float(diverged)}
    journal.record_points(job.fingerprint, [last])
    journal.record_outcome(job.fingerprint, Outcome(FINISHED))


def run_all(study: Study, journal: Journal) -> Plan:
    """A sweep whose trials end at once with a made-up loss, one at a time."""
    plan = Plan.make(study, SHA, journal)
    suggester = Suggester(plan)
    for job in plan.missing():
        finish(journal, job, loss(job))
    while plan.unasked():
        assert suggester.ready()
        number = plan.next_number()
        params = suggester.ask(number)
        assert params is not None
        for job in plan.add(number, params):
            finish(journal, job, loss(job))
    return plan


def loss(job: Job) -> float:
    return abs(math.log10(job.params["solver.s_max"]) - 2) + abs(math.log10(job.params["optim.lr"]) + 3)


def test_the_first_trial_is_the_spaces_starting_point(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        plan = run_all(smoke(), journal)
    first = next(iter(plan.jobs.values()))
    assert first.params == {"solver.s_max": 10.0, "optim.lr": 5e-4}  # the paper's constants


@pytest.mark.parametrize("killed_after", [0, 1, 3, 6, 9])
def test_the_search_goes_on_as_if_it_had_never_stopped(tmp_path: Path, killed_after: int) -> None:
    with Journal.open(tmp_path / "whole") as journal:
        whole = run_all(smoke(trials=10), journal)
    with Journal.open(tmp_path / "cut") as journal:
        if killed_after:
            run_all(smoke(trials=killed_after), journal)
    with Journal.open(tmp_path / "cut") as journal:
        cut = run_all(smoke(trials=10), journal)
    assert list(cut.jobs) == list(whole.jobs)
    assert len(cut.finished()) == 10


def test_the_search_finds_better_than_where_it_started(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        plan = run_all(smoke(trials=30), journal)
    best = plan.best()
    first = next(iter(plan.jobs.values()))
    assert best is not None
    assert best[1] < loss(first) / 2


def test_more_seeds_run_what_is_known_again_with_the_new_seeds_only(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        run_all(smoke(trials=3), journal)
        extended = Plan.make(smoke(trials=3, seeds=2), SHA, journal)
    assert [(job.number, job.seed) for job in extended.missing()] == [(0, 1), (1, 1), (2, 1)]
    assert len(extended.finished()) == 3
    assert extended.unasked() == 0


def test_a_changed_study_keeps_what_still_belongs_and_names_the_rest(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        run_all(smoke(trials=4), journal)
        same = Plan.make(smoke(trials=6), SHA, journal)
        changed = Plan.make(Study.load(find_space("smoke"), {"model": {"latent_dim": 9}}, trials=4), SHA, journal)
        other_data = Plan.make(smoke(trials=4), "1" * 64, journal)
    assert (len(same.finished()), same.unasked(), same.orphaned) == (4, 2, [])
    assert (len(changed.jobs), len(changed.orphaned), changed.unasked()) == (0, 4, 4)
    assert len(other_data.orphaned) == 4
    assert changed.next_number() == 4  # numbers of orphans are not used again


def test_unfinished_trials_come_first(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        plan = Plan.make(smoke(), SHA, journal)
        suggester = Suggester(plan)
        for number in range(3):
            params = suggester.ask(number)
            assert params is not None
            (job,) = plan.add(number, params)
            journal.record_asked(job.asked())
        journal.record_points(job.fingerprint, [{names.IMAGES_SEEN: 32.0}])
        assert [job.number for job in Plan.make(smoke(), SHA, journal).missing()] == [2, 0, 1]


def test_a_diverged_trial_is_infinitely_bad_and_the_search_goes_on(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        plan = Plan.make(smoke(), SHA, journal)
        suggester = Suggester(plan)
        params = suggester.ask(0)
        assert params is not None
        (job,) = plan.add(0, params)
        finish(journal, job, 0.1, diverged=True)
        assert plan.value(job) == math.inf
        run_all(smoke(trials=9), journal)
        again = Plan.make(smoke(trials=9), SHA, journal)
    assert len(again.finished()) == 9
    best = again.best()
    assert best is not None
    assert best[0].fingerprint != job.fingerprint


def test_a_finite_space_ends_when_everything_is_known(tmp_path: Path) -> None:
    declared = smoke().model_dump()
    declared |= {"nuisance": {"optim.lr": {"choice": [1e-3, 5e-4]}}, "trials": 5}
    with Journal.open(tmp_path) as journal:
        plan = Plan.make(Study.build(declared, "finite.yaml"), SHA, journal)
        suggester = Suggester(plan)
        asked = [suggester.ask(number) for number in range(3)]
    assert sorted(params["optim.lr"] for params in asked[:2] if params) == [5e-4, 1e-3]
    assert asked[2] is None


def test_choices_may_be_lists(tmp_path: Path) -> None:
    declared = smoke().model_dump()
    declared |= {"nuisance": {"model.hidden": {"choice": [[16], [16, 32]]}}, "start_from": [], "trials": 2}
    declared["fixed"]["model"].pop("hidden")
    with Journal.open(tmp_path) as journal:
        plan = Plan.make(Study.build(declared, "lists.yaml"), SHA, journal)
        suggester = Suggester(plan)
        asked = [suggester.ask(number) for number in range(2)]
        for number, params in enumerate(asked):
            assert params is not None
            plan.add(number, params)
    assert {job.trial.model.hidden for job in plan.jobs.values()} == {(16,), (16, 32)}
