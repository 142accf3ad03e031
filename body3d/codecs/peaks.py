"""From a map with a bump in it to the place of the bump, in cells. All take maps (B, J, h, w) and give (B, J, 2)."""

from collections.abc import Callable
from typing import Literal

import cv2
import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Decoder", "argmax", "dark", "gaussian_blur", "peaks", "quarter_shift", "read", "udp_dark"]

Decoder = Callable[[Float[Tensor, "B J h w"]], Float[Tensor, "B J 2"]]


def peaks(maps: Float[Tensor, "B J h w"]) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
    """The highest cell of each map, and its value."""
    value, index = maps.flatten(-2).max(-1)
    width = maps.shape[-1]
    # Half precision cannot count the cells.
    return torch.stack([index % width, index // width], -1).to(torch.promote_types(maps.dtype, torch.float32)), value


def argmax(maps: Float[Tensor, "B J h w"]) -> Float[Tensor, "B J 2"]:
    return peaks(maps)[0]


def quarter_shift(maps: Float[Tensor, "B J h w"]) -> Float[Tensor, "B J 2"]:
    """A quarter of a cell from the highest one towards the higher neighbour, along x and along y.

    As released since Stacked Hourglass; a peak in the first two or the last rows or columns stays (HRNet's rule 1 < p < n - 1).
    """
    xy = argmax(maps)
    dx = read(maps, xy, 1, 0) - read(maps, xy, -1, 0)
    dy = read(maps, xy, 0, 1) - read(maps, xy, 0, -1)
    return xy + 0.25 * torch.stack([dx, dy], -1).sign() * _inside(xy, maps, 1, 1).unsqueeze(-1)


def dark(maps: Float[Tensor, "B J h w"], kernel: int | None = 11) -> Float[Tensor, "B J 2"]:
    """One Newton step to the top of the logarithm of the map, which for a Gaussian is a parabola.

    Zhang et al., "Distribution-aware coordinate representation for human pose estimation", CVPR 2020, as released: the map is
    blurred first (`kernel` 11 for bumps of sigma 2, 17 for 3; None: not) and scaled to its former maximum, second derivatives are
    taken over two cells, and a peak within two cells of the border, or without curvature, stays where it is. The step is not
    limited: on a map that is no bump it can be long.
    """
    xy, top = peaks(maps)
    if kernel is not None:
        maps = gaussian_blur(maps, kernel, "zero")
        blurred = maps.amax((-1, -2))
        maps = maps * (top / torch.where(blurred == 0, 1, blurred))[..., None, None]
    log = maps.clamp_min(1e-10).log()
    at = lambda dx, dy: read(log, xy, dx, dy)
    gradient = 0.5 * torch.stack([at(1, 0) - at(-1, 0), at(0, 1) - at(0, -1)], -1)
    dxx = 0.25 * (at(2, 0) - 2 * at(0, 0) + at(-2, 0))
    dyy = 0.25 * (at(0, 2) - 2 * at(0, 0) + at(0, -2))
    dxy = 0.25 * (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1))
    return xy + torch.where(_inside(xy, maps, 1, 2).unsqueeze(-1), _newton(gradient, dxx, dyy, dxy), 0)


def udp_dark(maps: Float[Tensor, "B J h w"], kernel: int = 11) -> Float[Tensor, "B J 2"]:
    """DARK as released with UDP (Huang et al., "The devil is in the details", CVPR 2020): the same step from 3x3 cells.

    The blur mirrors at the border, the map is cut to 0.001..50 instead of scaled, and peaks on the border move too.
    """
    xy = argmax(maps)
    log = gaussian_blur(maps, kernel, "reflect").clamp(0.001, 50).log()
    at = lambda dx, dy: read(log, xy, dx, dy)
    gradient = 0.5 * torch.stack([at(1, 0) - at(-1, 0), at(0, 1) - at(0, -1)], -1)
    dxx = at(1, 0) - 2 * at(0, 0) + at(-1, 0)
    dyy = at(0, 1) - 2 * at(0, 0) + at(0, -1)
    dxy = 0.5 * (at(1, 1) - at(1, 0) - at(0, 1) + 2 * at(0, 0) - at(-1, 0) - at(0, -1) + at(-1, -1))
    eps = torch.finfo(torch.float32).eps
    return xy + _newton(gradient, dxx + eps, dyy + eps, dxy)


def read(maps: Float[Tensor, "B J h w"], xy: Float[Tensor, "B J 2"], dx: int = 0, dy: int = 0) -> Float[Tensor, "B J"]:
    """The values at whole cells, moved by (dx, dy); beyond the border those of the border."""
    h, w = maps.shape[-2:]
    x = (xy[..., 0].long() + dx).clamp(0, w - 1)
    y = (xy[..., 1].long() + dy).clamp(0, h - 1)
    return maps.flatten(-2).gather(-1, (y * w + x).unsqueeze(-1)).squeeze(-1)


def _inside(xy: Tensor, maps: Tensor, low: int, high: int) -> Bool[Tensor, "B J"]:
    last = xy.new_tensor([maps.shape[-1] - high, maps.shape[-2] - high])
    return ((xy > low) & (xy < last)).all(-1)


def _newton(gradient: Tensor, dxx: Tensor, dyy: Tensor, dxy: Tensor) -> Float[Tensor, "B J 2"]:
    """-H^-1 g; 0 where H has no inverse."""
    determinant = dxx * dyy - dxy * dxy
    gx, gy = gradient.unbind(-1)
    step = torch.stack([dxy * gy - dyy * gx, dxy * gx - dxx * gy], -1)
    flat = determinant == 0
    return torch.where(flat.unsqueeze(-1), 0, step / torch.where(flat, 1, determinant).unsqueeze(-1))


def gaussian_blur(
    maps: Float[Tensor, "B J h w"], kernel: int, border: Literal["zero", "reflect"]
) -> Float[Tensor, "B J h w"]:
    """OpenCV's Gaussian of an odd width with the sigma that OpenCV gives it: 0.3 ((kernel - 1) / 2 - 1) + 0.8 from 9 on.

    Beyond the border there is nothing ("zero") or the mirror image about the outermost cells ("reflect").
    """
    taps = torch.from_numpy(cv2.getGaussianKernel(kernel, 0)[:, 0]).to(maps)
    rows, columns = (_banded(n, taps, border) for n in maps.shape[-2:])
    return rows @ maps @ columns.mT


def _banded(n: int, taps: Tensor, border: str) -> Float[Tensor, "n n"]:
    """The matrix that blurs a line of n cells."""
    steps = torch.arange(len(taps), device=taps.device) - len(taps) // 2
    source = torch.arange(n, device=taps.device)[:, None] + steps
    if border == "reflect":
        period = max(2 * (n - 1), 1)
        source = source % period
        source = torch.minimum(source, period - source)
    there = (source >= 0) & (source < n)
    return taps.new_zeros(n, n).scatter_add_(1, source.clamp(0, n - 1), taps * there)
