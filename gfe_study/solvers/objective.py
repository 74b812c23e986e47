"""The function a latent is found by minimising: z ↦ ℓ(y, D(z; θ)) for one batch, with θ held fixed.

Shapes: B batch, K rows of it, L latent, D pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gfe_study.losses import Loss
from gfe_study.models.base import Decoder

Pullback = Callable[[Tensor | None], Tensor]
"""Maps a selection of the evaluated rows (indices, or None for all) to their ∇_z ℓ."""


class Objective:
    """ℓ(y, D(z; θ)) per sample, its gradient in z, and the count of what they cost.

    Args:
        decoder: evaluated with its weights as they are; no gradient with respect to them is kept.
        loss: per-sample distance.
        target_BD: images y.

    Raises:
        ValueError: a target holds NaN or an infinity; the message names the samples.

    Attributes:
        nfe_forward_B: decoder evaluations spent on each sample so far.
        nfe_backward_B: decoder pullbacks (vector–Jacobian products in z) spent on each sample so far.
    """

    def __init__(self, decoder: Decoder, loss: Loss, target_BD: Tensor) -> None:
        finite_B = target_BD.isfinite().all(-1)
        if not finite_B.all():
            rows = (~finite_B).nonzero().flatten().tolist()
            raise ValueError(f"NaN or infinite pixels in sample {', '.join(map(str, rows[:5]))} of the batch")
        self.decoder = decoder.frozen()
        self.loss = loss
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

        def pullback(selected: Tensor | None) -> Tensor:
            chosen = rows_K
            output, target = output_KD, target_KD
            if selected is not None:
                output, target = output_KD[selected], target_KD[selected]
                chosen = selected if rows_K is None else rows_K[selected]
            self._count(self.nfe_backward_B, chosen)
            return vjp(self.loss.gradient(output, target), selected)

        return self.loss(output_KD, target_KD), pullback

    def gradient(self, latent_BL: Tensor) -> Tensor:
        """∇_z ℓ of the whole batch, shape (B, L)."""
        _, pullback = self.evaluate(latent_BL)
        return pullback(None)

    def normal_equations(self, latent_KL: Tensor, rows_K: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Losses (K,), ∇_z ℓ (K, L) and the Gauss–Newton matrices Jᵀ diag(∂²ℓ/∂D²) J (K, L, L) of the given rows.

        One forward pass and L tangents, counted as 1 + L evaluations; no pullback.
        """
        target_KD = self.target_BD if rows_K is None else self.target_BD[rows_K]
        output_KD, jacobian_KLD = self.decoder.jacobian(latent_KL)
        self._count(self.nfe_forward_B, rows_K, 1 + latent_KL.shape[1])
        grad_KL = torch.einsum("kld,kd->kl", jacobian_KLD, self.loss.gradient(output_KD, target_KD))
        weighted_KLD = jacobian_KLD * self.loss.curvature(output_KD, target_KD)[:, None]
        return self.loss(output_KD, target_KD), grad_KL, weighted_KLD @ jacobian_KLD.transpose(1, 2)

    @staticmethod
    def _count(counter_B: Tensor, rows_K: Tensor | None, times: int = 1) -> None:
        if rows_K is None:
            counter_B += times
        else:
            counter_B[rows_K] += times
