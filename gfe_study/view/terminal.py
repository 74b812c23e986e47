"""Shared by every command: exit codes, standard output and standard error, JSON output, progress bars."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console

from gfe_study.layout import say

WIDTH_OF_FILES = 200
DONE, SOME_FAILED, BAD_INPUT = 0, 1, 2

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value to standard output.")]


class Sturdy:
    """A standard stream whose reader may go away: of a closed pipe or terminal, what is written is dropped.

    A Ctrl-C ends the `tee` that reads a sweep's output too, and the sweep must still end in good order.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def fail(text: str) -> None:
    """Print a one-line error to standard error and exit with code 2."""
    say(console(), f"error: {' '.join(text.split())}")
    sys.exit(BAD_INPUT)


def console() -> Console:
    """Return a console for standard error; it is wide if that is not a terminal, so that lines stay whole."""
    shown = Console(stderr=True)
    return shown if shown.is_terminal else Console(stderr=True, width=WIDTH_OF_FILES)


def print_json(value: Any) -> None:
    """Print one line of JSON to standard output; NaN and infinity become null because JSON lacks them."""

    def finite(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: finite(below) for key, below in item.items()}
        if isinstance(item, list):
            return [finite(below) for below in item]
        return None if isinstance(item, float) and not math.isfinite(item) else item

    print(json.dumps(finite(value), ensure_ascii=False))


def output() -> Console:
    """Return a console for tables on standard output; it is wide if that is not a terminal."""
    return Console() if sys.stdout.isatty() else Console(width=WIDTH_OF_FILES)


@contextmanager
def progress(total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar if standard error is a terminal; yield a function that advances it by one."""
    from rich.progress import Progress

    shown = console()
    with Progress(console=shown, transient=True, disable=not shown.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
