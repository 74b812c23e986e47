"""Every key that a study file or a trial may have, with what it may be and what it means: for people and editors.

All of it is read from the classes themselves and from the docstrings beside their fields.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from gfe_study import registry
from gfe_study.config.base import InputError, Section
from gfe_study.config.study import Study
from gfe_study.config.trial import Trial

PLACES = {"operator": "data.observe", "measure": "eval.measures"}
"""Where components stand that have no section of their own."""
SCHEMA = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


@dataclass(frozen=True)
class Key:
    """A key.

    Attributes:
        path: dotted, as `--set` takes it.
        names: the components that have it; empty if it does not depend on one.
        allowed: what its value may be, in words.
        default: in the words of a configuration file; empty if it must be given.
        text: what it means, with its unit.
    """

    path: str
    names: tuple[str, ...]
    allowed: str
    default: str
    text: str


def keys(prefix: str = "") -> list[Key]:
    """Return the keys below a prefix, such as `solver.lbfgs`, `optim`, `data.hide` or `solver.beta`; all without one.

    Raises:
        InputError: there is none.
    """
    everything = _merged([*_of_trials(), *_of_studies()])
    found = [key for key in everything if not prefix or prefix in _prefixes(key)]
    if not found:
        known = sorted({each for key in everything for each in _prefixes(key)})
        near = difflib.get_close_matches(prefix, known, 1)
        told = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"PREFIX: given {prefix!r}; {told}allowed: a section, section.name, or a key")
    return found


def _merged(found: list[Key]) -> list[Key]:
    """The same keys of several components as one."""
    merged: dict[Key, list[str]] = {}
    for key in found:
        merged.setdefault(replace(key, names=()), []).extend(key.names)
    return [replace(key, names=tuple(names)) for key, names in merged.items()]


def _prefixes(key: Key) -> set[str]:
    """A key as it is typed, and with the name of each of its components after the section, and all that these begin."""
    place = next((each for each in PLACES.values() if key.path.startswith(f"{each}.")), key.path.partition(".")[0])
    forms = [key.path, *(f"{place}.{name}{key.path.removeprefix(place)}" for name in key.names)]
    return {".".join(parts) for form in forms for parts in itertools.accumulate([part] for part in form.split("."))}


def _of_trials() -> Iterator[Key]:
    for section in registry.BASES:
        for name in registry.names(section):
            place = PLACES.get(section, section)
            yield from _of_class(registry.component(section, name), place, name)
    yield from _of_class(Trial, "", "")


def _of_studies() -> Iterator[Key]:
    yield from _of_class(Study, "", "")


def _of_class(cls: type[Section], path: str, name: str) -> Iterator[Key]:
    schema = cls.model_json_schema()
    yield from _of_schema(schema, schema.get("$defs", {}), _texts(cls), path, name)


def _of_schema(
    schema: Schema, defs: Mapping[str, Schema], texts: Mapping[str, str], path: str, name: str
) -> Iterator[Key]:
    for field, own in schema.get("properties", {}).items():
        if field == "name" and name:
            continue
        below = [_resolved(each, defs) for each in own.get("anyOf", [own])]
        below = [each for each in below if "properties" in each and each.get("additionalProperties") is False]
        full = f"{path}.{field}" if path else field
        if "default" in own or not below:
            default = "" if field in schema.get("required", ()) else _written(own.get("default"))
            yield Key(full, (name,) if name else (), _in_words(own, defs), default, texts.get(field, ""))
        for each in below:
            if each["title"] not in OPEN:
                yield from _of_schema(each, defs, _texts(_section(each["title"])), full, name)


OPEN = ("Operator",)
"""What is chosen by name, and listed by that."""


@cache
def _section(title: str) -> type[Section]:
    waiting: list[type[Section]] = [Section]
    while waiting:
        found = waiting.pop()
        if found.__name__ == title:
            return found
        waiting += found.__subclasses__()
    raise AssertionError(title)


def _resolved(schema: Schema, defs: Mapping[str, Schema]) -> Schema:
    return defs[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _written(value: Any) -> str:
    """A default as YAML writes it, in one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_written, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
KINDS = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text", "null": "null"}


def _in_words(schema: Schema, defs: Mapping[str, Schema]) -> str:
    """What a value may be."""
    if "anyOf" in schema:
        parts = list(dict.fromkeys(_in_words(each, defs) for each in schema["anyOf"]))
        return " or ".join([*(part for part in parts if part != "null"), *(["null"] if "null" in parts else [])])
    schema = _resolved(schema, defs)
    if "enum" in schema or "const" in schema:
        return ", ".join(map(_written, schema.get("enum", [schema.get("const")])))
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
        return f"list of {_in_words(items, defs) or 'values'}" if items else "list"
    if kind == "object" or "properties" in schema:
        return "settings"
    bounds = " and ".join(f"{sign} {schema[bound]:g}" for bound, sign in BOUNDS.items() if bound in schema)
    return f"{KINDS.get(str(kind), 'name or settings')} {bounds}".strip()


def _texts(cls: type) -> dict[str, str]:
    """Field -> its docstring, those of the bases too."""
    found: dict[str, str] = {}
    for own in reversed(cls.__mro__):
        if issubclass(own, Section):
            found |= _own_texts(own)
    return found


@cache
def _own_texts(cls: type) -> dict[str, str]:
    try:
        body: list[ast.stmt] = list(ast.parse(Path(inspect.getfile(cls)).read_text(encoding="utf-8")).body)
    except (OSError, TypeError, SyntaxError):  # typed into an interpreter
        return {}
    for part in cls.__qualname__.split("."):
        body = next((node.body for node in body if isinstance(node, ast.ClassDef) and node.name == part), [])
    found = {}
    for node, after in itertools.pairwise(body):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            # In files None is null.
            found[node.target.id] = re.sub(r"\bNone\b", "null", " ".join(after.value.value.split()))
    return found


def summary(section: str, name: str) -> str:
    """Return what a component is, in the first paragraph of its docstring; empty of anything else."""
    if section not in registry.BASES or name not in registry.names(section):
        return ""
    text = textwrap.dedent(inspect.getdoc(registry.component(section, name)) or "")
    return " ".join(text.partition("\n\n")[0].split())


# The schema


def schema() -> Schema:
    """Return the JSON schema of a study file: an editor that reads it completes keys, and underlines misspelt ones."""
    defs: dict[str, Schema] = {}
    for section in registry.BASES:
        defs[section] = _chosen(section, defs)
    defs["configuration"] = _configuration(defs)
    configuration = {"$ref": "#/$defs/configuration"}
    study = _described(Study, defs)
    keys_of_trials = [*defs["configuration"]["properties"]]
    study["properties"] |= {
        "fixed": configuration,
        "nuisance": {"type": "object", "propertyNames": {"enum": keys_of_trials}},
        "scientific": {
            "type": "object",
            "properties": {
                "arms": {"type": "object", "additionalProperties": configuration},
                "factorial": {"type": "object"},
                "ablate": {"type": "object"},
            },
            "additionalProperties": False,
        },
    }
    defs["Then"]["properties"]["fixed"] = configuration
    return {"$schema": SCHEMA, "title": "A study of gfe-study", **study, "$defs": dict(sorted(defs.items()))}


def _configuration(defs: dict[str, Schema]) -> Schema:
    """A configuration, nested or in dotted keys, whose values only a trial checks."""
    found: dict[str, Schema] = {key.path: {"description": key.text} if key.text else {} for key in _of_trials()}
    found |= {f"{section}.name": {"enum": registry.names(section)} for section in registry.BASES}
    found |= _described(Trial, defs)["properties"]
    found |= {section: {"$ref": f"#/$defs/{section}"} for section in registry.BASES if section in Trial.model_fields}
    return {"type": "object", "properties": dict(sorted(found.items())), "additionalProperties": False}


def _chosen(section: str, defs: dict[str, Schema]) -> Schema:
    """A component by name, or with settings. Those of another package's class are not known."""
    known = registry.names(section)
    meanings: dict[str, list[Schema]] = {}
    for name in known:
        for key, own in _described(registry.component(section, name), defs)["properties"].items():
            if own not in meanings.setdefault(key, []):
                meanings[key].append(own)
    # What a key may be depends on the name, which may stand elsewhere: any of its meanings will do.
    properties = {key: own[0] if len(own) == 1 else {"anyOf": own} for key, own in sorted(meanings.items())}
    names: Schema = {"anyOf": [{"enum": known}, {"type": "string", "pattern": ":"}]}
    settings = {"type": "object", "properties": {**properties, "name": names}, "additionalProperties": False}
    foreign = {"type": "object", "properties": {"name": {"pattern": ":"}}, "required": ["name"]}
    return {"anyOf": [names, settings, foreign, {"type": "null"}]}


def _described(cls: type[Section], defs: dict[str, Schema]) -> Schema:
    """A class's own schema, with docstrings, its parts moved to `defs`."""
    own = cls.model_json_schema()
    for title, part in own.pop("$defs", {}).items():
        if title in OPEN:
            defs[title] = {"$ref": f"#/$defs/{title.lower()}"}
        else:
            defs[title] = _with_texts(part, _texts(_section(title)))
    return _with_texts(own, _texts(cls))


def _with_texts(schema: Schema, texts: Mapping[str, str]) -> Schema:
    for field, own in schema.get("properties", {}).items():
        own.pop("title", None)
        if field in texts:
            own["description"] = texts[field]
    return schema
