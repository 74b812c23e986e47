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
        """Copy the best decoder and the picture, where they were kept."""
        for name in (*names.KEPT_FILES, names.RECONSTRUCTION):
            if (self.folder / name).exists():
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.folder / name, folder / name)


def usable(found: Mapping[str, Finished], job: Job, journal: Journal) -> Finished | None:
    """The finished trial that a job need not be run for; None if there is none.

    A job that has begun here, or is to be run again, is run; one whose budget is told in seconds is the same on the
    machine that ran it only.
    """
    there = found.get(job.fingerprint)
    if there is None or journal.points.get(job.fingerprint) or job.fingerprint in journal.again:
        return None
    elsewhere = there.outcome.run.get(names.HOST) != socket.gethostname()
    return None if elsewhere and job.trial.budget.seconds is not None else there


def finished_elsewhere(study_folder: Path, options: Options) -> dict[str, Finished]:
    """Finished trials, by fingerprint, of the studies that lie beside a study's folder, if they are to count."""
    found: dict[str, Finished] = {}
    if not options.reuse or is_url(options.storage):
        return found
    for path in sorted(study_folder.parent.glob(f"*/{JOURNAL_FILE}")):
        if path.parent == study_folder:
            continue
        try:
            journal = Journal.read(path.parent)
        except InputError:
            continue  # a damaged journal is its own study's affair
        for name, outcome in journal.outcomes.items():
            if outcome.state == FINISHED and not outcome.origin and journal.points.get(name):
                folder = path.parent / names.TRIALS_FOLDER / name
                found[name] = Finished(path.parent.name, journal.points[name], outcome, folder)
    return found
