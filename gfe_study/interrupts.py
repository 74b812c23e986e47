"""SIGINT, SIGTERM and SIGHUP end a command in good order, whenever they come and however often.

The first signal raises `Interrupted`, or is only noted while `deferred` holds; the command then ends by itself, so
further signals change nothing. Imports only the standard library: a signal may come while everything else is loaded.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """A signal asked this process to end. Not a `KeyboardInterrupt`, which libraries handle in their own ways."""


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_handled = False
_asked = False
_deferrals = 0


def install() -> None:
    """Handle the signals from now on. A SIGHUP that is ignored stays ignored, as `nohup` wants it."""
    global _handled
    _handled = True
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _ask)


def _ask(number: int, frame: FrameType | None) -> None:
    global _asked
    signal.alarm(0)  # a handler of Ray's core calls this one, and has set an alarm that aborts the process
    repeated, _asked = _asked, True
    if not repeated and not _deferrals:
        raise Interrupted


def handle_again() -> None:
    """Take the signals back from a library that has replaced the handlers of `install`, if that was called."""
    if _handled:
        install()


def ignore() -> None:
    """Ignore the signals from now on, at the very end: Python restores their default actions while it shuts down."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def check() -> None:
    """Raise `Interrupted` if a signal has come: while it was deferred, or a library has swallowed the exception."""
    if _asked:
        raise Interrupted


def asked() -> bool:
    """Return whether a signal has asked this process to end."""
    return _asked


@contextmanager
def deferred() -> Iterator[None]:
    """Note a signal instead of raising `Interrupted`: the block asks `asked` where it can end in good order.

    Raises:
        Interrupted: a signal came before.
    """
    global _deferrals
    check()
    _deferrals += 1
    try:
        yield
    finally:
        _deferrals -= 1
