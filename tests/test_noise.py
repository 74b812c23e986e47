"""Shapes: B batch, D pixels, L latent, H hidden."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gfe_study.config import InputError, Trial
from gfe_study.data.split import Splits, image_shape
from gfe_study.likelihoods.base import Observed
from gfe_study.methods.ae import AutoencoderLearner
from gfe_study.methods.base import Batch, Learner
from gfe_study.methods.noise import dropout, jittered, masked
from gfe_study.metrics import VAL_LOSS
from gfe_study.models.mlp import MLPDecoder
from gfe_study.training import evaluate, train

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "preset": "paper",
    "model": {"latent_dim": 3, "hidden": [9, 7]},
    "eval": {"schedule": [32], "val_images": 20, "test_images": 15, "mixed": False},
    "budget": {"images": 64},
}
NOISY: dict[str, dict[str, float]] = {
    "dropout": {"dropout": 0.3},
    "input_noise": {"input_noise": 0.3},
    "latent_noise": {"latent_noise": 0.3},
}
ALL = {key: value for settings in NOISY.values() for key, value in settings.items()}
EXPENSIVE: dict[str, dict[str, Any]] = {"aae": {"hidden": [8]}, "gen": {"kde_samples": 70}, "vae": {}, "ae": {}}


def trial_of(method: str, **settings: float | None) -> Trial:
    return Trial.build(TINY, {"method": {"name": method, **EXPENSIVE[method], **settings}})


def learner_of(trial: Trial) -> Learner:
    return trial.method.create(trial, image_shape(8, 8, 1), CPU)


def ended(trial: Trial, digits: Splits) -> tuple[list[float], Learner]:
    """Validation losses, and the learner at the end."""
    *_, last = train(trial, digits)
    return [point[VAL_LOSS] for point in last.state.points], last.state.learner


@pytest.mark.parametrize("method", EXPENSIVE)
def test_no_noise_is_no_noise_to_the_bit(method: str, digits: Splits) -> None:
    off = {name: 0.0 for name in ALL if (method, name) != ("vae", "latent_noise")}
    plain, weights = ended(trial_of(method), digits)
    silent, weights_of_silent = ended(trial_of(method, **off), digits)
    assert silent == plain
    for one, other in zip(weights.networks.parameters(), weights_of_silent.networks.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("method", EXPENSIVE)
@pytest.mark.parametrize("setting", NOISY)
def test_noise_changes_training_and_no_evaluation(method: str, setting: str, digits: Splits) -> None:
    """Two evaluations of one learner agree, and with a noiseless learner of the same weights."""
    if (method, setting) == ("vae", "latent_noise"):
        return
    noisy, quiet = trial_of(method, **NOISY[setting]), trial_of(method)
    losses, learner = ended(noisy, digits)
    assert losses != ended(quiet, digits)[0]
    clean = learner_of(quiet)
    clean.networks.load_state_dict(learner.networks.state_dict())
    for _ in range(2):
        assert evaluate(learner, digits.val, 20, CPU).loss == evaluate(clean, digits.val, 20, CPU).loss == losses[-1]


def test_a_setting_that_is_off_changes_no_trial() -> None:
    off = dict.fromkeys(ALL)
    assert trial_of("ae", **off).fingerprint("") == trial_of("ae").fingerprint("")
    assert trial_of("ae", **ALL).fingerprint("") != trial_of("ae").fingerprint("")


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("ae", {"dropout": 1.0}, "method.dropout: given 1.0; allowed: less than 1"),
        ("ae", {"input_noise": -0.1}, "method.input_noise: given -0.1; allowed: greater than or equal to 0"),
        ("ae", {"latent_noise": -1.0}, "method.latent_noise: given -1.0; allowed: greater than or equal to 0"),
        ("vae", {"latent_noise": 0.1}, "method.latent_noise: given 0.1 with method=vae, .*; allowed: null"),
    ],
)
def test_noise_out_of_range_is_refused(method: str, settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        trial_of(method, **settings)


# Masking noise


def test_masking_hides_a_share_and_keeps_the_rest() -> None:
    """Of the values a share is missing on average, those missing before all are, and the batch itself is as it was."""
    value_BD = torch.rand(400, 50) + 0.5
    known_BD = torch.rand(400, 50) < 0.8
    share = 0.3
    for target, seen in ((Observed(value_BD), torch.ones(())), (Observed(value_BD, known_BD), known_BD)):
        kept_BD = target.value_BD.clone()
        values_BD, mask_BD = masked(target, share).as_input(mask=True).chunk(2, dim=1)
        assert torch.equal(values_BD, torch.where(mask_BD == 1, kept_BD, 0.0))
        assert torch.equal(target.value_BD, kept_BD)
        assert not (mask_BD.bool() & ~seen.bool()).any()
        count = float(seen.sum()) if seen.ndim else kept_BD.numel()
        error = math.sqrt(share * (1 - share) / count)
        assert float(mask_BD.sum()) / count == pytest.approx(1 - share, abs=5 * error)
    assert masked(target, None) is masked(target, 0.0) is target


def test_masking_has_the_probability_asked_for() -> None:
    """E[input] = (1 - p) y, value by value."""
    value_BD = torch.rand(1, 30)
    share, draws = 0.25, 4000
    mean_D = torch.stack([masked(Observed(value_BD), share).as_input(mask=False)[0] for _ in range(draws)]).mean(0)
    error_D = value_BD[0] * math.sqrt(share * (1 - share) / draws)
    assert ((mean_D - (1 - share) * value_BD[0]).abs() <= 5 * error_D).all()


# Dropout


def mlp(*widths: int) -> nn.Sequential:
    layers = [nn.Linear(i, o) for i, o in pairwise(widths)]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.ELU())][:-1])


def test_only_hidden_activations_drop_out() -> None:
    """By hand: neither the input, nor the output, and the rest is divided by the share that is kept."""
    network, input_BD = mlp(5, 8, 6, 4), torch.randn(3, 5)
    torch.manual_seed(7)
    with dropout(0.4, network):
        found = network(input_BD)
    torch.manual_seed(7)
    hidden = input_BD
    for place in (0, 2):
        hidden = F.elu(network[place](hidden))
        hidden = torch.where(torch.rand(hidden.shape) >= 0.4, hidden / 0.6, 0.0)
    torch.testing.assert_close(found, network[4](hidden))
    linear = mlp(5, 4)
    plain_BL = linear(input_BD)
    with dropout(0.4, linear):
        assert torch.equal(linear(input_BD), plain_BL)


def test_dropout_ends_with_its_context() -> None:
    """Also when training diverges in it."""
    network, input_BD = mlp(5, 8, 4), torch.randn(3, 5)
    before = network(input_BD)
    with dropout(0.4, network):
        assert not torch.equal(network(input_BD), before)
    assert torch.equal(network(input_BD), before)
    with pytest.raises(RuntimeError), dropout(0.4, network):
        network(input_BD.flatten())
    assert torch.equal(network(input_BD), before)


def test_dropout_leaves_the_mean_of_an_activation() -> None:
    """What a linear last layer gives is on average what it gives without dropout."""
    network, input_BD = mlp(5, 30, 1).double().requires_grad_(False), torch.randn(1, 5, dtype=torch.float64)
    with dropout(0.2, network):
        draws = network(input_BD.expand(20_000, -1))
    error = float(draws.std()) / math.sqrt(len(draws))
    assert float(draws.mean()) == pytest.approx(float(network(input_BD)), abs=5 * error)


# Latent noise


def test_latent_noise_has_its_standard_deviation() -> None:
    latent_BL = torch.randn(20_000, 3)
    noise_BL = jittered(latent_BL, 0.7) - latent_BL
    assert float(noise_BL.std()) == pytest.approx(0.7, abs=5 * 0.7 / math.sqrt(2 * noise_BL.numel()))
    assert float(noise_BL.mean()) == pytest.approx(0.0, abs=5 * 0.7 / math.sqrt(noise_BL.numel()))


def test_a_training_step_applies_all_noise(digits: Splits) -> None:
    """The gradients of ℓ(y, D̃(Ẽ(ỹ) + ε)), drawn in the order in which a pass needs them; y itself has no noise."""
    trial = trial_of("ae", **ALL)
    learner, before = learner_of(trial), learner_of(trial)
    assert isinstance(before, AutoencoderLearner)
    images = digits.train.batch(slice(0, 16))
    torch.manual_seed(3)
    encoding = learner.update([Batch(images, torch.arange(16))], 16)

    torch.manual_seed(3)
    hidden = images.value_BD * (torch.rand(images.value_BD.shape) >= 0.3)
    for network, jitter in ((before.encoder, 0.3), (before.decoder, 0.0)):
        assert isinstance(network, MLPDecoder)
        *inner, last = network.linears()
        for layer in inner:
            hidden = F.elu(layer(hidden))
            hidden = hidden * (torch.rand(hidden.shape) >= 0.3) / 0.7
        hidden = last(hidden)
        hidden = hidden + jitter * torch.randn(hidden.shape) if jitter else hidden
    loss_B = before.loss(hidden, images)
    loss_B.sum().backward()
    torch.testing.assert_close(encoding.loss_B, loss_B.detach())
    found, expected = ([weight.grad for weight in each.networks.parameters()] for each in (learner, before))
    torch.testing.assert_close(found, expected)


def test_denoising_learns_to_fill_in(digits: Splits) -> None:
    """Trained under masking noise, an autoencoder reconstructs masked images better than one that never saw any."""
    longer = {"budget": {"images": 6000}, "eval": {"schedule": [6000]}, "optim": {"name": "adam", "lr": 3e-3}}
    losses = {}
    for share in (None, 0.5):
        trial = Trial.build(TINY, {"method": {"name": "ae", "input_noise": share}, "model": {"hidden": [60]}}, longer)
        *_, last = train(trial, digits)
        images = digits.test.batch(slice(0, 200))
        torch.manual_seed(0)
        learner = last.state.learner
        with torch.no_grad():
            latent_BL = learner.networks["encoder"](masked(images, 0.5).as_input(mask=False))
            losses[share] = float(learner.loss(learner.decoder(latent_BL), images).mean())
    assert losses[0.5] < losses[None] - 0.01


@pytest.mark.parametrize("settings", [{"dropout": 0.4}, {"input_noise": 0.4}], ids=["dropout", "input_noise"])
def test_gfe_is_judged_on_whole_samples(settings: dict[str, float], digits: Splits) -> None:
    """Dropout spares the search for latents, and masking the loss of the decoder."""
    plain, noisy = (
        Trial.build(TINY, {"method": {"name": "gfe", **each}, "optim": {"batch_size": 30}}) for each in ({}, settings)
    )
    whole = digits.train.batch(slice(0, 30))
    learners = [learner_of(trial) for trial in (plain, noisy)]
    for learner in learners:
        learner.see(digits.train)
    before = [{key: value.clone() for key, value in each.decoder.state_dict().items()} for each in learners]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        kept = masked(whole, settings.get("input_noise"))
        torch.manual_seed(3)
        one, other = (each.update([Batch(whole, torch.arange(30))], 30) for each in learners)
    assert torch.equal(one.latent_BL, other.latent_BL) == ("dropout" in settings)
    solved = learners[0]
    solved.decoder.load_state_dict(before[0])
    assert torch.equal(solved.encode(kept).latent_BL, other.latent_BL) or "dropout" in settings
    if "input_noise" in settings:
        own = solved.loss(solved.decoder(other.latent_BL), whole)
        torch.testing.assert_close(other.loss_B, own.detach())
    else:
        assert not torch.allclose(one.loss_B, other.loss_B)


@pytest.mark.parametrize("setting", ["dropout", "input_noise"])
def test_noise_needs_the_approximate_gradient(setting: str) -> None:
    with pytest.raises(InputError, match=f"gradient.name: given 'unrolled' with method.{setting}"):
        Trial.build(TINY, {"method": {"name": "gfe", setting: 0.1}, "gradient": "unrolled"})


def test_the_latent_does_not_drop_out_of_a_skip() -> None:
    trial = Trial.build(TINY, {"model": {"skip": True, "hidden": [9]}, "method": {"name": "gfe", "dropout": 0.5}})
    decoder = learner_of(trial).decoder
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            weight.fill_(1.0 if name == "skip.weight" else 0.0)
    latent_BL = torch.randn(20, 3)
    with dropout(0.5, decoder):
        torch.testing.assert_close(decoder(latent_BL), latent_BL.sum(1, keepdim=True).expand(20, 64))
