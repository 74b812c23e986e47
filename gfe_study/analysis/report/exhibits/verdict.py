"""The comparison of a study's arms as a table, and the paired differences as a figure."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from matplotlib.ticker import MaxNLocator

from gfe_study import names
from gfe_study.analysis.judge.evidence import Evidence
from gfe_study.analysis.judge.verdict import Row, Verdict
from gfe_study.analysis.report.exhibits.base import Exhibit, level_text, seeds_text
from gfe_study.analysis.report.style import GREY, INK, PAGE, PALETTE, clipped, drawing, figure
from gfe_study.analysis.stats.intervals import smallest_p
from gfe_study.metrics import info_of

FORMATS = {
    "images seen": ",.0f",
    "p": ".2g",
    "p, Holm": ".2g",
    "p, permutation": ".2g",
    "smallest p": ".2g",
    "effect size": "+.2f",
    "seconds": ",.2f",
    "× seconds": ".2f",
    "× evaluations": ".2f",
}
VALUES, DIFFERENCES = ("mean", "low", "high"), ("difference", "diff. low", "diff. high")
"""Columns in the metric's own format, the second with a sign."""
HEIGHT_OF_ROW, HEIGHT_OF_REST = 0.2, 0.75
MOST_LETTERS_OF_PAIR, MOST_LETTERS_OF_VERDICT = 52, 60


def verdict(evidence: Evidence) -> Iterator[Exhibit]:
    """The table, and the figure if anything is compared with an interval."""
    found = evidence.verdict
    if found is None or not found.rows:
        return
    counts = {len(row.seeds) for row in found.rows}
    yield Exhibit(
        "verdict",
        "Verdict",
        f"Arms by their chosen configurations, {evidence.label(found.metric)}, {found.better} is better, "
        f"{seeds_text(counts)}{found.taken}. Differences are of runs paired by seed, with "
        f"{level_text(found.confidence)} Student intervals, "
        "p of the paired t-test, Holm's over the study's comparisons, which decides, and p of the sign-flip "
        "permutation test beside the smallest that so many seeds can reach; the effect size is Hedges's g of paired "
        "differences. Seconds are those of training, mean per trial. × are ratios to the reference, of seconds only "
        "where all trials ran under the same conditions.",
        table=verdict_table(found),
        formats=formats_of(found.metric),
    )
    compared = [row for row in found.rows if row.paired is not None and row.paired.low is not None]
    if compared:
        yield _differences(found, compared, evidence.label(found.metric))


def formats_of(metric: str) -> dict[str, str]:
    """Return the formats of the table's columns, for a comparison by this metric."""
    own = info_of(metric).format
    return {**FORMATS, **dict.fromkeys(VALUES, own), **dict.fromkeys(DIFFERENCES, f"+{own}")}


def verdict_table(found: Verdict) -> pd.DataFrame:
    """One row per arm; columns that hold nothing are left out."""
    rows = []
    for row in found.rows:
        pair = row.paired
        rows.append(
            {
                "arm": row.arm,
                "seeds": len(row.seeds),
                "images seen": row.images,
                "mean": row.value.mean,
                "low": row.value.low,
                "high": row.value.high,
                "reference": row.reference or "",
                "difference": pair.difference if pair else None,
                "diff. low": pair.low if pair else None,
                "diff. high": pair.high if pair else None,
                "p": pair.p_value if pair else None,
                "p, Holm": row.p_holm,
                "p, permutation": pair.p_permutation if pair else None,
                "smallest p": smallest_p(pair.count) if pair else None,
                "effect size": pair.effect_size if pair else None,
                "seconds": row.seconds,
                "× seconds": row.seconds_ratio,
                "× evaluations": row.nfe_ratio,
                "verdict": row.text,
            }
        )
    table = pd.DataFrame(rows)
    numbers = [column for column in table if column in (*FORMATS, *VALUES, *DIFFERENCES)]
    table[numbers] = table[numbers].astype("float64")
    return table.dropna(axis="columns", how="all")


def _differences(found: Verdict, compared: list[Row], label: str) -> Exhibit:
    colours = {"better": PALETTE[0], "worse": PALETTE[1], "equivalent": PALETTE[4], "undecided": GREY}
    with drawing():
        fig = figure(PAGE, HEIGHT_OF_REST + HEIGHT_OF_ROW * len(compared))
        axes = fig.add_subplot()
        if found.margin is not None:
            axes.axvspan(-found.margin, found.margin, color=GREY, alpha=0.2, linewidth=0)
        axes.axvline(0, color=INK, linewidth=0.6)
        for place, row in enumerate(compared):
            pair = row.paired
            assert pair is not None
            assert pair.low is not None
            assert pair.high is not None
            assert row.verdict is not None
            colour = colours[row.verdict]
            axes.plot([pair.low, pair.high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
            axes.plot([pair.difference], [place], "o", color=colour)
            axes.annotate(
                f"{clipped(row.text, MOST_LETTERS_OF_VERDICT)}, n = {pair.count}",
                (1.01, place),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=7,
                color=INK,
            )
        axes.set_yticks(
            range(len(compared)), [clipped(f"{row.arm} − {row.reference}", MOST_LETTERS_OF_PAIR) for row in compared]
        )
        axes.set_ylim(len(compared) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(f"difference of {label}")
    band = (
        f" Shaded: the margin of ±{found.margin:g} within which a difference is of no interest." if found.margin else ""
    )
    counts = {row.paired.count for row in compared if row.paired is not None}
    left = "better" if found.better == "lower" else "worse"
    return Exhibit(
        "differences",
        "Differences from the reference, seed by seed",
        f"Mean difference of each arm from its reference and its {level_text(found.confidence)} Student interval, "
        f"{seeds_text(counts)}; left of 0 the arm's mean is lower, which is {left}. Grey intervals are undecided."
        f"{band}",
        fig,
        data=_numbers(compared),
    )


def _numbers(compared: list[Row]) -> pd.DataFrame:
    more = ("p_holm", "verdict", "seeds_to_decide")
    return pd.DataFrame(
        [
            {
                names.ARM: row.arm,
                "reference": row.reference,
                **vars(row.paired),
                **{key: vars(row)[key] for key in more},
            }
            for row in compared
            if row.paired is not None
        ]
    )
