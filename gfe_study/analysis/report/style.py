"""How figures look: sizes, colours that mean the same method everywhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from gfe_study import names, registry
from gfe_study.analysis.store.tidy import PARAMS
from gfe_study.io.pictures import is_image, is_line, plane, value_range

COLUMN, PAGE = 3.4, 6.9
"""Width of a column, and of a page of two, inches."""
DPI = 300
GREY, INK = "#8a8a8a", "#222222"

PALETTE = matplotlib.style.library["petroff10"]["axes.prop_cycle"].by_key()["color"]
"""Ten colours that people who see colours differently tell apart (Petroff, arXiv:2107.02270)."""

MARKERS = "osD^vPX*<>"
INCHES_OF_HANDLE, INCHES_OF_LETTER = 0.55, 0.058
"""What an entry of a legend takes beside its text, and a letter of that."""
MOST_LETTERS = 40
"""Of a name in a figure."""
MOST_LINES = 4
"""Of a legend above the axes."""
RC: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "gfe-study",
}


@dataclass(frozen=True)
class Style:
    """How an arm is drawn."""

    colour: str
    line: str
    marker: str

    def of_line(self) -> dict[str, Any]:
        return {"color": self.colour, "linestyle": self.line, "marker": self.marker}


def styles(trials: pd.DataFrame, arms: Sequence[str]) -> dict[str, Style]:
    """The style of every arm: the colour of its method or solver, where these tell arms apart; else one by its place.

    Of arms that differ in how they are trained through the flow, those that are not `approx` are dashed.
    """
    first = {str(trial[names.ARM]): trial for trial in trials.drop_duplicates(names.ARM).to_dict("records")}
    kinds = {arm: _kind(first[arm]) for arm in arms if arm in first}
    colours = _colours(map(_kind, first.values()))
    dashed = {arm: arm in first and _param(first[arm], "gradient.name") not in ("approx", "") for arm in arms}
    if all(kind in colours for kind in map(kinds.get, arms)):
        looks = {arm: Style(colours[kinds[arm]], "--" if dashed[arm] else "-", _marker(*kinds[arm])) for arm in arms}
        if len({(look.colour, look.line) for look in looks.values()}) == len(arms):
            return looks
    lines = ("-", "--", ":")
    return {
        arm: Style(
            PALETTE[place % len(PALETTE)], lines[place // len(PALETTE) % len(lines)], MARKERS[place % len(MARKERS)]
        )
        for place, arm in enumerate(arms)
    }


Kind = tuple[str, str]
"""A section and the name of one of its components."""


def colour_of(section: str, name: str) -> str | None:
    """The colour that a component's class has, if any. Those that share one are seldom compared."""
    colour: str | None = registry.constant(section, name, "colour")
    return colour


def _colours(kinds: Iterable[Kind]) -> dict[Kind, str]:
    """The colours of a study's methods and solvers; those that have none get those that are free, in one order."""
    found = {kind: colour_of(*kind) for kind in sorted({*kinds}) if kind[1]}
    taken = {colour for colour in found.values() if colour is not None}
    free = itertools.cycle([colour for colour in PALETTE if colour not in taken] or PALETTE)
    return {kind: colour or next(free) for kind, colour in found.items()}


def _marker(section: str, name: str) -> str:
    known = registry.names(section)
    return MARKERS[(known.index(name) if name in known else len(known)) % len(MARKERS)]


def _kind(trial: Mapping[Any, Any]) -> Kind:
    """A method, or of gradient flow encoding its solver."""
    method = str(trial[names.METHOD])
    return ("solver", _param(trial, "solver.name")) if method == "gfe" else ("method", method)


def _param(trial: Mapping[Any, Any], key: str) -> str:
    value = trial.get(f"{PARAMS}{key}")
    return value if isinstance(value, str) else ""


def drawing() -> AbstractContextManager[None]:
    """What figures are made under."""
    return matplotlib.rc_context(RC)


def figure(width: float = COLUMN, height: float = 2.5) -> Figure:
    """An empty figure, inches."""
    return Figure(figsize=(width, height), layout="constrained")


def log_axis(axes: Axes, values: Sequence[float], *, most: int = 6) -> None:
    """A logarithmic x axis with ticks at some of the values themselves."""
    axes.set_xscale("log")
    there = sorted({float(value) for value in values if value > 0})
    axes.xaxis.set_major_locator(FixedLocator(_spaced(there, most)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def _spaced(values: Sequence[float], most: int) -> list[float]:
    """Some of the values, the last one among them, none closer to the next than a share of the whole range."""
    if not values:
        return []
    least = math.log(values[-1] / values[0]) / most
    kept = [values[-1]]
    for value in reversed(values[:-1]):
        if math.log(kept[-1] / value) >= least * 0.999:
            kept.append(value)
    return kept[::-1]


def short(value: float) -> str:
    """A number as a tick label: 0.183, 480, 1,920, 60k."""
    if abs(value) < 10_000:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value / 1e6:.3g}M" if abs(value) >= 1e6 else f"{value / 1000:.3g}k"


def draw_mean(axes: Axes, curve: pd.DataFrame, along: str, look: Style, text: str) -> None:
    """A curve of means, columns `along`, `mean`, `low` and `high`, with its interval shaded."""
    axes.plot(curve[along], curve["mean"], label=text, **look.of_line())
    low, high = (curve[end].astype("float64") for end in ("low", "high"))
    axes.fill_between(curve[along], low, high, color=look.colour, alpha=0.18, linewidth=0)


def clipped(text: str, most: int = MOST_LETTERS) -> str:
    """A name that a figure has room for; tables have the whole of it."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def legend(fig: Figure) -> None:
    """The figure's legend: above its axes in as many columns as fit, or beside them where it is long."""
    handles: dict[str, Any] = {}
    for axes in fig.axes:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(text, handle)
    if not handles:
        return
    texts = [clipped(text) for text in handles]
    width = float(fig.get_figwidth())
    columns = max(1, int(width / (INCHES_OF_HANDLE + INCHES_OF_LETTER * max(map(len, texts)))))
    if len(handles) > MOST_LINES * columns:
        fig.set_figwidth(PAGE)
        fig.legend(handles.values(), texts, loc="outside right center")
    else:
        fig.legend(handles.values(), texts, loc="outside upper center", ncols=min(columns, 4))


def plain_log(axes: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis, labelled in plain numbers."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def draw_picture(axes: Axes, picture: np.ndarray, span: tuple[float, float]) -> None:
    """An image, or values of a plane in colours over a span, blank where they are missing."""
    look = {"cmap": "gray_r", "vmin": 0, "vmax": 255} if is_image(picture) else {"vmin": span[0], "vmax": span[1]}
    axes.imshow(picture, interpolation="nearest", **look)


def draw_samples(grid: np.ndarray, rows: list[np.ndarray], unit: str) -> None:
    """Samples of snapshots, a row of axes each: images, fields in the colours of one bar, or vectors as lines."""
    span = value_range([samples for samples in rows if not is_image(samples)])
    for line, samples in zip(grid, rows, strict=True):
        for axes, sample in zip(line, samples, strict=True):
            if is_line(samples):
                axes.plot(sample.T, linewidth=0.6)
                if span[0] < span[1]:
                    axes.set_ylim(*span)
            else:
                draw_picture(axes, sample if is_image(samples) else plane(sample), span)
                axes.spines[:].set_visible(False)
            axes.set_xticks([])
            axes.set_yticks([])
    if not any(is_image(samples) or is_line(samples) for samples in rows):
        grid[0][0].figure.colorbar(ScalarMappable(Normalize(*span)), ax=list(grid.ravel()), shrink=0.6, label=unit)


def save(fig: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG (300 dpi) and SVG, of the same bytes for the same figure; returns the files."""
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    metadata: dict[str, Mapping[str, Any]] = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}
    with drawing():
        fig.draw_without_rendering()
        fig.set_layout_engine("none")  # found once, and not anew for every file
        for file in files:
            fig.savefig(file, dpi=DPI, metadata=dict(metadata[file.suffix]))
    return files
