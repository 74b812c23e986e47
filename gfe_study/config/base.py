"""Foundations of the configuration: frozen sections and one-line errors."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from gfe_study import registry

if TYPE_CHECKING:
    from gfe_study.config.trial import Trial


class InputError(ValueError):
    """The user's input is invalid. `str()` is one line: where, which key, what was given, what is allowed."""


class ImpossiblePair(InputError):
    """Each value is allowed on its own, but not their combination: an invalid combination, not a typo."""


def suggestion(given: str, allowed: list[str]) -> str:
    """Return the end of an error message: the closest match, if any, and all allowed values."""
    near = difflib.get_close_matches(given, allowed, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"allowed: {', '.join(sorted(allowed))}"


class Section(BaseModel):
    """A frozen section of the configuration that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    implies: ClassVar[Mapping[str, Any]] = {}
    """Defaults that this section sets in others when chosen, as dotted keys; explicit values take precedence."""
    outlast_name: ClassVar[frozenset[str]] = frozenset()
    """Settings that mean the same under every name and are kept when a later layer renames the section."""

    immaterial: ClassVar[frozenset[str]] = frozenset()
    """Settings that fingerprints leave out: they change no number, or the hash of the data covers them."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            fields = cls.model_fields
            for key, value in values.items():
                if key not in fields:
                    near = suggestion(str(key), list(fields))
                    raise PydanticCustomError("unknown_key", "{near}", {"key": str(key), "near": near})
                if isinstance(value, bool) and re.search(r"\b(int|float)\b", str(fields[key].annotation)):
                    raise PydanticCustomError(
                        "not_a_number",
                        "{key}: given {value}; allowed: a number",
                        {"key": key, "value": str(value).lower()},
                    )
        return values


class Component(Section):
    """A section that is chosen by name: a solver, a dataset, …

    A subclass has its settings as fields, and no name: it is called what it is registered as, or else its path,
    `package.module:Class`.
    """

    colour: ClassVar[str | None] = None
    """The colour of its curves in figures, `#rrggbb`, a literal in the class's own body; None: any that is free."""
    example: ClassVar[Mapping[str, Any]] = {}
    """Settings that make it small and quick: what the contract tests of `gfe_study.testing` check it with."""

    name: str = ""

    @model_validator(mode="before")
    @classmethod
    def _has_its_name(cls, values: Any) -> Any:
        own = registry.name_of(cls)
        if not isinstance(values, Mapping):
            return values
        if values.get("name", own) != own:
            raise PydanticCustomError("choice", "allowed: {own}", {"given": values["name"], "own": own})
        return {**values, "name": own}

    def check_trial(self, trial: Trial) -> None:
        """Raise `ValueError`, with the reason, if this component cannot serve the trial's other choices."""


class explained:
    """Context manager that turns pydantic's validation errors into a one-line `InputError`."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ValidationError):
            # An error without a location comes from a check of several keys together.
            together = all(detail["type"] == "value_error" and not detail["loc"] for detail in error.errors())
            kind = ImpossiblePair if together else InputError
            raise kind(f"{self.where}: {'; also '.join(_complaints(error))}") from error


_ALTERNATIVE = re.compile(r"(literal|list|tuple|dict)\[|(constrained|function)-|(int|float|str|bool)$")
"""What pydantic adds to the location of a value that may be of several kinds: the kind, like `literal['data']`."""


def _merged(error: ValidationError) -> Iterator[Any]:
    """Yield an error's details; of a value that may be of several kinds one, which allows what any of them allows."""
    alternatives: dict[tuple[int | str, ...], Any] = {}
    for detail in error.errors():
        path = detail["loc"]
        if not path or not _ALTERNATIVE.match(str(path[-1])):
            yield detail
        elif first := alternatives.get(path[:-1]):
            first["msg"] += " or " + detail["msg"].removeprefix("Input should be ")
        else:
            alternatives[path[:-1]] = {**detail, "loc": path[:-1]}
    yield from alternatives.values()


def _complaints(error: ValidationError) -> Iterator[str]:
    for detail in list(_merged(error))[:3]:
        context = detail.get("ctx", {})
        path = [str(part) for part in detail["loc"]]
        if path[:1] == ["nuisance"] and path[2:3] == ["0"]:
            del path[2]  # a single range need not be written as a list
        kind, message = detail["type"], detail["msg"]
        if kind == "unknown_key":
            yield f"{'.'.join([*path, context['key']])}: unknown key; {message}"
        elif kind == "not_a_number":
            yield f"{'.'.join([*path, context['key']])}: given {context['value']}; allowed: a number"
        elif kind == "choice":
            yield f"{'.'.join(path)}: given {context['given']!r}; {message}"
        elif kind == "missing":
            yield f"{'.'.join(path)}: not given"
        elif kind == "model_type":
            yield f"{'.'.join(path)}: given {detail['input']!r}; allowed: settings, like {{key: value}}"
        else:
            message = message.removeprefix("Value error, ")
            allowed = re.sub(r"^Input should be ", "allowed: ", message)
            given = f"given {detail['input']!r}; " if path and allowed != message else ""
            yield ": ".join(filter(None, [".".join(path), given + allowed]))
