"""The journal survives what kills leave behind, and has one writer."""

from pathlib import Path

import pytest

from gfe_study import names
from gfe_study.config import InputError
from gfe_study.study.journal import FINISHED, JOURNAL_FILE, Asked, Journal, Outcome


def point(images: float) -> dict[str, float]:
    return {names.IMAGES_SEEN: images, names.VAL_LOSS: 1 / images, names.DIVERGED: 0.0}


def filled(folder: Path) -> None:
    with Journal.open(folder) as journal:
        journal.record_study({"question": "?"}, {"source": "space.yaml"}, {"storage": "results"})
        journal.record_asked(Asked(0, 0, {"optim.lr": 1e-3}, "aa", {"seed": 0}))
        journal.record_points("aa", [point(480), point(960)])
        journal.record_outcome("aa", Outcome(FINISHED))


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    filled(tmp_path)
    journal = Journal.read(tmp_path)
    assert journal.study is not None
    assert journal.study["options"] == {"storage": "results"}
    assert journal.asked["aa"].params == {"optim.lr": 1e-3}
    assert [p[names.IMAGES_SEEN] for p in journal.points["aa"]] == [480, 960]
    assert journal.outcomes["aa"].state == FINISHED


def test_points_already_recorded_are_not_recorded_again(tmp_path: Path) -> None:
    filled(tmp_path)
    with Journal.open(tmp_path) as journal:
        assert journal.record_points("aa", [point(480), point(960), point(1920)]) == [point(1920)]
        assert journal.record_points("aa", [point(480)]) == []
    assert [p[names.IMAGES_SEEN] for p in Journal.read(tmp_path).points["aa"]] == [480, 960, 1920]


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_line_cut_short_by_a_kill_is_dropped_and_writing_goes_on(tmp_path: Path, cut: int) -> None:
    filled(tmp_path)
    path = tmp_path / JOURNAL_FILE
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal.open(tmp_path) as journal:
        assert "aa" not in journal.outcomes
        journal.record_outcome("aa", Outcome(FINISHED))
    assert Journal.read(tmp_path).outcomes["aa"].state == FINISHED


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / JOURNAL_FILE
    path.write_text(path.read_text().replace('{"event": "asked"', '{"event" "asked"'))
    with pytest.raises(InputError, match=r"damaged line.*asked"):
        Journal.read(tmp_path)


def test_a_second_writer_is_refused_and_the_lock_is_given_back(tmp_path: Path) -> None:
    with Journal.open(tmp_path), pytest.raises(InputError, match="another sweep of this study is running"):
        Journal.open(tmp_path)
    filled(tmp_path)


def test_a_failed_trial_that_is_tried_again_has_no_outcome(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.record_outcome("aa", Outcome("failed", "out of memory"))
        journal.record_retry("aa")
    assert Journal.read(tmp_path).outcomes == {}
