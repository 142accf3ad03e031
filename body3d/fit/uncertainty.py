"""How sure a fit is: standard deviations from the curvature of the objective at its minima (Laplace's approximation).

The deviations are those of a mixture: every clearly different solution that the fit kept counts by its cost, so that a limb that
may as well point the other way in depth is unsure by the distance of the two.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from body3d.fit.jacobian import PointJacobian
from body3d.fit.problem import Problem, Stage
from body3d.fit.terms import Target
from body3d.fit.unknowns import Unknowns
from body3d.tensors import Tensors
from body3d.types import BodyParams

__all__ = ["NATURAL", "Uncertainty", "mixed", "uncertainty"]

# The objective over NATURAL · `stage.pose`² is read as a negative log-likelihood. The published weights count squares where a
# log-likelihood counts their halves, which would make 2; the errors of synthetic fits ask for a little less (docs/benchmarks.md).
NATURAL = 1.8
# A given 3D pose errs as a whole, and a lifter read the same keypoints as the fit: its statements are worth fewer independent ones.
# The share was chosen so that errors of synthetic fits lie within the deviations as often as they should.
INDEPENDENT = 0.15
# Keypoints beside a 3D pose weigh more in a fit than they are worth as statements: their confidences count so much of it here.
WORTH = 0.6


@dataclass(frozen=True)
class Uncertainty(Tensors):
    """Standard deviations."""

    params: BodyParams  # of its numbers: radians of rotation vectors, coefficients, metres
    joints: Float[Tensor, "*B J 3"]  # metres, camera axes: right, down, and depth
    joints_from_root: Float[Tensor, "*B J 3"]  # the same for places relative to the root: without the person's distance


def uncertainty(problem: Problem, x: Float[Tensor, "B D"], target: Target, stage: Stage) -> Uncertainty:
    """Of the tree's joints and of all parameters, at minima x of the stage's objective, each for itself."""
    unknowns, names = problem.unknowns, problem.model.joints.names
    stage = replace(stage, directions=stage.directions * INDEPENDENT**0.5)
    if problem.bones:
        target = replace(target, conf=target.conf * WORTH)
    parts = [n for n in unknowns.slices if unknowns.size(n) and (n != "lean" or problem.bones)]
    curvature = problem.quadratics(x, target, stage, parts).curvature / (NATURAL * stage.pose**2)
    scale = curvature.diagonal(dim1=-2, dim2=-1).clamp_min(1e-12).rsqrt()
    scaled = scale.unsqueeze(-1) * curvature * scale.unsqueeze(-2)
    scaled.diagonal(dim1=-2, dim2=-1).add_(1e-6)
    factor = torch.linalg.cholesky_ex(scaled)[0]
    # The deviation of what moves by J is the length of the whitened J: J C Jᵀ = (L⁻¹ S Jᵀ)ᵀ (L⁻¹ S Jᵀ).
    deviation = lambda J: torch.linalg.solve_triangular(factor, (J * scale.unsqueeze(-2)).mT, upper=False).norm(dim=-2)

    points = PointJacobian(problem.model.subset(names), torch.eye(len(names)).to(x), unknowns)
    _, J = points(unknowns.params(x), parts)  # (B, 3, J, F)
    joints, from_root = (deviation(j.flatten(1, 2)).unflatten(1, (3, -1)).mT for j in (J, J - J[:, :, :1]))
    by_unknowns = _flat(unknowns.params(torch.eye(x.shape[1]).to(x))) - _flat(unknowns.params(torch.zeros_like(x[:1])))
    of_params = deviation(by_unknowns[unknowns.columns(parts, x.device)].mT.expand(len(x), -1, -1))
    return Uncertainty(_params_like(unknowns, of_params), joints, from_root)


def mixed(
    each: Uncertainty,
    joints: Float[Tensor, "B J 3"],
    params: BodyParams,
    cost: Float[Tensor, " B"],
    stage: Stage,
    best: Int[Tensor, " N"],
    rows: Int[Tensor, "N R"],
) -> Uncertainty:
    """About each person's best solution, of the mixture of all their solutions `rows` (-1: none) by their costs."""
    own = rows.clamp_min(0)
    rise = (cost[own] - cost[best].unsqueeze(1)) / (NATURAL * stage.pose**2)
    share = torch.where(rows >= 0, (-rise.clamp_min(0)).exp(), 0.0)
    share = share / share.sum(1, keepdim=True)

    def spread(deviation: Tensor, place: Tensor, apart: Callable[[Tensor, Tensor], Tensor] = torch.sub) -> Tensor:
        square = deviation[own].square() + apart(place[own], place[best].unsqueeze(1)).square()
        return (share.view(*share.shape, *[1] * (square.ndim - 2)) * square).sum(1).sqrt()

    expression = None
    if params.expression is not None and each.params.expression is not None:
        expression = spread(each.params.expression, params.expression)
    of_params = BodyParams(
        spread(each.params.pose, params.pose, _shorter),
        spread(each.params.shape, params.shape),
        spread(each.params.transl, params.transl),
        expression,
    )
    return Uncertainty(of_params, spread(each.joints, joints), spread(each.joints_from_root, joints - joints[:, :1]))


def _shorter(a: Float[Tensor, "*B 3"], b: Float[Tensor, "*#B 3"]) -> Float[Tensor, "*B 3"]:
    """From b to a where both are rotation vectors: a or the same rotation the other way round, whichever is nearer."""
    other = a - 2 * math.pi * a / a.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    apart, around = a - b, other - b
    return torch.where((around.norm(dim=-1) < apart.norm(dim=-1)).unsqueeze(-1), around, apart)


def _flat(params: BodyParams) -> Float[Tensor, "B P"]:
    parts = [params.pose.flatten(1), params.shape, params.transl]
    return torch.cat(parts if params.expression is None else [*parts, params.expression], 1)


def _params_like(unknowns: Unknowns, flat: Float[Tensor, "B P"]) -> BodyParams:
    """The parameters whose numbers in a row are `flat`."""
    shape, expression = unknowns.size("shape"), unknowns.size("expression")
    pose, shapes, transl, expressions = flat.split([3 * len(unknowns.model.joints), shape, 3, expression], 1)
    return BodyParams(pose.unflatten(1, (-1, 3)), shapes, transl, expressions if expression else None)
