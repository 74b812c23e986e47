"""Commands that are printed can be pasted where the user is."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from gfe_study.view import advice

MAKEFILE = "GFE := .venv/bin/gfe-study\n"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gfe-study", "sweep"])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_checkout_is_advised_make(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text(MAKEFILE)
    assert advice.command("resume", "amd", "results") == "make resume SPACE=amd"
    assert advice.command("report", "amd", "s3://b/r") == "make report SPACE=amd STORAGE=s3://b/r"
    assert advice.mlflow_ui() == "make ui"


def test_elsewhere_the_program_is_advised(tmp_path: Path) -> None:
    assert advice.command("resume", "amd", "results") == "gfe-study resume amd"
    (tmp_path / "Makefile").write_text("all:\n\tcc main.c\n")  # somebody else's
    assert advice.command("report", "amd", "/a b") == "gfe-study report amd --storage '/a b'"
    assert advice.mlflow_ui() == "gfe-study ui"


def test_names_that_make_would_split_are_quoted(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text(MAKEFILE)
    assert shlex.split(advice.command("resume", "my study", "results")) == ["gfe-study", "resume", "my study"]


def test_the_program_is_called_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [".venv/bin/gfe-study"])
    assert advice.program() == ".venv/bin/gfe-study"
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "env" / "bin" / "gfe-study")])
    assert advice.program() == "env/bin/gfe-study"
    monkeypatch.setattr(sys, "argv", ["/somewhere/gfe_study/__main__.py"])
    assert advice.program().endswith(" -m gfe_study")


@pytest.mark.parametrize("width", [40, 60, 80, 1000])
def test_long_commands_break_as_a_shell_expects(tmp_path: Path, width: int) -> None:
    decoder = tmp_path / "results" / "my study" / "trials" / "0123456789abcdef" / "best.pt"
    lines = advice.encode_command(decoder, width)
    typed = shlex.split("\n".join(lines).replace("\\\n", ""))  # as a shell reads it
    relative = "results/my study/trials/0123456789abcdef/best.pt"
    assert typed == ["gfe-study", "encode", relative, "--images", "images.npy", "--out", "encoded.npz"]
    if width >= 80:
        assert all(len(line) <= width for line in lines)
