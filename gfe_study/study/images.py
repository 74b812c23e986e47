"""The images of a study: the driver loads them once and hands them to the workers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gfe_study import names
from gfe_study.config import InputError, Study, Trial
from gfe_study.data.base import Dataset, check_data, read_splits
from gfe_study.data.split import Splits
from gfe_study.io.storage import Mirror
from gfe_study.measures.preparation import Content, Keep, in_cache, prepared, read_prepared, write_prepared


def data_key(trial: Trial | dict[str, Any]) -> str:
    """Return what distinguishes a trial's images from another's."""
    dumped = trial if isinstance(trial, dict) else trial.dump()
    return json.dumps([dumped["data"], dumped["eval"]["withhold"]], sort_keys=True)


def kept_in(folder: Mirror) -> Keep:
    """Keep what measures prepare in a study's folder, so that it is the same wherever the study is resumed.

    What another study of the same storage has kept is used too, because finished trials are reused between them.
    """
    mirror = folder.below(names.PREPARED_FOLDER)

    def keep(name: str, make: Callable[[], Content]) -> Content:
        path = mirror.local / name
        if not mirror.fetch(name):
            if not path.exists():
                others = sorted(folder.local.parent.glob(f"*/{names.PREPARED_FOLDER}/{name}"))
                content = read_prepared(others[0]) if others else in_cache(name, make)
                try:
                    write_prepared(path, content)
                except OSError as error:
                    raise InputError(f"{path}: cannot be written ({error.strerror})") from error
            mirror.push(name)
        return read_prepared(path)

    return keep


class Images:
    """The datasets of trials, each loaded once.

    Args:
        folders: where image files are searched for.
        download: whether to download what is in none of them.
    """

    def __init__(self, folders: list[Path], *, download: bool) -> None:
        self._folders = folders
        self._download = download
        self.loaded: dict[str, Splits] = {}
        self._datasets: list[Dataset] = []
        self._floors: dict[tuple[str, int, str], float | None] = {}
        self._checked: set[tuple[str, str]] = set()

    def of(self, trial: Trial) -> Splits:
        """Return the splits of a trial. Raises `InputError` if they are not available, or not for this trial."""
        key = data_key(trial)
        if key not in self.loaded:
            self._datasets.append(trial.data)
            self.loaded[key] = read_splits(trial, self._folders, download=self._download)
        asked = key, json.dumps([trial.likelihood.model_dump(), trial.eval.model_dump()], sort_keys=True)
        if asked not in self._checked:
            check_data(trial, self.loaded[key])
            self._checked.add(asked)
        return self.loaded[key]

    def prepare(self, trials: Iterable[Trial], folder: Mirror) -> None:
        """Add what the measures of trials prepare to their splits, and keep it in the study's folder.

        Raises:
            InputError: it cannot be prepared or kept, or what is kept is damaged.
        """
        for trial in trials:
            self.loaded[data_key(trial)] = prepared(trial, self.of(trial), self._folders, kept_in(folder))

    def sources(self) -> list[Path]:
        """Return the files that the loaded images depend on."""
        return [file for data in self._datasets for file in data.sources(self._folders)]

    def sha256(self, trial: Trial) -> str:
        """Return the hash of a trial's images."""
        return self.of(trial).sha256

    def floor(self, trial: Trial) -> float | None:
        """Return the lowest loss that any decoder can reach on a trial's test images; None if there is no bound."""
        key = data_key(trial), trial.eval.test_images, trial.likelihood.name
        if key not in self._floors:
            self._floors[key] = self.of(trial).floor(trial.likelihood, trial.eval.test_images)
        return self._floors[key]

    @classmethod
    def of_study(cls, study: Study, folders: list[Path], *, download: bool) -> Images:
        """Load the images of all arms.

        Raises:
            InputError: they are not available, or arms that are compared are not evaluated on the same images.
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
        """Return what distinguishes the images that a trial is evaluated on."""
        splits = self.of(trial)
        return splits.val.digest(), splits.test.digest(), trial.eval.val_images, trial.eval.test_images
