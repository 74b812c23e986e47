"""The files of cluster/ under the tools that know their formats; installed by the extra `services`."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
INSTALL = "pip install --constraint constraints.txt --editable '.[services]'"
KUBERNETES = "1.31"


def tool(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here: {INSTALL}")
    return found


def manifests() -> list[dict[str, Any]]:
    """The pods that KubeRay makes of the RayJob's templates, and the manifests of Kubernetes' own."""
    found = []
    for manifest in yaml.safe_load_all((CLUSTER / "rayjob.yaml").read_text()):
        if manifest["kind"] != "RayJob":
            found.append(manifest)
            continue
        cluster = manifest["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            metadata = {"name": group.get("groupName", "head")}
            found.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, **copy.deepcopy(group["template"])})
    return found


def check_pod(manifest: dict[str, Any]) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason=f"no kubernetes-validate here: {INSTALL}")
    kubernetes.validate(manifest, KUBERNETES, strict=True)


def test_kubernetes_accepts_pods_and_claim() -> None:
    kinds = [manifest["kind"] for manifest in manifests()]
    assert sorted(kinds) == ["PersistentVolumeClaim", "Pod", "Pod"]
    for manifest in manifests():
        check_pod(manifest)


@pytest.mark.parametrize("key", ["volumeMount", "resource"])
def test_kubernetes_refuses_a_misspelt_key(key: str) -> None:
    pod = next(manifest for manifest in manifests() if manifest["kind"] == "Pod")
    container = pod["spec"]["containers"][0]
    container[key] = container.pop(f"{key}s")
    with pytest.raises(Exception, match="Additional properties are not allowed"):
        check_pod(pod)


def test_dockerfile_has_no_findings() -> None:
    done = subprocess.run([tool("hadolint"), str(CLUSTER / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_scripts_have_no_findings() -> None:
    scripts = sorted(map(str, CLUSTER.glob("*.sh")))
    assert len(scripts) == 4
    command = [tool("shellcheck"), "--external-sources", *scripts]
    done = subprocess.run(command, cwd=CLUSTER.parent, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
