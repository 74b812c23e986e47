"""Limited-memory BFGS, per sample.

Shapes: B batch, K samples still active, L latent, M remembered pairs, W slope window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from gfe_study.solvers.base import full_like_batch
from gfe_study.solvers.descent import first_fields
from gfe_study.solvers.line_search import Directed, LineSearch, directed
from gfe_study.solvers.objective import Objective


@dataclass
class _Candidate(Directed):
    """`direction` is Δu, and `promise` ⟨Δu, ∇_u ℓ⟩."""

    memory: Tensor
    """The last M accepted Δu, the newest last, then their Δ∇_u ℓ, then ∇_u ℓ itself; shape (K, 2M + 1, L)."""
    inverse: Tensor
    """R⁻¹ of `inverse_hessian_times`, shape (K, M, M); row and column of a pair that is not used are zero."""
    scale: Tensor
    """γ, the inverse Hessian that the pairs correct."""


class LBFGS(LineSearch[_Candidate]):
    """Minimises ℓ along the limited-memory BFGS direction −H ∇ℓ (Liu & Nocedal 1989), per sample; no flow.

    It works on u, z = P u, where P Pᵀ is the inverse of the Gauss–Newton matrix Jᵀ C J of the decoder at z = 0, C the
    curvature of the likelihood there, with a share `damping` of its mean diagonal added (`Objective.metric`). Neither
    depends on a sample, so P is found once for all of them; in u the curvatures of a decoder differ a few times
    where in z they differ a hundredfold, and half the evaluations reach the same loss.

    H is the inverse BFGS matrix of the last `pairs` steps over γ I, γ = ⟨Δu, Δg⟩ / ⟨Δg, Δg⟩ of the newest, in
    the compact form of Byrd, Nocedal & Schnabel (1994, eq. 3.1). Steps 1, β, β², … until ℓ falls by σ times what the
    slope promises (Armijo). A pair without positive curvature is not used; a direction that does not descend forgets
    all pairs. One decoder evaluation and one pullback per candidate, no pullback at the last that `max_nfe` allows;
    finding P counts as one evaluation per sample.
    """

    colour = "#832db6"
    example = {"max_nfe": 14, "min_slope": 1e-4}

    pairs: int = Field(6, ge=1)
    """Pairs (Δu, Δg) remembered."""
    damping: float = Field(1.0, gt=0)
    """What is added to the Gauss–Newton matrix, as a share of its mean diagonal. Much more makes P the identity times a
    number; much less makes steps along what the decoder hardly uses as long as along what it uses most."""
    beta: float = Field(0.2, gt=0, lt=1)
    """β, the factor by which a rejected step shrinks."""
    s_initial: float = Field(1.0, gt=0)
    """γ of the first step, before there is any curvature; 1 is the damped Gauss–Newton step of a flat decoder."""
    sigma: float = Field(1e-4, ge=0, lt=0.5)
    """σ, the Armijo constant."""
    window: int = Field(3, ge=1)
    """Accepted steps over which the slope of `min_slope` is taken."""
    max_backtracks: int = Field(20, ge=0)
    """Candidates that may fail along one direction."""
    max_nfe: int = Field(10_000, gt=1)
    """Decoder evaluations per sample, that of P included, after which it stops wherever it is."""

    refused = "it minimises the loss and follows no flow"

    def _first(self, objective: Objective, start_BL: Tensor) -> _Candidate:
        first = first_fields(objective, start_BL)
        (count, latent), pairs = start_BL.shape, self.pairs
        slope = first["grad"] @ objective.metric(latent, self.damping)
        return _Candidate(
            **directed(first, -self.s_initial * slope, -self.s_initial * slope.square().sum(1), self.window),
            memory=torch.cat([start_BL.new_zeros(count, 2 * pairs, latent), slope[:, None]], 1),
            inverse=start_BL.new_zeros(count, pairs, pairs),
            scale=full_like_batch(start_BL, self.s_initial),
        )

    def _move(self, objective: Objective, active: _Candidate) -> tuple[Tensor, Tensor]:
        move = active.step[:, None] * active.direction
        return move, torch.addmm(active.latent, move, objective.metric(move.shape[1], self.damping).t())

    def _turn(self, objective: Objective, active: _Candidate, accepted: Tensor, move: Tensor, grad: Tensor) -> None:
        """Remember the pair of an accepted step, and choose the next direction."""
        pairs, old, slope = self.pairs, active.memory, grad @ objective.metric(grad.shape[1], self.damping)
        taken = accepted[:, None]
        turn = slope - old[:, -1]
        memory = torch.cat([old[:, 1:pairs], move[:, None], old[:, pairs + 1 : -1], turn[:, None], slope[:, None]], 1)
        gram = memory @ memory.mT
        product, norm = gram[:, pairs - 1, -2], gram[:, -2, -2]
        convex = product > torch.finfo(norm.dtype).eps * norm
        scale = torch.where(convex, product / norm, active.scale)
        inverse = newer_inverse(active.inverse, gram[:, :pairs, -2:-1], convex)
        factors = inverse_hessian_factors(gram, inverse, scale)
        direction = (factors.mT @ memory)[:, 0]
        promise = (factors * gram[..., -1:]).sum((1, 2))
        lost = ~(promise < 0)[:, None]
        direction = torch.where(lost, -scale[:, None] * slope, direction)
        promise = torch.where(lost[:, 0], -scale * gram[:, -1, -1], promise)
        active.direction = torch.where(taken, direction, active.direction)
        active.promise = torch.where(accepted, promise, active.promise)
        active.scale = torch.where(accepted, scale, active.scale)
        active.memory = torch.where(taken[..., None], memory, old)
        active.inverse = torch.where(taken[..., None], inverse.masked_fill_(lost[..., None], 0.0), active.inverse)


def newer_inverse(inverse_KMM: Tensor, products_KM1: Tensor, used_K: Tensor) -> Tensor:
    """R⁻¹ without its oldest pair, and with a new one.

    R is the upper triangle of S Yᵀ, pairs in order of age: the inverse without the oldest is what is left of the
    inverse, and the new column of [[R, r], [0, ρ]]⁻¹ is [−R⁻¹ r; 1] / ρ.

    Args:
        inverse_KMM: R⁻¹ of the pairs so far.
        products_KM1: r and ρ, ⟨Δz_i, Δg⟩ of the pairs to be, Δg of the new one.
        used_K: whether the new pair is to be used.
    """
    inverse = F.pad(inverse_KMM[:, 1:, 1:], (0, 1, 0, 1))
    column = inverse @ products_KM1
    column[:, -1] = -1.0
    inverse[..., -1:] = column * (-1.0 / products_KM1[:, -1:]).masked_fill_(~used_K[:, None, None], 0.0)
    return inverse


def inverse_hessian_factors(gram_KNN: Tensor, inverse_KMM: Tensor, scale_K: Tensor) -> Tensor:
    """c with −H g = cᵀ [S; Y; g], shape (K, N, 1), H the inverse BFGS matrix of pairs S = Δz, Y = Δg over γ I.

    With R the upper triangle of S Yᵀ and D its diagonal: H g = γ g + Sᵀ v − γ Yᵀ u, where R u = S g and
    Rᵀ v = (D + γ Y Yᵀ) u − γ Y g.

    Args:
        gram_KNN: inner products of the N = 2M + 1 rows of [S; Y; g].
        inverse_KMM: R⁻¹.
        scale_K: γ.
    """
    pairs, scale = inverse_KMM.shape[1], scale_K[:, None, None]
    u = inverse_KMM @ gram_KNN[:, :pairs, -1:]
    turned = gram_KNN[:, pairs:-1, pairs:-1] @ u - gram_KNN[:, pairs:-1, -1:]
    diagonal = gram_KNN.diagonal(pairs, 1, 2)[:, :pairs, None]
    v = inverse_KMM.mT @ torch.addcmul(scale * turned, diagonal, u)
    return torch.cat([-v, scale * u, -scale], 1)
