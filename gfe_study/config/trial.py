"""A trial: one (configuration, seed), and the presets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError

from gfe_study import registry
from gfe_study.config.base import Component, InputError, Section, explained, suggestion
from gfe_study.config.gaps import Gaps
from gfe_study.registry import BASES

if TYPE_CHECKING:
    from gfe_study.data.base import Dataset
    from gfe_study.gradients.base import Gradient
    from gfe_study.likelihoods.base import Likelihood
    from gfe_study.measures.base import Measure
    from gfe_study.methods.base import Method
    from gfe_study.models.base import Model
    from gfe_study.optim import Optimiser
    from gfe_study.solvers.base import Solver
    from gfe_study.solvers.fields import Flow
    from gfe_study.starts.base import Start
    from gfe_study.targets.base import Target
else:  # imported when a trial names them, and torch with them
    Dataset = Flow = Gradient = Likelihood = Measure = Method = Model = Optimiser = Solver = Start = Target = Any

TRAINING_VERSION = 6
"""Raised by hand whenever a change to training code changes a trial's numbers; part of every fingerprint."""

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "method": "gfe",
        "flow": {"name": "gradient"},
        "solver": {
            "name": "amd",
            "beta": 0.75,
            "s_initial": 1.0,
            "s_max": 10.0,
            "kappa": 1.1,
            "tau": 1e4,
            "min_slope": 1e-5,
        },
        "gradient": {"name": "approx"},
        "start": {"name": "zero"},
        "model": {"name": "mlp", "latent_dim": 20, "hidden": [150, 300, 600]},
        "optim": {"name": "rmsprop", "lr": 5e-4, "alpha": 0.9, "eps": 1e-6, "batch_size": 16},
    },
    "gen": {
        "method": {"name": "gen", "weight": 0.01, "kde_samples": 10_000, "refresh_updates": 10},
        "flow": {"name": "gradient"},
        "solver": {"name": "lbfgs"},
        "gradient": {"name": "approx"},
        "start": {"name": "zero"},
        "model": {"name": "mlp", "latent_dim": 8, "hidden": [1000, 1000]},
        "optim": {"name": "adam", "lr": 2e-4, "beta1": 0.5, "batch_size": 100},
    },
    "best": {
        "method": "gfe",
        "flow": {"name": "gradient"},
        "solver": {"name": "lbfgs", "train_max_nfe": 10, "resume_max_nfe": 4},
        "gradient": {"name": "approx"},
        "start": {"name": "zero"},
        "model": {"name": "mlp"},
        "optim": {
            "name": "rmsprop",
            "alpha": 0.95,
            "lr": 2.5e-3,
            "lr_half_images": 10_000,
            "batch_size": [[0, 8], [240, 16], [480, 32]],
            "updates_per_batch": 3,
            "update_size": 64,
            "average": {"window": 20},
        },
    },
    "best_epoch": {
        "method": "gfe",
        "flow": {"name": "gradient"},
        "solver": {"name": "lbfgs", "train_max_nfe": 12, "resume_max_nfe": 3},
        "gradient": {"name": "approx"},
        "start": {"name": "zero"},
        "model": {"name": "mlp"},
        # Without it, one run in three ended .003 higher: its loss had begun to rise in the middle of training.
        "prior_precision": 0.01,
        "optim": {
            "name": "adam",
            "beta2": 0.99,
            "lr": 2.5e-3,
            "decay": "linear",
            "batch_size": 16,
            "update_size": 128,
        },
        "budget": {"images": 60_000},
    },
    "holes": {
        "method": {"name": "gfe", "posterior_noise": {"ramp_images": 7000}},
        "flow": {"name": "gradient"},
        "solver": {"name": "lbfgs", "train_max_nfe": 8},
        "gradient": {"name": "approx"},
        "start": {"name": "zero"},
        "model": {"name": "mlp", "latent_dim": 80, "hidden": [600], "skip": True},
        "prior_precision": 0.1,
        "optim": {
            "name": "adam",
            "lr": 6e-3,
            "decay": "linear",
            "batch_size": 50,
            "weight_decay": 1.0,
            "average": {"window": 20},
        },
        "budget": {"images": 24_000},
    },
}
"""`paper`: the constants of arXiv:2412.00864 and, where it gives none, of its published code. `gen`: those of the GEN
paper, where it gives them. `best`: what this project measured to be best whenever training ends. `best_epoch`: the best
at the end of a budget that is known, of one epoch of MNIST or so. `holes`: the best for data with missing values, of
a thousand samples or so; `prior_precision` wants to be larger the more is missing, and the more of it in one piece."""


def _named_class(section: str, value: Any) -> type[Component] | None:
    name = value.get("name") if isinstance(value, Mapping) else None
    if not isinstance(name, str) or section not in BASES:
        return None
    try:
        return registry.component(section, name)
    except LookupError:  # said where the section is read
        return None


def chosen(section: str, value: Any) -> Component:
    """Return a section as the component that it names. Raises pydantic's errors, for a validator or `explained`."""
    if isinstance(value, Component):
        base: type[Component] = registry.base(section)
        if isinstance(value, base):
            return value
        raise PydanticCustomError("choice", "allowed: a {section}", {"given": value, "section": section})
    values = named(section, value)
    if not isinstance(values, Mapping):
        raise PydanticCustomError("section", "Input should be a name or a mapping with the key 'name'")
    name = values.get("name")
    try:
        found: type[Component] = registry.component(section, str(name))
    except registry.Unknown:
        allowed = suggestion(str(name), registry.names(section))
        raise PydanticCustomError("choice", "{allowed}", {"given": name, "allowed": allowed}) from None
    except registry.Unusable as error:
        raise PydanticCustomError("choice", "{why}", {"given": name, "why": str(error)}) from error
    return found.model_validate(values)


def build(section: str, value: Mapping[str, Any]) -> Component:
    """Return the component that a section names, outside of a trial. Raises `InputError`."""
    try:
        with explained(section):
            return chosen(section, value)
    except PydanticCustomError as error:
        given = (error.context or {}).get("given")
        raise InputError(f"{section}: given {given!r}; {error.message()}") from error


def by_choice(section: str) -> BeforeValidator:
    """Return what makes of a name, or of settings with one, the component of a section."""
    return BeforeValidator(partial(chosen, section))


class Budget(Section):
    """What a trial may spend."""

    images: int = Field(5760, gt=0)
    """Training images seen, repetitions counted."""
    nfe: Annotated[int, Field(gt=0)] | None = None
    """Decoder evaluations, pullbacks and encoder passes in training; the batch that reaches it is the last."""
    seconds: Annotated[float, Field(gt=0)] | None = None
    """Seconds in training updates; the batch that reaches it is the last."""
    patience: Annotated[int, Field(gt=0)] | None = None
    """Evaluations in a row without a validation loss below the lowest so far, after which the trial ends. The trial's
    result is then what it was at the lowest; None: what it is at the end."""

    def spent(self, images: float, nfe: float, seconds: float, since_best: float = 0) -> bool:
        """Whether one of the limits is reached."""
        return (
            images >= self.images
            or (self.nfe is not None and nfe >= self.nfe)
            or (self.seconds is not None and seconds >= self.seconds)
            or (self.patience is not None and since_best >= self.patience)
        )


class Spacing(Section):
    """Evaluations at a distance that may grow."""

    every: int = Field(gt=0)
    """Training images from one evaluation to the next, at least."""
    growth: float = Field(1.0, ge=1, le=100)
    """From one evaluation to the next, images seen grow by this factor once that is more than `every`; 1: never."""

    def points(self) -> Iterator[int]:
        """Yield images seen, strictly increasing, without end."""
        point = 0
        while True:
            point = max(point + self.every, int(point * self.growth))
            yield point


Points = tuple[Annotated[int, Field(gt=0)], ...]
"""Images seen."""


def _schedule(value: Any) -> Points | Spacing:
    """Validate the kind that is given, so that an error is about it alone."""
    if isinstance(value, Mapping | Spacing):
        return Spacing.model_validate(value)
    if isinstance(value, list | tuple):
        return TypeAdapter(Points).validate_python(value)
    raise ValueError("Input should be a list of images seen, or {every: 480, growth: 1.3}")


class Evaluation(Section):
    """When a trial is evaluated, and on how many images."""

    schedule: Annotated[Points | Spacing, BeforeValidator(_schedule)] = (
        480,
        960,
        1920,
        3840,
        5760,
        11520,
        23040,
        46080,
        60000,
    )
    """Images seen at which the trial is evaluated: a list, or `{every: 480, growth: 1.3}`, which never ends. The end of
    the budget is always added."""
    val_images: int = Field(500, gt=0)
    """Validation images used, the first of the split; all of them if it holds fewer."""
    test_images: int = Field(1000, gt=0)
    """Test images used, the first of the split; all of them if it holds fewer."""
    mixed: bool = True
    """Methods with an encoder: also encode the test images by gradient flow (the papers' "mixed" column)."""
    common: bool = True
    """Also encode the validation and the test images by the common encoder, whatever the method's own: L-BFGS with its
    default settings, from zero, on the likelihood alone."""
    withhold: Gaps | None = None
    """Observed values of the validation and test samples that no method is shown, and by which what it imputes is
    scored: `val_withheld_loss` and its like; None: none."""
    measures: tuple[SerializeAsAny[Annotated[Measure, by_choice("measure")]], ...] | None = None
    """What is measured beside the losses, by name or with settings; None: nothing."""

    def points(self, images: int) -> Iterator[int]:
        """Yield the images seen at which a trial of that budget is evaluated, strictly increasing; `images` last."""
        points = self.schedule.points() if isinstance(self.schedule, Spacing) else sorted(set(self.schedule))
        yield from takewhile(lambda point: point < images, points)
        yield images


SEEDS = range(2**31)


def _seed_in_range(seed: int) -> int:
    if seed not in SEEDS:
        raise ValueError("Input should be in [0, 2³¹)")
    return seed


class Trial(Section):
    """One (configuration, seed), complete: every default is filled in.

    Build it with `Trial.build`, which applies the preset and the defaults that choices imply.
    """

    preset: str = "best"
    """Settings that a trial begins with; whatever else is given stands above them."""
    method: SerializeAsAny[Annotated[Method, by_choice("method")]]
    flow: SerializeAsAny[Annotated[Flow, by_choice("flow")]]
    solver: SerializeAsAny[Annotated[Solver, by_choice("solver")]]
    gradient: SerializeAsAny[Annotated[Gradient, by_choice("gradient")]]
    start: SerializeAsAny[Annotated[Start, by_choice("start")]]
    model: SerializeAsAny[Annotated[Model, by_choice("model")]]
    data: SerializeAsAny[Annotated[Dataset, by_choice("data")]]
    likelihood: SerializeAsAny[Annotated[Likelihood, by_choice("likelihood")]] = Field(
        "bernoulli", validate_default=True
    )
    """What an observation is, and how far it is from a reconstruction."""
    optim: SerializeAsAny[Annotated[Optimiser, by_choice("optim")]]
    target: SerializeAsAny[Annotated[Target, by_choice("target")]] | None = None
    """The distribution that a method pulls its latents to; None for a method that has none."""
    prior_precision: Annotated[float, Field(gt=0)] | None = None
    """λ: latents that are found by minimising have a normal prior of this precision, which adds λ‖z‖²/(2 n) to the
    loss of a sample with n observed values; None: no prior."""
    budget: Budget = Budget()
    eval: Evaluation = Evaluation()
    seed: Annotated[int, AfterValidator(_seed_in_range)] = 0
    """Seeds the initial weights, the order of the samples and all noise, but no split."""

    @model_validator(mode="after")
    def _combination_makes_sense(self) -> Self:
        for part in self.components():
            part.check_trial(self)
        return self

    def components(self) -> list[Component]:
        """Return what the trial consists of: its method, flow, solver, …, its operator and its measures."""
        sections = [getattr(self, section) for section in BASES if section in type(self).model_fields]
        return [part for part in (*sections, self.data.observe, *(self.eval.measures or ())) if part is not None]

    def packages(self) -> list[str]:
        """Return the other packages that components come from, with their versions; see `registry.origin`."""
        origins = (registry.origin(type(part)) for part in self.components())
        return sorted({origin for origin in origins if origin is not None})

    @classmethod
    def build(cls, *layers: Mapping[str, Any], where: str = "configuration") -> Self:
        """Resolve nested mappings, later ones winning, over the preset they name and the implied defaults.

        A layer that gives a section another `name` starts that section afresh; see `merge`.

        Raises:
            InputError: an unknown key, a value of the wrong type or out of range, a pair that makes no sense.
        """
        return cls.over(cls.base(*layers, where=where), where=where)

    @classmethod
    def base(cls, *layers: Mapping[str, Any], where: str = "configuration") -> dict[str, Any]:
        """Lay nested mappings over the preset that the last of them names. Raises `InputError` for no such preset."""
        named_presets = [layer["preset"] for layer in layers if "preset" in layer]
        preset = named_presets[-1] if named_presets else cls.model_fields["preset"].default
        if not isinstance(preset, str) or preset not in PRESETS:
            raise InputError(f"{where}: preset: given {preset!r}; {suggestion(str(preset), list(PRESETS))}")
        return merge({"preset": preset, "data": {"name": "digits"}}, PRESETS[preset], *layers)

    @classmethod
    def over(cls, base: Mapping[str, Any], *layers: Mapping[str, Any], where: str = "configuration") -> Self:
        """Lay nested mappings, none of which names a preset, over a `base`; see `build`."""
        resolved = merge(base, *layers)
        for _ in range(2):  # what is implied may imply something in turn
            classes = [found for section in BASES if (found := _named_class(section, resolved.get(section)))]
            implied = merge(*(unflatten(each.implies) for each in classes if each.implies))
            resolved = _under(implied, resolved)
        with explained(where):
            return cls.model_validate(resolved)

    def with_seed(self, seed: int, where: str = "configuration") -> Self:
        """Return this configuration with another seed. Raises `InputError` for a seed that is out of range."""
        if seed not in SEEDS:
            raise InputError(f"{where}: seed: given {seed!r}; allowed: in [0, 2³¹)")
        return self if seed == self.seed else self.model_copy(update={"seed": seed})

    def dump(self) -> dict[str, Any]:
        """The configuration as plain nested data, complete; `Trial.build` of it gives an equal trial."""
        return self.model_dump(mode="json")

    def fingerprint(self, dataset_sha256: str) -> str:
        """16 hexadecimal digits of what decides this trial's numbers: configuration, seed, data, training code.

        The packages of other components than gfe-study's own, and their versions, are part of it.
        """
        return _digest([self._identity(), dataset_sha256, TRAINING_VERSION, *self.packages()])

    def group(self, dataset_sha256: str) -> str:
        """The same for all seeds of one configuration."""
        identity = {key: value for key, value in self._identity().items() if key != "seed"}
        return _digest([identity, dataset_sha256, TRAINING_VERSION, *self.packages()])

    def _identity(self) -> dict[str, Any]:
        # A preset is only where values came from: the same values reached by another way are the same trial.
        # A setting that is not given is left out, so that settings to come do not make old trials other ones.
        identity = {key: value for key, value in self.dump().items() if key != "preset"}
        for section in BASES.keys() & identity.keys():
            immaterial = getattr(getattr(self, section), "immaterial", ())
            if immaterial:
                identity[section] = {key: value for key, value in identity[section].items() if key not in immaterial}
        if self.data.observe is not None:  # the hash of the data tells what is in an operator's files
            observe = identity["data"]["observe"]
            identity["data"]["observe"] = {k: v for k, v in observe.items() if k not in self.data.observe.immaterial}
        return {key: value for key, value in flatten(identity).items() if value is not None}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


Value = TypeVar("Value")


def once(given: Iterable[tuple[str, Value]]) -> dict[str, Value]:
    """Return a mapping of keys that are given once. Raises `InputError` for a key that is given twice."""
    mapping: dict[str, Value] = {}
    for key, value in given:
        if key in mapping:
            raise InputError(f"{key} is given twice: {mapping[key]!r} and {value!r}")
        mapping[key] = value
    return mapping


def named(section: str, value: Any) -> Any:
    """Return a section as a mapping: `amd` is short for `{name: amd}`. A path becomes the name of its class, if any."""
    if section not in BASES:
        return value
    given = {"name": value} if isinstance(value, str) else value
    if isinstance(given, Mapping) and isinstance(name := given.get("name"), str):
        return {**given, "name": registry.canonical(section, name)}
    return given


def by_name(key: str, values: Sequence[Any]) -> tuple[str, tuple[Any, ...]]:
    """Return a key and its values in one spelling: `solver: [amd, {name: rk4}]` is `solver.name: [amd, rk4]`.

    Where one of a section's values has more than a name, all stay whole sections.
    """
    sections = tuple(named(key, value) for value in values)
    if key in BASES and all(isinstance(section, Mapping) and [*section] == ["name"] for section in sections):
        return f"{key}.name", tuple(section["name"] for section in sections)
    return key, sections


def dotted(given: Mapping[str, Any], leaves: Collection[str]) -> dict[str, Any]:
    """Return the keys of nested sections as dotted keys; a mapping with a key of `leaves` is a value."""
    return once(
        (f"{key}.{setting}" if setting else key, below)
        for key, value in given.items()
        for setting, below in (
            value.items()
            if key in Trial.model_fields and isinstance(value, Mapping) and value and not {*leaves} & {*value}
            else [("", value)]
        )
    )


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings merged, later ones winning.

    A section given another `name` starts afresh, but for settings that mean the same under every name: who asks for
    another dataset still leaves the same class out.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old, new = merged.get(key), named(key, value)
            if isinstance(old, Mapping) and isinstance(new, Mapping):
                renamed = "name" in new and new["name"] != old.get("name")
                merged[key] = _joined(_outlasting(key, old, new) if renamed else old, new)
            else:
                merged[key] = dict(new) if isinstance(new, Mapping) else new
    return merged


def _joined(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A section and what a later layer says of it; settings of settings, like `data.split.by`, are joined alike."""
    joined = dict(old)
    for key, value in new.items():
        both = isinstance(value, Mapping) and isinstance(joined.get(key), Mapping)
        joined[key] = _joined(joined[key], value) if both else value
    return joined


def _outlasting(section: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    renamed = _named_class(section, new)
    return {key: value for key, value in old.items() if renamed is not None and key in renamed.outlast_name}


def _under(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(given)
    for section, values in defaults.items():
        current = merged.get(section)
        nameless = isinstance(current, Mapping) and "name" not in current
        if current is None or section not in BASES or nameless:
            merged[section] = {**values, **(current or {})}
        elif found := _named_class(section, current):
            known = {key: value for key, value in values.items() if key in found.model_fields}
            merged[section] = {**known, **current}
    return merged


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, under dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested mappings, and names of sections as their `name`: the inverse of `flatten`.

    Raises `InputError` for a key that is given twice, in one spelling or in two.
    """
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        section, *path = key.split(".")
        for part in reversed(path):
            value = {part: value}
        _join(nested, section, named(section, value), section)
    return nested


def _join(nested: dict[str, Any], key: str, value: Any, where: str) -> None:
    if isinstance(value, Mapping) and isinstance(nested.setdefault(key, {}), dict):
        for part, below in value.items():
            _join(nested[key], part, below, f"{where}.{part}")
    elif key in nested:
        raise InputError(f"{where} is given twice: {nested[key]!r} and {value!r}")
    else:
        nested[key] = value
