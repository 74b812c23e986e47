"""Reading YAML files into nested mappings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

try:  # libyaml is ten times as fast
    from yaml import CSafeDumper as SafeDumper
    from yaml import CSafeLoader as SafeLoader
except ImportError:
    from yaml import SafeDumper, SafeLoader  # type: ignore[assignment]

from gfe_study.config.base import InputError, suggestion

SPACES = "search_spaces"


KINDS = ("merge", "null", "bool", "int", "float", "str")
MERGE, NULL, BOOL, INT, FLOAT, STR = (f"tag:yaml.org,2002:{kind}" for kind in KINDS)
NAMES = {"reference", "factor", "arm"}
"""Keys whose value names an arm, a level or a factor; it stays a string as written, even `1e3` or `off`."""


class _Refused(yaml.constructor.ConstructorError):
    """Valid YAML that this project does not accept."""


class _Loader(SafeLoader):
    """Loads YAML 1.2 scalars (`1e4` is a number; `on` and `off` are strings); keys stay as written and are unique.

    Anchors and merge keys (`<<: *base`) work as in YAML 1.1: a mapping's own keys take precedence over merged ones.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        own = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != MERGE]
        for key in own:
            if own.count(key) > 1:
                raise _Refused(None, None, f"the key {key!r} is given twice", node.start_mark)
        self.flatten_mapping(node)
        content = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _Refused(None, None, "a key is not a name", key.start_mark)
            if key.value in NAMES:
                for each in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if isinstance(each, yaml.ScalarNode) and each.tag != NULL:
                        each.tag = STR
            content[key.value] = self.construct_object(value, deep=True)
        return content

    def construct_int(self, node: yaml.ScalarNode) -> int:
        digits = str(node.value).lstrip("+-")
        if digits.startswith("0") and digits.isdigit() and digits != "0":
            plain = digits.lstrip("0") or "0"
            octal = f", or 0o{plain} for the octal number" if not set(plain) & {"8", "9"} else ""
            problem = f"given {node.value}, which is ambiguous (decimal or octal); allowed: {plain}{octal}"
            raise _Refused(None, None, problem, node.start_mark)
        return int(str(node.value), 0)


_Loader.yaml_implicit_resolvers = {}  # drop the rules of YAML 1.1
_Loader.add_constructor(INT, _Loader.construct_int)
for _tag, _pattern, _first in (
    (MERGE, r"<<", "<"),
    (NULL, r"~|null|Null|NULL|", "~nN"),
    (BOOL, r"true|True|TRUE|false|False|FALSE", "tTfF"),
    (INT, r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        FLOAT,
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), [*_first, *([""] if _tag == NULL else [])])


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML with the safe loader. Raises `InputError` with file, line and cause."""
    try:
        content = yaml.load(text, Loader=_Loader)
        _walk(content)
    except RecursionError as error:
        raise InputError(f"{where}: nested too deeply; allowed: sections of keys and values") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {min(mark.line, text.count(chr(10))) + 1}:" if mark else ""  # an end may lie behind the text
        what = "" if isinstance(error, _Refused) else "not YAML: "
        raise InputError(f"{where}:{line} {what}{getattr(error, 'problem', error)}") from error
    return content


def _walk(content: Any) -> None:
    # An anchor may refer to its own mapping; fail here with a RecursionError rather than later in code that descends.
    for below in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        _walk(below)


def to_yaml(content: Any) -> str:
    """Write plain data as YAML that `parse_yaml` reads back; keys keep their order."""
    return str(yaml.dump(content, Dumper=SafeDumper, sort_keys=False, allow_unicode=True))


def read_text(path: Path) -> str:
    """Read a text file. Raises `InputError` if that is impossible."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping. Raises `InputError` if it cannot be read or holds anything else."""
    content = parse_yaml(read_text(path), str(path))
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds {type(content).__name__}; allowed: a mapping of keys to values")
    return content


def space_folders() -> list[Path]:
    """Return the folders of search spaces: the user's `./search_spaces`, then gfe-study's. The first match wins."""
    package = Path(__file__).resolve().parents[1]
    installed, checkout = package / SPACES, package.parent / SPACES
    shipped = installed if installed.is_dir() else checkout
    return list(dict.fromkeys([Path(SPACES).resolve(), shipped]))


def space_files() -> dict[str, Path]:
    """Return name -> file of every available search space. Raises `InputError` if there is none."""
    found: dict[str, Path] = {}
    for folder in space_folders():
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    if not found:
        folders = " and ".join(map(str, space_folders()))
        raise InputError(f"{folders}: no search space found; give the path of a YAML file, or reinstall gfe-study")
    return found


def find_space(name: str) -> Path:
    """Find the file of a space by name or path. Raises `InputError`, which lists the available spaces."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    spaces = space_files()
    if name not in spaces:
        raise InputError(f"unknown space {name!r}; {suggestion(name, list(spaces))}")
    return spaces[name]
