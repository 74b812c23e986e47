"""Data-efficiency curves: their points, areas and differences, and what is missing of them."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gfe_study.analysis.stats.efficiency import DataEfficiency
from gfe_study.analysis.stats.intervals import holm, mean_interval, paired
from gfe_study.metrics import IMAGES_SEEN, TEST_LOSS, UNIQUE_IMAGES

SIZES = (1, 2, 4, 16)  # the seeds below are named by sizes, so that one cannot be taken for the other
SEEDS = (1, 2, 4)


def frame(**arms: object) -> pd.DataFrame:
    """One row per arm, seed and size, from arm=[[loss at every size] of every seed]."""
    rows = [
        {"arm": arm, "seed": seed, IMAGES_SEEN: size, TEST_LOSS: loss}
        for arm, curves in arms.items()
        for seed, curve in zip(SEEDS, np.array(curves, dtype=float), strict=True)
        for size, loss in zip(SIZES, curve, strict=True)
    ]
    return pd.DataFrame(rows)


def noisy(seed: int) -> np.ndarray:
    return np.linspace(1.0, 0.4, 4) + 0.1 * np.random.default_rng(seed).normal(size=(3, 4))


def curves(rows: pd.DataFrame, confidence: float = 0.95) -> DataEfficiency:
    return DataEfficiency.from_frame(rows, IMAGES_SEEN, confidence=confidence)


@pytest.fixture
def two_arms() -> DataEfficiency:
    return curves(frame(gfe=noisy(0), ae=noisy(1) + 0.2))


def test_the_points_are_means_over_seeds(two_arms: DataEfficiency) -> None:
    table = two_arms.points()
    assert list(table["arm"]) == ["gfe"] * 4 + ["ae"] * 4  # as given, not as sorted
    assert list(table[IMAGES_SEEN][:4]) == list(SIZES)
    expected = mean_interval(noisy(0)[:, 2])
    row = table.iloc[2]
    assert (row["mean"], row["low"], row["high"], row["seeds"]) == pytest.approx(
        (expected.mean, expected.low, expected.high, 3)
    )


def test_the_order_of_the_rows_does_not_count(two_arms: DataEfficiency) -> None:
    rows = frame(gfe=noisy(0), ae=noisy(1) + 0.2)
    first, others = rows.iloc[:1], rows.iloc[1:].sample(frac=1, random_state=0)
    assert curves(pd.concat([first, others])).losses.equals(two_arms.losses)


def test_an_area_is_a_mean_over_the_logarithm() -> None:
    """The mean loss over the logarithm of the size."""
    flat, straight = [[0.3] * 4] * 3, [[0.0, 1.0, 2.0, 4.0]] * 3  # log2 of the sizes
    found = curves(frame(flat=flat, straight=straight)).areas_by_seed()
    assert found["flat"].tolist() == pytest.approx([0.3] * 3)
    assert found["straight"].tolist() == pytest.approx([2.0] * 3)
    # Doublings weigh alike: 1 and 1/2 over one each, 0 over the two from 4 to 16.
    bent = curves(frame(bent=[[1.0, 1.0, 0.0, 0.0]] * 3))
    assert bent.areas_by_seed()["bent"].tolist() == pytest.approx([1.5 / 4] * 3)


def test_areas_have_intervals_and_are_paired(two_arms: DataEfficiency) -> None:
    by_seed = two_arms.areas_by_seed()
    assert list(by_seed.columns) == ["gfe", "ae"]
    assert list(by_seed.index) == list(SEEDS)
    expected = stats.t.interval(0.95, 2, loc=by_seed["ae"].mean(), scale=stats.sem(by_seed["ae"]))
    row = two_arms.areas().set_index("arm").loc["ae"]
    assert (row["low"], row["high"]) == pytest.approx(expected)
    assert (row["seeds"], row["from"], row["to"]) == (3, 1, 16)
    assert two_arms.compare_areas("gfe", "ae") == paired(by_seed["gfe"], by_seed["ae"])


def test_areas_are_over_the_sizes_all_arms_have() -> None:
    rows = frame(gfe=noisy(0), ae=noisy(1))
    short = rows[(rows["arm"] != "ae") | (rows[IMAGES_SEEN] > 1)]
    found = curves(short)
    assert list(found.areas()["from"]) == [2, 2]
    expected = curves(rows[rows[IMAGES_SEEN] > 1]).areas_by_seed()
    pd.testing.assert_frame_equal(found.areas_by_seed(), expected)
    assert found.areas_by_seed(["gfe"])["gfe"].equals(curves(rows).areas_by_seed()["gfe"])


@pytest.mark.parametrize("gap", [math.nan, math.inf, None])
def test_a_missing_loss_costs_its_seed_the_area(gap: float | None) -> None:
    rows = frame(gfe=noisy(0), ae=noisy(1))
    hole = (rows["arm"] == "gfe") & (rows["seed"] == 2) & (rows[IMAGES_SEEN] == 4)
    rows = rows[~hole] if gap is None else rows.assign(test_loss=rows[TEST_LOSS].where(~hole, gap))
    found = curves(rows)
    assert found.missing().to_numpy().tolist() == [["gfe", 2, 4]]
    assert found.points().set_index(["arm", IMAGES_SEEN])["seeds"].loc[("gfe", 4)] == 2
    assert found.areas_by_seed()["gfe"].isna().tolist() == [False, True, False]
    assert found.compare_areas("gfe", "ae").count == 2
    assert found.crossing("gfe", "ae").count == 2
    assert found.differences("gfe", "ae")["seeds"].tolist() == [3, 3, 2, 3]


def test_one_seed_has_no_interval() -> None:
    rows = frame(gfe=noisy(0), ae=noisy(1))
    found = curves(rows[rows["seed"] == 1])
    assert found.points()[["low", "high"]].isna().all(axis=None)
    assert found.areas()[["low", "high"]].isna().all(axis=None)
    assert found.areas()["mean"].notna().all()
    assert found.differences("gfe", "ae")["p_holm"].isna().all()
    assert "no interval: one seed" in found.crossing("gfe", "ae").text


def test_one_size_has_no_area_and_no_crossing() -> None:
    rows = frame(gfe=noisy(0), ae=noisy(1))
    found = curves(rows[rows[IMAGES_SEEN] == 4])
    assert found.areas()["seeds"].tolist() == [0, 0]
    assert "do not share two sizes" in found.crossings()["text"].item()
    with pytest.raises(ValueError, match="no seed of both 'gfe' and 'ae' has two sizes"):
        found.compare_areas("gfe", "ae")


def test_arms_need_a_common_size_and_seed() -> None:
    rows = frame(gfe=noisy(0), ae=noisy(1))
    apart = rows[(rows["arm"] == "gfe") == (rows[IMAGES_SEEN] < 4)]
    assert len(curves(apart).differences("gfe", "ae")) == 0
    others = curves(rows[(rows["arm"] == "gfe") == (rows["seed"] == 1)])
    assert len(others.differences("gfe", "ae")) == 0
    assert "do not share a seed" in others.crossing("gfe", "ae").text


def test_differences_are_paired_at_every_size(two_arms: DataEfficiency) -> None:
    table = two_arms.differences("gfe", "ae")
    assert list(table[IMAGES_SEEN]) == list(SIZES)
    for index, (_, row) in enumerate(table.iterrows()):
        expected = paired(noisy(0)[:, index], noisy(1)[:, index] + 0.2)
        assert (row["difference"], row["low"], row["high"], row["p_value"], row["p_permutation"]) == pytest.approx(
            (expected.difference, expected.low, expected.high, expected.p_value, expected.p_permutation)
        )
    assert table["p_holm"].tolist() == pytest.approx(holm(table["p_value"].tolist()))


def test_crossings_agree_with_differences() -> None:
    generator = np.random.default_rng(5)
    falling = np.linspace(0.9, 0.3, 4) + 0.02 * generator.normal(size=(3, 4))
    level = 0.62 + 0.02 * generator.normal(size=(3, 4))
    found = curves(frame(falling=falling, level=level, other=level + 1))
    crossing = found.crossing("falling", "level")
    assert crossing.ahead == ["level", "falling"]
    assert len(crossing.at) == 1
    assert crossing.regions is not None
    for _, row in found.differences("falling", "level").iterrows():
        inside = any(region.low <= row[IMAGES_SEEN] <= region.high for region in crossing.regions)
        assert inside == (row["low"] <= 0 <= row["high"])
    swapped = found.crossing("level", "falling")
    assert swapped.at == pytest.approx(crossing.at)
    assert swapped.ahead == crossing.ahead
    table = found.crossings()
    assert table[["first", "second"]].to_numpy().tolist() == [
        ["falling", "level"], ["falling", "other"], ["level", "other"]
    ]  # fmt: skip
    assert table["crosses_at"].isna().tolist() == [False, True, True]
    assert table["crosses_at"].iloc[0] == crossing.at[0]
    assert table["low"].iloc[0] < crossing.at[0] < table["high"].iloc[0]


def test_curves_that_differ_by_rounding_are_equal() -> None:
    ulps = np.random.default_rng(2).integers(-1, 2, (3, 4)) * np.spacing(noisy(0))
    found = curves(frame(gfe=noisy(0), ae=noisy(0) + ulps)).crossing("gfe", "ae")
    assert (found.at, found.ahead) == ([], ["neither"])


def test_the_confidence_is_that_of_every_interval() -> None:
    rows = frame(gfe=noisy(0), ae=noisy(1))
    wide, narrow = curves(rows, 0.99), curves(rows, 0.5)
    for of in (DataEfficiency.points, DataEfficiency.areas, lambda found: found.differences("gfe", "ae")):
        assert ((of(wide)["high"] - of(wide)["low"]) > (of(narrow)["high"] - of(narrow)["low"])).all()


def test_no_rows_give_empty_tables() -> None:
    nothing = curves(frame(gfe=noisy(0)).iloc[:0])
    for table in (nothing.points(), nothing.areas(), nothing.crossings(), nothing.missing()):
        assert len(table) == 0


def test_what_is_no_curve_is_refused() -> None:
    rows = frame(gfe=noisy(0))
    with pytest.raises(ValueError, match="axis must be one of images_seen, unique_images, got 'epochs'"):
        DataEfficiency.from_frame(rows, "epochs")
    with pytest.raises(ValueError, match=r"needs the columns .*not there: \['unique_images'\]"):
        DataEfficiency.from_frame(rows, UNIQUE_IMAGES)
    with pytest.raises(ValueError, match="images_seen must be positive"):
        curves(rows.assign(images_seen=rows[IMAGES_SEEN] - 1))
    with pytest.raises(ValueError, match="two rows of arm 'gfe', seed 1, at 2 images seen"):
        curves(pd.concat([rows, rows.iloc[1:2]]))
    with pytest.raises(ValueError, match="unknown arm 'vae'; there are gfe"):
        curves(rows).crossing("gfe", "vae")
