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
from gfe_study.config import Study
from gfe_study.data.base import Splits, entropy_floor
from gfe_study.study.plan import Job, Plan
from gfe_study.study.recorder import settings
from gfe_study.study.sweep import Outcome, Snapshot

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
        trial = next(iter(plan.jobs.values())).trial if plan.jobs else plan.job(0, _some_point(study), 0).trial
        self.console.print(f"[bold]{study.question}[/bold]", highlight=False)
        self._say(
            f"{trial.data.name}: {len(splits.train):,} training, {len(splits.val):,} validation, "
            f"{len(splits.test):,} test images; entropy floor {entropy_floor(splits.test):.4f} nats per pixel"
        )
        seeds = f" × {study.seeds} seeds" if study.seeds > 1 else ""
        state = f"; {done} done already" if done else ""
        unfinished = [job for job in plan.jobs.values() if plan.state(job) == "unfinished"]
        state += f", {len(unfinished)} to be continued" if unfinished else ""
        budget = f"of {trial.budget.images:,} images, preset {trial.preset}"
        self._say(f"{study.trials} trials{seeds} {budget}{state}")
        if plan.orphaned:
            self._say(
                f"{len(plan.orphaned)} earlier trials belong to another version of this study: kept, and left out"
            )
        if plan.missing() or plan.unasked():
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


def _some_point(study: Study) -> dict[str, Any]:
    starts = study.start_points()
    return starts[0] if starts else {key: drawn.values[0] for key, drawn in study.nuisance.items()}


def ranked(plan: Plan) -> list[tuple[Job, float]]:
    """Finished trials, best first."""
    valued = [(job, value) for job in plan.finished() if (value := plan.value(job)) is not None]
    return sorted(valued, key=lambda pair: pair[1], reverse=plan.study.metric.mode == "max")


def best_table(plan: Plan) -> Table:
    """The best trials of a study: final metrics, and the values of what was searched."""
    rows = [(job, plan.journal.points[job.fingerprint][-1]) for job, _ in ranked(plan)[:BEST_SHOWN]]
    wanted = (plan.study.metric.name, names.TEST_LOSS, names.MIXED_TEST_LOSS, names.NFE_FORWARD)
    metrics = [name for name in dict.fromkeys(wanted) if any(name in point for _, point in rows)]
    table = Table(title="Best trials (losses in nats per pixel)", title_justify="left", box=None, pad_edge=False)
    for header in ("#", *metrics):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("settings")
    table.add_column("fingerprint", no_wrap=True)
    for job, point in rows:
        shown = [_metric(name, point.get(name)) for name in metrics]
        table.add_row(str(job.number), *shown, settings(job), job.fingerprint)
    return table


def _metric(name: str, value: float | None) -> str:
    if value is None:
        return "diverged" if name.endswith("_loss") else ""
    return f"{value:.4f}" if name.endswith("_loss") else f"{value:.1f}"


def closing(outcome: Outcome, label: str, console: Console) -> None:
    """The end of a sweep: best trials, what went wrong, and what to type next."""
    plan = outcome.plan
    if plan.finished():
        console.print(best_table(plan))
    done, failed = len(plan.finished()), outcome.failed
    diverged = sum(math.isinf(value) for _, value in ranked(plan))
    told = f" ({diverged} of them diverged)" if diverged else ""
    lines = [f"{done} of {plan.total} trials finished{told}, {len(failed)} failed"]
    if outcome.damaged:
        lines.append(f"{len(outcome.damaged)} damaged checkpoints, named above; their trials went on from earlier ones")
    if not outcome.delivered:
        lines.append(f"the tracking store has not got everything yet; `make resume SPACE={label}` delivers it")
    to_do = "continue where it stopped" if outcome.interrupted or failed else "nothing is left to do"
    lines += [
        "next:",
        "  make ui                    the MLflow UI, http://127.0.0.1:5000",
        f"  make resume SPACE={label:<9}{to_do}",
        f"  make report SPACE={label:<9}curves and tables of this study",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
