"""Observation operators: ℓ(Ay, A D(z)) in every part that computes it.

Shapes: N samples, D values of each, M measured values.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gfe_study.api import train
from gfe_study.config import InputError, Study, Trial
from gfe_study.config.trial import build
from gfe_study.data.base import load_splits
from gfe_study.data.measuring import instrument_of, measured_scale, measured_shape
from gfe_study.data.split import Scale, Shape, Split
from gfe_study.likelihoods.base import Observed
from gfe_study.models.mlp import MLPDecoder
from gfe_study.operators.base import Instrument
from gfe_study.operators.matrix import Matrix
from gfe_study.operators.separable import Blur, Downsample
from gfe_study.operators.subsample import Subsample
from gfe_study.solvers.objective import Objective
from gfe_study.trained import TrainedDecoder

DIMS = (2, 6, 4)
PLAIN = Scale()
SIZE = 48
SMALL: dict[str, Any] = {
    "data": {"name": "digits"},
    "model": {"latent_dim": 3, "hidden": [5]},
    "budget": {"images": 32},
    "eval": {"schedule": [32], "val_images": 20, "test_images": 20},
}
OPERATORS: list[dict[str, Any]] = [
    {"name": "identity"},
    {"name": "blur", "width": 1.3},
    {"name": "downsample", "factor": 2},
    {"name": "subsample", "fraction": 0.3},
]
LIKELIHOODS = [{"name": "bernoulli"}, {"name": "gaussian", "sigma": 0.3}, {"name": "poisson"}, {"name": "student_t"}]


def instrument(settings: dict[str, Any], scale: Scale = PLAIN, dims: tuple[int, ...] = DIMS) -> Instrument:
    operator = build("operator", settings)
    assert isinstance(operator, Blur | Downsample | Subsample | Matrix) or settings == {"name": "identity"}
    return instrument_of(operator, Shape(dims[0], dims[1:]), scale)  # type: ignore[arg-type]


def small(*layers: dict[str, Any]) -> Trial:
    return Trial.build(SMALL, *layers)


def losses(trial: Trial) -> dict[str, float]:
    last = train(trial, device="cpu").points.iloc[-1].to_dict()
    return {str(name): value for name, value in last.items() if "second" not in str(name)}


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda each: each["name"])
@pytest.mark.parametrize("settings", OPERATORS, ids=lambda each: each["name"])
def test_the_loss_is_of_the_measured_mean(settings: dict[str, Any], likelihood: dict[str, Any]) -> None:
    """Its slopes and their slopes are those that autograd finds."""
    loss = build("likelihood", likelihood).loss().double()  # type: ignore[attr-defined]
    seen = instrument(settings)
    draw = torch.Generator().manual_seed(3)
    value_BD = torch.rand(3, SIZE, generator=draw, dtype=torch.float64)
    decoder = MLPDecoder([4, 7, SIZE]).double()
    latent_BL = torch.randn(3, 4, generator=draw, dtype=torch.float64, requires_grad=True)
    target = Observed(seen.apply(value_BD), instrument=seen)

    # By hand: a dense matrix on the mean, and the output whose mean that is, found by bisection.
    matrix_DM = seen.apply(torch.eye(SIZE, dtype=torch.float64))
    output_BD = decoder(latent_BL)
    by_hand_BM = loss.output_of(loss.mean(output_BD.detach()) @ matrix_DM)
    expected_B = loss(by_hand_BM, Observed(value_BD @ matrix_DM))
    loss_B = loss(output_BD, target)
    torch.testing.assert_close(loss_B, expected_B, rtol=1e-9, atol=1e-9)

    objective = Objective(decoder, loss, target, precision=0.5)
    minimised_B = loss_B + objective.prior(latent_BL)
    (slope_BL,) = torch.autograd.grad(minimised_B.sum(), latent_BL, create_graph=True)
    torch.testing.assert_close(objective.gradient(latent_BL.detach()), slope_BL.detach(), rtol=1e-9, atol=1e-12)
    twice_BL = decoder.latent_gradient(loss, latent_BL, target)
    (along_BL,) = torch.autograd.grad(twice_BL.square().sum(), latent_BL)
    pure_BL = torch.autograd.grad(loss(decoder(latent_BL), target).sum(), latent_BL, create_graph=True)[0]
    torch.testing.assert_close(along_BL, torch.autograd.grad(pure_BL.square().sum(), latent_BL)[0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("settings", OPERATORS, ids=lambda each: each["name"])
def test_an_instrument_is_twice_differentiable(settings: dict[str, Any]) -> None:
    """Against finite differences."""
    seen = instrument(settings, dims=(1, 4, 2))
    draw = torch.Generator().manual_seed(0)
    value = torch.randn(2, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    size = seen.apply(value).shape[1]
    measured = torch.randn(2, size, generator=draw, dtype=torch.float64, requires_grad=True)
    for linear, given in ((seen.apply, value), (seen.adjoint, measured)):
        assert torch.autograd.gradcheck(lambda x, linear=linear: linear(x**2), given)
        assert torch.autograd.gradgradcheck(lambda x, linear=linear: linear(x**2), given)


@pytest.mark.parametrize("settings", OPERATORS, ids=lambda each: each["name"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS[:3], ids=lambda each: each["name"])
def test_the_curvature_includes_the_instrument(settings: dict[str, Any], likelihood: dict[str, Any]) -> None:
    """The Gauss–Newton matrix is Jᵀ diag(c) J, J by autograd through decoder, mean, operator and link."""
    loss = build("likelihood", likelihood).loss().double()  # type: ignore[attr-defined]
    seen = instrument(settings)
    decoder = MLPDecoder([3, SIZE]).double()
    latent_BL = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = Observed(seen.apply(torch.full((2, SIZE), 0.4, dtype=torch.float64)), instrument=seen)
    output_BD, _, normal_BLL = Objective(decoder, loss, target).curvature(latent_BL)
    with torch.enable_grad():
        jacobians = [
            torch.autograd.functional.jacobian(lambda z: loss.seen(decoder(z[None]), target[:1])[0], latent_L)
            for latent_L in latent_BL
        ]
    for row, jacobian_ML in enumerate(jacobians):
        curvature_M = loss.curvature(output_BD[row : row + 1], target[row : row + 1])[0]
        expected_LL = jacobian_ML.t() @ (curvature_M[:, None] * jacobian_ML)
        torch.testing.assert_close(normal_BLL[row], expected_LL, rtol=1e-8, atol=1e-10)


def test_measured_values_are_in_the_datas_units() -> None:
    """The operator acts before scaling, whatever the scale of each value is."""
    draw = torch.Generator().manual_seed(5)
    scale = Scale(torch.randn(SIZE, generator=draw).double(), 0.5 + torch.rand(SIZE, generator=draw).double())
    stored_ND = torch.randn(4, SIZE, generator=draw, dtype=torch.float64)
    seen = instrument({"name": "blur", "width": 1.0}, scale)
    measured = measured_scale(seen, scale).apply(seen.raw(stored_ND))
    torch.testing.assert_close(measured, seen.apply(scale.apply(stored_ND)), rtol=1e-5, atol=1e-5)


def test_files_have_the_shape_of_what_is_measured() -> None:
    colour = Shape(3, (6, 4), "last")
    for settings, file in (
        ({"name": "blur", "width": 1.0}, (6, 4, 3)),
        ({"name": "downsample", "factor": 2}, (3, 2, 3)),
        ({"name": "subsample", "fraction": 0.25}, (3, 6)),
    ):
        measured = measured_shape(build("operator", settings), colour)  # type: ignore[arg-type]
        assert measured.file == file
        assert measured.size == math.prod(file)
        values = np.arange(2.0 * measured.size).reshape(2, *file)
        np.testing.assert_array_equal(measured.to_file(measured.from_file(values)), values)


def test_what_depends_on_a_gap_is_missing() -> None:
    known_ND = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    known_ND[0, 0, 0, 1] = False
    seen = instrument({"name": "downsample", "factor": 2}, dims=(1, 4, 4))
    assert seen.known(known_ND.flatten(1)).tolist() == [[False, True, True, True]]
    cancelling = Matrix(path="none.npy")
    cancelling._read.append(torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64))
    seen = instrument_of(cancelling, Shape(1, (3,)), Scale())
    assert seen.known(torch.tensor([[False, False, True], [True, True, True]])).tolist() == [
        [False, True],
        [True, True],
    ]


def test_what_a_gap_holds_is_never_measured() -> None:
    trial = small({"data": {"observe": {"name": "blur", "width": 0.4}, "hide": {"fraction": 0.05}}})
    splits = load_splits(trial)
    spoiled = splits.changed(lambda _, split: _spoiled(split))
    for part, split in splits.parts.items():
        batch, other = split.batch(slice(0, 50)), spoiled.parts[part].batch(slice(0, 50))
        assert torch.equal(batch.value_BD, other.value_BD)
        assert batch.known_BD is not None
        assert 0 < batch.known_BD.double().mean() < 0.9


def test_nan_in_a_gap_spreads_to_no_measurement() -> None:
    """A product with a matrix would make NaN of 0 · NaN everywhere."""
    known = np.ones((1, 16), bool)
    known[0, 5] = False
    values = np.where(known, 1.0, np.nan)
    seen = instrument({"name": "downsample", "factor": 2}, dims=(1, 4, 4))
    batch = Split(values, observed_ND=known, instrument=seen).batch(slice(None))
    assert batch.value_BD.tolist() == [[0.0, 1.0, 1.0, 1.0]]


def _spoiled(split: Any) -> Any:
    from dataclasses import replace

    return replace(split, values_ND=np.where(split.observed_ND, split.values_ND, 99).astype(split.values_ND.dtype))


@pytest.mark.parametrize("likelihood", LIKELIHOODS[:3], ids=lambda each: each["name"])
@pytest.mark.parametrize("solver", ["lbfgs", "amd_spectral", "gauss_newton"])
def test_an_identity_matrix_equals_the_identity(likelihood: dict[str, Any], solver: str, tmp_path: Path) -> None:
    np.save(tmp_path / "eye.npy", np.eye(64))
    found = [
        losses(small({"data": {"observe": observe}, "likelihood": likelihood, "solver": {"name": solver}}))
        for observe in ({"name": "matrix", "path": str(tmp_path / "eye.npy")}, {"name": "identity"})
    ]
    assert found[0] == found[1]
    if likelihood["name"] == "gaussian":
        plain = losses(small({"likelihood": likelihood, "solver": {"name": solver}}))
        assert {name: found[1][name] for name in plain} == plain


@pytest.mark.parametrize("method", ["gfe", "ae", "vae", "miwae", "aae", "gen"])
def test_every_method_trains_with_an_instrument(method: str) -> None:
    """Each is also scored at every value."""
    blurred = small({"method": method, "data": {"observe": {"name": "downsample", "factor": 2}}})
    found = losses(blurred)
    assert all(np.isfinite(found[f"{part}_withheld_{name}"]) for part in ("val", "test") for name in ("loss", "rmse"))
    if method != "miwae":  # which predicts by other latents than it encodes to
        assert found["test_withheld_rmse"] == pytest.approx(found["test_rmse"], rel=1e-6)


@pytest.mark.parametrize("method", ["pca", "mean"])
def test_closed_forms_are_fitted_to_whole_samples(method: str) -> None:
    with pytest.raises(InputError, match=r"data\.observe\.splits: given with train and method="):
        small({"method": method, "data": {"observe": {"name": "identity"}}})
    found = losses(small({"method": method, "data": {"observe": {"name": "identity", "splits": ["val", "test"]}}}))
    assert np.isfinite(found["test_withheld_rmse"])


def test_pca_fits_measurements_by_least_squares() -> None:
    settings = {"name": "blur", "width": 1.0, "splits": ["val", "test"]}
    trial = small(
        {"method": "pca", "likelihood": "gaussian", "data": {"observe": settings}, "prior_precision": 0.7},
        {"budget": {"images": 500}},
    )
    learner = train(trial, device="cpu").decoder._learner
    test = load_splits(trial).test
    target = test.batch(slice(0, 20))
    assert test.instrument is not None
    blur_DM = test.instrument.apply(torch.eye(64, dtype=torch.float64))
    weight_LM = learner.decoder.linears()[0].weight.double().t() @ blur_DM  # type: ignore[operator]
    shift_M = learner.decoder.linears()[0].bias.double() @ blur_DM  # type: ignore[operator]
    normal_LL = weight_LM @ weight_LM.t() + 0.7 * torch.eye(3)
    expected_BL = torch.linalg.solve(normal_LL, weight_LM @ (target.value_BD.double() - shift_M).t()).t()
    torch.testing.assert_close(learner.encode(target).latent_BL.double(), expected_BL, rtol=1e-3, atol=1e-4)


def test_encoding_reads_what_was_measured(tmp_path: Path) -> None:
    """A decoder of whole samples finds them again in coarse ones: more than the coarse ones themselves say."""
    trained = train(small({"model": {"latent_dim": 10, "hidden": [60]}, "budget": {"images": 6000}}), device="cpu")
    images = load_splits(trained.trial).test.unmeasured.values_ND[:50].astype(np.float32) / 16
    coarse = images.reshape(-1, 4, 2, 4, 2).mean((2, 4))
    trial = trained.trial
    through = Trial.build(trial.dump(), {"data": {"observe": {"name": "downsample", "factor": 2}}})
    learner = trained.decoder._learner
    learner.trial = through
    decoder = TrainedDecoder(learner, trained.decoder.shape, trained.decoder._scale)
    found = decoder.decode(decoder.encode(coarse)).numpy().reshape(50, -1)
    blocks = coarse.repeat(2, 1).repeat(2, 2).reshape(50, -1)
    assert found.shape == images.shape
    assert np.sqrt(np.square(found - images).mean()) < 0.85 * np.sqrt(np.square(blocks - images).mean())
    with pytest.raises(InputError, match=r"given shape \(50, 8, 8\); allowed: \(N, 4, 4\) or \(N, 16\)"):
        decoder.encode(images.reshape(50, 8, 8))


def test_what_an_instrument_cannot_do_is_one_line(tmp_path: Path) -> None:
    for observe, message in (
        ({"name": "downsample", "factor": 3}, r"data.observe.factor: given 3 with sides of 8 × 8; allowed: 2, 4, 8"),
        ({"name": "matrix", "path": "none.npy"}, r"data.observe.path: none.npy: cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            load_splits(small({"data": {"observe": observe}}))
    np.save(tmp_path / "wide.npy", np.ones((3, 10)))
    with pytest.raises(InputError, match=r"a matrix of shape \(3, 10\); allowed: \(any, 64\)"):
        load_splits(small({"data": {"observe": {"name": "matrix", "path": str(tmp_path / "wide.npy")}}}))
    with pytest.raises(InputError, match=r"eval\.withhold: given with data\.observe"):
        small({"data": {"observe": {"name": "identity"}}, "eval": {"withhold": {"fraction": 0.1}}})
    with pytest.raises(InputError, match=r"start\.name: given 'nearest' with data\.observe"):
        small({"data": {"observe": {"name": "identity"}}, "start": "nearest"})


def test_a_matrix_is_known_by_content_not_by_path(tmp_path: Path) -> None:
    prints = []
    for name, matrix in (("a", np.eye(64)), ("b", np.eye(64)), ("c", 0.5 * np.eye(64))):
        np.save(tmp_path / f"{name}.npy", matrix)
        trial = small({"data": {"observe": {"name": "matrix", "path": str(tmp_path / f"{name}.npy")}}})
        prints.append(trial.fingerprint(load_splits(trial).sha256))
    assert prints[0] == prints[1] != prints[2]


def test_an_instrument_allows_a_withheld_metric() -> None:
    study = Study.build(
        {
            "question": "?",
            "fixed": SMALL | {"data": {"name": "digits", "observe": {"name": "subsample", "fraction": 0.2}}},
            "nuisance": {"optim.lr": {"loguniform": [1e-3, 1e-2]}},
            "metric": {"name": "val_withheld_rmse"},
            "trials": 2,
        },
        "test",
    )
    assert study.metric.name == "val_withheld_rmse"


def test_pca_without_a_prior_sees_sensors_as_gaps() -> None:
    """Fewer values than components: rounding must not be taken for a direction."""
    observe = {"name": "subsample", "fraction": 0.1, "splits": ["val", "test"]}
    trial = small({"method": "pca", "likelihood": "gaussian", "model": {"latent_dim": 12}, "budget": {"images": 900}})
    learner = train(trial, device="cpu").decoder._learner
    test = load_splits(trial.build(trial.dump(), {"data": {"observe": observe}})).test
    target = test.batch(slice(0, 30))
    whole_BD = test.unmeasured.batch(slice(0, 30)).value_BD
    assert target.instrument is not None
    known_BD = target.instrument.adjoint(torch.ones_like(target.value_BD)) != 0
    torch.testing.assert_close(
        learner.encode(target).latent_BL, learner.encode(Observed(whole_BD, known_BD)).latent_BL, rtol=1e-3, atol=1e-4
    )


def test_an_encoder_is_told_what_was_not_measured() -> None:
    seen = instrument({"name": "subsample", "fraction": 0.25})
    target = Observed(seen.apply(torch.ones(2, SIZE)), instrument=seen)
    read_BD = target.as_input(mask=True)
    assert torch.equal(read_BD[:, SIZE:], read_BD[:, :SIZE])
    assert read_BD[:, SIZE:].sum(1).tolist() == [12, 12]
    with pytest.raises(InputError, match=r"data\.observe\.splits: given without train and method=ae"):
        small({"method": "ae", "data": {"observe": {"name": "blur", "width": 1, "splits": ["val", "test"]}}})


def test_the_identity_does_nothing_at_any_scale() -> None:
    """Where each value has a scale of its own; the adjoint of a blur is right there as well."""
    scale = Scale(torch.zeros(SIZE).double(), torch.linspace(0.1, 90, SIZE).double())
    seen = instrument({"name": "identity"}, scale)
    values = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(seen.apply(values), values, rtol=1e-6, atol=0)
    torch.testing.assert_close(measured_scale(seen, scale).factor, scale.factor)
    one, other = torch.randn(3, SIZE).double(), torch.randn(3, SIZE).double()
    blurred = instrument({"name": "blur", "width": 1.5}, scale)
    torch.testing.assert_close((blurred.apply(one) * other).sum(1), (one * blurred.adjoint(other)).sum(1))


def test_a_blur_ends_and_misses_only_what_is_near() -> None:
    known = torch.ones(1, 1, 28, 28, dtype=torch.bool)
    known[0, 0, 0, 0] = False
    seen = instrument({"name": "blur", "width": 1.0}, dims=(1, 28, 28))
    assert int((~seen.known(known.flatten(1))).sum()) == 25
    with pytest.raises(InputError, match="every measured value of the train split depends on a missing one"):
        load_splits(small({"data": {"observe": {"name": "blur", "width": 9}, "hide": {"fraction": 0.5}}}))


def test_a_domain_also_binds_what_is_measured(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(5, 64)))
    with pytest.raises(InputError, match=r"likelihood\.name: given 'bernoulli'"):
        load_splits(small({"data": {"observe": {"name": "matrix", "path": str(tmp_path / "a.npy")}}}))
    with pytest.raises(InputError, match=r"likelihood\.name: given 'bernoulli'"):
        load_splits(small({"data": {"scale": "none", "observe": "identity"}}))
    load_splits(small({"data": {"observe": {"name": "blur", "width": 1.2}}}))


def test_extreme_outputs_stay_finite_when_blurred() -> None:
    """White regions keep their gradient, and rates beyond float32 do not become NaN."""
    loss = build("likelihood", {"name": "bernoulli"}).loss()  # type: ignore[attr-defined]
    for width, dims in ((1.0, (1, 28, 28)), (2.3, (1, 28, 28)), (1.2, (1, 16, 16))):
        seen = instrument({"name": "blur", "width": width}, dims=dims)
        white = torch.full((1, math.prod(dims)), 17.0)
        assert loss.through(white, seen).numpy() == pytest.approx(17.0, abs=0.2)
        assert loss.through(white + 28, seen).numpy() == pytest.approx(45.0, abs=0.2)
    counts = build("likelihood", {"name": "poisson"}).loss()  # type: ignore[attr-defined]
    output = torch.zeros(1, 784)
    output[0, 300] = 100.0
    assert counts.through(output, instrument({"name": "blur", "width": 1.0}, dims=(1, 28, 28))).isfinite().all()


def test_other_operators_give_other_test_samples() -> None:
    """So arms that differ in their operator are evaluated on different samples."""
    hashes = {load_splits(small({"data": {"observe": each}})).test.digest() for each in OPERATORS}
    assert len(hashes) == len(OPERATORS)


def test_a_search_needs_measured_validation_data() -> None:
    with pytest.raises(InputError, match=r"eval\.withhold: given null with metric\.name=val_withheld_rmse"):
        Study.build(
            {
                "question": "?",
                "fixed": {"data": {"name": "digits", "observe": {"name": "identity", "splits": ["train"]}}},
                "nuisance": {"optim.lr": {"loguniform": [1e-3, 1e-2]}},
                "metric": {"name": "val_withheld_rmse"},
            },
            "test",
        )
