"""Coordinates as numbers, from features averaged over the crop (DeepPose; Toshev & Szegedy, CVPR 2014)."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from body3d.codecs.base import Places, Size, from_fraction, to_fraction
from body3d.losses import weighted_mean

__all__ = ["Regression", "RegressionHead"]


class RegressionHead(nn.Module):
    """The mean over the feature map, and one linear layer."""

    def __init__(self, channels: int, joints: int):
        super().__init__()
        self.fc = nn.Linear(channels, 2 * joints)

    def forward(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B J 2"]:
        return self.fc(features.mean((-1, -2))).unflatten(-1, (-1, 2))


@dataclass(frozen=True)
class Regression:
    """(B, J, 2) fractions of the crop, 0 at its left or upper edge, 1 at the other; an L1 or a squared L2 loss on them.

    There is nothing in it that says how sure it is: the confidence is 1. DeepPose's loss is the squared one.
    """

    norm: Literal[1, 2] = 1
    places: Places = "pixel"

    def head(self, channels: int, joints: int, size: Size) -> nn.Module:
        return RegressionHead(channels, joints)

    def loss(
        self, raw: Float[Tensor, "B J 2"], xy: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"], size: Size
    ) -> Float[Tensor, ""]:
        error = raw - to_fraction(xy, size, self.places)
        return weighted_mean((error.abs() if self.norm == 1 else error.square()).sum(-1), weight)

    def decode(self, raw: Float[Tensor, "B J 2"], size: Size) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        return from_fraction(raw, size, self.places), torch.ones_like(raw[..., 0])
