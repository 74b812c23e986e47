"""An error on a worker before its trial begins is reported once, with its own message."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from sweeps import COMMAND, SECONDS_LIMIT, environment

pytestmark = pytest.mark.slow

ONLY_WORKERS = "import sys\nif any('default_worker.py' in word for word in sys.orig_argv):\n"
INVALID = """
    from gfe_study.config import InputError, Trial

    def build(*layers, **more):
        raise InputError("solver.name: given 'new'; allowed: amd")

    Trial.build = build
"""
ANOTHER_COMMIT = """
    from gfe_study import provenance

    here = provenance.code()
    provenance.code = lambda: (here[0], "0123456789abcdef")
"""
NOT_INSTALLED = """
    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "gfe_study":
                raise ModuleNotFoundError("No module named 'gfe_study'")

    sys.meta_path.insert(0, Missing())
"""


def sweep(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """A sweep whose workers run some code before everything else."""
    (folder / "code").mkdir()
    (folder / "code" / "sitecustomize.py").write_text(ONLY_WORKERS + code)
    settings = environment(PYTHONPATH=str(folder / "code"))
    command = [*COMMAND, "sweep", "smoke", "--trials", "1"]
    return subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, timeout=SECONDS_LIMIT)


def test_an_error_of_the_configuration_is_the_trials_own_failure(tmp_path: Path) -> None:
    done = sweep(tmp_path, INVALID)
    assert done.returncode == 1
    assert "failed: InputError: solver.name: given 'new'; allowed: amd" in done.stderr
    assert "1 failed" in done.stderr
    assert "lost its worker" not in done.stderr


def test_a_node_without_the_package_is_no_lost_node(tmp_path: Path) -> None:
    done = sweep(tmp_path, NOT_INSTALLED)
    assert done.returncode == 1
    assert "No module named 'gfe_study'" in done.stderr
    assert "lost its worker" not in done.stderr


def test_a_node_with_another_commit_is_named(tmp_path: Path) -> None:
    done = sweep(tmp_path, ANOTHER_COMMIT)
    (line,) = [line for line in done.stderr.splitlines() if "has commit 012345678 of gfe-study" in line]
    assert "use the same on all nodes" in line
    assert "1 of 1 trials finished, 0 failed" in done.stderr
    assert done.returncode == 0
