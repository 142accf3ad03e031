"""Feature pyramids: an hourglass whose residuals look at their input at several scales between its size and half of it.

Yang, Li, Ouyang, Li & Wang, "Learning feature pyramids for human pose estimation", ICCV 2017: the pyramid residual module (PRM, of
which B is the one that the paper settles on) and PyraNet, made of it. Layout as in the authors' code (bearpaw/PyraNet, Lua Torch).
"""

import math
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.codecs import Codec, Size
from body3d.joint_set import JointSet
from body3d.layers import PreActBottleneck, conv_bn
from body3d.nets.hourglass import MPII_COLOURS, PAPER_MAPS, Hourglass
from body3d.posenet import PoseNet, loaded, of_maps
from body3d.skeletons import MPII16

__all__ = [
    "PyraNet", "PyramidHourglass", "PyramidResidual", "fractional_max_pool", "init_branched", "pyranet_2", "pyranet_8",
    "pyranet_8_released",
]  # fmt: skip


class PyraNet(nn.Module):
    """(B, 3, H, W) to one (B, `maps`, H/4, W/4) per stack, the last being the answer; H and W must be multiples of 64.

    `levels` and `base` are those of `PyramidResidual`.
    """

    def __init__(self, stacks: int, maps: int, width: int = 256, levels: int = 4, base: int = 9, depth: int = 4):
        super().__init__()
        half, quarter = width // 2, width // 4
        self.conv1, self.bn1 = nn.Conv2d(3, quarter, 7, 2, 3), nn.BatchNorm2d(quarter)
        self.layer1 = PyramidResidual(quarter, half, levels, base, activated=True)
        self.layer2 = PyramidResidual(half, half, levels, base)
        self.layer3 = PyramidResidual(half, width, levels, base)
        self.hg = nn.ModuleList(PyramidHourglass(width, levels, base, depth) for _ in range(stacks))
        self.norm = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(stacks))
        self.fc = nn.ModuleList(conv_bn(width, width, 1, bias=True) for _ in range(stacks))
        self.score = nn.ModuleList(nn.Conv2d(width, maps, 1) for _ in range(stacks))
        self.fc_ = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(stacks - 1))
        self.score_ = nn.ModuleList(nn.Conv2d(maps, width, 1) for _ in range(stacks - 1))

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(image)), inplace=True)
        x = self.layer3(self.layer2(F.max_pool2d(self.layer1(x), 2)))
        scores = []
        for i, hourglass in enumerate(self.hg):
            y = self.fc[i](F.relu(self.norm[i](hourglass(x)), inplace=True))
            scores.append(self.score[i](y))
            if i < len(self.fc_):
                x = x + self.fc_[i](y) + self.score_[i](scores[-1])
        return scores


class PyramidHourglass(Hourglass):
    """Plain residuals where the map is small: on the skip at the innermost level, elsewhere at the two innermost ones.

    Where two sums of residuals meet, after each upsampling, the skip of the residual below is batch norm, ReLU and convolution
    instead of the identity, else the variance would double at each level.
    """

    def __init__(self, width: int, levels: int = 4, base: int = 9, depth: int = 4):
        super().__init__(nn.Identity, depth)
        plain = lambda: PreActBottleneck(width, width)
        pyramid = lambda: PyramidResidual(width, width, levels, base)
        after = lambda levels: PyramidResidual(width, width, levels, base, conv_skip=True)
        for level in range(depth):
            if level == 0:
                blocks = [plain(), plain(), after(0), plain()]
            elif level == 1:
                blocks = [pyramid(), plain(), after(0)]
            else:
                blocks = [pyramid(), pyramid(), after(levels)]
            self.hg[level] = nn.ModuleList(blocks)


class PyramidResidual(nn.Module):
    """PRM-B: beside the 3x3 convolution of a residual, others on the same features pooled by 2**(-i/C), i = 1..C; C is `levels`.

    The features of the pyramid have `outputs` // `base` channels and a convolution of their own at each scale, and are brought
    back by bilinear interpolation (corner cells upon corner cells, as released) and added up. Published: C = 4 and base 9, also
    in the authors' training script; the default options of their code are C = 30 and base 6. Without levels it is a plain
    residual.

    `activated`: the input has been through batch norm and ReLU. `conv_skip`: no identity, even where widths are equal. Pooling
    windows are drawn at random in training, anew for each map; in eval mode they are always the same.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        levels: int = 4,
        base: int = 9,
        activated: bool = False,
        conv_skip: bool = False,
    ):
        super().__init__()
        half, narrow = outputs // 2, outputs // base
        active = lambda width: (nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        first = () if activated else active(inputs)
        self.ratios = tuple(2 ** (-i / levels) for i in range(1, levels + 1))
        self.main = nn.Sequential(
            *first, nn.Conv2d(inputs, half, 1), *active(half), nn.Conv2d(half, half, 3, padding=1)
        )
        if levels:
            first = () if activated else active(inputs)
            self.into = nn.Sequential(*first, nn.Conv2d(inputs, narrow, 1), *active(narrow))
            self.scales = nn.ModuleList(nn.Conv2d(narrow, narrow, 3, padding=1) for _ in self.ratios)
            self.onto = nn.Sequential(*active(narrow), nn.Conv2d(narrow, half, 1))
        self.last = nn.Sequential(*active(half), nn.Conv2d(half, outputs, 1))
        straight = inputs == outputs and not conv_skip
        self.skip = nn.Identity() if straight else nn.Sequential(*active(inputs), nn.Conv2d(inputs, outputs, 1))
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                init_branched(conv)
        if levels:
            init_branched(self.into[-3], targets=levels)
            init_branched(self.onto[-1], sources=levels)

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O H W"]:
        y = self.main(x)
        if self.ratios:
            y = y + self.onto(self.pyramid(self.into(x)))
        return self.last(y) + self.skip(x)

    def pyramid(self, x: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
        """The sum over the scales."""
        total = torch.zeros_like(x)
        for ratio, conv in zip(self.ratios, self.scales, strict=True):
            y = conv(fractional_max_pool(x, ratio, self.training))
            total = total + F.interpolate(y, x.shape[-2:], mode="bilinear", align_corners=True)
        return total


def fractional_max_pool(x: Float[Tensor, "B C H W"], ratio: float, random: bool) -> Float[Tensor, "B C h w"]:
    """To floor(`ratio` * size), by maxima over windows of 2x2 that overlap (Graham, "Fractional max-pooling", 2014).

    `random`: the windows are drawn for each map, by torch's own generator; else they are spread evenly.
    """
    size = [max(1, math.floor(n * ratio)) for n in x.shape[-2:]]
    if size == list(x.shape[-2:]):
        return x
    draw = None if random else x.new_full((*x.shape[:2], 2), 0.5)
    return F.fractional_max_pool2d(x, 2, output_size=size, _random_samples=draw)


def init_branched(conv: nn.Module, sources: int = 1, targets: int = 1) -> None:
    """Start a convolution that stands after the sum of `sources` branches, before a fork into `targets`, and before or after a
    ReLU.

    Normal with variance 4 / (`sources` n_in + `targets` n_out), n the weights per input or output: the mean of what keeps the
    variance forward and backward. With one branch it is the mean of He's two rules.
    """
    assert isinstance(conv, nn.Conv2d)
    area = math.prod(conv.kernel_size)
    nn.init.normal_(conv.weight, std=(4 / (area * (sources * conv.in_channels + targets * conv.out_channels))) ** 0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


# ---- published sizes -----------------------------------------------------------------------------------------------
def pyranet_2(
    joints: JointSet = MPII16, codec: Codec = PAPER_MAPS, size: Size = (256, 256), weights: Path | str | None = None
) -> PoseNet:
    """Two stacks, as in the authors' training script: 7.3 million weights (our count). `weights`: of this project."""
    return loaded(of_maps(PyraNet(2, len(joints)), codec, joints, size, MPII_COLOURS), weights)


def pyranet_8(
    joints: JointSet = MPII16, codec: Codec = PAPER_MAPS, size: Size = (256, 256), weights: Path | str | None = None
) -> PoseNet:
    """The paper's network, 28.1 million weights for MPII (our count). `weights`: of this project."""
    return loaded(of_maps(PyraNet(8, len(joints)), codec, joints, size, MPII_COLOURS), weights)


def pyranet_8_released(
    joints: JointSet = MPII16, codec: Codec = PAPER_MAPS, size: Size = (256, 256), weights: Path | str | None = None
) -> PoseNet:
    """The default options of the authors' code: 30 scales, base 6, 54.3 million weights (our count)."""
    net = PyraNet(8, len(joints), levels=30, base=6)
    return loaded(of_maps(net, codec, joints, size, MPII_COLOURS), weights)
