"""The optimal bandwidth: J's maximum, found two ways, kept on disk, and what the command prints."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

import pytest
from sweeps import assert_one_line

from gfe_study.density import bandwidth as module
from gfe_study.density.bandwidth import (
    Bandwidth,
    BandwidthError,
    Samples,
    by_fixed_point,
    by_root,
    optimal_bandwidth,
    usable_bandwidth,
)
from gfe_study.density.jsd import jsd
from gfe_study.density.table import PAPER, SAMPLES, Cell, cells, pairs
from gfe_study.io.cache import CACHE_DIR_VARIABLE, cache_folder
from gfe_study.targets.base import Target
from gfe_study.targets.mixture_of_gaussians import MixtureOfGaussians
from gfe_study.targets.standard_normal import StandardNormal

NORMAL, MIXTURE = StandardNormal(), MixtureOfGaussians()
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(CACHE_DIR_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run(typed: Run) -> Run:
    return partial(typed, "bandwidth")


@pytest.mark.parametrize("target", [NORMAL, MIXTURE], ids=lambda target: target.name)
@pytest.mark.parametrize(("latent_dim", "samples"), [(2, 250), (8, 500)])
@pytest.mark.parametrize("bandwidth", [0.5, 0.8, 1.1])
def test_the_slope_is_that_of_the_divergence(target: Target, latent_dim: int, samples: int, bandwidth: float) -> None:
    drawn, h = Samples(target, latent_dim, samples, 0), bandwidth * target.width
    drawn.centre_ML, drawn.point_PL = drawn.centre_ML.double(), drawn.point_PL.double()
    drawn.target_P = target.log_density(drawn.point_PL)
    step = 1e-4 * h
    differences = (drawn.divergence(h + step) - drawn.divergence(h - step)) / (2 * step)
    assert drawn.slope(h) == pytest.approx(h**3 * differences, rel=1e-4, abs=1e-9)


def test_the_divergence_is_that_of_the_loss() -> None:
    """J = 2 JSD − 2 log 2, with every point as z′ and as z″."""
    drawn = Samples(NORMAL, 3, 200, 0)
    estimated = float(jsd(drawn.point_PL, drawn.point_PL, drawn.centre_ML, NORMAL, 0.5))
    assert drawn.divergence(0.5) == pytest.approx(2 * estimated - 2 * 0.6931472, abs=1e-5)


@pytest.mark.parametrize("target", [NORMAL, MIXTURE], ids=lambda target: target.name)
@pytest.mark.parametrize(("latent_dim", "samples"), [(2, 500), (5, 1000), (20, 500), (40, 2000)])
def test_root_and_fixed_point_agree_at_the_peak(target: Target, latent_dim: int, samples: int) -> None:
    drawn = Samples(target, latent_dim, samples, 3)
    root = by_root(drawn)
    assert by_fixed_point(drawn) == pytest.approx(root, abs=1e-3 * target.width)
    assert by_root(drawn, 1.5 * root) == pytest.approx(root, abs=1e-4 * target.width)
    assert drawn.update(root) == pytest.approx(root, rel=2e-2)
    for other in (0.9, 1.1, 0.6, 1.5):
        assert drawn.divergence(other * root) < drawn.divergence(root)


def test_bandwidths_are_proportional_to_widths() -> None:
    """A mixture of one mode is a normal; its samples are the same noise, moved and scaled."""
    one = MixtureOfGaussians(components=1, radius=3.0, mode_width=0.5)
    found, normal = (optimal_bandwidth(target, 4, 200, trials=3) for target in (one, NORMAL))
    assert found.h_opt == pytest.approx(normal.h_opt / 2, abs=2e-4)
    assert found.width == 0.5


def test_a_bandwidth_averages_sets_of_samples() -> None:
    each = [by_root(Samples(NORMAL, 2, 250, trial)) for trial in range(3)]
    found = optimal_bandwidth(NORMAL, 2, 250, trials=3)
    assert (found.h_opt, found.std) == pytest.approx((fmean(each), stdev(each)), abs=2e-4)


def test_few_samples_need_a_wide_kernel() -> None:
    assert optimal_bandwidth(MIXTURE, 2, 2000, trials=2).h_opt < 0.75 * optimal_bandwidth(MIXTURE, 2, 100, 2).h_opt
    assert optimal_bandwidth(MIXTURE, 2, 100, 2).h_opt < MIXTURE.width


def test_latents_that_would_collapse_are_refused() -> None:
    with pytest.raises(BandwidthError, match=r"h_opt is 1\.0\d\d for 250 samples in 40 latent dimensions.*collapse"):
        usable_bandwidth(NORMAL, 40, 250)
    assert optimal_bandwidth(NORMAL, 40, 250).collapses
    assert usable_bandwidth(NORMAL, 20, 250) == pytest.approx(0.92, abs=0.02)


def test_a_fixed_point_that_is_not_found_says_so() -> None:
    with pytest.raises(BandwidthError, match=r"was not found from h = 0 \("):
        by_fixed_point(Samples(NORMAL, 2, 200, 0), 0.0)


PLANTED = {"h_opt": 0.123, "std": 0.045, "width": 1.0}


def only_file(folder: Path) -> Path:
    (file,) = (folder / "bandwidth").glob("*.json")
    return file


def test_a_second_call_reads_what_the_first_kept(empty_cache: Path) -> None:
    found = optimal_bandwidth(NORMAL, 5, 100, trials=2)
    file = only_file(empty_cache)
    assert Bandwidth(**json.loads(file.read_text())) == found
    file.write_text(json.dumps(PLANTED))
    assert optimal_bandwidth(NORMAL, 5, 100, trials=2) == Bandwidth(**PLANTED)
    for other in (
        optimal_bandwidth(NORMAL, 5, 101, trials=2),
        optimal_bandwidth(NORMAL, 5, 100, trials=3),
        optimal_bandwidth(NORMAL, 5, 100, trials=2, method="fixed-point"),
        optimal_bandwidth(MixtureOfGaussians(radius=2.0), 5, 100, trials=2),
        optimal_bandwidth(MixtureOfGaussians(radius=3.0), 5, 100, trials=2),
    ):
        assert other.h_opt != PLANTED["h_opt"]
    assert len(list((empty_cache / "bandwidth").glob("*.json"))) == 6


@pytest.mark.parametrize(
    "damage", ["", "{", "null", "[1]", '{"h_opt": 1}', '{"h_opt": NaN, "std": 0, "width": 1}', '{"h_opt": "a"}', "\0"]
)
def test_a_damaged_file_is_computed_again(empty_cache: Path, damage: str) -> None:
    found = optimal_bandwidth(NORMAL, 5, 50, trials=1)
    file = only_file(empty_cache)
    file.write_text(damage)
    assert optimal_bandwidth(NORMAL, 5, 50, trials=1) == found
    assert Bandwidth(**json.loads(file.read_text())) == found


def test_where_nothing_can_be_kept_it_is_computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(CACHE_DIR_VARIABLE, str(tmp_path / "file"))
    assert optimal_bandwidth(NORMAL, 5, 50, trials=1).h_opt == pytest.approx(0.73, abs=0.08)


COMPUTE_ONCE = """
import os, sys, time
from gfe_study.io.cache import cached
def slowly():
    time.sleep(1)
    return os.getpid()
print("ready", flush=True)
sys.stdin.readline()
print(cached("shared/number", [1], slowly, int, int))
"""


def test_of_two_processes_at_once_one_computes(empty_cache: Path) -> None:
    command = [sys.executable, "-c", COMPUTE_ONCE]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:  # both wait: now they start together
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    found = [int(worker.communicate(timeout=60)[0]) for worker in workers]
    assert found[0] == found[1]
    assert found[0] in [worker.pid for worker in workers]


def test_the_cache_is_in_the_users_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv(CACHE_DIR_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "gfe-study"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "gfe-study"


def cell(latent_dim: int, samples: int) -> Cell:
    paper = PAPER[latent_dim][SAMPLES.index(samples)]
    return Cell(latent_dim, samples, paper, optimal_bandwidth(NORMAL, latent_dim, samples))


@pytest.mark.parametrize(("latent_dim", "samples"), [(5, 1000), (10, 500), (20, 2000), (40, 2000)])
def test_cells_of_the_papers_table(latent_dim: int, samples: int) -> None:
    assert cell(latent_dim, samples).within


def test_a_cell_is_within_the_papers_range_or_not() -> None:
    ours = Bandwidth(0.58, 0.0, 1.0)
    assert Cell(5, 1000, (0.55, 0.01), ours).within
    assert Cell(5, 1000, (0.60, 0.0), ours).within
    assert Cell(5, 1000, (0.55, 0.005), ours).within is False
    assert Cell(5, 1000, None, ours).within is None
    assert len(pairs()) == 30
    assert sum(paper is not None for row in PAPER.values() for paper in row) == 27


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_table(run: Run) -> None:
    found = list(cells())
    assert all(cell.within for cell in found if cell.paper is not None)
    assert all(cell.ours.collapses == (cell.paper is None) for cell in found)
    code, out, _ = run("--table", "--json")  # read from the cache
    shown = json.loads(out)
    assert code == 0
    assert (shown["within"], shown["finite"], len(shown["cells"])) == (27, 27, 30)
    code, out, _ = run("--table")
    assert code == 0
    assert out.splitlines()[-1].startswith("27 of 27 finite cells")
    assert out.count(">1") == 6
    assert "0.46 ± 0.08" in out


def test_the_table_marks_what_is_outside(run: Run, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell planted: ours is 0.5 everywhere, but 2 in the last row."""

    def planted(target: Target, latent_dim: int, *_: object) -> Bandwidth:
        return Bandwidth(0.5 if latent_dim < 40 else 2.0, 0.01, 1.0)

    monkeypatch.setattr(module, "_found", planted)
    code, out, _ = run("--table", "--json")
    shown = json.loads(out)
    assert code == 0
    within = {(one["latent_dim"], one["samples"]) for one in shown["cells"] if one["within"]}
    assert within == {(2, 250), (5, 2000), (5, 4000)}
    assert (shown["within"], shown["finite"]) == (3, 27)
    assert all(one["collapses"] == (one["latent_dim"] == 40) for one in shown["cells"])
    assert shown["cells"][0]["paper"] == {"h_opt": 0.46, "std": 0.08}
    _, out, _ = run("--table")
    assert out.count("! ") == 24 + 1  # one in the last line
    assert out.splitlines()[-1].startswith("3 of 27 finite cells")


def test_one_cell_as_json_and_as_a_line(run: Run) -> None:
    code, out, err = run("--latent-dim", "5", "--samples", "300", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert set(found) == {"h_opt", "std"}
    code, out, _ = run("--latent-dim", "5", "--samples", "300")
    assert code == 0
    assert out.count("\n") == 1
    assert f"{found['h_opt']:.4f}" in out
    assert f"variance 1² − h² = {1 - found['h_opt'] ** 2:.4f}" in out
    code, out, _ = run("--latent-dim", "5", "--samples", "300", "--json", "--method", "fixed-point")
    assert json.loads(out)["h_opt"] == pytest.approx(found["h_opt"], abs=1e-3)


def test_a_collapse_is_refused_but_told_in_json(run: Run) -> None:
    code, out, err = run("--latent-dim", "40", "--samples", "250")
    assert (code, out) == (2, "")
    assert err.startswith("error: h_opt is 1.0")
    assert "would collapse" in err
    assert err.count("\n") == 1
    code, out, _ = run("--latent-dim", "40", "--samples", "250", "--json")
    assert code == 0
    assert json.loads(out)["h_opt"] > 1


def test_another_target(run: Run) -> None:
    arguments = ["--latent-dim", "2", "--samples", "200", "--json", "--target", "mixture_of_gaussians"]
    far, near = (
        json.loads(run(*arguments, "--set", f"target.radius={radius}", "--set", "target.components=3")[1])
        for radius in (4, 0.3)
    )
    assert far["h_opt"] != near["h_opt"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["--latent-dim", "not given", "--table"]),
        (["--latent-dim", "5"], ["--samples", "not given"]),
        (["--latent-dim", "0", "--samples", "10"], ["--latent-dim", "given 0", "1 to 1,000"]),
        (["--latent-dim", "1001", "--samples", "10"], ["--latent-dim", "given 1001"]),
        (["--latent-dim", "5", "--samples", "1"], ["--samples", "given 1", "2 to 200,000"]),
        (["--latent-dim", "5", "--samples", "10", "--target", "normal"], ["target", "'normal'", "standard_normal"]),
        (["--latent-dim", "5", "--samples", "10", "--set", "target.radius=1"], ["radius", "unknown key"]),
        (["--latent-dim", "5", "--samples", "10", "--set", "radius=1"], ["--set radius", "target.radius"]),
        (["--latent-dim", "5", "--samples", "10", "--method", "newton"], ["--method", "root or fixed-point"]),
        (["--latent-dim", "1", "--samples", "10", "--target", "mixture_of_gaussians"], ["target.name", "2 or more"]),
        (["--table", "--samples", "10"], ["--table", "one or the other"]),
        (["--table", "--target", "mixture_of_gaussians"], ["--table", "standard normal"]),
    ],
)
def test_bad_arguments_are_one_line(run: Run, arguments: list[str], parts: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert_one_line(err, *parts)
