"""Every registered component keeps its contract, and the checks find those that do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gfe_study import registry, testing
from gfe_study.config import Component
from gfe_study.data.digits import Digits
from gfe_study.data.split import DataError, Scale, Shape, Splits
from gfe_study.gradients.approx import Approximate
from gfe_study.gradients.base import Differentiated
from gfe_study.likelihoods.base import Observed
from gfe_study.likelihoods.gaussian import Gaussian, GaussianLoss
from gfe_study.measures.base import Latents
from gfe_study.measures.entropy import Entropy
from gfe_study.measures.frechet import Frechet
from gfe_study.methods.base import Batch, Learner, Updated
from gfe_study.methods.gfe import GFE, GFELearner
from gfe_study.models.base import Model, Vjp
from gfe_study.models.mlp import MLP, MLPDecoder
from gfe_study.optim import RMSprop
from gfe_study.solvers.base import Solution, Solver, StepObserver
from gfe_study.solvers.descent import DescentSolver
from gfe_study.solvers.fields import Flow, GradientFlow
from gfe_study.solvers.lbfgs import LBFGS
from gfe_study.solvers.objective import Objective
from gfe_study.starts.constant import ConstantStarter, Zero
from gfe_study.targets.standard_normal import StandardNormal

NAMES = [(section, name) for section in registry.BASES for name in registry.names(section)]
FILES = {"mnist", "fashion_mnist", "seg_mnist", "svhn", "celeba"}
"""Datasets whose files may not be here."""
TRAINED = {"fid", "novelty"}
"""Measures that need more than a small trial: test_measures.py."""


def written(folder: Path, name: str) -> Path:
    """A file, or a folder of files, for a dataset that is read from a path."""
    draw = np.random.default_rng(1)
    if name != "idx":
        np.save(folder / "values.npy", draw.normal(size=(200, 5)))
        return folder / "values.npy"
    for part, count in (("train", 150), ("t10k", 50)):
        images, labels = draw.integers(0, 256, (count, 6, 5), np.uint8), draw.integers(0, 3, count, np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(head + array.tobytes())
    return folder


@pytest.mark.parametrize(("section", "name"), NAMES)
def test_every_component_keeps_its_contract(section: str, name: str, tmp_path: Path) -> None:
    if name in TRAINED:
        pytest.skip("test_measures.py")
    component = registry.component(section, name)
    if section == "data" and "path" in component.model_fields:
        component = component(path=str(written(tmp_path, name)))
    if name == "matrix":
        np.save(tmp_path / "a.npy", np.random.default_rng(1).normal(size=(5, 64)))
        component = component(path=str(tmp_path / "a.npy"))
    try:
        testing.CHECKS[section](component)
    except DataError as error:
        if name not in FILES:
            raise
        pytest.skip(str(error))


def test_every_section_has_a_check() -> None:
    assert testing.CHECKS.keys() == registry.BASES.keys()


def test_only_components_are_checked() -> None:
    with pytest.raises(TypeError, match=r"is no component; allowed: a method, flow, solver"):
        testing.check(Component)


@pytest.mark.parametrize("name", registry.names("solver"))
def test_samples_of_a_checked_descent_end_apart(name: str) -> None:
    """A sample that depends on its batch shows only if the others end earlier or later, and for other reasons."""
    solver = testing.example(registry.component("solver", name))
    assert isinstance(solver, Solver)
    if isinstance(solver, DescentSolver):
        solution = testing._Problem.small().solve(solver)
        assert len(solution.result_B.unique()) > 1
        assert len(solution.nfe_forward_B.unique()) > 3


# Components that break their promises


class Solving(LBFGS):
    example: ClassVar[dict[str, Any]] = LBFGS.example

    def solve(
        self, flow: Flow, objective: Objective, start_BL: Tensor, observe: StepObserver = None, keep_path: bool = False
    ) -> Solution:
        return self.spoilt(super().solve(flow, objective, self.before(start_BL), observe, keep_path))

    def before(self, start_BL: Tensor) -> Tensor:
        return start_BL

    def spoilt(self, solution: Solution) -> Solution:
        return solution


def changed(solution: Solution, **parts: Tensor) -> Solution:
    return Solution(**{**vars(solution), **parts})


class Averaging(Solving):
    """Tells every sample the mean number of steps of the batch."""

    def spoilt(self, solution: Solution) -> Solution:
        steps_B = solution.num_steps_B
        return changed(solution, num_steps_B=torch.full_like(steps_B, int(steps_B.double().mean())))


class Miscounting(Solving):
    """Tells of one evaluation too few."""

    def spoilt(self, solution: Solution) -> Solution:
        return changed(solution, nfe_forward_B=solution.nfe_forward_B - 1)


class Uncounted(Solving):
    """Tells of no pullback."""

    def spoilt(self, solution: Solution) -> Solution:
        return changed(solution, nfe_backward_B=0 * solution.nfe_backward_B)


class Careless(Solving):
    """Takes a start that is not finite for zero."""

    def before(self, start_BL: Tensor) -> Tensor:
        return start_BL.nan_to_num(0.0, 0.0, 0.0)


class Scribbling(Solving):
    """Writes into the start."""

    def before(self, start_BL: Tensor) -> Tensor:
        if bool(start_BL.isfinite().all()):
            start_BL += 1e-3
        return start_BL


class Random(Solving):
    """Moves the latents a little, and by chance."""

    def spoilt(self, solution: Solution) -> Solution:
        return changed(solution, time_B=solution.time_B + torch.rand(1, dtype=torch.float64))


class WrongLoss(Solving):
    """Tells of a lower loss than it reached."""

    def spoilt(self, solution: Solution) -> Solution:
        return changed(solution, loss_B=solution.loss_B - 1e-3)


class Untimed(LBFGS):
    """Shows its latents without their time."""

    example: ClassVar[dict[str, Any]] = LBFGS.example

    def solve(
        self, flow: Flow, objective: Objective, start_BL: Tensor, observe: StepObserver = None, keep_path: bool = False
    ) -> Solution:
        seen = None if observe is None else lambda state: observe({name: state[name] for name in ("latent", "row")})
        return super().solve(flow, objective, start_BL, seen, keep_path)


class Whole(Untimed):
    """Shows the times of the whole batch."""

    def solve(
        self, flow: Flow, objective: Objective, start_BL: Tensor, observe: StepObserver = None, keep_path: bool = False
    ) -> Solution:
        whole = start_BL.new_zeros(len(start_BL) + 1)
        seen = None if observe is None else lambda state: observe({**state, "time": whole})
        return LBFGS.solve(self, flow, objective, start_BL, seen, keep_path)


class Replacing(Approximate):
    """Forgets the gradients that are there."""

    def backward(self, objective: Objective, solution: Solution) -> Differentiated:
        objective.decoder.zero_grad(set_to_none=True)
        return super().backward(objective, solution)


class Altered(Approximate):
    """Changes what it adds to the gradients of the weights."""

    def backward(self, objective: Objective, solution: Solution) -> Differentiated:
        weights = list(objective.decoder.parameters())
        before = [torch.zeros_like(weight) if weight.grad is None else weight.grad.clone() for weight in weights]
        done = super().backward(objective, solution)
        for weight, old in zip(weights, before, strict=True):
            if weight.grad is not None:
                weight.grad = old + self.altered(weight.grad - old, objective)
        return done

    def altered(self, grad: Tensor, objective: Objective) -> Tensor:
        return grad


class Downhill(Altered):
    """Has the wrong sign."""

    def altered(self, grad: Tensor, objective: Objective) -> Tensor:
        return -grad


class Mean(Altered):
    """Is that of the mean over the batch."""

    def altered(self, grad: Tensor, objective: Objective) -> Tensor:
        return grad / len(objective.target)


class Centring(GradientFlow):
    """Moves every sample by the mean of the batch."""

    def derivative(self, objective: Any, t: Any, tau: float, state_BS: Tensor) -> Tensor:
        rate_BS = super().derivative(objective, t, tau, state_BS)
        return rate_BS - rate_BS.mean(0)


class Halving(GradientFlow):
    """Finds half the latent."""

    def latent(self, state_BS: Tensor) -> Tensor:
        return state_BS / 2


class WrongDecoder(MLPDecoder):
    def linearize(self, latent_KL: Tensor) -> tuple[Tensor, Vjp]:
        output_KD, vjp = super().linearize(latent_KL)
        return output_KD, lambda grad, selected: 1.01 * vjp(grad, selected)


class WrongDerivative(MLP):
    """Has a decoder whose derivative is not its own."""

    example: ClassVar[dict[str, Any]] = MLP.example

    def decoder(self, shape: Shape) -> MLPDecoder:
        return WrongDecoder([self.latent_dim, *self.hidden, shape.size])


class MeanZero(ConstantStarter):
    def forward(self, target: Observed, index_B: Tensor | None = None) -> Tensor:
        return super().forward(target, index_B) + target.value_BD.mean()


class Blending(Zero):
    """Starts at the mean of the batch."""

    def create(self, model: Model, shape: Shape, encoder: nn.Module | None) -> MeanZero:
        return MeanZero(model.latent_dim)


class Forgetful(GFELearner):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.networks.load_state_dict(state["networks"])


class Forgetting(GFE):
    """Forgets the optimiser when it goes on."""

    learner = Forgetful


class Stubborn(GFELearner):
    def update(self, batches: Sequence[Batch], new: int) -> Updated:
        try:
            return super().update(batches, new)
        except ArithmeticError:
            return Updated(torch.zeros(new, 4), torch.zeros(new), 0.0, 0.0)


class Hiding(GFE):
    """Goes on where the loss is not finite."""

    learner = Stubborn


class Shuffled(Digits):
    """Has other images every time."""

    drawn: ClassVar[Iterator[int]] = iter(range(100))

    def read(self, folders: list[Path], *, download: bool) -> Splits:
        splits = super().read(folders, download=download)
        order = np.random.default_rng(next(self.drawn)).permutation(len(splits.train))
        return Splits(splits.train.take(order), splits.val, splits.test, splits.shape)


class Leaking(Digits):
    """Tests on what it trains on."""

    def read(self, folders: list[Path], *, download: bool) -> Splits:
        splits = super().read(folders, download=download)
        return Splits(splits.train, splits.val, splits.train.take(slice(0, 100)), splits.shape)


class TooBright(Digits):
    """Takes 4 for white."""

    def read(self, folders: list[Path], *, download: bool) -> Splits:
        splits = super().read(folders, download=download)
        train, val, test = (replace(split, scale=Scale.of_levels(4)) for split in splits.parts.values())
        return Splits(train, val, test, splits.shape)


class SkewedLoss(GaussianLoss):
    def slope(self, output_BD: Tensor, target: Observed) -> Tensor:
        return 2 * super().slope(output_BD, target)


class Skewed(Gaussian):
    """Has twice the gradient of its loss."""

    def loss(self) -> SkewedLoss:
        return SkewedLoss(self.sigma)


class BlurredLoss(GaussianLoss):
    def mean(self, output_BD: Tensor) -> Tensor:
        return output_BD + 0.2


class Blurred(Gaussian):
    """Draws about another mean than it says."""

    def loss(self) -> BlurredLoss:
        return BlurredLoss(self.sigma)


class SquareLoss(GaussianLoss):
    def forward(self, output_BD: Tensor, target: Observed) -> Tensor:
        return super().forward(output_BD, target) - super().forward(output_BD, target).mean().detach()


class Square(Gaussian):
    """Measures from the mean of the batch."""

    def loss(self) -> SquareLoss:
        return SquareLoss(self.sigma)


class Uphill(RMSprop):
    """Climbs."""

    def build(self, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.lr, maximize=True)


class Wide(StandardNormal):
    """Draws from a wider normal than it says."""

    def sample(self, count: int, latent_dim: int, generator: torch.Generator) -> Tensor:
        return 1.2 * super().sample(count, latent_dim, generator)


class Peeking(Entropy):
    """Shows a search the entropy of test latents."""

    def values(self, learner: Learner, splits: Splits, latents: Latents) -> dict[str, float]:
        return super().values(learner, splits, Latents(latents.test_NL, latents.test_NL))


class Cheating(Frechet):
    """Trains its classifier on test images."""

    def prepare(self, whole: Splits) -> dict[str, Tensor]:
        return super().prepare(replace(whole, train=whole.test))


BROKEN: list[tuple[type[Component], str]] = [
    (Averaging, "num_steps_B of a sample depends on its batch"),
    (Miscounting, r"tells of \d+ evaluations of the decoder, and made \d+"),
    (Uncounted, "tells of 0 pullbacks"),
    (Careless, "takes a start that is nan"),
    (Scribbling, "changed the start it was given"),
    (Random, "gave other results the second time"),
    (WrongLoss, "loss_B is not the loss at latent_BL"),
    (Untimed, "shows an observer no time"),
    (Whole, r"shows an observer a time of shape \(65,\), not"),
    (Replacing, "replaces the gradients that are there"),
    (Downhill, "does not point uphill"),
    (Mean, "of a batch is not the sum over its samples"),
    (Centring, "moves a sample by the others of its batch"),
    (Halving, "does not find the latent in the state"),
    (WrongDerivative, "linearize gives another derivative than autograd"),
    (Blending, "depends on the rest of the batch"),
    (Forgetting, "when interrupted"),
    (Hiding, "does not raise Diverged"),
    (Shuffled, "gives other images the second time"),
    (Leaking, "samples in the training and in the test split"),
    (TooBright, r"images outside \[0, 1\]"),
    (Skewed, "gradient is not that of the loss"),
    (Blurred, "has draws with the mean"),
    (Square, "loss of a sample depends on its batch"),
    (Uphill, "does not go downhill"),
    (Wide, "has draws with a mean"),
    (Cheating, "prepares something else .* with other test images"),
    (Peeking, "val_entropy_gap depends on the test images"),
]


@pytest.mark.parametrize(("broken", "what"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_promise_is_found(broken: type[Component], what: str) -> None:
    with pytest.raises(AssertionError, match=rf"^{__name__}:{broken.__name__}: .*{what}"):
        testing.check(broken)


def test_a_name_that_leads_nowhere_is_found() -> None:
    class Local(LBFGS):
        pass

    with pytest.raises(AssertionError, match=r"cannot be had by its name: .*<locals>"):
        testing.check(Local)


class Recoloured(LBFGS):
    colour = "#" + "123456"


def test_a_colour_that_cannot_be_read_is_found() -> None:
    with pytest.raises(AssertionError, match="no literal in the class's own body"):
        testing.check(Recoloured)


def test_an_instance_is_checked_as_it_is() -> None:
    assert testing.example(LBFGS(max_nfe=3)).max_nfe == 3
    assert testing.example(LBFGS).max_nfe == LBFGS.example["max_nfe"]
    testing.check(LBFGS(max_nfe=7, min_slope=1e-3))
