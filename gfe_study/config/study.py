"""The declaration of a study: its question, its fixed and searched parameters, and its budget."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from gfe_study import registry
from gfe_study.config.base import ImpossiblePair, InputError, Section, explained, suggestion
from gfe_study.config.design import Arm, Hole, Scientific
from gfe_study.config.files import find_space, read_yaml
from gfe_study.config.options import (
    MOST_SEEDS,
    MOST_TRIALS,
    Asha,
    Compare,
    Metric,
    Nested,
    Resources,
    StudyBudget,
    Then,
    check_choice,
)
from gfe_study.config.ranges import RANGE_KEYS, Range, Ranges, holds, searched
from gfe_study.config.trial import PRESETS, Trial, dotted, flatten, merge, once, unflatten
from gfe_study.metrics import COMMON_TEST_LOSS, COMMON_VAL_LOSS, WITHHELD, Values, info_of

ARM = "arm"
"""Key under which a condition can refer to the arm: `when: {arm: ae}`."""
KEPT_TRIALS = 1000
"""How many validated trials a study keeps: a point's trial is wanted several times in a row, and for every seed."""
WHOLE_GRID = MOST_TRIALS
"""Default number of trials of a grid: all of its points."""


def _point(given: Mapping[str, Any], nuisance: Mapping[str, Any]) -> dict[str, Any]:
    """Return a point under the keys that are searched, of which some may be whole sections."""
    flat = flatten(unflatten(given))
    whole = {key: value for key, value in flat.items() if key not in nuisance and key.partition(".")[0] in nuisance}
    return {key: value for key, value in flat.items() if key not in whole} | unflatten(whole)


class Study(Section):
    """A study as declared in `search_spaces/*.yaml`.

    `Study.load` checks before anything starts that, in every arm, every choice, both ends of every range and some
    values between them give a valid trial.
    """

    question: str
    """The question that the study answers, in one line."""
    fixed: Nested = {}
    """Configuration that all trials share, nested or in dotted keys."""
    scientific: Scientific | None = None
    """The arms to compare; without it the study is a single search."""
    nuisance: dict[str, Ranges] = {}
    """Keys and the ranges to search; every arm is searched separately."""
    start_from: tuple[str | dict[str, Any], ...] = ()
    """Points to try first: names of presets, which supply values of the searched keys, or mappings of those keys."""
    budget: StudyBudget = StudyBudget()
    trials: int = Field(1, gt=0, le=MOST_TRIALS)
    """Configurations to try in every arm; each is run with `seeds` different seeds."""
    seeds: int = Field(1, gt=0, le=MOST_SEEDS)
    """Runs of every configuration, with seeds 0, 1, …; the search optimises their mean."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """`tpe`: Optuna's tree-structured Parzen estimator; `random`; `grid`: every point of discrete ranges."""
    sampler_seed: int = Field(0, ge=0)
    """Seeds what the sampler draws."""
    parallel: int | None = Field(None, gt=0)
    """Configurations per arm that the search may have in progress. With n of them, the next suggestion depends on the
    results of all earlier configurations but the last n − 1, in whatever order trials end. None: one more than fit at
    once, at least 3."""
    scheduler: Literal["asha", "none"] | None = None
    """Early stopping. None: `asha` if the study explores (a search with one arm and one seed), `none` otherwise."""
    asha: Asha = Asha()
    metric: Metric = Metric()
    compare: Compare = Compare()
    then: Then | None = None
    """A second stage, which repeats the best configurations of every arm with fresh seeds; null: none."""
    resources: Resources = Resources()
    keep: int = Field(5, gt=0)
    """How many of each arm's best decoders to keep."""
    hang_seconds: float = Field(900.0, gt=0)
    """A trial that does not report for this many seconds is stopped and marked as failed."""

    _source: str = PrivateAttr("study")
    _source_sha256: str = PrivateAttr("")
    _arms: list[Arm] = PrivateAttr(default_factory=list)
    _holes: list[Hole] = PrivateAttr(default_factory=list)
    _bases: dict[tuple[str, int, str], dict[str, Any]] = PrivateAttr(default_factory=dict)
    _trials: dict[tuple[str, int, str], Trial] = PrivateAttr(default_factory=dict)
    _flat: dict[str, dict[str, Any]] = PrivateAttr(default_factory=dict)
    _grid_sizes: dict[str, int] = PrivateAttr(default_factory=dict)
    _searches: dict[str, bool] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _a_grid_is_tried_whole(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("sampler") == "grid" and "trials" not in given:
            return {**given, "trials": WHOLE_GRID}
        return given

    @field_validator("nuisance", mode="before")
    @classmethod
    def _dotted_keys(cls, given: Any) -> Any:
        return dotted(given, RANGE_KEYS) if isinstance(given, Mapping) else given

    @field_validator("nuisance")
    @classmethod
    def _searched_in_one_spelling(
        cls, nuisance: dict[str, tuple[Range, ...]], info: ValidationInfo
    ) -> dict[str, tuple[Range, ...]]:
        scientific = info.data.get("scientific")
        factorial = scientific.factorial if scientific is not None else None
        factors = factorial.by_key() if factorial is not None else {}
        return once(searched(key, ranges, factors) for key, ranges in nuisance.items())

    @field_validator("start_from")
    @classmethod
    def _started_in_one_spelling(
        cls, starts: tuple[str | dict[str, Any], ...], info: ValidationInfo
    ) -> tuple[str | dict[str, Any], ...]:
        return tuple(
            start if isinstance(start, str) else _point(start, info.data.get("nuisance", {})) for start in starts
        )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        for key in self.nuisance:
            if key == "seed":
                raise ValueError("seed: given; allowed: seeds, the number of runs of every configuration")
            if key.partition(".")[0] in ("data", "eval", "budget"):
                raise ValueError(f"{key} cannot be searched: losses on other data or budgets are not comparable")
            if not self.nuisance[key]:
                raise ValueError(f"nuisance.{key}: given no range; allowed: one, or a list of them")
        once((each, f"nuisance.{key}") for key in self.nuisance for each in sorted(self._keys(key)))  # or refuses
        self._refuse_searched(self.fixed, "fixed")
        if self.then is not None:
            self._refuse_searched(self.then.fixed, "then.fixed")
        if "seed" in self.fixed or (self.then is not None and "seed" in self.then.fixed):
            raise ValueError("seed: given; allowed: seeds, the number of runs of every configuration")
        if not self.nuisance and (self.start_from or self.trials > 1) and self.sampler != "grid":
            what = f"trials: given {self.trials}" if self.trials > 1 else "start_from: given"
            raise ValueError(f"{what} without nuisance, with nothing to search; allowed: seeds, for replicates")
        if self.scheduler == "asha" and not self.explores:
            raise ValueError(
                "scheduler: given 'asha'; allowed: none, where arms or seeds are compared: "
                "stopping the slow starters biases the comparison"
            )
        if self.metric.against and self.then is not None:
            raise ValueError("then: given with metric.against; allowed: one objective, by which winners are chosen")
        return self

    def _choices(self, searched_key: str) -> list[Any]:
        return [value for drawn in self.nuisance[searched_key] for value in drawn.values]

    def _keys(self, searched_key: str) -> set[str]:
        """Return the keys of the configuration that a searched key gives: several if it chooses whole sections."""
        return {key for value in self._choices(searched_key) for key in flatten(unflatten({searched_key: value}))}

    def _refuse_searched(self, given: Mapping[str, Any], where: str) -> None:
        if twice := sorted(flatten(given).keys() & set().union(*map(self._keys, self.nuisance))):
            raise ValueError(f"{twice[0]} is given both under {where} and under nuisance")

    @classmethod
    def load(cls, path: Path | str, changes: Mapping[str, Any] | None = None, **options: Any) -> Self:
        """Load a study from a YAML file.

        Args:
            path: the file; as text, also the name of a shipped space, like `amd`.
            changes: nested values that override `fixed`; a changed key is no longer searched.
            options: values of other keys, such as `trials`; None keeps the file's.

        Raises:
            InputError: the file or a change is invalid.
        """
        path = find_space(path) if isinstance(path, str) else path
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
        """Build a study from a mapping that was read from `source`; see `load`."""
        given = {key: value for key, value in options.items() if value is not None}
        with explained(source):
            study = cls.model_validate(declared)
            if changes or given:
                study = cls.model_validate({**study._changed(changes or {}), **given})
        study._source, study._source_sha256 = source, source_sha256
        study._lay_out()
        study._check()
        study._check_metrics()
        return study

    def _changed(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the declaration of this study with other fixed values, whose keys are not searched."""
        declared, changes = self.model_dump(), unflatten(changes)
        changed = {*flatten(changes)}
        dropped = {key for key in self.nuisance if changed & self._keys(key)}
        declared["nuisance"] = {key: drawn for key, drawn in declared["nuisance"].items() if key not in dropped}
        declared["start_from"] = [
            start if isinstance(start, str) else {key: start[key] for key in start if key not in changed | dropped}
            for start in self.start_from
        ]
        declared["fixed"] = merge(self.fixed, changes)
        if isinstance(budget := changes.get("budget"), Mapping):
            declared["budget"] |= {key: value for key, value in budget.items() if key in StudyBudget.model_fields}
        return declared

    @property
    def source(self) -> str:
        """The file that the study was read from, for error messages."""
        return self._source

    @property
    def source_sha256(self) -> str:
        """SHA-256 of the file that the study was read from; empty if it was not read from a file."""
        return self._source_sha256

    @property
    def values(self) -> Values:
        """What the values of the study's data are called."""
        return Values.shared(self.example(arm).data.called for arm in self._arms)

    @property
    def explores(self) -> bool:
        """Whether the study is a plain search: it compares nothing, and every configuration has one seed."""
        return bool(self.nuisance) and self.scientific is None and self.seeds == 1 and not self.metric.against

    @property
    def stops_early(self) -> bool:
        """Whether trials of the first stage may be stopped by successive halving."""
        return self.scheduler == "asha" or (self.scheduler is None and self.explores)

    @property
    def arms(self) -> list[Arm]:
        """The arms to compare; a study that compares nothing has one arm with an empty name."""
        return self._arms

    @property
    def holes(self) -> list[Hole]:
        """Cells of the design that are excluded or impossible, with the reason."""
        return self._holes

    def arm(self, name: str) -> Arm:
        """Return the arm of that name. Raises `KeyError`."""
        found = {arm.name: arm for arm in self._arms}
        return found[name]

    def stages(self) -> range:
        """Return the stages: 0 is the search or the comparison, 1 is the second stage declared by `then`."""
        return range(1 if self.then is None else 2)

    def seeds_of(self, stage: int) -> range:
        """Return the seeds of a stage; the second stage has its own, because the first one's chose the winners."""
        if stage == 0 or self.then is None:
            return range(self.seeds)
        return range(self.seeds, self.seeds + self.then.seeds)

    def configurations(self, arm: Arm | str, stage: int = 0) -> int:
        """Return the largest number of configurations of an arm in a stage."""
        name = arm if isinstance(arm, str) else arm.name
        wanted = self.trials if self.searches(name) else 1
        if self.sampler == "grid":
            if name not in self._grid_sizes:
                cells, starts = self.grid(arm), self.start_points(arm)
                self._grid_sizes[name] = len(cells) + sum(start not in cells for start in starts)
            wanted = min(wanted, self._grid_sizes[name])
        return min(self.then.best, wanted) if stage and self.then is not None else wanted

    def searches(self, arm: str) -> bool:
        """Return whether an arm has settings to search. If not, it has one configuration, and needs no more."""
        if arm not in self._searches:
            self._searches[arm] = bool(self.completed({}, arm))
        return self._searches[arm]

    def grid(self, arm: Arm | str) -> list[dict[str, Any]]:
        """Return every point of an arm's grid; the last key varies fastest. Raises `InputError` if it is too large."""
        points = self.points(arm, Range.grid, MOST_TRIALS)
        if not points:
            raise InputError(f"{self._source}: sampler: grid: more than {MOST_TRIALS:,} points; allowed: fewer")
        return points

    def points(self, arm: Arm | str, values_of: Callable[[Range], list[Any]], most: int) -> list[dict[str, Any]]:
        """Return every combination of the values that `values_of` gives for each range that applies to an arm.

        Empty if a range has no such values, or if there are more than `most` combinations.
        """
        points: list[dict[str, Any]] = [{}]
        for key in self.nuisance:
            grown: list[dict[str, Any]] = []
            for point in points:
                drawn_from = self.range_of(key, arm, point)
                values = values_of(drawn_from) if drawn_from is not None else []
                if drawn_from is not None and not values:
                    return []
                grown += [{**point, key: value} for value in values] if drawn_from is not None else [point]
                if len(grown) > most:
                    return []
            points = grown
        return points

    def trial(self, params: Mapping[str, Any], seed: int, arm: Arm | str = "", stage: int = 0) -> Trial:
        """Return the trial of an arm at a point of its space. Raises `InputError` if it is invalid."""
        return self._trial(params, arm, stage).with_seed(seed, self._where(arm))

    def _trial(self, params: Mapping[str, Any], arm: Arm | str, stage: int = 0) -> Trial:
        """Return the trial at a point with seed 0, which is validated once."""
        arm, trials = self.arm(arm) if isinstance(arm, str) else arm, self._trials
        key = arm.name, stage, json.dumps(params, default=repr)
        if key not in trials:
            base = self._base(params.get("preset"), arm, stage)
            trial = Trial.over(base, unflatten(params), where=self._where(arm))
            if len(trials) >= KEPT_TRIALS:
                trials.clear()
            trials[key] = trial
        return trials[key]

    def _base(self, preset: Any, arm: Arm, stage: int) -> dict[str, Any]:
        key = arm.name, stage, repr(preset)
        if key not in self._bases:
            named = {} if preset is None else {"preset": preset}
            self._bases[key] = Trial.base(*self._layers(arm, stage), named, where=self._where(arm))
        return self._bases[key]

    def example(self, arm: Arm | str, stage: int = 0) -> Trial:
        """Return one trial of an arm: its first starting point, or the first values of its ranges."""
        starts = self.start_points(arm)
        return self.trial(starts[0] if starts else self.completed({}, arm), 0, arm, stage)

    def _layers(self, arm: Arm, stage: int) -> list[Mapping[str, Any]]:
        layers: list[Mapping[str, Any]] = [self.budget.layer(), self.fixed, arm.changes]
        if stage and self.then is not None:
            if replaced := self.then.budget.layer():
                # The second stage's budget replaces the first's as a whole: limits it does not name must not remain.
                layers.append({"budget": {"nfe": None, "seconds": None, "patience": None, **replaced["budget"]}})
            layers.append(self.then.fixed)
        return layers

    def _where(self, arm: Arm | str) -> str:
        name = arm if isinstance(arm, str) else arm.name
        return f"{self._source}: arm {name!r}" if name else self._source

    def range_of(self, key: str, arm: Arm | str, drawn: Mapping[str, Any]) -> Range | None:
        """Return the range of a key in an arm, given the values drawn before it; None if the key does not apply."""
        arm = self.arm(arm) if isinstance(arm, str) else arm
        if arm.name not in self._flat:
            own = flatten(arm.changes)
            levels = {key: level for key, level in arm.levels if key not in own}
            self._flat[arm.name] = {ARM: arm.name, **self._values(self._trial({}, arm)), **levels}
        flat = {**self._flat[arm.name], **flatten(unflatten(drawn))}
        return next((drawn_from for drawn_from in self.nuisance[key] if holds(drawn_from.when, flat)), None)

    def _values(self, trial: Trial) -> dict[str, Any]:
        """Return a trial's values; a section that is searched as a whole is the choice that agrees with it, if any."""
        sections = trial.dump()
        values = flatten(sections)
        for key in self.nuisance:
            if isinstance(own := sections.get(key), Mapping):
                choices = (choice for choice in self._choices(key) if isinstance(choice, Mapping))
                values[key] = next((choice for choice in choices if choice.items() <= own.items()), own)
        return values

    def fits(self, params: Mapping[str, Any], arm: Arm | str) -> bool:
        """Return whether a point gives every key that applies to an arm a value in its range, and has no other keys."""
        drawn: dict[str, Any] = {}
        for key in self.nuisance:
            drawn_from = self.range_of(key, arm, drawn)
            if drawn_from is None:
                continue
            if key not in params or not drawn_from.contains(params[key]):
                return False
            drawn[key] = params[key]
        return drawn == dict(params)

    def completed(self, given: Mapping[str, Any], arm: Arm | str) -> dict[str, Any]:
        """Complete a point of an arm's space.

        Each key that applies takes the given value, else the arm's own value if its range contains that, else the
        first value of its range.
        """
        arm = self.arm(arm) if isinstance(arm, str) else arm
        params: dict[str, Any] = {}
        for key in self.nuisance:
            drawn_from = self.range_of(key, arm, params)
            if drawn_from is None:
                continue
            own = self._flat[arm.name].get(key)
            params[key] = given.get(key, own if drawn_from.contains(own) else drawn_from.values[0])
        return params

    def start_points(self, arm: Arm | str | None = None) -> list[dict[str, Any]]:
        """Return the points that an arm tries first. Raises `InputError` if a value is out of its range."""
        chosen = self._arms[0] if arm is None else self.arm(arm) if isinstance(arm, str) else arm
        points: list[dict[str, Any]] = []
        for start in self.start_from if self.nuisance else ():
            if isinstance(start, str):
                if start not in PRESETS:
                    near = suggestion(start, list(PRESETS))
                    raise InputError(f"{self._source}: start_from: given {start!r}; {near}")
                given = self._values(self._trial({"preset": start}, chosen))
            else:
                given = dict(start)
                if unknown := sorted(set(given) - set(self.nuisance)):
                    raise InputError(f"{self._source}: start_from: {start}: {', '.join(unknown)} not searched")
            point = self.completed(given, chosen)
            if not isinstance(start, str) and (missing := sorted(set(point) - set(given))) and not self.scientific:
                raise InputError(f"{self._source}: start_from: {start}: {', '.join(missing)} not given")
            self._check_point(point, chosen)
            points.append(point)
        return points

    def _check_point(self, point: Mapping[str, Any], arm: Arm) -> None:
        drawn: dict[str, Any] = {}
        for key, value in point.items():
            drawn_from = self.range_of(key, arm, drawn)
            if drawn_from is not None and not drawn_from.contains(value):
                allowed = drawn_from.model_dump()
                raise InputError(f"{self._source}: start_from: {key}: given {value!r}; allowed: {allowed}")
            drawn[key] = value

    def _lay_out(self) -> None:
        if self.scientific is None:
            if self.compare.reference or self.compare.factor:
                raise InputError(f"{self._source}: compare: a reference is given; allowed: with scientific only")
            self._arms = [Arm("", {})]
            return
        flat = flatten(Trial.build(self.budget.layer(), self.fixed, where=self._source).dump())
        try:
            cells, self._holes = self.scientific.cells(flat, self.compare.factor, self.compare.reference)
        except InputError as error:
            raise InputError(f"{self._source}: {error}") from error
        same: dict[str, str] = {}
        for arm in cells:
            own = flatten(arm.changes)
            if twice := sorted(own.keys() & {"seed"}.union(*map(self._keys, self.nuisance))):
                allowed = "seeds" if twice[0] == "seed" else "one of them"
                raise InputError(
                    f"{self._where(arm)}: {twice[0]} is given both by the arm and by the study's search or seeds; "
                    f"allowed: {allowed}"
                )
            try:
                content = self._trial({}, arm).group("")
            except ImpossiblePair as error:
                reason = str(error).removeprefix(f"{self._where(arm)}: ")
                self._holes.append(Hole(arm.name, reason))
                continue
            if content in same:
                raise InputError(
                    f"{self._source}: scientific: {arm.name!r} is the same configuration as {same[content]!r}; "
                    "allowed: arms that differ"
                )
            same[content] = arm.name
            self._arms.append(arm)
        if not self._arms:
            raise InputError(f"{self._source}: scientific: no arm is possible: {self._holes[0].reason}")
        there = {arm.name for arm in self._arms}
        for place, arm in enumerate(self._arms):
            if arm.reference is not None and arm.reference not in there:
                lost = f"no counterpart: {arm.reference} is skipped"
                self._arms[place] = replace(arm, reference=None, alone=lost)

    def _check_drawn(self, key: str, drawn: Range, point: Mapping[str, Any], arm: Arm) -> None:
        try:
            self.trial(point, 0, arm)
        except InputError as error:
            if point[key] in drawn.values:
                raise
            given = f"{self._where(arm)}: nuisance.{key}: given {drawn.model_dump()}"
            whole = {"uniform": "int", "loguniform": "logint"}.get(drawn.kind)
            if whole is not None and isinstance(point[key], float):
                try:
                    self.trial({**point, key: round(point[key])}, 0, arm)
                except InputError:
                    pass
                else:
                    raise InputError(
                        f"{given}, on a key of whole numbers; allowed: {{{whole}: [low, high]}}"
                    ) from error
            reason = str(error).removeprefix(f"{self._where(arm)}: ")
            raise InputError(f"{given}, which draws {point[key]:.6g}: {reason}") from error

    def _meeting(self, condition: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
        """Return values of searched keys under which a condition holds, as far as it depends on those."""
        met = {key: values[0] for key, values in condition.items() if key in self.nuisance}
        for key in self.nuisance:
            own = {each: values for each, values in condition.items() if each.startswith(f"{key}.")}
            if wholes := [choice for choice in self._choices(key) if own and holds(own, flatten({key: choice}))]:
                met[key] = wholes[0]
        return met

    def _check_metrics(self) -> None:
        """Refuse metrics that a study may not use so. Trials come first: measures declare their metrics by them."""
        try:
            self.metric.check()
            check_choice("compare.metric", self.compare.metric, "compare")
        except InputError as error:
            raise InputError(f"{self._source}: {error}") from error
        used = {"metric.name": self.metric.name, "compare.metric": self.compare.metric}
        if self.metric.against is not None:
            used["metric.against"] = self.metric.against
        for key, name in used.items():
            self._check_measured(key, name)
            if name in (COMMON_VAL_LOSS, COMMON_TEST_LOSS):
                self._check_evaluated(key, name, "common", "true")
            if WITHHELD in name.split("_"):
                self._check_evaluated(key, name, "withhold", "with a value, like {kind: random, fraction: 0.1}")

    def _check_evaluated(self, key: str, name: str, setting: str, allowed: str) -> None:
        for arm in self._arms:
            trial = self.example(arm)
            observe = trial.data.observe
            if setting == "withhold" and observe is not None and {"val", "test"} <= set(observe.splits):
                continue  # whose every value is scored
            if not (given := getattr(trial.eval, setting)):
                told = "null" if given is None else "false"
                raise InputError(
                    f"{self._where(arm)}: eval.{setting}: given {told} with {key}={name}; allowed: {allowed}"
                )

    def _check_measured(self, key: str, name: str) -> None:
        if info_of(name).group != "measure":
            return
        allowed = [each for each in registry.names("measure") if _gives(each, name)]
        for arm in self._arms if allowed else ():
            measures = self.example(arm).eval.measures or ()
            if not any(measure.gives(name) for measure in measures):
                raise InputError(
                    f"{self._where(arm)}: eval.measures: given {[measure.name for measure in measures]} with "
                    f"{key}={name}; allowed: with {' or '.join(allowed)}"
                )

    def _check(self) -> None:
        # Try both ends of every range and some values between them, so that no draw fails an hour into the study.
        drawn_at_all: set[tuple[str, str]] = set()
        for arm in self._arms:
            starts = self.start_points(arm) or [self.completed({}, arm)]
            middle = starts[0]
            for start, stage in itertools.product(starts, self.stages()):
                self.trial(start, 0, arm, stage)
            for key in self.nuisance:
                for drawn in self.nuisance[key]:
                    met = self._meeting(drawn.when)
                    for value in (*drawn.values, *drawn.inside()):
                        point = self.completed({**middle, **met, key: value}, arm)
                        if key in point and point[key] == value and self.range_of(key, arm, point) == drawn:
                            self._check_drawn(key, drawn, point, arm)
                            drawn_at_all.add((key, drawn.model_dump_json()))
        for key in self.nuisance:
            for drawn in self.nuisance[key]:
                if drawn.when and (key, drawn.model_dump_json()) not in drawn_at_all:
                    condition = drawn.model_dump()["when"]
                    raise InputError(
                        f"{self._source}: nuisance.{key}: when: given {condition}, which holds in no arm; "
                        "allowed: keys and values of the configuration, factors, or arm"
                    )


def _gives(measure: str, metric: str) -> bool:
    """Whether a registered measure gives a metric; one that cannot be imported gives none."""
    with suppress(registry.Unusable):
        return bool(registry.component("measure", measure).gives(metric))
    return False
