"""Files on both sides of an fsspec URL, and journals brought from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gfe_study import names
from gfe_study.config import InputError
from gfe_study.study.journal import JOURNAL_FILE, Journal
from gfe_study.study.storage import Mirror, Storage


def test_a_folder_is_its_own_storage(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path)).folder("amd")
    assert (folder.local, folder.remote) == (tmp_path / "amd", None)
    mirror = Mirror(tmp_path, None)
    mirror.push("a")
    mirror.fetch("a")
    mirror.push_checkpoint()
    assert list(tmp_path.iterdir()) == []


def test_files_go_there_and_back(tmp_path: Path) -> None:
    here, there = Mirror(tmp_path / "here", f"file://{tmp_path}/far/x"), tmp_path / "far" / "x"
    here.local.mkdir()
    (here.local / "a").write_text("1")
    here.push("a", "absent")
    assert [path.name for path in there.iterdir()] == ["a"]
    other = Mirror(tmp_path / "other", f"file://{tmp_path}/far/x")
    other.fetch("a", "absent")
    assert [(path.name, path.read_text()) for path in other.local.iterdir()] == [("a", "1")]
    other.remove("a", "absent")
    assert list(there.iterdir()) == list(other.local.iterdir()) == []


def test_a_checkpoint_that_is_replaced_stays_as_the_previous_one(tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "here", f"file://{tmp_path}/far")
    mirror.local.mkdir()
    for number in (1, 2, 3):
        (mirror.local / names.CHECKPOINT).write_text(str(number))
        mirror.push_checkpoint()
    there = {path.name: path.read_text() for path in (tmp_path / "far").iterdir()}
    assert there == {names.CHECKPOINT: "3", names.PREVIOUS_CHECKPOINT: "2"}


def test_a_protocol_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--storage: given 'nosuch://bucket'"):
        Mirror(tmp_path, "nosuch://bucket")


def test_a_journal_goes_on_where_another_machine_left_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"file://{tmp_path}/shared"
    for machine, fingerprint in (("one", "aa"), ("two", "bb"), ("one", "cc")):
        folder = tmp_path / machine
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        with Journal.open(Storage(url).folder("amd")) as journal:
            journal.record_retry(fingerprint)
    assert Journal.read(Storage(url).folder("amd")).changed == ["aa", "bb", "cc"]
    assert Storage(url).studies() == ["amd"]
    assert len((tmp_path / "shared" / "amd" / JOURNAL_FILE).read_text().splitlines()) == 3


def test_a_driver_killed_before_its_journal_was_brought_there_loses_nothing_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"file://{tmp_path}/shared"
    here = Storage(url).folder("amd")
    with Journal.open(here) as journal:
        journal.record_retry("aa")
        journal.push()
        journal.record_retry("bb")
        monkeypatch.setattr(journal, "push", lambda: None)
    assert Journal.read(here).changed == ["aa", "bb"]


def test_looking_at_a_running_study_on_a_url_disturbs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"file://{tmp_path}/shared"
    here = Storage(url).folder("amd")
    with Journal.open(here) as journal:
        for name in ("aa", "bb", "cc"):
            journal.record_retry(name)
            journal.push()
            assert "aa" in Journal.read(here).changed
    assert Journal.read(here).changed == ["aa", "bb", "cc"]
