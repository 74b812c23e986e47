"""The method contract: what `train` needs of a way to train a decoder.

Shapes: B batch, L latent, D values of a sample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from gfe_study.config import Component
from gfe_study.likelihoods.base import Loss, Observed
from gfe_study.solvers.objective import Objective
from gfe_study.starts.base import Starter

if TYPE_CHECKING:
    from gfe_study.config import Trial
    from gfe_study.data.base import Shape, Split
    from gfe_study.models.base import Decoder
    from gfe_study.targets.base import Target


class Diverged(ArithmeticError):
    """The training loss of a batch is NaN or infinite. Raised before the optimiser steps on it."""


@dataclass(frozen=True)
class Encoding:
    """Latents of a batch and what finding them cost, per sample."""

    latent_BL: Tensor
    loss_B: Tensor
    nfe_forward_B: Tensor
    nfe_backward_B: Tensor
    result_B: Tensor | None = None
    """Why each sample's solver stopped, as `Result` codes; None of an encoder."""


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

    encodings: ClassVar[tuple[str, ...]] = ()
    """Further ways to encode than the method's own; each becomes the metric `<name>_test_loss`."""

    encodes_by_flow: ClassVar[bool] = False
    """Whether its own encoding is `encode_by_flow`."""

    def __init__(self, trial: Trial, shape: Shape, device: torch.device) -> None:
        self.trial = trial
        self.shape = shape = self.seen_as(shape)
        self.loss: Loss = trial.likelihood.loss().to(device)
        with seeded(trial.seed, "decoder"):
            self.decoder = self.build_decoder(shape).to(device)
        self.networks = nn.ModuleDict({"decoder": self.decoder, "likelihood": self.loss})
        self.networks.update(self.build_networks(shape, device))
        with seeded(trial.seed, "encoder"):
            encoder = dict(self.networks.items()).get("encoder")
            self.start: Starter = trial.start.create(trial.model, shape, encoder).to(device)
        self.networks["start"] = self.start
        self.optimiser: torch.optim.Optimizer = trial.optim.build(self.trained())

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

    @abstractmethod
    def update(self, target: Observed, index_B: Tensor, updates: int) -> Encoding:
        """One batch of training.

        Args:
            target: samples.
            index_B: their places in the training split.
            updates: steps of the optimiser.

        Returns the encoding whose `loss_B` is the training loss before the (last) step; the counts include
        the decoder's pass for its weights.

        Raises:
            Diverged: the loss of an update is not finite; that update has not touched the weights.
        """

    @abstractmethod
    def encode(self, target: Observed, encoding: str | None = None) -> Encoding:
        """Latents of samples by the method's own encoding, or by one of `encodings`."""

    def objective(self, target: Observed, index_B: Tensor | None = None) -> Objective:
        """What the latents of samples are found by minimising; `index_B` as of `update`, None for other samples."""
        return Objective(self.decoder, self.loss, target, precision=self.trial.prior_precision)

    def encode_by_flow(self, target: Observed) -> Encoding:
        """Latents by following the trial's flow with its solver from its start."""
        objective = self.objective(target)
        start_BL = self.start(target)
        lost_B = ~start_BL.isfinite().all(-1)
        solution = self.trial.solver.solve(self.trial.flow, objective, start_BL.masked_fill(lost_B[:, None], 0.0))
        loss_B, forward_B = solution.loss_B, solution.nfe_forward_B
        if not objective.plain:  # of what was minimised, the loss alone is reported
            lost_B = lost_B | ~loss_B.isfinite()
            with torch.no_grad():
                loss_B = self.loss(self.decoder(solution.latent_BL), target)
            forward_B = forward_B + 1
        loss_B = loss_B.masked_fill(lost_B, torch.nan)
        return Encoding(solution.latent_BL, loss_B, forward_B, solution.nfe_backward_B, solution.result_B)

    @torch.no_grad()
    def decode(self, latent_BL: Tensor) -> Tensor:
        """Reconstructions: the mean of the likelihood, shape (B, D), scaled as the samples are."""
        return self.loss.mean(self.decoder(latent_BL))

    def state_dict(self) -> dict[str, Any]:
        return {"networks": self.networks.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.networks.load_state_dict(state["networks"])
        self.optimiser.load_state_dict(state["optimiser"])


class Method(Component, ABC):
    """Settings of a method. In a configuration, `method: gfe` is short for `method: {name: gfe}`."""

    learner: ClassVar[type[Learner]]

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
