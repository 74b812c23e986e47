"""Checks of an installation and of what studies left behind."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from gfe_study import names, registry
from gfe_study.config import InputError, Trial
from gfe_study.io.storage import JOURNAL_FILE, Storage
from gfe_study.provenance import package_versions
from gfe_study.study.disk import folder_bytes
from gfe_study.tracking.client import Tracker, connect
from gfe_study.tracking.uri import ARTIFACTS, store_uri, without_password
from gfe_study.view.advice import command


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    subject: str
    ok: bool
    text: str
    missing: bool = False
    """Whether something is not there that need not be."""


def examine(storage: Storage, *, fix: bool) -> list[Finding]:
    """Versions, device, datasets, store, and runs that nobody is writing to; `fix` closes those as killed."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU only"
    return [
        Finding("versions", True, package_versions()),
        Finding("device", True, f"{device}; {torch.get_num_threads()} threads"),
        *(_component(found) for found in registry.foreign()),
        *(_dataset(name) for name in registry.BUILT_IN["data"] if _comes_with_a_name(name)),
        *_studies(storage, fix),
        *_space(storage),
    ]


def _component(found: registry.Foreign) -> Finding:
    text = f"{found.path} of {found.origin}"
    return Finding(f"{found.section} {found.name}", not found.problem, found.problem or text)


def _comes_with_a_name(name: str) -> bool:
    """Whether a dataset is known by its name alone, and not read from a path that it is given."""
    return "path" not in registry.component("data", name).model_fields


def _dataset(name: str) -> Finding:
    try:
        splits = Trial.build({"data": name}).data.load()
    except InputError as error:
        # A missing dataset is no fault of the installation: it is downloaded when a study first needs it.
        reason = str(error).removeprefix(f"data.name: {name} ")
        return Finding(f"data {name}", True, f"{reason}, or let a study download it", missing=True)
    sizes = f"{len(splits.train):,} + {len(splits.val):,} + {len(splits.test):,} images"
    return Finding(f"data {name}", True, f"{sizes}, sha256 {splits.sha256[:16]}")


def _studies(storage: Storage, fix: bool) -> list[Finding]:
    findings = []
    for label in storage.studies():
        folder = storage.folder(label).local
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / ".lock", timeout=0):
                findings.append(_orphans(label, storage, fix))
        except Timeout:
            findings.append(Finding(f"study {label}", True, "is running"))
        except InputError as error:
            findings.append(Finding(f"study {label}", False, str(error)))
    return findings or [_store()]


def _space(storage: Storage) -> list[Finding]:
    """What takes space: every study by kind of file, largest first, then the store and its artifacts."""
    findings = []
    if storage.is_url:
        findings.append(Finding("space", True, f"{storage.address}: of a URL, only the local copies are counted"))
    folders = [storage.folder(label).local for label in storage.studies()]
    for folder in sorted(folders, key=folder_bytes, reverse=True):
        kinds: Counter[str] = Counter()
        for path in folder.rglob("*"):
            if path.is_file():
                kinds[KINDS.get(path.name, "the rest")] += path.stat().st_size
        told = ", ".join(f"{kind} {_megabytes(size)}" for kind, size in kinds.most_common())
        findings.append(Finding(f"space {folder.name}", True, f"{_megabytes(kinds.total())}: {told}"))
    uri = store_uri()
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        artifacts = path.absolute().parent / ARTIFACTS
        size = path.stat().st_size if path.exists() else 0
        told = f"{_megabytes(size)} in {path}, {_megabytes(folder_bytes(artifacts))} in {artifacts}"
        findings.append(Finding("space store", True, told))
    return findings


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB"


KINDS = {
    names.BEST_CHECKPOINT: "decoders",
    names.CHECKPOINT: "checkpoints of unfinished trials",
    names.PREVIOUS_CHECKPOINT: "checkpoints of unfinished trials",
    names.RECONSTRUCTION: "pictures",
    JOURNAL_FILE: "journal",
}


def _store() -> Finding:
    try:
        connect(store_uri())
    except InputError as error:
        return Finding("store", False, str(error))
    return Finding("store", True, without_password(store_uri()))


def _orphans(label: str, storage: Storage, fix: bool) -> Finding:
    tracker = Tracker(label)
    orphans = tracker.orphans()
    if fix:
        for fingerprint in orphans:
            tracker.kill(fingerprint)
    if not orphans:
        return Finding(f"study {label}", True, "no orphaned run")
    continues = f"`{command('resume', label, storage.address)}` continues them, `doctor --fix` closes them"
    remedy = "closed as killed" if fix else continues
    return Finding(f"study {label}", fix, f"{len(orphans)} runs marked running that nobody writes to: {remedy}")
