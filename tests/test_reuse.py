"""Which finished trials of other studies stand in for a study's own."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from gfe_study import names
from gfe_study.config import Study
from gfe_study.io.storage import Mirror
from gfe_study.metrics import IMAGES_SEEN, VAL_LOSS
from gfe_study.study.journal import FAILED, FINISHED, Journal, Outcome
from gfe_study.study.options import Options
from gfe_study.study.plan import Job, Plan
from gfe_study.study.reuse import finished_elsewhere, reusable, this_machine, usable

HERE = {names.HOST: "here", names.DEVICE: "cpu (A)", names.THREADS: "1"}


def job_with(budget: dict[str, Any], folder: Path) -> tuple[Job, Journal]:
    journal = Journal(Mirror(folder))
    plan = Plan.make(Study.build({"question": "?", "budget": budget}, "mine.yaml"), "0" * 64, journal)
    (job,) = plan.jobs.values()
    return job, journal


def elsewhere(folder: Path, job: Job, outcome: Outcome) -> None:
    with Journal.open(folder / "other") as journal:
        journal.record_points(job.fingerprint, [{IMAGES_SEEN: 64.0, VAL_LOSS: 0.5}])
        journal.record_outcome(job.fingerprint, outcome)


@pytest.mark.parametrize(
    ("machine", "reused"),
    [
        (HERE, True),
        (HERE | {names.HOST: "there"}, False),
        (HERE | {names.DEVICE: "NVIDIA H100"}, False),
        (HERE | {names.THREADS: "2"}, False),
        (None, False),
    ],
)
def test_seconds_are_reused_on_the_same_machine(tmp_path: Path, machine: dict[str, str] | None, reused: bool) -> None:
    job, journal = job_with({"seconds": 5}, tmp_path / "mine")
    elsewhere(tmp_path, job, Outcome(FINISHED, run={**HERE, names.SIDE_BY_SIDE: "2"}))
    found = finished_elsewhere(tmp_path / "mine", Options(str(tmp_path)))
    assert (usable(found, job, journal, machine) is not None) is reused


@pytest.mark.parametrize("key", [names.HOST, names.DEVICE, names.THREADS])
@pytest.mark.parametrize("among", ["{}", "{}; another", "another; {}"])
def test_every_condition_of_this_machine_decides(tmp_path: Path, key: str, among: str) -> None:
    """A sweep and its plan ask `reusable`: elsewhere a trial gets further in its seconds, or less far."""
    options = Options(str(tmp_path))
    here = this_machine(options)
    assert here is not None
    assert here[names.HOST] == socket.gethostname()
    job, journal = job_with({"seconds": 5}, tmp_path / "mine")
    elsewhere(tmp_path, job, Outcome(FINISHED, run={**here, key: among.format(here[key])}))
    assert (reusable(journal, options)(job) is not None) is (among == "{}")
    elsewhere(tmp_path, job, Outcome(FINISHED, run={**here, key: "another"}))
    assert reusable(journal, options)(job) is None
    images_job, images_journal = job_with({"images": 64}, tmp_path / "images")
    elsewhere(tmp_path, images_job, Outcome(FINISHED, run={key: "another"}))
    assert reusable(images_journal, options)(images_job) is not None


def test_seconds_of_unknown_places_are_not_reused(tmp_path: Path) -> None:
    job, journal = job_with({"seconds": 5}, tmp_path / "mine")
    elsewhere(tmp_path, job, Outcome(FINISHED))
    found = finished_elsewhere(tmp_path / "mine", Options(str(tmp_path)))
    assert usable(found, job, journal, HERE) is None


def test_images_are_reused_from_everywhere(tmp_path: Path) -> None:
    job, journal = job_with({"images": 64}, tmp_path / "mine")
    elsewhere(tmp_path, job, Outcome(FINISHED, run={names.HOST: "there"}))
    options = Options(str(tmp_path))
    found = finished_elsewhere(tmp_path / "mine", options)
    assert usable(found, job, journal, None) is not None
    assert finished_elsewhere(tmp_path / "mine", Options(str(tmp_path), reuse=False)) == {}
    assert finished_elsewhere(tmp_path / "other", options) == {}
    journal.again.add(job.fingerprint)
    assert usable(found, job, journal, None) is None


def test_failed_trials_are_not_reused(tmp_path: Path) -> None:
    job, _ = job_with({"images": 64}, tmp_path / "mine")
    elsewhere(tmp_path, job, Outcome(FAILED, "no more"))
    assert finished_elsewhere(tmp_path / "mine", Options(str(tmp_path))) == {}


def test_a_cluster_is_no_known_machine() -> None:
    assert this_machine(Options(address="auto")) is None
    here = this_machine(Options(cpus_per_trial=2.5))
    assert here is not None
    assert here[names.THREADS] == "2"
    assert here[names.DEVICE].startswith("cpu (")
