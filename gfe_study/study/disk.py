"""The size of folders, and a watch over the disk while a study runs."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

WAIT_PER_CHECK = 50.0
"""A check that takes 10 ms is repeated after 500 ms: watching costs 2 % of the driver's time on any disk."""

MIN_FREE_BYTES = 200e6


class DiskWatch:
    """Says when a study must stop for lack of disk space.

    Args:
        folder: the study's folder.
        quota_gb: largest size of that folder, in GB; None for no limit.
    """

    def __init__(self, folder: Path, quota_gb: float | None) -> None:
        self._folder = folder
        self._quota_gb = quota_gb
        self._next = 0.0

    def __call__(self) -> str:
        """Return why the study must stop; empty if it need not, or if it is too soon for another check."""
        began = time.monotonic()
        if began < self._next:
            return ""
        reason = self._check()
        ended = time.monotonic()
        self._next = ended + WAIT_PER_CHECK * (ended - began)
        return reason

    def _check(self) -> str:
        used = folder_bytes(self._folder) if self._quota_gb is not None else 0
        if self._quota_gb is not None and used > self._quota_gb * 1e9:
            return (
                f"{self._folder} takes {used / 1e9:.3g} GB; the quota is {self._quota_gb:g} GB: raise --quota-gb or "
                "free space (gfe-study doctor shows what takes space), then resume"
            )
        free = shutil.disk_usage(self._folder).free
        if free < MIN_FREE_BYTES:
            return f"{self._folder}: only {free / 1e6:.0f} MB are free on its disk; free some space, then resume"
        return ""


def folder_bytes(folder: Path) -> int:
    """Return the total size of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
