"""How well latents, and the values that they are decoded to, are known: Laplace's approximation at z*.

Shapes: B batch, L latent, D values of a sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gfe_study.likelihoods.base import Observed

if TYPE_CHECKING:
    from gfe_study.methods.base import Learner


class Posterior(NamedTuple):
    """A normal approximation.

    Attributes:
        covariance_BLL: of the latents, (Σ_j w_j c_j J_jJ_jᵀ + λI)⁻¹ with c the curvature of the likelihood.
        std_BD: standard deviation of each value given what was observed, of its mean and of the likelihood together;
            scaled as the samples are.
    """

    covariance_BLL: Tensor
    std_BD: Tensor


@torch.no_grad()
def posterior_of(learner: Learner, target: Observed, latent_BL: Tensor, predicted: Observed | None = None) -> Posterior:
    """What is known of samples whose latents were found. `prior_precision` of the trial must not be None.

    Args:
        learner: the method that found them.
        target: the samples, without what is to be predicted.
        latent_BL: their latents.
        predicted: the same samples with what is to be predicted, whose errors the data may give; None: `target`.
    """
    assert learner.trial.prior_precision is not None
    if learner.members:
        return _of_ensemble(learner, target, latent_BL, predicted)
    output_BD, jacobian_BLD, normal_BLL = learner.objective(target).curvature(latent_BL)
    count_B = torch.as_tensor(target.count_B, dtype=torch.float64, device=latent_BL.device)
    # In float64: what few values say of many latents is nothing but the prior in most directions.
    covariance_BLL = torch.linalg.inv(normal_BLL.double() * count_B.reshape(-1, 1, 1))
    of_mean_BD = ((covariance_BLL.to(jacobian_BLD) @ jacobian_BLD) * jacobian_BLD).sum(1)
    if predicted is None and target.instrument is None:
        predicted = target
    of_errors_BD = learner.loss.variance(output_BD, predicted)
    std_BD = (learner.loss.mean_slope(output_BD).square() * of_mean_BD + of_errors_BD).sqrt()
    return Posterior(covariance_BLL.to(latent_BL), std_BD)


def _of_ensemble(learner: Learner, target: Observed, latent_BL: Tensor, predicted: Observed | None) -> Posterior:
    """The moments of an equal mixture of its members' normals: mean of the variances plus variance of the means."""
    parts = [*zip(learner.members, latent_BL.chunk(len(learner.members), 1), strict=True)]
    found = [posterior_of(member, target, part_BL, predicted) for member, part_BL in parts]
    means = torch.stack([member.decode(part_BL) for member, part_BL in parts])
    within_BD = torch.stack([each.std_BD.square() for each in found]).mean(0)
    covariances = [torch.stack(rows) for rows in zip(*(each.covariance_BLL for each in found), strict=True)]
    return Posterior(
        torch.stack([torch.block_diag(*each) for each in covariances]),
        (within_BD + means.var(0, correction=0)).sqrt(),
    )
