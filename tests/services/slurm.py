"""A SLURM of two nodes on this machine, in a folder of its own, started and stopped by process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from stores import free_port
from sweeps import environment

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
PACKAGES = {"munged": "munge", "slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-wlm"}
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
MARK = "GFE_SLURM_TEST"
PATH = f"{os.environ['PATH']}:/usr/sbin"
SECONDS_LIMIT = 240.0

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def wait_for(ready: Callable[[], object], told: Callable[[], str]) -> None:
    deadline = time.monotonic() + SECONDS_LIMIT
    while not ready():
        assert time.monotonic() < deadline, told()
        time.sleep(0.2)


class Slurm:
    """The running SLURM, and a folder that stands for the project on all its nodes."""

    def __init__(self, folder: Path, project: Path) -> None:
        self._folder = folder
        self.project = project
        self.environment = environment(
            PATH=PATH,
            SLURM_CONF=str(folder / "slurm.conf"),
            MLFLOW_TRACKING_URI=f"sqlite:///{project / 'mlflow.db'}",
            HEAD_ADDRESS="127.0.0.1",
            RAY_gcs_rpc_server_reconnect_timeout_s="10",  # until a worker notices that its head is gone; 60 by default
        )

    def call(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.project, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ready(self) -> bool:
        try:
            return self.call("sinfo", "--noheader", "--Node", "--format=%T").split() == ["idle", "idle"]
        except AssertionError:  # no controller yet
            return False

    def submit(self, script: str, *arguments: str, options: tuple[str, ...] = (), **variables: str) -> str:
        """Submit a script of cluster/ for one core of each node; returns the job's number."""
        mark = f"ALL,{MARK}={self._folder}" + "".join(f",{name}={value}" for name, value in variables.items())
        fixed = ["--parsable", f"--export={mark}", "--output=%j.out", "--cpus-per-task=1", "--mem=0", "--time=20"]
        return self.call("sbatch", *fixed, *options, f"cluster/{script}", *arguments).strip()

    def warn(self, job: str) -> None:
        """Send what SLURM sends ahead of a time limit, to the batch shell alone."""
        self.call("scancel", "--batch", "--signal=TERM", job)

    def field(self, job: str, name: str) -> str:
        """A field of the job's description."""
        fields = self.call("scontrol", "--oneliner", "show", "job", job).split()
        return next(field.partition("=")[2] for field in fields if field.startswith(f"{name}="))

    def output(self, job: str) -> str:
        file = self.project / f"{self.field(job, 'JobId')}.out"
        return file.read_text() if file.exists() else ""

    def wait_for_output(self, job: str, text: str, count: int = 1) -> None:
        def written() -> bool:
            ended = self.field(job, "JobState") in ENDED
            found = self.output(job).count(text) >= count
            assert found or not ended, f"ended without {text!r}:\n{self.report(job)}"
            return found

        wait_for(written, lambda: f"no {text!r}:\n{self.report(job)}")

    def wait_for_end(self, job: str, state: str) -> None:
        wait_for(lambda: self.field(job, "JobState") in ENDED, lambda: f"not {state}:\n{self.report(job)}")
        assert self.field(job, "JobState") == state, self.report(job)

    def report(self, job: str) -> str:
        return self.call("scontrol", "show", "job", job) + self.output(job)

    def processes(self) -> dict[int, str]:
        """Command lines of the processes that the jobs have left, by pid."""
        mark = f"{MARK}={self._folder}".encode()
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ").strip()
        return {pid: line for pid, line in found.items() if line}  # a zombie has none


@contextmanager
def _daemons(folder: Path, settings: dict[str, str]) -> Iterator[None]:
    munge = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key"]
    munge += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"]
    started: list[subprocess.Popen[bytes]] = []
    try:
        with (folder / "daemons.log").open("ab") as log:
            for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]):
                started.append(subprocess.Popen(command, env=settings, stdout=log, stderr=log, start_new_session=True))
                if command is munge:
                    wait_for((folder / "munge.socket").exists, (folder / "daemons.log").read_text)
        yield
    finally:
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def running_slurm(folder: Path) -> Iterator[Slurm]:
    """Start SLURM; skips the test if a package is missing."""
    missing = sorted({package for program, package in PACKAGES.items() if shutil.which(program, path=PATH) is None})
    if missing:
        pytest.skip(f"no SLURM here: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("slurmd starts jobs only as root")
    service, project = folder / "service", folder / "project"
    for path in (service / "state", project):
        path.mkdir(parents=True)
    (service / "munge.key").write_bytes(os.urandom(1024))
    (service / "munge.key").chmod(0o400)
    ports = [free_port() for _ in range(3)]
    (service / "slurm.conf").write_text(CONFIGURATION.format(folder=service, host=os.uname().nodename, ports=ports))
    (project / "cluster").symlink_to(CLUSTER)
    (project / ".venv").symlink_to(sys.prefix)
    slurm = Slurm(service, project)
    with _daemons(service, slurm.environment):
        try:
            wait_for(slurm.ready, lambda: (service / "daemons.log").read_text()[-3000:])
            yield slurm
        finally:
            slurm.call("scancel", "--user=root")
            for pid in slurm.processes():  # Ray's agents outlive their node by a minute
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
