"""The comparison of a study's arms as a table, for terminals and notebooks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gfe_study.layout import Column, Listing, number
from gfe_study.metrics import text_of, unit_and_direction

if TYPE_CHECKING:
    from gfe_study.analysis.judge.verdict import Verdict


def verdict_table(verdict: Verdict) -> Listing:
    """Compare arms with their references: means, paired differences with intervals, costs, and the verdict."""
    percent = f"{100 * verdict.confidence:g} %"
    title = (
        f"Verdict: {verdict.metric} ({unit_and_direction(verdict.metric, verdict.values)}){verdict.taken}; differences "
        f"from the reference, paired by seed, with {percent} intervals (Student's t)"
    )
    columns = [
        Column("arm", left=True),
        Column("seeds"),
        Column("mean"),
        Column(f"difference [{percent}]"),
        Column("verdict", left=True, detail=True, prefix=""),
        Column("p", detail=True),
        Column("p Holm", detail=True, prefix="Holm p"),
        Column("seconds", detail=True),
        Column("seconds ×", detail=True),
        Column("nfe ×", detail=True),
    ]
    table = Listing(title, columns)
    for row in verdict.rows:
        found = row.paired
        difference = ""
        if found is not None:
            low, middle, high = (
                text_of(verdict.metric, math.nan if end is None else end, sign=True)
                for end in (found.low, found.difference, found.high)
            )
            difference = f"{middle} [{low}, {high}]" if found.low is not None else middle
        table.rows.append(
            (
                row.arm,
                str(len(row.seeds)),
                text_of(verdict.metric, row.value.mean),
                difference,
                row.text,
                f"{found.p_value:.2g}" if found is not None and found.p_value is not None else "",
                f"{row.p_holm:.2g}" if row.p_holm is not None else "",
                number(row.seconds, 3) if math.isfinite(row.seconds) else "",
                f"{row.seconds_ratio:.2f}" if row.seconds_ratio is not None else "",
                f"{row.nfe_ratio:.2f}" if row.nfe_ratio is not None else "",
            )
        )
    return table
