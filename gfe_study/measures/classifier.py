"""A small classifier of a dataset's images: the feature space in which its generated images are judged.

Shapes: B batch, N images, D pixels, F features.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor, nn

from gfe_study.cache import cache_folder
from gfe_study.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from gfe_study.config import InputError
from gfe_study.data.base import DataError, Dataset, Shape, Split, Splits, are_images
from gfe_study.methods.base import seeded

FEATURES = 64
"""F: what its last hidden layer makes of an image."""
CHANNELS = (16, 32, 64)
"""Of its feature maps; as many of these layers as halve the sides down to `SMALLEST`."""
SMALLEST = 7
IMAGES, REPETITIONS = 100_000, 30
"""Training images seen, and how often each, at most."""
BATCH = 100
LR = 3e-3
"""The highest of a one-cycle schedule (Smith & Topin, arXiv:1708.07120)."""
CACHE_VERSION = 1
"""Raised by hand whenever the features change."""


class Classifier(nn.Module):
    """Convolutions that halve the sides, a layer of `FEATURES`, and the classes."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        side = min(shape.sides)
        count = next((number for number in range(1, len(CHANNELS)) if side >> number <= SMALLEST), len(CHANNELS))
        layers: list[nn.Module] = [nn.Unflatten(1, shape.dims)]
        for inputs, outputs in itertools.pairwise([shape.channels, *CHANNELS[:count]]):
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.GELU()]
        layers += [nn.Flatten(), nn.LazyLinear(FEATURES), nn.GELU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURES, classes)
        self.body(torch.zeros(1, shape.size))  # the lazy layer learns its width

    def forward(self, image_BD: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(image_BD))
        return logits

    @torch.no_grad()
    def features(self, image_ND: Tensor) -> Tensor:
        """Of many images, shape (N, F), on the CPU."""
        device = next(self.parameters()).device
        return torch.cat([self.body(image_BD.to(device)).cpu() for image_BD in image_ND.split(BATCH)])


def classifier_of(data: Dataset, splits: Splits) -> Classifier:
    """The classifier of a dataset, trained once and kept in the cache folder, where any process finds it.

    It knows the whole training split, before `held_out` and `train_images`, so that all trials of a dataset share one
    feature space; where the files cannot be read again, the trial's own. Trained on the CPU from a fixed seed, by
    Adam; torch's global generators are left alone. 98.6 % of MNIST's test images are classified rightly.

    Raises:
        ValueError: the training images are of one class.
    """
    known = _known.get(splits.sha256)
    if known is None:
        _known.clear()  # a process works on one dataset at a time
        known = _known[splits.sha256] = _kept_or_trained(data.name, _whole(data, splits))
    return known


_known: dict[str, Classifier] = {}


def _whole(data: Dataset, splits: Splits) -> Splits:
    if data.held_out is None and data.train_images is None:
        return splits
    try:
        return data.model_copy(update={"held_out": None, "train_images": None}).load()
    except DataError:
        return splits


def shades(split: Split, index: slice | np.ndarray[Any, Any]) -> Tensor:
    """Images of a split from 0, black, to 1, white, whatever its scale; shape (N, D)."""
    return split.scale.shade(split.batch(index).value_BD)


def check_images(splits: Splits, measure: str) -> None:
    """Raise `InputError` if the data is not complete images in grey or in colour."""
    if not are_images(splits.shape, splits.train.scale):
        raise InputError(f"eval.measures: given {measure}, which looks at complete images; allowed: for images only")


def _kept_or_trained(name: str, splits: Splits) -> Classifier:
    assert splits.train.labels_N is not None
    classes = len(np.unique(splits.train.labels_N))
    if classes < 2:
        raise ValueError("training images of one class train no classifier")
    path = cache_folder() / "classifier" / f"{name}-{splits.sha256[:16]}-v{CACHE_VERSION}.pt"
    with seeded(0, "classifier"):
        classifier = Classifier(splits.shape, classes)
        if _read(path, classifier):
            return classifier
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                if not _read(path, classifier):
                    _train(classifier, splits.train)
                    write_checkpoint(path, {"networks": classifier.state_dict()})
        except OSError:  # nowhere to keep it: trained again by the next process that asks
            _train(classifier, splits.train)
    return classifier


def _read(path: Path, into: Classifier) -> bool:
    try:
        into.load_state_dict(read_checkpoint(path)["networks"])
    except (FileNotFoundError, CheckpointError, KeyError, RuntimeError):
        return False
    return True


def _train(classifier: Classifier, train: Split) -> None:
    assert train.labels_N is not None
    label_N = torch.from_numpy(np.unique(train.labels_N, return_inverse=True)[1])
    images = min(IMAGES, REPETITIONS * len(train))
    optimiser = torch.optim.Adam(classifier.parameters(), LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=-(-images // BATCH))
    order = torch.cat([torch.randperm(len(train)) for _ in range(-(-images // len(train)))])
    for index_B in order[:images].split(BATCH):
        optimiser.zero_grad(set_to_none=True)
        loss = F.cross_entropy(classifier(shades(train, index_B.numpy())), label_N[index_B])
        loss.backward()
        optimiser.step()
        schedule.step()
