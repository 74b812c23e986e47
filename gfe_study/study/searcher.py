"""The search over nuisance parameters: Optuna's ask-and-tell interface, rebuilt from the journal at every start."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from gfe_study.config import InputError, Range, Study
from gfe_study.distributions import distribution
from gfe_study.metrics import mode_of
from gfe_study.study.plan import Plan

NUM_STARTUP_TRIALS = 6
"""Configurations drawn at random before TPE models their results."""
MAX_DRAWS, MAX_TPE_DRAWS = 50, 5
"""How many draws in a row may repeat a known configuration; the first `MAX_TPE_DRAWS` are TPE's, the rest random."""
MAX_ENUMERATED = 2000
"""Largest number of points up to which a space of choices and integers is enumerated."""
LEAST_PARALLEL = 3
WORST = 1e9
"""Replaces infinite objectives of diverged trials if there are two: a hypervolume cannot be infinite."""

DIRECTIONS = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Suggester:
    """Suggests the configurations of one arm, beginning with the space's starting points.

    The next suggestion depends on the results of all earlier configurations of the arm but the last `parallel` − 1,
    and on nothing else: neither on the order in which they ended nor on how often the study was killed. The sampler
    gets a new seed for every configuration, so none of its state has to be saved.

    Args:
        plan: the plan; the search starts with its configurations of this arm.
        arm: name of the arm.
        parallel: number of configurations that may be in progress at once.

    Attributes:
        refusal: why the last rejected point gives no valid trial; empty if no point was rejected.
    """

    def __init__(self, plan: Plan, arm: str = "", parallel: int = LEAST_PARALLEL) -> None:
        self._plan = plan
        self._study: Study = plan.study
        self._arm = arm
        self._parallel = plan.study.parallel or parallel
        self._starts = plan.study.start_points(arm)
        self._grid = plan.study.grid(arm) if plan.study.sampler == "grid" else []
        self._order: list[int] = []
        self._num_told = 0
        self.refusal = ""
        self._known: set[str] = set()
        self._optuna_numbers: dict[int, int] = {}
        self._num_optuna = 0  # counted here, because Optuna copies all trials to tell
        metric = plan.study.metric
        modes = [metric.mode, *([mode_of(metric.against)] if metric.against else [])]
        self._optuna = optuna.create_study(directions=[DIRECTIONS[mode] for mode in modes])
        for number, configuration in sorted(plan.configurations[0, arm].items()):
            self._enter(number, configuration.params)

    def ready(self) -> bool:
        """Return whether all results that the next suggestion depends on are available."""
        if len(self._order) < len(self._starts) or self._study.sampler != "tpe":
            return True
        if len(self._order) < NUM_STARTUP_TRIALS:
            return True
        there = self._plan.configurations[0, self._arm]
        return all(self._plan.ended(there[number]) for number in self._order[self._num_told : self._due()])

    def _due(self) -> int:
        """Return how many of the first configurations the next suggestion depends on."""
        return max(0, len(self._order) - self._parallel + 1)

    def ask(self, number: int) -> dict[str, Any] | None:
        """Return the searched values of configuration `number`; None once every configuration is known."""
        for start in (*self._starts, *self._grid):
            if _text(start) not in self._known:
                self._enter(number, start)
                return start
        if self._study.sampler == "grid":
            return None
        if len(self._order) >= NUM_STARTUP_TRIALS:
            self._tell_due()
        for attempt in range(MAX_DRAWS):
            self._optuna.sampler = self._sampler(number, attempt)
            suggested = self._optuna.ask()
            self._num_optuna += 1
            params = self._draw(suggested)
            if _text(params) not in self._known and self._possible(params):
                self._known.add(_text(params))
                self._order.append(number)
                self._optuna_numbers[number] = suggested.number
                return params
            self._optuna.tell(suggested, state=TrialState.FAIL)
        # In a small space that is almost exhausted, draws rarely find what remains.
        for params in self._study.points(self._arm, Range.every, MAX_ENUMERATED):
            if _text(params) not in self._known and self._possible(params):
                self._enter(number, params)
                return params
        return None

    def _possible(self, params: dict[str, Any]) -> bool:
        """Return whether a point gives a valid trial: values may be valid alone but not in combination."""
        try:
            self._study.trial(params, 0, self._arm)
        except InputError as error:
            self.refusal = str(error)
            return False
        return True

    def _draw(self, suggested: optuna.Trial) -> dict[str, Any]:
        params: dict[str, Any] = {}
        for key in self._study.nuisance:
            drawn_from = self._study.range_of(key, self._arm, params)
            if drawn_from is None:
                continue
            params[key] = _suggested(suggested, _name(key, drawn_from), drawn_from)
        return params

    def _enter(self, number: int, params: dict[str, Any]) -> None:
        self._known.add(_text(params))
        self._order.append(number)
        self._optuna_numbers[number] = self._num_optuna
        self._num_optuna += 1
        encoded: dict[str, Any] = {}
        distributions: dict[str, BaseDistribution] = {}
        drawn: dict[str, Any] = {}
        for key, value in params.items():
            drawn_from = self._study.range_of(key, self._arm, drawn)
            assert drawn_from is not None
            name = _name(key, drawn_from)
            distributions[name] = distribution(drawn_from)
            encoded[name] = json.dumps(value) if drawn_from.kind == "choice" else value
            drawn[key] = value
        running = create_trial(state=TrialState.RUNNING, params=encoded, distributions=distributions)
        self._optuna.add_trial(running)

    def _tell_due(self) -> None:
        there = self._plan.configurations[0, self._arm]
        for number in self._order[self._num_told : self._due()]:
            values = self._objectives(number)
            if values is None or not self._plan.ended(there[number]):
                self._optuna.tell(self._optuna_numbers[number], state=TrialState.FAIL)
            else:
                self._optuna.tell(self._optuna_numbers[number], values)
        self._num_told = max(self._num_told, self._due())

    def _objectives(self, number: int) -> list[float] | None:
        """Return the means over the seeds, infinitely bad after a divergence; None if a seed has no value."""
        configuration = self._plan.configurations[0, self._arm][number]
        against = self._study.metric.against
        means = [self._plan.mean(configuration, name) for name in (None, *([against] if against else []))]
        values = [value for value in means if value is not None]
        if len(values) < len(means):
            return None
        return [min(max(value, -WORST), WORST) for value in values] if against else values

    def _sampler(self, number: int, attempt: int) -> optuna.samplers.BaseSampler:
        arm = f"/{self._arm}" if self._arm else ""
        text = f"{self._study.sampler_seed}{arm}/{number}/{attempt}"
        seed = int.from_bytes(sha256(text.encode()).digest()[:4], "big")
        if self._study.sampler == "random" or attempt >= MAX_TPE_DRAWS:
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=NUM_STARTUP_TRIALS)


def add_certain(plan: Plan) -> None:
    """Add the configurations that depend on no result: each arm's starting points, grid and first random draws."""
    for arm in plan.study.arms if plan.study.nuisance else ():
        suggester = Suggester(plan, arm.name)
        while plan.unasked(arm.name):
            if len(plan.configurations[0, arm.name]) >= NUM_STARTUP_TRIALS and plan.study.sampler == "tpe":
                break
            number = plan.next_number(arm.name)
            params = suggester.ask(number)
            if params is not None:
                plan.add(number, params, arm.name)
            elif plan.configurations[0, arm.name]:
                plan.exhausted.add(arm.name)
            else:
                raise InputError(f"no configuration that the search drew is valid: {suggester.refusal}")


def _suggested(trial: optuna.Trial, name: str, drawn: Range) -> Any:
    if drawn.kind == "choice":
        return json.loads(trial.suggest_categorical(name, [json.dumps(value) for value in drawn.values]))
    low, high = drawn.values
    if drawn.kind in ("int", "logint"):
        return trial.suggest_int(name, low, high, log=drawn.kind == "logint")
    return trial.suggest_float(name, low, high, log=drawn.kind == "loguniform")


def _name(key: str, drawn: Range) -> str:
    """Return one name per key and range, because Optuna allows only one distribution per name."""
    return key if not drawn.when else f"{key} {json.dumps(drawn.model_dump(), sort_keys=True)}"


def _text(params: dict[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)
