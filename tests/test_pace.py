"""The time that is left, told from the work that is done."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfe_study.config import Budget
from gfe_study.metrics import EVAL_SECONDS, IMAGES_SEEN, NFE_BACKWARD, NFE_FORWARD, TRAIN_SECONDS
from gfe_study.study.pace import Begun, Pace, share_of, spent


def pace(**seconds: list[float]) -> Pace:
    told = Pace()
    for arm, each in seconds.items():
        for one in each:
            told.note((0, arm), one)
    return told


def test_arms_take_as_long_as_their_trials_did() -> None:
    told = pace(quick=[1.0, 3.0], slow=[100.0])
    assert told.left({(0, "quick"): 10, (0, "slow"): 1}, [], slots=1) == pytest.approx(10 * 2 + 100)
    assert told.left({(1, "slow"): 2}, [], slots=1) == pytest.approx(200)  # winners are like what they have won over
    assert told.left({(0, "new"): 3}, [], slots=1) == pytest.approx(104)  # like all: 104/3 each


def test_nothing_is_told_before_anything_is_known() -> None:
    assert Pace().left({(0, "a"): 1}, [], 1) is None
    assert Pace().left({}, [Begun((0, "a"), 3.0, 0.04)], 1) is None
    assert Pace().left({}, [], 1) == 0.0


def test_unfinished_trials_already_tell_the_pace() -> None:
    """5 s for a quarter: 15 s are left of it, and 20 for each of the three that wait."""
    assert Pace().left({(0, "a"): 3}, [Begun((0, "a"), 5.0, 0.25)], 1) == pytest.approx(15 + 60)


def test_trials_side_by_side_share_the_time() -> None:
    told = pace(a=[10.0])
    assert told.left({(0, "a"): 6}, [], 2) == pytest.approx(30)
    assert told.left({(0, "a"): 1}, [Begun((0, "a"), 2.0, 0.1)], 4) == pytest.approx(8)  # the longest ends last


def test_interrupted_work_is_not_done_again() -> None:
    """Four tenths were done before; a tenth took 10 s since, so a whole one takes 100: 50 s are left."""
    assert Pace().left({}, [Begun((0, "a"), 10.0, 0.1, before=0.4)], 1) == pytest.approx(50)


@given(st.floats(0.05, 1), st.floats(0.1, 1e4), st.integers(1, 8), st.integers(0, 50))
def test_more_slots_never_take_longer(share: float, seconds: float, slots: int, waiting: int) -> None:
    running = [Begun((0, "a"), seconds, share)]
    one, more = (Pace().left({(0, "a"): waiting}, running, each) for each in (slots, slots + 1))
    assert one is not None
    assert more is not None
    assert 0 <= more <= one * (1 + 1e-12)


def test_the_nearest_limit_tells_the_share_spent() -> None:
    point = {IMAGES_SEEN: 100.0, TRAIN_SECONDS: 3.0, NFE_FORWARD: 2.0, NFE_BACKWARD: 1.0}
    assert share_of(Budget(images=1000), point) == pytest.approx(0.1)
    assert share_of(Budget(images=1000, seconds=6), point) == pytest.approx(0.5)
    assert share_of(Budget(images=1000, seconds=30, nfe=400), point) == pytest.approx(0.75)
    assert share_of(Budget(images=50), point) == 1.0
    assert spent({**point, EVAL_SECONDS: 2.0}) == 5.0
