"""Provenance of results: this package's version and commit, the versions of its dependencies, and the host."""

from __future__ import annotations

import functools
import os
import platform
import socket
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from gfe_study import names

PACKAGE = Path(__file__).resolve().parent
PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "numpy", "pydantic", "pandas", "scikit-learn")
"""Packages whose versions may change a trial's numbers or how they are stored."""


def own_version() -> str:
    """Return the version of gfe-study, which only pyproject.toml states."""
    return version("gfe-study")


@functools.cache
def code() -> tuple[str, str]:
    """Return the version of gfe-study that this process runs, and its git commit, empty if unknown."""
    return own_version(), provenance().get(names.GIT_COMMIT, "")


def unlike(host: str, there: Sequence[str], here: Sequence[str]) -> str:
    """Return how the `code` on another host differs from that of the sweep; empty if it does not, or is unknown."""
    if there[0] != here[0]:
        return f"{host} has gfe-study {there[0]}, this sweep {here[0]}; install the same on all nodes"
    if there[1] and here[1] and there[1] != here[1]:
        return f"{host} has commit {there[1][:9]} of gfe-study, this sweep {here[1][:9]}; use the same on all nodes"
    return ""


def package_versions() -> str:
    """Return the versions of Python and of the packages that affect results: `python 3.12.1, torch 2.9.0, …`."""
    return ", ".join([f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)])


def provenance(package: Path = PACKAGE) -> dict[str, str]:
    """Return tags that state where a run comes from: host, version, and the git commit of a checkout.

    Args:
        package: the package's folder. The commit is recorded only if git tracks the package itself: an environment may
            lie inside another project's repository, whose commit says nothing about this code.
    """
    # A git hook sets GIT_DIR to its own repository, which may be another one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(package), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=environment)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    tags = {names.HOST: socket.gethostname(), names.GFE_STUDY_VERSION: own_version()}
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return tags
    commit = git("rev-parse", "HEAD")
    if commit:
        tags[names.GIT_COMMIT] = commit
        tags[names.GIT_DIRTY] = str(bool(git("status", "--porcelain", "--untracked-files=no"))).lower()
    return tags
