"""The common encoder, and the shipped studies that compare by it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import image_problem, solve
from test_training import SHAPE, run, tiny

from gfe_study import registry
from gfe_study.config import InputError, Study, Trial, space_files
from gfe_study.data.split import Splits
from gfe_study.likelihoods.base import Observed
from gfe_study.methods.base import Encoding, Learner
from gfe_study.metrics import COMMON, COMMON_TEST_LOSS, COMMON_VAL_LOSS, DIVERGED, MIXED_TEST_LOSS, TEST_LOSS, VAL_LOSS
from gfe_study.training import evaluate, train

COMPARED = ("solver", "flow", "gradient", "start")
SAME: dict[str, dict[str, Any]] = {
    "gfe": {"solver": {"name": "lbfgs", "train_max_nfe": 5, "resume_max_nfe": 3}},
    "gfe from where images ended": {"solver": "lbfgs", "start": "previous"},
}
OTHER: dict[str, dict[str, Any]] = {
    "solver": {},
    "settings": {"solver": {"name": "lbfgs", "max_nfe": 9}},
    "start": {"solver": "lbfgs", "start": "mean"},
    "prior": {"solver": "lbfgs", "prior_precision": 3.0},
    "latent term": {"solver": "lbfgs", "method": {"name": "gfe_gen", "kde_samples": 64}},
    "encoder": {"solver": "lbfgs", "method": "ae"},
}


def reference(learner: Learner, splits: Splits) -> dict[str, float]:
    """The losses by the common encoder, computed by a trial that has nothing but the decoder."""
    plain = tiny({"method": "gfe", "solver": "lbfgs"})
    judge = plain.method.create(plain, SHAPE, torch.device("cpu"))
    judge.decoder.load_state_dict(learner.decoder.state_dict())
    of = {COMMON_VAL_LOSS: (splits.val, 20), COMMON_TEST_LOSS: (splits.test, 15)}
    return {name: evaluate(judge, split, images, torch.device("cpu")).loss for name, (split, images) in of.items()}


@pytest.mark.parametrize("changes", [*SAME.values(), *OTHER.values()], ids=[*SAME, *OTHER])
def test_every_decoder_is_judged_by_one_encoder(changes: dict[str, Any], digits: Splits) -> None:
    points, learner = run(train(tiny(changes), digits))
    assert {name: points[-1][name] for name in (COMMON_VAL_LOSS, COMMON_TEST_LOSS)} == reference(learner, digits)
    same = (points[-1][VAL_LOSS], points[-1][TEST_LOSS]) == (points[-1][COMMON_VAL_LOSS], points[-1][COMMON_TEST_LOSS])
    assert same == (changes in SAME.values())


@pytest.mark.parametrize("changes", [*SAME.values(), *OTHER.values()], ids=[*SAME, *OTHER])
def test_what_is_the_same_is_not_computed_again(
    changes: dict[str, Any], digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    commonly = Learner.encode_commonly

    def counted(self: Learner, target: Observed) -> Encoding:
        encoded.append(len(target))
        return commonly(self, target)

    monkeypatch.setattr(Learner, "encode_commonly", counted)
    trial = tiny(changes, {"eval": {"schedule": [90]}})
    (point,), _ = run(train(trial, digits))
    by_flow = trial.method.name == "ae"  # whose mixed loss is the common one of the test images
    assert encoded == ([] if changes in SAME.values() else [20] if by_flow else [20, 15])
    if by_flow:
        assert point[MIXED_TEST_LOSS] == point[COMMON_TEST_LOSS] != point[TEST_LOSS]


def test_the_common_losses_can_be_left_out(digits: Splits) -> None:
    (point,), _ = run(train(tiny({"eval": {"schedule": [90], "common": False}}), digits))
    assert not {name for name in point if name.startswith(COMMON)}
    declared = {"question": "Which?", "fixed": {"eval": {"common": False}}}
    for key, name in (("metric", {"name": COMMON_VAL_LOSS}), ("compare", {"metric": COMMON_TEST_LOSS})):
        with pytest.raises(InputError, match=rf"^my.yaml: eval.common: given false with {key}.*; allowed: true$"):
            Study.build({**declared, key: name}, "my.yaml")


@pytest.mark.parametrize(
    ("key", "used"),
    [
        ("metric.name", {"metric": {"name": "val_entropy_gap"}}),
        ("metric.against", {"metric": {"against": "val_entropy_gap"}}),
    ],
)
def test_a_metric_of_a_measure_asks_for_it(key: str, used: dict[str, Any]) -> None:
    declared = {"question": "Which?", **used}
    with pytest.raises(
        InputError, match=rf"^my.yaml: eval.measures: given \[\] with {key}=val_entropy_gap; allowed: with entropy$"
    ):
        Study.build(declared, "my.yaml")
    arms = {"one": {"eval.measures": ["entropy"]}, "other": {"eval.measures": ["frechet"]}}
    with pytest.raises(InputError, match=rf"other.*: given \['frechet'\] with {key}="):
        Study.build({**declared, "scientific": {"arms": arms}}, "my.yaml")
    Study.build({**declared, "fixed": {"eval": {"measures": ["entropy"]}}}, "my.yaml")


def test_an_infinite_common_loss_ends_a_trial(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a search by it finds a value, or a trial that diverged."""
    commonly = Learner.encode_commonly

    def overflowing(self: Learner, target: Any) -> Any:
        found = commonly(self, target)
        found.loss_B[0] = torch.inf
        return found

    monkeypatch.setattr(Learner, "encode_commonly", overflowing)
    (point,), _ = run(train(tiny(), digits))
    assert point[DIVERGED] == 1
    assert COMMON_VAL_LOSS not in point


# Shipped studies


def by_flow(trial: Trial) -> bool:
    learner: type[Learner] = trial.method.learner
    return learner.encodes_by_flow


@pytest.mark.parametrize("name", space_files())
def test_compared_solvers_may_spend_as_much(name: str) -> None:
    """As many evaluations, and where two compared arms differ in how they encode, one encoder judges both."""
    study = Study.load(space_files()[name])
    trials = {arm.name: study.example(arm) for arm in study.arms}
    solvers = {trial.solver.for_encoding() for trial in trials.values() if by_flow(trial)}
    caps = {solver.max_nfe for solver in solvers if hasattr(solver, "max_nfe")}
    assert len(caps) <= 1, f"{name}: the arms may spend {caps} evaluations on a test image"
    for solver in solvers:
        if caps and not hasattr(solver, "max_nfe"):
            spent = int(solve(solver, image_problem()).nfe_forward_B[0])
            assert 0.9 * min(caps) <= spent <= min(caps), f"{name}: {solver.name} spends {spent} of {caps}"
    for arm in study.arms:
        own, other = trials[arm.name], trials.get(arm.reference or "")
        if other is None or not (by_flow(own) and by_flow(other)):
            continue
        if any(getattr(own, section) != getattr(other, section) for section in COMPARED):
            assert study.compare.metric == COMMON_TEST_LOSS, f"{name}: {arm.name} and {arm.reference}"
            assert study.metric.name == COMMON_VAL_LOSS, name


def test_a_cap_in_training_is_none_of_encoding() -> None:
    for name in registry.names("solver"):
        solver = registry.component("solver", name)()
        fields = {"train_max_nfe": 90, "resume_max_nfe": 80, "train_slices": 3}
        capped = solver.model_copy(update={key: cap for key, cap in fields.items() if key in type(solver).model_fields})
        assert capped.for_encoding() == solver
        assert (capped.for_training(resumed=False).for_encoding() != solver) == (capped != solver)
