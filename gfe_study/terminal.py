"""What every command's printing shares: exit codes, where lines go, machine-readable output, progress."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

DONE, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on standard output, for machines.")]


def fail(text: str) -> None:
    """One line on standard error, and exit code 2."""
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def console() -> Console:
    """Standard error; wide where it is no terminal, so that lines stay whole."""
    shown = Console(stderr=True)
    return shown if shown.is_terminal else Console(stderr=True, width=200)


def print_json(value: Any) -> None:
    """One line on standard output; NaN and infinity, which JSON has not, are null."""

    def finite(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: finite(below) for key, below in item.items()}
        if isinstance(item, list):
            return [finite(below) for below in item]
        return None if isinstance(item, float) and not math.isfinite(item) else item

    print(json.dumps(finite(value), ensure_ascii=False))


def output() -> Console:
    """Standard output, for tables; wide where it is no terminal."""
    return Console() if sys.stdout.isatty() else Console(width=200)


@contextmanager
def progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal's standard error, and nothing elsewhere; yields what moves it on by one."""
    from rich.progress import Progress

    shown = console()
    with Progress(console=shown, transient=True, disable=not shown.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
