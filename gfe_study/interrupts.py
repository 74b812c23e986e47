"""SIGINT, SIGTERM and SIGHUP end a command in good order, whenever they come and however often.

The first signal raises `Interrupted`, or is only noted while `deferred` holds; the command then ends by itself, so
further signals change nothing. If it has not ended after `SECONDS_TO_END`, because a server swallows what it is sent,
the process exits as it is: like a kill, that loses nothing that the journal holds. Imports only the standard library:
a signal may come while everything else is loaded.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """A signal asked this process to end. Not a `KeyboardInterrupt`, which libraries handle in their own ways."""


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130
"""Exit code of a command that a signal has ended."""
SECONDS_TO_END = 26.0
SECONDS_TO_ASK_AGAIN = 0.05
_handled = False
_asked = False
_deferrals = 0


def install() -> None:
    """Handle the signals from now on. A SIGHUP that is ignored stays ignored, as `nohup` wants it."""
    global _handled
    if not _handled:
        arrivals, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        threading.Thread(target=_watch, args=(arrivals,), name="signals", daemon=True).start()
    _handled = True
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _ask)


def _ask(number: int, frame: FrameType | None) -> None:
    global _asked
    signal.alarm(0)  # a handler of Ray's core calls this one, and has set an alarm that aborts the process
    if _asked and number in SIGNALS:
        return
    _asked = True
    if _deferrals:
        return
    if _importing(frame):  # a module that is left half loaded breaks whatever uses it next
        signal.signal(signal.SIGALRM, _ask)
        signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_ASK_AGAIN)
        return
    raise Interrupted


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if "importlib._bootstrap" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


def _watch(arrivals: int) -> None:
    """Wait for a signal, and then for the end. A handler alone would wait for a call into a library to return."""
    while os.read(arrivals, 1)[0] not in SIGNALS:
        pass
    time.sleep(SECONDS_TO_END)
    os.write(2, b"interrupted; what does not answer was not waited for; run the same command to continue\n")
    os._exit(INTERRUPTED)


def handle_again() -> None:
    """Take the signals back from a library that has replaced the handlers of `install`, if that was called."""
    if _handled:
        install()


def ignore() -> None:
    """Ignore the signals from now on, at the very end: Python restores their default actions while it shuts down."""
    for number in (*SIGNALS, signal.SIGALRM):
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
