"""Files on both sides of an fsspec URL, and journals brought from it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fsspec.registry import _registry

from gfe_study import names
from gfe_study.config import InputError
from gfe_study.study import storage
from gfe_study.study.journal import JOURNAL_FILE, Journal
from gfe_study.study.storage import Mirror, Storage, StorageError, Uploads, local_file


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


def test_s3_without_its_library_names_the_extra(
    typed: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)  # an earlier test may have loaded it
    code, out, err = typed("status", "--storage", "s3://bucket/results", "--json")
    assert (code, out) == (2, "")
    remedy = "s3fs is not installed; pip install 'gfe-study[s3]'"
    assert err == f"error: --storage: given 's3://bucket/results'; {remedy}\n"


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


class Flaky(Mirror):
    """A URL that answers only while it is up, and notes what is uploaded."""

    def __init__(self, local: Path, remote: str) -> None:
        super().__init__(local, remote)
        self.up = threading.Event()
        self.uploaded: list[str] = []

    def push(self, *wanted: str) -> None:
        if not self.up.is_set():
            raise StorageError("memory://: away")
        self.uploaded += wanted
        super().push(*wanted)


def test_uploads_wait_for_a_storage_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is uploaded after everything that whoever continues from it needs."""
    monkeypatch.setattr(storage, "UPLOAD_RETRY_S", 0.01)
    mirror = Flaky(tmp_path / "here", f"file://{tmp_path}/far")
    mirror.local.mkdir()
    with Uploads(mirror) as uploads:
        assert uploads.done(0)
        for number in range(3):
            for name in (names.CHECKPOINT, names.BEST_CHECKPOINT):
                (mirror.local / name).write_text(str(number))
                uploads.add(name)
        assert not uploads.done(0.2)
        assert uploads.problem == "memory://: away"
        mirror.up.set()
        assert uploads.done(10)
        assert uploads.problem == ""
        assert mirror.uploaded == [names.BEST_CHECKPOINT, names.CHECKPOINT]
        assert (tmp_path / "far" / names.CHECKPOINT).read_text() == "2"
        uploads.add(names.CHECKPOINT)
        assert uploads.done(10)
    assert (tmp_path / "far" / names.PREVIOUS_CHECKPOINT).read_text() == "2"


def test_a_file_that_changes_while_it_is_uploaded_is_uploaded_again(tmp_path: Path) -> None:
    mirror = Flaky(tmp_path / "here", f"file://{tmp_path}/far")
    mirror.local.mkdir()
    mirror.up.set()
    real, uploads = mirror.push, Uploads(mirror)

    def changes_once(*wanted: str) -> None:
        real(*wanted)
        if len(mirror.uploaded) == 1:
            (mirror.local / names.BEST_CHECKPOINT).write_text("new")
            uploads.add(names.BEST_CHECKPOINT)

    mirror.push = changes_once  # type: ignore[method-assign]
    (mirror.local / names.BEST_CHECKPOINT).write_text("old")
    with uploads:
        uploads.add(names.BEST_CHECKPOINT)
        assert uploads.done(10)
    assert (tmp_path / "far" / names.BEST_CHECKPOINT).read_text() == "new"


def test_a_file_at_a_url_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "best.pt").write_text("a decoder")
    assert local_file("best.pt") == Path("best.pt")
    assert local_file(f"file://{tmp_path}/far/best.pt").read_text() == "a decoder"
    with pytest.raises(InputError, match=r"far/other\.pt: no such file"):
        local_file(f"file://{tmp_path}/far/other.pt")
