"""Encoding a user's own samples with a trial's best decoder."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import yaml
from torch import Tensor

from gfe_study.config import InputError, Trial
from gfe_study.data.arrays import Arrays
from gfe_study.data.measuring import instrument_of, measured_scale, measured_shape
from gfe_study.data.samples import Samples, read_samples
from gfe_study.data.split import Array, Scale, Shape
from gfe_study.io.checkpoint import read_checkpoint
from gfe_study.likelihoods.base import Observed
from gfe_study.methods.base import Encoding, Learner
from gfe_study.metrics import CALIBRATION
from gfe_study.operators.base import Instrument
from gfe_study.posterior import posterior_of
from gfe_study.solvers.base import Result
from gfe_study.study.artifacts import read_learner
from gfe_study.study.prior import PRIORS, tune_prior
from gfe_study.training import ENCODE_BATCH

ENCODER = "encoder"
"""Why an encoder stopped: it does not iterate."""


def encode_file(
    checkpoint: Path,
    images: Path,
    out: Path,
    changes: dict[str, Any],
    *,
    std: bool = False,
    tuning: bool = False,
) -> dict[str, float]:
    """Encode the samples of a file, some at a time: memory does not grow with their number.

    Writes to `out`: `latent` (N, L), `reconstruction` in the shape and the units of the file, `loss`, `nfe_forward`,
    `nfe_backward`, and `stopped`, why each sample's solver stopped (N,). The loss of a sample of which nothing is
    observed is NaN.

    Args:
        images: any file that `data.name=arrays` reads, of samples in the shape of the decoder's data, or flat; columns
            and arrays beside the samples are called as that data's were. Values are in its units; of images also in
            [0, 1]. NaN is a missing value. With `data.observe` the file holds what the instrument measured.
        std: also write `std`, the standard deviation of every value given what was observed, like `reconstruction` and
            times `calibration`, and `latent_covariance` (N, L, L).
        tuning: choose `prior_precision` for the gaps of the file, by `tune_prior`.

    Returns the number of samples, their mean loss in nats per observed value, and the root mean square error of their
    reconstructions at the observed values, as they would be measured, `rmse`, in the units of the file. Besides,
    `unseen`: the values of a sample that were never observed in training, whose reconstructions are NaN; with `tuning`
    the `prior_precision` that was chosen; with `std` the `calibration`: 1 unless the trial measured it with the same
    prior and instrument, or `tuning` did.

    Raises:
        InputError: a file is missing, damaged or of the wrong shape, or `out` cannot be written.
    """
    for given, option in ((images, "--images"), (checkpoint, "the decoder")):
        if out.exists() and given.exists() and out.samefile(given):
            raise InputError(f"--out: given {out}, which is {option}; allowed: another file")
    learner, shape, scale, seen_D = read_learner(checkpoint, changes, torch.device("cpu"))
    content = read_checkpoint(checkpoint)
    data = learner.trial.data
    own: dict[str, Any] = {"columns": data.columns, "names": data.beside} if isinstance(data, Arrays) else {}
    samples = read_samples(images, shape_in_file(learner, shape), "--images", **own)
    trained = Trial.build(yaml.safe_load(content["trial"]))
    now, then = ((t.prior_precision, t.likelihood, t.data.observe) for t in (learner.trial, trained))
    factor = float(content["metrics"].get(CALIBRATION, 1.0)) if now == then else 1.0
    if tuning and "estimator" in content:
        raise InputError("--tune-prior: given with an estimator's file, which has no validation samples; allowed: none")
    if tuning:
        factor = tune_prior(learner, samples)
    if std and learner.trial.prior_precision is None:
        raise InputError(
            "prior_precision: given null with --std, and without a prior latents may lie anywhere; "
            "allowed: a positive number, like --set prior_precision=1"
        )
    scale = scale_of(samples, scale)
    _, measure = _measuring(learner, shape, scale)
    flat = samples.flat and data.observe is None

    def in_file(stored_BD: Tensor) -> Array:
        """Values of whole samples as the file would hold them, float32."""
        if seen_D is not None:
            stored_BD = stored_BD.masked_fill(~seen_D, torch.nan)
        values_BD = stored_BD.float().numpy()
        return values_BD if flat else shape.to_file(values_BD)

    try:
        columns = _Columns(out)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror})") from error
    with columns:
        loss_sum = square_sum = 0.0
        losses = values = 0
        for target, found in encodings(learner, samples, shape, scale, seen_D):
            decoded_BD = learner.loss.mean(learner.predict(target, found.latent_BL))
            empty_B = torch.zeros(len(target), dtype=torch.bool) if target.share_B is None else target.share_B == 0
            loss_B = found.loss_B.masked_fill(empty_B, torch.nan)
            codes = [] if found.result_B is None else found.result_B.tolist()
            stopped = [Result(code).name.lower() for code in codes] or [ENCODER] * len(target)
            columns.add("latent", found.latent_BL.numpy())
            columns.add("reconstruction", in_file(scale.undo(decoded_BD)))
            columns.add("loss", loss_B.numpy())
            columns.add("nfe_forward", found.nfe_forward_B.numpy())
            columns.add("nfe_backward", found.nfe_backward_B.numpy())
            columns.add("stopped", np.array(stopped, dtype="U16"))
            if std:
                known = posterior_of(learner, target, found.latent_BL)
                columns.add("std", in_file(scale.stretch(factor * known.std_BD)))
                columns.add("latent_covariance", known.covariance_BLL.numpy())
            if target.instrument is not None:
                decoded_BD = target.instrument.apply(decoded_BD)
            missed = target.known(measure.stretch(decoded_BD - target.value_BD))
            loss_sum += float(loss_B.double().nansum())
            losses += int((~empty_B).sum())
            square_sum += float(missed.square().sum())
            values += missed.numel()
        columns.finish()
    return {
        "images": len(samples),
        "loss": loss_sum / max(losses, 1),
        "rmse": (square_sum / max(values, 1)) ** 0.5,
        "unseen": 0 if seen_D is None else int((~seen_D).sum()),
        **({"prior_precision": learner.trial.prior_precision or 0.0} if tuning else {}),
        **({"calibration": factor} if std else {}),
    }


def encoding_notes(result: dict[str, float]) -> list[str]:
    """What a user should know of a result of `encode_file`."""
    notes = []
    if (prior := result.get("prior_precision")) is not None:
        ends = {PRIORS[0]: ", the smallest that is tried", PRIORS[-1]: ", the largest that is tried"}
        notes.append(f"prior_precision {prior:g} imputes best{ends.get(prior, '')}")
    if (factor := result.get("calibration")) is not None:
        notes.append(
            f"standard deviations are multiplied by {factor:.3g}, so that 95 % intervals hold what they claim"
            if factor != 1
            else "standard deviations are not calibrated for this prior, likelihood and instrument"
        )
    if unseen := result["unseen"]:
        notes.append(f"{unseen} values of a sample were never observed in training: their reconstructions are NaN")
    return notes


def scale_of(samples: Samples, scale: Scale) -> Scale:
    """The scale of samples in a file: images that are not whole numbers are shades from 0 to 1."""
    return scale.of_shades() if scale.levels is not None and samples.values.dtype.kind == "f" else scale


def shape_in_file(learner: Learner, shape: Shape) -> Shape:
    """The shape of what is measured of the decoder's samples."""
    operator = learner.trial.data.observe
    return shape if operator is None else measured_shape(operator, shape)


def _measuring(learner: Learner, shape: Shape, scale: Scale) -> tuple[Instrument | None, Scale]:
    """What the samples were measured through, and the scale of what that gives."""
    operator = learner.trial.data.observe
    if operator is None:
        return None, scale
    instrument = instrument_of(operator, shape, scale)
    return instrument, measured_scale(instrument, scale)


def encodings(
    learner: Learner,
    samples: Samples,
    shape: Shape,
    scale: Scale,
    seen_D: Tensor | None = None,
    device: torch.device | None = None,
) -> Iterator[tuple[Observed, Encoding]]:
    """Yield samples as the decoder reproduces them and their encodings, some at a time.

    Args:
        learner: what encodes.
        samples: as they were measured, of the shape `shape_in_file`.
        shape: of the decoder's samples.
        scale: of the decoder's samples, as the file has them; see `scale_of`.
        seen_D: which values were observed in training; what the decoder has never learned tells nothing of a latent.
        device: where the learner is.

    Raises:
        InputError: a value is outside the domain of the likelihood.
    """
    likelihood = learner.trial.likelihood
    instrument, measure = _measuring(learner, shape, scale)
    for start in range(0, len(samples), ENCODE_BATCH):
        split = replace(samples.batch(slice(start, min(start + ENCODE_BATCH, len(samples)))), scale=measure)
        if seen_D is not None and instrument is None and not bool(seen_D.all()):
            known_ND = np.ones(split.values_ND.shape, bool) if split.observed_ND is None else split.observed_ND
            split = replace(split, observed_ND=known_ND & seen_D.cpu().numpy())
        target = replace(split.batch(slice(None), device), instrument=instrument)
        if not likelihood.admits(target):
            known = target.known(measure.undo(target.value_BD))
            levels = scale.levels
            allowed = likelihood.domain if levels is None else f"whole numbers up to {levels}, or floats in [0, 1]"
            raise InputError(
                f"{samples.where}: given values from {known.min():g} to {known.max():g}; allowed: {allowed}"
            )
        yield target, learner.encode(target)


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
