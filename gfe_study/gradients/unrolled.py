"""Autograd through the discrete solve: the oracle of the other gradients.

Shapes: B batch, S solver state.
"""

import torch
from torch import Tensor

from gfe_study.gradients.base import Differentiated, Gradient, PathObjective
from gfe_study.solvers.base import Solution
from gfe_study.solvers.objective import Objective
from gfe_study.solvers.runge_kutta import Time


class Unrolled(Gradient):
    """dL/dθ by walking the solver's steps again under autograd, and back through all of them.

    Exact for the numbers the solver gave; a step length that it chose by looking at the loss is held fixed. The
    graphs of all steps are in memory at once: `adjoint` gives the same numbers with one at a time.
    """

    needs_path = True

    def backward(self, objective: Objective, solution: Solution) -> Differentiated:
        path = self.path_of(solution)
        followed = PathObjective(objective)

        def rate(t: Time, state_BS: Tensor) -> Tensor:
            return path.flow.derivative(followed, t, path.tau, state_BS)

        with torch.enable_grad():
            state_BS = path.state_NBS[0]
            for n in range(len(path)):
                state_BS = path.scheme.step(rate, path.time_NB[n], path.length_NB[n], state_BS)
            latent_BL = path.flow.latent(state_BS)
            loss_B = objective.loss(objective.decoder(latent_BL), objective.target)
            if bool(loss_B.isfinite().all()):
                objective.target.weighed(loss_B + objective.prior(latent_BL)).sum().backward()
        passes_B = torch.full_like(solution.nfe_forward_B, followed.evaluations)
        return Differentiated(loss_B.detach(), passes_B + 1, 2 * passes_B + 1)
