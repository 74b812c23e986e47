"""Contract tests of components: gfe-study's own, and those of another package.

    from gfe_study.testing import check
    from my_package.solvers import Mine

    def test_mine() -> None:
        check(Mine)

A class is checked with the settings of its `example`, an instance as it is. `check` is `check_solver`, `check_dataset`,
… by what it is given. Each raises `AssertionError` with one sentence: what was promised, and what was found.

Shapes: B batch, L latent, D values of a sample.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from gfe_study import registry
from gfe_study.config import Component, InputError, Trial
from gfe_study.data.base import Dataset
from gfe_study.data.digits import Digits
from gfe_study.data.split import Shape, Splits, image_shape
from gfe_study.gradients.base import Gradient
from gfe_study.likelihoods.base import Likelihood, Loss, Observed
from gfe_study.likelihoods.bernoulli import BernoulliLoss
from gfe_study.measures.base import Latents, Measure
from gfe_study.methods.base import Batch, Diverged, Learner, Method
from gfe_study.metrics import ENCODE_SECONDS, EVAL_SECONDS, TEST_LOSS, TRAIN_SECONDS, VAL_LOSS, is_objective
from gfe_study.models.base import Decoder, Linearizable, Model, Products, Vjp
from gfe_study.models.mlp import MLP, MLPDecoder
from gfe_study.operators.base import Operator
from gfe_study.optim import Optimiser
from gfe_study.solvers.base import Result, Solution, Solver
from gfe_study.solvers.fields import Flow, GradientFlow
from gfe_study.solvers.fixed_grid import Euler
from gfe_study.solvers.objective import Objective
from gfe_study.starts.base import Start, Starter
from gfe_study.targets.base import Target
from gfe_study.training import Metrics, train

BATCH, LATENT, PIXELS, DRAWS = 64, 2, 7, 100_000
FLOW = GradientFlow(alpha="constant")
SHAPES = (image_shape(8, 8), image_shape(13, 10, 3))
SECONDS = {TRAIN_SECONDS, ENCODE_SECONDS, EVAL_SECONDS}
TINY: dict[str, Any] = {
    "preset": "paper",
    "solver": {"name": "lbfgs", "max_nfe": 6},
    "model": {"name": "mlp", "latent_dim": 4, "hidden": [24]},
    "data": {"name": "digits"},
    "optim": {"lr": 3e-3},
    "eval": {"schedule": [16, 300], "val_images": 20, "test_images": 15},
    "budget": {"images": 640},
}
"""The trial that methods, starts and measures are checked in."""

SomeComponent = TypeVar("SomeComponent", bound=Component)


def check(component: Component | type[Component]) -> None:
    """Check whatever component it is. Raises `AssertionError`, or `TypeError` for anything else."""
    kind = component if isinstance(component, type) else type(component)
    for section, checked in CHECKS.items():
        if issubclass(kind, registry.base(section)):
            checked(component)
            return
    raise TypeError(f"{registry.path_of(kind)} is no component; allowed: a {', '.join(CHECKS)}")


def example(component: SomeComponent | type[SomeComponent]) -> SomeComponent:
    """Return an instance as it is, or a class with the settings of its `example`."""
    return component.model_validate(component.example) if isinstance(component, type) else component


def check_settings(component: Component) -> None:
    """What every component promises: it is called what it is found by, and read back as it was written."""
    section = next(section for section in registry.BASES if isinstance(component, registry.base(section)))
    found: type[Component] | None
    try:
        found = registry.component(section, component.name)
    except LookupError as error:
        raise AssertionError(f"{component.name}: cannot be had by its name: {error}") from error
    _claim(component, found is type(component), f"the name leads to another class, {found}")
    written = component.model_dump(mode="json")
    _claim(component, found.model_validate(json.loads(json.dumps(written))) == component, "reads back as another one")
    colour = registry.constant(section, component.name, "colour")
    shown = type(component).__dict__.get("colour")
    _claim(component, colour == shown, f"colour is {shown!r}, and no literal in the class's own body")


def check_solver(solver: Solver | type[Solver]) -> None:
    """Check that a solver keeps samples apart, counts what it costs, and survives numbers that are not finite."""
    solver = example(solver)
    check_settings(solver)
    problem = _Problem.small()
    start_BL, target_BD = problem.start(), problem.target_BD.clone()
    together = solver.solve(FLOW, problem.objective(), start_BL)
    _claim(solver, torch.equal(problem.target_BD, target_BD), "changed the images it was given")
    _claim(solver, torch.equal(start_BL, problem.start()), "changed the start it was given")
    _claim(solver, all(weight.grad is None for weight in problem.decoder.parameters()), "left gradients in the decoder")
    _solution_is_whole(solver, problem, together)
    _claim(solver, _same(together, problem.solve(solver)), "gave other results the second time")

    for row in _companies(len(target_BD)):
        apart = solver.solve(FLOW, problem.objective(row), start_BL[row])
        for name, found in _per_sample(together).items():
            _close(solver, _per_sample(apart)[name], found[row], f"{name} of a sample depends on its batch", 1e-9)

    counting = _CountingDecoder([LATENT, 9, PIXELS]).double()
    counting.load_state_dict(problem.decoder.state_dict())
    counting.samples = len(target_BD)
    counted = replace(problem, decoder=counting).solve(solver)
    for told, made, what in (
        (counted.nfe_forward_B, counting.evaluated, "evaluations"),
        (counted.nfe_backward_B, counting.pulled_back, "pullbacks"),
    ):
        _claim(solver, int(told.sum()) == made, f"tells of {int(told.sum())} {what} of the decoder, and made {made}")

    for bad in (math.nan, math.inf):
        start_BL[2, 1] = bad
        try:
            solver.solve(FLOW, problem.objective(), start_BL)
        except ValueError as error:
            _claim(solver, "sample 2" in str(error), f"refuses a start that is {bad} without naming sample 2: {error}")
        else:
            _claim(solver, False, f"takes a start that is {bad}; check_start of solvers.base refuses it")
    start_BL[2] = problem.overflowing()
    beside = solver.solve(FLOW, problem.objective(), start_BL)
    _claim(solver, int(beside.result_B[2]) == Result.NONFINITE, "does not report a sample that overflows as NONFINITE")
    others = torch.arange(len(start_BL)) != 2
    for name, found in _per_sample(together).items():
        _close(
            solver, _per_sample(beside)[name][others], found[others], f"{name} depends on a sample that overflows", 1e-9
        )

    _observer_is_called(solver, problem, together)

    path = problem.solve(solver, keep_path=True).path
    _claim(solver, together.path is None, "keeps a path that was not asked for")
    _claim(solver, (path is None) == (solver.scheme is None), "keeps a path without a scheme, or none with one")


def check_gradient(gradient: Gradient | type[Gradient]) -> None:
    """Check that a gradient adds up, over samples and to what is there, and points uphill."""
    gradient = example(gradient)
    check_settings(gradient)
    problem, solver = _Problem.small(batch=5), Euler(tau=30, slices=25)
    solution = problem.solve(solver, keep_path=gradient.needs_path)
    before = copy.deepcopy(problem.decoder.state_dict())
    whole = problem.gradient(gradient, solution)
    _claim(gradient, _equal(before, problem.decoder.state_dict()), "changed the decoder's weights")
    _claim(gradient, bool(whole.isfinite().all()) and bool(whole.abs().sum() > 0), "is zero, NaN or infinite")
    gradient.backward(problem.objective(), solution)
    _close(gradient, _vector(problem.decoder), 2 * whole, "replaces the gradients that are there; it is to add", 1e-9)

    parts = []
    for row in (slice(0, 1), slice(1, 3), slice(3, 5)):
        part = replace(problem, target=problem.target[row])
        parts.append(part.gradient(gradient, part.solve(solver, keep_path=gradient.needs_path)))
    _close(gradient, whole, torch.stack(parts).sum(0), "of a batch is not the sum over its samples", 1e-9)

    moved = copy.deepcopy(problem)
    with torch.no_grad():
        places = itertools.accumulate((weight.numel() for weight in moved.decoder.parameters()), initial=0)
        for weight, place in zip(moved.decoder.parameters(), places, strict=False):
            weight.sub_(1e-3 / whole.norm() * whole[place : place + weight.numel()].view_as(weight))
    ended = moved.solve(solver).loss_B.sum(), solution.loss_B.sum()
    _claim(gradient, bool(ended[0] < ended[1]), "does not point uphill: a small step against it raises the loss")

    start_BL = problem.start()
    start_BL[1] = problem.overflowing()
    problem.decoder.zero_grad(set_to_none=True)
    overflowing = solver.solve(FLOW, problem.objective(), start_BL, keep_path=gradient.needs_path)
    done = gradient.backward(problem.objective(), overflowing)
    _claim(
        gradient, done.loss_B.isfinite().tolist() == [True, False, True, True, True], "hides a loss that is not finite"
    )
    untouched = all(weight.grad is None for weight in problem.decoder.parameters())
    _claim(gradient, untouched, "is taken of a loss that is not finite; the caller stops the trial instead")
    if gradient.needs_path:
        try:
            gradient.backward(problem.objective(), problem.solve(solver))
        except ValueError as error:
            _claim(gradient, "path" in str(error), f"needs the path, and refuses without saying so: {error}")
        else:
            _claim(gradient, False, "needs the path, and takes a solution without one")


def check_flow(flow: Flow | type[Flow]) -> None:
    """Check that a flow finds its latents in its states, and moves every sample by itself."""
    flow = example(flow)
    check_settings(flow)
    problem = _Problem.small(batch=5)
    latent_BL = torch.randn(5, LATENT, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    state_BS = flow.lift(latent_BL)
    _close(flow, flow.latent(state_BS), latent_BL, "does not find the latent in the state that it made of it", 0)
    for t in (0.0, 1.5):
        rate_BS = flow.derivative(problem.objective(), t, 10.0, state_BS)
        _claim(flow, rate_BS.shape == state_BS.shape, f"has a derivative of shape {tuple(rate_BS.shape)}")
        _claim(flow, bool(rate_BS.isfinite().all()), f"has a derivative that is NaN or infinite at t = {t}")
        times_B = torch.full((5,), t, dtype=torch.float64)
        by_sample = flow.derivative(problem.objective(), times_B, 10.0, state_BS)
        _close(flow, by_sample, rate_BS, "differs between one time and a time per sample", 1e-12)
        for row in (slice(0, 2), slice(2, 5)):
            alone = flow.derivative(problem.objective(row), t, 10.0, state_BS[row])
            _close(flow, alone, rate_BS[row], "moves a sample by the others of its batch", 1e-12)


def check_model(model: Model | type[Model], shapes: tuple[Shape, ...] = SHAPES) -> None:
    """Check that a model maps latents to images of these shapes and back, image by image, and knows its derivatives."""
    model = example(model)
    check_settings(model)
    for shape in shapes:
        decoder, encoder = _seeded(partial(model.decoder, shape)), _seeded(partial(model.encoder, shape))
        for made, network in ((model.decoder, decoder), (model.encoder, encoder)):
            same = _equal(network.state_dict(), _seeded(partial(made, shape)).state_dict())
            _claim(model, same, "draws other weights from the same torch seed")
        decoder, encoder = decoder.double(), encoder.double()
        latent_BL = torch.randn(4, model.latent_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        output_BD = decoder(latent_BL).detach()
        _claim(model, output_BD.shape == (4, shape.size), f"decodes to {tuple(output_BD.shape)} for {shape}")
        found_BL = encoder(output_BD).detach()
        _claim(model, found_BL.shape == latent_BL.shape, f"encodes to {tuple(found_BL.shape)} for {shape}")
        three = model.encoder(shape, outputs=3).double()(output_BD)
        _claim(model, three.shape == (4, 3), f"encodes to {tuple(three.shape)} where outputs=3")
        _close(model, decoder(latent_BL[1:3]), output_BD[1:3], "decodes a sample by the others of its batch", 1e-9)
        _close(model, encoder(output_BD[1:3]), found_BL[1:3], "encodes an image by the others of its batch", 1e-9)
        _derivatives_are_right(model, decoder, latent_BL, output_BD)


def check_start(start: Start | type[Start], splits: Splits | None = None) -> None:
    """Check that a start gives a latent per image, whatever is beside it, and that its memory can be saved."""
    start = example(start)
    check_settings(start)
    splits = Digits().load() if splits is None else splits
    model = MLP(latent_dim=4, hidden=(24,))

    def created() -> Starter:
        return _seeded(lambda: start.create(model, splits.shape, None))

    starter = created()
    target, index_B = splits.train.batch(slice(0, 8)), torch.arange(8)
    kept_BD = target.value_BD.clone()
    for step in range(2):
        for index in (index_B, None):
            found_BL = starter(target, index)
            _claim(start, found_BL.shape == (8, 4), f"gives latents of shape {tuple(found_BL.shape)} for 8 images")
            _claim(start, bool(found_BL.isfinite().all()), "gives latents that are NaN or infinite")
            _claim(start, not found_BL.requires_grad, "gives latents with an autograd graph; they are to be detached")
            _close(start, starter(target, index), found_BL, "gives other latents the second time", 0)
            some = starter(target[2:5], None if index is None else index[2:5])
            _close(start, some, found_BL[2:5], "depends on the rest of the batch", 1e-5)
        if step == 0:
            draw = torch.Generator().manual_seed(1)
            starter.remember(torch.randn(8, 4, generator=draw), target, index_B)
    _claim(start, torch.equal(target.value_BD, kept_BD), "changed the images it was given")
    restored = created()
    restored.load_state_dict(copy.deepcopy(starter.state_dict()))
    _close(start, restored(target, index_B), starter(target, index_B), "forgets when it is saved and read", 0)


def check_method(
    method: Method | type[Method], splits: Splits | None = None, changes: dict[str, Any] | None = None
) -> None:
    """Check that a method learns, repeats itself under its seed, and goes on from where it was interrupted.

    Args:
        splits: images; the digits if None.
        changes: nested configuration that overrides the small trial it is checked in.
    """
    method = example(method)
    check_settings(method)
    splits = Digits().load() if splits is None else splits
    trial = Trial.build(TINY, {"method": method.model_dump(mode="json")}, changes or {})
    torch.manual_seed(1)
    points, learner = _trained(trial, splits)
    for loss in (VAL_LOSS, TEST_LOSS):
        _claim(method, points[0][loss] > points[-1][loss], f"does not learn: {loss} rises")
    told = {name for point in points for name in point}
    _claim(
        method, all(math.isfinite(value) for point in points for value in point.values()), "tells of NaN or infinity"
    )
    missing = [each for each in learner.encodings if f"{each}_{TEST_LOSS}" not in told]
    _claim(method, not missing, f"has encodings without a loss: {missing}")

    torch.manual_seed(2)
    again, learner_again = _trained(trial, splits)
    _claim(method, again == points, "gives other numbers under the same seed")
    _claim(method, _equal(_weights(learner), _weights(learner_again)), "ends with other weights under the same seed")

    for batches in (1, 7):
        for step in itertools.islice(train(trial, splits), batches):
            state = copy.deepcopy(step.state.state_dict())
        torch.manual_seed(3)
        rest, resumed = _trained(trial, splits, state)
        _claim(method, rest == points, f"gives other numbers when interrupted after {batches} batches")
        _claim(method, _equal(_weights(learner), _weights(resumed)), "ends with other weights when interrupted")

    fresh = trial.method.create(trial, splits.shape, torch.device("cpu"))
    plain = Trial.build(TINY, {"method": "gfe"}).with_seed(trial.seed)
    other = plain.method.create(plain, splits.shape, torch.device("cpu"))
    if fresh.decoder.state_dict().keys() == other.decoder.state_dict().keys():  # not of a method with one of its own
        same = _equal(fresh.decoder.state_dict(), other.decoder.state_dict())
        _claim(method, same, "begins with another decoder than gfe does under the same seed")
    target = splits.test.batch(slice(0, 6))
    kept_BD, weights = target.value_BD.clone(), copy.deepcopy(_weights(learner))
    encoded = learner.encode(target)
    for name, shape in (("latent_BL", (6, trial.model.latent_dim)), ("loss_B", (6,)), ("nfe_forward_B", (6,))):
        _claim(method, getattr(encoded, name).shape == shape, f"encodes to {name} of another shape than {shape}")
    _close(method, learner.encode(target[2:4]).loss_B, encoded.loss_B[2:4], "encodes an image by its batch", 1e-3)
    _claim(method, torch.equal(target.value_BD, kept_BD), "changed the images it was given")
    _claim(method, _equal(weights, _weights(learner)), "learns from the images that it encodes")
    decoded_BD = learner.decode(encoded.latent_BL)
    whole = decoded_BD.shape == kept_BD.shape and bool(decoded_BD.isfinite().all())
    _claim(method, whole, "decodes to something else than samples of finite values")
    _stops_before_the_step(method, trial, splits)


def check_dataset(dataset: Dataset | type[Dataset], folders: list[Path] | None = None) -> None:
    """Check that a dataset is the same whenever it is loaded, and that its subsets are nested.

    Args:
        folders: where its files are; as for `Dataset.load`.
    """
    dataset = example(dataset)
    check_settings(dataset)
    splits, again = dataset.load(folders), dataset.load(folders)
    _claim(dataset, splits.sha256 == again.sha256, "gives other images the second time")
    _claim(
        dataset, pickle.loads(pickle.dumps(splits)).sha256 == splits.sha256, "does not survive being sent to a worker"
    )
    for part, split in splits.parts.items():
        _claim(dataset, len(split) > 0, f"has no {part} samples")
        shape = (len(split), splits.shape.size)
        _claim(dataset, split.values_ND.shape == shape, f"has {part} values of another shape than {shape}")
        labelled = split.labels_N is None or split.labels_N.shape == (len(split),)
        _claim(dataset, labelled, f"has not one label per {part} sample")
        value_BD = split.batch(slice(0, 100)).value_BD
        _claim(dataset, bool(value_BD.isfinite().all()), f"has {part} values that are NaN or infinite, and no gaps")
        if split.scale.levels is not None and dataset.scale is None:
            inside = bool((value_BD >= 0).all()) and bool((value_BD <= 1).all())
            _claim(dataset, inside, f"has {part} images outside [0, 1]: white is not {split.scale.levels}")
    digests = {part: {row.tobytes() for row in split.values_ND} for part, split in splits.parts.items()}
    shared = digests["train"] & digests["test"]
    most = max(1, len(splits.test) // 20)
    _claim(dataset, len(shared) <= most, f"has {len(shared)} samples in the training and in the test split")
    few, more = max(1, len(splits.train) // 4), max(1, len(splits.train) // 2)
    smaller, larger = (
        type(dataset).model_validate({**dataset.model_dump(), "train_images": count}).load(folders)
        for count in (few, more)
    )
    nested = np.array_equal(smaller.train.values_ND, larger.train.values_ND[: len(smaller.train)])
    _claim(dataset, len(smaller.train) == few and nested, "has a subset that its larger ones do not contain")
    _claim(dataset, smaller.test.digest() == splits.test.digest(), "has another test split where fewer images train")


def check_likelihood(likelihood: Likelihood | type[Likelihood]) -> None:
    """Check that a likelihood's derivatives are those of its loss, and that what is not observed has no influence."""
    likelihood = example(likelihood)
    check_settings(likelihood)
    loss, draw = likelihood.loss().double(), torch.Generator().manual_seed(1)
    output_BD = torch.randn(6, PIXELS, dtype=torch.float64, generator=draw)
    known_BD = torch.rand(6, PIXELS, generator=draw) < 0.7
    value_BD = loss.sample(torch.randn(6, PIXELS, dtype=torch.float64, generator=draw), draw).double()
    kept_BD = value_BD.clone()
    for known in (None, known_BD):
        target = Observed(value_BD, known)
        _claim(likelihood, likelihood.accepts(target), "does not accept its own draws")
        loss_B = loss(output_BD, target).detach()
        _claim(likelihood, loss_B.shape == (6,), f"gives a loss of shape {tuple(loss_B.shape)} for 6 samples")
        for row in (slice(0, 1), slice(1, 4)):
            alone_B = loss(output_BD[row], Observed(value_BD[row], None if known is None else known[row])).detach()
            _close(likelihood, alone_B, loss_B[row], "loss of a sample depends on its batch", 1e-12)
        at_BD = output_BD.clone().requires_grad_()
        (slope_BD,) = torch.autograd.grad(loss(at_BD, target).sum(), at_BD, create_graph=True)
        _close(likelihood, loss.gradient(output_BD, target), slope_BD, "gradient is not that of the loss", 1e-9)
        if slope_BD.requires_grad:
            (bend_BD,) = torch.autograd.grad(slope_BD.sum(), at_BD)
            _close(likelihood, loss.hessian(output_BD, target), bend_BD, "hessian is not that of the loss", 1e-9)
        curvature_BD = loss.curvature(output_BD, target)
        _claim(likelihood, bool((curvature_BD >= 0).all()), "has a curvature below 0; solvers need one that is not")
        floor_B = likelihood.floor(target)
        if floor_B is not None:
            _claim(likelihood, bool((floor_B <= loss_B + 1e-9).all()), "has a loss below its floor")
    _claim(likelihood, torch.equal(value_BD, kept_BD), "changed the samples it was given")
    hidden_BD = torch.where(known_BD, value_BD, torch.full_like(value_BD, math.nan))
    gaps, filled = Observed(hidden_BD, known_BD), Observed(value_BD, known_BD)
    _close(likelihood, loss(output_BD, gaps), loss(output_BD, filled), "depends on what is not observed", 0)
    at_BD = output_BD.clone().requires_grad_()
    mean_BD = loss.mean(at_BD)
    slope_BD = torch.autograd.grad(mean_BD.sum(), at_BD)[0]
    _close(likelihood, loss.mean_slope(output_BD), slope_BD, "mean_slope is not the derivative of mean", 1e-9)
    one_D = torch.full((DRAWS, 1), 0.3, dtype=torch.float64)
    drawn, wanted = loss.sample(one_D, draw).double(), loss.mean(one_D[:1])
    near = bool((drawn.mean() - wanted).abs() < 0.1 * drawn.std() + 1e-9)
    _claim(likelihood, near, f"has draws with the mean {float(drawn.mean()):.3f}; by `mean` it is {float(wanted):.3f}")


def check_operator(operator: Operator | type[Operator]) -> None:
    """Check that an operator is linear, that its adjoint is the adjoint, and that it leaves its input alone."""
    operator = example(operator)
    check_settings(operator)
    draw = torch.Generator().manual_seed(0)
    for dims in ((1, 8, 8), (3, 4, 6), (1, 12), (1, 4, 4, 4)):
        try:
            measured = operator.measured_dims(dims)
        except InputError:
            continue  # of samples of such a shape it makes nothing
        one, other = (torch.randn(3, *dims, generator=draw, dtype=torch.float64) for _ in range(2))
        seen = torch.randn(3, *measured, generator=draw, dtype=torch.float64)
        kept, kept_seen = one.clone(), seen.clone()
        applied, pulled = operator.apply(one), operator.adjoint(seen, dims)
        _claim(operator, applied.shape == seen.shape, f"gives {tuple(applied.shape)}, not {tuple(seen.shape)}")
        _claim(operator, pulled.shape == one.shape, f"has an adjoint that gives {tuple(pulled.shape)}, not {one.shape}")
        sums = operator.apply(2 * one - other)
        _close(operator, sums, 2 * applied - operator.apply(other), "is not linear", 1e-10)
        inner, pulled_inner = ((a * b).flatten(1).sum(1) for a, b in ((applied, seen), (one, pulled)))
        _close(operator, inner, pulled_inner, "has an adjoint with ⟨Ax, y⟩ ≠ ⟨x, Aᵀy⟩", 1e-10)
        _close(operator, operator.apply(one[1:2]), applied[1:2], "treats a sample by what is beside it", 1e-10)
        same = torch.equal(one, kept) and torch.equal(seen, kept_seen)
        _claim(operator, same, "changed the samples it was given")
        _claim(operator, operator.apply(one.float()).dtype == torch.float32, "gives another type than it is given")


def check_optim(optim: Optimiser | type[Optimiser]) -> None:
    """Check that an optimiser goes downhill with the learning rate of its section, and goes on from a saved state."""
    optim = example(optim)
    check_settings(optim)
    ends = []
    for saved_after in (None, 3):
        weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        optimiser = optim.build([weight])
        _claim(optim, optimiser.param_groups[0]["lr"] == optim.lr, "has another learning rate than optim.lr")
        for step in range(6):
            if step == saved_after:
                state, optimiser = copy.deepcopy(optimiser.state_dict()), optim.build([weight])
                optimiser.load_state_dict(state)
            optimiser.zero_grad()
            (weight**2).sum().backward()
            optimiser.step()
        ends.append(weight.detach())
    _claim(optim, bool((ends[0] ** 2).sum() < 5), "does not go downhill")
    _claim(optim, torch.equal(ends[0], ends[1]), "goes another way from a saved state")


def check_target(target: Target | type[Target]) -> None:
    """Check that a target's draws have the density that it claims."""
    target = example(target)
    check_settings(target)
    drawn_BL = target.sample(DRAWS, LATENT, torch.Generator().manual_seed(1))
    again_BL = target.sample(DRAWS, LATENT, torch.Generator().manual_seed(1))
    _claim(target, torch.equal(drawn_BL, again_BL), "draws other latents from the same generator")
    _claim(target, drawn_BL.shape == (DRAWS, LATENT), f"draws latents of shape {tuple(drawn_BL.shape)}")
    _claim(target, target.means(LATENT).shape == (target.modes, LATENT), "has means that are not one per mode")
    # Moments of the draws, and those by the density at the points of a wider normal q, each point weighed by p/q.
    centre_L, spread = drawn_BL.mean(0), 1.3 * drawn_BL.std()
    noise_BL = torch.randn(DRAWS, LATENT, generator=torch.Generator().manual_seed(2))
    point_BL = centre_L + spread * noise_BL
    log_q_B = -noise_BL.square().sum(1) / 2 - LATENT * (spread.log() + math.log(2 * math.pi) / 2)
    weight_B = (target.log_density(point_BL) - log_q_B).exp()
    total, square = float(weight_B.mean()), float((weight_B * point_BL.square().sum(1)).mean())
    wanted = float(drawn_BL.square().sum(1).mean())
    _claim(target, abs(total - 1) < 0.05, f"has a density whose integral is {total:.3f}, not 1")
    fits = abs(square / wanted - 1) < 0.05
    _claim(target, fits, f"has draws with a mean |z|² of {wanted:.3f}; by its density it is {square:.3f}")


def check_measure(measure: Measure | type[Measure], splits: Splits | None = None) -> None:
    """Check that a measure repeats itself, leaves training alone, and shows a search nothing of the test images."""
    measure = example(measure)
    check_settings(measure)
    splits = Digits().load() if splits is None else splits
    small = {"method": {"name": "gen", "kde_samples": 64}, "budget": {"images": 64}, "eval": {"schedule": [64]}}
    trial = Trial.build(TINY, small)
    _, learner = _trained(trial, splits)
    weights, random = copy.deepcopy(_weights(learner)), torch.get_rng_state()
    elsewhere = replace(splits, test=splits.train.take(slice(len(splits.test) // 2)))
    first, other = measure.prepare(splits), measure.prepare(elsewhere)
    _claim(measure, _equal(first, other), "prepares something else the second time, or with other test images")
    if measure.prepares:
        splits, elsewhere = (replace(each, prepared={measure.prepares: first}) for each in (splits, elsewhere))
    values = _measured(measure, learner, splits)
    _claim(measure, torch.equal(random, torch.get_rng_state()), "draws from torch's global generator")
    _claim(measure, _equal(weights, _weights(learner)), "changed the networks")
    _claim(measure, all(isinstance(value, float) for value in values.values()), "gives something else than numbers")
    _claim(measure, _measured(measure, learner, splits) == values, "gives other numbers the second time")
    others = _measured(measure, learner, elsewhere)
    for name in filter(is_objective, sorted({*values, *others})):
        same = values.get(name) == others.get(name)
        _claim(measure, same, f"{name} depends on the test images; a search may use it")


CHECKS: dict[str, Callable[[Any], None]] = {
    "method": check_method,
    "flow": check_flow,
    "solver": check_solver,
    "gradient": check_gradient,
    "start": check_start,
    "model": check_model,
    "data": check_dataset,
    "operator": check_operator,
    "likelihood": check_likelihood,
    "optim": check_optim,
    "target": check_target,
    "measure": check_measure,
}
"""Section -> how its components are checked."""


@dataclass(frozen=True)
class _Problem:
    """Small images, a decoder and a loss, in float64; flows start from zero."""

    decoder: MLPDecoder
    loss: Loss
    target: Observed

    @property
    def target_BD(self) -> Tensor:
        return self.target.value_BD

    @classmethod
    def small(cls, batch: int = BATCH) -> _Problem:
        decoder = _seeded(lambda: MLPDecoder([LATENT, 9, PIXELS]).double(), 3)
        with torch.no_grad():
            for weight in decoder.parameters():
                weight.mul_(2)
        draw = torch.Generator().manual_seed(3)
        value_BD = torch.rand(batch, PIXELS, dtype=torch.float64, generator=draw)
        return cls(decoder, BernoulliLoss(), Observed(value_BD))

    def objective(self, rows: slice = slice(None)) -> Objective:
        return Objective(self.decoder, self.loss, self.target[rows])

    def start(self) -> Tensor:
        return self.target_BD.new_zeros(len(self.target_BD), LATENT)

    def overflowing(self) -> Tensor:
        """A latent, shape (L,), whose loss is NaN or infinite."""
        weight = self.decoder.linears()[0].weight.detach()
        return 1.7e308 * weight[weight.abs().sum(1).argmax()].sign()

    def solve(self, solver: Solver, *, keep_path: bool = False) -> Solution:
        return solver.solve(FLOW, self.objective(), self.start(), keep_path=keep_path)

    def gradient(self, gradient: Gradient, solution: Solution) -> Tensor:
        """dL/dθ as one vector."""
        self.decoder.zero_grad(set_to_none=True)
        gradient.backward(self.objective(), solution)
        return _vector(self.decoder)


class _CountingDecoder(MLPDecoder):
    """Counts the rows that it evaluates and pulls back; a Jacobian costs 1 + L evaluations."""

    evaluated = pulled_back = samples = 0

    def frozen(self, products: Products = "float32") -> Linearizable:  # type: ignore[override]
        return self

    def linearize(self, latent_KL: Tensor) -> tuple[Tensor, Vjp]:
        output_KD, vjp = super().frozen().linearize(latent_KL)
        self.evaluated += len(latent_KL)

        def counting(grad: Tensor, selected: Tensor | None) -> Tensor:
            self.pulled_back += len(grad)
            return vjp(grad, selected)

        return output_KD, counting

    def jacobian(self, latent_KL: Tensor) -> tuple[Tensor, Tensor]:
        at_the_origin = len(latent_KL) == 1 and not bool(latent_KL.any())
        # Of one metric for all samples, one evaluation is counted for each: the rows are about as many.
        self.evaluated += self.samples if at_the_origin else len(latent_KL) * (1 + latent_KL.shape[1])
        return super().frozen().jacobian(latent_KL)


def _solution_is_whole(solver: Solver, problem: _Problem, solution: Solution) -> None:
    batch = len(problem.target_BD)
    for name, found in _per_sample(solution).items():
        wanted = (batch, LATENT) if name == "latent_BL" else (batch,)
        _claim(solver, found.shape == wanted, f"{name} has the shape {tuple(found.shape)}, not {wanted}")
        _claim(solver, not found.requires_grad, f"{name} has an autograd graph; it is to be detached")
    _claim(solver, bool(solution.latent_BL.isfinite().all()), "finds latents that are NaN or infinite")
    at_end_B = problem.loss(problem.decoder(solution.latent_BL), problem.target).detach()
    _close(solver, solution.loss_B, at_end_B, "loss_B is not the loss at latent_BL", 1e-9)
    at_start_B = problem.loss(problem.decoder(problem.start()), problem.target).detach()
    _claim(solver, bool((solution.loss_B <= at_start_B).all()), "ends with a higher loss than it started from")
    known = {int(result) for result in Result}
    _claim(solver, {*solution.result_B.tolist()} <= known, "has a result_B that is no `Result`")


def _observer_is_called(solver: Solver, problem: _Problem, unobserved: Solution) -> None:
    states: list[dict[str, Tensor]] = []
    observed = solver.solve(FLOW, problem.objective(), problem.start(), states.append)
    _claim(solver, _same(observed, unobserved), "gives other results when it is observed")
    every_B = torch.arange(len(problem.target_BD))
    for state in states:
        missing = {"latent", "time"} - state.keys()
        _claim(solver, not missing, f"shows an observer no {' and no '.join(sorted(missing))}")
        count = len(state.get("row", every_B))
        for name, shape in (("latent", (count, LATENT)), ("time", (count,))):
            found = tuple(state[name].shape)
            _claim(solver, found == shape, f"shows an observer a {name} of shape {found}, not {shape}")


def _derivatives_are_right(model: Model, decoder: Decoder, latent_BL: Tensor, output_BD: Tensor) -> None:
    """The decoder's own derivatives, and those of its frozen form, are autograd's."""
    picked = torch.tensor([3, 0])
    slope = torch.randn(2, output_BD.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    chosen = latent_BL[picked].requires_grad_()
    (expected,) = torch.autograd.grad(decoder(chosen), chosen, slope)
    for form, at in (("", decoder), ("its frozen form: ", decoder.frozen())):
        found_BD, vjp = at.linearize(latent_BL)
        _close(model, found_BD, output_BD, f"{form}linearize gives another output than the decoder", 1e-9)
        _close(model, vjp(slope, picked), expected, f"{form}linearize gives another derivative than autograd", 1e-9)
        found_BD, tangent_BLD = at.jacobian(latent_BL)
        _close(model, found_BD, output_BD, f"{form}jacobian gives another output than the decoder", 1e-9)
        pulled = (tangent_BLD[picked] @ slope[..., None])[..., 0]
        _close(model, pulled, expected, f"{form}jacobian gives another derivative than autograd", 1e-9)


def _stops_before_the_step(method: Method, trial: Trial, splits: Splits) -> None:
    """A loss that is not finite ends the trial with the weights as they were."""
    learner = trial.method.create(trial, splits.shape, torch.device("cpu"))
    learner.see(splits.train)
    with torch.no_grad():
        [*learner.decoder.parameters()][-1].fill_(math.nan)
    before = copy.deepcopy(_weights(learner))
    try:
        learner.update([Batch(splits.train.batch(slice(0, 8)), torch.arange(8))], 8)
    except Diverged:
        after = _weights(learner)
        same = all(torch.equal(before[name].nan_to_num(), after[name].nan_to_num()) for name in before)
        _claim(method, same, "steps on a loss that is not finite before it raises Diverged")
    else:
        mended = all(bool(weight.isfinite().all()) for weight in learner.decoder.parameters())  # by a closed form
        _claim(method, mended, "does not raise Diverged where the loss is not finite")


def _trained(trial: Trial, splits: Splits, state: dict[str, Any] | None = None) -> tuple[list[Metrics], Learner]:
    """The points that a trial reaches, but for its seconds, and its learner at the end."""
    *_, last = train(trial, splits, state)
    points = [{name: value for name, value in point.items() if name not in SECONDS} for point in last.state.points]
    return points, last.state.learner


def _measured(measure: Measure, learner: Learner, splits: Splits) -> Metrics:
    encoded = (learner.encode(split.batch(slice(0, 100))).latent_BL for split in (splits.val, splits.test))
    return measure.values(learner, splits, Latents(*encoded))


def _weights(learner: Learner) -> dict[str, Tensor]:
    return learner.networks.state_dict()


def _equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _vector(decoder: nn.Module) -> Tensor:
    return torch.cat(
        [torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten() for w in decoder.parameters()]
    )


def _per_sample(solution: Solution) -> dict[str, Tensor]:
    parts = ("latent_BL", "loss_B", "time_B", "result_B", "num_steps_B", "nfe_forward_B", "nfe_backward_B")
    return {name: getattr(solution, name) for name in parts}


def _same(a: Solution, b: Solution) -> bool:
    return _equal(_per_sample(a), _per_sample(b))


def _companies(batch: int) -> Iterator[slice]:
    """The samples in other company: the first ones alone, the others in ever larger groups."""
    ends = [*range(batch // 8 + 1), batch // 4, batch // 2, batch]
    return (slice(a, b) for a, b in itertools.pairwise(ends))


Made = TypeVar("Made")


def _seeded(make: Callable[[], Made], seed: int = 0) -> Made:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _claim(component: Component, holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(f"{component.name}: {otherwise}")


def _close(component: Component, found: Tensor, expected: Tensor, otherwise: str, rtol: float) -> None:
    try:
        torch.testing.assert_close(found.detach(), expected.detach(), rtol=rtol, atol=rtol / 100)
    except AssertionError as error:
        [*lines] = (line for line in str(error).splitlines() if "ifference" in line or "shape" in line)
        raise AssertionError(f"{component.name}: {otherwise} ({'; '.join(lines) or error})") from error
