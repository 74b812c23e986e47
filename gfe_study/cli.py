"""The command line: parsing and printing only."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
import yaml
from rich.console import Console

from gfe_study import names
from gfe_study.config import InputError, Study, Trial, find_space, parse_assignments, read_yaml, space_files

app = typer.Typer(
    help="Hyperparameter and ablation studies of gradient flow encoding.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
DONE, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

SpaceName = Annotated[str, typer.Argument(help="A space of search_spaces/, or the path of a YAML file.")]
Label = Annotated[str, typer.Argument(help="A study: the name it was swept under.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on standard output, for machines.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A dotted key of the configuration, like solver.s_max=100."),
]
Storage = Annotated[str, typer.Option(help="Folder, or fsspec URL, for journals and checkpoints.")]
StudyLabel = Annotated[str | None, typer.Option("--study", help="Name of the study; the space's if not given.")]
Trials = Annotated[int | None, typer.Option(help="Configurations to try, instead of the space's number.")]
Seeds = Annotated[int | None, typer.Option(help="Seeds of every configuration, instead of the space's number.")]
CpusPerTrial = Annotated[float | None, typer.Option(help="CPUs, and threads, of each trial.")]
GpusPerTrial = Annotated[float | None, typer.Option(help="GPUs of each trial; a fraction shares one.")]
Address = Annotated[
    str | None, typer.Option(help="A running Ray cluster, auto or HOST:PORT; else a Ray is started here.")
]
Quota = Annotated[float | None, typer.Option("--quota-gb", help="Stop when the study's folder takes more than this.")]
LatentDim = Annotated[int | None, typer.Option(help="Latent dimensions.")]
Samples = Annotated[int | None, typer.Option(help="Samples that the density estimate is made of.")]
NoReuse = Annotated[bool, typer.Option("--no-reuse", help="Run finished trials again, of this study and of others.")]


def main() -> None:
    """Entry point: exit codes 0 done, 1 some trials failed, 2 bad input, 130 interrupted and resumable."""
    try:
        app()
    except InputError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        sys.exit(INTERRUPTED)


def fail(text: str) -> None:
    """One line on standard error, and exit code 2."""
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def console() -> Console:
    """Standard error; wide where it is no terminal, so that lines stay whole."""
    shown = Console(stderr=True)
    return shown if shown.is_terminal else Console(stderr=True, width=200)


def _print_json(value: Any) -> None:
    def finite(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: finite(below) for key, below in item.items()}
        if isinstance(item, list):
            return [finite(below) for below in item]
        return None if isinstance(item, float) and not math.isfinite(item) else item

    print(json.dumps(finite(value), ensure_ascii=False))


def _load(space: str, sets: list[str] | None, trials: int | None, seeds: int | None) -> Study:
    return Study.load(find_space(space), parse_assignments(sets or []), trials=trials, seeds=seeds)


def _label(study: str | None, space: str) -> str:
    label = study or Path(space).stem
    if not label or label in (".", "..") or any(character in label for character in "/\\:\0"):
        raise InputError(f"--study: given {label!r}; allowed: a name without / \\ or :")
    return label


@app.command()
def spaces(
    name: Annotated[str | None, typer.Argument(help="Print this space as it is understood.")] = None,
    json_: Json = False,
) -> None:
    """List the search spaces, or print one. Example: gfe-study spaces amd"""
    if name is not None:
        dumped = Study.load(find_space(name)).model_dump(mode="json")
        if json_:
            _print_json(dumped)
        else:
            print(yaml.safe_dump(dumped, sort_keys=False, allow_unicode=True, default_flow_style=None), end="")
        return
    found = {space: _question(path) for space, path in space_files().items()}
    if json_:
        _print_json(found)
    else:
        width = max(map(len, found), default=0)
        print("\n".join(f"{space:<{width}}  {question}" for space, question in found.items()))


def _question(path: Path) -> str:
    return str(read_yaml(path).get("question", ""))


@app.command()
def plan(
    space: SpaceName,
    study: StudyLabel = None,
    sets: Sets = None,
    trials: Trials = None,
    seeds: Seeds = None,
    cpus_per_trial: CpusPerTrial = None,
    gpus_per_trial: GpusPerTrial = None,
    storage: Storage = "results",
    probe: Annotated[bool, typer.Option(help="Time a few seconds of training to tell how long it takes.")] = True,
    no_reuse: NoReuse = False,
    json_: Json = False,
) -> None:
    """Print the trials that a sweep would run, and what it would take. Example: gfe-study plan amd --trials 20"""
    from gfe_study.console import plan_lines, plan_table
    from gfe_study.study.driver import Options
    from gfe_study.study.forecast import forecast

    declared = _load(space, sets, trials, seeds)
    options = Options(storage, cpus_per_trial, gpus_per_trial, reuse=not no_reuse, again=no_reuse)
    expected = forecast(declared, _label(study, space), options, probe=probe)
    if json_:
        _print_json(expected.as_dict())
        return
    output = Console() if sys.stdout.isatty() else Console(width=200)
    output.print(plan_table(declared, expected))
    print("\n".join(plan_lines(declared, expected)))


@app.command()
def sweep(
    space: SpaceName,
    study: StudyLabel = None,
    sets: Sets = None,
    trials: Trials = None,
    seeds: Seeds = None,
    cpus_per_trial: CpusPerTrial = None,
    gpus_per_trial: GpusPerTrial = None,
    address: Address = None,
    storage: Storage = "results",
    quota_gb: Quota = None,
    no_reuse: NoReuse = False,
    json_: Json = False,
) -> None:
    """Run, extend or continue a study. Example: gfe-study sweep amd --set data.name=mnist --trials 20"""
    from gfe_study.study.driver import Options

    declared = _load(space, sets, trials, seeds)
    options = Options(storage, cpus_per_trial, gpus_per_trial, address, quota_gb, reuse=not no_reuse, again=no_reuse)
    _run(declared, _label(study, space), options, json_)


@app.command()
def resume(
    label: Label,
    cpus_per_trial: Annotated[float | None, typer.Option(help="CPUs of each trial, if not as before.")] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(help="GPUs of each trial, if not as before.")] = None,
    address: Address = None,
    storage: Storage = "results",
    quota_gb: Quota = None,
    json_: Json = False,
) -> None:
    """Continue an interrupted study with what it recorded. Example: gfe-study resume amd"""
    from gfe_study.study.driver import Options

    journal = _journal(label, storage)
    assert journal.study is not None
    recorded = journal.study
    declared = Study.build(recorded["study"], **recorded["source"])
    given = {"cpus_per_trial": cpus_per_trial, "gpus_per_trial": gpus_per_trial, "address": address}
    changed = {key: value for key, value in {**given, "quota_gb": quota_gb}.items() if value is not None}
    options = Options(**{**recorded["options"], **changed, "storage": storage})
    _run(declared, label, options, json_)


def _journal(label: str, storage: str) -> Any:
    from gfe_study.study.journal import Journal
    from gfe_study.study.storage import remote_folder, studies_of, study_folder

    journal = Journal.read(study_folder(storage, label), remote_folder(storage, label))
    if journal.study is None:
        there = studies_of(storage)
        allowed = f"allowed: {', '.join(there)}" if there else "there is none yet; start one with gfe-study sweep"
        raise InputError(f"study {label!r} is unknown in {storage}; {allowed}")
    return journal


def _run(study: Study, label: str, options: Any, json_: bool) -> None:
    from gfe_study.console import StudyView, closing
    from gfe_study.results import summary
    from gfe_study.study.sweep import run_sweep

    shown = console()
    with StudyView(shown) as view:
        outcome = run_sweep(study, label, options, view)
    if json_:
        _print_json({"study": label, **summary(outcome)})
    else:
        closing(outcome, label, shown)
    if outcome.stopped:
        sys.exit(SOME_FAILED)
    if outcome.interrupted:
        sys.exit(INTERRUPTED)
    sys.exit(SOME_FAILED if outcome.failed or outcome.damaged or not outcome.delivered else DONE)


@app.command()
def status(
    label: Annotated[str | None, typer.Argument(help="A study; all of them if not given.")] = None,
    storage: Storage = "results",
    json_: Json = False,
) -> None:
    """Trials by state, the best so far, failures with reasons. Example: gfe-study status amd"""
    from gfe_study.study.status import state_of
    from gfe_study.study.storage import studies_of

    labels = [label] if label is not None else studies_of(storage)
    states = {name: state_of(_journal(name, storage)) for name in labels}
    if json_:
        _print_json(states)
        return
    if not states:
        print(f"no study in {storage} yet; start one with gfe-study sweep")
    for name, state in states.items():
        counts = ", ".join(f"{count} {kind}" for kind, count in state["trials"].items()) or "no trial yet"
        best = state["best"]
        ahead = f"; best {best['metric']} {best['value']:.4f} ({best['fingerprint']})" if best else ""
        print(f"{name}: {counts}{ahead}")
        for failure in state["failures"]:
            print(f"  failed {failure['fingerprint']}: {failure['reason']}")


@app.command()
def train(
    config: Annotated[Path | None, typer.Option(help="A trial's YAML, such as the artifact trial.yaml.")] = None,
    sets: Sets = None,
    cpus: Annotated[int, typer.Option(help="Threads; 1, as in a sweep, repeats a sweep's numbers.")] = 1,
    storage: Storage = "results",
    json_: Json = False,
) -> None:
    """Run one trial without Ray, logged to MLflow. Example: gfe-study train --set preset=paper --set data.name=mnist"""
    from gfe_study.study.single import run_single

    layers = [read_yaml(config)] if config is not None else []
    where = str(config) if config is not None else "--set"
    trial = Trial.build(*layers, parse_assignments(sets or []), where=where)
    shown = console()

    def report(point: dict[str, float]) -> None:
        values = "  ".join(f"{name} {value:.4g}" for name, value in point.items() if name.endswith("_loss"))
        shown.print(f"{point['images_seen']:>7,.0f} images  {values}", highlight=False, soft_wrap=True)

    def problem(text: str) -> None:
        shown.print(f"warning: {text}", highlight=False, markup=False, soft_wrap=True)

    point, fingerprint, problems = run_single(trial, storage, cpus, report, problem)
    if json_:
        counts = {name: int(point[name]) for name in names.COUNTS if name in point}
        _print_json({**point, **counts, names.FINGERPRINT: fingerprint})
    else:
        for name, value in point.items():
            print(f"{name:<16} {value:.6g}")
    sys.exit(SOME_FAILED if problems or point["diverged"] else DONE)


@app.command()
def encode(
    checkpoint: Annotated[Path, typer.Argument(help="The best.pt of a trial.")],
    images: Annotated[Path, typer.Option(help="NumPy file: (N, H, W) or (N, D), uint8 or floats in [0, 1].")],
    out: Annotated[Path, typer.Option(help="NumPy archive to write.")],
    sets: Sets = None,
    json_: Json = False,
) -> None:
    """Encode your own images. Example: gfe-study encode best.pt --images mine.npy --out encoded.npz"""
    from gfe_study.study.encoding import encode_file

    mean = encode_file(checkpoint, images, out, parse_assignments(sets or []))
    if json_:
        _print_json(mean)
    else:
        print(f"{mean['images']} images, mean loss {mean['loss']:.4f} nats per pixel, written to {out}")


@app.command()
def report(
    label: Label,
    storage: Storage = "results",
    json_: Json = False,
) -> None:
    """The study's page, figures and tables, from the tracking store. Example: gfe-study report amd"""
    from gfe_study.analysis.load import Store
    from gfe_study.analysis.report import write_report

    files = write_report(Store(), label, Path(storage) / label / "report")
    if json_:
        _print_json([str(file) for file in files])
    else:
        print("\n".join(map(str, files)))


@app.command()
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Close runs that nobody is writing to.")] = False,
    storage: Storage = "results",
    json_: Json = False,
) -> None:
    """Check versions, devices, data, the store and orphaned runs. Example: gfe-study doctor --fix"""
    from gfe_study.study.doctor import examine

    findings = examine(storage, fix=fix)
    if json_:
        _print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        for finding in findings:
            print(f"{'ok  ' if finding.ok else 'BAD '} {finding.subject}: {finding.text}")
    sys.exit(DONE if all(finding.ok for finding in findings) else SOME_FAILED)


@app.command()
def bandwidth(
    latent_dim: LatentDim = None,
    samples: Samples = None,
    target: Annotated[str, typer.Option(help="The distribution that latents are pulled to.")] = "standard_normal",
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Of the target, like target.radius=4.")
    ] = None,
    method: Annotated[str, typer.Option(help="root of the derivative, or fixed-point.")] = "root",
    table: Annotated[bool, typer.Option("--table", help="The paper's table beside ours.")] = False,
    json_: Json = False,
) -> None:
    """The kernel bandwidth to train GEN with. Example: gfe-study bandwidth --latent-dim 8 --samples 10000"""
    from gfe_study.density.bandwidth import Method, optimal_bandwidth, refusal
    from gfe_study.density.table import cells, pairs
    from gfe_study.density_view import bandwidth_line, bandwidth_table
    from gfe_study.targets.base import parse_target

    if method not in get_args(Method):
        raise InputError(f"--method: given {method!r}; allowed: {' or '.join(get_args(Method))}")
    how = cast("Method", method)
    chosen = parse_target(target, parse_assignments(sets or []))
    if table:
        if sets or chosen.name != "standard_normal":
            raise InputError("--table: the paper's is of the standard normal; allowed: no --target, no --set")
        refuse_cell(latent_dim, samples)
        found = []
        with progress(len(pairs())) as advance:
            for cell in cells(how):
                found.append(cell)
                advance()
        if json_:
            within = [cell.within for cell in found if cell.within is not None]
            _print_json({"cells": [cell.as_dict() for cell in found], "within": sum(within), "finite": len(within)})
        else:
            (Console() if sys.stdout.isatty() else Console(width=200)).print(bandwidth_table(found))
            print(bandwidth_line(found))
        return
    dimensions, count = wanted_cell(latent_dim, samples)
    try:
        optimum = optimal_bandwidth(chosen, dimensions, count, method=how)
    except ValueError as error:
        raise InputError(str(error)) from error
    if json_:
        _print_json({"h_opt": optimum.h_opt, "std": optimum.std})
    elif optimum.collapses:
        fail(refusal(optimum, chosen, dimensions, count))
    else:
        variance = optimum.width**2 - optimum.h_opt**2
        print(
            f"h_opt {optimum.h_opt:.4f} ± {optimum.std:.4f} for {count:,} samples of {chosen.name} in {dimensions} "
            f"latent dimensions; latents that match it have the variance {optimum.width:g}² − h² = {variance:.4f}"
        )


@app.command()
def correlation(
    latent_dim: LatentDim = None,
    samples: Samples = None,
    table: Annotated[bool, typer.Option("--table", help="2 to 20 dimensions, 250 to 4,000 samples.")] = False,
    trials: Annotated[int, typer.Option(help="How often everything is drawn anew.")] = 20,
    out: Annotated[Path | None, typer.Option(help="PNG to draw the table as; an SVG goes beside it.")] = None,
    json_: Json = False,
) -> None:
    """How the divergence by KDE, and by a discriminator, follow a known change: Pearson's r, averaged over trials.

    Example: gfe-study correlation --latent-dim 5 --samples 1000
    """
    from gfe_study.density.bandwidth import BandwidthError
    from gfe_study.density.correlation import LATENT_DIMS, SAMPLES, correlate
    from gfe_study.density_view import correlation_table

    if table:
        refuse_cell(latent_dim, samples)
        pairs = [(dimensions, count) for dimensions in LATENT_DIMS for count in SAMPLES]
    else:
        pairs = [wanted_cell(latent_dim, samples)]
    if out is not None and (not table or out.suffix != ".png" or not out.parent.is_dir()):
        raise InputError(f"--out: given {str(out)!r}; allowed: with --table, a .png in a folder that exists")
    _within("--trials", trials, 2, 1000)
    try:
        with progress(len(pairs) * trials) as advance:
            studies = [correlate(*pair, trials, advance) for pair in pairs]
    except BandwidthError as error:
        raise InputError(str(error)) from error
    found = [{"latent_dim": study.latent_dim, "samples": study.samples, **study.as_dict()} for study in studies]
    if json_:
        _print_json({"cells": found} if table else studies[0].as_dict())
    else:
        (Console() if sys.stdout.isatty() else Console(width=200)).print(correlation_table(studies))
    if out is not None:
        from gfe_study.analysis.correlation import draw_correlation

        files = draw_correlation(found, out)
        console().print(f"written to {' and '.join(map(str, files))}", highlight=False, markup=False, soft_wrap=True)


def wanted_cell(latent_dim: int | None, samples: int | None) -> tuple[int, int]:
    """The numbers given for one cell of a table. Raises `InputError` where one is missing or out of range."""
    instead = ", or --table instead"
    return _within("--latent-dim", latent_dim, 1, 1000, instead), _within("--samples", samples, 2, 200_000, instead)


def _within(option: str, value: int | None, least: int, most: int, instead: str = "") -> int:
    if value is None or not least <= value <= most:
        given = "not given" if value is None else f"given {value}"
        raise InputError(f"{option}: {given}; allowed: {least} to {most:,}{instead}")
    return value


def refuse_cell(latent_dim: int | None, samples: int | None) -> None:
    """Raise `InputError` if numbers are given for one cell, where the whole table is wanted."""
    if latent_dim is not None or samples is not None:
        raise InputError("--table: given with --latent-dim or --samples; allowed: one or the other")


@contextmanager
def progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal's standard error, and nothing elsewhere; yields what moves it on by one."""
    from rich.progress import Progress

    shown = console()
    with Progress(console=shown, transient=True, disable=not shown.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
