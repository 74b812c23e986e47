"""Tables of the density estimates' studies, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from gfe_study.density.table import BESIDE, PAPER, SAMPLES, Cell

if TYPE_CHECKING:  # scipy.stats, which it needs, takes a second to import
    from gfe_study.density.correlation import Correlation, Study


def bandwidth_table(cells: Sequence[Cell]) -> Table:
    """The paper's optimal bandwidths, and ours below each; marked where ours is outside."""
    table = Table(title="h_opt of the standard normal: the paper's, and ours", title_justify="left", box=None)
    table.add_column("latent dim", justify="right")
    table.add_column("")
    for samples in SAMPLES:
        table.add_column(f"m = {samples:,}", justify="right", no_wrap=True)
    for latent_dim in PAPER:
        row = [cell for cell in cells if cell.latent_dim == latent_dim]
        table.add_row(str(latent_dim), "paper", *(_paper(cell) for cell in row))
        table.add_row("", "ours", *(_ours(cell) for cell in row))
    return table


def _paper(cell: Cell) -> str:
    return f"{cell.paper[0]:.2f} ± {cell.paper[1]:.2f}" if cell.paper is not None else ">1"


def _ours(cell: Cell) -> Text:
    text = ">1" if cell.ours.collapses else f"{cell.ours.h_opt:.3f} ± {cell.ours.std:.3f}"
    return Text(f"! {text}", style="bold red") if cell.within is False else Text(text)


def bandwidth_line(cells: Sequence[Cell]) -> str:
    """How many of the paper's numbers are met."""
    finite = [cell for cell in cells if cell.within is not None]
    within = sum(bool(cell.within) for cell in finite)
    return f"{within} of {len(finite)} finite cells within the paper's ± and {BESIDE:g} beside; ! marks the others"


def correlation_table(studies: Sequence[Study]) -> Table:
    """r of both estimates, one row for every latent dimension and number of samples."""
    title = "Pearson's r of the estimated divergence with the modes' separation, mean ± s.d. over trials"
    table = Table(title=title, title_justify="left", box=None)
    for header in ("latent dim", "samples", "KDE", "discriminator"):
        table.add_column(header, justify="right", no_wrap=True)
    for study in studies:
        row = (f"{study.latent_dim}", f"{study.samples:,}", _shown(study.kde), _shown(study.discriminator))
        table.add_row(*row)
    return table


def _shown(found: Correlation) -> str:
    return f"{found.r:.3f} ± {found.std:.3f}"
