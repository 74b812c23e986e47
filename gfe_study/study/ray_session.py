"""Ray without its output and its signal handlers: started on this machine for one sweep, or an existing cluster."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import psutil

from gfe_study import interrupts
from gfe_study.config import InputError

LONGEST_TEMPORARY_PATH = 40
"""Ray's sockets live below its temporary folder, and a socket's path is at most 107 characters."""

SECONDS_TO_ANSWER = 10.0
SECONDS_TO_LEAVE = 3.0

# Tune's snapshots are never used, and each of them takes longer the more trials there are.
_DEFAULTS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
_TOKEN = secrets.token_hex(32)
"""Lets processes into the Ray that this process starts; Ray listens on all interfaces and reads it only once."""


@contextlib.contextmanager
def ray_session(address: str | None = None, cpus: int | None = None, gpus: int | None = None) -> Iterator[Any]:
    """Yield the `ray` module, initialised; shut it down afterwards.

    Args:
        address: of a running cluster; None starts a Ray of its own on this machine.
        cpus: CPUs that Ray may use here; None for all.
        gpus: GPUs that Ray may use here; None for all. Logical ones do for trying out the scheduling.

    Raises:
        InputError: there is no cluster at `address`, or it does not let this process in.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if address is None:  # in the environment, where other users cannot read it
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}
    else:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if len(tempfile.gettempdir()) > LONGEST_TEMPORARY_PATH and os.path.isdir("/tmp"):
        os.environ.setdefault("RAY_TMPDIR", "/tmp")
    if address is not None and ":" in address:
        _check_answers(address)
    import ray

    for logger in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)  # lost workers are reported in a line of ours
    local: dict[str, Any] = {} if address else {"num_cpus": cpus, "num_gpus": gpus, "include_dashboard": False}
    try:
        with _apart_from_signals():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:  # Ray raises anything from ConnectionError to its own AuthenticationError
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        where = f"--address: given {address!r}; that Ray cannot be joined" if address else "Ray cannot be started here"
        raise InputError(f"{where} ({' '.join(lines)[:250]})") from error
    # A thread of Ray reports errors of calls whose results nobody asked for, such as calls to a node that has died. If
    # it does so during the shutdown, Ray's core is gone, and this process ends with exit code 1.
    ray._private.worker.global_worker.raise_errors = lambda *_: None  # type: ignore[method-assign]
    try:
        yield ray
    finally:
        processes = _processes() if address is None else []
        ray.shutdown()
        _end(processes)


def _processes() -> list[psutil.Process]:
    """Return the processes of the Ray that this process has started, its workers among them."""
    from ray._private import worker

    node: Any = worker._global_node
    found = []
    for info in itertools.chain.from_iterable(node.all_processes.values()):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(info.process.pid)
            found += [process, *process.children(recursive=True)]
    return found


def _end(processes: list[psutil.Process]) -> None:
    """Wait for the processes of a Ray that has been shut down, and kill those that stay.

    Ray gives its raylet one second to end its workers; on a busy machine they outlive it.
    """
    _, alive = psutil.wait_procs(processes, timeout=SECONDS_TO_LEAVE)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=SECONDS_TO_LEAVE)


def _check_answers(address: str) -> None:
    """Raise `InputError` if nothing answers at HOST:PORT: Ray would try again and again."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), SECONDS_TO_ANSWER).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(
            f"--address: given {address!r}; nothing answers there ({error}); allowed: auto or HOST:PORT"
        ) from error


@contextlib.contextmanager
def _apart_from_signals() -> Iterator[None]:
    """Keep Ray from handling this process's signals, and its processes from getting them.

    Ray would replace the handler of SIGTERM. A signal to the process group (Ctrl-C, `timeout`, a service manager) would
    reach its processes too, and a driver waits for ever for what they no longer answer.
    """
    from ray._private import services, utils

    handler, popen = utils.set_sigterm_handler, services.ConsolePopen
    utils.set_sigterm_handler = lambda _: None
    services.ConsolePopen = functools.partial(popen, process_group=0)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        utils.set_sigterm_handler, services.ConsolePopen = handler, popen  # type: ignore[misc]
        interrupts.handle_again()  # Ray's core has installed handlers too, which abort
