"""Settings of values that are taken away on purpose: for experiments, or to be imputed and scored."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from gfe_study.config.base import Section


class Gaps(Section):
    """Which observed values of a sample are taken away.

    - `random`: each value by itself.
    - `block`: a block of neighbouring values, the same in all channels, anywhere in the sample.
    - `columns`: whole columns along the last axis, each by itself: columns of an image, times of a series.
    - `like`: what another sample of the same split lacks, drawn among those with missing values.

    One observed value is left of a sample that would lose them all.
    """

    kind: Literal["random", "block", "columns", "like"] = "random"
    """Which values are taken: see above."""
    fraction: float | None = Field(None, gt=0, lt=1)
    """Expected share of the values that are taken; null with `like`, whose gaps have sizes of their own."""
    seed: int = Field(0, ge=0)
    """Another one takes other values."""

    @model_validator(mode="after")
    def _has_a_size(self) -> Self:
        if self.kind == "like" and self.fraction is not None:
            raise ValueError(f"fraction: given {self.fraction:g} with kind=like; allowed: null")
        if self.kind != "like" and self.fraction is None:
            raise ValueError(f"fraction: given null with kind={self.kind}; allowed: a number between 0 and 1")
        return self


class Hide(Gaps):
    """Observed values that are removed from the data, as if they had never been measured."""

    splits: tuple[Literal["train", "val", "test"], ...] = Field(("train", "val", "test"), min_length=1)
    """The splits that lose values."""
