"""Files that a trial leaves behind."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.utils import make_grid, save_image

from gfe_study.study.artifacts import tiled


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (1, 28, 28), (3, 32, 20), (1, 64, 64)])
def test_a_grid_of_images_is_torchvisions(channels: int, height: int, width: int) -> None:
    images = torch.rand(2, 5, channels, height, width, generator=torch.Generator().manual_seed(0))
    scale = max(1, 56 // height)
    enlarged = images.flatten(0, 1).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    expected = io.BytesIO()
    save_image(make_grid(enlarged, nrow=5, padding=scale, pad_value=0.5), expected, format="png")
    assert np.array_equal(np.asarray(Image.open(expected)), np.asarray(tiled(images)))
