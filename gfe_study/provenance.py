"""Where numbers come from: packages, git commit, host."""

from __future__ import annotations

import platform
import socket
import subprocess
from importlib.metadata import version
from pathlib import Path

from gfe_study import names

PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "numpy", "pydantic", "pandas", "scikit-learn")
"""Those whose versions may change a trial's numbers, or how they are kept."""


def package_versions() -> str:
    """Versions of the packages that decide numbers, and of Python: `python 3.12.1, torch 2.9.0, …`."""
    return ", ".join([f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)])


def provenance(folder: Path) -> dict[str, str]:
    """Tags that say where a run comes from: host, and git commit and state of `folder` where there are any."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    tags = {names.HOST: socket.gethostname()}
    commit = git("rev-parse", "HEAD")
    if commit:
        tags[names.GIT_COMMIT] = commit
        tags[names.GIT_DIRTY] = str(bool(git("status", "--porcelain", "--untracked-files=no"))).lower()
    return tags
