"""Terminal tables of the studies of density estimates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gfe_study.density.table import BESIDE, PAPER, SAMPLES, Cell
from gfe_study.layout import Column, Listing

if TYPE_CHECKING:  # scipy.stats, which it needs, takes a second to import
    from gfe_study.density.correlation import Correlation, Study


def bandwidth_table(cells: Sequence[Cell]) -> Listing:
    """Return the paper's optimal bandwidths with ours below each; ours is marked if it is out of tolerance."""
    columns = [Column("latent dim"), Column("", left=True)]
    table = Listing(
        "h_opt of the standard normal: the paper's, and ours",
        [*columns, *(Column(f"m = {samples:,}", detail=True, prefix=f"m {samples:,}:") for samples in SAMPLES)],
    )
    for latent_dim in PAPER:
        row = [cell for cell in cells if cell.latent_dim == latent_dim]
        table.rows.append((str(latent_dim), "paper", *(_paper(cell) for cell in row)))
        table.rows.append(("", "ours", *(_ours(cell) for cell in row)))
    return table


def _paper(cell: Cell) -> str:
    return f"{cell.paper[0]:.2f} ± {cell.paper[1]:.2f}" if cell.paper is not None else ">1"


def _ours(cell: Cell) -> str:
    text = ">1" if cell.ours.collapses else f"{cell.ours.h_opt:.3f} ± {cell.ours.std:.3f}"
    return f"! {text}" if cell.within is False else text


def bandwidth_line(cells: Sequence[Cell]) -> str:
    """Count how many of the paper's numbers are reproduced."""
    finite = [cell for cell in cells if cell.within is not None]
    within = sum(bool(cell.within) for cell in finite)
    return f"{within} of {len(finite)} finite cells lie within the paper's ± plus {BESIDE:g}; ! marks the others"


def correlation_table(studies: Sequence[Study]) -> Listing:
    """Return r of both estimates, one row per latent dimension and number of samples."""
    return Listing(
        "Pearson's r of the estimated divergence with the modes' separation, mean ± s.d. over trials",
        [Column(header) for header in ("latent dim", "samples", "KDE", "discriminator")],
        [
            (f"{study.latent_dim}", f"{study.samples:,}", _shown(study.kde), _shown(study.discriminator))
            for study in studies
        ],
    )


def _shown(found: Correlation) -> str:
    return f"{found.r:.3f} ± {found.std:.3f}"
