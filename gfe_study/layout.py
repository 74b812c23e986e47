"""Text layout for the terminal: tables never truncate a number, and lines break between words."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

GAP = "  "
BAR_WIDTH = 12
HEIGHTS = "▁▂▃▄▅▆▇█"
NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Column:
    """A column of a `Listing`.

    Attributes:
        header: heading of the column.
        left: whether cells are left-aligned, as for text; numbers are right-aligned.
        detail: whether the column moves to a separate line below the row if the table is too wide.
        prefix: label of a value that is shown outside its column; defaults to the heading.
    """

    header: str
    left: bool = False
    detail: bool = False
    prefix: str | None = None

    def labelled(self, value: str) -> str:
        """Return a value with the label that replaces its heading."""
        return f"{self.header if self.prefix is None else self.prefix} {value}".strip()


@dataclass
class Listing:
    """A table that adapts to the available width.

    Each row takes one line if it fits, otherwise two with the details below, otherwise one line per column.
    Columns without values are omitted.
    """

    title: str
    columns: Sequence[Column]
    rows: list[Sequence[str]] = field(default_factory=list)

    def lines(self, width: int) -> list[Text]:
        """Return the table as lines of at most `width` cells; only a single longer word exceeds the width."""
        used = [place for place in range(len(self.columns)) if any(row[place] for row in self.rows)]
        title = [Text(line, style="italic") for line in wrapped(self.title, width)]
        main = [place for place in used if not self.columns[place].detail]
        rest = [place for place in used if self.columns[place].detail]
        if (whole := self._grid(main + rest, width)) is not None:
            return title + whole
        body = [] if (grid := self._grid(main, width)) is None else grid[:1]
        for place, row in enumerate(self.rows):
            if grid is not None:
                body.append(grid[place + 1])
                body += self._items([self.columns[at].labelled(row[at]) for at in rest if row[at]], width)
            else:
                body += [Text(line) for line in wrapped(row[used[0]], width)] if used else []
                body += self._items([self.columns[at].labelled(row[at]) for at in used[1:] if row[at]], width)
        return title + body

    def html(self) -> str:
        """Return the table in HTML; columns without values are omitted."""
        used = [place for place in range(len(self.columns)) if any(row[place] for row in self.rows)]
        align = ["left" if self.columns[place].left else "right" for place in used]

        def line(cells: Sequence[str], tag: str) -> str:
            styled = zip(align, cells, strict=True)
            return "".join(f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>' for side, cell in styled)

        head = line([self.columns[place].header for place in used], "th")
        rows = "".join(f"<tr>{line([row[place] for place in used], 'td')}</tr>" for row in self.rows)
        caption = f"<caption>{escape(self.title)}</caption>" if self.title else ""
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"

    def markdown(self) -> str:
        """Return the table in Markdown; columns without values are omitted."""
        used = [place for place in range(len(self.columns)) if any(row[place] for row in self.rows)]
        head = [self.columns[place].header for place in used]
        rule = [":--" if self.columns[place].left else "--:" for place in used]
        body = [[row[place].replace("|", "\\|") for place in used] for row in self.rows]
        lines = [f"| {' | '.join(cells)} |" for cells in (head, rule, *body)]
        return "\n".join([*([f"{self.title}\n"] if self.title else []), *lines])

    def _grid(self, places: Sequence[int], width: int) -> list[Text] | None:
        """Return the heading and the rows, one line each; None if they are wider than `width`."""
        table = [[self.columns[place].header for place in places], *([row[at] for at in places] for row in self.rows)]
        widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
        lines = []
        for row in table:
            cells = []
            for place, cell, wide in zip(places, row, widths, strict=True):
                room = " " * (wide - cell_len(cell))
                cells.append(cell + room if self.columns[place].left else room + cell)
            lines.append(GAP.join(cells).rstrip())
        if max(map(cell_len, lines), default=0) > width:
            return None
        return [Text(lines[0], style="bold"), *map(Text, lines[1:])]

    @staticmethod
    def _items(items: Sequence[str], width: int) -> list[Text]:
        # Items that fit on a line are kept whole, so that a label stays with its number.
        kept = [item.replace(" ", NO_BREAK) if cell_len(f"{GAP}{item};") <= width else item for item in items]
        return [Text(line.replace(NO_BREAK, " ")) for line in wrapped("; ".join(kept), width, GAP, GAP)]


def wrapped(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    """Wrap text between words into lines of at most `width` characters; links and paths are never broken."""
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def number(value: Any, digits: int = 4) -> str:
    """Round a value to significant digits; values from 0.0001 to 10 million are written without an exponent."""
    if not isinstance(value, float):
        return str(value)
    text = f"{value:.{digits}g}"
    return f"{float(text):.0f}" if "e" in text and 1 <= abs(value) < 1e7 else text


def about(seconds: float) -> str:
    """Round a time: `about 40 s`, `about 7 min`, `about 2.5 h`."""
    if seconds < 60:
        return f"about {max(1, round(seconds))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def sparkline(values: Sequence[float]) -> str:
    """Draw the course of some numbers in characters, one for each; what is not finite is a blank."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    steps = len(HEIGHTS) - 1
    level = [round(steps * (value - low) / (high - low)) if high > low else 0 for value in finite]
    drawn = iter(level)
    return "".join(HEIGHTS[next(drawn)] if math.isfinite(value) else " " for value in values)


def drawn_bar(count: int, total: int) -> str:
    """Draw a progress bar in characters."""
    filled = min(BAR_WIDTH, BAR_WIDTH * count // total)
    return f"{'━' * filled}{'╌' * (BAR_WIDTH - filled)}"


class NotebookLine:
    """A line of a notebook cell's output that is replaced whenever it changes."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, text: str) -> None:
        from IPython.display import HTML, display

        content = HTML(f"<pre>{escape(text)}</pre>")
        if self._handle is None:
            self._handle = display(content, display_id=True)
        else:
            self._handle.update(content)


def show(console: Console, listing: Listing) -> None:
    """Print a table."""
    for line in listing.lines(console.width):
        console.print(line, soft_wrap=True)


def say(console: Console, text: str, style: str = "") -> None:
    """Print a sentence: wrapped on a terminal, on one line elsewhere."""
    lines = wrapped(text, console.width, rest=GAP) if console.is_terminal else [text]
    for line in lines or [""]:
        console.print(Text(line, style=style), soft_wrap=True)
