"""Exhibits of studies whose numbers are given."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from stores import DECLARED, fresh, opened, point, trial, without_library

from gfe_study import names, registry
from gfe_study.analysis.judge.evidence import Evidence
from gfe_study.analysis.judge.verdict_table import verdict_table as verdict_listing
from gfe_study.analysis.report import paper
from gfe_study.analysis.report.exhibits import (
    MAKERS,
    Exhibit,
    curves,
    data_efficiency,
    datasets,
    imputation,
    samples,
    snapshots,
    table_1,
    table_2,
    tuning,
    verdict,
)
from gfe_study.analysis.report.exhibits.base import level_text, seeds_text
from gfe_study.analysis.report.html import exhibit_html, formatted
from gfe_study.analysis.report.page import write_exhibit, write_report
from gfe_study.analysis.report.style import GREY, PALETTE, colour_of, styles
from gfe_study.analysis.stats.embedding import label_accuracy
from gfe_study.analysis.stats.importance import FANOVA, FEWEST, PED_ANOVA, importances
from gfe_study.analysis.store.load import Store
from gfe_study.analysis.store.tidy import RUN_ID
from gfe_study.config import Component, Range, space_files
from gfe_study.metrics import IMAGES_SEEN, TRAIN_LOSS, UNIQUE_IMAGES
from gfe_study.tracking.runs import Change


def evidence(folder: Path, deliveries: list[Change], declared: str | None = None) -> Evidence:
    """Of a study as it is declared; or of one whose declaration is lost."""
    uri = fresh(folder / "store.db")
    opened(uri, "given", declared or DECLARED).write(deliveries)
    store = Store(uri)
    if declared is not None:
        return Evidence.load(store, "given")
    return Evidence("given", store, None, "Which?", store.parent("given"), *store.frames("given"))


def run(arm: str, method: str, dataset: str, seed: int, points: list[dict[str, float]], **tags: Any) -> Change:
    params = {"eval.test_images": 1000, **tags.pop("params", {})}
    name = f"{arm}/{dataset}/{seed}/{params.get('data.train_images', '')}{tags.pop('fingerprint', '')}"
    about = {names.ARM: arm, names.METHOD: method, names.DATASET: dataset, names.SEED: seed, names.NUMBER: 0, **tags}
    return trial(name, points, group=f"{arm}{dataset}", params=params, **about)


def shown(maker: Any, of: Evidence) -> dict[str, Exhibit]:
    return {exhibit.key: exhibit for exhibit in maker(of)}


def test_table_1_compares_us_with_the_paper(tmp_path: Path) -> None:
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


def test_table_1_quotes_the_paper_for_mnist_alone(tmp_path: Path) -> None:
    """If a trial saw only some of the images, there is no table at all."""
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


def test_methods_are_ranked_over_many_datasets(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    sets = ["digits", "mnist", "fashion_mnist", "seg_mnist", "svhn", "celeba"]
    levels = "{" + ", ".join(f"method {place}: {{solver.beta: 0.{place + 1}}}" for place in range(4)) + "}"
    factors = f"{{beta: {{levels: {levels}}}, data.name: [{', '.join(sets)}]}}"
    declared = f"question: Which?\nfixed: {{solver: amd}}\nscientific:\n  factorial: {factors}\n"
    deliveries = [
        run(f"method {place}, {name}", "gfe", name, 0, [point(480, 0.2 + place / 10 + draw.uniform(0, 0.05))])
        for name in sets
        for place in range(4)
    ]
    exhibit = shown(datasets, evidence(tmp_path, deliveries, declared))["datasets"]
    assert "they differ" in exhibit.caption
    assert exhibit.figure is not None
    texts = {text.get_text().strip() for text in exhibit.figure.axes[0].texts}
    assert {"method 0 (1.00)", "method 3 (4.00)"} <= texts


def test_the_caption_names_where_curves_cross(tmp_path: Path) -> None:
    slopes, sizes = {"ae": (0.5, 0.2), "gfe": (0.4, 0.3)}, [100, 1000, 10_000]
    deliveries = [
        run(
            f"{arm}, train_images={size}",
            arm,
            "mnist",
            seed,
            [point(480, float(loss) + seed / 1e4)],
            params={"data.train_images": size},
        )
        for arm, ends in slopes.items()
        for size, loss in zip(sizes, np.linspace(*ends, 3), strict=True)
        for seed in range(3)
    ]
    factors = f"{{method: [ae, gfe], data.train_images: {sizes}}}"
    declared = f"question: Which?\nfixed: {{data.name: mnist}}\nscientific:\n  factorial: {factors}\nseeds: 3\n"
    exhibit = shown(data_efficiency, evidence(tmp_path, deliveries, declared))["data_efficiency"]
    assert "ae and gfe cross at 1,000" in exhibit.caption
    assert exhibit.data is not None
    assert set(exhibit.data[UNIQUE_IMAGES]) == {100, 1000, 10_000}


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


RUNS_ALIKE = {names.DEVICE: "cpu (A)", names.THREADS: "1", names.SIDE_BY_SIDE: "2"}


def three_against_one(folder: Path, **tags: str) -> Evidence:
    """With three seeds: an arm that is better, one that only Holm leaves undecided, and one that hardly differs."""
    losses = {"a": [0.5] * 3, "b": [0.3, 0.31, 0.32], "c": [0.38, 0.4, 0.44], "d": [0.49, 0.52, 0.5]}
    deliveries = [
        run(arm, "gfe", "digits", seed, [point(480, loss)], **tags)
        for arm, own in losses.items()
        for seed, loss in enumerate(own)
    ]
    changed = ", ".join(f"{arm}: {{solver.beta: 0.{place}}}" for place, arm in enumerate(losses, 1))
    declared = f"question: Which?\nscientific:\n  arms: {{{changed}}}\nseeds: 3\n"
    return evidence(folder, deliveries, declared)


def test_intervals_have_the_colours_of_verdicts(tmp_path: Path) -> None:
    of = three_against_one(tmp_path)
    exhibit = shown(verdict, of)["differences"]
    assert exhibit.figure is not None
    assert exhibit.data is not None
    assert of.verdict is not None
    middle = of.verdict.rows[2].paired
    assert middle is not None
    # The interval leaves out 0, and Holm's adjustment does not let it count.
    assert (middle.high or 0.0) < 0
    assert exhibit.data["verdict"].tolist() == ["better", "undecided", "undecided"]
    colours = [line.get_color() for line in exhibit.figure.axes[0].lines if line.get_marker() == "o"]
    assert colours == [PALETTE[0], GREY, GREY]


@pytest.mark.parametrize(("tags", "ratio"), [(RUNS_ALIKE, True), ({}, False)], ids=["known", "unknown"])
def test_seconds_stand_without_a_ratio(tmp_path: Path, tags: dict[str, str], ratio: bool) -> None:
    of = three_against_one(tmp_path, **tags)
    table = shown(verdict, of)["verdict"].table
    assert table is not None
    assert table["seconds"].tolist() == [4.8] * 4
    assert ("× seconds" in table) == ratio
    assert of.verdict is not None
    told = ["seconds are not compared for 'b', 'c', 'd': the device was not recorded"]
    assert of.verdict.warnings == ([] if ratio else told)


def test_page_and_terminal_have_one_verdict(tmp_path: Path) -> None:
    of = three_against_one(tmp_path, **RUNS_ALIKE)
    assert of.verdict is not None
    page = write_report(of.store, "given", tmp_path / "report")[0].read_text()
    lines = " ".join(str(line) for line in verdict_listing(of.verdict).lines(1000))
    for each in of.verdict.rows:
        assert f"<b>{each.arm}</b>: {each.value.mean:.4f}, {each.text}" in page
        assert each.text in lines
    assert [each.verdict for each in of.verdict.rows] == [None, "better", "undecided", "undecided"]


def test_the_adjoint_is_dashed_in_the_same_colour() -> None:
    """Arms that would look the same have different colours."""
    trials = pd.DataFrame(
        {
            names.ARM: ["one", "two", "three"],
            names.METHOD: ["ae", "gfe", "gfe"],
            "params.solver.name": ["amd", "rk4", "rk4"],
            "params.gradient.name": ["approx", "approx", "adjoint"],
        }
    )
    found = styles(trials, ["one", "two", "three"])
    assert found["one"].colour == colour_of("method", "ae")
    assert found["two"].colour == found["three"].colour == colour_of("solver", "rk4")
    assert (found["two"].line, found["three"].line) == ("-", "--")
    like = styles(trials.assign(**{"params.gradient.name": "approx"}), ["one", "two", "three"])
    assert len({style.colour for style in like.values()}) == 3


def test_colourless_components_get_free_colours() -> None:
    """Of another package, or of this one: the plain gfe with a solver that is not installed here."""
    kinds = [("gfe", "theirs:Solver"), ("gfe", "amd"), ("gfe", "others:Solver"), ("ae", "amd")]
    trials = pd.DataFrame(kinds, columns=[names.METHOD, "params.solver.name"]).assign(**{names.ARM: list("abcd")})
    found = styles(trials, list("abcd"))
    assert found["b"].colour == colour_of("solver", "amd")
    assert found["d"].colour == colour_of("method", "ae")
    assert len({look.colour for look in found.values()}) == 4
    assert {look.colour for look in found.values()} <= {*PALETTE}
    assert styles(trials, ["c"]) == {"c": found["c"]}
    assert styles(trials.iloc[::-1], list("dcba")) == found


@pytest.mark.parametrize("section", ["method", "solver"])
def test_classes_take_colours_from_the_palette(section: str) -> None:
    for name in registry.BUILT_IN[section]:
        found: type[Component] = registry.component(section, name)
        assert colour_of(section, name) == found.colour
        assert found.colour in PALETTE or name == "gfe"


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
    assert importances(table, {}) is None  # an arm without searched keys
    values = table["value"]
    rounded = 0.3 + np.spacing(0.3) * (values > values.median())
    assert importances(table.assign(value=rounded), ranges) is None
    for scaled in (1e-30 * values, 1e30 * values, 1 + 1e-9 * values):  # the forest splits by no variance below 2e-16
        again = importances(table.assign(value=scaled), ranges)
        assert again is not None
        pd.testing.assert_frame_equal(again, found, rtol=0, atol=2e-3)


def test_importances_follow_the_metrics_direction() -> None:
    """Points outside the searched ranges do not count."""
    draw = np.random.default_rng(1)
    table = pd.DataFrame({"key": draw.uniform(0, 1, 60), "other": draw.uniform(0, 1, 60)})
    # Low values are due to one key, high ones to the other.
    table["value"] = np.where(table["key"] < 0.2, table["key"] - 1, table["other"] ** 4)
    ranges = {key: Range.model_validate({"uniform": [0, 1]}) for key in ("key", "other")}
    low, high = importances(table, ranges), importances(table, ranges, "max")
    assert low is not None
    assert high is not None
    assert (low["key"].iloc[0], high["key"].iloc[0]) == ("key", "other")
    beyond = pd.DataFrame({"key": [0.5, None, 7.0], "other": [-3.0, 0.5, 0.5], "value": [99.0, -99.0, 99.0]})
    again = importances(pd.concat([table, beyond], ignore_index=True), ranges)
    assert again is not None
    pd.testing.assert_frame_equal(again, low)


def test_label_accuracy_is_that_counted_by_hand() -> None:
    draw = np.random.default_rng(0)
    label_N = draw.integers(0, 3, 120)
    latent_NL = draw.normal(size=(120, 4)) + label_N[:, None]
    distance_NN = np.linalg.norm(latent_NL[:, None] - latent_NL, axis=-1)
    np.fill_diagonal(distance_NN, np.inf)
    votes = [np.bincount(label_N[row]).argmax() for row in np.argsort(distance_NN, axis=1)[:, :10]]
    assert label_accuracy(latent_NL, label_N) == pytest.approx(np.mean(votes == label_N))
    assert np.isnan(label_accuracy(latent_NL[:5], label_N[:5]))


def test_numbers_are_formatted_and_gaps_are_empty() -> None:
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


SEARCH = """question: Which?
scientific:
  arms: {a: {}, b: {method: ae}}
nuisance:
  optim.lr: {loguniform: [1.0e-4, 1.0e-2]}
  optim.batch_size: [{choice: [8, 16, 32], when: {arm: a}}, {choice: [16, 64], when: {arm: b}}]
  optim.lr_half_images: {choice: [null, 4000], when: {arm: a}}
  optim.updates_per_batch: {choice: [1, [[0, 4], [480, 3]]], when: {arm: a}}
trials: 12
seeds: 1
"""


def searched(arm: str, method: str, number: int) -> Change:
    sizes = [8, 16, 32] if arm == "a" else [16, 64]
    params: dict[str, Any] = {"optim.lr": 1e-3 * (1 + number / 12), "optim.batch_size": sizes[number % len(sizes)]}
    if arm == "a":
        params["optim.lr_half_images"] = [None, 4000][number % 2]
        params["optim.updates_per_batch"] = [1, [[0, 4], [480, 3]]][number % 3 == 0]
    points = [point(480, 0.3 + (number * 7 % 12) / 100)]
    return run(arm, method, "digits", 0, points, number=number, fingerprint=number, params=params)


def test_panels_are_as_wide_as_the_search(tmp_path: Path) -> None:
    """The choices of every arm stand where they belong on the common axis."""
    both = [("a", "gfe"), ("b", "ae")]
    of = evidence(tmp_path, [searched(*arm, number) for arm in both for number in range(12)], SEARCH)
    exhibits = shown(tuning, of)
    figure = exhibits["slices"].figure
    assert figure is not None
    panels = {axes.get_xlabel(): axes for axes in figure.axes}
    sizes = [text.get_text() for text in panels["optim.batch_size"].get_xticklabels()]
    assert sizes == ["8", "16", "32", "64"]
    drawn = {str(line.get_label()): line.get_xdata() for line in panels["optim.batch_size"].lines}
    assert {sizes[int(place)] for place in np.asarray(drawn["b"])} == {"16", "64"}
    low, high = panels["optim.lr"].get_xlim()
    assert low < 1e-4
    assert high > 1e-2
    # A choice of whole numbers, None and lists is what it was, also beside an arm that does not search it.
    table = exhibits["importance"].table
    assert table is not None
    assert set(table[table[names.ARM] == "a"]["key"]) == set(of.ranges["a"]) == set(panels)


def test_wide_intervals_do_not_flatten_the_curves(tmp_path: Path) -> None:
    losses = {"a": (0.2, 0.9, 0.2), "b": (0.3, 0.31, 0.32)}
    deliveries = [
        run(arm, "gfe", "digits", seed, [point(480, loss), point(960, loss)])
        for arm, each in losses.items()
        for seed, loss in enumerate(each)
    ]
    exhibits = shown(curves, evidence(tmp_path, deliveries))
    for key in ("loss_over_images", "excess_over_floor"):
        figure = exhibits[key].figure
        assert figure is not None
        low, high = figure.axes[0].get_ylim()
        assert low > 0
        assert high < 0.6


def test_the_floor_stands_under_test_losses_alone(tmp_path: Path) -> None:
    """It is that of the test images, and this study is judged by validation losses."""
    deliveries = [run(arm, "gfe", "digits", seed, [point(480)]) for arm in ("a", "b") for seed in range(2)]
    declared = DECLARED + "seeds: 2\ncompare: {metric: val_loss}\n"
    exhibits = shown(curves, evidence(tmp_path, deliveries, declared))
    assert "excess_over_floor" not in exhibits
    figure = exhibits["loss_over_images"].figure
    assert figure is not None
    assert not any("lowest possible" in str(line.get_label()) for line in figure.axes[0].lines)


def test_every_dataset_has_its_own_pictures(tmp_path: Path) -> None:
    """Seeds that end after different numbers of images are one row of the table."""
    deliveries = [
        run(arm, "gfe", dataset, seed, [point(480), point(960 + seed)])
        for arm, dataset in (("a", "digits"), ("b", "mnist"))
        for seed in range(2)
    ]
    of = evidence(tmp_path, deliveries)
    draw = np.random.default_rng(0)
    for each in of.trials.to_dict("records"):
        moments = (480, 960 + each[names.SEED])
        arrays = {f"{images}/latent": draw.normal(size=(40, 3)) for images in moments}
        arrays |= {f"{images}/reconstruction": np.zeros((4, 8, 8), np.uint8) for images in moments}
        if each[names.ARM] == "b":
            arrays["480/latent"][0] = np.nan
        file = of.store.artifact(str(each[RUN_ID]), names.TRIAL_FILE)
        assert file is not None
        np.savez(
            str(file.parent / names.SNAPSHOTS),
            allow_pickle=False,
            target=np.zeros((4, 8, 8), np.uint8),
            label=np.arange(40) % 4,
            **arrays,
        )
    exhibits = shown(snapshots, of)
    table = exhibits["latents"].table
    assert table is not None
    rows = list(zip(table["arm"], table["images seen"], table["seeds"], strict=True))
    assert rows == [("a", 480, 2), ("a", 960.5, 2), ("b", 960.5, 2)]
    figure = exhibits["reconstructions"].figure
    assert figure is not None
    texts = [axes.get_ylabel() for axes in figure.axes]
    assert [text for text in texts if text.startswith("test")] == ["test images of digits", "test images of mnist"]


def test_coloured_pictures_keep_their_colours(tmp_path: Path) -> None:
    of = evidence(tmp_path, [run("a", "gfe", "svhn", 0, [point(480)])])
    (each,) = of.trials.to_dict("records")
    file = of.store.artifact(str(each[RUN_ID]), names.TRIAL_FILE)
    assert file is not None
    draw = np.random.default_rng(0)
    target, decoded = draw.integers(0, 256, (2, 4, 9, 8, 3), dtype=np.uint8)
    latent = draw.normal(size=(40, 3))
    arrays = {"label": np.arange(40) % 4, "480/latent": latent, "480/reconstruction": decoded, "target": target}
    np.savez(str(file.parent / names.SNAPSHOTS), allow_pickle=False, **arrays)
    figure = shown(snapshots, of)["reconstructions"].figure
    assert figure is not None
    figure.canvas.draw()
    colours = [axes.images[0].make_image(None, unsampled=True)[0] for axes in figure.axes]  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.array(colours)[..., :3], np.concatenate([target, decoded]))


def test_samples_and_interpolations_are_the_last(tmp_path: Path) -> None:
    of = evidence(tmp_path, [run(arm, arm, "svhn", seed, [point(480)]) for arm in ("ae", "gen") for seed in range(2)])
    draw = np.random.default_rng(0)
    for each in of.trials.to_dict("records"):
        file = of.store.artifact(str(each[RUN_ID]), names.TRIAL_FILE)
        assert file is not None
        arrays = {
            f"{images}/{kind}": draw.integers(0, 256, (*count, 4, 3, 3), dtype=np.uint8)
            for images in (480, 960)
            for kind, count in (("sample", (64,)), ("interpolation", (5, 8)))
            if kind != "sample" or each[names.ARM] == "gen"
        }
        np.savez(str(file.parent / names.SNAPSHOTS), allow_pickle=False, **arrays)
    exhibits = shown(samples, of)
    assert set(exhibits) == {"samples", "interpolations"}
    drawn = {key: exhibit.figure for key, exhibit in exhibits.items()}
    assert all(exhibit.figure is not None and "seed 0" in exhibit.caption for exhibit in exhibits.values())
    panels = [axes for axes in drawn["samples"].axes if axes.images]  # type: ignore[union-attr]
    assert [axes.get_title() for axes in panels] == ["gen\nafter 960 images seen"]
    best = of.chosen[(of.chosen[names.ARM] == "gen") & (of.chosen[names.SEED] == 0)]
    kept = of.snapshots(str(best[RUN_ID].iloc[0]))
    assert kept is not None
    sheet = np.asarray(panels[0].images[0].get_array())
    np.testing.assert_array_equal(sheet[5:9, 4:7], kept["960/sample"][9])  # second row, second column
    assert (sheet[4] == 255).all()
    lines = [axes for axes in drawn["interpolations"].axes if axes.images]  # type: ignore[union-attr]
    assert [axes.get_title().partition("\n")[0] for axes in lines] == ["ae", "gen"]
    assert np.asarray(lines[0].images[0].get_array()).shape == (5 * 5 - 1, 8 * 4 - 1, 3)


GAPS = """
question: Which?
scientific:
  factorial:
    method: {levels: {mean: {method: mean}, gfe: {method: gfe}}}
    gaps:
      levels:
        few: {eval.withhold: {fraction: 0.25}}
        many: {eval.withhold: {fraction: 0.5}}
        block: {eval.withhold: {kind: block, fraction: 0.25}}
compare: {metric: test_withheld_rmse, factor: method, reference: mean}
"""


def test_imputation_is_shown_by_method_and_gaps(tmp_path: Path) -> None:
    """A line per method over the shares withheld at random; a figure of pictures for each kind; coverage of all."""
    deliveries = []
    for method, error in (("mean", 3.0), ("gfe", 1.0)):
        for gaps, kind, fraction in (("few", "random", 0.25), ("many", "random", 0.5), ("block", "block", 0.25)):
            for seed in range(3):
                values = {"test_withheld_rmse": error + fraction + seed / 10, "coverage_68": 0.7, "coverage_95": 0.9}
                params = {"eval.withhold.kind": kind, "eval.withhold.fraction": fraction}
                last = point(480, **values)
                deliveries.append(run(f"{method}, {gaps}", method, "digits", seed, [last], params=params))
    of = evidence(tmp_path, deliveries, GAPS)
    draw = np.random.default_rng(0)
    for each in of.trials.to_dict("records"):
        file = of.store.artifact(str(each[RUN_ID]), names.TRIAL_FILE)
        assert file is not None
        arrays = {name: draw.random((10, 1, 4, 3), np.float32) for name in ("truth", "seen", "480/imputed")}
        if each[names.ARM].startswith("gfe"):
            arrays["480/std"] = draw.random((10, 1, 4, 3), np.float32)
        np.savez(str(file.parent / names.SNAPSHOTS), allow_pickle=False, **arrays)
    exhibits = shown(imputation, of)
    assert set(exhibits) == {"missing_share", "imputations", "imputations2", "imputations3", "coverage"}
    points = exhibits["missing_share"].data
    assert points is not None
    assert [*points[names.ARM]] == ["mean", "gfe", "mean", "gfe"]
    assert [*points["share"]] == [25, 25, 50, 50]
    assert [*points["mean"]] == pytest.approx([3.35, 1.35, 3.6, 1.6])
    assert set(points["seeds"]) == {3}
    for key, gaps in (("imputations", "few"), ("imputations2", "many"), ("imputations3", "block")):
        assert exhibits[key].title.endswith(f": {gaps}")
        assert exhibits[key].figure is not None
        labels = [axes.get_ylabel() for axes in exhibits[key].figure.axes if axes.get_ylabel()]  # type: ignore[union-attr]
        assert labels == ["test images", "as they were seen", "mean", "gfe", "gfe: s.d."]
    coverage = exhibits["coverage"].data
    assert coverage is not None
    assert set(zip(coverage["nominal"], coverage["share"], strict=True)) == {(0.68, 0.7), (0.95, 0.9)}
    assert len(coverage) == 12


def test_a_study_without_pictures_has_no_samples(tmp_path: Path) -> None:
    of = evidence(tmp_path, [run("a", "gfe", "digits", 0, [point(480)])])
    assert not shown(samples, of)


def test_names_are_escaped_wherever_they_stand(tmp_path: Path) -> None:
    name = "R&D_<x> {100%} ^~\\ | \n end"
    exhibit = Exhibit("odd", "Of 5 % & more_or_less", "", table=pd.DataFrame({"arm": [name], "p": [0.5]}))
    files = {file.suffix: file for file in write_exhibit(exhibit, tmp_path)}
    latex = files[".tex"].read_text()
    assert (
        r"R\&D\_\textless{}x\textgreater{} \{100\%\} \textasciicircum{}\textasciitilde{}\textbackslash{} "
        r"\textbar{} end & 0.5 \\"
    ) in latex
    assert r"\caption{Of 5 \% \& more\_or\_less}" in latex
    assert {len(re.split(r"(?<!\\)\|", line)) for line in files[".md"].read_text().splitlines()} == {4}
    assert pd.read_csv(files[".csv"])["arm"].tolist() == [name]


def test_a_report_clears_away_an_earlier_one(tmp_path: Path) -> None:
    of = evidence(tmp_path, [run("a", "gfe", "digits", 0, [point(480)])], DECLARED)
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "report.html").write_text('<h2 id="gone">Gone</h2>')
    for file in ("gone.png", "gone_data.csv", "mine.md"):
        (folder / file).write_text("")
    files = write_report(of.store, "given", folder)
    assert {file.name for file in folder.iterdir()} == {"mine.md", *(file.name for file in files)}


def test_a_report_does_without_missing_losses(tmp_path: Path) -> None:
    points = [{IMAGES_SEEN: 480.0, TRAIN_LOSS: 0.4}]
    of = evidence(tmp_path, [run("a", "gfe", "digits", 0, points, entropy_floor="")], DECLARED)
    page = write_report(of.store, "given", tmp_path / "report")[0].read_text()
    assert "no seed finished" in page or "no trial has a result" in page
    assert not re.search(r"\bnan\b", without_library(page).lower())


EDGES = """question: Which?
scientific:
  arms:
    tiny: {model.latent_dim: 3}
    huge: {model.latent_dim: 4}
    equal: {model.latent_dim: 5}
    near: {model.latent_dim: 6}
nuisance:
  optim.lr: {loguniform: [1.0e-4, 1.0e-2]}
  optim.batch_size: {choice: [8, 16, 32]}
trials: 10
"""


def at_an_edge(arm: str, values: np.ndarray) -> Any:
    """Numbers in [0, 1] in sizes at which squares over- or underflow, or that differ by rounding, or not at all."""
    match arm:
        case "tiny":
            return 1e-30 * (1 + values)
        case "huge":
            return (1e19 if values.ndim > 1 else 1e30) * (1 + values)
        case "equal":
            return np.full_like(values, 0.3)
        case _:
            return 0.3 + np.round(3 * values) * np.spacing(values.dtype.type(0.3))


def test_a_report_of_numbers_at_the_edges(tmp_path: Path) -> None:
    """Losses and latents: none of the libraries that are given them fails, or shows what rounding makes of them."""
    draw = np.random.default_rng(0)
    deliveries = [
        run(
            arm,
            "gfe",
            "digits",
            0,
            [
                point(images, float(loss))
                for images, loss in zip((480, 960), at_an_edge(arm, draw.random(2)), strict=True)
            ],
            number=number,
            fingerprint=number,
            params={"optim.lr": 10 ** draw.uniform(-4, -2), "optim.batch_size": [8, 16, 32][number % 3]},
        )
        for arm in ("tiny", "huge", "equal", "near")
        for number in range(10)
    ]
    of = evidence(tmp_path, deliveries, EDGES)
    pictures = np.zeros((4, 8, 8), np.uint8)
    for each in of.chosen.to_dict("records"):
        file = of.store.artifact(str(each[RUN_ID]), names.TRIAL_FILE)
        assert file is not None
        arrays: dict[str, Any] = {"label": np.arange(40) % 4, "target": pictures}
        for images in (480, 960):
            latent_NL = at_an_edge(str(each[names.ARM]), draw.random((40, 3)).astype(np.float32))
            arrays |= {f"{images}/latent": latent_NL, f"{images}/reconstruction": pictures}
        np.savez(str(file.parent / names.SNAPSHOTS), allow_pickle=False, **arrays)
    page = write_report(of.store, "given", tmp_path / "report")[0].read_text()
    page = re.sub(r"<style>.*?</style>|data:[^\"]*", "", without_library(page), flags=re.DOTALL)
    assert not re.search(r"\b(nan|inf)\b", page)
    for key in ("latents", "importance"):
        assert set(pd.read_csv(tmp_path / "report" / f"{key}.csv")["arm"]) == {"tiny", "huge"}


def test_levels_are_told_as_they_are() -> None:
    assert (level_text(0.95), level_text(0.995)) == ("95 %", "99.5 %")
