"""Limited-memory BFGS, per sample.

Shapes: B batch, K samples still active, L latent, M remembered pairs, W slope window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from gfe_study.solvers.base import Result, full_like_batch
from gfe_study.solvers.descent import Active, Chosen, DescentSolver, Ended, first_fields, ring, rows_of
from gfe_study.solvers.objective import Objective


@dataclass
class _Candidate(Active):
    direction: Tensor
    promise: Tensor
    """⟨direction, ∇_z ℓ⟩, the slope of ℓ along the direction."""
    step: Tensor
    """Length of the next candidate along the direction."""
    backtracks: Tensor
    moves: Tensor
    """The last M accepted Δz, the newest last, shape (K, M, L); zero where a pair is not used."""
    turns: Tensor
    """Their Δg."""
    scale: Tensor
    """γ, the inverse Hessian that the pairs correct."""
    past_loss: Tensor
    """Ring of the losses of the last W accepted points, shape (K, W)."""


class LBFGS(DescentSolver[_Candidate]):
    """Minimises ℓ along the limited-memory BFGS direction −H ∇_z ℓ (Liu & Nocedal 1989), per sample; no flow.

    H is the inverse BFGS matrix of the last `pairs` steps over γ I, γ = ⟨Δz, Δg⟩ / ⟨Δg, Δg⟩ of the newest, in
    the compact form of Byrd, Nocedal & Schnabel (1994, eq. 3.1): all samples in a handful of batched products.
    Steps 1, β, β², … until ℓ falls by σ times what the slope promises (Armijo). A pair without positive
    curvature is not used; a direction that does not descend forgets all pairs. One decoder evaluation per
    candidate, one pullback per accepted step.
    """

    colour = "#832db6"
    example = {"max_nfe": 14, "min_slope": 1e-4}

    pairs: int = Field(6, ge=1)
    """Pairs (Δz, Δg) remembered."""
    beta: float = Field(0.2, gt=0, lt=1)
    """β, the factor by which a rejected step shrinks."""
    s_initial: float = Field(30.0, gt=0)
    """γ of the first step, before there is any curvature."""
    sigma: float = Field(1e-4, ge=0, lt=0.5)
    """σ, the Armijo constant."""
    min_slope: float = Field(1e-6, ge=0)
    """Stop where the loss falls by less than this per accepted step, mean over the window; nats per value."""
    window: int = Field(3, ge=1)
    """Accepted steps over which that slope is taken."""
    max_backtracks: int = Field(20, ge=0)
    """Candidates that may fail along one direction."""

    refused = "it minimises the loss and follows no flow"

    def _first(self, objective: Objective, start_BL: Tensor) -> _Candidate:
        first = first_fields(objective, start_BL)
        (count, latent), loss, grad = start_BL.shape, first["loss"], first["grad"]
        return _Candidate(
            **first,
            direction=-self.s_initial * grad,
            promise=-self.s_initial * grad.square().sum(1),
            step=torch.ones_like(loss),
            backtracks=torch.zeros_like(first["row"]),
            moves=start_BL.new_zeros(count, self.pairs, latent),
            turns=start_BL.new_zeros(count, self.pairs, latent),
            scale=full_like_batch(start_BL, self.s_initial),
            past_loss=ring(loss, self.window),
        )

    def _round(self, objective: Objective, active: _Candidate) -> Ended:
        move = active.step[:, None] * active.direction
        candidate = active.latent + move
        loss, pullback = objective.evaluate(candidate, rows_of(active, objective))
        accepted = loss < torch.addcmul(active.loss, active.step, active.promise, value=self.sigma)
        slope = torch.full_like(loss, torch.inf)
        active.backtracks = (active.backtracks + 1).masked_fill_(accepted, 0)
        active.step = (active.step * self.beta).masked_fill_(accepted, 1.0)
        if chosen := Chosen(accepted):
            num_steps = active.num_steps + accepted
            column = (num_steps % self.window)[:, None]
            slope = (active.past_loss.gather(1, column)[:, 0] - loss).masked_fill_(~accepted, torch.inf)
            active.loss = chosen.put(active.loss, chosen.take(loss))
            active.past_loss.scatter_(1, column, active.loss[:, None])
            active.num_steps = num_steps
            active.latent = chosen.put(active.latent, chosen.take(candidate))
            self._turn(active, chosen, chosen.take(move), pullback(chosen.index))
        return [
            (Result.SLOPE, slope < self.min_slope * self.window),
            (Result.NO_DESCENT, active.backtracks > self.max_backtracks),
        ]

    def _turn(self, active: _Candidate, chosen: Chosen, move: Tensor, grad: Tensor) -> None:
        """Remember the pair of an accepted step, and choose the next direction."""
        turn = grad - chosen.take(active.grad)
        product, norm = (move * turn).sum(1), turn.square().sum(1)
        convex = product > torch.finfo(norm.dtype).eps * norm
        used = convex[:, None]
        scale = torch.where(convex, product / norm, chosen.take(active.scale))
        moves = torch.cat([chosen.take(active.moves)[:, 1:], (move * used)[:, None]], 1)
        turns = torch.cat([chosen.take(active.turns)[:, 1:], (turn * used)[:, None]], 1)
        direction = -inverse_hessian_times(grad, moves, turns, scale)
        promise = (direction * grad).sum(1)
        lost = ~(promise < 0)
        if bool(lost.any()):
            kept = ~lost[:, None, None]
            moves, turns = moves * kept, turns * kept
            direction = torch.where(lost[:, None], -scale[:, None] * grad, direction)
            promise = (direction * grad).sum(1)
        active.grad = chosen.put(active.grad, grad)
        active.moves = chosen.put(active.moves, moves)
        active.turns = chosen.put(active.turns, turns)
        active.scale = chosen.put(active.scale, scale)
        active.direction = chosen.put(active.direction, direction)
        active.promise = chosen.put(active.promise, promise)


def inverse_hessian_times(grad_KL: Tensor, moves_KML: Tensor, turns_KML: Tensor, scale_K: Tensor) -> Tensor:
    """H g, H the inverse BFGS matrix of pairs S = Δz, Y = Δg (oldest first) over γ I; a pair of zeros is none.

    With R the upper triangle of S Yᵀ and D its diagonal: H g = γ g + Sᵀ v − γ Yᵀ u, where R u = S g and
    Rᵀ v = (D + γ Y Yᵀ) u − γ Y g.
    """
    scale = scale_K[:, None]
    products = moves_KML @ turns_KML.mT
    diagonal = products.diagonal(dim1=1, dim2=2)
    triangle = products.triu() + torch.diag_embed((diagonal == 0).to(grad_KL.dtype))
    column = grad_KL[..., None]
    u = torch.linalg.solve_triangular(triangle, moves_KML @ column, upper=True)
    turned = (turns_KML.mT @ u)[..., 0]
    right = diagonal[..., None] * u + turns_KML @ (scale * (turned - grad_KL))[..., None]
    v = torch.linalg.solve_triangular(triangle.mT, right, upper=False)
    direction_KL: Tensor = scale * (grad_KL - turned) + (moves_KML.mT @ v)[..., 0]
    return direction_KL
