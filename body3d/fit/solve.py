"""Minimise many independent problems at once: L-BFGS with a strong Wolfe line search, one row of the batch per problem.

Rows share every evaluation (people × starts cost hardly more than one), but nothing else: each has its own curvature history, its
own step length and its own end, so a row's path does not depend on its neighbours.
Nocedal & Wright, Numerical Optimization, 2nd ed.: algorithm 7.4 (two loops), conditions (3.7).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Cost = Callable[[Float[Tensor, "B D"]], Float[Tensor, " B"]]

ARMIJO, CURVATURE = 1e-4, 0.9


@contextmanager
def few_threads(rows: int) -> Iterator[None]:
    """The tensors of a small fit cannot be shared: threads would only wait for each other, fifteen times slower where other work
    runs beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if rows < 128 else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Minimum:
    x: Float[Tensor, "B D"]
    cost: Float[Tensor, " B"]
    iterations: Int[Tensor, " B"]
    converged: Bool[Tensor, " B"]
    evaluations: int  # of the whole batch


def lbfgs(
    cost: Cost, x: Float[Tensor, "B D"], max_iterations: int = 100, history: int = 20, tolerance: float = 1e-5
) -> Minimum:
    """The rows of `x` moved to a local minimum of their own `cost`.

    `cost(x)[b]` may depend on row b of `x` only. A row has converged when an iteration lowers its cost by less than `tolerance`
    relative to it three times running, or its gradient vanishes. A row whose cost is not finite at the start stays where it is.
    """
    x = x.detach()
    f, g = _value_and_gradient(cost, x)
    evaluations = 1
    count = torch.zeros(len(x), dtype=torch.long, device=x.device)
    quiet = torch.zeros_like(count)
    active = f.isfinite()
    memory: list[tuple[Tensor, Tensor, Tensor]] = []  # (s, y, 1/s.y): 1/s.y = 0 where a row skipped the update

    for _ in range(max_iterations):
        if not active.any():
            break
        d = _direction(g, memory)
        slope = _dot(g, d)
        downhill = slope < 0
        d = torch.where(downhill[:, None], d, -g)
        slope = torch.where(downhill, slope, -_dot(g, g))
        # Without curvature there is no scale: a first step of at most length one.
        first = torch.ones_like(f) if memory else (1 / g.abs().sum(-1).clamp_min(1e-12)).clamp_max(1.0)
        step, f_new, g_new, used = _strong_wolfe(cost, x, d, f, g, slope, first, active)
        evaluations += used
        moved = active & (f_new < f)
        s = torch.where(moved[:, None], step[:, None] * d, torch.zeros_like(d))
        y = torch.where(moved[:, None], g_new - g, torch.zeros_like(d))
        sy = _dot(s, y)
        memory.append((s, y, torch.where(sy > 1e-10 * _dot(y, y), 1 / sy, torch.zeros_like(sy))))
        del memory[:-history]

        drop = torch.where(moved, (f - f_new) / f.abs().clamp_min(1e-12), torch.zeros_like(f))
        count += active
        quiet = torch.where(drop < tolerance, quiet + 1, torch.zeros_like(quiet))
        x = x + s
        f, g = torch.where(moved, f_new, f), torch.where(moved[:, None], g_new, g)
        active = active & (quiet < 3) & (g.abs().amax(-1) > 1e-7)
    return Minimum(x, f, count, ~active & f.isfinite(), evaluations)


def _value_and_gradient(cost: Cost, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        f = cost(x)
        (g,) = torch.autograd.grad(f.sum(), x)
    bad = ~(f.isfinite() & g.isfinite().all(-1))
    return torch.where(bad, torch.inf, f.detach()), torch.where(bad[:, None], 0.0, g)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def _direction(g: Tensor, memory: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """-H g by the two-loop recursion; a pair whose rho is 0 in a row does nothing in that row."""
    q, alphas = -g, []
    for s, y, rho in reversed(memory):
        alpha = rho * _dot(s, q)
        q = q - alpha[:, None] * y
        alphas.append(alpha)
    scale = torch.ones_like(g[:, 0])
    for _, y, rho in memory:  # the newest usable pair of each row wins
        scale = torch.where(rho > 0, 1 / (rho * _dot(y, y)).clamp_min(1e-12), scale)
    q = q * scale[:, None]
    for (s, y, rho), alpha in zip(memory, reversed(alphas), strict=True):
        q = q + (alpha - rho * _dot(y, q))[:, None] * s
    return q


def _strong_wolfe(
    cost: Cost,
    x: Tensor,
    d: Tensor,
    f0: Tensor,
    g0: Tensor,
    slope0: Tensor,
    step: Tensor,
    active: Tensor,
    trials: int = 20,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Per row a step length that satisfies the strong Wolfe conditions, or the best one seen (0 if none lowered the cost).

    The bracket [lo, hi] shrinks as in bisection, with cubic interpolation choosing the point inside it.
    """
    lo, f_lo, slope_lo = torch.zeros_like(f0), f0, slope0
    hi, f_hi, slope_hi = torch.full_like(f0, torch.inf), f0, slope0
    best, f_best, g_best = torch.zeros_like(f0), f0, g0
    searching = active.clone()
    used = 0
    while searching.any() and used < trials:
        used += 1
        f, g = _value_and_gradient(cost, x + step[:, None] * d)
        slope = _dot(g, d)
        too_high = ~(f <= f0 + ARMIJO * step * slope0)
        better = searching & ~too_high & (f <= f_best)
        best, f_best = torch.where(better, step, best), torch.where(better, f, f_best)
        g_best = torch.where(better[:, None], g, g_best)

        searching = searching & (too_high | (slope.abs() > -CURVATURE * slope0))
        beyond = searching & (too_high | (f >= f_lo) | (slope > 0))
        before = searching & ~beyond
        hi, f_hi, slope_hi = (torch.where(beyond, a, b) for a, b in ((step, hi), (f, f_hi), (slope, slope_hi)))
        lo, f_lo, slope_lo = (torch.where(before, a, b) for a, b in ((step, lo), (f, f_lo), (slope, slope_lo)))
        inside = _cubic_minimum(lo, f_lo, slope_lo, hi, f_hi, slope_hi)
        step = torch.where(searching, torch.where(hi.isinf(), 2.5 * step, inside), step)
    return best, f_best, g_best, used


def _cubic_minimum(a: Tensor, fa: Tensor, ga: Tensor, b: Tensor, fb: Tensor, gb: Tensor) -> Tensor:
    """Where the cubic through two points and slopes is least, kept away from the ends (N&W 3.59); else the middle."""
    d1 = ga + gb - 3 * (fa - fb) / (a - b)
    root = (d1.square() - ga * gb).clamp_min(0).sqrt() * (b - a).sign()
    t = b - (b - a) * (gb + root - d1) / (gb - ga + 2 * root)
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    margin = 0.1 * (high - low)
    t = torch.where(t.isfinite(), t, (a + b) / 2)
    return torch.minimum(torch.maximum(t, low + margin), high - margin)
