"""What a user installs, how it is installed, and where its runs say they come from."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import gfe_study
from gfe_study import names
from gfe_study.config import files
from gfe_study.provenance import PACKAGE, own_version, provenance

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SPACES = sorted(path.stem for path in (ROOT / "search_spaces").glob("*.yaml"))

Run = Callable[..., tuple[int, str, str]]


def execute(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Standard output of a command that succeeds."""
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, source: Path, folder: Path) -> Path:
    execute(sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", folder, cwd=source)
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


def repository(folder: Path, *tracked: str) -> str:
    """Make a git repository with one commit and return its hash."""
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("tracked\n")
    identity = ("-c", "user.name=someone", "-c", "user.email=someone@example.org", "-c", "commit.gpgsign=false")
    execute("git", "init", "--quiet", folder, cwd=folder)
    execute("git", "add", *tracked, cwd=folder)
    execute("git", *identity, "commit", "--quiet", "--message", "start", cwd=folder)
    return execute("git", "rev-parse", "HEAD", cwd=folder).strip()


# The wheel.


def test_wheel_is_complete(wheel: Path) -> None:
    """The wheel contains every module, every search space and their schema, the type marker and the licence."""
    contained = zipfile.ZipFile(wheel).namelist()
    files = (path for path in (ROOT / "gfe_study").rglob("*") if path.suffix in (".py", ".css", ".js"))
    modules = {str(path.relative_to(ROOT)) for path in files}
    spaces = {f"gfe_study/search_spaces/{name}" for name in (*(f"{each}.yaml" for each in SPACES), "schema.json")}
    about = {name for name in contained if ".dist-info/" in name}
    assert set(contained) - about == modules | spaces | {"gfe_study/py.typed"}
    assert any(name.endswith("/licenses/LICENSE") for name in about)


def test_source_archive_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    """Whoever has only the source archive gets the same files as from the checkout."""
    # Python 3.11.2, which Debian 12 has, does not know the filter that `tarfile` asks for later.
    shutil.unpack_archive(build("sdist", ROOT, tmp_path / "sdist"), tmp_path / "unpacked")
    rebuilt = build("wheel", next((tmp_path / "unpacked").iterdir()), tmp_path / "wheel")
    assert sorted(zipfile.ZipFile(rebuilt).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_wheel_works_in_another_repository(wheel: Path, tmp_path: Path) -> None:
    """A user installs the wheel into an environment in their own project, sweeps, and reads the report.

    The environment borrows the dependencies of this one. The editable installation here stays invisible: a folder
    that a .pth file adds to the path has its own .pth files ignored.
    """
    commit = repository(tmp_path, "theirs.py")
    environment = tmp_path / ".venv"
    execute(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    options = ("--quiet", "--no-index", "--no-deps", "--disable-pip-version-check")
    execute(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=tmp_path)
    own_packages = Path(
        execute(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    )
    (own_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))

    def run(*arguments: str | Path) -> str:
        return execute(
            environment / "bin" / "gfe-study", *arguments, cwd=tmp_path, MLFLOW_TRACKING_URI="", PYTHONPATH=""
        )

    imported = execute(python, "-c", "import gfe_study; print(gfe_study.__file__)", cwd=tmp_path)
    assert Path(imported.strip()) == own_packages / "gfe_study" / "__init__.py"
    assert run("--version") == f"gfe-study {own_version()}\n"
    assert [line.split()[0] for line in run("spaces").splitlines()] == SPACES
    run("sweep", "smoke")
    assert "results/smoke/report/report.html" in run("report", "smoke").splitlines()
    page = (tmp_path / "results" / "smoke" / "report" / "report.html").read_text()
    assert f"<dt>gfe-study</dt><dd>{own_version()}</dd>" in page

    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        rows = store.execute("SELECT run_uuid, key, value FROM tags").fetchall()
    values = [value for _, _, value in rows]
    assert not any(commit in value for value in values)
    trials = {run_id for run_id, key, _ in rows if key == names.FINGERPRINT}
    versions = {run_id: value for run_id, key, value in rows if key == names.GFE_STUDY_VERSION}
    assert len(trials) == 4
    assert {versions.get(trial) for trial in trials} == {own_version()}


# Provenance.


def test_foreign_commit_is_not_recorded(tmp_path: Path) -> None:
    """An environment in somebody's repository: git answers there, but does not track the package."""
    repository(tmp_path, "theirs.py")
    package = tmp_path / ".venv" / "gfe_study"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    assert set(provenance(package)) == {names.HOST, names.GFE_STUDY_VERSION}


def test_own_commit_is_recorded(tmp_path: Path) -> None:
    """A checkout records its commit, and whether tracked files differ from it."""
    commit = repository(tmp_path, "gfe_study/__init__.py")
    tags = provenance(tmp_path / "gfe_study")
    assert (tags[names.GIT_COMMIT], tags[names.GIT_DIRTY]) == (commit, "false")
    (tmp_path / "gfe_study" / "__init__.py").write_text("changed")
    assert provenance(tmp_path / "gfe_study")[names.GIT_DIRTY] == "true"


def test_git_hooks_do_not_mislead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that another repository's hook starts inherits GIT_DIR, and still records its own commit."""
    (tmp_path / "own").mkdir()
    (tmp_path / "theirs").mkdir()
    commit = repository(tmp_path / "own", "gfe_study/__init__.py")
    repository(tmp_path / "theirs", "gfe_study/__init__.py", "theirs.py")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "theirs" / ".git"))
    assert provenance(tmp_path / "own" / "gfe_study")[names.GIT_COMMIT] == commit


def test_provenance_is_about_the_running_package() -> None:
    assert gfe_study.__file__ is not None
    assert Path(gfe_study.__file__).resolve().parent == PACKAGE
    assert provenance()[names.GFE_STUDY_VERSION] == PYPROJECT["project"]["version"]


# Search spaces.


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder with an installed package that has no search spaces; returns the package's folder."""
    package = tmp_path / "site-packages" / "gfe_study"
    monkeypatch.setattr(files, "__file__", str(package / "config" / "files.py"))
    monkeypatch.chdir(tmp_path)
    return package


def write_space(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    shutil.copy(ROOT / "search_spaces" / "smoke.yaml", file)
    return file


def test_users_spaces_come_first(elsewhere: Path) -> None:
    """A user's own folder adds spaces and replaces shipped ones of the same name."""
    shipped = write_space(elsewhere / "search_spaces", "shipped")
    write_space(elsewhere / "search_spaces", "both")
    own = write_space(Path("search_spaces").resolve(), "both")
    assert files.space_files() == {"both": own, "shipped": shipped}


def test_checkout_has_its_spaces_on_top(elsewhere: Path) -> None:
    """In a checkout the spaces lie beside the package, not in it."""
    space = write_space(elsewhere.parent / "search_spaces", "amd")
    assert files.space_files() == {"amd": space}


@pytest.mark.parametrize("command", [["spaces"], ["spaces", "--json"], ["spaces", "amd"]])
def test_no_space_at_all_is_an_error(command: list[str], elsewhere: Path, typed: Run) -> None:
    """A broken installation says so in one line instead of listing nothing."""
    code, out, err = typed(*command)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {elsewhere.parents[1]}/search_spaces and ")
    assert "no search space found" in err
    assert err.count("\n") == 1


# The command line.


def test_version_option(typed: Run) -> None:
    assert typed("--version") == (0, f"gfe-study {PYPROJECT['project']['version']}\n", "")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gfe-study sweep am", ["amd"]),
        ("gfe-study plan ae_", ["ae_fair"]),
        ("gfe-study resume f", ["first"]),
        ("gfe-study report --storage kept ", ["second"]),
    ],
)
def test_completion(line: str, expected: list[str], tmp_path: Path) -> None:
    """The Tab key completes search spaces, and the studies of the given storage."""
    for study in ("results/first", "kept/second"):
        (tmp_path / study).mkdir(parents=True)
        (tmp_path / study / "journal.jsonl").touch()
    command = Path(sys.executable).with_name("gfe-study")
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    shown = execute(command, cwd=tmp_path, _GFE_STUDY_COMPLETE="complete_bash", **words)
    assert shown.split() == expected


# Files about the package.


def pins() -> dict[str, list[str]]:
    """Package -> versions in constraints.txt; several where platforms differ."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            pinned = re.fullmatch(r"([a-z0-9.-]+)==([a-z0-9.]+)( ; [\w .'=!<>()-]+)?", line)
            assert pinned, f"constraints.txt: given {line!r}; allowed: name==version ; marker"
            found.setdefault(canonicalize_name(pinned[1]), []).append(pinned[2])
    return found


def test_direct_dependencies_are_pinned() -> None:
    """constraints.txt holds name==version lines alone, so no host or path, and they satisfy pyproject.toml."""
    pinned = pins()
    project = PYPROJECT["project"]
    for text in [
        *project["dependencies"],
        *(text for extra in project["optional-dependencies"].values() for text in extra),
    ]:
        requirement = Requirement(text)
        if requirement.name == project["name"]:  # an extra that names others
            continue
        versions = pinned.get(canonicalize_name(requirement.name), [])
        assert versions, f"{requirement.name} is not in constraints.txt; run make constraints"
        assert all(requirement.specifier.contains(version) for version in versions), text


def test_citation_matches_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == PYPROJECT["project"]["version"]
    assert citation["license"] == PYPROJECT["project"]["license"]
    cited = {reference["url"] for reference in citation["references"]}
    assert cited == set(PYPROJECT["project"]["urls"].values())


def test_changelog_describes_this_version() -> None:
    assert f"\n## {PYPROJECT['project']['version']}\n" in (ROOT / "CHANGELOG.md").read_text()


# make install.

FAKE_UV = """#!/bin/sh
echo "uv $*" >> "$LOG"
exit "$UV_EXIT"
"""
FAKE_PYTHON = """#!/bin/sh
echo "python $*" >> "$LOG"
case "$*" in
    "-m venv "*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; cp fake-uv .venv/bin/uv ;;
    *" uv") exit "$BOOTSTRAP_EXIT" ;;
    *" pip install "*) exit "$PIP_EXIT" ;;
esac
"""


class Installation:
    """A folder in which `make install` runs with a Python and a uv that only log how they are called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        self.python = folder / "fake-python"
        for program, script in ((self.python, FAKE_PYTHON), (folder / "fake-uv", FAKE_UV)):
            program.write_text(script)
            program.chmod(0o755)
        self.log = folder / "log"

    def make(self, bootstrap: int = 0, uv: int = 0, pip: int = 0) -> tuple[int, list[str], str]:
        """Return make's exit code, the installing commands, and standard error."""
        self.log.write_text("")
        exits = {"BOOTSTRAP_EXIT": str(bootstrap), "UV_EXIT": str(uv), "PIP_EXIT": str(pip), "LOG": str(self.log)}
        command = ["make", "--silent", "install", f"PYTHON={self.python}"]
        done = subprocess.run(command, cwd=self.folder, env={**os.environ, **exits}, capture_output=True, text=True)
        called = [line for line in self.log.read_text().splitlines() if "constraints.txt" in line]
        return done.returncode, [line.split()[0] for line in called], done.stderr


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path)


def test_install_uses_uv_once(installation: Installation) -> None:
    assert installation.make()[:2] == (0, ["uv"])
    assert installation.make() == (0, [], "")


@pytest.mark.parametrize("failing", [{"bootstrap": 1}, {"uv": 1}])
def test_install_falls_back_to_pip(failing: dict[str, int], installation: Installation) -> None:
    """Where pip cannot get uv, or uv fails, pip installs the same versions and one line says so."""
    code, called, err = installation.make(**failing)
    assert (code, called[-1]) == (0, "python")
    assert err.count("installing with pip") == 1


def test_failed_install_starts_afresh(installation: Installation) -> None:
    """A failed installation is not taken for a complete one, and the same command repairs it."""
    assert installation.make(bootstrap=1, pip=1)[0] != 0
    leftover = installation.folder / ".venv" / "leftover"
    leftover.touch()
    assert installation.make()[:2] == (0, ["uv"])
    assert not leftover.exists()


def test_make_keeps_bytecode(installation: Installation) -> None:
    """The installers do not compile, so every start would, where the environment forbids Python to keep bytecode."""
    rule = installation.folder / "show.mk"
    rule.write_text("show:\n\t@echo [$$PYTHONDONTWRITEBYTECODE]\n")
    command = ("make", "--silent", "-f", "Makefile", "-f", rule, "show")
    assert execute(*command, cwd=installation.folder, PYTHONDONTWRITEBYTECODE="1") == "[]\n"


def test_changed_constraints_are_installed(installation: Installation) -> None:
    """A new pin is installed into the existing environment."""
    installation.make()
    (installation.folder / ".venv" / "kept").touch()
    later = (installation.folder / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(installation.folder / "constraints.txt", (later, later))
    assert installation.make()[:2] == (0, ["uv"])
    assert (installation.folder / ".venv" / "kept").exists()
