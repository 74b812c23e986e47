"""Every name that a notebook imports exists: running them on a real study is a slow test, in test_report."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "analysis").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_imported_names_and_attributes_exist(notebook: Path) -> None:
    cells = nbformat.read(notebook, as_version=4).cells
    tree = ast.parse("\n".join(cell.source for cell in cells if cell.cell_type == "code"))
    found: dict[str, object] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                try:
                    imported = importlib.import_module(f"{node.module}.{alias.name}")
                except ModuleNotFoundError:
                    imported = getattr(importlib.import_module(node.module), alias.name)
                found[alias.asname or alias.name] = imported
    assert found
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = found.get(node.value.id)
            if isinstance(owner, (ModuleType, type)):
                assert hasattr(owner, node.attr), f"{node.value.id}.{node.attr}"
