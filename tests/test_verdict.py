"""From finished trials to a verdict: pairing, equal budgets, equal tuning, and what is said where they are not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from gfe_study import names
from gfe_study.analysis.judge.verdict import Row, Verdict, judge
from gfe_study.analysis.stats.intervals import seeds_to_decide
from gfe_study.metrics import ENCODER_PASSES, IMAGES_SEEN, NFE_BACKWARD, NFE_FORWARD, TEST_LOSS, TRAIN_SECONDS, VAL_LOSS

METRIC = TEST_LOSS
CPU = {names.DEVICE: "cpu (A)", names.THREADS: "1", names.SIDE_BY_SIDE: "2"}


def row(arm: str, seed: int, loss: float, *, number: int = 0, images: float = 960, **more: Any) -> dict[str, Any]:
    return {
        "arm": arm,
        "number": number,
        "seed": seed,
        "fingerprint": f"{arm}/{number}/{seed}",
        "diverged": False,
        "failed": False,
        METRIC: loss,
        VAL_LOSS: loss + 0.01,
        "value": loss + 0.01,
        IMAGES_SEEN: images,
        TRAIN_SECONDS: 2.0 if arm == "b" else 1.0,
        NFE_FORWARD: 30.0 if arm == "b" else 10.0,
        NFE_BACKWARD: 6.0,
        ENCODER_PASSES: 4.0,
        **CPU,
        **more,
    }


def curves(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A point at half of what each trial has seen, where its loss was twice what it ended at, and its last one."""
    found = []
    for each in rows:
        for part, factor in ((0.5, 2.0), (1.0, 1.0)):
            spent = {name: each[name] * part for name in (IMAGES_SEEN, TRAIN_SECONDS)}
            found.append({**each, **spent, METRIC: each[METRIC] * factor})
    return pd.DataFrame(found)


def judged(rows: list[dict[str, Any]], references: dict[str, str | None] | None = None, **options: Any) -> Verdict:
    given = references or {"a": None, "b": "a"}
    return judge(pd.DataFrame(rows), curves(rows), given, metric=METRIC, select=VAL_LOSS, **options)


def arms(**losses: list[float]) -> list[dict[str, Any]]:
    """The rows of arms that are given by one loss per seed."""
    return [row(arm, seed, loss) for arm, own in losses.items() for seed, loss in enumerate(own)]


def against_a(**losses: list[float]) -> dict[str, Row]:
    """Arms compared with an arm a whose losses are 0."""
    rows = arms(a=[0.0] * len(next(iter(losses.values()))), **losses)
    return {each.arm: each for each in judged(rows, {"a": None, **dict.fromkeys(losses, "a")}).rows}


def with_p(p_value: float) -> list[float]:
    """Three differences, below 0 in the mean, whose paired t-test gives this p.

    With 2 degrees of freedom it is p = 1 - t / √(t² + 2), and t = √3 mean / s.d.
    """
    statistic = (1 - p_value) * math.sqrt(2 / (1 - (1 - p_value) ** 2))
    return [-statistic / math.sqrt(3) + deviation for deviation in (-1, 0, 1)]


LEFT = [0.201, 0.222, 0.213, 0.238, 0.205]
RIGHT = [0.191, 0.214, 0.201, 0.229, 0.193]


def two_arms() -> list[dict[str, Any]]:
    return [row("a", s, v) for s, v in enumerate(LEFT)] + [row("b", s, v) for s, v in enumerate(RIGHT)]


def test_pairing_by_seed_ignores_the_row_order() -> None:
    rows = two_arms()
    np.random.default_rng(0).shuffle(rows)
    verdict = judged(rows)
    reference, treated = verdict.rows
    assert treated.paired is not None
    expected = stats.ttest_rel(RIGHT, LEFT)
    low, high = expected.confidence_interval(0.95)
    assert treated.paired.difference == pytest.approx(np.mean(np.subtract(RIGHT, LEFT)))
    assert [treated.paired.low, treated.paired.high] == pytest.approx([low, high])
    assert treated.paired.p_value == pytest.approx(expected.pvalue)
    assert (reference.text, treated.text) == ("reference", "better than a")
    assert (reference.verdict, treated.verdict) == (None, "better")
    assert treated.value.mean == pytest.approx(np.mean(RIGHT))
    assert [treated.seconds_ratio, treated.nfe_ratio] == pytest.approx([2.0, 2.0])
    assert verdict.warnings == []


def test_the_verdict_in_words() -> None:
    assert judged(two_arms(), {"b": None, "a": "b"}).rows[1].text == "worse than b"
    assert judged(two_arms(), margin=0.05).rows[1].text == "equivalent to a within 0.05"
    noisy = judged(arms(a=[0.2, 0.3, 0.25], b=[0.21, 0.28, 0.25])).rows[1]
    assert noisy.text == f"undecided: about {noisy.seeds_to_decide} seeds would decide"
    assert judged(arms(a=LEFT, b=LEFT)).rows[1].text == "undecided: 10,000 seeds would not decide"
    single = judged(arms(a=[0.2], b=[0.1])).rows
    assert [each.text for each in single] == ["no interval: one seed"] * 2
    assert [each.verdict for each in single] == [None, "undecided"]


def test_unequal_budgets_are_named_and_cut() -> None:
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


def test_unequal_budgets_need_a_common_point() -> None:
    rows = [row("a", s, v, images=100) for s, v in enumerate(LEFT)]
    rows += [row("b", s, v, images=150) for s, v in enumerate(RIGHT)]
    treated = judged(rows).rows[1]
    assert treated.paired is None
    assert treated.text.startswith("not comparable with a")


def test_budgets_in_seconds_are_cut_by_seconds() -> None:
    rows = [row("a", s, v) for s, v in enumerate(LEFT)] + [row("b", s, v, images=1920) for s, v in enumerate(RIGHT)]
    verdict = judged(rows, equal=TRAIN_SECONDS, budgets={"a": 1.0, "b": 2.0})
    assert "'b' had 2 seconds of training and 'a' 1" in verdict.warnings[0]
    assert verdict.rows[1].text == "worse than a at 960 images"


@pytest.mark.parametrize(
    ("equal", "budget", "points", "at"),
    [
        (IMAGES_SEEN, 960.0, [(240, 0.4), (480, 0.5), (960, 1.0), (1920, 2.0)], 960),
        (TRAIN_SECONDS, 1.0, [(240, 0.4), (480, 0.9), (960, 1.04), (1920, 1.06)], 960),
        (TRAIN_SECONDS, 1.0, [(240, 0.4), (480, 0.9), (960, 1.06), (1920, 2.0)], 480),
    ],
)
def test_arms_are_cut_at_the_last_point_in_budget(
    equal: str, budget: float, points: list[tuple[int, float]], at: int
) -> None:
    """Of seconds a little more is within it: a trial stops after the batch that reaches them."""
    rows = [row("a", s, v) for s, v in enumerate(LEFT)]
    rows += [row("b", s, v, images=1920) for s, v in enumerate(RIGHT)]
    reached = [
        {**each, IMAGES_SEEN: images, TRAIN_SECONDS: seconds, METRIC: each[METRIC] + images}
        for each in rows
        for images, seconds in points
        if images <= each[IMAGES_SEEN]
    ]
    (_, treated) = judge(
        pd.DataFrame(rows),
        pd.DataFrame(reached),
        {"a": None, "b": "a"},
        metric=METRIC,
        select=VAL_LOSS,
        equal=equal,
        budgets={"a": budget, "b": 2 * budget},
    ).rows
    assert treated.value.mean == pytest.approx(np.mean(RIGHT) + at)
    assert treated.text.endswith(f"at {at} images")


def test_a_budget_in_seconds_is_not_cut_by_images() -> None:
    rows = [row("a", s, v, images=900 + s) for s, v in enumerate(LEFT)]
    rows += [row("b", s, v, images=1920 + s) for s, v in enumerate(RIGHT)]
    verdict = judged(rows, equal=TRAIN_SECONDS, budgets={"a": 6.0, "b": 6.0})
    assert verdict.warnings == []
    assert verdict.rows[1].text == "better than a"


def test_an_arm_without_tuning_limits_nobody() -> None:
    rows = [row("a", 0, 0.3, number=0)]
    rows += [row("b", 0, 0.4, number=0), row("b", 0, 0.25, number=1)]
    verdict = judged(rows, fixed=["a"])
    assert verdict.warnings == []
    assert [each.configuration for each in verdict.rows] == [0, 1]


def test_unequal_tuning_is_named_and_cut() -> None:
    rows = [row("a", 0, 0.3, number=0), row("a", 0, 0.2, number=1)]
    rows += [row("b", 0, 0.4, number=0), row("b", 0, 0.25, number=1), row("b", 0, 0.1, number=5)]
    verdict = judged(rows)
    assert "unequal numbers of tuning trials (a 2, b 3)" in verdict.warnings[0]
    assert [each.configuration for each in verdict.rows] == [1, 1]
    assert verdict.rows[1].paired is not None
    assert verdict.rows[1].paired.difference == pytest.approx(0.05)


def test_validation_loss_over_all_seeds_decides() -> None:
    """Which configuration of an arm is its best."""
    rows = [row("a", s, 0.2) for s in range(3)]
    lucky = [row("b", s, v, number=0) for s, v in enumerate([0.05, 0.4, 0.4])]
    steady = [row("b", s, 0.15, number=1) for s in range(3)]
    broken = [row("b", s, 0.01, number=2, diverged=s == 1) for s in range(3)]
    other = [row("a", s, 0.3, number=n) for s in range(3) for n in (1, 2)]
    assert judged([*rows, *lucky, *steady, *broken, *other]).rows[1].configuration == 1


def test_rounding_does_not_choose_the_best() -> None:
    """Of configurations that differ by rounding alone, the first is the best."""
    losses = {"a": (0.1 + 0.2, 0.3), "b": (0.3, 0.1 + 0.2)}
    rows = [row(arm, 0, loss, number=number) for arm, each in losses.items() for number, loss in enumerate(each)]
    assert [each.configuration for each in judged(rows).rows] == [0, 0]


def test_diverged_seeds_are_left_out_and_named() -> None:
    """On both sides of the comparison."""
    rows = two_arms()
    rows[6]["diverged"] = True
    verdict = judged(rows)
    assert verdict.rows[1].paired is not None
    assert verdict.rows[1].paired.count == 4
    assert verdict.rows[1].paired.difference == pytest.approx(np.mean(np.delete(np.subtract(RIGHT, LEFT), 1)))
    assert any("'b': 1 of 5 seeds failed, diverged or" in text for text in verdict.warnings)


def test_a_failed_seed_leaves_the_others_alone() -> None:
    rows = two_arms()
    rows[6] |= {"failed": True, METRIC: np.nan, VAL_LOSS: np.nan}
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


def test_unpaired_seeds_are_left_out_and_named() -> None:
    verdict = judged(two_arms()[:-1])
    assert verdict.rows[1].paired is not None
    assert verdict.rows[1].paired.count == 4
    assert any("seeds 4 exist for one of them only" in text for text in verdict.warnings)


# Better, worse, equivalent, undecided.


def holm_by_hand(p_values: dict[str, float]) -> dict[str, float]:
    adjusted, least = {}, 0.0
    for place, (arm, p_value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, (len(p_values) - place) * p_value))
        adjusted[arm] = least
    return adjusted


def expected_words(
    losses: dict[str, list[float]], lost: dict[str, set[int]], margin: float | None, confidence: float
) -> dict[str, str]:
    """The verdict of every arm but the first, which is the reference of all, by SciPy and by hand."""
    reference, *others = losses
    pairs = {arm: [s for s in range(len(losses[arm])) if s not in lost[arm] | lost[reference]] for arm in others}
    means, ends, p_values = {}, {}, {}
    for arm in others:
        found = [np.take(losses[each], pairs[arm]) for each in (arm, reference)]
        means[arm] = float(np.mean(found[0] - found[1])) if pairs[arm] else 0.0
        if len(pairs[arm]) > 1 and np.ptp(found[0] - found[1]) > 0:
            tested = stats.ttest_rel(*found)
            p_values[arm], ends[arm] = float(tested.pvalue), max(np.abs(tested.confidence_interval(confidence)))
        elif len(pairs[arm]) > 1:
            p_values[arm], ends[arm] = float(means[arm] == 0), abs(means[arm])
    adjusted = holm_by_hand(p_values)
    words = {}
    for arm in others:
        more, fewer = (len(lost[one]) > len(lost[two]) for one, two in ((arm, reference), (reference, arm)))
        if len(pairs[arm]) < 3 or more:
            words[arm] = "undecided"
            continue
        assume(abs(adjusted[arm] - (1 - confidence)) > 1e-9 and abs(ends[arm] - (margin or 0.0)) > 1e-9)
        if margin is not None and ends[arm] < margin:
            words[arm] = "undecided" if fewer else "equivalent"
        elif adjusted[arm] > 1 - confidence:
            words[arm] = "undecided"
        else:
            words[arm] = "better" if means[arm] < 0 else "undecided" if fewer else "worse"
    return words


@st.composite
def studies(draw: st.DrawFn) -> tuple[dict[str, list[float]], dict[str, dict[int, str]]]:
    """Losses of two to five arms over one to seven seeds, and how some of the seeds were lost."""
    count = draw(st.integers(1, 7))
    how = st.sampled_from(["diverged", "failed", "no metric"])
    losses, lost = {}, {}
    for arm in "abcde"[: draw(st.integers(2, 5))]:
        shift = draw(st.sampled_from([-30, -8, 0, 8, 30])) if arm != "a" else 0
        own = draw(st.lists(st.integers(-9, 9), min_size=count, max_size=count))
        losses[arm] = [float(shift + value) for value in own]
        lost[arm] = draw(st.dictionaries(st.integers(0, count - 1), how, max_size=2))
    return losses, lost


@given(studies(), st.sampled_from([None, 5.0, 50.0]), st.sampled_from([0.8, 0.95, 0.99]))
def test_verdicts_are_those_of_scipy_and_holm(
    study: tuple[dict[str, list[float]], dict[str, dict[int, str]]], margin: float | None, confidence: float
) -> None:
    losses, lost = study
    rows = arms(**losses)
    for each in rows:
        match lost[each["arm"]].get(each["seed"]):
            case "no metric":
                each[METRIC] = math.nan
            case str() as how:
                each[how] = True
    words = expected_words(losses, {arm: set(own) for arm, own in lost.items()}, margin, confidence)
    references = {"a": None, **dict.fromkeys(words, "a")}
    verdict = judged(rows, references, margin=margin, confidence=confidence)
    assert {each.arm: each.verdict for each in verdict.rows} == {"a": None, **words}
    for arm in verdict.rows[1:]:
        needed, count = arm.seeds_to_decide, arm.paired.count if arm.paired else 0
        said = {0: "not comparable with a", 1: "no interval: one seed"}.get(count, str(arm.verdict))
        assert arm.text.startswith(said)
        assert needed is None or (arm.verdict == "undecided" and needed > count >= 3)


@pytest.mark.parametrize(
    ("margin", "confidence", "word"),
    [(None, 0.95, "worse"), (0.74, 0.95, "worse"), (0.75, 0.95, "equivalent"), (0.75, 0.999, "undecided")],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_equivalence_goes_by_the_interval(margin: float | None, confidence: float, word: str, sign: int) -> None:
    """The interval at 95 % is ±(0.5 ± 4.303 · 0.1 / √3) = ±(0.5 ± 0.248)."""
    rows = arms(a=[0.0] * 3, b=[0.4 * sign, 0.5 * sign, 0.6 * sign])
    found = judged(rows, margin=margin, confidence=confidence).rows[1].verdict
    assert found == ("better" if (word, sign) == ("worse", -1) else word)


@pytest.mark.parametrize(("p_value", "word"), [(0.05 - 1e-6, "better"), (0.05 + 1e-6, "undecided")])
def test_a_p_at_the_level_decides(p_value: float, word: str) -> None:
    found = against_a(b=with_p(p_value))["b"]
    assert found.paired is not None
    assert found.paired.p_value == pytest.approx(p_value, abs=1e-9)
    assert found.verdict == word


@pytest.mark.parametrize(
    ("p_values", "words"),
    [
        ({"b": 0.0166, "c": 0.9, "d": 0.9}, ["better", "undecided", "undecided"]),
        ({"b": 0.0168, "c": 0.9, "d": 0.9}, ["undecided"] * 3),
        # The second smallest of three counts twice; Bonferroni's method counts it three times.
        ({"b": 0.0249, "c": 0.01, "d": 0.9}, ["better", "better", "undecided"]),
        ({"b": 0.0251, "c": 0.01, "d": 0.9}, ["undecided", "better", "undecided"]),
        # What follows an undecided comparison is undecided.
        ({"b": 0.03, "c": 0.02, "d": 0.04}, ["undecided"] * 3),
    ],
)
def test_holm_decides(p_values: dict[str, float], words: list[str]) -> None:
    found = against_a(**{arm: with_p(p_value) for arm, p_value in p_values.items()})
    assert [found[arm].verdict for arm in p_values] == words


def test_what_only_holm_leaves_undecided_is_said() -> None:
    found = against_a(b=with_p(0.04), c=with_p(0.8), d=with_p(0.9))
    needed = found["b"].seeds_to_decide
    assert found["b"].p_holm == pytest.approx(0.12)
    assert found["b"].text == (
        f"undecided: p 0.04, 0.12 after Holm over 3 comparisons; about {needed} seeds would decide"
    )
    assert found["c"].text == f"undecided: about {found['c'].seeds_to_decide} seeds would decide"


def test_seeds_to_decide_reckon_with_holm() -> None:
    losses = with_p(0.1)
    (alone, among) = against_a(b=losses)["b"], against_a(b=losses, c=with_p(0.9))["b"]
    assert alone.paired is not None
    difference, sd = float(np.mean(losses)), 1.0
    assert (alone.paired.difference, alone.paired.sd) == pytest.approx((difference, sd))
    assert alone.seeds_to_decide == seeds_to_decide(difference, sd, least=4)
    assert among.seeds_to_decide == seeds_to_decide(difference, sd, least=4, family=2)
    assert (among.seeds_to_decide or 0) > (alone.seeds_to_decide or 0)


def test_seeds_to_decide_reckon_with_the_margin() -> None:
    rows = arms(a=[0.0] * 3, b=[-1.2, 0.1, 1.0])
    (free, bound) = (judged(rows, margin=margin).rows[1].seeds_to_decide for margin in (None, 1.0))
    assert bound == seeds_to_decide(-0.1 / 3, float(np.std([-1.2, 0.1, 1.0], ddof=1)), margin=1.0, least=4)
    assert (bound or 0) < (free or 10_000)


def test_seeds_to_decide_are_more_than_there_are() -> None:
    """An interval just beyond both 0 and the margin: this many new seeds would decide more often than not."""
    half = stats.t.ppf(0.975, 11) / math.sqrt(12)
    deviations = np.arange(12) - 5.5
    losses = 0.99 * half + deviations / deviations.std(ddof=1)
    found = judged(arms(a=[0.0] * 12, b=list(losses)), margin=1.98 * half).rows[1]
    assert (found.verdict, found.seeds_to_decide) == ("undecided", 13)


def test_two_pairs_decide_nothing() -> None:
    found = judged(arms(a=[0.0, 0.1], b=[-1.0, -0.901]), margin=5.0).rows[1]
    assert found.p_holm is not None
    assert found.p_holm < 0.01
    assert (found.verdict, found.seeds_to_decide) == ("undecided", None)
    assert found.text == "undecided: at least 3 paired seeds are needed"


LOST: list[dict[str, Any]] = [{"diverged": True}, {"failed": True}, {METRIC: math.nan}]


def losing(own: int, of_reference: int, how: dict[str, Any], better: bool = True, **options: Any) -> Row:
    """An arm of five seeds, clearly better or worse than its reference, some seeds of either lost."""
    rows = arms(a=LEFT, b=[value + (-0.05 if better else 0.05) + 0.001 * s for s, value in enumerate(LEFT)])
    for arm, count in (("b", own), ("a", of_reference)):
        for each in [each for each in rows if each["arm"] == arm][:count]:
            each |= how
    return judged(rows, **options).rows[1]


@pytest.mark.parametrize("how", LOST, ids=str)
@pytest.mark.parametrize("better", [True, False])
def test_an_arm_that_lost_more_seeds_is_undecided(how: dict[str, Any], better: bool) -> None:
    found = losing(2, 0, how, better)
    assert found.paired is not None
    assert found.paired.count == 3
    assert (found.p_holm or 1.0) < 0.05
    assert (found.verdict, found.seeds_to_decide) == ("undecided", None)
    assert found.text == "undecided: 2 of 5 seeds lost, 0 of its reference's"
    assert losing(2, 1, how, better).text == "undecided: 2 of 5 seeds lost, 1 of its reference's"
    assert losing(1, 0, how, better, margin=1.0).text == "undecided: 1 of 5 seeds lost, 0 of its reference's"


@pytest.mark.parametrize("how", LOST, ids=str)
def test_a_reference_that_lost_more_can_be_beaten(how: dict[str, Any]) -> None:
    assert losing(0, 2, how).text == "better than a"
    assert losing(1, 2, how).text == "better than a; 1 of 5 seeds lost"
    assert losing(0, 1, how, better=False).text == "undecided: 0 of 5 seeds lost, 1 of its reference's"
    assert losing(0, 1, how, margin=1.0).text == "undecided: 0 of 5 seeds lost, 1 of its reference's"


def test_equal_losses_forbid_nothing() -> None:
    assert losing(2, 2, LOST[0]).text == "better than a; 2 of 5 seeds lost"
    assert losing(1, 1, LOST[0], better=False).text == "worse than a; 1 of 5 seeds lost"
    assert losing(1, 1, LOST[0], margin=1.0).text == "equivalent to a within 1; 1 of 5 seeds lost"


def test_forbidden_verdicts_promise_no_seeds() -> None:
    """Where the numbers lean to a verdict that the losses forbid, more seeds would not bring it."""
    rows = arms(a=[0.0] * 4, b=[-0.4, -0.1, 0.3, 0.1], c=[0.4, 0.1, -0.3, 0.1])
    rows[3] |= LOST[0]
    low, high = judged(rows, {"a": None, "b": "a", "c": "a"}).rows[1:]
    assert low.text == f"undecided: about {low.seeds_to_decide} seeds would decide"
    assert (high.text, high.seeds_to_decide) == ("undecided: 0 of 4 seeds lost, 1 of its reference's", None)


def test_losses_are_shares_of_ended_seeds() -> None:
    rows = arms(a=[*LEFT, 0.2, 0.2, 0.2], b=[value - 0.05 + 0.001 * s for s, value in enumerate(LEFT)])
    rows[0] |= LOST[0]
    rows[8] |= LOST[0]
    assert judged(rows).rows[1].text == "undecided: 1 of 5 seeds lost, 1 of its reference's 8"


def test_a_smaller_share_of_lost_seeds_is_fine() -> None:
    rows = arms(a=LEFT, b=[value - 0.05 + 0.001 * s for s, value in enumerate([*LEFT, 0.2, 0.2, 0.2])])
    rows[0] |= LOST[0]
    rows[5] |= LOST[0]
    assert judged(rows).rows[1].text == "better than a; 1 of 8 seeds lost"
    rows[6] |= LOST[0]
    assert judged(rows).rows[1].text == "undecided: 2 of 8 seeds lost, 1 of its reference's 5"


def test_an_arm_that_lost_every_seed_is_undecided() -> None:
    found = losing(5, 0, LOST[1])
    assert found.verdict == "undecided"
    assert found.text.startswith("not comparable with a: no seed of both has finished")
    assert found.text.endswith("; 5 of 5 seeds lost")


def test_words_come_before_the_images() -> None:
    rows = [row("a", s, v, images=960) for s, v in enumerate([0.2, 0.3, 0.25])]
    rows += [row("b", s, v, images=1920) for s, v in enumerate([0.105, 0.14, 0.125])]
    assert judged(rows).rows[1].text.startswith("undecided at 960 images: about ")


def test_as_data_a_row_has_its_verdict() -> None:
    given = judged(two_arms()).as_dict()["rows"]
    assert [each["verdict"] for each in given] == [None, "better"]
    assert "verdict" not in given[1]["paired"]


# Seconds.


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ({names.DEVICE: "NVIDIA H100"}, "it ran on NVIDIA H100, 'a' on cpu (A)"),
        ({names.THREADS: "4"}, "it ran with a thread count of 4, 'a' with a thread count of 1"),
        ({names.SIDE_BY_SIDE: "1"}, "it ran 1 at a time, 'a' 2 at a time"),
        ({names.DEVICE: ""}, "the device was not recorded"),
        ({names.THREADS: ""}, "the number of threads was not recorded"),
        ({names.SIDE_BY_SIDE: ""}, "the number of trials side by side was not recorded"),
    ],
    ids=str,
)
def test_seconds_of_unlike_trials_have_no_ratio(own: dict[str, str], reason: str) -> None:
    rows = [{**each, **(own if each["arm"] == "b" else {})} for each in two_arms()]
    verdict = judged(rows)
    assert verdict.warnings == [f"seconds are not compared for 'b': {reason}"]
    assert (verdict.rows[1].seconds, verdict.rows[1].seconds_ratio) == (2.0, None)
    assert verdict.rows[1].nfe_ratio == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("place", "device", "reason"),
    [
        (7, "cpu (B)", "it ran on cpu (A) and cpu (B), 'a' on cpu (A)"),
        (2, "cpu (B)", "it ran on cpu (A), 'a' on cpu (A) and cpu (B)"),
        (7, "", "the device was not recorded"),
        (2, "", "the device was not recorded"),
    ],
)
def test_one_unlike_trial_is_enough(place: int, device: str, reason: str) -> None:
    rows = two_arms()
    rows[place] |= {names.DEVICE: device}
    verdict = judged(rows)
    assert verdict.warnings == [f"seconds are not compared for 'b': {reason}"]
    assert verdict.rows[1].seconds_ratio is None


def test_a_trial_of_two_devices_is_unlike_itself() -> None:
    """Both arms were continued on another device, who knows after how many seconds."""
    rows = [{**each, names.DEVICE: "cpu (A); cpu (B)"} for each in two_arms()]
    verdict = judged(rows)
    reason = "it ran on cpu (A) and cpu (B), 'a' on cpu (A) and cpu (B)"
    assert verdict.warnings == [f"seconds are not compared for 'b': {reason}"]
    assert verdict.rows[1].seconds_ratio is None


def test_unknown_conditions_are_unlike() -> None:
    rows = [{**each, names.THREADS: ""} for each in two_arms()]
    assert judged(rows).rows[1].seconds_ratio is None


def test_arms_with_the_same_cause_share_a_warning() -> None:
    rows = arms(a=LEFT, b=RIGHT, c=RIGHT, d=RIGHT)
    for each in rows:
        each |= {names.DEVICE: "NVIDIA H100"} if each["arm"] in "bc" else {}
    verdict = judged(rows, {"a": None, "b": "a", "c": "a", "d": "a"})
    assert verdict.warnings == ["seconds are not compared for 'b', 'c': they ran on NVIDIA H100, 'a' on cpu (A)"]
    assert [each.seconds_ratio is None for each in verdict.rows] == [True, True, True, False]


def test_uncompared_trials_may_run_anywhere() -> None:
    rows = two_arms()
    rows[0] |= {"failed": True, names.DEVICE: "", METRIC: math.nan}
    rows[5] |= {names.DEVICE: "NVIDIA H100"}
    verdict = judged(rows)
    assert verdict.rows[1].seconds_ratio == pytest.approx(2.0)
    assert not any("seconds" in text for text in verdict.warnings)


def test_nothing_finished_is_no_traceback() -> None:
    empty = judge(pd.DataFrame([row("c", 0, 0.1)]), pd.DataFrame(), {"a": None}, metric=METRIC, select=VAL_LOSS)
    assert empty.rows == []
    assert "nothing can be compared" in empty.warnings[0]
    missing = judged([row("a", 0, 0.2)])
    assert [each.arm for each in missing.rows] == ["a"]
    assert "arm 'b' has no complete configuration" in missing.warnings[0]


def test_without_its_reference_an_arm_is_alone() -> None:
    (found,) = judged(arms(b=RIGHT)).rows
    assert (found.verdict, found.text) == (None, "not compared: a has no complete configuration")
