"""The command line: parsing and printing only. `density` holds the commands for density estimates."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml

from gfe_study import interrupts, names
from gfe_study.cli import density as density_cli
from gfe_study.config import (
    InputError,
    Study,
    Trial,
    Typed,
    blamed,
    find_space,
    parse_assignments,
    read_text,
    read_yaml,
    space_files,
    typed_sets,
)
from gfe_study.interrupts import INTERRUPTED, Interrupted
from gfe_study.layout import about, say, show, wrapped
from gfe_study.metrics import (
    COUNTS,
    STOPPED,
    TEST_LOSS,
    TRAIN_LOSS,
    TRAIN_STOPPED,
    VAL_LOSS,
    WITHHELD_LOSS,
    of_split,
    text_of,
    unit_of,
)
from gfe_study.provenance import own_version
from gfe_study.tracking.uri import PORT, store_uri
from gfe_study.view.advice import near
from gfe_study.view.terminal import DONE, SOME_FAILED, Json, Sturdy, console, fail, output, print_json


def _print_version(given: bool) -> None:
    if given:
        print(f"gfe-study {own_version()}")
        raise typer.Exit


def _space_names(incomplete: str) -> list[str]:
    return [name for name in space_files() if name.startswith(incomplete)]


def _study_names(context: typer.Context, incomplete: str) -> list[str]:
    from gfe_study.io.storage import Storage

    return [name for name in Storage(context.params["storage"]).studies() if name.startswith(incomplete)]


app = typer.Typer(
    help="Hyperparameter and ablation studies of gradient flow encoding.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


SpaceName = Annotated[
    str,
    typer.Argument(help="Name of a search space, or path of a YAML file.", autocompletion=_space_names),
]
Label = Annotated[str, typer.Argument(help="Name of a study that was run before.", autocompletion=_study_names)]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a configuration key, like solver.s_max=100."),
]
Dataset = Annotated[str | None, typer.Option("--dataset", hidden=True, help="DATASET of make: sets data.name.")]
StorageOption = Annotated[
    str, typer.Option(help="Folder, or fsspec URL, for journals and checkpoints.", callback=os.path.expanduser)
]
StudyLabel = Annotated[str | None, typer.Option("--study", help="Name of the study; defaults to the space's name.")]
Trials = Annotated[int | None, typer.Option(help="Configurations to try; overrides the space.")]
Seeds = Annotated[int | None, typer.Option(help="Seeds per configuration; overrides the space.")]
CpusPerTrial = Annotated[float | None, typer.Option(help="CPUs per trial; also its number of threads.")]
GpusPerTrial = Annotated[float | None, typer.Option(help="GPUs per trial; trials share a GPU if this is a fraction.")]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to use: auto or HOST:PORT. Starts a local one by default.")
]
Quota = Annotated[float | None, typer.Option("--quota-gb", help="Stop when the study's folder exceeds this size.")]
NoReuse = Annotated[bool, typer.Option("--no-reuse", help="Run finished trials again; reuse no other study's trials.")]


def main() -> None:
    """Entry point: exit codes 0 done, 1 some trials failed, 2 bad input, 130 interrupted and resumable."""
    if sys.stdout is not None and sys.stderr is not None:  # otherwise they are closed
        sys.stdout, sys.stderr = Sturdy(sys.stdout), Sturdy(sys.stderr)
    try:
        interrupts.check()
        app()
    except InputError as error:
        if not interrupts.asked():
            fail(str(error))
        say(console(), f"error: {error}")
    except (Interrupted, KeyboardInterrupt):
        pass
    say(console(), "interrupted; run the same command to continue")
    sys.exit(INTERRUPTED)


def _load(space: str, dataset: str | None, sets: list[str] | None, trials: int | None, seeds: int | None) -> Study:
    path = find_space(space)
    data = [Typed("DATASET", "data.name", dataset)] if dataset is not None else []
    counts = [Typed("--trials", "trials", trials), Typed("--seeds", "seeds", seeds)]
    return blamed(partial(Study.load, path), str(path), [*data, *typed_sets(sets or [])], counts)


def _label(study: str | None, space: str) -> str:
    from gfe_study.io.storage import checked_label

    return checked_label(study or Path(space).stem, "--study")


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def spaces(
    name: Annotated[
        str | None, typer.Argument(help="Print this space with all defaults filled in.", autocompletion=_space_names)
    ] = None,
    json_: Json = False,
) -> None:
    """List the search spaces, or print one. Example: gfe-study spaces amd"""
    if name is not None:
        dumped = Study.load(find_space(name)).model_dump(mode="json")
        if json_:
            print_json(dumped)
        else:
            print(yaml.safe_dump(dumped, sort_keys=False, allow_unicode=True, default_flow_style=None), end="")
        return
    found = {space: _question(path) for space, path in space_files().items()}
    if json_:
        print_json(found)
    else:
        width, room = max(map(len, found), default=0), output().width
        for space, question in found.items():
            print("\n".join(wrapped(question, room, f"{space:<{width}}  ", " " * (width + 2)) or [space]))


def _question(path: Path) -> str:
    return str(read_yaml(path).get("question", ""))


@app.command()
def keys(
    prefix: Annotated[
        str, typer.Argument(help="What they begin with: solver.lbfgs, optim, data.hide, compare, …")
    ] = "",
    json_: Json = False,
) -> None:
    """List the keys of a configuration and of a study file, and what they mean. Example: gfe-study keys solver.lbfgs"""
    from gfe_study.config.keys import keys as found_below
    from gfe_study.config.keys import summary

    found = found_below(prefix)
    if json_:
        print_json([dataclasses.asdict(key) for key in found])
        return
    shown = output()
    section, _, name = prefix.partition(".")
    if text := summary(section, name):
        say(shown, text + "\n")
    for key in found:
        given = f"default {key.default}" if key.default else "must be given"
        names_ = f" ({', '.join(key.names)})" if key.names and not text else ""
        say(shown, f"{key.path}{names_}: {key.allowed}; {given}")
        for line in wrapped(key.text, shown.width - 4) if key.text else ():
            say(shown, f"    {line}")


@app.command()
def schema() -> None:
    """Print the JSON schema of a study file, for editors. Example: gfe-study schema > schema.json"""
    from gfe_study.config.keys import schema as schema_of_studies

    print(json.dumps(schema_of_studies(), indent=1, ensure_ascii=False))


@app.command()
def plan(
    space: SpaceName,
    study: StudyLabel = None,
    dataset: Dataset = None,
    sets: Sets = None,
    trials: Trials = None,
    seeds: Seeds = None,
    cpus_per_trial: CpusPerTrial = None,
    gpus_per_trial: GpusPerTrial = None,
    storage: StorageOption = "results",
    probe: Annotated[bool, typer.Option(help="Train for a few seconds to estimate the run time.")] = True,
    no_reuse: NoReuse = False,
    json_: Json = False,
) -> None:
    """List the trials of a sweep and estimate its cost. Example: gfe-study plan amd --trials 20"""
    from gfe_study.study.forecast import forecast
    from gfe_study.study.options import Options
    from gfe_study.view.console import plan_lines, plan_table

    declared = _load(space, dataset, sets, trials, seeds)
    options = Options(storage, cpus_per_trial, gpus_per_trial, reuse=not no_reuse, again=no_reuse)
    asked = console()
    expected = forecast(declared, _label(study, space), options, probe=probe, tell=lambda text: say(asked, text))
    if json_:
        print_json(expected.as_dict())
        return
    shown = output()
    show(shown, plan_table(declared, expected))
    for line in plan_lines(declared, expected):
        say(shown, line)


@app.command()
def sweep(
    space: SpaceName,
    study: StudyLabel = None,
    dataset: Dataset = None,
    sets: Sets = None,
    trials: Trials = None,
    seeds: Seeds = None,
    cpus_per_trial: CpusPerTrial = None,
    gpus_per_trial: GpusPerTrial = None,
    address: Address = None,
    storage: StorageOption = "results",
    quota_gb: Quota = None,
    no_reuse: NoReuse = False,
    json_: Json = False,
) -> None:
    """Run, extend or continue a study. Example: gfe-study sweep amd --set data.name=mnist --trials 20"""
    from gfe_study.study.options import Options

    label = _label(study, space)
    options = Options(storage, cpus_per_trial, gpus_per_trial, address, quota_gb, reuse=not no_reuse, again=no_reuse)
    command = ["sweep", read_text(find_space(space)), dataset, sets, trials, seeds, dataclasses.asdict(options)]
    if no_reuse or not _say_settled(label, storage, command, json_):
        _run(_load(space, dataset, sets, trials, seeds), label, options, json_, command)


@app.command()
def resume(
    label: Label,
    cpus_per_trial: Annotated[float | None, typer.Option(help="CPUs per trial; defaults to the last run's.")] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(help="GPUs per trial; defaults to the last run's.")] = None,
    address: Address = None,
    storage: StorageOption = "results",
    quota_gb: Quota = None,
    json_: Json = False,
) -> None:
    """Continue an interrupted study with its recorded settings. Example: gfe-study resume amd"""
    from gfe_study.study.options import Options

    given = {"cpus_per_trial": cpus_per_trial, "gpus_per_trial": gpus_per_trial, "address": address}
    changed = {key: value for key, value in {**given, "quota_gb": quota_gb}.items() if value is not None}
    command = ["resume", changed]
    if _say_settled(label, storage, command, json_):
        return
    journal = _journal(label, storage)
    assert journal.study is not None
    recorded = journal.study
    declared = Study.build(recorded["study"], **recorded["source"])
    options = Options(**{**recorded["options"], **changed, "storage": storage})
    _run(declared, label, options, json_, command)


def _journal(label: str, storage: str) -> Any:
    from gfe_study.io.storage import Storage
    from gfe_study.study.journal import Journal

    return Journal.of_study(Storage(storage), label)


def _say_settled(label: str, storage: str, command: list[Any], json_: bool) -> bool:
    """Print the result of a study that has nothing left to do; return whether that is so."""
    from gfe_study.io.storage import Storage
    from gfe_study.study.settled import settled, start_key

    found = settled(Storage(storage), label, start_key([storage, *command]))
    if found is None:
        return False
    if json_:
        print_json({"study": label, **found.summary})
    else:
        from gfe_study.view.blocks import print_blocks

        print_blocks(console(), found.lines)
    sys.exit(SOME_FAILED if found.summary["problems"] else DONE)


def _run(study: Study, label: str, options: Any, json_: bool, command: list[Any]) -> None:
    from gfe_study.study.settled import start_key
    from gfe_study.study.sweep import Outcome, run_sweep
    from gfe_study.view.blocks import print_blocks
    from gfe_study.view.console import StudyView, closing, opening
    from gfe_study.view.statements import summary

    shown, key = console(), start_key([options.storage, *command])

    def settle(outcome: Outcome) -> tuple[str, dict[str, Any], list[Any]]:
        lines = [*opening(outcome.plan, view.splits), *closing(outcome, label, options.storage)]
        return key, summary(outcome), lines

    with StudyView(shown) as view:
        outcome = run_sweep(study, label, options, view, settle)
    if json_:
        print_json({"study": label, **summary(outcome)})
    else:
        print_blocks(shown, closing(outcome, label, options.storage))
    if outcome.stopped:
        sys.exit(SOME_FAILED)
    if outcome.interrupted:
        sys.exit(INTERRUPTED)
    incomplete = outcome.failed or outcome.damaged or outcome.plan.short or not outcome.delivered
    sys.exit(SOME_FAILED if incomplete else DONE)


@app.command()
def status(
    label: Annotated[
        str | None, typer.Argument(help="Name of a study; defaults to all studies.", autocompletion=_study_names)
    ] = None,
    storage: StorageOption = "results",
    json_: Json = False,
) -> None:
    """Count trials by state; show the best one and the failures. Example: gfe-study status amd"""
    from gfe_study.io.storage import Storage
    from gfe_study.study.status import state_of

    labels = [label] if label is not None else Storage(storage).studies()
    states = {name: state_of(_journal(name, storage)) for name in labels}
    if json_:
        print_json(states)
        return
    shown = output()
    if not states:
        say(shown, f"{storage} holds no study yet; start one with gfe-study sweep")
    for name, state in states.items():
        counts = ", ".join(f"{count} {kind}" for kind, count in state["trials"].items()) or "no trials yet"
        best = state["best"]
        ahead = (
            f"; best {best['metric']} {text_of(best['metric'], best['value'])} ({best['fingerprint']})" if best else ""
        )
        former = f"; not counted: {state['former']} of earlier versions of the study" if state["former"] else ""
        left = "" if state["seconds_left"] is None else f"; {about(state['seconds_left'])} left"
        say(shown, f"{name}: {counts}{former}{ahead}{left}")
        for failure in state["failures"]:
            say(shown, f"  failed {failure['fingerprint']}: {failure['reason']}")


@app.command()
def train(
    config: Annotated[str | None, typer.Option(help="The trial.yaml or best.pt of a trial: a file or a URL.")] = None,
    sets: Sets = None,
    cpus: Annotated[int, typer.Option(help="Number of threads; 1 reproduces the numbers of a sweep.")] = 1,
    storage: StorageOption = "results",
    json_: Json = False,
) -> None:
    """Run one trial without Ray, logged to MLflow. Example: gfe-study train --set preset=paper --set data.name=mnist"""
    from gfe_study.io.storage import Storage, local_file
    from gfe_study.study.artifacts import read_trial
    from gfe_study.study.single import run_single

    layers = [read_trial(local_file(config))] if config is not None else []
    where = config if config is not None else "--set"
    trial = blamed(lambda changes: Trial.build(*layers, changes, where=where), where, typed_sets(sets or []))
    shown = console()

    def report(point: dict[str, float]) -> None:
        followed = (TRAIN_LOSS, VAL_LOSS, TEST_LOSS, of_split("val", WITHHELD_LOSS))
        values = "  ".join(f"{name} {point[name]:.4g}" for name in followed if name in point)
        say(shown, f"{point['images_seen']:>7,.0f} images  {values}")

    def problem(text: str) -> None:
        say(shown, f"warning: {text}", "yellow")

    point, fingerprint, problems, decoder = run_single(trial, Storage(storage), cpus, report, problem)
    if json_:
        counts = {name: int(point[name]) for name in COUNTS if name in point}
        print_json({**point, **counts, names.FINGERPRINT: fingerprint, "decoder": str(decoder)})
    else:
        width = max(map(len, point))
        for name, value in point.items():
            if value or not name.startswith((STOPPED, TRAIN_STOPPED)):
                print(f"{name:<{width}}  {value:.6g}")
        print(f"{'decoder':<{width}}  {decoder}")
    sys.exit(SOME_FAILED if problems or point["diverged"] else DONE)


@app.command()
def encode(
    checkpoint: Annotated[str, typer.Argument(help="The best.pt of a trial: a file or a URL.")],
    images: Annotated[
        Path, typer.Option(help="Your samples: .npy, .npz, .h5, .zarr, .nc, .csv, .parquet, or a folder of images.")
    ],
    out: Annotated[Path, typer.Option(help="NumPy archive to write.")],
    std: Annotated[
        bool, typer.Option("--std", help="Also write the standard deviation of every value, and latents' covariances.")
    ] = False,
    tune_prior: Annotated[
        bool, typer.Option("--tune-prior", help="Choose prior_precision for the gaps of your samples, on validation.")
    ] = False,
    sets: Sets = None,
    json_: Json = False,
) -> None:
    """Encode your own samples with a decoder. Example: gfe-study encode best.pt --images mine.npy --out encoded.npz"""
    import torch

    from gfe_study.io.storage import local_file
    from gfe_study.study.artifacts import read_learner
    from gfe_study.study.encoding import encode_file, encoding_notes

    decoder = local_file(checkpoint)
    read = partial(read_learner, decoder, device=torch.device("cpu"))
    data = blamed(read, checkpoint, typed_sets(sets or [])).learner.trial.data  # before anything is written
    mean = encode_file(decoder, images, out, parse_assignments(sets or []), std=std, tuning=tune_prior)
    if json_:
        print_json(mean)
    else:
        loss = f"mean loss {text_of(TEST_LOSS, mean['loss'])} {unit_of(TEST_LOSS, data.called)}"
        error = f"RMSE {mean['rmse']:.4g} {data.called.unit}".strip()
        say(output(), f"{mean['images']} samples written to {out}: {loss}, {error} at observed values")
        for note in encoding_notes(mean):
            say(console(), f"note: {note}", "yellow")


@app.command()
def report(
    label: Label,
    storage: StorageOption = "results",
    watch: Annotated[
        bool, typer.Option("--watch", help="Write it again while the study runs; the page follows.")
    ] = False,
    json_: Json = False,
) -> None:
    """Write a study's report, figures and tables from the tracking store. Example: gfe-study report amd"""
    shown = console()
    with shown.status(f"reading and drawing {label} …"):  # silent unless it is a terminal
        from gfe_study.analysis.report.page import watch_report, write_report
        from gfe_study.analysis.store.load import Store
        from gfe_study.io.storage import Storage

        folder = Storage(storage).folder(label, "report")
        if watch:
            files = watch_report(Store(), label, folder.local, lambda text: say(shown, text))
        else:
            files = write_report(Store(), label, folder.local)
        folder.push_tree()
    if json_:
        print_json([str(file) for file in files])
    else:
        print("\n".join(map(near, files)))
        if folder.remote is not None:
            say(console(), f"all of them are at {folder.remote} too")


@app.command()
def compare(
    one: Annotated[str, typer.Argument(metavar="A", help="STUDY or STUDY:ARM; the reference.")],
    other: Annotated[str, typer.Argument(metavar="B", help="STUDY or STUDY:ARM; of a study alone its best arm.")],
    storage: StorageOption = "results",
    md: Annotated[bool, typer.Option("--md", help="Print Markdown.")] = False,
    html: Annotated[bool, typer.Option("--html", help="Print HTML.")] = False,
    json_: Json = False,
) -> None:
    """Compare two studies, or two arms of them, paired by seed. Example: gfe-study compare amd ae_fair:gfe"""
    from gfe_study.analysis.judge.comparison import compare as compared
    from gfe_study.analysis.judge.comparison import side_of
    from gfe_study.analysis.judge.verdict_table import verdict_table
    from gfe_study.api import results

    if md + html + json_ > 1:
        raise InputError("compare: given several of --md, --html and --json; allowed: one of them")
    sides = [(label, arm if colon else None) for label, colon, arm in (text.partition(":") for text in (one, other))]
    verdict = compared(*(side_of(results(label, storage), arm) for label, arm in sides))
    if json_:
        print_json(verdict.as_dict())
    elif html:
        print(verdict._repr_html_())
    elif md:
        print("\n".join([verdict_table(verdict).markdown(), *(f"\n*Warning: {text}.*" for text in verdict.warnings)]))
    else:
        show(output(), verdict_table(verdict))
        for text in verdict.warnings:
            say(console(), f"warning: {text}", "yellow")


@app.command()
def ui(
    label: Annotated[str | None, typer.Argument(help="A study, whose comparison is opened; defaults to all.")] = None,
    port: Annotated[int, typer.Option(help="Where to serve it on this machine.", min=1, max=65535)] = PORT,
) -> None:
    """Show runs in MLflow's UI, until Ctrl-C. Example: gfe-study ui amd"""
    from gfe_study.tracking.client import experiment_of
    from gfe_study.tracking.server import show_runs
    from gfe_study.tracking.views import COMPARISON, link

    shown = console()
    path = "" if label is None else link(experiment_of(label, store_uri()), COMPARISON)
    try:
        sys.exit(show_runs(path, port, lambda address: say(shown, address), browse=shown.is_terminal))
    except Interrupted:  # the way to end it
        sys.exit(DONE)


@app.command()
def export(
    label: Label,
    form: Annotated[Literal["csv", "parquet", "optuna"], typer.Option("--format", help="What to write.")] = "csv",
    out: Annotated[Path | None, typer.Option(help="File to write; defaults to the study's name.")] = None,
    storage: StorageOption = "results",
    json_: Json = False,
) -> None:
    """Write a study's trials for other programs. Example: gfe-study export amd --format optuna"""
    from gfe_study.analysis.store.export import export as written
    from gfe_study.api import results

    file = written(results(label, storage), form, out)
    if json_:
        print_json(str(file))
        return
    say(output(), f"written to {file}")
    if form == "optuna":
        say(output(), f"open it with: optuna-dashboard {file}")


@app.command()
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Close runs that no process is writing to.")] = False,
    storage: StorageOption = "results",
    json_: Json = False,
) -> None:
    """Check versions, devices, data, the store, and orphaned runs. Example: gfe-study doctor --fix"""
    from gfe_study.cli.doctor import examine
    from gfe_study.io.storage import Storage

    findings = examine(Storage(storage), fix=fix)
    if json_:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        for finding in findings:
            word = "missing" if finding.missing else "ok" if finding.ok else "BAD"
            say(output(), f"{word:<7} {finding.subject}: {finding.text}")
    sys.exit(DONE if all(finding.ok for finding in findings) else SOME_FAILED)


for command in (density_cli.bandwidth, density_cli.correlation):
    app.command()(command)
