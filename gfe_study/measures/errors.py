"""How far reconstructions are from the samples, in the data's own units.

Shapes: N samples, B of them, D values of a sample, L latent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gfe_study.data.split import Split
from gfe_study.metrics import MAE, R2, RELATIVE_L2, RMSE, WITHHELD_LOSS, WITHHELD_MAE, WITHHELD_RMSE

if TYPE_CHECKING:
    from gfe_study.methods.base import Learner

BATCH = 500


def errors(learner: Learner, split: Split, latent_NL: Tensor) -> dict[str, float]:
    """Errors of the reconstructions of the first N samples, over all observed values.

    - `rmse` and `mae`: root mean square and mean absolute error, in the data's units.
    - `r2`: 1 − Σ(y − x)²/Σ(y − ȳ)², ȳ the mean of each value over these samples: the share of the variance about a
      constant prediction that is explained.
    - `relative_l2`: ‖y − x‖/‖y‖, mean over the samples that are not 0 throughout.

    Args:
        latent_NL: latents of the first N samples of the split, on the learner's device.

    Returns one that cannot be had, such as `r2` of equal samples, as NaN.
    """
    scale, split = split.scale, split.unmeasured
    # Numbers without a device: the sums are those of the latents' device, and are fetched once, at the end.
    square = absolute = values = relative = samples = torch.zeros((), dtype=torch.float64)
    first_D = sum_D = square_D = known_D = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(latent_NL), BATCH):
        latent_BL = latent_NL[start : start + BATCH]
        target = split.batch(slice(start, start + len(latent_BL)), latent_BL.device)
        known_BD = torch.ones_like(target.value_BD, dtype=torch.bool) if target.known_BD is None else target.known_BD
        # The scale's shift cancels in differences, which stay exact where it is large beside them.
        error_BD = scale.stretch(learner.decode(latent_BL) - target.value_BD).masked_fill(~known_BD, 0.0)
        value_BD = scale.stretch(target.value_BD).masked_fill(~known_BD, 0.0)
        stored_BD = scale.undo(target.value_BD).masked_fill(~known_BD, 0.0)
        # Squares about the first known value of each, or the variance of nearly equal ones would be lost in them.
        first_D = torch.where(known_D > 0, first_D, value_BD.gather(0, known_BD.int().argmax(0, keepdim=True))[0])
        value_BD = (value_BD - first_D).masked_fill(~known_BD, 0.0)
        square, absolute = square + error_BD.square().sum(), absolute + error_BD.abs().sum()
        values = values + known_BD.sum()
        norm_B = stored_BD.norm(dim=1)
        relative = relative + (error_BD.norm(dim=1) / norm_B).masked_fill(norm_B == 0, 0.0).sum()
        samples = samples + (norm_B > 0).sum()
        sum_D, square_D = sum_D + value_BD.sum(0), square_D + value_BD.square().sum(0)
        known_D = known_D + known_BD.sum(0)
    total = (square_D - sum_D.square() / known_D.clamp(min=1)).sum()
    return {
        RMSE: float((square / values).sqrt()),
        MAE: float(absolute / values),
        R2: float(1 - square / total) if total > 0 else float("nan"),
        RELATIVE_L2: float(relative / samples),
    }


@torch.no_grad()
def imputation_errors(learner: Learner, split: Split, latent_NL: Tensor) -> dict[str, float]:
    """Errors of the reconstructions of the first N samples where values were withheld; nothing if none were.

    `withheld_rmse` and `withheld_mae` in the data's units, and `withheld_loss`, nats per value: means over all withheld
    values, so that a sample counts by how many it has.

    Args:
        latent_NL: latents of the first N samples of the split, on the learner's device.
    """
    if split.withheld_ND is None:
        return {}
    withheld = split.withheld()
    nats = square = absolute = values = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(latent_NL), BATCH):
        latent_BL = latent_NL[start : start + BATCH]
        rows = slice(start, start + len(latent_BL))
        shown, hidden = (part.batch(rows, latent_BL.device) for part in (split, withheld))
        output_BD = learner.predict(shown, latent_BL)
        assert hidden.known_BD is not None
        count_B = hidden.known_BD.sum(1)
        nats = nats + (learner.loss(output_BD, hidden).double() * count_B).sum()
        error_K = hidden.known(split.scale.stretch(learner.loss.mean(output_BD) - hidden.value_BD))
        square, absolute = square + error_K.square().sum(), absolute + error_K.abs().sum()
        values = values + count_B.sum()
    return {
        WITHHELD_LOSS: float(nats / values),
        WITHHELD_RMSE: float((square / values).sqrt()),
        WITHHELD_MAE: float(absolute / values),
    }
