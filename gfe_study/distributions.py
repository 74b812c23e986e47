"""Ranges of a search as Optuna knows them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

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


def place_of(value: object, choices: Sequence[object]) -> int | None:
    """Place of a value among the choices; None if it is none of them.

    pandas has floats for whole numbers beside missing ones, and NaN for None.
    """
    own = None if isinstance(value, float) and math.isnan(value) else value
    return next((place for place, choice in enumerate(choices) if choice == own), None)


def told_to_optuna(value: object, drawn: Range) -> str | float | None:
    """A value as `distribution` knows it; None if it is missing or not of the range."""
    if drawn.kind == "choice":
        place = place_of(value, drawn.values)
        return None if place is None else json.dumps(drawn.values[place])
    number = float(value) if isinstance(value, int | float) else math.nan
    low, high = drawn.values
    return number if low <= number <= high else None
