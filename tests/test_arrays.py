"""Data of any shape: every format gives the same splits, missing values have no influence, bad files are one line.

Shapes: N samples, D values of each.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from gfe_study.config import InputError, Trial
from gfe_study.config.base import explained
from gfe_study.config.trial import merge
from gfe_study.data.arrays import Arrays, by_group, by_sample
from gfe_study.data.base import fitted_scale
from gfe_study.data.files import Unsuitable
from gfe_study.data.readers import READERS, Contents
from gfe_study.data.samples import read_samples
from gfe_study.data.split import DataError, Scale, Shape, Split, Splits
from gfe_study.data.stored import sample_shape

Array = np.ndarray[Any, Any]
DRAW = np.random.default_rng(0)
FIELDS = DRAW.standard_normal((50, 6, 7)).astype(np.float32)
FIELDS[3, 2, 1] = FIELDS[40] = np.nan
FIELDS[40, 0, 0] = 1.0
LABELS = np.arange(50) % 3


def write_hdf5(path: Path, arrays: dict[str, Array]) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def write_zarr(path: Path, arrays: dict[str, Array]) -> None:
    group = zarr.open_group(path, mode="w")
    for name, array in arrays.items():
        group.create_array(name, data=array)


def write_zarr_zip(path: Path, arrays: dict[str, Array]) -> None:
    with zarr.storage.ZipStore(path, mode="w") as store:
        group = zarr.open_group(store, mode="w")
        for name, array in arrays.items():
            group.create_array(name, data=array)


def write_netcdf(path: Path, arrays: dict[str, Array], engine: Any = "h5netcdf") -> None:
    variables = {name: ([f"{name}_{axis}" for axis in range(array.ndim)], array) for name, array in arrays.items()}
    xr.Dataset(variables).to_netcdf(path, engine=engine)


def write_folder(path: Path, arrays: dict[str, Array]) -> None:
    path.mkdir()
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)


def write_npz(path: Path, arrays: dict[str, Array], save: Callable[..., None] = np.savez) -> None:
    save(path, **arrays)


WRITERS: dict[str, Callable[[Path, dict[str, Array]], None]] = {
    "a.npz": write_npz,
    "compressed.npz": lambda path, arrays: write_npz(path, arrays, np.savez_compressed),
    "a.h5": write_hdf5,
    "a.HDF5": write_hdf5,
    "a.zarr": write_zarr,
    "without ending": write_zarr,
    "a.zarr.zip": write_zarr_zip,
    "a.nc": write_netcdf,
    "classic.nc": lambda path, arrays: write_netcdf(path, arrays, "scipy"),
    "folder": write_folder,
}


def write(path: Path, **arrays: Array) -> Path:
    WRITERS[path.name](path, arrays)
    return path


def load(path: Path, **settings: Any) -> Splits:
    return Arrays(path=str(path), **settings).load([])


def sizes(splits: Splits) -> tuple[int, ...]:
    return tuple(len(split) for split in splits.parts.values())


def everything(splits: Splits) -> Array:
    return np.concatenate([split.values_ND for split in splits.parts.values()])


# Formats


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_splits(name: str, tmp_path: Path) -> None:
    sigma = np.abs(FIELDS) + 1
    arrays: dict[str, Array] = {"x": FIELDS, "labels": LABELS, "sigma": sigma, "groups": LABELS}
    splits = load(write(tmp_path / name, **arrays))
    write_npz(tmp_path / "reference.npz", arrays)
    assert splits.sha256 == load(tmp_path / "reference.npz").sha256
    assert splits.shape == Shape(1, (6, 7), None, mask=True)
    for split in splits.parts.values():
        assert split.values_ND.dtype == np.float32
        assert split.labels_N is not None
        assert split.sigma_ND is not None


def test_given_splits_are_taken_as_they_are(tmp_path: Path) -> None:
    parts = {"train": FIELDS[:30], "val": FIELDS[30:35], "test": FIELDS[35:]}
    beside = {"train_labels": LABELS[:30], "val_labels": LABELS[30:35], "test_labels": LABELS[35:]}
    for name in WRITERS:
        splits = load(write(tmp_path / name, **parts, **beside))
        for part, split in splits.parts.items():
            np.testing.assert_array_equal(split.values_ND, parts[part].reshape(-1, 42))
            np.testing.assert_array_equal(split.labels_N, beside[f"{part}_labels"])
    assert splits.val.observed_ND is None
    assert splits.shape.mask


def test_missing_validation_comes_out_of_training(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", train=FIELDS[:30], test=FIELDS[30:], train_groups=LABELS[:30])
    splits = load(path, split={"val": 0.1, "by": "order"})
    assert sizes(splits) == (27, 3, 20)
    np.testing.assert_array_equal(splits.val.values_ND, FIELDS[27:30].reshape(3, -1))
    assert sizes(load(path)) == (20, 10, 20)  # one of three groups


def test_tables_are_read_alike(tmp_path: Path) -> None:
    table = pd.DataFrame(FIELDS.reshape(50, -1).astype(float)).rename(columns=str)
    table.insert(3, "animal", ["cat", "ant", "bee"] * 16 + ["ant", "ant"])
    table["person"] = [f"p{number % 9}" for number in range(50)]
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    table.to_parquet(tmp_path / "t.parquet")
    np.savez(
        tmp_path / "t.npz",
        rows=FIELDS.reshape(50, -1).astype(float),
        labels=table["animal"].map({"ant": 0, "bee": 1, "cat": 2}).to_numpy(),
        groups=table["person"].to_numpy(str),
    )
    reference = load(tmp_path / "t.npz")
    for ending in ("csv", "tsv", "parquet"):
        splits = load(tmp_path / f"t.{ending}", labels="animal", groups="person")
        assert splits.sha256 == reference.sha256
        assert splits.shape == Shape(1, (42,), mask=True)
    few = load(tmp_path / "t.csv", columns=("5", "0"), split={"by": "order"}, labels="animal")
    np.testing.assert_array_equal(few.train.values_ND, table[["5", "0"]].to_numpy()[:30])


def test_tables_of_whole_numbers_keep_gaps(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": pd.array([1, None, 3, 4, 5], dtype="Int64"), "b": [True, False, True, True, False]})
    table.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("a, b\n1, 1\n\n, 0\n3, 1\n4, 1\n5, 0\n")
    split = load(tmp_path / "t.parquet", split={"by": "order"}).train
    np.testing.assert_array_equal(split.values_ND, [[1, 1], [np.nan, 0], [3, 1]])
    np.testing.assert_array_equal(split.observed_ND, [[True, True], [False, True], [True, True]])
    read = load(tmp_path / "t.csv", split={"by": "order"}).train
    np.testing.assert_array_equal(read.values_ND, split.values_ND)


def test_netcdf_is_decoded(tmp_path: Path) -> None:
    values = np.array([[0.5, np.nan], [1.0, 2.5], [0.0, 1.0], [1.5, 2.0], [3.0, 3.5]])
    packed = {"x": {"dtype": "int16", "scale_factor": 0.5, "_FillValue": -1}}
    variable = (("time", "place"), values)
    xr.Dataset({"x": variable}, {"time": np.arange(5)}).to_netcdf(tmp_path / "a.nc", engine="h5netcdf", encoding=packed)
    np.testing.assert_array_equal(load(tmp_path / "a.nc", split={"by": "order"}).train.values_ND, values[:3])


def test_large_files_are_mapped_into_memory(tmp_path: Path) -> None:
    write(tmp_path / "folder", train=FIELDS[:3], val=FIELDS[5:9], test=FIELDS[9:20], test_labels=LABELS[9:20])
    np.save(tmp_path / "one.npy", FIELDS[:20].copy())
    for splits in (load(tmp_path / "folder"), load(tmp_path / "one.npy", split={"by": "order"})):
        for split in splits.parts.values():
            base: Array | None = split.values_ND
            while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
                base = base.base
            assert isinstance(base, np.memmap)
            assert torch.isfinite(split.batch(slice(0, 2)).value_BD).all()


def picture(path: Path, values: Array, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).convert(mode).save(path) if mode else Image.fromarray(values).save(path)


def test_image_folders_have_classes_and_splits(tmp_path: Path) -> None:
    pixels = DRAW.integers(0, 256, (12, 5, 4, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        part = ("train", "train", "val", "test")[number % 4]
        picture(tmp_path / part / ("cat", "ant")[number % 2] / f"{number:02}.png", image)
    (tmp_path / "train" / "ant" / ".hidden.png").write_text("not an image")
    (tmp_path / "train" / "notes.txt").write_text("not an image")
    splits = load(tmp_path)
    assert splits.shape == Shape(3, (5, 4), "last")
    order = [1, 5, 9, 0, 4, 8]
    np.testing.assert_array_equal(splits.train.values_ND, np.moveaxis(pixels[order], -1, 1).reshape(6, -1))
    assert splits.train.labels_N is not None
    assert splits.train.labels_N.tolist() == [0, 0, 0, 1, 1, 1]
    assert splits.val.labels_N is not None
    assert splits.val.labels_N.tolist() == [1, 1, 1]
    assert splits.train.scale == splits.test.scale
    assert splits.test.batch(slice(None)).value_BD.max() <= 1


@pytest.mark.parametrize(
    ("mode", "dtype", "levels"), [("L", np.uint8, 255), ("1", np.uint8, 255), ("I;16", np.float32, None)]
)
def test_grey_images_are_read(mode: str, dtype: type, levels: int | None, tmp_path: Path) -> None:
    for number in range(10):
        values = DRAW.integers(0, 256, (5, 4)).astype(np.uint16 if mode == "I;16" else np.uint8)
        picture(tmp_path / f"{number}.png", values, "1" if mode == "1" else None)
    splits = load(tmp_path)
    assert splits.shape == Shape(1, (5, 4))
    assert splits.train.values_ND.dtype == dtype
    assert splits.train.scale.levels == levels


# Types, shapes and scales


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.arange(-10, 10, dtype=np.int8), np.float32),
        (np.arange(20, dtype=np.uint16), np.float32),
        (np.arange(20, dtype=">i4") + 2**24 - 19, np.float32),
        (np.arange(20, dtype=np.int64) + 2**24 - 18, np.float64),
        (np.arange(20, dtype=np.int64) - 2**53, np.float64),
        (np.arange(20, dtype=np.uint8), np.uint8),
        (np.arange(20) % 3 == 0, np.uint8),
        (np.arange(20, dtype=np.float16), np.float32),
        (np.arange(20, dtype=">f4"), np.float32),
        (np.arange(20) * 1e300, np.float64),
        (np.arange(20, dtype=np.longdouble), np.float64),
    ],
)
def test_values_are_kept_exactly(values: Array, dtype: type, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values.reshape(10, 2))
    splits = load(tmp_path / "a.npy", split={"by": "order"})
    assert everything(splits).dtype == dtype
    assert [int(value) for value in everything(splits).ravel()] == [int(value) for value in values]
    assert splits.train.scale == Scale() or (splits.train.scale.factor, splits.train.scale.levels) == (1.0, None)


@pytest.mark.parametrize(
    ("shape", "dtype", "levels"),
    [
        ((8, 9), np.uint8, 255),
        ((8, 9), np.bool_, 1),
        ((8, 9, 3), np.uint8, 255),
        ((8, 9), np.float32, None),
        ((8, 9), np.uint16, None),
        ((72,), np.uint8, None),
        ((8, 9, 10), np.uint8, None),
    ],
)
def test_bytes_of_two_axes_are_images(shape: tuple[int, ...], dtype: Any, levels: int | None, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((10, *shape), dtype))
    split = load(tmp_path / "a.npy").train
    assert split.scale.levels == levels
    assert split.batch(slice(0, 1)).value_BD[0, 0].item() == pytest.approx(1 / (levels or 1))


@pytest.mark.parametrize(
    ("file", "channels", "shape"),
    [
        ((5,), None, Shape(1, (5,))),
        ((3,), None, Shape(1, (3,))),
        ((3, 4), None, Shape(1, (3, 4))),
        ((3, 40), "first", Shape(3, (40,), "first")),
        ((40, 3), "last", Shape(3, (40,), "last")),
        ((3, 8, 9), None, Shape(3, (8, 9), "first")),
        ((8, 9, 4), None, Shape(4, (8, 9), "last")),
        ((2, 9, 3), None, Shape(2, (9, 3), "first")),
        ((8, 9, 3), "none", Shape(1, (8, 9, 3))),
        ((8, 9, 10), None, Shape(1, (8, 9, 10))),
        ((8, 9, 10), "last", Shape(10, (8, 9), "last")),
        ((8, 9, 10, 1), None, Shape(1, (8, 9, 10), "last")),
        ((2, 9, 10, 11), None, Shape(2, (9, 10, 11), "first")),
        ((5, 9, 10, 11), None, Shape(1, (5, 9, 10, 11))),
    ],
)
def test_the_axis_of_the_channels_is_found(file: tuple[int, ...], channels: Any, shape: Shape, tmp_path: Path) -> None:
    values = DRAW.standard_normal((10, *file))
    np.save(tmp_path / "a.npy", values)
    splits = load(tmp_path / "a.npy", channels=channels, split={"by": "order"})
    assert splits.shape == shape
    assert splits.shape.file == file
    np.testing.assert_array_equal(shape.to_file(everything(splits)), values)


@given(hnp.array_shapes(min_dims=2, max_dims=5, max_side=6), st.sampled_from([None, "first", "last", "none"]))
def test_to_file_undoes_from_file(dims: tuple[int, ...], channels: Any) -> None:
    values = np.arange(np.prod(dims)).reshape(dims)
    if channels in ("first", "last") and len(dims) < 3:
        with pytest.raises(Unsuitable, match=r"data\.channels"):
            sample_shape(dims[1:], channels)
        return
    shape = sample_shape(dims[1:], channels)
    flat = shape.from_file(values)
    assert flat.shape == (dims[0], shape.size)
    np.testing.assert_array_equal(shape.to_file(flat), values)
    if shape.axis == "last":
        np.testing.assert_array_equal(flat[0].reshape(shape.dims)[0], values[0, ..., 0])


@pytest.mark.parametrize("kind", ["standard", "minmax"])
@pytest.mark.parametrize("centre", [0.0, 1e6])
def test_scales_are_scikit_learns(kind: Any, centre: float, tmp_path: Path) -> None:
    values = centre + DRAW.standard_normal((200, 5)) * (1e-3 if centre else [1, 10, 0.1, 5, 2])
    values[::7, 2] = np.nan
    values[:, 4] = 3.0
    np.save(tmp_path / "a.npy", values)
    splits = load(tmp_path / "a.npy", scale=kind, split={"by": "order"})
    theirs = (StandardScaler() if kind == "standard" else MinMaxScaler()).fit(values[:120])
    for split, rows in zip(splits.parts.values(), (slice(120), slice(120, 160), slice(160, 200)), strict=True):
        batch = split.batch(slice(None))
        expected = np.nan_to_num(theirs.transform(values[rows]))
        np.testing.assert_allclose(batch.value_BD.numpy(), expected, atol=2e-5)
        known = ~np.isnan(values[rows])
        restored = split.scale.undo(batch.value_BD).numpy()
        spread = np.nanmax(values, 0) - np.nanmin(values, 0)
        assert (np.abs(restored - values[rows])[known] <= 1e-6 * np.broadcast_to(spread, known.shape)[known]).all()


@given(
    hnp.arrays(np.float64, (20, 3), elements=st.floats(-1e3, 1e3)),
    st.sampled_from(["standard", "minmax", "none"]),
    st.sampled_from([0.0, -5.0, 1e9]),
)
def test_undo_gives_the_values_back(values: Array, kind: Any, centre: float) -> None:
    split = Split(values + centre)
    scale = fitted_scale(kind, Splits(split, split, split, Shape(1, (3,))))
    scaled = scale.apply(torch.from_numpy(split.values_ND))
    assert scaled.dtype == torch.float32
    assert torch.isfinite(scaled).all()
    tolerance = 2.0**-23 * (np.abs(scaled.numpy()).max() * np.max(np.asarray(scale.factor)) + 1e-9)
    np.testing.assert_allclose(scale.undo(scaled).numpy(), split.values_ND, rtol=1e-15, atol=tolerance)


def test_undo_knows_the_shift_as_it_was_applied() -> None:
    """The mean of days since an epoch is no number of float32, in which they are."""
    values = (2_450_000.3 + DRAW.normal(0, 0.3, (200, 4))).astype(np.float32)
    split = Split(values)
    scale = fitted_scale("standard", Splits(split, split, split, Shape(1, (4,))))
    undone = scale.undo(scale.apply(torch.from_numpy(values))).numpy()
    np.testing.assert_allclose(undone - values, 0, atol=1e-6)


@pytest.mark.parametrize("unit", [1e-60, 1e60])
def test_differences_have_units_beyond_float32(unit: float) -> None:
    found = Scale(0.0, unit).stretch(torch.tensor([2.0]))
    assert float(found) == pytest.approx(2 * unit)


def test_errors_are_scaled_with_the_values(tmp_path: Path) -> None:
    values, sigma = DRAW.standard_normal((10, 3)) * 1e-50, np.full((10, 3), 1e-51)
    np.savez(tmp_path / "a.npz", values=values, sigma=sigma)
    split = load(tmp_path / "a.npz", scale="standard").train
    sigma_BD = split.batch(slice(None)).sigma_BD
    assert sigma_BD is not None
    np.testing.assert_allclose(sigma_BD, np.broadcast_to(1e-51 / np.asarray(split.scale.factor), (6, 3)), rtol=1e-6)


# Missing values


@given(hnp.arrays(np.bool_, (12, 4)), st.integers(0, 9), st.sampled_from([np.float32, np.float64]))
def test_missing_values_have_no_influence(
    tmp_path_factory: pytest.TempPathFactory, observed: Array, seed: int, dtype: Any
) -> None:
    observed[:, seed % 4] = True
    folder = tmp_path_factory.mktemp("gaps")
    draw = np.random.default_rng(seed)
    values, sigma = draw.standard_normal((12, 4)).astype(dtype), draw.random((12, 4)) + 0.1
    digests, batches = set(), []
    for number, junk in enumerate((0.0, 1e30, np.inf, np.nan)):
        filled = np.where(observed, values, dtype(junk))
        errors = np.where(observed, sigma, -junk)
        np.savez(folder / f"{number}.npz", x=filled, observed=observed, sigma=errors)
        splits = load(folder / f"{number}.npz", scale="standard")
        digests.add(splits.sha256)
        batches.append(splits.train.batch(slice(None)))
        assert splits.shape.mask == (not observed.all())
    np.savez(folder / "nan.npz", x=np.where(observed, values, dtype(np.nan)), sigma=sigma)
    digests.add(load(folder / "nan.npz", scale="standard").sha256)
    assert len(digests) == 1
    for batch in batches:
        assert torch.equal(batch.value_BD, batches[0].value_BD)
        assert batch.sigma_BD is not None
        assert (batch.sigma_BD > 0).all()
        if batch.known_BD is not None:
            assert (batch.value_BD[~batch.known_BD] == 0).all()


def test_a_mask_that_hides_nothing_is_no_mask(tmp_path: Path) -> None:
    values = np.nan_to_num(FIELDS)
    np.savez(tmp_path / "a.npz", x=values, observed=np.ones(values.shape, np.int64))
    np.savez(tmp_path / "b.npz", x=values)
    a, b = load(tmp_path / "a.npz"), load(tmp_path / "b.npz")
    assert a.sha256 == b.sha256
    assert not a.shape.mask
    assert a.train.observed_ND is None


def test_bytes_can_be_missing(tmp_path: Path) -> None:
    pixels = DRAW.integers(0, 256, (10, 4, 4), dtype=np.uint8)
    seen = DRAW.random((10, 4, 4)) < 0.5
    seen[:, 0, 0] = True
    np.savez(tmp_path / "a.npz", x=pixels, seen=seen)
    splits = load(tmp_path / "a.npz", observed="seen", array="x", split={"by": "order"})
    assert splits.train.values_ND.dtype == np.uint8
    np.testing.assert_array_equal(splits.test.observed_ND, seen[8:].reshape(2, 16))


# Splits


@given(st.integers(5, 300), st.floats(0.2, 0.4), st.floats(0.2, 0.4), st.booleans())
def test_samples_are_divided(count: int, val: float, test: float, draw: bool) -> None:
    shares = {"val": val, "test": test}
    parts = by_sample(count, shares, draw=draw)
    rows = {split: np.arange(count)[part] for split, part in parts.items()}
    assert sorted(np.concatenate(list(rows.values()))) == list(range(count))
    assert list(rows) == ["train", "val", "test"]
    for split, share in shares.items():
        assert len(rows[split]) == round(share * count)
    if not draw:
        assert np.concatenate(list(rows.values())).tolist() == list(range(count))
    again = by_sample(count, shares, draw=draw)
    assert all(np.array_equal(rows[split], np.arange(count)[part]) for split, part in again.items())


@given(st.lists(st.integers(1, 9), min_size=3, max_size=40), st.floats(0.05, 0.45), st.floats(0.05, 0.45))
def test_groups_stay_whole(sizes: list[int], val: float, test: float) -> None:
    group_N = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    parts = by_group(group_N, {"val": val, "test": test})
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(group_N)))
    held = [set(group_N[rows]) for rows in parts.values()]
    assert all(held)
    assert sum(map(len, held)) == len(sizes)
    again = by_group(group_N, {"val": val, "test": test})
    assert all(np.array_equal(parts[split], again[split]) for split in parts)


def test_shares_of_groups_are_near_what_is_asked() -> None:
    parts = by_group(np.arange(1000) // 5, {"val": 0.1, "test": 0.3})
    assert [len(parts[split]) for split in ("train", "val", "test")] == [600, 100, 300]
    assert (np.diff(parts["train"]) < 0).any()  # the first samples of a split are of many groups


def test_a_draw_is_not_the_order(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(200.0).reshape(100, 2))
    random, ordered = load(tmp_path / "a.npy"), load(tmp_path / "a.npy", split={"by": "order"})
    assert random.sha256 != ordered.sha256
    assert sizes(random) == sizes(ordered) == (60, 20, 20)
    assert random.sha256 == load(tmp_path / "a.npy", split={"by": "random"}).sha256
    assert not np.array_equal(np.sort(random.test.values_ND[:, 0]), ordered.test.values_ND[:, 0])


def test_settings_of_a_split_are_joined() -> None:
    base = {"data": {"name": "arrays", "path": "a.npy", "split": {"by": "order"}}}
    assert merge(base, {"data": {"split": {"val": 0.1}}})["data"]["split"] == {"by": "order", "val": 0.1}
    assert "split" not in merge(base, {"data": "digits"})["data"]


# Where files lie


def test_paths_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, folder in enumerate(("here", "mine", "here/data")):
        (tmp_path / folder).mkdir(exist_ok=True)
        np.save(tmp_path / folder / "a.npy", np.full((10, 2), number))
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("GFE_DATA_DIR", str(tmp_path / "mine"))
    data = Arrays(path="a.npy")
    for number, folder in enumerate(("here", "mine", "here/data")):
        assert data.load().train.values_ND[0, 0] == number
        (tmp_path / folder / "a.npy").unlink()
    with pytest.raises(DataError) as error:
        data.load()
    for word in ("data.path: given 'a.npy'", f"{tmp_path}/mine/a.npy", "GFE_DATA_DIR"):
        assert word in str(error.value)


def test_every_file_of_a_folder_is_a_source(tmp_path: Path) -> None:
    write(tmp_path / "a.zarr", x=FIELDS)
    files = {path for path in (tmp_path / "a.zarr").rglob("*") if path.is_file()}
    assert files < set(Arrays(path="a.zarr").sources([tmp_path]))
    assert files < set(Arrays(path=str(tmp_path / "a.zarr")).sources([]))


def test_the_fingerprint_tells_what_bytes_mean(tmp_path: Path) -> None:
    """Equal bytes are other data as vectors, as fields, as Booleans."""
    zeros = np.zeros((10, 4, 4), np.uint8)
    arrays = zeros, zeros.reshape(10, 16), zeros.reshape(10, 2, 8), zeros.astype(bool)
    for settings in ({}, {"scale": "standard"}, {"train_images": 3}):
        shas = set()
        for number, array in enumerate(arrays):
            np.save(tmp_path / f"{number}.npy", array)
            shas.add(load(tmp_path / f"{number}.npy", **settings).sha256)
        assert len(shas) == 4


def test_where_files_lie_does_not_change_a_trial() -> None:
    """What the settings choose of a file is in the data's hash, and so are the splits."""

    def fingerprint(sha256: str = "a", **settings: Any) -> str:
        return Trial.build({"data": {"name": "arrays", "path": "a.npy", **settings}}).fingerprint(sha256)

    same = fingerprint(path="/elsewhere/b.npz", array="x", labels="y", split={"by": "order"}, unit="m", channels="none")
    assert same == fingerprint()
    others = [fingerprint("b"), fingerprint(scale="standard"), fingerprint(train_images=3), fingerprint(held_out=1)]
    idx = Trial.build({"data": {"name": "idx", "path": "a"}})
    assert idx.fingerprint("a") == Trial.build({"data": {"name": "idx", "path": "b"}}).fingerprint("a")
    assert len({fingerprint(), idx.fingerprint("a"), *others}) == 6


# Bad files


def npz(**arrays: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.savez(folder / "a.npz", **arrays)
        return folder / "a.npz"

    return make


def npy(array: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.save(folder / "a.npy", array)
        return folder / "a.npy"

    return make


def text(content: str, name: str = "a.csv") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return make


def cut(name: str, kept: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        np.save(path, FIELDS) if name.endswith(".npy") else WRITERS[name](path, {"x": FIELDS})
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content))])
        return path

    return make


def pictures(*sizes: tuple[int, ...]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for number, size in enumerate(sizes):
            picture(folder / f"{number}.png", np.zeros(size, np.uint8))
        return folder

    return make


def damaged_picture(folder: Path) -> Path:
    pictures((9, 9), (9, 9))(folder)
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:40])
    return folder


def images_beside_classes(folder: Path) -> Path:
    pictures((9, 9))(folder)
    picture(folder / "cat" / "0.png", np.zeros((9, 9), np.uint8))
    return folder


def cmyk(folder: Path) -> Path:
    Image.new("CMYK", (4, 4)).save(folder / "a.tif")
    return folder


def pickled_zarr(folder: Path) -> Path:
    array = zarr.create_array(folder / "a.zarr", data=ONE, zarr_format=2, compressors=None)
    stored = folder / "a.zarr" / ".zarray"
    stored.write_text(stored.read_text().replace('"compressor": null', '"compressor": {"id": "pickle"}'))
    (folder / "a.zarr" / "0.0").write_bytes(pickle.dumps(np.asarray(array[...])))
    return folder / "a.zarr"


def strings_in_hdf5(folder: Path) -> Path:
    with h5py.File(folder / "a.h5", "w") as file:
        file["x"] = [["a", "b"]] * 5
    return folder / "a.h5"


def dates_in_netcdf(folder: Path) -> Path:
    dates = np.full((5, 2), np.datetime64("2020-01-01", "ns"))
    xr.Dataset({"x": (("n", "d"), dates)}).to_netcdf(folder / "a.nc", engine="h5netcdf")
    return folder / "a.nc"


ONE = np.arange(30.0).reshape(10, 3)
GAP = np.where(np.arange(10)[:, None] == 7, np.nan, ONE)
ZERO = np.where(np.arange(10)[:, None] == 4, 0.0, np.ones((10, 3)))

BAD: dict[str, tuple[Callable[[Path], Path], dict[str, Any], list[str]]] = {
    "no axis": (npy(np.float64(3.0)), {}, ["a: given shape ()", "allowed: (N, …)"]),
    "one axis": (npy(np.arange(5.0)), {}, ["a: given shape (5,)", "allowed: (N, …)"]),
    "an axis of length 0": (npy(np.zeros((5, 0))), {}, ["given shape (5, 0)", "no axis of length 0"]),
    "no samples": (npy(np.zeros((0, 5))), {}, ["given shape (0, 5)"]),
    "everything missing": (npy(np.full((5, 3), np.nan)), {}, ["a: sample 0, of the", "no observed value"]),
    "a sample missing": (npy(GAP), {"split": {"by": "order"}}, ["sample 7, of the val split", "no observed value"]),
    "a missing sample of a split": (npz(train=ONE, test=GAP), {}, ["test: sample 7, of the test split"]),
    "one sample": (npy(ONE[:1]), {}, ["given 1 sample,", "none to the val split"]),
    "few samples": (npy(ONE[:4]), {"split": {"val": 0.1}}, ["given 4 samples,", "val split", "data.split"]),
    "none to train on": (npy(ONE[:2]), {"split": {"val": 0.5, "test": 0.49}}, ["none to the train split"]),
    "none held out": (npz(train=ONE[:2], test=ONE), {}, ["given 2 samples, which leaves none to the val split"]),
    "strings": (npy(np.array([["a", "b"]] * 5)), {}, ["given <U1", "real or whole numbers"]),
    "strings in HDF5": (strings_in_hdf5, {}, ["x: given object", "real or whole numbers"]),
    "complex": (npy(ONE * 1j), {}, ["given complex128", "real or whole numbers"]),
    "dates": (npy(np.full((5, 2), np.datetime64("2020-01-01"))), {}, ["given datetime64[D]"]),
    "dates in netCDF": (dates_in_netcdf, {}, ["x: given datetime64[ns]"]),
    "records": (npy(np.zeros((5, 2), [("a", "f4")])), {}, ["allowed: real or whole numbers"]),
    "infinite": (npy(np.where(ONE == 16, np.inf, ONE)), {}, ["a: sample 5 has an infinite value", "NaN where missing"]),
    "objects": (npy(np.array([[None]] * 5)), {}, ["cannot be read (", "pickle"]),
    "objects in an archive": (npz(x=np.array([[None]] * 5)), {}, ["cannot be read (", "pickle"]),
    "a pickle": (lambda folder: text("", "a.pkl")(folder), {}, ["'.pkl'", "allowed: .npy, .npz, .h5"]),
    "a zarr pickle": (pickled_zarr, {}, ["cannot be read (", "pickle"]),
    "huge whole numbers": (npy(np.full((5, 2), 2**53 + 1)), {}, ["up to 9007199254740993", "2⁵³"]),
    "few labels": (npz(x=ONE, labels=np.arange(9)), {}, ["labels: given shape (9,)", "allowed: (10,)"]),
    "labels in two columns": (npz(x=ONE, labels=np.zeros((10, 2))), {}, ["labels: given shape (10, 2)"]),
    "labels not whole": (npz(x=ONE, labels=np.arange(10) / 2), {}, ["labels: given numbers that are not whole"]),
    "labels missing": (npz(x=ONE, labels=np.full(10, np.nan)), {}, ["labels: given numbers that are not whole"]),
    "complex labels": (npz(x=ONE, labels=np.full(10, 1j)), {}, ["labels: given complex128"]),
    "labels of two kinds": (
        npz(train=ONE, test=ONE, train_labels=np.arange(10), test_labels=np.array(["a"] * 10)),
        {},
        ["labels: given text and numbers"],
    ),
    "no such labels": (
        npz(x=ONE, digit=np.arange(10)),
        {"labels": "digits", "array": "x"},
        ["mean 'digit'", "data.labels"],
    ),
    "observed of another shape": (
        npz(x=ONE, observed=ONE[:, :2] > 0),
        {},
        ["observed: given shape (10, 2)", "(10, 3)"],
    ),
    "observed by degrees": (npz(x=ONE, observed=ONE), {}, ["observed: given other values than true and false"]),
    "sigma of another shape": (npz(x=ONE, sigma=ONE[:5]), {}, ["sigma: given shape (5, 3)", "(10, 3), as x"]),
    "sigma zero": (npz(x=ONE, sigma=ZERO), {}, ["sigma: sample 4 has 0;", "allowed: positive"]),
    "sigma negative": (npz(x=ONE, sigma=2 * ZERO - 1), {}, ["sigma: sample 4 has -1;"]),
    "sigma missing": (npz(x=ONE, sigma=np.where(ZERO > 0, 1, np.nan)), {}, ["sigma: sample 4 has nan;"]),
    "sigma infinite": (npz(x=ONE, sigma=np.where(ZERO > 0, 1, np.inf)), {}, ["sigma: sample 4 has inf;"]),
    "sigma of text": (npz(x=ONE, sigma=ONE.astype(str)), {}, ["sigma: given <U"]),
    "sigma of some": (npz(train=ONE, test=ONE, train_sigma=ONE + 1), {}, ["sigma: given for some splits"]),
    "truncated npy": (cut("a.npy", 0.5), {}, ["cannot be read ("]),
    "truncated header": (cut("a.npy", 0.003), {}, ["cannot be read ("]),
    "truncated npz": (cut("a.npz", 0.5), {}, ["cannot be read ("]),
    "truncated h5": (cut("a.h5", 0.5), {}, ["cannot be read ("]),
    "truncated nc": (cut("a.nc", 0.5), {}, ["cannot be read ("]),
    "truncated zarr": (cut("a.zarr.zip", 0.5), {}, ["cannot be read ("]),
    **{f"empty {ending}": (text("", f"a{ending}"), {}, ["a" + ending, "cannot be read ("]) for ending in READERS},
    "a missing file": (lambda folder: folder / "a.npy", {}, ["data.path: given", "looked in"]),
    "a wrong ending": (text("", "a.mat"), {}, ["'.mat'", "allowed: .npy, .npz, .h5"]),
    "no ending": (text("", "a"), {}, ["the ending ''"]),
    "a wrong format": (text("1,2\n3,4\n", "a.npz"), {}, ["cannot be read (it is no .npz file)"]),
    "splits of other shapes": (
        npz(train=ONE, test=ONE[:, :2]),
        {},
        ["test: given samples of shape (2,)", "(3,), as train"],
    ),
    "splits of other types": (
        npz(train=ONE.astype(np.uint8), test=ONE),
        {},
        ["test: given float64", "uint8, as train"],
    ),
    "validation without a test": (npz(train=ONE, val=ONE), {}, ["given train and val alone", "train and test"]),
    "training without a test": (npz(train=ONE, train_labels=np.arange(10)), {}, ["given train alone"]),
    "several arrays": (
        npz(a=ONE, b=ONE),
        {},
        ["holds several arrays", "allowed: data.array: a, b; or arrays called train and test"],
    ),
    "no array": (npz(labels=np.arange(5)), {}, ["holds no array of samples"]),
    "no array at all": (npz(), {}, ["holds no array of samples"]),
    "an unknown array": (
        npz(fields=ONE, more=ONE),
        {"array": "feilds"},
        ["data.array: given 'feilds'", "mean 'fields'"],
    ),
    "one group": (npz(x=ONE, groups=np.zeros(10)), {}, ["groups: given 1 group;", "at least 3"]),
    "one group to train on": (
        npz(train=ONE, test=ONE, train_groups=np.zeros(10)),
        {},
        ["groups: given 1 group;", "at least 2"],
    ),
    "few groups": (npz(x=ONE, groups=np.arange(10) % 2), {}, ["groups: given 2 groups;"]),
    "groups short": (npz(x=ONE, groups=np.arange(9)), {}, ["groups: given shape (9,)"]),
    "groups missing": (npz(x=ONE, groups=np.where(np.arange(10) > 3, np.nan, 1)), {}, ["groups: given NaN"]),
    "no groups": (npz(x=ONE), {"split": {"by": "group"}}, ["data.split.by: given 'group'", "'groups'"]),
    "groups of no use": (
        npz(train=ONE, val=ONE, test=ONE, g=np.arange(10)),
        {"groups": "g"},
        ["data.groups: given 'g', and nothing is left to split", "allowed: null"],
    ),
    "columns of an array": (npy(ONE), {"columns": ("a", "b")}, ["data.columns: given a, b, and", "is no table"]),
    "channels of vectors": (npy(ONE), {"channels": "first"}, ["data.channels: first", "allowed: null, none"]),
    "ragged rows": (text("a,b\n1,2\n3,4,5\n"), {}, ["line 3: given 3 fields; allowed: 2, as in line 1"]),
    "short rows": (text("a,b\n1,2\n3\n"), {}, ["line 3: given 1 fields"]),
    "text cells": (
        text("a,b\n1,2\n3,hot\n"),
        {},
        ["column 'b': given text like 'hot'", "allowed: numbers", "data.labels"],
    ),
    "columns of one name": (text("a,a\n1,2\n"), {}, ["given two columns of one name"]),
    "no rows": (text("a,b\n"), {}, ["given no rows"]),
    "an unknown column": (text("temp,b\n1,2\n"), {"columns": ("tmp",)}, ["'tmp'", "mean 'temp'"]),
    "no columns": (text("labels\n1\n"), {}, ["given no column of values"]),
    "labels of no column": (text("kind,b\n1,2\n"), {"labels": "knd"}, ["data.labels: given 'knd'", "mean 'kind'"]),
    "errors of a table": (text("a,b\n1,2\n"), {"sigma": "b"}, ["data.sigma: given 'b', with a table"]),
    "an empty cell of labels": (text("a,labels\n1,x\n2,\n"), {}, ["labels: given objects or empty cells"]),
    "images of two sizes": (pictures((9, 9), (9, 8)), {}, ["1.png: given 9 × 8 pixels", "9 × 9 pixels", "0.png"]),
    "images of two modes": (pictures((9, 9), (9, 9, 3)), {}, ["1.png: given", "of 3 channels", "of 1 channel,"]),
    "a damaged image": (damaged_picture, {}, ["cannot be read (1.png: "]),
    "an image of inks": (cmyk, {}, ["a.tif: given a picture of mode CMYK"]),
    "an empty folder": (lambda folder: folder, {}, ["holds no images"]),
    "images beside classes": (images_beside_classes, {}, ["holds images beside folders of images (cat)"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line(case: str, tmp_path: Path) -> None:
    make, settings, words = BAD[case]
    folder = tmp_path / "bad"
    folder.mkdir()
    path = make(folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError) as error:
        load(path, **settings)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("data.")
    assert "read ()" not in message
    assert "allowed: " in message
    for word in words:
        assert word in message
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": {"val": 0.5, "test": 0.5}}, "split: val + test: given 0.5 + 0.5; allowed: a sum below 1"),
        ({"split": {"val": 0}}, "split.val: given 0; allowed: greater than 0"),
        ({"split": {"by": "groups"}}, "split.by: given 'groups'; allowed: 'random', 'order' or 'group'"),
        ({"split": {"vla": 0.1}}, "split.vla: unknown key; did you mean 'val'?"),
        ({"groups": "g", "split": {"by": "order"}}, "groups: given 'g', and split.by 'order'; allowed: split.by group"),
        ({"channels": "second"}, "channels: given 'second'; allowed: 'first', 'last' or 'none'"),
    ],
)
def test_bad_settings_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error, explained("data"):
        Arrays.model_validate({"path": "a.npy", **settings})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "library"),
    [("a.h5", "h5py"), ("a.zarr", "zarr"), ("a.nc", "xarray"), ("a.nc", "h5netcdf"), ("t.parquet", "pyarrow")],
)
def test_a_missing_library_is_named(name: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DataError, match=rf"{name}: needs {library}, .* pip install 'gfe-study\[data\]'"):
        load(tmp_path / name)


def test_a_reader_is_one_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_words(path: Path) -> Contents:
        return {"numbers": np.array(path.read_text().split(), float).reshape(-1, 2)}

    monkeypatch.setitem(READERS, ".words", read_words)
    (tmp_path / "a.words").write_text(" ".join(map(str, range(20))))
    assert sizes(load(tmp_path / "a.words")) == (6, 2, 2)


# Samples to encode


@pytest.mark.parametrize("name", [*WRITERS, "a.npy"])
@pytest.mark.parametrize("count", [7, 50])
def test_samples_are_read_some_at_a_time(name: str, count: int, tmp_path: Path) -> None:
    shape = Shape(1, (6, 7), mask=True)
    if name == "a.npy":
        np.save(tmp_path / name, FIELDS)
    else:
        write(tmp_path / name, x=FIELDS, sigma=np.abs(np.nan_to_num(FIELDS)) + 1, labels=LABELS)
    samples = read_samples(tmp_path / name, shape)
    assert (len(samples), samples.values.dtype, samples.flat) == (50, np.float32, False)
    parts = [samples.batch(slice(start, start + count)) for start in range(0, 50, count)]
    assert [len(part) for part in parts] == [count] * (50 // count) + [50 % count] * (50 % count > 0)
    np.testing.assert_array_equal(np.concatenate([part.values_ND for part in parts]), FIELDS.reshape(50, -1))
    known = np.concatenate(
        [np.ones((len(part), 42), bool) if part.observed_ND is None else part.observed_ND for part in parts]
    )
    np.testing.assert_array_equal(known, ~np.isnan(FIELDS).reshape(50, -1))
    assert all((part.sigma_ND is None) == (name == "a.npy") for part in parts)


def test_samples_may_be_flat_or_named(tmp_path: Path) -> None:
    shape = Shape(3, (4, 5), "last")
    values = DRAW.integers(0, 256, (10, 4, 5, 3), dtype=np.uint8)
    flat = np.moveaxis(values, -1, 1).reshape(10, -1)
    np.savez(tmp_path / "a.npz", test=values, more=flat, more_observed=flat > 9, observed=values >= 0)
    for name, is_flat in (("test", False), ("more", True)):
        samples = read_samples(Path(f"{tmp_path}/a.npz:{name}"), shape)
        assert samples.flat == is_flat
        part = samples.batch(slice(None))
        np.testing.assert_array_equal(part.values_ND, flat)
        assert (part.observed_ND is None) == (name == "test")


def test_rows_of_a_table_are_samples(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,labels,b,kind\n1,x,2,y\n3,x,,y\n")
    for settings in ({"columns": ("b", "a")}, {"names": {"labels": "kind"}}):
        part = read_samples(tmp_path / "a.csv", Shape(1, (2,)), **settings).batch(slice(None))
        wanted = [[1, 2], [3, np.nan]] if "names" in settings else [[2, 1], [np.nan, 3]]
        np.testing.assert_array_equal(part.values_ND, wanted)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (npy(np.zeros((5, 4))), ["a: given shape (5, 4)", "allowed: (N, 1, 3) or (N, 3)"]),
        (npz(a=ONE, b=ONE), ["holds 2 arrays", "a.npz:NAME, NAME one of a, b"]),
        (npz(), ["holds 0 arrays"]),
        (npz(a=ONE, observed=ONE[:2] > 0), ["observed: given shape (2, 3)"]),
        (npy(np.where(ONE == 16, np.inf, ONE)), ["a: sample 5 has an infinite value"]),
        (npz(a=ONE, sigma=ZERO), ["sigma: sample 4 has 0;"]),
        (npy(ONE.astype(str)), ["a: given <U"]),
        (lambda folder: folder / "a.npy", ["not found"]),
        (lambda folder: npz(a=ONE)(folder).with_name("a.npz:b"), ["given the array 'b'", "allowed: a"]),
        (cut("a.npz", 0.5), ["cannot be read ("]),
    ],
)
def test_bad_samples_are_one_line(make: Callable[[Path], Path], words: list[str], tmp_path: Path) -> None:
    path = make(tmp_path)

    def read_all() -> None:
        samples = read_samples(path, Shape(1, (1, 3)), "--samples")
        for start in range(0, len(samples), 3):
            samples.batch(slice(start, start + 3))

    with pytest.raises(DataError) as error:
        read_all()
    assert str(error.value).startswith(f"--samples {tmp_path}/a.np")
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
