"""The Ray trainable: a thin shell around `run_trial`, reused from trial to trial."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from gfe_study import names
from gfe_study.config import InputError, Trial
from gfe_study.data.split import Splits
from gfe_study.device import prepare
from gfe_study.io.storage import Mirror
from gfe_study.provenance import code, unlike
from gfe_study.study.images import data_key
from gfe_study.study.runner import FAILURE_FILE, Report, device_name, pin_threads, reason_of, run_trial

POINTS, PROBLEMS, WAITING, PLACE, FAILURE = "points", "problems", "waiting", "place", "failure"
NODE, PID, CODE, PACKAGES = "node", "pid", "code", "packages"
WAIT_INTERVAL_S = 0.2
"""Interval between the results of a worker that waits for its next trial."""


def built(job: Mapping[str, Any]) -> Trial:
    """Return the trial of a job. Raises `InputError` if this node lacks a package that it needs, or has another one."""
    needed = ", ".join(job[PACKAGES])
    try:
        trial = Trial.build(job["trial"])
    except InputError as error:
        if not needed:
            raise
        there = str(error).removeprefix("configuration: ")
    else:
        there = ", ".join(trial.packages()) or "none"
        if trial.packages() == job[PACKAGES]:
            return trial
    raise InputError(f"this sweep needs {needed}; install the same on all nodes; on {socket.gethostname()}: {there}")


class StudyTrainable(tune.Trainable):
    """Runs the trial it is given, from the checkpoints in the trial's folder.

    The configuration is `{"job": …}` with the plain data of `Bridge.description`; `images` come from Ray's object
    store, once per node, by `data_key`. The first result says where the trial runs; each later one holds the points
    reached since, and is empty if only time has passed.

    Without a job, `{"job": None}`, it waits until it is stopped: Ray ends workers that have nothing to do, and a new
    one takes longer to start than a short trial takes to run.
    """

    def setup(self, config: dict[str, Any], images: Mapping[str, Splits] | None = None) -> None:
        assert images is not None
        job = config["job"]
        self._waits = job is None
        if job is None:
            return
        pin_threads(job["cpus"])
        torch.set_default_dtype(torch.float32)
        self._device = "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"
        prepare(torch.device(self._device), job["gpus"] or 1.0)
        self._folder = Path(job["folder"])
        self._code = job[CODE]
        self._started = False
        self._reports = self._run(job, images)

    def _run(self, job: dict[str, Any], images: Mapping[str, Splits]) -> Iterator[Report]:
        """Run the trial; a generator, so that what goes wrong at the beginning is a failure of this trial too."""
        trial, splits = built(job), images[data_key(job["trial"])]
        yield from run_trial(
            trial, splits, Mirror(self._folder, job["remote"]), self._device, may_be_stopped=job["may_be_stopped"]
        )

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._close()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        if self._waits:
            time.sleep(WAIT_INTERVAL_S)
            return {POINTS: [], "done": False}
        if not self._started:
            self._started = True
            return {PLACE: self._place(), POINTS: [], "done": False}
        try:
            report = next(self._reports)
        except Exception as error:  # this trial fails; the study continues
            self._close()
            self._keep_trace()
            other = unlike(socket.gethostname(), code(), self._code)
            return {POINTS: [], FAILURE: "; ".join(filter(None, [reason_of(error), other])), "done": True}
        return {POINTS: report.points, PROBLEMS: report.problems, WAITING: report.waiting, "done": report.done}

    def _place(self) -> dict[str, Any]:
        return {
            names.HOST: socket.gethostname(),
            names.DEVICE: device_name(self._device),
            names.GPUS: ",".join(map(str, ray.get_gpu_ids())),
            names.THREADS: str(torch.get_num_threads()),
            NODE: ray.get_runtime_context().get_node_id(),
            PID: str(os.getpid()),
            CODE: code(),
        }

    def _keep_trace(self) -> None:
        with contextlib.suppress(OSError):  # the reason is reported in any case
            (self._folder / FAILURE_FILE).write_text(traceback.format_exc(), encoding="utf-8")

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
