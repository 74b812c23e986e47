"""The watch over a study's folder."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gfe_study.study import disk
from gfe_study.study.disk import WAIT_PER_CHECK, DiskWatch


def test_the_longer_a_check_the_longer_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, checks = 100.0, 0

    def walk(_: Path) -> int:
        nonlocal now, checks
        now, checks = now + 0.2, checks + 1
        return 500 if checks < 3 else 2000

    monkeypatch.setattr(disk, "folder_bytes", walk)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watch = DiskWatch(tmp_path, 1e-6)
    assert watch() == ""
    now += 0.2 * WAIT_PER_CHECK - 0.1
    assert (watch(), checks) == ("", 1)
    now += 0.2
    assert (watch(), checks) == ("", 2)
    now += 0.2 * WAIT_PER_CHECK + 0.1
    assert "the quota is 1e-06 GB: raise --quota-gb" in watch()
