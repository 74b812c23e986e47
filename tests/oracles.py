"""Slow, independent references."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from problems import Problem, solve
from torch import Tensor

from gfe_study.solvers.amd import AMD
from gfe_study.solvers.base import Result, Solution, Solver
from gfe_study.solvers.lbfgs import LBFGS
from gfe_study.solvers.spectral import SpectralAMD

LossAndGradient = Callable[[list[float]], tuple[float, list[float]]]


@dataclass
class Path:
    """The end of one sample's flow, and its losses and times at every accepted point."""

    latent: list[float]
    losses: list[float]
    times: list[float]
    num_steps: int
    nfe_forward: int
    nfe_backward: int
    result: Result


Oracle = Callable[[LossAndGradient, list[float]], Path]


def check_followed(oracle: Oracle, solver: Solver, problem: Problem, rel: float, latent_rel: float) -> Solution:
    """Assert that every sample went the way of an oracle, times as exactly as latents; return the solution."""
    solution = solve(solver, problem)
    for sample, start in enumerate(problem.start().tolist()):
        _check_sample(solution, sample, oracle(sample_of(problem, sample), start), rel, latent_rel)
    return solution


def _check_sample(solution: Solution, sample: int, path: Path, rel: float, latent_rel: float) -> None:
    assert solution.latent_BL[sample].tolist() == pytest.approx(path.latent, rel=latent_rel, abs=latent_rel / 100)
    assert solution.loss_B[sample].item() == pytest.approx(path.losses[-1], rel=rel)
    assert solution.time_B[sample].item() == pytest.approx(path.times[-1], rel=latent_rel)
    assert solution.result_B[sample] == path.result
    assert solution.num_steps_B[sample] == path.num_steps
    assert solution.nfe_forward_B[sample] == path.nfe_forward
    assert solution.nfe_backward_B[sample] == path.nfe_backward


def sample_of(problem: Problem, sample: int) -> LossAndGradient:
    """ℓ and ∇_z ℓ of one sample by autograd."""

    def evaluate(latent: list[float]) -> tuple[float, list[float]]:
        z = torch.tensor([latent], dtype=torch.float64, requires_grad=True)
        loss = problem.loss(problem.decoder(z), problem.target[sample : sample + 1]).sum()
        (gradient,) = torch.autograd.grad(loss, z)
        return loss.item(), gradient[0].tolist()

    return evaluate


def out_of_steps(promised: float, loss: float, z: list[float], g: list[float]) -> Result:
    """Why a line search ended in vain: at rounding, or though its last candidate promised a fall beyond it."""
    rounding = sys.float_info.epsilon * (abs(loss) + math.hypot(*z) * math.hypot(*g))
    return Result.STALLED if promised > 10 * rounding else Result.NO_DESCENT


def amd(settings: AMD, evaluate: LossAndGradient, start: list[float]) -> Path:
    """Algorithm 1 of arXiv:2412.00864 for one sample, with DESIGN.md's corrections."""
    z, t, s = list(start), 0.0, settings.s_initial
    loss, g = evaluate(z)
    losses, times, nfe, newest = [loss], [t], 1, 0

    def ended(result: Result) -> Path:
        steps = len(losses) - 1
        return Path(z, losses, times, steps, nfe, steps + (newest < settings.max_nfe), result)

    while True:
        tried = None
        for m in range(settings.max_backtracks + 1):
            dt = min(settings.beta**m * s, settings.tau - t)
            if dt == tried:  # cut by tau again
                continue
            if nfe == settings.max_nfe:
                return ended(Result.MAX_NFE)
            tried = dt
            candidate = [zi - dt * gi for zi, gi in zip(z, g, strict=True)]
            new_loss, new_g = evaluate(candidate)
            nfe += 1
            if new_loss < loss - settings.sigma * dt * sum(gi * gi for gi in g):
                break
        else:
            return ended(out_of_steps(dt * sum(gi * gi for gi in g), loss, z, g))

        reached = dt == settings.tau - t
        t = settings.tau if reached else t + dt
        z, loss, g, newest = candidate, new_loss, new_g, nfe
        losses.append(loss)
        times.append(t)
        if reached:
            return ended(Result.REACHED_TAU)
        window = settings.window
        if len(losses) > window and (losses[-1 - window] - losses[-1]) / window < settings.min_slope:
            return ended(Result.SLOPE)
        scaled = settings.beta**m * s if settings.scale_update == "accepted" else s
        s = min(max(settings.kappa * scaled, settings.s_initial), settings.s_max)


def lbfgs(settings: LBFGS, problem: Problem, sample: int) -> Path:
    """L-BFGS of one sample in u, z = P u, P the symmetric root of the inverse of the damped Gauss–Newton matrix at 0.

    Any other root of it, u being turned, leads to the same z.
    """
    evaluate, latent_dim = sample_of(problem, sample), problem.start().shape[1]
    origin = torch.zeros(latent_dim, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda z: problem.decoder(z[None])[0], origin)
    mean = problem.decoder(origin[None])[0].sigmoid()
    normal = jacobian.t() @ ((mean * (1 - mean) / len(mean))[:, None] * jacobian)
    values, axes = torch.linalg.eigh(normal.detach())
    shift = settings.damping * values.mean()
    root = (axes * (values + shift).rsqrt()) @ axes.t()

    def both(z: Tensor) -> tuple[float, Tensor]:
        loss, slope = evaluate(z.tolist())
        return loss, root @ torch.tensor(slope, dtype=torch.float64)

    z, step, scale = problem.start()[sample].clone(), 1.0, torch.tensor(settings.s_initial, dtype=torch.float64)
    loss, g = both(z)
    moves: list[Tensor] = []
    turns: list[Tensor] = []
    losses, nfe, failed = [loss], 2, 0
    direction = -scale * g

    def ended(result: Result) -> Path:
        pullbacks = max(nfe - 1 - (nfe == settings.max_nfe), 1)
        return Path(z.tolist(), losses, [], len(losses) - 1, nfe, pullbacks, result)

    while nfe < settings.max_nfe:
        move = step * direction
        new_loss, new_g = both(z + root @ move)
        nfe += 1
        if not new_loss < loss + settings.sigma * step * float(direction @ g):
            promised = -step * float(direction @ g)
            step, failed = step * settings.beta, failed + 1
            if failed > settings.max_backtracks:
                return ended(out_of_steps(promised, loss, z.tolist(), evaluate(z.tolist())[1]))
            continue
        turn = new_g - g
        used = bool(move @ turn > torch.finfo(torch.float64).eps * (turn @ turn))
        zero = torch.zeros_like(move)
        moves = [*moves, move if used else zero][-settings.pairs :]
        turns = [*turns, turn if used else zero][-settings.pairs :]
        scale = move @ turn / (turn @ turn) if used else scale
        z, loss, g, step, failed = z + root @ move, new_loss, new_g, 1.0, 0
        losses.append(loss)
        direction = -two_loop(g, moves, turns, scale)
        window = settings.window
        if len(losses) > window and losses[-1 - window] - losses[-1] < settings.min_slope * window:
            return ended(Result.SLOPE)
    return ended(Result.MAX_NFE)


def longest_step(
    settings: AMD, evaluate: LossAndGradient, z: list[float], s: float, left: float
) -> tuple[float, list[float]]:
    """The first of s, βs, β²s, …, each cut to the time left, that lowers the loss enough; and where it leads."""
    loss, g = evaluate(z)
    for m in range(settings.max_backtracks + 1):
        dt = min(settings.beta**m * s, left)
        candidate = [zi - dt * gi for zi, gi in zip(z, g, strict=True)]
        lowered, _ = evaluate(candidate)
        if lowered < loss - settings.sigma * dt * sum(gi * gi for gi in g):
            return dt, candidate
    raise AssertionError("no step lowers the loss")


def euler_adjoint(problem: Problem, alphas: list[float], steps: list[float], latents: list[Tensor]) -> list[Tensor]:
    """Eq. 2–4 for the gradient flow under Euler's rule, with the Hessians written out; dL/dθ per weight.

    a_N = ∇ℓ(z_N); a_n = a_{n+1} − h_n α_n H(z_n) a_{n+1}; dL/dθ = ∂_θ ℓ(z_N) − Σ_n h_n α_n ∂_θ[a_{n+1}ᵀ ∇ℓ(z_n)].
    """
    weights = list(problem.decoder.parameters())
    total = [torch.zeros_like(weight) for weight in weights]

    def sample_loss(z: Tensor, sample: int) -> Tensor:
        loss: Tensor = problem.loss(problem.decoder(z[None]), problem.target[sample : sample + 1]).sum()
        return loss

    for sample in range(len(problem.target_BD)):
        z = latents[-1][sample].clone().requires_grad_()
        loss = sample_loss(z, sample)
        *direct, costate = torch.autograd.grad(loss, [*weights, z])
        total = [t + d for t, d in zip(total, direct, strict=True)]
        for alpha, h, node in reversed(list(zip(alphas, steps, latents[:-1], strict=True))):
            z = node[sample].clone().requires_grad_()
            (grad,) = torch.autograd.grad(sample_loss(z, sample), z, create_graph=True)
            mixed = torch.autograd.grad(costate @ grad, weights, allow_unused=True)
            total = [t - h * alpha * m if m is not None else t for t, m in zip(total, mixed, strict=True)]
            hessian = torch.autograd.functional.hessian(functools.partial(sample_loss, sample=sample), node[sample])
            costate = costate - h * alpha * hessian @ costate
    return total


def spectral(settings: SpectralAMD, evaluate: LossAndGradient, start: list[float]) -> Path:
    """AMD with the Barzilai–Borwein trial step and the non-monotone test, for one sample."""

    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    z, t, s, m = list(start), 0.0, min(settings.s_initial, settings.tau), 0
    loss, g = evaluate(z)
    losses, times, points, bests, nfe, newest = [loss], [t], [z], [loss], 1, 0

    def ended(result: Result) -> Path:
        best = min(range(len(losses)), key=losses.__getitem__)
        pullbacks = len(losses) - (newest == settings.max_nfe)
        return Path(points[best], losses[: best + 1], times[: best + 1], best, nfe, pullbacks, result)

    while nfe < settings.max_nfe:
        candidate = [zi - s * gi for zi, gi in zip(z, g, strict=True)]
        new_loss, new_g = evaluate(candidate)
        nfe += 1
        if not new_loss < max(losses[-settings.memory :]) - settings.sigma * s * dot(g, g):
            m += 1
            if m > settings.max_backtracks:
                return ended(out_of_steps(s * dot(g, g), loss, z, g))
            s = min(s * settings.beta, settings.tau - t)
            continue
        moved = [a - b for a, b in zip(candidate, z, strict=True)]
        turned = [a - b for a, b in zip(new_g, g, strict=True)]
        curvature = abs(dot(moved, turned))
        secant = dot(moved, moved) / curvature if curvature else settings.s_max
        z, g, loss, t, m, newest = candidate, new_g, new_loss, t + s, 0, nfe
        losses.append(loss)
        times.append(t)
        points.append(z)
        bests.append(min(bests[-1], loss))
        s = min(min(max(secant, settings.s_min), settings.s_max), settings.tau - t)
        if t >= settings.tau:
            return ended(Result.REACHED_TAU)
        window = settings.window
        if len(bests) > window and bests[-1 - window] - bests[-1] < settings.min_slope * window:
            return ended(Result.SLOPE)
    return ended(Result.MAX_NFE)


def two_loop(grad: Tensor, moves: list[Tensor], turns: list[Tensor], scale: Tensor) -> Tensor:
    """Nocedal's two-loop recursion: the inverse BFGS matrix of pairs, oldest first, times a gradient."""
    pairs = [(s, y, 1 / (s @ y)) for s, y in zip(moves, turns, strict=True) if s.any()]
    result, weights = grad.clone(), []
    for s, y, rho in reversed(pairs):
        weights.append(rho * (s @ result))
        result = result - weights[-1] * y
    result = scale * result
    for (s, y, rho), weight in zip(pairs, reversed(weights), strict=True):
        result = result + (weight - rho * (y @ result)) * s
    return result
