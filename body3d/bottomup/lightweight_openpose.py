"""Lightweight OpenPose: OpenPose's maps from a dilated MobileNet, in two stages that share what they can.

Osokin, "Real-time 2D multi-person pose estimation on CPU: Lightweight OpenPose", 2018. Modules bear the names of the author's code.
Its maps are read by `openpose.find`; the author's own reading differs in what it does with single joints, and in keeping
candidates of a kind 6 pixels apart.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from body3d.bottomup.openpose import LIMBS, PartMaps
from body3d.checkpoints import filled
from body3d.joint_set import JointSet
from body3d.layers import conv_bn
from body3d.skeletons import BODY18

__all__ = ["LightweightOpenPose", "lightweight_openpose"]


class LightweightOpenPose(nn.Module):
    """(B, 3, H, W) to one `PartMaps` of H/8 x W/8 per stage, the last being the answer; H and W must be multiples of 8.

    Images as `openpose.NORMALISE` makes them.
    """

    def __init__(self, joints: JointSet = BODY18, limbs: int = len(LIMBS), refinements: int = 1, width: int = 128):
        super().__init__()
        self.joints = joints
        maps = (len(joints) + 1, 2 * limbs)
        # (outputs, stride, dilation) of MobileNet to conv5_5, whose last halving is a dilation here
        blocks = (
            (64, 1, 1), (128, 2, 1), (128, 1, 1), (256, 2, 1), (256, 1, 1), (512, 1, 1), (512, 1, 2), *((512, 1, 1),) * 4,
        )  # fmt: skip
        layers, inputs = [conv_bn(3, 32, 3, 2)], 32
        for outputs, stride, dilation in blocks:
            deep = conv_bn(inputs, inputs, 3, stride, groups=inputs, dilation=dilation)
            layers.append(nn.Sequential(*deep, *conv_bn(inputs, outputs, 1)))
            inputs = outputs
        self.model = nn.Sequential(*layers)
        self.cpm = _Narrow(inputs, width)
        self.initial_stage = _Stage([_conv(width, width, 3) for _ in range(3)], width, 512, maps)
        wider = width + sum(maps)
        self.refinement_stages = nn.ModuleList(
            _Stage([_Block(wider if i == 0 else width, width) for i in range(5)], width, width, maps)
            for _ in range(refinements)
        )

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[PartMaps]:
        features = self.cpm(self.model(image))
        out = [self.initial_stage(features)]
        for stage in self.refinement_stages:
            out.append(stage(torch.cat([features, *out[-1]], 1)))
        return [PartMaps(heat, fields.unflatten(1, (-1, 2))) for heat, fields in out]


def _conv(inputs: int, outputs: int, kernel: int, active: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    return nn.Sequential(conv, *([nn.ReLU(inplace=True)] if active else []))


class _Narrow(nn.Module):
    """The trunk's channels to `width`, with three depthwise convolutions on a skip."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.align = _conv(inputs, width, 1)
        elu = lambda: nn.ELU(inplace=True)
        deep = lambda: nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.trunk = nn.Sequential(
            *(nn.Sequential(deep(), elu(), nn.Conv2d(width, width, 1, bias=False), elu()) for _ in range(3))
        )
        self.conv = _conv(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.align(x)
        return self.conv(x + self.trunk(x))


class _Block(nn.Module):
    """A 7x7 convolution's reach from 1x1, 3x3 and dilated 3x3."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.initial = _conv(inputs, width, 1)
        self.trunk = nn.Sequential(conv_bn(width, width, 3, bias=True), conv_bn(width, width, 3, dilation=2, bias=True))

    def forward(self, x: Tensor) -> Tensor:
        x = self.initial(x)
        return x + self.trunk(x)


class _Stage(nn.Module):
    """Layers that both outputs share, then two 1x1 convolutions for each: heat maps and fields."""

    def __init__(self, shared: list[nn.Module], width: int, hidden: int, maps: tuple[int, int]):
        super().__init__()
        self.trunk = nn.Sequential(*shared)
        head = lambda outputs: nn.Sequential(_conv(width, hidden, 1), _conv(hidden, outputs, 1, active=False))
        self.heatmaps, self.pafs = (head(outputs) for outputs in maps)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(x)
        return self.heatmaps(x), self.pafs(x)


def lightweight_openpose(weights: Path | str | None = None) -> LightweightOpenPose:
    """18 joints, 19 limbs, 4.1 million weights, one refinement. `weights`: the author's checkpoint."""
    return filled(LightweightOpenPose(), weights)
