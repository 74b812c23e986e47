"""Exhibits of entropy and novelty, of studies whose numbers are given."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from stores import point
from test_exhibits import evidence, run, shown

from gfe_study import names
from gfe_study.analysis.judge.evidence import Evidence
from gfe_study.analysis.report import paper
from gfe_study.analysis.report.exhibits import curves, entropy, novelty, pareto, verdict
from gfe_study.analysis.report.page import trials_table
from gfe_study.analysis.report.style import colour_of, styles
from gfe_study.analysis.store.tidy import REPEATED, RUN_ID, measured
from gfe_study.config import Study, space_files
from gfe_study.metrics import (
    ENCODE_SECONDS,
    FID,
    LATENT_ENTROPY,
    NORMAL_ENTROPY,
    NOVELTY_AUROC,
    RECONSTRUCTION_AUROC,
    TEST_ENTROPY_GAP,
    TRAIN_SECONDS,
    VAL_ENTROPY_GAP,
    VAL_LOSS,
    classifier_distance,
)
from gfe_study.tracking import views

COUNTS = (1000, 2000)
NORMAL = {"": 11.4, "_1000": 11.7, "_2000": 11.6}


def entropies(value: float) -> dict[str, float]:
    """The metrics of latents whose entropy is `value` less than the normal's."""
    of_latents = {LATENT_ENTROPY + suffix: normal - value for suffix, normal in NORMAL.items()}
    of_normal = {NORMAL_ENTROPY + suffix: normal for suffix, normal in NORMAL.items()}
    return {**of_latents, **of_normal, TEST_ENTROPY_GAP: value, VAL_ENTROPY_GAP: value}


def table_2(folder: Path, dataset: str = "mnist", latent_dim: int = 8, **params: Any) -> Evidence:
    distance = classifier_distance(dataset)
    floor = classifier_distance(dataset, "floor")
    deliveries = [
        run(
            arm,
            method,
            dataset,
            seed,
            [
                point(480, 0.2, **entropies(5.0)),
                point(960, loss, **entropies(gap + seed / 10), **{distance: 20.0 + seed, floor: 1.5}),
            ],
            params={"model.latent_dim": latent_dim, **params},
        )
        for arm, method, loss, gap in (
            ("plain", "ae", 0.09, 3.0),
            ("pulled", "gen", 0.108, 0.1),
            ("adversary", "aae", 0.12, 2.0),
        )
        for seed in range(3)
    ]
    declared = (
        "question: Which?\nseeds: 3\ncompare: {metric: test_entropy_gap}\nfixed: {eval: {measures: [entropy]}}\n"
        "scientific:\n  arms: {plain: {method: ae}, pulled: {method: gen}, adversary: {method: aae}}\n"
    )
    return evidence(folder, deliveries, declared)


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """AE, GEN and AAE, three seeds each, like the paper's."""
    return table_2(tmp_path_factory.mktemp("given"))


def test_arms_stand_beside_the_paper_by_method(of: Evidence) -> None:
    """Each has the row of its method in the paper's table, whatever the arm is called."""
    exhibit = shown(entropy, of)["entropy"]
    assert exhibit.table is not None
    assert list(exhibit.table["arm"]) == ["adversary", "pulled", "samples of the normal", "plain"]
    table: Any = exhibit.table.set_index("arm")
    assert table.loc["pulled", "1,000 latents"] == pytest.approx(11.7 - 0.2)
    assert table.loc["pulled", "± (1,000)"] == pytest.approx(0.1)
    assert table.loc["pulled", "seeds"] == "3"
    assert [table.loc["pulled", f"paper ({count:,})"] for count in COUNTS] == [11.681, 11.622]
    assert table.loc["adversary", "paper (2,000)"] == 8.408
    assert table.loc["samples of the normal", ["2,000 latents", "paper (2,000)"]].tolist() == [11.6, 11.621]
    assert math.isnan(table.loc["plain", "paper (1,000)"])
    assert "all latents" not in table
    assert exhibit.title.startswith("Table 2 of the GEN paper")
    assert "11.35 in 8 dimensions" in exhibit.caption
    assert "Not shown" not in exhibit.caption


@pytest.mark.parametrize("other", [{"dataset": "digits"}, {"latent_dim": 10}, {"data.held_out": 3}], ids=str)
def test_the_paper_stands_beside_nothing_else(tmp_path: Path, other: dict[str, Any]) -> None:
    exhibit = shown(entropy, table_2(tmp_path, **other))["entropy"]
    assert exhibit.table is not None
    assert not [column for column in exhibit.table if "paper" in str(column)]
    assert not {str(value) for row in paper.GEN_TABLE_2.values() for value in row.values()} & {*exhibit.caption.split()}
    assert "Table 2" not in exhibit.title + exhibit.caption


def test_loss_and_distance_have_a_reference(of: Evidence) -> None:
    """The loss of the autoencoder, and the Fréchet distance of real images."""
    table = shown(entropy, of)["generation"].table
    assert table is not None
    row = table.set_index("arm").loc["pulled"]
    assert row["test loss"] == pytest.approx(0.118)  # test is val + 0.01
    assert row["× plain"] == pytest.approx(0.118 / 0.1)
    assert (row["Fréchet distance"], row["± (distance)"], row["its floor"]) == (21, 1, 1.5)
    assert row["entropy gap"] == pytest.approx(0.2)
    assert not {"FID", "of reconstructions"} & {*table}


def test_entropy_over_images_shows_the_normal(of: Evidence) -> None:
    figure = shown(entropy, of)["entropy_over_images"].figure
    assert figure is not None
    lines = {str(line.get_label()): np.asarray(line.get_ydata()) for line in figure.axes[0].lines}
    assert lines["samples of the normal (11.40)"] == pytest.approx([11.4, 11.4])
    assert lines["pulled (n = 3)"] == pytest.approx([6.4, 11.4 - 0.2])


def test_few_test_images_give_the_entropy_of_all(tmp_path: Path) -> None:
    all_of_them = {LATENT_ENTROPY: 9.0, NORMAL_ENTROPY: 9.5, TEST_ENTROPY_GAP: 0.5}
    of = evidence(tmp_path, [run("a", "gen", "digits", seed, [point(480, **all_of_them)]) for seed in range(2)])
    table = shown(entropy, of)["entropy"].table
    assert table is not None
    assert table.to_dict("list") == {
        "arm": ["a", "samples of the normal"],
        "seeds": ["2", ""],
        "all latents": [9.0, 9.5],
        "± (all)": [0.0, pytest.approx(math.nan, nan_ok=True)],
    }


def test_collapsed_latents_have_no_entropy(tmp_path: Path) -> None:
    """Not even the one from before they collapsed."""
    alive = [point(480, 0.2, **entropies(1.0)), point(960, 0.2, **entropies(0.5))]
    collapsed = [point(480, 0.2, **entropies(0.0)), point(960, 0.2)]
    deliveries = [
        run(arm, arm, "mnist", seed, collapsed if (arm, seed) == ("gen", 1) else alive)
        for arm in ("ae", "gen")
        for seed in range(3)
    ]
    declared = "question: Which?\nscientific:\n  arms: {ae: {method: ae}, gen: {method: gen}}\nseeds: 3\n"
    declared += "compare: {metric: test_entropy_gap}\nfixed: {eval: {measures: [entropy]}}\n"
    of = evidence(tmp_path, deliveries, declared)
    exhibit = shown(entropy, of)["entropy"]
    assert exhibit.table is not None
    assert exhibit.table.set_index("arm").loc["gen", "seeds"] == "2"
    assert "1 of 3 of gen" in exhibit.caption
    assert of.verdict is not None
    assert [len(row.seeds) for row in of.verdict.rows] == [3, 2]
    assert any("report no test_entropy_gap" in text for text in of.verdict.warnings)


def test_a_verdict_by_entropy_speaks_of_no_loss(of: Evidence) -> None:
    exhibits = {**shown(verdict, of), **shown(curves, of)}
    assert set(exhibits) == {
        "verdict",
        "differences",
        *(f"test_entropy_gap_over_{axis}" for axis in ("images", "seconds", "evaluations")),
    }
    for exhibit in exhibits.values():
        told = exhibit.title + exhibit.caption
        if exhibit.figure is not None:
            told += "".join(axes.get_xlabel() + axes.get_ylabel() for axes in exhibit.figure.axes)
        assert "nats per pixel" not in told
        assert "loss" not in told.lower()
    assert "entropy gap of test images to the normal (nats)" in exhibits["verdict"].caption


def test_the_views_in_mlflow_show_the_entropy(of: Evidence) -> None:
    study = of.study
    assert study is not None
    told = views.description(study, "given", "7")
    assert "ranked by `test_entropy_gap`" in told
    assert "`test_entropy_gap`: `normal_entropy` − `latent_entropy`. It is 0 if" in told
    assert "(nats, lower is better)" in told
    for _, state in views.views(study).values():
        sections = {chart["metricKey"]: chart["metricSectionId"] for chart in state["compareRunCharts"]}
        assert "nats per pixel" not in sections[TEST_ENTROPY_GAP]
        assert f"metrics.`{TEST_ENTROPY_GAP}`" in state["selectedColumns"]
    front = Study.build({**FRONT}, "front.yaml")
    for _, state in views.views(front).values():
        assert f"metrics.`{VAL_ENTROPY_GAP}`" in state["selectedColumns"]


FRONT: dict[str, Any] = {
    "question": "Which?",
    "fixed": {"method": "gen", "preset": "gen", "eval": {"measures": ["entropy"]}},
    "nuisance": {"method.weight": {"loguniform": [1e-3, 1e-1]}},
    "trials": 4,
    "metric": {"name": "val_loss", "against": "val_entropy_gap"},
}
DECLARED_FRONT = (
    "question: Which?\nfixed: {preset: gen, eval: {measures: [entropy]}}\n"
    "nuisance: {method.weight: {loguniform: [1.0e-3, 1.0e-1]}}\ntrials: 4\n"
    "metric: {name: val_loss, against: val_entropy_gap}\n"
)


def test_the_front_is_of_what_was_searched_for(tmp_path: Path) -> None:
    """Here of loss and entropy, and not of seconds."""
    gaps = [(0.3, 0.1), (0.2, 1.0), (0.25, 1.5), (0.1, None)]
    deliveries = [
        run(
            "",
            "gen",
            "digits",
            0,
            [point(480, loss, **(entropies(gap) if gap is not None else {}))],
            number=number,
            fingerprint=number,
            params={"method.weight": 0.01 * (number + 1)},
        )
        for number, (loss, gap) in enumerate(gaps)
    ]
    exhibit = shown(pareto, evidence(tmp_path, deliveries, DECLARED_FRONT))["pareto"]
    assert exhibit.title == "Loss against the entropy gap of validation images to the normal"
    assert "2 of 3 are on the front" in exhibit.caption
    assert "Not shown: 1 whose latents have collapsed" in exhibit.caption
    assert "econds" not in exhibit.caption
    assert exhibit.table is not None
    assert exhibit.table[[VAL_LOSS, VAL_ENTROPY_GAP]].to_numpy().tolist() == [[0.3, 0.1], [0.2, 1.0]]
    assert not {TRAIN_SECONDS, ENCODE_SECONDS} & {*exhibit.table}
    figure = exhibit.figure
    assert figure is not None
    assert figure.axes[0].get_xlabel() == "entropy gap of validation images to the normal (nats)"


def test_a_front_without_entropies_is_not_drawn(tmp_path: Path) -> None:
    deliveries = [
        run("", "gen", "digits", 0, [point(480, loss)], number=number, fingerprint=number)
        for number, loss in enumerate((0.3, 0.2))
    ]
    assert not shown(pareto, evidence(tmp_path, deliveries, DECLARED_FRONT))


def held_out(folder: Path, areas: dict[tuple[str, int], tuple[float, float]]) -> Evidence:
    deliveries = [
        run(
            f"held_out={digit}, {method}",
            method,
            "digits",
            seed,
            [
                point(480, **{NOVELTY_AUROC: 0.5, RECONSTRUCTION_AUROC: 0.5}),
                point(960, **{NOVELTY_AUROC: novel + seed / 100, RECONSTRUCTION_AUROC: error + seed / 100}),
            ],
            params={"data.held_out": digit},
        )
        for (method, digit), (novel, error) in areas.items()
        for seed in range(2)
    ]
    return evidence(folder, deliveries, space_files()["novelty"].read_text().replace("seeds: 1", "seeds: 2"))


def test_novelty_stands_beside_reconstruction(tmp_path: Path) -> None:
    areas = {("ae", 0): (0.8, 0.7), ("ae", 1): (0.6, 0.9), ("gen", 0): (0.9, 0.7), ("gen", 1): (0.95, 0.9)}
    exhibit = shown(novelty, held_out(tmp_path, areas))["novelty"]
    assert exhibit.table is not None
    table: Any = exhibit.table.set_index("class")
    assert list(table.index) == ["0", "1", "mean"]
    assert table.loc["0"].tolist() == pytest.approx([0.805, 0.705, 0.1, 0.905, 0.705, 0.2])
    assert table.loc["mean", "gen: novelty"] == pytest.approx(0.93)
    assert table.loc["mean", "ae: difference"] == pytest.approx(-0.1)
    assert "ae: novelty 0.705, reconstruction 0.805 (-0.100), novelty higher in 1 of 2 classes." in exhibit.caption
    assert "gen: novelty 0.930, reconstruction 0.805 (+0.125), novelty higher in 2 of 2 classes." in exhibit.caption
    assert "2 seeds" in exhibit.caption
    figure = exhibit.figure
    assert figure is not None
    drawn = {str(line.get_label()): np.asarray(line.get_ydata()) for line in figure.axes[0].lines}
    assert drawn["gen, novelty"] == pytest.approx([0.905, 0.955])


def test_a_difference_that_is_rounding_is_none(tmp_path: Path) -> None:
    exhibit = shown(novelty, held_out(tmp_path, {("ae", 0): (0.1 + 0.2, 0.3), ("ae", 1): (0.6, 0.5)}))["novelty"]
    assert "novelty higher in 1 of 2 classes." in exhibit.caption


def test_novelty_is_shown_only_where_measured(of: Evidence, tmp_path: Path) -> None:
    assert not shown(novelty, of)
    unmeasured = [run("a", "ae", "digits", 0, [point(480)], params={"data.held_out": 1})]
    assert not shown(novelty, evidence(tmp_path, unmeasured))


def test_without_measures_there_are_no_exhibits(tmp_path: Path) -> None:
    of = evidence(tmp_path, [run("a", "ae", "mnist", 0, [point(480)])])
    assert not {**shown(entropy, of), **shown(novelty, of)}
    assert not measured(of.points)
    assert not {*trials_table(of)} & {LATENT_ENTROPY, FID, NOVELTY_AUROC}


def test_measures_stand_in_the_table_of_trials(of: Evidence) -> None:
    """They are told from other metrics; what they are compared with is not in the table."""
    columns = [
        VAL_LOSS,
        "test_rmse",
        "my_metric",
        "fd_digits_classifier_floor",
        FID,
        "latent_entropy_50",
        LATENT_ENTROPY,
    ]
    own = measured(pd.DataFrame(columns=[RUN_ID, names.FINGERPRINT, REPEATED, *columns]))
    assert own == ["test_rmse", LATENT_ENTROPY, "latent_entropy_50", "fd_digits_classifier_floor", FID, "my_metric"]
    table = trials_table(of)
    assert {LATENT_ENTROPY, TEST_ENTROPY_GAP, "fd_mnist_classifier"} <= {*table}
    assert not {"fd_mnist_classifier_floor", NORMAL_ENTROPY} & {*table}
    assert of.chosen_ends.groupby(RUN_ID).size().eq(1).all()


def test_methods_of_one_colour_are_told_apart() -> None:
    """One of them gets another colour, but only where both are shown."""
    trials = pd.DataFrame({names.ARM: ["one", "two"], names.METHOD: ["gfe_gen", "gfe"], "params.solver.name": "amd"})
    assert colour_of("method", "gfe_gen") == colour_of("solver", "amd")
    look = styles(trials, ["one", "two"])
    assert look["one"].colour != look["two"].colour
    alone = styles(trials.assign(**{"params.solver.name": "lbfgs"}), ["one", "two"])
    assert alone["one"].colour == colour_of("method", "gfe_gen")
    assert alone["two"].colour == colour_of("solver", "lbfgs")
