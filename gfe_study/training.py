"""Training and evaluation of one trial: a plain generator that knows neither Ray nor MLflow.

Shapes: B batch, D values of a sample.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gfe_study.config import Trial
from gfe_study.data.split import Split, Splits
from gfe_study.device import prepare
from gfe_study.measures.base import Latents
from gfe_study.measures.errors import errors, imputation_errors
from gfe_study.methods.base import Batch, Diverged, Learner, derive_seed
from gfe_study.metrics import (
    COMMON,
    COMMON_TEST_LOSS,
    COMMON_VAL_LOSS,
    DIVERGED,
    ENCODE_NFE,
    ENCODE_SECONDS,
    ENCODER_PASSES,
    EVAL_SECONDS,
    IMAGES_SEEN,
    IMAGES_USED,
    NFE_BACKWARD,
    NFE_FORWARD,
    OPTIMISER_STEPS,
    SINCE_BEST,
    STOPPED,
    TEST_LOSS,
    TRAIN_LOSS,
    TRAIN_SECONDS,
    TRAIN_STOPPED,
    UNIQUE_IMAGES,
    VAL_LOSS,
)
from gfe_study.optim import scheduled
from gfe_study.solvers.base import Result

Metrics = dict[str, float]
Index = np.ndarray[Any, np.dtype[np.int64]]
REASONS = [result.name.lower() for result in Result]

ENCODE_BATCH = 250
"""Batch size of an evaluation; it affects memory and speed, and the results only by rounding."""


class Progress(NamedTuple):
    """Progress of a trial after a batch; `metrics` is set at the points of its evaluation schedule."""

    images_seen: int
    metrics: Metrics | None
    state: TrainingState


@dataclass
class TrainingState:
    """Everything that a trial needs to continue as if it had never stopped.

    `state_dict()` contains plain data and tensors only.
    """

    learner: Learner
    device: torch.device
    images_seen: int = 0
    points: list[Metrics] = field(default_factory=list)
    """Metrics of every evaluation so far."""
    best_val_loss: float = math.inf
    images_used: int = 0
    optimiser_steps: int = 0
    nfe_forward: float = 0.0
    nfe_backward: float = 0.0
    encoder_passes: float = 0.0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    loss_sum: float = 0.0
    loss_count: int = 0
    stopped: Tensor = field(default_factory=lambda: torch.zeros(len(REASONS), dtype=torch.long))
    """Training images since the last point by why their solver stopped; on the device."""
    test_latent_NL: Tensor | None = None
    """Latents of the test images at the last evaluation, on the CPU; not saved with the state."""

    _COUNTERS = (
        "images_seen",
        "points",
        "best_val_loss",
        "images_used",
        "optimiser_steps",
        "nfe_forward",
        "nfe_backward",
        "encoder_passes",
        "train_seconds",
        "eval_seconds",
        "loss_sum",
        "loss_count",
        "stopped",
    )

    @property
    def passes(self) -> float:
        """Passes of training images through the decoder and through an encoder, which `budget.nfe` limits."""
        return self.nfe_forward + self.nfe_backward + self.encoder_passes

    @property
    def over(self) -> bool:
        """Whether the budget is spent or the trial has diverged."""
        last = self.points[-1] if self.points else {}
        spent = self.learner.trial.budget.spent
        waited = last.get(SINCE_BEST, 0)
        return bool(last.get(DIVERGED)) or spent(self.images_seen, self.passes, self.train_seconds, waited)

    def state_dict(self) -> dict[str, Any]:
        """Return the networks, optimiser, random number generators, counters, and the points so far."""
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        counters = {name: getattr(self, name) for name in self._COUNTERS}
        return {"learner": self.learner.state_dict(), "rng": rng, **counters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        torch.set_rng_state(state["rng"]["cpu"].cpu())
        if self.device.type == "cuda" and "cuda" in state["rng"]:
            torch.cuda.set_rng_state(state["rng"]["cuda"].cpu(), self.device)
        for name in self._COUNTERS:
            setattr(self, name, state[name])


def train(
    trial: Trial, splits: Splits, state: dict[str, Any] | None = None, device: str | torch.device = "cpu"
) -> Iterator[Progress]:
    """Train one trial, from the start or from a `TrainingState.state_dict()`.

    Yields after every batch. `metrics` is set at the points of `eval.schedule` and when the first limit of the budget
    is reached. Evaluation images never influence training, except that validation images end it by `budget.patience`.
    A batch that would pass a point is cut there, so that all trials are evaluated at exactly the same numbers of images
    seen. A loss that is not finite ends the trial before the optimiser step, with a last point whose `diverged` is 1.

    torch's global generators are seeded from the trial's seed, or restored from `state`.
    """
    device = torch.device(device)
    prepare(device)
    if trial.budget.seconds is not None and state is None:
        _warm_up(trial, splits, device)
    learner = trial.method.create(trial, splits.shape, device)
    learner.see(splits.train)
    progress = TrainingState(learner, device)
    # Seeded after the networks are created, so that training draws the same numbers whatever their initialisation used.
    torch.manual_seed(derive_seed(trial.seed, "training"))
    if state is not None:
        progress.load_state_dict(state)
    points, following = trial.eval.points(trial.budget.images), 0
    while not progress.over:
        while following <= progress.images_seen:
            following = next(points)
        count = min(scheduled(trial.optim.batch_size, progress.images_seen), following - progress.images_seen)
        metrics: Metrics | None = None
        try:
            train_batch(progress, splits.train, count)
        except Diverged:
            progress.images_seen += count
            metrics = _last_point(progress)
        else:
            if progress.images_seen == following or progress.over:
                _settle(progress)
                metrics = _evaluate_all(progress, splits)
        if metrics is not None:
            progress.points.append(metrics)
        yield Progress(progress.images_seen, metrics, progress)


def _warm_up(trial: Trial, splits: Splits, device: torch.device) -> None:
    """Train another learner on one batch, so that what is set up once is not part of a budget in seconds."""
    torch.manual_seed(derive_seed(trial.seed, "training"))
    learner = trial.method.create(trial, splits.shape, device)
    learner.see(splits.train)
    with contextlib.suppress(Diverged):
        train_batch(TrainingState(learner, device), splits.train, min(32, len(splits.train)))


def training_order(seed: int, size: int, start: int, count: int) -> Index:
    """Return the indices of images `start` … `start + count − 1` in a seed's stream of training images.

    The stream is a new permutation of the training set for every epoch. It does not depend on the method, the batch
    size, or how often training was interrupted.
    """
    position = np.arange(start, start + count)
    epochs = position // size
    order = np.empty(count, dtype=np.int64)
    for epoch in range(start // size, (start + count - 1) // size + 1):
        chosen = epochs == epoch
        order[chosen] = _permutation(seed, size, epoch)[position[chosen] % size]
    return order


@lru_cache(maxsize=4)
def _permutation(seed: int, size: int, epoch: int) -> Index:
    return np.random.default_rng(derive_seed(seed, f"order/{epoch}")).permutation(size)


def replayed(seed: int, size: int, seen: int, count: int, update: int) -> Index:
    """Return the indices of `count` different training images among the first `seen` of a seed's stream.

    Args:
        seed: of the trial.
        size: of the training set.
        seen: images seen so far.
        count: how many are drawn; at most `seen` and `size`.
        update: number of the weight update on its batch. Each draws its own, whatever was drawn before.
    """
    generator = np.random.default_rng(derive_seed(seed, f"replay/{seen}/{update}"))
    place = generator.choice(min(seen, size), count, replace=False, shuffle=False)
    return _permutation(seed, size, 0)[place]


def train_batch(progress: TrainingState, split: Split, count: int) -> None:
    """Train on the next `count` images and update the counters. Raises `Diverged`."""
    learner, seen = progress.learner, progress.images_seen
    optim, seed = learner.trial.optim, learner.trial.seed
    updates = scheduled(optim.updates_per_batch, seen)
    new = training_order(seed, len(split), seen, count)
    old = optim.replayed(count, min(seen, len(split)))
    if old:
        drawn = [replayed(seed, len(split), seen, old, update) for update in range(updates)]
        batches = [_batch(split, np.concatenate([new, each]), progress.device) for each in drawn]
    else:
        batches = [_batch(split, new, progress.device)] * updates
    for group in learner.optimiser.param_groups:
        group["lr"] = optim.lr_at(seen, learner.trial.budget.images)
    started = time.perf_counter()
    with learner.training():
        updated = learner.update(batches, count)
    loss_sum = float(updated.loss_B.sum())  # waits for the device, so that the timing is complete
    progress.train_seconds += time.perf_counter() - started
    progress.nfe_forward += float(updated.nfe_forward)
    progress.nfe_backward += float(updated.nfe_backward)
    progress.encoder_passes += updated.encoder_passes
    progress.loss_sum += loss_sum
    progress.loss_count += count
    if updated.result_B is not None:
        progress.stopped = progress.stopped.to(progress.device) + _counted(updated.result_B)
    progress.images_seen += count
    progress.images_used += (count + old) * updates
    progress.optimiser_steps += updates


def _batch(split: Split, index: Index, device: torch.device) -> Batch:
    return Batch(split.batch(index, device), torch.from_numpy(index).to(device))


def _settle(progress: TrainingState) -> None:
    started = time.perf_counter()
    with progress.learner.training():
        progress.learner.settle()
    progress.train_seconds += time.perf_counter() - started


class Evaluated(NamedTuple):
    """Result of encoding the images of a split.

    Attributes:
        loss: mean loss of the images.
        nfe: decoder evaluations, pullbacks and encoder passes per image.
        seconds: wall time for all images.
        latent_NL: latents of the images.
        common: whether the encoding was exactly that of the common encoder.
        stopped: images by why their solver stopped, in the order of `REASONS`; zeros for an encoder. On the device.
    """

    loss: float
    nfe: float
    seconds: float
    latent_NL: Tensor
    common: bool
    stopped: Tensor


def _counted(result_B: Tensor) -> Tensor:
    """Samples by their `Result`, without a transfer to the host."""
    return (result_B[:, None] == torch.arange(len(REASONS), device=result_B.device)).sum(0)


def evaluate(
    learner: Learner, split: Split, images: int, device: torch.device, encoding: str | None = None
) -> Evaluated:
    """Encode and decode the first `images` images of a split, by the method's own encoding or by another one."""
    count = min(images, len(split))
    loss_sum = nfe_sum = 0.0
    common = True
    stopped = torch.zeros(len(REASONS), dtype=torch.long, device=device)
    latents = []
    started = time.perf_counter()
    for start in range(0, count, ENCODE_BATCH):
        target = split.batch(slice(start, min(start + ENCODE_BATCH, count)), device)
        encoded = learner.encode_commonly(target) if encoding == COMMON else learner.encode(target, encoding)
        common = common and encoded.common
        loss_sum += float(encoded.loss_B.double().sum())
        nfe_sum += float((encoded.nfe_forward_B + encoded.nfe_backward_B).sum()) + encoded.encoder_passes
        if encoded.result_B is not None:
            stopped += _counted(encoded.result_B)
        latents.append(encoded.latent_BL.cpu())
    seconds = time.perf_counter() - started
    return Evaluated(loss_sum / count, nfe_sum / count, seconds, torch.cat(latents), common, stopped)


def _shares(name: str, stopped: Tensor) -> Metrics:
    """Shares of images by why their solver stopped; nothing if no solver did."""
    counts = stopped.tolist()
    return {f"{name}_{reason}": n / sum(counts) for reason, n in zip(REASONS, counts, strict=True) if sum(counts)}


def _evaluate_all(progress: TrainingState, splits: Splits) -> Metrics:
    """Return the metrics of one point, and reset the running mean of the training loss."""
    learner, options = progress.learner, progress.learner.trial.eval
    started = time.perf_counter()
    val = evaluate(learner, splits.val, options.val_images, progress.device)
    test = evaluate(learner, splits.test, options.test_images, progress.device)
    progress.test_latent_NL = test.latent_NL
    metrics = {
        IMAGES_SEEN: float(progress.images_seen),
        IMAGES_USED: float(progress.images_used),
        UNIQUE_IMAGES: float(min(progress.images_seen, len(splits.train))),
        OPTIMISER_STEPS: float(progress.optimiser_steps),
        TRAIN_LOSS: progress.loss_sum / progress.loss_count,
        VAL_LOSS: val.loss,
        TEST_LOSS: test.loss,
        ENCODE_NFE: val.nfe,
        ENCODE_SECONDS: val.seconds,
        NFE_FORWARD: progress.nfe_forward / progress.images_seen,
        NFE_BACKWARD: progress.nfe_backward / progress.images_seen,
        ENCODER_PASSES: progress.encoder_passes / progress.images_seen,
        TRAIN_SECONDS: progress.train_seconds,
        **_shares(STOPPED, val.stopped),
        **_shares(TRAIN_STOPPED, progress.stopped),
    }
    of_val, of_test = [val], [test]
    for encoding in learner.encodings if options.mixed else ():
        of_test.append(evaluate(learner, splits.test, options.test_images, progress.device, encoding))
        metrics[f"{encoding}_{TEST_LOSS}"] = of_test[-1].loss
    if options.common:
        for name, split, images, known in (
            (COMMON_VAL_LOSS, splits.val, options.val_images, of_val),
            (COMMON_TEST_LOSS, splits.test, options.test_images, of_test),
        ):
            same = next((each for each in known if each.common), None)
            metrics[name] = (same or evaluate(learner, split, images, progress.device, COMMON)).loss
    # Of validation images alone: whether a trial ends is nothing for test images to say.
    decisive = [metrics[name] for name in (VAL_LOSS, COMMON_VAL_LOSS) if name in metrics]
    metrics[DIVERGED] = float(not all(map(math.isfinite, decisive)))
    latents = Latents(val.latent_NL.to(progress.device), test.latent_NL.to(progress.device))
    for part, split, latent_NL in (("val", splits.val, latents.val_VL), ("test", splits.test, latents.test_NL)):
        found = errors(learner, split, latent_NL) | imputation_errors(learner, split, latent_NL)
        for name, value in found.items():
            metrics[f"{part}_{name}"] = value
    for measure in options.measures or ():
        metrics |= measure.values(learner, splits, latents)
    progress.loss_sum, progress.loss_count = 0.0, 0
    progress.stopped = torch.zeros_like(progress.stopped)
    progress.eval_seconds += time.perf_counter() - started
    metrics[EVAL_SECONDS] = progress.eval_seconds
    if progress.learner.trial.budget.patience is not None:
        waited = progress.points[-1][SINCE_BEST] + 1 if progress.points else 0.0
        metrics[SINCE_BEST] = 0.0 if val.loss < progress.best_val_loss else waited
    if math.isfinite(val.loss):
        progress.best_val_loss = min(progress.best_val_loss, val.loss)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _last_point(progress: TrainingState) -> Metrics:
    """Return the last point of a diverged trial: its last finite metrics at the current `images_seen`, `diverged` 1."""
    last = dict(progress.points[-1]) if progress.points else {}
    return {
        **last,
        IMAGES_SEEN: float(progress.images_seen),
        TRAIN_SECONDS: progress.train_seconds,
        DIVERGED: 1.0,
    }
