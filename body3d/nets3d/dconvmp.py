"""DconvMP: one convolutional trunk that says where joints are in 3D and, to learn better, in which windows of the image.

Li & Chan, "3D human pose estimation from monocular images with deep convolutional neural network", ACCV 2014. No code is published.
Three convolutions with pooling are shared; each task has three connected layers. Widths, windows and the balance of the losses are
ours, the paper's are not known; so is the parameter count. `dconvmp_lite` has a trunk in the convolutions' place that has learnt
from other images before.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.codecs.base import Size
from body3d.codecs.locationmap import from_parents, to_parents
from body3d.layers import conv_bn
from body3d.losses import weighted_mean
from body3d.nets.efficientnet_lite import EfficientNetLite
from body3d.skeletons import H36M17, JointSet

__all__ = [
    "MULTITASK",
    "PRETRAINED",
    "DconvMP",
    "DconvMPOutput",
    "Phase",
    "PoseTarget",
    "Windows",
    "dconvmp_lite",
    "detection_loss",
    "loss",
]


# ---- network -------------------------------------------------------------------------------------------------------
class DconvMPOutput(NamedTuple):
    pose: Float[Tensor, "B J 3"]  # -1 to 1, in units of `PoseTarget.reach`
    windows: Float[Tensor, "B J n n"]  # logits: whether a joint is in a window


class DconvMP(nn.Module):
    """(B, 3, 112, 112) to a pose and, for each joint, `windows` x `windows` windows.

    `trunk`: what gives (B, `features`) of images, in the place of the three convolutions; images are as it wants them.
    """

    def __init__(
        self,
        joints: int = 17,
        windows: int = 8,
        width: int = 1024,
        dropout: float = 0.5,
        trunk: nn.Module | None = None,
        features: int = 64 * 7 * 7,
    ):
        super().__init__()
        self.joints, self.windows = joints, windows
        self.trunk = trunk or nn.Sequential(
            nn.Conv2d(3, 32, 9, 2, 4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(),
        )  # fmt: skip

        def head(outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(features, width), nn.ReLU(inplace=True), nn.Dropout(dropout),
                nn.Linear(width, width), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(width, outputs),
            )  # fmt: skip

        self.regression = head(3 * joints)
        self.detection = head(joints * windows**2)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> DconvMPOutput:
        features = self.trunk(image)
        pose = self.regression(features).tanh().unflatten(1, (self.joints, 3))
        return DconvMPOutput(pose, self.detection(features).unflatten(1, (self.joints, self.windows, self.windows)))


class _LiteTrunk(nn.Module):
    """EfficientNet-Lite0's last map with 128 channels, flattened: at 160 x 160 about as many features as the convolutions give."""

    channels = 128

    def __init__(self):
        super().__init__()
        self.trunk = EfficientNetLite()
        self.narrow = conv_bn(self.trunk.channels, self.channels, 1)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        return self.narrow(self.trunk(image)[-1]).flatten(1)


def dconvmp_lite(joints: int = 17, side: int = 160) -> DconvMP:
    """For crops of `side` x `side`, a multiple of 32, on a trunk that may have learnt before. 12.2 million weights at 160, most of
    them in the connected layers; with less dropout, as short trainings learn nothing by heart."""
    return DconvMP(joints, dropout=0.1, trunk=_LiteTrunk(), features=_LiteTrunk.channels * (side // 32) ** 2)


# ---- targets -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class PoseTarget:
    """What is regressed: each joint from the root, or from its parent; in units of `reach` metres.

    Accounts of the paper differ in which of the two it is. Nothing further than `reach` can be put out: a tanh comes last.
    """

    joints: JointSet = H36M17
    relative_to: Literal["root", "parent"] = "root"
    reach: float = 1.5

    def encode(self, xyz: Float[Tensor, "*B J 3"]) -> Float[Tensor, "*B J 3"]:
        """Metres from anywhere to what the network should put out."""
        if self.relative_to == "parent":
            return to_parents(xyz, self.joints) / self.reach
        return (xyz - xyz[..., [self.joints.parents.index(-1)], :]) / self.reach

    def decode(self, pose: Float[Tensor, "*B J 3"]) -> Float[Tensor, "*B J 3"]:
        """Metres from the root."""
        xyz = pose * self.reach
        if self.relative_to == "parent":
            return from_parents(xyz, self.joints)
        return xyz - xyz[..., [self.joints.parents.index(-1)], :]


@dataclass(frozen=True)
class Windows:
    """Square windows of `side` pixels whose centres are spread evenly over the crop, `count` each way; they overlap."""

    count: int = 8
    side: float = 28.0

    def hold(self, xy: Float[Tensor, "B J 2"], size: Size) -> Bool[Tensor, "B J n n"]:
        """Whether each joint, at crop pixels `xy`, is in each window (row, column)."""
        inside = []
        for axis, length in enumerate(size[::-1]):
            centre = (torch.arange(self.count, device=xy.device) + 0.5) * length / self.count - 0.5
            inside.append((xy[..., axis, None] - centre).abs() <= self.side / 2)
        return inside[1][..., :, None] & inside[0][..., None, :]


# ---- training ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Phase:
    """How much each task counts."""

    regression: float
    detection: float


# The paper's two ways: both tasks at once, or detection first and then regression alone (slightly better).
MULTITASK = (Phase(1.0, 0.1),)
PRETRAINED = (Phase(0.0, 1.0), Phase(1.0, 0.0))


def loss(
    out: DconvMPOutput,
    pose: Float[Tensor, "B J 3"],
    held: Bool[Tensor, "B J n n"],
    weight3d: Float[Tensor, "B J"],
    weight: Float[Tensor, "B J"],
    phase: Phase,
) -> Float[Tensor, ""]:
    """`pose` by `PoseTarget.encode`, `held` by `Windows.hold`; a weight of 0: the joint is not known in space, or in the image."""
    squares = weighted_mean((out.pose - pose).square().sum(-1), weight3d)
    return phase.regression * squares + phase.detection * detection_loss(out.windows, held, weight)


def detection_loss(
    windows: Float[Tensor, "B J n n"], held: Bool[Tensor, "B J n n"], weight: Float[Tensor, "B J"]
) -> Float[Tensor, ""]:
    """Cross entropy over all windows."""
    entropy = F.binary_cross_entropy_with_logits(windows, held.to(windows), reduction="none").mean((-1, -2))
    return weighted_mean(entropy, weight)
