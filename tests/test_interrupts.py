"""Signals at the moments that a sweep meets only by chance: in an import, in a library, while they are deferred."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

BEGIN = "from gfe_study import interrupts; interrupts.install(); import time; "
TERMINATE = "import os, signal; os.kill(os.getpid(), signal.SIGTERM); "


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code that sends itself signals."""
    return subprocess.run([sys.executable, "-c", BEGIN + code], cwd=folder, capture_output=True, text=True, timeout=60)


def test_a_module_is_not_left_half_loaded(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(f"{TERMINATE}\nimport time\ntime.sleep(0.3)\nprint('loaded', flush=True)\n")
    done = run("import sys; sys.path.insert(0, '.'); import slow\ntime.sleep(20)\nprint('went on')", tmp_path)
    assert done.stdout == "loaded\n"
    assert "Interrupted" in done.stderr


def test_a_library_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    """It holds the main thread, so that no handler of Python's can run."""
    kill = "import threading, os; threading.Timer(0.5, os.kill, (os.getpid(), 15)).start(); "
    busy = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2**31 - 1)"
    done = run(f"interrupts.SECONDS_TO_END = 0.5; {kill}{busy}", tmp_path)
    assert done.returncode == 130
    assert done.stderr.endswith("run the same command to continue\n")


def test_a_deferred_signal_counts_once(tmp_path: Path) -> None:
    code = f"with interrupts.deferred():\n    {TERMINATE}\n    {TERMINATE}\n    print(interrupts.asked())\n"
    code += "try:\n    interrupts.check()\nexcept interrupts.Interrupted:\n    print('at the end')\n"
    code += f"{TERMINATE}\nprint('still here')\n"
    assert run("\n" + code, tmp_path).stdout == "True\nat the end\nstill here\n"


@pytest.mark.parametrize("ignored", [True, False])
def test_a_hangup_ignored_by_nohup_stays_ignored(tmp_path: Path, ignored: bool) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGHUP); print('went on')"
    begin = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); {BEGIN}" if ignored else BEGIN
    done = subprocess.run(
        [sys.executable, "-c", begin + code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert ("went on" in done.stdout) == ignored


def test_at_the_very_end_signals_are_ignored(tmp_path: Path) -> None:
    done = run(f"interrupts.ignore(); {TERMINATE}{TERMINATE.replace('SIGTERM', 'SIGALRM')}print('ended')", tmp_path)
    assert (done.stdout, done.returncode) == ("ended\n", 0)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
