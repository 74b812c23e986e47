"""What is printed fits the terminal: no number is ever cut."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from gfe_study.layout import Column, Listing, about, number, say, show, sparkline, wrapped

VERDICT = [
    Column("arm", left=True),
    Column("mean"),
    Column("difference [95 %]"),
    Column("verdict", left=True, detail=True, prefix=""),
    Column("p Holm", detail=True, prefix="Holm p"),
]
ROWS: list[Sequence[str]] = [
    ("amd", "0.3278", "", "reference", ""),
    ("rk4, second order", "0.3583", "+0.0305 [+0.0135, +0.0475]", "worse than amd at 1,920 images", "0.033"),
]


def text_of(listing: Listing, width: int) -> str:
    return "\n".join(line.plain for line in listing.lines(width))


def test_a_wide_table_has_one_line_per_row() -> None:
    lines = text_of(Listing("Title", VERDICT, ROWS), 120).splitlines()
    assert len(lines) == 1 + 1 + 2
    assert lines[1].split() == ["arm", "mean", "difference", "[95", "%]", "verdict", "p", "Holm"]
    # Numbers end where their heading ends, text starts where it starts.
    assert lines[1].index("mean") + 4 == lines[3].index("0.3583") + 6
    assert lines[1].index("verdict") == lines[3].index("worse")


def test_details_move_below_the_row() -> None:
    lines = text_of(Listing("Title", VERDICT, ROWS), 60).splitlines()
    assert lines[1].split() == ["arm", "mean", "difference", "[95", "%]"]
    assert lines[3] == "  reference"
    assert lines[5] == "  worse than amd at 1,920 images; Holm p 0.033"


def test_a_narrow_table_is_stacked() -> None:
    lines = text_of(Listing("Title", VERDICT, ROWS), 40).splitlines()
    assert lines[1:3] == ["amd", "  mean 0.3278; reference"]
    assert lines[3] == "rk4, second order"
    assert "  difference [95 %] +0.0305 [+0.0135, +0.0475]" not in lines  # too wide for one line: broken, not cut
    assert "[+0.0135, +0.0475]" in " ".join(" ".join(lines).split())


def test_columns_without_values_are_omitted() -> None:
    assert "p Holm" not in text_of(Listing("", VERDICT, ROWS[:1]), 120)


words = st.text(st.characters(whitelist_categories=["L", "N"]), min_size=1, max_size=12)
cells = st.lists(words, max_size=4).map(" ".join)


@example([("0", "", "", "", ""), ("0", "0 0000 000000", "0", "", "")], 20)
@given(
    st.lists(st.tuples(words, cells, cells, cells, cells), min_size=1, max_size=4),
    st.integers(20, 160),
)
def test_nothing_is_ever_cut(rows: list[Sequence[str]], width: int) -> None:
    """Whatever the width, every word of every cell is printed whole, and no line is wider than the terminal."""
    lines = Listing("A title of some words", VERDICT, rows).lines(width)
    shown = " ".join(line.plain.replace(";", " ") for line in lines).split()
    for row in rows:
        for cell in row:
            for word in cell.split():
                assert word in shown
    assert all(len(line.plain) <= max(width, 14) for line in lines)


def terminal(width: int) -> tuple[Console, io.StringIO]:
    shown = io.StringIO()
    return Console(file=shown, width=width, force_terminal=True, no_color=True, legacy_windows=False), shown


def test_sentences_break_between_words() -> None:
    console, shown = terminal(30)
    say(console, "note: the best value lies at the end of its range, see http://127.0.0.1:5000/#/experiments/1/runs")
    lines = shown.getvalue().splitlines()
    assert lines[0] == "note: the best value lies at"
    assert lines[-1].strip() == "http://127.0.0.1:5000/#/experiments/1/runs"  # longer than the line, and whole


def test_elsewhere_a_sentence_stays_one_line() -> None:
    shown = io.StringIO()
    text = "note: " + "word " * 60 + "end"
    say(Console(file=shown, width=200), text)
    assert shown.getvalue() == f"{text}\n"


def test_markup_in_a_name_is_printed_as_it_is() -> None:
    console, shown = terminal(80)
    show(console, Listing("[bold]", [Column("arm", left=True)], [("[red]",)]))
    say(console, "[red] diverged")
    plain = shown.getvalue()
    assert plain.count("[red]") == 2
    assert "[bold]" in plain


def test_wide_letters_keep_columns_apart() -> None:
    lines = Listing("", [Column("arm", left=True), Column("mean")], [("漢字", "0.1"), ("ab", "0.2")]).lines(40)
    assert len({cell_len(line.plain) for line in lines[1:]}) == 1


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.75, "0.75"),
        (1e4, "10000"),
        (9876.54, "9880"),
        (3.21e-5, "3.21e-05"),
        (0.000512, "0.000512"),
        (3e9, "3e+09"),
        (12, "12"),
        ("amd", "amd"),
        (True, "True"),
    ],
)
def test_numbers_are_rounded_as_people_write_them(value: object, shown: str) -> None:
    assert number(value, 3) == shown


def test_wrapped_text_keeps_its_indentation() -> None:
    assert wrapped("one two three", 9, "a  ", "   ") == ["a  one", "   two", "   three"]


def test_a_sparkline_is_as_high_as_its_numbers() -> None:
    assert sparkline([3.0, 2.0, 1.0]) == "█▅▁"
    assert sparkline([0.5, 0.5]) == "▁▁"
    assert sparkline([1.0, float("nan"), 0.0, float("inf")]) == "█ ▁ "
    assert sparkline([]) == sparkline([float("nan")]) == ""


def test_times_are_rounded_to_what_matters() -> None:
    told = [about(seconds) for seconds in (0.2, 40.4, 61, 430, 5399, 9000)]
    assert told == ["about 1 s", "about 40 s", "about 1 min", "about 7 min", "about 90 min", "about 2.5 h"]
