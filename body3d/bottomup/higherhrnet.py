"""HigherHRNet: heat and tags at a quarter of the image, and heat once more at half of it, for small people.

Cheng et al., "HigherHRNet: scale-aware representation learning for bottom-up human pose estimation", CVPR 2020. It is read and
trained as `associative.Associative` says.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from body3d.bottomup.associative import Associative, load_weights
from body3d.joint_set import JointSet
from body3d.layers import BasicBlock, deconv_layers
from body3d.nets.hrnet import HRNet
from body3d.skeletons import COCO17

__all__ = ["HigherHRNet", "higherhrnet_w32", "higherhrnet_w48"]


class HigherHRNet(HRNet):
    """(B, 3, H, W) to [(B, 2 `joints`, H/4, W/4), (B, `joints`, H/2, W/2)]; H and W must be multiples of 32.

    HRNet's names and, after them, those of the authors' code.
    """

    def __init__(self, joints: int, width: int = 32, blocks: int = 4):
        super().__init__(width)
        first = 2 * joints
        self.final_layers = nn.ModuleList([nn.Conv2d(width, first, 1), nn.Conv2d(width, joints, 1)])
        finer = deconv_layers(width + first, (width,))
        self.deconv_layers = nn.ModuleList(
            [nn.Sequential(finer, *(nn.Sequential(BasicBlock(width, width)) for _ in range(blocks)))]
        )

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        x = self.pyramid(image)[0]
        coarse, fine = self.final_layers
        maps = coarse(x)
        return [maps, fine(self.deconv_layers[0](torch.cat([x, maps], 1)))]


def higherhrnet_w32(joints: JointSet = COCO17, weights: Path | str | None = None) -> Associative:
    """28.6 million weights, for images whose shorter side is 512 pixels. `weights`: the authors' checkpoint."""
    return load_weights(Associative(HigherHRNet(len(joints), 32), joints), weights)


def higherhrnet_w48(joints: JointSet = COCO17, weights: Path | str | None = None) -> Associative:
    """As `higherhrnet_w32`, for images whose shorter side is 640 pixels."""
    return load_weights(Associative(HigherHRNet(len(joints), 48), joints, length=640), weights)
