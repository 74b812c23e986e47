"""The journal survives what kills leave behind, and has one writer."""

import json
import shutil
from pathlib import Path

import pytest

from gfe_study.config import InputError
from gfe_study.io.storage import Mirror
from gfe_study.metrics import DIVERGED, IMAGES_SEEN, VAL_LOSS
from gfe_study.study.journal import FINISHED, FORMAT, JOURNAL_FILE, Configuration, Journal, Outcome


def point(images: float) -> dict[str, float]:
    return {IMAGES_SEEN: images, VAL_LOSS: 1 / images, DIVERGED: 0.0}


def filled(folder: Path) -> None:
    with Journal.open(folder) as journal:
        journal.record_study({"question": "?"}, {"source": "space.yaml"}, {"storage": "results"})
        journal.record_membership([Configuration(0, "", 0, {"optim.lr": 1e-3}, [0], ["aa"])])
        journal.record_points("aa", [point(480), point(960)])
        journal.record_outcome("aa", Outcome(FINISHED))


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    filled(tmp_path)
    journal = Journal.read(tmp_path)
    assert journal.study is not None
    assert journal.study["options"] == {"storage": "results"}
    assert journal.membership == [Configuration(0, "", 0, {"optim.lr": 1e-3}, [0], ["aa"])]
    assert [p[IMAGES_SEEN] for p in journal.points["aa"]] == [480, 960]
    assert journal.outcomes["aa"].state == FINISHED


def test_recorded_points_are_not_recorded_again(tmp_path: Path) -> None:
    filled(tmp_path)
    with Journal.open(tmp_path) as journal:
        assert journal.record_points("aa", [point(480), point(960), point(1920)]) == [point(1920)]
        assert journal.record_points("aa", [point(480)]) == []
    assert [p[IMAGES_SEEN] for p in Journal.read(tmp_path).points["aa"]] == [480, 960, 1920]


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path: Path, cut: int) -> None:
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
    path.write_text(path.read_text().replace('{"event": "membership"', '{"event" "membership"'))
    with pytest.raises(InputError, match=r"damaged line.*membership"):
        Journal.read(tmp_path)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    """Once the first is done, another may write."""
    with Journal.open(tmp_path), pytest.raises(InputError, match="another sweep of this study is running"):
        Journal.open(tmp_path)
    filled(tmp_path)


def test_a_retried_trial_has_no_outcome(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.record_outcome("aa", Outcome("failed", "out of memory"))
        journal.record_retry("aa")
    assert Journal.read(tmp_path).outcomes == {}


def rewritten(folder: Path, number: int, line: str) -> Path:
    """A journal one line of which is replaced."""
    filled(folder)
    path = folder / JOURNAL_FILE
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_journal_says_its_format(tmp_path: Path) -> None:
    filled(tmp_path)
    first = json.loads((tmp_path / JOURNAL_FILE).read_text().splitlines()[0])
    assert (first["event"], first["format"]) == ("study", FORMAT)


def test_a_journal_of_format_1_is_read(tmp_path: Path) -> None:
    """Its trials are single records, one for each seed of a configuration."""
    asked = {"event": "asked", "number": 3, "params": {"optim.lr": 1e-3}, "trial": {}, "arm": "a", "stage": 0}
    lines = [{**asked, "seed": seed, "fingerprint": name} for seed, name in enumerate(("aa", "bb"))]
    (tmp_path / JOURNAL_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    journal = Journal.read(tmp_path)
    assert [(each.number, each.seeds, each.fingerprints) for each in journal.membership] == [
        (3, [0], ["aa"]),
        (3, [1], ["bb"]),
    ]
    assert journal.highest == {"a": 3}


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "postponed", "fingerprint": "aa"}',
        '{"event": "retry", "fingerprint": "aa", "patience": 3}',
        f'{{"event": "study", "study": {{}}, "source": {{}}, "options": {{}}, "format": {FORMAT + 1}}}',
    ],
    ids=["event", "field", "format"],
)
def test_a_newer_record_is_not_called_damage(tmp_path: Path, line: str) -> None:
    path = rewritten(tmp_path, 3, line)
    before = path.read_bytes()
    for look in (Journal.read, Journal.open):
        with pytest.raises(InputError, match="line 3 was written by a newer gfe-study") as error:
            look(tmp_path)
        assert "damaged" not in str(error.value)
        assert "remove" not in str(error.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[1, 2]",
        '"text"',
        '{"fingerprint": "aa"}',
        '{"event": "points", "fingerprint": "aa", "points": [{"val_loss": 0.3}]}',
        '{"event": "points", "fingerprint": "aa", "points": [3]}',
        '{"event": "points", "fingerprint": "aa"}',
        '{"event": "outcome", "fingerprint": "aa", "state": "lost"}',
        '{"event": "retry", "fingerprint": 3}',
        "{",
    ],
)
def test_a_damaged_line_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    path = rewritten(tmp_path, 4, line)
    with pytest.raises(InputError) as error:
        Journal.read(tmp_path)
    assert str(error.value).startswith(f"{path}: damaged line 4 (")
    assert "\n" not in str(error.value)


def test_a_fork_is_refused_without_overwriting(tmp_path: Path) -> None:
    """Two machines went on from the same journal; neither may erase what the other one finished."""
    remote = f"file://{tmp_path / 'shared'}"
    with Journal.open(Mirror(tmp_path / "one", remote)) as journal:
        journal.record_retry("aa")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for folder, name in (("one", "bb"), ("two", "cc")):
        with (tmp_path / folder / JOURNAL_FILE).open("a") as file:
            file.write(json.dumps({"event": "retry", "fingerprint": name}) + "\n")
    Journal.open(Mirror(tmp_path / "one", remote)).__exit__(None, None, None)  # brings bb there
    kept = {path: path.read_bytes() for path in tmp_path.rglob(JOURNAL_FILE)}
    assert len(kept) == 3
    for look in (Journal.read, Journal.open):
        with pytest.raises(InputError, match="differ from line 2 on") as error:
            look(Mirror(tmp_path / "two", remote))
        assert str(tmp_path / "two" / JOURNAL_FILE) in str(error.value)
        assert f"{remote}/{JOURNAL_FILE}" in str(error.value)
    assert {path: path.read_bytes() for path in kept} == kept


def test_a_driver_keeps_what_another_added(tmp_path: Path) -> None:
    """A machine that was away comes back while its study runs elsewhere: its own copy is not brought there."""
    remote = f"file://{tmp_path / 'shared'}"
    first = Journal.open(Mirror(tmp_path / "one", remote))
    first.record_retry("aa")
    first.push()
    with Journal.open(Mirror(tmp_path / "two", remote)) as second:
        second.record_retry("bb")
    there = (tmp_path / "shared" / JOURNAL_FILE).read_bytes()
    with pytest.raises(InputError, match="another machine goes on with this study"):
        first.push()
    first.record_retry("cc")
    with pytest.raises(InputError, match="differ from line 2 on"):
        first.push()
    assert (tmp_path / "shared" / JOURNAL_FILE).read_bytes() == there
