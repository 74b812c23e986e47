from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from gfe_study.cli.app import main
from gfe_study.data.digits import Digits
from gfe_study.data.split import Splits

torch.set_num_threads(1)
# No deadline: how long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("suite", deadline=None, derandomize=True, database=None)
settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, so that no worker starts one of them at the end."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(300))  # two at a time, perhaps on a slow machine
    longest = ("test_engine", "test_sweep", "test_report")
    items.sort(key=lambda item: next((place for place, name in enumerate(longest) if name in item.nodeid), 9))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing that a test computes is kept for the user, nor taken from what the user has."""
    os.environ["GFE_CACHE_DIR"] = str(tmp_path_factory.getbasetemp() / "cache")


SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def _folder_with(dataset: str, candidates: list[Path]) -> Path:
    for folder in candidates:
        if (folder / dataset / "raw" / "train-images-idx3-ubyte").is_file():
            return folder
    looked = ", ".join(map(str, candidates))
    pytest.skip(f"no {dataset}/raw in {looked}; set GFE_DATA_DIR to the folder that holds it")


def _data_folders() -> list[Path]:
    given = os.environ.get("GFE_DATA_DIR")
    return [*([Path(given)] if given else []), SHARED_DATA]


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    """A folder with the real MNIST files."""
    return _folder_with("MNIST", _data_folders())


@pytest.fixture(scope="session")
def fashion_folder() -> Path:
    """A folder with the excerpt of FashionMNIST: 600 training and 300 test images."""
    return _folder_with("FashionMNIST", [folder / "fashion-900" for folder in _data_folders()])


@pytest.fixture(scope="session")
def digits() -> Splits:
    return Digits().load()


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Types `gfe-study …`; returns exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["gfe-study", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return run
