"""Ranges of a search as Optuna knows them."""

from __future__ import annotations

import json

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from gfe_study.config import Range


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
