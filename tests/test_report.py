"""A real study, reported from its store alone."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nbformat
import numpy as np
import pandas as pd
import pytest
import vl_convert
import yaml
from browser import open_page
from mlflow import MlflowClient
from nbclient import NotebookClient
from PIL import Image
from scipy import stats
from sweeps import children, environment, gfe_study, history, started

from gfe_study import names
from gfe_study.analysis.judge.evidence import Evidence
from gfe_study.analysis.report.exhibits import explore
from gfe_study.analysis.report.page import PAGE_FILE, write_report
from gfe_study.analysis.store.load import Store
from gfe_study.config import InputError
from gfe_study.metrics import IMAGES_SEEN, MIXED_TEST_LOSS, TEST_LOSS, VAL_LOSS

pytestmark = pytest.mark.timeout(600)  # whichever test comes first waits for the study

STUDY = "few"
NOTEBOOKS = sorted((Path(__file__).parents[1] / "analysis").glob("*.ipynb"))
SPACE: dict[str, Any] = {
    "question": "Is an encoder needed for < 500 images & why?",
    "fixed": {
        "preset": "paper",
        "solver": {"name": "amd", "max_nfe": 12},
        "model": {"name": "mlp", "latent_dim": 8, "hidden": [32, 64]},
        "data": {"name": "digits"},
        "eval": {"schedule": [120, 480], "val_images": 40, "test_images": 60},
    },
    "scientific": {"arms": {"ae": {"method": "ae"}, "gfe": {"method": "gfe"}}},
    "nuisance": {"optim.lr": {"loguniform": [3e-4, 3e-3]}, "optim.batch_size": {"choice": [8, 16]}},
    "budget": {"images": 480},
    "trials": 3,
    "sampler": "random",
    "scheduler": "none",
    "then": {"best": 1, "seeds": 3},
    "compare": {"metric": "test_loss", "reference": "ae", "margin": 0.001},
}
FIGURES = {
    "differences",
    "loss_over_images",
    "loss_over_seconds",
    "loss_over_evaluations",
    "excess_over_floor",
    "flows",
    "reconstructions",
    "latents",
    "isolation",
    "slices",
    "expected_best",
}
TABLES = {"verdict", "table_1", "latents"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study, and its report."""
    made = tmp_path_factory.mktemp("report")
    (made / f"{STUDY}.yaml").write_text(yaml.safe_dump(SPACE, sort_keys=False))
    swept = gfe_study(made, "sweep", f"{STUDY}.yaml")
    assert swept.returncode == 0, swept.stderr
    reported = gfe_study(made, "report", STUDY, "--json")
    assert reported.returncode == 0, reported.stderr
    files = [made / file for file in json.loads(reported.stdout)]
    assert {file.suffix for file in files} == {".html", ".csv", ".md", ".tex", ".png", ".svg"}
    assert all(file.stat().st_size > 50 for file in files)
    return made


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> tuple[Path, Store]:
    """The same store elsewhere, alone: no journal and no folder of results is beside it."""
    shutil.copytree(folder / "mlartifacts", tmp_path / "mlartifacts")
    shutil.copy(folder / "mlflow.db", tmp_path / "mlflow.db")
    return tmp_path, Store(f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_every_figure_and_table_is_there(folder: Path) -> None:
    report = folder / "results" / STUDY / "report"
    assert {file.stem for file in report.glob("*.png")} >= FIGURES
    for file in report.glob("*.png"):
        with Image.open(file) as picture:
            assert picture.info["dpi"][0] == pytest.approx(300, abs=0.1)
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 2
        ElementTree.parse(file.with_suffix(".svg"))
    for name in TABLES:
        read = pd.read_csv(report / f"{name}.csv")
        assert len((report / f"{name}.md").read_text().splitlines()) == 2 + len(read)
        assert r"\begin{tabular}" in (report / f"{name}.tex").read_text()


def test_the_page_opens_with_question_and_verdict(folder: Path) -> None:
    """And it is whole by itself: its images are part of it."""
    page = (folder / "results" / STUDY / "report" / PAGE_FILE).read_text()
    assert "Is an encoder needed for &lt; 500 images &amp; why?" in page
    assert page.index("Verdict by") < page.index("data:image/") < page.index('id="trials"')
    assert "data:image/svg+xml" in page  # of lines, the smaller file
    assert "data:image/png" in page  # of pictures
    assert len(page.encode()) < 5e6
    assert re.search(r"<b>gfe</b>: 0\.\d{4}, (better|worse|equivalent|undecided)", page)


def test_the_commands_for_the_best_trial_work(folder: Path) -> None:
    """Typed beside the store, the commands on the page fetch the best decoder, train its trial again, and encode."""
    page = (folder / "results" / STUDY / "report" / PAGE_FILE).read_text()
    best = re.search(r"Best trial</b>: trial (\d+) seed (\d+) of (\w+), val_loss (0\.\d{4})", page)
    assert best is not None
    commands = re.search(r"encode samples with it:<pre>(.*?)</pre>", page, re.DOTALL)
    assert commands is not None
    download, train, encode = (shlex.split(line)[1:] for line in commands[1].splitlines())
    mlflow: list[str | Path] = [Path(sys.executable).with_name("mlflow"), *download]
    subprocess.run(mlflow, cwd=folder, env=environment(), check=True, capture_output=True)
    again = gfe_study(folder, *train, "--json", "--storage", "again")
    assert f"{json.loads(again.stdout)['val_loss']:.4f}" == best[4]
    np.save(folder / "images.npy", np.zeros((2, 8, 8)))
    assert gfe_study(folder, *encode).returncode == 0
    assert np.load(folder / "encoded.npz")["latent"].shape[0] == 2


@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_works_in_a_browser(folder: Path, width: int) -> None:
    """Without an error, and without a request to anywhere else."""
    with open_page((folder / "results" / STUDY / "report" / PAGE_FILE).as_uri(), width=width) as opened:
        page = opened.page
        opened.wait_for("Verdict by")
        page.wait_for_selector(".chart svg")
        assert page.evaluate("document.querySelectorAll('.chart svg .mark-line path').length") >= 4
        assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing is wider than the window
        for heading in page.query_selector_all("main h2"):
            assert page.query_selector(f"nav a[href='#{heading.get_attribute('id')}']"), heading.inner_text()

        def shown(column: str) -> list[str]:
            heads = [head.inner_text().strip(" ▲▼") for head in page.query_selector_all(".sortable th")]
            cells = page.query_selector_all(f".sortable tbody tr:not([hidden]) td:nth-child({heads.index(column) + 1})")
            return [cell.inner_text() for cell in cells]

        rows = len(shown("seed"))
        for sign in (1, -1):  # a second click turns the order round
            page.click(".sortable th:has-text('train_seconds')")
            seconds = [sign * float(cell.replace(",", "")) for cell in shown("train_seconds")]
            assert seconds == sorted(seconds)
        page.fill("input[type=search]", "GFE finished")  # both words, in any letters
        assert 0 < len(shown("arm")) < rows
        assert set(shown("arm")) == {"gfe"}
        page.fill("input[type=search]", "")
        assert len(shown("seed")) == rows
        assert page.evaluate("[...document.images].filter(image => !image.naturalWidth).length") == 0
        assert opened.errors == []
        assert opened.leaving() == []


def test_every_link_of_the_page_leads_somewhere(folder: Path) -> None:
    """To a part of the page, a file of the report or a run."""
    report = folder / "results" / STUDY / "report"
    page = re.sub(r"<script.*?</script>", "", (report / PAGE_FILE).read_text(), flags=re.DOTALL)
    assert not re.findall(r'src="(?!data:)', page)
    links = set(re.findall(r'href="(?!data:)([^"]+)"', page))
    runs = {link for link in links if link.startswith("http://127.0.0.1:5000/#/experiments/")}
    assert len(runs) == len(Evidence.load(Store(f"sqlite:///{folder / 'mlflow.db'}"), STUDY).runs)
    for link in links - runs:
        assert f'id="{link[1:]}"' in page if link.startswith("#") else (report / link).is_file(), link


def test_charts_are_what_vega_lite_takes(folder: Path) -> None:
    evidence = Evidence.load(Store(f"sqlite:///{folder / 'mlflow.db'}"), STUDY)
    charts = {exhibit.key: exhibit.chart for exhibit in explore(evidence)}
    assert charts.keys() == {"every_trial", "settings"}
    for chart in charts.values():
        assert chart is not None
        json.dumps(chart, allow_nan=False)
        drawn = vl_convert.vegalite_to_svg({**chart, "width": 600})
        assert drawn.count("<path") > 5
    curves, settings = charts["every_trial"], charts["settings"]
    assert curves is not None
    assert settings is not None
    points = curves["data"]["values"]
    assert len(points) == len(evidence.curves)
    assert {point["arm"] for point in points} == set(evidence.arms)
    rows = settings["layer"][0]["data"]["values"]
    assert all(0 <= row["place"] <= 1 for row in rows)
    best = min(settings["layer"][0]["transform"][0]["from"]["data"]["values"], key=lambda trial: trial["result"])
    assert [row["place"] for row in rows if row["trial"] == best["trial"] and row["key"] == VAL_LOSS] == [0.0]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_watched_report_follows_its_study(tmp_path: Path) -> None:
    (tmp_path / "long.yaml").write_text(yaml.safe_dump({**SPACE, "budget": {"seconds": 8}, "seeds": 4}))
    page = tmp_path / "results" / "long" / "report" / PAGE_FILE
    with started(tmp_path, "sweep", "long.yaml") as sweep:
        while not any((tmp_path / "results").glob("long/trials/*/best.pt")):
            assert sweep.poll() is None
            time.sleep(0.2)
        with started(tmp_path, "report", "long", "--watch") as watch:
            while not page.exists():
                assert watch.poll() is None
                time.sleep(0.2)
            assert '<meta http-equiv="refresh"' in page.read_text()
            assert "still running" in page.read_text()
            assert sweep.wait(200) == 0
            assert watch.wait(100) == 0
    assert '<meta http-equiv="refresh"' not in page.read_text()
    assert "still running" not in page.read_text()


def test_table_1_is_the_mean_of_the_runs(folder: Path) -> None:
    table = pd.read_csv(folder / "results" / STUDY / "report" / "table_1.csv")
    assert list(table["column"]) == ["AE", "GFE", "mixed"]
    assert table["paper"].isna().all()  # of MNIST, which this is not
    for column, arm, metric in (("AE", "ae", TEST_LOSS), ("mixed", "ae", MIXED_TEST_LOSS)):
        runs = [run for run in children(folder, STUDY) if run.data.tags[names.ARM] == arm]
        second = [run for run in runs if run.data.tags[names.STAGE] == "1"]
        values = [value for run in second for step, value, _ in history(folder, run, metric) if step == 480]
        assert len(values) == 3
        row = table[table["column"] == column].iloc[0]
        assert row["ours"] == pytest.approx(math.fsum(values) / 3)
        assert row["±"] == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(values))


def test_the_verdict_is_that_of_the_sweep(folder: Path) -> None:
    again = gfe_study(folder, "sweep", f"{STUDY}.yaml", "--json")
    told = json.loads(again.stdout)["verdict"]["rows"]
    table = pd.read_csv(folder / "results" / STUDY / "report" / "verdict.csv")
    assert list(table["verdict"]) == [row["text"] for row in told]
    assert list(table["mean"]) == pytest.approx([row["value"]["mean"] for row in told])
    assert table["difference"].iloc[1] == pytest.approx(told[1]["paired"]["difference"])


def test_the_report_is_kept_in_the_store(folder: Path) -> None:
    store = Store(f"sqlite:///{folder / 'mlflow.db'}")
    parent = store.parent(STUDY)
    assert parent is not None
    kept = store.artifact(parent.run_id, f"report/{PAGE_FILE}")
    assert kept is not None
    assert kept.read_bytes() == (folder / "results" / STUDY / "report" / PAGE_FILE).read_bytes()


@pytest.mark.slow
def test_a_moved_store_gives_the_same_report(folder: Path, copied: tuple[Path, Store]) -> None:
    elsewhere, store = copied
    files = write_report(store, STUDY, elsewhere / "report")
    before = folder / "results" / STUDY / "report"
    assert {file.name for file in files} == {file.name for file in before.iterdir()}
    for file in files:
        assert file.read_bytes() == (before / file.name).read_bytes(), file.name


def test_bad_runs_are_named_and_the_rest_reported(copied: tuple[Path, Store]) -> None:
    elsewhere, store = copied
    client = MlflowClient(tracking_uri=store.uri)
    experiment = client.get_experiment_by_name(STUDY)
    assert experiment is not None
    model = next(run for run in client.search_runs([experiment.experiment_id]) if run.data.tags.get(names.STAGE) == "0")
    tags = {key: value for key, value in model.data.tags.items() if not key.startswith("mlflow.")}

    def made(name: str, status: str, **changes: str) -> str:
        run = client.create_run(experiment.experiment_id, tags={**tags, **changes, "mlflow.runName": name})
        client.set_terminated(run.info.run_id, status)
        return str(run.info.run_id)

    made("crashed run", "FAILED", fingerprint="1" * 16, number="7", failure="RuntimeError: out of luck")
    made("empty run", "FINISHED", fingerprint="2" * 16, number="8")
    nan = made("odd run", "FINISHED", fingerprint="3" * 16, number="9")
    now = int(time.time() * 1000)
    for step, value in ((120, 0.5), (480, math.nan)):
        client.log_metric(nan, VAL_LOSS, value, timestamp=now, step=step)
        client.log_metric(nan, IMAGES_SEEN, step, timestamp=now, step=step)
    twin = made("twin run", "FINISHED")
    client.log_metric(twin, VAL_LOSS, 0.0001, timestamp=now, step=120)
    stranger = client.create_run(experiment.experiment_id, tags={"mlflow.runName": "stranger"})
    client.set_terminated(stranger.info.run_id, "FINISHED")

    page = next(iter(write_report(store, STUDY, elsewhere / "report"))).read_text()
    cautions = page[page.index("Read with care") : page.index("data:image/")]
    assert "crashed run" in cautions
    assert "out of luck" in cautions
    for name, told in {
        "empty run": "no metric",
        "odd run": "NaN",
        "twin run": "second run",
        "stranger": "left out",
    }.items():
        (line,) = [line for line in re.findall("<li>(.*?)</li>", cautions) if name in line and told in line]
        assert line
    assert "0.0001" not in page[: page.index('id="trials"')]


def test_a_study_without_a_result_is_refused(copied: tuple[Path, Store]) -> None:
    elsewhere, store = copied
    client = MlflowClient(tracking_uri=store.uri)
    made = client.create_experiment("barren")
    run = client.create_run(made, tags={"mlflow.runName": "only run"})
    client.set_terminated(run.info.run_id, "FAILED")
    with pytest.raises(InputError, match="no trial with a result yet; only run"):
        write_report(store, "barren", elsewhere / "report")
    with pytest.raises(InputError, match=r"allowed: .*few"):
        write_report(store, "fewer", elsewhere / "report")


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_and_hold_no_outputs(folder: Path, notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = nbformat.read(notebook, as_version=4)
    code = [cell for cell in content.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    monkeypatch.setenv("GFE_STUDY", STUDY)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    NotebookClient(content, timeout=100, resources={"metadata": {"path": str(folder)}}).execute()
    shown = [output for cell in code for output in cell.outputs if output.output_type == "display_data"]
    assert sum("data:image/png" in output.data.get("text/html", "") for output in shown) >= 2


def test_evidence_reads_values_as_they_were_drawn(folder: Path) -> None:
    evidence = Evidence.load(Store(f"sqlite:///{folder / 'mlflow.db'}"), STUDY)
    first = evidence.trials[evidence.trials[names.STAGE] == 0]
    assert set(first["optim.batch_size"]) <= {8, 16}
    assert first["optim.lr"].between(3e-4, 3e-3).all()
    assert set(evidence.ranges["ae"]) == {"optim.lr", "optim.batch_size"}
    assert len(evidence.chosen) == 6
    assert set(evidence.chosen[names.STAGE]) == {1}
    assert len(evidence.configurations()) == 6
