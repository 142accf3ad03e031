"""LitePose: bottom-up pose estimation with one branch, large kernels and an upsampling that looks back at the early stages.

Wang, Li, Cai, Chen & Han, "Lite Pose: efficient architecture design for 2D human pose estimation", CVPR 2022. MobileNetV2's blocks
with 7x7 depthwise kernels, and a head whose deconvolutions add to what they refine what the early stages of the same resolution saw
(section 3.2, "fusion deconv head"). The sizes are those that the authors searched for; modules bear the names of their code.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from body3d.bottomup.associative import Associative
from body3d.checkpoints import filled
from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.layers import init_kaiming
from body3d.skeletons import COCO17

__all__ = ["Arrangement", "LitePose", "TaggedMaps", "litepose_l", "litepose_m", "litepose_s", "litepose_xs", "tagged"]

STRIDE = 16  # of the deepest features: sides of images are multiples of it
DEPTHS = (6, 8, 10, 10)  # blocks per stage
STRIDES = (2, 2, 2, 1)
STEM = 32  # channels of the first convolutions


class TaggedMaps(NamedTuple):
    """What says where joints are and which belong together. Cell i of n lies at pixel (i + 0.5) N / n - 0.5 of N.

    Associative embedding is on the coarser maps alone: a joint's tag is read at its cell of `tags`.
    """

    heat: Float[Tensor, "B J h w"]  # at stride 4
    tags: Float[Tensor, "B J h w"]
    fine: Float[Tensor, "B J h2 w2"]  # heat maps at stride 2


@dataclass(frozen=True)
class Arrangement:
    """Channels after the first layers, of the four stages and of the three deconvolutions; the side of the images in pixels."""

    first: int
    stages: tuple[int, int, int, int]
    deconvs: tuple[int, int, int]
    side: int
    kernel: int = 7
    expand: int = 6


class LitePose(nn.Module):
    """(B, 3, H, W), normalised as for ImageNet, to `TaggedMaps`; H and W must be multiples of 16.

    `fusion`: whether the head looks back at the early stages; without, it is a plain head of deconvolutions.
    """

    def __init__(self, joints: JointSet, arrangement: Arrangement, fusion: bool = True):
        super().__init__()
        self.joints, self.arrangement, self.fusion = joints, arrangement, fusion
        first, widths = arrangement.first, arrangement.stages
        self.first = nn.Sequential(
            _conv_bn(3, STEM, 3, 2),
            _conv_bn(STEM, STEM, 3, groups=STEM),
            nn.Conv2d(STEM, first, 1, bias=False),
            nn.BatchNorm2d(first),
        )
        self.stage = nn.ModuleList(
            nn.Sequential(
                *(
                    InvertedResidual(
                        before if i == 0 else width,
                        width,
                        stride if i == 0 else 1,
                        arrangement.kernel,
                        arrangement.expand,
                    )
                    for i in range(depth)
                )
            )
            for before, width, depth, stride in zip((first, *widths), widths, DEPTHS, STRIDES, strict=False)
        )
        refined = (widths[3], *arrangement.deconvs)
        raw = (widths[2], widths[1], widths[0])  # of the same resolution as what is refined
        outputs = arrangement.deconvs
        self.deconv_refined = nn.ModuleList(_deconv(a, b) for a, b in zip(refined, outputs, strict=False))
        self.deconv_bnrelu = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True)) for width in outputs
        )
        maps = (2 * len(joints), len(joints))
        self.final_refined = nn.ModuleList(SeparableConv(a, b) for a, b in zip(outputs[1:], maps, strict=True))
        if fusion:
            self.deconv_raw = nn.ModuleList(_deconv(a, b) for a, b in zip(raw, outputs, strict=True))
            self.final_raw = nn.ModuleList(SeparableConv(a, b) for a, b in zip((widths[0], first), maps, strict=True))
        _init(self)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> TaggedMaps:
        if image.shape[-1] % STRIDE or image.shape[-2] % STRIDE:
            raise InputError(
                f"LitePose sees images whose sides are multiples of {STRIDE} pixels, got {image.shape[-2]} x {image.shape[-1]}: "
                "pad or resize the image"
            )
        seen = [self.first(image)]
        for stage in self.stage:
            seen.append(stage(seen[-1]))
        x, maps = seen[-1], []
        for i, (deconv, active) in enumerate(zip(self.deconv_refined, self.deconv_bnrelu, strict=True)):
            y = deconv(x)
            if self.fusion:
                y = y + self.deconv_raw[i](seen[-2 - i])
            x = active(y)
            if i > 0:
                out = self.final_refined[i - 1](x)
                maps.append(out + self.final_raw[i - 1](seen[-3 - i]) if self.fusion else out)
        heat, tags = maps[0].chunk(2, 1)
        return TaggedMaps(heat, tags, maps[1])


class InvertedResidual(nn.Module):
    """1x1 to `expand` times the channels, depthwise, 1x1 back; a skip where size and channels stay (Sandler et al., CVPR 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int, kernel: int, expand: int):
        super().__init__()
        inner = inputs * expand
        self.skips = stride == 1 and inputs == outputs
        self.inv = _conv_bn(inputs, inner, 1)
        self.depth_conv = _conv_bn(inner, inner, kernel, stride, groups=inner)
        self.point_conv = nn.Sequential(nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O h w"]:
        y = self.point_conv(self.depth_conv(self.inv(x)))
        return x + y if self.skips else y


class SeparableConv(nn.Module):
    """A depthwise 5x5 convolution with batch norm and ReLU, then a 1x1 one without bias."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, inputs, 5, padding=2, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(inputs, outputs, 1, bias=False),
        )

    def forward(self, x: Float[Tensor, "B I h w"]) -> Float[Tensor, "B O h w"]:
        return self.conv(x)


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, *, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


def _deconv(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    """Twice the size."""
    return nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)


@torch.no_grad()
def _init(net: nn.Module) -> None:
    init_kaiming(net)
    for deconv in net.modules():
        if isinstance(deconv, nn.ConvTranspose2d):
            nn.init.normal_(deconv.weight, std=0.001)


class _InTwo(nn.Module):
    """`TaggedMaps` as the two outputs of the published code: heat and tags together, and finer heat."""

    def __init__(self, net: LitePose):
        super().__init__()
        self.net = net

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        maps: TaggedMaps = self.net(image)
        return [torch.cat([maps.heat, maps.tags], 1), maps.fine]


def tagged(net: LitePose) -> Associative:
    """The network with its reading, grouping and loss (`associative.find` takes it)."""
    whole = Associative(_InTwo(net), net.joints, multiple=STRIDE, length=net.arrangement.side)
    return whole.train(net.training)


# ---- searched sizes ------------------------------------------------------------------------------------------------
def litepose_xs(joints: JointSet = COCO17, weights: Path | str | None = None) -> LitePose:
    """For 256x256: 1.7 million weights. `weights`: a checkpoint of the authors."""
    return filled(LitePose(joints, Arrangement(16, (16, 32, 48, 80), (16, 24, 24), 256)), weights)


def litepose_s(joints: JointSet = COCO17, weights: Path | str | None = None) -> LitePose:
    """For 448x448: 2.7 million weights; else as `litepose_xs`."""
    return filled(LitePose(joints, Arrangement(16, (16, 32, 48, 120), (32, 24, 32), 448)), weights)


def litepose_m(joints: JointSet = COCO17, weights: Path | str | None = None) -> LitePose:
    """For 448x448: 3.5 million weights; else as `litepose_xs`."""
    return filled(LitePose(joints, Arrangement(16, (24, 48, 72, 120), (64, 40, 32), 448)), weights)


def litepose_l(joints: JointSet = COCO17, weights: Path | str | None = None) -> LitePose:
    """For 512x512: 5.7 million weights; else as `litepose_xs`."""
    return filled(LitePose(joints, Arrangement(24, (24, 64, 96, 160), (64, 40, 32), 512)), weights)
