"""A study: the question, what is fixed, what is searched, and for how long."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, PrivateAttr, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from gfe_study.config.base import InputError, Section, explained, suggestion
from gfe_study.config.files import read_yaml
from gfe_study.config.trial import PRESETS, Trial, flatten, merge, named, unflatten

RangeKind = Literal["uniform", "loguniform", "int", "logint", "choice"]
_FORMS = "{uniform: [low, high]}, {loguniform: [low, high]}, {int: …}, {logint: …} or {choice: [a, b, …]}"


def _refused(given: Any, allowed: str) -> PydanticCustomError:
    return PydanticCustomError("choice", "allowed: {allowed}", {"given": given, "allowed": allowed})


class Range(Section):
    """What one parameter is drawn from. In YAML, `{loguniform: [1, 1e4]}`; integer bounds are inclusive."""

    kind: RangeKind
    values: tuple[Any, ...]

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or len(given) != 1 or next(iter(given)) not in get_args(RangeKind):
            raise _refused(given, _FORMS)
        ((kind, values),) = given.items()
        if not isinstance(values, list | tuple):
            raise _refused(given, _FORMS)
        if kind == "choice":
            if not values:
                raise _refused(given, "a choice of at least one value")
            return {"kind": kind, "values": tuple(values)}
        number = (int,) if kind in ("int", "logint") else (int, float)
        if len(values) != 2 or any(isinstance(v, bool) or not isinstance(v, number) for v in values):
            raise _refused(given, "two whole numbers, low and high" if number == (int,) else "two numbers")
        low, high = values
        if kind.startswith("log") and low <= 0:
            raise _refused(given, "a logarithmic range above 0")
        if not low < high:
            raise _refused(given, "low below high")
        return {"kind": kind, "values": (low, high)}

    @model_serializer
    def _to_yaml(self) -> dict[str, Any]:
        return {self.kind: list(self.values)}

    def contains(self, value: Any) -> bool:
        """Whether a value can be drawn from this range."""
        if self.kind == "choice":
            return value in self.values
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        inside = self.values[0] <= value <= self.values[1]
        return bool(inside and (self.kind in ("uniform", "loguniform") or value == int(value)))


class Metric(Section):
    """What the search optimises: its value at the end of a trial's budget."""

    name: Literal["val_loss", "train_loss"] = "val_loss"
    mode: Literal["min", "max"] = "min"


class StudyBudget(Section):
    """What every trial may spend."""

    images: Annotated[int, Field(gt=0)] | None = None


class Study(Section):
    """A study as declared in `search_spaces/*.yaml`.

    `Study.load` checks, before anything starts, that both ends of every range and every choice give a valid
    trial.
    """

    question: str
    """One line: what the study answers."""
    fixed: dict[str, Any] = {}
    """Nested trial configuration, the same for all trials."""
    nuisance: dict[str, Range] = {}
    """Dotted keys and what they are drawn from."""
    start_from: tuple[str | dict[str, Any], ...] = ()
    """Tried first: names of presets, whose values of the searched keys are taken, or mappings of dotted keys."""
    budget: StudyBudget = StudyBudget()
    trials: int = Field(1, gt=0)
    """Configurations tried; with `seeds`, each is run that many times."""
    seeds: int = Field(1, gt=0)
    """Runs of every configuration, with seeds 0, 1, …; the search is told their mean."""
    sampler: Literal["tpe", "random"] = "tpe"
    sampler_seed: int = Field(0, ge=0)
    metric: Metric = Metric()

    _source: str = PrivateAttr("study")
    _source_sha256: str = PrivateAttr("")

    @model_validator(mode="after")
    def _nothing_is_given_twice(self) -> Self:
        for key in self.nuisance:
            if key in flatten(self.fixed):
                raise ValueError(f"{key} is given both under fixed and under nuisance")
        if "seed" in {*self.fixed, *self.nuisance}:
            raise ValueError("seed is given; allowed: seeds, the number of runs of every configuration")
        return self

    @classmethod
    def load(cls, path: Path, changes: Mapping[str, Any] | None = None, **options: Any) -> Self:
        """The study of a YAML file, with nested `--set` values laid over `fixed`, and options like `trials`.

        A changed key is no longer searched. Raises `InputError`.
        """
        study = cls.build(read_yaml(path), str(path), changes, **options)
        study._source_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        return study

    @classmethod
    def build(
        cls,
        declared: Mapping[str, Any],
        source: str,
        changes: Mapping[str, Any] | None = None,
        *,
        source_sha256: str = "",
        **options: Any,
    ) -> Self:
        """The study of a mapping that came from `source`; see `load`."""
        with explained(source):
            study = cls.model_validate(declared)
        if changes:
            changed = flatten({key: named(key, value) for key, value in changes.items()})
            searched = {key: drawn for key, drawn in study.nuisance.items() if key not in changed}
            starts = tuple(
                start if isinstance(start, str) else {key: start[key] for key in start if key not in changed}
                for start in study.start_from
            )
            fixed = merge(study.fixed, changes)
            study = study.model_copy(update={"fixed": fixed, "nuisance": searched, "start_from": starts})
        given = {key: value for key, value in options.items() if value is not None}
        with explained(source):
            study = cls.model_validate({**study.model_dump(), **given})
        study._source, study._source_sha256 = source, source_sha256
        study._check()
        return study

    @property
    def source(self) -> str:
        """The file the study was read from, for error lines."""
        return self._source

    @property
    def source_sha256(self) -> str:
        """Hash of the file the study was read from; empty if it was not read from one."""
        return self._source_sha256

    def trial(self, params: Mapping[str, Any], seed: int) -> Trial:
        """The trial at a point of the space. Raises `InputError`."""
        budget = {"budget": {"images": self.budget.images}} if self.budget.images is not None else {}
        layers = (budget, self.fixed, unflatten(params), {"seed": seed})
        return Trial.build(*layers, where=self._source)

    def start_points(self) -> list[dict[str, Any]]:
        """Values of the searched keys that are tried first. Raises `InputError` if one is out of its range."""
        points = []
        for start in self.start_from if self.nuisance else ():
            if isinstance(start, str):
                if start not in PRESETS:
                    near = suggestion(start, list(PRESETS))
                    raise InputError(f"{self._source}: start_from: given {start!r}; {near}")
                flat = flatten(Trial.build({**self.fixed, "preset": start}, where=self._source).dump())
                point = {key: flat[key] for key in self.nuisance if key in flat}
            else:
                point = dict(start)
            self._check_point(start, point)
            points.append(point)
        return points

    def _check_point(self, start: Any, point: Mapping[str, Any]) -> None:
        if set(point) != set(self.nuisance):
            missing = ", ".join(sorted(set(self.nuisance) ^ set(point)))
            raise InputError(f"{self._source}: start_from: {start}: {missing} not given, or not searched")
        for key, value in point.items():
            if not self.nuisance[key].contains(value):
                drawn = self.nuisance[key].model_dump()
                raise InputError(f"{self._source}: start_from: {key}: given {value!r}; allowed: {drawn}")

    def _check(self) -> None:
        # Both ends of every range, so that no draw can fail an hour into the study.
        middle = {key: drawn.values[0] for key, drawn in self.nuisance.items()}
        if self.start_from and self.nuisance:
            middle = self.start_points()[0]
        self.trial(middle, seed=0)
        for key, drawn in self.nuisance.items():
            for value in drawn.values:
                self.trial({**middle, key: value}, seed=0)


def space_folders() -> list[Path]:
    """Where search spaces are looked for: the working folder's, then the ones that come with the project."""
    shipped = Path(__file__).resolve().parents[2] / "search_spaces"
    return list(dict.fromkeys([Path("search_spaces").resolve(), shipped]))


def space_files() -> dict[str, Path]:
    """Name -> file of every search space that can be had."""
    found: dict[str, Path] = {}
    for folder in space_folders():
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def find_space(name: str) -> Path:
    """The file of a space, by its name or its path. Raises `InputError` naming the spaces there are."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    spaces = space_files()
    if name not in spaces:
        raise InputError(f"space {name!r} is unknown; {suggestion(name, list(spaces))}")
    return spaces[name]
