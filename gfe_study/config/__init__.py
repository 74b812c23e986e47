"""Configuration: what a trial and a study are made of, checked before anything starts.

A `Trial` is one (configuration, seed). Its named sections (`solver`, `flow`, `optim`, …) are frozen pydantic
models that live, with their defaults, beside the algorithm they configure; `gfe_study.registry` finds them by
name, and they are imported only when a trial names them. A `Study` declares which trials answer a
question. Every complaint is an `InputError`: one line that says where, which key, what was given and what is
allowed. Nothing of this project but the registry is imported here.
"""

from gfe_study.config.base import Component, ImpossiblePair, InputError, Section, suggestion
from gfe_study.config.design import Arm, Hole
from gfe_study.config.files import find_space, read_text, read_yaml, space_files, to_yaml
from gfe_study.config.ranges import Range
from gfe_study.config.study import Study
from gfe_study.config.trial import (
    PRESETS,
    TRAINING_VERSION,
    Budget,
    Evaluation,
    Trial,
    flatten,
    unflatten,
)
from gfe_study.config.typed import Typed, blamed, parse_assignments, typed_sets

__all__ = [
    "PRESETS",
    "TRAINING_VERSION",
    "Arm",
    "Budget",
    "Component",
    "Evaluation",
    "Hole",
    "ImpossiblePair",
    "InputError",
    "Range",
    "Section",
    "Study",
    "Trial",
    "Typed",
    "blamed",
    "find_space",
    "flatten",
    "parse_assignments",
    "read_text",
    "read_yaml",
    "space_files",
    "suggestion",
    "to_yaml",
    "typed_sets",
    "unflatten",
]
