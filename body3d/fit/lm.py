"""Minimise many independent problems at once: Levenberg-Marquardt, one row of the batch per problem.

Each row has its own damping and its own end; rows that have ended are no longer evaluated. The cost need not be a sum of squares:
what is asked for is a gradient and a curvature that is never negative, as Gauss and Newton's approximation, robust weights
(IRLS) and exact curvatures of convex terms give it. Nocedal & Wright, Numerical Optimization, 2nd ed., section 10.3; the damping
follows Nielsen, Damping Parameter in Marquardt's Method, IMM-REP-1999-05.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from body3d.fit.solve import Minimum
from body3d.tensors import Tensors

__all__ = ["Quadratic", "levenberg_marquardt"]


@dataclass(frozen=True)
class Quadratic(Tensors):
    """cost + gradient·d + d·curvature·d / 2: what a row's cost looks like near its x."""

    cost: Float[Tensor, " B"]
    gradient: Float[Tensor, "B D"]
    curvature: Float[Tensor, "B D D"]  # positive semi-definite


# Of rows x (first argument); the second argument says which rows of the batch they are.
Model = Callable[[Float[Tensor, "A D"], Int[Tensor, " A"]], Quadratic]


def levenberg_marquardt(
    model: Model, x: Float[Tensor, "B D"], max_iterations: int = 50, tolerance: float = 1e-4, damping: float = 1e-2
) -> Minimum:
    """The rows of `x` moved to a local minimum of their own cost.

    A row has converged when twice running its next step promises to lower its cost by less than `tolerance` relative to it.
    A row whose cost is not finite at the start stays where it is. `damping` is relative to the curvature of each unknown.
    """
    rows = torch.arange(len(x), device=x.device)
    here = model(x, rows)
    out = Minimum(x.clone(), here.cost.clone(), torch.zeros_like(rows), torch.zeros_like(rows, dtype=torch.bool), 1)
    evaluations = 1
    mu, growth = torch.full_like(here.cost, damping), torch.full_like(here.cost, 2.0)
    quiet = torch.zeros_like(rows)
    going = here.cost.isfinite()
    for _ in range(max_iterations):
        kept = going.nonzero()[:, 0]  # the one synchronisation per iteration
        if len(kept) == 0:
            break
        if len(kept) < len(rows):
            rows, x, here, mu, growth, quiet = rows[kept], x[kept], here[kept], mu[kept], growth[kept], quiet[kept]
        step, promised = _damped_step(here, mu)
        there = model(x + step, rows)
        evaluations += 1
        gain = (here.cost - there.cost) / promised
        better = (gain > 0) & there.cost.isfinite()  # false for NaN

        quiet = torch.where(promised <= tolerance * here.cost.abs(), quiet + 1, 0)
        x = torch.where(better[:, None], x + step, x)
        here = Quadratic(*(torch.where(better.view(-1, *[1] * (a.ndim - 1)), b, a) for a, b in _pairs(here, there)))
        shrink = (1 - (2 * gain.nan_to_num() - 1).clamp(-1, 1) ** 3).clamp_min(1 / 3)
        mu = torch.where(better, mu * shrink, mu * growth).clamp(1e-9, 1e12)
        growth = torch.where(better, 2.0, 2 * growth)
        going = quiet < 2
        out.x[rows], out.cost[rows], out.converged[rows] = x, here.cost, ~going
        out.iterations[rows] += 1
    return Minimum(out.x, out.cost, out.iterations, out.converged, evaluations)


def _pairs(a: Quadratic, b: Quadratic):
    return zip((a.cost, a.gradient, a.curvature), (b.cost, b.gradient, b.curvature), strict=True)


def _damped_step(at: Quadratic, mu: Float[Tensor, " B"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
    """The step that solves (H + mu diag H) d = -g, and by how much the undamped model says it lowers the cost.

    The system is scaled to a diagonal of ones first: metres, radians and coefficients differ by many powers of ten.
    """
    diagonal = at.curvature.diagonal(dim1=-2, dim2=-1)
    scale = diagonal.clamp_min(1e-12).rsqrt()
    scaled = scale.unsqueeze(-1) * at.curvature * scale.unsqueeze(-2)
    scaled.diagonal(dim1=-2, dim2=-1).add_(mu.unsqueeze(-1) + 1e-6)
    factor, _ = torch.linalg.cholesky_ex(scaled)
    gradient = scale * at.gradient
    step = torch.cholesky_solve(-gradient.unsqueeze(-1), factor).squeeze(-1)
    # -g.d - d.H.d / 2, with H d = -g - mu d
    promised = 0.5 * (step * (mu.unsqueeze(-1) * step - gradient)).sum(-1)
    return scale * step, promised
