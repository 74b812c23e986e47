"""The SLURM scripts of cluster/ in a SLURM of two nodes: warnings at any moment, lost workers, cancelled jobs."""

from __future__ import annotations

import math
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sweeps import children, finished_count, longer_space

from gfe_study import names
from gfe_study.study.journal import Journal
from services.slurm import Slurm, running_slurm, wait_for

TRIALS = 100
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with running_slurm(tmp_path_factory.mktemp("slurm")) as started:
        longer_space(started.project)
        yield started


def check_finished(folder: Path, study: str, trials: int) -> None:
    runs = children(folder, study)
    assert len(runs) == len({run.data.tags[names.FINGERPRINT] for run in runs}) == trials
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert finished_count(folder, study) == trials


def has_points(folder: Path, study: str) -> bool:
    """Whether a trial of the study is under way."""
    place = folder / "results" / study
    return place.exists() and bool(Journal.read(place).points)


def test_time_limit_requeues_and_study_ends(slurm: Slurm) -> None:
    """The limit is set once a trial is under way, to the next minute but one: the warning is then due at once."""
    study = ("longer.yaml", "--study", "limit", "--trials", str(TRIALS))
    job = slurm.submit("slurm.sh", *study, options=("--signal=B:TERM@100",))
    slurm.wait_for_output(job, "2 trials at a time")
    wait_for(lambda: has_points(slurm.project, "limit"), lambda: slurm.report(job))
    hours, minutes, seconds = map(int, slurm.field(job, "RunTime").split(":"))
    limit = math.ceil((hours * 3600 + minutes * 60 + seconds) / 60) + 1
    slurm.call("scontrol", "update", f"JobId={job}", f"TimeLimit={limit}")
    slurm.wait_for_output(job, f"job {job}: queued again")
    wait_for(lambda: slurm.field(job, "Restarts") == "1", lambda: slurm.report(job))
    slurm.call("scontrol", "update", f"JobId={job}", "TimeLimit=20")
    slurm.wait_for_end(job, "COMPLETED")
    assert slurm.field(job, "Restarts") == "1"
    assert "0 failed" in slurm.output(job)
    check_finished(slurm.project, "limit", TRIALS)


def test_warnings_while_starting_requeue(slurm: Slurm) -> None:
    """Then the job is cancelled in the middle of its sweep: it stays cancelled, and leaves no process."""
    job = slurm.submit("slurm.sh", "longer.yaml", "--study", "starting", "--trials", "40")
    for restarts, moment in enumerate([f"job {job}: starting Ray", "waiting for 1 more", "starting Ray …"]):
        slurm.wait_for_output(job, moment)
        slurm.warn(job)
        slurm.wait_for_output(job, f"job {job}: queued again", restarts + 1)
        wait_for(lambda: slurm.field(job, "Restarts") == str(restarts + 1), lambda: slurm.report(job))  # noqa: B023
    wait_for(lambda: has_points(slurm.project, "starting"), lambda: slurm.report(job))
    slurm.call("scancel", job)
    slurm.wait_for_end(job, "CANCELLED")
    wait_for(lambda: not slurm.processes(), lambda: "\n".join(slurm.processes().values()))
    time.sleep(5)  # longer than a requeued job is held back
    assert slurm.field(job, "JobState") == "CANCELLED"
    assert slurm.output(job).count("queued again") == 3


def test_workers_come_and_go(slurm: Slurm) -> None:
    """Three workers wait for their head; one is cancelled, the head is queued again, and the other two return to it."""
    array = slurm.submit("slurm-workers.sh", options=("--array=1-3",))
    workers = [f"{array}_{number}" for number in (1, 2, 3)]
    slurm.wait_for_output(workers[0], "waiting for a head")
    longer = ("--trials", "40", "--set", "budget.images=6144")  # far from done when the head is warned
    head = slurm.submit("slurm-head.sh", "longer.yaml", "--study", "array", *longer)
    for worker in workers:
        slurm.wait_for_output(worker, f"joining the Ray of job {head}")

    def finished(count: int) -> Callable[[], bool]:
        return lambda: finished_count(slurm.project, "array") >= count

    slurm.wait_for_output(head, "at a time")
    wait_for(finished(1), lambda: slurm.report(head))
    file = slurm.project / ".slurm-head"
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    number, address, token = file.read_text().split()
    assert (number, len(token)) == (head, 64)
    assert any(address in line for line in slurm.processes().values())
    assert not any(token in line for line in slurm.processes().values())

    slurm.call("scancel", workers[1])
    wait_for(finished(4), lambda: slurm.report(head))
    slurm.warn(head)
    slurm.wait_for_output(head, f"job {head}: queued again")
    slurm.wait_for_end(workers[1], "CANCELLED")
    slurm.wait_for_end(head, "COMPLETED")
    assert not file.exists()
    for worker in (workers[0], workers[2]):
        slurm.wait_for_end(worker, "COMPLETED")
        assert slurm.output(worker).count(f"joining the Ray of job {head}") >= 2
        assert f"the head, job {head}, has ended" in slurm.output(worker)
    assert token not in "".join(path.read_text() for path in slurm.project.glob("*.out"))
    check_finished(slurm.project, "array", 40)


def test_worker_without_head_gives_up(slurm: Slurm) -> None:
    worker = slurm.submit("slurm-workers.sh", HEAD_WAIT="2")
    slurm.wait_for_end(worker, "FAILED")
    assert slurm.field(worker, "ExitCode") == "1:0"
    (error,) = [line for line in slurm.output(worker).splitlines() if line.startswith("error")]
    assert error == "error: no head after 2 s; start one with sbatch cluster/slurm-head.sh SPACE"
    assert slurm.field(worker, "Restarts") == "0"
