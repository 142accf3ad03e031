"""DSNT: the expectation over a map, and a loss that keeps the map compact.

Nibali et al., "Numerical coordinate regression with convolutional neural networks", 2018. Coordinates are normalised: cell i of n
is at (2 i + 1) / n - 1, so the map reaches from -1 to 1. That is the project's convention of pixels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from body3d.codecs.base import Size, from_fraction, to_fraction
from body3d.codecs.integral import expectation, flat_softmax, marginals
from body3d.losses import weighted_mean

__all__ = ["DSNT", "dsnt", "js_divergence", "kl_divergence", "target_maps", "variance_error"]

Regulariser = Callable[[Float[Tensor, "B J h w"], Float[Tensor, "B J 2"], float], Float[Tensor, "B J"]]
EPS = 1e-24  # added before each logarithm, as in the authors' dsntnn


def dsnt(p: Float[Tensor, "*B h w"]) -> Float[Tensor, "*B 2"]:
    """The mean place of maps that sum to 1, in -1..1."""
    return (2 * expectation(p) + 1) / expectation(p).new_tensor(p.shape[:-3:-1]) - 1


def target_maps(xy: Float[Tensor, "B J 2"], grid: Size, sigma: float) -> Float[Tensor, "B J h w"]:
    """Gaussians of `sigma` cells around `xy` (in -1..1) that sum to 1."""
    lines = []
    for n, v in zip(grid[::-1], xy.split(1, -1), strict=True):
        place = (2 * torch.arange(n, device=xy.device, dtype=xy.dtype) + 1) / n - 1
        lines.append(torch.exp(-0.5 * ((place - v) * (n / (2 * sigma))).square()))
    x, y = lines
    maps = y[..., :, None] * x[..., None, :]
    return maps / (maps.sum((-1, -2), keepdim=True) + EPS)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * ((p + EPS).log() - (q + EPS).log())).sum((-1, -2))


def kl_divergence(p: Float[Tensor, "B J h w"], xy: Float[Tensor, "B J 2"], sigma: float) -> Float[Tensor, "B J"]:
    """From `p` to the Gaussian around `xy`."""
    return _kl(p, target_maps(xy, (p.shape[-2], p.shape[-1]), sigma))


def js_divergence(p: Float[Tensor, "B J h w"], xy: Float[Tensor, "B J 2"], sigma: float) -> Float[Tensor, "B J"]:
    """Jensen-Shannon, between 0 and log 2: what the paper recommends."""
    q = target_maps(xy, (p.shape[-2], p.shape[-1]), sigma)
    middle = 0.5 * (p + q)
    return 0.5 * _kl(p, middle) + 0.5 * _kl(q, middle)


def variance_error(p: Float[Tensor, "B J h w"], xy: Float[Tensor, "B J 2"], sigma: float) -> Float[Tensor, "B J"]:
    """Squared difference of the variances along x and y, in cells, to sigma^2; the place of the target does not matter."""
    mean = expectation(p)
    error = 0
    for m, mu in zip(marginals(p), mean.split(1, -1), strict=True):
        away = torch.arange(m.shape[-1], device=p.device, dtype=p.dtype) - mu
        error = error + ((m * away.square()).sum(-1) - sigma**2).square()
    return error  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class DSNT:
    """(B, J, h, w) through a softmax; the loss is the Euclidean distance in -1..1 plus `weight` times a regulariser.

    The published choice is Jensen-Shannon with `sigma` 1 cell and weight 1, averaged over the joints that count. (mmpose's
    DSNTHead is another: cells at i / w, squared or smooth L1 distance.) The confidence is the largest probability of a cell, as a
    share (at most 1) of that of a Gaussian of `sigma`.
    """

    regulariser: Regulariser | None = js_divergence
    sigma: float = 1.0
    weight: float = 1.0

    def head(self, channels: int, joints: int, size: Size) -> nn.Module:
        return nn.Conv2d(channels, joints, 1)

    def loss(
        self, raw: Float[Tensor, "B J h w"], xy: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"], size: Size
    ) -> Float[Tensor, ""]:
        target = 2 * to_fraction(xy, size) - 1
        p = flat_softmax(raw)
        each = (dsnt(p) - target).norm(dim=-1)
        if self.regulariser is not None:
            each = each + self.weight * self.regulariser(p, target, self.sigma)
        return weighted_mean(each, weight)

    def decode(self, raw: Float[Tensor, "B J h w"], size: Size) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        p = flat_softmax(raw)
        conf = (p.amax((-1, -2)) * (2 * math.pi * self.sigma**2)).clamp_max(1)
        return from_fraction((dsnt(p) + 1) / 2, size), conf
