"""The mean of every value, whatever the sample: what any other method has to beat.

Shapes: N training samples seen, B batch, D values of a sample.
"""

from __future__ import annotations

import torch

from gfe_study.likelihoods.base import Observed
from gfe_study.likelihoods.location import LocationLoss
from gfe_study.methods.base import Encoding
from gfe_study.methods.closed_form import ClosedForm, ClosedFormLearner

PRIOR_SAMPLES = 0.1
"""How many samples that are the mean of everything stand beside those seen: a pixel that was always black is not
impossible to be white, and a value that was never observed has a mean."""


class MeanLearner(ClosedFormLearner):
    """D(z) = μ, with E[y | μ] the mean of what was observed of each value; latents are 0."""

    def fit(self, target: Observed) -> None:
        value_ND = target.value_BD.double()
        known_ND = torch.ones_like(value_ND) if target.known_BD is None else target.known_BD.double()
        overall = (value_ND * known_ND).sum() / known_ND.sum()
        count_D = known_ND.sum(0)
        mean_D = ((value_ND * known_ND).sum(0) + PRIOR_SAMPLES * overall) / (count_D + PRIOR_SAMPLES)
        self.linear.weight.zero_()
        self.linear.bias.copy_(self.loss.output_of(mean_D))
        if isinstance(self.loss, LocationLoss):
            square_ND = (value_ND - mean_D).square() * known_ND
            by_value = square_ND.sum(0) / known_ND.sum(0).clamp(min=1)
            self.loss.learn(by_value if self.loss.by_value else square_ND.sum() / known_ND.sum())

    @torch.no_grad()
    def encode(self, target: Observed, encoding: str | None = None) -> Encoding:
        latent_BL = target.value_BD.new_zeros(len(target), self.trial.model.latent_dim)
        none_B = torch.zeros(len(target), device=latent_BL.device)
        return Encoding(latent_BL, self.loss(self.decoder(latent_BL), target), none_B, none_B)


class Mean(ClosedForm):
    """The mean of every value over the training samples, the lower end of every comparison. `model`, `optim`, `solver`
    and `start` play no part."""

    colour = "#a96b59"
    learner = MeanLearner
