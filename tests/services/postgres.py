"""A real PostgreSQL, in a temporary folder and on a port of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg

USER = "gfe"
PASSWORD = "p%40ss:w/ö rd"
"""As it is typed at a prompt: in a URI, nearly all of it must be encoded."""


def programs() -> Path | None:
    """Return the folder of PostgreSQL's programs, which Debian keeps out of PATH; None if there is none."""
    found = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return Path(found).resolve().parent if found else folders[-1].parent if folders else None


def missing() -> str:
    """Return what is missing to start a PostgreSQL; empty if nothing is."""
    return "" if programs() is not None else "PostgreSQL is not installed; apt-get install postgresql"


class Postgres:
    """A running PostgreSQL.

    Args:
        folder: its files and its log.
        port: its port on 127.0.0.1.
    """

    def __init__(self, folder: Path, port: int) -> None:
        there = programs()
        assert there is not None, missing()
        self.port = port
        self._folder = folder
        self._programs = there
        # PostgreSQL refuses to run as root.
        self._as = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        if self._as:
            shutil.chown(folder, "postgres", "postgres")
        secret = folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        about = ["--username", USER, "--pwfile", secret, "--auth", "scram-sha-256", "--encoding", "UTF8", "--no-sync"]
        command = [there / "initdb", "--pgdata", folder / "data", *about]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, **self._as)  # type: ignore[call-overload]
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
        options = [f"--{name}={value}" for name, value in settings.items()]
        with (self._folder / "postgres.log").open("ab") as log:
            self._process = subprocess.Popen(  # type: ignore[call-overload]
                [self._programs / "postgres", "-D", self._folder / "data", *options],
                cwd=self._folder, stdout=log, stderr=log, start_new_session=True, **self._as,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            try:
                return self.execute("SELECT 1")
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self._folder / "postgres.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def stop(self) -> None:
        """End it without a shutdown, as if the machine had lost power; its processes are gone when this returns."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()

    def execute(self, statement: str) -> None:
        """Execute a statement outside a transaction."""
        about = {"host": "127.0.0.1", "port": self.port, "user": USER, "password": PASSWORD, "dbname": "postgres"}
        with psycopg.connect(autocommit=True, **about) as connection:  # type: ignore[arg-type]
            connection.execute(statement)

    def database(self, name: str) -> str:
        """Create a database, and return its URI."""
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{name}"

    def dump(self, uri: str) -> bytes:
        """Return all that a database holds, as text."""
        settings = {**os.environ, "PGPASSWORD": PASSWORD}
        command: list[str | Path] = [
            self._programs / "pg_dump",
            "--host=127.0.0.1",
            f"--port={self.port}",
            f"--username={USER}",
        ]
        return subprocess.run([*command, uri.rpartition("/")[2]], env=settings, check=True, capture_output=True).stdout


@contextmanager
def postgres(port: int) -> Iterator[Postgres]:
    """A PostgreSQL in a temporary folder, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as folder:
        started = Postgres(Path(folder), port)
        try:
            yield started
        finally:
            started.stop()
