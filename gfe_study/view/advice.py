"""Suggested commands, ready to paste into the user's shell: they name the program and the storage in use."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

PLAIN = re.compile(r"[\w.,:/@+-]+")
"""Text that `make` passes to the shell unchanged."""


def program() -> str:
    """Return the text that calls this program from the working folder."""
    typed = Path(sys.argv[0])
    if typed.name == "__main__.py":
        return f"{near(Path(sys.executable))} -m gfe_study"
    found = shutil.which(typed.name)
    return typed.name if found and Path(found).samefile(typed) else near(typed)


def in_checkout() -> bool:
    """Return whether the working folder is a checkout of this project: its Makefile has a target per command."""
    makefile = Path("Makefile")
    return makefile.is_file() and "/gfe-study" in makefile.read_text(encoding="utf-8", errors="replace")


def command(verb: str, label: str, storage: str) -> str:
    """Return the command that applies a verb to a study: `make` in a checkout, this program elsewhere."""
    if in_checkout() and PLAIN.fullmatch(label) and PLAIN.fullmatch(storage):
        return f"make {verb} SPACE={label}{f' STORAGE={storage}' if storage != 'results' else ''}"
    where = f" --storage {shlex.quote(storage)}" if storage != "results" else ""
    return f"{program()} {verb} {shlex.quote(label)}{where}"


def mlflow_ui() -> str:
    """Return the command that starts MLflow's UI on the store in use."""
    return "make ui" if in_checkout() else f"{program()} ui"


def train_command(decoder: Path, width: int) -> list[str]:
    """Return the command that retrains the trial of a decoder."""
    return _broken([f"{program()} train", f"--config {_quoted(decoder)}"], width)


def encode_command(decoder: Path, width: int) -> list[str]:
    """Return the command that encodes images with a decoder."""
    return _broken(
        [f"{program()} encode", _quoted(decoder), "--images images.npy", "--out encoded.npz"],
        width,
    )


def _quoted(path: Path) -> str:
    return shlex.quote(near(path))


def near(path: Path) -> str:
    """Return a path relative to the working folder if the path lies below it."""
    absolute = Path.cwd() / path  # not resolved: a virtual environment's python is a link to the system's
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(path)


def _broken(words: list[str], width: int) -> list[str]:
    """Break a command into lines that fit the width; every line but the last ends in a backslash."""
    lines = [f"  {words[0]}"]
    for word in words[1:]:
        if len(lines[-1]) + len(word) + 3 <= width:
            lines[-1] += f" {word}"
        else:
            lines[-1] += " \\"
            lines.append(f"    {word}")
    return lines
