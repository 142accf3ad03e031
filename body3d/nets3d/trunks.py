"""Narrow trunks for one core, in the place of the published networks' ResNets."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from body3d.layers import BasicBlock, conv_bn, init_kaiming
from body3d.nets.small import SmallTrunk

__all__ = ["NarrowResNet", "narrow_pyramid"]


class NarrowResNet(nn.Module):
    """(B, 3, H, W) to [(B, `channels`, H/32, W/32)]: two convolutions, then stages of residual blocks at strides 4 to 32."""

    def __init__(self, widths: Sequence[int] = (16, 48, 96, 192), depths: Sequence[int] = (1, 1, 2, 2)):
        super().__init__()
        self.channels = widths[-1]
        self.stem = nn.Sequential(conv_bn(3, widths[0], 3, 2), conv_bn(widths[0], widths[0], 3, 2))
        stages, before = [], widths[0]
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            first = BasicBlock(before, width, 1 if i == 0 else 2)
            stages.append(nn.Sequential(first, *(BasicBlock(width, width) for _ in range(depth - 1))))
            before = width
        self.stages = nn.Sequential(*stages)
        init_kaiming(self)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        return [self.stages(self.stem(image))]


def narrow_pyramid(channels: int = 48) -> SmallTrunk:
    """(B, 3, H, W) to [(B, `channels`, H/4, W/4)]; 1.5 million weights."""
    return SmallTrunk((16, 48, 96, 192), (1, 1, 2, 2), channels)
