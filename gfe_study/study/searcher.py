"""The search over nuisance parameters: Optuna's ask and tell, rebuilt from the journal at every start."""

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
from gfe_study.study.plan import Plan

STARTUP_TRIALS = 6
"""Configurations drawn at random before TPE models what came of them."""
ATTEMPTS, REPEATS = 50, 5
"""Draws in a row, of which the first few are TPE's, that may repeat a known configuration."""
MOST_ENUMERATED = 2000
"""A space of choices and whole numbers with no more points is known point by point."""
LEAST_PARALLEL = 3
WORST = 1e9
"""Stands for the objectives of a divergence where there are two: hypervolumes bear no infinity."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Suggester:
    """Suggests the configurations of one arm, the space's own starting points first.

    What it suggests next depends on the results of all configurations of the arm but the last `parallel` − 1
    before it, and on nothing else: not on which of them ended first, nor on how often the study was killed.
    The sampler is seeded anew for every configuration, so that no state of it has to survive.

    Args:
        plan: the plan, whose configurations of this arm are already known to the search.
        arm: name of the arm.
        parallel: configurations that may be under way at once.

    Attributes:
        refusal: why the last point that was drawn gives no valid trial; empty if none was refused.
    """

    def __init__(self, plan: Plan, arm: str = "", parallel: int = LEAST_PARALLEL) -> None:
        self._plan = plan
        self._study: Study = plan.study
        self._arm = arm
        self._parallel = plan.study.parallel or parallel
        self._starts = plan.study.start_points(arm)
        self._grid = plan.study.grid(arm) if plan.study.sampler == "grid" else []
        self._order: list[int] = []
        self._told = 0
        self.refusal = ""
        self._known: set[str] = set()
        self._optuna_numbers: dict[int, int] = {}
        first = StudyDirection.MINIMIZE if plan.study.metric.mode == "min" else StudyDirection.MAXIMIZE
        directions = [first, StudyDirection.MINIMIZE] if plan.study.metric.against else [first]
        self._optuna = optuna.create_study(directions=directions)
        for number, configuration in sorted(plan.configurations[0, arm].items()):
            self._enter(number, configuration.params)

    def ready(self) -> bool:
        """Whether all results are there that the next suggestion depends on."""
        if len(self._order) < len(self._starts) or self._study.sampler != "tpe":
            return True
        if len(self._order) < STARTUP_TRIALS:
            return True
        there = self._plan.configurations[0, self._arm]
        return all(self._plan.ended(there[number]) for number in self._order[self._told : self._due()])

    def _due(self) -> int:
        """How many of the first configurations the next suggestion depends on."""
        return max(0, len(self._order) - self._parallel + 1)

    def ask(self, number: int) -> dict[str, Any] | None:
        """Values of the searched keys for configuration `number`; None once every configuration is known."""
        for start in (*self._starts, *self._grid):
            if _text(start) not in self._known:
                self._enter(number, start)
                return start
        if self._study.sampler == "grid":
            return None
        if len(self._order) >= STARTUP_TRIALS:
            self._tell_due()
        for attempt in range(ATTEMPTS):
            self._optuna.sampler = self._sampler(number, attempt)
            suggested = self._optuna.ask()
            params = self._draw(suggested)
            if _text(params) not in self._known and self._possible(params):
                self._known.add(_text(params))
                self._order.append(number)
                self._optuna_numbers[number] = suggested.number
                return params
            self._optuna.tell(suggested, state=TrialState.FAIL)
        for params in self._study.points(
            self._arm, Range.every, MOST_ENUMERATED
        ):  # nearly all of a small space is known: draws find the rest too seldom
            if _text(params) not in self._known and self._possible(params):
                self._enter(number, params)
                return params
        return None

    def _possible(self, params: dict[str, Any]) -> bool:
        """Whether a point gives a trial: two values, each of them allowed, may not go together."""
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
        self._optuna_numbers[number] = len(self._optuna.trials)
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
        for number in self._order[self._told : self._due()]:
            values = self._objectives(number)
            if values is None or not self._plan.ended(there[number]):
                self._optuna.tell(self._optuna_numbers[number], state=TrialState.FAIL)
            else:
                self._optuna.tell(self._optuna_numbers[number], values)
        self._told = max(self._told, self._due())

    def _objectives(self, number: int) -> list[float] | None:
        """Means over the seeds, a divergence being infinitely bad; None for a configuration that gave no value."""
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
        if self._study.sampler == "random" or attempt >= REPEATS:
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)


def add_certain(plan: Plan) -> None:
    """Add to a plan what depends on no result: starting points, grids, and the first random draws of every arm."""
    for arm in plan.study.arms if plan.study.nuisance else ():
        suggester = Suggester(plan, arm.name)
        while plan.unasked(arm.name):
            if len(plan.configurations[0, arm.name]) >= STARTUP_TRIALS and plan.study.sampler == "tpe":
                break
            number = plan.next_number(arm.name)
            params = suggester.ask(number)
            if params is not None:
                plan.add(number, params, arm.name)
            elif plan.configurations[0, arm.name]:
                plan.exhausted.add(arm.name)
            else:
                raise InputError(f"no draw of the search gives a valid trial: {suggester.refusal}")


def _suggested(trial: optuna.Trial, name: str, drawn: Range) -> Any:
    if drawn.kind == "choice":
        return json.loads(trial.suggest_categorical(name, [json.dumps(value) for value in drawn.values]))
    low, high = drawn.values
    if drawn.kind in ("int", "logint"):
        return trial.suggest_int(name, low, high, log=drawn.kind == "logint")
    return trial.suggest_float(name, low, high, log=drawn.kind == "loguniform")


def _name(key: str, drawn: Range) -> str:
    """One name a key and range: Optuna wants a name to be drawn from one distribution for good."""
    return key if not drawn.when else f"{key} {json.dumps(drawn.model_dump(), sort_keys=True)}"


def _text(params: dict[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)
