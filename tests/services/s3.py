"""A real S3 server, which keeps its objects in a folder and can be killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from stores import free_port

KEY = "S3RVER"


class S3:
    """An `s3rver` on a folder, in which every top folder is a bucket.

    Attributes:
        settings: environment of a process that uses the server.
    """

    def __init__(self, folder: Path, *buckets: str) -> None:
        program = shutil.which("s3rver")
        if program is None:
            pytest.skip("no S3 server: s3rver is not installed (npm install -g s3rver)")
        pytest.importorskip("s3fs", reason="no S3 client: s3fs is not installed (pip install 'gfe-study[s3]')")
        self._program, self._folder, self._port = program, folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None
        for bucket in buckets:
            (folder / bucket).mkdir(parents=True)
        self.settings = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        command = [self._program, "--directory", str(self._folder), "--address", "127.0.0.1"]
        command += ["--port", str(self._port), "--silent"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 30
        while socket.socket().connect_ex(("127.0.0.1", self._port)):
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def stop(self) -> None:
        """Kill the server; what it has written stays."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
