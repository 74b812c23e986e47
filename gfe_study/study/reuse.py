"""Trials that other studies of the same storage have already finished."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from gfe_study import names
from gfe_study.config import InputError
from gfe_study.io.storage import Storage
from gfe_study.study.journal import FINISHED, JOURNAL_FILE, Journal, Outcome
from gfe_study.study.options import Options
from gfe_study.study.plan import Job
from gfe_study.study.runner import device_name, num_threads


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


def reusable(journal: Journal, options: Options) -> Callable[[Job], Finished | None]:
    """Return what tells the finished trial of another study that replaces a job of this one on this machine, if any."""
    found, machine = finished_elsewhere(journal.folder, options), this_machine(options)
    return lambda job: usable(found, job, journal, machine)


def usable(
    found: Mapping[str, Finished], job: Job, journal: Journal, machine: Mapping[str, str] | None
) -> Finished | None:
    """Return the finished trial that replaces a job; None if the job must run.

    A job must run if it has already begun here or was requested again. A trial with a budget in seconds is reused only
    if it ran on the same host and device model with the same number of threads, because another machine gets further
    in the same time.

    Args:
        found: finished trials of other studies, by fingerprint.
        job: the job.
        journal: the study's journal.
        machine: where the job would run, see `this_machine`; None if that is unknown.
    """
    there = found.get(job.fingerprint)
    if there is None or journal.points.get(job.fingerprint) or job.fingerprint in journal.again:
        return None
    if job.trial.budget.seconds is None:
        return there
    same = machine is not None and all(there.outcome.run.get(key) == value for key, value in machine.items())
    return there if same else None


def this_machine(options: Options) -> dict[str, str] | None:
    """Return the host, device model and number of threads of trials that run here; None if they run on a cluster."""
    if options.address is not None:
        return None
    device = "cuda" if options.gpus and torch.cuda.is_available() else "cpu"
    return {
        names.HOST: socket.gethostname(),
        names.DEVICE: device_name(device),
        names.THREADS: str(num_threads(options.cpus)),
    }


def finished_elsewhere(study_folder: Path, options: Options) -> dict[str, Finished]:
    """Return the finished trials of the studies in the same storage, by fingerprint; empty if reuse is off."""
    found: dict[str, Finished] = {}
    if not options.reuse or Storage(options.storage).is_url:
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
