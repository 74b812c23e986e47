from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from gfe_study.data.base import Splits
from gfe_study.data.digits import Digits

torch.set_num_threads(1)

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
