"""The package in examples/: installed as a user would, swept by name on two workers, and its own tests run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sweeps import COMMAND, SECONDS_LIMIT, children, environment

from gfe_study.metrics import VAL_LOSS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "gfe_study_example"
PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation", "--no-deps", "--target"]
SMALL = ["--set", "data=rings", "--set", "data.count=200", "--set", "solver=heavy_ball"]
SPACE = (EXAMPLE / "rings.yaml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed, without a network."""
    folder = tmp_path_factory.mktemp("installed")
    source = shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([*PIP, str(folder / "site"), str(source)], check=True, timeout=SECONDS_LIMIT)
    return folder / "site"


def run(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=folder, env=environment(**settings), capture_output=True, text=True, timeout=400
    )


def test_its_components_are_swept_by_name(site: Path, tmp_path: Path) -> None:
    done = run(
        tmp_path, "sweep", str(EXAMPLE / "rings.yaml"), "--trials", "2", "--cpus-per-trial", "1", PYTHONPATH=str(site)
    )
    assert done.returncode == 0, done.stderr
    assert "2 of 2 trials finished, 0 failed" in done.stderr
    runs = children(tmp_path, "rings")
    for section, name in (("solver", "heavy_ball"), ("data", "rings"), ("likelihood", "laplace")):
        assert {run.data.params[f"{section}.name"] for run in runs} == {name}
    assert all(run.data.metrics[VAL_LOSS] < 1.4 for run in runs)  # the median of all pixels reaches 1.49
    (trial, *_) = sorted((tmp_path / "results" / "rings" / "trials").glob("*/best.pt"))
    read = run(tmp_path, "train", "--config", str(trial), "--json", PYTHONPATH=str(site))
    assert read.returncode == 0, read.stderr
    told = run(tmp_path, "doctor", PYTHONPATH=str(site))
    for section, place in (("solver heavy_ball", "heavy_ball:HeavyBall"), ("likelihood laplace", "laplace:Laplace")):
        assert f"ok      {section}: gfe_study_example.{place} of gfe-study-example 0.1.0" in told.stdout
    without = run(tmp_path, "train", "--config", str(trial))
    assert (without.returncode, without.stderr.count("\n")) == (2, 1)
    assert "likelihood: given 'laplace'; allowed: bernoulli, gaussian, poisson, student_t" in without.stderr


def test_its_own_tests_pass(site: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests")]
    settings = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=SECONDS_LIMIT)
    assert done.returncode == 0, done.stdout
    assert "..." in done.stdout  # one for each component


def test_an_error_in_its_set_up_is_one_line(site: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(site, tmp_path / "site"))
    (broken / "gfe_study_example" / "heavy_ball.py").write_text("import a_library_that_is_not_there\n")
    done = run(tmp_path, "sweep", "smoke", *SMALL, "--trials", "1", PYTHONPATH=str(broken))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: --set solver: given 'heavy_ball'; gfe_study_example.heavy_ball:HeavyBall cannot be imported: "
        "ModuleNotFoundError: No module named 'a_library_that_is_not_there'\n"
    )
    assert run(tmp_path, "plan", "smoke", "--no-probe", PYTHONPATH=str(broken)).returncode == 0


def test_workers_import_from_the_working_folder(tmp_path: Path) -> None:
    shutil.copy(EXAMPLE / "gfe_study_example" / "heavy_ball.py", tmp_path / "mine.py")
    space = SPACE.replace("heavy_ball", "mine:HeavyBall").replace("{name: rings, count: 200}", "digits")
    space = space.replace("{name: laplace, scale: 0.5}", "gaussian")
    (tmp_path / "own.yaml").write_text(space)
    done = run(tmp_path, "sweep", "own.yaml", "--trials", "2", "--cpus-per-trial", "1")
    assert done.returncode == 0, done.stderr
    assert "2 of 2 trials finished, 0 failed" in done.stderr
    assert {run.data.params["solver.name"] for run in children(tmp_path, "own")} == {"mine:HeavyBall"}
