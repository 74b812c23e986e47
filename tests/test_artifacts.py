"""Files that a trial leaves behind."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.utils import make_grid, save_image

from gfe_study.data.split import Scale, Shape, image_shape
from gfe_study.likelihoods.base import Observed
from gfe_study.study.shown import COLOURS, MISSING, grid, shown


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (1, 28, 28), (3, 32, 20), (1, 64, 64)])
def test_a_grid_of_images_is_torchvisions(channels: int, height: int, width: int) -> None:
    images = torch.rand(2, 5, channels, height, width, generator=torch.Generator().manual_seed(0))
    images = (images * 255).round() / 255
    scale = max(1, 56 // height)
    enlarged = images.flatten(0, 1).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    expected = io.BytesIO()
    save_image(make_grid(enlarged, nrow=5, padding=scale, pad_value=0.5), expected, format="png")
    shape = image_shape(height, width, channels)
    rows = [shown(row.flatten(1), shape, Scale.of_levels(255)) for row in images]
    assert np.array_equal(np.asarray(Image.open(expected)), np.asarray(grid(rows)))


def test_values_are_shown_in_units_of_the_data() -> None:
    shape, scale = Shape(2, (3, 4), "first", mask=True), Scale(300.0, 20.0)
    stored = np.arange(48, dtype=np.float32).reshape(2, 24) + 280
    known = torch.ones(2, 24, dtype=torch.bool)
    known[1, 5] = False
    values = shown(Observed(scale.apply(torch.from_numpy(stored)), known), shape, scale)
    assert values.shape == (2, 2, 3, 4)
    np.testing.assert_allclose(values[0].reshape(-1), stored[0], rtol=1e-6)
    assert np.isnan(values).sum() == 1
    assert np.isnan(values[1, 0, 1, 1])


@pytest.mark.parametrize("sides", [(6,), (3, 4), (5, 3, 4)], ids=str)
def test_the_colours_span_the_values_of_a_grid(sides: tuple[int, ...]) -> None:
    values = np.linspace(-1, 3, 2 * 2 * int(np.prod(sides)), dtype=np.float32).reshape(2, 2, *sides)
    drawn = np.asarray(grid([values, values[::-1]]))
    found = {tuple(colour) for colour in drawn.reshape(-1, 3)}
    assert (MISSING, MISSING, MISSING) in found
    if len(sides) < 3:
        assert {COLOURS[0], COLOURS[-1]} <= found
    unknown = np.asarray(grid([np.full((1, 1, 3, 4), np.nan, np.float32)]))
    assert (unknown == MISSING).all()
