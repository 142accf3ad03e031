"""Grids and alignment. Rotations are roma's; the one pixel convention of the project is `rescale`."""

import torch
from jaxtyping import Float
from torch import Tensor


def rescale(xy: Float[Tensor, "*B 2"], factor: float | Tensor) -> Float[Tensor, "*B 2"]:
    """Pixel coordinates on a grid `factor` times as fine: centres at integers, so the corner of pixel 0 stays at -0.5."""
    return (xy + 0.5) * factor - 0.5


def align(
    source: Float[Tensor, "*B J 3"],
    target: Float[Tensor, "*B J 3"],
    weight: Float[Tensor, "*B J"] | None = None,
    scale: bool = True,
) -> Float[Tensor, "*B J 3"]:
    """`source` moved onto `target` by the best similarity (or, with `scale=False`, rigid) transformation.

    Umeyama, PAMI 1991: least squares over the joints, weighted, never a reflection. A degenerate source (all points equal)
    is only moved.
    """
    w = torch.ones_like(source[..., 0]) if weight is None else weight
    w = (w / w.sum(-1, keepdim=True).clamp_min(1e-12)).unsqueeze(-1)
    mean_s, mean_t = (w * source).sum(-2, keepdim=True), (w * target).sum(-2, keepdim=True)
    s, t = source - mean_s, target - mean_t
    U, D, Vt = torch.linalg.svd((w * t).mT @ s)
    sign = torch.ones_like(D)
    sign[..., -1] = torch.linalg.det(U @ Vt).sign()
    R = U @ (sign.unsqueeze(-1) * Vt)
    variance = (w * s.square()).sum((-2, -1))
    factor = (D * sign).sum(-1) / variance.clamp_min(1e-12) if scale else torch.ones_like(variance)
    factor = torch.where(variance > 1e-12, factor, torch.ones_like(factor))
    return factor[..., None, None] * s @ R.mT + mean_t
