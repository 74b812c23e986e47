"""How closely estimates of the divergence follow a known change, as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gfe_study.analysis.report import style

ESTIMATES = {"kde": ("KDE", style.Style(style.PALETTE[0], "-", "o")),
             "discriminator": ("discriminator", style.Style(style.PALETTE[1], "--", "s"))}  # fmt: skip


def draw_correlation(cells: Sequence[Mapping[str, Any]], path: Path) -> list[Path]:
    """Pearson's r over the number of samples, a panel for every latent dimension; returns the files.

    Args:
        cells: each with `latent_dim`, `samples`, and `kde` and `discriminator` as mappings of `r` and `std`.
        path: a PNG; an SVG is written beside it.
    """
    dimensions = sorted({int(cell["latent_dim"]) for cell in cells})
    with style.drawing():
        fig = style.figure(style.PAGE, 2.2)
        panels = fig.subplots(1, len(dimensions), sharey=True, squeeze=False)[0]
        for axes, dimension in zip(panels, dimensions, strict=True):
            row = sorted((cell for cell in cells if cell["latent_dim"] == dimension), key=lambda cell: cell["samples"])
            for name, (text, look) in ESTIMATES.items():
                r, spread = ([cell[name][part] for cell in row] for part in ("r", "std"))
                curve = pd.DataFrame({"samples": [cell["samples"] for cell in row], "mean": r})
                curve["low"], curve["high"] = curve["mean"] - spread, curve["mean"] + spread
                style.draw_mean(axes, curve, "samples", look, text)
            style.log_axis(axes, [cell["samples"] for cell in row])
            axes.set_title(f"{dimension} latent dimensions")
            axes.set_xlabel("samples")
        panels[0].set_ylabel("Pearson's r with the separation")
        style.legend(fig)
        return style.save(fig, path)
