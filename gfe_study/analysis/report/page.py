"""The report of a study, with figures and tables, written from the tracking store alone."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from html import escape
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import pandas as pd

from gfe_study import names
from gfe_study.analysis.judge.diagnostics import Note, notes
from gfe_study.analysis.judge.evidence import Evidence, floors_of
from gfe_study.analysis.report.exhibits import MAKERS, Exhibit
from gfe_study.analysis.report.exhibits.base import seeds_text
from gfe_study.analysis.report.html import FILES, TABLE_FORMATS, exhibit_html, formatted, table_html
from gfe_study.analysis.report.style import save
from gfe_study.analysis.store.load import Store
from gfe_study.analysis.store.tidy import PARAMS, RUN_ID, measured
from gfe_study.config import Budget, InputError, Study
from gfe_study.config.options import IMAGES_WITHOUT_LIMIT
from gfe_study.layout import number
from gfe_study.metrics import (
    DIVERGED,
    IMAGES_SEEN,
    IMAGES_USED,
    LOSSES,
    STANDARD,
    TEST_LOSS,
    TRAIN_SECONDS,
    VAL_LOSS,
    Values,
    counterpart_on_test,
    info_of,
    is_known,
    mode_of,
    text_of,
    unit_of,
)

PAGE_FILE = "report.html"
TRIALS_FILE = "trials.csv"
TRIALS_HEADING = "All trials"
LEAST_SECONDS_BETWEEN = 15
SHARE_OF_TIME = 5.0
"""Between two writings of a report that is watched, times the seconds that one takes."""


def write_report(store: Store, study: str, folder: Path, refresh: int | None = None) -> list[Path]:
    """Write a self-contained page, and its figures (PNG, SVG) and tables (CSV, Markdown, LaTeX) beside it.

    All files are also stored as artifacts of the study's run, under `report/`.

    Args:
        refresh: seconds after which the page loads itself again, while it is rewritten; None: it is final.

    Returns:
        The files, the page first.

    Raises:
        InputError: the store has no such study, the study has no trial with a result, or the folder cannot be written.
    """
    evidence = Evidence.load(store, study)
    if not len(evidence.curves):
        text = "; ".join(each.text for each in evidence.irregularities[:3])
        raise InputError(f"study {study!r} has no trial with a result yet; {text or 'resume the study first'}")
    exhibits = [exhibit for maker in MAKERS for exhibit in maker(evidence)]
    page = folder / PAGE_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_earlier(page)
        files = [file for exhibit in exhibits for file in write_exhibit(exhibit, folder)]
        trials = folder / TRIALS_FILE
        trials_table(evidence).to_csv(trials, index=False)
        written = page.with_suffix(".new")  # a browser that loads the page again never meets half of it
        written.write_text(_page(evidence, exhibits, folder, refresh), encoding="utf-8")
        written.replace(page)
    except OSError as error:
        raise InputError(f"{folder}: the report cannot be written ({error.strerror})") from error
    if evidence.parent is not None and refresh is None:
        store.log_report(study, folder)
    return [page, trials, *files]


def watch_report(store: Store, study: str, folder: Path, tell: Callable[[str], None]) -> list[Path]:
    """Write the report again and again while the study runs, and for good when it has ended.

    Args:
        tell: called with the page's path once it exists, or with why there is none yet.
    """
    told = ""
    while (parent := store.parent(study)) is not None and parent.status == "RUNNING":
        started = time.monotonic()
        try:
            page = str(write_report(store, study, folder, LEAST_SECONDS_BETWEEN)[0])
        except InputError as error:  # nothing to show yet
            page = str(error)
        if page != told:
            tell(page)
            told = page
        took = time.monotonic() - started
        time.sleep(max(LEAST_SECONDS_BETWEEN, SHARE_OF_TIME * took))  # the trials need the processor more
    return write_report(store, study, folder)


def _remove_earlier(page: Path) -> None:
    """Remove the exhibits of an earlier report, because this report may no longer have them."""
    if not page.exists():
        return
    for key in re.findall(r'<h2 id="(\w+)">', page.read_text(encoding="utf-8")):
        for ending in FILES:
            (page.parent / f"{key}{ending}").unlink(missing_ok=True)


def write_exhibit(exhibit: Exhibit, folder: Path) -> list[Path]:
    """Write the files of one exhibit: `<key>.png` and `.svg`, `<key>.csv`, `.md` and `.tex`, `<key>_data.csv`."""
    files = save(exhibit.figure, folder / exhibit.key) if exhibit.figure is not None else []
    if exhibit.table is not None:
        shown = formatted(exhibit.table, exhibit.formats)
        csv, markdown, latex = (folder / f"{exhibit.key}{suffix}" for suffix in TABLE_FORMATS)
        exhibit.table.to_csv(csv, index=False)
        markdown.write_text(_markdown(shown), encoding="utf-8")
        caption = _latex(exhibit.title)
        text = (
            shown.map(_latex).rename(columns=_latex).to_latex(index=False, caption=caption, label=f"tab:{exhibit.key}")
        )
        latex.write_text(text, encoding="utf-8")
        files += [csv, markdown, latex]
    if exhibit.data is not None:
        file = folder / f"{exhibit.key}_data.csv"
        exhibit.data.to_csv(file, index=False)
        files.append(file)
    return files


def trials_table(evidence: Evidence) -> pd.DataFrame:
    """Return one row per run, best first and counted or not: the parameters that differ, and the last metrics."""
    runs = evidence.runs
    params = [column for column in runs if str(column).startswith(PARAMS) and runs[column].nunique(dropna=False) > 1]
    params = [column for column in params if column != f"{PARAMS}{names.SEED}"]
    counts = [IMAGES_SEEN, IMAGES_USED, TRAIN_SECONDS]
    about = [names.ARM, names.STAGE, names.NUMBER, names.SEED, "state"]
    # Known metrics without a better direction are there for others to be read beside: the normal's entropy, a floor.
    there = [name for name in measured(evidence.points) if name in runs]
    measures = [name for name in there if info_of(name).better or not is_known(name)]
    table = runs[[*about, *LOSSES, *measures, *counts, *params, names.FINGERPRINT, names.FAILURE]]
    by = evidence.chosen_by if evidence.chosen_by in table else VAL_LOSS
    table = table.sort_values(by, ascending=mode_of(by) == "min", kind="stable", ignore_index=True)
    table = table.rename(columns=lambda name: str(name).removeprefix(PARAMS))
    empty = [column for column in table if (table[column].isna() | (table[column] == "")).all()]
    return table.drop(columns=empty)


LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%_#${}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "−": "$-$",
        "±": r"$\pm$",
        "×": r"$\times$",
        "≤": r"$\le$",
    }
)


def _latex(text: Any) -> str:
    return " ".join(str(text).split()).translate(LATEX)


def _markdown(shown: pd.DataFrame) -> str:
    columns = [str(column) for column in shown]
    rows = [columns, ["---"] * len(columns), *([str(value) for value in row] for row in shown.to_numpy())]
    return (
        "\n".join("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |" for row in rows)
        + "\n"
    )


def _page(evidence: Evidence, exhibits: list[Exhibit], folder: Path, refresh: int | None) -> str:
    trials, metrics = trials_table(evidence), {*STANDARD, *measured(evidence.points)}
    parts = [
        f"<h1>{escape(evidence.name)}</h1>",
        f'<p class="question">{escape(evidence.question)}</p>' if evidence.question else "",
        _asked_and_ran(evidence),
        _verdict(evidence),
        _best_trial(evidence),
        _cautions(evidence),
        *(exhibit_html(exhibit, folder) for exhibit in exhibits),
        f'<section><h2 id="trials">{TRIALS_HEADING}</h2>',
        f'<p class="note">Best {info_of(evidence.chosen_by).label} first; a click on a heading sorts them, and '
        f'<a href="{TRIALS_FILE}">{TRIALS_FILE}</a> lists all. Fingerprints lead to the runs in MLflow’s UI, while '
        "<code>gfe-study ui</code> or the server runs.</p>",
        '<input type="search" placeholder="show rows with these words" aria-label="filter the trials">',
        table_html(
            formatted(trials, {str(name): info_of(str(name)).format for name in trials if name in metrics}),
            {(names.FINGERPRINT, print_): link for print_, link in _runs(evidence).items()},
            "sortable",
        ),
        f'<p class="note printed">On paper these are the first columns only; {TRIALS_FILE} has all.</p></section>',
        _provenance(evidence),
    ]
    body = "\n".join(part for part in parts if part)
    here = package_files("gfe_study.analysis.report")
    style, script = (here.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    library = _library() if any(exhibit.chart is not None for exhibit in exhibits) else ""
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh is not None else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><link rel="icon" href="data:,">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{again}'
        f"<title>{escape(evidence.name)}</title><style>\n{style}</style></head><body>\n{_contents(body)}\n"
        f'<main>\n{body}\n</main>\n{library}<script type="module">\n{script}</script></body></html>\n'
    )


def _contents(body: str) -> str:
    """Links to all headings."""
    links = (f'<li><a href="#{key}">{text}</a></li>' for key, text in re.findall(r'<h2 id="(\w+)">(.*?)</h2>', body))
    return f"<nav><ul>{''.join(links)}</ul></nav>"


def _library() -> str:
    """Vega, which draws the charts, with all that it needs: a page asks no server for anything."""
    import vl_convert  # takes a second to load

    code: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub demands what its text calls optional
    code = code.replace("</script", "<\\/script")
    return f'<script type="module">{code}</script>\n'


def _runs(evidence: Evidence) -> dict[str, str]:
    """Fingerprint -> address of the run in MLflow's UI."""
    runs = evidence.runs[evidence.runs[names.FINGERPRINT] != ""]
    address = evidence.store.runs_page(evidence.name)
    return {print_: f"{address}/{run}" for print_, run in zip(runs[names.FINGERPRINT], runs[RUN_ID], strict=True)}


def _asked_and_ran(evidence: Evidence) -> str:
    study, runs = evidence.study, evidence.runs
    once = runs.drop_duplicates(RUN_ID)
    states = ", ".join(f"{count} {state}" for state, count in Counter(once["state"]).most_common())
    trials = evidence.trials
    about = {"trials": states}
    if study is not None:
        if study.scientific is not None:
            about["compared"] = "; ".join(arm.name for arm in study.arms)
        if study.nuisance:
            count = "1 configuration" if study.trials == 1 else f"{study.trials} configurations"
            per_arm = " per arm" if study.scientific is not None else ""
            about["searched"] = f"{', '.join(study.nuisance)} ({study.sampler}, {count}{per_arm})"
        about["budget of a trial"] = _budgets(study)
        stages = [f"{len(study.seeds_of(stage))}" for stage in study.stages()]
        about["seeds"] = " in the first stage, ".join(stages) + (" in the second" if len(stages) > 1 else "")
        for hole in study.holes:
            about[f"skipped: {hole.name}"] = hole.reason
    floors, unit = floors_of(trials), unit_of(TEST_LOSS, evidence.values)
    text = [
        f"{name}, lowest possible loss {text_of(TEST_LOSS, floors[name])} {unit}{_tested(trials)}"
        if name in floors
        else str(name)
        for name in sorted(set(trials[names.DATASET]) - {""})
    ]
    about |= {"dataset": "; ".join(text)} if text else {}
    if evidence.num_former:
        about["not counted"] = f"{evidence.num_former} earlier trials that no longer belong to this study"
    if evidence.parent is not None and evidence.parent.status == "RUNNING":
        about["state"] = "still running: everything below covers only the trials that have ended so far"
    return _list(about)


def _tested(trials: pd.DataFrame) -> str:
    """Say how many test samples a lowest possible loss is of, if all trials used the same number."""
    counts = set(trials.get(f"{PARAMS}eval.test_images", pd.Series(dtype=str)).dropna())
    return f" (of at most {int(next(iter(counts))):,} test samples)" if len(counts) == 1 else ""


def _budgets(study: Study) -> str:
    """Describe the budget of a trial, by arm and stage if these differ."""
    arms_of: dict[str, list[str]] = {}
    for arm in study.arms:
        stages = dict.fromkeys(_limits(study.example(arm, stage).budget) for stage in study.stages())
        arms_of.setdefault(", in the second stage ".join(stages), []).append(arm.name)
    if len(arms_of) == 1:
        return next(iter(arms_of))
    return "; ".join(f"{limits} ({', '.join(arms)})" for limits, arms in arms_of.items())


def _limits(budget: Budget) -> str:
    limits = [f"{budget.images:,} images seen"] if budget.images < IMAGES_WITHOUT_LIMIT else []
    limits += [f"{budget.nfe:,} passes"] if budget.nfe is not None else []
    limits += [f"{budget.seconds:g} s of training"] if budget.seconds is not None else []
    if budget.patience is not None:
        limits.append(f"{budget.patience} evaluations without a lower validation loss")
    return " or ".join(limits)


def _list(about: Mapping[str, str]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(key)}</dt><dd>{escape(value)}</dd>' for key, value in about.items())}</dl>"


def _verdict(evidence: Evidence) -> str:
    found = evidence.verdict
    if found is not None and found.rows:
        means = [f"{text_of(found.metric, row.value.mean)}, " if row.value.count else "" for row in found.rows]
        lines = [
            f"<b>{escape(row.arm)}</b>: {mean}{escape(row.text)}" for row, mean in zip(found.rows, means, strict=True)
        ]
        about = f"Verdict by {evidence.label(found.metric)}, {found.better} is better{found.taken}"
    else:
        lines, about = _best(evidence), "Best"
    items = "".join(f"<li>{line}</li>" for line in lines)
    return f'<div class="verdict"><b>{about}</b><ul>{items}</ul></div>'


def _best(evidence: Evidence) -> list[str]:
    chosen = evidence.chosen
    usable = chosen[~chosen["failed"] & ~chosen[DIVERGED]]
    chosen_by = evidence.chosen_by
    lines = []
    for arm in evidence.arms:
        own = usable[usable[names.ARM] == arm]
        shown = dict.fromkeys((VAL_LOSS, TEST_LOSS, chosen_by, counterpart_on_test(chosen_by), evidence.metric))
        known = {name: float(own[name].mean()) for name in shown if name in own and own[name].notna().any()}
        if not known:
            continue
        means = ", ".join(_with_unit(name, mean, evidence.values) for name, mean in known.items())
        line = f"{means} ({seeds_text({own[names.SEED].nunique()})})"
        floor = own[names.ENTROPY_FLOOR].iloc[0]
        if TEST_LOSS in known and not math.isnan(floor):
            above = text_of(TEST_LOSS, known[TEST_LOSS] - floor)
            line += f", test loss {above} above the lowest possible {text_of(TEST_LOSS, floor)}"
        line += f": trial {', '.join(own[names.FINGERPRINT])}"
        seen, used = own[IMAGES_SEEN].mean(), own[IMAGES_USED].mean()
        line += f", {seen:,.0f} training images seen" if not math.isnan(seen) else ""
        line += f" ({used:,.0f} counting every weight update)" if not math.isnan(used) else ""
        lines.append(f"{f'<b>{escape(arm)}</b>: ' if arm else ''}{escape(line)}")
    return lines or ["no trial has a result"]


def _with_unit(metric: str, value: float, values: Values) -> str:
    return f"{info_of(metric).label} {text_of(metric, value)} {unit_of(metric, values)}".strip()


def _best_trial(evidence: Evidence) -> str:
    """Describe the best trial of the last stage: its settings, and the commands to train it and encode with it."""
    trials = evidence.trials
    usable = trials[~trials["failed"] & ~trials[DIVERGED] & trials["value"].notna()]
    if evidence.study is None or not len(usable):
        return ""
    last = usable[usable[names.STAGE] == usable[names.STAGE].max()]
    best = last.sort_values("value", ascending=evidence.study.metric.mode == "min", kind="stable").iloc[0]
    searched = {key: best[key] for key in evidence.study.nuisance if pd.notna(best[key])}
    settings = "; ".join(f"{key} {number(value, 3)}" for key, value in searched.items())
    arm = f" of {best[names.ARM]}" if len(evidence.arms) > 1 else ""
    value = text_of(evidence.chosen_by, best["value"])
    about = f"trial {best[names.NUMBER]} seed {best[names.SEED]}{arm}, {evidence.chosen_by} {value}"
    decoder = names.BEST_CHECKPOINT
    # From the store, not from the study's folder: the page is the same wherever the store is read.
    commands = (
        f"mlflow artifacts download --run-id {best[RUN_ID]} --artifact-path {decoder} --dst-path .",
        f"gfe-study train --config {decoder}",
        f"gfe-study encode {decoder} --images images.npy --out encoded.npz",
    )
    kept = evidence.store.artifact(best[RUN_ID], decoder) is not None
    typed = f"<pre>{escape(chr(10).join(commands))}</pre>" if kept else ""
    return (
        f'<div class="verdict"><b>Best trial</b>: {escape(about)}'
        f"{f'<br>Settings: {escape(settings)}' if settings else ''}"
        f"{f'<br>Train it again, and encode samples with it:{typed}' if typed else ''}</div>"
    )


def _cautions(evidence: Evidence) -> str:
    found = evidence.verdict
    cautions = [Note(text) for text in found.warnings] if found is not None else []
    cautions += notes(evidence.signs)
    cautions += [Note(each.text) for each in evidence.irregularities]
    if not cautions:
        return ""
    items = "".join(f"<li>{escape(note.text)}{_details(note)}</li>" for note in cautions)
    return f'<div class="warning"><b>Read with care</b><ul>{items}</ul></div>'


def _details(note: Note) -> str:
    items = "".join(f"<li>{escape(detail)}</li>" for detail in note.details)
    return f"<ul>{items}</ul>" if items else ""


def _provenance(evidence: Evidence) -> str:
    about = {}
    for name, key in {
        "gfe-study": names.GFE_STUDY_VERSION,
        "commit": names.GIT_COMMIT,
        "uncommitted changes": names.GIT_DIRTY,
        "hosts": names.HOST,
        "devices": names.DEVICE,
        "versions": names.VERSIONS,
        "dataset sha256": names.DATASET_SHA256,
    }.items():
        values = list(dict.fromkeys(value for value in evidence.runs[key] if value))
        if values:
            about[name] = "; ".join(values)
    if evidence.parent is not None:
        about["started"] = f"{evidence.parent.start_time:%Y-%m-%d %H:%M} UTC"
    return f'<h2 id="provenance">Where the numbers come from</h2>{_list(about)}'
