"""Successive halving: what is stopped, and what never is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gfe_study.config.options import Asha
from gfe_study.metrics import DIVERGED, IMAGES_SEEN, VAL_LOSS
from gfe_study.study.halving import Halving


def halving(budget: int = 5000, mode: str = "min") -> Halving:
    return Halving(Asha(grace_images=480, reduction=3), VAL_LOSS, mode, budget)


def points(*values: float) -> list[dict[str, float]]:
    images = (480, 1440, 4320)
    return [{IMAGES_SEEN: at, VAL_LOSS: value, DIVERGED: 0.0} for at, value in zip(images, values, strict=False)]


def test_rungs_lie_below_the_budget() -> None:
    assert list(halving(5000).rungs) == [480, 1440, 4320]
    assert list(halving(1440).rungs) == [480]
    assert list(halving(100).rungs) == []


def test_the_best_third_goes_on() -> None:
    rule = halving()
    assert rule.stops("a", points(0.5)) is None  # nobody to compare with
    assert rule.stops("b", points(0.6)) is not None
    assert rule.stops("c", points(0.4)) is None
    assert rule.stops("d", points(0.45)) is None  # second of four, two places
    reason = rule.stops("e", points(0.55))
    assert reason is not None
    assert "480 images: 3 of 5 trials were better" in reason


def test_larger_is_better_where_the_study_says_so() -> None:
    rule = halving(mode="max")
    assert rule.stops("a", points(0.5)) is None
    assert rule.stops("b", points(0.6)) is None
    assert rule.stops("c", points(0.4)) is not None


def test_a_trial_is_judged_at_its_highest_rung() -> None:
    rule = halving()
    rule.record("a", points(0.1, 0.1))
    rule.record("b", points(0.2, 0.2))
    assert rule.stops("c", points(0.9, 0.05)) is None


def test_a_trial_killed_and_resumed_counts_once() -> None:
    rule = halving()
    for _ in range(5):
        rule.record("a", points(0.5))
    assert len(rule.rungs[480]) == 1
    assert rule.stops("b", points(0.4)) is None


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=40, unique=True), st.integers(2, 5))
def test_whoever_is_best_so_far_is_never_stopped(values: list[float], reduction: int) -> None:
    rule = Halving(Asha(grace_images=480, reduction=reduction), VAL_LOSS, "min", 5000)
    for number, value in enumerate(values):
        stopped = rule.stops(str(number), points(value)) is not None
        better = sum(other < value for other in values[:number])
        assert stopped == (better * reduction >= number + 1 and better > 0)
