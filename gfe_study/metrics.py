"""Every metric once: its name, label, unit, better direction, number format and meaning.

Names are the same in MLflow, Ray, reports and `--json`. The MLflow step of every metric is `images_seen`. Everything
that speaks of a metric asks here: the choices of a study, tables, figures, verdicts, views and the reference page. A
measure from another package declares its own metrics beside its class; see `Measure.metrics`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

Better = Literal["lower", "higher"]
Mode = Literal["min", "max"]
Use = Literal["search", "against", "compare"]
"""What a study may do with a metric: optimise it, optimise it as a second objective, compare arms by it."""
Group = Literal["loss", "quality", "images", "cost", "measure"]

IMAGES_SEEN: Final = "images_seen"
IMAGES_USED: Final = "images_used"
UNIQUE_IMAGES: Final = "unique_images"
OPTIMISER_STEPS: Final = "optimiser_steps"
SINCE_BEST: Final = "evaluations_since_best"
TRAIN_LOSS: Final = "train_loss"
VAL_LOSS: Final = "val_loss"
TEST_LOSS: Final = "test_loss"
MIXED: Final = "mixed"
"""The encoding by gradient flow of a method that has an encoder; it prefixes the metric."""
MIXED_TEST_LOSS: Final = f"{MIXED}_{TEST_LOSS}"
COMMON: Final = "common"
"""The encoding that is the same for every trial."""
COMMON_VAL_LOSS: Final = f"{COMMON}_{VAL_LOSS}"
COMMON_TEST_LOSS: Final = f"{COMMON}_{TEST_LOSS}"
RMSE: Final = "rmse"
MAE: Final = "mae"
R2: Final = "r2"
RELATIVE_L2: Final = "relative_l2"
WITHHELD: Final = "withheld"
"""What is imputed where values were withheld from a method; it stands before the metric: `val_withheld_loss`."""
WITHHELD_LOSS: Final = f"{WITHHELD}_loss"
WITHHELD_RMSE: Final = f"{WITHHELD}_{RMSE}"
WITHHELD_MAE: Final = f"{WITHHELD}_{MAE}"
NFE: Final = "nfe"
NFE_FORWARD: Final = "nfe_forward"
NFE_BACKWARD: Final = "nfe_backward"
ENCODER_PASSES: Final = "encoder_passes"
LOSSES: Final = (VAL_LOSS, TEST_LOSS, MIXED_TEST_LOSS, COMMON_VAL_LOSS, COMMON_TEST_LOSS, TRAIN_LOSS)
PASSES: Final = (NFE_FORWARD, NFE_BACKWARD, ENCODER_PASSES)
"""What training costs apart from seconds, per image: all that `budget.nfe` limits."""
ENCODE_NFE: Final = "encode_nfe"
TRAIN_SECONDS: Final = "train_seconds"
ENCODE_SECONDS: Final = "encode_seconds"
EVAL_SECONDS: Final = "eval_seconds"
STOPPED: Final = "stopped"
"""The families of why solvers stopped: `stopped_max_nfe`."""
TRAIN_STOPPED: Final = f"train_{STOPPED}"
DIVERGED: Final = "diverged"
LATENT_ENTROPY: Final = "latent_entropy"
NORMAL_ENTROPY: Final = "normal_entropy"
ENTROPY_GAP: Final = "entropy_gap"
VAL_ENTROPY_GAP: Final = f"val_{ENTROPY_GAP}"
TEST_ENTROPY_GAP: Final = f"test_{ENTROPY_GAP}"
FID: Final = "fid"
COVERAGE_68: Final = "coverage_68"
COVERAGE_95: Final = "coverage_95"
CALIBRATION: Final = "calibration"
NOVELTY_AUROC: Final = "novelty_auroc"
RECONSTRUCTION_AUROC: Final = "reconstruction_auroc"


def of_split(split: Literal["val", "test"], quality: str) -> str:
    """Name a quality of the reconstructions of a split: `test_rmse`."""
    return f"{split}_{quality}"


def classifier_distance(dataset: str, kind: str = "") -> str:
    """Name the Fréchet distance between decoded samples and test images in a classifier's features.

    Args:
        dataset: the dataset that this project's classifier was trained on.
        kind: images to use instead of samples: `reconstruction`, or `floor` for validation images.
    """
    return f"fd_{dataset}_classifier" + (f"_{kind}" if kind else "")


class Values(NamedTuple):
    """What the values of a dataset are called and measured in.

    Attributes:
        noun: `pixel` for images, else `value`.
        unit: their unit, such as `m`; empty if it is unknown.
    """

    noun: str = "pixel"
    unit: str = ""

    @property
    def whole(self) -> str:
        """What they make up together: an image, or a sample."""
        return "image" if self.noun == "pixel" else "sample"

    @classmethod
    def shared(cls, several: Iterable[Values]) -> Values:
        """What can be said of the values of several datasets at once; of none, that they are pixels."""
        known = set(several)
        units = {each.unit for each in known}
        noun = "pixel" if all(each.noun == "pixel" for each in known) else "value"
        return cls(noun, units.pop() if len(units) == 1 else "")


PIXELS: Final = Values()


@dataclass(frozen=True)
class MetricInfo:
    """One metric, or a family of metrics whose names differ in a part: `latent_entropy_<samples>`.

    Attributes:
        label: what it is called in sentences and on axes.
        unit: its unit. `{values}` stands for the noun of the dataset's values, `{unit}` for their unit.
        better: which direction is better; None if neither is.
        format: how its values are written, as of `format`.
        description: its meaning, in one line.
        group: the section of the reference that it belongs to.
        uses: what a study may do with it.
        counted: whether the label says what is counted, so that no unit follows it.
    """

    name: str
    label: str
    unit: str = ""
    better: Better | None = None
    format: str = ".4g"
    description: str = ""
    group: Group = "measure"
    uses: tuple[Use, ...] = ()
    counted: bool = False


def _loss(name: str, label: str, description: str, *uses: Use) -> MetricInfo:
    return MetricInfo(name, label, "nats per {values}", "lower", ".4f", description, "loss", uses)


def _cost(name: str, label: str, unit: str, description: str, *uses: Use) -> MetricInfo:
    return MetricInfo(name, label, unit, "lower", ".4g", description, "cost", uses, counted=unit != "s")


def _count(name: str, label: str, unit: str, description: str) -> MetricInfo:
    return MetricInfo(name, label, unit, None, ",.0f", description, "images", counted=True)


def _quality(split: Literal["val", "test"], of: str) -> tuple[MetricInfo, ...]:
    uses: tuple[Use, ...] = ("search",) if split == "val" else ("compare",)
    about: tuple[tuple[str, str, str, Better, str, str], ...] = (
        (
            RMSE,
            "root-mean-square error",
            "{unit}",
            "lower",
            ".5g",
            "Root of the mean squared error of the {0} values.",
        ),
        (MAE, "mean absolute error", "{unit}", "lower", ".5g", "Mean absolute error of the {0} values."),
        (
            R2,
            "coefficient of determination",
            "",
            "higher",
            ".4f",
            "Share of the variance of the {0} values, about the mean of each, that is explained; 1 is perfect.",
        ),
        (
            RELATIVE_L2,
            "relative L2 error",
            "",
            "lower",
            ".4f",
            "L2 norm of a sample's errors, divided by the L2 norm of its values; mean over the {0} samples.",
        ),
    )
    return tuple(
        MetricInfo(
            of_split(split, name), f"{of} {label}", unit, better, form, text.format(f"{of} data's"), "quality", uses
        )
        for name, label, unit, better, form, text in about
    )


def _imputed(split: Literal["val", "test"], of: str) -> tuple[MetricInfo, ...]:
    use: Use = "search" if split == "val" else "compare"
    where = f"over the values that `eval.withhold` keeps from every method in {of} samples"
    return (
        _loss(
            of_split(split, WITHHELD_LOSS),
            f"{of} loss, withheld values",
            f"Negative log-likelihood at the reconstruction, mean {where}.",
            use,
        ),
        *(
            MetricInfo(
                of_split(split, name),
                f"{of} {label}, withheld values",
                "{unit}",
                "lower",
                ".5g",
                text,
                "quality",
                (use,),
            )
            for name, label, text in (
                (WITHHELD_RMSE, "root-mean-square error", f"Root of the mean squared error {where}."),
                (WITHHELD_MAE, "mean absolute error", f"Mean absolute error {where}."),
            )
        ),
    )


_BUILT_IN: tuple[MetricInfo, ...] = (
    _loss(TRAIN_LOSS, "training loss", "Mean over the training images since the last point.", "search", "compare"),
    _loss(VAL_LOSS, "validation loss", "Validation images. A search optimises this one.", "search", "compare"),
    _loss(
        TEST_LOSS,
        "test loss",
        "Test images. Arms are compared by this one, unless `compare.metric` names another.",
        "compare",
    ),
    _loss(
        MIXED_TEST_LOSS,
        "test loss, encoded by flow",
        "The decoder of a method with an encoder, with test images encoded by gradient flow (`eval.mixed`).",
        "compare",
    ),
    _loss(
        COMMON_VAL_LOSS,
        "validation loss, common encoder",
        "Validation images, encoded by L-BFGS with its default settings from zero, whatever the trial's own method, "
        "solver, flow, start or latent term (`eval.common`).",
        "search",
        "compare",
    ),
    _loss(
        COMMON_TEST_LOSS,
        "test loss, common encoder",
        "The same for test images. Decoders are compared by this one where arms differ in solver, flow, gradient or "
        "start.",
        "compare",
    ),
    *_quality("val", "validation"),
    *_quality("test", "test"),
    *_imputed("val", "validation"),
    *_imputed("test", "test"),
    _count(
        IMAGES_SEEN,
        "training images seen",
        "images",
        "Training images, each counted once per batch it is in, however many weight updates the batch gets.",
    ),
    _count(IMAGES_USED, "training images used", "images", "Training images, counted once per weight update."),
    _count(
        UNIQUE_IMAGES,
        "different training images",
        "images",
        "Different training images seen: `images_seen`, until the whole training set has been seen.",
    ),
    _count(OPTIMISER_STEPS, "weight updates", "updates", "Weight updates."),
    _count(
        SINCE_BEST,
        "evaluations since the lowest validation loss",
        "evaluations",
        "Of a trial with `budget.patience`: evaluations since the validation loss was lowest; 0 where it is lower than "
        "ever before. The last such point is the trial's result.",
    ),
    _cost(
        NFE_FORWARD,
        "decoder evaluations per training image, solver and update",
        "evaluations per image",
        "Decoder evaluations per training image, mean so far: those of the solver and those of the weight update.",
        "against",
    ),
    _cost(
        NFE_BACKWARD,
        "decoder pullbacks per training image",
        "pullbacks per image",
        "Decoder pullbacks (vector–Jacobian products) per training image, mean so far.",
    ),
    _cost(
        ENCODER_PASSES,
        "encoder passes per training image",
        "passes per image",
        "Passes through an encoder per training image, mean so far. A forward pass and a backward pass count one each: "
        "2 per weight update of an encoder. The images that `gen` encodes again for its density count too.",
    ),
    _cost(
        ENCODE_NFE,
        "passes per encoded image",
        "per image",
        "Decoder evaluations, pullbacks and encoder passes to encode a validation image; 1 for an encoder.",
        "against",
    ),
    _cost(
        ENCODE_SECONDS,
        "time to encode the validation images",
        "s",
        "Seconds to encode and decode all validation images at this point.",
        "against",
    ),
    _cost(
        TRAIN_SECONDS,
        "training time",
        "s",
        "Seconds in training updates since the start of the trial, without evaluation.",
        "against",
    ),
    _cost(EVAL_SECONDS, "evaluation time", "s", "Seconds in evaluation since the start of the trial."),
    MetricInfo(
        DIVERGED,
        "diverged",
        "0 or 1",
        "lower",
        ".0f",
        "1 if the training or the validation loss became NaN or infinite, which ends the trial. If it is the training "
        "loss, the trial ends before the optimiser steps.",
        "cost",
        counted=True,
    ),
    MetricInfo(
        f"{STOPPED}_<reason>",
        "validation images whose solver stopped by <reason>",
        "share",
        None,
        ".3f",
        "Validation images whose solver stopped for this reason: `reached_tau`, `slope` (flatter than `min_slope`), "
        "`no_descent` (no fall beyond rounding), `stalled` (all steps that it tried were too long), `max_nfe`, "
        "`nonfinite`, `underflow`. Absent for methods with an encoder, and in closed form.",
        "cost",
        counted=True,
    ),
    MetricInfo(
        f"{TRAIN_STOPPED}_<reason>",
        "training images whose solver stopped by <reason>",
        "share",
        None,
        ".3f",
        "The same for the training images since the last point, in the last update of their batch.",
        "cost",
        counted=True,
    ),
    MetricInfo(
        LATENT_ENTROPY,
        "entropy of the latents",
        "nats",
        "higher",
        ".3f",
        "Kernel-density entropy of the whitened latents of the test images.",
    ),
    MetricInfo(
        NORMAL_ENTROPY,
        "entropy of samples of the normal",
        "nats",
        None,
        ".3f",
        "The same for as many samples of a standard normal.",
    ),
    MetricInfo(
        TEST_ENTROPY_GAP,
        "entropy gap of test images to the normal",
        "nats",
        "lower",
        ".4f",
        "`normal_entropy` − `latent_entropy`. It is 0 if the latents fill the standard normal.",
        uses=("compare",),
    ),
    MetricInfo(
        VAL_ENTROPY_GAP,
        "entropy gap of validation images to the normal",
        "nats",
        "lower",
        ".4f",
        "The same with the latents of the validation images, for a search.",
        uses=("search", "against"),
    ),
    MetricInfo(
        f"{LATENT_ENTROPY}_<samples>",
        "entropy of the first <samples> latents",
        "nats",
        "higher",
        ".3f",
        "`latent_entropy` of the first `<samples>` latents, if the measure asks for that number.",
    ),
    MetricInfo(
        f"{NORMAL_ENTROPY}_<samples>",
        "entropy of <samples> samples of the normal",
        "nats",
        None,
        ".3f",
        "The same for as many samples of a standard normal.",
    ),
    MetricInfo(
        classifier_distance("<dataset>"),
        "Fréchet distance of samples, <dataset> classifier",
        better="lower",
        description="Squared Fréchet distance between decoded samples and test images, in the features of the "
        "project's own classifier.",
    ),
    MetricInfo(
        classifier_distance("<dataset>", "reconstruction"),
        "Fréchet distance of reconstructions, <dataset> classifier",
        better="lower",
        description="The same for reconstructions instead of samples.",
    ),
    MetricInfo(
        classifier_distance("<dataset>", "floor"),
        "Fréchet distance of validation images, <dataset> classifier",
        description="The same for validation images: what real images reach.",
    ),
    MetricInfo(FID, "FID", better="lower", description="The standard Fréchet Inception distance.", uses=("compare",)),
    *(
        MetricInfo(
            name,
            f"share of withheld test values within their {share} % intervals",
            "",
            None,
            ".4f",
            f"Withheld test values within the interval that is to hold {share} % of them, calibrated on validation.",
        )
        for name, share in ((COVERAGE_68, 68), (COVERAGE_95, 95))
    ),
    MetricInfo(
        CALIBRATION,
        "calibration factor",
        "",
        None,
        ".4f",
        "Factor on the standard deviations with which 95 % of the withheld validation values lie within their "
        "intervals; 1 if they need none.",
    ),
    MetricInfo(
        NOVELTY_AUROC,
        "AUROC by log-probability",
        "",
        "higher",
        ".4f",
        "Area under the ROC curve when test images of the held-out class are ranked by −log p(x). 0.5 is chance.",
        uses=("compare",),
    ),
    MetricInfo(
        RECONSTRUCTION_AUROC,
        "AUROC by reconstruction error",
        "",
        "higher",
        ".4f",
        "The same when they are ranked by reconstruction error alone.",
        uses=("compare",),
    ),
)

_DERIVED = (
    MetricInfo(NFE, "passes through decoder and encoder in training", better="lower", format=",.0f", group="cost"),
)
"""What an analysis derives from metrics; never logged."""

STANDARD: Final = (
    IMAGES_SEEN,
    IMAGES_USED,
    UNIQUE_IMAGES,
    TRAIN_LOSS,
    VAL_LOSS,
    TEST_LOSS,
    MIXED_TEST_LOSS,
    COMMON_VAL_LOSS,
    COMMON_TEST_LOSS,
    NFE_FORWARD,
    NFE_BACKWARD,
    ENCODER_PASSES,
    ENCODE_NFE,
    TRAIN_SECONDS,
    ENCODE_SECONDS,
    EVAL_SECONDS,
    OPTIMISER_STEPS,
)
"""Metrics that always have a column, even if nothing was logged."""
COUNTS: Final = (IMAGES_SEEN, IMAGES_USED, UNIQUE_IMAGES, OPTIMISER_STEPS, SINCE_BEST, DIVERGED)
"""Metrics with integer values."""

_known: dict[str, MetricInfo] = {}
_PLACEHOLDER = re.compile(r"<(\w+)>")
_PARTS = {"dataset": r"\w+?", "samples": r"\d+", "reason": r"[a-z_]+"}
"""What a placeholder in the name of a family stands for."""


def register(*infos: MetricInfo) -> None:
    """Add metrics; a metric that is known already must be the same.

    Raises:
        ValueError: another metric has the name.
    """
    for info in infos:
        if _known.setdefault(info.name, info) != info:
            raise ValueError(f"metric {info.name!r} is declared twice, differently; allowed: one declaration of a name")


register(*_BUILT_IN, *_DERIVED)


def info_of(name: str) -> MetricInfo:
    """Return what is known of a metric; of an unknown one, its name as the label, and neither unit nor direction."""
    return _declared(name) or MetricInfo(name, name.replace("_", " "))


def is_known(name: str) -> bool:
    """Return whether a metric is declared, by itself or as a member of a family."""
    return _declared(name) is not None


def is_of(family: str, name: str) -> bool:
    """Return whether a name is a metric's own, or one of its family."""
    return family == name or _match(family, name) is not None


def _declared(name: str) -> MetricInfo | None:
    if name in _known:
        return _known[name]
    for family in _known.values():
        if found := _match(family.name, name):
            label = family.label
            for part, text in found.groupdict().items():
                label = label.replace(f"<{part}>", text)
            return replace(family, name=name, label=label)
    return None


def _match(family: str, name: str) -> re.Match[str] | None:
    """Match a name against a family's, whose placeholders stand for letters or digits."""
    if "<" not in family:
        return None
    pattern = _PLACEHOLDER.sub(lambda part: f"(?P<{part[1]}>{_PARTS[part[1]]})", family)
    return re.fullmatch(pattern, name)


def result_of(points: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """Return the point that is a trial's result: its last one, or of a trial with `budget.patience` its best one.

    A trial that diverged has its last point, which says so.
    """
    best = points if points[-1].get(DIVERGED) else [point for point in points if not point.get(SINCE_BEST)]
    return best[-1]


def is_loss(name: str) -> bool:
    return info_of(name).group == "loss"


def unit_of(name: str, values: Values = PIXELS) -> str:
    """Return a metric's unit on data with such values: `nats per pixel`; empty if it has none or it is unknown."""
    return info_of(name).unit.format(values=values.noun, unit=values.unit)


def label_of(name: str, values: Values = PIXELS) -> str:
    """Return a metric's label with its unit in brackets: `test loss (nats per pixel)`."""
    info, unit = info_of(name), unit_of(name, values)
    return f"{info.label} ({unit})" if unit and not info.counted else info.label


def noun_of(name: str) -> str:
    """Return what a metric is called where any loss is just `loss`."""
    return "loss" if is_loss(name) else info_of(name).label


def mode_of(name: str) -> Mode:
    """Return the direction of a search for better values; `min` if neither direction is known to be better."""
    return "max" if info_of(name).better == "higher" else "min"


def sign_of(name: str) -> int:
    """Return 1 if lower is better, −1 if higher is: the factor that makes lower values better."""
    return 1 if mode_of(name) == "min" else -1


def text_of(name: str, value: float, *, sign: bool = False) -> str:
    """Write a metric's value, or with its sign a difference of two values, in the metric's format."""
    return format(value, f"{'+' if sign else ''}{info_of(name).format}")


def units_text(names: Iterable[str], values: Values = PIXELS) -> str:
    """Say the units of several metrics, those without one left out: `losses in nats per pixel, test_rmse in m`."""
    found: dict[str, None] = {}
    for name in names:
        if unit := unit_of(name, values):
            found[f"{'losses' if is_loss(name) else name} in {unit}"] = None
    return ", ".join(found)


def unit_and_direction(name: str, values: Values = PIXELS) -> str:
    """Say a metric's unit and better direction: `nats per pixel, lower is better`."""
    better = info_of(name).better
    return ", ".join(filter(None, [unit_of(name, values), f"{better} is better" if better else ""]))


def counterpart_on_test(name: str) -> str:
    """Return the metric of the test images that corresponds to one of others: `test_rmse` for `val_rmse`."""
    counterpart, found = re.subn("(^|_)(train|val|test)_", r"\1test_", name)
    return counterpart if found and counterpart in _known else TEST_LOSS


def is_objective(name: str) -> bool:
    """Return whether a search may optimise a metric, which then never depends on test images."""
    return not {"search", "against"}.isdisjoint(info_of(name).uses)


def choices(use: Use) -> list[str]:
    """Return the metrics that a study may use so, in the order of the reference."""
    return [info.name for info in _known.values() if use in info.uses]


def ordered(names: Iterable[str]) -> list[str]:
    """Sort metrics as in the reference, members of a family by number; unknown ones come last, by name."""
    places = {name: place for place, name in enumerate(_known)}

    def key(name: str) -> tuple[int, list[int], str]:
        family = next((known for known in _known if _match(known, name)), name)
        return places.get(family, len(places)), [int(digits) for digits in re.findall(r"\d+", name)], name

    return sorted(set(names), key=key)


def reference(group: Group) -> str:
    """Return the table of a group of metrics in Markdown, for the reference page."""
    rows = [
        (f"`{info.name}`", _unit_text(info) or "–", info.better or "–", info.description)
        for info in _BUILT_IN
        if info.group == group
    ]
    header = ("metric", "unit", "better", "meaning")
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ("---",) * len(header), *rows))


def _unit_text(info: MetricInfo) -> str:
    return info.unit.replace("{values}", "pixel or value").replace("{unit}", "the data's")
