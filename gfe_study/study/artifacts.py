"""Files that a trial writes: its best decoder and a picture of reconstructed test images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from gfe_study import names
from gfe_study.config import InputError, Trial, read_yaml, to_yaml
from gfe_study.data.split import Scale, Shape, Splits, image_shape
from gfe_study.io.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from gfe_study.methods.base import Learner
from gfe_study.study.shown import grid, shown
from gfe_study.training import TrainingState

GRID_COLUMNS = 10
ALLOWED = f"the {names.BEST_CHECKPOINT} of a trial"


def write_best(folder: Path, state: TrainingState, splits: Splits) -> None:
    """Write the current networks and their trial, without the optimiser; `read_learner` reads the file."""
    content = {
        "trial": to_yaml(state.learner.trial.dump()),
        "networks": state.learner.networks.state_dict(),
        "shape": asdict(state.learner.shape),
        "scale": splits.train.scale.state_dict(),
        "seen": None if (known_ND := splits.train.observed_ND) is None else torch.from_numpy(known_ND.any(0)),
        "metrics": state.points[-1],
    }
    write_checkpoint(folder / names.BEST_CHECKPOINT, content)


def read_trial(path: Path) -> dict[str, Any]:
    """Read a trial's configuration from its `trial.yaml` or `best.pt`. Raises `InputError` if that is impossible."""
    if path.suffix != Path(names.BEST_CHECKPOINT).suffix:
        return read_yaml(path)
    try:
        return dict(yaml.safe_load(read_checkpoint(path)["trial"]))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; allowed: {ALLOWED}") from error
    except KeyError as error:
        raise CheckpointError(f"{path}: lacks {error}; allowed: {ALLOWED}") from error


class Decoder(NamedTuple):
    """A learner read from a file, and what its samples are like.

    Attributes:
        learner: the method.
        shape: of a sample.
        scale: of its values.
        seen_D: bool; which values were observed at all in training. None: every one.
    """

    learner: Learner
    shape: Shape
    scale: Scale
    seen_D: Tensor | None


def read_learner(path: Path, changes: dict[str, Any], device: torch.device) -> Decoder:
    """Read a learner from a `best.pt`, and what its samples are like.

    Args:
        path: the `best.pt`.
        changes: nested configuration that overrides the trial's own, such as another solver to encode with.
        device: device of the networks.

    Raises:
        InputError: the file does not exist or is no such checkpoint, or its networks do not fit the changes.
    """
    try:
        content = read_checkpoint(path, device)
        written = yaml.safe_load(content["trial"])
        layers = [_unscored(written), _for_encoding(changes, written)] if changes else [written]
        trial = Trial.build(*layers, where=str(path))
        if changes:
            _check_meaning(Trial.build(written, where=str(path)), trial)
        if "shape" in content:
            shape = Shape(**{**content["shape"], "sides": tuple(content["shape"]["sides"])})
            scale = Scale(**content["scale"])
        else:  # older than data of any shape: an image, whose levels were not always written
            shape = image_shape(content["height"], content["width"], content.get("channels", 1))
            scale = Scale.of_levels(content.get("levels", 16 if trial.data.name == "digits" else 255))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; allowed: {ALLOWED}") from error
    except KeyError as error:
        raise CheckpointError(f"{path}: lacks {error}; allowed: {ALLOWED}") from error
    learner = trial.method.create(trial, shape, device)
    own, saved = learner.networks.state_dict(), dict(content["networks"])
    for key in [key for key in saved if key.startswith("start.") and key not in own]:
        del saved[key]  # belongs to another start than the requested one
    for key in [key for key in own if key.startswith("start.") and key not in saved]:
        shared = saved.get(key.removeprefix("start."))  # an autoencoder's own encoder
        if shared is None:
            raise InputError(
                f"{path}: has no networks for start.name={trial.start.name}; allowed: the trial's own start, or zero"
            )
        saved[key] = shared
    try:
        learner.networks.load_state_dict(saved)
    except RuntimeError as error:
        raise InputError(
            f"{path}: its networks do not fit; do not change model.* or method, or ask for a learned scale"
        ) from error
    return Decoder(learner, shape, scale, content.get("seen"))


def _unscored(written: dict[str, Any]) -> dict[str, Any]:
    """A trial without what its evaluation asks of its data: samples to encode may be of another kind."""
    return {**written, "eval": {**written.get("eval", {}), "withhold": None, "measures": []}}


def _for_encoding(changes: dict[str, Any], written: dict[str, Any]) -> dict[str, Any]:
    """An instrument that is given for encoding was not there in training, unless the trial had one."""
    observe = changes.get("data", {}).get("observe")
    if observe is None or written["data"].get("observe") is not None:
        return changes
    observe = {"splits": ["val", "test"], **(observe if isinstance(observe, dict) else {"name": observe})}
    return {**changes, "data": {**changes["data"], "observe": observe}}


def _check_meaning(trained: Trial, trial: Trial) -> None:
    """Raise `InputError` if a decoder's outputs would be taken for something else than it was trained to give."""
    if trial.data.scale != trained.data.scale:
        given, allowed = (each.data.scale or "null" for each in (trial, trained))
        raise InputError(f"data.scale: given {given}; allowed: {allowed}, which the decoder was trained with")
    output = torch.linspace(-2.0, 2.0, 9)[None]
    if not torch.equal(trial.likelihood.loss().mean(output), trained.likelihood.loss().mean(output)):
        raise InputError(
            f"likelihood.name: given {trial.likelihood.name!r}, and the decoder was trained with "
            f"{trained.likelihood.name!r}; allowed: one whose mean is the same function of its outputs"
        )


def write_reconstruction(folder: Path, learner: Learner, splits: Splits, device: torch.device) -> None:
    """Write a PNG of test samples above their reconstructions."""
    some = slice(0, min(GRID_COLUMNS, len(splits.test)))
    output_BD = learner.decode(learner.encode(splits.test.batch(some, device)).latent_BL)
    samples = splits.test.unmeasured.batch(some)
    rows = [shown(each, splits.shape, splits.test.scale) for each in (samples, output_BD)]
    grid(rows).save(folder / names.RECONSTRUCTION)
