"""Statements about a study's trials: what they are computed from, and that no seed counts twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from stores import DECLARED, point
from test_exhibits import evidence, run
from test_verdict import LEFT, RIGHT, curves, row

from gfe_study import names
from gfe_study.analysis.evidence import Evidence
from gfe_study.analysis.judgement import check_unique, signs_of, verdict_of
from gfe_study.analysis.tidy import RUN_ID
from gfe_study.config import InputError, Study

ARMS: dict[str, Any] = {"question": "Which?", "scientific": {"arms": {"a": {}, "b": {"method": "ae"}}}}
SEEDS = Study.build({**ARMS, "seeds": 5}, "my.yaml")


def trial(arm: str, seed: int, loss: float, *, stage: int = 0, **more: Any) -> dict[str, Any]:
    return row(arm, seed, loss, stage=stage, state="finished", **more)


def five_seeds(stage: int = 0) -> list[dict[str, Any]]:
    seeds = [seed + 100 * stage for seed in range(5)]
    return [
        trial(arm, seed, loss, stage=stage)
        for arm, losses in (("a", LEFT), ("b", RIGHT))
        for seed, loss in zip(seeds, losses, strict=True)
    ]


# One seed counts once.


@pytest.mark.parametrize("again", [0, 7])
def test_a_seed_that_counts_twice_is_refused(again: int) -> None:
    rows = five_seeds()
    twin = {**rows[again], names.FINGERPRINT: "twin", names.TEST_LOSS: 0.001}
    trials = pd.DataFrame([*rows, twin])
    said = (
        f"trials: stage 0, arm {twin['arm']!r}, number 0, seed {twin['seed']}: "
        f"given {rows[again][names.FINGERPRINT]} and twin; allowed: one trial"
    )
    for state in (
        lambda: check_unique(trials),
        lambda: verdict_of(SEEDS, trials, curves(rows)),
        lambda: signs_of(SEEDS, trials),
    ):
        with pytest.raises(InputError, match=said):
            state()


def test_runs_are_named_where_there_are_runs() -> None:
    trials = pd.DataFrame([{**each, RUN_ID: run_id} for each, run_id in zip(five_seeds()[:1] * 2, "xy", strict=True)])
    with pytest.raises(InputError, match="seed 0: given x and y; allowed: one trial"):
        check_unique(trials)


@pytest.mark.parametrize("key", [names.STAGE, names.ARM, names.NUMBER, names.SEED])
def test_a_trial_of_another_place_is_another(key: str) -> None:
    rows = five_seeds()[:1] * 2
    check_unique(pd.DataFrame([rows[0], {**rows[1], key: "b" if key == names.ARM else 1}]))


def test_no_trials_are_unique() -> None:
    check_unique(pd.DataFrame())


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
    """An edited study leaves its earlier trials in the store; they are no further seeds."""
    deliveries = [run(arm, "gfe", "digits", seed, [point(480)]) for arm in "ab" for seed in range(3)]
    earlier = run("b", "gfe", "digits", 1, [point(480, 0.1)], fingerprint="earlier")
    of: Evidence = evidence(tmp_path, [*deliveries, earlier], f"{DECLARED}seeds: 3\n")
    run_ids = of.runs.set_index(names.FINGERPRINT)[RUN_ID]
    first, second = run_ids["b/digits/1/"], run_ids["b/digits/1/earlier"]
    with pytest.raises(InputError, match=f"seed 1: given ({first} and {second}|{second} and {first}); allowed: one"):
        statement(of)
