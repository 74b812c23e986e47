"""Imports point one way: DESIGN.md, section 1."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "gfe_study"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))

LAYERS = [
    {"device", "interrupts", "layout", "metrics", "names", "registry"},
    {"config", "provenance"},
    {"distributions", "io", "likelihoods", "operators", "optim", "targets", "tracking"},
    {"data", "density", "posterior"},
    {"models"},
    {"solvers"},
    {"gradients", "starts"},
    {"methods"},
    {"measures"},
    {"training"},
    {"study", "testing"},
    {"analysis", "trained"},
    {"view"},
    {"api", "estimator"},
    {"cli"},
    {"__init__", "__main__"},
]
"""Lowest first; a module imports only from its own package and from layers below."""

ONLY_FROM = {
    "config": {"config", "metrics", "registry"},
    "metrics": set(),
    "registry": set(),
    "names": set(),
    "likelihoods": {"config", "likelihoods"},
    "solvers": {"config", "likelihoods", "models", "solvers"},
}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            assert isinstance(child, ast.If)
            for other in child.orelse:
                yield from run_time_nodes(other)
        else:
            yield from run_time_nodes(child)


def imports(source: str, package: str = PACKAGE) -> set[str]:
    """Dotted names that a file of `package` imports when it runs, functions' own imports counted."""
    found = set()
    for node in run_time_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join(filter(None, [*above, node.module]))
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def imports_of(path: Path) -> set[str]:
    return imports(path.read_text(encoding="utf-8"), ".".join(path.relative_to(ROOT).parent.parts))


def part_of(path: Path) -> str:
    """`solvers` of gfe_study/solvers/amd.py, `losses` of gfe_study/losses.py."""
    return path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")


def own_parts(path: Path) -> set[str]:
    """The parts of this project that a file imports."""
    return {name.split(".")[1] for name in imports_of(path) if name.startswith(f"{PACKAGE}.")}


def importers(library: str) -> set[str]:
    """Files of the project that import a library, relative to the package."""
    return {
        path.relative_to(ROOT / PACKAGE).as_posix()
        for path in FILES
        if any(name.split(".")[0] == library for name in imports_of(path))
    }


def test_every_form_of_import_is_seen() -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import hidden
else:
    import shown
import a.b as c
from d import e
from gfe_study import training
from . import sibling
from ..models import Decoder
def f():
    import late
"""
    seen = imports(source, "gfe_study.solvers")
    assert {"shown", "a.b", "d.e", "late"} <= seen
    assert {"gfe_study.training", "gfe_study.solvers.sibling", "gfe_study.models.Decoder"} <= seen
    assert "hidden" not in seen


def test_the_files_are_found() -> None:
    assert {"solvers/amd.py", "likelihoods/base.py", "training.py"} <= importers("torch")
    assert "config/base.py" in importers("pydantic")


def test_only_study_imports_ray() -> None:
    assert importers("ray") == {
        "study/ray_session.py",
        "study/ray_trainable.py",
        "study/ray_tune.py",
    }


def test_only_tracking_and_loading_import_mlflow() -> None:
    assert importers("mlflow") <= {"tracking/client.py", "analysis/store/load.py"}


def test_analysis_does_not_import_torch() -> None:
    assert {name for name in importers("torch") if name.startswith("analysis/")} == set()


ANALYSIS = ["store", "stats", "judge", "report"]
"""Lowest first."""


def test_every_part_has_a_layer() -> None:
    assert {part_of(path) for path in FILES} == set().union(*LAYERS)
    inside = {path.relative_to(ROOT / PACKAGE / "analysis").parts[0] for path in FILES if part_of(path) == "analysis"}
    assert inside == {"__init__.py", *ANALYSIS}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT / PACKAGE).as_posix())
def test_imports_point_one_way(path: Path) -> None:
    part, imported = part_of(path), own_parts(path)
    if part in ONLY_FROM:
        assert imported <= ONLY_FROM[part]
    height = {name: level for level, names in enumerate(LAYERS) for name in names}
    assert {name for name in imported - {part} if height.get(name, -1) >= height[part]} == set()
    if part == "analysis" and path.name != "__init__.py":
        place = ANALYSIS.index(path.relative_to(ROOT / PACKAGE).parts[1])
        parts = {name.split(".")[2] for name in imports_of(path) if name.startswith(f"{PACKAGE}.analysis.")}
        assert parts & set(ANALYSIS[place + 1 :]) == set()
