"""The parts of a study's declaration: what is optimised, compared, spent and granted."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from gfe_study.config.base import Section
from gfe_study.config.trial import unflatten

IMAGES_WITHOUT_LIMIT = 10_000_000
"""Images a trial may see whose budget is told in decoder evaluations or seconds alone."""
MOST_TRIALS, MOST_SEEDS = 100_000, 10_000

Nested = Annotated[dict[str, Any], AfterValidator(unflatten)]


class Metric(Section):
    """What the search optimises: its value at the end of a trial's budget."""

    name: Literal["val_loss", "train_loss"] = "val_loss"
    mode: Literal["min", "max"] = "min"
    against: Literal["train_seconds", "encode_seconds", "nfe_forward", "encode_nfe", "entropy_gap"] | None = None
    """A second objective, minimised: the search then looks for the Pareto front of both."""


class StudyBudget(Section):
    """What every trial may spend; the first limit that is reached ends it."""

    images: Annotated[int, Field(gt=0)] | None = None
    """Training images seen."""
    nfe: Annotated[int, Field(gt=0)] | None = None
    """Decoder evaluations and pullbacks spent in training."""
    seconds: Annotated[float, Field(gt=0)] | None = None
    """Seconds spent in training updates."""

    def layer(self) -> dict[str, Any]:
        """The configuration of a trial that this sets."""
        given = {key: value for key, value in self.model_dump().items() if value is not None}
        if given and "images" not in given:
            given["images"] = IMAGES_WITHOUT_LIMIT
        return {"budget": given} if given else {}


class Asha(Section):
    """Asynchronous successive halving (Li et al., arXiv:1810.05934) on images seen.

    At `grace_images`, and at every `reduction`-fold of it, a trial goes on only if it is among the best
    1/`reduction` of those that have come as far.
    """

    grace_images: int = Field(480, gt=0)
    reduction: int = Field(3, ge=2)


class Compare(Section):
    """How the arms of a study are compared: paired by seed."""

    metric: Literal["test_loss", "val_loss", "train_loss", "mixed_test_loss", "entropy_gap"] = "test_loss"
    reference: str | None = None
    """The arm, or the level of `factor`, that others are compared with; the first if not given."""
    factor: str | None = None
    """Of a factorial, the factor along which arms are compared; the first if not given."""
    margin: float | None = Field(None, gt=0)
    """Differences below this, in units of the metric, count as none; without it no verdict is `equivalent`."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    budgets: Literal["equal", "as_declared"] = "equal"
    """`equal`: arms of unequal budgets are compared where the smaller ends; `as_declared`: each at its own end."""


class Then(Section):
    """A second stage: the winners of the first, replicated."""

    best: int = Field(1, gt=0)
    """Configurations of every arm that go on, by the mean of the metric over their seeds."""
    seeds: int = Field(1, gt=0, le=MOST_SEEDS)
    """Runs of each, with seeds that the first stage has not used: it has chosen the winners by those."""
    budget: StudyBudget = StudyBudget()
    """Replaces the first stage's, if given."""
    fixed: Nested = {}
    """Configuration laid over the winners'."""


class Resources(Section):
    """What every trial is granted; a fraction of a GPU shares one."""

    cpu: float = Field(1.0, ge=0.01, le=1024)
    gpu: float = Field(0.0, ge=0, le=1024)
