"""SimCC: x and y as two classifications over bins finer than pixels.

Li et al., "SimCC: a simple coordinate classification perspective for human pose estimation", ECCV 2022 (first called SimDR).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.codecs.base import Places, Size, from_grid, swap_joints, to_grid
from body3d.errors import InputError

__all__ = ["Bins", "SimCC", "SimCCHead", "gaussian_labels", "kl_to_labels", "smoothed_labels"]


SMOOTHING = 0.1  # of one-hot labels


class Bins(NamedTuple):
    """Logits, left to right and top to bottom."""

    x: Float[Tensor, "B J X"]
    y: Float[Tensor, "B J Y"]


def gaussian_labels(place: Float[Tensor, "*B"], bins: int, sigma: float) -> Float[Tensor, "*B n"]:
    """The normal density with `sigma` bins around `place` (in bins) at each bin: sums to 1 unless the border cuts it."""
    away = torch.arange(bins, device=place.device, dtype=place.dtype) - place.unsqueeze(-1)
    return torch.exp(-away.square() / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))


def smoothed_labels(index: Int[Tensor, "*B"], bins: int, smoothing: float = SMOOTHING) -> Float[Tensor, "*B n"]:
    """1 - `smoothing` at `index`, the rest shared out among the others."""
    return F.one_hot(index, bins) * (1 - smoothing - smoothing / (bins - 1)) + smoothing / (bins - 1)


def kl_to_labels(logits: Float[Tensor, "*B n"], labels: Float[Tensor, "*B n"]) -> Float[Tensor, "*B"]:
    """The Kullback-Leibler divergence from the softmax of the logits to the labels, averaged over the bins as released."""
    return F.kl_div(logits.log_softmax(-1), labels, reduction="none").mean(-1)


class SimCCHead(nn.Module):
    """One map per joint, all of its cells to both axes by a linear layer each."""

    def __init__(self, channels: int, joints: int, cells: Size, bins: Size):
        super().__init__()
        self.cells = cells
        self.final_layer = nn.Conv2d(channels, joints, 1)
        self.mlp_head_x = nn.Linear(cells[0] * cells[1], bins[1])
        self.mlp_head_y = nn.Linear(cells[0] * cells[1], bins[0])

    def forward(self, features: Float[Tensor, "B C h w"]) -> Bins:
        if tuple(features.shape[-2:]) != self.cells:
            raise InputError(
                f"SimCC was built for feature maps of {self.cells[0]} x {self.cells[1]} cells, got {features.shape[-2]} x "
                f"{features.shape[-1]}: set the codec's stride to that of the trunk"
            )
        flat = self.final_layer(features).flatten(-2)
        return Bins(self.mlp_head_x(flat), self.mlp_head_y(flat))


@dataclass(frozen=True)
class SimCC:
    """`split` bins per pixel; a Gaussian label of `sigma` bins, or (None) a smoothed one-hot.

    Published: split 2, sigma 4 at 256x192; mmpose sigma 6. The loss is the release's: the mean over bins, batch and joints. Joints
    outside the crop have no weight. `stride` is the trunk's, for the size of the head's linear layers. What is read is the best
    bin, at most 1 / (2 split) pixels off. The confidence is the smaller of the two axes' probabilities, as a share (at most 1) of
    what the label itself has at its top. Published weights have bin i at pixel i / split: `places` "msra".
    """

    split: float = 2.0
    sigma: float | None = 4.0
    stride: int = 4
    places: Places = "pixel"

    def bins(self, size: Size) -> Size:
        return round(size[0] * self.split), round(size[1] * self.split)

    def head(self, channels: int, joints: int, size: Size) -> nn.Module:
        return SimCCHead(channels, joints, (size[0] // self.stride, size[1] // self.stride), self.bins(size))

    def loss(
        self, raw: Bins, xy: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"], size: Size
    ) -> Float[Tensor, ""]:
        grid = self.bins(size)
        place = to_grid(xy, size, grid, self.places)
        last = place.new_tensor([grid[1] - 1, grid[0] - 1])
        weight = weight * ((place > -0.5) & (place < last + 0.5)).all(-1)
        each = torch.zeros_like(weight)
        for logits, v in zip(raw, place.unbind(-1), strict=True):
            n = logits.shape[-1]
            index = v.round().long().clamp(0, n - 1)
            labels = smoothed_labels(index, n) if self.sigma is None else gaussian_labels(v, n, self.sigma)
            each = each + kl_to_labels(logits, labels)
        return (each * weight).mean()

    def decode(self, raw: Bins, size: Size) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        (px, x), (py, y) = (logits.softmax(-1).max(-1) for logits in raw)
        xy = torch.stack([x, y], -1).to(px.dtype)
        conf = (torch.minimum(px, py) / self._top).clamp_max(1)
        return from_grid(xy, self.bins(size), size, self.places), conf

    @property
    def _top(self) -> float:
        """Of a label, where the bin is at the joint."""
        return 1 - SMOOTHING if self.sigma is None else 1 / (self.sigma * math.sqrt(2 * math.pi))

    def mirror(self, raw: Bins, flip: Sequence[int]) -> Bins:
        return Bins(swap_joints(raw.x.flip(-1), flip), swap_joints(raw.y, flip))
