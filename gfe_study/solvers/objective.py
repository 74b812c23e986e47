"""The function a latent is found by minimising: z ↦ ℓ(y, D(z; θ)) for one batch, with θ held fixed.

Shapes: B batch, K rows of it, L latent, D pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gfe_study.losses import Loss
from gfe_study.models.base import Decoder

LatentTerm = Callable[[Tensor, Tensor | None], Tensor]
"""(latents (K, L), their rows of the batch or None for all) -> what is added to each one's ℓ, shape (K,)."""
Pullback = Callable[[Tensor | None], Tensor]
"""Maps a selection of the evaluated rows (indices, or None for all) to their ∇_z ℓ."""


class Objective:
    """ℓ(y, D(z; θ)) per sample, its gradient in z, and the count of what they cost.

    Args:
        decoder: evaluated with its weights as they are; no gradient with respect to them is kept.
        loss: per-sample distance.
        target_BD: images y.
        term: a differentiable function of the latents alone that is added to ℓ, if any.

    Raises:
        ValueError: a target holds NaN or an infinity; the message names the samples.

    Attributes:
        nfe_forward_B: decoder evaluations spent on each sample so far.
        nfe_backward_B: decoder pullbacks (vector–Jacobian products in z) spent on each sample so far.
    """

    def __init__(self, decoder: Decoder, loss: Loss, target_BD: Tensor, term: LatentTerm | None = None) -> None:
        finite_B = target_BD.isfinite().all(-1)
        if not finite_B.all():
            rows = (~finite_B).nonzero().flatten().tolist()
            raise ValueError(f"NaN or infinite pixels in sample {', '.join(map(str, rows[:5]))} of the batch")
        self.decoder = decoder.frozen()
        self.loss = loss
        self.term = term
        self.target_BD = target_BD
        self.nfe_forward_B = torch.zeros(len(target_BD), dtype=torch.long, device=target_BD.device)
        self.nfe_backward_B = self.nfe_forward_B.clone()
        self._rows: Tensor | None = None
        self._rows_target_KD = target_BD

    def evaluate(self, latent_KL: Tensor, rows_K: Tensor | None = None) -> tuple[Tensor, Pullback]:
        """Losses of the given rows of the batch at `latent_KL`, and the pullback that gives their gradients.

        One forward pass; calling the pullback is one backward pass over the rows it is asked for, from the
        activations of that same forward pass.
        """
        if rows_K is not self._rows:
            self._rows = rows_K
            self._rows_target_KD = self.target_BD if rows_K is None else self.target_BD[rows_K]
        target_KD = self._rows_target_KD
        output_KD, vjp = self.decoder.linearize(latent_KL)
        self._count(self.nfe_forward_B, rows_K)
        loss_K = self.loss(output_KD, target_KD)
        term_slope_KL: Tensor | None = None
        if self.term is not None:
            term_K, term_slope_KL = _with_slope(self.term, latent_KL, rows_K)
            loss_K = loss_K + term_K

        def pullback(selected: Tensor | None) -> Tensor:
            chosen = rows_K
            output, target = output_KD, target_KD
            if selected is not None:
                output, target = output_KD[selected], target_KD[selected]
                chosen = selected if rows_K is None else rows_K[selected]
            self._count(self.nfe_backward_B, chosen)
            slope = vjp(self.loss.gradient(output, target), selected)
            if term_slope_KL is None:
                return slope
            return slope + (term_slope_KL if selected is None else term_slope_KL[selected])

        return loss_K, pullback

    def gradient(self, latent_BL: Tensor) -> Tensor:
        """∇_z ℓ of the whole batch, shape (B, L)."""
        _, pullback = self.evaluate(latent_BL)
        return pullback(None)

    def normal_equations(self, latent_KL: Tensor, rows_K: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Losses (K,), ∇_z ℓ (K, L) and the Gauss–Newton matrices Jᵀ diag(∂²ℓ/∂D²) J (K, L, L) of the given rows.

        One forward pass and L tangents, counted as 1 + L evaluations; no pullback. A latent term is in the losses and
        their gradients; its curvature, which may have any sign, is not in the matrices.
        """
        target_KD = self.target_BD if rows_K is None else self.target_BD[rows_K]
        output_KD, jacobian_KLD = self.decoder.jacobian(latent_KL)
        self._count(self.nfe_forward_B, rows_K, 1 + latent_KL.shape[1])
        grad_KL = torch.einsum("kld,kd->kl", jacobian_KLD, self.loss.gradient(output_KD, target_KD))
        weighted_KLD = jacobian_KLD * self.loss.curvature(output_KD, target_KD)[:, None]
        loss_K = self.loss(output_KD, target_KD)
        if self.term is not None:
            term_K, slope_KL = _with_slope(self.term, latent_KL, rows_K)
            loss_K, grad_KL = loss_K + term_K, grad_KL + slope_KL
        return loss_K, grad_KL, weighted_KLD @ jacobian_KLD.transpose(1, 2)

    @staticmethod
    def _count(counter_B: Tensor, rows_K: Tensor | None, times: int = 1) -> None:
        if rows_K is None:
            counter_B += times
        else:
            counter_B[rows_K] += times


def _with_slope(term: LatentTerm, latent_KL: Tensor, rows_K: Tensor | None) -> tuple[Tensor, Tensor]:
    """A latent term and its gradient, shapes (K,) and (K, L)."""
    latent_KL = latent_KL.detach().requires_grad_()
    with torch.enable_grad():
        term_K = term(latent_KL, rows_K)
        (slope_KL,) = torch.autograd.grad(term_K.sum(), latent_KL)
    return term_K.detach(), slope_KL
