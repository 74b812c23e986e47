"""The standard Fréchet Inception distance, with weights that the user has.

Shapes: N images, D pixels.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from gfe_study.config import InputError
from gfe_study.data.split import Shape, Splits
from gfe_study.measures.base import Latents, Measure
from gfe_study.measures.classifier import check_images, shades
from gfe_study.measures.distance import frechet_distance
from gfe_study.measures.samples import sampled_images
from gfe_study.methods.base import seeded
from gfe_study.metrics import FID as DISTANCE
from gfe_study.metrics import MetricInfo, info_of

if TYPE_CHECKING:
    from gfe_study.methods.base import Learner

BATCH = 50
LAYER = "2048"
"""Of the Inception network: its last average pooling."""


class FID(Measure):
    """Fréchet Inception distance between test images and as many decoded samples of the target.

    Heusel et al., arXiv:1706.08500: the Inception network of 2015-12-05, its inputs enlarged as TensorFlow does, by
    the library torch-fidelity (`pip install gfe-study[fid]`). Grey images become three equal channels. A fraction of a
    second per image without a GPU, and biased upwards by few images: published values take 10,000 or more. A method
    without a target has none.
    """

    metrics: ClassVar[tuple[MetricInfo, ...]] = (info_of(DISTANCE),)
    weights: str
    """Path of the network's weights, `pt_inception-2015-12-05-6726825d.pth`."""
    images: Annotated[int, Field(gt=1)] | None = None
    """Test images compared, at most; None: all that are evaluated."""

    def check_data(self, splits: Splits) -> None:
        check_images(splits, self.name)

    def values(self, learner: Learner, splits: Splits, latents: Latents) -> dict[str, float]:
        """As of every measure.

        Raises:
            InputError: torch-fidelity is not installed, or the weights are missing or damaged.
        """
        count, device = len(latents.test_NL[: self.images]), latents.test_NL.device
        samples = sampled_images(learner, count, device)
        if samples is None:
            return {}
        network = inception(self.weights, device)
        test = inception_features(network, shades(splits.test, slice(count)), splits.shape)
        try:
            sampled = inception_features(network, splits.test.scale.shade(samples), splits.shape)
            return {DISTANCE: frechet_distance(test, sampled)}
        except ValueError:  # a decoder that has diverged
            return {}


@lru_cache(maxsize=1)
def inception(weights: str, device: torch.device) -> Any:
    """The network, in evaluation mode.

    Raises:
        InputError: torch-fidelity is not installed, or the weights are missing or damaged.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise InputError(
            "eval.measures: fid needs torch-fidelity; install it with: pip install gfe-study[fid]"
        ) from error
    path = Path(weights).expanduser()
    allowed = "allowed: the path of pt_inception-2015-12-05-6726825d.pth"
    if not path.is_file():
        raise InputError(f"eval.measures: fid: weights: {path}: no such file; {allowed}")
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # the library's own reading would run a file's code
        with seeded(0, "inception"):
            network = FeatureExtractorInceptionV3("inception", [LAYER], feature_extractor_weights_path=str(path))
    except Exception as error:  # torch raises what zipfile, pickle or the network raised
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"eval.measures: fid: weights: {path}: damaged, or of another network ({reason}); {allowed}"
        ) from error
    return network.to(device)


@torch.no_grad()
def inception_features(network: Any, image_ND: Tensor, shape: Shape) -> Tensor:
    """What the network makes of images in [0, 1], shape (N, 2048), on the CPU."""
    device = next(network.parameters()).device
    features = []
    for image_BD in image_ND.split(BATCH):
        pictures = (image_BD.to(device) * 255).round().to(torch.uint8).view(-1, *shape.dims)
        (found,) = network(pictures.expand(-1, 3, -1, -1))
        features.append(found.cpu())
    return torch.cat(features)
