"""The conic distance field that pushes crossing triangles apart (Ballan et al., ECCV 2012; Tzionas et al., IJCV 2016).

Every triangle of a crossing pair is once the receiver, whose cone the three vertices of the other one, the intruder, are pushed out
of. The cone stands on the receiver's circumcircle, has its axis along the normal and narrows outwards to a point at height sigma.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from body3d.body.parts import Parts
from body3d.body.triangles import colliding_pairs, stack_pairs

__all__ = ["circumcircle", "conic_energy", "conic_field", "intrusion"]

# Added to the width of the cone by the published code: keeps the quotient finite at the cone's point.
EPSILON = 1e-6
TINY = 1e-30  # keeps the roots of zero differentiable


def circumcircle(
    triangles: Float[Tensor, "*B 3 3"],
) -> tuple[Float[Tensor, "*B 3"], Float[Tensor, "*B"], Float[Tensor, "*B 3"]]:
    """Centre and radius of the circle through the corners, and the unit normal (corners counter-clockwise about it)."""
    a, b, c = triangles.unbind(-2)
    u, v = a - c, b - c
    normal = torch.linalg.cross(u, v)
    squared = normal.square().sum(-1, keepdim=True) + TINY
    uu, vv = u.square().sum(-1, keepdim=True), v.square().sum(-1, keepdim=True)
    arm = torch.linalg.cross(uu * v - vv * u, normal) / (2 * squared)
    return c + arm, (arm.square().sum(-1) + TINY).sqrt(), normal * squared.rsqrt()


def intrusion(depth: Float[Tensor, "*B"], sigma: float, outside: bool = True) -> Float[Tensor, "*B"]:
    """How much a vertex at axial coordinate `depth` (negative inside) intrudes: linear below -sigma, then a parabola that
    is 0 at sigma; without `outside` it is 0 from the surface on.
    """
    parabola = (3 - 2 * sigma) / 4 - depth / (2 * sigma) - (1 - 2 * sigma) / (4 * sigma**2) * depth.square()
    near = torch.where(depth < (sigma if outside else 0.0), parabola, 0.0)
    return torch.where(depth <= -sigma, 1 - sigma - depth, near)


def conic_field(
    triangles: Float[Tensor, "B F 3 3"],
    pairs: Int[Tensor, "B K 2"],
    sigma: float = 1e-4,
    outside: bool = True,
    released: bool = False,
) -> Float[Tensor, "B K"]:
    """The energy of each pair of triangles, both ways; 0 for the pairs -1 that fill up a row. Their sum is the collision term.

    Of a vertex: |psi n|² with psi = ((1 - h) intrusion)² inside the cone, h its distance from the axis over the cone's radius there
    (SMPLify-X, Pavlakos et al., CVPR 2019, equation 6): the fourth power. The code released with it squares once more, the
    eighth power: `released`. The field depends on the unit of length, since intrusion grows by one per unit: SMPLify-X takes
    metres with sigma 1e-4, Tzionas et al. millimetres with sigma 0.5.
    """
    known = (pairs >= 0).all(-1)
    row = torch.arange(len(pairs), device=pairs.device)[:, None, None]
    corners = triangles[row, pairs.clamp_min(0)]
    centre, radius, normal = circumcircle(corners)

    arm = corners.flip(2) - centre.unsqueeze(-2)  # the intruder's vertices in the receiver's frame: B K 2 3 3
    depth = (arm * normal.unsqueeze(-2)).sum(-1)
    # The root of a distance whose square is taken from a difference loses digits; this does not.
    aside = arm - depth.unsqueeze(-1) * normal.unsqueeze(-2)
    distance = (aside.square().sum(-1) + TINY).sqrt()
    width = radius.unsqueeze(-1) * (1 - depth / sigma) + EPSILON
    inside = (depth < sigma) & (distance < width)
    h = distance / torch.where(inside, width, 1.0)
    field = torch.where(inside, (1 - h) * intrusion(depth, sigma, outside), 0.0)
    return torch.where(known, (field ** (8 if released else 4)).sum((-2, -1)), 0.0)


def conic_energy(
    verts: Float[Tensor, "B V 3"],
    parts: Parts,
    sigma: float = 1e-4,
    outside: bool = True,
    released: bool = False,
) -> Float[Tensor, " B"]:
    """The collision term of posed bodies (m): the field of all pairs of triangles that cross, found anew in each call.

    Differentiable; for a solver that needs values and gradients only, in the last stage of a fit.
    """
    found = [colliding_pairs(v, parts) for v in verts.detach().double().cpu().numpy()]
    triangles = verts[:, torch.from_numpy(parts.faces.astype("int64")).to(verts.device)]
    return conic_field(triangles, stack_pairs(found, verts.device), sigma, outside, released).sum(-1)
