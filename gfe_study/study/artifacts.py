"""Files that a trial writes: its best decoder and a picture of reconstructed test images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from PIL import Image
from torch import Tensor

from gfe_study import names
from gfe_study.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from gfe_study.config import InputError, Trial, read_yaml, to_yaml
from gfe_study.data.base import ImageShape, Splits
from gfe_study.methods.base import Learner
from gfe_study.training import TrainingState

GRID_COLUMNS = 10
TILE_PIXELS = 56
ALLOWED = f"the {names.BEST_CHECKPOINT} of a trial"


def write_best(folder: Path, state: TrainingState, splits: Splits) -> None:
    """Write the current networks and their trial, without the optimiser; `read_learner` reads the file."""
    content = {
        "trial": to_yaml(state.learner.trial.dump()),
        "networks": state.learner.networks.state_dict(),
        **splits.shape._asdict(),
        "levels": splits.train.levels,
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
    """A learner read from a file, and what its images are like.

    Attributes:
        levels: the value that `uint8` images are divided by.
    """

    learner: Learner
    shape: ImageShape
    levels: int


def read_learner(path: Path, changes: dict[str, Any], device: torch.device) -> Decoder:
    """Read a learner from a `best.pt`, and what its images are like.

    Args:
        path: the `best.pt`.
        changes: nested configuration that overrides the trial's own, such as another solver to encode with.
        device: device of the networks.

    Raises:
        InputError: the file does not exist or is no such checkpoint, or its networks do not fit the changes.
    """
    try:
        content = read_checkpoint(path, device)
        # Older files lack the number of channels, which was 1, and the levels, which were the dataset's.
        shape = ImageShape(content.get("channels", 1), content["height"], content["width"])
        trial = Trial.build(yaml.safe_load(content["trial"]), changes, where=str(path))
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
        raise InputError(f"{path}: its networks do not fit; do not change model.* or method") from error
    return Decoder(learner, shape, content.get("levels", trial.data.levels))


def write_reconstruction(folder: Path, learner: Learner, splits: Splits, device: torch.device) -> None:
    """Write a PNG of test images above their reconstructions."""
    count = min(GRID_COLUMNS, len(splits.test))
    target_BD = splits.test.images(slice(0, count), device)
    output_BD = learner.decode(learner.encode(target_BD).latent_BL)
    picture_RCD = torch.stack([target_BD, output_BD]).cpu()
    tiled(picture_RCD.view(2, count, *splits.shape)).save(folder / names.RECONSTRUCTION)


def tiled(images: Tensor) -> Image.Image:
    """Pictures of shape (rows, columns, channels, height, width) in [0, 1], enlarged, on a grey grid.

    What `torchvision.utils.make_grid` would draw, whose import takes longer than a short trial.
    """
    rows, columns, channels, height, width = images.shape
    scale = max(1, TILE_PIXELS // height)
    tile_height, tile_width = scale * height, scale * width
    canvas = torch.full((channels, rows * (tile_height + scale) + scale, columns * (tile_width + scale) + scale), 0.5)
    for row in range(rows):
        for column in range(columns):
            top, left = scale + row * (tile_height + scale), scale + column * (tile_width + scale)
            enlarged = images[row, column].repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
            canvas[:, top : top + tile_height, left : left + tile_width] = enlarged
    shades = (255 * canvas.expand(3, -1, -1) + 0.5).clamp(0, 255).to(torch.uint8)
    return Image.fromarray(shades.permute(1, 2, 0).contiguous().numpy())
