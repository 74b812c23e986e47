"""`python -m benchmarks [PART …]`: one thread; tables and figures under results/benchmarks/<dataset>."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import encoding, evaluation, gradients, imputation, reading, seeds, study, tracking, training
from benchmarks.common import Bench, console
from gfe_study.config import InputError, suggestion

PARTS = {
    "evaluation": evaluation.run,
    "gradients": gradients.run,
    "encoding": encoding.run,
    "training": training.run,
    "imputation": imputation.run,
    "seeds": seeds.run,
    "study": study.run,
    "reading": reading.run,
    "tracking": tracking.run,
}


def main(
    parts: Annotated[list[str] | None, typer.Argument(help=f"any of {', '.join(PARTS)}; all of them if none")] = None,
    data: Annotated[str, typer.Option(help="dataset, from GFE_DATA_DIR or ./data")] = "mnist",
    out: Annotated[Path, typer.Option(help="folder of tables and figures")] = Path("results/benchmarks"),
) -> None:
    """Measure solvers, gradients, training, imputation, the study engine, and reading and writing its store."""
    torch.set_num_threads(1)
    bench = Bench(data, out / data)
    try:
        for part in parts or PARTS:
            if part not in PARTS:
                raise InputError(f"benchmark: given {part!r}; {suggestion(part, list(PARTS))}")
        bench.out.mkdir(parents=True, exist_ok=True)
        for part in parts or PARTS:
            PARTS[part](bench)
    except InputError as error:
        console.print(f"error: {error}", style="red", highlight=False, soft_wrap=True)
        sys.exit(2)
    console.print(f"tables and figures: {bench.out}")


if __name__ == "__main__":
    typer.run(main)
