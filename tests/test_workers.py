"""An error on a worker before its trial begins is reported once, with its own message; no worker needs the files."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from sweeps import COMMAND, SECONDS_LIMIT, environment

from gfe_study.config import Trial
from gfe_study.measures.classifier import trained
from gfe_study.measures.frechet import Frechet
from gfe_study.measures.preparation import prepared
from gfe_study.metrics import classifier_distance
from gfe_study.study.journal import Journal
from gfe_study.training import train

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


UNREADABLE = """
    from gfe_study.data.split import DataError
    from gfe_study.data.digits import Digits

    def read(self, folders, *, download):
        raise DataError("data.name: digits is not on this node")

    Digits.read = read
"""


def sweep(folder: Path, code: str, space: str = "smoke") -> subprocess.CompletedProcess[str]:
    """A sweep whose workers run some code before everything else."""
    (folder / "code").mkdir()
    (folder / "code" / "sitecustomize.py").write_text(ONLY_WORKERS + code)
    settings = environment(PYTHONPATH=str(folder / "code"))
    command = [*COMMAND, "sweep", space, "--trials", "1"]
    return subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, timeout=SECONDS_LIMIT)


def test_a_bad_configuration_fails_the_trial(tmp_path: Path) -> None:
    """It is the trial's own failure, not a lost worker."""
    done = sweep(tmp_path, INVALID)
    assert done.returncode == 1
    assert "failed: InputError: solver.name: given 'new'; allowed: amd" in done.stderr
    assert "1 failed" in done.stderr
    assert "lost its worker" not in done.stderr


def test_a_node_without_the_package_is_not_lost(tmp_path: Path) -> None:
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


def test_a_worker_without_files_measures_the_same(tmp_path: Path) -> None:
    """The classifier of the whole dataset comes with the images, which are a part of it."""
    fixed: dict[str, Any] = {
        "preset": "gen",
        "method": {"name": "vae"},
        "data": {"name": "digits", "held_out": 3, "train_images": 100},
        "model": {"latent_dim": 3, "hidden": [32]},
        "eval": {"val_images": 100, "test_images": 200, "mixed": False, "measures": ["frechet"]},
    }
    declared = {"question": "How far?", "fixed": fixed, "budget": {"images": 200}}
    (tmp_path / "far.yaml").write_text(yaml.safe_dump(declared))
    done = sweep(tmp_path, UNREADABLE, "far.yaml")
    assert done.returncode == 0, done.stderr
    (points,) = Journal.read(tmp_path / "results" / "far").points.values()

    trial = Trial.build(fixed, {"budget": {"images": 200}})
    splits = trial.data.load()
    name = classifier_distance("digits", "reconstruction")
    *_, (_, expected, _) = train(trial, prepared(trial, splits))
    assert expected is not None
    assert points[-1][name] == expected[name]
    *_, (_, other, _) = train(trial, replace(splits, prepared={Frechet.prepares: trained(splits)}))
    assert other is not None
    assert abs(other[name] / expected[name] - 1) > 0.1
