"""Commands for density estimates: parsing and printing only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from gfe_study.config import InputError, parse_assignments
from gfe_study.layout import say, show
from gfe_study.view.terminal import Json, console, fail, output, print_json, progress

LatentDim = Annotated[int | None, typer.Option(help="Latent dimensions.")]
Samples = Annotated[int | None, typer.Option(help="Number of samples in the density estimate.")]


def bandwidth(
    latent_dim: LatentDim = None,
    samples: Samples = None,
    target: Annotated[str, typer.Option(help="Target distribution of the latents.")] = "standard_normal",
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Setting of the target, like target.radius=4."),
    ] = None,
    method: Annotated[str, typer.Option(help="root (of the derivative) or fixed-point.")] = "root",
    table: Annotated[bool, typer.Option("--table", help="Print the paper's table and ours.")] = False,
    json_: Json = False,
) -> None:
    """Find the kernel bandwidth for training GEN. Example: gfe-study bandwidth --latent-dim 8 --samples 10000"""
    from gfe_study.cli.density_view import bandwidth_line, bandwidth_table
    from gfe_study.density.bandwidth import Method, optimal_bandwidth, refusal
    from gfe_study.density.table import cells, pairs
    from gfe_study.targets.base import parse_target

    if method not in get_args(Method):
        raise InputError(f"--method: given {method!r}; allowed: {' or '.join(get_args(Method))}")
    how = cast("Method", method)
    chosen = parse_target(target, parse_assignments(sets or []))
    if table:
        if sets or chosen.name != "standard_normal":
            raise InputError(
                "--table: given with --target or --set; allowed: neither, the paper's is of the standard normal"
            )
        refuse_cell(latent_dim, samples)
        found = []
        with progress(len(pairs())) as advance:
            for cell in cells(how):
                found.append(cell)
                advance()
        if json_:
            within = [cell.within for cell in found if cell.within is not None]
            print_json({"cells": [cell.as_dict() for cell in found], "within": sum(within), "finite": len(within)})
        else:
            show(output(), bandwidth_table(found))
            say(output(), bandwidth_line(found))
        return
    dimensions, count = wanted_cell(latent_dim, samples)
    try:
        optimum = optimal_bandwidth(chosen, dimensions, count, method=how)
    except ValueError as error:
        raise InputError(str(error)) from error
    if json_:
        print_json({"h_opt": optimum.h_opt, "std": optimum.std})
    elif optimum.collapses:
        fail(refusal(optimum, chosen, dimensions, count))
    else:
        variance = optimum.width**2 - optimum.h_opt**2
        print(
            f"h_opt {optimum.h_opt:.4f} ± {optimum.std:.4f} for {count:,} samples of {chosen.name} in {dimensions} "
            f"latent dimensions; matching latents have the variance {optimum.width:g}² − h² = {variance:.4f}"
        )


def correlation(
    latent_dim: LatentDim = None,
    samples: Samples = None,
    table: Annotated[
        bool, typer.Option("--table", help="Print the table for 2 to 20 dimensions and 250 to 4,000 samples.")
    ] = False,
    trials: Annotated[int, typer.Option(help="Independent repetitions.")] = 20,
    out: Annotated[Path | None, typer.Option(help="PNG of the table; an SVG is written beside it.")] = None,
    json_: Json = False,
) -> None:
    """Correlate divergence estimates, by KDE and by a discriminator, with a known change (Pearson's r).

    Example: gfe-study correlation --latent-dim 5 --samples 1000
    """
    from gfe_study.cli.density_view import correlation_table
    from gfe_study.density.correlation import LATENT_DIMS, SAMPLES, correlate

    if table:
        refuse_cell(latent_dim, samples)
        pairs = [(dimensions, count) for dimensions in LATENT_DIMS for count in SAMPLES]
    else:
        pairs = [wanted_cell(latent_dim, samples)]
    if out is not None and (not table or out.suffix != ".png" or not out.parent.is_dir()):
        raise InputError(f"--out: given {str(out)!r}; allowed: a .png file in an existing folder, with --table")
    _within("--trials", trials, 2, 1000)
    with progress(len(pairs) * trials) as advance:
        studies = [correlate(*pair, trials, advance) for pair in pairs]
    found = [{"latent_dim": study.latent_dim, "samples": study.samples, **study.as_dict()} for study in studies]
    if json_:
        print_json({"cells": found} if table else studies[0].as_dict())
    else:
        show(output(), correlation_table(studies))
    if out is not None:
        from gfe_study.analysis.report.correlation import draw_correlation

        files = draw_correlation(found, out)
        say(console(), f"written to {' and '.join(map(str, files))}")


def wanted_cell(latent_dim: int | None, samples: int | None) -> tuple[int, int]:
    """Check the numbers for one cell of a table. Raises `InputError` if one is missing or out of range."""
    instead = ", or --table instead"
    return _within("--latent-dim", latent_dim, 1, 1000, instead), _within("--samples", samples, 2, 200_000, instead)


def _within(option: str, value: int | None, least: int, most: int, instead: str = "") -> int:
    if value is None or not least <= value <= most:
        given = "not given" if value is None else f"given {value}"
        raise InputError(f"{option}: {given}; allowed: {least} to {most:,}{instead}")
    return value


def refuse_cell(latent_dim: int | None, samples: int | None) -> None:
    """Raise `InputError` if numbers for one cell are given together with `--table`."""
    if latent_dim is not None or samples is not None:
        raise InputError("--table: given with --latent-dim or --samples; allowed: one or the other")
