"""Progress of what runs in Python: in terminals and notebooks; elsewhere only problems are shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from gfe_study.console import StudyView
from gfe_study.data.base import Splits
from gfe_study.layout import NotebookLine, drawn_bar, say
from gfe_study.study.engine import Observer, Snapshot
from gfe_study.study.plan import Plan
from gfe_study.terminal import console

REFRESH_INTERVAL_S = 0.1


class Silent:
    """An observer of a study that shows problems and nothing else."""

    def __init__(self, shown: Console) -> None:
        self._console = shown

    def planned(self, plan: Plan, splits: Splits) -> None:
        pass

    def starting_ray(self) -> None:
        pass

    def ray_started(self, seconds: float, slots: int) -> None:
        pass

    def progress(self, snapshot: Snapshot) -> None:
        pass

    def problem(self, text: str) -> None:
        say(self._console, f"warning: {text}", "yellow")


def interactive(shown: Console) -> bool:
    """Return whether a person watches: in a terminal or a notebook."""
    return shown.is_terminal or shown.is_jupyter


@contextmanager
def study_observer(wanted: bool | None) -> Iterator[Observer]:
    """Show the progress of a study if that is wanted; None: if a person watches."""
    shown = console()
    if wanted or (wanted is None and interactive(shown)):
        with StudyView(shown) as view:
            yield view
    else:
        yield Silent(shown)


@contextmanager
def bar(total: int, what: str, wanted: bool | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar if that is wanted; None: if a person watches. Yields a function that takes the count so far.

    Args:
        total: the count at the end.
        what: what is counted.
        wanted: whether to show the bar.
    """
    shown = console()
    if wanted is False or (wanted is None and not interactive(shown)):
        yield lambda count: None
    elif shown.is_jupyter:
        yield _in_notebook(total, what)
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = BarColumn(), MofNCompleteColumn(), TextColumn(what), TimeRemainingColumn()
        with Progress(*columns, console=shown, transient=True) as progress:
            task = progress.add_task("", total=total)
            yield lambda count: progress.update(task, completed=count)


def _in_notebook(total: int, what: str) -> Callable[[int], None]:
    line, shown_at = NotebookLine(), -REFRESH_INTERVAL_S

    def advance(count: int) -> None:
        nonlocal shown_at
        if time.monotonic() - shown_at >= REFRESH_INTERVAL_S or count >= total:
            shown_at = time.monotonic()
            line.show(f"{drawn_bar(count, total)} {count:,}/{total:,} {what}")

    return advance
