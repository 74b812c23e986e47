"""Whether error bars say what they claim to, at values that were withheld.

Shapes: N samples, B of them, L latent; K withheld values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from gfe_study.config import InputError
from gfe_study.data.split import Split, Splits
from gfe_study.measures.base import Latents, Measure
from gfe_study.metrics import CALIBRATION, COVERAGE_68, COVERAGE_95, MetricInfo, info_of
from gfe_study.posterior import posterior_of

if TYPE_CHECKING:
    from gfe_study.methods.base import Learner

BATCH = 200
WIDTHS = {COVERAGE_68: 0.994457883209753, COVERAGE_95: 1.959963984540054}
"""Standard deviations on either side within which 68 % and 95 % of a normal lie."""


class Coverage(Measure):
    """The share of the withheld test values that lie within their intervals of 68 % and of 95 %.

    An interval is what the method predicts, plus and minus 0.99 or 1.96 standard deviations of `posterior_of`. All of
    them are multiplied by one factor, `calibration`, chosen so that 95 % of the withheld validation values lie within
    theirs. It needs `eval.withhold` and `prior_precision`; a trial without the latter has no such metrics.
    """

    metrics: ClassVar[tuple[MetricInfo, ...]] = tuple(map(info_of, (*WIDTHS, CALIBRATION)))

    def check_data(self, splits: Splits) -> None:
        if splits.test.withheld_ND is None:
            raise InputError(
                "eval.withhold: given null with eval.measures=coverage, which is of withheld values; "
                "allowed: with a value, like {kind: random, fraction: 0.1}"
            )

    def values(self, learner: Learner, splits: Splits, latents: Latents) -> dict[str, float]:
        if learner.trial.prior_precision is None:
            return {}
        val_K = ratios(learner, splits.val, latents.val_VL)
        test_K = ratios(learner, splits.test, latents.test_NL)
        if not len(val_K) or not len(test_K):
            return {}
        factor = factor_of(val_K)
        shares = {name: float((test_K <= width * factor).double().mean()) for name, width in WIDTHS.items()}
        return {**shares, CALIBRATION: factor}


def factor_of(ratio_K: Tensor) -> float:
    """What standard deviations are to be multiplied by, so that 95 % of these ratios lie within their intervals."""
    factor = float(ratio_K.sort().values[min(int(0.95 * len(ratio_K)), len(ratio_K) - 1)]) / WIDTHS[COVERAGE_95]
    return factor if 0 < factor < float("inf") else 1.0  # of a likelihood without a variance there is nothing to say


def ratios(learner: Learner, split: Split, latent_NL: Tensor) -> Tensor:
    """Absolute errors at the withheld values of the first N samples, each over its standard deviation, shape (K,)."""
    found = []
    withheld = split.withheld()
    for start in range(0, len(latent_NL), BATCH):
        latent_BL = latent_NL[start : start + BATCH]
        rows = slice(start, start + len(latent_BL))
        shown, hidden = (part.batch(rows, latent_BL.device) for part in (split, withheld))
        std_BD = posterior_of(learner, shown, latent_BL, hidden).std_BD
        error_BD = (learner.loss.mean(learner.predict(shown, latent_BL)) - hidden.value_BD).abs()
        found.append(hidden.known((error_BD / std_BD).double()))
    return torch.cat(found)
