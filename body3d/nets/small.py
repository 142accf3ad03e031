"""A small network for one core: four narrow stages of residual blocks, and their maps summed from coarse to fine.

The way up is that of feature pyramids (Lin et al., "Feature pyramid networks for object detection", CVPR 2017); the sizes are
this project's own.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from body3d.codecs import Codec, Heatmap, Size
from body3d.joint_set import JointSet
from body3d.layers import BasicBlock, conv_bn, init_kaiming, top_down
from body3d.nets.efficientnet_lite import NORMALISE, LitePyramid
from body3d.posenet import PoseNet, on_trunk
from body3d.skeletons import LSP14

__all__ = ["SmallTrunk", "small", "small_lite"]


class SmallTrunk(nn.Module):
    """(B, 3, H, W) to [(B, `channels`, H/4, W/4)]; H and W must be multiples of 32.

    Stages at strides 4, 8, 16 and 32 have `widths` channels and `depths` residual blocks.
    """

    def __init__(
        self, widths: Sequence[int] = (32, 64, 128, 192), depths: Sequence[int] = (2, 2, 2, 2), channels: int = 48
    ):
        super().__init__()
        self.channels = channels
        self.stem = nn.Sequential(conv_bn(3, widths[0] // 2, 3, 2), conv_bn(widths[0] // 2, widths[0], 3, 2))
        stages, before = [], widths[0]
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            first = BasicBlock(before, width, 1 if i == 0 else 2)
            stages.append(nn.Sequential(first, *(BasicBlock(width, width) for _ in range(depth - 1))))
            before = width
        self.stages = nn.ModuleList(stages)
        self.across = nn.ModuleList(conv_bn(width, channels, 1, active=False) for width in widths)
        self.last = conv_bn(channels, channels)
        init_kaiming(self)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        x, maps = self.stem(image), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [self.last(top_down(maps, list(self.across)))]


def small(joints: JointSet = LSP14, codec: Codec = Heatmap(sigma=1.5), size: Size = (128, 96)) -> PoseNet:
    """2.0 million weights with a codec that reads one map per joint, 0.11 billion multiplications at 128x96."""
    return on_trunk(SmallTrunk(), codec, joints, size)


def small_lite(joints: JointSet = LSP14, codec: Codec = Heatmap(sigma=1.5), size: Size = (128, 96)) -> PoseNet:
    """2.4 million weights, on a trunk of which there are ImageNet weights (`efficientnet_lite.imagenet_file`)."""
    return on_trunk(LitePyramid(64), codec, joints, size, NORMALISE)
