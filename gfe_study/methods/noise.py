"""Noise that regularises the training of an encoder and its decoder.

Everything is drawn from torch's global generator on the CPU, so that a trial draws the same on every device.

Shapes: B batch, L latent, D values of a sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from gfe_study.likelihoods.base import Observed


def masked(target: Observed, share: float | None) -> Observed:
    """The samples with each value missing with probability `share`; themselves without one."""
    if not share:
        return target
    kept_BD = (torch.rand(target.value_BD.shape) >= share).to(target.value_BD.device)
    return target.fewer(kept_BD)


def jittered(latent_BL: Tensor, sd: float | None) -> Tensor:
    """Latents with normal noise of a standard deviation added; themselves without one."""
    return latent_BL + sd * torch.randn(latent_BL.shape).to(latent_BL) if sd else latent_BL


@contextmanager
def dropout(share: float | None, *networks: nn.Module) -> Iterator[None]:
    """Inverted dropout of the networks' hidden activations while the context is open.

    A hidden activation is what a layer with weights reads, unless it reads the network's input, as the first one and a
    `skip` do. It becomes 0 with probability `share`, and is divided by 1 - `share` otherwise.
    """
    with ExitStack() as hooks:
        if share:
            for network in networks:
                layers = [part for part in network.modules() if next(part.parameters(recurse=False), None) is not None]
                for layer in layers[1:]:
                    if layer is getattr(network, "skip", None):
                        continue
                    hooks.callback(layer.register_forward_pre_hook(partial(_dropped, share)).remove)
        yield


def _dropped(share: float, _: nn.Module, read: tuple[Tensor, ...]) -> Tensor:
    activation = read[0]
    kept = (torch.rand(activation.shape) >= share).to(activation)
    return activation * kept / (1 - share)
