"""From finished trials to a verdict: pairing, equal budgets, equal tuning, and what is said where they are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gfe_study import names
from gfe_study.analysis.verdict import Verdict, diagnostics, judge
from gfe_study.config import Range

METRIC = names.TEST_LOSS


def row(arm: str, seed: int, loss: float, *, number: int = 0, images: float = 960, **more: Any) -> dict[str, Any]:
    return {
        "arm": arm,
        "number": number,
        "seed": seed,
        "fingerprint": f"{arm}/{number}/{seed}",
        "diverged": False,
        "failed": False,
        METRIC: loss,
        names.VAL_LOSS: loss + 0.01,
        "value": loss + 0.01,
        names.IMAGES_SEEN: images,
        names.TRAIN_SECONDS: 2.0 if arm == "b" else 1.0,
        names.NFE_FORWARD: 30.0 if arm == "b" else 10.0,
        names.NFE_BACKWARD: 10.0,
        **more,
    }


def curves(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A point at half of what each trial has seen, where its loss was twice what it ended at, and its last one."""
    found = []
    for each in rows:
        for part, factor in ((0.5, 2.0), (1.0, 1.0)):
            spent = {name: each[name] * part for name in (names.IMAGES_SEEN, names.TRAIN_SECONDS)}
            found.append({**each, **spent, METRIC: each[METRIC] * factor})
    return pd.DataFrame(found)


def judged(rows: list[dict[str, Any]], references: dict[str, str | None] | None = None, **options: Any) -> Verdict:
    given = references or {"a": None, "b": "a"}
    return judge(pd.DataFrame(rows), curves(rows), given, metric=METRIC, select=names.VAL_LOSS, **options)


LEFT = [0.201, 0.222, 0.213, 0.238, 0.205]
RIGHT = [0.191, 0.214, 0.201, 0.229, 0.193]


def two_arms() -> list[dict[str, Any]]:
    return [row("a", s, v) for s, v in enumerate(LEFT)] + [row("b", s, v) for s, v in enumerate(RIGHT)]


def test_differences_are_paired_by_seed_whatever_the_order_of_the_rows() -> None:
    rows = two_arms()
    np.random.default_rng(0).shuffle(rows)  # type: ignore[arg-type]
    verdict = judged(rows)
    (reference, treated) = verdict.rows
    assert treated.paired is not None
    expected = stats.ttest_rel(RIGHT, LEFT)
    low, high = expected.confidence_interval(0.95)
    assert treated.paired.difference == pytest.approx(np.mean(np.subtract(RIGHT, LEFT)))
    assert (treated.paired.low, treated.paired.high) == (pytest.approx(low), pytest.approx(high))
    assert treated.paired.p_value == pytest.approx(expected.pvalue)
    assert (reference.text, treated.text) == ("reference", "better than a")
    assert treated.value.mean == pytest.approx(np.mean(RIGHT))
    assert (treated.seconds_ratio, treated.nfe_ratio) == (pytest.approx(2.0), pytest.approx(2.0))
    assert verdict.warnings == []


def test_the_verdict_in_words() -> None:
    assert judged(two_arms(), {"b": None, "a": "b"}).rows[1].text == "worse than b"
    assert judged(two_arms(), margin=0.05).rows[1].text == "equivalent to a within 0.05"
    noisy = [row("a", s, v) for s, v in enumerate([0.2, 0.3, 0.25])]
    noisy += [row("b", s, v) for s, v in enumerate([0.21, 0.28, 0.25])]
    text = judged(noisy).rows[1].text
    assert text.startswith("undecided: ")
    assert text.endswith("seeds would decide")
    single = [row("a", 0, 0.2), row("b", 0, 0.1)]
    assert [each.text for each in judged(single).rows] == ["no interval: one seed"] * 2


def test_unequal_budgets_are_named_and_cut_to_the_smaller() -> None:
    rows = [row("a", s, v, images=960) for s, v in enumerate(LEFT)]
    rows += [row("b", s, v, images=1920) for s, v in enumerate(RIGHT)]
    verdict = judged(rows)
    assert len(verdict.warnings) == 1
    assert "unequal budgets: 'b' had 1,920 images and 'a' 960" in verdict.warnings[0]
    treated = verdict.rows[1]
    assert treated.paired is not None
    assert treated.images == 960
    # b's own value at 960 images was twice its last: a was then the better one.
    assert treated.paired.difference == pytest.approx(np.mean(np.subtract(np.multiply(2, RIGHT), LEFT)))
    assert treated.text == "worse than a at 960 images"
    assert treated.value.mean == pytest.approx(2 * np.mean(RIGHT))
    assert treated.seconds_ratio == pytest.approx(1.0)  # half of b's two seconds, against a's one
    declared = judged(rows, as_declared=True)
    assert "as the study declares" in declared.warnings[0]
    assert declared.rows[1].text == "better than a"


def test_unequal_budgets_without_a_common_point_are_not_compared() -> None:
    rows = [row("a", s, v, images=100) for s, v in enumerate(LEFT)]
    rows += [row("b", s, v, images=150) for s, v in enumerate(RIGHT)]
    treated = judged(rows).rows[1]
    assert treated.paired is None
    assert treated.text.startswith("not comparable with a")


def test_unequal_budgets_in_seconds_are_cut_by_seconds() -> None:
    rows = [row("a", s, v) for s, v in enumerate(LEFT)] + [row("b", s, v, images=1920) for s, v in enumerate(RIGHT)]
    verdict = judged(rows, equal=names.TRAIN_SECONDS, budgets={"a": 1.0, "b": 2.0})
    assert "'b' had 2 seconds of training and 'a' 1" in verdict.warnings[0]
    assert verdict.rows[1].text == "worse than a at 960 images"


def test_a_budget_told_in_seconds_is_not_cut_by_images() -> None:
    rows = [row("a", s, v, images=900 + s) for s, v in enumerate(LEFT)]
    rows += [row("b", s, v, images=1920 + s) for s, v in enumerate(RIGHT)]
    verdict = judged(rows, equal=names.TRAIN_SECONDS, budgets={"a": 6.0, "b": 6.0})
    assert verdict.warnings == []
    assert verdict.rows[1].text == "better than a"


def test_unequal_tuning_is_named_and_cut_to_the_smaller() -> None:
    rows = [row("a", 0, 0.3, number=0), row("a", 0, 0.2, number=1)]
    rows += [row("b", 0, 0.4, number=0), row("b", 0, 0.25, number=1), row("b", 0, 0.1, number=5)]
    verdict = judged(rows)
    assert "unequal numbers of tuning trials (a 2, b 3)" in verdict.warnings[0]
    assert [each.configuration for each in verdict.rows] == [1, 1]
    assert verdict.rows[1].paired is not None
    assert verdict.rows[1].paired.difference == pytest.approx(0.05)


def test_the_best_configuration_is_chosen_by_validation_loss_over_all_seeds() -> None:
    rows = [row("a", s, 0.2) for s in range(3)]
    lucky = [row("b", s, v, number=0) for s, v in enumerate([0.05, 0.4, 0.4])]
    steady = [row("b", s, 0.15, number=1) for s in range(3)]
    broken = [row("b", s, 0.01, number=2, diverged=s == 1) for s in range(3)]
    other = [row("a", s, 0.3, number=n) for s in range(3) for n in (1, 2)]
    assert judged([*rows, *lucky, *steady, *broken, *other]).rows[1].configuration == 1


def test_seeds_that_diverged_are_left_out_on_both_sides_and_named() -> None:
    rows = two_arms()
    rows[6]["diverged"] = True
    verdict = judged(rows)
    assert verdict.rows[1].paired is not None
    assert verdict.rows[1].paired.count == 4
    assert verdict.rows[1].paired.difference == pytest.approx(np.mean(np.delete(np.subtract(RIGHT, LEFT), 1)))
    assert any("'b': 1 of 5 seeds failed, diverged or" in text for text in verdict.warnings)
    assert verdict.rows[1].text.endswith("; 1 seeds lost")


def test_a_seed_that_failed_does_not_take_the_others_with_it() -> None:
    rows = two_arms()
    rows[6] |= {"failed": True, METRIC: np.nan, names.VAL_LOSS: np.nan}
    treated = judged(rows).rows[1]
    assert treated.paired is not None
    assert (treated.paired.count, treated.lost) == (4, 1)


def test_fewer_losses_go_before_a_better_mean() -> None:
    steady = [row("b", s, 0.3, number=0) for s in range(3)]
    fragile = [row("b", s, 0.1, number=1, diverged=s == 2) for s in range(3)]
    others = [row("a", s, 0.2, number=n) for s in range(3) for n in range(2)]
    assert judged([*others, *fragile, *steady]).rows[1].configuration == 0
    worse = [row("b", s, 0.5, number=0, diverged=s > 0) for s in range(3)]
    assert judged([*others, *fragile, *worse]).rows[1].configuration == 1


def test_seeds_on_one_side_only_are_left_out_and_named() -> None:
    verdict = judged(two_arms()[:-1])
    assert verdict.rows[1].paired is not None
    assert verdict.rows[1].paired.count == 4
    assert any("seeds 4 exist for one of them only" in text for text in verdict.warnings)


def test_doubt_by_the_number_of_comparisons_is_said() -> None:
    generator = np.random.default_rng(1)
    rows = [row("a", s, v) for s, v in enumerate(LEFT)]
    for number in range(9):
        shift = generator.normal(0, 0.004, 5)
        rows += [row(f"x{number}", s, v + d) for (s, v), d in zip(enumerate(LEFT), shift, strict=True)]
    # One comparison that is just below 5 % by itself cannot survive ten.
    just = np.array([0.0032, 0.0052, 0.0002, 0.0062, 0.0027])
    assert 0.01 < stats.ttest_1samp(just, 0).pvalue < 0.05
    rows += [row("b", s, v + d) for (s, v), d in zip(enumerate(LEFT), just, strict=True)]
    references: dict[str, str | None] = {"a": None, **{f"x{n}": "a" for n in range(9)}, "b": "a"}
    text = judged(rows, references).rows[-1].text
    assert text.startswith("worse than a (but p ")
    assert "over 10 comparisons, Holm)" in text


def test_nothing_finished_is_no_traceback() -> None:
    empty = judge(pd.DataFrame([row("c", 0, 0.1)]), pd.DataFrame(), {"a": None}, metric=METRIC, select=names.VAL_LOSS)
    assert empty.rows == []
    assert "nothing can be compared" in empty.warnings[0]
    missing = judged([row("a", 0, 0.2)])
    assert [each.arm for each in missing.rows] == ["a"]
    assert "arm 'b' has no complete configuration" in missing.warnings[0]


def test_signs_of_a_bad_sweep_are_told_by_arm_and_over_all() -> None:
    drawn = Range.model_validate({"loguniform": [1e-4, 1e-2]})
    rates = np.geomspace(1e-4, 1e-2, 8)
    rows = [row("a", 0, 0.1 + 0.02 * n, number=n, **{"optim.lr": rate}) for n, rate in enumerate(rates)]
    middle = [row("b", 0, 0.1 + 0.02 * abs(n - 4), number=n, **{"optim.lr": r}) for n, r in enumerate(rates)]
    trials = pd.DataFrame([*rows, *middle])
    ranges = {"a": {"optim.lr": drawn}, "b": {"optim.lr": drawn}}
    found = diagnostics(trials, trials, ranges, "min")
    assert [(sign.kind, sign.arm) for sign in found if sign.kind == "boundary"] == [("boundary", "a")]
    assert any(sign.kind == "few" and sign.arm is None and "seed" in sign.text for sign in found)


def test_seeds_are_counted_where_arms_are_compared() -> None:
    """A search with one seed per configuration, whose winners are repeated with five, is no comparison of one seed."""
    search = pd.DataFrame([row(arm, 0, value) for arm, value in (("a", 0.3), ("b", 0.2))])
    repeated = pd.DataFrame([row(arm, seed, 0.2 + 0.001 * seed) for arm in "ab" for seed in range(1, 6)])

    def few(compared: pd.DataFrame) -> list[str]:
        return [sign.text for sign in diagnostics(search, compared, {"a": {}, "b": {}}, "min") if sign.kind == "few"]

    assert few(repeated) == []
    assert "2 of 2 arms have fewer than 3 seeds" in few(search)[0]
