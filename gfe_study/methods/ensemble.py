"""Several decoders, each trained by itself at latents of its own, which predict together.

Shapes: B batch, L latent of one decoder, n decoders, D values of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gfe_study.data.split import Split
from gfe_study.likelihoods.base import Loss, Observed
from gfe_study.methods.base import Batch, Encoding, Learner, Updated, derive_seed
from gfe_study.models.base import Decoder

if TYPE_CHECKING:
    from gfe_study.config import Trial
    from gfe_study.data.split import Shape


class MeanDecoder(Decoder):
    """Latents of all decoders side by side, (B, nL), to the output whose mean is the mean of theirs.

    For evaluation alone: it is differentiable in nothing.
    """

    def __init__(self, decoders: Sequence[Decoder], loss: Loss) -> None:
        super().__init__()
        self.decoders = nn.ModuleList(decoders)
        self.loss = loss

    @torch.no_grad()
    def forward(self, latent_KL: Tensor) -> Tensor:
        parts = zip(self.decoders, latent_KL.chunk(len(self.decoders), 1), strict=True)
        return self.loss.mixed(torch.stack([decoder(latent) for decoder, latent in parts]))


class _Optimisers:
    """The optimisers of all members, as far as training needs to know them."""

    def __init__(self, optimisers: Sequence[torch.optim.Optimizer]) -> None:
        self.param_groups = [group for each in optimisers for group in each.param_groups]


class EnsembleLearner(Learner):
    """Learners that differ by the seeds of their weights and of their noise, and see the same samples in one order.

    The ensemble's latent is theirs side by side. Its likelihood has the mean of what theirs have learned.
    """

    def __init__(
        self, trial: Trial, shape: Shape, device: torch.device, make: Callable[[int], Learner], count: int
    ) -> None:
        self.trial, self.shape = trial, shape
        others = (derive_seed(trial.seed, f"member/{place}") % 2**31 for place in range(1, count))
        self.members = [make(seed) for seed in (trial.seed, *others)]
        self.loss = trial.likelihood.loss()
        self.loss.sized(shape.size)
        self.loss.to(device)
        self.decoder = MeanDecoder([member.decoder for member in self.members], self.loss)
        self.networks = nn.ModuleDict({"likelihood": self.loss})
        self.networks.update({f"member{place}": member.networks for place, member in enumerate(self.members)})
        self.optimiser = _Optimisers([member.optimiser for member in self.members])  # type: ignore[assignment]
        self.averaged = None

    def see(self, train: Split) -> None:
        for member in self.members:
            member.see(train)

    def settle(self) -> None:
        for member in self.members:
            member.settle()

    @contextmanager
    def training(self) -> Iterator[None]:
        with ExitStack() as stack:
            for member in self.members:
                stack.enter_context(member.training())
            yield
        with torch.no_grad():  # of the weights that are evaluated
            learned = zip(*(member.loss.parameters() for member in self.members), strict=True)
            for weight, theirs in zip(self.loss.parameters(), learned, strict=True):
                weight.copy_(torch.stack(theirs).mean(0))

    def update(self, batches: Sequence[Batch], new: int) -> Updated:
        done = [member.update(batches, new) for member in self.members]
        return Updated(
            torch.cat([each.latent_BL for each in done], 1),
            torch.stack([each.loss_B for each in done]).mean(0),
            sum(each.nfe_forward for each in done),
            sum(each.nfe_backward for each in done),
            sum(each.encoder_passes for each in done),
            done[0].result_B,
        )

    def encode(self, target: Observed, encoding: str | None = None) -> Encoding:
        for member in self.members:  # another prior may have been chosen since
            member.trial = member.trial.model_copy(update={"prior_precision": self.trial.prior_precision})
        return self._together(target, [member.encode(target, encoding) for member in self.members])

    def encode_by_flow(self, target: Observed) -> Encoding:
        return self.encode(target)

    def encode_commonly(self, target: Observed) -> Encoding:
        return self._together(target, [member.encode_commonly(target) for member in self.members])

    @torch.no_grad()
    def _together(self, target: Observed, found: Sequence[Encoding]) -> Encoding:
        latent_BL = torch.cat([each.latent_BL for each in found], 1)
        lost_B = torch.stack([each.loss_B for each in found]).isnan().any(0)
        return Encoding(
            latent_BL,
            self.loss(self.decoder(latent_BL), target).masked_fill(lost_B, torch.nan),
            torch.stack([each.nfe_forward_B for each in found]).sum(0) + 1,
            torch.stack([each.nfe_backward_B for each in found]).sum(0),
            found[0].result_B,
            all(each.common for each in found),
            sum(each.encoder_passes for each in found),
        )

    def state_dict(self) -> dict[str, Any]:
        return {"networks": self.networks.state_dict(), "members": [member.state_dict() for member in self.members]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.networks.load_state_dict(state["networks"])
        for member, saved in zip(self.members, state["members"], strict=True):
            member.load_state_dict(saved)
