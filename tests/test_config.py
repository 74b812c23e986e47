from __future__ import annotations

import hashlib
import itertools
import math
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfe_study import registry
from gfe_study.config import (
    PRESETS,
    InputError,
    Range,
    Study,
    Trial,
    find_space,
    flatten,
    parse_assignments,
    read_yaml,
    space_files,
    trial,
    unflatten,
)
from gfe_study.config.files import parse_yaml
from gfe_study.config.trial import merge
from gfe_study.data.base import Dataset
from gfe_study.data.mnist import FashionMNIST
from gfe_study.methods.ae import Autoencoder
from gfe_study.models.mlp import MLP
from gfe_study.optim import RMSprop
from gfe_study.solvers.amd import AMD
from gfe_study.solvers.fixed_grid import RK4

DATA = "sha256 of a dataset"
BASES: dict[str, dict[str, Any]] = {
    "amd": {"preset": "paper"},
    "rk4 + adam": {"flow": "gradient", "solver": "rk4", "optim": "adam"},
    "nesterov": {"flow": "nesterov", "solver": {"name": "rk4", "slices": 7}, "preset": "paper"},
    "ae": {"method": "ae", "data": "mnist", "seed": 3, "eval": {"schedule": [5, 10]}},
}


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest) -> Trial:
    return Trial.build(BASES[request.param])


def complaint(error: pytest.ExceptionInfo[InputError]) -> str:
    """An error's text, which must be one line."""
    text = str(error.value)
    assert "\n" not in text
    return text


# Trials


def test_a_dumped_trial_builds_the_same_trial(base: Trial) -> None:
    assert Trial.build(base.dump()) == base
    assert Trial.build(base.dump()).fingerprint(DATA) == base.fingerprint(DATA)
    assert Trial.build(unflatten(flatten(base.dump()))) == base


OTHER = {
    "eval.measures": ["entropy"],
    "data.scale": "standard",
    "method.mask_channel": False,
    "method.encode": "flow",
    "method.dropout": 0.1,
    "method.input_noise": 0.1,
    "optim.decay": "linear",
    "optim.average": {"window": 3},
    "data.hide": {"fraction": 0.1},
    "data.observe": "identity",
    "eval.withhold": {"fraction": 0.1},
    "model.skip": True,
}
"""What is None in most trials, and otherwise no whole number."""


def other(key: str, value: Any) -> Any:
    """Another value, as near as may be, so that it is valid as well."""
    if key in OTHER:
        return OTHER[key]
    if isinstance(value, bool):
        return not value
    if value is None:
        return 7
    if isinstance(value, list):
        return [*value[:-1], [value[-1][0], 7]] if isinstance(value[-1], list) else [*value, 7]
    return value + 1 if isinstance(value, int) else 0.99 * value or 0.1


def test_the_fingerprint_changes_with_every_value(base: Trial) -> None:
    seen = {base.fingerprint(DATA), base.fingerprint("another dataset")}
    values = {key: value for key, value in flatten(base.dump()).items() if not isinstance(value, str)}
    del values["target"]  # which no method of these has
    values.pop("method.posterior_noise", None)  # which needs a prior
    assert len(values) > 10
    for key, value in values.items():
        seen.add(Trial.build(base.dump(), unflatten({key: other(key, value)})).fingerprint(DATA))
    assert len(seen) == 2 + len(values)


def test_the_fingerprint_changes_with_every_name() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"method": "ae"},
        {"data": "mnist"},
        {"data": "seg_mnist"},
        {"optim": "adam"},
        {"solver": {"scale_update": "scale"}},
        {"solver": "rk4"},
        {"solver": "rk4", "flow": {"alpha": "constant"}},
        {"solver": "rk4", "flow": "nesterov"},
        {"method": "gen"},
        {"method": "gen", "target": "mixture_of_gaussians"},
        {"method": "gen", "target": {"name": "mixture_of_gaussians", "radius": 3.0}},
    ]
    trials = [Trial.build({"preset": "paper"}, change) for change in changes]
    assert len({one.fingerprint(DATA) for one in trials}) == len(changes)


def test_the_training_version_is_in_fingerprints(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Trial.build().fingerprint(DATA), Trial.build().group(DATA)
    monkeypatch.setattr(trial, "TRAINING_VERSION", trial.TRAINING_VERSION + 1)
    after = Trial.build().fingerprint(DATA), Trial.build().group(DATA)
    assert not set(before) & set(after)


def test_a_preset_is_only_where_values_came_from() -> None:
    paper = Trial.build({"preset": "paper"})
    spelled_out = Trial.build({**paper.dump(), "preset": "best"})
    assert spelled_out.preset != paper.preset
    assert spelled_out.fingerprint(DATA) == paper.fingerprint(DATA)


def test_the_group_is_that_of_all_seeds(base: Trial) -> None:
    seeds = [Trial.build(base.dump(), {"seed": seed}) for seed in range(3)]
    assert {one.group(DATA) for one in seeds} == {base.group(DATA)}
    assert len({one.fingerprint(DATA) for one in seeds}) == 3
    assert base.group(DATA) != Trial.build(base.dump(), {"budget": {"images": 7}}).group(DATA)


def test_the_paper_preset_is_what_the_paper_says() -> None:
    paper = Trial.build({"preset": "paper"})
    amd, optim, model = paper.solver, paper.optim, paper.model
    assert isinstance(amd, AMD)
    assert isinstance(optim, RMSprop)
    assert isinstance(model, MLP)
    assert (amd.beta, amd.s_initial, amd.s_max, amd.kappa, amd.tau) == (0.75, 1, 10, 1.1, 1e4)
    assert (optim.name, optim.lr, optim.alpha, optim.eps, optim.batch_size) == ("rmsprop", 5e-4, 0.9, 1e-6, 16)
    assert (model.latent_dim, model.hidden) == (20, (150, 300, 600))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_take_every_method_and_dataset(preset: str) -> None:
    for method in registry.names("method"):
        for data in registry.names("data"):
            path = {"path": "a.npy"} if "path" in registry.component("data", data).model_fields else {}
            built = Trial.build({"preset": preset, "method": method, "data": {"name": data, **path}})
            assert (built.preset, built.method.name, built.data.name) == (preset, method, data)


@pytest.mark.parametrize(
    ("section", "name"), [(section, name) for section in registry.BASES for name in registry.names(section)]
)
def test_every_choice_is_registered_by_its_name(section: str, name: str) -> None:
    found: type = registry.component(section, name)
    assert registry.name_of(found) == name


def test_a_later_layer_wins_and_keeps_the_rest() -> None:
    built = Trial.build(
        {"preset": "paper", "solver": {"beta": 0.5, "kappa": 2}}, {"solver": {"kappa": 1.5}, "method": "ae"}
    )
    assert built.solver == AMD(beta=0.5, kappa=1.5, min_slope=1e-5)
    assert built.method == Autoencoder()


@pytest.mark.parametrize("renaming", ["rk4", {"name": "rk4"}])
def test_a_section_with_a_new_name_starts_afresh(renaming: Any) -> None:
    built = Trial.build({"preset": "paper", "solver": {"beta": 0.5, "tau": 3}}, {"solver": renaming})
    assert built.solver == RK4()


def test_a_repeated_name_keeps_a_sections_values() -> None:
    layer = {"preset": "paper", "solver": {"beta": 0.5}}
    assert Trial.build(layer, {"solver": "amd"}) == Trial.build(layer)
    assert Trial.build(layer, {"solver": "amd"}).solver == AMD(beta=0.5, min_slope=1e-5)


def test_a_new_dataset_keeps_the_shared_settings() -> None:
    data = {"name": "digits", "train_images": 500, "held_out": 3}
    built = Trial.build({"data": data}, {"data": "mnist"}, {"data": {"subset_seed": 1}}, {"data": "fashion_mnist"})
    assert built.data == FashionMNIST(train_images=500, held_out=3, subset_seed=1)
    assert Trial.build({"data": data}, {"data": {"name": "mnist", "train_images": 50}}).data.train_images == 50
    assert merge({"data": data}, {"data": {"name": "no such"}}) == {"data": {"name": "no such"}}


@pytest.mark.parametrize("space", space_files())
def test_every_space_takes_another_dataset(space: str) -> None:
    declared, swept = (Study.load(space_files()[space], changes) for changes in ({}, {"data": {"name": "mnist"}}))
    kept = {key: value for key, value in declared.fixed.get("data", {}).items() if key in Dataset.outlast_name}
    assert swept.fixed["data"] == {**kept, "name": "mnist"}


def test_merging_leaves_its_layers_as_they_were() -> None:
    layers: list[dict[str, Any]] = [{"solver": {"name": "amd", "tau": 1}}, {"solver": {"tau": 2}}]
    assert merge(*layers) == {"solver": {"name": "amd", "tau": 2}}
    assert layers == [{"solver": {"name": "amd", "tau": 1}}, {"solver": {"tau": 2}}]


def test_an_implied_choice_takes_settings() -> None:
    """PCA implies a Gaussian likelihood, so its sigma can be set without naming it."""
    trial = Trial.build({"method": "pca", "likelihood": {"sigma": "learned"}})
    assert trial.likelihood.model_dump() == {"name": "gaussian", "sigma": "learned"}


def test_alpha_is_constant_with_amd_but_not_rk4() -> None:
    assert Trial.build({"flow": "gradient", "solver": "amd"}).flow.alpha == "constant"
    assert Trial.build({"flow": "gradient", "solver": "rk4"}).flow.alpha == "exponential"
    assert Trial.build({"solver": "rk4", "flow": "nesterov"}).flow.alpha == "constant"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"solvr": 5}, ["solvr: unknown key", "did you mean 'solver'"]),
        ({"solver": {"bata": 0.5}}, ["solver.bata: unknown key", "did you mean 'beta'", "s_max"]),
        ({"eval": {"sched": [1]}}, ["eval.sched: unknown key", "schedule"]),
        ({"method": {"name": "gfe", "x": 1}}, ["method.x: unknown key"]),
        ({"solver": {"beta": 2}}, ["solver.beta", "given 2", "less than 1"]),
        ({"solver": {"tau": "long"}}, ["solver.tau", "given 'long'", "number"]),
        ({"solver": {"tau": float("inf")}}, ["solver.tau", "given inf", "finite"]),
        ({"solver": {"tau": float("nan")}}, ["solver.tau", "given nan", "finite"]),
        ({"solver": {"scale_update": "both"}}, ["solver.scale_update", "given 'both'", "'accepted' or 'scale'"]),
        ({"solver": {"s_initial": 20}}, ["solver", "s_initial (20) exceeds s_max (10)"]),
        ({"solver": 5}, ["solver", "given 5", "a name or a mapping"]),
        ({"solver": "adm"}, ["solver", "given 'adm'", "did you mean 'amd'", "rk4"]),
        ({"flow": "gradeint"}, ["flow", "given 'gradeint'", "did you mean 'gradient'", "nesterov"]),
        ({"flow": {"name": 5}}, ["flow", "given 5", "gradient, nesterov"]),
        ({"solver": {"name": ["amd"]}}, ["solver", "given ['amd']", "amd, amd_nesterov"]),
        ({"flow": "nesterov", "solver": "amd"}, ["amd cannot follow flow.name=nesterov", "flow.name=gradient"]),
        ({"flow": {"alpha": "exponential"}}, ["flow.alpha", "given 'exponential'", "allowed: constant"]),
        (
            {"solver": "lbfgs", "gradient": "adjoint"},
            ["gradient.name", "given 'adjoint'", "solver.name=lbfgs", "follows no flow", "allowed: approx"],
        ),
        ({"solver": "gauss_newton", "gradient": "unrolled"}, ["given 'unrolled'", "allowed: approx"]),
        ({"solver": "amd_nesterov", "gradient": "adjoint"}, ["given 'adjoint'", "allowed: approx"]),
        ({"solver": "amd_spectral", "gradient": "adjoint"}, ["raise the loss", "solver.memory=1", "allowed: approx"]),
        ({"method": "ae", "start": "previous"}, ["start.name", "method=ae", "allowed: encoder, mean, zero"]),
        ({"solver": {"name": "gauss_newton", "train_max_nfe": 5}}, ["solver.train_max_nfe", "given 5", "42 or more"]),
        ({"solver": {"name": "lbfgs", "train_max_nfe": True}}, ["solver.train_max_nfe", "given true", "a number"]),
        ({"optim": {"updates_per_batch": True}}, ["optim.updates_per_batch", "given true"]),
        ({"optim": {"updates_per_batch": [[0, True]]}}, ["optim.updates_per_batch", "whole number above 0"]),
        ({"method": "ae", "gradient": "adjoint"}, ["gradient.name", "method=ae", "allowed: approx"]),
        ({"solver": "amd_spectral", "flow": "nesterov"}, ["amd_spectral cannot follow flow.name=nesterov"]),
        ({"solver": "lbfgs", "flow": {"alpha": "exponential"}}, ["flow.alpha", "'exponential'", "allowed: constant"]),
        ({"solver": {"name": "amd_spectral", "s_min": 5, "s_initial": 1}}, ["s_min (5)", "s_initial (1)"]),
        ({"optim": {"updates_per_batch": [[1, 2]]}}, ["optim.updates_per_batch", "from 0 images on"]),
        ({"optim": {"updates_per_batch": [[0, 2], [50, 1], [50, 3]]}}, ["updates_per_batch", "increasing order"]),
        ({"optim": {"updates_per_batch": 0}}, ["optim.updates_per_batch"]),
        ({"start": "zeros"}, ["start", "given 'zeros'", "did you mean 'zero'"]),
        ({"preset": "pape"}, ["preset", "given 'pape'", "did you mean 'paper'", "best"]),
        ({"preset": ["paper"]}, ["preset", "given ['paper']", "best, best_epoch, gen, holes, paper"]),
        ({"seed": -1}, ["seed", "given -1"]),
        ({"seed": 2**31}, ["seed", f"given {2**31}"]),
        ({"seed": 1.5}, ["seed", "given 1.5", "integer"]),
        ({"model": {"hidden": [150, 0]}}, ["model.hidden.1", "given 0", "greater than 0"]),
        (
            {"optim": {"decay": "linear"}, "budget": {"seconds": 3}},
            ["optim.decay", "given linear", "budget.seconds", "allowed: null, or a budget of images alone"],
        ),
        (
            {"optim": {"update_size": 9}, "solver": "rk4", "gradient": "adjoint"},
            ["optim.update_size", "given 9", "approx"],
        ),
        ({"budget": {"images": 0}}, ["budget.images", "given 0", "greater than 0"]),
        ({"budget": 100}, ["budget", "given 100"]),
        ({"optim": {"name": "rmsprop", "beta1": 0.5}}, ["optim.beta1: unknown key", "alpha"]),
    ],
    ids=str,
)
def test_a_bad_trial_is_refused_in_one_line(given: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        Trial.build({"preset": "paper"}, given, where="my.yaml")
    text = complaint(error)
    assert text.startswith("my.yaml: ")
    assert [word for word in words if word not in text] == []


def test_evaluation_points_end_with_the_budget() -> None:
    points = Trial.build({"eval": {"schedule": [30, 10, 10, 50, 99]}}).eval.points
    assert list(points(50)) == [10, 30, 50]
    assert list(points(7)) == [7]
    assert list(points(200)) == [10, 30, 50, 99, 200]


@pytest.mark.parametrize(
    ("schedule", "images", "expected"),
    [
        ({"every": 20}, 70, [20, 40, 60, 70]),
        ({"every": 20}, 60, [20, 40, 60]),
        ({"every": 100, "growth": 1.5}, 1100, [100, 200, 300, 450, 675, 1012, 1100]),
        ({"every": 1, "growth": 2}, 10, [1, 2, 4, 8, 10]),
    ],
)
def test_a_schedule_may_be_given_as_a_distance(schedule: Any, images: int, expected: list[int]) -> None:
    """Then the evaluation points go on for as long as the budget lasts."""
    trial = Trial.build({"eval": {"schedule": schedule}})
    assert list(trial.eval.points(images)) == expected
    assert Trial.build(trial.dump()) == trial
    assert next(trial.eval.points(10**12)) == expected[0]  # one at a time: there may be any number


@given(st.integers(1, 500), st.floats(1, 100), st.integers(1, 5000))
def test_evaluation_points_keep_their_distance(every: int, growth: float, images: int) -> None:
    """Strictly increasing, up to the budget, at the larger of both distances."""
    trial = Trial.build({"eval": {"schedule": {"every": every, "growth": growth}}})
    points = [0, *trial.eval.points(images)]
    assert points[-1] == images
    for before, after in itertools.pairwise(points[:-1]):
        assert after == max(before + every, math.floor(before * growth))
    assert 0 < points[-1] - points[-2] <= max(every, math.floor(points[-2] * growth) - points[-2])


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        ({"every": 0}, "eval.schedule.every: given 0; allowed: greater than 0"),
        ({"every": 480, "growth": 0.5}, "eval.schedule.growth: given 0.5; allowed: greater than or equal to 1"),
        ({"evry": 480}, "eval.schedule.evry: unknown key; did you mean 'every'?"),
        ({"growth": 2}, "eval.schedule.every: not given"),
        (5, "eval.schedule: given 5; allowed: a list of images seen, or {every: 480, growth: 1.3}"),
        ([0], "eval.schedule.0: given 0; allowed: greater than 0"),
    ],
)
def test_a_wrong_schedule_is_one_line(schedule: Any, told: str) -> None:
    with pytest.raises(InputError) as error:
        Trial.build({"eval": {"schedule": schedule}})
    assert told in complaint(error)


# Files and assignments


def test_yaml_numbers_and_assignments() -> None:
    given = ["solver.s_max=1e4", "optim.lr=-.5e-3", "a=3", "b=2.", "c=1e-4x", "d.e.f=[1, 2e1]", "g=a=b"]
    assert parse_assignments(given) == {
        "solver": {"s_max": 1e4},
        "optim": {"lr": -5e-4},
        "a": 3,
        "b": 2.0,
        "c": "1e-4x",
        "d": {"e": {"f": [1, 20.0]}},
        "g": "a=b",
    }
    assert isinstance(parse_assignments(["a=3"])["a"], int)


@pytest.mark.parametrize(
    "given",
    [["solver=amd", "solver.beta=0.5"], ["solver.beta=0.5", "solver=amd"], ["solver.name=amd", "solver.beta=0.5"]],
)
def test_a_section_is_assigned_in_any_order(given: list[str]) -> None:
    assert parse_assignments(given) == {"solver": {"name": "amd", "beta": 0.5}}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["beta"], ["--set beta", "KEY=VALUE"]),
        (["=3"], ["--set =3", "KEY=VALUE"]),
        (["a=[1"], ["--set a", "line 1", "not YAML"]),
        (["a={b: 1, b: 2}"], ["--set a", "'b' is given twice"]),
        (["a=2", "a.b=1"], ["--set a.b: a is given twice: 2 and {'b': 1}"]),
        (["a.b=1", "a=2"], ["--set a: a is given twice: {'b': 1} and 2"]),
    ],
    ids=str,
)
def test_bad_assignments_are_refused_in_one_line(given: list[str], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        parse_assignments(given)
    text = complaint(error)
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: 1\nb: 2\na: 3\n", ["line 1", "'a' is given twice"]),
        (b"x:\n  a: 1\n  a: 3\n", ["'a' is given twice"]),
        (b"a: [1\n", ["line 2", "not YAML"]),
        (b"a: !!python/object:os.system {}\n", ["line 1", "not YAML"]),
        (b"- 1\n", ["list", "a mapping"]),
        (b"", ["NoneType", "a mapping"]),
        (b"\xff\xfe\x00", ["cannot be read"]),
    ],
    ids=str,
)
def test_a_bad_file_is_refused_in_one_line(content: bytes, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_yaml(path)
    text = complaint(error)
    assert text.startswith(f"{path}:")
    assert [word for word in words if word not in text] == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml: cannot be read: No such file"):
        read_yaml(tmp_path / "nowhere.yaml")


# Studies

RK4_STUDY: dict[str, Any] = {
    "question": "How many slices?",
    "fixed": {"preset": "paper", "solver": {"name": "rk4"}},
    "nuisance": {"solver.slices": {"int": [3, 60]}},
}


def build(changes: dict[str, Any] | None = None, **given: Any) -> Study:
    return Study.build({**RK4_STUDY, **given}, "my.yaml", changes)


@pytest.mark.parametrize("name", space_files())
def test_shipped_spaces_load(name: str) -> None:
    study = Study.load(find_space(name))
    assert "?" in study.question
    assert study.nuisance or study.scientific
    for arm in study.arms:
        for point in [*study.start_points(arm), study.completed({}, arm)]:
            assert study.fits(point, arm)
            flat, given_flat = flatten(study.trial(point, 1, arm).dump()), flatten(unflatten(point))
            assert {key: flat[key] for key in given_flat} == given_flat
            assert flat["seed"] == 1


@pytest.mark.parametrize("name", space_files())
def test_a_trial_is_its_layers_over_its_preset(name: str) -> None:
    """Seeds are derived and presets merged once per arm, to the same as building every trial from its layers."""
    study = Study.load(space_files()[name])
    for arm in study.arms:
        for point in [*study.start_points(arm), study.completed({}, arm)]:
            for stage in study.stages():
                layers = [study.budget.layer(), study.fixed, arm.changes]
                if stage and study.then is not None:
                    layers += [study.then.budget.layer(), study.then.fixed]
                for seed in study.seeds_of(stage)[:2]:
                    built = Trial.build(*layers, unflatten(point), {"seed": seed})
                    assert study.trial(point, seed, arm, stage) == built
                    assert study.trial(point, seed, arm.name, stage).fingerprint(DATA) == built.fingerprint(DATA)


def test_a_searched_preset_has_its_own_values() -> None:
    study = build(fixed={"method": "gfe"}, nuisance={"preset": {"choice": ["best", "paper"]}})
    for preset in ("paper", "best", "paper"):
        assert study.trial({"preset": preset}, 0) == Trial.build({"method": "gfe", "preset": preset})


@pytest.fixture
def validated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is validated as a trial, from now on."""
    seen: list[str] = []
    validate = Trial.model_validate

    def counted(given: Any) -> Trial:
        seen.append(str(given))
        return validate(given)

    monkeypatch.setattr(Trial, "model_validate", counted)
    return seen


@pytest.mark.parametrize("name", ["data_scarce", "novelty", "smoke"])
def test_no_point_is_validated_twice(name: str, validated: list[str]) -> None:
    """Loading tries it once for all who ask later, whatever the seed."""
    study = Study.load(space_files()[name])
    validated.clear()
    for arm in study.arms:
        for stage in study.stages():
            study.example(arm, stage)
            for point in study.start_points(arm) or [study.completed({}, arm)]:
                assert {study.trial(point, seed, arm, stage).seed for seed in range(5)} == {*range(5)}
    assert validated == []


def test_a_study_keeps_few_trials(monkeypatch: pytest.MonkeyPatch, validated: list[str]) -> None:
    monkeypatch.setattr("gfe_study.config.study.KEPT_TRIALS", 2)
    study = build()
    validated.clear()
    for slices in (11, 11, 12, 13, 13, 11):
        assert study.trial({"solver.slices": slices}, 1).dump()["solver"]["slices"] == slices
    assert len(validated) == 4


def test_a_derived_seed_is_in_range() -> None:
    assert build().trial({"solver.slices": 12}, 2**31 - 1).seed == 2**31 - 1
    for seed in (-1, 2**31):
        with pytest.raises(InputError, match=rf"^my.yaml: seed: given {seed}; allowed: in \[0, 2³¹\)$"):
            build().trial({"solver.slices": 12}, seed)


@pytest.mark.parametrize(
    "given",
    [
        {"uniform": [0.5, 2]},
        {"uniform": [-1, 1.5]},
        {"loguniform": [1e-4, 1]},
        {"int": [0, 3]},
        {"logint": [1, 1000]},
        {"choice": ["a", 1, [1, 2]]},
    ],
    ids=str,
)
def test_ranges_round_trip_and_hold_their_ends(given: dict[str, Any]) -> None:
    drawn = Range.model_validate(given)
    assert drawn.model_dump() == given
    assert Range.model_validate(drawn.model_dump()) == drawn
    ((kind, values),) = given.items()
    assert drawn.kind == kind
    assert all(drawn.contains(value) for value in values)
    assert not drawn.contains(1e6)
    assert drawn.contains(1.5) == (kind in ("uniform",))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"choice": []}, ["at least one value"]),
        ({"choice": "ab"}, ["{choice: [a, b, …]}"]),
        ({"loguniform": [0, 1]}, ["above 0"]),
        ({"loguniform": [-1, 1]}, ["above 0"]),
        ({"logint": [0, 10]}, ["above 0"]),
        ({"uniform": [2, 1]}, ["low below high"]),
        ({"uniform": [1, 1]}, ["low below high"]),
        ({"int": [9, 2]}, ["low below high"]),
        ({"uniform": [float("nan"), 1]}, ["low below high"]),
        ({"uniform": ["a", "b"]}, ["two numbers"]),
        ({"uniform": [True, 2]}, ["two numbers"]),
        ({"uniform": [1, 2, 3]}, ["two numbers"]),
        ({"int": [1.5, 3]}, ["two whole numbers"]),
        ({"logint": [1, 3.0]}, ["two whole numbers"]),
        ({"uniform": 5}, ["{uniform: [low, high]}"]),
        ({"unifrom": [1, 2]}, ["{uniform: [low, high]}"]),
        ({"uniform": [1, 2], "int": [1, 2]}, ["{uniform: [low, high]}"]),
        (5, ["{uniform: [low, high]}"]),
        ({"kind": "uniform", "values": ["a", 2]}, ["allowed"]),
    ],
    ids=str,
)
def test_a_bad_range_is_refused_in_one_line(given: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        build(nuisance={"solver.slices": given})
    text = complaint(error)
    assert text.startswith("my.yaml: nuisance.solver.slices: given ")
    assert str(given) in text
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(
    ("nuisance", "words"),
    [
        ({"solver.slices": {"int": [1, 5]}}, ["solver.slices", "given 1", "greater than or equal to 2"]),
        ({"solver.base": {"uniform": [0.5, 4]}}, ["solver.base", "given 0.5", "greater than or equal to 1"]),
        ({"optim.alpha": {"uniform": [0.5, 1]}}, ["optim.alpha", "given 1", "less than 1"]),
        ({"solver.tau": {"uniform": [1, float("inf")]}}, ["solver.tau", "given inf", "finite"]),
        ({"solver.slcs": {"int": [3, 5]}}, ["solver.slcs: unknown key", "did you mean 'slices'"]),
        ({"optim.name": {"choice": ["rmsprop", "sgd"]}}, ["optim", "given 'sgd'", "adam, rmsprop"]),
    ],
    ids=str,
)
def test_every_end_of_a_range_must_make_a_trial(nuisance: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        build(nuisance=nuisance)
    text = complaint(error)
    assert text.startswith("my.yaml: ")
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("pape", ["given 'pape'", "did you mean 'paper'"]),
        ("paper", ["solver.slices: given 50", "[3, 40]"]),
        ({"solver.slices": 2}, ["solver.slices: given 2", "[3, 40]"]),
        ({"solver.slices": 4.5}, ["solver.slices: given 4.5", "[3, 40]"]),
        ({"solver.slices": "many"}, ["solver.slices: given 'many'", "[3, 40]"]),
        ({"solver.slices": None}, ["solver.slices: given None", "[3, 40]"]),
        ({"solver.slices": float("inf")}, ["solver.slices: given inf", "[3, 40]"]),
        ({}, ["solver.slices not given"]),
        ({"solver.slices": 5, "optim.lr": 1e-3}, ["optim.lr", "not searched"]),
    ],
    ids=str,
)
def test_a_start_outside_the_space_is_refused(start: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        build(nuisance={"solver.slices": {"int": [3, 40]}}, start_from=[start])
    text = complaint(error)
    assert text.startswith("my.yaml: start_from: ")
    assert [word for word in words if word not in text] == []


def test_a_preset_starts_the_search_at_its_values() -> None:
    study = build(fixed={"solver": "amd"}, nuisance={"solver.beta": {"uniform": [0.1, 0.9]}}, start_from=["paper"])
    assert study.start_points() == [{"solver.beta": PRESETS["paper"]["solver"]["beta"]}]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"trials": 0}, ["trials", "given 0", "greater than 0"]),
        ({"seeds": "two"}, ["seeds", "given 'two'", "integer"]),
        ({"sampler": "bayes"}, ["sampler", "given 'bayes'", "'tpe', 'random' or 'grid'"]),
        ({"metric": {"name": "test_loss"}}, ["metric.name", "given 'test_loss'", "val_loss"]),
        ({"trails": 3}, ["trails: unknown key", "did you mean 'trials'"]),
        ({"question": None}, ["question", "given None", "string"]),
        ({"fixed": {"solver": {"name": "rk4", "slices": 4}}}, ["solver.slices", "fixed", "nuisance"]),
        ({"fixed": {"solver": {"name": "rk5"}}}, ["solver", "given 'rk5'", "did you mean 'rk4'"]),
    ],
    ids=str,
)
def test_a_bad_study_is_refused_in_one_line(given: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        build(**given)
    text = complaint(error)
    assert text.startswith("my.yaml: ")
    assert [word for word in words if word not in text] == []


def test_a_study_without_a_question_is_refused() -> None:
    with pytest.raises(InputError, match=r"^my\.yaml: question: not given$"):
        Study.build({"fixed": {}}, "my.yaml")


def test_an_unknown_space_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown space 'adm'; did you mean 'amd'\?.*smoke"):
        find_space("adm")


def test_a_local_space_hides_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A space in the working folder is found before a shipped one of the same name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search_spaces").mkdir()
    mine = tmp_path / "search_spaces" / "amd.yaml"
    mine.write_text(
        textwrap.dedent("""
        question: Mine?
        fixed: {preset: paper, solver: {name: amd, s_max: 1e2}}
        nuisance:
          solver.beta: {uniform: [0.3, 0.95]}
    """)
    )
    study = Study.load(find_space("amd"), {"eval": {"mixed": False}}, trials=3, seeds=None)
    assert (study.question, study.trials, study.seeds, study.source) == ("Mine?", 3, 1, str(mine))
    assert study.trial({"solver.beta": 0.5}, seed=0).solver == AMD(beta=0.5, s_max=100, min_slope=1e-5)


@pytest.mark.parametrize(
    "changes", [{"solver": {"slices": 9}}, {"solver": {"slices": 9}, "eval": {"mixed": False}}], ids=["one", "two"]
)
@pytest.mark.parametrize("start_from", [[], ["paper"], [{"solver.slices": 12, "optim.lr": 5e-4}]], ids=str)
def test_a_key_that_is_set_is_no_longer_searched(changes: dict[str, Any], start_from: list[Any]) -> None:
    nuisance = {"solver.slices": {"int": [3, 60]}, "optim.lr": {"loguniform": [1e-4, 1e-2]}}
    study = build(changes, nuisance=nuisance, start_from=start_from)
    assert set(study.nuisance) == {"optim.lr"}
    assert study.start_points() == [{"optim.lr": 5e-4}] * len(start_from)
    assert study.trial({"optim.lr": 1e-3}, seed=0).dump()["solver"]["slices"] == 9


@pytest.mark.parametrize("changes", [{"optim": "adam"}, {"optim": {"name": "adam"}}], ids=str)
def test_a_name_that_is_set_is_no_longer_searched(changes: dict[str, Any]) -> None:
    nuisance = {"optim.name": {"choice": ["rmsprop", "adam"]}, "optim.lr": {"loguniform": [1e-4, 1e-2]}}
    study = build(changes, nuisance=nuisance)
    assert set(study.nuisance) == {"optim.lr"}
    assert study.trial({"optim.lr": 1e-3}, seed=0).optim.name == "adam"


def test_a_study_knows_the_hash_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    hashes = []
    for question in ("How many?", "How few?"):
        path.write_text(f"question: {question}\n")
        hashes.append(Study.load(path).source_sha256)
        assert hashes[-1] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert hashes[0] != hashes[1]
    assert build().source_sha256 == ""


@pytest.mark.parametrize("changes", [{"fixed": {"seed": 7}}, {"nuisance": {"seed": {"int": [0, 9]}}, "start_from": []}])
def test_a_seed_in_a_study_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="seed: given; allowed: seeds"):
        build(**changes)


def test_a_section_may_be_given_whole_and_by_key() -> None:
    assert unflatten({"solver.beta": 0.5, "solver": "amd"}) == {"solver": {"beta": 0.5, "name": "amd"}}
    whole = {"name": "amd"}
    assert unflatten({"solver": whole, "solver.beta": 0.5}) == {"solver": {"name": "amd", "beta": 0.5}}
    assert whole == {"name": "amd"}


def test_the_study_shown_in_the_readme_is_one() -> None:
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```yaml\n(question: .*?)```", text, re.DOTALL)
    study = Study.build(parse_yaml(shown, "README.md"), "README.md")
    assert study.model_dump() == Study.load(space_files()["ae_fair"]).model_dump()


def test_a_refusal_lists_every_kind_allowed() -> None:
    """A setting of several kinds is refused once, with all that it may be."""
    with pytest.raises(InputError) as refused:
        Trial.build({"likelihood": {"name": "gaussian", "sigma": -1}})
    assert str(refused.value).endswith(
        "likelihood.sigma: given -1; allowed: greater than 0 or 'learned' or 'each' or 'data'"
    )
