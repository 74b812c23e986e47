"""Statements about a study's trials: what they are computed from, and that no seed counts twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from stores import DECLARED, point
from test_exhibits import evidence, run
from test_verdict import LEFT, RIGHT, curves, row

from gfe_study import names
from gfe_study.analysis.judge.evidence import Evidence
from gfe_study.analysis.judge.judgement import complete, in_order, searched_ranges, signs_of, tuned, verdict_of
from gfe_study.analysis.store.tidy import RUN_ID
from gfe_study.config import InputError, Study
from gfe_study.metrics import TEST_LOSS

ARMS: dict[str, Any] = {"question": "Which?", "scientific": {"arms": {"a": {}, "b": {"method": "ae"}}}}
SEEDS = Study.build({**ARMS, "seeds": 5}, "my.yaml")
SEARCH = Study.build(
    {
        **ARMS,
        "nuisance": {"optim.lr": {"loguniform": [1e-4, 1e-2]}},
        "trials": 8,
        "scheduler": "none",
        "then": {"best": 1, "seeds": 5},
    },
    "my.yaml",
)


def trial(arm: str, seed: int, loss: float, *, stage: int = 0, **more: Any) -> dict[str, Any]:
    return row(arm, seed, loss, stage=stage, state="finished", **more)


def five_seeds(stage: int = 0) -> list[dict[str, Any]]:
    seeds = [seed + 100 * stage for seed in range(5)]
    return [
        trial(arm, seed, loss, stage=stage)
        for arm, losses in (("a", LEFT), ("b", RIGHT))
        for seed, loss in zip(seeds, losses, strict=True)
    ]


def search(**losses: list[float]) -> list[dict[str, Any]]:
    """Eight configurations of each arm, their rates from one end of the range to the other."""
    rates = np.geomspace(1e-4, 1e-2, 8)
    return [
        trial(arm, 0, loss, number=number, **{"optim.lr": rates[number]})
        for arm, own in losses.items()
        for number, loss in enumerate(own)
    ]


RISING, BOWL = [0.1 + 0.02 * n for n in range(8)], [0.1 + 0.02 * abs(n - 4) for n in range(8)]


# One seed counts once.


@pytest.mark.parametrize("again", [0, 7])
def test_a_seed_that_counts_twice_is_refused(again: int) -> None:
    rows = five_seeds()
    twin = {**rows[again], names.FINGERPRINT: "twin", TEST_LOSS: 0.001}
    trials = pd.DataFrame([*rows, twin])
    said = (
        f"trials: stage 0, arm {twin['arm']!r}, number 0, seed {twin['seed']}: "
        f"given {rows[again][names.FINGERPRINT]} and twin; allowed: one trial"
    )
    for state in (
        lambda: in_order(None, trials),
        lambda: verdict_of(SEEDS, trials, curves(rows)),
        lambda: signs_of(SEEDS, trials, None),
    ):
        with pytest.raises(InputError, match=said):
            state()


def test_runs_are_named_where_there_are_runs() -> None:
    trials = pd.DataFrame([{**each, RUN_ID: run_id} for each, run_id in zip(five_seeds()[:1] * 2, "xy", strict=True)])
    with pytest.raises(InputError, match="seed 0: given x and y; allowed: one trial"):
        in_order(None, trials)


@pytest.mark.parametrize("key", [names.STAGE, names.ARM, names.NUMBER, names.SEED])
def test_a_trial_of_another_place_is_another(key: str) -> None:
    rows = five_seeds()[:1] * 2
    in_order(None, pd.DataFrame([rows[0], {**rows[1], key: "b" if key == names.ARM else 1}]))


def test_no_trials_are_unique() -> None:
    in_order(None, pd.DataFrame())


@pytest.mark.parametrize(
    "statement",
    [
        lambda of: of.verdict,
        lambda of: of.signs,
        lambda of: of.chosen,
        lambda of: of.configurations(),
        lambda of: of.chosen_ends,
    ],
    ids=["verdict", "signs", "chosen", "configurations", "ends"],
)
def test_no_statement_has_a_larger_sample(tmp_path: Path, statement: Any) -> None:
    """A second trial of a seed, as another tool may leave it in the store, is no further seed."""
    deliveries = [run(arm, "gfe", "digits", seed, [point(480)]) for arm in "ab" for seed in range(3)]
    earlier = run("b", "gfe", "digits", 1, [point(480, 0.1)], fingerprint="earlier")
    of: Evidence = evidence(tmp_path, [*deliveries, earlier], f"{DECLARED}seeds: 3\n")
    run_ids = of.runs.set_index(names.FINGERPRINT)[RUN_ID]
    first, second = run_ids["b/digits/1/"], run_ids["b/digits/1/earlier"]
    with pytest.raises(InputError, match=f"seed 1: given ({first} and {second}|{second} and {first}); allowed: one"):
        statement(of)


# Verdict and signs.


def test_the_verdict_is_that_of_the_last_stage() -> None:
    trials = [*search(a=BOWL, b=BOWL), *five_seeds(stage=1)]
    verdict = verdict_of(SEARCH, pd.DataFrame(trials), curves(trials))
    assert verdict is not None
    assert [each.verdict for each in verdict.rows] == [None, "better"]
    assert [len(each.seeds) for each in verdict.rows] == [5, 5]


def test_failures_and_stops_count_for_no_tuning() -> None:
    """What was stopped early takes part in no comparison; what failed does, and counts for no tuning."""
    trials = search(a=BOWL, b=BOWL)
    trials[2] |= {"state": "stopped", TEST_LOSS: 0.0}
    trials[11] |= {"state": "failed", "failed": True}
    found = complete(pd.DataFrame(trials), 1)
    assert len(found) == 15
    assert found[TEST_LOSS].min() > 0
    assert tuned(SEARCH, pd.DataFrame(trials)) == {"a": 7, "b": 7}
    trials[2] |= {"state": "finished"}
    whole = pd.DataFrame([*trials, *five_seeds(stage=1)])
    verdict = verdict_of(SEARCH, whole, curves([*trials, *five_seeds(stage=1)]))
    assert verdict is not None
    assert "unequal numbers of tuning trials (a 8, b 7)" in verdict.warnings[0]


@pytest.mark.parametrize(("metric", "there"), [("val_r2", True), ("val_rmse", False)])
def test_the_best_trial_tells_the_keys_searched(metric: str, there: bool) -> None:
    """The trial with the high value searched β; it is the best by one metric and the worst by the other."""
    study = Study.build(
        {
            "question": "Which?",
            "nuisance": {
                "solver": {"choice": ["amd", "rk4"]},
                "solver.beta": {"uniform": [0.3, 0.9], "when": {"solver": "amd"}},
            },
            "trials": 2,
            "metric": {"name": metric},
        },
        "my.yaml",
    )
    drawn: list[dict[str, Any]] = [
        {"solver.name": "amd", "solver.beta": 0.5, metric: 0.9},
        {"solver.name": "rk4", "solver.beta": np.nan, metric: 0.1},
    ]
    trials = [{**trial("", 0, 0.3, number=number), **values} for number, values in enumerate(drawn)]
    assert ("solver.beta" in searched_ranges(study, pd.DataFrame(trials))[""]) == there


def test_signs_are_told_by_arm_and_over_all() -> None:
    trials = search(a=RISING, b=BOWL)
    frame = pd.DataFrame(trials)
    signs = signs_of(SEARCH, frame, verdict_of(SEARCH, frame, curves(trials)))
    assert [(sign.kind, sign.arm) for sign in signs] == [("boundary", "a"), ("few", None)]
    assert "1 of 1 comparisons (b 1)" in signs[1].text


def test_seeds_count_where_arms_are_compared() -> None:
    """A search with one seed per configuration, whose winners are repeated with five, is no comparison of one seed."""
    trials = [*search(a=BOWL, b=BOWL), *five_seeds(stage=1)]
    frame = pd.DataFrame(trials)
    assert signs_of(SEARCH, frame, verdict_of(SEARCH, frame, curves(trials))) == []


def test_winners_that_diverge_are_a_sign() -> None:
    repeated = five_seeds(stage=1)
    repeated[7] |= {"diverged": True}
    (sign,) = signs_of(SEARCH, pd.DataFrame([*search(a=BOWL, b=BOWL), *repeated]), None)
    assert (sign.kind, sign.arm) == ("diverged", "b")
    assert "of 5 trials 1 diverged" in sign.text


def test_winners_that_are_alike_are_no_sign() -> None:
    repeated = [{**each, names.NUMBER: number} for each in five_seeds(stage=1) for number in range(3)]
    assert signs_of(SEARCH, pd.DataFrame([*search(a=BOWL, b=BOWL), *repeated]), None) == []


def test_a_sign_is_told_once() -> None:
    """Trials that diverged in a search without a second stage are those of the comparison, too."""
    trials = search(a=BOWL, b=BOWL)
    trials[3] |= {"diverged": True}
    signs = signs_of(SEARCH, pd.DataFrame(trials), None)
    assert [(sign.kind, sign.arm) for sign in signs] == [("diverged", "a")]


@pytest.mark.parametrize(("losses", "enough"), [([2 * loss for loss in LEFT], True), (RIGHT, False)])
def test_pca_is_enough_where_nothing_is_better(losses: list[float], enough: bool) -> None:
    study = Study.build(
        {"question": "Which?", "scientific": {"arms": {"a": {"method": "pca"}, "b": {}}}, "seeds": 5}, "my.yaml"
    )
    trials = [trial(arm, seed, loss) for arm, own in (("a", LEFT), ("b", losses)) for seed, loss in enumerate(own)]
    verdict = verdict_of(study, pd.DataFrame(trials), curves(trials))
    assert verdict is not None
    assert verdict.rows[1].verdict == ("worse" if enough else "better")
    told = [sign.text for sign in signs_of(study, pd.DataFrame(trials), verdict) if sign.kind == "linear"]
    assert told == (["no other method is better: PCA is enough for this data"] if enough else [])
    assert not [sign for sign in signs_of(SEEDS, pd.DataFrame(trials), verdict) if sign.kind == "linear"]
