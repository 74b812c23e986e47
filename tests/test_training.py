"""Shapes: B batch, N images, D pixels."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gfe_study import registry, training
from gfe_study.config import Trial
from gfe_study.config.gaps import Gaps
from gfe_study.data.gaps import withheld
from gfe_study.data.split import Split, Splits, image_shape
from gfe_study.gradients.approx import Approximate
from gfe_study.io.checkpoint import read_checkpoint, write_checkpoint
from gfe_study.likelihoods.base import Observed
from gfe_study.methods.base import Batch, Diverged, Learner
from gfe_study.methods.closed_form import ClosedForm
from gfe_study.methods.gfe import GFELearner
from gfe_study.metrics import (
    COMMON_TEST_LOSS,
    COMMON_VAL_LOSS,
    DIVERGED,
    ENCODE_NFE,
    ENCODE_SECONDS,
    EVAL_SECONDS,
    IMAGES_SEEN,
    IMAGES_USED,
    MAE,
    MIXED_TEST_LOSS,
    NFE_BACKWARD,
    NFE_FORWARD,
    OPTIMISER_STEPS,
    PASSES,
    R2,
    RELATIVE_L2,
    RMSE,
    STOPPED,
    TEST_LOSS,
    TRAIN_LOSS,
    TRAIN_SECONDS,
    TRAIN_STOPPED,
    UNIQUE_IMAGES,
    VAL_ENTROPY_GAP,
    VAL_LOSS,
    choices,
    is_known,
    is_objective,
)
from gfe_study.solvers.base import Result
from gfe_study.starts.encoder import EncoderStarter
from gfe_study.training import Metrics, Progress, TrainingState, evaluate, train, train_batch, training_order

SHAPE = image_shape(8, 8, 1)
SECONDS = {TRAIN_SECONDS, ENCODE_SECONDS, EVAL_SECONDS}

TINY: dict[str, Any] = {
    "preset": "paper",
    "solver": {"name": "amd", "max_nfe": 5, "s_max": 100},
    "model": {"latent_dim": 4, "hidden": [24]},
    "eval": {"schedule": [20, 50], "val_images": 20, "test_images": 15},
    "budget": {"images": 90},
}
RK4 = {"name": "rk4", "tau": 20, "slices": 4}
VARIANTS: dict[str, dict[str, Any]] = {
    "gfe amd": {},
    "gfe rk4": {"solver": RK4},
    "gfe nesterov": {"solver": RK4, "flow": "nesterov"},
    "gfe amd adam": {"optim": "adam"},
    "gfe amd two updates": {"optim": {"updates_per_batch": 2}},
    "gfe adjoint": {"solver": {"name": "euler", "tau": 20, "slices": 4}, "gradient": "adjoint"},
    "gfe best": {"solver": {"name": "lbfgs", "max_nfe": 6, "train_max_nfe": 5, "resume_max_nfe": 3}, "start": "mean"},
    "gfe schedule": {"optim": {"updates_per_batch": [[0, 3], [32, 1]], "lr_half_images": 40}, "start": "previous"},
    "gfe replay": {
        "solver": {"name": "lbfgs", "train_max_nfe": 5, "resume_max_nfe": 3, "products": "bf16"},
        "optim": {
            "updates_per_batch": 2,
            "batch_size": [[0, 8], [32, 16]],
            "update_size": 20,
            "average": {"window": 5},
            "decay": "linear",
            "weight_decay": 0.1,
        },
    },
    "ae averaged": {"method": "ae", "optim": {"name": "adam", "average": {}, "update_size": 30, "batch_size": 16}},
    "ae": {"method": "ae", "start": "encoder"},
    "ae adam two updates": {"method": "ae", "optim": {"name": "adam", "updates_per_batch": 2}},
    "ae noisy": {"method": {"name": "ae", "dropout": 0.2, "input_noise": 0.1, "latent_noise": 0.3}},
    "gfe linear": {"model": {"hidden": []}, "solver": RK4, "gradient": "adjoint"},
    "ae linear": {"method": "ae", "model": {"hidden": []}},
    "ae by flow": {"method": {"name": "ae", "encode": "flow"}, "start": "encoder"},
    "vae noisy": {"method": {"name": "vae", "dropout": 0.2, "input_noise": 0.1}},
    "gen": {"method": {"name": "gen", "kde_samples": 70, "refresh_updates": 2}},
    "gen followed": {"method": {"name": "gen", "kde_samples": 70, "refresh_updates": 4, "followed": 16}},
    "gen two updates": {
        "method": {"name": "gen", "kde_samples": 64, "refresh_updates": 3},
        "optim": {"updates_per_batch": 2},
    },
    "gen with labels": {
        "method": {"name": "gen", "labelled": 1100, "refresh_updates": 4},
        "target": "mixture_of_gaussians",
        "budget": {"images": 800},
        "eval": {"schedule": [20, 50, 700]},
    },
    "aae": {"method": {"name": "aae", "hidden": [16]}},
    "vae": {"method": "vae"},
    "gfe_gen": {"method": {"name": "gfe_gen", "kde_samples": 70, "refresh_updates": 2}},
    "gfe_gen two updates": {"method": {"name": "gfe_gen", "kde_samples": 64}, "optim": {"updates_per_batch": 2}},
    "measured": {"method": "gen", "eval": {"measures": ["entropy", {"name": "entropy", "samples": [10, 5000]}]}},
}


def tiny(*changes: dict[str, Any]) -> Trial:
    return Trial.build(TINY, *changes)


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Trial:
    return tiny(VARIANTS[request.param])


@pytest.fixture(scope="module")
def uninterrupted(variant: Trial, digits: Splits) -> tuple[list[Metrics], dict[str, Tensor]]:
    """The points that the variant reaches, and its weights at the end."""
    points, learner = run(train(variant, digits))
    return points, weights(learner)


def run(progress: Iterator[Progress]) -> tuple[list[Metrics], Learner]:
    """The points that a trial reaches, and its learner at the end."""
    steps = list(progress)
    return [step.metrics for step in steps if step.metrics is not None], steps[-1].state.learner


def timeless(points: list[Metrics]) -> list[Metrics]:
    return [{name: value for name, value in point.items() if name not in SECONDS} for point in points]


def weights(learner: Learner) -> dict[str, Tensor]:
    return copy.deepcopy(learner.networks.state_dict())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# The contract


@pytest.mark.parametrize("method", registry.names("method"))
def test_every_method_reports_the_same_metrics(method: str, digits: Splits) -> None:
    points, learner = run(train(tiny({"method": method}), digits))
    assert [point[IMAGES_SEEN] for point in points] == [20, 50, 90]
    expected = {*SECONDS, IMAGES_SEEN, IMAGES_USED, UNIQUE_IMAGES, OPTIMISER_STEPS}
    expected |= {TRAIN_LOSS, VAL_LOSS, TEST_LOSS, COMMON_VAL_LOSS, COMMON_TEST_LOSS}
    expected |= {ENCODE_NFE, *PASSES, DIVERGED}
    if learner.encodes_by_flow:
        expected |= {f"{name}_{result.name.lower()}" for name in (STOPPED, TRAIN_STOPPED) for result in Result}
    kinds = (RMSE, MAE, R2, RELATIVE_L2)
    expected |= {f"{part}_{kind}" for part in ("val", "test") for kind in kinds}
    expected |= {f"{encoding}_{TEST_LOSS}" for encoding in learner.encodings}
    for point in points:
        assert set(point) == expected
        assert all(map(is_known, point))
        assert point[DIVERGED] == 0


OBJECTIVES = [
    name
    for name in registry.names("measure")
    if any(is_objective(metric.name) for metric in registry.component("measure", name).metrics)
]
"""Measures that give a search something to optimise."""


@pytest.mark.parametrize("method", registry.names("method"))
def test_a_search_sees_no_test_image(method: str, digits: Splits) -> None:
    """Whatever it may optimise, and the weights, are the same with other test images, in another number."""
    gaps = Gaps(fraction=0.2)
    trial = tiny({"method": method}, {"eval": {"test_images": 40, "measures": OBJECTIVES, "withhold": gaps}})
    points, learner = run(train(trial, withheld(gaps, digits)))
    overflowing = Split(np.full((9, SHAPE.size), 3e38, np.float32))
    for test in (digits.train.take(slice(33)), overflowing):
        others, other = run(train(trial, withheld(gaps, replace(digits, test=test))))
        assert same(weights(other), weights(learner))
        assert [point[DIVERGED] for point in others] == [0, 0, 0]
        unknown = {VAL_ENTROPY_GAP} if method == "mean" else set()  # all latents are equal
        for name in {*choices("search"), *choices("against")} - SECONDS - unknown:
            assert [point[name] for point in others] == [point[name] for point in points], name


@dataclass(frozen=True)
class Slow(Split):
    """Takes half a second to give its images."""

    def batch(self, index: Any, device: torch.device | None = None) -> Observed:
        time.sleep(0.5)
        return super().batch(index, device)


def test_encoding_is_timed_on_validation_images(digits: Splits) -> None:
    trial = tiny({"method": "ae", "budget": {"images": 16}, "eval": {"mixed": False}})
    for part, (least, most) in {"test": (0, 0.5), "val": (0.5, math.inf)}.items():
        parts = {
            **digits.parts,
            part: Slow(**{each.name: getattr(digits.parts[part], each.name) for each in fields(Split)}),
        }
        (point,), _ = run(train(trial, Splits(parts["train"], parts["val"], parts["test"], SHAPE)))
        assert least <= point[ENCODE_SECONDS] < most


# The same numbers


def test_the_same_seed_gives_the_same_numbers(variant: Trial, digits: Splits, uninterrupted: Any) -> None:
    points, ended = uninterrupted
    torch.manual_seed(987)
    again, learner_again = run(train(variant, digits))
    other, _ = run(itertools.islice(train(Trial.build(variant.dump(), {"seed": 1}), digits), 3))
    assert timeless(again) == timeless(points)
    assert same(weights(learner_again), ended)
    assert other[-1][IMAGES_SEEN] == points[0][IMAGES_SEEN]
    assert other[-1][VAL_LOSS] != points[0][VAL_LOSS]


@pytest.mark.parametrize("batches", [1, 4])
def test_an_interrupted_trial_ends_the_same(
    batches: int, variant: Trial, digits: Splits, uninterrupted: Any, tmp_path: Path
) -> None:
    points, ended = uninterrupted
    for step in itertools.islice(train(variant, digits), batches):
        write_checkpoint(tmp_path / "checkpoint.pt", step.state.state_dict())
    torch.manual_seed(987)
    *_, last = train(variant, digits, read_checkpoint(tmp_path / "checkpoint.pt"))
    assert timeless(last.state.points) == timeless(points)
    assert same(weights(last.state.learner), ended)


def test_a_finished_trial_has_nothing_left_to_do(digits: Splits) -> None:
    *_, last = train(tiny(), digits)
    assert list(train(tiny(), digits, last.state.state_dict())) == []


def test_methods_share_their_start_and_images(digits: Splits) -> None:
    gfe, ae = (tiny({"method": method, "seed": 5}) for method in ("gfe", "ae"))
    learners = [trial.method.create(trial, SHAPE, torch.device("cpu")) for trial in (gfe, ae)]
    assert same(learners[0].decoder.state_dict(), learners[1].decoder.state_dict())
    other = tiny({"seed": 6}).method.create(tiny({"seed": 6}), SHAPE, torch.device("cpu"))
    assert not same(learners[0].decoder.state_dict(), other.decoder.state_dict())

    orders = []
    for trial in (gfe, ae, tiny({"seed": 6})):
        taken: list[np.ndarray] = []
        seen = Recording(digits.train.values_ND, digits.train.labels_N, scale=digits.train.scale, taken=taken)
        run(train(trial, Splits(seen, digits.val, digits.test, SHAPE)))
        orders.append(np.concatenate(taken).tolist())
    assert orders[0] == orders[1] != orders[2]
    assert len(orders[0]) == 90


@dataclass(frozen=True)
class Recording(Split):
    """Writes down which of its images are taken."""

    taken: list[np.ndarray] = field(default_factory=list)

    def batch(self, index: Any, device: torch.device | None = None) -> Observed:
        self.taken.append(index)
        return super().batch(index, device)


@given(st.integers(0, 2**31 - 1), st.integers(1, 60), st.lists(st.integers(1, 50), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_every_epoch_is_a_permutation(seed: int, size: int, chunks: list[int]) -> None:
    """It is one however the training order is cut into chunks."""
    starts = itertools.accumulate(chunks, initial=0)
    parts = [training_order(seed, size, start, count) for start, count in zip(starts, chunks, strict=False)]
    order = training_order(seed, size, 0, 3 * size)
    joined = np.concatenate(parts)[: 3 * size]
    assert np.array_equal(joined, order[: len(joined)])
    for epoch in range(3):
        assert sorted(order[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_order_differs_between_epochs_and_seeds() -> None:
    order = training_order(0, 50, 0, 100).tolist()
    assert order[:50] != order[50:]
    assert order[:50] != training_order(1, 50, 0, 50).tolist()


# Points and metrics


def test_batches_are_cut_to_end_at_the_points(digits: Splits) -> None:
    trial = tiny({"optim": {"batch_size": 16}, "eval": {"schedule": [20, 50, 200]}})
    steps = list(train(trial, digits))
    assert [step.images_seen for step in steps] == [16, 20, 36, 50, 66, 82, 90]
    reached = [step.metrics[IMAGES_SEEN] for step in steps if step.metrics is not None]
    assert reached == [20, 50, 90]
    assert [step.images_seen for step in steps if step.metrics is not None] == reached
    assert [point[OPTIMISER_STEPS] for point in steps[-1].state.points] == [2, 4, 7]


def test_evaluation_does_not_change_training(variant: Trial, digits: Splits, uninterrupted: Any) -> None:
    points, ended = uninterrupted
    more = Trial.build(variant.dump(), {"eval": {"val_images": 60, "test_images": 40, "mixed": False, "common": False}})
    points_of_more, learner_of_more = run(train(more, digits))
    assert [p[TRAIN_LOSS] for p in points] == [p[TRAIN_LOSS] for p in points_of_more]
    assert points[-1][VAL_LOSS] != points_of_more[-1][VAL_LOSS]
    assert same(weights(learner_of_more), ended)


def test_training_loss_is_the_mean_between_points(digits: Splits) -> None:
    trial = tiny({"method": "ae", "eval": {"schedule": [32, 48]}, "budget": {"images": 48}})
    points, _ = run(train(trial, digits))
    learner = trial.method.create(trial, SHAPE, torch.device("cpu"))
    losses = []
    for start in (0, 16, 32):
        index = training_order(0, len(digits.train), start, 16)
        batch = Batch(digits.train.batch(index), torch.from_numpy(index))
        losses.append(learner.update([batch], 16).loss_B.mean().item())
    reported = [point[TRAIN_LOSS] for point in points]
    assert reported == pytest.approx([(losses[0] + losses[1]) / 2, losses[2]], rel=1e-6)


def test_evaluation_does_not_depend_on_batches(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = tiny().method.create(tiny(), SHAPE, torch.device("cpu"))
    together = evaluate(learner, digits.val, 40, torch.device("cpu"))
    encoded = learner.encode(digits.val.batch(slice(0, 40)))
    assert together.loss == pytest.approx(encoded.loss_B.mean().item(), rel=1e-6)
    assert together.nfe == (encoded.nfe_forward_B + encoded.nfe_backward_B).double().mean()
    monkeypatch.setattr(training, "ENCODE_BATCH", 7)
    in_parts = evaluate(learner, digits.val, 40, torch.device("cpu"))
    assert (in_parts.loss, in_parts.nfe) == pytest.approx((together.loss, together.nfe), rel=1e-5)


def test_evaluation_takes_all_of_too_few_images(digits: Splits) -> None:
    learner = tiny({"method": "ae"}).method.create(tiny({"method": "ae"}), SHAPE, torch.device("cpu"))
    few = digits.val.take(slice(0, 9))
    asked_for_more = evaluate(learner, few, 1000, torch.device("cpu"))
    assert asked_for_more.loss == evaluate(learner, few, 9, torch.device("cpu")).loss
    assert asked_for_more.loss != evaluate(learner, few, 8, torch.device("cpu")).loss


@pytest.mark.parametrize("updates", [1, 2])
def test_decoder_calls_are_counted_per_image(updates: int, digits: Splits) -> None:
    (*_, point), _ = run(train(tiny({"solver": RK4, "optim": {"updates_per_batch": updates}}), digits))
    # Three steps of four gradients and the loss at the end; one pass and one pullback for the weights.
    assert point[NFE_FORWARD] == updates * (3 * 4 + 1 + 1)
    assert point[NFE_BACKWARD] == updates * (3 * 4 + 1)
    assert point[OPTIMISER_STEPS] == updates * 7
    assert point[ENCODE_NFE] == 3 * 4 + 1 + 3 * 4


# Name -> configuration; evaluations, pullbacks and encoder passes per training image of 64 in 4 batches, of so many
# updates each; and passes per encoded image.
COUNTED: dict[str, tuple[dict[str, Any], Callable[[int], tuple[float, float, float]], float]] = {
    # Three steps of four gradients and the loss at the end; one pass and one pullback for the weights.
    "gfe": ({"solver": RK4}, lambda updates: (updates * 14, updates * 13, 0), 25),
    # One forward pass for the start; an update of its own: an evaluation and a pullback, and two passes of the encoder.
    "gfe, encoder start": (
        {"solver": RK4, "start": "encoder"},
        lambda updates: (updates * 15, updates * 14, 1 + updates * 2),
        26,
    ),
    "gfe_gen": (
        {"solver": RK4, "method": {"name": "gfe_gen", "kde_samples": 64, "refresh_updates": 10}},
        lambda updates: (updates * 14, updates * 13, 0),
        26,  # with a latent term, the loss alone is one evaluation more
    ),
    "ae": ({"method": "ae"}, lambda updates: (updates, updates, updates * 2), 1),
    "vae": ({"method": "vae"}, lambda updates: (updates, updates, updates * 2), 1),
    "aae": ({"method": {"name": "aae", "hidden": [16]}}, lambda updates: (updates, updates, updates * 2), 1),
    "miwae": (
        {"method": {"name": "miwae", "draws": 3}},
        lambda updates: (3 * updates, 3 * updates, updates * 2),
        1,
    ),
    # Its density is made once, of all 64 images, at the first update of the last batch.
    "gen": (
        {"method": {"name": "gen", "kde_samples": 64, "refresh_updates": 2}},
        lambda updates: (updates, updates, updates * 2 + 1),
        1,
    ),
    # One evaluation for the training loss; the rest is in closed form.
    "pca": ({"method": "pca"}, lambda updates: (1, 0, 0), 0),
    "dineof": ({"method": "dineof"}, lambda updates: (1, 0, 0), 0),
    "mean": ({"method": "mean"}, lambda updates: (1, 0, 0), 0),
}


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("name", COUNTED)
def test_decoder_and_encoder_passes_are_counted(name: str, updates: int, digits: Splits) -> None:
    changes, expected, to_encode = COUNTED[name]
    own = {"budget": {"images": 64}, "eval": {"schedule": [64]}, "optim": {"updates_per_batch": updates}}
    (point,), _ = run(train(tiny(changes, own), digits))
    assert tuple(point[count] for count in PASSES) == expected(updates)
    assert point[ENCODE_NFE] == to_encode


def test_points_tell_why_solvers_stopped(digits: Splits) -> None:
    """They tell it of validation images and of training images, each on their own."""
    solver = {"name": "lbfgs", "max_nfe": 9, "train_max_nfe": 4, "min_slope": 3e-5}
    steps = list(train(tiny({"solver": solver, "eval": {"schedule": [90]}}), digits))
    (point,) = steps[-1].state.points
    codes = steps[-1].state.learner.encode(digits.val.batch(slice(0, 20))).result_B
    assert codes is not None
    for result in Result:
        assert point[f"{STOPPED}_{result.name.lower()}"] == (codes == result).double().mean()
    assert 0 < point[f"{STOPPED}_slope"] < 1
    assert point[f"{TRAIN_STOPPED}_max_nfe"] == 1
    assert sum(point[f"{TRAIN_STOPPED}_{result.name.lower()}"] for result in Result) == 1


def test_reasons_to_stop_are_since_the_last_point(digits: Splits) -> None:
    """Up to the first point, by steps too short to be seen; then by a cap."""
    blind = tiny(
        {"solver": {"name": "amd", "s_initial": 1e-30, "s_max": 1e-30, "max_nfe": 60}, "eval": {"schedule": [16, 20]}}
    )
    points = []
    for step in train(blind, digits):
        if step.metrics is not None:
            points.append(step.metrics)
            step.state.learner.trial = Trial.build(blind.dump(), {"solver": {"s_max": 10, "max_nfe": 3}})
    assert [point[f"{TRAIN_STOPPED}_no_descent"] for point in points] == [1, 0, 0]


def test_reasons_to_stop_outlast_an_interruption(digits: Splits) -> None:
    (step,) = itertools.islice(train(tiny(), digits), 1)
    saved = copy.deepcopy(step.state.state_dict())
    restored = TrainingState(tiny().method.create(tiny(), SHAPE, torch.device("cpu")), torch.device("cpu"))
    restored.load_state_dict(saved)
    assert restored.stopped.tolist() == [16 * (result is Result.MAX_NFE) for result in Result]


def test_every_method_has_its_passes_counted() -> None:
    assert {tiny(changes).method.name for changes, _, _ in COUNTED.values()} == {*registry.names("method")}


@pytest.mark.parametrize("name", ["gfe start", "ae adam two updates", "vae", "aae", "gen", "gen followed"])
def test_encoder_passes_are_those_that_were_made(name: str, digits: Splits) -> None:
    """As an encoder's own first layer counts them."""
    started: dict[str, Any] = {"solver": RK4, "start": "encoder", "optim": {"updates_per_batch": 2}}
    trial = tiny({**VARIANTS, "gfe start": started}[name])
    learner = trial.method.create(trial, SHAPE, torch.device("cpu"))
    learner.see(digits.train)
    encoder = learner.start.encoder if isinstance(learner.start, EncoderStarter) else learner.networks["encoder"]
    first = next(module for module in encoder.modules() if isinstance(module, nn.Linear))
    made: list[int] = []
    first.register_forward_hook(lambda *call: made.append(len(call[-1])))
    first.register_full_backward_pre_hook(lambda *call: made.append(len(call[-1][0])))
    progress = TrainingState(learner, torch.device("cpu"))
    for _ in range(10):
        train_batch(progress, digits.train, 16)
    assert progress.encoder_passes == sum(made) > 0
    made.clear()
    encoded = learner.encode(digits.test.batch(slice(0, 9)))
    assert encoded.encoder_passes == sum(made) == 9


def test_images_are_used_once_in_each_update(digits: Splits) -> None:
    """They are seen only once."""
    schedule = [[0, 4], [20, 3], [48, 1]]
    points, _ = run(train(tiny({"optim": {"updates_per_batch": schedule, "batch_size": 16}}), digits))
    # Batches of 16, 4 | 16, 14 | 16, 16, 8, cut at the points 20, 50 and 90; a batch has the updates of its start.
    assert [point[IMAGES_SEEN] for point in points] == [20, 50, 90]
    assert [point[OPTIMISER_STEPS] for point in points] == [8, 8 + 6, 8 + 6 + 3]
    assert [point[IMAGES_USED] for point in points] == [80, 80 + 90, 80 + 90 + 40]


def test_learning_rate_halving_ignores_the_budget(digits: Splits) -> None:
    rates = {}
    for budget in (48, 90):
        trial = tiny({"optim": {"lr": 0.01, "lr_half_images": 32}, "budget": {"images": budget}})
        rates[budget] = [step.state.learner.optimiser.param_groups[0]["lr"] for step in train(trial, digits)]
    assert rates[90][: len(rates[48]) - 1] == rates[48][:-1]
    # Of batches that begin at 0, 16 | 20, 36 | 50, 66, 82.
    assert rates[90] == [trial.optim.lr_at(seen, 90) for seen in (0, 16, 20, 36, 50, 66, 82)]
    assert rates[90][0] == 0.01
    assert trial.optim.lr_at(32, 90) == pytest.approx(0.005)
    assert trial.optim.lr_at(96, 90) == pytest.approx(0.0025)


@pytest.mark.parametrize(("decay", "shares"), [("linear", [1, 2 / 3, 1 / 3]), ("cosine", [1, 0.75, 0.25])])
def test_a_decay_ends_at_zero_with_the_budget(decay: str, shares: list[float], digits: Splits) -> None:
    trial = tiny({"optim": {"lr": 0.01, "decay": decay, "batch_size": 30}, "eval": {"schedule": [60]}})
    rates = [step.state.learner.optimiser.param_groups[0]["lr"] for step in train(trial, digits)]
    assert rates == pytest.approx([0.01 * share for share in shares])
    assert trial.optim.lr_at(90, 90) == 0


@pytest.mark.parametrize("method", ["ae", "gfe"])
def test_weights_step_by_the_scheduled_rate(method: str, digits: Splits) -> None:
    """Twice the rate, halved by the schedule from the second batch on, takes the second step of the plain rate."""
    sgd = {"name": "rmsprop", "alpha": 0.0, "eps": 1e8}  # so large an ε makes RMSprop plain gradient descent
    changes = {"method": method, "budget": {"images": 32}, "eval": {"schedule": [16]}}
    moved = []
    for optim in ({"lr": 1e8}, {"lr": 1e8, "lr_half_images": 16}):
        steps = [weights(step.state.learner) for step in train(tiny(changes, {"optim": {**sgd, **optim}}), digits)]
        moved.append([steps[1][name] - steps[0][name] for name in steps[0] if name.startswith("decoder")])
    for plain, halved in zip(*moved, strict=True):
        torch.testing.assert_close(halved, plain / 2, rtol=1e-3, atol=1e-5 * float(plain.abs().max()))


def test_batches_follow_their_schedule(digits: Splits) -> None:
    trial = tiny({"optim": {"batch_size": [[0, 8], [20, 16]]}, "eval": {"schedule": [20]}})
    assert [step.images_seen for step in train(trial, digits)] == [8, 16, 20, 36, 52, 68, 84, 90]


def test_weight_decay_is_scaled_by_the_rate(digits: Splits) -> None:
    changes = {"method": "ae", "budget": {"images": 16}, "eval": {"schedule": [16]}}
    before = tiny(changes).method.create(tiny(changes), SHAPE, torch.device("cpu"))
    ends = []
    for decay in (None, 0.5):
        optim = {"name": "adam", "lr": 0.01, "weight_decay": decay}
        _, learner = run(train(tiny(changes, {"optim": optim}), digits))
        ends.append(learner.decoder.state_dict())
    for name, start in before.decoder.state_dict().items():
        torch.testing.assert_close(ends[1][name], ends[0][name] - 0.01 * 0.5 * start)


def test_averaged_weights_leave_training_alone(digits: Splits) -> None:
    """Only evaluation uses them."""
    window, kept = 3, []
    settings = {"optim": {"average": {"window": window}, "updates_per_batch": 2}}
    plain = tiny({"optim": {"updates_per_batch": 2}})
    for step in train(plain, digits):
        kept.append(weights(step.state.learner))
    points, _ = run(train(plain, digits))
    averaged_points, learner = run(train(tiny(settings), digits))
    assert [p[TRAIN_LOSS] for p in averaged_points] == [p[TRAIN_LOSS] for p in points]
    assert [p[VAL_LOSS] for p in averaged_points] != [p[VAL_LOSS] for p in points]
    with learner.training():
        assert same(weights(learner), kept[-1])
    assert not same(weights(learner), kept[-1])


@pytest.mark.parametrize("window", [0, 3, 20])
def test_the_average_is_that_of_the_formula(window: int, digits: Splits) -> None:
    """θ̄ as a sum over all updates, in float64: each one's share times what later ones leave of it."""
    changes = {"method": "ae", "eval": {"schedule": [90]}}
    steps = [weights(step.state.learner) for step in train(tiny(changes), digits)]
    _, learner = run(train(tiny(changes, {"optim": {"average": {"window": window}}}), digits))
    expected = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in steps[0].items()}
    for t, step in enumerate(steps, start=1):
        share = (window + 1) / (t + window)
        for name, weight in step.items():
            expected[name] = (1 - share) * expected[name] + share * weight.double()
    for name, weight in weights(learner).items():
        torch.testing.assert_close(weight.double(), expected[name], rtol=1e-5, atol=1e-7)


def test_replayed_images_are_distinct_and_seen() -> None:
    seen = set(training_order(3, 50, 0, 30).tolist())
    drawn = [training.replayed(3, 50, 30, 20, update) for update in range(6)]
    assert all(len({*index.tolist()}) == 20 and {*index.tolist()} <= seen for index in drawn)
    assert len({tuple(index.tolist()) for index in drawn}) == 6
    assert set().union(*(index.tolist() for index in drawn)) == seen
    everything = training.replayed(3, 50, 130, 50, 0)  # in the third epoch
    assert set(everything.tolist()) == set(range(50))


def test_replay_goes_on_from_the_latents_kept(digits: Splits) -> None:
    """Images seen before join every update of a batch."""
    solver = {"name": "lbfgs", "train_max_nfe": 6, "resume_max_nfe": 3, "min_slope": 0}
    optim = {"batch_size": 8, "update_size": 12, "updates_per_batch": 2}
    trial = tiny({"solver": solver, "optim": optim, "budget": {"images": 24}, "eval": {"schedule": [24]}})
    steps = train(trial, digits)
    assert next(steps).state.images_used == 16  # nothing has been seen before
    second = next(steps)
    assert second.state.images_used == 16 + 2 * (8 + 4)
    learner = second.state.learner
    assert isinstance(learner, GFELearner)
    (*_, point) = [step.metrics for step in steps]
    assert point is not None
    # Of 8 new ones: 6, 3, and two passes for weights. Of 4 old ones: two times 3, and the same.
    assert point[NFE_FORWARD] == pytest.approx(6 + 3 + 2 + (3 + 3 + 2) / 2 * 2 / 3)
    seen = training_order(0, len(digits.train), 0, 16)
    assert bool((learner.latent_NL[torch.from_numpy(seen)] != 0).any(1).all())
    kept = learner.latent_NL[torch.from_numpy(seen)]
    found = learner.encode(digits.train.batch(seen)).latent_BL
    near = (kept - found).norm(dim=1) < kept.norm(dim=1)
    assert near.float().mean() > 0.8


def test_later_updates_resume_under_their_own_cap(digits: Splits) -> None:
    solver = {"name": "lbfgs", "max_nfe": 30, "train_max_nfe": 7, "resume_max_nfe": 3, "min_slope": 0}
    (*_, point), _ = run(train(tiny({"solver": solver, "optim": {"updates_per_batch": 3}}), digits))
    # 7, the metric among them; then twice 3, under the same metric; and one pass for the weights of each update.
    assert point[NFE_FORWARD] == pytest.approx(7 + 3 + 3 + 3, abs=0.05)
    assert point[ENCODE_NFE] > 2 * 15


def test_the_mixed_loss_encodes_by_the_flow(digits: Splits) -> None:
    """It is the loss of the autoencoder's decoder under the flow."""
    points, ae = run(train(tiny({"method": "ae"}), digits))
    gfe = tiny().method.create(tiny(), SHAPE, torch.device("cpu"))
    gfe.decoder.load_state_dict(ae.decoder.state_dict())
    by_flow = evaluate(gfe, digits.test, 15, torch.device("cpu"))
    assert points[-1][MIXED_TEST_LOSS] == by_flow.loss != points[-1][TEST_LOSS]


def test_every_solver_trains_a_linear_decoder(digits: Splits) -> None:
    """Without hidden layers a sample's loss is convex in its latent, so all solvers must train the same decoder."""
    few = {"budget": {"images": 48}, "eval": {"schedule": [16], "val_images": 10, "test_images": 10}}
    linear = {"model": {"latent_dim": 4, "hidden": []}}
    losses = {}
    for solver in registry.names("solver"):
        settings = {"name": solver, **({"min_slope": 1e-6} if solver == "amd" else {})}  # the preset's is coarser
        points, _ = run(train(Trial.build({"preset": "paper", "solver": settings}, few, linear), digits))
        losses[solver] = [point[VAL_LOSS] for point in points]
        assert losses[solver] == pytest.approx(losses["amd"], rel=1e-5)
    assert losses["amd"][0] > losses["amd"][1]


@pytest.mark.parametrize("method", ["ae", "vae"])
def test_the_flow_may_judge_an_encoders_decoder(method: str, digits: Splits) -> None:
    """Trained alike to the bit, its losses of both splits and their cost are those of its decoder under the flow."""
    plain, by_flow = ({"method": {"name": method, "encode": encode}} for encode in (None, "flow"))
    points_of_plain, one = run(train(tiny(plain), digits))
    points, other = run(train(tiny(by_flow), digits))
    assert same(weights(one), weights(other))
    gfe = tiny().method.create(tiny(), SHAPE, torch.device("cpu"))
    gfe.decoder.load_state_dict(other.decoder.state_dict())
    for split, count, loss in ((digits.val, 20, VAL_LOSS), (digits.test, 15, TEST_LOSS)):
        found = evaluate(gfe, split, count, torch.device("cpu"))
        assert points[-1][loss] == found.loss != points_of_plain[-1][loss]
    assert points[-1][ENCODE_NFE] == found.nfe > 0
    assert [point[TEST_LOSS] for point in points] == [point[MIXED_TEST_LOSS] for point in points_of_plain]
    assert not any(MIXED_TEST_LOSS in point for point in points)
    assert tiny({"method": method}).fingerprint("") == tiny(plain).fingerprint("") != tiny(by_flow).fingerprint("")


STEPPING = [name for name in registry.names("method") if not issubclass(registry.component("method", name), ClosedForm)]


@pytest.mark.parametrize("method", STEPPING)
def test_an_update_encodes_before_it_steps(method: str, digits: Splits) -> None:
    """The latents and losses that it returns are those before the step."""
    trial = tiny({"method": method})
    learner, before = (trial.method.create(trial, SHAPE, torch.device("cpu")) for _ in range(2))
    images = digits.train.batch(slice(0, 16))
    encoding = learner.update([Batch(images, torch.arange(16))], 16)
    assert not same(weights(learner), weights(before))
    torch.testing.assert_close(encoding.latent_BL, before.encode(images).latent_BL)
    if method not in ("vae", "miwae"):  # whose losses are of latents drawn around this one
        torch.testing.assert_close(encoding.loss_B, before.loss(before.decoder(encoding.latent_BL), images).detach())


def test_weights_train_on_the_sum_over_the_batch(digits: Splits) -> None:
    trial = tiny({"method": "ae"})
    learner, before = (trial.method.create(trial, SHAPE, torch.device("cpu")) for _ in range(2))
    images = digits.train.batch(slice(0, 16))
    learner.update([Batch(images, torch.arange(16))], 16)
    logits = before.decoder(before.networks["encoder"](images.value_BD))
    total = 16 * torch.nn.functional.binary_cross_entropy_with_logits(logits, images.value_BD)
    expected = torch.autograd.grad(total, list(before.networks.parameters()))
    gradients = [parameter.grad for parameter in learner.networks.parameters()]
    torch.testing.assert_close(gradients, list(expected), rtol=1e-4, atol=1e-6)


# Divergence


@pytest.mark.parametrize("batches", [1, 4])
def test_a_diverging_trial_ends_at_a_marked_point(batches: int, variant: Trial, digits: Splits) -> None:
    progress = train(variant, digits)
    *_, step = itertools.islice(progress, batches)
    learner = step.state.learner
    with torch.no_grad(), learner.training():
        next(learner.decoder.parameters())[0, 0] = math.nan
    poisoned, optimiser = weights(learner), copy.deepcopy(learner.optimiser.state_dict()["state"])
    rest = list(progress)

    (last,) = rest
    assert last.metrics is not None
    assert last.metrics[DIVERGED] == 1
    assert all(math.isfinite(value) for value in last.metrics.values())
    images_seen = [point[IMAGES_SEEN] for point in last.state.points]
    assert images_seen == sorted(set(images_seen))
    assert images_seen[-1] == last.images_seen > step.images_seen
    assert all(
        torch.equal(torch.nan_to_num(now), torch.nan_to_num(poisoned[name])) for name, now in weights(learner).items()
    )
    torch.testing.assert_close(learner.optimiser.state_dict()["state"], optimiser, rtol=0, atol=0)
    assert list(train(variant, digits, copy.deepcopy(last.state.state_dict()))) == []


def test_divergence_in_the_last_update_is_marked(digits: Splits) -> None:
    points, _ = run(train(tiny({"optim": {"lr": 1e30}}), digits))
    assert points[-1][DIVERGED] == 1
    assert all(math.isfinite(value) for point in points for value in point.values())


def test_a_nonfinite_start_ends_only_its_trial(digits: Splits) -> None:
    points, _ = run(train(tiny({"start": "encoder", "optim": {"lr": 1e12}}), digits))
    assert points[-1][DIVERGED] == 1


def test_no_step_follows_a_nonfinite_gradient(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = tiny()
    learner = trial.method.create(trial, SHAPE, torch.device("cpu"))
    before = weights(learner)
    backward = Approximate.backward

    def overflowing(self: Approximate, objective: Any, *rest: Any) -> Any:
        done = backward(self, objective, *rest)
        next(objective.decoder.parameters()).grad[0, 0] = math.inf
        return done

    monkeypatch.setattr(Approximate, "backward", overflowing)
    with pytest.raises(Diverged):
        learner.update([Batch(digits.train.batch(slice(0, 4)), torch.arange(4))], 4)
    assert same(weights(learner), before)


def test_an_evaluation_budget_ends_with_its_batch(digits: Splits) -> None:
    """The batch that reaches the budget is the last one."""
    trial = tiny({"start": "encoder", "budget": {"images": 10_000, "nfe": 3000}})
    points, _ = run(train(trial, digits))
    spent = [sum(p[name] for name in PASSES) * p[IMAGES_SEEN] for p in points]
    assert spent[-1] >= 3000
    assert points[-1][IMAGES_SEEN] < 10_000
    before = spent[-1] / points[-1][IMAGES_SEEN] * 16 * 2
    assert spent[-1] - 3000 < before
    assert run(train(trial, digits))[0][-1][VAL_LOSS] == points[-1][VAL_LOSS]


def test_a_budget_in_seconds_ends_soon_after_them(digits: Splits) -> None:
    points, _ = run(train(tiny({"budget": {"images": 10_000_000, "seconds": 0.3}}), digits))
    assert 0.3 <= points[-1][TRAIN_SECONDS] < 5
    assert points[-1][UNIQUE_IMAGES] == min(points[-1][IMAGES_SEEN], len(digits.train))


def test_a_trial_with_no_evaluations_left_is_over(digits: Splits) -> None:
    trial = tiny({"budget": {"images": 10_000, "nfe": 500}})
    *_, last = train(trial, digits)
    assert list(train(trial, digits, last.state.state_dict())) == []
