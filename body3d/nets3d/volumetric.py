"""Coarse-to-fine volumetric prediction: stacked hourglasses, each predicting a volume that is finer in depth.

Pavlakos, Zhou, Derpanis & Daniilidis, "Coarse-to-fine volumetric prediction for single-image 3D human pose", CVPR 2017. Volumes are
read by `codecs.volume.CoarseToFine`; their depth is relative to the root. `depth_from_limbs` finds where the root is.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.layers import PreActBottleneck, conv_bn
from body3d.nets.efficientnet_lite import LitePyramid
from body3d.posenet import Trunk
from body3d.skeletons import H36M17, JointSet

__all__ = [
    "Volumetric",
    "back_project",
    "depth_from_limbs",
    "from_torch7",
    "limb_lengths",
    "volumetric_2",
    "volumetric_4",
    "volumetric_lite",
]


class Volumetric(nn.Module):
    """(B, 3, H, W) to one (B, joints * d, H/4, W/4) per stack, joint-major; H and W must be multiples of 64.

    Each stack but the first sees the features of the two stacks before it (the second: those of the first and the stem's after
    pooling) and the volume predicted last. `blocks`: residuals in a row, wherever there are several. `backbone`: a trunk at stride
    4 in the place of the stem's first layers.
    """

    def __init__(
        self,
        joints: int = 17,
        depths: Sequence[int] = (1, 2, 4, 64),
        width: int = 256,
        blocks: int = 3,
        backbone: Trunk | None = None,
    ):
        super().__init__()
        half = width // 2
        before = half if backbone is None else backbone.channels
        if backbone is None:
            self.conv1, self.bn1 = nn.Conv2d(3, width // 4, 7, 2, 3), nn.BatchNorm2d(width // 4)
            self.layer1 = PreActBottleneck(width // 4, half)
        self.backbone = backbone
        self.layer2 = _residuals(before, half, width, blocks)
        self.stacks = nn.ModuleList()
        inputs = width
        for i, depth in enumerate(depths):
            last = i == len(depths) - 1
            self.stacks.append(_Stack(inputs, before, width, joints * depth, last, blocks))
            inputs, before = width + before, width

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        if self.backbone is None:
            x = self.layer1(F.relu(self.bn1(self.conv1(image)), inplace=True))
            before = F.max_pool2d(x, 2)
        else:
            before = self.backbone(image)[-1]
        x, volumes = self.layer2(before), []
        for stack in self.stacks:
            volume, features, x = stack(x, before)
            volumes.append(volume)
            before = features
        return volumes


class _Stack(nn.Module):
    """An hourglass, two 1x1 convolutions, the volume, and (but in the last) the way back into the next stack."""

    def __init__(self, inputs: int, before: int, width: int, channels: int, last: bool, blocks: int):
        super().__init__()
        wide = 2 * width
        self.hourglass = _Hourglass(4, inputs, width, wide, blocks)
        features = wide if last else width
        self.features = nn.Sequential(conv_bn(wide, wide, 1, bias=True), conv_bn(wide, features, 1, bias=True))
        self.score = nn.Conv2d(features, channels, 1)
        self.back = None if last else nn.Conv2d(channels, width + before, 1)
        self.merge = None if last else nn.Conv2d(width + before, width + before, 1)

    def forward(
        self, x: Float[Tensor, "B I h w"], before: Float[Tensor, "B P h w"]
    ) -> tuple[Float[Tensor, "B C h w"], Float[Tensor, "B F h w"], Tensor]:
        """The volume, the features it is made of, and what the next stack sees."""
        features = self.features(self.hourglass(x))
        volume = self.score(features)
        if self.merge is not None and self.back is not None:
            x = self.merge(torch.cat([features, before], 1)) + self.back(volume)
        return volume, features, x


class _Hourglass(nn.Module):
    """`blocks` residuals on the skip and as many below it, `width` channels inside and `outputs` out.

    The early form of Newell's, which the later networks of `nets.hourglass` simplify: channels change on the way.
    """

    def __init__(self, depth: int, inputs: int, width: int, outputs: int, blocks: int):
        super().__init__()
        self.skip = _residuals(inputs, width, outputs, blocks)
        self.before = _residuals(inputs, width, width, blocks)
        if depth > 1:
            self.inside = _Hourglass(depth - 1, width, width, outputs, blocks)
        else:
            self.inside = PreActBottleneck(width, outputs)
        self.after = PreActBottleneck(outputs, outputs)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B O H W"]:
        below = self.after(self.inside(self.before(F.max_pool2d(x, 2))))
        return self.skip(x) + F.interpolate(below, scale_factor=2.0, mode="nearest")


def _residuals(inputs: int, width: int, outputs: int, count: int) -> nn.Sequential:
    channels = (inputs, *(width,) * (count - 1), outputs)
    return nn.Sequential(*(PreActBottleneck(a, b) for a, b in pairwise(channels)))


def volumetric_4(joints: int = 17) -> Volumetric:
    """The paper's best: depths 1, 2, 4 and 64."""
    return Volumetric(joints, (1, 2, 4, 64))


def volumetric_2(joints: int = 17) -> Volumetric:
    return Volumetric(joints, (1, 64))


def volumetric_lite(joints: int = 17) -> Volumetric:
    """For crops of 128 x 128, which it maps to 32 x 32 cells, 1 and 16 deep."""
    pyramid = LitePyramid(48, 4)
    return Volumetric(joints, (1, 16), width=48, blocks=1, backbone=pyramid)


def from_torch7(state: dict[str, Tensor], network: Volumetric) -> dict[str, Tensor]:
    """A published state_dict in our names.

    Torch7's layers have no names: keys are NNN.conv.* and NNN.bn.*, counted in the order in which the published code makes them,
    which is the order of ours.
    """
    layers = [name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
    return {f"{layers[int(key[:3])]}.{key.rpartition('.')[2]}": value for key, value in state.items()}


# ---- metric depth --------------------------------------------------------------------------------------------------
def back_project(
    xy: Float[Tensor, "*B J 2"], depth: Float[Tensor, "*B J"], K: Float[Tensor, "*#B 3 3"]
) -> Float[Tensor, "*B J 3"]:
    """Pixels of the whole image at depths along z (m) as points in the camera's frame (m)."""
    return _rays(xy, K) * depth.unsqueeze(-1)


def limb_lengths(xyz: Float[Tensor, "*B J 3"], joints: JointSet = H36M17) -> Float[Tensor, "*B E"]:
    """In the order of `joints.bones`. The mean over training poses is the paper's mean skeleton."""
    start, end = torch.tensor(joints.bones, device=xyz.device).mT
    return (xyz[..., end, :] - xyz[..., start, :]).norm(dim=-1)


def depth_from_limbs(
    xy: Float[Tensor, "*B J 2"],
    z: Float[Tensor, "*B J"],
    K: Float[Tensor, "*#B 3 3"],
    lengths: Float[Tensor, "*#B E"],
    joints: JointSet = H36M17,
    span: tuple[float, float] = (0.5, 50.0),
    steps: int = 20,
) -> Float[Tensor, "*B"]:
    """The root's depth (m) at which the limbs of a pose are as long as they should be.

    `xy` are pixels of the whole image, `z` metres from the root, `lengths` (m) in the order of `joints.bones`: the subject's own,
    or a mean skeleton's (then depth is off by as much as the subject's size is). What is minimised is the sum of the squared
    differences; the paper looks for it by simplex from 2 m, here all of `span` is looked through and the best place refined by
    Gauss and Newton. With the depth known, `back_project(xy, z + depth, K)` is the pose.
    """
    start, end = torch.tensor(joints.bones, device=xy.device).mT
    rays = _rays(xy, K)
    # At depth Z a limb is the vector Z slope + offset.
    slope = rays[..., end, :] - rays[..., start, :]
    offset = rays[..., end, :] * z[..., end, None] - rays[..., start, :] * z[..., start, None]

    def limbs(depth: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D E 3"]:
        return depth[..., None, None] * slope.unsqueeze(-3) + offset.unsqueeze(-3)

    def misfit(depth: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return (limbs(depth).norm(dim=-1) - lengths.unsqueeze(-2)).square().sum(-1)

    low, high = (xy.new_tensor(edge).log() for edge in span)
    tried = torch.linspace(0, 1, 200).to(xy).mul(high - low).add(low).exp().expand(*xy.shape[:-2], -1)
    depth = tried.gather(-1, misfit(tried).argmin(-1, keepdim=True))
    for _ in range(steps):
        limb = limbs(depth)
        length = limb.norm(dim=-1).clamp_min(1e-9)
        change = (limb * slope.unsqueeze(-3)).sum(-1) / length  # of each limb's length by depth
        step = -(change * (length - lengths.unsqueeze(-2))).sum(-1) / change.square().sum(-1).clamp_min(1e-12)
        moved = (depth + step).clamp(*span)
        depth = torch.where(misfit(moved) < misfit(depth), moved, depth)
    return depth.squeeze(-1)


def _rays(xy: Float[Tensor, "*B J 2"], K: Float[Tensor, "*#B 3 3"]) -> Float[Tensor, "*B J 3"]:
    """The directions that pixels show, one metre deep."""
    return torch.linalg.solve(K, F.pad(xy, (0, 1), value=1.0).mT).mT
