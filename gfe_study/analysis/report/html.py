"""Tables and exhibits as HTML, for pages and notebooks."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd

from gfe_study.analysis.report.style import DPI, drawing

if TYPE_CHECKING:
    from gfe_study.analysis.report.exhibits.base import Exhibit

TABLE_FORMATS = (".csv", ".md", ".tex")
FILES = (".png", ".svg", *TABLE_FORMATS, "_data.csv")
"""Endings of an exhibit's files."""
PIXELS_AN_INCH = 125
"""On the page."""


def formatted(table: pd.DataFrame, formats: Mapping[str, str]) -> pd.DataFrame:
    """A table as text: numbers as they are asked for, others to four digits, nothing where there is none."""

    def shown(value: Any, form: str | None) -> str:
        if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
            return ""
        if isinstance(value, bool | str):
            return str(value)
        if form is not None:
            return format(value, form)
        number = float(value) if isinstance(value, int | float) or hasattr(value, "__float__") else None
        if number is None:
            return str(value)
        return f"{number:,.0f}" if number == round(number) and abs(number) < 1e12 else f"{number:.4g}"

    return pd.DataFrame(
        {column: [shown(value, formats.get(str(column))) for value in table[column]] for column in table},
        index=table.index,
    )


def table_html(shown: pd.DataFrame, links: Mapping[tuple[str, str], str] = MappingProxyType({}), kind: str = "") -> str:
    """A table of text; columns of numbers to the right.

    Args:
        links: where a text of a column leads.
        kind: class of the table, for the page's script.
    """

    def is_text(column: Any) -> bool:
        return not all(_is_number(value) for value in shown[column] if value)

    def cell(column: Any, text: str) -> str:
        link = links.get((str(column), text))
        return f'<a href="{escape(link)}">{escape(text)}</a>' if link else escape(text)

    kinds = {column: ' class="text"' if is_text(column) else "" for column in shown}
    head = "".join(f"<th{kinds[column]}>{escape(str(column))}</th>" for column in shown)
    rows = "".join(
        f"<tr>{''.join(f'<td{kinds[column]}>{cell(column, str(row[column]))}</td>' for column in shown)}</tr>"
        for row in shown.to_dict("records")
    )
    named = f' class="{kind}"' if kind else ""
    return f'<div class="tables"><table{named}><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def exhibit_html(exhibit: Exhibit, folder: Path | None = None) -> str:
    """An exhibit with its heading; its picture from the folder it was written to, else drawn."""
    parts = [f'<h2 id="{exhibit.key}">{escape(exhibit.title)}</h2>']
    if exhibit.table is not None:
        parts.append(table_html(formatted(exhibit.table, exhibit.formats)))
    if exhibit.figure is not None:
        kind, content = _smaller(folder, exhibit.key) if folder is not None else ("png", _png(exhibit))
        picture = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        width = int(exhibit.figure.get_figwidth() * PIXELS_AN_INCH)
        image = f'<img alt="{escape(exhibit.title)}" width="{width}" src="{picture}">'
        parts.append(f"<figure>{image}<figcaption>{escape(exhibit.caption)}</figcaption></figure>")
    elif exhibit.chart is not None and folder is not None:
        chart = json.dumps(exhibit.chart, ensure_ascii=False, allow_nan=False).replace("</", "<\\/")
        box = f'<div class="chart"><script type="application/json">{chart}</script></div>'
        parts.append(f"<figure>{box}<figcaption>{escape(exhibit.caption)}</figcaption></figure>")
    else:
        parts.append(f'<p class="note">{escape(exhibit.caption)}</p>')
    if folder is not None:
        parts.append(_files(exhibit, folder))
    return "\n".join(parts)


def _files(exhibit: Exhibit, folder: Path) -> str:
    """Links to an exhibit's files, which lie beside the page."""
    names = [f"{exhibit.key}{ending}" for ending in FILES if (folder / f"{exhibit.key}{ending}").exists()]
    links = ", ".join(f'<a href="{escape(name)}">{escape(name)}</a>' for name in names)
    return f'<p class="files">{links}</p>' if links else ""


def _smaller(folder: Path, key: str) -> tuple[str, bytes]:
    """The kind and the content of a figure's smaller file: lines are best as SVG, photographs as PNG."""
    found = {"png": (folder / f"{key}.png").read_bytes(), "svg+xml": (folder / f"{key}.svg").read_bytes()}
    return min(found.items(), key=lambda pair: len(pair[1]))


def _png(exhibit: Exhibit) -> bytes:
    drawn = io.BytesIO()
    assert exhibit.figure is not None
    with drawing():
        exhibit.figure.savefig(drawn, dpi=DPI, format="png")
    return drawn.getvalue()


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "").replace("−", "-"))
    except ValueError:
        return False
    return True
