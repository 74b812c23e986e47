"""Variational autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from gfe_study.likelihoods.base import Observed
from gfe_study.methods.ae import AutoencoderLearner, EncoderMethod, passes
from gfe_study.methods.base import Batch, Diverged, TargetedMethod, Updated, seeded

if TYPE_CHECKING:
    from gfe_study.config import Trial
    from gfe_study.data.split import Shape


class VAELearner(AutoencoderLearner):
    """The evidence lower bound, per observed value: ℓ(y, D(z)) + β KL(q(z|y) ‖ N(0, I))/n, n values being observed.

    z is drawn from q(z|y) = N(μ(y), σ²(y)); its latent of a sample is μ(y).
    """

    settings: VAE

    def build_networks(self, shape: Shape, device: torch.device) -> dict[str, nn.Module]:
        with seeded(self.trial.seed, "encoder"):
            both = self.trial.model.encoder(shape, outputs=2 * self.trial.model.latent_dim).to(device)
        self.posterior = Posterior(both)
        self.encoder = self.posterior
        return {"encoder": self.posterior}

    @property
    def draws(self) -> int:
        """Latents that are drawn per sample in training."""
        return 1

    def bound(self, target: Observed, mean_BL: Tensor, log_variance_BL: Tensor) -> tuple[Tensor, Tensor]:
        """ℓ at what is drawn from q(z|y), and the bound that is minimised, both (B,) and per observed value.

        Noise is drawn on the CPU, so that a trial draws the same on every device.
        """
        noise_BL = torch.randn(mean_BL.shape).to(mean_BL)
        loss_B = self.loss(self.decoder(mean_BL + (log_variance_BL / 2).exp() * noise_BL), target)
        divergence_B = (log_variance_BL.exp() + mean_BL.square() - 1 - log_variance_BL).sum(1) / 2
        return loss_B, loss_B + self.settings.beta * divergence_B / target.count_B

    def update(self, batches: Sequence[Batch], new: int) -> Updated:
        for batch in batches:
            target = batch.target
            self.optimiser.zero_grad(set_to_none=True)
            with self.dropout():
                mean_BL, log_variance_BL = self.posterior.moments(self.noisy_input(target))
                loss_B, total_B = self.bound(target, mean_BL, log_variance_BL)
            if not bool(total_B.isfinite().all()):
                raise Diverged
            target.weighed(total_B).sum().backward()
            self.optimiser.step()
        self.start.remember(mean_BL[:new].detach(), target[:new], batch.index_B[:new])
        forward, backward = passes(batches)
        evaluations = self.draws * forward, self.draws * backward
        return Updated(mean_BL[:new].detach(), loss_B[:new].detach(), *evaluations, int(forward + backward))


class Posterior(nn.Module):
    """An encoder with 2L outputs: mean and logarithm of the variance of q(z|y)."""

    def __init__(self, both: nn.Module) -> None:
        super().__init__()
        self.both = both

    def moments(self, input_BD: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ², each (B, L)."""
        mean_BL, log_variance_BL = self.both(input_BD).chunk(2, dim=1)
        return mean_BL, log_variance_BL

    def forward(self, input_BD: Tensor) -> Tensor:
        return self.moments(input_BD)[0]


class VAE(TargetedMethod, EncoderMethod):
    """Variational autoencoder, arXiv:1312.6114: the training loss is of a drawn latent, every other one of the mean."""

    colour = "#717581"

    learner = VAELearner
    beta: float = Field(1.0, ge=0)
    """Weight of the divergence; 1 is the evidence lower bound."""

    def check_trial(self, trial: Trial) -> None:
        super().check_trial(trial)
        if trial.target is not None and trial.target.name != "standard_normal":
            raise ValueError(
                f"target.name: given {trial.target.name!r} with method=vae, whose divergence is in closed form for "
                "one normal; allowed: standard_normal"
            )
        if self.latent_noise is not None:
            raise ValueError(
                f"method.latent_noise: given {self.latent_noise} with method=vae, which draws its latents from q(z|y); "
                "allowed: null"
            )
