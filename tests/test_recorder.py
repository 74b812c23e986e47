"""The journal is written first; the store receives what it missed once it answers again."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from stores import free_port, fresh, server

from gfe_study import names
from gfe_study.config import Study, find_space
from gfe_study.metrics import DIVERGED, IMAGES_SEEN, VAL_LOSS
from gfe_study.study.journal import FAILED, FINISHED, Journal, Outcome
from gfe_study.study.plan import Job, Plan
from gfe_study.study.recorder import Recorder
from gfe_study.tracking.client import Tracker


def point(images: int) -> dict[str, float]:
    return {IMAGES_SEEN: float(images), VAL_LOSS: 1 / images, DIVERGED: 0.0}


def planned(journal: Journal) -> tuple[Plan, Job]:
    plan = Plan.make(Study.load(find_space("smoke")), "0" * 64, journal)
    (job,) = plan.add(0, plan.study.start_points()[0])
    return plan, job


def opened(uri: str) -> Tracker:
    tracker = Tracker("smoke", uri)
    tracker.open_study({}, "?", {})
    return tracker


def stored(uri: str, tracker: Tracker, role: str = names.ROLE_TRIAL) -> dict[str, tuple[str, list[int]]]:
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([tracker.experiment_id], f"tags.{names.ROLE} = '{role}'")
    return {
        run.data.tags[names.FINGERPRINT]: (
            run.info.status,
            [entry.step for entry in client.get_metric_history(run.info.run_id, VAL_LOSS)],
        )
        for run in runs
    }


def reach(recorder: Recorder, job: Job, *images: int) -> None:
    recorder.plan.journal.record_points(job.fingerprint, [point(each) for each in images])
    recorder.changed(job)


def end(recorder: Recorder, job: Job, outcome: Outcome) -> None:
    recorder.plan.journal.record_outcome(job.fingerprint, outcome)
    recorder.changed(job)


def test_the_journal_refills_an_empty_store(tmp_path: Path) -> None:
    first, second = (fresh(tmp_path / f"{name}.db") for name in ("first", "second"))
    with Journal.open(tmp_path / "study") as journal:
        plan, job = planned(journal)
        recorder = Recorder(plan, opened(first), {}, lambda _: 0.0, print)
        recorder.changed(job)
        reach(recorder, job, 32)
        reach(recorder, job, 32, 64)
        end(recorder, job, Outcome(FINISHED))
        assert recorder.close(interrupted=False)
        tracker = opened(second)
        assert Recorder(plan, tracker, {}, lambda _: 0.0, print).close(interrupted=False)
    assert stored(second, tracker) == {job.fingerprint: ("FINISHED", [32, 64])}


def test_a_second_try_continues_the_same_run(tmp_path: Path) -> None:
    """The failure of the first try is a tag."""
    uri = fresh(tmp_path / "store.db")
    with Journal.open(tmp_path / "study") as journal:
        plan, job = planned(journal)
        tracker = opened(uri)
        recorder = Recorder(plan, tracker, {}, lambda _: 0.0, print)
        recorder.changed(job)
        reach(recorder, job, 32)
        end(recorder, job, Outcome(FAILED, "MemoryError: no more"))
        recorder.flush()
        (run,) = tracker.client.search_runs([tracker.experiment_id], f"tags.{names.FAILURE} = 'MemoryError: no more'")
        assert run.info.status == "FAILED"
        recorder.changed(job)
        reach(recorder, job, 32, 64)
        end(recorder, job, Outcome(FINISHED))
        assert recorder.close(interrupted=False)
    assert stored(uri, tracker) == {job.fingerprint: ("FINISHED", [32, 64])}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_points_outlast_a_server_that_is_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are delivered later, in their order."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    problems: list[str] = []
    with Journal.open(tmp_path / "study") as journal:
        plan, job = planned(journal)
        with server(tmp_path, port):
            tracker = opened(uri)
            recorder = Recorder(plan, tracker, {}, lambda _: 0.0, problems.append)
            recorder.changed(job)
            reach(recorder, job, 32)
            recorder.flush()
        reach(recorder, job, 64)
        recorder.flush()
        reach(recorder, job, 128)
        recorder.flush()
        assert len(problems) == 1
        assert "kept in the journal" in problems[0]
        with server(tmp_path, port):
            reach(recorder, job, 256)
            recorder.flush()
            end(recorder, job, Outcome(FINISHED))
            assert recorder.close(interrupted=False)
            assert stored(uri, tracker) == {job.fingerprint: ("FINISHED", [32, 64, 128, 256])}


def test_runs_that_no_longer_belong_are_closed(tmp_path: Path) -> None:
    uri = fresh(tmp_path / "store.db")
    with Journal.open(tmp_path / "study") as journal:
        _, job = planned(journal)
        plan = Plan.make(Study.load(find_space("smoke")), "0" * 64, journal)
        recorder = Recorder(plan, opened(uri), {}, lambda _: 0.0, print)
        recorder.changed(job)
        recorder.flush()
        journal.record_points(job.fingerprint, [point(32)])  # killed before it was delivered
        other = Plan.make(Study.load(find_space("smoke"), {"model": {"latent_dim": 9}}), "0" * 64, journal)
        tracker = opened(uri)
        assert Recorder(other, tracker, {}, lambda _: 0.0, print).close(interrupted=False)
    assert stored(uri, tracker) == {}
    assert stored(uri, tracker, names.ROLE_FORMER) == {job.fingerprint: ("KILLED", [32])}
