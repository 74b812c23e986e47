"""The public API: run a study, read the results of one that ran, or train a single trial."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from gfe_study import names
from gfe_study import training as _training
from gfe_study.analysis.judge.judgement import verdict_of
from gfe_study.analysis.judge.verdict import Verdict
from gfe_study.config import InputError, Study, Trial
from gfe_study.data.base import load_splits
from gfe_study.io.storage import Storage, checked_label
from gfe_study.measures.preparation import prepared
from gfe_study.metrics import DIVERGED, VAL_LOSS, result_of, text_of
from gfe_study.study.frames import curves_frame, trials_frame
from gfe_study.study.journal import Journal
from gfe_study.study.options import Options
from gfe_study.study.status import state_of
from gfe_study.study.sweep import run_sweep
from gfe_study.trained import TrainedDecoder
from gfe_study.view.observers import study_observer
from gfe_study.view.progress import bar

PLACE = [names.ARM, names.STAGE, names.NUMBER, names.SEED]
"""Columns of the trials that the curves repeat."""


@dataclass(frozen=True, eq=False)
class BestTrial:
    """The best trial of a study.

    Attributes:
        fingerprint: its identity, the name of its folder.
        trial: its configuration.
        arm, number, seed: where it belongs in the study.
        params: the values that the search chose.
        metrics: the metrics of its result: of its last point, or with `budget.patience` of its best one.
    """

    fingerprint: str
    trial: Trial
    arm: str
    number: int
    seed: int
    params: dict[str, Any]
    metrics: dict[str, float]
    _journal: Journal

    def decoder(self, device: str | torch.device = "cpu") -> TrainedDecoder:
        """Return the decoder of the trial's lowest validation loss.

        Raises:
            InputError: the storage no longer has it.
        """
        folder = self._journal.mirror.below(names.TRIALS_FOLDER, self.fingerprint)
        folder.fetch(names.BEST_CHECKPOINT)
        return TrainedDecoder.read(folder.local / names.BEST_CHECKPOINT, device)


@dataclass(frozen=True, eq=False)
class Result:
    """What came of a study; the same statements as on the terminal and in the report.

    Attributes:
        study: the study as it was last declared.
        label: its name.
    """

    study: Study
    label: str
    _journal: Journal

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per trial that has ended: where it belongs, its state, its result and the searched values."""
        return trials_frame(self.study, self._journal)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row per trial and point: the metrics, and the arm, stage, number and seed of the trial."""
        curves = curves_frame(self._journal)
        if not len(curves) or not len(self.trials):
            return pd.DataFrame(columns=[names.FINGERPRINT, *PLACE])
        return self.trials[[names.FINGERPRINT, *PLACE]].merge(curves, on=names.FINGERPRINT)

    @cached_property
    def verdict(self) -> Verdict | None:
        """The comparison of the study's arms, which prints as a table; None if the study compares nothing."""
        return verdict_of(self.study, self.trials, curves_frame(self._journal))

    @cached_property
    def failures(self) -> dict[str, str]:
        """Fingerprint -> reason of the trials whose last attempt failed."""
        return {failed["fingerprint"]: failed["reason"] for failed in state_of(self._journal)["failures"]}

    @cached_property
    def best(self) -> BestTrial:
        """The best trial by the study's metric, of the last stage with finished trials.

        Raises:
            InputError: no trial has finished yet.
        """
        found = state_of(self._journal)["best"]
        if found is None:
            raise InputError(f"study {self.label!r}: no trial has finished; resume the study first")
        name = found["fingerprint"]
        member, seed = next(
            (member, seed)
            for member in self._journal.membership
            for seed, fingerprint in zip(member.seeds, member.fingerprints, strict=True)
            if fingerprint == name
        )
        trial = self.study.trial(member.params, seed, member.arm, member.stage)
        metrics = dict(result_of(self._journal.points[name]))
        return BestTrial(name, trial, member.arm, member.number, seed, member.params, metrics, self._journal)

    def __repr__(self) -> str:
        states = state_of(self._journal)["trials"]
        counts = ", ".join(f"{count} {state}" for state, count in states.items()) or "no trials yet"
        return f"<Result of study {self.label!r}: {counts}>"

    def _repr_html_(self) -> str:
        parts = [f"<p><b>{escape(self.study.question)}</b><br>{escape(repr(self)[1:-1])}</p>"]
        if self.verdict is not None:
            parts.append(self.verdict._repr_html_())
        elif state_of(self._journal)["best"] is not None:
            best, metric = self.best, self.study.metric.name
            values = ", ".join(f"{key}={value}" for key, value in best.params.items())
            parts.append(f"<p>Best {metric} {text_of(metric, best.metrics[metric])}: {escape(values)}</p>")
        return "".join(parts)


@dataclass(frozen=True, eq=False)
class Trained:
    """What came of training one trial.

    Attributes:
        trial: the configuration.
        points: one row per evaluation, with its metrics.
        decoder: the decoder of the lowest validation loss.
    """

    trial: Trial
    points: pd.DataFrame
    decoder: TrainedDecoder


def run(
    study: Study,
    storage: str | Path = "results",
    *,
    label: str | None = None,
    cpus_per_trial: float | None = None,
    gpus_per_trial: float | None = None,
    address: str | None = None,
    quota_gb: float | None = None,
    reuse: bool = True,
    progress: bool | None = None,
) -> Result:
    """Run, extend or continue a study, and wait for it.

    Example: `run(Study.load("amd")).best.decoder()`.

    Args:
        study: the study.
        storage: folder, or fsspec URL, for journals and checkpoints.
        label: the study's name; the name of its file by default.
        cpus_per_trial: CPUs per trial, which is also its number of threads; as the study says by default.
        gpus_per_trial: GPUs per trial; trials share a GPU if this is a fraction.
        address: Ray cluster to use: `auto` or `host:port`; starts a local one by default.
        quota_gb: largest size of the study's folder.
        reuse: whether to reuse trials that other studies in the storage have finished.
        progress: whether to show progress; by default in terminals and notebooks.

    Returns:
        The result. Trials that failed are in its `failures`.

    Raises:
        InputError: the data, the storage or the store cannot be used.
    """
    name = checked_label(label or Path(study.source).stem, "label")
    options = Options(str(storage), cpus_per_trial, gpus_per_trial, address, quota_gb, reuse)
    with study_observer(progress) as observer:
        run_sweep(study, name, options, observer)
    return results(name, storage)


def results(study: Study | str, storage: str | Path = "results") -> Result:
    """Return what came of a study that ran before, or is still running.

    Args:
        study: the study, or its name.
        storage: the folder, or fsspec URL, that it ran with.

    Raises:
        InputError: the storage has no such study.
    """
    label = study if isinstance(study, str) else Path(study.source).stem
    journal = Journal.of_study(Storage(str(storage)), label)
    assert journal.study is not None
    return Result(Study.build(journal.study["study"], **journal.study["source"]), label, journal)


def train(trial: Trial, *, device: str | torch.device | None = None, progress: bool | None = None) -> Trained:
    """Train one trial in this process; nothing is written or logged.

    Example: `train(Trial.build({"data": "digits", "budget": {"images": 640}})).decoder.encode(images)`.

    Args:
        trial: the configuration.
        device: where to train; a GPU if there is one by default.
        progress: whether to show a progress bar; by default in terminals and notebooks.

    Raises:
        InputError: the data cannot be used, or the trial diverged before its first evaluation.
    """
    splits = prepared(trial, load_splits(trial, download=True))
    where = device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    best_loss, best, state = math.inf, None, None
    with bar(trial.budget.images, "images", progress) as advance:
        for step in _training.train(trial, splits, device=where):
            state = step.state
            advance(step.images_seen)
            point = step.metrics or {}
            if point.get(VAL_LOSS, math.inf) < best_loss and not point[DIVERGED]:
                best_loss, best = point[VAL_LOSS], copy.deepcopy(state.learner.networks.state_dict())
    if state is None or best is None:
        raise InputError("the trial diverged before its first evaluation; lower optim.lr")
    state.learner.networks.load_state_dict(best)
    decoder = TrainedDecoder(state.learner, splits.shape, splits.train.scale)
    return Trained(trial, pd.DataFrame(state.points), decoder)
