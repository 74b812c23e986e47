"""README and docs are true: their links exist, their keys and metrics exist, and the commands they quote are run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import pytest
import typer
from sweeps import COMMAND

from gfe_study import registry
from gfe_study.cli.app import app
from gfe_study.config import Budget, Evaluation, Section, Study, Trial, find_space, parse_assignments, space_files
from gfe_study.config.files import parse_yaml
from gfe_study.metrics import Group, Use, choices, reference

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MAX_README_BYTES = 8192
PROGRAM = ".venv/bin/gfe-study"

NOT_RUN = {
    r"make test$": "this is it",
    r"make bench$": "a quarter of an hour; benchmarks are no tests",
    r"ray |kubectl ": "other programs; test_cluster_files.py checks the files they are given",
    r"sbatch ": "services/test_slurm.py runs the scripts in a real SLURM",
    r"tracking\.example\.org": "an address that does not exist",
    r"/shared/results": "a folder, and mostly a cluster, that do not exist here",
    r"GPUS=": "needs a GPU",
    r"SPACE=(table1|table2|figure3|novelty|vae)\b": "minutes even when shortened; the other spaces run the same code",
    r"bandwidth --table$": "a minute; test_bandwidth.py checks every cell",
    r"data\.path=fields": "a file of the reader's own; test_arrays.py reads files of every format",
    r"encode results": "a decoder of the reader's own; test_cli.py encodes",
    r"correlation --table": "half an hour; the same code runs for one cell",
}
"""Quoted commands that are parsed and not run, and why."""

SMALL = "--trials 1 --seeds 1 --set budget.images=64 --set eval.schedule=[64] --set eval.val_images=16"
SHORTENED = {
    r"sweep (gen|vae|all_methods|gens_table2|novelty)\b": SMALL,
    r"sweep (?!smoke)": f"{SMALL} --set eval.test_images=64",
    r"plan ": "--no-probe",
    r"train ": "--set budget.images=64 --set eval.test_images=64 --set eval.val_images=16",
    r"correlation ": "--trials 2",
}
"""Options appended to a command, by the first pattern that it matches: the same code on less data."""


class Block(NamedTuple):
    page: Path
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [Block(page, language, text) for language, text in found]


def own_files(page: Path) -> dict[str, str]:
    """What a page tells its reader to save: path -> content."""
    saved = r"\b[Ss]ave [^`]*`([\w/]+\.\w+)`(?:(?!```).)*?^```\w+\n(.*?)^```$"
    return dict(re.findall(saved, page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))


@pytest.fixture
def own_modules(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the reader of the page of this test saved as Python can be imported."""
    for path, text in own_files(request.node.callspec.params["page"]).items():
        if path.endswith(".py"):
            (tmp_path / path).write_text(text, encoding="utf-8")
            monkeypatch.syspath_prepend(tmp_path)


def quoted(page: Path) -> list[str]:
    """Commands of a page as they are typed: continued lines joined, comments removed."""
    text = "".join(block.text for block in blocks(page) if block.language == "sh").replace("\\\n", " ")
    return [line for line in (re.sub(r"\s+#.*", "", line).strip() for line in text.splitlines()) if line]


def expanded(line: str) -> list[str]:
    """What a line comes to: `make` lines by the Makefile, others as they are."""
    line = re.sub(r"^\w+=\S+ ", "", line)
    if not line.startswith("make "):
        return [line]
    words = shlex.split(line.partition(" && ")[0])
    # -o: the environment counts as installed, whether or not this checkout has one.
    dry = [*words, "--dry-run", "--no-print-directory", "--old-file=.venv/.installed"]
    shown = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout.replace("\\\n", " ")
    return [command for command in shown.splitlines() if ".venv/bin/" in command]


def reason_not_run(line: str) -> str | None:
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, line)), None)


COMMANDS = [(page, line) for page in PAGES for line in quoted(page)]
RUN_PAGES = [page for page in PAGES if any(reason_not_run(line) is None for line in quoted(page))]


def page_id(value: object) -> str:
    return value.name if isinstance(value, Path) else str(value)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= MAX_README_BYTES


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_every_exemption_is_needed() -> None:
    for pattern in NOT_RUN:
        assert any(re.search(pattern, line) for _, line in COMMANDS), pattern


def parsed(words: list[str]) -> typer.Context:
    """The context of a command line, its options checked and nothing run."""
    group = typer.main.get_command(app)
    context: typer.Context = group.commands[words[0]].make_context(words[0], words[1:])  # type: ignore[attr-defined]
    return context


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=page_id)
def test_commands_are_understood(page: Path, line: str) -> None:
    """Targets, options, spaces and keys of every quoted command exist, also of those that are not run."""
    if line.startswith(("ray ", "kubectl ")):
        return
    commands = expanded(line)
    assert commands or line.startswith("make install"), line
    for command in commands:
        words = shlex.split(command)
        if submitted := re.fullmatch(r"(?:\w+=\S+ )*sbatch (?:--\S+ )*(\S+)(?: (\w+))?", command):
            script, space = submitted.groups()
            assert (ROOT / script).is_file()
            assert space is None or find_space(space)
            continue
        if words[0] != PROGRAM:
            assert re.match(r"(\w+=\S+\s+)*\.venv/bin/(mlflow|python|pytest) ", command), command
            continue
        context = parsed(words[1:])
        if words[1] in ("sweep", "plan"):
            options = {name: context.params[name] for name in ("trials", "seeds")}
            data = [f"data.name={context.params['dataset']}"] if context.params["dataset"] else []
            changes = parse_assignments([*data, *(context.params["sets"] or [])])
            saved = own_files(page).get(f"search_spaces/{context.params['space']}.yaml")
            if saved is None:
                Study.load(find_space(context.params["space"]), changes, **options)
        elif words[1] == "train":
            Trial.build(parse_assignments(context.params["sets"] or []))


def test_a_wrong_command_is_not_understood() -> None:
    with pytest.raises(Exception, match="No such option"):
        parsed(["sweep", "amd", "--tirals", "3"])
    assert "--trials 3" in expanded("make sweep SPACE=amd TRIALS=3")[-1]


def test_shown_code_is_from_the_example_package() -> None:
    example = ROOT / "examples" / "gfe_study_example" / "gfe_study_example" / "conjugate.py"
    assert own_files(ROOT / "docs" / "own_solver.md")["my_solvers.py"] == example.read_text(encoding="utf-8")


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_study_files_in_the_pages_load(page: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            Study.build(parse_yaml(block.text, page.name), page.name)


def test_the_site_builds_and_is_self_contained(tmp_path: Path) -> None:
    """Every page is in its contents, every link and anchor leads somewhere, and generated pages are there."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    keys, api = ((tmp_path / page / "index.html").read_text(encoding="utf-8") for page in ("keys", "api"))
    assert "solver.max_nfe" in keys
    assert "return_std" in api  # methods with their signatures
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text(encoding="utf-8"))
        assert not [url for url in loaded if "canonical" not in url], page


def first_cells(page: str, heading: str) -> Iterator[tuple[str, str]]:
    """(names in the first cell, second cell) of the tables below a heading, up to the next one of its level."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    level = heading.split()[0]
    section = re.split(rf"^{level} ", text.partition(f"{heading}\n")[2], flags=re.MULTILINE)[0]
    for row in re.findall(r"^\| (`.*?) \| (.*?) \|", section, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", row[0].partition("(")[0]):
            yield name, row[1]


def test_the_keys_in_the_reference_exist() -> None:
    keys = dict(first_cells("metrics.md", "### Keys used most"))
    assert len(keys) > 30
    own: dict[str, type[Section]] = {"budget": Budget, "eval": Evaluation}
    for key in keys:
        section, _, field = key.partition(".")
        names_there = registry.names(section) if section in registry.BASES else []
        found = [own[section]] if section in own else [registry.component(section, name) for name in names_there]
        assert any(field in each.model_fields for each in found) if field else key in Trial.model_fields, key
    for section, model in own.items():
        for field, info in model.model_fields.items():
            shown = keys.get(f"{section}.{field}", "")
            if re.fullmatch(r"\d+", shown):
                assert int(shown) == info.default, f"{section}.{field}"


def test_the_reference_lists_every_metric() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for group in get_args(Group):
        assert f"\n\n{reference(group)}\n" in text, f"docs/metrics.md lacks this table:\n{reference(group)}"
    uses: dict[str, Use] = {"metric.name": "search", "metric.against": "against", "compare.metric": "compare"}
    for key, use in uses.items():
        row = f"| `{key}` | {', '.join(f'`{name}`' for name in choices(use))} |"
        assert f"\n{row}\n" in text, f"docs/metrics.md lacks this row:\n{row}"


def test_every_shipped_space_is_described() -> None:
    assert {name for name, _ in first_cells("studies.md", "## Shipped spaces")} == set(space_files())


def run_server(command: str, folder: Path) -> None:
    """Start what a line starts, on another port, and wait until it answers."""
    port = 5000 + os.getpid() % 20000
    line = re.sub(rf"(?<!\S){PROGRAM}(?!\S)", shlex.join(COMMAND), command)
    line = re.sub(r"(?<!\S)\.venv/bin/", f"{Path(sys.executable).parent}/", line)
    line = f"{line} --port {port}" if "--port" not in line else re.sub(r"--port \d+", f"--port {port}", line)
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(line, shell=True, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while True:
            assert server.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline, (folder / "server.log").read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    assert answer.status == 200
                    return
            except OSError:
                time.sleep(0.5)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("page", RUN_PAGES, ids=page_id)
def test_the_commands_of_a_page_work(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """They are typed in their order in one folder, as a reader would; then the page's Python runs there.

    The folder has data of the reader's own, with gaps, and `best.pt` is the decoder that was trained last.
    """
    draw = np.random.default_rng(0)
    own = draw.normal(size=(300, 4)) @ draw.normal(size=(4, 12))
    own[draw.random(own.shape) < 0.3] = np.nan
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "mine.npy", own[~np.isnan(own).all(1)])
    typed = [line for line in quoted(page) if reason_not_run(line) is None]
    if "encode best.pt" in "".join(typed) and "gfe-study train" not in "".join(typed):
        typed.insert(
            0,
            f"{PROGRAM} train --set preset=holes --set data.name=arrays --set data.path=mine.npy "
            "--set likelihood=gaussian --set prior_precision=1",
        )
    for path, text in own_files(page).items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    if "mnist" in page.read_text(encoding="utf-8") and page.name != "metrics.md":
        environment["GFE_DATA_DIR"] = str(request.getfixturevalue("mnist_folder"))
    for line in typed:
        if "best.pt" in line:
            newest = max(tmp_path.glob("results/train/*/best.pt"), key=lambda file: file.stat().st_mtime)
            shutil.copy(newest, tmp_path / "best.pt")
        for command in expanded(line):
            if re.search(r"bin/(gfe-study|mlflow) (ui|server)\b", command):
                run_server(command, tmp_path)
                continue
            words = shlex.split(command)[1:]
            more = next((more for pattern, more in SHORTENED.items() if re.match(pattern, " ".join(words) + " ")), "")
            done = subprocess.run(
                [*COMMAND, *words, *shlex.split(more)], cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{command} {more}\n{done.stdout}\n{done.stderr}"
    for block in blocks(page):
        if block.language == "python":
            done = subprocess.run(
                [sys.executable, "-c", block.text], cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
