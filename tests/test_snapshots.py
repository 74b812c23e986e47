"""What is kept of decoders at moments of their training."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from labels import labels_of

from gfe_study import names
from gfe_study.config import Trial
from gfe_study.data.base import load_splits
from gfe_study.data.split import Splits
from gfe_study.metrics import TEST_LOSS
from gfe_study.study.snapshots import (
    FLOWS,
    INTERPOLATIONS,
    OBSERVATIONS,
    PICTURES,
    SAMPLES,
    STEPS,
    kept_points,
    observe_flows,
    straight_lines,
    write_snapshot,
)
from gfe_study.training import TrainingState, train

SMALL = {
    "preset": "paper",
    "model": {"hidden": [32, 64], "latent_dim": 8},
    "solver": {"name": "amd", "max_nfe": 30},
    "budget": {"images": 96},
    "eval": {"schedule": [16, 32, 64], "val_images": 20, "test_images": 40},
}


@pytest.fixture(scope="module")
def splits() -> Splits:
    return Trial.build(SMALL).data.load()


def run(splits: Splits, folder: Path, **changes: object) -> TrainingState:
    state = None
    for _, metrics, state in train(Trial.build(SMALL, changes), splits):
        if metrics is not None:
            write_snapshot(folder, state, splits)
    assert state is not None
    return state


def test_snapshots_hold_the_decoded_test_images(splits: Splits, tmp_path: Path) -> None:
    state = run(splits, tmp_path)
    with np.load(tmp_path / names.SNAPSHOTS) as found:
        assert {key.partition("/")[0] for key in found.files if "/" in key} == {"16", "32", "96"}
        np.testing.assert_array_equal(found["label"], labels_of(splits.test)[:40])
        latent_NL = torch.from_numpy(found["96/latent"])
        target_ND = splits.test.batch(slice(0, 40))
        with torch.no_grad():
            loss_N = state.learner.loss(state.learner.decoder(latent_NL), target_ND)
        assert float(loss_N.double().mean()) == pytest.approx(state.points[-1][TEST_LOSS], rel=1e-5)
        shown_BD = state.learner.decode(latent_NL[:PICTURES]) * 255
        pictures = found["96/reconstruction"]
        assert pictures.shape == (PICTURES, 8, 8)
        np.testing.assert_allclose(pictures.reshape(PICTURES, -1), shown_BD.numpy(), atol=0.51)
        np.testing.assert_allclose(
            found["target"].reshape(PICTURES, -1), target_ND.value_BD[:PICTURES] * 255, atol=0.51
        )


def test_withheld_values_lie_beside_imputed_ones(tmp_path: Path) -> None:
    changes = {"eval": {**SMALL["eval"], "withhold": {"fraction": 0.4}}, "prior_precision": 1.0}  # type: ignore[dict-item]
    trial = Trial.build(SMALL, changes)
    splits = load_splits(trial)
    state = run(splits, tmp_path, **changes)
    whole = trial.data.load().test.values_ND[:PICTURES]
    with np.load(tmp_path / names.SNAPSHOTS) as found:
        truth, seen, filled, std = (
            found[name].reshape(PICTURES, -1) for name in ("truth", "seen", "96/imputed", "96/std")
        )
    np.testing.assert_allclose(truth, whole)
    assert splits.test.observed_ND is not None
    np.testing.assert_array_equal(np.isfinite(seen), splits.test.observed_ND[:PICTURES])
    np.testing.assert_array_equal(seen[np.isfinite(seen)], truth[np.isfinite(seen)])
    assert state.test_latent_NL is not None
    np.testing.assert_allclose(filled, 16 * state.learner.decode(state.test_latent_NL[:PICTURES]), rtol=1e-4, atol=1e-4)
    assert (std > 0).all()


def test_flows_end_where_the_solver_does(splits: Splits, tmp_path: Path) -> None:
    """They begin where the solver starts."""
    learner = run(splits, tmp_path).learner
    target = splits.test.batch(slice(0, FLOWS))
    flows = observe_flows(learner, target)
    encoded = learner.encode(target)
    for image in range(FLOWS):
        own = {name: column[flows["image"] == image] for name, column in flows.items()}
        assert len(own["nfe"]) <= OBSERVATIONS
        assert own["distance"][-1] == 0
        assert own["distance"][0] == pytest.approx(float(encoded.latent_BL[image].norm()), rel=1e-5)
        assert own["loss"][-1] == pytest.approx(float(encoded.loss_B[image]), rel=1e-5)
        assert own["nfe"][-1] <= int((encoded.nfe_forward_B + encoded.nfe_backward_B)[image])
        # AMD's accepted points descend; rejected candidates are no points.
        assert all(later < earlier for earlier, later in pairwise(own["loss"]))
        assert all(later > earlier for earlier, later in pairwise(own["time"]))


@pytest.mark.parametrize("solver", ["rk4", "dopri5", "lbfgs", "amd_nesterov", "gauss_newton"])
def test_every_solver_is_observed(splits: Splits, solver: str) -> None:
    trial = Trial.build(SMALL, {"solver": {"name": solver}, "flow": {"name": "gradient"}})
    learner = trial.method.create(trial, splits.shape, torch.device("cpu"))
    flows = observe_flows(learner, splits.test.batch(slice(0, 3)))
    assert set(flows["image"]) == {0, 1, 2}
    assert np.isnan(flows["time"]).all() == (trial.solver.scheme is None)
    for image in range(3):
        assert flows["distance"][flows["image"] == image][-1] < flows["distance"][flows["image"] == image][0]


def test_an_autoencoder_has_latents_and_no_flows(splits: Splits, tmp_path: Path) -> None:
    run(splits, tmp_path, method="ae")
    with np.load(tmp_path / names.SNAPSHOTS) as found:
        assert "96/latent" in found.files
        assert not [key for key in found.files if "flow" in key]


def test_snapshots_sample_and_interpolate(splits: Splits, tmp_path: Path) -> None:
    """Samples are of the target, where there is one, and interpolations lie between test images."""
    run(splits, tmp_path, method="ae")
    with np.load(tmp_path / names.SNAPSHOTS) as found:
        assert not [key for key in found.files if key.endswith("/sample")]
        lines = found["96/interpolation"]
        assert lines.shape == (INTERPOLATIONS, STEPS, 8, 8)
        np.testing.assert_array_equal(lines[:, 0], found["96/reconstruction"][0::2])
        np.testing.assert_array_equal(lines[:, -1], found["96/reconstruction"][1::2])
    (tmp_path / names.SNAPSHOTS).unlink()
    state = run(splits, tmp_path, method="vae", solver={"name": "lbfgs"})
    with np.load(tmp_path / names.SNAPSHOTS) as found:
        assert found["96/sample"].shape == (SAMPLES, 8, 8)
        assert found["96/sample"].dtype == np.uint8
        assert len(np.unique(found["96/sample"], axis=0)) > SAMPLES / 2
        again = tmp_path / "again"
        again.mkdir()
        write_snapshot(again, state, splits)
        with np.load(again / names.SNAPSHOTS) as second:
            np.testing.assert_array_equal(second["96/sample"], found["96/sample"])


def test_interpolations_lie_on_straight_lines() -> None:
    latent_NL = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    lines = straight_lines(latent_NL).view(2, STEPS, 3)
    for line, (start, end) in zip(lines, ((0, 1), (2, 3)), strict=True):
        torch.testing.assert_close(line[0], latent_NL[start])
        torch.testing.assert_close(line[-1], latent_NL[end])
        torch.testing.assert_close(line.diff(dim=0), ((latent_NL[end] - latent_NL[start]) / (STEPS - 1)).expand(7, 3))
    assert len(straight_lines(latent_NL[:1])) == 0


def test_a_file_that_cannot_be_read_is_begun_anew(splits: Splits, tmp_path: Path) -> None:
    (tmp_path / names.SNAPSHOTS).write_bytes(b"PK\x03\x04 and no more")
    run(splits, tmp_path)
    with np.load(tmp_path / names.SNAPSHOTS) as found:
        assert "96/latent" in found.files


def test_an_early_middle_and_last_point_are_kept() -> None:
    kept: set[int] = set()
    for point in (480, 960, 1920, 3840, 5760, 11520, 23040, 46080, 60000):
        kept = kept_points({*kept, point}, 60_000)
    assert min(kept) == 480
    assert max(kept) == 60_000
    assert len(kept) == 3


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=12, unique=True), st.integers(10, 60_000))
def test_any_schedule_keeps_its_last_point(points: list[int], size: int) -> None:
    """The point nearest to one percent of the training set is kept too."""
    kept: set[int] = set()
    nearest = math.inf
    for point in sorted(points):
        kept = kept_points({*kept, point}, size)
        nearest = min(nearest, abs(math.log(point / (size / 100))))
        assert max(kept) == point
        assert len(kept) <= 3
        assert min(abs(math.log(each / (size / 100))) for each in kept) == pytest.approx(nearest)
