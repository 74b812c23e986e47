"""The registry of metrics, and everything that follows from it, for metrics that are better when higher too."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import pytest
from stores import point, without_library
from test_exhibits import evidence, run, shown
from test_plan import SHA, finish
from test_verdict import LEFT, RIGHT, curves, row

from gfe_study import metrics, names
from gfe_study.analysis.judge.evidence import Evidence
from gfe_study.analysis.judge.verdict import judge
from gfe_study.analysis.judge.verdict_table import verdict_table
from gfe_study.analysis.report.exhibits import MAKERS, data_efficiency, datasets, pareto, tuning, verdict
from gfe_study.analysis.report.exhibits import curves as curves_of
from gfe_study.analysis.report.exhibits.curves import _cut_worst
from gfe_study.analysis.report.page import trials_table, write_report
from gfe_study.analysis.stats.crossing import find_crossings
from gfe_study.config import InputError, Study
from gfe_study.measures.base import Measure
from gfe_study.metrics import (
    COMMON_TEST_LOSS,
    COMMON_VAL_LOSS,
    ENTROPY_GAP,
    FID,
    LATENT_ENTROPY,
    MIXED_TEST_LOSS,
    TEST_ENTROPY_GAP,
    TEST_LOSS,
    TRAIN_LOSS,
    UNIQUE_IMAGES,
    VAL_ENTROPY_GAP,
    VAL_LOSS,
    MetricInfo,
    Values,
    choices,
    classifier_distance,
    counterpart_on_test,
    info_of,
    is_known,
    label_of,
    mode_of,
    ordered,
    register,
    sign_of,
    text_of,
    unit_and_direction,
    unit_of,
    units_text,
)
from gfe_study.study.journal import Journal
from gfe_study.study.plan import Plan
from gfe_study.tracking import views
from gfe_study.view.console import best_table, front_table
from gfe_study.view.statements import front, ranked

METRES = Values("value", "m")
SEARCH: dict[str, Any] = {
    "question": "Which?",
    "fixed": {"solver": {"name": "amd"}},
    "nuisance": {"optim.lr": {"loguniform": [1e-4, 1e-2]}},
    "trials": 3,
    "sampler": "random",
    "scheduler": "none",
}
ARMS = "question: Which?\nseeds: 5\nscientific:\n  arms: {a: {method: ae}, b: {method: gfe}}\n"


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    known = dict(metrics._known)
    yield
    metrics._known.clear()
    metrics._known.update(known)


def test_what_a_study_may_use_is_declared_whole() -> None:
    assert choices("search") == [
        TRAIN_LOSS,
        VAL_LOSS,
        COMMON_VAL_LOSS,
        *(f"val_{quality}" for quality in ("rmse", "mae", "r2", "relative_l2")),
        *(f"val_withheld_{score}" for score in ("loss", "rmse", "mae")),
        VAL_ENTROPY_GAP,
    ]
    assert {f"test_{quality}" for quality in ("rmse", "mae", "r2", "relative_l2")} < {*choices("compare")}
    losses = {TEST_LOSS, VAL_LOSS, TRAIN_LOSS, MIXED_TEST_LOSS, COMMON_VAL_LOSS, COMMON_TEST_LOSS}
    assert {*losses, TEST_ENTROPY_GAP} < {*choices("compare")}
    assert not any("test" in name for name in (*choices("search"), *choices("against")))
    for use in ("search", "against", "compare"):
        for name in choices(use):
            assert info_of(name).better, name
            assert info_of(name).description, name


def test_metrics_have_counterparts_on_test_images() -> None:
    pairs = {
        TRAIN_LOSS: TEST_LOSS,
        VAL_LOSS: TEST_LOSS,
        TEST_LOSS: TEST_LOSS,
        COMMON_VAL_LOSS: COMMON_TEST_LOSS,
        COMMON_TEST_LOSS: COMMON_TEST_LOSS,
        MIXED_TEST_LOSS: MIXED_TEST_LOSS,
        "val_rmse": "test_rmse",
        "test_r2": "test_r2",
        "val_withheld_loss": "test_withheld_loss",
        ENTROPY_GAP: TEST_LOSS,
        "unheard_of": TEST_LOSS,
    }
    assert {name: counterpart_on_test(name) for name in pairs} == pairs


def test_only_r2_and_auroc_are_better_when_higher() -> None:
    usable = {name for use in ("search", "against", "compare") for name in choices(use)}
    higher = {name for name in usable if mode_of(name) == "max"}
    assert higher == {"val_r2", "test_r2", "novelty_auroc", "reconstruction_auroc"}
    assert (sign_of("test_r2"), sign_of("test_rmse"), sign_of("unheard_of")) == (-1, 1, 1)


def test_units_depend_on_the_data() -> None:
    assert unit_of(TEST_LOSS) == "nats per pixel"
    assert unit_of(TEST_LOSS, METRES) == "nats per value"
    assert (unit_of("test_rmse"), unit_of("test_rmse", METRES), unit_of("test_r2", METRES)) == ("", "m", "")
    assert label_of("val_mae", METRES) == "validation mean absolute error (m)"
    assert label_of("test_rmse") == "test root-mean-square error"
    assert label_of("train_seconds") == "training time (s)"
    assert label_of(UNIQUE_IMAGES) == "different training images"
    assert units_text([VAL_LOSS, TEST_LOSS, "test_rmse", "test_r2"], METRES) == (
        "losses in nats per value, test_rmse in m"
    )
    assert unit_and_direction(TEST_LOSS) == "nats per pixel, lower is better"
    assert unit_and_direction("test_r2", METRES) == "higher is better"
    assert unit_and_direction("unheard_of") == ""


def test_values_of_several_datasets() -> None:
    assert Values.shared([]) == Values("pixel", "")
    assert Values.shared([Values(), Values()]) == Values("pixel", "")
    assert Values.shared([METRES, METRES]) == METRES
    assert Values.shared([METRES, Values("value", "K")]) == Values("value", "")
    assert Values.shared([METRES, Values()]) == Values("value", "")


def test_members_of_a_family_are_known() -> None:
    distance = info_of(classifier_distance("fashion_mnist"))
    assert (distance.name, distance.better) == ("fd_fashion_mnist_classifier", "lower")
    assert "fashion_mnist classifier" in distance.label
    assert "reconstructions" in info_of(classifier_distance("mnist", "reconstruction")).label
    assert info_of(classifier_distance("mnist", "floor")).better is None
    assert info_of(f"{LATENT_ENTROPY}_1000").label == "entropy of the first 1000 latents"
    assert is_known(f"{LATENT_ENTROPY}_1000")
    assert not is_known(f"{LATENT_ENTROPY}_many")


def test_an_unknown_metric_has_only_its_name() -> None:
    info = info_of("my_own_metric")
    assert (info.label, info.unit, info.better, info.uses) == ("my own metric", "", None, ())
    assert not is_known("my_own_metric")
    assert text_of("my_own_metric", 0.123456) == "0.1235"


def test_metrics_are_ordered_as_in_the_reference() -> None:
    given = ["zeta", FID, f"{LATENT_ENTROPY}_10000", "alpha", f"{LATENT_ENTROPY}_2000", "test_r2", VAL_LOSS]
    assert ordered(given) == [
        VAL_LOSS,
        "test_r2",
        f"{LATENT_ENTROPY}_2000",
        f"{LATENT_ENTROPY}_10000",
        FID,
        "alpha",
        "zeta",
    ]


def test_numbers_are_written_as_their_metric_asks() -> None:
    assert text_of(TEST_LOSS, 0.12345) == "0.1235"
    assert text_of(TEST_LOSS, 0.00012, sign=True) == "+0.0001"
    assert text_of("test_rmse", 1234.567) == "1234.6"
    assert text_of("test_rmse", 0.00012345, sign=True) == "+0.00012345"


@pytest.mark.usefixtures("forgotten")
def test_a_name_has_one_declaration() -> None:
    own = MetricInfo("sharpness", "sharpness", "1/m", "higher", uses=("compare",))
    register(own, own)
    assert info_of("sharpness") is own
    with pytest.raises(ValueError, match="'sharpness' is declared twice"):
        register(MetricInfo("sharpness", "sharpness"))


@pytest.mark.usefixtures("forgotten")
def test_a_measure_brings_its_metrics() -> None:
    """Of another package: its metric can be compared by and is shown with its unit, without a change here."""
    declared = {**SEARCH, "compare": {"metric": "sharpness"}}
    with pytest.raises(
        InputError, match=r"mine.yaml: compare.metric: given 'sharpness'; .*allowed: common_test_loss, "
    ):
        Study.build(declared, "mine.yaml")

    class Sharpness(Measure):
        name: Literal["sharpness"] = "sharpness"
        metrics: ClassVar[tuple[MetricInfo, ...]] = (
            MetricInfo("sharpness", "mean sharpness", "1/{values}", "higher", uses=("compare",)),
        )

        def values(self, *_: Any) -> dict[str, float]:
            return {"sharpness": 1.0}

    study = Study.build(declared, "mine.yaml")
    assert study.compare.metric == "sharpness"
    assert label_of("sharpness") == "mean sharpness (1/pixel)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"metric": {"name": "test_rmse"}},
            r"metric.name: given 'test_rmse'; .*allowed: common_val_loss, train_loss, val_entropy_gap",
        ),
        ({"metric": {"against": "val_r2"}}, "metric.against: given 'val_r2'; allowed: encode_nfe, "),
        ({"compare": {"metric": "val_rmse"}}, "compare.metric: given 'val_rmse'; did you mean"),
        ({"metric": {"name": "val_r2", "mode": "min"}}, "metric.mode: given 'min'; allowed: 'max', because higher"),
        ({"metric": {"mode": "max"}}, "metric.mode: given 'max'; allowed: 'min', because lower val_loss is better"),
    ],
)
def test_a_metric_a_study_may_not_use_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^mine.yaml: {message}"):
        Study.build({**SEARCH, **changes}, "mine.yaml")


def test_the_direction_follows_from_the_metric() -> None:
    for name, mode, sign in (("val_r2", "max", -1), ("val_rmse", "min", 1), ("val_loss", "min", 1)):
        study = Study.build({**SEARCH, "metric": {"name": name}}, "mine.yaml")
        assert (study.metric.mode, study.metric.sign) == (mode, sign)
        again = Study.build(study.model_dump(mode="json"), "mine.yaml")
        assert again.metric == study.metric


def by_r2(**more: Any) -> Study:
    return Study.build({**SEARCH, "metric": {"name": "val_r2", **more}}, "mine.yaml")


def run_three(study: Study, journal: Journal, values: tuple[float, ...] = (0.2, 0.9, 0.5)) -> Plan:
    plan = Plan.make(study, SHA, journal)
    for number, value in enumerate(values):
        for job in plan.add(number, {"optim.lr": 10.0 ** -(number + 2)}):
            more = {"val_r2": value, "test_r2": value - 0.1, TEST_LOSS: 0.3, "train_seconds": 1.0 + value}
            finish(journal, job, 1.0 + value, diverged=math.isnan(value), **more)
    return plan


def test_a_search_ranks_higher_values_first(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        plan = run_three(by_r2(), journal, (0.2, math.nan, 0.9))
        best = plan.best()
        assert best is not None
        assert best[1] == 0.9
        assert [value for _, value in ranked(plan)] == [0.9, 0.2, -math.inf]
        assert [each.number for each in plan.ranked(0, "")] == [2, 0, 1]
        table = best_table(plan)
        assert [column.header for column in table.columns][3:6] == ["val_r2", "test_r2", TEST_LOSS]
        assert table.title == "Best trials (losses in nats per pixel)"
        assert list(table.rows[0])[3:6] == ["0.9000", "0.8000", "0.3000"]


def test_a_front_is_of_high_values_and_low_costs(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        plan = run_three(by_r2(against="train_seconds"), journal)
        assert [(first, second) for _, first, second in front(plan)] == [(0.9, 1.9), (0.5, 1.5), (0.2, 1.2)]
        table = front_table(plan)
        assert table is not None
        assert list(table.rows[0])[2] == "0.9000"


@pytest.mark.usefixtures("forgotten")
def test_a_second_objective_may_be_maximised(tmp_path: Path) -> None:
    """Of two configurations with the same direction in both metrics, only the better one is on the front."""
    register(MetricInfo("spread", "spread", better="higher", uses=("against",)))
    with Journal.open(tmp_path) as journal:
        plan = Plan.make(by_r2(against="spread"), SHA, journal)
        for number, value in enumerate((0.2, 0.9, 0.5)):
            for job in plan.add(number, {"optim.lr": 10.0 ** -(number + 2)}):
                finish(journal, job, 1.0, val_r2=value, spread=value)
        assert [(first, second) for _, first, second in front(plan)] == [(0.9, 0.9)]
        assert plan.value("unknown", "spread") is None


def test_a_diverged_trial_is_bad_in_every_metric(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        plan = run_three(by_r2(), journal, (math.nan,))
        name = next(iter(plan.jobs))
        assert plan.value(name) == plan.value(name, "test_r2") == -math.inf
        assert plan.value(name, "test_rmse") == math.inf


def judged(left: list[float], right: list[float], **options: Any) -> Any:
    rows = [row(arm, seed, 0.1, val_r2=value, test_r2=value) for arm, own in (("a", left), ("b", right))
            for seed, value in enumerate(own)]  # fmt: skip
    frame = pd.DataFrame(rows)
    given = {"a": None, "b": "a"}
    return judge(frame, curves(rows), given, metric="test_r2", select="val_r2", mode="max", **options)


def test_higher_is_better_in_a_verdict() -> None:
    found = judged(RIGHT, LEFT)  # b is higher
    assert (found.better, found.rows[1].verdict, found.rows[1].text) == ("higher", "better", "better than a")
    assert judged(LEFT, RIGHT).rows[1].text == "worse than a"
    assert judged(LEFT, RIGHT, margin=0.05).rows[1].verdict == "equivalent"
    table = verdict_table(found)
    assert table.title.startswith("Verdict: test_r2 (higher is better); differences")
    assert found.as_dict()["better"] == "higher"


def test_lost_seeds_forbid_what_favours_the_arm() -> None:
    """Nothing but "better" can be said of an arm whose reference lost the larger share; nothing of the arm itself."""
    rows = [row("a", seed, 0.1, test_r2=value, val_r2=value) for seed, value in enumerate(LEFT)]
    rows += [row("b", seed, 0.1, test_r2=value + 0.3, val_r2=value) for seed, value in enumerate(LEFT)]

    def verdict_of(arm: str, reference: str) -> str | None:
        given = {reference: None, arm: reference}
        found = judge(pd.DataFrame(rows), curves(rows), given, metric="test_r2", select="val_r2", mode="max")
        return found.rows[1].verdict

    assert (verdict_of("b", "a"), verdict_of("a", "b")) == ("better", "worse")
    rows[0] |= {"diverged": True}  # of a
    assert (verdict_of("b", "a"), verdict_of("a", "b")) == ("better", "undecided")
    rows[5] |= {"diverged": True}  # of b as well: equal shares
    assert (verdict_of("b", "a"), verdict_of("a", "b")) == ("better", "worse")
    rows[0] |= {"diverged": False}
    assert (verdict_of("b", "a"), verdict_of("a", "b")) == ("undecided", "undecided")


def test_crossings_of_curves_name_the_better_arm() -> None:
    sizes, differences = np.array([10.0, 1000.0]), np.array([[-1.0, 1.0], [-1.1, 0.9]])
    lower = find_crossings("x", "y", "images", sizes, differences, 0.95)
    higher = find_crossings("x", "y", "images", sizes, differences, 0.95, "higher")
    assert (lower.ahead, higher.ahead) == (["x", "y"], ["y", "x"])
    assert "x is lower before, then y" in lower.text
    assert "y is higher before, then x" in higher.text
    always = find_crossings("x", "y", "images", sizes, -np.abs(differences), 0.95, "higher")
    assert "y is higher throughout" in always.text


def qualities(loss: float, r2: float, rmse: float) -> dict[str, float]:
    found = {f"{split}_{name}": value for split in ("val", "test") for name, value in (("r2", r2), ("rmse", rmse))}
    return {VAL_LOSS: loss, TEST_LOSS: loss, **found}


HEIGHTS = "fixed: {data: {name: arrays, path: heights.npy, unit: m}, likelihood: gaussian}\n"


def regression(folder: Path, declared: str | None, **tags: Any) -> Evidence:
    """Two arms of a study on data in metres, without an entropy floor; `b` is better in everything."""
    about = {names.VALUE_NOUN: "value", names.UNIT: "m", names.ENTROPY_FLOOR: "", **tags}
    deliveries = [
        run(
            arm,
            method,
            "heights",
            seed,
            [point(at, **qualities(loss - at / 1e4, r2 + at / 1e4, 2 - r2)) for at in (480, 960)],
            **about,
        )
        for arm, method, shift in (("a", "ae", 0.0), ("b", "gfe", 0.2))
        for seed in range(5)
        for loss, r2 in [(-1.0 - shift + seed / 100, 0.5 + shift + seed / 100 + (seed % 2) * shift / 20)]
    ]
    return evidence(folder, deliveries, declared)


def test_runs_tell_what_their_values_are_called(tmp_path: Path) -> None:
    """Where the declaration of the study is lost."""
    assert regression(tmp_path, None).values == METRES


def words(of: Evidence) -> Iterator[str]:
    """Every text of every exhibit."""
    for maker in MAKERS:
        for exhibit in maker(of):
            yield exhibit.title
            yield exhibit.caption
            for axes in exhibit.figure.axes if exhibit.figure is not None else ():
                yield from (axes.get_xlabel(), axes.get_ylabel(), *(text.get_text() for text in axes.texts))
                yield from axes.get_legend_handles_labels()[1]


@pytest.mark.parametrize("metric", ["test_r2", "test_rmse", TEST_LOSS])
def test_a_report_on_data_that_are_no_images(tmp_path: Path, metric: str) -> None:
    """No pixel and no floor anywhere; the metric with its unit; the better arm is called so."""
    of = regression(tmp_path, f"{HEIGHTS}{ARMS}compare: {{metric: {metric}}}\n")
    assert of.values == METRES
    page = without_library(write_report(of.store, "given", tmp_path / "report")[0].read_text())
    told = " ".join([*words(of), re.sub(r"base64,[\w+/=]*", "", page.partition("<body>")[2])])
    assert "pixel" not in told.lower()
    assert "lowest possible" not in told
    assert "better than a" in told
    assert ("higher is better" in told) == (metric == "test_r2")
    assert of.label(metric) in told
    keys = {exhibit.key for maker in MAKERS for exhibit in maker(of)}
    assert "excess_over_floor" not in keys
    assert {"verdict", "differences"} < keys
    left = "better" if metric != "test_r2" else "worse"
    assert f"the arm's mean is lower, which is {left}" in shown(verdict, of)["differences"].caption


def test_the_floor_is_shown_where_there_is_one(tmp_path: Path) -> None:
    of = regression(tmp_path, ARMS, **{names.VALUE_NOUN: "pixel", names.UNIT: "", names.ENTROPY_FLOOR: "-1.5"})
    told = " ".join(words(of))
    assert "lowest possible loss -1.5000" in told
    assert "less the lowest that any decoder can reach (-1.5000 on heights)" in told


def test_trials_are_sorted_by_the_studys_metric(tmp_path: Path) -> None:
    declared = f"{ARMS}metric: {{name: val_r2}}\ncompare: {{metric: test_r2}}\n"
    of = regression(tmp_path, declared)
    table = trials_table(of)
    assert list(table["val_r2"]) == sorted(table["val_r2"], reverse=True)
    assert {"val_r2", "test_r2", "val_rmse", "test_rmse"} <= {*table}
    assert set(of.chosen[names.ARM]) == {"a", "b"}


def test_formats_of_a_verdict_are_the_metrics(tmp_path: Path) -> None:
    of = regression(tmp_path, f"{HEIGHTS}{ARMS}compare: {{metric: test_rmse}}\n")
    formats = shown(verdict, of)["verdict"].formats
    assert (formats["mean"], formats["diff. low"]) == (".5g", "+.5g")
    listing = verdict_table(of.verdict)  # type: ignore[arg-type]
    assert "test_rmse (m, lower is better)" in listing.title


def test_a_search_for_higher_values_in_a_report(tmp_path: Path) -> None:
    declared = (
        "question: Which?\nmetric: {name: val_r2}\nnuisance: {optim.lr: {loguniform: [1.e-4, 1.e-2]}}\ntrials: 4\n"
        "scheduler: none\n"
    )
    deliveries = [
        run(
            "",
            "gfe",
            "digits",
            0,
            [point(480, **qualities(0.5, r2, 1 - r2), train_seconds=10.0 * (place + 1))],
            params={"optim.lr": 10.0 ** -(2 + place / 2)},
            fingerprint=str(place),
            **{names.NUMBER: place},
        )
        for place, r2 in enumerate((0.1, 0.9, 0.5, 0.95))
    ]
    of = evidence(tmp_path, deliveries, declared)
    front_of = shown(pareto, of)["pareto"]
    assert front_of.title == "Validation coefficient of determination against time"
    assert front_of.table is not None
    assert list(front_of.table["val_r2"]) == [0.1, 0.9, 0.95]
    panels = shown(tuning, of)
    assert panels["slices"].title == "Validation coefficient of determination over each searched value"
    best = panels["expected_best"].data
    assert best is not None
    assert best["expected_best"].is_monotonic_increasing
    assert of.chosen["value"].tolist() == [0.95]


def test_datasets_rank_the_higher_mean_first(tmp_path: Path) -> None:
    sets = ["digits", "mnist", "fashion_mnist", "seg_mnist", "svhn", "celeba"]
    levels = "{" + ", ".join(f"method {place}: {{solver.beta: 0.{place + 1}}}" for place in range(4)) + "}"
    declared = (
        f"question: Which?\nfixed: {{solver: amd}}\ncompare: {{metric: test_r2}}\nscientific:\n"
        f"  factorial: {{beta: {{levels: {levels}}}, data.name: [{', '.join(sets)}]}}\n"
    )
    deliveries = [
        run(f"method {place}, {name}", "gfe", name, 0, [point(480, **qualities(0.5, 0.5 + place / 10, 0.1))])
        for name in sets
        for place in range(4)
    ]
    exhibit = shown(datasets, evidence(tmp_path, deliveries, declared))["datasets"]
    assert exhibit.figure is not None
    texts = {text.get_text().strip() for text in exhibit.figure.axes[0].texts}
    assert {"method 3 (1.00)", "method 0 (4.00)"} <= texts


def test_data_efficiency_of_higher_values(tmp_path: Path) -> None:
    sizes = [100, 1000]
    declared = (
        "question: Which?\nseeds: 3\ncompare: {metric: test_r2}\n"
        f"scientific:\n  factorial: {{method: [ae, gfe], data.train_images: {sizes}}}\n"
    )
    deliveries = [
        run(
            f"{arm}, train_images={size}",
            arm,
            "mnist",
            seed,
            [point(480, **qualities(0.5, r2 + seed / 1e3, 0.1))],
            params={"data.train_images": size},
        )
        for arm, ends in (("ae", (0.2, 0.9)), ("gfe", (0.5, 0.6)))
        for size, r2 in zip(sizes, ends, strict=True)
        for seed in range(3)
    ]
    exhibit = shown(data_efficiency, evidence(tmp_path, deliveries, declared))["data_efficiency"]
    assert "gfe is higher before, then ae" in exhibit.caption


def test_axes_keep_the_better_ends() -> None:
    from matplotlib.figure import Figure

    ends = np.append(np.linspace(0.5, 0.9, 99), -50.0)
    axes = Figure().add_subplot()
    axes.plot(ends)
    _cut_worst(axes, ends, "test_r2")
    assert axes.get_ylim()[0] > -5
    assert axes.get_ylim()[1] >= 0.9
    axes = Figure().add_subplot()
    axes.plot(-ends)
    _cut_worst(axes, -ends, TEST_LOSS)
    assert axes.get_ylim()[1] < 5
    assert axes.get_ylim()[0] <= -0.9


def test_a_view_in_mlflow_sorts_by_direction() -> None:
    arms = {"scientific": {"arms": {"a": {"method": "ae"}, "b": {"method": "gfe"}}}}
    study = Study.build(
        {"question": "Which?", **arms, "metric": {"name": "val_r2"}, "compare": {"metric": "test_r2"}}, "mine.yaml"
    )
    assert views.ranking(study) == ("test_r2", False)
    assert views.ranking(by_r2()) == ("val_r2", False)
    told = views.description(study, "mine", "7")
    assert "ranked by `test_r2`" in told
    assert "`test_r2`: Share of the variance" in told
    assert "Losses are nats per pixel, lower is better." in told
    _, state = views.views(study)[views.COMPARISON]
    titles = [section["name"] for section in state["compareRunSections"]]
    assert titles[:3] == [
        "Test coefficient of determination over images seen",
        "Validation coefficient of determination over images seen",
        "Loss over images seen, nats per pixel",
    ]
    drawn = {chart["metricKey"]: chart["scaleType"] for chart in state["compareRunCharts"] if "metricKey" in chart}
    assert (drawn["test_r2"], drawn["val_r2"]) == ("linear", "linear")
    assert drawn[VAL_LOSS] == "log"
    assert state["orderByAsc"] is False


def test_negative_losses_have_a_linear_axis() -> None:
    study = Study.build({**SEARCH, "fixed": {"likelihood": "gaussian"}}, "mine.yaml")
    _, state = views.views(study)[views.COMPARISON]
    drawn = {chart["metricKey"]: chart["scaleType"] for chart in state["compareRunCharts"] if "metricKey" in chart}
    assert drawn[VAL_LOSS] == "linear"


def test_curves_of_another_metric_have_its_name(tmp_path: Path) -> None:
    of = regression(tmp_path, f"{HEIGHTS}{ARMS}compare: {{metric: test_rmse}}\n")
    exhibits = shown(curves_of, of)
    assert set(exhibits) == {f"test_rmse_over_{axis}" for axis in ("images", "seconds", "evaluations")}
    figure = exhibits["test_rmse_over_images"].figure
    assert figure is not None
    assert figure.axes[0].get_ylabel() == "test root-mean-square error (m)"
