"""MLflow's UI on the store in use."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser
from collections.abc import Callable

from gfe_study.config import InputError
from gfe_study.tracking.uri import HOST, is_server, store_uri, ui_address

SECONDS_TO_START = 120.0


def show_runs(path: str, port: int, tell: Callable[[str], None], *, browse: bool) -> int:
    """Serve the UI until it is interrupted, or open that of the server in use. Returns the exit code.

    Args:
        path: of the page to open, below the server's address.
        port: where to serve.
        tell: called with the address as soon as something answers there.
        browse: open the page in a browser, if there is one.

    Raises:
        InputError: something else uses the port, or MLflow's server does not start.
    """
    uri = store_uri()
    if is_server(uri):
        _open(f"{ui_address(uri)}/{path}", tell, browse)
        return 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"--port: given {port}; {error.strerror}; allowed: a free port, like {port + 1}"
            ) from error
    # The address may hold a password, which arguments would show to everybody on the machine.
    surroundings = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--host", HOST, "--port", str(port)]
    server = subprocess.Popen(command, env=surroundings)
    try:
        address = f"http://{HOST}:{port}/"
        _wait(server, address)
        _open(address + path, tell, browse)
        return server.wait()
    finally:
        server.terminate()
        server.wait()


def _wait(server: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise InputError(f"{address}: MLflow's UI does not start; its own output is above")


def _open(address: str, tell: Callable[[str], None], browse: bool) -> None:
    tell(address)
    if browse:
        webbrowser.open(address)
