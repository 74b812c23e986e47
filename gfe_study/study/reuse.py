"""Trials that other studies of the same storage have already finished."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gfe_study import names
from gfe_study.config import InputError
from gfe_study.study.journal import FINISHED, JOURNAL_FILE, Journal, Outcome
from gfe_study.study.plan import Job
from gfe_study.study.storage import is_url

if TYPE_CHECKING:
    from gfe_study.study.driver import Options


@dataclass(frozen=True)
class Finished:
    """A finished trial of another study."""

    study: str
    points: list[dict[str, float]]
    outcome: Outcome
    folder: Path

    def copy_files(self, folder: Path) -> None:
        """Copy the kept files and the picture of reconstructions, if they exist."""
        for name in (*names.KEPT_FILES, names.RECONSTRUCTION):
            if (self.folder / name).exists():
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.folder / name, folder / name)


def usable(found: Mapping[str, Finished], job: Job, journal: Journal) -> Finished | None:
    """Return the finished trial that replaces a job; None if the job must run.

    A job must run if it has already begun here or was requested again. A trial with a budget in seconds is reused only
    on the machine that ran it, because another machine gets further in the same time.
    """
    there = found.get(job.fingerprint)
    if there is None or journal.points.get(job.fingerprint) or job.fingerprint in journal.again:
        return None
    elsewhere = there.outcome.run.get(names.HOST) != socket.gethostname()
    return None if elsewhere and job.trial.budget.seconds is not None else there


def finished_elsewhere(study_folder: Path, options: Options) -> dict[str, Finished]:
    """Return the finished trials of the studies in the same storage, by fingerprint; empty if reuse is off."""
    found: dict[str, Finished] = {}
    if not options.reuse or is_url(options.storage):
        return found
    for path in sorted(study_folder.parent.glob(f"*/{JOURNAL_FILE}")):
        if path.parent == study_folder:
            continue
        try:
            journal = Journal.read(path.parent)
        except InputError:
            continue  # damaged: that study will report it
        for name, outcome in journal.outcomes.items():
            if outcome.state == FINISHED and not outcome.origin and journal.points.get(name):
                folder = path.parent / names.TRIALS_FOLDER / name
                found[name] = Finished(path.parent.name, journal.points[name], outcome, folder)
    return found
