"""Values that are taken away on purpose: which they are, and that nobody sees them but the score."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from gfe_study.config import InputError, Study, Trial
from gfe_study.config.gaps import Gaps
from gfe_study.data.base import load_splits
from gfe_study.data.gaps import taken
from gfe_study.data.split import DataError, Shape, Split, Splits
from gfe_study.training import train

SMALL: dict[str, Any] = {
    "data": {"name": "digits", "hide": {"fraction": 0.3}},
    "model": {"latent_dim": 3, "hidden": [5]},
    "budget": {"images": 32},
    "eval": {
        "schedule": [32],
        "val_images": 20,
        "test_images": 20,
        "withhold": {"kind": "block", "fraction": 0.25},
    },
}
IMAGE = Shape(2, (6, 10), "first")


def complete(count: int, shape: Shape = IMAGE) -> Split:
    return Split(np.random.default_rng(0).random((count, shape.size), np.float32))


def test_random_gaps_take_each_value_by_itself() -> None:
    gone = taken(Gaps(fraction=0.3), complete(3000), IMAGE, "data.hide/train")
    assert np.abs(gone.mean(0) - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 3000)
    assert abs(np.corrcoef(gone[:, 0], gone[:, 1])[0, 1]) < 0.1


def test_a_block_is_one_box_through_all_channels() -> None:
    gone = taken(Gaps(kind="block", fraction=0.25), complete(400), IMAGE, "data.hide/train").reshape(-1, *IMAGE.dims)
    assert (gone[:, 0] == gone[:, 1]).all()
    corners = set()
    for box in gone[:, 0]:
        rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
        assert (len(rows), len(columns)) == (3, 5)  # half of every side
        assert (int(np.ptp(rows)), int(np.ptp(columns)), int(box.sum())) == (2, 4, 15)
        corners.add((rows[0], columns[0]))
    assert len(corners) == 4 * 6


def test_columns_are_taken_whole() -> None:
    gone = taken(Gaps(kind="columns", fraction=0.3), complete(2000), IMAGE, "data.hide/train").reshape(-1, *IMAGE.dims)
    assert (gone == gone[:, :1, :1]).all()
    assert abs(gone[:, 0, 0].mean() - 0.3) < 0.02


def test_gaps_like_the_data_are_of_other_samples() -> None:
    known = np.random.default_rng(1).random((50, IMAGE.size)) < 0.6
    known[::2] = True
    split = replace(complete(50), observed_ND=known)
    gone = taken(Gaps(kind="like"), split, IMAGE, "data.hide/train")
    donors = {row.tobytes() for row in ~known[1::2]}
    assert not (gone & ~known).any()
    assert all(row.tobytes() in donors for row in gone[::2])
    assert len({row.tobytes() for row in gone[::2]}) > 10
    with pytest.raises(DataError, match=r"data\.hide\.kind: given like, and the train split has no missing values"):
        taken(Gaps(kind="like"), complete(3), IMAGE, "data.hide/train")


def test_every_sample_keeps_one_observed_value() -> None:
    known = np.random.default_rng(2).random((300, 8)) < 0.5
    known[:, 3] = True
    split = replace(complete(300, Shape(1, (8,))), observed_ND=known)
    left = known & ~taken(Gaps(fraction=0.99), split, Shape(1, (8,)), "eval.withhold/val")
    assert left.any(1).all()
    assert left.sum() < 330
    assert not left[:, 3].all()  # not always the same one


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "block"}, "fraction: given null with kind=block; allowed: a number between 0 and 1"),
        ({"kind": "like", "fraction": 0.5}, "fraction: given 0.5 with kind=like; allowed: null"),
        ({"fraction": 1.0}, "allowed: less than 1"),
        ({"fraction": 0.5, "kind": "blok"}, "kind"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Trial.build({"data": {"name": "digits", "hide": given}})


def loaded(**data: Any) -> Splits:
    return load_splits(Trial.build({"data": {"name": "digits", **data}}))


def test_a_subset_has_the_gaps_of_any_larger_one() -> None:
    small, large = (loaded(hide={"fraction": 0.4}, train_images=count).train for count in (50, 200))
    assert small.observed_ND is not None
    assert large.observed_ND is not None
    assert np.array_equal(small.observed_ND, large.observed_ND[:50])
    other = loaded(hide={"fraction": 0.4, "seed": 1}, train_images=50).train
    assert other.observed_ND is not None
    assert not np.array_equal(small.observed_ND, other.observed_ND)


def test_only_the_named_splits_lose_values() -> None:
    splits = loaded(hide={"fraction": 0.4, "splits": ["train"]})
    assert splits.train.observed_ND is not None
    assert splits.val.observed_ND is None
    assert splits.test.observed_ND is None
    assert splits.shape.mask


def test_nothing_is_withheld_from_training() -> None:
    """In the other splits, what is withheld is no longer among what is observed."""
    splits = load_splits(Trial.build(SMALL))
    assert splits.train.withheld_ND is None
    for split in (splits.val, splits.test):
        assert split.observed_ND is not None
        assert split.withheld_ND is not None
        assert not (split.observed_ND & split.withheld_ND).any()
    plain = load_splits(Trial.build(SMALL, {"eval": {"withhold": None}}))
    assert plain.test.observed_ND is not None
    assert splits.test.withheld_ND is not None
    assert np.array_equal(plain.test.observed_ND, splits.test.observed_ND | splits.test.withheld_ND)  # type: ignore[operator]


def last_point(trial: Trial, splits: Splits) -> tuple[dict[str, float], dict[str, Any]]:
    *_, last = train(trial, splits)
    assert last.metrics is not None
    timeless = {name: value for name, value in last.metrics.items() if "seconds" not in name}
    return timeless, last.state.learner.networks.state_dict()


def other_content(split: Split) -> Split:
    """The split with other values where nothing is observed."""
    values_ND = split.values_ND.copy()
    values_ND[~split.observed_ND] = 16 - values_ND[~split.observed_ND]  # type: ignore[operator]
    return replace(split, values_ND=values_ND)


@pytest.mark.parametrize("method", ["gfe", "ae", "vae", "aae", "gen", "pca", "dineof", "mean", "miwae"])
def test_unobserved_values_change_only_the_scores(method: str) -> None:
    trial = Trial.build(SMALL, {"method": method})
    splits = load_splits(trial)
    (point, weights), (other, other_weights) = (
        last_point(trial, each) for each in (splits, splits.changed(lambda _, split: other_content(split)))
    )
    scores = {name for name in point if "withheld" in name}
    assert scores == {f"{part}_withheld_{kind}" for part in ("val", "test") for kind in ("loss", "rmse", "mae")}
    assert {name for name in point if point[name] != other[name]} == scores
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


def test_scores_are_means_of_all_withheld_values() -> None:
    trial = Trial.build(SMALL, {"eval": {"withhold": {"kind": "random", "fraction": 0.2}}})
    splits = load_splits(trial)
    *_, last = train(trial, splits)
    learner, point = last.state.learner, last.metrics
    assert point is not None
    assert splits.test.withheld_ND is not None
    assert last.state.test_latent_NL is not None
    gone = splits.test.withheld_ND[:20]
    assert len(set(gone.sum(1))) > 1
    logits = learner.decoder(last.state.test_latent_NL).double().detach()
    value = torch.from_numpy(splits.test.values_ND[:20] / 16.0)
    nats = torch.nn.functional.binary_cross_entropy_with_logits(logits, value, reduction="none").numpy()[gone]
    error = 16 * (torch.sigmoid(logits) - value).numpy()[gone]
    assert point["test_withheld_loss"] == pytest.approx(nats.mean(), rel=1e-5)
    assert point["test_withheld_rmse"] == pytest.approx(np.sqrt(np.square(error).mean()), rel=1e-5)
    assert point["test_withheld_mae"] == pytest.approx(np.abs(error).mean(), rel=1e-5)


def test_fingerprints_know_what_is_taken() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"data": {"hide": {"fraction": 0.31}}},
        {"data": {"hide": {"seed": 1}}},
        {"eval": {"withhold": {"seed": 1}}},
        {"eval": {"withhold": None}},
    ]
    trials = [Trial.build(SMALL, change) for change in changes]
    hashes = [load_splits(trial).sha256 for trial in trials]
    assert len(set(hashes)) == len(changes)
    assert len({trial.fingerprint("") for trial in trials}) == len(changes)
    splits = load_splits(trials[0])
    values_ND = splits.test.values_ND.copy()
    assert splits.test.withheld_ND is not None
    values_ND[splits.test.withheld_ND] = 0  # they are scored: another truth is other data
    assert replace(splits, test=replace(splits.test, values_ND=values_ND)).sha256 != hashes[0]


def test_a_study_by_withheld_values_must_withhold() -> None:
    declared: dict[str, Any] = {
        "question": "Which?",
        "fixed": {"data": {"name": "digits"}, "eval": {"withhold": {"fraction": 0.2}}},
        "nuisance": {"optim.lr": {"loguniform": [1e-4, 1e-2]}},
        "metric": {"name": "val_withheld_loss"},
        "trials": 2,
    }
    assert Study.build(declared, source="my.yaml").metric.name == "val_withheld_loss"
    with pytest.raises(InputError, match=r"eval\.withhold: given null with metric\.name=val_withheld_loss"):
        Study.build({**declared, "fixed": {"data": {"name": "digits"}}}, source="my.yaml")
