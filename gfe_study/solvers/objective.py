"""The function a latent is found by minimising: z ↦ ℓ(y, D(z; θ)) for one batch, with θ held fixed.

Shapes: B batch, K rows of it, L latent, D values of a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from gfe_study.likelihoods.base import Loss, Observed
from gfe_study.models.base import Decoder, Linearizable, Products

LatentTerm = Callable[[Tensor, Tensor | None], Tensor]
"""(latents (K, L), their rows of the batch or None for all) -> what is added to each one's ℓ, shape (K,)."""
Pullback = Callable[[Tensor | None], Tensor]
"""Maps a selection of the evaluated rows (indices, or None for all) to their ∇_z ℓ."""


class Objective:
    """ℓ(y, D(z; θ)) per sample, its gradient in z, and the count of what they cost.

    Args:
        decoder: solvers evaluate it with its weights as they are now, and keep no gradient with respect to them.
        loss: per-sample distance.
        target: samples y.
        term: a differentiable function of the latents alone that is added to ℓ, if any.
        precision: λ of a normal prior of the latents, which adds λ‖z‖²/(2 n) to the ℓ of a sample with n observed
            values; None: no prior.
        products: the type in which the decoder multiplies matrices; all else is in the latents' own.

    Raises:
        ValueError: an observed value is NaN or infinite; the message names the samples.
    """

    def __init__(
        self,
        decoder: Decoder,
        loss: Loss,
        target: Observed,
        term: LatentTerm | None = None,
        precision: float | None = None,
        products: Products = "float32",
    ) -> None:
        finite_B = target.value_BD.isfinite().all(-1)
        if not finite_B.all():
            rows = (~finite_B).nonzero().flatten().tolist()
            raise ValueError(f"NaN or infinite values in sample {', '.join(map(str, rows[:5]))} of the batch")
        self.decoder = decoder
        self.products = products
        self.loss = loss
        self.term = term
        self.target = target
        self.precision = precision
        self._forward = _Counter(target)
        self._backward = _Counter(target)
        self._metrics: dict[float, Tensor] = {}
        self.pull_B: Tensor | None = None
        """λ/n: the curvature of the prior."""
        if precision is not None:
            self.pull_B = target.value_BD.new_full((len(target),), precision) / target.count_B
        self._rows: Tensor | None = None
        self._rows_target = target

    @cached_property
    def frozen(self) -> Linearizable:
        """The decoder with its weights as they are when it is first asked for."""
        return self.decoder.frozen(self.products)

    def adopt(self, other: Objective) -> None:
        """Take over what `metric` found for another objective, of a decoder that was much the same."""
        self._metrics = other._metrics

    @property
    def evaluations(self) -> int:
        """Decoder evaluations that were spent on every sample alike."""
        return self._forward.all

    @property
    def nfe_forward_B(self) -> Tensor:
        """Decoder evaluations spent on each sample so far."""
        return self._forward.of_all()

    @property
    def nfe_backward_B(self) -> Tensor:
        """Decoder pullbacks (vector–Jacobian products in z) spent on each sample so far."""
        return self._backward.of_all()

    def evaluate(self, latent_KL: Tensor, rows_K: Tensor | None = None) -> tuple[Tensor, Pullback]:
        """Losses of the given rows of the batch at `latent_KL`, and the pullback that gives their gradients.

        One forward pass; calling the pullback is one backward pass over the rows it is asked for, from the
        activations of that same forward pass.
        """
        target = self._target_of(rows_K)
        output_KD, vjp = self.frozen.linearize(latent_KL)
        self._forward.add(rows_K)
        loss_K = self.loss(output_KD, target)
        beside = self._beside(latent_KL, rows_K)
        if beside is not None:
            loss_K = loss_K + beside[0]

        def pullback(selected: Tensor | None) -> Tensor:
            chosen = rows_K
            output, observed = output_KD, target
            if selected is not None:
                output, observed = output_KD[selected], target[selected]
                chosen = selected if rows_K is None else rows_K[selected]
            self._backward.add(chosen)
            slope = vjp(self.loss.gradient(output, observed), selected)
            if beside is None:
                return slope
            return slope + (beside[1] if selected is None else beside[1][selected])

        return loss_K, pullback

    def gradient(self, latent_BL: Tensor) -> Tensor:
        """∇_z ℓ of the whole batch, shape (B, L)."""
        _, pullback = self.evaluate(latent_BL)
        return pullback(None)

    def normal_equations(self, latent_KL: Tensor, rows_K: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Losses (K,), ∇_z ℓ (K, L) and the Gauss–Newton matrices Jᵀ diag(∂²ℓ/∂D²) J (K, L, L) of the given rows.

        One forward pass and L tangents, counted as 1 + L evaluations; no pullback. A latent term is in the losses and
        their gradients; its curvature, which may have any sign, is not in the matrices. The prior's is.
        """
        target = self._target_of(rows_K)
        output_KD, jacobian_KLD, normal_KLL = self.curvature(latent_KL, rows_K)
        grad_KL = torch.einsum("kld,kd->kl", jacobian_KLD, self.loss.gradient(output_KD, target))
        loss_K = self.loss(output_KD, target)
        if (beside := self._beside(latent_KL, rows_K)) is not None:
            loss_K, grad_KL = loss_K + beside[0], grad_KL + beside[1]
        return loss_K, grad_KL, normal_KLL

    def curvature(self, latent_KL: Tensor, rows_K: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """D(z) (K, D), ∂D/∂z (K, L, D) and the Gauss–Newton matrices (K, L, L) of the given rows.

        Matrices and cost are those of `normal_equations`.
        """
        target = self._target_of(rows_K)
        output_KD, jacobian_KLD = self.frozen.jacobian(latent_KL)
        self._forward.add(rows_K, 1 + latent_KL.shape[1])
        seen_KLD = self.loss.seen_jacobian(output_KD, jacobian_KLD, target)
        weighted_KLD = seen_KLD * self.loss.curvature(output_KD, target)[:, None]
        normal_KLL = weighted_KLD @ seen_KLD.transpose(1, 2)
        if self.pull_B is not None:
            pull_K = self.pull_B if rows_K is None else self.pull_B[rows_K]
            normal_KLL.diagonal(dim1=1, dim2=2).add_(pull_K[:, None])
        return output_KD, jacobian_KLD, normal_KLL

    def metric(self, latent_dim: int, damping: float) -> Tensor:
        """P with P Pᵀ = (N + μ I)⁻¹, shape (L, L), N = Jᵀ diag(∂²ℓ/∂D²) J + λ/D I the Gauss–Newton matrix at z = 0.

        N is that of a sample all of whose values are observed, with the errors σ = 1 where the data gives errors: it
        is a property of the decoder, and the same for every sample. Found once, in float64, and counted as one
        evaluation per sample.

        Args:
            latent_dim: L.
            damping: μ as a share of the mean diagonal of N.
        """
        known = self._metrics.get(damping)
        if known is None:
            one_D = self.target.value_BD.new_zeros(1, self.target.value_BD.shape[1])
            sigma_D = None if self.target.sigma_BD is None else torch.ones_like(one_D)
            origin_L = one_D.new_zeros(1, latent_dim)
            output_D, jacobian_LD = self.frozen.jacobian(origin_L)
            whole = Observed(one_D, sigma_BD=sigma_D, instrument=self.target.instrument)
            curvature_D = self.loss.curvature(output_D, whole)
            jacobian_LD = self.loss.seen_jacobian(output_D, jacobian_LD, whole)
            self._forward.add(None)
            found = _root_of_inverse((jacobian_LD * curvature_D[:, None])[0], jacobian_LD[0], damping, self.precision)
            known = self._metrics[damping] = found
        return known

    def _target_of(self, rows_K: Tensor | None) -> Observed:
        if rows_K is not self._rows:
            self._rows = rows_K
            self._rows_target = self.target if rows_K is None else self.target[rows_K]
        return self._rows_target

    def _beside(self, latent_KL: Tensor, rows_K: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """What the term and the prior add to ℓ and to its gradient, shapes (K,) and (K, L); None: nothing."""
        found = None if self.term is None else _with_slope(self.term, latent_KL, rows_K)
        if self.pull_B is not None:
            pull_K = self.pull_B if rows_K is None else self.pull_B[rows_K]
            slope_KL = pull_K[:, None] * latent_KL
            prior_K = (slope_KL * latent_KL).sum(1) / 2
            found = (prior_K, slope_KL) if found is None else (found[0] + prior_K, found[1] + slope_KL)
        return found

    @property
    def exact(self) -> bool:
        """Whether it is ℓ alone, without a term or a prior, in the type of the latents."""
        return self.term is None and self.pull_B is None and self.products == "float32"

    def prior(self, latent_BL: Tensor) -> Tensor | float:
        """λ‖z‖²/(2 n) of the whole batch, shape (B,), differentiable."""
        return 0.0 if self.pull_B is None else self.pull_B * latent_BL.square().sum(1) / 2


def _root_of_inverse(weighted_LD: Tensor, jacobian_LD: Tensor, damping: float, precision: float | None) -> Tensor:
    latent, size = jacobian_LD.shape
    normal_LL = weighted_LD.double() @ jacobian_LD.double().t()
    prior = 0.0 if precision is None else precision / size
    shift = prior + damping * normal_LL.diagonal().mean()
    identity_LL = torch.eye(latent, dtype=normal_LL.dtype, device=normal_LL.device)
    # A decoder that ignores its latent, or is not finite, has no metric: P is then the identity.
    factor_LL, failed = torch.linalg.cholesky_ex(normal_LL + shift * identity_LL)
    lost = (failed > 0) | ~factor_LL.isfinite().all()
    factor_LL = torch.where(lost, identity_LL, factor_LL)
    root_LL: Tensor = torch.linalg.solve_triangular(factor_LL, identity_LL, upper=False).t()
    return root_LL.to(jacobian_LD.dtype).contiguous()


class _Counter:
    """Counts per sample. What is counted of the whole batch is one number, so that counting costs nothing there."""

    def __init__(self, target: Observed) -> None:
        self.all = 0
        self.some_B: Tensor | None = None
        self._target = target

    def add(self, rows_K: Tensor | None, times: int = 1) -> None:
        if rows_K is None:
            self.all += times
            return
        if self.some_B is None:
            self.some_B = torch.zeros(len(self._target), dtype=torch.long, device=self._target.value_BD.device)
        self.some_B[rows_K] += times

    def of_all(self) -> Tensor:
        all_B = torch.full((len(self._target),), self.all, device=self._target.value_BD.device)
        return all_B if self.some_B is None else all_B + self.some_B


def _with_slope(term: LatentTerm, latent_KL: Tensor, rows_K: Tensor | None) -> tuple[Tensor, Tensor]:
    """A latent term and its gradient, shapes (K,) and (K, L)."""
    latent_KL = latent_KL.detach().requires_grad_()
    with torch.enable_grad():
        term_K = term(latent_KL, rows_K)
        (slope_KL,) = torch.autograd.grad(term_K.sum(), latent_KL)
    return term_K.detach(), slope_KL
