"""What every measure promises.

Shapes: V validation images, N test images, L latent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor

from gfe_study.config import Component
from gfe_study.data.split import Splits
from gfe_study.metrics import MetricInfo, is_of, register

if TYPE_CHECKING:
    from gfe_study.methods.base import Learner


class Latents(NamedTuple):
    """Latents of the images that a trial is evaluated on, by the method's own encoding, on the learner's device.

    Attributes:
        val_VL: of the first V validation images.
        test_NL: of the first N test images.
    """

    val_VL: Tensor
    test_NL: Tensor


class Measure(Component, ABC):
    """Taken at every point of a trial, beside its losses, of the same encodings of its images.

    In a configuration: `eval: {measures: [entropy, {name: frechet, images: 2000}]}`.
    """

    metrics: ClassVar[tuple[MetricInfo, ...]] = ()
    """The metrics that it gives. Others are shown by their bare names, and no study can search or compare by them."""
    prepares: ClassVar[str] = ""
    """What `prepare` returns, as part of a file name, with a version to raise whenever it changes; empty: nothing."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        register(*cls.metrics)

    @classmethod
    def gives(cls, metric: str) -> bool:
        """Whether a metric is one of its own."""
        return any(is_of(info.name, metric) for info in cls.metrics)

    @abstractmethod
    def values(self, learner: Learner, splits: Splits, latents: Latents) -> dict[str, float]:
        """Return metrics by name, without those that cannot be computed.

        It must leave torch's global generators alone. A metric that a search may use (`search` or `against` among its
        uses) must be computed without the test images and their latents.

        Args:
            learner: the method as it stands.
            splits: the trial's images.
            latents: of the images that the trial is evaluated on.
        """

    def prepare(self, whole: Splits) -> dict[str, Tensor]:
        """Return what `values` needs of the whole dataset, such as the weights of a network.

        It is made once per study and dataset, where the files are; a trial finds it as `splits.prepared[prepares]`.
        It must depend on nothing but the training and the validation images, and leave torch's global generators alone.

        Args:
            whole: the splits before `held_out`, `train_images` and `scale`.

        Raises:
            InputError: the data does not allow it; one line.
        """
        return {}

    def check_data(self, splits: Splits) -> None:
        """Raise `InputError`, one line, if this measure cannot be taken of the data."""
