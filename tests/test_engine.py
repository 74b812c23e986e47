"""The engine under random histories: no trial is lost, none ends twice, and the same messages give the same journal."""

from __future__ import annotations

import copy
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from gfe_study import names
from gfe_study.config import InputError, Study
from gfe_study.io.storage import Mirror
from gfe_study.metrics import DIVERGED, IMAGES_SEEN, VAL_LOSS
from gfe_study.study import trial_run
from gfe_study.study.engine import MAX_ATTEMPTS, Engine, Snapshot, declare
from gfe_study.study.events import NAMES, Again, Ended, Reached, Record, Retried, Reused, read_record
from gfe_study.study.journal import Journal
from gfe_study.study.plan import Plan
from gfe_study.study.trial_run import FINAL, Event, Status, TrialRun

LIMIT_S, BUDGET, SLOTS = 10.0, 96, 2
TINY = {
    "preset": "paper",
    "solver": {"name": "amd", "max_nfe": 4},
    "model": {"hidden": [4], "latent_dim": 2},
    "data": {"name": "digits"},
    "eval": {"schedule": [32, 64]},
}


def declared(**more: Any) -> Study:
    given = {"question": "?", "fixed": TINY, "budget": {"images": BUDGET}, "hang_seconds": LIMIT_S, **more}
    return Study.build(given, "engine.yaml")


SEARCH: dict[str, Any] = {"nuisance": {"optim.lr": {"loguniform": [1e-4, 1e-2]}}, "sampler": "random"}
STUDIES = {
    "comparison": declared(scientific={"arms": {"a": {}, "b": {"optim.lr": 1e-3}}}, seeds=2),
    "search": declared(**SEARCH, trials=3, asha={"grace_images": 32, "reduction": 2}),
    "two stages": declared(**SEARCH, trials=2, scheduler="none", then={"best": 1, "seeds": 2}),
}


class MemoryJournal(Journal):
    """A journal whose file is a list of lines, and whose disk may be full."""

    def _append(self, record: Record) -> None:
        if self.full:
            raise InputError("the disk is full")
        line = json.dumps({"event": NAMES[type(record)], **asdict(record)})
        self.lines.append(line)
        self._apply(read_record(line.encode()))

    @classmethod
    def of(cls, lines: list[str]) -> MemoryJournal:
        journal = cls(Mirror(Path("nowhere")))
        journal.lines, journal.full = [], False
        for line in lines:
            journal.lines.append(line)
            journal._apply(read_record(line.encode()))
        return journal

    lines: list[str]
    full: bool


class Silent:
    """An observer and a sink that look away."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class Start:
    """One start of a study: the engine, and the messages that it was sent, to be sent again."""

    def __init__(self, study: Study, lines: list[str]) -> None:
        self.now = 0.0
        self.journal = MemoryJournal.of(lines)
        self.plan = Plan.make(study, "0" * 64, self.journal)
        declare(self.plan)
        self.engine = Engine(self.plan, Silent(), Silent(), lambda: self.now)
        if not self.engine.take_over():
            self.engine.begin(SLOTS, self.now)
        self.messages: list[tuple[str, tuple[Any, ...], dict[str, Any], Any]] = []

    def send(self, message: str, *args: Any, **named: Any) -> Any:
        answer = self._answer(message, args, named)
        self.messages.append((message, copy.deepcopy(args), named, answer))
        return answer

    def _answer(self, message: str, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if message == "wait":
            self.now += args[0]
            return None
        if message == "fill disk":
            self.journal.full = True
            return None
        answer = getattr(self.engine, message)(*args, **named)
        return (answer.job.fingerprint, answer.attempts) if isinstance(answer, TrialRun) else answer

    def replayed(self, study: Study, lines: list[str]) -> Start:
        again = Start(study, lines)
        for message, args, named, answer in self.messages:
            assert again.send(message, *args, **named) == answer, message
        return again


def point(images: int) -> dict[str, float]:
    return {IMAGES_SEEN: float(images), VAL_LOSS: 1 / images, DIVERGED: 0.0}


def test_first_steps_do_not_decide_the_time_left() -> None:
    """The second image took 10 s, the next 498 take 5: 15 s are left, not 10,000."""
    left: list[float | None] = []

    class Watching(Silent):
        def progress(self, snapshot: Snapshot) -> None:
            left.append(snapshot.remaining_seconds)

    start = Start(Study.build({"question": "?", "fixed": {"budget": {"images": 1000}}}, "mine.yaml"), [])
    start.engine._observer = Watching()
    name, attempt = start.send("next_run")
    start.send("wait", 1.0)
    start.send("placed", name, attempt, {})
    start.send("reported", name, attempt, [point(1)], done=False)
    start.send("wait", 10.0)
    start.send("reported", name, attempt, [point(2)], done=False)
    assert set(left) == {None}
    start.send("wait", 5.0)
    start.send("reported", name, attempt, [point(500)], done=False)
    assert left[-1] == pytest.approx(15.0, rel=0.01)


NINE: dict[str, Any] = {"nuisance": {"optim.lr": {"loguniform": [1e-4, 1e-2]}}, "trials": 9, "scheduler": "none"}


@pytest.mark.parametrize(("size", "seconds"), [({"seeds": 5}, 15.0), (NINE, 35.0)])
def test_trials_that_wait_are_part_of_the_time_left(size: dict[str, Any], seconds: float) -> None:
    """Two took 10 s: the other three, or seven, take it too, two at a time, known or yet to be chosen."""
    left: list[float | None] = []

    class Watching(Silent):
        def progress(self, snapshot: Snapshot) -> None:
            left.append(snapshot.remaining_seconds)

    start = Start(Study.build({"question": "?", "fixed": {"budget": {"images": 10}}, **size}, "mine.yaml"), [])
    start.engine._observer = Watching()
    runs = [start.send("next_run") for _ in range(SLOTS)]
    for name, attempt in runs:
        start.send("placed", name, attempt, {})
    start.send("wait", 10.0)
    for name, attempt in runs:
        start.send("reported", name, attempt, [point(10)], done=True)
        assert left[-1] == pytest.approx(seconds)
    start.send("next_run")
    assert left[-1] == pytest.approx(seconds)


def test_a_trial_tells_where_all_attempts_ran() -> None:
    """Host, device, threads and trials side by side: by these its seconds are compared, and reused."""
    first = {names.HOST: "h1", names.DEVICE: "cpu (A)", names.GPUS: "", names.THREADS: "1", "pid": "7"}
    second = {**first, names.HOST: "h2", names.DEVICE: "cpu (B)", names.THREADS: "2", "pid": "8"}
    start = Start(Study.build({"question": "?", "fixed": {"budget": {"images": 10}}}, "mine.yaml"), [])
    name, attempt = start.send("next_run")
    start.send("placed", name, attempt, first)
    start.send("lost", name, attempt, "gone")
    name, attempt = start.send("next_run")
    start.send("placed", name, attempt, second)
    start.send("reported", name, attempt, [point(10)], done=True)
    assert start.journal.outcomes[name].run == {
        names.HOST: "h1; h2",
        names.DEVICE: "cpu (A); cpu (B)",
        names.THREADS: "1; 2",
        names.SIDE_BY_SIDE: str(SLOTS),
    }


class Backend(RuleBasedStateMachine):
    """A backend that loses workers, repeats itself and comes late; it keeps its own account of what must follow."""

    study: Study

    @initialize()
    def begin(self) -> None:
        self.placed: dict[tuple[str, int], bool] = {}
        """The attempts that run by this account, and whether they are placed."""
        self.heard: dict[tuple[str, int], float] = {}
        self.seen: list[tuple[str, int]] = []
        self.expected: dict[str, str] = {}
        self.handed_out: Counter[str] = Counter()
        self.lines: list[str] = []
        self.num_read = 0
        self.outcomes: dict[str, str] = {}
        self.points: dict[str, float] = {}
        self.start = Start(self.study, [])

    def _restart(self) -> None:
        """The process ends at any moment; the next start finds what the journal holds."""
        self.lines = list(self.start.journal.lines)
        self.placed, self.seen = {}, []
        self.handed_out.clear()
        self.start = Start(self.study, self.lines)

    def _choose(self, placed: bool, which: int) -> tuple[str, int] | None:
        running = [attempt for attempt, there in self.placed.items() if there == placed]
        return running[which % len(running)] if running else None

    def _ended(self, attempt: tuple[str, int], state: str) -> None:
        del self.placed[attempt]
        if not self.start.engine.broken:
            assert attempt[0] not in self.expected, "a trial ended twice"
            self.expected[attempt[0]] = state

    @rule(places=st.booleans())
    def ask(self, places: bool) -> None:
        free = len(self.placed) < SLOTS
        attempt = self.start.send("next_run")
        if attempt is None:
            return
        assert free, "more trials than slots"
        assert attempt not in self.seen, "an attempt was handed out twice"
        if self.expected.get(attempt[0]) == "failed":
            del self.expected[attempt[0]]  # a start after the one in which it failed
            assert self.handed_out[attempt[0]] == 0, "a failed trial was handed out again"
        self.handed_out[attempt[0]] += 1
        self.placed[attempt] = False
        self.seen.append(attempt)
        if places:
            self._place(attempt)

    def _place(self, attempt: tuple[str, int]) -> None:
        self.start.send("placed", *attempt, {names.HOST: "h", "pid": "1"})
        self.placed[attempt] = True
        self.heard[attempt] = self.start.now

    @rule(which=st.integers(0, 3))
    def place(self, which: int) -> None:
        attempt = self._choose(False, which)
        if attempt is not None:
            self._place(attempt)

    @rule(which=st.integers(0, 3), images=st.sampled_from([32, 64, BUDGET]), fails=st.booleans())
    def report(self, which: int, images: int, fails: bool) -> None:
        attempt = self._choose(True, which)
        if attempt is None:
            return
        done, failure = images == BUDGET, "it raised" if fails and images == 64 else None
        points = [point(each) for each in (32, 64, BUDGET) if each <= images]
        self.heard[attempt] = self.start.now
        stops = self.start.send("reported", *attempt, points, done=done or failure is not None, failure=failure)
        if failure is not None:
            self._ended(attempt, "failed")
        elif done:
            self._ended(attempt, "finished")
        elif stops:
            self._ended(attempt, "stopped")
            assert self.study.stops_early or self.start.engine.broken

    @rule(which=st.integers(0, 3), placed=st.booleans(), times=st.sampled_from([1, 1, 1, 2, MAX_ATTEMPTS]))
    def lose(self, which: int, placed: bool, times: int) -> None:
        """A worker is lost, perhaps several times in a row."""
        for time in range(times):
            if time > 0:
                self.ask(places=placed)
            attempt = self._choose(placed, which)
            if attempt is not None:
                self._lose(attempt)

    def _lose(self, attempt: tuple[str, int]) -> None:
        self.start.send("lost", *attempt, "its process was killed")
        if attempt[1] == MAX_ATTEMPTS:
            self._ended(attempt, "failed")
        else:
            del self.placed[attempt]

    @rule(which=st.integers(0, 3), luck=st.integers(0, 3))
    def fail_to_start(self, which: int, luck: int) -> None:
        """A worker cannot even load what runs the trial."""
        attempt = self._choose(False, which) if luck == 3 else None
        if attempt is not None:
            self.start.send("reported", *attempt, [], done=True, failure="it cannot be loaded")
            self._ended(attempt, "failed")

    @rule(which=st.integers(0, 3), kind=st.sampled_from(["reported", "done", "raised"]))
    def report_late(self, which: int, kind: str) -> None:
        failure = "late" if kind == "raised" else None
        self._late("reported", which, [point(32), point(64), point(BUDGET)], done=kind != "reported", failure=failure)

    @rule(which=st.integers(0, 3))
    def place_late(self, which: int) -> None:
        self._late("placed", which, {names.HOST: "late"})

    @rule(which=st.integers(0, 3))
    def lose_late(self, which: int) -> None:
        self._late("lost", which, "late")

    def _late(self, message: str, which: int, *args: Any, **named: Any) -> None:
        """A message of an attempt that is over changes nothing."""
        late = [attempt for attempt in self.seen if attempt not in self.placed]
        if late:
            before = len(self.start.journal.lines)
            self.start.send(message, *late[-1 - which % len(late)], *args, **named)
            assert len(self.start.journal.lines) == before, "a late message was recorded"

    @rule(seconds=st.sampled_from([1.0, LIMIT_S / 2, 1.1 * LIMIT_S]))
    def wait(self, seconds: float) -> None:
        self.start.send("wait", seconds)
        silent = [
            attempt
            for attempt, there in self.placed.items()
            if there and self.start.now - self.heard[attempt] > LIMIT_S and not self.start.engine.broken
        ]
        assert len(self.start.send("tick")) == min(len(silent), 1 if self.start.journal.full else len(silent))
        for attempt in silent:
            self._ended(attempt, "failed")

    @rule(luck=st.integers(0, 5))
    def interrupt(self, luck: int) -> None:
        if luck == 5:
            self._restart()

    @rule(luck=st.integers(0, 5))
    def run_out_of_disk(self, luck: int) -> None:
        if luck == 5:
            self.start.send("fill disk")

    @invariant()
    def the_journal_tells_what_happened(self) -> None:
        outcomes, points = self.outcomes, self.points
        unread = self.start.journal.lines[self.num_read :]
        self.num_read += len(unread)
        for line in unread:
            record = read_record(line.encode())
            match record:
                case Ended():
                    assert record.fingerprint not in outcomes, "two outcomes"
                    outcomes[record.fingerprint] = record.state
                case Retried():
                    assert outcomes.pop(record.fingerprint) == "failed"
                case Reached():
                    assert record.fingerprint not in outcomes, "points after the end"
                    for reached in record.points:
                        assert reached[IMAGES_SEEN] > points.get(record.fingerprint, 0.0)
                        points[record.fingerprint] = reached[IMAGES_SEEN]
                case Again() | Reused():
                    raise AssertionError(line)
        if not self.start.engine.broken:
            assert outcomes == self.expected
        for fingerprint, count in self.handed_out.items():
            assert count <= MAX_ATTEMPTS, fingerprint

    @invariant()
    def the_engine_agrees(self) -> None:
        if self.start.engine.broken:
            return
        running = {attempt[0]: there for attempt, there in self.placed.items()}
        for fingerprint, run in self.start.engine.runs.items():
            if fingerprint in running:
                assert run.status is (Status.RUNNING if running[fingerprint] else Status.STARTING)
            else:
                final = fingerprint in self.expected and self.handed_out[fingerprint] > 0
                assert (run.status in FINAL) is final
                assert final or run.status is Status.QUEUED

    def teardown(self) -> None:
        """Whatever has happened, the rest runs to its end, and every trial of the study has its outcome."""
        if not hasattr(self, "start"):
            return
        again = self.start.replayed(self.study, self.lines)
        assert again.journal.lines == self.start.journal.lines, "the same messages gave another journal"
        self._restart()
        for _ in range(40):
            if self.start.engine.done:
                break
            self.ask(places=False)
            for attempt, there in list(self.placed.items()):
                if not there:
                    self.start.send("placed", *attempt, {names.HOST: "h"})
                self.start.send("reported", *attempt, [point(32), point(64), point(BUDGET)], done=True)
                self._ended(attempt, "finished")
        assert self.start.engine.done, "a trial is lost"
        self.the_journal_tells_what_happened()
        plan = self.start.plan
        assert len(plan.jobs) == plan.total
        assert set(plan.jobs) <= set(self.expected)
        ended = Plan.make(self.study, "0" * 64, MemoryJournal.of(self.start.journal.lines))
        assert not ended.missing()
        assert ended.membership() == plan.membership() == self.start.journal.membership


def histories(study: Study, count: int) -> None:
    settled = settings(
        max_examples=count,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    machine = type("BackendOfStudy", (Backend,), {"study": study})
    run_state_machine_as_test(machine, settings=settled)


@pytest.mark.parametrize(("study", "count"), [("comparison", 1000), ("search", 500), ("two stages", 500)])
def test_random_histories(study: str, count: int) -> None:
    histories(STUDIES[study], count)


MUTANTS: dict[str, Any] = {
    "a trial that is lost before it starts stays away": {(Status.STARTING, Event.LOSE): None},
    "a lost trial counts as failed": {(Status.RUNNING, Event.LOSE): Status.FAILED},
    "a complete trial counts as stopped": {(Status.RUNNING, Event.COMPLETE): Status.STOPPED},
    "a finished trial ends again": {(Status.FINISHED, Event.COMPLETE): Status.FINISHED},
    "a waiting trial can be placed": {(Status.QUEUED, Event.PLACE): Status.RUNNING},
    "a hanging trial goes on": {(Status.RUNNING, Event.HANG): None},
    "a trial that gave up waits": {(Status.RUNNING, Event.GIVE_UP): None},
    "a trial that cannot start is waited for": {(Status.STARTING, Event.RAISE): None},
    "a trial that raises goes on": {(Status.RUNNING, Event.RAISE): None},
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_of_the_table_is_found(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {**trial_run.TRANSITIONS, **MUTANTS[mutant]}
    monkeypatch.setattr(trial_run, "TRANSITIONS", {key: after for key, after in table.items() if after is not None})
    with pytest.raises((AssertionError, KeyError)):
        histories(STUDIES["comparison"], 1000)


def test_no_transition_leaves_a_final_status() -> None:
    assert not [status for status, _ in trial_run.TRANSITIONS if status in FINAL]
