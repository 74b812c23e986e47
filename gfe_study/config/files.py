"""YAML files and `--set KEY=VALUE`: text to nested mappings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from gfe_study.config.base import InputError, suggestion
from gfe_study.config.trial import unflatten

SPACES = "search_spaces"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers (1e4 is one) and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: str) -> Any:
    """YAML by the safe loader. Raises `InputError` with file, line and cause."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise InputError(f"{where}: nested too deeply; allowed: sections of keys and values") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise InputError(f"{where}:{line} not YAML: {getattr(error, 'problem', error)}") from error


def to_yaml(content: Any) -> str:
    """Plain data as YAML that `parse_yaml` reads back, keys in their order."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # libyaml's is ten times as fast
    return str(yaml.dump(content, Dumper=dumper, sort_keys=False, allow_unicode=True))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds one mapping. Raises `InputError` if it is not there, not YAML, or no mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds {type(content).__name__}; allowed: a mapping of keys to values")
    return content


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`["solver.beta=0.5", …]` as nested mappings; values are read as YAML."""
    flat: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {assignment}: allowed: KEY=VALUE with a dotted key, like solver.beta=0.5")
        flat[key.strip()] = parse_yaml(value, f"--set {key.strip()}")
    return unflatten(flat)


def space_folders() -> list[Path]:
    """Folders of search spaces: `./search_spaces` of the user, then those of gfe-study. The first match wins."""
    package = Path(__file__).resolve().parents[1]
    installed, checkout = package / SPACES, package.parent / SPACES
    shipped = installed if installed.is_dir() else checkout
    return list(dict.fromkeys([Path(SPACES).resolve(), shipped]))


def space_files() -> dict[str, Path]:
    """Name -> file of every available search space. Raises `InputError` if there is none."""
    found: dict[str, Path] = {}
    for folder in space_folders():
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    if not found:
        folders = " and ".join(map(str, space_folders()))
        raise InputError(f"{folders}: no search space found; give the path of a YAML file, or reinstall gfe-study")
    return found


def find_space(name: str) -> Path:
    """The file of a space, by its name or its path. Raises `InputError` naming the spaces there are."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    spaces = space_files()
    if name not in spaces:
        raise InputError(f"space {name!r} is unknown; {suggestion(name, list(spaces))}")
    return spaces[name]
