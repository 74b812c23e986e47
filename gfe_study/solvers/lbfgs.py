"""Limited-memory BFGS, per sample.

Shapes: B batch, K samples still active, L latent, M remembered pairs, W slope window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from gfe_study.solvers.base import Result, full_like_batch
from gfe_study.solvers.descent import Active, DescentSolver, Ended, first_fields, rows_of
from gfe_study.solvers.objective import Objective


@dataclass
class _Candidate(Active):
    direction: Tensor
    """Δu of the next candidate at step 1, shape (K, L)."""
    promise: Tensor
    """⟨direction, ∇_u ℓ⟩, the slope of ℓ along the direction."""
    step: Tensor
    """Length of the next candidate along the direction."""
    backtracks: Tensor
    memory: Tensor
    """The last M accepted Δu, the newest last, then their Δ∇_u ℓ, then ∇_u ℓ itself; shape (K, 2M + 1, L)."""
    inverse: Tensor
    """R⁻¹ of `inverse_hessian_times`, shape (K, M, M); row and column of a pair that is not used are zero."""
    scale: Tensor
    """γ, the inverse Hessian that the pairs correct."""
    past_loss: Tensor
    """Losses of the last W accepted points, the newest last, shape (K, W); infinite before the start."""


class LBFGS(DescentSolver[_Candidate]):
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
    min_slope: float = Field(1e-6, ge=0)
    """Stop where the loss falls by less than this per accepted step, mean over the window; nats per value."""
    window: int = Field(3, ge=1)
    """Accepted steps over which that slope is taken."""
    max_backtracks: int = Field(20, ge=0)
    """Candidates that may fail along one direction."""
    max_nfe: int = Field(10_000, gt=1)
    """Decoder evaluations per sample, that of P included, after which it stops wherever it is."""

    refused = "it minimises the loss and follows no flow"

    def _first(self, objective: Objective, start_BL: Tensor) -> _Candidate:
        first = first_fields(objective, start_BL)
        (count, latent), loss, pairs = start_BL.shape, first["loss"], self.pairs
        slope = first["grad"] @ objective.metric(latent, self.damping)
        past_loss = full_like_batch(start_BL, torch.inf)[:, None].repeat(1, self.window)
        past_loss[:, -1] = loss
        return _Candidate(
            **first,
            direction=-self.s_initial * slope,
            promise=-self.s_initial * slope.square().sum(1),
            step=torch.ones_like(loss),
            backtracks=torch.zeros_like(first["row"]),
            memory=torch.cat([start_BL.new_zeros(count, 2 * pairs, latent), slope[:, None]], 1),
            inverse=start_BL.new_zeros(count, pairs, pairs),
            scale=full_like_batch(start_BL, self.s_initial),
            past_loss=past_loss,
        )

    def _round(self, objective: Objective, active: _Candidate, last: bool) -> Ended:
        # Every operation is on all samples, and what was rejected is put back: on tensors this small, choosing
        # rows would take longer, and a GPU would have to tell the host which they are.
        metric = objective.metric(active.latent.shape[1], self.damping)
        move = active.step[:, None] * active.direction
        candidate = torch.addmm(active.latent, move, metric.t())
        loss, pullback = objective.evaluate(candidate, rows_of(active, objective))
        active.promised = -active.step * active.promise
        accepted = loss < torch.sub(active.loss, active.promised, alpha=self.sigma)
        taken = accepted[:, None]
        past_loss = torch.cat([active.past_loss[:, 1:], loss[:, None]], 1)
        slope = active.past_loss[:, 0] - loss
        if not last:
            grad = pullback(None)
            self._turn(active, taken, move, grad @ metric)
            active.grad = torch.where(taken, grad, active.grad)
        active.latent = torch.where(taken, candidate, active.latent)
        active.loss = torch.where(accepted, loss, active.loss)
        active.past_loss = torch.where(taken, past_loss, active.past_loss)
        active.num_steps = active.num_steps + accepted
        active.backtracks = (active.backtracks + 1).masked_fill_(accepted, 0)
        active.step = (active.step * self.beta).masked_fill_(accepted, 1.0)
        return [
            (Result.SLOPE, accepted & (slope < self.min_slope * self.window)),
            (Result.NO_DESCENT, active.backtracks > self.max_backtracks),
        ]

    def _turn(self, active: _Candidate, taken: Tensor, move: Tensor, slope: Tensor) -> None:
        """Remember the pair of an accepted step, and choose the next direction."""
        pairs, old = self.pairs, active.memory
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
        active.promise = torch.where(taken[:, 0], promise, active.promise)
        active.scale = torch.where(taken[:, 0], scale, active.scale)
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
