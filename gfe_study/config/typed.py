"""What a user types on the command line, and which of it an error is blamed on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from gfe_study.config.base import InputError
from gfe_study.config.files import parse_yaml
from gfe_study.config.trial import flatten, unflatten

Built = TypeVar("Built")


@dataclass(frozen=True)
class Typed:
    """One value that a user typed.

    Attributes:
        name: what errors call it: `--set solver.beta`, `--trials`, `DATASET`.
        key: the key that it gives, of a configuration or of a study.
        value: the value.
    """

    name: str
    key: str
    value: Any


def typed_sets(assignments: Sequence[str]) -> list[Typed]:
    """Read `["solver.beta=0.5", …]`, whose values are YAML. Raises `InputError` for anything else."""
    typed = []
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        key = key.strip()
        if not equals or not key:
            raise InputError(f"--set {assignment}: allowed: KEY=VALUE with a dotted key, like solver.beta=0.5")
        typed.append(Typed(f"--set {key}", key, parse_yaml(value, f"--set {key}")))
    return typed


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Parse `["solver.beta=0.5", …]` into nested mappings; values are YAML, and the last value of a key wins."""
    return blamed(dict, "", typed_sets(assignments))


def blamed(build: Callable[..., Built], where: str, changes: Sequence[Typed], options: Sequence[Typed] = ()) -> Built:
    """Build something from what was typed, and blame an error on that part of it without which the error is gone.

    Args:
        build: called with the changes as nested mappings, and with the options by their keys; on an error also with
            fewer of them.
        where: start of the messages of `build`'s errors.
        changes: changes of a configuration.
        options: other values.

    Raises:
        InputError: `build` raises one.
    """

    def attempt(typed: Sequence[Typed]) -> Built:
        flat: dict[str, Any] = {}
        for one in changes:
            flat |= flatten(unflatten({one.key: one.value})) if one in typed else {}
        return build(unflatten(flat), **{one.key: one.value for one in options if one in typed})

    everything = [*changes, *options]
    try:
        return attempt(everything)
    except InputError as error:
        culprits = _culprits(attempt, everything, str(error))
        if not culprits:
            raise
        raise InputError(_blame(culprits, str(error).removeprefix(f"{where}: "))) from error


def _culprits(attempt: Callable[[Sequence[Typed]], Any], everything: Sequence[Typed], text: str) -> Sequence[Typed]:
    """Return the values without which an error is gone, or is another one."""
    culprits = everything
    for one in reversed(everything):
        rest = [other for other in culprits if other != one]
        try:
            attempt(rest)
        except InputError as error:
            culprits = rest if str(error) == text else culprits
    return culprits


def _blame(culprits: Sequence[Typed], text: str) -> str:
    """Begin an error with the value that it is about, or else with the last of the values that cause it."""
    for one in culprits:
        key = re.escape(one.key.removesuffix(".name"))
        if found := re.match(rf"(?:arm .*?: )?{key}(?:\.name)?: ", text):
            return f"{one.name}: {text[found.end() :]}"
    return f"{culprits[-1].name}: {text}"
