"""Trials that other studies of the same storage have already finished."""

from __future__ import annotations

import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from gfe_study import names
from gfe_study.config import InputError, Trial
from gfe_study.study.journal import FINISHED, JOURNAL_FILE, Journal, Outcome
from gfe_study.study.plan import TRIALS_FOLDER


@dataclass(frozen=True)
class Finished:
    """A finished trial of another study."""

    study: str
    points: list[dict[str, float]]
    outcome: Outcome
    folder: Path

    def counts_for(self, trial: Trial) -> bool:
        """Whether the trial would be the same here: one whose budget is told in seconds, on this machine only."""
        return trial.budget.seconds is None or self.outcome.run.get(names.HOST) == socket.gethostname()

    def copy_files(self, folder: Path) -> None:
        """Copy the best decoder and the picture, where they were kept."""
        for name in (names.BEST_CHECKPOINT, names.RECONSTRUCTION):
            if (self.folder / name).exists():
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.folder / name, folder / name)


def finished_elsewhere(study_folder: Path) -> dict[str, Finished]:
    """Finished trials, by fingerprint, of the studies that lie beside a study's folder."""
    found: dict[str, Finished] = {}
    for path in sorted(study_folder.parent.glob(f"*/{JOURNAL_FILE}")):
        if path.parent == study_folder:
            continue
        try:
            journal = Journal.read(path.parent)
        except InputError:
            continue  # a damaged journal is its own study's affair
        for name, outcome in journal.outcomes.items():
            if outcome.state == FINISHED and not outcome.origin and journal.points.get(name):
                folder = path.parent / TRIALS_FOLDER / name
                found[name] = Finished(path.parent.name, journal.points[name], outcome, folder)
    return found
