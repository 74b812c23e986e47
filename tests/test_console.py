"""What a sweep prints: complete at 60, 80 and 120 columns, and what can be pasted can be used."""

from __future__ import annotations

import io
import math
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from gfe_study.analysis.judge.diagnostics import Diagnostic, notes
from gfe_study.analysis.judge.verdict import Row, Verdict
from gfe_study.analysis.judge.verdict_table import verdict_table
from gfe_study.analysis.stats.intervals import Interval, mean_interval, paired
from gfe_study.layout import show
from gfe_study.study.engine import Running, Snapshot
from gfe_study.view.console import StudyView

ARMS = ["amd", "euler", "rk4", "rk4, second order", "amd_nesterov", "amd_spectral", "gauss_newton", "lbfgs"]
TEXTS = [
    "reference",
    "worse than amd",
    "undecided at 1,920 images: p 0.041, 0.12 after Holm over 3 comparisons; about 9 seeds would decide",
    "undecided: about 1,204 seeds would decide",
    "equivalent to amd within 0.003",
    "better than amd",
    "no interval: one seed",
    "not comparable with amd: no seed of both has finished, or has a point within the budget",
]


def eight_arms() -> Verdict:
    reference = [0.3278, 0.3301, 0.3254]
    rows = []
    for place, (arm, text) in enumerate(zip(ARMS, TEXTS, strict=True)):
        values = [value - 0.0123 * place + 0.0007 * place * seed for seed, value in enumerate(reference)]
        found = paired(values, reference) if place else None
        row = Row(arm, 0, [0, 1, 2], 480, mean_interval(values), 56.78, 2.0, "amd" if place else None, found, text=text)
        rows.append(Row(**{**vars(row), "p_holm": 0.0121 if place else None, "seconds_ratio": 12.34, "nfe_ratio": 0.5}))
    return Verdict("test_loss", 0.003, 0.95, rows)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_verdict_of_eight_arms_is_complete(width: int) -> None:
    """Every mean, interval, p-value, ratio and verdict is there, whole, and no line is wider than the terminal."""
    verdict = eight_arms()
    shown = io.StringIO()
    show(Console(file=shown, width=width, force_terminal=True, no_color=True), verdict_table(verdict))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.getvalue())
    assert max(map(len, plain.splitlines())) <= width
    assert "…" not in plain
    flat = " ".join(plain.split())
    for row in verdict.rows:
        assert row.arm in flat
        assert row.text in flat
        assert f"{row.value.mean:.4f}" in flat
        if row.paired is not None:
            assert f"{row.paired.difference:+.4f} [{row.paired.low:+.4f}, {row.paired.high:+.4f}]" in flat
            assert f"{row.paired.p_value:.2g}" in flat
    assert flat.count("12.34") == len(ARMS)
    assert flat.count("56.8") == len(ARMS)


def test_an_arm_without_a_result_has_no_seconds() -> None:
    row = Row("amd", 0, [], None, Interval(math.nan, None, None, 0, 0.95), math.nan, math.nan, text="no seed finished")
    listing = verdict_table(Verdict("test_loss", None, 0.95, [row]))
    assert listing.rows[0][[column.header for column in listing.columns].index("seconds")] == ""


def test_arms_with_the_same_problem_share_a_note() -> None:
    same = [Diagnostic("few", arm, "1 finished configuration for 1 searched key", "run at least 7") for arm in ARMS]
    (note,) = notes(same)
    assert note.text.startswith("8 arms (amd; euler; rk4; rk4, second order; ")
    assert note.text.endswith("): 1 finished configuration for 1 searched key: run at least 7")
    assert note.details == ()


def test_a_shared_cause_lists_what_differs() -> None:
    signs = [Diagnostic("boundary", arm, f"the best lr is {arm}", "widen the range upwards") for arm in "ab"]
    other = Diagnostic("flat", None, "the search found nothing", "search other keys")
    first, second = notes([*signs, other])
    assert (first.text, first.details) == (
        "2 arms (a; b): widen the range upwards",
        ("a: the best lr is a", "b: the best lr is b"),
    )
    assert second.text == "the search found nothing: search other keys"


def test_one_arm_alone_is_named() -> None:
    assert notes([Diagnostic("flat", "a", "found", "do")])[0].text == "arm 'a': found: do"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_sweep_shows_each_trial_that_runs(width: int) -> None:
    trials = [
        Running("gfe, N=1000 #12 seed 0", 1920, [0.25, 0.125, 0.0936]),
        Running("ae decoder, N=1000 #11 seed 0", 0, []),
    ]
    console = Console(file=io.StringIO(), width=width)
    view = StudyView(console)
    view.progress(Snapshot(275, 41, 3, 1, 0.0845, 1058.0, 5789.0, trials))
    lines = view._lines()
    assert all(cell_len(line) <= width for line in lines)
    told = " ".join(" ".join(lines).split())
    for part in ("41/275 done", "3 running", "1 failed", "best val_loss 0.0845", "17:38 elapsed", "1:36:2"):
        assert part in told
    assert "gfe, N=1000 #12 seed 0: 1,920 images, val_loss 0.0936 █▂▁" in told
    assert "ae decoder, N=1000 #11 seed 0: 0 images" in told
    assert lines[-1] == "  and 1 more"
