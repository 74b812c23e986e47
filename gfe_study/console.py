"""What a person sees of a study on the terminal. Everything goes to standard error; results go to standard output."""

from __future__ import annotations

import math
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gfe_study import names
from gfe_study.analysis.verdict import Verdict
from gfe_study.config import Study
from gfe_study.config.options import IMAGES_WITHOUT_LIMIT
from gfe_study.data.base import Splits
from gfe_study.results import front, ranked, signs, verdict
from gfe_study.study.driver import Snapshot, describe
from gfe_study.study.forecast import Forecast
from gfe_study.study.journal import STOPPED
from gfe_study.study.plan import Plan
from gfe_study.study.recorder import settings
from gfe_study.study.sweep import Outcome

SECONDS_BETWEEN_LINES = 10.0
BEST_SHOWN = 5
BAR_WIDTH = 12
WIDE = 95


def duration(seconds: float | None) -> str:
    """Seconds as `1:05` or `2:03:04`."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number(value: Any) -> str:
    """A parameter or metric as a person wants to read it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class StudyView:
    """Follows a study: a live bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._snapshot: tuple[float, Snapshot] | None = None
        self._live = Live(
            get_renderable=lambda: Text(self._line()), console=console, refresh_per_second=2, transient=True
        )
        self._printed_at = 0.0
        self._printed = (-1, -1)

    def __enter__(self) -> StudyView:
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def planned(self, plan: Plan, splits: Splits) -> None:
        study, done = plan.study, len(plan.finished())
        trial = study.example(study.arms[0])
        self.console.print(f"[bold]{study.question}[/bold]", highlight=False)
        floor = splits.test_floor(trial.eval.test_images)
        self._say(
            f"{trial.data.name}: {len(splits.train):,} training, {len(splits.val):,} validation, "
            f"{len(splits.test):,} test images; entropy floor {floor:.4f} nats per pixel"
        )
        state = f"; {done} done already" if done else ""
        unfinished = [job for job in plan.jobs.values() if plan.state(job) == "unfinished"]
        state += f", {len(unfinished)} to be continued" if unfinished else ""
        self._say(f"{shape(study)}{state}")
        for hole in study.holes:
            self._say(f"left out: {hole.name}: {hole.reason}")
        if plan.orphaned:
            self._say(
                f"{len(plan.orphaned)} earlier trials belong to another version of this study: kept, and left out"
            )

    def starting_ray(self) -> None:
        self._say("starting Ray …")

    def ray_started(self, seconds: float, slots: int) -> None:
        self._say(f"Ray started in {seconds:.0f} s; {slots} trials at a time")
        if self.console.is_terminal:
            self._live.start()

    def progress(self, snapshot: Snapshot) -> None:
        self._snapshot = (time.monotonic(), snapshot)
        counts = (snapshot.finished, snapshot.failed)
        quiet = time.monotonic() - self._printed_at < SECONDS_BETWEEN_LINES
        if not self.console.is_terminal and (counts != self._printed or not quiet):
            self._say(f"trials {self._line()}")
            self._printed_at, self._printed = time.monotonic(), counts

    def _line(self) -> str:
        """Where the study is now, the clock running between reports."""
        if self._snapshot is None:
            return ""
        at, seen = self._snapshot
        since = time.monotonic() - at
        left = max(0.0, seen.remaining_seconds - since) if seen.remaining_seconds is not None else None
        filled = BAR_WIDTH * seen.finished // seen.total
        bar = f"{'━' * filled}{'╌' * (BAR_WIDTH - filled)} " if self.console.width >= WIDE else ""
        best = number(seen.best) if seen.best is not None else "–"
        return (
            f"{bar}{seen.finished}/{seen.total} done · {seen.running} running · {seen.failed} failed · "
            f"best {names.VAL_LOSS} {best} · {duration(seen.elapsed_seconds + since)} elapsed · {duration(left)} left"
        )

    def problem(self, text: str) -> None:
        self._say(f"[yellow]warning:[/yellow] {text}", markup=True)

    def _say(self, text: str, *, markup: bool = False) -> None:
        self.console.print(text, highlight=False, markup=markup, soft_wrap=True)


def shape(study: Study) -> str:
    """`4 arms × 12 trials × 3 seeds of 5,760 images, preset paper`."""
    counts = [study.configurations(arm) for arm in study.arms]
    parts = [f"{len(counts)} arms"] if study.scientific is not None else []
    if study.nuisance or not parts:
        parts.append(f"{counts[0]} trials" if len(set(counts)) == 1 else f"{min(counts)}–{max(counts)} trials")
    if study.seeds > 1:
        parts.append(f"{study.seeds} seeds")
    trial = study.example(study.arms[0])
    budget = trial.budget
    limits = [f"{budget.nfe:,} decoder evaluations"] if budget.nfe is not None else []
    limits += [f"{budget.seconds:g} seconds of training"] if budget.seconds is not None else []
    if budget.images < IMAGES_WITHOUT_LIMIT:
        limits.append(f"{budget.images:,} images")
    text = f"{' × '.join(parts)} of {' or '.join(limits)}, preset {trial.preset}"
    if study.stops_early:
        text += ", early stopping by successive halving"
    if study.then is not None:
        images = study.then.budget.images
        more = f" of {images:,} images" if images is not None else ""
        text += f"; then the best {study.then.best} of each × {study.then.seeds} seeds{more}"
    return text


def plan_table(study: Study, expected: Forecast) -> Table:
    """The trials of a plan, one a row."""
    arms = study.scientific is not None
    table = Table(box=None, pad_edge=False)
    for header in (*(["arm"] if arms else []), "#", "state", *study.nuisance, "seed", "fingerprint"):
        table.add_column(header, justify="left" if header in ("arm", "state", "fingerprint") else "right", no_wrap=True)
    for job, state in expected.trials:
        values = [number(job.params[key]) if key in job.params else "" for key in study.nuisance]
        first = [job.arm + (" (replicate)" if job.stage else "")] if arms else []
        table.add_row(*first, str(job.number), state, *values, str(job.seed), job.fingerprint)
    return table


def plan_lines(study: Study, expected: Forecast) -> list[str]:
    """What a plan comes to: trials, holes, images, time, disk and memory."""
    lines = [f"left out: {hole.name}: {hole.reason}" for hole in expected.holes]
    if expected.later:
        chooser = f"suggested by {study.sampler}" if study.then is None else "chosen by the search and for `then`"
        lines.append(f"and {expected.later} more, {chooser} from the results of these")
    if expected.orphaned:
        lines.append(f"{expected.orphaned} earlier trials belong to another version of this study: kept, and left out")
    taken = f", {expected.taken_over} finished in other studies" if expected.taken_over else ""
    to_go = f"; {expected.images:,} training images to go" if expected.images is not None else ""
    lines.append(f"{expected.total} trials, {expected.done} done{taken}{to_go}")
    if expected.seconds is None:
        lines.append("time: not known before a trial has finished (or without --no-probe)")
    else:
        told = f", told from {expected.told_from}" if expected.seconds else ""
        lines.append(
            f"time: about {duration(expected.seconds)} ({expected.seconds / 3600:.2f} hours) with {expected.slots} "
            f"trials at a time{told}"
        )
    lines.append(f"disk: about {expected.megabytes:.0f} MB")
    if expected.memory_megabytes is not None:
        lines.append(f"memory: about {expected.memory_megabytes / 1000:.1f} GB")
    return lines


def best_table(plan: Plan) -> Table:
    """The best trials of a study: final metrics, and the values of what was searched."""
    chosen = ranked(plan)
    stage = max((job.stage for job, _ in chosen), default=0)  # of unequal budgets, the last stage's
    rows = [(job, plan.journal.points[job.fingerprint][-1]) for job, _ in chosen if job.stage == stage][:BEST_SHOWN]
    wanted = (plan.study.metric.name, names.TEST_LOSS, names.MIXED_TEST_LOSS, names.NFE_FORWARD)
    metrics = [name for name in dict.fromkeys(wanted) if any(name in point for _, point in rows)]
    table = Table(title="Best trials (losses in nats per pixel)", title_justify="left", box=None, pad_edge=False)
    arms = plan.study.scientific is not None
    if arms:
        table.add_column("arm", no_wrap=True)
    for header in ("#", "seed", *metrics) if len(plan.study.seeds_of(stage)) > 1 else ("#", *metrics):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("settings")
    table.add_column("fingerprint", no_wrap=True)
    for job, point in rows:
        shown = [_metric(name, point.get(name)) for name in metrics]
        first = [*([job.arm] if arms else []), str(job.number)]
        seed = [str(job.seed)] if len(plan.study.seeds_of(stage)) > 1 else []
        table.add_row(*first, *seed, *shown, settings(job), job.fingerprint)
    return table


def _metric(name: str, value: float | None) -> str:
    if value is None:
        return "diverged" if name.endswith("_loss") else ""
    return f"{value:.4f}" if name.endswith("_loss") else f"{value:.1f}"


def verdict_table(verdict: Verdict) -> Table:
    """Arms against their references: means, paired differences with their intervals, costs, and the verdict."""
    percent = f"{100 * verdict.confidence:g} %"
    unit = "nats per pixel" if verdict.metric.endswith("_loss") else "nats"
    title = f"Verdict: {verdict.metric} ({unit}), {percent} intervals of differences paired by seed (Student's t)"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for header in ("arm", "seeds", "mean", f"difference [{percent}]", "p", "p Holm", "seconds ×", "nfe ×"):
        table.add_column(header, justify="left" if header == "arm" else "right", no_wrap=True)
    table.add_column("verdict")
    for row in verdict.rows:
        found = row.paired
        difference = ""
        if found is not None:
            between = f" [{found.low:+.5f}, {found.high:+.5f}]" if found.low is not None else ""
            difference = f"{found.difference:+.5f}{between}"
        table.add_row(
            row.arm,
            str(len(row.seeds)),
            f"{row.value.mean:.5f}",
            difference,
            f"{found.p_value:.2g}" if found is not None and found.p_value is not None else "",
            f"{row.p_holm:.2g}" if row.p_holm is not None else "",
            f"{row.seconds_ratio:.2f}" if row.seconds_ratio is not None else "",
            f"{row.nfe_ratio:.2f}" if row.nfe_ratio is not None else "",
            row.text,
        )
    return table


def front_table(plan: Plan) -> Table | None:
    """The Pareto front of a search with two objectives; None for other studies."""
    against = plan.study.metric.against
    if against is None:
        return None
    table = Table(title=f"Pareto front: {plan.study.metric.name} against {against}", title_justify="left", box=None)
    for header in ("arm", "#", plan.study.metric.name, against):
        table.add_column(header, justify="left" if header == "arm" else "right", no_wrap=True)
    table.add_column("settings")
    for job, first, second in front(plan):
        table.add_row(job.arm, str(job.number), f"{first:.4f}", number(second), settings(job))
    return table


def closing(outcome: Outcome, label: str, console: Console) -> None:
    """The end of a sweep: verdict, best trials, what went wrong, and what to type next."""
    plan = outcome.plan
    if plan.finished():
        judged, pareto_front = verdict(plan), front_table(plan)
        if judged is not None:
            console.print(verdict_table(judged))
            for text in judged.warnings:
                console.print(f"warning: {text}", highlight=False, markup=False, soft_wrap=True)
        else:
            console.print(best_table(plan))
        if pareto_front is not None:
            console.print(pareto_front)
    for sign in signs(plan):
        where = f"arm {sign.arm!r}: " if sign.arm else ""
        console.print(f"note: {where}{sign.text}", highlight=False, markup=False, soft_wrap=True)
    for line in _last_lines(outcome, label):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _last_lines(outcome: Outcome, label: str) -> list[str]:
    plan = outcome.plan
    done, failed = len(plan.finished()), outcome.failed
    diverged = sum(math.isinf(value) for _, value in ranked(plan))
    early = sum(plan.state(job) == STOPPED for job in plan.finished())
    told = [f"{diverged} of them diverged"] if diverged else []
    told += [f"{early} of them stopped early"] if early else []
    more = f" ({', '.join(told)})" if told else ""
    lines = [f"{done} of {plan.total} trials finished{more}, {len(failed)} failed"]
    lines += [f"  failed: {describe(job)}: {plan.journal.outcomes[job.fingerprint].reason}" for job in failed]
    for study, count in outcome.taken_over.items():
        lines.append(f"{count} of them were taken over from study {study}: the same configuration, seed, data and code")
    if outcome.damaged:
        lines.append(f"{len(outcome.damaged)} damaged checkpoints, named above; their trials went on from earlier ones")
    if outcome.stopped:
        lines.append(f"stopped: {outcome.stopped}")
    if not outcome.delivered:
        lines.append(f"the tracking store has not got everything yet; `make resume SPACE={label}` delivers it")
    if outcome.slots and outcome.seconds.get("trials"):
        seconds = outcome.seconds
        lines.append(
            f"time: {duration(seconds['total'])}, of which {seconds['start_up']:.0f} s start-up; trials took "
            f"{duration(seconds['trials'])} on {outcome.slots} slots; tracking {seconds['tracking']:.1f} s"
        )
    to_do = "continue where it stopped" if outcome.interrupted or failed else "nothing is left to do"
    steps = [
        ("make ui", f"the MLflow UI; this study: {outcome.comparison}"),
        (f"make resume SPACE={label}", to_do),
        (f"make report SPACE={label}", "a page with verdict, figures and tables"),
    ]
    width = max(len(line) for line, _ in steps)
    return [
        *lines,
        "next:",
        *(f"  {line:<{width}}  {what}" for line, what in steps),
    ]
