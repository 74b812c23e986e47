"""The Ray trainable: a thin shell around `run_trial`, reused from trial to trial."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from gfe_study import names
from gfe_study.config import Trial
from gfe_study.data.base import Splits
from gfe_study.study.runner import Report, pin_threads, run_trial

POINTS, PROBLEMS = "points", "problems"


@lru_cache(maxsize=2)
def _splits(data: str, folders: tuple[str, ...]) -> Splits:
    trial = Trial.build({"data": json.loads(data)})
    splits: Splits = trial.data.load([Path(folder) for folder in folders])
    return splits


class StudyTrainable(tune.Trainable):
    """Runs the job it is given; one result a point. Checkpoints are the trial's own, found by its folder.

    The configuration is `{"job": {"trial", "folder", "data_folders", "fingerprint", "cpus"}}`, all plain data.
    """

    def setup(self, config: dict[str, Any]) -> None:
        job = config["job"]
        pin_threads(job["cpus"])
        torch.set_default_dtype(torch.float32)
        self._device = "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"
        trial = Trial.build(job["trial"])
        splits = _splits(json.dumps(job["trial"]["data"]), tuple(job["data_folders"]))
        self._reports: Iterator[Report] = run_trial(trial, splits, Path(job["folder"]), self._device)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._close()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        report = next(self._reports)
        device = torch.cuda.get_device_name() if self._device == "cuda" else "cpu"
        result: dict[str, Any] = {POINTS: report.points, PROBLEMS: report.problems, names.DEVICE: device}
        return {**result, **(report.points[-1] if report.points else {}), "done": report.done}

    def cleanup(self) -> None:
        self._close()

    def _close(self) -> None:
        close = getattr(getattr(self, "_reports", None), "close", None)
        if close is not None:
            close()  # frees the trial's lock

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Ray's checkpoints are not used: a trial continues from its own folder."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Ray's checkpoints are not used: `setup` has already continued from the trial's own folder."""
