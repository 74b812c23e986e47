"""Samples that are seen through an instrument, as `data.observe` says.

Shapes: N samples, D values of each, M measured values.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gfe_study.data.split import AT_ONCE, DataError, Scale, Shape, Split, Splits
from gfe_study.operators.base import Instrument, Operator


def instrument_of(operator: Operator, shape: Shape, scale: Scale) -> Instrument:
    """An operator as it acts on the scaled values of samples of a shape.

    Raises:
        InputError: it cannot be applied to such samples.
    """
    plain = Instrument(operator, shape.dims, operator.measured_dims(shape.dims))
    if not isinstance(scale.factor, Tensor):
        return plain
    # What measured values vary by if the values vary by their own scales, each by itself.
    rows = torch.diag(scale.factor.double()).split(AT_ONCE)
    norm_M = torch.stack([plain.raw(some).square().sum(0) for some in rows]).sum(0).sqrt()
    return replace(plain, gain_D=scale.factor, norm_M=norm_M.masked_fill(norm_M == 0, 1.0))


def measured_shape(operator: Operator, shape: Shape) -> Shape:
    """The shape of what an operator makes of samples of a shape."""
    channels, *sides = operator.measured_dims(shape.dims)
    if len(sides) == len(shape.sides):
        return Shape(channels, tuple(sides), shape.axis)
    return Shape(channels, tuple(sides), "first" if channels > 1 else None)


def measured_scale(instrument: Instrument, scale: Scale) -> Scale:
    """The scale of measured values: what makes of A y in the data's units the A y of scaled values."""
    size = int(np.prod(instrument.dims))
    shift_D = torch.as_tensor(scale.shift, dtype=torch.float64).expand(size)
    shift_M = instrument.raw(shift_D[None])[0]
    return Scale(shift_M, scale.factor if instrument.norm_M is None else instrument.norm_M)


def measured(operator: Operator, splits: Splits) -> Splits:
    """The splits as an operator's instrument sees them.

    Of validation and test samples, the reconstruction of every observed value is scored: none is shown as it is.

    Raises:
        InputError: the operator cannot be applied to such samples, or they have errors of their own.
    """
    if splits.train.sigma_ND is not None:
        raise DataError(f"data.observe: given {operator.name!r}, and the data has an array 'sigma'; allowed: null")

    def seen(name: str, split: Split) -> Split:
        if name not in operator.splits:
            return split
        scored_ND = None
        if name != "train":
            scored_ND = np.ones(split.values_ND.shape, bool) if split.observed_ND is None else split.observed_ND
        through = replace(split, instrument=instrument_of(operator, splits.shape, split.scale), withheld_ND=scored_ND)
        first = through.batch(slice(0, AT_ONCE))
        if first.known_BD is not None and not bool(first.known_BD.any()):
            raise DataError(
                f"data.observe: given {operator.name!r}, and every measured value of the {name} split depends on a "
                "missing one; allowed: an operator that looks less far"
            )
        return through

    return splits.changed(seen)
