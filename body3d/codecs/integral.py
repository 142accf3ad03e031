"""A joint's place as the expectation over its map: IPR, the same without bias, and with a symmetric gradient."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from body3d.codecs.base import Places, Size, from_grid, to_fraction, to_grid
from body3d.codecs.heatmap import gaussian_maps, in_view
from body3d.losses import joint_mse, weighted_mean

__all__ = [
    "SIKR", "DebiasedIntegral", "Integral", "expectation", "flat_softmax", "marginals", "precise", "symmetric_expectation",
]  # fmt: skip


def precise(x: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """In single precision if it is in less: an expectation over half-precision numbers is off by a share of a cell."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def flat_softmax(logits: Float[Tensor, "*B h w"]) -> Float[Tensor, "*B h w"]:
    """Over all cells of a map, in single precision at least."""
    return precise(logits).flatten(-2).softmax(-1).unflatten(-1, logits.shape[-2:])


def marginals(p: Float[Tensor, "*B h w"]) -> tuple[Float[Tensor, "*B w"], Float[Tensor, "*B h"]]:
    """The distribution of x and that of y."""
    return p.sum(-2), p.sum(-1)


def expectation(p: Float[Tensor, "*B h w"]) -> Float[Tensor, "*B 2"]:
    """The mean place of maps that sum to 1, in cells."""
    # Not by a matrix product, which mixed precision makes in half of it.
    along = [(m * torch.arange(m.shape[-1], device=m.device, dtype=m.dtype)).sum(-1) for m in marginals(precise(p))]
    return torch.stack(along, -1)


@dataclass(frozen=True)
class Integral:
    """Integral pose regression: the expectation of a softmax of `beta` times the map, with an L1 loss.

    Sun et al., "Integral human pose regression", ECCV 2018. The loss is in fractions of the crop's width and height. mmpose's
    heads give cells i / w as fractions: `places` "msra". The confidence is the largest probability of a cell.
    """

    beta: float = 1.0
    places: Places = "pixel"

    def head(self, channels: int, joints: int, size: Size) -> nn.Module:
        return nn.Conv2d(channels, joints, 1)

    def cells(self, raw: Float[Tensor, "B J h w"]) -> Float[Tensor, "B J 2"]:
        return expectation(flat_softmax(self.beta * raw))

    def loss(
        self, raw: Float[Tensor, "B J h w"], xy: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"], size: Size
    ) -> Float[Tensor, ""]:
        place = from_grid(self.cells(raw), (raw.shape[-2], raw.shape[-1]), size, self.places)
        error = to_fraction(place, size, self.places) - to_fraction(xy, size, self.places)
        return weighted_mean(error.abs().sum(-1), weight)

    def decode(self, raw: Float[Tensor, "B J h w"], size: Size) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        xy = from_grid(self.cells(raw), (raw.shape[-2], raw.shape[-1]), size, self.places)
        return xy, flat_softmax(self.beta * raw).amax((-1, -2))


@dataclass(frozen=True)
class DebiasedIntegral(Integral):
    """Integral regression from which the pull of the empty background towards the middle of the map is taken.

    Gu, Yang & Yao, "Removing the bias of integral pose regression", ICCV 2021. Each of the h w cells of a background of 0 has the
    mass 1 / C, C = sum exp(beta map). So the softmax's expectation J_r holds h w / C times the middle of the map, and

        J = C / (C - h w) J_r - h w / (C - h w) middle.

    The middle is ((w - 1) / 2, (h - 1) / 2) where cells are counted from 0; surveys and some code have w / 2 or confuse h with w.
    Written out, J is the expectation under the weights exp(beta map) - 1, which is how it is computed: nothing cancels. What is
    below 0 counts as background; a map that is nothing else reads its middle. mmpose's `debias` puts 1 in place of h w and changes
    nothing.

    The map is trained as a heat map too, by `detection` times HRNet's loss with bumps of `sigma` cells.
    """

    beta: float = 10.0
    detection: float = 1.0
    sigma: float = 2.0

    def cells(self, raw: Float[Tensor, "B J h w"]) -> Float[Tensor, "B J 2"]:
        scaled = self.beta * precise(raw).relu()
        top = scaled.amax((-1, -2), keepdim=True).detach()
        mass = torch.exp(scaled - top) * -torch.expm1(-scaled)  # (exp(scaled) - 1) / exp(top)
        mass = torch.where(mass.sum((-1, -2), keepdim=True) > 1e-12, mass, 1.0)
        return expectation(mass / mass.sum((-1, -2), keepdim=True))

    def loss(
        self, raw: Float[Tensor, "B J h w"], xy: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"], size: Size
    ) -> Float[Tensor, ""]:
        grid = raw.shape[-2], raw.shape[-1]
        place = to_grid(xy, size, grid, self.places)
        maps = joint_mse(raw, gaussian_maps(place, grid, self.sigma), weight * in_view(place, grid, self.sigma))
        return super().loss(raw, xy, weight, size) + self.detection * maps


# ---- symmetric gradient --------------------------------------------------------------------------------------------
class _SymmetricExpectation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, place: Tensor, amplitude: float) -> Tensor:
        mean = (p * place).sum(-1)
        ctx.save_for_backward(place, mean)
        ctx.amplitude, ctx.shape = amplitude, p.shape
        return mean

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None, None]:
        place, mean = ctx.saved_tensors
        side = torch.where(place < mean.unsqueeze(-1), -ctx.amplitude, ctx.amplitude).expand(ctx.shape)
        return grad[0].unsqueeze(-1) * side, None, None


def symmetric_expectation(
    p: Float[Tensor, "*B n"], place: Float[Tensor, "*#B n"], amplitude: float = 2.0
) -> Float[Tensor, "*B"]:
    """The sum of p times place, whose gradient is +-`amplitude` by the side of the result instead of the place.

    The true gradient of an expectation grows with the place's number and so depends on where the joint is in the map. Released
    with AlphaPose and Sampling-Argmax: minus where place < result, plus elsewhere. (AlphaPose has plus everywhere if the result is
    beyond the last cell, which p that sum to 1 cannot give.) `place` gets no gradient.
    """
    return _SymmetricExpectation.apply(p, place, amplitude)  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class SIKR:
    """Symmetric integral keypoint regression: IPR with the gradient of `symmetric_expectation`.

    Fang et al., "AlphaPose: whole-body regional multi-person pose estimation and tracking in real-time", PAMI 2022. `amplitude` 2
    is the release's; None is the paper's, an eighth of the map's width or height. `sigmoid`: each cell's sigmoid is its
    confidence, of which the largest is the joint's, and their share of the sum is the probability (the paper's two steps); without
    it a softmax, and a confidence of 1. The loss is the release's: L1 in fractions of the crop, summed over joints, divided by
    the batch. The release counts fractions as i / w: `places` "msra".
    """

    amplitude: float | None = 2.0
    sigmoid: bool = True
    places: Places = "pixel"

    def head(self, channels: int, joints: int, size: Size) -> nn.Module:
        return nn.Conv2d(channels, joints, 1)

    def cells(self, raw: Float[Tensor, "B J h w"]) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        """Places in cells, and confidences."""
        raw = precise(raw)
        if self.sigmoid:
            score = raw.sigmoid()
            p, conf = score / score.sum((-1, -2), keepdim=True), score.amax((-1, -2))
        else:
            p, conf = flat_softmax(raw), torch.ones_like(raw[..., 0, 0])
        along = [
            symmetric_expectation(
                m, torch.arange(m.shape[-1]).to(m), m.shape[-1] / 8 if self.amplitude is None else self.amplitude
            )
            for m in marginals(p)
        ]
        return torch.stack(along, -1), conf

    def loss(
        self, raw: Float[Tensor, "B J h w"], xy: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"], size: Size
    ) -> Float[Tensor, ""]:
        place = from_grid(self.cells(raw)[0], (raw.shape[-2], raw.shape[-1]), size, self.places)
        error = to_fraction(place, size, self.places) - to_fraction(xy, size, self.places)
        return (error.abs().sum(-1) * weight).sum() / len(raw)

    def decode(self, raw: Float[Tensor, "B J h w"], size: Size) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        xy, conf = self.cells(raw)
        return from_grid(xy, (raw.shape[-2], raw.shape[-1]), size, self.places), conf
