"""Exhibits of studies whose numbers are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from stores import DECLARED, fresh, opened, point, trial

from gfe_study import names
from gfe_study.analysis import paper
from gfe_study.analysis.embedding import label_accuracy
from gfe_study.analysis.evidence import Evidence
from gfe_study.analysis.exhibits import MAKERS, Exhibit, data_efficiency, datasets, table_1, table_2, verdict
from gfe_study.analysis.exhibits.base import seeds_text
from gfe_study.analysis.html import exhibit_html, formatted
from gfe_study.analysis.importance import FANOVA, FEWEST, PED_ANOVA, importances
from gfe_study.analysis.load import Store
from gfe_study.analysis.style import COLOURS, styles
from gfe_study.config import Range, space_files
from gfe_study.tracking import Delivery


def evidence(folder: Path, deliveries: list[Delivery], declared: str | None = None) -> Evidence:
    """Of a study as it is declared; or of one whose declaration is lost."""
    uri = fresh(folder / "store.db")
    opened(uri, "given", declared or DECLARED).bring_level(deliveries)
    store = Store(uri)
    if declared is not None:
        return Evidence.load(store, "given")
    return Evidence("given", store, None, "Which?", store.parent("given"), *store.frames("given"))


def run(arm: str, method: str, dataset: str, seed: int, points: list[dict[str, float]], **tags: Any) -> Delivery:
    params = {"eval.test_images": 1000, **tags.pop("params", {})}
    name = f"{arm}/{dataset}/{seed}/{params.get('data.train_images', '')}"
    about = {names.ARM: arm, names.METHOD: method, names.DATASET: dataset, names.SEED: seed, names.NUMBER: 0, **tags}
    return trial(name, points, group=f"{arm}{dataset}", params=params, **about)


def shown(maker: Any, of: Evidence) -> dict[str, Exhibit]:
    return {exhibit.key: exhibit for exhibit in maker(of)}


def test_table_1_has_our_numbers_the_papers_and_the_difference(tmp_path: Path) -> None:
    deliveries = [
        run(arm, method, "mnist", seed, [point(480, loss + seed / 1000, mixed_test_loss=0.4), point(960, loss - 0.01)])
        for arm, method, loss in (("ae", "ae", 0.3), ("gfe", "gfe", 0.2))
        for seed in range(3)
    ]
    table = shown(table_1, evidence(tmp_path, deliveries))["table_1"].table
    assert table is not None
    ours = table.set_index(["images seen", "column"])
    assert ours.loc[(480, "GFE"), "ours"] == pytest.approx(0.2 + 0.001 + 0.01)  # test is val + 0.01
    assert ours.loc[(480, "GFE"), "paper"] == 0.2098
    assert ours.loc[(480, "GFE"), "ours − paper"] == pytest.approx(0.211 - 0.2098)
    assert ours.loc[(480, "GFE"), "±"] == pytest.approx(4.302653 * 0.001 / np.sqrt(3), rel=1e-5)
    assert ours.loc[(960, "AE"), "paper"] == 0.2618
    assert ours.loc[(480, "mixed"), "paper"] == 0.2634
    assert set(ours["seeds"]) == {3}


def test_table_1_claims_nothing_of_another_dataset_or_a_part_of_the_images(tmp_path: Path) -> None:
    both = [("ae", "ae"), ("gfe", "gfe")]
    digits = evidence(tmp_path, [run(arm, method, "digits", 0, [point(480)]) for arm, method in both])
    exhibit = shown(table_1, digits)["table_1"]
    assert exhibit.table is not None
    assert exhibit.table["paper"].isna().all()
    assert "no interval: one seed" in exhibit.caption
    (tmp_path / "few").mkdir()
    few = [run(a, m, "mnist", 0, [point(480)], params={"data.train_images": 300}) for a, m in both]
    assert not shown(table_1, evidence(tmp_path / "few", few))


def test_table_2_goes_by_dataset(tmp_path: Path) -> None:
    losses = {"mnist": 0.08, "seg_mnist": 0.12, "fashion_mnist": 0.28}
    deliveries = [
        run(f"{method}, {dataset}", method, dataset, seed, [point(images, loss + 0.001 * seed)])
        for dataset, loss in losses.items()
        for method, images in (("ae", 720_000), ("gfe", 60_000))
        for seed in range(2)
    ]
    of = evidence(tmp_path, deliveries, declared=space_files()["table2"].read_text())
    table = shown(table_2, of)["table_2"].table
    assert table is not None
    assert list(table["dataset"]) == [name for name in paper.TABLE_2 for _ in range(2)]
    row = table[(table["dataset"] == "seg_mnist") & (table["column"] == "GFE")].iloc[0]
    assert (row["paper"], row["images seen"], row["images seen, paper"]) == (0.1135, 60_000, 60_000)
    assert row["ours − paper"] == pytest.approx(0.1305 - 0.1135)
    # Two methods over three datasets are too few for Friedman's test, and the exhibit says so.
    ranked = shown(datasets, of)["datasets"]
    assert ranked.figure is None
    assert "no test" in ranked.caption
    assert list(ranked.table) == ["dataset", "ae", "gfe"]  # type: ignore[arg-type]


def test_many_methods_over_many_datasets_are_ranked(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    deliveries = [
        run(f"method {place}", "gfe", f"set {number}", 0, [point(480, 0.2 + place / 10 + draw.uniform(0, 0.05))])
        for number in range(8)
        for place in range(4)
    ]
    exhibit = shown(datasets, evidence(tmp_path, deliveries))["datasets"]
    assert "they differ" in exhibit.caption
    assert exhibit.figure is not None
    texts = {text.get_text().strip() for text in exhibit.figure.axes[0].texts}
    assert {"method 0 (1.00)", "method 3 (4.00)"} <= texts


def test_curves_over_different_images_cross_where_they_do(tmp_path: Path) -> None:
    slopes = {"ae": (0.5, 0.2), "gfe": (0.4, 0.3)}
    deliveries = [
        run(f"{arm}", arm, "digits", seed, [point(480, float(loss) + seed / 1e4)], params={"data.train_images": size})
        for arm, ends in slopes.items()
        for size, loss in zip((100, 1000, 10_000), np.linspace(*ends, 3), strict=True)
        for seed in range(3)
    ]
    exhibit = shown(data_efficiency, evidence(tmp_path, deliveries))["data_efficiency"]
    assert "gfe is lower" in exhibit.caption or "ae and gfe cross at 1,000" in exhibit.caption
    assert exhibit.data is not None
    assert set(exhibit.data[names.UNIQUE_IMAGES]) == {100, 1000, 10_000}


def test_a_study_with_one_seed_claims_nothing(tmp_path: Path) -> None:
    declared = "question: Which?\nscientific:\n  arms: {a: {}, b: {method: ae}}\nseeds: 1\n"
    of = evidence(
        tmp_path, [run("a", "gfe", "digits", 0, [point(480)]), run("b", "ae", "digits", 0, [point(480)])], declared
    )
    exhibits = shown(verdict, of)
    assert set(exhibits) == {"verdict"}
    assert "no interval: one seed" in exhibits["verdict"].caption
    for maker in MAKERS:
        for exhibit in maker(of):
            assert "nan" not in exhibit_html(exhibit).lower().split("base64")[0]


def test_methods_keep_their_colours_and_the_adjoint_is_dashed() -> None:
    trials = pd.DataFrame(
        {
            names.ARM: ["one", "two", "three"],
            names.METHOD: ["ae", "gfe", "gfe"],
            "params.solver.name": ["amd", "rk4", "rk4"],
            "params.gradient.name": ["approx", "approx", "adjoint"],
        }
    )
    found = styles(trials, ["one", "two", "three"])
    assert found["one"].colour == COLOURS["ae"]
    assert found["two"].colour == found["three"].colour == COLOURS["rk4"]
    assert (found["two"].line, found["three"].line) == ("-", "--")
    like = styles(trials.assign(**{"params.gradient.name": "approx"}), ["one", "two", "three"])
    assert len({style.colour for style in like.values()}) == 3


def test_importance_finds_the_key_that_matters() -> None:
    draw = np.random.default_rng(1)
    table = pd.DataFrame({"key": draw.uniform(0, 1, 60), "other": draw.uniform(0, 1, 60), "kind": ["a", None] * 30})
    table["value"] = (table["key"] - 0.5) ** 2
    ranges = {
        "key": Range.model_validate({"uniform": [0, 1]}),
        "other": Range.model_validate({"uniform": [0, 1]}),
        "kind": Range.model_validate({"choice": ["a", None]}),
    }
    found = importances(table, ranges)
    assert found is not None
    assert found["key"].iloc[0] == "key"
    for method in (PED_ANOVA, FANOVA):
        assert found[method].sum() == pytest.approx(1)
        assert found[method].iloc[0] > 0.8
    assert importances(table.iloc[: FEWEST - 1], ranges) is None
    assert importances(table.assign(value=1.0), ranges) is None


def test_accuracy_of_neighbours_is_that_of_a_count_by_hand() -> None:
    draw = np.random.default_rng(0)
    label_N = draw.integers(0, 3, 120)
    latent_NL = draw.normal(size=(120, 4)) + label_N[:, None]
    distance_NN = np.linalg.norm(latent_NL[:, None] - latent_NL, axis=-1)
    np.fill_diagonal(distance_NN, np.inf)
    votes = [np.bincount(label_N[row]).argmax() for row in np.argsort(distance_NN, axis=1)[:, :10]]
    assert label_accuracy(latent_NL, label_N) == pytest.approx(np.mean(votes == label_N))
    assert np.isnan(label_accuracy(latent_NL[:5], label_N[:5]))


def test_numbers_are_shown_as_asked_and_gaps_as_gaps() -> None:
    table = pd.DataFrame(
        {"loss": [0.12345, None], "images": [5760.0, 480.0], "arm": ["a", ""], "p": [1e-5, float("nan")]}
    )
    assert formatted(table, {"loss": ".4f", "p": ".2g"}).to_dict("list") == {
        "loss": ["0.1235", ""],
        "images": ["5,760", "480"],
        "arm": ["a", ""],
        "p": ["1e-05", ""],
    }


def test_seeds_are_told_in_words() -> None:
    assert (seeds_text({1}), seeds_text({5}), seeds_text({2, 5})) == (
        "no interval: one seed",
        "5 seeds",
        "2 to 5 seeds",
    )
