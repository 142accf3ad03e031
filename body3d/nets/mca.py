"""Multi-context attention: stacked hourglasses whose features are weighed by maps of where to look.

Chu, Yang, Ouyang, Ma, Yuille & Wang, "Multi-context attention for human pose estimation", CVPR 2017. The authors' code
(bearpaw/pose-attention, Lua Torch) is another network than the paper's in one point: it has attention at the finest resolution
alone. `mca` is the paper's, on the code's stem, blocks and stacks; `mca_released` is the code's.
"""

from itertools import pairwise
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.codecs import Codec, Size
from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.layers import PreActBottleneck, conv_bn
from body3d.nets.hourglass import PAPER_MAPS, Hourglass
from body3d.posenet import UNIT, PoseNet, loaded, of_maps
from body3d.skeletons import MPII16

__all__ = ["MCA", "AttendedHourglass", "CRFAttention", "HourglassResidual", "mca", "mca_released"]


class MCA(nn.Module):
    """(B, 3, H, W) to one (B, `maps`, H/4, W/4) per stack, the last being the answer; H and W must be multiples of 64.

    Each stack has holistic attention; from the fifth on (`parts_from`, counted from 0) its features are looked at again by one
    map per joint. The last stack is twice as wide. `multi_resolution`: the paper's holistic attention, from all resolutions of
    the hourglass. `kernel`: the width of the CRF's.
    """

    def __init__(
        self,
        maps: int,
        stacks: int = 8,
        width: int = 256,
        kernel: int = 11,
        multi_resolution: bool = True,
        parts_from: int = 4,
        depth: int = 4,
    ):
        super().__init__()
        half, quarter = width // 2, width // 4
        self.conv1, self.bn1 = nn.Conv2d(3, quarter, 7, padding=3), nn.BatchNorm2d(quarter)
        self.layer1 = PreActBottleneck(quarter, quarter)
        self.layer2 = nn.Sequential(PreActBottleneck(quarter, quarter), PreActBottleneck(quarter, half))
        self.layer3 = nn.Sequential(*(PreActBottleneck(a, b) for a, b in pairwise((half, half, half, width))))
        self.stacks = nn.ModuleList(
            _Stack(
                maps,
                width,
                2 if i == stacks - 1 else 1,
                kernel,
                multi_resolution,
                i >= parts_from or i == stacks - 1,
                depth,
            )
            for i in range(stacks)
        )
        self.back = nn.ModuleList(conv_bn(width, width, 1, bias=True) for _ in range(stacks - 1))
        self.score_back = nn.ModuleList(nn.Conv2d(maps, width, 1) for _ in range(stacks - 1))

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        x = self.layer1(F.relu(self.bn1(self.conv1(image)), inplace=True))
        x = self.layer2(F.max_pool2d(x, 2))
        x = self.layer3(F.max_pool2d(x, 2))
        scores = []
        for i, stack in enumerate(self.stacks):
            score, features = stack(x)
            scores.append(score)
            if i < len(self.back):
                x = x + self.back[i](features) + self.score_back[i](score)
        return scores


class _Stack(nn.Module):
    """One hourglass with its attention: the maps of the joints, and the features that go on."""

    def __init__(self, maps: int, width: int, widen: int, kernel: int, multi_resolution: bool, parts: bool, depth: int):
        super().__init__()
        wide = widen * width
        self.hourglass = AttendedHourglass(width, depth)
        self.narrow, self.wide = conv_bn(width, wide, 1, bias=True), conv_bn(wide, wide, 1, bias=True)
        coarser = depth - 1 if multi_resolution else 0
        self.coarse = nn.ModuleList(CRFAttention(width, 1, kernel) for _ in range(coarser))
        self.fine = CRFAttention(wide, 1, kernel)
        self.part = CRFAttention(wide, maps, kernel) if parts else None
        self.score = nn.Conv2d(wide, maps, 1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> tuple[Float[Tensor, "B K h w"], Float[Tensor, "B N h w"]]:
        *coarser, finest = self.hourglass.pyramid(x)
        features = self.narrow(finest)
        seen = self.wide(features)
        attention = self.fine(seen)
        for attend, level in zip(self.coarse, coarser, strict=False):
            attention = attention + F.interpolate(attend(level), attention.shape[-2:], mode="nearest")
        seen = attention * seen
        if self.part is None:
            return self.score(seen), features
        # Joint k is read from q_k * seen by one 1x1 convolution: as q_k has one channel, they may be exchanged.
        bare = F.conv2d(seen, self.score.weight)
        return self.part(seen) * bare + self.score.bias[:, None, None], features  # type: ignore[index]


class CRFAttention(nn.Module):
    """`maps` independent maps of attention in 0..1, (B, C, h, w) to (B, `maps`, h, w), each by a CRF between neighbouring cells.

    U is a 3x3 convolution of the features; mean field, Q <- sigmoid(U + K * Q), starts at Q = U and takes `rounds` rounds with
    one and the same `kernel` x `kernel` convolution K (and its bias). What is attended to is Q times the features. The
    published command for training sets 11 for the kernel; its default option is 1, for which a cell has no neighbours and there
    is no CRF.
    """

    def __init__(self, channels: int, maps: int = 1, kernel: int = 11, rounds: int = 3):
        super().__init__()
        if kernel % 2 == 0:
            raise InputError(f"a CRF's kernel lies around a cell, so its width is odd; got {kernel}")
        self.rounds = rounds
        self.unary = nn.Conv2d(channels, maps, 3, padding=1)
        self.pairwise = nn.Conv2d(maps, maps, kernel, padding=kernel // 2, groups=maps)

    def forward(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K h w"]:
        q = unary = self.unary(features)
        for _ in range(self.rounds):
            q = (unary + self.pairwise(q)).sigmoid()
        return q


class HourglassResidual(nn.Module):
    """The hourglass residual unit (HRU): a residual with a third branch that sees more, at half the resolution.

    The branch is batch norm, ReLU, max pooling, two 3x3 convolutions with batch norm and ReLU between them, and nearest
    upsampling.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.residual = PreActBottleneck(inputs, outputs)
        self.pooled = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O H W"]:
        return self.residual(x) + F.interpolate(self.pooled(x), x.shape[-2:], mode="nearest")


class AttendedHourglass(Hourglass):
    """An hourglass with HRUs on its skips: one residual on each, then two, one and no HRUs, and none, from the finest inwards."""

    def __init__(self, width: int, depth: int = 4):
        super().__init__(lambda: PreActBottleneck(width, width), depth)
        for level, places in enumerate(self.hg.children()):
            skip, *others = places.children()
            units = (HourglassResidual(width, width) for _ in range(level - 1))
            self.hg[level] = nn.ModuleList([nn.Sequential(skip, *units), *others])

    def pyramid(self, x: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """What comes out at each level, coarsest first; the last is what the hourglass gives."""
        skips = []
        for level in reversed(range(len(self.hg))):
            skip, before, *_ = self.hg[level].children()
            skips.append(skip(x))
            x = before(F.max_pool2d(x, 2))
        x = list(self.hg[0].children())[-1](x)
        levels = []
        for places in self.hg.children():
            after = list(places.children())[2]
            x = skips.pop() + F.interpolate(after(x), scale_factor=2.0, mode="nearest")
            levels.append(x)
        return levels


# ---- sizes ---------------------------------------------------------------------------------------------------------
def mca(
    joints: JointSet = MPII16, codec: Codec = PAPER_MAPS, size: Size = (256, 256), weights: Path | str | None = None
) -> PoseNet:
    """The paper's network, 58.4 million weights for MPII (our count). `weights`: of this project.

    In each stack the attention maps of all resolutions of the hourglass, brought to the finest by nearest neighbours, are added
    up.
    """
    return loaded(of_maps(MCA(len(joints)), codec, joints, size, UNIT), weights)


def mca_released(
    joints: JointSet = MPII16, codec: Codec = PAPER_MAPS, size: Size = (256, 256), weights: Path | str | None = None
) -> PoseNet:
    """The authors' code with its default options, 58.3 million weights (our count): attention at the finest
    resolution alone, and a 1x1 CRF.
    """
    net = MCA(len(joints), kernel=1, multi_resolution=False)
    return loaded(of_maps(net, codec, joints, size, UNIT), weights)
