"""The public API: what `gfe_study` itself offers."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import IPython.display
import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from stores import fresh
from test_one_route import ARMS, BASE, at_once

import gfe_study
from gfe_study import InputError, Study, Trial, results, run, train
from gfe_study.analysis.judge.verdict import WIDTH
from gfe_study.data.split import Splits
from gfe_study.layout import NotebookLine, drawn_bar
from gfe_study.metrics import DIVERGED, IMAGES_SEEN, NFE_BACKWARD, NFE_FORWARD, TEST_LOSS, TRAIN_SECONDS, VAL_LOSS
from gfe_study.study.artifacts import write_best
from gfe_study.study.engine import Snapshot
from gfe_study.study.sweep import Outcome, run_sweep
from gfe_study.study.trial_run import TrialRun
from gfe_study.tracking.uri import URI_VARIABLE
from gfe_study.training import evaluate
from gfe_study.training import train as steps_of
from gfe_study.view.blocks import print_blocks
from gfe_study.view.console import closing
from gfe_study.view.observers import study_observer
from gfe_study.view.progress import bar

COMPARED = {**BASE, "scientific": {"arms": dict(list(ARMS.items())[:2])}}
TINY = {
    "preset": "paper",
    "solver": {"name": "amd", "max_nfe": 5, "s_max": 100},
    "model": {"latent_dim": 4, "hidden": [24]},
    "eval": {"schedule": [32, 64], "val_images": 20, "test_images": 15},
    "optim": {"lr": 3e-3},
    "budget": {"images": 128},
}


def made_up(run: TrialRun) -> tuple[list[dict[str, float]], str | None]:
    """The points of a trial that ends well."""
    luck = random.Random(run.job.fingerprint)
    costs = {TRAIN_SECONDS: 1.0, NFE_FORWARD: 4.0, NFE_BACKWARD: 0.0, DIVERGED: 0.0}
    losses = [{VAL_LOSS: luck.random(), TEST_LOSS: luck.random()} for _ in range(2)]
    return [{IMAGES_SEEN: at, **costs, **loss} for at, loss in zip((32.0, 64.0), losses, strict=True)], None


@pytest.fixture
def without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trials end at once with made-up numbers, in a store of their own; the folder of results."""
    monkeypatch.setenv(URI_VARIABLE, fresh(tmp_path / "store.db"))
    monkeypatch.setattr("gfe_study.study.sweep.ray_backend", at_once)
    monkeypatch.setattr("test_one_route.made_up", made_up)
    return tmp_path / "results"


def test_importing_the_package_is_fast() -> None:
    code = "import sys, gfe_study; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "gfe_study" in loaded
    assert not {"torch", "pandas", "numpy", "pydantic", "ray", "mlflow", "yaml"} & {*loaded}


def test_public_names_exist_and_are_not_hidden() -> None:
    """No module or folder of the package has the name of one."""
    package = Path(gfe_study.__file__).parent
    for name in gfe_study.__all__:
        assert getattr(gfe_study, name)
        assert not (package / f"{name}.py").exists()
        assert not (package / name).exists()
    assert {*gfe_study.__all__} <= {*dir(gfe_study)}
    with pytest.raises(AttributeError, match="has no attribute 'sweeps'"):
        gfe_study.sweeps  # noqa: B018


def test_a_study_is_found_by_name_or_path() -> None:
    assert Study.load("amd").question == Study.load(Path(Study.load("amd").source)).question
    with pytest.raises(InputError, match="unknown space 'adm'; did you mean 'amd'"):
        Study.load("adm")


def test_results_are_those_of_the_terminal(without_ray: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Outcome] = []

    def kept_sweep(*given: Any) -> Outcome:
        kept.append(run_sweep(*given))
        return kept[-1]

    monkeypatch.setattr("gfe_study.api.run_sweep", kept_sweep)
    result = run(Study.build(COMPARED, "mine.yaml"), without_ray)
    assert len(result.trials) == 6
    assert set(result.trials["arm"]) == {"slow", "fast"}
    assert set(result.curves[IMAGES_SEEN]) == {32, 64}
    assert {"arm", "seed", "number", "fingerprint", VAL_LOSS} <= {*result.curves}
    assert len(result.curves) == 12
    terminal = Console(file=io.StringIO(), width=WIDTH)
    print_blocks(terminal, closing(kept[0], "mine", str(without_ray)))
    printed = str(result.verdict)
    assert printed.startswith("Verdict: test_loss (nats per pixel, lower is better); differences")
    assert terminal.file.getvalue().startswith(f"{printed}\n")  # type: ignore[attr-defined]
    assert result.best.metrics[VAL_LOSS] == result.trials["value"].min()
    assert result.best.trial.seed == result.best.seed
    assert "6 finished" in repr(result)
    again = results("mine", without_ray)
    assert str(again.verdict) == str(result.verdict)
    assert results(Study.build(COMPARED, "some/mine.yaml"), without_ray).trials.equals(result.trials)
    for page in (result._repr_html_(), result.verdict._repr_html_()):  # type: ignore[union-attr]
        assert "<table><caption>Verdict: test_loss" in page
        assert "slow" in page
    assert "<b>Which is better?</b>" in result._repr_html_()


def test_a_search_says_its_best(without_ray: Path) -> None:
    declared = {**BASE, "nuisance": {"solver.beta": {"uniform": [0.3, 0.9]}}, "trials": 2, "sampler": "random"}
    result = run(Study.build(declared, "mine.yaml"), without_ray, label="another")
    assert result.verdict is None
    assert result.label == "another"
    best = result.best
    assert set(best.params) == {"solver.beta"}
    assert best.trial.dump()["solver"]["beta"] == best.params["solver.beta"]
    assert (
        f"Best val_loss {best.metrics[VAL_LOSS]:.4f}: solver.beta={best.params['solver.beta']}" in result._repr_html_()
    )


def test_labels_that_are_no_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="label: given 'a/b'; allowed: a name"):
        run(Study.build(COMPARED, "mine.yaml"), tmp_path, label="a/b")


def test_results_of_an_unknown_study(without_ray: Path) -> None:
    with pytest.raises(InputError, match=rf"unknown study 'mine' in {without_ray}; it holds no study yet"):
        results("mine", without_ray)
    run(Study.build(COMPARED, "mine.yaml"), without_ray)
    with pytest.raises(InputError, match=r"unknown study 'yours' in .*; available: mine"):
        results("yours", without_ray)


def test_failures_are_told_with_their_reasons(without_ray: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_one_route.made_up", lambda _: ([], "MemoryError: no more"))
    result = run(Study.build(COMPARED, "mine.yaml"), without_ray)
    assert set(result.failures) == set(result.trials["fingerprint"])
    assert set(result.failures.values()) == {"MemoryError: no more"}
    assert list(result.curves) == ["fingerprint", "arm", "stage", "number", "seed"]
    assert "6 failed" in repr(result)
    with pytest.raises(InputError, match="'mine': no trial has finished"):
        _ = result.best


def test_the_best_decoder_encodes_and_decodes(without_ray: Path, digits: Splits) -> None:
    result = run(Study.build(COMPARED, "mine.yaml"), without_ray)
    best = result.best
    with pytest.raises(InputError, match=r"best.pt: no such file"):
        best.decoder()
    *_, step = steps_of(best.trial, digits)
    folder = without_ray / "mine" / "trials" / best.fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    write_best(folder, step.state, digits)
    decoder = best.decoder()
    assert decoder.trial == best.trial
    images = digits.test.batch(slice(300)).value_BD  # more than one batch
    latents = decoder.encode(images)
    assert latents.shape == (300, 2)
    learner = step.state.learner
    expected = evaluate(learner, digits.test, 300, torch.device("cpu"))
    assert torch.allclose(latents, expected.latent_NL)
    assert torch.allclose(decoder.decode(latents), learner.decode(latents).reshape(300, 8, 8))
    assert torch.equal(decoder(latents.numpy()), decoder.decode(latents))
    assert not decoder.training
    assert sum(weights.numel() for weights in decoder.parameters()) > 0


def test_a_decoder_takes_samples_in_every_form(digits: Splits) -> None:
    decoder = train(Trial.build(TINY)).decoder
    flat = digits.test.batch(slice(6)).value_BD
    expected = decoder.encode(flat)
    stored = digits.test.values_ND[:6]
    for form in (flat.numpy(), flat.double(), stored, stored.reshape(6, 8, 8), flat.reshape(6, 8, 8).tolist()):
        assert torch.allclose(decoder.encode(form), expected, atol=1e-6)
    with pytest.raises(InputError, match=r"samples: given shape \(6, 63\); allowed: \(N, 8, 8\) or \(N, 64\)"):
        decoder.encode(flat[:, :63])
    assert torch.allclose(decoder.encode(stored.astype(np.int64)), expected, atol=1e-6)
    with pytest.raises(InputError, match="samples: given <U1; allowed: numbers"):
        decoder.encode(np.full((6, 64), "a"))
    with pytest.raises(InputError, match=r"samples: given values from 1\.5 to 1\.5; allowed: "):
        decoder.encode(1.5 * np.ones((2, 64)))


def test_a_missing_value_has_no_influence() -> None:
    decoder = train(Trial.build(TINY)).decoder
    images = np.random.default_rng(0).uniform(size=(3, 8, 8))
    gone = images.copy()
    gone[:, 2:4] = np.nan
    found = decoder.encode(gone)
    assert bool(found.isfinite().all())
    assert not torch.allclose(found, decoder.encode(images))


def test_one_trial_trains_in_this_process(digits: Splits) -> None:
    trial = Trial.build(TINY)
    trained = train(trial)
    assert list(trained.points[IMAGES_SEEN]) == [32, 64, 128]
    assert trained.trial == trial
    *_, step = steps_of(trial, digits)
    own = {name: value for name, value in step.state.points[-1].items() if "seconds" not in name}
    assert trained.points.iloc[-1][list(own)].to_dict() == own
    assert isinstance(trained.points, pd.DataFrame)


def test_the_decoder_is_that_of_the_lowest_loss(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training that gets worse at its end keeps the decoder from before."""
    trial = Trial.build({**TINY, "optim": {"lr": 3e-3}})

    def spoilt(*given: Any, **options: Any) -> Any:
        for step in steps_of(*given, **options):
            if step.metrics is not None and step.images_seen == 128:
                with torch.no_grad():
                    for weights in step.state.learner.networks.parameters():
                        weights.mul_(100.0)
                step.metrics[VAL_LOSS] = 99.0
            yield step

    monkeypatch.setattr("gfe_study.api._training.train", spoilt)
    trained = train(trial)
    at_64 = float(trained.points[VAL_LOSS][1])
    found = evaluate(trained.decoder._learner, digits.val, trial.eval.val_images, torch.device("cpu"))
    assert found.loss == pytest.approx(at_64, rel=1e-5)


def test_a_trial_diverging_at_once_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverged(*given: Any, **options: Any) -> Any:
        for step in steps_of(*given, **options):
            yield step._replace(metrics={IMAGES_SEEN: 1.0, DIVERGED: 1.0, VAL_LOSS: 0.1} if step.metrics else None)

    monkeypatch.setattr("gfe_study.api._training.train", diverged)
    with pytest.raises(InputError, match="diverged before its first evaluation"):
        train(Trial.build(TINY))


def test_progress_is_off_where_nobody_watches(without_ray: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(Study.build(COMPARED, "mine.yaml"), without_ray)
    train(Trial.build(TINY))
    assert capsys.readouterr() == ("", "")
    with study_observer(None) as observer:
        observer.problem("a disk is full")
    assert capsys.readouterr().err == "warning: a disk is full\n"


def test_progress_is_shown_where_it_is_wanted(without_ray: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(Study.build(COMPARED, "mine.yaml"), without_ray, progress=True)
    told = capsys.readouterr().err
    assert "Which is better?" in told
    assert "6/6 done" in told


class Cell:
    """What a notebook cell shows; the newest last."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def display(self, content: Any, **_: Any) -> Cell:
        self.shown.append(content.data)
        return self

    def update(self, content: Any) -> None:
        self.shown[-1] = content.data


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Cell:
    cell = Cell()
    monkeypatch.setattr(IPython.display, "display", cell.display)
    shown = Console(file=io.StringIO(), force_jupyter=True)
    monkeypatch.setattr("gfe_study.view.observers.console", lambda: shown)
    monkeypatch.setattr("gfe_study.view.progress.console", lambda: shown)
    return cell


def test_a_notebook_shows_one_line_that_changes(notebook: Cell) -> None:
    line = NotebookLine()
    line.show("one")
    line.show("<two>")
    assert notebook.shown == ["<pre>&lt;two&gt;</pre>"]
    with bar(128, "images", None) as advance:
        advance(32)
        advance(128)
    assert notebook.shown[-1] == f"<pre>{'━' * 12} 128/128 images</pre>"
    assert len(notebook.shown) == 2


def test_a_notebook_study_has_one_progress_line(notebook: Cell) -> None:
    with study_observer(None) as observer:
        for finished in (1, 2):
            observer.progress(Snapshot(finished=finished, running=1, failed=0, total=4, best=0.5, elapsed_seconds=1.0,
                                       remaining_seconds=2.0))  # fmt: skip
    assert len(notebook.shown) == 1
    assert "2/4 done" in notebook.shown[0]


def test_a_bar_is_as_full_as_the_count() -> None:
    assert [drawn_bar(count, 4) for count in (0, 1, 4, 9)] == ["╌" * 12, "━━━" + "╌" * 9, "━" * 12, "━" * 12]
