"""What a study compares: arms, factorials, ablations, conditions, budgets, stages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gfe_study.config import InputError, Range, Study, flatten, space_files
from gfe_study.config.options import IMAGES_WITHOUT_LIMIT
from gfe_study.data.split import image_shape
from gfe_study.solvers.amd import AMD
from gfe_study.training import training_order

BASE: dict[str, Any] = {
    "question": "Does it help?",
    "fixed": {"preset": "paper", "solver": {"name": "amd", "max_nfe": 12}, "data": {"name": "digits"}},
    "budget": {"images": 64},
}


def build(**declared: Any) -> Study:
    return Study.build({**BASE, **declared}, "my.yaml")


def compared(design: dict[str, Any], **declared: Any) -> Study:
    return build(scientific=design, **declared)


def names_of(study: Study) -> list[str]:
    return [arm.name for arm in study.arms]


def references(study: Study) -> dict[str, str | None]:
    return {arm.name: arm.reference for arm in study.arms}


def test_the_first_arm_is_the_others_reference() -> None:
    """What an arm declares replaces what is fixed."""
    study = compared({"arms": {"slow": {"solver.beta": 0.9}, "ae": {"method": "ae"}}})
    assert references(study) == {"slow": None, "ae": "slow"}
    assert study.trial({}, 3, "slow").solver == AMD(beta=0.9, max_nfe=12, min_slope=1e-5)
    assert study.trial({}, 3, "ae").method.name == "ae"
    assert study.trial({}, 3, "ae").seed == 3


def test_the_reference_can_be_named() -> None:
    arms = {"arms": {"a": {"optim.lr": 1e-3}, "b": {"optim.lr": 2e-3}}}
    assert references(compared(arms, compare={"reference": "b"})) == {"a": "b", "b": None}
    with pytest.raises(InputError, match=r"compare.reference: given 'c'; allowed: a, b"):
        compared(arms, compare={"reference": "c"})


def test_a_factorial_compares_along_one_factor() -> None:
    design = {"factorial": {"gradient.name": ["approx", "adjoint"], "solver.name": ["euler", "rk4"]}}
    study = compared(design, fixed={"preset": "paper"})
    assert references(study) == {
        "approx, euler": None,
        "approx, rk4": None,
        "adjoint, euler": "approx, euler",
        "adjoint, rk4": "approx, rk4",
    }
    other = compared(design, fixed={"preset": "paper"}, compare={"factor": "solver.name", "reference": "rk4"})
    assert references(other)["adjoint, euler"] == "adjoint, rk4"
    assert references(other)["approx, rk4"] is None


def test_impossible_cells_are_holes_with_a_reason() -> None:
    design = {"factorial": {"gradient.name": ["approx", "adjoint"], "solver.name": ["amd", "lbfgs"]}}
    study = compared(design, fixed={"preset": "paper"})
    assert names_of(study) == ["approx, amd", "approx, lbfgs", "adjoint, amd"]
    assert [hole.name for hole in study.holes] == ["adjoint, lbfgs"]
    assert "follows no flow" in study.holes[0].reason


def test_a_slip_of_the_pen_is_no_hole() -> None:
    with pytest.raises(InputError, match=r"arm 'b'.*solver.betta: unknown key; did you mean 'beta'"):
        compared({"arms": {"a": {}, "b": {"solver.betta": 0.5}}})
    with pytest.raises(InputError, match="no arm is possible"):
        compared({"arms": {"a": {"solver.name": "lbfgs", "gradient.name": "adjoint"}}}, fixed={"preset": "paper"})


def test_named_exclusions_are_holes() -> None:
    factors = {"solver.name": ["amd", "rk4"], "optim.lr": [1e-3, 2e-3]}
    design = {"factorial": {**factors, "exclude": {"known to diverge": {"solver.name": "rk4", "optim.lr": 2e-3}}}}
    study = compared(design, fixed={"preset": "paper"})
    assert names_of(study) == ["amd, lr=0.001", "amd, lr=0.002", "rk4, lr=0.001"]
    assert [(hole.name, hole.reason) for hole in study.holes] == [("rk4, lr=0.002", "known to diverge")]


def test_an_exclusion_may_name_fixed_settings() -> None:
    """It then holds for some studies and not for others; one that could hold in no cell is a slip."""

    def cells(data: str, **condition: Any) -> list[str]:
        excluded = {"digits has 1,197 training images": {"data.name": "digits", "data.train_images": 5000, **condition}}
        factors = {"data.train_images": [50, 5000], "solver": ["amd", "rk4"]}
        study = compared({"factorial": {**factors, "exclude": excluded}}, fixed={"preset": "paper", "data": data})
        assert len(study.arms) + len(study.holes) == 4
        return [hole.name for hole in study.holes]

    assert cells("digits") == ["train_images=5000, amd", "train_images=5000, rk4"]
    assert cells("digits", solver="rk4") == ["train_images=5000, rk4"]
    assert cells("mnist") == []
    for slip in ({"data.train_images": 500}, {"solver": "rk5"}, {"data.nme": "digits"}):
        with pytest.raises(InputError, match=r"exclude: 'digits has 1,197 training images' matches no cell"):
            cells("mnist", **slip)


def test_a_conditional_factor_skips_other_levels() -> None:
    beta = {"choice": [0.5, 0.75], "when": {"solver.name": "amd"}}
    study = compared({"factorial": {"solver.name": ["amd", "rk4"], "solver.beta": beta}}, fixed={"preset": "paper"})
    assert names_of(study) == ["amd, beta=0.5", "amd, beta=0.75", "rk4"]


def test_a_named_level_may_hold_several_settings() -> None:
    levels = {"plain": {"optim.lr": 1e-3}, "decay": {"optim": {"lr": 2e-3, "lr_half_images": 100}}}
    study = compared({"factorial": {"rate": {"levels": levels}}})
    assert references(study) == {"plain": None, "decay": "plain"}
    assert study.trial({}, 0, "decay").optim.lr_half_images == 100


ABLATION: dict[str, Any] = {
    "reference": {"optim.lr": 2e-3},
    "factors": {"rate": {"optim.lr": 5e-4}, "steps": {"solver.s_max": 20}, "batch": {"optim.batch_size": 5}},
}


@pytest.mark.parametrize(
    ("design", "expected"),
    [
        (
            "leave_one_out",
            {
                "reference": (2e-3, 10, 16, None),
                "without rate": (5e-4, 10, 16, "reference"),
                "without steps": (2e-3, 20, 16, "reference"),
                "without batch": (2e-3, 10, 5, "reference"),
            },
        ),
        (
            "add_one_in",
            {
                "base": (5e-4, 20, 5, None),
                "with rate": (2e-3, 20, 5, "base"),
                "with steps": (5e-4, 10, 5, "base"),
                "with batch": (5e-4, 20, 16, "base"),
            },
        ),
        (
            "path",
            {
                "base": (5e-4, 20, 5, None),
                "+ rate": (2e-3, 20, 5, "base"),
                "+ steps": (2e-3, 10, 5, "+ rate"),
                "+ batch": (2e-3, 10, 16, "+ steps"),
            },
        ),
    ],
)
def test_ablations(design: str, expected: dict[str, tuple[float, float, int, str | None]]) -> None:
    study = compared({"ablate": {**ABLATION, "design": design}})
    found = {}
    for arm in study.arms:
        trial = study.trial({}, 0, arm)
        found[arm.name] = (trial.optim.lr, flatten(trial.dump())["solver.s_max"], trial.optim.batch_size, arm.reference)
    assert found == expected


@pytest.mark.parametrize(
    ("design", "parts"),
    [
        ({}, ["scientific", "none given", "one of arms, factorial, ablate"]),
        ({"arms": {"a": {}}, "ablate": ABLATION}, ["arms and ablate given"]),
        ({"arms": {"a": {"optim.lr": 1e-3}, "b": {"optim": {"lr": 1e-3}}}}, ["'b' is the same configuration as 'a'"]),
        ({"ablate": {"factors": {"rate": {"optim.lr": 5e-4}}}}, ["'without rate' is the same configuration"]),
        ({"factorial": {"optim.lr": 3}}, ["scientific.factorial", "given 3", "a list of values"]),
        ({"factorial": {"optim.lr": []}}, ["a list of at least one value"]),
        ({"arms": {"a": 3}}, ["given 3", "a mapping of keys to values"]),
        ({"ablate": {"factors": {"a": {"optim.lr": 1}}, "design": "all"}}, ["design", "given 'all'", "'path'"]),
        ({"arms": {"a": {"data.name": "x"}}}, ["arm 'a'", "data", "given 'x'", "digits"]),
    ],
)
def test_a_bad_design_is_one_line(design: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        compared(design)
    line = str(refused.value)
    assert line.startswith("my.yaml")
    assert "\n" not in line
    for part in parts:
        assert part in line


CONDITIONAL: dict[str, Any] = {
    "solver.name": {"choice": ["amd", "rk4"]},
    "solver.beta": {"uniform": [0.3, 0.9], "when": {"solver.name": "amd"}},
    "solver.slices": {"int": [6, 16], "when": {"solver.name": ["rk4", "euler"]}},
    "optim.lr": {"loguniform": [1e-4, 1e-2]},
}


def searched(**declared: Any) -> Study:
    return build(fixed={"preset": "paper"}, nuisance=CONDITIONAL, **declared)


def test_conditions_decide_which_keys_a_point_has() -> None:
    study = searched()
    assert study.fits({"solver.name": "amd", "solver.beta": 0.5, "optim.lr": 1e-3}, "")
    assert study.fits({"solver.name": "rk4", "solver.slices": 8, "optim.lr": 1e-3}, "")
    assert not study.fits({"solver.name": "rk4", "solver.beta": 0.5, "optim.lr": 1e-3}, "")
    assert not study.fits({"solver.name": "amd", "optim.lr": 1e-3}, "")
    assert set(study.completed({"solver.name": "rk4"}, "")) == {"solver.name", "solver.slices", "optim.lr"}


def test_a_range_may_differ_between_arms() -> None:
    rates = [{"loguniform": [1e-3, 1e-2], "when": {"arm": "ae"}}, {"loguniform": [1e-4, 1e-3]}]
    study = compared({"arms": {"ae": {"method": "ae"}, "gfe": {}}}, nuisance={"optim.lr": rates}, trials=2)
    found = {arm.name: study.range_of("optim.lr", arm, {}) for arm in study.arms}
    assert found["ae"] is not None
    assert found["gfe"] is not None
    assert (found["ae"].values, found["gfe"].values) == ((1e-3, 1e-2), (1e-4, 1e-3))


def test_a_grid_holds_all_points_conditions_allow() -> None:
    study = build(
        fixed={"preset": "paper"},
        sampler="grid",
        nuisance={
            "solver.name": {"choice": ["amd", "rk4"]},
            "solver.beta": {"uniform": [0.25, 0.75], "points": 3, "when": {"solver.name": "amd"}},
        },
    )
    points = [tuple(point.values()) for point in study.grid("")]
    assert points == [("amd", 0.25), ("amd", 0.5), ("amd", 0.75), ("rk4",)]
    assert study.configurations("") == 4
    assert Study.build({**study.model_dump(), "trials": 2}, "my.yaml").configurations("") == 2


@given(low=st.floats(1e-6, 1e3), factor=st.floats(1.01, 1e6), points=st.integers(2, 9), log=st.booleans())
def test_a_grid_of_a_range_spans_it(low: float, factor: float, points: int, log: bool) -> None:
    kind = "loguniform" if log else "uniform"
    drawn = Range.model_validate({kind: [low, low * factor], "points": points})
    values = drawn.grid()
    assert (values[0], values[-1], len(values)) == (low, low * factor, points)
    assert values == sorted(values)
    assert all(drawn.contains(value) for value in values)


def test_budgets_limit_images_evaluations_or_time() -> None:
    assert build(budget={"nfe": 1000}).trial({}, 0).budget.model_dump() == {
        "images": IMAGES_WITHOUT_LIMIT,
        "nfe": 1000,
        "seconds": None,
        "patience": None,
    }
    both = build(budget={"nfe": 1000, "images": 320}).trial({}, 0).budget
    assert (both.images, both.nfe) == (320, 1000)
    assert build(budget={"seconds": 2}).trial({}, 0).budget.seconds == 2
    with pytest.raises(InputError, match=r"budget.nfe: given -1; allowed: greater than 0"):
        build(budget={"nfe": -1})


def test_patience_needs_a_limit_beside_it() -> None:
    """It is part of the budget: a second stage with another budget has none."""
    assert build(budget={"images": 320, "patience": 3}).trial({}, 0).budget.patience == 3
    assert build(budget={"seconds": 2, "patience": 3}).trial({}, 0).budget.images == IMAGES_WITHOUT_LIMIT
    with pytest.raises(InputError, match=r"budget: patience: given alone; allowed: with images, nfe or seconds"):
        build(budget={"patience": 3})
    with pytest.raises(InputError, match=r"budget.patience: given 0; allowed: greater than 0"):
        build(budget={"images": 320, "patience": 0})
    study = searched(trials=6, budget={"images": 64, "patience": 3}, then={"best": 1, "budget": {"images": 640}})
    assert study.trial(study.completed({}, ""), 0, "", 1).budget.patience is None


def test_the_second_stage_has_its_own_budget() -> None:
    study = searched(trials=6, then={"best": 2, "seeds": 3, "budget": {"images": 640}, "fixed": {"eval.mixed": False}})
    first, second = (study.trial({"solver.name": "rk4"}, 1, "", stage) for stage in (0, 1))
    assert (first.budget.images, second.budget.images) == (64, 640)
    assert (study.seeds_of(0), study.seeds_of(1)) == (range(1), range(1, 4))  # the second stage has its own
    assert (study.configurations(""), study.configurations("", 1)) == (6, 2)


def test_early_stopping_is_for_exploration() -> None:
    assert searched(trials=9).stops_early
    assert not searched(trials=9, scheduler="none").stops_early
    assert not searched(trials=9, seeds=2).stops_early
    assert not compared({"arms": {"a": {}, "b": {"optim.lr": 1e-3}}}).stops_early
    with pytest.raises(InputError, match=r"scheduler: given 'asha'; allowed: none.*biases"):
        searched(trials=9, seeds=2, scheduler="asha")


def test_images_cannot_be_searched() -> None:
    with pytest.raises(InputError, match=r"data.name cannot be searched"):
        build(fixed={}, nuisance={"data.name": {"choice": ["digits", "mnist"]}})


@pytest.mark.parametrize("name", space_files())
def test_a_study_survives_being_written_and_read(name: str) -> None:
    study = Study.load(space_files()[name])
    again = Study.build(yaml.safe_load(yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False)), study.source)
    assert names_of(again) == names_of(study)
    assert again.holes == study.holes
    for arm in study.arms:
        params = study.completed({}, arm)
        assert again.completed({}, arm.name) == params
        for stage in study.stages():
            assert again.trial(params, 1, arm.name, stage) == study.trial(params, 1, arm, stage)


def test_a_seed_gives_every_arm_the_same_start() -> None:
    """The decoder's weights, the images and their order are the same."""
    arms = {"gfe": {}, "ae": {"method": "ae"}, "rk4": {"solver.name": "rk4"}, "best": {"preset": "best"}}
    study = compared({"arms": arms}, fixed={"preset": "paper", "data": {"name": "digits"}})
    decoders, images = [], set()
    for arm in study.arms:
        trial = study.trial({}, 5, arm)
        learner = trial.method.create(trial, image_shape(8, 8, 1), torch.device("cpu"))
        decoders.append(torch.cat([weight.detach().flatten() for weight in learner.decoder.parameters()]))
        images.add((trial.data.load().sha256, trial.eval, tuple(training_order(trial.seed, 1197, 0, 32))))
    assert all(torch.equal(decoders[0], other) for other in decoders)
    assert len(images) == 1


def test_a_second_budget_replaces_the_first_whole() -> None:
    study = searched(trials=6, budget={"seconds": 6}, then={"best": 1, "budget": {"images": 640}})
    budget = study.trial(study.completed({}, ""), 0, "", 1).budget
    assert (budget.images, budget.seconds) == (640, None)


def test_conditional_factors_hide_no_counterpart() -> None:
    beta = {"choice": [0.5, 0.75], "when": {"solver.name": "amd"}}
    design = {"factorial": {"solver.name": ["lbfgs", "amd"], "solver.beta": beta}}
    study = compared(design, fixed={"preset": "paper"})
    assert references(study) == {"lbfgs": None, "amd, beta=0.5": "lbfgs", "amd, beta=0.75": "lbfgs"}
    other = compared(design, fixed={"preset": "paper"}, compare={"reference": "amd"})
    assert other.arm("lbfgs").alone == "no single counterpart: 2 cells have amd"


def test_an_arm_whose_reference_is_a_hole_says_so() -> None:
    design = {"factorial": {"solver.name": ["lbfgs", "amd"], "gradient.name": ["adjoint", "approx"]}}
    study = compared(design, fixed={"preset": "paper"})
    assert study.arm("amd, adjoint").reference is None
    assert study.arm("amd, adjoint").alone == "no counterpart: lbfgs, adjoint is skipped"


@pytest.mark.parametrize(
    ("declared", "part"),
    [
        ({"nuisance": {"optim.lr": {"loguniform": [1e-4, 1e-2]}}}, "arm 'a': optim.lr is given both by the arm and by"),
        ({"scientific": {"arms": {"a": {"seed": 3}, "b": {}}}}, "arm 'a': seed is given"),
        ({"scientific": None, "trials": 5}, "trials: given 5 without nuisance"),
        ({"scientific": None, "seeds": 10**9}, "seeds: given 1000000000; allowed: less than or equal to 10000"),
        ({"nuisance": {"model.latent_dim": []}}, "nuisance.model.latent_dim: given no range"),
        ({"nuisance": {"model.latent_dim": {"int": [4, 8], "when": {"arm": "c"}}}}, "which holds in no arm"),
        ({"nuisance": {"eval.val_images": {"int": [4, 8]}}}, "eval.val_images cannot be searched"),
        ({"nuisance": {"solver.beta": {"uniform": [0.3, 1.1], "when": {"solver.name": "amd"}}}}, "solver.beta"),
        ({"compare": {"factor": "a"}}, "compare.factor: given 'a' with arms, which have no factors"),
        ({"scientific": {"factorial": {"optim.lr": [0.1, 0.10000001]}}}, "values that differ when written as text"),
        ({"resources": {"cpu": 0}}, "resources.cpu: given 0; allowed: greater than or equal to 0.01"),
        ({"sampler": "grid", "nuisance": {"model.latent_dim": {"uniform": [1, 2], "points": 10**9}}}, "points"),
    ],
)
def test_what_has_no_effect_or_no_end_is_refused(declared: dict[str, Any], part: str) -> None:
    arms = {"arms": {"a": {"optim.lr": 1e-3}, "b": {"optim.lr": 2e-3}}}
    with pytest.raises(InputError) as refused:
        build(**{"scientific": arms, **declared})
    assert part in str(refused.value)
    assert "\n" not in str(refused.value)


def test_starting_points_leave_a_grid_whole() -> None:
    rates = {"optim.lr": {"loguniform": [1e-4, 1e-2]}}
    study = build(sampler="grid", nuisance=rates, start_from=[{"optim.lr": 5e-4}])
    assert study.configurations("") == 4


@pytest.mark.parametrize(
    ("changes", "part"),
    [({"budget": 5}, "budget: given 5"), ({"budget": {"images": "abc"}}, "budget.images: given 'abc'")],
)
def test_a_bad_changed_budget_is_one_line(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError) as refused:
        Study.build(BASE, "my.yaml", changes)
    assert part in str(refused.value)
