"""Sections of a study's declaration: the metric, the comparison, the budget and the resources."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from gfe_study.config.base import InputError, Section, suggestion
from gfe_study.config.trial import unflatten
from gfe_study.metrics import TEST_LOSS, VAL_LOSS, Mode, Use, choices, info_of, mode_of

IMAGES_WITHOUT_LIMIT = 10_000_000
"""Limit on images seen for trials whose budget is given only in passes or seconds."""
MOST_TRIALS, MOST_SEEDS = 100_000, 10_000


def check_choice(key: str, name: str, use: Use) -> None:
    """Raise `InputError` unless a study may use a metric so."""
    if use not in info_of(name).uses:
        raise InputError(f"{key}: given {name!r}; {suggestion(name, choices(use))}")


Nested = Annotated[dict[str, Any], AfterValidator(unflatten)]


class Metric(Section):
    """The metric that the search optimises: of a trial, what it is at the point that is its result."""

    name: str = Field(VAL_LOSS, examples=choices("search"))
    """What the search optimises; by it winners are chosen."""
    mode: Mode = Field(default_factory=lambda given: mode_of(given.get("name", VAL_LOSS)))
    """Whether lower or higher values are better: as the metric's own description says."""
    against: str | None = Field(None, examples=choices("against"))
    """A second objective; the search then approximates the Pareto front of both."""

    @property
    def sign(self) -> int:
        """The factor that makes lower values better: −1 if higher values are."""
        return 1 if self.mode == "min" else -1

    def check(self) -> None:
        """Raise `InputError` unless a search may use these metrics so; every measure must be known by now."""
        check_choice("metric.name", self.name, "search")
        if self.against is not None:
            check_choice("metric.against", self.against, "against")
        if self.mode != mode_of(self.name):
            better = f"because {info_of(self.name).better} {self.name} is better"
            raise InputError(f"metric.mode: given {self.mode!r}; allowed: {mode_of(self.name)!r}, {better}")


class StudyBudget(Section):
    """The budget of every trial; the first limit that is reached ends the trial."""

    images: Annotated[int, Field(gt=0)] | None = None
    """Training images seen."""
    nfe: Annotated[int, Field(gt=0)] | None = None
    """Decoder evaluations, pullbacks and encoder passes spent in training."""
    seconds: Annotated[float, Field(gt=0)] | None = None
    """Seconds spent in training updates."""
    patience: Annotated[int, Field(gt=0)] | None = None
    """Evaluations in a row without a lower validation loss; trials are then compared where theirs was lowest."""

    @model_validator(mode="after")
    def _ends_for_certain(self) -> Self:
        if self.patience is not None and self.images is None and self.nfe is None and self.seconds is None:
            raise ValueError("patience: given alone; allowed: with images, nfe or seconds, which end any trial")
        return self

    def layer(self) -> dict[str, Any]:
        """Return the part of a trial's configuration that this budget sets."""
        given = {key: value for key, value in self.model_dump().items() if value is not None}
        if given and "images" not in given:
            given["images"] = IMAGES_WITHOUT_LIMIT
        return {"budget": given} if given else {}


class Asha(Section):
    """Asynchronous successive halving (Li et al., arXiv:1810.05934) on images seen.

    At `grace_images` and at its multiples by powers of `reduction`, a trial continues only if it ranks among the best
    1/`reduction` of the trials that have reached this point.
    """

    grace_images: int = Field(480, gt=0)
    """Images seen at which trials are first ranked."""
    reduction: int = Field(3, ge=2)
    """At each ranking, one trial in `reduction` goes on."""


class Compare(Section):
    """How to compare the arms of a study; comparisons are paired by seed."""

    metric: str = Field(TEST_LOSS, examples=choices("compare"))
    """What arms are compared by."""
    reference: str | None = None
    """The arm, or the level of `factor`, that the others are compared with; defaults to the first."""
    factor: str | None = None
    """The factor of a factorial along which arms are compared; defaults to the first."""
    margin: float | None = Field(None, gt=0)
    """Largest difference, in units of the metric, that counts as equivalent; without it no verdict is `equivalent`."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Level of the intervals; a p-value of at most 1 − `confidence` decides a comparison."""
    budgets: Literal["equal", "as_declared"] = "equal"
    """`equal` compares arms of unequal budgets where the smaller one ends; `as_declared` compares each at its end."""


class Then(Section):
    """A second stage, which replicates the winners of the first."""

    best: int = Field(1, gt=0)
    """Configurations of each arm that enter the second stage, chosen by the mean of the metric over their seeds."""
    seeds: int = Field(1, gt=0, le=MOST_SEEDS)
    """Runs of each winner, with new seeds: the winners look too good on the seeds that chose them."""
    budget: StudyBudget = StudyBudget()
    """Replaces the budget of the first stage if given."""
    fixed: Nested = {}
    """Configuration that overrides the winners'."""


class Resources(Section):
    """Resources of every trial; trials share a GPU if `gpu` is a fraction."""

    cpu: float = Field(1.0, ge=0.01, le=1024)
    """CPUs that Ray reserves for each trial, and its number of threads; .5 puts two trials on one."""
    gpu: float = Field(0.0, ge=0, le=1024)
    """GPUs for each trial; .5 puts two trials on one."""
