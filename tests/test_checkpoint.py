from __future__ import annotations

import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from gfe_study.io.checkpoint import CheckpointError, read_checkpoint, write_checkpoint


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trial" / "checkpoint.pt"


@pytest.fixture
def previous(path: Path) -> Path:
    return path.with_name("checkpoint.previous.pt")


def files(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir())


def test_what_is_written_is_read(path: Path) -> None:
    content: dict[str, Any] = {
        "weights": torch.randn(3, 4),
        "points": [{"val_loss": 0.1}],
        "best": float("inf"),
        "rng": torch.get_rng_state(),
    }
    write_checkpoint(path, content)
    read = read_checkpoint(path)
    assert torch.equal(read["weights"], content["weights"])
    assert torch.equal(read["rng"], content["rng"])
    assert (read["points"], read["best"]) == ([{"val_loss": 0.1}], float("inf"))
    assert files(path) == ["checkpoint.pt"]


def test_the_previous_one_is_kept(path: Path, previous: Path) -> None:
    for number in range(3):
        write_checkpoint(path, {"number": number}, previous)
    assert read_checkpoint(path)["number"] == 2
    assert read_checkpoint(previous)["number"] == 1
    assert files(path) == ["checkpoint.previous.pt", "checkpoint.pt"]


def test_a_truncated_file_spares_the_previous_one(path: Path, previous: Path) -> None:
    write_checkpoint(path, {"number": 1}, previous)
    write_checkpoint(path, {"number": 2}, previous)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert read_checkpoint(previous)["number"] == 1


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_truncated_file_is_refused_in_one_line(path: Path, kept: int) -> None:
    write_checkpoint(path, {"weights": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{path}: damaged checkpoint (")


class Stranger:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize(
    "save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
def test_a_foreign_pickle_is_refused_and_not_run(save: Any, tmp_path: Path) -> None:
    path, trace = tmp_path / "foreign.pt", tmp_path / "trace"
    save({"format": Stranger(trace)}, path)
    with pytest.raises(CheckpointError, match=r"foreign\.pt"):
        read_checkpoint(path)
    assert not trace.exists()


@pytest.mark.parametrize("content", [{"weights": torch.zeros(2)}, {"format": "another"}, torch.zeros(3)], ids=str)
def test_another_projects_tensors_are_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of this project"):
        read_checkpoint(tmp_path / "other.pt")


def test_a_missing_file_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "nowhere.pt")


def test_unpicklable_content_changes_nothing(path: Path, previous: Path) -> None:
    write_checkpoint(path, {"number": 1})
    with pytest.raises(Exception, match="pickle"):
        write_checkpoint(path, {"weights": torch.zeros(1000), "function": lambda: None}, previous)
    assert read_checkpoint(path)["number"] == 1
    assert files(path) == ["checkpoint.pt"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing past `size` fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("numbers", [24_900, 100_000, 1_000_000])
def test_a_full_disk_leaves_everything_as_it_was(path: Path, previous: Path, numbers: int) -> None:
    write_checkpoint(path, {"number": 1})
    with largest_file(100_000), pytest.raises(OSError, match="File too large"):
        write_checkpoint(path, {"weights": torch.zeros(numbers)}, previous)
    assert read_checkpoint(path)["number"] == 1
    assert files(path) == ["checkpoint.pt"]
