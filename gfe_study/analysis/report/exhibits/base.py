"""What a report is made of: a figure or a table, with what it shows in words and the numbers behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from gfe_study.analysis.judge.evidence import Evidence
from gfe_study.analysis.report.html import exhibit_html

Chart = dict[str, Any]
"""A specification of Vega-Lite."""


@dataclass(frozen=True, eq=False)
class Exhibit:
    """One piece of evidence.

    Attributes:
        key: names its files.
        caption: what it shows and how it was computed, with the number of seeds.
        figure: drawn to be read at the width of a column or a page.
        table: shown on the page; also written as CSV, Markdown and LaTeX.
        formats: how the numbers of a column of the table are shown, as of `format`.
        data: the numbers behind the figure, written as CSV.
        chart: shown on the page instead of a figure, where a reader can point at it and choose what is shown.
    """

    key: str
    title: str
    caption: str
    figure: Figure | None = None
    table: pd.DataFrame | None = None
    formats: Mapping[str, str] = field(default_factory=dict)
    data: pd.DataFrame | None = None
    chart: Chart | None = None

    def _repr_html_(self) -> str:
        return exhibit_html(self)


Maker = Callable[[Evidence], Iterator[Exhibit]]
"""Makes the exhibits of one kind that a study has the evidence for; none where it has not."""


def capitalised(text: str) -> str:
    """Return a text whose first letter is a capital, the others as they are."""
    return f"{text[:1].upper()}{text[1:]}"


def level_text(confidence: float) -> str:
    """A level of confidence in words: 95 %, 99.5 %."""
    return f"{100 * confidence:g} %"


def shaded_text(counts: set[int], confidence: float) -> str:
    """How many seeds a figure of mean curves stands on, and what is shaded; it begins a sentence."""
    shade = "" if counts == {1} else f", shaded: {level_text(confidence)} Student intervals of the mean"
    return f"{seeds_text(counts).capitalize()}{shade}"


def seeds_text(counts: set[int]) -> str:
    """How many seeds a figure stands on, and what that allows to say."""
    if not counts or max(counts) == 0:
        return "no seed ended"
    if counts == {1}:
        return "no interval: one seed"
    told = str(max(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    return f"{told} seeds"
