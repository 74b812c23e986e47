"""Planning, extending and searching, from a journal alone."""

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gfe_study.config import Study, find_space
from gfe_study.data.base import load_splits
from gfe_study.io.storage import Mirror
from gfe_study.metrics import DIVERGED, IMAGES_SEEN, TRAIN_SECONDS, VAL_LOSS
from gfe_study.study.journal import FAILED, FINISHED, Configuration, Journal, Outcome
from gfe_study.study.plan import Job, Plan
from gfe_study.study.searcher import Suggester, add_certain
from gfe_study.study.status import state_of
from gfe_study.view.console import opening

SHA = "0" * 64


def smoke(**options: Any) -> Study:
    return Study.load(find_space("smoke"), **options)


def ask(journal: Journal, job: Job) -> None:
    journal.record_configuration(
        Configuration(job.stage, job.arm, job.number, job.params, [job.seed], [job.fingerprint])
    )


def finish(journal: Journal, job: Job, value: float, *, diverged: bool = False, **more: float) -> None:
    ask(journal, job)
    last = {IMAGES_SEEN: 256.0, VAL_LOSS: value, DIVERGED: float(diverged), **more}
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


def test_the_first_trial_is_the_starting_point(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        plan = run_all(smoke(), journal)
    first = next(iter(plan.jobs.values()))
    assert first.params == {"solver.s_max": 10.0, "optim.lr": 5e-4}  # the paper's constants


@pytest.mark.parametrize("killed_after", [0, 1, 3, 6, 9])
def test_a_search_resumes_as_if_never_stopped(tmp_path: Path, killed_after: int) -> None:
    with Journal.open(tmp_path / "whole") as journal:
        whole = run_all(smoke(trials=10), journal)
    with Journal.open(tmp_path / "cut") as journal:
        if killed_after:
            run_all(smoke(trials=killed_after), journal)
    with Journal.open(tmp_path / "cut") as journal:
        cut = run_all(smoke(trials=10), journal)
    assert list(cut.jobs) == list(whole.jobs)
    assert len(cut.finished()) == 10


def test_the_search_improves_on_its_start(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        plan = run_all(smoke(trials=30), journal)
    best = plan.best()
    first = next(iter(plan.jobs.values()))
    assert best is not None
    assert best[1] < loss(first) / 2


def test_more_seeds_run_only_the_new_seeds(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        run_all(smoke(trials=3), journal)
        extended = Plan.make(smoke(trials=3, seeds=2), SHA, journal)
    assert [(job.number, job.seed) for job in extended.missing()] == [(0, 1), (1, 1), (2, 1)]
    assert len(extended.finished()) == 3
    assert extended.unasked() == 0


def test_a_changed_study_keeps_what_still_belongs(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        run_all(smoke(trials=4), journal)
        same = Plan.make(smoke(trials=6), SHA, journal)
        changed = Plan.make(Study.load(find_space("smoke"), {"model": {"latent_dim": 9}}, trials=4), SHA, journal)
        other_data = Plan.make(smoke(trials=4), "1" * 64, journal)
    assert (len(same.finished()), same.unasked(), same.orphaned) == (4, 2, set())
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
            ask(journal, job)
        journal.record_points(job.fingerprint, [{IMAGES_SEEN: 32.0}])
        assert [job.number for job in Plan.make(smoke(), SHA, journal).missing()] == [2, 0, 1]


def test_a_diverged_trial_is_infinitely_bad(tmp_path: Path) -> None:
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


def test_a_finite_space_ends_when_all_is_known(tmp_path: Path) -> None:
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
    assert [job.trial.dump()["model"]["hidden"] for job in plan.jobs.values()] == [[16], [16, 32]]


CONDITIONAL: dict[str, Any] = {
    "solver.name": {"choice": ["amd", "rk4"]},
    "solver.beta": {"uniform": [0.3, 0.9], "when": {"solver.name": "amd"}},
    "solver.slices": {"int": [6, 16], "when": {"solver.name": "rk4"}},
    "optim.lr": {"loguniform": [1e-4, 1e-2]},
}


def conditional(**declared: Any) -> Study:
    base = {"question": "?", "fixed": {"preset": "paper"}, "nuisance": CONDITIONAL, "budget": {"images": 64}}
    return Study.build({**base, **declared}, "conditional.yaml")


def conditional_loss(job: Job) -> float:
    shape = abs(job.params["solver.beta"] - 0.5) if "solver.beta" in job.params else job.params["solver.slices"] / 10
    return float(shape) + abs(math.log10(job.params["optim.lr"]) + 3) + 0.01 * job.seed


def run_in_any_order(study: Study, folder: Path, draw: random.Random, slots: int, kills: float) -> list[Any]:
    """A sweep whose trials end in random order, and which is killed and started again now and then."""
    plan = None
    running: list[Job] = []
    while True:
        if plan is None or draw.random() < kills:
            journal = Journal.open(folder)
            journal.__exit__(None, None, None)
            with Journal.open(folder) as journal:
                plan = Plan.make(study, SHA, journal)
            suggesters = {arm.name: Suggester(plan, arm.name, 4) for arm in study.arms}
            queue, running = list(plan.missing()), []
        with Journal.open(folder) as journal:
            plan.journal = journal
            if len(running) < slots and not queue:
                ready = [arm for arm, s in suggesters.items() if plan.unasked(arm) and s.ready()]
                if ready:
                    arm = draw.choice(ready)
                    params = suggesters[arm].ask(plan.next_number(arm))
                    assert params is not None
                    queue += plan.add(plan.next_number(arm), params, arm)
                elif not running and not plan.unasked():
                    break
            if queue and len(running) < slots:
                job = queue.pop(0)
                running.append(job)
                ask(journal, job)
            elif running:
                job = running.pop(draw.randrange(len(running)))
                finish(journal, job, conditional_loss(job))
    return sorted(
        (arm, c.number, sorted(c.params.items()))
        for (_, arm), there in plan.configurations.items()
        for c in there.values()
    )


@pytest.mark.parametrize("seed", range(4))
def test_neither_order_nor_kills_change_a_search(tmp_path: Path, seed: int) -> None:
    arms = {"arms": {"a": {"optim.batch_size": 16}, "b": {"optim.batch_size": 8}}}
    study = conditional(trials=14, scientific=arms, seeds=2, scheduler="none")
    draw = random.Random(seed)
    one_by_one = run_in_any_order(study, tmp_path / "calm", draw, slots=1, kills=0.0)
    assert len(one_by_one) == 28
    assert run_in_any_order(study, tmp_path / "wild", draw, slots=draw.choice([2, 4]), kills=0.1) == one_by_one


def suggested(plan: Plan, suggester: Suggester) -> Iterator[Job]:
    """Every trial that a search suggests, one after another."""
    while plan.unasked():
        params = suggester.ask(plan.next_number())
        assert params is not None
        yield from plan.add(plan.next_number(), params)


def test_a_conditional_search_learns(tmp_path: Path) -> None:
    study = conditional(trials=40, scheduler="none")
    with Journal.open(tmp_path) as journal:
        plan = Plan.make(study, SHA, journal)
        for job in suggested(plan, Suggester(plan)):
            finish(journal, job, conditional_loss(job))
    assert all(study.fits(job.params, "") for job in plan.jobs.values())
    assert {job.params["solver.name"] for job in plan.jobs.values()} == {"amd", "rk4"}
    best = plan.best()
    assert best is not None
    assert best[1] < 0.2


def test_a_grid_is_asked_whole_and_once(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        study = conditional(sampler="grid", scheduler="none")
        plan = Plan.make(study, SHA, journal)
        suggester = Suggester(plan)
        assert list(suggested(plan, suggester))
        assert suggester.ask(plan.next_number()) is None
    assert len(plan.jobs) == plan.total == len(study.grid("")) == 2 * 3 * 3


def test_two_objectives_are_searched_together(tmp_path: Path) -> None:
    study = conditional(trials=12, metric={"name": "val_loss", "against": "nfe_forward"})
    with Journal.open(tmp_path) as journal:
        plan = Plan.make(study, SHA, journal)
        for job in suggested(plan, Suggester(plan)):
            cost = 1 / conditional_loss(job)
            finish(journal, job, conditional_loss(job), diverged=job.number == 3, nfe_forward=cost)
    assert len(plan.finished()) == 12


def test_a_fixed_design_is_ordered_for_pairing(tmp_path: Path) -> None:
    arms = {"arms": {"a": {}, "b": {"optim.lr": 1e-3}}}
    study = Study.build({"question": "?", "scientific": arms, "seeds": 3}, "arms.yaml")
    plan = Plan.make(study, SHA, Journal(Mirror(tmp_path)))
    assert [(job.arm, job.seed) for job in plan.missing()] == [(arm, seed) for seed in range(3) for arm in "ab"]
    assert (plan.total, plan.unasked()) == (6, 0)


def test_the_second_stage_replicates_the_winners(tmp_path: Path) -> None:
    """They are the best of the first stage."""
    then = {"best": 2, "seeds": 3, "budget": {"images": 128}}
    study = conditional(trials=5, then=then, scheduler="none")
    with Journal.open(tmp_path) as journal:
        plan = Plan.make(study, SHA, journal)
        assert plan.total == 5 + 6
        suggester = Suggester(plan)
        while plan.unasked():
            params = suggester.ask(plan.next_number())
            assert params is not None
            plan.add(plan.next_number(), params)
        for job in plan.missing():
            assert plan.advance() == []
            finish(journal, job, conditional_loss(job))
        replicated = plan.advance()
        best = sorted(plan.finished(), key=conditional_loss)[:2]
        assert [(job.params, job.seed) for job in replicated] == [
            (w.params, seed) for w in best for seed in range(1, 4)
        ]
        assert {job.trial.budget.images for job in replicated} == {128}
        finish(journal, replicated[0], 0.5)
        again = Plan.make(study, SHA, journal)
        assert [job.fingerprint for job in again.missing()] == [job.fingerprint for job in replicated[1:]]
        assert again.orphaned == set()


def test_winners_are_chosen_among_equally_many(tmp_path: Path) -> None:
    """Of each arm, only as many trials count as the arm with the fewest has."""
    arms = {"arms": {"a": {"optim.batch_size": 16}, "b": {"optim.batch_size": 8}}}
    study = conditional(trials=4, scientific=arms, then={"best": 1, "seeds": 2}, scheduler="none")
    with Journal.open(tmp_path) as journal:
        plan = Plan.make(study, SHA, journal)
        add_certain(plan)
        for job in plan.missing():
            if job.arm == "b" and job.number in (1, 2):
                ask(journal, job)
                journal.record_outcome(job.fingerprint, Outcome(FAILED, "no more"))
            else:
                finish(journal, job, 1.0 - 0.1 * job.number)
        winners = {job.arm: job.number for job in plan.advance()}
        assert {arm: len(numbers) for arm, numbers in plan.tuned().items()} == {"a": 4, "b": 2}
        assert winners == {"a": 1, "b": 3}  # the best of the first two of each
        assert not [job for job in Plan.make(study, SHA, journal).jobs.values() if job.stage]  # failures go first


def test_an_arm_without_a_search_limits_nobody(tmp_path: Path) -> None:
    """It has one configuration, and the other arms keep all of theirs."""
    arms = {"arms": {"a": {"method": "gfe"}, "b": {"method": "pca"}}}
    nuisance = {"optim.lr": {"loguniform": [1e-4, 1e-2], "when": {"method": "gfe"}}}
    study = conditional(nuisance=nuisance, trials=4, scientific=arms, then={"best": 1, "seeds": 2}, scheduler="none")
    with Journal.open(tmp_path) as journal:
        plan = Plan.make(study, SHA, journal)
        for arm in ("a", "b"):
            suggester = Suggester(plan, arm)
            while plan.unasked(arm):
                number = plan.next_number(arm)
                params = suggester.ask(number)
                assert params is not None
                for job in plan.add(number, params, arm):
                    finish(journal, job, 0.5 - 0.1 * job.number)
        assert plan.total == 4 + 1 + 2 * 2
        assert not plan.short
        assert {job.arm: job.number for job in plan.advance()} == {"a": 3, "b": 0}


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_small_space_is_searched_to_the_end(tmp_path: Path, sampler: str) -> None:
    nuisance = {"model.latent_dim": {"int": [1, 40]}}
    study = conditional(nuisance=nuisance, trials=60, scheduler="none", sampler=sampler)
    with Journal.open(tmp_path) as journal:
        plan = Plan.make(study, SHA, journal)
        suggester = Suggester(plan)
        while (params := suggester.ask(plan.next_number())) is not None:
            for job in plan.add(plan.next_number(), params):
                finish(journal, job, job.params["model.latent_dim"] / 40)
    assert sorted(job.params["model.latent_dim"] for job in plan.jobs.values()) == list(range(1, 41))


def test_an_impossible_point_is_drawn_again(tmp_path: Path) -> None:
    nuisance = {
        "gradient.name": {"choice": ["approx", "adjoint"]},
        "solver.name": {"choice": ["amd", "lbfgs"]},
    }
    study = conditional(nuisance=nuisance, trials=9, scheduler="none", fixed={"preset": "paper"})
    with Journal.open(tmp_path) as journal:
        plan = Plan.make(study, SHA, journal)
        add_certain(plan)
    assert len(plan.jobs) == 3


@pytest.mark.parametrize(
    ("space", "said"), [("data_scarce", "digits: 50 to 1,000 training, "), ("ae_fair", "digits: 1,197 training, ")]
)
def test_it_opens_with_training_sizes_of_all_arms(space: str, said: str, tmp_path: Path) -> None:
    study = Study.load(find_space(space))
    with Journal.open(tmp_path) as journal:
        blocks = opening(Plan.make(study, SHA, journal), load_splits(study.example(study.arms[0])))
    assert any(block[1].startswith(said) for block in blocks)


def test_status_tells_running_from_interrupted(tmp_path: Path) -> None:
    """And both from what is still to come."""
    study = smoke(trials=5, seeds=2)
    with Journal.open(tmp_path) as journal:
        source = {"source": study.source, "source_sha256": study.source_sha256}
        journal.record_study(study.model_dump(mode="json"), source, {})
        plan = Plan.make(study, SHA, journal)
        one, two = (job.fingerprint for job in plan.add(0, {"solver.s_max": 10.0, "optim.lr": 1e-3}))
        journal.record_membership(plan.membership())
        journal.record_points(one, [{IMAGES_SEEN: 256.0, VAL_LOSS: 0.5, TRAIN_SECONDS: 8.0}])
        journal.record_outcome(one, Outcome(FINISHED))
        journal.record_points(two, [{IMAGES_SEEN: 32.0, VAL_LOSS: 0.5, TRAIN_SECONDS: 2.0}])
        running = state_of(journal)
        assert running["trials"] == {"finished": 1, "running": 1, "planned": 8}
        # The one that runs is an eighth of its way: 6 of the 8 s that the other one took are left of it.
        assert running["seconds_left"] == pytest.approx(6 + 8 * 8)
    interrupted = state_of(Journal.read(tmp_path))
    assert interrupted["trials"] == {"finished": 1, "interrupted": 1, "planned": 8}
    assert interrupted["seconds_left"] is None
