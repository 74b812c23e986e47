"""What decoders make of latents that no image gave: samples of the target, and ways between test images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from gfe_study.analysis.judge.evidence import Evidence
from gfe_study.analysis.report.exhibits.base import Exhibit
from gfe_study.analysis.report.exhibits.snapshots import Snapshots, all_snapshots, chosen_text
from gfe_study.analysis.report.style import PAGE, clipped, draw_picture, drawing, figure
from gfe_study.io.pictures import is_image, plane, value_range

MOST_ARMS = 6
"""That are drawn."""
COLUMNS = 3
"""Of panels."""
GRID = 8
"""Samples in a row and in a column."""
GAP = 1
"""Pixels between pictures."""


def samples(evidence: Evidence) -> Iterator[Exhibit]:
    """Decoded samples, and interpolations, at the end of training."""
    known: dict[str, Snapshots] = {}
    for each in all_snapshots(evidence):
        known.setdefault(each.arm, each)
    for kind, make in (("sample", _samples), ("interpolation", _interpolations)):
        having = [each for each in known.values() if each.has(each.points[-1], kind)]
        if having:
            shown = having[:MOST_ARMS]
            told = f" {len(shown)} of {len(having)} arms." if len(shown) < len(having) else ""
            yield make(evidence, shown, told)


def _samples(evidence: Evidence, shown: list[Snapshots], told: str) -> Exhibit:
    panels = [_tiled(each.of(each.points[-1], "sample")[: GRID * GRID], GRID) for each in shown]
    return Exhibit(
        "samples",
        "Decoded samples of the target distribution",
        f"The first {GRID * GRID} samples that were drawn, none picked, decoded at the end of training "
        f"({chosen_text(evidence, shown)}). All arms with the same target and number of latent dimensions decode the "
        f"same latents. An arm without a target has no samples.{told}",
        _drawn(shown, panels),
    )


def _interpolations(evidence: Evidence, shown: list[Snapshots], told: str) -> Exhibit:
    pairs = [each.of(each.points[-1], "interpolation") for each in shown]
    panels = [_tiled(lines.reshape(-1, *lines.shape[2:]), lines.shape[1]) for lines in pairs]
    counts = sorted({len(lines) for lines in pairs})
    rows, what = " to ".join(map(str, counts)), evidence.values.whole
    return Exhibit(
        "interpolations",
        f"Straight lines between the latents of test {what}s",
        f"Each of the {rows} rows goes in equal steps along the straight line from one test {what}'s latent to "
        "another's (the first of the test split, in pairs, none picked); the leftmost and rightmost are the "
        f"reconstructions of the two. Decoded at the end of training ({chosen_text(evidence, shown)}).{told}",
        _drawn(shown, panels),
    )


def _tiled(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Pictures side by side in rows of `columns`, white between and after them."""
    if not is_image(pictures):
        pictures = np.stack([plane(each) for each in pictures])
    rows = -(-len(pictures) // columns)
    height, width = pictures.shape[1:3]
    in_colour = pictures.ndim == 4
    sheet = np.full(
        (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, *pictures.shape[3:]),
        # Grey pictures are drawn with black for 255; of values, what is missing is blank.
        255 if in_colour else 0 if is_image(pictures) else np.nan,
        pictures.dtype,
    )
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        top, left = row * (height + GAP), column * (width + GAP)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def _drawn(shown: list[Snapshots], panels: list[np.ndarray]) -> Figure:
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    width = PAGE / COLUMNS
    span = value_range([panel for panel in panels if not is_image(panel)])
    height = width * max(panel.shape[0] / panel.shape[1] for panel in panels) + 0.45
    with drawing():
        fig = figure(max(columns * width, PAGE / 2), rows * height)
        grid = fig.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, each, panel in zip(grid, shown, panels, strict=False):
            draw_picture(axes, panel, span)
            axes.set_title(f"{clipped(each.arm)}\nafter {each.points[-1]:,} images seen".strip())
    return fig
