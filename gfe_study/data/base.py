"""The dataset contract: what gives the samples of a trial, scaled and checked.

Shapes: N samples, D values of each.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, SerializeAsAny

from gfe_study.config import Component
from gfe_study.config.gaps import Hide
from gfe_study.config.trial import by_choice
from gfe_study.data.gaps import hidden, withheld
from gfe_study.data.measuring import measured
from gfe_study.data.split import AT_ONCE, Array, DataError, Scale, Split, Splits, nested_subset
from gfe_study.metrics import Values
from gfe_study.names import DATA_DIR_VARIABLE
from gfe_study.operators.base import Operator

if TYPE_CHECKING:
    from gfe_study.config import Trial


class Dataset(Component, ABC):
    """A dataset by name; its settings are fields."""

    outlast_name = frozenset({"train_images", "subset_seed", "held_out", "hide", "observe"})

    noun: ClassVar[str] = "pixel"
    """What one of a sample's values is called: `pixel`, or `value` of data that are not images."""

    train_images: int | None = Field(None, gt=0)
    """Different training images there are: a stratified subset, contained in every larger one; None for all."""
    subset_seed: int = Field(0, ge=0)
    """Which subset."""
    held_out: int | None = None
    """A class that is left out of training and validation and stays in the test split; None for no class."""
    scale: Literal["standard", "minmax", "none"] | None = None
    """How stored values become those that the decoder reproduces, fitted on what is observed of the training samples:
    zero mean and unit variance, the range to [0, 1], or as they are. Vectors are scaled by value, samples with
    channels by channel, all others as a whole. None: images from black 0 to white 1, anything else as it is. Whatever
    is shown or written is in the data's own units."""
    hide: Hide | None = None
    """Observed values that are removed, for experiments; None: none."""
    observe: SerializeAsAny[Annotated[Operator, by_choice("operator")]] | None = None
    """The linear map through which samples are measured before any method sees them; None: they are seen as they are.
    What is decoded of validation and test samples is scored at every value: `val_withheld_rmse` and its like."""

    @property
    def whole(self) -> Self:
        """The dataset with all of its samples, as they are stored."""
        everything = {
            "train_images": None,
            "subset_seed": 0,
            "held_out": None,
            "scale": None,
            "hide": None,
            "observe": None,
        }
        return self.model_copy(update=everything)

    @property
    def label(self) -> str:
        """What texts call the dataset."""
        return self.name

    @property
    def called(self) -> Values:
        """What its values are called and measured in, for texts about it."""
        return Values(self.noun, getattr(self, "unit", None) or "")

    @abstractmethod
    def read(self, folders: list[Path], *, download: bool) -> Splits:
        """The whole splits, from the first of `folders` that holds the files; see `load`."""

    def sources(self, folders: list[Path]) -> list[Path]:
        """Return the files that `read` may read, whether they exist or not; none if the data comes with a package."""
        return []

    def load(self, folders: list[Path] | None = None, *, download: bool = False) -> Splits:
        """Return the scaled splits, without `hide` and `held_out`, and with the training split cut to `train_images`.

        Args:
            folders: where to look; None stands for `data_folders()`.
            download: fetch what is in none of them, under a lock.

        Raises:
            DataError: the files are nowhere, cannot be fetched, or are damaged, or hold too few samples, or not the
                class that is held out.
        """
        splits = self.read(data_folders() if folders is None else folders, download=download)
        if self.hide is not None:  # of the whole data, so that a subset has the gaps of every larger one
            splits = hidden(self.hide, splits)
        if self.held_out is not None:
            splits = self._without(splits, self.held_out)
        if self.train_images is not None:
            if self.train_images > len(splits.train):
                raise DataError(
                    f"data.train_images: given {self.train_images}; allowed: at most {len(splits.train)}, "
                    f"the training samples of {self.name}"
                )
            splits = replace(splits, train=nested_subset(splits.train, self.train_images, self.subset_seed))
        if self.scale is not None:
            scale = fitted_scale(self.scale, splits)
            splits = splits.changed(lambda _, split: replace(split, scale=scale))
        return splits if self.observe is None else measured(self.observe, splits)

    def check_trial(self, trial: Trial) -> None:
        super().check_trial(trial)
        scored = self.observe is not None and {"val", "test"} & set(self.observe.splits)
        if scored and trial.eval.withhold is not None:
            raise ValueError(
                "eval.withhold: given with data.observe, by which every value of the validation and test samples is "
                "scored; allowed: null, or data.observe.splits: [train]"
            )

    def _without(self, splits: Splits, label: int) -> Splits:
        parts = [(part, part.labels_N) for part in (splits.train, splits.val) if part.labels_N is not None]
        if len(parts) < 2 or splits.test.labels_N is None:
            raise DataError(f"data.held_out: given {label}, and {self.name} has no labels; allowed: null")
        classes = np.unique(parts[0][1]).tolist()
        allowed = [each for each in classes if all((labels_N != each).any() for _, labels_N in parts)]
        if label not in allowed:
            raise DataError(
                f"data.held_out: given {label}; allowed: a class that {self.name} trains on beside others"
                + (f": {', '.join(map(str, allowed))}" if allowed else "; it has one alone")
            )
        train, val = (part.take(labels_N != label) for part, labels_N in parts)
        return replace(splits, train=train, val=val)


def fitted_scale(kind: Literal["standard", "minmax", "none"], splits: Splits) -> Scale:
    """The scale of a kind, fitted on the observed values of the training split; a constant is only shifted."""
    train, shape = splits.train, splits.shape
    levels = train.scale.levels
    if kind == "none":
        return Scale(levels=levels)
    by_value = len(shape.sides) == 1 and shape.axis is None
    groups = shape.size if by_value else shape.channels

    def reduced(function: Any, start: Array, combine: Any) -> Array:
        """A reduction over samples and over the values of a group, shape (groups,)."""
        for begin in range(0, len(train), AT_ONCE):
            rows = slice(begin, begin + AT_ONCE)
            values = np.asarray(train.values_ND[rows], dtype=np.float64)
            known = np.ones(values.shape, bool) if train.observed_ND is None else train.observed_ND[rows]
            grouped = (part.reshape(len(values), groups, -1) for part in (values, known))
            start = combine(start, function(*grouped))
        return start

    zero = np.zeros(groups)
    if kind == "minmax":
        lowest = reduced(lambda v, k: v.min((0, 2), where=k, initial=np.inf), zero + np.inf, np.minimum)
        highest = reduced(lambda v, k: v.max((0, 2), where=k, initial=-np.inf), zero - np.inf, np.maximum)
        shift, factor = lowest, highest - lowest
    else:
        count = np.maximum(reduced(lambda v, k: k.sum((0, 2)), zero, np.add), 1)
        shift = reduced(lambda v, k: v.sum((0, 2), where=k), zero, np.add) / count
        centre = shift[None, :, None]
        square = reduced(lambda v, k: np.square(v - centre).sum((0, 2), where=k), zero, np.add)
        factor = np.sqrt(square / count)
    seen = np.isfinite(shift) & np.isfinite(factor)
    # What varies by rounding alone is constant.
    varies = seen & (factor > 1e-12 * np.abs(np.where(seen, shift, 0)))
    shift, factor = np.where(seen, shift, 0.0), np.where(varies, factor, 1.0)
    if train.values_ND.dtype != np.float64:  # `apply` computes in float32, and `undo` must know the same numbers
        shift, factor = (each.astype(np.float32).astype(np.float64) for each in (shift, factor))
    if groups == 1:
        return Scale(float(shift[0]), float(factor[0]), levels)
    shifts, factors = (torch.from_numpy(each).repeat_interleave(shape.size // groups) for each in (shift, factor))
    return Scale(shifts, factors, levels)


def load_splits(trial: Trial, folders: list[Path] | None = None, *, download: bool = False) -> Splits:
    """The splits of a trial, without what `eval.withhold` takes; see `Dataset.load`.

    Raises:
        InputError: they cannot be had, a value is outside the domain of the trial's likelihood, or a measure cannot be
            taken of them.
    """
    splits = read_splits(trial, folders, download=download)
    check_data(trial, splits)
    return splits


def read_splits(trial: Trial, folders: list[Path] | None = None, *, download: bool = False) -> Splits:
    """The same without the checks of values and measures."""
    return withheld(trial.eval.withhold, trial.data.load(folders, download=download))


def check_data(trial: Trial, splits: Splits) -> None:
    """Raise `InputError` if a value is outside the domain of the trial's likelihood, or a measure cannot be taken."""
    for measure in trial.eval.measures or ():
        measure.check_data(splits)
    likelihood = trial.likelihood
    if likelihood.needs_sigma and splits.train.sigma_ND is None:
        raise DataError(
            "likelihood.sigma: given 'data', and no array 'sigma' lies beside the samples; allowed: a number, learned"
        )
    for part, split in splits.parts.items():
        few = split.values_ND.dtype == np.uint8 and isinstance(split.scale.factor, float)
        if few and split.observed_ND is None and split.instrument is None:
            kinds = np.flatnonzero(np.bincount(split.values_ND.reshape(-1), minlength=256)).astype(np.uint8)
            split = Split(kinds[:, None], scale=split.scale)
        for batch in split.batches():
            if not bool(batch.value_BD.isfinite().all()):
                given = trial.data.scale or "null"
                raise DataError(
                    f"data.scale: given {given} with {part} values beyond what 32 bits hold; allowed: standard, minmax"
                )
            if not likelihood.admits(batch):
                known = batch.known(batch.value_BD)
                raise DataError(
                    f"likelihood.name: given {likelihood.name!r}, which is for {likelihood.domain}, with {part} values "
                    f"from {known.min():g} to {known.max():g} (data.scale: {trial.data.scale or 'not given'}); "
                    "allowed: another likelihood or scale"
                )


def data_folders() -> list[Path]:
    """Where data files are looked for, first to last."""
    given = os.environ.get(DATA_DIR_VARIABLE)
    return [*([Path(given).expanduser().resolve()] if given else []), Path("data").resolve()]
