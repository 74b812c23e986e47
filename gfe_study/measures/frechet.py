"""Fréchet distance of generated images from test images, as a classifier of this project sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from gfe_study.config import InputError
from gfe_study.data.split import Splits
from gfe_study.measures.base import Latents, Measure
from gfe_study.measures.classifier import VERSION, check_images, restored, shades, trained
from gfe_study.measures.distance import frechet_distance
from gfe_study.measures.samples import decode_all, sampled_images
from gfe_study.metrics import MetricInfo, classifier_distance, info_of

if TYPE_CHECKING:
    from gfe_study.methods.base import Learner


class Frechet(Measure):
    """Squared Fréchet distance between test images and as many decoded samples of the target.

    In the feature space of a classifier of the dataset: `fd_mnist_classifier` on MNIST, and so on. It is trained once
    for all trials of a study, on the whole training split. The distance is no FID, and comparable within one dataset
    and one number of images only. Beside it, of the same test images: with `_floor`, the distance of as many validation
    images (left out where there are fewer), which is what real images have; with `_reconstruction`, that of their
    reconstructions, which is what this decoder could reach with the right latents. A method without a target has the
    last two alone.
    """

    metrics: ClassVar[tuple[MetricInfo, ...]] = tuple(
        info_of(classifier_distance("<dataset>", kind)) for kind in ("", "reconstruction", "floor")
    )
    prepares = f"classifier-v{VERSION}"
    images: Annotated[int, Field(gt=1)] | None = None
    """Test images compared, at most; None: all that are evaluated."""

    def check_data(self, splits: Splits) -> None:
        check_images(splits, self.name)
        if splits.train.labels_N is None:
            raise InputError("eval.measures: given frechet, and the data has no labels to train its classifier with")

    def prepare(self, whole: Splits) -> dict[str, Tensor]:
        return trained(whole)

    def values(self, learner: Learner, splits: Splits, latents: Latents) -> dict[str, float]:
        latent_NL = latents.test_NL[: self.images]
        count, device = len(latent_NL), latent_NL.device
        if self.prepares not in splits.prepared:
            raise InputError("eval.measures: given frechet, and its classifier did not come with the images")
        classifier = restored(splits.shape, splits.prepared[self.prepares])
        test = classifier.features(shades(splits.test, slice(count)))
        shade = splits.test.scale.shade
        compared = {"reconstruction": shade(decode_all(learner, latent_NL))}
        if count <= len(splits.val):
            compared["floor"] = shades(splits.val, slice(count))
        if (samples := sampled_images(learner, count, device)) is not None:
            compared[""] = shade(samples)
        found: dict[str, float] = {}
        for kind, images_ND in compared.items():
            try:
                distance = frechet_distance(test, classifier.features(images_ND))
            except ValueError:  # a decoder that has diverged
                continue
            found[classifier_distance(learner.trial.data.name, kind)] = distance
        return found
