"""The loop that every solver shares which looks for a lower loss of each sample.

Shapes: B batch, K samples still active, L latent, N nodes of a path.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Generic, Self, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from gfe_study.solvers.base import Result, Solution, Solver, StepObserver, check_start
from gfe_study.solvers.fields import Flow, GradientFlow
from gfe_study.solvers.objective import Objective
from gfe_study.solvers.runge_kutta import Path, Scheme

if TYPE_CHECKING:
    from gfe_study.config import Trial


@dataclass
class Active:
    """Everything that is per sample, for the samples still on their way; a row is a sample."""

    row: Tensor
    """Where the sample stands in the batch."""
    latent: Tensor
    """The last accepted point, shape (K, L)."""
    grad: Tensor
    loss: Tensor
    time: Tensor
    """Sum of the accepted steps: flow time."""
    num_steps: Tensor
    """Accepted steps."""
    length: Tensor
    """Length of the last accepted step along the flow; of no meaning to a solver that follows none."""
    promised: Tensor
    """By how much the last candidate would have lowered the loss had it kept the slope of the direction."""

    def keep(self, kept: Tensor) -> Self:
        return type(self)(*(getattr(self, field.name)[kept] for field in fields(self)))

    def end(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latent, loss, time and number of the accepted step that the solution gives back."""
        return self.latent, self.loss, self.time, self.num_steps


A = TypeVar("A", bound=Active)

Ended = list[tuple[Result, Tensor]]
"""Why samples ended in a round, as masks of shape (K,); where two hold, the later one is told."""
ROUNDINGS = 10.0
"""A fall of so many times the rounding of a sample's loss can be seen. Of samples that end without one, the last
candidate promised at most twice the rounding at a minimum, and more than 10⁵ times where all were too long."""


class DescentSolver(Solver, Generic[A]):
    """Lowers each sample's loss on its own, one candidate a round, until the sample says that it has ended.

    A round evaluates one point per active sample. Samples that ended leave the arrays, so that nothing is
    spent on them. `max_nfe` rounds end what is still on its way.
    """

    max_nfe: int = Field(10_000, gt=0)
    """Decoder evaluations per sample after which it stops wherever it is."""
    train_max_nfe: int | None = Field(None, gt=0)
    """The same where a training batch is first solved; None: `max_nfe`."""
    resume_max_nfe: int | None = Field(None, gt=0)
    """The same where it is solved on after a weight update (`optim.updates_per_batch`); None: `train_max_nfe`."""

    implies = {"flow.alpha": "constant"}
    refused: ClassVar[str] = "its test needs a descent direction and momentum is none"

    def check_trial(self, trial: Trial) -> None:
        self._check_flow(trial.flow)

    def _check_flow(self, flow: Flow) -> None:
        if not isinstance(flow, GradientFlow):
            raise ValueError(
                f"solver.name: {self.name} cannot follow flow.name={flow.name}: {self.refused}; "
                "allowed: flow.name=gradient, or solver.name=rk4"
            )
        if flow.alpha != "constant":
            raise ValueError(
                f"flow.alpha: given {flow.alpha!r} with solver.name={self.name}, which chooses its steps itself; "
                "allowed: constant"
            )

    def for_training(self, *, resumed: bool) -> Self:
        cap = self.resume_max_nfe if resumed and self.resume_max_nfe is not None else self.train_max_nfe
        return self if cap is None else self.model_copy(update={"max_nfe": min(cap, self.max_nfe)})

    def for_encoding(self) -> Self:
        return self.model_copy(update={"train_max_nfe": None, "resume_max_nfe": None})

    @torch.no_grad()
    def solve(
        self, flow: Flow, objective: Objective, start_BL: Tensor, observe: StepObserver = None, keep_path: bool = False
    ) -> Solution:
        self._check_flow(flow)
        check_start(start_BL)
        solution = _blank(start_BL)
        walked = _Walked(start_BL, self.scheme) if keep_path and self.scheme is not None else None
        spent = objective.evaluations
        active = self._first(objective, start_BL)
        finite = active.loss.isfinite() & active.grad.isfinite().all(-1)
        active = _retire(active, [(Result.NONFINITE, ~finite)], solution)
        for left in range(self.max_nfe - (objective.evaluations - spent), 0, -1):
            if not len(active.row):
                break
            ended = self._round(objective, active, last=left == 1)
            if observe is not None:
                observe({field.name: getattr(active, field.name).clone() for field in fields(active)})
            if walked is not None:
                walked.add(active)
            active = _retire(active, ended, solution)
        _retire(active, [(Result.MAX_NFE, torch.ones_like(active.row, dtype=torch.bool))], solution)
        path = None if walked is None else walked.path(self, flow, solution)
        counts = {"nfe_forward_B": objective.nfe_forward_B, "nfe_backward_B": objective.nfe_backward_B}
        return replace(solution, path=path, **counts)

    @abstractmethod
    def _first(self, objective: Objective, start_BL: Tensor) -> A:
        """The whole batch at its start; one evaluation and one pullback."""

    @abstractmethod
    def _round(self, objective: Objective, active: A, last: bool) -> Ended:
        """Evaluate one point for every active sample, and advance, in place, those that accept it.

        After the last round nothing reads the gradient or the next candidate, so they need not be computed.
        """


class Chosen:
    """Some of the active samples, so that an accepted step costs what its samples cost; None for all of them."""

    def __init__(self, accepted: Tensor) -> None:
        self.index = None if bool(accepted.all()) else accepted.nonzero().flatten()

    def __bool__(self) -> bool:
        return self.index is None or len(self.index) > 0

    def take(self, values: Tensor) -> Tensor:
        """The chosen rows."""
        return values if self.index is None else values[self.index]

    def put(self, old: Tensor, new: Tensor) -> Tensor:
        """All rows, the chosen ones replaced."""
        return new if self.index is None else old.index_copy(0, self.index, new)


def rows_of(active: Active, objective: Objective) -> Tensor | None:
    """The rows to evaluate: None while the whole batch is active."""
    return None if len(active.row) == len(objective.target) else active.row


def first_fields(objective: Objective, start_BL: Tensor) -> dict[str, Tensor]:
    """The fields of `Active` for the whole batch at its start, by one evaluation and one pullback."""
    loss, pullback = objective.evaluate(start_BL)
    return fields_at(start_BL, loss, pullback(None))


def fields_at(start_BL: Tensor, loss: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """The fields of `Active` for the whole batch at its start, where loss and gradient are known."""
    row = torch.arange(len(start_BL), device=start_BL.device)
    return {
        "row": row,
        "latent": start_BL.clone(),
        "grad": grad,
        "loss": loss,
        "time": torch.zeros_like(start_BL[:, 0]),
        "num_steps": torch.zeros_like(row),
        "length": torch.zeros_like(loss),
        "promised": torch.zeros_like(loss),
    }


def _blank(start_BL: Tensor) -> Solution:
    number_B = torch.zeros(len(start_BL), dtype=torch.long, device=start_BL.device)
    return Solution(
        latent_BL=torch.empty_like(start_BL),
        loss_B=torch.empty_like(start_BL[:, 0]),
        time_B=torch.empty_like(start_BL[:, 0]),
        result_B=number_B,
        num_steps_B=number_B.clone(),
        nfe_forward_B=number_B,
        nfe_backward_B=number_B,
    )


def _retire(active: A, ended: Ended, solution: Solution) -> A:
    """Write the samples that ended into the solution, and return the others."""
    gone = ended[0][1]
    for _, mask in ended[1:]:
        gone = gone | mask
    count = int(gone.sum())  # the one time in a round that the host waits for the device
    if not count:
        return active
    code = torch.zeros_like(active.row)
    for result, mask in ended:
        code = code.masked_fill(mask, result)
    code = code.masked_fill((code == Result.NO_DESCENT) & _visible(active), Result.STALLED)
    order = gone.to(torch.uint8).argsort(stable=True)
    kept, left = order[: len(order) - count], order[len(order) - count :]
    row = active.row[left]
    latent, loss, time, num_steps = active.end()
    solution.latent_BL[row] = latent[left]
    solution.loss_B[row] = loss[left]
    solution.time_B[row] = time[left]
    solution.result_B[row] = code[left]
    solution.num_steps_B[row] = num_steps[left]
    return active.keep(kept)


def _visible(active: Active) -> Tensor:
    """Whether the fall that the last candidate promised is beyond the rounding of the loss and of the latent."""
    reach = active.grad.norm(dim=1) * active.latent.norm(dim=1)
    rounding = torch.finfo(active.loss.dtype).eps * (active.loss.abs() + reach)
    hidden: Tensor = active.promised <= ROUNDINGS * rounding
    return ~hidden


class _Walked:
    """The accepted points, written down round by round under the number of their step."""

    def __init__(self, start_BL: Tensor, scheme: Scheme) -> None:
        self.scheme = scheme
        self.latents = [start_BL.clone()]
        self.times = [torch.zeros_like(start_BL[:, 0])]
        self.lengths = [torch.zeros_like(start_BL[:, 0])]

    def add(self, active: Active) -> None:
        while len(self.times) <= int(active.num_steps.max()):
            self.latents.append(torch.empty_like(self.latents[0]))
            self.times.append(torch.empty_like(self.times[0]))
            self.lengths.append(torch.zeros_like(self.times[0]))
        for step in active.num_steps.unique().tolist():
            here = active.num_steps == step
            self.latents[step][active.row[here]] = active.latent[here]
            self.times[step][active.row[here]] = active.time[here]
            self.lengths[step][active.row[here]] = active.length[here]

    def path(self, solver: Solver, flow: Flow, solution: Solution) -> Path:
        count = int(solution.num_steps_B.max()) + 1 if len(solution.num_steps_B) else 1
        state_NBS, time_NB = torch.stack(self.latents[:count]), torch.stack(self.times[:count])
        number_N1 = torch.arange(count, device=time_NB.device)[:, None]
        over_NB = number_N1 >= solution.num_steps_B
        length_NB = torch.stack(self.lengths[:count]).masked_fill(number_N1 > solution.num_steps_B, 0.0)
        return Path(
            flow,
            self.scheme,
            getattr(solver, "tau", math.inf),
            torch.where(over_NB, solution.time_B, time_NB),
            length_NB[1:],
            torch.where(over_NB[..., None], solution.latent_BL, state_NBS),
        )
