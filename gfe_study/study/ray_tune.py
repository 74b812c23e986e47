"""Ray Tune as a backend of the engine: its searcher, stopper and callback pass messages, and decide nothing."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial as RayTrial
from ray.tune.result import TRAINING_ITERATION  # type: ignore[attr-defined]
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gfe_study import interrupts, names
from gfe_study.data.split import Splits
from gfe_study.provenance import code, unlike
from gfe_study.study.engine import Engine
from gfe_study.study.options import Options
from gfe_study.study.ray_trainable import (
    CODE,
    FAILURE,
    NODE,
    PACKAGES,
    PID,
    PLACE,
    POINTS,
    PROBLEMS,
    WAITING,
    StudyTrainable,
)
from gfe_study.study.trial_run import TrialRun

COUNT_INTERVAL_S = 5.0
"""Interval between counts of the cluster's resources, because nodes join and leave."""


class Bridge:
    """Holds the engine outside what Ray pickles: its snapshots of a sweep are never used.

    Args:
        engine: the engine.
        options: how to run the study.
        why_stop: returns why the study must stop now, for example for lack of disk space; empty if it need not.
    """

    def __init__(self, engine: Engine | None, options: Options, why_stop: Callable[[], str] = str) -> None:
        self._engine = engine
        self.options = options
        self.why_stop = why_stop
        self.waiting: set[str] = set()
        """Ray's names of trials that only keep their workers warm."""

    @property
    def engine(self) -> Engine:
        assert self._engine is not None, "only the driver's process has the engine"
        return self._engine

    def __reduce__(self) -> tuple[type, tuple[None, Options]]:
        return Bridge, (None, self.options)

    def __deepcopy__(self, memo: dict[int, Any]) -> Bridge:
        return self

    def description(self, run: TrialRun) -> dict[str, Any]:
        """Return what a worker needs to run a trial, as plain data."""
        mirror = self.engine.plan.trial_folder(run.job)
        return {
            "trial": run.job.trial.dump(),
            "fingerprint": run.job.fingerprint,
            "attempt": run.attempts,
            "folder": str(mirror.local),
            "remote": mirror.remote,
            "cpus": self.options.cpus,
            "gpus": self.options.gpus,
            CODE: code(),
            PACKAGES: run.job.trial.packages(),
            "may_be_stopped": self.engine.plan.study.stops_early,
        }


class JobSearcher(Searcher):
    """Hands Tune one trial at a time, as soon as there is room for it."""

    def __init__(self, bridge: Bridge) -> None:
        # Tune insists on a metric in every result; a trial that diverges at once has no loss to report.
        super().__init__(metric=TRAINING_ITERATION, mode="max")
        self._bridge = bridge

    def suggest(self, trial_id: str) -> Any:
        engine = self._bridge.engine
        run = engine.next_run()
        if run is not None:
            return {"job": self._bridge.description(run)}
        if engine.done:
            return Searcher.FINISHED
        if not engine.keeps_warm(len(self._bridge.waiting) + 1):
            return None
        self._bridge.waiting.add(trial_id)
        return {"job": None}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Not used: `JobStopper` sees the last result first."""

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Never restored: the journal is."""


class JobStopper(tune.Stopper):
    """Passes every result to the engine, tells Tune which trials to stop, and keeps watch between results."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._ending: list[Any] = []
        self._counted = time.monotonic()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        engine, job = self._bridge.engine, result["config"]["job"]
        if job is None:
            if engine.keeps_warm(len(self._bridge.waiting)):
                return False
            self._bridge.waiting.discard(trial_id)
            return True
        trial = str(job["fingerprint"]), int(job["attempt"])
        if PLACE in result:
            place = dict(result[PLACE])
            if other := unlike(place[names.HOST], place.pop(CODE), code()):
                engine.say_once(other)
            engine.placed(*trial, place)
        done, failure = bool(result["done"]), result.get(FAILURE)
        problems, waiting = result.get(PROBLEMS, []), result.get(WAITING, "")
        return engine.reported(*trial, result[POINTS], problems, waiting, done=done, failure=failure)

    def stop_all(self) -> bool:
        engine = self._bridge.engine
        if time.monotonic() - self._counted > COUNT_INTERVAL_S:
            self._counted = time.monotonic()
            engine.slots = max(1, self._bridge.options.slots_in(ray.cluster_resources()))
        for place in engine.tick():
            self._ending.append(_end(place))
        if reason := self._bridge.why_stop():
            engine.stop(reason)
        return engine.broken is not None or bool(engine.stopped) or interrupts.asked()


def _end(place: dict[str, str]) -> Any:
    """End a worker process where it runs: one that hangs answers no call of Ray's."""
    there = NodeAffinitySchedulingStrategy(node_id=place[NODE], soft=False)
    return ray.remote(_kill).options(num_cpus=0, scheduling_strategy=there).remote(int(place[PID]))


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


class JobCallback(tune.Callback):
    """Tells the engine which trials lost their worker."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        # The engine ended the trial at its last result; without one, the study was interrupted.
        self._bridge.waiting.discard(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        # What a trial raises is a result: only the end of its process or its node comes here, or a node that cannot
        # even load the trainable.
        self._bridge.waiting.discard(trial.trial_id)
        job, engine = trial.config["job"], self._bridge.engine
        if job is None:
            return
        error = _error(trial)
        about, reason = (str(job["fingerprint"]), int(job["attempt"])), _reason(error)
        if isinstance(error, RayActorError) and error.actor_init_failed:
            engine.reported(*about, [], done=True, failure=reason)
        else:
            engine.lost(*about, reason)


def _error(trial: RayTrial) -> BaseException | None:
    """Return what ended a trial's process; None if Ray does not say."""
    file = Path(trial.pickled_error_file or "nowhere")  # Ray's own method looks for it where it is put only later
    return cloudpickle.loads(file.read_bytes()) if file.exists() else None


def _reason(error: BaseException | None) -> str:
    """Return an error in one line: of a trace, its last."""
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "its process or its node was lost before it began"


def fit(bridge: Bridge, folder: Path, images: Mapping[str, Splits]) -> None:
    """Run Tune until the engine has nothing left, or a signal asks this process to end."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # Without this, Tune starts the first trials one after the other.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(bridge.engine.slots)
    resources = {"cpu": bridge.options.cpus, "gpu": bridge.options.gpus}
    trainable = tune.with_resources(StudyTrainable, resources)
    tuner = tune.Tuner(
        tune.with_parameters(trainable, images=dict(images)),
        tune_config=tune.TuneConfig(search_alg=JobSearcher(bridge), num_samples=-1, reuse_actors=True),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            verbose=0,
            stop=JobStopper(bridge),
            callbacks=[JobCallback(bridge)],
            # Ray does not retry trials that were about to start on a node that dies; the engine retries all of them.
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    tuner.fit()
    shutil.rmtree(folder, ignore_errors=True)
