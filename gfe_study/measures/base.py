"""What every measure promises.

Shapes: N test images, L latent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from gfe_study.config import Component
from gfe_study.data.base import Splits
from gfe_study.metrics import MetricInfo, register

if TYPE_CHECKING:
    from gfe_study.methods.base import Learner


class Measure(Component, ABC):
    """Taken at every point of a trial, beside its losses, of the same encoding of the test images.

    In a configuration: `eval: {measures: [entropy, {name: frechet, images: 2000}]}`.
    """

    metrics: ClassVar[tuple[MetricInfo, ...]] = ()
    """The metrics that it gives. Others are shown by their bare names, and no study can search or compare by them."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        register(*cls.metrics)

    @abstractmethod
    def values(self, learner: Learner, splits: Splits, latent_NL: Tensor) -> dict[str, float]:
        """Metrics by name; one that cannot be had is left out. It must leave torch's global generators alone.

        Args:
            learner: the method as it stands.
            splits: the trial's images.
            latent_NL: latents of the first N test images, by the method's own encoding, on the learner's device.
        """

    def check_data(self, splits: Splits) -> None:
        """Raise `InputError`, one line, if this measure cannot be taken of the data."""
