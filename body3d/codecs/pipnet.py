"""PIPNet: each joint's cell also says where the joints near it are, and they are averaged.

Jin, Liao & Shao, "Pixel-in-pixel net: towards efficient facial landmark detection in the wild", IJCV 2021. Written for 98 points of
a face on 8x8 cells; any joint set with a mean shape will do.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from body3d.codecs.base import Places, Size, from_fraction, to_fraction
from body3d.losses import weighted_mean

__all__ = ["PIPHead", "PIPMaps", "PIPNet", "merge_weights", "nearest_points", "offsets_at", "read_pip"]


class PIPMaps(NamedTuple):
    """Offsets are in cells, from the upper left corner of the cell that they are read at; J C: C neighbours of joint 0 first."""

    score: Float[Tensor, "B J h w"]  # 1 in the joint's cell
    x: Float[Tensor, "B J h w"]
    y: Float[Tensor, "B J h w"]
    neighbour_x: Float[Tensor, "B JC h w"]
    neighbour_y: Float[Tensor, "B JC h w"]


def nearest_points(shape: Float[Tensor, "J 2"], count: int) -> Int[Tensor, "J C"]:
    """The `count` points of a mean shape that are nearest to each, nearest first, itself left out."""
    distance = (shape[:, None] - shape).square().sum(-1)
    return distance.argsort(dim=-1, stable=True)[:, 1 : 1 + count]


def merge_weights(neighbours: Int[Tensor, "J C"], released: bool = False) -> Float[Tensor, "J JC1"]:
    """How the joints' own places (first J) and what others say of them (then J C) make the final ones: rows sum to 1.

    The mean of all that speak of a joint. The `released` code repeats shorter lists of speakers from their start until all are as
    long as the longest, so that some speakers count more than others.
    """
    J = len(neighbours)
    speakers = [(neighbours.flatten() == i).nonzero().flatten() for i in range(J)]
    longest = max(len(s) for s in speakers)
    weights = torch.zeros(J, neighbours.numel())
    for row, s in zip(weights, speakers, strict=True):
        heard = s[torch.arange(longest) % len(s)] if released and len(s) else s
        row.index_add_(0, heard, torch.ones(len(heard)))
    weights = torch.cat([torch.eye(J), weights], -1)
    return weights / weights.sum(-1, keepdim=True)


def read_pip(raw: PIPMaps) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J C 2"], Float[Tensor, "B J"]]:
    """What the highest cell of each joint says of itself and of its neighbours, in fractions of the crop, and its score."""
    h, w = raw.score.shape[-2:]
    top, index = raw.score.flatten(-2).max(-1)
    corner = torch.stack([index % w, index // w], -1).to(top.dtype)
    own, near = offsets_at(raw, index)
    size = corner.new_tensor([w, h])
    return (corner + own) / size, (corner.unsqueeze(-2) + near) / size, top


def offsets_at(raw: PIPMaps, index: Int[Tensor, "B J"]) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J C 2"]]:
    """The offsets at one cell per joint."""
    J = raw.score.shape[1]
    read = lambda maps: (
        maps.unflatten(1, (J, -1))
        .flatten(-2)
        .gather(-1, index[..., None, None].expand(-1, -1, maps.shape[1] // J, 1))
        .squeeze(-1)
    )
    own = torch.stack([read(raw.x), read(raw.y)], -1).squeeze(-2)
    return own, torch.stack([read(raw.neighbour_x), read(raw.neighbour_y)], -1)


class PIPHead(nn.Module):
    """Five 1x1 convolutions."""

    def __init__(self, channels: int, joints: int, neighbours: int):
        super().__init__()
        self.cls_layer = nn.Conv2d(channels, joints, 1)
        self.x_layer, self.y_layer = nn.Conv2d(channels, joints, 1), nn.Conv2d(channels, joints, 1)
        self.nb_x_layer = nn.Conv2d(channels, joints * neighbours, 1)
        self.nb_y_layer = nn.Conv2d(channels, joints * neighbours, 1)

    def forward(self, features: Float[Tensor, "B C h w"]) -> PIPMaps:
        layers = self.cls_layer, self.x_layer, self.y_layer, self.nb_x_layer, self.nb_y_layer
        return PIPMaps(*(layer(features) for layer in layers))


@dataclass(frozen=True)
class PIPNet:
    """`mean_shape` is one point per joint in any unit; its `neighbours` nearest are what a joint's cell speaks of.

    The loss is `score` times the squared error of the score maps plus the L1 errors of x, y and the neighbours' x and y, read at
    the true cell alone (published 10 : 1 : 1 : 1 : 1). A joint beside the crop belongs to the cell nearest to it. A neighbour
    without weight is not taught. The score is not limited to 0..1; its highest cell is the confidence. Meant for the last map of a
    trunk of stride 32.
    """

    mean_shape: tuple[tuple[float, float], ...]
    neighbours: int = 10
    score: float = 10.0
    places: Places = "pixel"
    released_merge: bool = False

    @cached_property
    def near(self) -> Int[Tensor, "J C"]:
        return nearest_points(torch.tensor(self.mean_shape, dtype=torch.float64), self.neighbours)

    @cached_property
    def merge(self) -> Float[Tensor, "J JC1"]:
        return merge_weights(self.near, self.released_merge)

    def head(self, channels: int, joints: int, size: Size) -> nn.Module:
        return PIPHead(channels, joints, self.near.shape[1])

    def loss(
        self, raw: PIPMaps, xy: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"], size: Size
    ) -> Float[Tensor, ""]:
        h, w = raw.score.shape[-2:]
        near = self.near.to(xy.device)
        place = to_fraction(xy, size, self.places) * xy.new_tensor([w, h])
        corner = torch.minimum(place.floor().clamp_min(0), place.new_tensor([w - 1, h - 1]))
        index = (corner[..., 1] * w + corner[..., 0]).long()
        target = torch.zeros_like(raw.score.flatten(-2)).scatter_(-1, index.unsqueeze(-1), 1)
        squares = (raw.score.flatten(-2) - target).square().mean(-1)
        own, around = offsets_at(raw, index)
        self_error = (own - (place - corner)).abs().sum(-1)
        near_error = (around - (place[:, near] - corner.unsqueeze(-2))).abs().sum(-1)
        heard = weight.unsqueeze(-1) * weight[:, near]
        return (
            self.score * weighted_mean(squares, weight)
            + weighted_mean(self_error, weight)
            + weighted_mean(near_error, heard)
        )

    def decode(self, raw: PIPMaps, size: Size) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        own, around, top = read_pip(raw)
        said = torch.cat([own, around.flatten(1, 2)], 1)
        return from_fraction(self.merge.to(said) @ said, size, self.places), top.clamp_min(0)
