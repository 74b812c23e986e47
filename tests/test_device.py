"""What a GPU would wait for, counted on the CPU: how often the host asks for a number, and what it copies."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from problems import image_problem
from torch.utils._python_dispatch import TorchDispatchMode

from gfe_study.config import Trial
from gfe_study.data import split
from gfe_study.data.split import Splits
from gfe_study.metrics import TRAIN_SECONDS
from gfe_study.solvers.fields import GradientFlow
from gfe_study.solvers.lbfgs import LBFGS
from gfe_study.training import train

WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::unique_dim"}
"""Operations whose result, or its size, the host has to know before it goes on."""


class Waits(TorchDispatchMode):
    """Counts them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        indices = args[1] if name in ("aten::index", "aten::index_put_", "aten::index_put") else ()
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        self.count += name in WAITING or by_mask
        return func(*args, **(kwargs or {}))


def waits(solver: LBFGS) -> int:
    problem = image_problem(batch=32, gain=3)
    with Waits() as found:
        solver.solve(GradientFlow(alpha="constant"), problem.objective(), problem.start())
    count: int = found.count
    return count


def test_lbfgs_waits_once_a_round() -> None:
    """The samples of the batch end in different rounds, so that rows leave in many of them."""
    counts = {rounds: waits(LBFGS(max_nfe=rounds + 2, min_slope=1e-5)) for rounds in (10, 20)}
    assert 0 < counts[20] - counts[10] <= 10
    assert counts[10] <= 10 + 6


def test_a_batch_waits_for_little_but_its_rounds(digits: Splits) -> None:
    solver = {"train_max_nfe": 10, "resume_max_nfe": 4, "min_slope": 0}
    trial = Trial.build({"preset": "best", "model": {"hidden": [16]}, "solver": solver, "budget": {"images": 640}})
    steps = train(trial, digits)
    while next(steps).images_seen < 544:
        pass
    with Waits() as found:
        next(steps)
    rounds = 8 + 4 * 3  # of the new images, then four times of all
    assert found.count <= rounds + 6 * 6


def test_a_split_on_a_device_gives_equal_batches(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, device = np.array([3, 1, 4, 1]), torch.device("cpu")
    expected = [digits.train.batch(rows, device), digits.train.batch(slice(2, 5), device)]
    kept = digits.train.take(slice(None))
    copied = 0
    tensor = split._tensor

    def counting(array: Any, device: Any) -> Any:
        nonlocal copied
        copied += array.nbytes
        return tensor(array, device)

    monkeypatch.setattr(split, "_tensor", counting)
    monkeypatch.setattr(split, "has_room", lambda nbytes, device: nbytes <= kept.values_ND.nbytes)
    for _ in range(3):
        found = [kept.batch(rows, device), kept.batch(slice(2, 5), device)]
        assert all(torch.equal(a.value_BD, b.value_BD) for a, b in zip(found, expected, strict=True))
    assert copied == kept.values_ND.nbytes  # once, as stored
    assert len(pickle.dumps(kept)) < 1.1 * len(pickle.dumps(digits.train.take(slice(None))))


def test_a_warm_up_changes_no_number(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it take time of the budget."""
    changes = {"model": {"hidden": [16]}, "budget": {"images": 96}, "eval": {"val_images": 20, "test_images": 20}}
    plain = [step.metrics for step in train(Trial.build(changes), digits)][-1]
    trial = Trial.build(changes, {"budget": {"seconds": 1000}})
    warmed = [step.metrics for step in train(trial, digits)][-1]
    assert plain is not None
    assert warmed is not None
    same = [name for name in plain if not name.endswith("seconds")]
    assert [plain[name] for name in same] == [warmed[name] for name in same]
    assert warmed[TRAIN_SECONDS] > 0
