"""The Jensen–Shannon divergence between encoded images, as a kernel density estimate, and a known target.

arXiv:2010.15283, eq. 1–3. Shapes: B points, M centres, L latent.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from gfe_study.density.kde import log_density
from gfe_study.targets.base import Target


def log_ratio(
    latent_BL: Tensor, centre_ML: Tensor, target: Target, bandwidth: float, own_B: Tensor | None = None
) -> Tensor:
    """log p̂_e(z)/p_t(z), nats, shape (B,); differentiable in z alone. Arguments as of `kde.log_density`."""
    return log_density(latent_BL, centre_ML, bandwidth, own_B) - target.log_density(latent_BL)


def encoded_term(
    latent_BL: Tensor, centre_ML: Tensor, target: Target, bandwidth: float, own_B: Tensor | None = None
) -> Tensor:
    """log[p̂_e(z)/(p_t(z) + p̂_e(z))] of each encoded image, shape (B,): what eq. 3 adds to its loss, times λ.

    It falls where the target is denser than what is encoded, so that latents move there. Evaluated as
    log σ(log p̂_e − log p_t), which neither overflows nor loses digits.
    """
    return F.logsigmoid(log_ratio(latent_BL, centre_ML, target, bandwidth, own_B))


def jsd(encoded_BL: Tensor, drawn_BL: Tensor, centre_ML: Tensor, target: Target, bandwidth: float) -> Tensor:
    """The divergence between p̂_e and p_t, nats: log 2 + J/2 of eq. 1–2, estimated with the given samples.

    0 where the two agree, log 2 where they do not overlap; an estimate from samples may lie a little beside.

    Args:
        encoded_BL: samples z′ of p_e; the result is differentiable in them.
        drawn_BL: samples z″ of p_t.
        centre_ML: other samples of p_e, which the density estimate is made of.
        target: p_t.
        bandwidth: h.
    """
    encoded = encoded_term(encoded_BL, centre_ML, target, bandwidth).mean()
    drawn = F.logsigmoid(-log_ratio(drawn_BL, centre_ML, target, bandwidth)).mean()
    return math.log(2) + (encoded + drawn) / 2
