"""The method contract: what `train` needs of a way to train a decoder.

Shapes: B batch, L latent, D values of a sample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from gfe_study.config import Component
from gfe_study.likelihoods.base import Loss, Observed
from gfe_study.solvers.base import Solver
from gfe_study.solvers.fields import Flow, GradientFlow
from gfe_study.solvers.lbfgs import LBFGS
from gfe_study.solvers.objective import LatentTerm, Objective
from gfe_study.starts.base import Starter

if TYPE_CHECKING:
    from gfe_study.config import Trial
    from gfe_study.data.split import Shape, Split
    from gfe_study.models.base import Decoder
    from gfe_study.optim import Average
    from gfe_study.targets.base import Target


COMMON_SOLVER, COMMON_FLOW = LBFGS(), GradientFlow(alpha="constant")
"""The common encoder, by which decoders are compared whatever they were trained with: from zero, of ℓ alone."""


class Diverged(ArithmeticError):
    """The training loss of a batch is NaN or infinite. Raised before the optimiser steps on it."""


class Batch(NamedTuple):
    """Training samples.

    Attributes:
        target: their values.
        index_B: their places in the training split.
    """

    target: Observed
    index_B: Tensor


class Updated(NamedTuple):
    """What training on some samples gave and cost.

    Attributes:
        latent_BL: latents of the new samples before the last step.
        loss_B: their training loss there.
        nfe_forward: decoder evaluations, those for the weights included.
        nfe_backward: backward passes through the decoder.
        encoder_passes: forward and backward passes of samples through an encoder, each counting one.
        result_B: why the solver of each new sample stopped, as `Result` codes; None if there is no solver.
    """

    latent_BL: Tensor
    loss_B: Tensor
    nfe_forward: Tensor | float
    nfe_backward: Tensor | float
    encoder_passes: int = 0
    result_B: Tensor | None = None


@dataclass(frozen=True)
class Encoding:
    """Latents of a batch and what finding them cost, per sample."""

    latent_BL: Tensor
    loss_B: Tensor
    nfe_forward_B: Tensor
    nfe_backward_B: Tensor
    result_B: Tensor | None = None
    """Why each sample's solver stopped, as `Result` codes; None of an encoder."""
    common: bool = False
    """Whether it is exactly what the common encoder gives."""
    encoder_passes: int = 0
    """Passes of samples through an encoder; a sum over the batch."""


def derive_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose, so that what one part draws does not shift another's numbers."""
    return int.from_bytes(sha256(f"{seed}/{purpose}".encode()).digest()[:8], "big") >> 1


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """torch's global CPU generator, seeded for one purpose and put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, purpose))
        yield


class Learner(ABC):
    """A method at work: networks, an optimiser, and the two things one does with them.

    The same trial seed gives the same initial decoder to every method.
    """

    encodings: tuple[str, ...] = ()
    """Further ways to encode than the trial's own; each becomes the metric `<name>_test_loss`."""

    descends: ClassVar[bool] = True
    """Whether its weights come from steps of the optimiser, which can be averaged and have samples replayed to."""

    encodes_by_flow: bool = False
    """Whether the trial's own encoding is `encode_by_flow`."""

    settings: Method
    """The method of the trial; a learner of one method declares which."""

    members: Sequence[Learner] = ()
    """The learners that an ensemble consists of; its latent is theirs side by side. Empty otherwise."""

    def __init__(self, trial: Trial, shape: Shape, device: torch.device) -> None:
        self.trial = trial
        self.settings = trial.method
        self.shape = shape = self.seen_as(shape)
        self.loss: Loss = trial.likelihood.loss()
        self.loss.sized(shape.size)
        self.loss.to(device)
        with seeded(trial.seed, "decoder"):
            self.decoder = self.build_decoder(shape).to(device)
        self.networks = nn.ModuleDict({"decoder": self.decoder, "likelihood": self.loss})
        self.networks.update(self.build_networks(shape, device))
        with seeded(trial.seed, "encoder"):
            encoder = dict(self.networks.items()).get("encoder")
            self.start: Starter = trial.start.create(trial.model, shape, encoder).to(device)
        self.networks["start"] = self.start
        self.optimiser: torch.optim.Optimizer = trial.optim.build(self.trained())
        self.averaged = Averaged(self.optimiser, trial.optim.average) if trial.optim.average and self.descends else None

    def seen_as(self, shape: Shape) -> Shape:
        """The shape as the method's networks are to see it."""
        return shape

    def build_decoder(self, shape: Shape) -> Decoder:
        """The decoder, with weights drawn from torch's global generator."""
        decoder: Decoder = self.trial.model.decoder(shape)
        return decoder

    def build_networks(self, shape: Shape, device: torch.device) -> dict[str, nn.Module]:
        """Networks that are trained beside the decoder, by name."""
        return {}

    def trained(self) -> Iterable[nn.Parameter]:
        """The weights that `optimiser` steps on."""
        return self.networks.parameters()

    def see(self, train: Split) -> None:  # noqa: B027
        """Be shown the training split before training: for methods that need more of it than the batch at hand.

        Raises:
            ValueError: the method cannot be trained on it; the message is one line.
        """

    @property
    def target(self) -> Target:
        """The distribution that the latents are pulled to, of a method that has one."""
        assert self.trial.target is not None
        target: Target = self.trial.target
        return target

    def settle(self) -> None:  # noqa: B027
        """Do what is left to be done before an evaluation. Counts as training."""

    @contextmanager
    def training(self) -> Iterator[None]:
        """The networks with the weights that training goes on from; outside of it, those that are evaluated."""
        if self.averaged is None:
            yield
            return
        self.averaged.swap()
        try:
            yield
        finally:
            self.averaged.swap()

    @abstractmethod
    def update(self, batches: Sequence[Batch], new: int) -> Updated:
        """Train on new samples, with one step of the optimiser per batch.

        Args:
            batches: the samples of each step. The first `new` of each are the new ones, the same in all; the others
                were seen before.
            new: number of new samples.

        Raises:
            Diverged: the loss of an update is not finite; that update has not touched the weights.
        """

    @abstractmethod
    def encode(self, target: Observed, encoding: str | None = None) -> Encoding:
        """Latents of samples by the trial's own encoding, or by one of `encodings`."""

    def objective(self, target: Observed, index_B: Tensor | None = None) -> Objective:
        """What the latents of samples are found by minimising.

        Args:
            target: samples.
            index_B: their places in the training split; None for samples that are not trained on.
        """
        return Objective(
            self.decoder,
            self.loss,
            target,
            self.latent_term_of(index_B),
            self.trial.prior_precision,
            self.trial.solver.products,
        )

    def latent_term_of(self, index_B: Tensor | None) -> LatentTerm | None:
        """What is added to ℓ for where a latent is; `index_B` as of `objective`; None for nothing."""
        return None

    def encode_by_flow(self, target: Observed) -> Encoding:
        """Latents by following the trial's flow with its solver from its start."""
        found = _solved(self.trial.solver, self.trial.flow, self.objective(target), self.start(target))
        return replace(found, encoder_passes=self.start.forward_passes * len(target))

    def encode_commonly(self, target: Observed) -> Encoding:
        """Latents by the common encoder, which is the same for every trial."""
        start_BL = target.value_BD.new_zeros(len(target), self.trial.model.latent_dim)
        return _solved(COMMON_SOLVER, COMMON_FLOW, Objective(self.decoder, self.loss, target), start_BL)

    @torch.no_grad()
    def decode(self, latent_BL: Tensor) -> Tensor:
        """Reconstructions: the mean of the likelihood, shape (B, D), scaled as the samples are."""
        return self.loss.mean(self.decoder(latent_BL))

    @torch.no_grad()
    def predict(self, target: Observed, latent_BL: Tensor) -> Tensor:
        """What the decoder should give for samples, missing values included, shape (B, D).

        Args:
            target: the samples; what is missing of them is to be imputed.
            latent_BL: their latents.
        """
        output_BD: Tensor = self.decoder(latent_BL)
        return output_BD

    def state_dict(self) -> dict[str, Any]:
        averaged = {} if self.averaged is None else {"averaged": self.averaged.state_dict()}
        return {"networks": self.networks.state_dict(), "optimiser": self.optimiser.state_dict(), **averaged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.networks.load_state_dict(state["networks"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])


class Averaged:
    """A running average of the weights that an optimiser steps on; see `optim.Average`.

    The networks hold either the average or the weights that training goes on from, and this holds the other.
    """

    def __init__(self, optimiser: torch.optim.Optimizer, settings: Average) -> None:
        self.window = settings.window
        self.weights = [weight for group in optimiser.param_groups for weight in group["params"]]
        self.others = [weight.detach().clone() for weight in self.weights]
        self.steps = 0
        optimiser.register_step_post_hook(self._stepped)

    def swap(self) -> None:
        """Exchange what the networks hold."""
        for place, weight in enumerate(self.weights):
            weight.data, self.others[place] = self.others[place], weight.data

    @torch.no_grad()
    def _stepped(self, *_: Any) -> None:
        self.steps += 1
        share = (self.window + 1) / (self.steps + self.window)
        torch._foreach_lerp_(self.others, [weight.data for weight in self.weights], share)

    def state_dict(self) -> dict[str, Any]:
        """What training goes on from, and the number of steps."""
        return {"weights": self.others, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for other, saved in zip(self.others, state["weights"], strict=True):
            other.copy_(saved)


def _solved(solver: Solver, flow: Flow, objective: Objective, start_BL: Tensor) -> Encoding:
    """Latents by a solver from a start. A sample whose start is not finite has a loss of NaN."""
    lost_B = ~start_BL.isfinite().all(-1)
    solution = solver.solve(flow, objective, start_BL.masked_fill(lost_B[:, None], 0.0))
    loss_B, forward_B = solution.loss_B, solution.nfe_forward_B
    if not objective.exact:  # of what was minimised, the loss alone is reported, in full precision
        lost_B = lost_B | ~loss_B.isfinite()
        with torch.no_grad():
            loss_B = objective.loss(objective.decoder(solution.latent_BL), objective.target)
        forward_B = forward_B + 1
    loss_B = loss_B.masked_fill(lost_B, torch.nan)
    common = flow == COMMON_FLOW and solver.for_encoding() == COMMON_SOLVER
    common = common and objective.exact and not bool(start_BL.any())
    return Encoding(solution.latent_BL, loss_B, forward_B, solution.nfe_backward_B, solution.result_B, common)


class Method(Component, ABC):
    """Settings of a method. In a configuration, `method: gfe` is short for `method: {name: gfe}`."""

    learner: ClassVar[type[Learner]]
    linear: ClassVar[bool] = False
    """Whether its decoder is linear whatever the settings: the least that a nonlinear one has to improve on."""

    def check_trial(self, trial: Trial) -> None:
        """Raise `ValueError` if this method cannot serve the trial's other choices."""
        if trial.target is not None and not isinstance(self, TargetedMethod):
            raise ValueError(
                f"target.name: given {trial.target.name!r} with method={self.name}, which pulls its latents to none; "
                "allowed: null"
            )

    def create(self, trial: Trial, shape: Shape, device: torch.device) -> Learner:
        """A fresh learner for samples of a shape, its weights drawn from the trial's seed."""
        return self.learner(trial, shape, device)


class TargetedMethod(Method):
    """A method that pulls its latents to `trial.target`."""

    implies: ClassVar[Mapping[str, Any]] = {"target.name": "standard_normal"}
