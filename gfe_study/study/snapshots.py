"""What a trial's decoder can do, at a few moments of its training: the evidence that figures are drawn from.

Shapes: N test samples, D values of each, L latent, M observations of the flows of a few samples.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gfe_study import names
from gfe_study.data.split import Splits
from gfe_study.likelihoods.base import Observed
from gfe_study.measures.samples import sampled_images
from gfe_study.methods.base import Learner
from gfe_study.posterior import posterior_of
from gfe_study.study.shown import shown
from gfe_study.training import ENCODE_BATCH, TrainingState

LATENTS = 1000
"""Test images whose latents are kept, at most."""
PICTURES = 10
"""Test images that are kept with their reconstructions."""
SAMPLES = 64
"""Decoded samples of the target."""
INTERPOLATIONS, STEPS = 5, 8
"""Pairs of test images between whose latents is gone straight, and pictures on the way, both ends among them."""
FLOWS = 8
"""Test images whose flows are observed."""
OBSERVATIONS = 100
"""Of each flow, at most."""
MOMENTS = 3
"""Snapshots of one trial: an early, a middle and the last one."""
EARLY_SHARE = 0.01
"""Of the training images: the papers show decoders that have seen 1 % of them, and all."""

Arrays = dict[str, Any]


def write_snapshot(folder: Path, state: TrainingState, splits: Splits) -> None:
    """Add the point that training has reached to `snapshots.npz`, which keeps an early, a middle and the last one.

    Once: `label` (N,) of data with labels, and `target`, a few test samples as of `shown`; where values were withheld
    also `truth`, the same samples with these, and `seen`, without them. At every point, under `<images seen>/`:
    `latent` (N, L), `reconstruction` like `target`, `interpolation` (pairs, steps, ...), of a method with a target
    `sample` like `target`, where values were withheld `imputed` and perhaps `std`, every value as the method predicts
    it and its standard deviation, and, of a method that encodes by following a flow, columns of M rows: `flow/image`,
    `flow/nfe`, `flow/time` (NaN of a minimiser that follows no flow), `flow/loss`, `flow/distance` (‖z − z*‖). A file
    that cannot be read is started over.

    Raises:
        OSError: the folder cannot be written; what was there is untouched.
    """
    latent_NL = state.test_latent_NL
    if latent_NL is None:
        return
    path = folder / names.SNAPSHOTS
    content = _read(path)
    targets = splits.test.unmeasured.batch(slice(0, min(PICTURES, len(latent_NL))), state.device)
    if splits.test.labels_N is not None:
        content["label"] = splits.test.labels_N[: min(LATENTS, len(latent_NL))]

    def kept(samples: Tensor | Observed) -> np.ndarray[Any, Any]:
        return shown(samples, splits.shape, splits.test.scale)

    content["target"] = kept(targets)
    here = f"{state.images_seen}/"
    content[f"{here}latent"] = latent_NL[:LATENTS].numpy()
    decoded_BD = state.learner.decode(latent_NL[: len(targets)].to(state.device))
    content[f"{here}reconstruction"] = kept(decoded_BD)
    between_BD = state.learner.decode(straight_lines(latent_NL).to(state.device))
    between = kept(between_BD)
    content[f"{here}interpolation"] = between.reshape(-1, STEPS, *between.shape[1:])
    if (sample_BD := sampled_images(state.learner, SAMPLES, state.device)) is not None:
        content[f"{here}sample"] = kept(sample_BD)
    if splits.test.withheld_ND is not None:
        some = slice(0, len(targets))
        content["truth"] = kept(splits.test.withheld(also=True).batch(some))
        if splits.test.instrument is None:  # whose values have another shape
            content["seen"] = content["target"]
        told = _predicted(state, splits.test.batch(some, state.device), latent_NL[some].to(state.device))
        scale = splits.test.scale
        content[f"{here}imputed"] = kept(told[0])
        if told[1] is not None:
            std_ND = scale.stretch(told[1]).float().cpu().numpy()
            content[f"{here}std"] = std_ND.reshape(-1, *splits.shape.dims)
    if state.learner.encodes_by_flow:
        columns = observe_flows(state.learner, splits.test.batch(slice(0, FLOWS), state.device))
        content |= {f"{here}flow/{name}": column for name, column in columns.items()}
    stay = kept_points({int(key.partition("/")[0]) for key in content if "/" in key}, len(splits.train))
    content = {key: value for key, value in content.items() if "/" not in key or int(key.partition("/")[0]) in stay}
    beside = path.with_name(f".{path.name}")
    try:
        with beside.open("wb") as file:
            np.savez_compressed(file, **content)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@torch.no_grad()
def _predicted(state: TrainingState, target: Observed, latent_BL: Tensor) -> tuple[Tensor, Tensor | None]:
    """What a method predicts of every value, and its standard deviation, both (B, D) and scaled; None: no prior."""
    learner = state.learner
    mean_BD = learner.loss.mean(learner.predict(target, latent_BL))
    if learner.trial.prior_precision is None:
        return mean_BD, None
    return mean_BD, posterior_of(learner, target, latent_BL).std_BD


def kept_points(points: Iterable[int], train_images: int) -> set[int]:
    """Of the images seen at several points: the nearest to 1 % of the training set, the last, and one in their middle.

    Nearness is that of logarithms.
    """
    there = sorted(points)
    early = _nearest(there, EARLY_SHARE * train_images)
    between = [point for point in there if early < point < there[-1]]
    middle = {_nearest(between, math.sqrt(early * there[-1]))} if between else set()
    return {early, there[-1], *middle}


def straight_lines(latent_NL: Tensor) -> Tensor:
    """Latents on the way from the first to the second, from the third to the fourth, …; shape (pairs · STEPS, L)."""
    pairs = min(INTERPOLATIONS, len(latent_NL) // 2)
    start_KL, end_KL = latent_NL[: 2 * pairs : 2], latent_NL[1 : 2 * pairs : 2]
    share_S11 = torch.linspace(0, 1, STEPS, dtype=latent_NL.dtype)[:, None, None]
    return torch.lerp(start_KL, end_KL, share_S11).transpose(0, 1).flatten(0, 1)


def _nearest(points: list[int], wanted: float) -> int:
    return min(points, key=lambda point: abs(math.log(point / wanted)))


def observe_flows(learner: Learner, target: Observed) -> Arrays:
    """Follow the flows of a few images; one row for every accepted point of each, the start included, or for some.

    Columns: `image`, `nfe` (decoder evaluations and pullbacks so far), `time`, `loss` (nats per value), `distance`
    to the latent that the solver gives back.
    """
    trial = learner.trial
    objective = learner.objective(target)
    start_BL = learner.start(target)
    every_B = torch.arange(len(target))
    seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = [
        (every_B, torch.ones(len(every_B)), torch.zeros(len(every_B)), start_BL.cpu())
    ]

    def observe(state: dict[str, Tensor]) -> None:
        rows_K = state.get("row", every_B).cpu()
        nfe_B = (objective.nfe_forward_B + objective.nfe_backward_B).cpu()
        seen.append((rows_K, nfe_B[rows_K].float(), state["time"].cpu().float(), state["latent"].cpu().clone()))

    end_BL = trial.solver.solve(trial.flow, objective, start_BL, observe).latent_BL.cpu()
    image, nfe, time, latent_ML = (torch.cat([entry[place] for entry in seen]) for place in range(4))
    loss = _losses(learner, latent_ML, target, image)
    distance = (latent_ML - end_BL[image]).norm(dim=1)
    # A rejected candidate leaves a sample where it was.
    order = np.lexsort((nfe.numpy(), image.numpy()))
    columns = {"image": image, "nfe": nfe, "time": time, "loss": loss, "distance": distance}
    rows = {name: column.numpy()[order] for name, column in columns.items()}
    moved = (np.diff(rows["image"], prepend=-1) != 0) | (np.diff(rows["loss"], prepend=np.inf) != 0)
    kept = np.concatenate([_spread(np.flatnonzero(moved & (rows["image"] == place))) for place in range(len(end_BL))])
    if trial.solver.scheme is None:
        rows["time"] = np.full_like(rows["time"], np.nan)
    return {name: column[kept] for name, column in rows.items()}


@torch.no_grad()
def _losses(learner: Learner, latent_ML: Tensor, target: Observed, image_M: Tensor) -> Tensor:
    """ℓ of latents, each of one of the images; (M,), on the CPU."""
    losses = []
    for start in range(0, len(latent_ML), ENCODE_BATCH):
        some = slice(start, start + ENCODE_BATCH)
        device = target.value_BD.device
        output_KD = learner.decoder(latent_ML[some].to(device))
        losses.append(learner.loss(output_KD, target[image_M[some].to(device)]).cpu())
    return torch.cat(losses)


def _spread(index: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Some of many observations, evenly spread over the logarithm of their number, both ends among them."""
    places = np.unique(np.geomspace(1, len(index), OBSERVATIONS).round().astype(int)) - 1
    spread: np.ndarray[Any, Any] = index[places]
    return spread


def _read(path: Path) -> Arrays:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as there:
            return {key: there[key] for key in there.files}
    except (OSError, ValueError, zipfile.BadZipFile):
        return {}
