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
from gfe_study.io import storage
from gfe_study.io.storage import Mirror, Storage, StorageError, Uploads, local_file
from gfe_study.study import runner
from gfe_study.study.journal import JOURNAL_FILE, Journal
from gfe_study.study.ray_session import _check_answers
from gfe_study.study.runner import _fetched


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


def write_text(file: Path, text: str) -> None:
    """Replace a file, as checkpoints are."""
    file.with_name("new").write_text(text)
    file.with_name("new").replace(file)


def test_the_previous_checkpoint_is_kept(tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "here", f"file://{tmp_path}/far")
    mirror.local.mkdir()
    for number in (1, 2, 3):
        write_text(mirror.local / names.CHECKPOINT, str(number))
        mirror.set_checkpoint_apart()
        write_text(mirror.local / names.CHECKPOINT, "not set apart")
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


def test_another_machine_continues_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_kill_before_an_upload_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal on this machine keeps what has not been pushed."""
    monkeypatch.chdir(tmp_path)
    url = f"file://{tmp_path}/shared"
    here = Storage(url).folder("amd")
    with Journal.open(here) as journal:
        journal.record_retry("aa")
        journal.push()
        journal.record_retry("bb")
        monkeypatch.setattr(journal, "push", lambda: None)
    assert Journal.read(here).changed == ["aa", "bb"]


def test_reading_disturbs_no_running_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        self._note(*wanted)
        super().push(*wanted)

    def push_checkpoint(self) -> None:
        self._note(names.CHECKPOINT)
        super().push_checkpoint()

    def _note(self, *wanted: str) -> None:
        if not self.up.is_set():
            raise StorageError("memory://: away")
        self.uploaded += wanted


def test_uploads_wait_for_a_storage_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is uploaded after everything that whoever continues from it needs."""
    monkeypatch.setattr(storage, "UPLOAD_RETRY_S", 0.01)
    mirror = Flaky(tmp_path / "here", f"file://{tmp_path}/far")
    mirror.local.mkdir()
    with Uploads(mirror) as uploads:
        assert uploads.done(0)
        for number in range(3):
            for name in (names.CHECKPOINT, names.BEST_CHECKPOINT):
                write_text(mirror.local / name, str(number))
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


def test_a_change_during_upload_is_uploaded_again(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("remote", [True, False])
def test_a_local_copy_alone_is_not_continued(tmp_path: Path, remote: bool) -> None:
    """Where the storage is a URL, the local copy may be of a trial that has been run again since."""
    folder = Mirror(tmp_path / "here", f"file://{tmp_path}/far" if remote else None)
    folder.local.mkdir()
    for name in (names.CHECKPOINT, names.BEST_CHECKPOINT):
        (folder.local / name).write_text("of an earlier time")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / names.BEST_CHECKPOINT).write_text("of now")
    assert list(_fetched(folder)) == []
    assert (folder.local / names.CHECKPOINT).exists() == (not remote)
    assert (folder.local / names.BEST_CHECKPOINT).read_text() == ("of now" if remote else "of an earlier time")


def test_a_trial_first_waits_for_its_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "UPLOAD_RETRY_S", 0.0)
    told: list[StorageError | list[str]] = [StorageError("away"), StorageError("away"), []]
    folder, answers = Mirror(tmp_path), iter(told)

    def fetch(*wanted: str) -> list[str]:
        answer = next(answers)
        if isinstance(answer, StorageError):
            raise answer
        return answer

    monkeypatch.setattr(folder, "fetch", fetch)
    assert [report.waiting for report in _fetched(folder)] == ["away", "away"]


def test_nobody_at_an_address_is_said_at_once() -> None:
    with pytest.raises(InputError, match=r"--address: given '127\.0\.0\.1:1'; nothing answers there"):
        _check_answers("127.0.0.1:1")
