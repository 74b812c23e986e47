"""How improbable test images are, of a class that training never saw: arXiv:2010.15283, eq. 10–11.

Shapes: N images, K of them, M latents that a density is made of, V validation images, L latent, D pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from scipy.optimize import minimize_scalar
from torch import Tensor

from gfe_study.config import InputError
from gfe_study.data.split import Split, Splits
from gfe_study.density import kde
from gfe_study.density.whitening import ROUNDING, Whitening
from gfe_study.measures.base import Latents, Measure
from gfe_study.measures.samples import decode_all
from gfe_study.metrics import NOVELTY_AUROC, RECONSTRUCTION_AUROC, MetricInfo, info_of

if TYPE_CHECKING:
    from gfe_study.config import Trial
    from gfe_study.likelihoods.base import Loss
    from gfe_study.methods.base import Learner
    from gfe_study.models.base import Decoder

BATCH = 250
"""Images encoded at once."""
JACOBIAN_NUMBERS = 2**23
"""Of Jacobians that are held at once: images × L × D."""
BANDWIDTHS = (0.02, 2.0)
"""That are searched, in standard deviations of the latents."""


@dataclass(frozen=True)
class LatentDensity:
    """p(z): a kernel density estimate of whitened latents, so that no linear map of the latent space changes ranks.

    Attributes:
        whitening: the map.
        centre_ML: the latents, whitened.
        bandwidth: h, of whitened latents.
    """

    whitening: Whitening
    centre_ML: Tensor
    bandwidth: float

    @classmethod
    def fit(cls, latent_ML: Tensor, other_VL: Tensor) -> Self:
        """Of some latents, with the bandwidth under which others are likeliest. Float64.

        Raises:
            ValueError: the latents lie in fewer than L dimensions, are too few, or are NaN or infinite.
        """
        if not bool(other_VL.isfinite().all()):
            raise ValueError("latents are NaN or infinite")
        whitening = Whitening.fit(latent_ML)
        centre_ML, point_VL = whitening(latent_ML), whitening(other_VL)

        def unlikelihood(log_bandwidth: float) -> float:
            return -float(kde.log_density(point_VL, centre_ML, math.exp(log_bandwidth)).mean())

        low, high = BANDWIDTHS
        found = minimize_scalar(unlikelihood, bounds=(math.log(low), math.log(high)), options={"xatol": 1e-2})
        return cls(whitening, centre_ML, math.exp(found.x))

    def log_density(self, latent_NL: Tensor) -> Tensor:
        """log p(z), nats, shape (N,), float64."""
        point_NL = self.whitening(latent_NL)
        return kde.log_density(point_NL, self.centre_ML, self.bandwidth) + self.whitening.log_volume


def noise_variance(error_V: Tensor, pixels: int) -> float:
    """σ² of N(x; x′, σ²I) from the squared errors ‖x − x′‖² of validation images: √(Var/2D).

    The squared error of that normal has the mean Dσ² and the variance 2Dσ⁴. Images cannot be both: neighbouring pixels
    err together, so that errors vary much more than those of D independent pixels. Maximum likelihood, which goes by
    the mean, then makes of this variation hundreds of nats, beside which p(z′) and the determinant are lost; since
    scores are compared with one another, σ² is taken from what varies. 0 if that is rounding, or there is one image.
    """
    deviation, mean = float(error_V.double().std(unbiased=False)), float(error_V.double().mean())
    if deviation <= ROUNDING * torch.finfo(error_V.dtype).eps * mean:
        return 0.0
    return deviation / math.sqrt(2 * pixels)


def decoded_with_volume(decoder: Decoder, loss: Loss, latent_NL: Tensor) -> tuple[Tensor, Tensor]:
    """x′, the mean of the likelihood, shape (N, D), and ½ log det(AᵀA), A = ∂x′/∂z, shape (N,), float64.

    −∞ where A has a rank below L but for rounding. A few images at a time.
    """
    frozen = decoder.frozen()
    with torch.no_grad():
        pixels = decoder(latent_NL[:1]).shape[1]
    images, volumes = [], []
    for latent_KL in latent_NL.split(max(1, JACOBIAN_NUMBERS // (latent_NL.shape[1] * pixels))):
        output_KD, tangent_KLD = frozen.jacobian(latent_KL)
        slope_KLD = (tangent_KLD.detach() * loss.mean_slope(output_KD.detach())[:, None]).double()
        images.append(loss.mean(output_KD).detach())
        norm_KL = slope_KLD.norm(dim=2)
        slope_KLD = slope_KLD / norm_KL.clamp(min=torch.finfo(torch.float64).tiny)[..., None]
        square_KL = torch.linalg.eigvalsh(slope_KLD @ slope_KLD.transpose(1, 2))
        rounding = (ROUNDING * torch.finfo(tangent_KLD.dtype).eps) ** 2
        volumes.append((norm_KL.log() + square_KL.masked_fill(square_KL <= rounding, 0).log() / 2).sum(1))
    return torch.cat(images), torch.cat(volumes)


def log_probability(
    decoder: Decoder, loss: Loss, density: LatentDensity, variance: float, image_ND: Tensor, latent_NL: Tensor
) -> Tensor:
    """log p(x) = log p(z′) − ½ log det(AᵀA) + log N(x; x′, σ²I), nats, shape (N,), float64: eq. 10–11.

    Args:
        decoder: D.
        loss: of the likelihood, whose mean at D(z′) is x′; A = ∂x′/∂z at z′.
        density: p(z).
        variance: σ².
        image_ND: x.
        latent_NL: z′, their encodings.
    """
    decoded_ND, volume_N = decoded_with_volume(decoder, loss, latent_NL)
    error_N = (image_ND - decoded_ND).double().square().sum(1)
    log_normal_N = -error_N / (2 * variance) - image_ND.shape[1] / 2 * math.log(2 * math.pi * variance)
    return density.log_density(latent_NL) - volume_N + log_normal_N


class Novelty(Measure):
    """How well test images of `data.held_out` are told from the others: area under the ROC curve (0.5: not at all).

    `novelty_auroc` by −log p(x) of eq. 10–11, `reconstruction_auroc` by the squared error ‖x − x′‖² alone. Of p(x),
    p(z′) is the density of the latents that training images have, not the target: where latents have gaps between
    classes, and these are where images of another class go, the target knows nothing of them. So a method needs no
    target. σ² is `noise_variance`.
    """

    metrics: ClassVar[tuple[MetricInfo, ...]] = (info_of(NOVELTY_AUROC), info_of(RECONSTRUCTION_AUROC))
    train_images: int = Field(10_000, gt=1)
    """Training images whose latents make p(z), at most. They are encoded at every point; more are better."""

    def values(self, learner: Learner, splits: Splits, latents: Latents) -> dict[str, float]:
        from sklearn.metrics import roc_auc_score

        val_VL, latent_NL = latents
        device = latent_NL.device
        assert splits.test.labels_N is not None
        novel_N = splits.test.labels_N[: len(latent_NL)] == learner.trial.data.held_out
        if novel_N.all() or not novel_N.any() or not bool(latent_NL.isfinite().all()):
            return {}
        image_ND = splits.test.unmeasured.batch(slice(len(latent_NL)), device).value_BD
        val_VD = splits.val.unmeasured.batch(slice(len(val_VL)), device).value_BD
        error_N = (image_ND - decode_all(learner, latent_NL)).double().square().sum(1)
        if not bool(error_N.isfinite().all()):
            return {}
        found = {RECONSTRUCTION_AUROC: float(roc_auc_score(novel_N, error_N.cpu().numpy()))}
        try:
            density = LatentDensity.fit(_encoded(learner, splits.train, self.train_images, device), val_VL)
        except ValueError:  # latents that have collapsed have no density
            return found
        variance = noise_variance((val_VD - decode_all(learner, val_VL)).square().sum(1), splits.shape.size)
        if variance == 0:
            return found
        score_N = -log_probability(learner.decoder, learner.loss, density, variance, image_ND, latent_NL)
        if bool(score_N.isfinite().all()):
            found[NOVELTY_AUROC] = float(roc_auc_score(novel_N, score_N.cpu().numpy()))
        return found

    def check_data(self, splits: Splits) -> None:
        if splits.shape.mask:
            raise InputError("eval.measures: given novelty, and the data has missing values; allowed: of complete data")

    def check_trial(self, trial: Trial) -> None:
        if trial.data.held_out is None:
            raise ValueError(
                "eval.measures: given novelty without a class that training never sees; allowed: with data.held_out"
            )


def _encoded(learner: Learner, split: Split, count: int, device: torch.device) -> Tensor:
    index = np.arange(min(count, len(split)))
    parts = np.array_split(index, -(-len(index) // BATCH))
    return torch.cat([learner.encode(split.batch(part, device)).latent_BL for part in parts])
