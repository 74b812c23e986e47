"""The engine of a study: a state machine that decides which trial runs next and records what becomes of each.

The engine knows nothing of Ray, threads or clocks. A backend asks it for trials and tells it what happens to them;
the same messages at the same times lead to the same decisions and the same journal.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from gfe_study import names
from gfe_study.config import InputError
from gfe_study.data.split import Splits
from gfe_study.io.storage import about_uploads
from gfe_study.metrics import IMAGES_SEEN
from gfe_study.study.halving import Halving
from gfe_study.study.journal import FAILED, FINISHED, STOPPED, Outcome, State
from gfe_study.study.pace import Begun, Kind, Pace, share_of, spent
from gfe_study.study.plan import OVER, Job, Plan
from gfe_study.study.reuse import Finished
from gfe_study.study.searcher import LEAST_PARALLEL, Suggester, add_certain
from gfe_study.study.trial_run import FINAL, Event, Status, TrialRun

MAX_ATTEMPTS = 4
"""How often a trial that keeps losing its worker is started before it counts as failed."""
MOST_SHOWN = 8
"""Running trials that a snapshot names."""
PLACE_KEYS = (names.HOST, names.DEVICE, names.GPUS, names.THREADS, names.SIDE_BY_SIDE)
"""What the journal keeps of a trial's place: seconds are comparable only between equal ones."""
OUTCOMES: dict[Status, State] = {Status.FINISHED: FINISHED, Status.STOPPED: STOPPED, Status.FAILED: FAILED}


@dataclass(frozen=True)
class Running:
    """A trial that runs: its name, how far it is, and the values of the study's metric so far."""

    name: str
    images: int
    values: list[float]


@dataclass(frozen=True)
class Snapshot:
    """Progress of a study. Seconds count from this start; `remaining_seconds` is None until it can be estimated.

    `trials` are those that have run longest of the `running` ones.
    """

    total: int
    finished: int
    running: int
    failed: int
    best: float | None
    elapsed_seconds: float
    remaining_seconds: float | None
    trials: list[Running] = field(default_factory=list)


class Observer(Protocol):
    """Receives the progress of a study; the command line prints it."""

    def planned(self, plan: Plan, splits: Splits) -> None: ...

    def starting_ray(self) -> None: ...

    def ray_started(self, seconds: float, slots: int) -> None: ...

    def progress(self, snapshot: Snapshot) -> None: ...

    def problem(self, text: str) -> None: ...


class Sink(Protocol):
    """Follows the journal."""

    def changed(self, job: Job) -> None:
        """The journal holds that a trial was placed, reached points, or ended. Must return at once."""

    def added(self, fingerprints: Sequence[str]) -> None:
        """The journal holds that these trials belong to one more configuration. Must return at once."""

    def copy_files(self, job: Job, found: Finished) -> None:
        """Copy the files of a trial that is about to be reused from another study."""


class Engine:
    """Runs the trials of one start of a study, one message at a time.

    Args:
        plan: the study's plan; its journal is open for writing.
        sink: follows the journal.
        observer: receives progress and problems.
        clock: returns the time in seconds.
        reusable: returns the finished trial of another study that replaces a job, or None.

    Attributes:
        slots: how many trials may run at a time; a backend changes it as machines join and leave.
        stopped: why the study stops before its end; empty if it does not.
        broken: the error that ended the study because the journal could not be written.
        damaged: one line per damaged checkpoint.
        taken_over: study -> number of its finished trials that were reused.
        start_up_seconds: time from the start to the first trial on a worker.
        trial_seconds: time that trials have run, summed over all of them.
    """

    def __init__(
        self,
        plan: Plan,
        sink: Sink,
        observer: Observer,
        clock: Callable[[], float],
        reusable: Callable[[Job], Finished | None] = lambda job: None,
    ) -> None:
        self.plan = plan
        self.slots = 0
        self.stopped = ""
        self.broken: InputError | None = None
        self.damaged: list[str] = []
        self.taken_over: dict[str, int] = Counter()
        self.start_up_seconds = 0.0
        self.trial_seconds = 0.0
        self.runs: dict[str, TrialRun] = {}
        self._live: dict[str, TrialRun] = {}
        self._said: set[str] = set()
        self._sink, self._observer, self._clock, self._reusable = sink, observer, clock, reusable
        self._queue: deque[TrialRun] = deque()
        self._suggesters: dict[str, Suggester] = {}
        self._halving: Halving | None = None
        self._advanced = len(plan.study.stages()) == 1
        self._next_arm = 0
        self._max_live = 0
        self._started = clock()
        self._pace = Pace()
        self._waiting: dict[Kind, int] = Counter()

    @property
    def done(self) -> bool:
        """Whether no trial is left to start or restart, and none is running."""
        return not self._queue and not self._live and not self.plan.unasked() and self._advanced

    @contextmanager
    def _writing(self) -> Iterator[None]:
        # A trial whose record cannot be written keeps its status; the next start continues it.
        try:
            yield
        except InputError as error:
            self.broken = error

    # At the start

    def take_over(self) -> bool:
        """Queue the known trials and reuse finished ones; return whether nothing is left to run.

        Raises:
            InputError: the journal cannot be written.
        """
        for arm in self.plan.exhausted:
            self._say_exhausted(arm)
        self._enqueue(self.plan.missing())
        if not self._queue and not self.plan.unasked():
            self._advance()
        return self.done

    def begin(self, slots: int, started: float) -> None:
        """Prepare to hand out trials, at most `slots` at a time; `started` is when the study started, by the clock."""
        self.slots, self._started = slots, started
        study, journal = self.plan.study, self.plan.journal
        for job in self.plan.finished():
            if points := journal.points.get(job.fingerprint):
                self._pace.note(job.kind, spent(points[-1]))
        # Recorded once: with another number of slots, a later start must still make the same suggestions.
        if journal.parallel is None:
            journal.record_parallel(max(LEAST_PARALLEL, slots + 1))
        parallel = journal.parallel or LEAST_PARALLEL
        if study.nuisance:
            self._suggesters = {arm.name: Suggester(self.plan, arm.name, parallel) for arm in study.arms}
        if study.stops_early:
            budget = study.example(study.arms[0]).budget.images
            self._halving = Halving(study.asha, study.metric.name, study.metric.mode, budget)
            for name in self.plan.jobs:
                self._halving.record(name, journal.points.get(name, []))

    # What a backend asks and tells

    def next_run(self) -> TrialRun | None:
        """Return the next trial to start; None if no slot is free or none is ready (see `done`)."""
        if len(self._live) >= self.slots or self.stopped or self.broken:
            return None
        with self._writing():
            while not self._queue and self._ask():
                pass
            if self._queue:
                return self._hand_out(self._queue[0])
        return None

    def placed(self, fingerprint: str, attempt: int, place: dict[str, str]) -> None:
        """Report that a trial starts or continues on a worker; `place` has `PLACE_KEYS` and the backend's own keys."""
        run = self._heard(fingerprint, attempt, Event.PLACE)
        if run is None:
            return
        with self._writing():
            if not self.start_up_seconds:
                self.start_up_seconds = run.last_heartbeat - self._started
                self.plan.journal.record_start_up(self.start_up_seconds)
            kept = {**place, names.SIDE_BY_SIDE: str(self.slots)}
            self.plan.journal.record_placed(fingerprint, {key: kept[key] for key in PLACE_KEYS if kept.get(key)})
            run.place = place
            if run.first_placed is None:
                run.first_placed, run.share_before = run.last_heartbeat, self._share(run)
            run.move(Event.PLACE)
            self._sink.changed(run.job)

    def reported(
        self,
        fingerprint: str,
        attempt: int,
        points: list[dict[str, float]],
        problems: Sequence[str] = (),
        waiting: str = "",
        *,
        done: bool = False,
        failure: str | None = None,
    ) -> bool:
        """Report a trial's progress since its last report; return whether to stop its worker.

        Args:
            fingerprint, attempt: which trial, and which attempt of it.
            points: new points; those that are known already are skipped.
            problems: one line for each damaged checkpoint.
            waiting: why files of the trial wait to be uploaded; empty if none does.
            done: whether this is the trial's last report.
            failure: what the trial raised; None if nothing.
        """
        event = Event.RAISE if failure is not None else Event.COMPLETE if done else Event.REPORT
        run = self._heard(fingerprint, attempt, event)
        if run is None:
            return True
        self.damaged.extend(problems)
        for problem in problems:
            self._observer.problem(problem)
        self._say_waiting(run, waiting)
        with self._writing():
            if self.plan.journal.record_points(fingerprint, points):
                self._sink.changed(run.job)
            halved = self._halved(run, points) if event is Event.REPORT else None
            if halved is not None:
                self._end(run, Event.HALVE, halved)
            elif event is Event.REPORT:
                run.move(event)
            else:
                self._end(run, event, failure or "")
            self._show()
        return run.status in FINAL or self.broken is not None

    def say_once(self, problem: str) -> None:
        """Report a problem that does not end the study, unless it was reported before."""
        if problem not in self._said:
            self._said.add(problem)
            self._observer.problem(problem)

    def _say_waiting(self, run: TrialRun, waiting: str) -> None:
        """Say once that files wait, and once that none does any more."""
        before = any(other.waiting for other in self._live.values())
        run.waiting = waiting
        if before != any(other.waiting for other in self._live.values()):
            self._observer.problem(about_uploads(waiting))

    def lost(self, fingerprint: str, attempt: int, reason: str) -> None:
        """Report that a trial lost its process or node; it starts again until it has had `MAX_ATTEMPTS`."""
        event = Event.LOSE if attempt < MAX_ATTEMPTS else Event.GIVE_UP
        run = self._heard(fingerprint, attempt, event)
        if run is None:
            return
        if event is Event.GIVE_UP:
            with self._writing():
                self._end(run, event, reason)
                self._show()
            return
        run.move(event)
        del self._live[fingerprint]
        self._queue.appendleft(run)  # ahead of new trials: later suggestions may wait for its result
        self._waiting[run.job.kind] += 1
        self._observer.problem(f"{describe(run.job)} ({fingerprint}) lost its worker; it continues from its checkpoint")

    def tick(self) -> list[dict[str, str]]:
        """Fail trials that have not reported for `hang_seconds`; return where they run, to end them there."""
        now, limit = self._clock(), self.plan.study.hang_seconds
        places = []
        for run in list(self._live.values()):
            if run.after(Event.HANG) is not None and now - run.last_heartbeat > limit and self.broken is None:
                places.append(run.place)
                with self._writing():
                    self._end(run, Event.HANG, f"hung: no report for {limit:g} s (hang_seconds)")
                    self._show()
        return places

    def stop(self, reason: str) -> None:
        """Start no more trials, and say why; those that run are continued by the next start."""
        self.stopped = self.stopped or reason

    def keeps_warm(self, waiting: int) -> bool:
        """Return whether to keep this many idle workers alive for upcoming trials."""
        more = bool(self.plan.unasked()) or not self._advanced
        running = len(self._live) + waiting
        return more and not self.stopped and self.broken is None and running <= min(self.slots, self._max_live)

    # Transitions

    def _heard(self, fingerprint: str, attempt: int, event: Event) -> TrialRun | None:
        """Return the trial that a message is about; None if the message comes too late to change anything."""
        run = self.runs.get(fingerprint)
        if run is None or self.broken is not None or attempt != run.attempts or run.after(event) is None:
            return None
        run.last_heartbeat = self._clock()
        return run

    def _hand_out(self, run: TrialRun) -> TrialRun:
        outcome = self.plan.journal.outcomes.get(run.job.fingerprint)
        if outcome is not None and outcome.state == FAILED:
            self.plan.journal.record_retry(run.job.fingerprint)
        self._queue.popleft()
        self._waiting[run.job.kind] -= 1
        run.move(Event.HAND_OUT)
        self._live[run.job.fingerprint] = run
        self._max_live = max(self._max_live, len(self._live))
        self._show()
        return run

    def _end(self, run: TrialRun, event: Event, reason: str = "") -> None:
        fingerprint, after = run.job.fingerprint, run.after(event)
        assert after in FINAL, f"{event} ends no trial that is {run.status}"
        state = OUTCOMES[after]
        self.plan.journal.record_outcome(fingerprint, Outcome(state, reason, run=self._where(fingerprint)))
        run.move(event)
        del self._live[fingerprint]
        if run.first_placed is not None:
            seconds = self._clock() - run.first_placed
            self.trial_seconds += seconds
            if state != FAILED and run.share_before < 1:
                self._pace.note(run.job.kind, seconds / (1 - run.share_before))
        if state == FAILED:
            self._observer.problem(f"{describe(run.job)} ({fingerprint}) failed: {reason}")
        self._sink.changed(run.job)

    def _where(self, fingerprint: str) -> dict[str, str]:
        """Return where and how a trial ran; several values of a key if its attempts differ in it."""
        places = self.plan.journal.places.get(fingerprint, [])
        values = {key: list(dict.fromkeys(place.get(key, "") for place in places)) for key in PLACE_KEYS}
        return {key: "; ".join(filter(None, found)) for key, found in values.items() if any(found)}

    def _halved(self, run: TrialRun, points: list[dict[str, float]]) -> str | None:
        if self._halving is None or not points or run.job.stage != 0:
            return None
        return self._halving.stops(run.job.fingerprint, self.plan.journal.points[run.job.fingerprint])

    # New trials

    def _ask(self) -> bool:
        """Queue a suggestion of the search, or the second stage.

        Returns True if something was queued or an arm's space proved exhausted, so that the caller should try again.
        """
        arms = [arm.name for arm in self.plan.study.arms]
        for place in range(len(arms)):
            arm = arms[(self._next_arm + place) % len(arms)]
            if not self.plan.unasked(arm) or not self._suggesters[arm].ready():
                continue
            self._next_arm += place + 1
            number = self.plan.next_number(arm)
            params = self._suggesters[arm].ask(number)
            if params is None:
                self.plan.exhausted.add(arm)
                self._say_exhausted(arm)
            else:
                jobs = self.plan.add(number, params, arm)
                self._record_added((0, arm, number))
                self._enqueue(jobs)
            return True
        return self._advance()

    def _say_exhausted(self, arm: str) -> None:
        count = len(self.plan.configurations[0, arm])
        where = f"arm {arm!r}: " if arm else ""
        wanted = self.plan.study.configurations(arm)
        self._observer.problem(
            f"{where}the space holds only {count} of the {wanted} requested configurations; all of them are run"
        )

    def _advance(self) -> bool:
        if self._advanced or not self.plan.stage_over(0):
            return False
        self._advanced = True
        known = {(arm.name, number) for arm in self.plan.study.arms for number in self.plan.configurations[1, arm.name]}
        jobs = self.plan.advance()
        for arm in self.plan.study.arms:
            for number in self.plan.configurations[1, arm.name]:
                if (arm.name, number) not in known:  # also if it shares all of its trials with another arm
                    self._record_added((1, arm.name, number))
        self._enqueue(jobs)
        return True

    def _record_added(self, key: tuple[int, str, int]) -> None:
        stage, arm, number = key
        configuration = self.plan.configurations[stage, arm][number]
        self.plan.journal.record_configuration(configuration)
        self._sink.added(configuration.fingerprints)

    def _enqueue(self, jobs: list[Job]) -> None:
        for job in jobs:
            if self.plan.over(job.fingerprint) or job.fingerprint in self.runs:
                continue
            found = self._reusable(job)
            if found is None:
                self.runs[job.fingerprint] = TrialRun(job)
                self._queue.append(self.runs[job.fingerprint])
                self._waiting[job.kind] += 1
                continue
            outcome = Outcome(FINISHED, origin=found.study, run=found.outcome.run)
            self._sink.copy_files(job, found)
            self.plan.journal.record_reused(job.fingerprint, found.points, outcome)
            self._sink.changed(job)
            self.taken_over[found.study] += 1

    # Progress

    def _show(self) -> None:
        best = self.plan.best()
        self._observer.progress(
            Snapshot(
                total=self.plan.total,
                finished=self.plan.count(*OVER),
                running=len(self._live),
                failed=self.plan.count(FAILED),
                best=best[1] if best else None,
                elapsed_seconds=self._clock() - self._started,
                remaining_seconds=self._remaining_seconds(),
                trials=[self._running(run) for run in list(self._live.values())[:MOST_SHOWN]],
            )
        )

    def _running(self, run: TrialRun) -> Running:
        points, metric = self.plan.journal.points.get(run.job.fingerprint, []), self.plan.study.metric.name
        images = int(points[-1][IMAGES_SEEN]) if points else 0
        return Running(short_name(run.job), images, [point[metric] for point in points if metric in point])

    def _remaining_seconds(self) -> float | None:
        """From what trials of the same arm and stage took, and from the first one that runs until one has ended."""
        now = self._clock()
        waiting = Counter(self._waiting) + self.plan.unchosen()
        running = [
            Begun(run.job.kind, now - run.first_placed, self._share(run) - run.share_before, run.share_before)
            for run in self._live.values()
            if run.first_placed is not None
        ]
        waiting.update(run.job.kind for run in self._live.values() if run.first_placed is None)
        return self._pace.left(waiting, running, self.slots)

    def _share(self, run: TrialRun) -> float:
        """The share of a trial's budget that is spent."""
        points = self.plan.journal.points.get(run.job.fingerprint)
        return share_of(run.job.trial.budget, points[-1]) if points else 0.0


def describe(job: Job) -> str:
    """Name a trial: `trial 3 seed 0 of arm 'adjoint'`."""
    arm = f" of arm {job.arm!r}" if job.arm else ""
    return f"trial {job.number} seed {job.seed}{arm}"


def short_name(job: Job) -> str:
    """The same where there is little room: `adjoint #3 seed 0`."""
    return f"{job.arm} #{job.number} seed {job.seed}".strip()


def declare(plan: Plan) -> None:
    """Add the trials that depend on no result, and record which trials belong to the study as it is declared now.

    Raises:
        InputError: no configuration that the search drew is valid, or the journal cannot be written.
    """
    add_certain(plan)
    plan.journal.record_membership(plan.membership())
