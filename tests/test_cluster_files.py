"""The files of cluster/: valid where they are read, calling only what there is, listening to nobody unasked."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from gfe_study.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = ROOT / "cluster"
FILES = sorted(path for path in CLUSTER.iterdir() if path.is_file())
RAYJOB_SCHEMA = json.loads((ROOT / "tests" / "rayjob_schema.json").read_text())
FILL_IN = "FILL IN"


def text(name: str) -> str:
    return (CLUSTER / name).read_text()


def lines(name: str) -> list[str]:
    """Lines of a file without comment signs, a line that ends in a backslash joined with the next."""
    plain = re.sub(r"(?m)^\s*#+!?", "", text(name))
    return re.sub(r"\\\n\s*", "", plain).splitlines()


# A cluster of Ray's launcher.


def check_launcher(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))


@pytest.fixture
def launcher() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(text("ray-cluster.yaml"))
    return config


def test_ray_accepts_the_launchers_cluster(launcher: dict[str, Any]) -> None:
    check_launcher(launcher)


@pytest.mark.parametrize(
    "change",
    [{"setup_comands": []}, {"initialization_commands": "mkdir"}, {"auth": {"ssh_usr": "gfe"}}],
    ids=["misspelt", "no list", "misspelt below"],
)
def test_ray_refuses_a_wrong_key(launcher: dict[str, Any], change: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check_launcher({**launcher, **change})


def test_every_launcher_node_asks_for_the_token(launcher: dict[str, Any]) -> None:
    starts = [*launcher["head_start_ray_commands"], *launcher["worker_start_ray_commands"]]
    starts = [line for line in starts if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "~/.ray/auth_token" in launcher["file_mounts"]


# A RayJob of KubeRay.


@pytest.fixture
def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text("rayjob.yaml")))


@pytest.fixture
def rayjob(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = [manifest for manifest in manifests if manifest["kind"] == "RayJob"]
    return found


def test_manifests_keep_to_the_schema(manifests: list[dict[str, Any]]) -> None:
    for manifest in manifests:
        jsonschema.validate(manifest, RAYJOB_SCHEMA)


def closed(schema: Any) -> Iterator[bool]:
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield "additionalProperties" in schema and schema["additionalProperties"] is not True
        for below in schema.values():
            yield from closed(below)
    elif isinstance(schema, list):
        for below in schema:
            yield from closed(below)


def test_schema_is_closed_throughout() -> None:
    jsonschema.Draft7Validator.check_schema(RAYJOB_SCHEMA)
    assert all(closed(RAYJOB_SCHEMA))


def _misspell(spec: dict[str, Any]) -> None:
    spec["backofLimit"] = spec.pop("backoffLimit")


def _misplace(spec: dict[str, Any]) -> None:
    spec["authOptions"] = spec["rayClusterSpec"].pop("authOptions")


def _number_for_text(spec: dict[str, Any]) -> None:
    spec["rayClusterSpec"]["workerGroupSpecs"][0]["rayStartParams"]["num-cpus"] = 4


def _misspell_deep(spec: dict[str, Any]) -> None:
    container = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["volumeMount"] = container.pop("volumeMounts")


@pytest.mark.parametrize("spoil", [_misspell, _misplace, _number_for_text, _misspell_deep])
def test_schema_refuses_what_kuberay_would(rayjob: dict[str, Any], spoil: Callable[[dict[str, Any]], None]) -> None:
    spoiled = copy.deepcopy(rayjob)
    spoil(spoiled["spec"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(spoiled, RAYJOB_SCHEMA)


def test_rayjob_belongs_together(manifests: list[dict[str, Any]], rayjob: dict[str, Any]) -> None:
    spec = rayjob["spec"]
    cluster = spec["rayClusterSpec"]
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    claims = {manifest["metadata"]["name"] for manifest in manifests if manifest["kind"] == "PersistentVolumeClaim"}
    storage = shlex.split(spec["entrypoint"])[-1]
    for group in (head, *workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]} <= claims
        assert any(storage.startswith(mount["mountPath"] + "/") for mount in container["volumeMounts"])
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        allowed = {resources["limits"]["cpu"]} | ({"0"} if group is head else set())
        assert group["rayStartParams"]["num-cpus"] in allowed
    assert len({group["template"]["spec"]["containers"][0]["image"] for group in (head, *workers)}) == 1
    assert cluster["authOptions"]["mode"] == "token"
    assert f"secret generic {cluster['authOptions']['secretName']} " in text("rayjob.yaml")
    assert spec["backoffLimit"] > 0


def test_every_file_has_the_same_ray(rayjob: dict[str, Any]) -> None:
    pinned = re.findall(r"ray\[default\]==([\d.]+)", text("ray-cluster.yaml") + text("Dockerfile"))
    pinned += re.findall(r"(?m)^ray==([\d.]+)$", (ROOT / "constraints.txt").read_text())
    assert len(pinned) == 3
    assert set(pinned) == {rayjob["spec"]["rayClusterSpec"]["rayVersion"]}


def test_image_copies_what_there_is() -> None:
    copied = re.findall(r"(?m)^COPY (.+) \S+$", text("Dockerfile"))
    assert copied
    assert all((ROOT / name).exists() for group in copied for name in group.split())


# Every command that is quoted.


def parse_gfe_study(arguments: list[str]) -> None:
    """Raise unless `gfe-study` takes these arguments."""
    group = typer.main.get_command(app)
    name, *rest = arguments
    assert isinstance(group, typer.core.TyperGroup)
    assert name in group.commands, f"gfe-study has no command {name}"
    group.commands[name].make_context(name, rest)


def make_recipe(target: str, settings: list[str]) -> list[str]:
    """The arguments of `gfe-study` that `make` would run, every setting being one that the Makefile reads."""
    makefile = (ROOT / "Makefile").read_text()
    for setting in settings:
        assert f"$({setting.split('=')[0]})" in makefile, f"the Makefile reads no {setting}"
    dry = subprocess.run(["make", "-n", target, *settings], cwd=ROOT, capture_output=True, text=True, check=True)
    (recipe,) = re.findall(r"(?m)^\S*/gfe-study (.+)$", dry.stdout)
    return shlex.split(recipe)


def quoted(name: str) -> Iterator[tuple[str, list[str]]]:
    """Calls of `gfe-study` and of `make` in a file, comments and quotations included."""
    for line in lines(name):
        for tool, call in re.findall(r"(?:^|[\s'\"`/;(])(gfe-study|make) ([^'`;&|\[]+)", line):
            arguments = call.replace('"', "").split()
            if arguments[0].isalpha():
                yield tool, arguments


def test_quoted_commands_are_found() -> None:
    found = {(path.name, tool, arguments[0]) for path in FILES for tool, arguments in quoted(path.name)}
    assert found >= {
        ("ray-cluster.yaml", "make", "sweep"),
        ("rayjob.yaml", "gfe-study", "sweep"),
        ("slurm-lib.sh", "gfe-study", "sweep"),
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_quoted_commands_parse(path: Path) -> None:
    for tool, arguments in quoted(path.name):
        if tool == "gfe-study":
            parse_gfe_study([argument for argument in arguments if "@" not in argument])
            continue
        settings = [argument for argument in arguments[1:] if "=" in argument]
        makefile = (ROOT / "Makefile").read_text()
        assert re.search(rf"(?m)^{arguments[0]}:", makefile), f"make has no target {arguments[0]}"
        if settings:
            parse_gfe_study(make_recipe(arguments[0], settings))


@pytest.mark.parametrize(
    "arguments",
    [["sweeep", "amd"], ["sweep", "amd", "--adress", "auto"], ["sweep"]],
    ids=["command", "option", "missing"],
)
def test_a_wrong_command_would_be_noticed(arguments: list[str]) -> None:
    with pytest.raises(Exception, match=r"sweeep|No such option|Missing parameter"):
        parse_gfe_study(arguments)


# What listens.


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_server_is_open_unless_a_site_says_so(path: Path) -> None:
    written = path.read_text().splitlines()
    for number, line in enumerate(written):
        if re.search(r"0\.0\.0\.0|host[= ]['\"]?::", line):
            assert FILL_IN in line or FILL_IN in written[max(number - 1, 0)], f"{path.name}:{number + 1}"


@pytest.mark.parametrize("name", ["ray-cluster.yaml", "slurm.sh", "slurm-head.sh"])
def test_dashboards_are_local_or_off(name: str) -> None:
    heads = re.findall(r"ray start --head(?:.*\n){1,3}", text(name))
    assert heads
    assert all("--dashboard-host=127.0.0.1" in head or "--include-dashboard=false" in head for head in heads)


# A SLURM job, with stand-ins for SLURM and for Ray.

STAND_INS = {
    "bin/srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "bin/scontrol": 'echo "$@" >> calls; if [ "$1" = show ]; then printf "n1\\nn2\\n"; fi',
    "bin/squeue": 'echo "$STATE"',
    ".venv/bin/python": "touch waiting; while [ -e hold ]; do sleep 0.05; done",
    ".venv/bin/ray": 'echo "ray $@" >> calls; trap "exit 0" TERM; while :; do sleep 0.05; done',
    ".venv/bin/gfe-study": """echo "$@" "$RAY_AUTH_MODE" ${#RAY_AUTH_TOKEN} >> calls
trap "exit 130" TERM; touch sweeping; while [ ! -e finish ]; do sleep 0.05; done; exit "$(cat finish)" """,
}


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Callable[..., tuple[int, list[str]]]]:
    """Runs the batch script; `end` is the sweep's exit code, or the signal that the job gets, at the moment `file`."""
    for name, script in STAND_INS.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/bash\n{script}\n")
        file.chmod(0o755)
    (tmp_path / "cluster").symlink_to(CLUSTER)
    started: list[subprocess.Popen[bytes]] = []

    def run(
        end: int | signal.Signals, state: str = "RUNNING", file: str = "sweeping", script: str = "slurm.sh"
    ) -> tuple[int, list[str]]:
        environment = {
            **os.environ,
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "STATE": state,
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_CPUS_PER_TASK": "3",
            "STORAGE": "/shared/results",
        }
        command = ["bash", str(CLUSTER / script), "amd", "--seeds", "2"]
        job = subprocess.Popen(command, env=environment, start_new_session=True)
        started.append(job)
        deadline = time.monotonic() + 30
        while not (tmp_path / file).exists():
            assert job.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if isinstance(end, signal.Signals):
            job.send_signal(end)
        else:
            (tmp_path / "finish").write_text(str(end))
        calls = tmp_path / "calls"
        return job.wait(30), calls.read_text().splitlines() if calls.exists() else []

    yield run
    for job in started:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()


@pytest.mark.parametrize("path", sorted(CLUSTER.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_bash(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize("name", ["slurm.sh", "slurm-head.sh", "slurm-workers.sh"])
def test_jobs_ask_for_a_warning_and_requeueing(name: str) -> None:
    asked = re.findall(r"(?m)^#SBATCH (\S+)$", text(name))
    assert "--requeue" in asked
    assert any(option.startswith("--signal=B:TERM@") for option in asked)
    assert len(asked) == text(name).count("#SBATCH")
    before_trap, _ = text(name).split("trap 'warned=yes' TERM\n")
    assert [line for line in before_trap.splitlines() if line and not line.startswith("#")] == ["warned=no"]


@pytest.mark.parametrize("code", [0, 1])
def test_batch_script_ends_with_the_sweeps_code(slurm: Callable[..., Any], code: int) -> None:
    ended, calls = slurm(code)
    assert ended == code
    assert "sweep amd --address auto --storage /shared/results --seeds 2 token 64" in calls
    nodes = [call for call in calls if call.startswith("ray start")]
    assert len(nodes) == 2
    assert sum("--head" in node for node in nodes) == 1
    assert all("--num-cpus=3" in node and "--block" in node for node in nodes)
    assert not any(call.startswith("requeue") for call in calls)


def test_batch_script_requeues_when_out_of_time(slurm: Callable[..., Any]) -> None:
    ended, calls = slurm(signal.SIGTERM)
    assert ended == 130
    assert calls[-1] == "requeue 4711"


def test_batch_script_requeues_while_ray_starts(slurm: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    ended, calls = slurm(signal.SIGTERM, file="waiting")
    assert ended == 143
    assert calls[-1] == "requeue 4711"
    assert not any(call.startswith("sweep") for call in calls)


def test_batch_script_lets_a_cancelled_job_end(slurm: Callable[..., Any]) -> None:
    ended, calls = slurm(signal.SIGTERM, state="COMPLETING")
    assert ended == 130
    assert not any(call.startswith("requeue") for call in calls)


def test_second_head_is_refused(slurm: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / ".slurm-head").write_text("17 127.0.0.1:6379 token\n")
    ended, calls = slurm(0, file=".slurm-head", script="slurm-head.sh")
    assert ended == 2
    assert not any(call.startswith("ray") for call in calls)
    assert (tmp_path / ".slurm-head").exists()


def test_head_replaces_the_file_of_a_lost_head(slurm: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / ".slurm-head").write_text("17 127.0.0.1:6379 token\n")
    ended, calls = slurm(0, state="", script="slurm-head.sh")
    assert ended == 0
    assert "sweep amd --address auto --storage /shared/results --seeds 2 token 64" in calls
    assert any("--num-cpus=0" in call for call in calls)
    assert not (tmp_path / ".slurm-head").exists()
