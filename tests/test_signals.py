"""Signals at any moment, to the driver or to its group, end a sweep in good order; nobody else enters its Ray."""

from __future__ import annotations

import os
import pty
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from sweeps import environment, gfe_study, longer_space, started, wait_until

pytestmark = pytest.mark.slow

SECONDS_TO_END = 30


def output(folder: Path) -> str:
    return (folder / "output.log").read_text()


def session(leader: int) -> list[str]:
    """Command lines of the processes that are left in a session."""
    left = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        try:
            if os.getsid(process.pid) == leader and process.info["status"] != psutil.STATUS_ZOMBIE:
                left.append(" ".join(process.info["cmdline"]))
        except (ProcessLookupError, psutil.Error):
            continue
    return left


def statuses(folder: Path) -> Counter[str]:
    if not (folder / "mlflow.db").exists():
        return Counter()
    with sqlite3.connect(folder / "mlflow.db") as store:
        return Counter(status for (status,) in store.execute("SELECT status FROM runs"))


def says(text: str, more: float = 0.0) -> Callable[[Path], bool]:
    """Whether the sweep has said something, that many seconds ago."""
    seen: list[float] = []

    def ready(folder: Path) -> bool:
        if not seen and text in output(folder):
            seen.append(time.monotonic())
        return bool(seen) and time.monotonic() - seen[0] >= more

    return ready


def after(seconds: float) -> Callable[[Path], bool]:
    begun = time.monotonic()
    return lambda _: time.monotonic() - begun >= seconds


def running(folder: Path) -> bool:
    return statuses(folder)["RUNNING"] >= 2  # the study's own run and a trial's


MOMENTS: dict[str, tuple[Callable[[], Callable[[Path], bool]], list[signal.Signals], bool]] = {
    "imports": (lambda: after(0.2), [signal.SIGTERM], True),
    "first line": (lambda: says("digits"), [signal.SIGTERM], True),
    "Ray starts": (lambda: says("starting Ray", 0.5), [signal.SIGTERM], True),
    "Ray has nearly started": (lambda: says("starting Ray", 2.0), [signal.SIGINT, signal.SIGTERM], True),
    "workers start": (lambda: says("Ray started", 0.2), [signal.SIGHUP], True),
    "trials run": (lambda: running, [signal.SIGINT, signal.SIGINT, signal.SIGINT], True),
    "trials run, driver alone": (lambda: running, [signal.SIGTERM], False),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_ends_a_sweep_in_good_order(tmp_path: Path, moment: str) -> None:
    longer_space(tmp_path)
    ready, signals, group = MOMENTS[moment]
    is_ready = ready()
    with started(tmp_path, "sweep", "longer.yaml") as process:
        wait_until(lambda: is_ready(tmp_path), process, tmp_path / "output.log")
        for number in signals:
            (os.killpg if group else os.kill)(process.pid, number)
            time.sleep(0.3)
        assert process.wait(SECONDS_TO_END) == 130, output(tmp_path)
        assert session(process.pid) == []
    assert set(statuses(tmp_path)) <= {"KILLED", "FINISHED"}
    last = output(tmp_path)
    assert "interrupted; run the same command to continue" in last or "resume longer  # continue" in last
    assert "Traceback" not in last
    if moment == "trials run":
        assert gfe_study(tmp_path, "resume", "longer").returncode == 0
        assert set(statuses(tmp_path)) == {"FINISHED"}


BUSY_ACTOR = """
import psutil
from gfe_study.study.ray_session import ray_session
with ray_session(cpus=1) as ray:
    @ray.remote
    class Busy:
        def start(self): pass
        def work(self):
            while True: pass
    busy = Busy.remote()
    ray.get(busy.start.remote())
    busy.work.remote()
    [raylet] = [child for child in psutil.Process().children() if child.name() == "raylet"]
    end = ray._private.node.Node.kill_all_processes
    def end_slowly(node, **options):
        raylet.suspend()
        end(node, **options)
    ray._private.node.Node.kill_all_processes = end_slowly
"""


def test_workers_end_with_their_raylet(tmp_path: Path) -> None:
    """Ray kills a raylet that does not end its workers within a second, as on a busy machine."""
    command = [sys.executable, "-c", BUSY_ACTOR]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), start_new_session=True) as process:
        assert process.wait(60) == 0
        assert session(process.pid) == []


def test_a_closed_terminal_ends_a_sweep_cleanly(tmp_path: Path) -> None:
    """Writing to a terminal that is gone fails, and Ray, journal and store are closed all the same."""
    longer_space(tmp_path)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, "-m", "gfe_study", "sweep", "longer.yaml"], environment())
    os.set_blocking(terminal, False)
    deadline = time.monotonic() + 120
    while not running(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.1)
        try:
            os.read(terminal, 65536)
        except BlockingIOError:
            continue
    os.close(terminal)
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        assert time.monotonic() < deadline + SECONDS_TO_END
        time.sleep(0.1)
    assert os.waitstatus_to_exitcode(ended[1]) == 130
    assert session(pid) == []
    assert set(statuses(tmp_path)) <= {"KILLED", "FINISHED"}


def test_a_sweep_ends_well_without_its_reader(tmp_path: Path) -> None:
    """Ctrl-C in `gfe-study sweep … | tee log` ends `tee` first."""
    longer_space(tmp_path)
    command = [sys.executable, "-m", "gfe_study", "sweep", "longer.yaml"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, start_new_session=True)
    assert process.stderr is not None
    try:
        wait_until(lambda: running(tmp_path), process, Path(os.devnull))
        process.stderr.close()
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(SECONDS_TO_END) == 130
        assert set(statuses(tmp_path)) <= {"KILLED", "FINISHED"}
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_no_one_enters_ray_without_its_token(tmp_path: Path) -> None:
    longer_space(tmp_path)
    with started(tmp_path, "sweep", "longer.yaml", "--set", "budget.images=100000") as process:
        wait_until(lambda: running(tmp_path), process, tmp_path / "output.log")
        processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        gcs = next(each for each in processes if "gcs_server" in each.name())
        port = next(link.laddr.port for link in gcs.net_connections("tcp") if link.status == psutil.CONN_LISTEN)
        ours = gcs.environ()["RAY_AUTH_TOKEN"]
        assert len(ours) >= 32
        assert not any(ours in argument for each in processes for argument in each.cmdline())

        enter = f"import ray; ray.init('127.0.0.1:{port}', log_to_driver=False); print('inside', flush=True)"

        def enters(mode: str, token: str) -> subprocess.Popen[bytes]:
            given = environment(RAY_AUTH_MODE=mode, RAY_AUTH_TOKEN=token)
            command = [sys.executable, "-c", enter]
            return subprocess.Popen(command, env=given, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

        strangers = [enters("disabled", ""), enters("token", secrets.token_hex(32))]
        time.sleep(15)  # they are not refused at once: Ray tries again and again
        friend = enters("token", ours)
        assert friend.communicate(timeout=60)[0] == b"inside\n", output(tmp_path)
        for stranger in strangers:
            stranger.kill()
            assert stranger.communicate()[0] == b""


def test_a_trial_without_ray_ends_in_good_order(tmp_path: Path) -> None:
    """The same command goes on with it."""
    sets = ["solver.name=amd", "solver.max_nfe=12", "data.name=digits", "budget.images=4000", "model.hidden=[32]"]
    sets += ["eval.schedule=[500, 1000, 1500, 2000]", "eval.test_images=20", "eval.val_images=20"]
    command = ["train", *(word for each in sets for word in ("--set", each))]
    with started(tmp_path, *command) as process:
        wait_until(lambda: "500 images" in output(tmp_path), process, tmp_path / "output.log")
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(SECONDS_TO_END) == 130, output(tmp_path)
    assert statuses(tmp_path) == {"KILLED": 1}
    again = gfe_study(tmp_path, *command)
    assert again.returncode == 0, again.stderr
    assert statuses(tmp_path) == {"FINISHED": 1}
