"""Ray Tune's side of a sweep: its searcher, stopper and callback, all thin shells around the `Driver`."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.tune.experiment import Trial as RayTrial
from ray.tune.result import TRAINING_ITERATION
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gfe_study.config import InputError
from gfe_study.data.base import Splits
from gfe_study.study.trainable import FAILURE, PLACE, POINTS, PROBLEMS, StudyTrainable

if TYPE_CHECKING:
    from gfe_study.study.driver import Driver, Options

SECONDS_BETWEEN_COUNTS = 5.0
"""How often nodes that have joined or left are looked for."""


class Bridge:
    """Holds the driver outside what Ray pickles: its snapshots of a sweep are never used."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.failures: dict[str, str] = {}
        self.waiting: set[str] = set()
        """Ray's names of trials that only keep their workers warm."""

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
        try:
            job = driver.next_job()
        except InputError as error:  # the journal cannot be written: nothing must be started that it does not know
            driver.broken = error
            return None
        if job is not None:
            return {"job": driver.description(job)}
        if driver.done:
            return Searcher.FINISHED
        if not driver.keeps_warm(len(self._bridge.waiting) + 1):
            return None
        self._bridge.waiting.add(trial_id)
        return {"job": None}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Taken in by `JobCallback`, which sees the last result first."""

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Never restored: the journal is."""


class JobStopper(tune.Stopper):
    """Hands the driver every result, tells Tune what it decides, and keeps watch between results."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._ending: list[Any] = []
        self._counted = time.monotonic()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        driver, waiting = self._bridge.driver, self._bridge.waiting
        if driver.broken is not None:
            return True
        if result["config"]["job"] is None:
            if driver.keeps_warm(len(waiting)):
                return False
            waiting.discard(trial_id)
            return True
        fingerprint = str(result["config"]["job"]["fingerprint"])
        try:
            if PLACE in result:
                driver.placed(fingerprint, result[PLACE])
            if FAILURE in result:
                self._bridge.failures[fingerprint] = result[FAILURE]
            return driver.result(fingerprint, result[POINTS], result.get(PROBLEMS, []), bool(result["done"]))
        except InputError as error:
            driver.broken = error
            return True

    def stop_all(self) -> bool:
        driver = self._bridge.driver
        if time.monotonic() - self._counted > SECONDS_BETWEEN_COUNTS:
            self._counted = time.monotonic()
            driver.slots = max(1, driver.options.slots_in(ray.cluster_resources()))
        for place in driver.hanging():
            self._ending.append(_end(place))
        return driver.broken is not None or driver.look_at_disk()


def _end(place: dict[str, str]) -> Any:
    """End a worker process where it runs: one that hangs answers no call of Ray's."""
    there = NodeAffinitySchedulingStrategy(node_id=place["node"], soft=False)
    return ray.remote(_kill).options(num_cpus=0, scheduling_strategy=there).remote(int(place["pid"]))


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


class JobCallback(tune.Callback):
    """Hands the driver what Tune hears of the ends of trials."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        if self._has_waited(trial):
            return
        fingerprint = _fingerprint(trial)
        failure = self._bridge.failures.pop(fingerprint, None)
        self._tell(lambda driver: driver.ended(fingerprint, failure))

    def on_trial_error(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        # What a trial raises is a result: what comes here is the end of its process or its node.
        if not self._has_waited(trial):
            self._tell(lambda driver: driver.lost(_fingerprint(trial), _reason(trial)))

    def _has_waited(self, trial: RayTrial) -> bool:
        self._bridge.waiting.discard(trial.trial_id)
        return trial.config["job"] is None

    def _tell(self, what: Callable[[Driver], None]) -> None:
        driver = self._bridge.driver
        if driver.broken is not None:
            return
        try:
            what(driver)
        except InputError as error:
            driver.broken = error


def _fingerprint(trial: RayTrial) -> str:
    return str(trial.config["job"]["fingerprint"])


def _reason(trial: RayTrial) -> str:
    """The exception of a failed trial in one line."""
    error = trial.get_error()
    if error is None:
        return "its process or its node was lost before it began"
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    kind = type(cause).__name__
    if not lines:
        return kind
    last = lines[-1]
    return (last if last.startswith(kind) else f"{kind}: {last}")[:300]


def fit(bridge: Bridge, folder: Path, options: Options, images: Mapping[str, Splits]) -> None:
    """Run Tune until the driver has nothing left, or the user interrupts."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # Tune would else start the first trials one after the other.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(bridge.driver.slots)
    trainable = tune.with_resources(StudyTrainable, {"cpu": options.cpus, "gpu": options.gpus})
    tuner = tune.Tuner(
        tune.with_parameters(trainable, images=dict(images)),
        tune_config=tune.TuneConfig(search_alg=JobSearcher(bridge), num_samples=-1, reuse_actors=True),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            verbose=0,
            stop=JobStopper(bridge),
            callbacks=[JobCallback(bridge)],
            # Ray's own retries leave out trials that were about to start on a node that dies: the driver has its own.
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    tuner.fit()
    shutil.rmtree(folder, ignore_errors=True)
