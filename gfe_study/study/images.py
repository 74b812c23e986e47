"""The images of a study: loaded once by the driver, which hands them to the workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gfe_study.config import InputError, Study, Trial
from gfe_study.data.base import Splits


def data_key(trial: Trial | dict[str, Any]) -> str:
    """What tells a trial's images from another's."""
    data = trial["data"] if isinstance(trial, dict) else trial.data.model_dump(mode="json")
    return json.dumps(data, sort_keys=True)


class Images:
    """The datasets that trials ask for, each loaded once.

    Args:
        folders: where image files are looked for.
        download: fetch what is in none of them.
    """

    def __init__(self, folders: list[Path], *, download: bool) -> None:
        self._folders = folders
        self._download = download
        self.loaded: dict[str, Splits] = {}
        self._floors: dict[tuple[str, int], float] = {}

    def of(self, trial: Trial) -> Splits:
        """The splits of a trial. Raises `InputError` if they cannot be had."""
        key = data_key(trial)
        if key not in self.loaded:
            self.loaded[key] = trial.data.load(self._folders, download=self._download)
        return self.loaded[key]

    def sha256(self, trial: Trial) -> str:
        """Fingerprint of a trial's images."""
        return self.of(trial).sha256

    def entropy_floor(self, trial: Trial) -> float:
        """Of the test images that a trial is evaluated on, nats per pixel."""
        key = data_key(trial), trial.eval.test_images
        if key not in self._floors:
            self._floors[key] = self.of(trial).test_floor(trial.eval.test_images)
        return self._floors[key]

    @classmethod
    def of_study(cls, study: Study, folders: list[Path], *, download: bool) -> Images:
        """The images of all arms.

        Raises:
            InputError: they cannot be had, or arms that are compared are not tested on the same ones.
        """
        images = cls(folders, download=download)
        for stage in study.stages():
            trials = {arm.name: study.example(arm, stage) for arm in study.arms}
            seen = {name: images._evaluated(trial) for name, trial in trials.items()}
            for arm in study.arms:
                if arm.reference is not None and seen[arm.name] != seen[arm.reference]:
                    raise InputError(
                        f"{study.source}: scientific: arms {arm.name!r} and {arm.reference!r} are compared, but not "
                        "evaluated on the same images; allowed: equal data and eval, or another compare.factor"
                    )
        return images

    def _evaluated(self, trial: Trial) -> tuple[bytes, bytes, int, int]:
        """What tells the images that two trials are evaluated on apart."""
        splits = self.of(trial)
        return splits.val.digest(), splits.test.digest(), trial.eval.val_images, trial.eval.test_images
