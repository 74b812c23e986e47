"""What a study compares: arms, from a list, a factorial, or an ablation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from gfe_study.config.base import InputError, Section
from gfe_study.config.ranges import Condition, holds, refused
from gfe_study.config.trial import flatten, merge, unflatten

Design = Literal["leave_one_out", "add_one_in", "path"]
REFERENCE, BASE = "reference", "base"


@dataclass(frozen=True)
class Arm:
    """A configuration of the scientific parameters.

    Attributes:
        name: unique in its study; empty in a study that compares nothing.
        changes: nested configuration laid over the study's `fixed`.
        reference: name of the arm that this one is compared with; None for a reference itself.
        alone: why it is compared with none, though it is no reference.
        levels: of a factorial, factor -> level.
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
    return unflatten({str(key): value for key, value in changes.items()})


class Factor(Section):
    """The levels of one factor: name -> nested configuration, and when the factor applies at all."""

    levels: dict[str, dict[str, Any]] = Field(min_length=1)
    when: Condition = {}


class Factorial(Section):
    """Every combination of the levels of its factors.

    In YAML a factor is a dotted key with its values, `solver.name: [amd, rk4]`, or
    `solver.beta: {choice: [0.5, 0.75], when: {solver.name: amd}}`, or a name of its own with named levels,
    `depth: {levels: {shallow: {model.hidden: [64]}, deep: {model.hidden: [64, 64, 64]}}}`.
    """

    factors: dict[str, Factor] = Field(min_length=1)
    exclude: dict[str, Condition] = {}
    """Reason -> the combinations (dotted keys and values, or factors and levels) that are left out for it."""

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
        return {**given, "factors": {key: cls._factor(str(key), value) for key, value in factors.items()}}

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
            levels = {_text(level): unflatten({key: level}) for level in choice}
            if len(levels) < len(choice):
                raise refused(choice, f"{key}: values that read differently; or named levels, {{levels: {{name: …}}}}")
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
    """A reference configuration, and the factors whose part in it is asked for.

    `factors` gives what each factor is without: the values that remove or replace it. `leave_one_out` runs the
    reference and, for every factor, the reference without it; `add_one_in` the base, which has none of them,
    and the base with each alone; `path` goes from the base to the reference, one factor after the other.
    """

    reference: dict[str, Any] = {}
    """Laid over `fixed`; nested, or dotted keys."""
    factors: dict[str, dict[str, Any]] = Field(min_length=1)
    design: Design = "leave_one_out"

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
        """The reference with these factors taken out."""
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
    """What is compared: one of `arms`, `factorial` and `ablate`."""

    arms: dict[str, dict[str, Any]] = {}
    """Name -> configuration laid over `fixed`; nested, or dotted keys."""
    factorial: Factorial | None = None
    ablate: Ablation | None = None

    @model_validator(mode="before")
    @classmethod
    def _nested_arms(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and isinstance(given.get("arms"), Mapping):
            arms = {str(name): _nested(changes or {}, f"arms.{name}") for name, changes in given["arms"].items()}
            if len(arms) < len(given["arms"]):
                raise refused(list(given["arms"]), "arms: names that read differently")
            return {**given, "arms": arms}
        return given

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        given = [name for name in ("arms", "factorial", "ablate") if getattr(self, name)]
        if len(given) != 1:
            told = " and ".join(given) or "none"
            raise ValueError(f"{told} given; allowed: one of arms, factorial, ablate")
        return self

    def cells(self, flat: Mapping[str, Any], factor: str | None, level: str | None) -> tuple[list[Arm], list[Hole]]:
        """The arms of the design, and the cells that it excludes.

        Args:
            flat: the configuration that the arms are laid over, flat, for conditions.
            factor: of a factorial, the factor along which arms are compared; the first if None.
            level: its level, or of `arms` the arm, that the others are compared with; the first if None.

        Raises:
            InputError: `factor` or `level` is none of the design's.
        """
        if self.ablate is not None:
            if factor is not None or level not in (None, REFERENCE, BASE):
                raise InputError("compare: an ablation is compared with its own reference; leave factor and reference")
            return list(self.ablate.arms()), []
        if self.factorial is not None:
            return self._combinations(self.factorial, flat, factor, level)
        reference = level or next(iter(self.arms))
        if factor is not None:
            raise InputError(f"compare.factor: given {factor!r} with arms, which have no factors; leave it")
        if reference not in self.arms:
            raise InputError(f"compare.reference: given {reference!r}; allowed: {', '.join(self.arms)}")
        arms = [Arm(name, changes, None if name == reference else reference) for name, changes in self.arms.items()]
        return arms, []

    @staticmethod
    def _combinations(
        design: Factorial, flat: Mapping[str, Any], factor: str | None, level: str | None
    ) -> tuple[list[Arm], list[Hole]]:
        along = factor or next(iter(design.factors))
        if along not in design.factors:
            raise InputError(f"compare.factor: given {along!r}; allowed: {', '.join(design.factors)}")
        reference = level or next(iter(design.factors[along].levels))
        if reference not in design.factors[along].levels:
            allowed = ", ".join(design.factors[along].levels)
            raise InputError(f"compare.reference: given {reference!r}; allowed: {allowed}")
        cells: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
        holes = {}
        for combination in itertools.product(*(item.levels for item in design.factors.values())):
            chosen: dict[str, str] = {}
            changes: dict[str, Any] = {}
            for (key, item), name in zip(design.factors.items(), combination, strict=True):
                if holds(item.when, {**flat, **chosen, **flatten(changes)}):
                    chosen[key] = name
                    changes = merge(changes, item.levels[name])
            where = {**flat, **chosen, **flatten(changes)}
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
            # A factor that applies to one of the two only does not tell them apart.
            beside = [
                other
                for other in cells
                if dict(other).get(along) == reference
                and all(own[key] == name for key, name in other if key != along and key in own)
            ]
            counterpart = _cell_name(beside[0]) if len(beside) == 1 else None
            told = "no counterpart" if not beside else f"no single counterpart: {len(beside)} cells have {reference}"
            arms.append(Arm(_cell_name(levels), changes, counterpart, "" if counterpart else told, levels))
        unused = [why for why in design.exclude if why not in holes.values()]
        if unused:
            raise InputError(f"scientific.factorial.exclude: {unused[0]!r} matches no cell; allowed: cells there are")
        return arms, [Hole(_cell_name(levels), why) for levels, why in holes.items()]


def _cell_name(levels: tuple[tuple[str, str], ...]) -> str:
    """`amd, beta=0.5`: names speak for themselves, other values with their key."""
    shown = []
    for key, level in levels:
        section, dot, setting = key.rpartition(".")
        named = not dot or setting == "name" or not section
        shown.append(level if named else f"{setting}={level}")
    return ", ".join(shown)
