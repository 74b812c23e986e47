"""Encoding a user's own images with a trial's best decoder."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gfe_study.config import InputError
from gfe_study.data.base import ImageShape
from gfe_study.study.artifacts import read_learner
from gfe_study.training import ENCODE_BATCH


def encode_file(checkpoint: Path, images: Path, out: Path, changes: dict[str, Any]) -> dict[str, float]:
    """Write `latent` (N, L), `reconstruction` (as the images), `loss`, `nfe_forward`, `nfe_backward` (N,) to `out`.

    Args:
        images: a NumPy file, (N, height, width) if grey, (N, height, width, channels) if not, or (N, D) with channels
            first; uint8, scaled as the decoder's data was, or floats in [0, 1].

    Returns the number of images and their mean loss, nats per pixel.

    Raises:
        InputError: a file is missing, damaged or of the wrong shape, or `out` cannot be written.
    """
    for given, option in ((images, "--images"), (checkpoint, "the decoder")):
        if out.exists() and given.exists() and out.samefile(given):
            raise InputError(f"--out: given {out}, which is {option}; allowed: another file")
    learner, shape, levels = read_learner(checkpoint, changes, torch.device("cpu"))
    pixels_ND, flat = _read_images(images, shape, levels)
    batches = torch.from_numpy(pixels_ND).split(ENCODE_BATCH)
    parts = [learner.encode(batch) for batch in batches]
    latent = torch.cat([part.latent_BL for part in parts])
    loss = torch.cat([part.loss_B for part in parts])
    decoded_ND = torch.cat([learner.decode(part.latent_BL) for part in parts]).numpy()
    content: dict[str, Any] = {
        "latent": latent.numpy(),
        "reconstruction": decoded_ND if flat else shape.to_pictures(decoded_ND),
        "loss": loss.numpy(),
        "nfe_forward": torch.cat([part.nfe_forward_B for part in parts]).numpy(),
        "nfe_backward": torch.cat([part.nfe_backward_B for part in parts]).numpy(),
    }
    try:
        with out.open("wb") as file:
            np.savez(file, **content)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror})") from error
    return {"images": len(pixels_ND), "loss": float(loss.double().mean())}


def _read_images(path: Path, shape: ImageShape, levels: int) -> tuple[np.ndarray[Any, Any], bool]:
    """Return images (N, D) in [0, 1], channels first, and whether the file holds them so."""
    picture, flat = shape.picture, (shape.pixels,)
    allowed = f"allowed: (N, {', '.join(map(str, picture))}) or (N, {shape.pixels}), "
    allowed += f"uint8 up to {levels} or floats in [0, 1]"
    try:
        images = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or "not a NumPy file"
        raise InputError(f"--images {path}: cannot be read ({reason}); {allowed}") from error
    if not isinstance(images, np.ndarray) or images.shape[1:] not in (picture, flat) or not len(images):
        raise InputError(f"--images {path}: given shape {getattr(images, 'shape', '?')}; {allowed}")
    if images.dtype == np.uint8:
        scaled = images.astype(np.float32) / levels
    elif np.issubdtype(images.dtype, np.floating):
        scaled = images.astype(np.float32)
    else:
        raise InputError(f"--images {path}: given {images.dtype}; {allowed}")
    if not (np.isfinite(scaled).all() and scaled.min() >= 0 and scaled.max() <= 1):
        raise InputError(f"--images {path}: given values from {images.min():g} to {images.max():g}; {allowed}")
    if images.shape[1:] == flat:
        return scaled, True
    return np.ascontiguousarray(shape.from_pictures(scaled)), False
