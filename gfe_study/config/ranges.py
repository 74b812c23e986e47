"""Ranges of searched parameters, and the conditions under which they apply."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from itertools import islice
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, PlainSerializer, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from gfe_study.config.base import Section
from gfe_study.config.trial import by_name, flatten, once
from gfe_study.registry import BASES

RangeKind = Literal["uniform", "loguniform", "int", "logint", "choice"]
RANGE_KEYS = (*get_args(RangeKind), "when", "points")
_FORMS = "{uniform: [low, high]}, {loguniform: [low, high]}, {int: …}, {logint: …} or {choice: [a, b, …]}"
GRID_POINTS = 3
"""Default number of values that a grid takes from a continuous range."""
MAX_POINTS = 10_000


def refused(given: Any, allowed: str) -> PydanticCustomError:
    """Return the validation error of a value that is not allowed."""
    return PydanticCustomError("choice", "allowed: {allowed}", {"given": given, "allowed": allowed})


def _condition(given: Any) -> dict[str, tuple[Any, ...]]:
    if not isinstance(given, Mapping):
        raise refused(given, "when: {key: value} or {key: [value, …]}, like {solver.name: amd}")
    spread = once(
        (dotted_key, value)
        for key, below in given.items()
        for dotted_key, value in (flatten({key: below}) if isinstance(below, Mapping) else {str(key): below}).items()
    )
    return {key: tuple(value) if isinstance(value, list | tuple) else (value,) for key, value in spread.items()}


def _plain(condition: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    return {key: list(values) if len(values) > 1 else values[0] for key, values in condition.items()}


Condition = Annotated[dict[str, tuple[Any, ...]], BeforeValidator(_condition), PlainSerializer(_plain)]
"""Dotted keys and the values under which something applies; all keys must match."""


def in_one_spelling(condition: Mapping[str, tuple[Any, ...]], factors: Collection[str]) -> dict[str, tuple[Any, ...]]:
    """Return a condition in dotted keys: under the key of a section, a value is a name of the section.

    Args:
        factors: factors with named levels; under the key of one of these, a value is a level.
    """
    spelled = once((key, values) if key in factors else by_name(key, values) for key, values in condition.items())
    for key, values in spelled.items():
        if key in BASES and key not in factors and any(isinstance(value, Mapping) for value in values):
            raise refused(list(condition[key]), f"when: {key}: names, or one mapping of its settings")
    return spelled


def holds(condition: Mapping[str, tuple[Any, ...]], flat: Mapping[str, Any]) -> bool:
    """Return whether a flat configuration satisfies a condition; a missing key never does."""
    return all(key in flat and flat[key] in values for key, values in condition.items())


class Range(Section):
    """The range of one parameter. In YAML, `{loguniform: [1, 1e4]}`; integer bounds are inclusive.

    `{uniform: [0.3, 0.95], when: {solver.name: amd}}` applies only where the condition holds; `points: 5` sets the
    number of values that a grid takes from a continuous range.
    """

    kind: RangeKind
    values: tuple[Any, ...]
    when: Condition = {}
    points: int = GRID_POINTS

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            raise refused(given, _FORMS)
        kinds = [key for key in given if key not in ("when", "points")]
        if len(kinds) != 1 or kinds[0] not in get_args(RangeKind):
            raise refused(dict(given), _FORMS)
        kind, values = kinds[0], given[kinds[0]]
        extra: dict[str, Any] = {"when": given["when"]} if "when" in given else {}
        if "points" in given:
            if type(given["points"]) is not int or not 2 <= given["points"] <= MAX_POINTS:
                raise refused(given["points"], f"points: a whole number from 2 to {MAX_POINTS}")
            extra["points"] = given["points"]
        if not isinstance(values, list | tuple):
            raise refused(dict(given), _FORMS)
        if kind == "choice":
            if not values:
                raise refused(dict(given), "a choice of at least one value")
            return {"kind": kind, "values": tuple(values), **extra}
        number = (int,) if kind in ("int", "logint") else (int, float)
        if len(values) != 2 or any(isinstance(v, bool) or not isinstance(v, number) for v in values):
            raise refused(dict(given), "two whole numbers, low and high" if number == (int,) else "two numbers")
        low, high = values
        if kind.startswith("log") and low <= 0:
            raise refused(dict(given), "a logarithmic range above 0")
        if not low < high:
            raise refused(dict(given), "low below high")
        return {"kind": kind, "values": (low, high), **extra}

    @model_serializer
    def _to_yaml(self) -> dict[str, Any]:
        written: dict[str, Any] = {self.kind: list(self.values)}
        if self.when:
            written["when"] = _plain(self.when)
        if self.points != GRID_POINTS:
            written["points"] = self.points
        return written

    def contains(self, value: Any) -> bool:
        """Return whether this range contains a value."""
        if self.kind == "choice":
            return value in self.values
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        inside = self.values[0] <= value <= self.values[1]
        return bool(inside and (self.kind in ("uniform", "loguniform") or value == int(value)))

    def inside(self) -> list[Any]:
        """Return a few values between the ends; a check that passes at both ends may fail between them."""
        if self.kind == "choice":
            return []
        low, high = self.values
        shares = [0.5 * (math.sqrt(5) - 1), 0.5, 0.1]
        if self.kind.startswith("log"):
            between = [low * (high / low) ** share for share in shares]
        else:
            between = [low + (high - low) * share for share in shares]
        if self.kind in ("int", "logint"):
            between = list(dict.fromkeys([*map(round, between), low + 1]))
        return [value for value in between if low < value < high]

    def every(self) -> list[Any]:
        """Return all values of a choice or a small integer range; empty for other ranges."""
        if self.kind == "choice":
            return list(self.values)
        low, high = self.values
        return list(range(low, high + 1)) if self.kind in ("int", "logint") and high - low < MAX_POINTS else []

    def grid(self) -> list[Any]:
        """Return the values that a grid takes: all choices, or `points` evenly spaced ones (in log space if log)."""
        if self.kind == "choice":
            return list(self.values)
        low, high = self.values
        if self.kind.startswith("log"):
            ratio = math.log(high / low)
            spaced = [low * math.exp(ratio * i / (self.points - 1)) for i in range(self.points)]
        else:
            spaced = [low + (high - low) * i / (self.points - 1) for i in range(self.points)]
        spaced = [low, *spaced[1:-1], high]
        return spaced if self.kind in ("uniform", "loguniform") else list(dict.fromkeys(round(v) for v in spaced))


def _several(given: Any) -> Any:
    return given if isinstance(given, list | tuple) else (given,)


def _as_written(ranges: tuple[Range, ...]) -> Any:
    written = [drawn.model_dump() for drawn in ranges]
    return written[0] if len(written) == 1 else written


def searched(key: str, ranges: tuple[Range, ...], factors: Collection[str]) -> tuple[str, tuple[Range, ...]]:
    """Return a searched key and its ranges in one spelling, and their conditions in dotted keys; see `by_name`."""
    spelled, values = by_name(key, [value for drawn in ranges for value in drawn.values])
    rest = iter(values)
    return spelled, tuple(
        drawn.model_copy(
            update={
                "values": tuple(islice(rest, len(drawn.values))),
                "when": in_one_spelling(drawn.when, factors),
            }
        )
        for drawn in ranges
    )


Ranges = Annotated[tuple[Range, ...], BeforeValidator(_several), PlainSerializer(_as_written)]
"""One range, or several; the first whose `when` holds applies."""
