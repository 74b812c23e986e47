"""Autoencoder: the mirrored encoder, the same loss and optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gfe_study.likelihoods.base import Observed
from gfe_study.methods.base import Batch, Diverged, Encoding, Learner, Method, Updated, seeded
from gfe_study.methods.noise import dropout, jittered, masked
from gfe_study.metrics import MIXED

if TYPE_CHECKING:
    from gfe_study.config import Trial
    from gfe_study.data.split import Shape


class AutoencoderLearner(Learner):
    """z = E(y) in training. Its `mixed` encoding is the papers': this decoder, with latents found by gradient flow."""

    settings: EncoderMethod

    def __init__(self, trial: Trial, shape: Shape, device: torch.device) -> None:
        super().__init__(trial, shape, device)
        self.encodes_by_flow = self.settings.encode == "flow"
        self.encodings = () if self.encodes_by_flow else (MIXED,)

    def seen_as(self, shape: Shape) -> Shape:
        return replace(shape, mask=False) if self.settings.mask_channel is False else shape

    def build_networks(self, shape: Shape, device: torch.device) -> dict[str, nn.Module]:
        with seeded(self.trial.seed, "encoder"):
            self.encoder = self.trial.model.encoder(shape).to(device)
        return {"encoder": self.encoder}

    def update(self, batches: Sequence[Batch], new: int) -> Updated:
        encoder_passes = 0
        for number, (target, index_B) in enumerate(batches):
            self.optimiser.zero_grad(set_to_none=True)
            with self.dropout():
                latent_BL = self.encoder(self.noisy_input(target))
                loss_B = self.loss(self.decoder(jittered(latent_BL, self.settings.latent_noise)), target)
            term_B = self.latent_term(latent_BL, index_B)
            total_B = loss_B if term_B is None else loss_B + term_B
            if not bool(total_B.isfinite().all()):
                raise Diverged
            target.weighed(total_B).sum().backward()
            self.optimiser.step()
            encoder_passes += 2 * len(target)
            encoder_passes += self.updated(latent_BL[:new].detach(), index_B[:new], again=number > 0)
        self.start.remember(latent_BL[:new].detach(), target[:new], index_B[:new])
        return Updated(latent_BL[:new].detach(), loss_B[:new].detach(), *passes(batches), encoder_passes)

    def noisy_input(self, target: Observed) -> Tensor:
        """What the encoder reads in training, shape (B, `shape.input_size`)."""
        return masked(target, self.settings.input_noise).as_input(mask=self.shape.mask)

    def dropout(self) -> AbstractContextManager[None]:
        """The networks as they are trained: their hidden activations drop out while this context is open."""
        return dropout(self.settings.dropout, self.encoder, self.decoder)

    def latent_term(self, latent_BL: Tensor, index_B: Tensor) -> Tensor | None:
        """What is added to each sample's loss for where its latent is, shape (B,); None for nothing."""
        return None

    def updated(self, latent_BL: Tensor, index_B: Tensor, *, again: bool) -> int:
        """Called after every step of the optimiser, with the new samples' latents before it.

        Args:
            latent_BL: z.
            index_B: places of the samples in the training split.
            again: whether it is not the first step on them.

        Returns how many passes of samples through the encoder it took.
        """
        return 0

    @torch.no_grad()
    def encode(self, target: Observed, encoding: str | None = None) -> Encoding:
        if self.encodes_by_flow or encoding == MIXED:
            return self.encode_by_flow(target)
        latent_BL = self.encoder(target.as_input(mask=self.shape.mask))
        none_B = torch.zeros(len(target), device=target.value_BD.device)
        loss_B = self.loss(self.decoder(latent_BL), target)
        return Encoding(latent_BL, loss_B, none_B, none_B, encoder_passes=len(target))


def passes(batches: Sequence[Batch]) -> tuple[float, float]:
    """Decoder evaluations and backward passes of one step of the optimiser on each batch."""
    count = float(sum(len(batch.target) for batch in batches))
    return count, count


class EncoderMethod(Method):
    """A method that trains a decoder through an encoder. Test samples are also encoded by flow: `mixed_test_loss`.

    Of data with missing values the encoder reads 0 in their place. Dropout and noise regularise training alone: the
    training loss includes them, and every evaluation is without them.
    """

    mask_channel: bool | None = None
    """Of data with missing values: whether the encoder also reads which values are observed, as further channels;
    None: yes."""
    encode: Literal["flow"] | None = None
    """How samples are encoded once the decoder is trained, validation and test samples too: by `flow`, that is by the
    trial's solver from its start, which makes the decoder alone what is judged; None: by the encoder."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the hidden activations, of the encoder and of the decoder, that drop out of a training pass; None:
    none."""
    input_noise: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Masking noise: share of a sample's values that the encoder reads in training as if they were missing, while the
    whole sample is to be reconstructed; None: none."""
    latent_noise: Annotated[float, Field(ge=0)] | None = None
    """Standard deviation of the normal noise that is added in training to the latents that the decoder reads; None:
    none."""

    def check_trial(self, trial: Trial) -> None:
        super().check_trial(trial)
        if trial.start.name == "previous":
            raise ValueError(
                f"start.name: given 'previous' with method={self.name}, which solves for no latent of a training "
                "image; allowed: encoder, mean, zero"
            )
        observe = trial.data.observe
        if observe is not None and not observe.selects and "train" not in observe.splits and self.encode is None:
            raise ValueError(
                f"data.observe.splits: given without train and method={self.name}, whose encoder has never read what "
                f"{observe.name} makes of a sample; allowed: with train, or method.encode=flow"
            )
        if trial.gradient.name != "approx":
            raise ValueError(
                f"gradient.name: given {trial.gradient.name!r} with method={self.name}, whose latents come from an "
                "encoder and whose decoder is trained through it; allowed: approx"
            )


class Autoencoder(EncoderMethod):
    """Autoencoder, the papers' baseline."""

    colour = "#ffa90e"

    learner = AutoencoderLearner
