"""Checkpoints: written beside, flushed, renamed; read with `weights_only=True`; the previous one is kept."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

from gfe_study.config import InputError

FORMAT = "gfe-study checkpoint 1"


class CheckpointError(InputError):
    """A file is not a checkpoint of this project, or is damaged."""


def write_checkpoint(path: Path, content: dict[str, Any], previous: Path | None = None) -> None:
    """Write `content` (tensors and plain data) to `path`; what was there is renamed to `previous`.

    At every moment one complete checkpoint is on the disk under one of the two names.

    Raises:
        OSError: the disk is full or read-only; what was at `path` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Through memory: on a full disk torch's own writer raises an error of its archive, not of the disk.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The content of a checkpoint.

    Raises:
        CheckpointError: the file is truncated, damaged, or something else.
        FileNotFoundError: there is no such file.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    foreign = f"{path}: not a checkpoint of this project; allowed: a file it wrote ({FORMAT})"
    if path.is_file():
        with path.open("rb") as file:
            if not b"PK".startswith(file.read(2)):  # torch would name an instruction of pickle
                raise CheckpointError(foreign)
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises what zipfile, pickle or the filesystem raised
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: damaged checkpoint ({reason[:120]})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(foreign)
    return content
