"""The search over nuisance parameters: Optuna's ask and tell, rebuilt from the journal at every start."""

from __future__ import annotations

import json
import math
from hashlib import sha256
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from gfe_study.config import Range, Study
from gfe_study.study.plan import Plan

STARTUP_TRIALS = 6
"""Configurations drawn at random before TPE models what came of them."""
ATTEMPTS = 50
"""Draws in a row that may repeat a known configuration before a space is taken to be exhausted."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


def distribution(drawn: Range) -> BaseDistribution:
    """Optuna's form of a range. Choices are told to it as JSON, since it knows no lists."""
    match drawn.kind:
        case "choice":
            return CategoricalDistribution([json.dumps(value) for value in drawn.values])
        case "int" | "logint":
            low, high = drawn.values
            return IntDistribution(low, high, log=drawn.kind == "logint")
        case _:
            low, high = drawn.values
            return FloatDistribution(low, high, log=drawn.kind == "loguniform")


class Suggester:
    """Suggests the configurations of a plan, the space's own starting points first.

    The sampler is seeded anew for every configuration number, so that a suggestion depends on the results it
    has been told and on nothing else, and no sampler state has to survive a kill.
    """

    def __init__(self, plan: Plan) -> None:
        self._study: Study = plan.study
        self._distributions = {key: distribution(drawn) for key, drawn in plan.study.nuisance.items()}
        self._starts = plan.study.start_points()
        self._known: dict[int, dict[str, Any]] = {}
        self._optuna_numbers: dict[int, int] = {}
        self._optuna = optuna.create_study(direction="minimize" if plan.study.metric.mode == "min" else "maximize")
        for number, jobs in sorted(plan.numbers().items()):
            self._enter(number, jobs[0].params)
            values = [plan.value(job) for job in jobs]
            if all(value is not None for value in values):
                self.tell(number, [value for value in values if value is not None])

    def ask(self, number: int) -> dict[str, Any] | None:
        """Values of the searched keys for configuration `number`; None once every configuration is known."""
        for start in self._starts:
            if start not in self._known.values():
                self._enter(number, start)
                return start
        for attempt in range(ATTEMPTS):
            self._optuna.sampler = self._sampler(number, attempt)
            suggested = self._optuna.ask(self._distributions)
            params = self._decoded(suggested.params)
            if params not in self._known.values():
                self._known[number] = params
                self._optuna_numbers[number] = suggested.number
                return params
            self._optuna.tell(suggested, state=TrialState.FAIL)
        return None

    def tell(self, number: int, values: list[float]) -> None:
        """The metric of every seed of a configuration; their mean is told, a divergence being infinitely bad."""
        self._optuna.tell(self._optuna_numbers[number], math.fsum(values) / len(values))

    def tell_failed(self, number: int) -> None:
        """A configuration that gave no value."""
        self._optuna.tell(self._optuna_numbers[number], state=TrialState.FAIL)

    def _enter(self, number: int, params: dict[str, Any]) -> None:
        self._known[number] = params
        self._optuna_numbers[number] = len(self._optuna.trials)
        encoded = {
            key: json.dumps(value) if self._study.nuisance[key].kind == "choice" else value
            for key, value in params.items()
        }
        running = create_trial(state=TrialState.RUNNING, params=encoded, distributions=self._distributions)
        self._optuna.add_trial(running)

    def _decoded(self, params: dict[str, Any]) -> dict[str, Any]:
        choice = {key for key, drawn in self._study.nuisance.items() if drawn.kind == "choice"}
        return {key: json.loads(value) if key in choice else value for key, value in params.items()}

    def _sampler(self, number: int, attempt: int) -> optuna.samplers.BaseSampler:
        text = f"{self._study.sampler_seed}/{number}/{attempt}"
        seed = int.from_bytes(sha256(text.encode()).digest()[:4], "big")
        if self._study.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
