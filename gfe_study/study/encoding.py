"""Encoding a user's own samples with a trial's best decoder."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from gfe_study.config import InputError
from gfe_study.data.base import Array, Scale, Shape
from gfe_study.data.readers import read_samples
from gfe_study.likelihoods.base import Likelihood, Observed
from gfe_study.solvers.base import Result
from gfe_study.study.artifacts import read_learner
from gfe_study.training import ENCODE_BATCH

ENCODER = "encoder"
"""Why an encoder stopped: it does not iterate."""


def encode_file(checkpoint: Path, images: Path, out: Path, changes: dict[str, Any]) -> dict[str, float]:
    """Encode the samples of a file, some at a time: memory does not grow with their number.

    Writes to `out`: `latent` (N, L), `reconstruction` in the shape and the units of the file, `loss`, `nfe_forward`,
    `nfe_backward`, and `stopped`, why each sample's solver stopped (N,). The loss of a sample of which nothing is
    observed is NaN.

    Args:
        images: any file that `data.name=arrays` reads, of samples in the shape of the decoder's data, or flat. Values
            are in that data's units; of images also in [0, 1]. NaN is a missing value.

    Returns the number of samples, their mean loss in nats per observed value, and the root mean square error of their
    reconstructions, `rmse`, in the units of the file.

    Raises:
        InputError: a file is missing, damaged or of the wrong shape, or `out` cannot be written.
    """
    for given, option in ((images, "--images"), (checkpoint, "the decoder")):
        if out.exists() and given.exists() and out.samefile(given):
            raise InputError(f"--out: given {out}, which is {option}; allowed: another file")
    learner, shape, scale = read_learner(checkpoint, changes, torch.device("cpu"))
    samples = _Samples(images, shape, scale)
    likelihood = learner.trial.likelihood
    try:
        columns = _Columns(out)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror})") from error
    with columns:
        loss_sum = square_sum = 0.0
        losses = values = 0
        for start in range(0, len(samples), ENCODE_BATCH):
            rows = slice(start, min(start + ENCODE_BATCH, len(samples)))
            target = samples.batch(rows)
            if not likelihood.accepts(target):
                raise InputError(f"--images {images}: {samples.range(target)}; allowed: {samples.domain(likelihood)}")
            found = learner.encode(target)
            decoded_BD = learner.decode(found.latent_BL)
            empty_B = torch.zeros(len(target), dtype=torch.bool) if target.share_B is None else target.share_B == 0
            loss_B = found.loss_B.masked_fill(empty_B, torch.nan)
            results = (
                None if found.result_B is None else [Result(code).name.lower() for code in found.result_B.tolist()]
            )
            columns.add("latent", found.latent_BL.numpy())
            columns.add("reconstruction", samples.to_file(decoded_BD))
            columns.add("loss", loss_B.numpy())
            columns.add("nfe_forward", found.nfe_forward_B.numpy())
            columns.add("nfe_backward", found.nfe_backward_B.numpy())
            columns.add("stopped", np.array(results or [ENCODER] * len(target), dtype="U16"))
            error_BD = scale.stretch(decoded_BD - target.value_BD).double() / samples.unit
            if target.known_BD is not None:
                error_BD = error_BD.masked_fill(~target.known_BD, 0.0)
            loss_sum += float(loss_B.double().nansum())
            losses += int((~empty_B).sum())
            square_sum += float(error_BD.square().sum())
            values += int(error_BD.numel() if target.known_BD is None else target.known_BD.sum())
        columns.finish()
    return {
        "images": len(samples),
        "loss": loss_sum / max(losses, 1),
        "rmse": (square_sum / max(values, 1)) ** 0.5,
    }


class _Samples:
    """The samples of a file, scaled as the decoder's data was.

    Attributes:
        unit: how many of the data's units one of the file's is: the levels of images that are stored from 0 to 1.
    """

    def __init__(self, path: Path, shape: Shape, scale: Scale) -> None:
        self.path, self.shape, self.scale = path, shape, scale
        self.values, self.observed = read_samples(path, shape, "--images")
        self.flat = self.values.shape[1:] == (shape.size,)
        whole = np.issubdtype(self.values.dtype, np.integer) or self.values.dtype == bool
        self.unit = 1.0 if scale.levels is None or whole else float(scale.levels)

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, rows: slice) -> Observed:
        """Some samples, scaled; NaN is a missing value."""
        values = np.asarray(self.values[rows])
        stored_ND = values.reshape(len(values), -1) if self.flat else self.shape.from_file(values)
        exact = values.dtype.itemsize > 4 or values.dtype == np.float64
        stored_ND = np.ascontiguousarray(stored_ND, dtype=np.float64 if exact else np.float32)
        read = self.scale.apply if self.unit == 1 else self.scale.of_shade
        scaled_BD = read(torch.from_numpy(stored_ND))
        known_BD = torch.from_numpy(np.isfinite(stored_ND))
        if self.observed is not None:
            observed = np.asarray(self.observed[rows], dtype=bool)
            known_BD &= torch.from_numpy(
                observed.reshape(len(values), -1) if self.flat else self.shape.from_file(observed)
            )
        return Observed(scaled_BD) if bool(known_BD.all()) else Observed(scaled_BD, known_BD)

    def range(self, target: Observed) -> str:
        """The lowest and the highest value of some samples, in the units of the file."""
        values_BD = self.scale.undo(target.value_BD) / self.unit
        known = values_BD if target.known_BD is None else values_BD[target.known_BD]
        return f"given values from {known.min():g} to {known.max():g}"

    def domain(self, likelihood: Likelihood) -> str:
        """The values that are allowed."""
        levels = self.scale.levels
        return likelihood.domain if levels is None else f"whole numbers up to {levels}, or floats in [0, 1]"

    def to_file(self, scaled_ND: Tensor) -> Array:
        """Scaled values in the shape and the units of the file, float32."""
        stored_ND = (self.scale.undo(scaled_ND) / self.unit).float().numpy()
        return stored_ND if self.flat else self.shape.to_file(stored_ND)


class _Columns:
    """Arrays that grow row by row on the disk, and become one NumPy archive at the end.

    They grow in a folder beside the archive, which is removed whatever happens.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        self.files: dict[str, BinaryIO] = {}
        self.kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        self.counts: dict[str, int] = {}

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: Any) -> None:
        for file in self.files.values():
            file.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, name: str, rows: Array) -> None:
        """Add rows to an array."""
        if name not in self.files:
            self.files[name] = (self.folder / name).open("w+b")
            self.kinds[name], self.counts[name] = (rows.dtype, rows.shape[1:]), 0
        self.files[name].write(np.ascontiguousarray(rows).data)
        self.counts[name] += len(rows)

    def finish(self) -> None:
        """Write the archive. Raises `InputError` if that is impossible."""
        beside = self.folder / "archive"
        try:
            with zipfile.ZipFile(beside, "w", allowZip64=True) as archive:
                for name, file in self.files.items():
                    dtype, row = self.kinds[name]
                    shape = (self.counts[name], *row)
                    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                    file.seek(0)
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array_header_1_0(member, header)
                        shutil.copyfileobj(file, member)
            beside.replace(self.out)
        except OSError as error:
            raise InputError(f"--out {self.out}: cannot be written ({error.strerror})") from error
