"""A key means the same in every spelling, and two spellings of one key are that key given twice."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfe_study.config import InputError, Study, parse_assignments

BASE: dict[str, Any] = {"question": "?", "fixed": {"preset": "paper"}, "budget": {"images": 64}}


def meaning(declared: dict[str, Any], sets: list[str] | None = None) -> Any:
    """What a study comes to: an error, or its arms, their first points, ranges and example trials."""
    before = copy.deepcopy(declared)
    try:
        study = Study.build({**BASE, **declared}, "my.yaml", parse_assignments(sets or []))
    except InputError as error:
        return str(error)
    assert declared == before
    again = Study.build(study.model_dump(mode="json"), "my.yaml")
    assert again.model_dump() == study.model_dump()
    arms = {}
    for arm in study.arms:
        point = study.completed({}, arm)
        arms[arm.name] = (
            arm.reference,
            arm.levels,
            study.start_points(arm),
            {key: study.range_of(key, arm, point) for key in study.nuisance},
            [study.example(arm, stage).fingerprint("data") for stage in study.stages()],
        )
    return arms, study.holes, study.configurations(study.arms[0])


AMD_OR_RK4 = {"solver.name": {"choice": ["amd", "rk4"]}}
WHOLE = {"solver": {"choice": [{"name": "amd", "beta": 0.5}, {"name": "rk4"}]}}
LAST = {"solver": {"choice": [{"name": "rk4"}, {"name": "amd", "beta": 0.5}]}}
BETA = {"solver.beta": {"uniform": [0.3, 0.9], "when": {"solver.name": "amd"}}}
STEP = {"solver.s_max": {"uniform": [20, 90], "when": {"solver": "amd"}}}
RATE = {"optim.lr": {"loguniform": [1e-4, 1e-2]}}


def arms(**each: Any) -> dict[str, Any]:
    return {"scientific": {"arms": each}}


def factorial(**design: Any) -> dict[str, Any]:
    return {"scientific": {"factorial": design}}


def crossed(*solver: Any, **more: Any) -> dict[str, Any]:
    design, key = {"optim.lr": [1e-3, 2e-3]}, solver[0] if solver else "solver.name"
    return {"scientific": {"factorial": {**design, key: ["amd", "rk4"], **more}}}


SAME: dict[str, list[dict[str, Any]]] = {
    "fixed": [
        {"fixed": {"solver.name": "rk4", "solver.slices": 7}},
        {"fixed": {"solver": "rk4", "solver.slices": 7}},
        {"fixed": {"solver.slices": 7, "solver": {"name": "rk4"}}},
        {"fixed": {"solver": {"slices": 7}, "solver.name": "rk4"}},
    ],
    "then": [
        {"then": {"fixed": {"solver.name": "rk4", "solver.slices": 7}}},
        {"then": {"fixed": {"solver": "rk4", "solver.slices": 7}}},
        {"then": {"fixed": {"solver": {"name": "rk4", "slices": 7}}}},
    ],
    "arms": [
        arms(a={"method.name": "ae"}, b={"solver.name": "rk4"}),
        arms(a={"method": "ae"}, b={"solver": {"name": "rk4"}}),
    ],
    "searched names": [
        {"nuisance": {**AMD_OR_RK4, **RATE}},
        {"nuisance": {"solver": {"choice": ["amd", "rk4"]}, **RATE}},
        {"nuisance": {"solver": {"choice": [{"name": "amd"}, "rk4"]}, **RATE}},
        {"nuisance": {"solver": {"name": {"choice": ["amd", "rk4"]}}, "optim": {"lr": RATE["optim.lr"]}}},
    ],
    "searched sections": [
        {"nuisance": WHOLE},
        {"nuisance": {"solver": {"choice": [{"beta": 0.5, "name": "amd"}, "rk4"]}}},
        {"nuisance": {"solver": [{"choice": [{"name": "amd", "beta": 0.5}, "rk4"]}]}},
    ],
    "conditions": [
        {"nuisance": {**AMD_OR_RK4, **BETA}},
        {"nuisance": {**AMD_OR_RK4, "solver.beta": {"uniform": [0.3, 0.9], "when": {"solver": "amd"}}}},
        {"nuisance": {**AMD_OR_RK4, "solver.beta": {"uniform": [0.3, 0.9], "when": {"solver": {"name": "amd"}}}}},
        {"nuisance": {**AMD_OR_RK4, "solver.beta": {"uniform": [0.3, 0.9], "when": {"solver": ["amd"]}}}},
        {"nuisance": {**AMD_OR_RK4, "solver": {"beta": {"uniform": [0.3, 0.9], "when": {"solver": "amd"}}}}},
    ],
    "conditions under a searched section": [
        {"nuisance": {**LAST, "solver.s_max": {"uniform": [20, 90], "when": {"solver.name": "amd"}}}},
        {"nuisance": {**LAST, "solver.s_max": {"uniform": [20, 90], "when": {"solver": "amd"}}}},
        {"nuisance": {**LAST, "solver.s_max": {"uniform": [20, 90], "when": {"solver": {"name": "amd", "beta": 0.5}}}}},
    ],
    "starting points": [
        {"nuisance": {**AMD_OR_RK4, **BETA}, "start_from": [{"solver.name": "amd", "solver.beta": 0.4}]},
        {"nuisance": {**AMD_OR_RK4, **BETA}, "start_from": [{"solver": "amd", "solver.beta": 0.4}]},
        {"nuisance": {**AMD_OR_RK4, **BETA}, "start_from": [{"solver": {"name": "amd", "beta": 0.4}}]},
    ],
    "starting at a section": [
        {"nuisance": {**WHOLE, **RATE}, "start_from": [{"solver.name": "rk4", "optim.lr": 1e-3}]},
        {"nuisance": {**WHOLE, **RATE}, "start_from": [{"solver": "rk4", "optim": {"lr": 1e-3}}]},
        {"nuisance": {**WHOLE, **RATE}, "start_from": [{"solver": {"name": "rk4"}, "optim.lr": 1e-3}]},
    ],
    "starting below a section": [
        {"nuisance": {**WHOLE, **STEP}, "start_from": [{"solver.name": "amd", "solver.beta": 0.5, "solver.s_max": 30}]},
        {"nuisance": {**WHOLE, **STEP}, "start_from": [{"solver": {"name": "amd", "beta": 0.5, "s_max": 30}}]},
    ],
    "factors": [
        crossed("solver.name"),
        crossed("solver"),
        factorial(optim={"lr": [1e-3, 2e-3]}, solver={"name": ["amd", "rk4"]}),
        factorial(**{"optim.lr": [1e-3, 2e-3]}, solver=["amd", {"name": "rk4"}]),
        factorial(**{"optim.lr": [1e-3, 2e-3]}, solver={"choice": ["amd", "rk4"]}),
    ],
    "compared factors": [
        {**crossed("solver.name"), "compare": {"factor": "solver.name", "reference": "rk4"}},
        {**crossed("solver.name"), "compare": {"factor": "solver", "reference": "rk4"}},
        {**crossed("solver"), "compare": {"factor": "solver.name", "reference": "rk4"}},
        {**crossed("solver"), "compare": {"factor": "solver", "reference": "rk4"}},
    ],
    "exclusions": [
        crossed(exclude={"slow": {"solver.name": "rk4", "optim.lr": 1e-3}}),
        crossed(exclude={"slow": {"solver": "rk4", "optim": {"lr": 1e-3}}}),
        crossed("solver", exclude={"slow": {"solver": {"name": "rk4"}, "optim.lr": 1e-3}}),
        crossed("solver", exclude={"slow": {"solver.name": ["rk4"], "optim.lr": 1e-3}}),
    ],
    "conditions of factors": [
        crossed(**{"solver.beta": {"choice": [0.5, 0.6], "when": {"solver.name": "amd"}}}),
        crossed(**{"solver.beta": {"choice": [0.5, 0.6], "when": {"solver": "amd"}}}),
        crossed("solver", **{"solver.beta": {"choice": [0.5, 0.6], "when": {"solver.name": "amd"}}}),
        crossed("solver", **{"solver.beta": {"choice": [0.5, 0.6], "when": {"solver": {"name": "amd"}}}}),
    ],
    "ablations": [
        {"scientific": {"ablate": {"reference": {"solver.name": "rk4"}, "factors": {"s": {"solver.name": "amd"}}}}},
        {"scientific": {"ablate": {"reference": {"solver": "rk4"}, "factors": {"s": {"solver": "amd"}}}}},
        {"scientific": {"ablate": {"reference": {"solver": {"name": "rk4"}}, "factors": {"s": {"solver": "amd"}}}}},
    ],
}
"""Where a key is given: studies that mean the same, the first in dotted keys."""
SAME_ERROR: dict[str, list[dict[str, Any]]] = {
    "fixed and searched": [
        {"fixed": {"solver.name": "amd"}, "nuisance": AMD_OR_RK4},
        {"fixed": {"solver": "amd"}, "nuisance": {"solver": {"choice": ["amd", "rk4"]}}},
        {"fixed": {"solver": {"name": "amd"}}, "nuisance": {"solver": {"choice": [{"name": "amd"}, "rk4"]}}},
        {"fixed": {"solver": "amd"}, "nuisance": WHOLE},
    ],
    "fixed later and searched": [
        {"then": {"fixed": {"solver.beta": 0.5}}, "nuisance": {**AMD_OR_RK4, **BETA}},
        {
            "then": {"fixed": {"solver": {"beta": 0.5}}},
            "nuisance": {**AMD_OR_RK4, "solver": {"beta": BETA["solver.beta"]}},
        },
        {"then": {"fixed": {"solver": {"beta": 0.5}}}, "nuisance": WHOLE},
    ],
    "given by an arm and searched": [
        {**arms(a={"solver.name": "amd"}), "nuisance": AMD_OR_RK4},
        {**arms(a={"solver": "amd"}), "nuisance": {"solver": {"choice": ["amd", "rk4"]}}},
        {**arms(a={"solver": {"name": "amd"}}), "nuisance": WHOLE},
    ],
    "a condition that never holds": [
        {"nuisance": {"solver.beta": {"uniform": [0.3, 0.9], "when": {"solver.name": "rk4"}}}},
        {"nuisance": {"solver": {"beta": {"uniform": [0.3, 0.9], "when": {"solver": "rk4"}}}}},
    ],
    "an unknown name": [
        {"nuisance": {"solver.name": {"choice": ["amd", "rk5"]}}},
        {"nuisance": {"solver": {"choice": ["amd", {"name": "rk5"}]}}},
    ],
}


@pytest.mark.parametrize("place", [*SAME, *SAME_ERROR])
def test_every_spelling_means_the_same(place: str) -> None:
    first, *others = map(meaning, (SAME | SAME_ERROR)[place])
    assert others == [first] * len(others)
    assert isinstance(first, str) == (place in SAME_ERROR)


TWICE: dict[str, dict[str, Any]] = {
    "fixed: solver.name": {"fixed": {"solver": "amd", "solver.name": "amd"}},
    "fixed: solver.beta": {"fixed": {"solver": {"beta": 0.5}, "solver.beta": 0.5}},
    "then.fixed: solver.name": {"then": {"fixed": {"solver": "amd", "solver.name": "rk4"}}},
    "arms.a: solver.name": arms(a={"solver": {"name": "amd"}, "solver.name": "amd"}),
    "nuisance: solver.name": {"nuisance": {**AMD_OR_RK4, "solver": {"choice": ["amd", "rk4"]}}},
    "nuisance: solver.beta": {"nuisance": {"solver": {"beta": BETA["solver.beta"]}, **BETA}},
    "my.yaml: solver.beta": {"nuisance": {**LAST, **BETA}},
    "when: solver.name": {
        "nuisance": {"optim.lr": {"uniform": [1e-3, 1e-2], "when": {"solver.name": "amd", "solver": {"name": "amd"}}}}
    },
    "nuisance: solver.name ": {
        "nuisance": {"optim.lr": {"uniform": [1e-3, 1e-2], "when": {"solver.name": "amd", "solver": "amd"}}}
    },
    "start_from: solver.name": {"nuisance": AMD_OR_RK4, "start_from": [{"solver": "amd", "solver.name": "rk4"}]},
    "scientific.factorial.factors: solver.name": crossed("solver", **{"solver.name": ["amd", "rk4"]}),
    "scientific.factorial.exclude: solver.name": crossed(exclude={"slow": {"solver": "rk4", "solver.name": "rk4"}}),
    "factors.s: solver.name": {"scientific": {"ablate": {"factors": {"s": {"solver": "rk4", "solver.name": "rk4"}}}}},
}


@pytest.mark.parametrize("place", TWICE)
def test_two_spellings_are_one_key_given_twice(place: str) -> None:
    error = meaning(TWICE[place])
    assert f"{place.strip()} is given twice: " in error
    assert "\n" not in error


def test_the_last_spelling_typed_wins() -> None:
    for sets in (["solver=amd", "solver.name=rk4"], ["solver.name=amd", "solver=rk4"], ["solver=rk4"]):
        assert parse_assignments(sets) == {"solver": {"name": "rk4"}}
    assert parse_assignments(["solver={name: rk4, slices: 7}", "solver.slices=8"]) == {
        "solver": {"name": "rk4", "slices": 8}
    }


@pytest.mark.parametrize("searched", [AMD_OR_RK4, {"solver": {"choice": ["amd", "rk4"]}}, WHOLE], ids=str)
def test_a_section_that_is_set_is_not_searched(searched: dict[str, Any]) -> None:
    declared = {**BASE, "nuisance": {**searched, **RATE}, "start_from": [{"solver": "rk4", "optim.lr": 1e-3}]}
    for sets in ("solver=rk4", "solver.name=rk4", "solver={name: rk4}"):
        study = Study.build(declared, "my.yaml", parse_assignments([sets]))
        assert [*study.nuisance] == ["optim.lr"]
        assert study.start_points() == [{"optim.lr": 1e-3}]
        assert study.example("").solver.name == "rk4"


def test_a_factors_level_goes_before_a_section() -> None:
    """`model: shallow` is the level, `model: {name: mlp}` and `model.name: mlp` are the section."""
    levels = {"shallow": {"model.hidden": [8]}, "deep": {"model.hidden": [8, 8]}}

    def searched(*conditions: Any) -> Study:
        rates = [{"loguniform": [1e-4, 10.0 ** -(2 + place)], "when": when} for place, when in enumerate(conditions)]
        return Study.build({**BASE, **factorial(model={"levels": levels}), "nuisance": {"optim.lr": rates}}, "my.yaml")

    study = searched({"model": "shallow"}, {"model": {"name": "mlp"}})
    assert [study.completed({"optim.lr": 1e-2}, arm)["optim.lr"] for arm in study.arms] == [1e-2, 1e-2]
    ends = [study.range_of("optim.lr", arm, {}).values[1] for arm in study.arms]  # type: ignore[union-attr]
    assert ends == [1e-2, 1e-3]
    assert searched({"model": "shallow"}, {"model.name": "mlp"}).nuisance == study.nuisance
    with pytest.raises(InputError, match=r"when: given {'model': 'mlp'}, which holds in no arm"):
        searched({"model": "mlp"})


def test_a_level_may_be_called_like_its_section() -> None:
    """One level of the factor is no more than a name; another is."""
    levels = {"amd": {"solver": "amd"}, "fast": {"solver": {"name": "amd", "s_max": 20}}}
    beta = {"choice": [0.5, 0.6], "when": {"solver": "fast"}}
    study = Study.build({**BASE, **factorial(solver={"levels": levels}, **{"solver.beta": beta})}, "my.yaml")
    assert [arm.name for arm in study.arms] == ["amd", "fast, beta=0.5", "fast, beta=0.6"]
    assert study.arms[0].levels == (("solver", "amd"),)


def test_a_section_without_ranges_is_refused() -> None:
    nothings: list[Any] = [{}, [], {"name": {}}]
    for nothing in nothings:
        assert "nuisance.solver" in meaning({"nuisance": {"solver": nothing, **RATE}})


def test_a_level_is_no_value_of_its_section() -> None:
    """A factor called `target` has levels even where the method has no target."""
    levels = {"few": {"optim.batch_size": 8}, "many": {"optim.batch_size": 16}}
    rates = {"optim.lr": {"loguniform": [1e-4, 1e-2], "when": {"target": "few"}}}
    study = Study.build({**BASE, **factorial(target={"levels": levels}), "nuisance": rates}, "my.yaml")
    assert [study.range_of("optim.lr", arm, {}) is None for arm in study.arms] == [False, True]
    excluded = factorial(target={"levels": levels}, exclude={"slow": {"target": "many"}})
    assert [arm.name for arm in Study.build({**BASE, **excluded}, "my.yaml").arms] == ["few"]


def test_a_condition_on_whole_sections_is_refused() -> None:
    when = {"solver": [{"name": "amd", "beta": 0.5}, "rk4"]}
    error = meaning({"nuisance": {"optim.lr": {"uniform": [1e-3, 1e-2], "when": when}}})
    assert "when: solver: names, or one mapping of its settings" in error
    whole = meaning(
        {"nuisance": {"optim.lr": {"uniform": [1e-3, 1e-2], "when": {"solver": {"name": "amd", "beta": 0.75}}}}}
    )
    assert not isinstance(whole, str)


def test_every_choice_of_a_section_is_a_trial() -> None:
    choices = [{"name": "amd", "beta": 0.5}, {"name": "amd", "beta": 0.6}, "rk4"]
    step = {"choice": [20, 40], "when": {"solver": "amd"}}
    study = Study.build(
        {**BASE, "sampler": "grid", "nuisance": {"solver": {"choice": choices}, "solver.s_max": step}}, "f"
    )
    solvers = [study.trial(point, 0).solver for point in study.grid("")]
    found = [(solver.name, getattr(solver, "beta", None), getattr(solver, "s_max", None)) for solver in solvers]
    assert found == [("amd", beta, s_max) for beta in (0.5, 0.6) for s_max in (20, 40)] + [("rk4", None, None)]
    assert all(study.fits(point, "") for point in study.grid(""))


def test_a_preset_starts_at_a_section_it_has() -> None:
    nuisance = {"solver": {"choice": ["rk4", {"name": "amd", "beta": 0.75}]}, **RATE}
    study = Study.build({**BASE, "nuisance": nuisance, "start_from": ["paper"]}, "my.yaml")
    assert study.start_points() == [{"solver": {"name": "amd", "beta": 0.75}, "optim.lr": 5e-4}]
    assert study.completed({}, "")["solver"] == {"name": "amd", "beta": 0.75}
    error = meaning({"nuisance": {**WHOLE, **RATE}, "start_from": ["paper"]})
    assert "start_from: solver: given {'name': 'amd', " in error


# Any study


VALUES: dict[str, list[Any]] = {
    "method.name": ["gfe", "ae"],
    "solver.name": ["amd", "rk4", "lbfgs", "rk5"],
    "solver.max_nfe": [20, 30],
    "gradient.name": ["approx", "adjoint"],
    "optim.name": ["adam", "rmsprop"],
    "optim.lr": [1e-3, 2e-3],
    "optim.batch_size": [8, 16],
    "start.name": ["zero", "mean"],
}
RANGES: dict[str, Any] = {
    "solver.name": {"choice": ["amd", "rk4"]},
    "solver.beta": {"uniform": [0.3, 0.9], "when": {"solver.name": "amd"}},
    "optim.name": {"choice": ["rmsprop", "adam"]},
    "optim.lr": [{"loguniform": [1e-4, 2e-3], "when": {"method.name": ["gfe", "vae"]}}, {"loguniform": [1e-3, 1e-2]}],
    "optim.batch_size": {"choice": [8, 16]},
}
Draw = Any


def some(draw: Draw, of: dict[str, Any], most: int) -> dict[str, Any]:
    """Some of the keys, in their order."""
    chosen = draw(st.sets(st.sampled_from([*of]), max_size=most))
    return {key: value for key, value in of.items() if key in chosen}


@st.composite
def studies(draw: Draw) -> dict[str, Any]:
    """A study in dotted keys, valid or not."""
    ranges = some(draw, RANGES, 3)
    clash = draw(st.integers(0, 5)) == 0
    free = {key: values for key, values in VALUES.items() if clash or key not in ranges}

    def changes(most: int) -> dict[str, Any]:
        return {key: draw(st.sampled_from(values)) for key, values in some(draw, free, most).items()}

    study: dict[str, Any] = {"fixed": {"preset": "paper", **changes(2)}, "nuisance": ranges}
    design = draw(st.sampled_from(["none", "arms", "factorial", "ablate"]))
    if design == "arms":
        study |= arms(**{name: {**changes(2), "model.latent_dim": place + 2} for place, name in enumerate("ab")})
    elif design == "factorial":
        factors: dict[str, Any] = {"start.name": ["zero", "mean"]}
        factors |= {key: [*values[:2]] for key, values in some(draw, free, 2).items()}
        cell = {key: draw(st.sampled_from(levels)) for key, levels in factors.items()}
        factors["optim.lr_half_images"] = {"choice": [400, 4000], "when": some(draw, cell, 2)}
        study |= factorial(**factors, **({"exclude": {"slow": cell}} if draw(st.booleans()) else {}))
        study["compare"] = {"factor": draw(st.sampled_from([*factors]))}
    elif design == "ablate":
        factor = {**changes(2), "model.latent_dim": 2}
        study["scientific"] = {"ablate": {"reference": changes(1), "factors": {"f": factor}}}
    if ranges and draw(st.booleans()):
        study["start_from"] = [{key: VALUES.get(key, [0.5])[0] for key in ranges}]
    if draw(st.booleans()):
        study["then"] = {"best": 1, "seeds": 2, "fixed": changes(1)}
    return study


def mixed(draw: Draw, flat: dict[str, Any], short: Any = lambda value: value) -> dict[str, Any]:
    """Dotted keys in a random mixture of spellings; sections stay in their order."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        section, _, setting = key.partition(".")
        sections.setdefault(section, {})[setting] = value
    spelled: dict[str, Any] = {}
    for section, own in sections.items():
        way = draw(st.sampled_from(["dotted", "nested", "short"]))
        if "" in own:
            spelled[section] = own[""]
        elif way == "nested":
            spelled[section] = own
        else:
            for setting, value in own.items():
                alone = way == "short" and setting == "name"
                spelled[section if alone else f"{section}.{setting}"] = short(value) if alone else value
    return spelled


@st.composite
def respelled(draw: Draw, study: dict[str, Any]) -> dict[str, Any]:
    """The same study in a random mixture of spellings."""

    def names(values: Any) -> Any:
        """Names of a section, each alone or as a mapping."""
        if isinstance(values, dict):
            return {**values, "choice": names(values["choice"])}
        return [draw(st.sampled_from([value, {"name": value}])) for value in values]

    def ranges(drawn: Any) -> Any:
        if isinstance(drawn, list):
            return [ranges(each) for each in drawn]
        return {**drawn, "when": mixed(draw, drawn["when"])} if isinstance(drawn, dict) and "when" in drawn else drawn

    other = dict(study)
    other["fixed"] = mixed(draw, study["fixed"])
    other["nuisance"] = mixed(draw, {key: ranges(drawn) for key, drawn in study["nuisance"].items()}, names)
    design = study.get("scientific", {})
    if "arms" in design:
        other |= arms(**{name: mixed(draw, own) for name, own in design["arms"].items()})
    if "factorial" in design:
        factors = {key: ranges(levels) for key, levels in design["factorial"].items() if key != "exclude"}
        excluded = {why: mixed(draw, when) for why, when in design["factorial"].get("exclude", {}).items()}
        other |= factorial(**mixed(draw, factors, names), **({"exclude": excluded} if excluded else {}))
        factor = study["compare"]["factor"]
        other["compare"] = {"factor": draw(st.sampled_from([factor, factor.removesuffix(".name")]))}
    if "ablate" in design:
        own = {name: mixed(draw, values) for name, values in design["ablate"]["factors"].items()}
        other["scientific"] = {"ablate": {"reference": mixed(draw, design["ablate"]["reference"]), "factors": own}}
    if "start_from" in study:
        other["start_from"] = [mixed(draw, start) for start in study["start_from"]]
    if "then" in study:
        other["then"] = {**study["then"], "fixed": mixed(draw, study["then"]["fixed"])}
    return other


@settings(max_examples=150)
@given(st.data())
def test_any_mixture_of_spellings_means_the_same(data: st.DataObject) -> None:
    study = data.draw(studies())
    sets = data.draw(st.sampled_from([[], ["solver.name=lbfgs"], ["optim.name=adam", "optim.lr=0.01"]]))
    short = [text.replace(".name", "") if data.draw(st.booleans()) else text for text in sets]
    assert meaning(data.draw(respelled(study)), short) == meaning(study, sets)
