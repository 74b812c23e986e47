"""The latent prior chosen again, without training, for samples with other gaps than a decoder was trained with.

Shapes: N samples, D values of each.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gfe_study.config import InputError
from gfe_study.data.samples import Samples
from gfe_study.data.split import Array, Split, seeded
from gfe_study.measures.coverage import factor_of, ratios
from gfe_study.measures.errors import imputation_errors
from gfe_study.methods.base import Learner
from gfe_study.metrics import WITHHELD_LOSS
from gfe_study.training import ENCODE_BATCH, evaluate

PRIORS = tuple(float(f"{precision:.2g}") for precision in np.logspace(-2, 2, 13))
"""Precisions that are tried: three per decade."""
MASKS = 500
"""Samples whose gaps are laid on validation samples, at most, and validation samples that they are laid on."""


def tune_prior(learner: Learner, samples: Samples) -> float:
    """Give a learner the `prior_precision` with which it imputes validation samples best where samples of a file have
    gaps.

    The decoder stays as it is. The file says where values are missing, and nothing else.

    Args:
        learner: what encodes; its trial's validation samples are loaded.
        samples: of the file.

    Returns the `calibration` of standard deviations with that prior and those gaps.

    Raises:
        InputError: the method encodes without a prior, the file has no gaps, or the data cannot be had.
    """
    if learner.descends and not any(each.encodes_by_flow for each in (learner, *learner.members)):
        raise InputError(
            f"--tune-prior: given with method={learner.trial.method.name}, whose encoder has no prior; "
            "allowed: methods whose latents are solved for"
        )
    if learner.trial.data.observe is not None:
        raise InputError("--tune-prior: given with data.observe; allowed: without, or --set prior_precision=…")
    val = learner.trial.data.load().val.take(slice(0, MASKS))
    masked = _masked(val, _masks(samples))
    losses = {precision: _loss(learner, masked, precision) for precision in PRIORS}
    best = min(losses, key=lambda precision: losses[precision])
    learner.trial = learner.trial.model_copy(update={"prior_precision": best})
    return factor_of(ratios(learner, masked, _latents(learner, masked)))


def _masks(samples: Samples) -> Array:
    """Where values of the first samples with gaps are observed, shape (N, D)."""
    found: list[Array] = []
    for start in range(0, len(samples), ENCODE_BATCH):
        observed_ND = samples.batch(slice(start, min(start + ENCODE_BATCH, len(samples)))).observed_ND
        if observed_ND is not None:
            found.append(observed_ND[~observed_ND.all(1) & observed_ND.any(1)])
        if sum(map(len, found)) >= MASKS:
            break
    if not sum(map(len, found)):
        raise InputError(
            f"--tune-prior: {samples.where} has no sample of which something is missing, and something not; "
            "allowed: samples with the gaps that are to be filled"
        )
    return np.concatenate(found)[:MASKS]


def _masked(val: Split, mask_ND: Array) -> Split:
    """Validation samples that lack what samples of the file lack, as far as it was observed, and remember it."""
    known_ND = np.ones(val.values_ND.shape, bool) if val.observed_ND is None else val.observed_ND
    drawn_ND = mask_ND[seeded("tune-prior").integers(0, len(mask_ND), len(val))]
    kept_N = (known_ND & drawn_ND).any(1) & (known_ND & ~drawn_ND).any(1)
    if not kept_N.any():
        raise InputError("--tune-prior: no validation sample has values both where the file has some and where not")
    masked = replace(val, observed_ND=known_ND & drawn_ND, withheld_ND=known_ND & ~drawn_ND)
    return masked.take(np.flatnonzero(kept_N))


def _loss(learner: Learner, split: Split, precision: float) -> float:
    """Loss at the withheld values with another prior."""
    trained, learner.trial = learner.trial, learner.trial.model_copy(update={"prior_precision": precision})
    try:
        latent_NL = _latents(learner, split)
    finally:
        learner.trial = trained
    return imputation_errors(learner, split, latent_NL)[WITHHELD_LOSS]


def _latents(learner: Learner, split: Split) -> Tensor:
    return evaluate(learner, split, len(split), torch.device("cpu")).latent_NL
