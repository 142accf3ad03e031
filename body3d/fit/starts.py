"""Where a fit starts: which way the person faces and where they stand."""

import math

import roma
import torch
from jaxtyping import Float
from torch import Tensor

# Turns a body (y up, facing +z) so that it stands upright in camera axes (y down) and faces the camera.
FACING = (math.pi, 0.0, 0.0)


def facing(yaws: Float[Tensor, "R"]) -> Float[Tensor, "R 3"]:
    """Root rotation vectors of an upright body turned about its own vertical axis; 0 faces the camera."""
    flip = roma.rotvec_to_rotmat(torch.tensor([FACING], dtype=yaws.dtype, device=yaws.device))
    turn = roma.rotvec_to_rotmat(torch.stack([torch.zeros_like(yaws), yaws, torch.zeros_like(yaws)], -1))
    return roma.rotmat_to_rotvec(flip @ turn)


def kabsch(
    source: Float[Tensor, "*B J 3"], target: Float[Tensor, "*B J 3"], weight: Float[Tensor, "*B J"]
) -> Float[Tensor, "*B 3"]:
    """The rotation vector that best turns `source` onto `target` (both about their weighted means)."""
    w = (weight / weight.sum(-1, keepdim=True).clamp_min(1e-12)).unsqueeze(-1)
    s = source - (w * source).sum(-2, keepdim=True)
    t = target - (w * target).sum(-2, keepdim=True)
    return roma.rotmat_to_rotvec(roma.special_procrustes((w * t).mT @ s))


def translation(
    points: Float[Tensor, "B K 3"], xy: Float[Tensor, "B K 2"], weight: Float[Tensor, "B K"], K: Float[Tensor, "3 3"]
) -> Float[Tensor, "B 3"]:
    """The translation (m) that brings the points closest to their pixels: linear least squares in the equations
    f (X + tx) = u (Z + tz), f (Y + ty) = v (Z + tz), with u, v from the principal point.

    Where the answer is behind the camera or very near it (wrong facing, few points), the depth comes from similar triangles.
    """
    uv = torch.linalg.solve(K[:2, :2], (xy - K[:2, 2]).mT).mT
    w = weight.sqrt()[..., None]
    one, zero = torch.ones_like(w), torch.zeros_like(w)
    A = torch.cat([torch.cat([one, zero, -uv[..., :1]], -1) * w, torch.cat([zero, one, -uv[..., 1:]], -1) * w], 1)
    b = torch.cat(
        [(uv[..., :1] * points[..., 2:] - points[..., :1]) * w, (uv[..., 1:] * points[..., 2:] - points[..., 1:2]) * w],
        1,
    )
    eye = torch.eye(3).to(points)
    t = torch.linalg.solve(A.mT @ A + 1e-9 * eye, A.mT @ b)[..., 0]

    spread = lambda p: ((weight[..., None] * (p - _mean(p, weight)).square()).sum((-2, -1)) / weight.sum(-1)).sqrt()
    depth = (spread(points[..., :2]) / spread(uv).clamp_min(1e-9)).clamp(0.3, 1000.0)
    centre = _mean(uv, weight)[:, 0] * depth[:, None] - _mean(points, weight)[:, 0, :2]
    fallback = torch.cat([centre, depth[:, None] - _mean(points, weight)[:, 0, 2:]], -1)
    usable = t.isfinite().all(-1) & (t[:, 2] > 0.4 * depth) & (t[:, 2] < 2.5 * depth)
    return torch.where(usable[:, None], t, fallback)


def _mean(points: Tensor, weight: Tensor) -> Tensor:
    return (weight[..., None] * points).sum(-2, keepdim=True) / weight.sum(-1)[:, None, None].clamp_min(1e-12)
