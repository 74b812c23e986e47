"""Every sign of a bad sweep is seen where it is, and not where it is not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfe_study.analysis.judge.diagnostics import Diagnostic, diagnose, doubts
from gfe_study.analysis.judge.verdict import CONDITIONS, Verdict, judge
from gfe_study.config import Range
from gfe_study.metrics import IMAGES_SEEN, PASSES, TEST_LOSS, TRAIN_SECONDS

LR = "optim.lr"
BETA = "solver.beta"
SLICES = "solver.slices"
NAME = "optim.name"


def drawn(kind: str, *values: Any) -> Range:
    return Range.model_validate({kind: list(values)})


RANGES = {LR: drawn("loguniform", 1e-4, 1e-2), BETA: drawn("uniform", 0.0, 1.0)}


def sweep(
    configurations: int = 20, seeds: int = 3, arms: tuple[str, ...] = ("",), noise: float = 0.01, **columns: Any
) -> pd.DataFrame:
    """A healthy sweep: a bowl whose bottom, 1.0, is in the middle of `RANGES`, under a little noise of the seeds."""
    random = np.random.default_rng(0)
    rows = []
    for shift, arm in enumerate(arms):
        for number in range(configurations):
            # Both keys go through their ranges, in different orders, the ends left out.
            at, across = (number + 0.5) / configurations, (7 * number % configurations + 0.5) / configurations
            height = 1.0 + 0.2 * shift + (at - 0.5) ** 2 + 0.1 * (across - 0.5) ** 2
            rows += [
                {
                    "arm": arm,
                    "number": number,
                    "seed": seed,
                    "value": height + noise * random.normal(),
                    "diverged": False,
                    "failed": False,
                    LR: 10 ** (-4 + 2 * at),
                    BETA: across,
                }
                for seed in range(seeds)
            ]
    return pd.DataFrame(rows).assign(**columns)


def found(kind: str, trials: pd.DataFrame, ranges: dict[str, Range] = RANGES, **options: Any) -> list[Diagnostic]:
    return [diagnostic for diagnostic in diagnose(trials, ranges, **options) if diagnostic.kind == kind]


def one(kind: str, trials: pd.DataFrame, ranges: dict[str, Range] = RANGES, **options: Any) -> Diagnostic:
    (diagnostic,) = found(kind, trials, ranges, **options)
    assert "\n" not in diagnostic.text
    return diagnostic


def with_best(**best: Any) -> pd.DataFrame:
    """The healthy sweep with other values of the keys where it is best."""
    trials = sweep()
    winner = int(trials.groupby("number")["value"].transform("mean").argmin())
    rows = trials["number"] == trials["number"].iloc[winner]
    for key, value in best.items():
        trials[key] = trials[key].mask(rows, value) if key in trials else pd.Series(value, trials.index)
    return trials


# A healthy sweep.


@pytest.mark.parametrize("arms", [("",), ("amd", "rk4")], ids=len)
def test_a_healthy_sweep_shows_no_sign(arms: tuple[str, ...]) -> None:
    assert diagnose(sweep(arms=arms), RANGES) == []


def test_a_healthy_maximising_sweep_shows_no_sign() -> None:
    trials = sweep(arms=("amd", "rk4"))
    assert diagnose(trials.assign(value=-trials["value"]), RANGES, "max") == []


def test_a_healthy_one_seed_sweep_shows_no_sign() -> None:
    assert diagnose(sweep(seeds=1), RANGES) == []


def test_no_trials_show_no_sign() -> None:
    assert diagnose(sweep().head(0), RANGES) == []
    assert diagnose(pd.DataFrame(), RANGES) == []


def test_the_frame_is_left_as_it_was() -> None:
    trials = sweep()
    before = trials.copy()
    diagnose(trials, RANGES)
    pd.testing.assert_frame_equal(trials, before)


def test_arms_have_their_own_signs() -> None:
    trials = sweep(arms=("amd", "rk4"))
    trials.loc[trials["arm"] == "rk4", LR] = 9.9e-3
    assert [(sign.kind, sign.arm) for sign in diagnose(trials, RANGES)] == [("boundary", "rk4")]


@pytest.mark.parametrize("label", ["", None, math.nan])
def test_trials_without_arms_are_one_group(label: Any) -> None:
    trials = with_best(**{LR: 9.9e-3}).assign(arm=pd.Series([label] * 60, dtype=object))
    assert one("boundary", trials).arm is None


# Boundary.


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (LR, 9.9e-3, "the best optim.lr (loguniform 0.0001 to 0.01) is 0.0099, within 5% of the upper end: widen"),
        (LR, 1.2e-4, "is 0.00012, within 5% of the lower end: widen the range downwards"),
        (BETA, 0.96, "the best solver.beta (uniform 0 to 1) is 0.96, within 5% of the upper end"),
        (BETA, 0.0, "is 0, within 5% of the lower end"),
        (BETA, -0.5, "is -0.5, within 5% of the lower end"),
    ],
)
def test_a_best_value_at_the_edge_is_named(key: str, value: float, expected: str) -> None:
    assert expected in one("boundary", with_best(**{key: value})).text


# 7e-3 is in the top third of [1e-4, 1e-2], but 8 % of the width from its end on a logarithmic scale.
@pytest.mark.parametrize(("key", "value"), [(LR, 7e-3), (LR, 1.3e-4), (BETA, 0.94), (BETA, 0.06)])
def test_a_best_value_off_the_edge_is_not(key: str, value: float) -> None:
    assert found("boundary", with_best(**{key: value})) == []


@pytest.mark.parametrize("kind", ["int", "logint"])
def test_a_best_integer_counts_only_at_the_end(kind: str) -> None:
    ranges = {SLICES: drawn(kind, 2, 1000)}
    for value, side in ((2, "lower"), (1000, "upper")):
        assert f"is {value}, at the {side} end: widen" in one("boundary", with_best(**{SLICES: value}), ranges).text
    for value in (3, 999):
        assert found("boundary", with_best(**{SLICES: value}), ranges) == []


def test_choices_and_inactive_keys_have_no_edge() -> None:
    ranges = {**RANGES, NAME: drawn("choice", "adam", "rmsprop"), SLICES: drawn("int", 2, 6)}
    assert found("boundary", with_best(**{NAME: "adam", SLICES: math.nan}), ranges) == []


def test_the_best_is_best_over_all_its_seeds() -> None:
    trials = sweep()
    at_the_edge = trials["number"] == 19
    trials.loc[at_the_edge, LR] = 9.9e-3
    # One lucky seed does not make it the best,
    trials.loc[at_the_edge & (trials["seed"] == 0), "value"] = 0.9
    assert found("boundary", trials) == []
    # nor do lucky seeds of which one diverged.
    trials.loc[at_the_edge, "value"] = 0.1
    assert len(found("boundary", trials)) == 1
    trials.loc[at_the_edge & (trials["seed"] == 2), "diverged"] = True
    assert found("boundary", trials) == []
    trials.loc[at_the_edge & (trials["seed"] == 2), ["value", "diverged"]] = [math.nan, False]
    assert found("boundary", trials) == []


# Flat.


def test_gains_below_the_spread_of_seeds_are_flat() -> None:
    values = [mean + noise for mean in (1.2, 1.0, 1.1, 1.4, 1.3) for noise in (-0.3, 0.0, 0.3)]
    expected = "best 1, median 1.2, 0.2 apart, less than the 0.3 (s.d.) that the seed alone causes"
    assert expected in one("flat", sweep(configurations=5, value=values)).text
    assert found("flat", sweep(configurations=5, value=np.repeat([3.2, 1.0, 2.1, 4.4, 3.3], 3) + values)) == []


def test_next_to_no_gain_with_one_seed_is_flat() -> None:
    trials = sweep(seeds=1)
    assert found("flat", trials) == []
    flattened = trials.assign(value=2 + 0.05 * trials["value"])
    assert "less than 0.5% of it" in one("flat", flattened).text
    assert one("flat", flattened.assign(value=-flattened["value"]), mode="max").kind == "flat"


def test_equal_results_are_flat() -> None:
    assert "the search found nothing: best 0, median 0" in one("flat", sweep(value=0.0)).text
    assert "0 apart" in one("flat", sweep(seeds=1, value=0.0)).text
    trials = sweep(seeds=2)
    rounded = 0.3 + trials["number"] % 4 * np.spacing(0.3)
    assert "0 apart" in one("flat", trials.assign(value=rounded)).text


def test_two_configurations_cannot_be_flat() -> None:
    assert found("flat", sweep(configurations=2, value=1.0)) == []


def test_luck_with_one_seed_is_not_the_best() -> None:
    trials = sweep()
    repeated = trials[(trials["number"] == 10) | (trials["seed"] == 0)].copy()
    repeated.loc[repeated["number"] == 0, "value"] = 0.9
    assert found("boundary", repeated) == []
    assert len(found("boundary", repeated[repeated["seed"] == 0])) == 2


# Doubts about a verdict.


def judged(confidence: float = 0.95, **losses: list[float | None]) -> Verdict:
    """The verdict of arms against the first of them; a loss of None is of a seed that failed."""
    rows = [
        {
            "arm": arm,
            "number": 0,
            "seed": seed,
            "fingerprint": f"{arm}{seed}",
            "diverged": False,
            "failed": loss is None,
            TEST_LOSS: math.nan if loss is None else loss,
            **dict.fromkeys((IMAGES_SEEN, TRAIN_SECONDS, *PASSES), 1.0),
            **dict.fromkeys(CONDITIONS, "same"),
        }
        for arm, own in losses.items()
        for seed, loss in enumerate(own)
    ]
    first, *others = losses
    references = {first: None, **dict.fromkeys(others, first)}
    loss = TEST_LOSS
    return judge(pd.DataFrame(rows), pd.DataFrame(), references, metric=loss, select=loss, confidence=confidence)


def kinds(verdict: Verdict) -> list[str]:
    return [sign.kind for sign in doubts(verdict)]


def test_seeds_that_outweigh_the_arms_are_noise() -> None:
    # By seed, the arms differ by 0.3, -0.3 and 0.15: 0.05 in the mean.
    (sign,) = doubts(judged(amd=[1.0, 1.0, 1.0], rk4=[1.3, 0.7, 1.15]))
    assert (sign.kind, sign.arm) == ("noise", None)
    assert sign.text == (
        "the seed changes the difference of two arms by 0.312 (s.d.), more than the largest difference of their means, "
        "0.05 (rk4 and amd): read the intervals, not the order"
    )


def test_noise_is_pooled_over_the_comparisons() -> None:
    # Variances 0.0975 of 3 pairs and 0.01 of 2: √(0.0975 · 2 / 3 + 0.01 / 3).
    (noise, few) = doubts(judged(a=[1.0, 1.0, 1.0], b=[1.3, 0.7, 1.15], c=[1.05, None, 1.05 + 0.2**0.5 / 10**0.5]))
    assert "by 0.261 (s.d.)" in noise.text
    assert "1 of 2 comparisons (c 2)" in few.text


def test_noise_that_the_seeds_share_is_none() -> None:
    assert kinds(judged(amd=[1.4, 0.82, 1.24], rk4=[1.3, 0.7, 1.15])) == []


def test_a_decision_is_no_noise() -> None:
    # The s.d. is larger than the difference, and 12 seeds tell the arms apart all the same.
    differences: list[float | None] = [0.8 + 1.1, 0.8 - 1.1] * 6
    verdict = judged(amd=[0.0] * 12, rk4=differences)
    assert verdict.rows[1].paired is not None
    assert verdict.rows[1].verdict == "worse"
    assert verdict.rows[1].paired.sd == pytest.approx(1.1489, abs=1e-4)
    assert kinds(verdict) == []
    assert kinds(judged(0.99, amd=[0.0] * 12, rk4=differences)) == ["noise"]


def test_one_seed_or_none_in_common_has_no_noise() -> None:
    assert kinds(judged(a=[1.0], b=[1.5])) == ["few"]
    assert kinds(judged(a=[1.0, None, 1.0, None], b=[None, 1.5, None, 1.6])) == ["few"]


def test_few_seeds_are_those_of_the_comparisons() -> None:
    (sign,) = doubts(judged(amd=[1.0, 2.0, 3.0], rk4=[4.0, 5.1, None], ae=[4.0, 5.1, 6.0]))
    assert sign.text == (
        "fewer than 3 paired seeds in 1 of 2 comparisons (rk4 2): run at least 3; fewer decide nothing"
    )
    alone: dict[str, Any] = {arm: [1.0] for arm in "abcdefg"}
    many = judged(**alone)
    assert "in 6 of 6 comparisons (b 1, c 1, d 1, e 1, …)" in doubts(many)[0].text


def test_where_nothing_is_compared_nothing_is_few() -> None:
    assert doubts(judged(a=[1.0])) == []


losses = st.lists(st.one_of(st.none(), st.integers(-9, 9).map(float)), min_size=4, max_size=4)


@given(losses, losses, losses)
def test_doubts_never_contradict_the_verdict(
    a: list[float | None], b: list[float | None], c: list[float | None]
) -> None:
    verdict = judged(a=a, b=[None if loss is None else loss + 9 for loss in b], c=c)
    decided = {row.arm for row in verdict.rows if row.verdict not in (None, "undecided")}
    for sign in doubts(verdict):
        assert not (sign.kind == "noise" and decided)
        assert not any(f"{arm} {count}" in sign.text for arm in decided for count in range(3))


# Diverged.


def blown_up(trials: pd.DataFrame, rows: Any, failed: bool = False) -> pd.DataFrame:
    trials = trials.copy()
    trials.loc[rows, "failed" if failed else "diverged"] = True
    trials.loc[rows, "value"] = math.nan if failed else math.inf
    return trials


def test_divergence_is_put_down_to_half_a_range() -> None:
    trials = sweep(seeds=1)
    text = one("diverged", blown_up(trials, trials[LR] > 5e-3)).text
    assert text == (
        "of 20 trials 3 diverged (15%), 3 of them, and 7 of the other 17, in the upper half of "
        "optim.lr (loguniform 0.0001 to 0.01): lower its upper end"
    )
    text = one("diverged", blown_up(trials, trials[LR] < 2e-4)).text
    assert "in the lower half of optim.lr (loguniform 0.0001 to 0.01): raise its lower end" in text


def test_divergence_is_put_down_to_a_choice() -> None:
    trials = sweep(seeds=1)
    trials[NAME] = np.where(trials["number"] % 3 == 0, "adam", "rmsprop")
    ranges = {**RANGES, NAME: drawn("choice", "adam", "rmsprop")}
    text = one("diverged", blown_up(trials, trials[NAME] == "adam"), ranges).text
    assert "7 of them, and 0 of the other 13, with optim.name = adam: exclude adam" in text


def test_divergence_everywhere_has_no_known_cause() -> None:
    trials = sweep(seeds=1)
    diagnostic = one("diverged", blown_up(trials, trials["number"] % 4 == 0))
    assert diagnostic.text == (
        "of 20 trials 5 diverged (25%): read their messages, then narrow the ranges or fix the cause"
    )
    # Where all trials lie, the bad ones are not to blame for lying.
    upper = trials.assign(**{LR: 10 ** (-3 + trials[BETA])})
    assert "half" not in one("diverged", blown_up(upper, upper["number"] % 4 == 0)).text


def test_failures_count_and_running_trials_do_not() -> None:
    trials = sweep(seeds=1)
    trials = blown_up(blown_up(trials, [0, 10]), [7, 10], failed=True)
    trials.loc[[3, 4, 5, 6], "value"] = math.nan
    assert "of 16 trials 2 diverged and 1 failed (19%)" in one("diverged", trials).text


def test_one_in_twenty_may_diverge_not_one_in_ten() -> None:
    trials = sweep(seeds=1)
    assert found("diverged", blown_up(trials, [0])) == []
    assert "2 diverged (10%)" in one("diverged", blown_up(trials, [0, 12])).text


def test_a_sweep_that_wholly_diverged_is_named() -> None:
    signs = diagnose(blown_up(sweep(), slice(None)), RANGES)
    assert [sign.kind for sign in signs] == ["diverged", "few"]
    assert "60 diverged (100%): read" in signs[0].text
    assert "0 finished configurations" in signs[1].text


# Few.


def test_few_configurations_for_the_keys_searched() -> None:
    assert one("few", sweep(configurations=9)).text == (
        "9 finished configurations for 2 searched keys: run at least 10, or search fewer keys"
    )
    assert found("few", sweep(configurations=10)) == []
    assert "for 1 searched key: run at least 7" in one("few", sweep(configurations=6), {LR: RANGES[LR]}).text


def test_only_the_finished_and_searched_count() -> None:
    """Configurations that finished, and keys that are searched in the arm."""
    trials = sweep(configurations=10)
    assert len(found("few", blown_up(trials, trials.index[-1:]))) == 1
    idle = {**RANGES, SLICES: drawn("int", 1, 9), NAME: drawn("choice", "adam", "rmsprop")}
    assert found("few", trials.assign(**{SLICES: math.nan}), idle) == []


def test_an_exhausted_space_needs_no_more() -> None:
    """It has no configurations left to try."""
    ranges = {NAME: drawn("choice", "adam", "rmsprop"), SLICES: drawn("int", 2, 3)}
    keys: dict[str, Any] = {NAME: np.repeat(["adam", "rmsprop"], 6), SLICES: np.tile(np.repeat([2, 3], 3), 2)}
    assert found("few", sweep(configurations=4, **keys), ranges) == []
    assert "run at least 4" in one("few", sweep(configurations=4, **keys).head(9), ranges).text
