"""The view of a study on the terminal. Everything here goes to standard error; results go to standard output."""

from __future__ import annotations

import math
import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from gfe_study import names
from gfe_study.analysis.judge.diagnostics import notes
from gfe_study.analysis.judge.verdict_table import verdict_table
from gfe_study.config import Study
from gfe_study.config.options import IMAGES_WITHOUT_LIMIT
from gfe_study.data.split import Splits
from gfe_study.layout import GAP, Column, Listing, NotebookLine, drawn_bar, number, say, sparkline, wrapped
from gfe_study.metrics import (
    COMMON_TEST_LOSS,
    MIXED_TEST_LOSS,
    TEST_LOSS,
    VAL_LOSS,
    counterpart_on_test,
    text_of,
    unit_of,
    units_text,
)
from gfe_study.study.engine import Snapshot, describe
from gfe_study.study.forecast import Forecast
from gfe_study.study.journal import STOPPED
from gfe_study.study.plan import Plan
from gfe_study.study.recorder import settings
from gfe_study.study.sweep import Outcome
from gfe_study.tracking.uri import UI
from gfe_study.view.advice import command, mlflow_ui
from gfe_study.view.blocks import Block, decoder, hanging, link, print_blocks, sentence, steps, table
from gfe_study.view.statements import front, ranked, signs, verdict

LINE_INTERVAL_S = 10.0
NUM_BEST_SHOWN = 5
MIN_WIDTH_OF_BAR = 95
LONGEST_SPARKLINE = 16


def duration(seconds: float | None) -> str:
    """Format seconds as `1:05` or `2:03:04`."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class StudyView:
    """Shows the progress of a study: live in terminals and notebooks, with a line for each trial that runs; elsewhere a
    line every ten seconds."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._snapshot: tuple[float, Snapshot] | None = None
        self._live = Live(
            get_renderable=lambda: Text("\n".join(self._lines())),
            console=console,
            refresh_per_second=2,
            transient=True,
        )
        self._cell = NotebookLine() if console.is_jupyter else None
        self._metric: str = VAL_LOSS
        self._printed_at = 0.0
        self._printed = (-1, -1)

    def __enter__(self) -> StudyView:
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def planned(self, plan: Plan, splits: Splits) -> None:
        self._metric, self.splits = plan.study.metric.name, splits
        print_blocks(self.console, opening(plan, splits))

    def starting_ray(self) -> None:
        self._say("starting Ray …")

    def ray_started(self, seconds: float, slots: int) -> None:
        self._say(f"Ray started in {seconds:.0f} s; {_count(slots, 'trial')} at a time")
        if self.console.is_terminal:
            self._live.start()

    def progress(self, snapshot: Snapshot) -> None:
        self._snapshot = (time.monotonic(), snapshot)
        if self._cell is not None:
            self._cell.show("\n".join(self._lines()))
            return
        counts = (snapshot.finished, snapshot.failed)
        quiet = time.monotonic() - self._printed_at < LINE_INTERVAL_S
        last = counts != self._printed and snapshot.finished == snapshot.total
        if not self.console.is_terminal and (last or not quiet):
            self._say(f"trials {self._line()}")
            self._printed_at, self._printed = time.monotonic(), counts

    def _lines(self) -> list[str]:
        """Return the progress of the study, and one line for each trial that runs."""
        lines = wrapped(self._line(), self.console.width)
        if self._snapshot is None:
            return lines
        seen = self._snapshot[1]
        for trial in seen.trials:
            course = trial.values[-LONGEST_SPARKLINE:]
            parts = [f"{trial.images:,} images"]
            parts += [f"{self._metric} {number(course[-1])} {sparkline(course)}"] if course else []
            lines += wrapped(f"{trial.name}: {', '.join(parts)}", self.console.width, GAP, 2 * GAP)
        if (more := seen.running - len(seen.trials)) > 0:
            lines.append(f"{GAP}and {more} more")
        return lines

    def _line(self) -> str:
        """Return the progress line; its clock keeps running between snapshots."""
        if self._snapshot is None:
            return ""
        at, seen = self._snapshot
        since = time.monotonic() - at
        left = max(0.0, seen.remaining_seconds - since) if seen.remaining_seconds is not None else None
        bar = f"{drawn_bar(seen.finished, seen.total)} " if self.console.width >= MIN_WIDTH_OF_BAR else ""
        parts = [f"{bar}{seen.finished}/{seen.total} done", f"{seen.running} running"]
        parts += [f"{seen.failed} failed"] if seen.failed else []
        parts += [f"best {self._metric} {number(seen.best)}"] if seen.best is not None else []
        parts += [f"{duration(seen.elapsed_seconds + since)} elapsed"]
        parts += [f"{duration(left)} left"] if left is not None else []
        return " · ".join(parts)

    def problem(self, text: str) -> None:
        self._say(f"warning: {text}", "yellow")

    def _say(self, text: str, style: str = "") -> None:
        say(self.console, text, style)


def opening(plan: Plan, splits: Splits) -> list[Block]:
    """Say what a study asks, on which images, and how much of it is done."""
    study, done = plan.study, len(plan.finished())
    trial = study.example(study.arms[0])
    floor = splits.floor(trial.likelihood, trial.eval.test_images)
    unit = unit_of(TEST_LOSS, study.values)
    tested = min(trial.eval.test_images, len(splits.test))
    lowest = "" if floor is None else f"{text_of(TEST_LOSS, floor)} {unit} on the first {tested:,}"
    bound = f"; lowest possible loss {lowest}" if lowest else ""
    state = f"; {done} already finished" if done else ""
    unfinished = [job for job in plan.jobs.values() if plan.state(job) == "unfinished"]
    state += f", {len(unfinished)} to continue" if unfinished else ""
    sizes = sorted({study.example(arm).data.train_images or len(splits.train) for arm in study.arms})
    training = " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1])))
    told = [
        f"{trial.data.label}: {training} training, {len(splits.val):,} validation, "
        f"{len(splits.test):,} test {trial.data.called.whole}s{bound}",
        f"{shape(study)}{state}",
        *(f"skipped: {hole.name}: {hole.reason}" for hole in study.holes),
        *([former(count)] if (count := len(plan.orphaned - plan.waiting)) else []),
        *([f"{count} more of the second stage wait until the first is over"] if (count := len(plan.waiting)) else []),
    ]
    return [sentence(study.question, "bold"), *map(sentence, told)]


def former(count: int) -> str:
    """Say that trials no longer belong to the study."""
    trials, are = ("trial", "belongs") if count == 1 else ("trials", "belong")
    return f"{count} earlier {trials} no longer {are} to this study as it is declared now; they are kept but not used"


def shape(study: Study) -> str:
    """Summarise a study: `4 arms × 12 trials × 3 seeds of 5,760 images, preset paper`."""
    counts = [study.configurations(arm) for arm in study.arms]
    parts = [_count(len(counts), "arm")] if study.scientific is not None else []
    if study.nuisance or not parts:
        parts.append(_count(counts[0], "trial") if len(set(counts)) == 1 else f"{min(counts)}–{max(counts)} trials")
    if study.seeds > 1:
        parts.append(_count(study.seeds, "seed"))
    trial = study.example(study.arms[0])
    budget = trial.budget
    limits = [f"{budget.nfe:,} passes"] if budget.nfe is not None else []
    limits += [f"{budget.seconds:g} seconds of training"] if budget.seconds is not None else []
    if budget.images < IMAGES_WITHOUT_LIMIT:
        limits.append(f"{budget.images:,} images")
    if budget.patience is not None:
        limits.append(f"{_count(budget.patience, 'evaluation')} without a lower validation loss")
    text = f"{' × '.join(parts)} of {' or '.join(limits)}, preset {trial.preset}"
    if study.stops_early:
        text += ", early stopping by successive halving"
    if study.then is not None:
        images = study.then.budget.images
        more = f" of {images:,} images" if images is not None else ""
        text += f"; then the best {study.then.best} of each arm × {study.then.seeds} seeds{more}"
    return text


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def plan_table(study: Study, expected: Forecast) -> Listing:
    """Return the trials of a plan, one per row."""
    keys = [Column(key, detail=True) for key in study.nuisance]
    columns = [Column("arm", left=True), Column("#"), Column("state", left=True), *keys, Column("seed")]
    table = Listing("", [*columns, Column("fingerprint", left=True)])
    for job, state in expected.trials:
        values = [number(job.params[key]) if key in job.params else "" for key in study.nuisance]
        arm = job.arm + (" (replicate)" if job.stage else "")
        table.rows.append((arm, str(job.number), state, *values, str(job.seed), job.fingerprint))
    return table


def plan_lines(study: Study, expected: Forecast) -> list[str]:
    """Summarise a plan: trials, skipped cells, images, time, disk and memory."""
    lines = [f"skipped: {hole.name}: {hole.reason}" for hole in expected.holes]
    if expected.later:
        chooser = f"suggested by {study.sampler}" if study.then is None else "chosen by the search and by `then`"
        lines.append(f"and {expected.later} more trials, {chooser} from the results of these")
    if expected.orphaned:
        lines.append(former(expected.orphaned))
    reused = f", {expected.taken_over} reused from other studies" if expected.taken_over else ""
    to_go = f"; {expected.images:,} training images remain" if expected.images is not None else ""
    lines.append(f"{expected.total} trials, {expected.done} done{reused}{to_go}")
    if expected.seconds is None:
        lines.append("time: unknown until a trial has finished; omit --no-probe for an estimate")
    else:
        source = f", estimated from {expected.told_from}" if expected.seconds else ""
        lines.append(
            f"time: about {duration(expected.seconds)} ({expected.seconds / 3600:.2f} hours) with {expected.slots} "
            f"trials at a time{source}"
        )
    lines.append(f"disk: about {expected.megabytes:.0f} MB")
    if expected.memory_megabytes is not None:
        lines.append(f"memory: about {expected.memory_megabytes / 1000:.1f} GB")
    return lines


def best_table(plan: Plan) -> Listing:
    """Return the best trials of a study with their final metrics and searched values."""
    chosen = ranked(plan)
    stage = max((job.stage for job, _ in chosen), default=0)  # stages may have different budgets
    rows = [(job, plan.result(job.fingerprint) or {}) for job, _ in chosen if job.stage == stage]
    rows = rows[:NUM_BEST_SHOWN]
    wanted = (*_searched_and_tested(plan.study), TEST_LOSS, MIXED_TEST_LOSS, COMMON_TEST_LOSS)
    metrics = [name for name in dict.fromkeys(wanted) if any(name in point for _, point in rows)]
    seeds = len(plan.study.seeds_of(stage)) > 1
    columns = [Column("arm", left=True), Column("#"), Column("seed")]
    columns += [Column(name) for name in metrics]
    columns += [Column("settings", left=True, detail=True, prefix="")]
    units = units_text(metrics, plan.study.values)
    table = Listing(f"Best trials ({units})" if units else "Best trials", columns)
    for job, point in rows:
        shown = [_metric(name, point.get(name)) for name in metrics]
        table.rows.append((job.arm, str(job.number), str(job.seed) if seeds else "", *shown, settings(job)))
    return table


def _metric(name: str, value: float | None) -> str:
    return "diverged" if value is None else text_of(name, value)


def _searched_and_tested(study: Study) -> tuple[str, str]:
    """Return the metric that a study optimises, and its counterpart on the test images."""
    return study.metric.name, counterpart_on_test(study.metric.name)


def best_blocks(plan: Plan) -> list[Block]:
    """Describe the best trial: its results, its settings, and the commands that train it and encode with it."""
    found = plan.best()
    if found is None:
        return []
    best = found[0]
    point = plan.result(best.fingerprint) or {}
    metrics = dict.fromkeys(_searched_and_tested(plan.study))
    results = ", ".join(f"{name} {_metric(name, point.get(name))}" for name in metrics)
    values = " ".join(f"{key}={number(value, 3)}" for key, value in best.params.items())
    blocks = [hanging(f"Best: {describe(best)}: {results}"), hanging(values, "  ")]
    file = plan.trial_folder(best).local / names.BEST_CHECKPOINT
    return [*blocks, decoder(file)] if file.exists() else blocks


def front_table(plan: Plan) -> Listing | None:
    """Return the Pareto front of a search with two objectives; None for other studies."""
    against = plan.study.metric.against
    if against is None:
        return None
    columns = [Column("arm", left=True), Column("#"), Column(plan.study.metric.name), Column(against)]
    table = Listing(
        f"Pareto front: {plan.study.metric.name} against {against}",
        [*columns, Column("settings", left=True, detail=True, prefix="")],
    )
    for job, first, second in front(plan):
        table.rows.append(
            (job.arm, str(job.number), text_of(plan.study.metric.name, first), number(second), settings(job))
        )
    return table


def closing(outcome: Outcome, label: str, storage: str) -> list[Block]:
    """Return the end of a sweep: the verdict, the best trials, the problems, and the next commands."""
    plan, blocks = outcome.plan, []
    if plan.finished():
        judged, pareto_front = verdict(plan), front_table(plan)
        blocks.append(table(verdict_table(judged) if judged is not None else best_table(plan)))
        blocks += [sentence(f"warning: {text}") for text in (judged.warnings if judged is not None else ())]
        blocks += [table(pareto_front)] if pareto_front is not None else []
        blocks += best_blocks(plan)
    for note in notes(signs(plan)):
        blocks += [sentence(f"note: {note.text}"), *(sentence(f"  {detail}") for detail in note.details)]
    blocks += map(sentence, _last_lines(outcome))
    blocks += [sentence("next:"), steps(_next_steps(outcome, label, storage))]
    if outcome.comparison:
        blocks += [sentence("this study in MLflow's UI:"), link(outcome.comparison)]
    return blocks


def _last_lines(outcome: Outcome) -> list[str]:
    plan = outcome.plan
    done, failed = len(plan.finished()), outcome.failed
    diverged = sum(math.isinf(value) for _, value in ranked(plan))
    early = sum(plan.state(job) == STOPPED for job in plan.finished())
    counts = [f"{diverged} of them diverged"] if diverged else []
    counts += [f"{early} of them stopped early"] if early else []
    more = f" ({', '.join(counts)})" if counts else ""
    lines = [f"{done} of {plan.total} trials finished{more}, {len(failed)} failed"]
    lines += [f"  failed: {describe(job)}: {plan.journal.outcomes[job.fingerprint].reason}" for job in failed]
    for study, count in outcome.taken_over.items():
        lines.append(f"{count} of them were reused from study {study}: same configuration, seed, data and code")
    if outcome.damaged:
        lines.append(
            f"{_count(len(outcome.damaged), 'damaged checkpoint')}, named above; an earlier one was used instead"
        )
    if outcome.stopped:
        lines.append(f"stopped: {outcome.stopped}")
    elif outcome.interrupted:
        lines.append("interrupted; every result so far is kept")
    if not outcome.delivered:
        lines.append("not everything has been delivered yet; nothing is lost, and resuming the study delivers the rest")
    if outcome.slots and outcome.seconds.get("trials"):
        seconds = outcome.seconds
        lines.append(
            f"time: {duration(seconds['total'])}, {seconds['start_up']:.0f} s of it start-up; "
            f"the trials took {duration(seconds['trials'])} on {_count(outcome.slots, 'slot')}"
        )
    return lines


def _next_steps(outcome: Outcome, label: str, storage: str) -> list[tuple[str, str]]:
    commands, unfinished = [], outcome.interrupted or outcome.failed or outcome.stopped
    if unfinished or not outcome.delivered:
        commands.append((command("resume", label, storage), "continue" if unfinished else "deliver the rest"))
    if outcome.plan.finished() and outcome.delivered:
        compares = "verdict, " if outcome.plan.study.scientific is not None else ""
        commands.append((command("report", label, storage), f"{compares}figures, tables"))
        if outcome.comparison.startswith(UI):
            commands.append((mlflow_ui(), "compare runs"))
    return commands
