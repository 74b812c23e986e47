"""How a GPU is used: full precision, the same numbers every time, and no more of its memory than was granted."""

from __future__ import annotations

import os

import torch

KEPT_SHARE = 0.25
"""Share of a GPU's free memory that a split may take, to lie there as it is stored."""


def prepare(device: torch.device, share: float = 1.0) -> None:
    """Set up a GPU for training; of a CPU there is nothing to set up.

    TensorFloat-32, which rounds what goes into a product to 10 bits, is off: torch takes it for convolutions without
    saying so. `NVIDIA_TF32_OVERRIDE=1` in the environment asks for it. Operations that would add up in another order
    every time are replaced, so that a resumed trial has the numbers of one that was not interrupted.

    Args:
        device: where to train.
        share: of the GPU's memory that this process may take: that of a trial with a fraction of a GPU.
    """
    if device.type != "cuda":
        return
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS adds up in one order only with it
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling fresh memory would cost time and change nothing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if share < 1:
        torch.cuda.set_per_process_memory_fraction(share, device)


def has_room(nbytes: int, device: torch.device) -> bool:
    """Whether data of a size is to be kept on a device: on a GPU with memory to spare."""
    return device.type == "cuda" and nbytes <= KEPT_SHARE * torch.cuda.mem_get_info(device)[0]
