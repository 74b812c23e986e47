"""Density estimates, the divergence, entropies and targets. Shapes: P points, M centres, L latent, K modes."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from scipy.stats import gaussian_kde, multivariate_normal, norm
from torch import Tensor

from gfe_study import registry
from gfe_study.config import InputError
from gfe_study.density import kde
from gfe_study.density.entropy import latent_entropy, leave_one_out, normal_entropy
from gfe_study.density.jsd import encoded_term, jsd, log_ratio
from gfe_study.density.kde import kernel_moments, log_density, log_kernel_sum
from gfe_study.density.whitening import Whitening
from gfe_study.targets.base import Target, parse_target
from gfe_study.targets.mixture_of_gaussians import MixtureOfGaussians
from gfe_study.targets.standard_normal import StandardNormal

TARGETS: list[Target] = [StandardNormal(), MixtureOfGaussians(), MixtureOfGaussians(components=3, radius=2.0)]


def drawn(count: int, latent_dim: int, seed: int = 0) -> Tensor:
    return torch.randn(count, latent_dim, generator=torch.Generator().manual_seed(seed))


def oracle(point_PL: Tensor, centre_ML: Tensor, bandwidth: float) -> np.ndarray:
    """log p̂ as a sum of scipy's normal densities, float64."""
    points, centres = point_PL.double().numpy(), centre_ML.double().numpy()
    kernel = multivariate_normal(np.zeros(points.shape[1]), bandwidth**2 * np.eye(points.shape[1]))
    each_PM = kernel.logpdf(points[:, None] - centres).reshape(len(points), len(centres))
    density_P: np.ndarray[Any, Any] = logsumexp(each_PM, axis=1) - math.log(len(centres))
    return density_P


def naive(point_PL: Tensor, centre_ML: Tensor, bandwidth: float) -> Tensor:
    """log p̂ by autograd through every pair."""
    squared_PM = (point_PL[:, None] - centre_ML).square().sum(-1)
    sums_P = torch.logsumexp(-squared_PM / (2 * bandwidth**2), 1)
    return sums_P - math.log(len(centre_ML)) - point_PL.shape[1] / 2 * math.log(2 * math.pi * bandwidth**2)


@pytest.mark.parametrize(("latent_dim", "bandwidth"), [(1, 0.1), (2, 0.3), (8, 0.6), (40, 0.95)])
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_the_density_is_a_sum_of_normals_anywhere(latent_dim: int, bandwidth: float, shift: float) -> None:
    points, centres = drawn(50, latent_dim) + shift, drawn(300, latent_dim, 1) + shift
    expected = torch.tensor(oracle(points, centres, bandwidth))
    torch.testing.assert_close(log_density(points, centres, bandwidth).double(), expected, atol=5e-4, rtol=1e-5)
    double = log_density(points.double(), centres.double(), bandwidth)
    torch.testing.assert_close(double, expected, atol=1e-8, rtol=1e-8)


def test_the_density_is_scipys_and_has_area_one() -> None:
    centres = drawn(200, 1).double()
    line = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    density = log_density(line, centres, 0.25).exp()
    theirs = gaussian_kde(centres.numpy().T, bw_method=0.25 / float(centres.std()))
    np.testing.assert_allclose(density, theirs(line.numpy().T), rtol=1e-8, atol=1e-14)
    assert float(torch.trapezoid(density, line[:, 0])) == pytest.approx(1, abs=1e-9)


def test_blocks_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    points, centres, own = drawn(37, 3).double(), drawn(50, 3, 1).double(), torch.arange(37) - 1
    points.requires_grad_()
    whole = log_density(points, centres, 0.4, own)
    (slope,) = torch.autograd.grad(whole.sum(), points)
    monkeypatch.setattr(kde, "BLOCK", 200)
    blocked = log_density(points, centres, 0.4, own)
    torch.testing.assert_close(blocked, whole)
    torch.testing.assert_close(torch.autograd.grad(blocked.sum(), points)[0], slope)


def test_the_gradient_is_that_of_autograd() -> None:
    """It is also that of finite differences."""
    points, centres = drawn(20, 4).double().requires_grad_(), drawn(100, 4, 1).double().requires_grad_()
    weight_P = torch.rand(20, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (found,) = torch.autograd.grad((weight_P * log_density(points, centres, 0.5)).sum(), points)
    (expected,) = torch.autograd.grad((weight_P * naive(points, centres, 0.5)).sum(), points)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
    torch.autograd.gradcheck(lambda z: log_density(z, centres, 0.5), points[:5].detach().requires_grad_())


def test_the_centres_are_constants() -> None:
    points, centres = drawn(5, 2).requires_grad_(), drawn(10, 2, 1).requires_grad_()
    log_density(points, centres, 0.5).sum().backward()
    assert points.grad is not None
    assert centres.grad is None


@pytest.mark.parametrize("moments", [False, True])
def test_a_left_out_centre_has_no_effect(moments: bool) -> None:
    points, centres = drawn(6, 3).double(), drawn(30, 3, 1).double()
    centres[4], centres[17] = points[0], points[2]
    own = torch.tensor([4, -1, 17, -1, -1, 29])
    found = log_density(points.requires_grad_(moments), centres, 0.3, own)
    for row, left_out in enumerate(own.tolist()):
        others = centres[[i for i in range(30) if i != left_out]]
        torch.testing.assert_close(found[row : row + 1], log_density(points[row : row + 1], others, 0.3))


@pytest.mark.parametrize(("count", "own"), [(0, None), (1, torch.tensor([0]))])
def test_a_density_needs_a_centre(count: int, own: Tensor | None) -> None:
    with pytest.raises(ValueError, match=f"of {count} centres; allowed: at least one"):
        log_density(drawn(1, 2), drawn(count, 2), 0.5, own)


@pytest.mark.parametrize("distance", [0.0, 10.0, 1e3, 1e6])
def test_everything_is_finite_in_forty_dimensions(distance: float) -> None:
    """Also far from every centre."""
    centres = drawn(500, 40)
    points = (drawn(10, 40, 1) + distance).requires_grad_()
    for value in (
        log_density(points, centres, 0.2),
        encoded_term(points, centres, StandardNormal(), 0.2),
        jsd(points, drawn(10, 40, 2), centres, StandardNormal(), 0.2),
    ):
        assert value.isfinite().all()
        (slope,) = torch.autograd.grad(value.sum(), points)
        assert slope.isfinite().all()
    if distance:  # the nearest kernel pulls with its distance, (z_i − z)/h²
        (slope,) = torch.autograd.grad(log_density(points, centres, 0.2).sum(), points)
        torch.testing.assert_close(slope.mean(), torch.tensor(-distance / 0.04), rtol=0.1, atol=25.0)


def test_moments_are_those_of_a_kernel_softmax() -> None:
    points, centres = drawn(30, 5), drawn(200, 5, 1)
    squared = torch.cdist(points.double(), centres.double()).square()
    exponent = squared / (-2 * 0.5**2)
    weight = exponent.softmax(1)
    log_sum, offset, spread = kernel_moments(points, centres, 0.5)
    torch.testing.assert_close(log_sum.double(), exponent.logsumexp(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_kernel_sum(points, centres, 0.5), log_sum)
    torch.testing.assert_close(offset.double(), weight @ centres.double() - points, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(spread.double(), (weight * squared).sum(1), atol=1e-4, rtol=1e-5)


MEMORY = """
import resource, torch
from gfe_study.density.kde import log_density
torch.set_num_threads(1)
points, centres = torch.randn(256, 40, requires_grad=True), torch.randn(20000, 40)
log_density(points[:2], centres[:10], 0.9).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
log_density(points, centres, 0.9, torch.arange(256)).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_stays_below_500_megabytes() -> None:
    """256 × 20,000 × 40 numbers are 820 MB, and the 256 × 20,000 distances alone would do for 20 MB."""
    ended = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    per_kilobyte = 1 if sys.platform == "linux" else 1024
    assert int(ended.stdout) / per_kilobyte / 1000 < 100


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.name}{target.modes}")
def test_the_divergence_is_between_0_and_log_2(target: Target) -> None:
    generator = torch.Generator().manual_seed(0)
    centres, encoded, samples = (target.sample(4000, 2, generator) for _ in range(3))
    assert abs(float(jsd(encoded, samples, centres, target, 0.4 * target.width))) < 0.02
    far = centres + 100
    assert float(jsd(encoded + 100, samples, far, target, 0.4)) == pytest.approx(math.log(2), abs=1e-6)
    near = jsd(encoded + target.width, samples, centres + target.width, target, 0.4 * target.width)
    assert 0.02 < float(near) < math.log(2)


@pytest.mark.parametrize(("mean", "width"), [(0.0, 0.5), (1.5, 1.0), (-1.0, 2.0)])
def test_the_divergence_agrees_with_quadrature(mean: float, width: float) -> None:
    def integrand(z: float) -> float:
        densities = (float(norm.pdf(z, mean, width)), float(norm.pdf(z)))
        middle = sum(densities) / 2
        return sum(density * math.log(density / middle) for density in densities if density > 0) / 2

    exact = quad(integrand, -15, 15, limit=200)[0]
    generator = torch.Generator().manual_seed(0)
    centres, encoded = (mean + width * torch.randn(8000, 1, generator=generator) for _ in range(2))
    samples = torch.randn(8000, 1, generator=generator)
    assert float(jsd(encoded, samples, centres, StandardNormal(), 0.1)) == pytest.approx(exact, abs=0.008)


def test_the_encoded_term_is_the_mixture_share() -> None:
    points, centres, target = drawn(40, 3).double(), drawn(200, 3, 1).double(), StandardNormal()
    encoded, wanted = torch.tensor(oracle(points, centres, 0.5)).exp(), target.log_density(points).exp()
    torch.testing.assert_close(encoded_term(points, centres, target, 0.5), (encoded / (wanted + encoded)).log())
    torch.testing.assert_close(log_ratio(points, centres, target, 0.5), (encoded / wanted).log())


def test_descent_goes_where_the_target_is_denser() -> None:
    """Descending the encoded term moves latents to where the target is denser than they are."""
    centres = drawn(2000, 2) * 0.3
    points = torch.tensor([[0.5, 0.0], [0.0, -0.6]]).requires_grad_()
    (slope,) = torch.autograd.grad(encoded_term(points, centres, StandardNormal(), 0.2).sum(), points)
    assert ((-slope * points).sum(1) > 0).all()  # outwards: in the middle there is too much


@pytest.mark.parametrize("latent_dim", [1, 2, 8])
def test_entropy_of_normal_samples_is_the_normals(latent_dim: int) -> None:
    exact = latent_dim / 2 * math.log(2 * math.pi * math.e)
    assert normal_entropy(2000, latent_dim) == pytest.approx(exact, abs={1: 0.02, 2: 0.03, 8: 0.32}[latent_dim])


@pytest.mark.parametrize(("count", "paper"), [(1000, 11.668), (2000, 11.621), (5000, 11.575)])
def test_entropy_of_normal_samples_is_the_papers(count: int, paper: float) -> None:
    """Table 2; ours are whitened by their own covariance, which takes some hundredths of scatter out of it."""
    assert normal_entropy(count, 8) == pytest.approx(paper, abs=0.05)


def by_double_loop(latent_ML: np.ndarray, bandwidth: float) -> tuple[float, float]:
    """The entropy and the next bandwidth, pair by pair."""
    count, dimensions = latent_ML.shape
    log_likelihood, spread = 0.0, 0.0
    for i in range(count):
        kernels, squares = [], []
        for j in range(count):
            if j != i:
                squares.append(float(((latent_ML[i] - latent_ML[j]) ** 2).sum()))
                kernels.append(math.exp(-squares[-1] / (2 * bandwidth**2)))
        log_likelihood += math.log(sum(kernels) / (count - 1) / (2 * math.pi * bandwidth**2) ** (dimensions / 2))
        spread += sum(k * s for k, s in zip(kernels, squares, strict=True)) / sum(kernels)
    return -log_likelihood / count, math.sqrt(spread / (dimensions * count))


@pytest.mark.parametrize("latent_dim", [1, 2, 6])
def test_leave_one_out_agrees_with_a_double_loop(latent_dim: int) -> None:
    """Its bandwidth is the fixed point of that loop."""
    latents = drawn(120, latent_dim)
    entropy, bandwidth = leave_one_out(latents)
    expected, following = by_double_loop(latents.double().numpy(), bandwidth)
    assert entropy == pytest.approx(expected, abs=1e-5)
    assert following == pytest.approx(bandwidth, rel=1e-3)
    for other in (0.9, 1.1):  # and the left-out latents are likeliest there
        assert by_double_loop(latents.double().numpy(), other * bandwidth)[0] > entropy


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), stretch=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_affine_maps_do_not_change_the_entropy(seed: int, stretch: float, shift: float) -> None:
    """The entropy is that of whitened latents."""
    latents = drawn(200, 3).double()
    latents[:, 0] = latents[:, 0] ** 3
    mapped = torch.linalg.qr(drawn(3, 3, seed).double())[0] @ torch.diag(torch.tensor([1.0, stretch, 1.0])).double()
    changed = latents @ mapped @ torch.linalg.qr(drawn(3, 3, seed + 1).double())[0] + shift
    assert latent_entropy(changed) == pytest.approx(latent_entropy(latents), abs=1e-3)


@pytest.mark.parametrize("scale_L", [[1.0] * 4, [1e30] * 4, [1e-30] * 4, [1e19, 1.0, 1e-19, 1e-38]])
def test_whitened_latents_have_unit_covariance(scale_L: list[float]) -> None:
    """Whatever the size of the latents, and of one dimension beside another."""
    given = (drawn(500, 4) @ drawn(4, 4, 1) + 7) * torch.tensor(scale_L)
    whitening = Whitening.fit(given)
    latents = whitening(given)
    torch.testing.assert_close(latents.mean(0), torch.zeros(4).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(latents.t().cov(), torch.eye(4).double(), atol=1e-6, rtol=0)
    covariance = (given.double() / torch.tensor(scale_L)).t().cov()
    volume = -float(torch.logdet(covariance)) / 2 - math.fsum(map(math.log, scale_L))
    assert whitening.log_volume == pytest.approx(volume, rel=1e-5)
    assert latent_entropy(given) == pytest.approx(latent_entropy(drawn(500, 4)), abs=0.05)


def test_entropy_falls_with_structure() -> None:
    clustered = drawn(1000, 4) * 0.1
    clustered[:, 0] += torch.arange(1000) % 2 * 4.0
    assert latent_entropy(clustered) < normal_entropy(1000, 4) - 0.3


def tight(width: float, shift: float = 0.0) -> Tensor:
    """Four clusters of a hundred latents each."""
    return drawn(4, 3, 1).repeat(100, 1) + width * drawn(400, 3) + shift


def likeliest(latent_ML: Tensor) -> float:
    """The entropy at the bandwidth under which it is least, from differences alone, in float64."""
    squared_MM = (latent_ML.double()[:, None] - latent_ML.double()).square().sum(-1).fill_diagonal_(math.inf)
    count, dimensions = latent_ML.shape

    def entropy(log_bandwidth: float) -> float:
        h = math.exp(log_bandwidth)
        sums_M = torch.logsumexp(-squared_MM / (2 * h**2), 1) - math.log(count - 1)
        return float(dimensions / 2 * math.log(2 * math.pi * h**2) - sums_M.mean())

    found = [minimize_scalar(entropy, bounds=(low, low + 1.2), options={"xatol": 1e-6}) for low in range(-10, 1)]
    return float(min(each.fun for each in found))


@pytest.mark.parametrize("width", [1.0, 0.1, 1e-2, 1e-3, 2e-4])
def test_tight_clusters_keep_their_exact_entropy(width: float) -> None:
    """Their squares cancel: by float32 it was .36 nats off."""
    latents = tight(width)
    white = Whitening.fit(latents)(latents)
    assert latent_entropy(latents) == pytest.approx(likeliest(white), abs=1e-5)
    assert leave_one_out(white.float())[0] == pytest.approx(likeliest(white.float()), abs=1e-5)


@pytest.mark.parametrize("bandwidth", [1.0, 0.03, 3e-3, 1e-3])
def test_tight_clusters_keep_their_exact_density(bandwidth: float) -> None:
    """It and its slope agree with plain differences in double precision."""
    points, centres = tight(bandwidth)[:50].requires_grad_(), tight(bandwidth)[50:]
    found = log_density(points, centres, bandwidth)
    exact = points.detach().double().requires_grad_()
    expected = naive(exact, centres.double(), bandwidth)
    torch.testing.assert_close(found.double(), expected, atol=2e-4, rtol=0)
    (slope,), (wanted,) = (torch.autograd.grad(each.sum(), at) for each, at in ((found, points), (expected, exact)))
    torch.testing.assert_close(bandwidth * slope.double(), bandwidth * wanted, atol=1e-3, rtol=0)


COPIES = torch.cat([drawn(50, 3)] * 2)
ROUNDED = torch.cat([drawn(100, 2), 1e6 + 0.2 * drawn(100, 1, 1)], 1)
"""The last dimension differs by rounding."""


@pytest.mark.parametrize(
    ("latents", "reason"),
    [
        (drawn(100, 1).expand(-1, 3), "fewer than 3 dimensions"),
        (torch.zeros(100, 3), "fewer than 3 dimensions"),
        (drawn(100, 2) @ drawn(2, 3, 1), "fewer than 3 dimensions"),
        (drawn(3, 3), "3 latents in 3 dimensions; allowed: more"),
        (drawn(100, 3).index_fill(0, torch.tensor(5), math.nan), "NaN or infinite"),
        (COPIES, "copies of one another"),
        (1e19 * COPIES, "copies of one another"),
        (1e-30 * COPIES, "copies of one another"),
        (drawn(7, 3).repeat(20, 1), "copies of one another"),
        (drawn(7, 3).repeat(20, 1) + 1e-6 * drawn(140, 3), "copies of one another"),
        (1e3 + drawn(100, 1) + 6e-5 * drawn(100, 3, 1), "fewer than 3 dimensions"),
        (ROUNDED, "fewer than 3 dimensions"),
        (ROUNDED @ torch.linalg.qr(drawn(3, 3, 2))[0], "fewer than 3 dimensions"),
        (torch.full((100, 3), 1e30), "fewer than 3 dimensions"),
        (torch.full((100, 3), 0.1) + 1e-8 * drawn(100, 3), "fewer than 3 dimensions"),
    ],
)
def test_collapsed_latents_have_no_entropy(latents: Tensor, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        latent_entropy(latents)


def test_dependent_latents_have_no_entropy() -> None:
    """Of doubles, the eigenvalue that is 0 comes out as 1e-16, or as −1e-16."""
    for seed in range(20):
        with pytest.raises(ValueError, match="fewer than 6 dimensions"):
            latent_entropy(drawn(100, 5, seed).double() @ drawn(5, 6, seed + 1).double())


def test_one_latent_has_no_entropy() -> None:
    with pytest.raises(ValueError, match="2 or more"):
        leave_one_out(drawn(1, 2))
    for equal in (torch.ones(5, 2), 3 + 3e-7 * drawn(50, 2), 0.1 + 1e-17 * drawn(50, 2).double()):
        with pytest.raises(ValueError, match="copies"):
            leave_one_out(equal)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.name}{target.modes}")
def test_a_target_integrates_to_one(target: Target) -> None:
    line = torch.linspace(-12, 12, 601, dtype=torch.float64)
    density = target.log_density(torch.cartesian_prod(line, line)).exp()
    assert float(density.sum() * (line[1] - line[0]) ** 2) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.name}{target.modes}")
@pytest.mark.parametrize("latent_dim", [2, 5])
def test_a_targets_samples_have_its_moments(target: Target, latent_dim: int) -> None:
    samples = target.sample(200_000, latent_dim, torch.Generator().manual_seed(0)).double()
    means = target.means(latent_dim).double()
    covariance = target.width**2 * torch.eye(latent_dim).double() + means.t() @ means / target.modes
    torch.testing.assert_close(samples.mean(0), means.mean(0), atol=0.03, rtol=0)
    torch.testing.assert_close(samples.t().cov(), covariance, atol=0.06, rtol=0.01)
    share_K = target.mode_log_density(samples[:20_000]).argmax(1).bincount(minlength=target.modes) / 20_000
    torch.testing.assert_close(share_K, torch.full((target.modes,), 1 / target.modes), atol=0.015, rtol=0)
    # The mean log density of its own samples is the negative entropy: for separate modes, that of one and log K.
    if target.modes == 1:
        entropy = latent_dim / 2 * math.log(2 * math.pi * math.e)
        assert float(-target.log_density(samples).mean()) == pytest.approx(entropy, abs=0.01)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.name}{target.modes}")
def test_a_seed_is_a_set_of_samples(target: Target) -> None:
    draw: Callable[[int], Tensor] = lambda seed: target.sample(50, 3, torch.Generator().manual_seed(seed))  # noqa: E731
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_modes_lie_on_a_circle_in_class_order() -> None:
    mean_KL = MixtureOfGaussians(components=4, radius=3.0).means(3)
    expected = [[3.0, 0, 0], [0, 3, 0], [-3, 0, 0], [0, -3, 0]]
    torch.testing.assert_close(mean_KL, torch.tensor(expected), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="2 or more"):
        MixtureOfGaussians().means(1)


@pytest.mark.parametrize("name", registry.names("target"))
def test_every_target_is_had_by_its_name(name: str) -> None:
    assert parse_target(name, {}).name == name
    assert parse_target("standard_normal", {"target": {"name": name}}).name == name


def test_a_targets_settings_are_checked() -> None:
    assert parse_target("mixture_of_gaussians", {"target": {"radius": 2}}) == MixtureOfGaussians(radius=2.0)
    refused: list[tuple[str, dict[str, Any], str]] = [
        ("standard_norm", {}, "given 'standard_norm'; did you mean 'standard_normal'"),
        ("standard_normal", {"target": {"radius": 2}}, "target: radius: unknown key"),
        ("mixture_of_gaussians", {"target": {"radius": -1}}, "target: radius: given -1"),
        ("standard_normal", {"solver": {"beta": 1}}, "--set solver: unknown key"),
        ("standard_normal", {"target": 3}, "--set target: given 3"),
    ]
    for name, assigned, part in refused:
        with pytest.raises(InputError, match=part):
            parse_target(name, assigned)
