"""The design of a study: its arms, given as a list, a factorial, or an ablation."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from gfe_study.config.base import InputError, Section
from gfe_study.config.ranges import Condition, holds, in_one_spelling, refused
from gfe_study.config.trial import dotted, flatten, merge, once, unflatten
from gfe_study.registry import BASES

Design = Literal["leave_one_out", "add_one_in", "path"]
REFERENCE, BASE = "reference", "base"


@dataclass(frozen=True)
class Arm:
    """A configuration of the scientific parameters.

    Attributes:
        name: name, unique within the study; empty in a study that compares nothing.
        changes: nested configuration that overrides the study's `fixed`.
        reference: name of the arm that this one is compared with; None for a reference itself.
        alone: why the arm has no comparison although it is not a reference.
        levels: (factor, level) pairs in a factorial.
    """

    name: str
    changes: dict[str, Any]
    reference: str | None = None
    alone: str = ""
    levels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Hole:
    """A cell of the design that is not run, and why."""

    name: str
    reason: str


def _nested(changes: Any, where: str) -> dict[str, Any]:
    if not isinstance(changes, Mapping):
        raise refused(changes, f"{where}: a mapping of keys to values, like {{solver.name: amd}}")
    try:
        return unflatten({str(key): value for key, value in changes.items()})
    except InputError as error:
        raise ValueError(f"{where}: {error}") from error


class Factor(Section):
    """The levels of one factor (name -> nested configuration), and the condition under which the factor applies."""

    levels: dict[str, dict[str, Any]] = Field(min_length=1)
    when: Condition = {}

    def key(self, name: str) -> str:
        """Return the factor's name in one spelling: `solver.name` if it is `solver` and its levels are solvers."""
        by_name = all(changes == {name: {"name": level}} for level, changes in self.levels.items())
        return f"{name}.name" if name in BASES and by_name else name


class Factorial(Section):
    """Every combination of the levels of its factors.

    In YAML, a factor is a key with its values, `solver: [amd, rk4]`, or with a condition,
    `solver.beta: {choice: [0.5, 0.75], when: {solver: amd}}`, or a free name with named levels,
    `depth: {levels: {shallow: {model.hidden: [64]}, deep: {model.hidden: [64, 64, 64]}}}`.
    """

    factors: dict[str, Factor] = Field(min_length=1)
    exclude: dict[str, Condition] = {}
    """Reason -> the combinations to exclude, given as dotted keys and values or as factors and levels."""

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            raise refused(given, "factorial: {key: [value, …], …}")
        if "factors" not in given:
            given = {
                "factors": {key: value for key, value in given.items() if key != "exclude"},
                **({"exclude": given["exclude"]} if "exclude" in given else {}),
            }
        factors = given["factors"]
        if not isinstance(factors, Mapping):
            raise refused(factors, "factorial: {key: [value, …], …}")
        spread = dotted(factors, ("choice", "levels", "when"))
        return {**given, "factors": {key: cls._factor(str(key), value) for key, value in spread.items()}}

    @field_validator("factors")
    @classmethod
    def _conditions_of_factors(cls, factors: dict[str, Factor]) -> dict[str, Factor]:
        keys = once((factor.key(name), name) for name, factor in factors.items())  # refuses one factor in two spellings
        return {
            name: factor.model_copy(update={"when": in_one_spelling(factor.when, keys)})
            for name, factor in factors.items()
        }

    @field_validator("exclude")
    @classmethod
    def _conditions_of_exclusions(
        cls, exclude: dict[str, dict[str, tuple[Any, ...]]], info: ValidationInfo
    ) -> dict[str, dict[str, tuple[Any, ...]]]:
        keys = {factor.key(name) for name, factor in info.data.get("factors", {}).items()}
        return {reason: in_one_spelling(condition, keys) for reason, condition in exclude.items()}

    def by_key(self) -> dict[str, Factor]:
        """Return the factors under their names in one spelling."""
        return {factor.key(name): factor for name, factor in self.factors.items()}

    @staticmethod
    def _factor(key: str, value: Any) -> Any:
        if isinstance(value, Factor):
            return value
        if isinstance(value, list | tuple):
            value = {"choice": value}
        if not isinstance(value, Mapping) or not {"choice", "levels"} & set(value):
            raise refused(value, f"{key}: a list of values, {{choice: […], when: …}} or {{levels: {{name: {{…}}}}}}")
        rest = {name: content for name, content in value.items() if name not in ("choice", "levels")}
        if "choice" in value:
            choice = value["choice"]
            if not isinstance(choice, list | tuple) or not choice:
                raise refused(choice, f"{key}: a list of at least one value")
            read = [unflatten({key: level}) for level in choice]  # a path as the name of its class, if it has one
            levels = {_text(functools.reduce(operator.getitem, key.split("."), changes)): changes for changes in read}
            if len(levels) < len(choice):
                raise refused(
                    choice, f"{key}: values that differ when written as text, or named levels, {{levels: {{name: …}}}}"
                )
            return {"levels": levels, **rest}
        named = value["levels"]
        if not isinstance(named, Mapping):
            raise refused(named, f"{key}: levels: {{name: {{key: value}}}}")
        return {"levels": {str(name): _nested(changes, str(name)) for name, changes in named.items()}, **rest}


def _text(level: Any) -> str:
    if isinstance(level, Mapping):
        return str(level.get("name") or level)
    return f"{level:g}" if isinstance(level, float) else str(level).lower() if isinstance(level, bool) else str(level)


class Ablation(Section):
    """A reference configuration and the factors whose contribution to it is studied.

    `factors` maps each factor to the values that remove or replace it. `leave_one_out` runs the reference and, for each
    factor, the reference without it. `add_one_in` runs the base, which has none of the factors, and the base with each
    factor alone. `path` adds one factor after another, from the base to the reference.
    """

    reference: dict[str, Any] = {}
    """Configuration that overrides `fixed`, nested or in dotted keys."""
    factors: dict[str, dict[str, Any]] = Field(min_length=1)
    design: Design = "leave_one_out"
    """Which arms there are: see above."""

    @model_validator(mode="before")
    @classmethod
    def _nested_values(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            raise refused(given, "ablate: {reference: {…}, factors: {name: {key: value}}}")
        content = dict(given)
        if "reference" in content:
            content["reference"] = _nested(content["reference"], "reference")
        if isinstance(content.get("factors"), Mapping):
            content["factors"] = {str(k): _nested(v, f"factors.{k}") for k, v in content["factors"].items()}
        return content

    def without(self, removed: list[str]) -> dict[str, Any]:
        """Return the reference without these factors."""
        return merge(self.reference, *(self.factors[name] for name in removed))

    def arms(self) -> Iterator[Arm]:
        names = list(self.factors)
        match self.design:
            case "leave_one_out":
                yield Arm(REFERENCE, self.without([]))
                for name in names:
                    yield Arm(f"without {name}", self.without([name]), REFERENCE)
            case "add_one_in":
                yield Arm(BASE, self.without(names))
                for name in names:
                    yield Arm(f"with {name}", self.without([other for other in names if other != name]), BASE)
            case "path":
                yield Arm(BASE, self.without(names))
                before = BASE
                for count, name in enumerate(names, start=1):
                    yield Arm(f"+ {name}", self.without(names[count:]), before)
                    before = f"+ {name}"


class Scientific(Section):
    """The comparison of a study: one of `arms`, `factorial` and `ablate`."""

    arms: dict[str, dict[str, Any]] = {}
    """Name -> configuration that overrides `fixed`, nested or in dotted keys."""
    factorial: Factorial | None = None
    """Every combination of the levels of several factors."""
    ablate: Ablation | None = None
    """A reference, and arms that change some of its factors."""

    @model_validator(mode="before")
    @classmethod
    def _nested_arms(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and isinstance(given.get("arms"), Mapping):
            arms = {str(name): _nested(changes or {}, f"arms.{name}") for name, changes in given["arms"].items()}
            if len(arms) < len(given["arms"]):
                raise refused(list(given["arms"]), "arms: names that differ when written as text")
            return {**given, "arms": arms}
        return given

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        given = [name for name in ("arms", "factorial", "ablate") if getattr(self, name)]
        if len(given) != 1:
            text = " and ".join(given) or "none"
            raise ValueError(f"{text} given; allowed: one of arms, factorial, ablate")
        return self

    def cells(self, flat: Mapping[str, Any], factor: str | None, level: str | None) -> tuple[list[Arm], list[Hole]]:
        """Return the arms of the design and the cells that it excludes.

        Args:
            flat: flat configuration that the arms override; conditions are evaluated on it.
            factor: the factor of a factorial along which arms are compared; the first if None.
            level: the level of that factor, or the arm, that the others are compared with; the first if None.

        Raises:
            InputError: the design has no such `factor` or `level`.
        """
        if self.ablate is not None:
            if factor is not None or level not in (None, REFERENCE, BASE):
                raise InputError(
                    "compare: given for an ablation, which has its own reference; allowed: neither factor nor reference"
                )
            return list(self.ablate.arms()), []
        if self.factorial is not None:
            return self._combinations(self.factorial, flat, factor, level)
        reference = level or next(iter(self.arms))
        if factor is not None:
            raise InputError(f"compare.factor: given {factor!r} with arms, which have no factors; allowed: no factor")
        if reference not in self.arms:
            raise InputError(f"compare.reference: given {reference!r}; allowed: {', '.join(self.arms)}")
        arms = [Arm(name, changes, None if name == reference else reference) for name, changes in self.arms.items()]
        return arms, []

    @staticmethod
    def _combinations(
        design: Factorial, flat: Mapping[str, Any], factor: str | None, level: str | None
    ) -> tuple[list[Arm], list[Hole]]:
        factors = design.by_key()
        along = factor if factor in factors else f"{factor}.name" if factor else next(iter(factors))
        if along not in factors:
            raise InputError(f"compare.factor: given {factor!r}; allowed: {', '.join(design.factors)}")
        reference = level or next(iter(factors[along].levels))
        if reference not in factors[along].levels:
            raise InputError(f"compare.reference: given {reference!r}; allowed: {', '.join(factors[along].levels)}")
        cells: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
        holes = {}
        places: list[Mapping[str, Any]] = []
        for combination in itertools.product(*(item.levels for item in factors.values())):
            chosen: dict[str, str] = {}
            changes: dict[str, Any] = {}
            for (key, item), name in zip(factors.items(), combination, strict=True):
                if holds(item.when, {**flat, **chosen, **flatten(changes)}):
                    chosen[key] = name
                    changes = merge(changes, item.levels[name])
            where = {**flat, **chosen, **flatten(changes)}
            places.append(where)
            why = next((why for why, condition in design.exclude.items() if holds(condition, where)), None)
            if why is not None:
                holes[tuple(chosen.items())] = why
            else:
                cells[tuple(chosen.items())] = changes
        arms = []
        for levels, changes in cells.items():
            own = dict(levels)
            if own.get(along) == reference:
                arms.append(Arm(_cell_name(levels), changes, None, "", levels))
                continue
            # A factor that applies to only one of the two arms does not distinguish them.
            beside = [
                other
                for other in cells
                if dict(other).get(along) == reference
                and all(own[key] == name for key, name in other if key != along and key in own)
            ]
            counterpart = _cell_name(beside[0]) if len(beside) == 1 else None
            text = "no counterpart" if not beside else f"no single counterpart: {len(beside)} cells have {reference}"
            arms.append(Arm(_cell_name(levels), changes, counterpart, "" if counterpart else text, levels))
        # A condition may also depend on what is the same in all cells, like the dataset, and then hold in none.
        varied = {key for place in places for key in place if key not in flat or place[key] != flat[key]}
        unused = [
            why
            for why, condition in design.exclude.items()
            if not any(
                holds({key: values for key, values in condition.items() if key not in flat or key in varied}, place)
                for place in places
            )
        ]
        if unused:
            raise InputError(
                f"scientific.factorial.exclude: {unused[0]!r} matches no cell; allowed: conditions that match a cell"
            )
        return arms, [Hole(_cell_name(levels), why) for levels, why in holes.items()]


def _cell_name(levels: tuple[tuple[str, str], ...]) -> str:
    """Name a cell: `amd, beta=0.5`. Component names and named levels stand alone; other values get their key."""
    shown = []
    for key, level in levels:
        section, dot, setting = key.rpartition(".")
        named = not dot or setting == "name" or not section
        shown.append(level if named else f"{setting}={level}")
    return ", ".join(shown)
