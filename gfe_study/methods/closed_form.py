"""Baselines whose decoder is found at once, of all training samples seen, without steps of an optimiser.

Shapes: N training samples, B batch, L latent, D values of a sample.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gfe_study.data.split import Split
from gfe_study.likelihoods.base import Observed
from gfe_study.methods.base import Batch, Learner, Method, Updated
from gfe_study.models.mlp import MLPDecoder

if TYPE_CHECKING:
    from gfe_study.config import Trial
    from gfe_study.data.split import Shape


class ClosedFormLearner(Learner):
    """D(z) = Wz + μ, refitted before each evaluation to the samples seen so far; repetitions do not count."""

    decoder: MLPDecoder
    descends = False
    train: Split
    seen_N: torch.Tensor

    def build_decoder(self, shape: Shape) -> MLPDecoder:
        return MLPDecoder([self.trial.model.latent_dim, shape.size])

    @property
    def linear(self) -> nn.Linear:
        """W and μ."""
        (layer,) = self.decoder.linears()
        return layer

    def see(self, train: Split) -> None:
        self.train, self.seen_N = train, torch.zeros(len(train), dtype=torch.bool)
        self.fitted = False

    def update(self, batches: Sequence[Batch], new: int) -> Updated:
        target, index_B = batches[0]
        self.seen_N[index_B[:new].cpu()] = True
        if not self.fitted:
            self.settle()
        encoding = self.encode(target[:new])
        return Updated(encoding.latent_BL, encoding.loss_B, float(new), 0.0)  # for the loss; latents need none

    @torch.no_grad()
    def settle(self) -> None:
        self.fit(self.train.batch(self.seen_N.numpy().nonzero()[0], self.linear.weight.device))
        self.fitted = True

    @abstractmethod
    def fit(self, target: Observed) -> None:
        """Find W, μ and what the likelihood learns, of these samples."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seen": self.seen_N}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.seen_N, self.fitted = state["seen"].cpu(), True


class ClosedForm(Method):
    """A method that no solver, start or optimiser plays a part in."""

    def check_trial(self, trial: Trial) -> None:
        super().check_trial(trial)
        if trial.data.observe is not None and "train" in trial.data.observe.splits:
            raise ValueError(
                f"data.observe.splits: given with train and method={self.name}, which is fitted to whole samples; "
                "allowed: [val, test]"
            )
        for section, only in (("gradient", "approx"), ("start", "zero")):
            if (name := getattr(trial, section).name) != only:
                raise ValueError(
                    f"{section}.name: given {name!r} with method={self.name}, which is solved in closed form; "
                    f"allowed: {only}"
                )
