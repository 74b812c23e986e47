"""Where flows start. Shapes: B batch, L latent, D pixels."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gfe_study import registry
from gfe_study.config import Trial
from gfe_study.data.split import Shape, Splits
from gfe_study.io.checkpoint import read_checkpoint, write_checkpoint
from gfe_study.likelihoods.base import Observed
from gfe_study.methods.ae import EncoderMethod
from gfe_study.methods.base import Batch, Learner
from gfe_study.methods.closed_form import ClosedForm
from gfe_study.metrics import MIXED, TEST_LOSS, TRAIN_LOSS
from gfe_study.models.mlp import MLP
from gfe_study.starts.encoder import EncoderStarter
from gfe_study.starts.nearest import Nearest
from gfe_study.training import train

METHODS_AND_STARTS = [
    (method, start)
    for method, start in itertools.product(registry.names("method"), registry.names("start"))
    if start == "zero" or not issubclass(registry.component("method", method), ClosedForm)
    if start != "previous" or not issubclass(registry.component("method", method), EncoderMethod)
]
TINY: dict[str, Any] = {
    "preset": "paper",
    "solver": {"name": "lbfgs", "max_nfe": 5},
    "model": {"latent_dim": 4, "hidden": [24]},
    "eval": {"schedule": [64], "val_images": 20, "test_images": 15},
    "budget": {"images": 128},
}


def learner(start: Any, digits: Splits, **layers: Any) -> Learner:
    trial = Trial.build(TINY, {"start": start}, layers)
    return trial.method.create(trial, digits.shape, torch.device("cpu"))


def first_images(digits: Splits, count: int) -> Splits:
    return dataclasses.replace(digits, train=digits.train.take(slice(0, count)))


def batch(digits: Splits, first: int, count: int = 8) -> tuple[Observed, Tensor]:
    index = torch.arange(first, first + count)
    return digits.train.batch(index.numpy()), index


def test_zero_is_zero_whatever_was_learnt(digits: Splits) -> None:
    gfe = learner("zero", digits)
    images, index = batch(digits, 0)
    gfe.update([Batch(images, index)], len(images))
    assert torch.equal(gfe.start(images, index), torch.zeros(8, 4))
    assert torch.equal(gfe.start(images), torch.zeros(8, 4))
    assert not gfe.start.state_dict()


def test_mean_is_a_weighted_mean_of_past_latents(digits: Splits) -> None:
    gfe = learner({"name": "mean", "decay": 0.9}, digits)
    images, index = batch(digits, 0)
    assert torch.equal(gfe.start(images), torch.zeros(8, 4))
    first = gfe.update([Batch(images, index)], len(images)).latent_BL.mean(0)
    torch.testing.assert_close(gfe.start(images), first.expand(8, -1))
    second = gfe.update([Batch(*batch(digits, 8))], 8).latent_BL.mean(0)
    kept = 0.9**8
    expected = (kept * first + second) / (kept + 1)
    torch.testing.assert_close(gfe.start(images), expected.expand(8, -1))


def test_previous_is_where_the_same_image_ended(digits: Splits) -> None:
    gfe = learner("previous", digits)
    (images, index), (others, elsewhere) = batch(digits, 0), batch(digits, 500)
    ended = gfe.update([Batch(images, index)], len(images)).latent_BL
    assert torch.equal(gfe.start(images, index), ended)
    assert torch.equal(gfe.start(others, elsewhere), torch.zeros(8, 4))
    gfe.update([Batch(others, elsewhere)], len(others))
    assert torch.equal(gfe.start(images, index), ended)
    assert torch.equal(gfe.start(images[index.flip(0)], index.flip(0)), ended.flip(0))
    assert torch.equal(gfe.start(images), torch.zeros(8, 4))


def test_the_encoder_start_learns_on_its_own(digits: Splits) -> None:
    """It descends its own reconstruction and leaves the decoder alone."""
    gfe, zero = learner("encoder", digits), learner("zero", digits)
    images, index = batch(digits, 0)
    encoder = encoder_of(gfe)
    assert torch.equal(gfe.start(images), encoder(images.value_BD).detach())
    latent = encoder(images.value_BD)
    loss = gfe.loss(gfe.decoder(latent), images).sum()
    expected = torch.autograd.grad(loss, list(encoder.parameters()))
    solver, flow = gfe.trial.solver, gfe.trial.flow
    from_there = solver.solve(flow, objective_of(gfe, images), gfe.start(images))
    gfe.update([Batch(images, index)], len(images))
    torch.testing.assert_close([weight.grad for weight in encoder.parameters()], list(expected))
    for weight in zero.decoder.parameters():
        weight.grad = None
    zero.loss(zero.decoder(from_there.latent_BL), images).sum().backward()
    decoder_gradients = [[weight.grad for weight in one.decoder.parameters()] for one in (gfe, zero)]
    torch.testing.assert_close(*decoder_gradients)


def encoder_of(one: Learner) -> nn.Module:
    assert isinstance(one.start, EncoderStarter)
    return one.start.encoder


def objective_of(one: Learner, images: Observed) -> Any:
    from gfe_study.solvers.objective import Objective

    return Objective(one.decoder, one.loss, images)


def test_an_autoencoder_starts_from_its_encoder(digits: Splits) -> None:
    """Its own encoder starts its mixed encoding."""
    ae = learner("encoder", digits, method="ae")
    images, index = batch(digits, 0)
    assert encoder_of(ae) is ae.networks["encoder"]
    before = [weight.clone() for weight in encoder_of(ae).parameters()]
    ae.update([Batch(images, index)], len(images))
    assert any(not torch.equal(a, b) for a, b in zip(before, encoder_of(ae).parameters(), strict=True))
    mixed, plain = ae.encode(images, MIXED), ae.encode(images)
    assert (mixed.loss_B <= plain.loss_B + 1e-6).all()
    assert (mixed.loss_B < plain.loss_B - 1e-3).any()


@pytest.mark.parametrize(("method", "start"), METHODS_AND_STARTS)
def test_a_start_survives_an_interruption(start: str, method: str, digits: Splits, tmp_path: Path) -> None:
    # More images than two epochs have, so that latents come back; 47 is no multiple of a batch.
    digits = first_images(digits, 47)
    trial = Trial.build(
        TINY,
        {
            "start": start,
            "method": method,
            "budget": {"images": 140},
            "optim": {"lr": 1e-3, "batch_size": 20},
            "eval": {"schedule": [64]},
        },
    )
    whole = list(train(trial, digits))
    for number, step in enumerate(train(trial, digits)):
        if number == 5:
            write_checkpoint(tmp_path / "c.pt", step.state.state_dict())
            break
    rest = list(train(trial, digits, read_checkpoint(tmp_path / "c.pt")))
    ended, resumed = whole[-1].state.learner.networks.state_dict(), rest[-1].state.learner.networks.state_dict()
    assert ended.keys() == resumed.keys()
    assert all(torch.equal(ended[name], resumed[name]) for name in ended)
    assert whole[-1].metrics is not None
    assert rest[-1].metrics is not None
    assert whole[-1].metrics[TEST_LOSS] == rest[-1].metrics[TEST_LOSS]


def test_a_better_start_gives_a_better_encoding(digits: Splits) -> None:
    ends, digits = {}, first_images(digits, 300)
    for start in ("zero", "previous"):
        trial = Trial.build(
            TINY,
            {
                "start": start,
                "solver": {"max_nfe": 3},
                "budget": {"images": 300 * 4},
                "eval": {"schedule": [300 * 3]},
            },
        )
        ends[start] = list(train(trial, digits))[-1].metrics
    assert ends["zero"] is not None
    assert ends["previous"] is not None
    assert ends["previous"][TRAIN_LOSS] < 0.98 * ends["zero"][TRAIN_LOSS]


@pytest.mark.parametrize("gaps", [False, True])
def test_nearest_is_the_neighbours_mean_latent(gaps: bool) -> None:
    """Against distances written out, pair by pair, over what both observe; of the last samples kept alone."""
    draw = torch.Generator().manual_seed(4)
    shape, kept, neighbours = Shape(1, (7,), mask=gaps), 9, 3
    starter = Nearest(neighbours=neighbours, samples=kept).create(MLP(latent_dim=4), shape, None)
    assert torch.equal(starter(Observed(torch.zeros(2, 7))), torch.zeros(2, 4))

    def samples(count: int) -> Observed:
        known = torch.rand(count, 7, generator=draw) < 0.5 if gaps else None
        return Observed(torch.randn(count, 7, generator=draw), known)

    batches = [samples(5) for _ in range(3)]
    latents = [torch.randn(5, 4, generator=draw) for _ in range(3)]
    for number, (batch_, latent) in enumerate(zip(batches, latents, strict=True)):
        starter.remember(latent, batch_, torch.arange(5) + 5 * number)
    new = samples(6)
    found = starter(new)
    table = [
        (each[row : row + 1], latent[row]) for each, latent in zip(batches, latents, strict=True) for row in range(5)
    ]
    for row in range(6):
        distances = []
        for other, latent in table[-kept:]:
            both = new.as_input(mask=True)[row, 7:].bool() & other.as_input(mask=True)[0, 7:].bool()
            gap = (new.value_BD[row] - other.value_BD[0])[both].square()
            distances.append((float(gap.mean()) if bool(both.any()) else math.inf, latent))
        distances.sort(key=lambda pair: pair[0])
        expected = torch.stack([latent for _, latent in distances[:neighbours]]).mean(0)
        torch.testing.assert_close(found[row], expected)
