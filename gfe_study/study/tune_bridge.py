"""Ray Tune's side of a sweep: its searcher and callback, both thin shells around the `Driver`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.experiment import Trial as RayTrial
from ray.tune.result import TRAINING_ITERATION
from ray.tune.search import Searcher

from gfe_study import names
from gfe_study.study.trainable import POINTS, PROBLEMS, StudyTrainable

if TYPE_CHECKING:
    from gfe_study.study.sweep import Driver, Options

RAY_RETRIES = 2
"""How often Ray starts a trial again whose process died or raised; it goes on from its own checkpoint."""


class Bridge:
    """Holds the driver outside what Ray pickles: its snapshots of a sweep are never used."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def __reduce__(self) -> tuple[type, tuple[None]]:
        return Bridge, (None,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Bridge:
        return self


class JobSearcher(Searcher):
    """Hands Tune one job at a time, as soon as there is room for it."""

    def __init__(self, bridge: Bridge) -> None:
        # Tune insists on a metric in every result; a trial that diverges at once has no loss to report.
        super().__init__(metric=TRAINING_ITERATION, mode="max")
        self._bridge = bridge

    def suggest(self, trial_id: str) -> Any:
        driver = self._bridge.driver
        job = driver.next_job()
        if job is None:
            return Searcher.FINISHED if driver.done else None
        return {"job": driver.description(job)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Taken in by `JobCallback`, which sees the last result first."""

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Never restored: the journal is."""


class JobCallback(tune.Callback):
    """Hands the driver what Tune hears of trials."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def on_trial_result(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, result: dict[str, Any], **info: Any
    ) -> None:
        self._bridge.driver.result(
            _fingerprint(trial), result[POINTS], result.get(names.DEVICE, ""), result.get(PROBLEMS, [])
        )

    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        self._bridge.driver.ended(_fingerprint(trial), None)

    def on_trial_error(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        self._bridge.driver.ended(_fingerprint(trial), _reason(trial))


def _fingerprint(trial: RayTrial) -> str:
    return str(trial.config["job"]["fingerprint"])


def _reason(trial: RayTrial) -> str:
    """The exception of a failed trial in one line."""
    error = trial.get_error()
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    kind = type(cause).__name__
    if not lines:
        return kind
    last = lines[-1]
    return (last if last.startswith(kind) else f"{kind}: {last}")[:300]


def fit(bridge: Bridge, folder: Path, options: Options) -> None:
    """Run Tune until the driver has nothing left, or the user interrupts."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # Tune would else start the first trials one after the other.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(bridge.driver.slots)
    tuner = tune.Tuner(
        tune.with_resources(StudyTrainable, {"cpu": options.cpus_per_trial, "gpu": options.gpus_per_trial}),
        tune_config=tune.TuneConfig(search_alg=JobSearcher(bridge), num_samples=-1, reuse_actors=True),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            verbose=0,
            callbacks=[JobCallback(bridge)],
            failure_config=tune.FailureConfig(max_failures=RAY_RETRIES),
        ),
    )
    tuner.fit()
    shutil.rmtree(folder, ignore_errors=True)
