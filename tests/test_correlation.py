"""The correlation study: its latents, its opponent, and what the command prints."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import matplotlib.image
import pytest
import torch
from scipy.stats import pearsonr
from sweeps import assert_one_line

from gfe_study.analysis.report.correlation import draw_correlation
from gfe_study.density.bandwidth import BandwidthError
from gfe_study.density.correlation import (
    SEPARATIONS,
    correlate,
    exact_divergence,
    whitened_mixture,
)
from gfe_study.density.discriminator import Discriminators, discriminator_divergence
from gfe_study.targets.standard_normal import StandardNormal

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, typed: Run) -> Run:
    monkeypatch.setenv("GFE_CACHE_DIR", str(tmp_path / "cache"))
    return partial(typed, "correlation")


@pytest.mark.parametrize("separation", [0.0, 3.0, 6.0])
def test_the_mixture_is_white_and_has_two_modes(separation: float) -> None:
    latents = whitened_mixture(separation, 100_000, 3, torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(latents.mean(0), torch.zeros(3).double(), atol=0.02, rtol=0)
    torch.testing.assert_close(latents.t().cov(), torch.eye(3).double(), atol=0.02, rtol=0)
    deviation = math.sqrt(1 + separation**2 / 4)
    kurtosis = 3 - 2 * (separation / 2 / deviation) ** 4  # of ±d + N(0, σ²), d² + σ² = 1: 3 − 2 d⁴
    assert float(latents[:, 0].pow(4).mean()) == pytest.approx(kurtosis, abs=0.06)
    assert float(latents[:, 1].pow(4).mean()) == pytest.approx(3, abs=0.1)


def test_the_divergence_rises_with_the_separation() -> None:
    exact = [exact_divergence(separation) for separation in SEPARATIONS]
    assert exact[0] == pytest.approx(0, abs=1e-9)
    assert all(low < high for low, high in pairwise(exact[1:]))
    assert 0.12 < exact[-1] < math.log(2)
    assert SEPARATIONS[0] == 0
    assert SEPARATIONS[-1] == 6


def test_discriminators_are_independent_networks() -> None:
    """The batched networks are ordinary ones, and what one is trained on does not reach another."""
    generator = torch.Generator().manual_seed(0)
    networks, latents = Discriminators(3, 4, generator), torch.randn(3, 7, 4, generator=generator)
    assert [tuple(weight.shape) for weight, _ in networks.layers] == [(3, 4, 40), (3, 40, 40), (3, 40, 40), (3, 40, 1)]
    ours = networks(latents)
    for number in range(3):
        hidden = latents[number]
        for place, (weight, bias) in enumerate(networks.layers):
            hidden = hidden @ weight[number] + bias[number]
            if place < 3:
                hidden = torch.nn.functional.leaky_relu(hidden, 0.2)
        torch.testing.assert_close(ours[number], hidden[:, 0])
    ours[1].sum().backward()
    for part in networks.parameters():
        assert part.grad is not None
        assert not part.grad[[0, 2]].any()
        assert part.grad[1].any()


def test_a_discriminator_estimates_the_divergence() -> None:
    """Two dimensions, plenty of samples: within some hundredths of the exact value, and never above it by much."""
    generator = torch.Generator().manual_seed(0)
    separations = (0.0, 4.0, 6.0)
    fitted, encoded = (torch.stack([whitened_mixture(s, 1000, 2, generator) for s in separations]) for _ in range(2))
    drawn = torch.randn(3, 4000, 2, generator=generator)
    found = discriminator_divergence(fitted, encoded, drawn, StandardNormal(), generator)
    exact = torch.tensor([exact_divergence(s) for s in separations])
    torch.testing.assert_close(found, exact, atol=0.03, rtol=0)


def test_a_discriminator_stops_before_it_overfits() -> None:
    """Of latents that are normal the divergence is 0; networks that have learnt a few of them tell others wrongly."""
    generator = torch.Generator().manual_seed(0)
    fitted, encoded, drawn = (torch.randn(4, count, 8, generator=generator) for count in (200, 2000, 2000))
    found = discriminator_divergence(fitted, encoded, drawn, StandardNormal(), generator)
    assert float(found.mean()) > -0.1


def test_a_repeated_study_gives_the_same_numbers() -> None:
    """Each trial has a correlation r of its own."""
    steps: list[int] = []
    first = correlate(2, 300, trials=1, advance=lambda: steps.append(1))
    assert len(steps) == 1
    assert correlate(2, 300, trials=1) == first
    for found in (first.kde, first.discriminator):
        assert found.r == pytest.approx(pearsonr(SEPARATIONS, found.mean).statistic, abs=1e-4)
        assert found.std == 0  # of one trial
        assert len(found.mean) == len(SEPARATIONS)
    assert first.kde.r > 0.7


def test_without_a_bandwidth_there_is_no_study() -> None:
    with pytest.raises(BandwidthError, match="would collapse"):
        correlate(40, 250)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kde_follows_the_separation_more_closely(run: Run) -> None:
    """Figure 1 at l = 5, m = 1,000."""
    code, out, _ = run("--latent-dim", "5", "--samples", "1000", "--json")
    found = json.loads(out)
    assert code == 0
    assert set(found) == {"kde", "discriminator"}
    assert found["kde"]["r"] >= 0.9
    assert found["kde"]["r"] > found["discriminator"]["r"] > 0.5
    assert 0 < found["kde"]["std"] < 0.1


@pytest.mark.slow
def test_the_command_prints_a_row(run: Run) -> None:
    code, out, err = run("--latent-dim", "2", "--samples", "100", "--trials", "2")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].split()[:2] == ["2", "100"]
    assert out.count("±") == 3  # one in the title


def test_the_figure_has_a_panel_per_dimension(tmp_path: Path) -> None:
    cells = [
        {
            "latent_dim": latent_dim,
            "samples": samples,
            "kde": {"r": 0.9 - 0.02 * latent_dim, "std": 0.05},
            "discriminator": {"r": 0.7, "std": 0.1},
        }
        for latent_dim in (2, 5, 20)
        for samples in (250, 1000, 4000)
    ]
    files = draw_correlation(cells, tmp_path / "figure.png")
    assert [file.name for file in files] == ["figure.png", "figure.svg"]
    pixels = matplotlib.image.imread(files[0])
    assert pixels.shape[1] > pixels.shape[0] > 300
    drawn = files[1].read_text()
    for text in ("2 latent dimensions", "20 latent dimensions", "KDE", "discriminator", "4,000", "separation"):
        assert text in drawn


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["--latent-dim", "not given", "--table"]),
        (["--latent-dim", "5", "--samples", "-3"], ["--samples", "given -3"]),
        (["--latent-dim", "40", "--samples", "250"], ["h_opt is 1.0", "would collapse"]),
        (["--latent-dim", "5", "--samples", "100", "--trials", "1"], ["--trials", "given 1", "2 to 1,000"]),
        (["--table", "--latent-dim", "5"], ["--table", "one or the other"]),
        (["--table", "--out", "nowhere/figure.png"], ["--out", "nowhere/figure.png", "an existing folder"]),
        (["--table", "--out", "figure.pdf"], ["--out", "figure.pdf", ".png"]),
        (["--latent-dim", "5", "--samples", "10", "--out", "figure.png"], ["--out", "with --table"]),
    ],
)
def test_bad_arguments_are_one_line(run: Run, arguments: list[str], parts: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert_one_line(err, *parts)
