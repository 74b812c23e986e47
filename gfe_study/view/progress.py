"""Progress bars of what runs in this process: in terminals and notebooks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from gfe_study.layout import NotebookLine, drawn_bar
from gfe_study.view.terminal import console

REFRESH_INTERVAL_S = 0.1


def interactive(shown: Console) -> bool:
    """Return whether a person watches: in a terminal or a notebook."""
    return shown.is_terminal or shown.is_jupyter


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
