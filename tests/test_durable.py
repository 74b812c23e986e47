"""What may not be lost is on the disk before anything relies on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from test_training import tiny

from gfe_study import names
from gfe_study.data.split import Splits
from gfe_study.io.checkpoint import write_checkpoint
from gfe_study.io.storage import Mirror
from gfe_study.study.journal import FINISHED, JOURNAL_FILE, Configuration, Journal, Outcome, Settled
from gfe_study.study.runner import run_trial


class Call(NamedTuple):
    """A flush of a file to the disk, or a rename; the file is known by its inode."""

    what: str
    file: int
    size: int
    name: str = ""


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Every call to `os.fsync` and `os.replace`, which does what it always does."""
    calls: list[Call] = []
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor: int) -> None:
        fsync(descriptor)
        found = os.fstat(descriptor)
        calls.append(Call("flush", found.st_ino, found.st_size))

    def renamed(old: Any, new: Any, **options: Any) -> None:
        found = os.stat(old)
        calls.append(Call("rename", found.st_ino, found.st_size, Path(new).name))
        replace(old, new, **options)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    return calls


def renames(disk: list[Call], name: str) -> list[bool]:
    """For every rename to a name: whether the whole file had been flushed before."""
    return [Call("flush", call.file, call.size) in disk[:place] for place, call in enumerate(disk) if call.name == name]


def test_a_checkpoint_is_flushed_before_renaming(tmp_path: Path, disk: list[Call]) -> None:
    path, previous = tmp_path / "new.pt", tmp_path / "old.pt"
    for number in range(2):
        write_checkpoint(path, {"number": number}, previous)
    assert renames(disk, path.name) == [True, True]
    assert renames(disk, previous.name) == [True]


def test_a_point_is_told_after_its_checkpoint(tmp_path: Path, disk: list[Call], digits: Splits) -> None:
    """What the trial goes on from is on the disk by then."""
    told = 0
    for report in run_trial(tiny(), digits, Mirror(tmp_path)):
        told += len(report.points)
        assert renames(disk, names.CHECKPOINT) == [True] * told
    assert told == 3
    kept = renames(disk, names.BEST_CHECKPOINT)
    assert kept
    assert all(kept)


def test_every_journal_record_is_flushed_at_once(tmp_path: Path, disk: list[Call]) -> None:
    with Journal.open(tmp_path) as journal:
        configuration = Configuration(0, "", 0, {}, [0], ["aa"])
        records: list[tuple[str, tuple[Any, ...]]] = [
            ("study", ({"question": "?"}, {}, {})),
            ("membership", ([configuration],)),
            ("configuration", (configuration,)),
            ("placed", ("aa", {names.HOST: "h"})),
            ("points", ("aa", [{"images_seen": 10.0}])),
            ("outcome", ("aa", Outcome(FINISHED))),
            ("reused", ("bb", [{"images_seen": 10.0}], Outcome(FINISHED))),
            ("again", (["bb"],)),
            ("parallel", (3,)),
            ("start_up", (1.0,)),
            ("retry", ("aa",)),
            ("settled", (Settled("0" * 64, {}, {}, []),)),
        ]
        assert {name for name, _ in records} == {
            name.removeprefix("record_") for name in dir(Journal) if name.startswith("record_")
        }
        for name, arguments in records:
            disk.clear()
            getattr(journal, f"record_{name}")(*arguments)
            there = (tmp_path / JOURNAL_FILE).stat()
            assert disk == [Call("flush", there.st_ino, there.st_size)], name
