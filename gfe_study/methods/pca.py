"""Principal component analysis: the linear decoder in closed form, a baseline beside the trained ones.

Shapes: N training samples seen, B batch, L latent, D values of a sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gfe_study.likelihoods.base import Observed
from gfe_study.likelihoods.gaussian import Gaussian, GaussianLoss
from gfe_study.methods.base import Encoding
from gfe_study.methods.closed_form import ClosedForm, ClosedFormLearner

if TYPE_CHECKING:
    from gfe_study.config import Trial
    from gfe_study.data.split import Shape

ROUNDS = 200
"""Of expectation maximisation, at most."""
SETTLED = 1e-5
"""Relative change of the noise at which it ends."""


class PCALearner(ClosedFormLearner):
    """W the principal axes and μ the mean of the training samples seen so far, in the scale of probabilistic PCA.

    Latents are the exact minimiser of what solvers minimise: least squares over a sample's observed values, the
    projection onto the axes where all are observed, or with `prior_precision` the posterior mean.
    """

    settings: PCA

    loss: GaussianLoss

    def build_networks(self, shape: Shape, device: torch.device) -> dict[str, nn.Module]:
        self.seen = ValueRange().to(device)
        return {"range": self.seen} if self.settings.clip else {}

    def predict(self, target: Observed, latent_BL: Tensor) -> Tensor:
        output_BD = super().predict(target, latent_BL)
        return output_BD.clamp(self.seen.low, self.seen.high) if self.settings.clip else output_BD

    def axes(self, target: Observed) -> tuple[Tensor, Tensor, Tensor]:
        """W (D, L), μ (D,) and the variance σ² of the noise."""
        value_ND, latent_dim = target.value_BD.double(), self.trial.model.latent_dim
        if target.known_BD is None:
            return principal_axes(value_ND, latent_dim)
        ridge, rounds = self.settings.ridge or 0.0, self.settings.rounds or ROUNDS
        return axes_with_gaps(value_ND, target.known_BD, latent_dim, ridge, rounds)

    def fit(self, target: Observed) -> None:
        axes_DL, mean_D, noise = self.axes(target)
        if self.settings.clip:
            known = target.known(target.value_BD)
            self.seen.load_state_dict({"low": known.min(), "high": known.max()})
        self.linear.weight.copy_(axes_DL)
        self.linear.bias.copy_(mean_D)
        self.loss.learn(noise)

    @torch.no_grad()
    def encode(self, target: Observed, encoding: str | None = None) -> Encoding:
        none_B = torch.zeros(len(target), device=target.value_BD.device)
        latent_BL = self._latents(target)
        return Encoding(latent_BL, self.loss(self.decoder(latent_BL), target), none_B, none_B)

    def _latents(self, target: Observed) -> Tensor:
        weight_DL, mean_D = self.linear.weight.double(), self.linear.bias.double()
        if (instrument := target.instrument) is not None:  # what is measured is linear, too
            weight_DL, mean_D = instrument.apply(weight_DL.t()).t(), instrument.apply(mean_D[None])[0]
            target = replace(target, instrument=None, memo={})
        value_BD = target.value_BD.double() - mean_D
        curved_BD = self.loss.curvature(target.value_BD, target).double()
        count_B = target.count_B
        curved_BD = curved_BD * (count_B if isinstance(count_B, int) else count_B[:, None])
        matrix_BLL = torch.einsum("bd,dl,dm->blm", curved_BD, weight_DL, weight_DL)
        right_BL1 = ((curved_BD * value_BD) @ weight_DL)[..., None]
        if self.trial.prior_precision is None:  # fewer values than components may be observed
            latent_BL1 = torch.linalg.pinv(matrix_BLL, hermitian=True) @ right_BL1
        else:
            matrix_BLL = matrix_BLL + self.trial.prior_precision * torch.eye(weight_DL.shape[1]).to(matrix_BLL)
            latent_BL1 = torch.cholesky_solve(right_BL1, torch.linalg.cholesky(matrix_BLL))
        latent_BL: Tensor = latent_BL1[..., 0].to(target.value_BD.dtype)
        return latent_BL


class ValueRange(nn.Module):
    """The lowest and the highest value that was observed in training."""

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))


def principal_axes(value_ND: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The maximum of probabilistic PCA's likelihood (Tipping & Bishop 1999), of complete samples.

    Returns W (D, L), the eigenvectors of the covariance times √(λ − σ²), zero beyond the rank; the mean (D,); and σ²,
    the mean of the other eigenvalues.
    """
    size = value_ND.shape[1]
    mean_D = value_ND.mean(0)
    _, singular, axes_KD = torch.linalg.svd(value_ND - mean_D, full_matrices=False)
    variance_K = singular.square() / len(value_ND)
    kept = min(count, len(variance_K))
    noise = variance_K[kept:].sum() / (size - kept) if size > kept else variance_K.new_zeros(())
    weight_DL = value_ND.new_zeros(size, count)
    weight_DL[:, :kept] = axes_KD[:kept].t() * (variance_K[:kept] - noise).clamp(min=0).sqrt()
    return weight_DL, mean_D, noise


def axes_with_gaps(
    value_ND: Tensor, known_ND: Tensor, count: int, ridge: float = 0.0, rounds: int = ROUNDS
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of samples with missing values, by expectation maximisation.

    Per sample, over its observed values: M = WᵀW + σ²I, ⟨z⟩ = M⁻¹Wᵀ(y − μ), ⟨zzᵀ⟩ = σ²M⁻¹ + ⟨z⟩⟨z⟩ᵀ. Per value, W and μ
    solve one linear system over the samples that observe it. A value that no sample observes keeps the mean 0.

    A ridge ρ adds ρI to the part of W in that system, as a prior N(0, σ²/ρ I) of its rows would.
    """
    number, size = value_ND.shape
    seen_ND = known_ND.to(value_ND)
    value_ND = value_ND * seen_ND
    filled_mean_D = value_ND.sum(0) / seen_ND.sum(0).clamp(min=1)
    weight_DL, _, noise = principal_axes(torch.where(known_ND, value_ND, filled_mean_D), count)
    both_DH = torch.cat([weight_DL, filled_mean_D[:, None]], 1)
    total = seen_ND.sum()
    # Of the variance, so that units make no difference; a little above 0, for values that are all the same.
    variance = ((value_ND - filled_mean_D) * seen_ND).square().sum() / total
    least = float((1e-9 * variance).clamp(min=1e-200))
    noise = noise.clamp(min=1e3 * least)
    identity_LL = torch.eye(count).to(value_ND)
    # What no sample, or fewer than the unknowns, observe is held by a little ridge in any case.
    ridge_HH = torch.diag(value_ND.new_tensor([1e-9 + ridge] * count + [1e-9]))
    gram_NM = _grams(seen_ND, weight_DL)
    for _ in range(rounds):
        weight_DL, mean_D = both_DH[:, :-1], both_DH[:, -1]
        inverse_NLL = torch.linalg.inv(gram_NM.view(number, count, count) + noise * identity_LL)
        latent_NL = (inverse_NLL @ (((value_ND - mean_D) * seen_ND) @ weight_DL)[..., None])[..., 0]
        # With 1 beside z, so that the mean is solved for together with the axes.
        one_NH = torch.cat([latent_NL, latent_NL.new_ones(number, 1)], 1)
        moment_NHH = one_NH[:, :, None] * one_NH[:, None, :]
        moment_NHH[:, :count, :count] += noise * inverse_NLL
        system_DHH = (seen_ND.t() @ moment_NHH.flatten(1)).view(size, count + 1, count + 1)
        system_DHH = system_DHH + ridge_HH
        both_DH = torch.linalg.solve(system_DHH, value_ND.t() @ one_NH)
        fit_ND = one_NH @ both_DH.t()
        gram_NM = _grams(seen_ND, both_DH[:, :-1])
        spread = noise * (gram_NM * inverse_NLL.flatten(1)).sum()
        old, noise = noise, ((((value_ND - fit_ND) * seen_ND).square().sum() + spread) / total).clamp(min=least)
        if bool((noise - old).abs() < SETTLED * old):
            break
    return both_DH[:, :-1], both_DH[:, -1], noise


def _grams(seen_ND: Tensor, weight_DL: Tensor) -> Tensor:
    """WᵀW over the rows that each sample observes, flattened: (N, L²)."""
    return seen_ND @ (weight_DL[:, :, None] * weight_DL[:, None, :]).flatten(1)


class PCA(ClosedForm):
    """Principal component analysis, with as many components as `model.latent_dim`; of data with missing values,
    probabilistic PCA by expectation maximisation. The rest of `model`, `optim`, `solver` and `start` plays no part."""

    colour = "#94a4a2"
    learner = PCALearner
    linear = True
    implies: ClassVar[Mapping[str, Any]] = {"likelihood.name": "gaussian"}

    ridge: Annotated[float, Field(ge=0)] | None = None
    """ρ of a prior N(0, σ²/ρ) of every entry of W, for data with missing values; it counts like ρ samples. None: no
    prior."""
    rounds: Annotated[int, Field(gt=0)] | None = None
    """Largest number of rounds of expectation maximisation, for data with missing values; None: 200."""
    clip: Literal[True] | None = None
    """True keeps what is imputed within the range of all values observed in training, like that of grey levels."""

    def check_trial(self, trial: Trial) -> None:
        super().check_trial(trial)
        if not isinstance(trial.likelihood, Gaussian) or trial.likelihood.sigma in ("data", "each"):
            given = trial.likelihood.name
            raise ValueError(
                f"likelihood.name: given {given!r} with method={self.name}, which is least squares with errors of one "
                "size; allowed: gaussian, with likelihood.sigma a number or learned"
            )
