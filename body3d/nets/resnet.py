"""ResNet, and SimpleBaseline upon it: three deconvolutions to stride 4.

He et al., "Deep residual learning for image recognition", CVPR 2016; Xiao, Wu & Wei, "Simple baselines for human pose estimation
and tracking", ECCV 2018. Modules bear the names of torchvision and of the authors' code.
"""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.codecs import DSNT, RLE, Codec, Integral, Likelihood, PIPNet, RealNVP, Regression, SimCC, Size, msra_heatmap
from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.layers import BasicBlock, Bottleneck, SqueezeExcite, deconv_layers, init_kaiming
from body3d.posenet import IMAGENET, Headed, Normalise, PoseNet, loaded, on_trunk
from body3d.skeletons import COCO17

__all__ = [
    "ALPHAPOSE", "PlainRLEHead", "PoseResNet", "ResNet", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "simplebaseline_r50", "simplebaseline_r101", "simplebaseline_r152", "simcc_r50", "ipr_r50", "dsnt_r50",
    "deeppose_r50", "rle_r50", "rle_r50_mmpose", "pipnet_r18",
]  # fmt: skip


class ResNet(nn.Module):
    """(B, 3, H, W) to the features of the last stage, (B, `channels`, H/32, W/32), as the one entry of a list.

    `pyramid` gives those of all four stages (C2 to C5: strides 4, 8, 16, 32), with `widths` channels. With an `output_stride` of
    16 or 8 the last one or two stages are dilated instead of strided (as DeepLab does it, for the same weights; bottlenecks
    only). `squeeze`: the first block of each stage ends in a squeeze-excite without reduction (AlphaPose's FastPose).
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        output_stride: int = 32,
        squeeze: bool = False,
    ):
        super().__init__()
        self.widths = tuple(width * block.expansion for width in (64, 128, 256, 512))
        self.channels = self.widths[-1]
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs, stride, dilation = 64, 4, 1
        layers = []
        for i, (width, outputs, depth) in enumerate(zip((64, 128, 256, 512), self.widths, depths, strict=True)):
            before, step = dilation, 1 if i == 0 else 2
            if step * stride > output_stride:
                dilation, step = dilation * step, 1
            stride *= step
            first = block(inputs, width, step, before, SqueezeExcite(outputs, 1) if squeeze else None)
            rest = [block(outputs, width, 1, dilation) for _ in range(depth - 1)]
            layers.append(nn.Sequential(first, *rest))
            inputs = outputs
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        init_kaiming(self)

    def pyramid(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(image)), inplace=True)
        x = F.max_pool2d(x, 3, 2, 1)
        features = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return features

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        return self.pyramid(image)[-1:]


class PoseResNet(ResNet):
    """SimpleBaseline's trunk: a ResNet and three deconvolutions, (B, 3, H, W) to [(B, 256, H/4, W/4)]."""

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], depths: Sequence[int], width: int = 256):
        super().__init__(block, depths)
        self.deconv_layers = deconv_layers(self.channels, (width,) * 3)
        self.channels = width

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        return [self.deconv_layers(self.pyramid(image)[-1])]


def resnet18() -> ResNet:
    return ResNet(BasicBlock, (2, 2, 2, 2))


def resnet34() -> ResNet:
    return ResNet(BasicBlock, (3, 4, 6, 3))


def resnet50(output_stride: int = 32, squeeze: bool = False) -> ResNet:
    return ResNet(Bottleneck, (3, 4, 6, 3), output_stride, squeeze)


def resnet101(output_stride: int = 32, squeeze: bool = False) -> ResNet:
    return ResNet(Bottleneck, (3, 4, 23, 3), output_stride, squeeze)


def resnet152(output_stride: int = 32, squeeze: bool = False) -> ResNet:
    return ResNet(Bottleneck, (3, 8, 36, 3), output_stride, squeeze)


# ---- heatmaps at stride 4 ------------------------------------------------------------------------------------------
# Of each: `weights` is a checkpoint of the authors or of mmpose, and the default codec is how those were trained and are read.
def simplebaseline_r50(
    joints: JointSet = COCO17,
    codec: Codec = msra_heatmap(),
    size: Size = (256, 192),
    weights: Path | str | None = None,
) -> PoseNet:
    """SimpleBaseline, 34.0 million weights. The published weights at 384x288 were trained with sigma 3."""
    return loaded(on_trunk(PoseResNet(Bottleneck, (3, 4, 6, 3)), codec, joints, size), weights)


def simplebaseline_r101(
    joints: JointSet = COCO17,
    codec: Codec = msra_heatmap(),
    size: Size = (256, 192),
    weights: Path | str | None = None,
) -> PoseNet:
    return loaded(on_trunk(PoseResNet(Bottleneck, (3, 4, 23, 3)), codec, joints, size), weights)


def simplebaseline_r152(
    joints: JointSet = COCO17,
    codec: Codec = msra_heatmap(),
    size: Size = (256, 192),
    weights: Path | str | None = None,
) -> PoseNet:
    return loaded(on_trunk(PoseResNet(Bottleneck, (3, 8, 36, 3)), codec, joints, size), weights)


def simcc_r50(
    joints: JointSet = COCO17,
    codec: Codec = SimCC(sigma=6.0, places="msra"),
    size: Size = (256, 192),
    weights: Path | str | None = None,
) -> PoseNet:
    """SimCC (Li et al., ECCV 2022) on SimpleBaseline: 36.8 million weights, which fit one size of crop only."""
    return simplebaseline_r50(joints, codec, size, weights)


def ipr_r50(
    joints: JointSet = COCO17,
    codec: Codec = Integral(places="msra"),
    size: Size = (256, 256),
    weights: Path | str | None = None,
) -> PoseNet:
    """Integral pose regression (Sun et al., ECCV 2018) on SimpleBaseline, as mmpose has it."""
    return simplebaseline_r50(joints, codec, size, weights)


def dsnt_r50(
    joints: JointSet = COCO17, codec: Codec = DSNT(), size: Size = (256, 256), weights: Path | str | None = None
) -> PoseNet:
    """DSNT (Nibali et al., 2018) on SimpleBaseline.

    mmpose's weights say where the left upper corners of cells are: read them by `codec` Integral(places="msra").
    """
    return simplebaseline_r50(joints, codec, size, weights)


# ---- numbers from the whole crop -----------------------------------------------------------------------------------
def deeppose_r50(
    joints: JointSet = COCO17,
    codec: Codec = Regression(norm=2, places="msra"),
    size: Size = (256, 192),
    weights: Path | str | None = None,
) -> PoseNet:
    """The first stage of DeepPose on a ResNet, as mmpose has it (trained there by a smooth L1 loss): 23.6 million weights."""
    return loaded(on_trunk(resnet50(), codec, joints, size), weights)


# What the authors of AlphaPose and RLE subtract, without a division.
ALPHAPOSE = Normalise((0.406, 0.457, 0.480), (1.0, 1.0, 1.0))


def rle_r50(
    joints: JointSet = COCO17,
    codec: Codec = RLE(places="msra"),
    size: Size = (256, 192),
    weights: Path | str | None = None,
) -> PoseNet:
    """RLE (Li et al., ICCV 2021), 23.7 million weights with the flow. `weights`: a checkpoint of the authors."""
    return loaded(on_trunk(resnet50(), codec, joints, size, ALPHAPOSE), weights)


def rle_r50_mmpose(
    joints: JointSet = COCO17,
    codec: Codec = RLE("mmpose", places="msra"),
    size: Size = (256, 192),
    weights: Path | str | None = None,
) -> PoseNet:
    """RLE with mmpose's head (`PlainRLEHead`) and density. `weights`: a checkpoint of mmpose."""
    if not isinstance(codec, RLE):
        raise InputError(
            f"this head gives coordinates and sigmas, which {type(codec).__name__} does not read: RLE does"
        )
    trunk = resnet50()
    net = Headed(trunk, PlainRLEHead(trunk.channels, len(joints)))
    return loaded(PoseNet(net, codec, joints, size, IMAGENET), weights)


class PlainRLEHead(nn.Module):
    """What `codecs.RLE` reads, from one linear layer: of each joint x and y in fractions of the crop, then the logits of sigma."""

    def __init__(self, channels: int, joints: int):
        super().__init__()
        self.fc = nn.Linear(channels, 4 * joints)
        self.flow = RealNVP()

    def numbers(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B J 4"]:
        return self.fc(features.mean((-1, -2))).unflatten(-1, (-1, 4))

    def forward(self, features: Float[Tensor, "B C h w"]) -> Likelihood:
        xy, sigma = self.numbers(features).split(2, -1)
        return Likelihood(xy - 0.5, sigma.sigmoid(), self.flow)


# ---- coarse cells --------------------------------------------------------------------------------------------------
def pipnet_r18(joints: JointSet, codec: PIPNet, size: Size = (256, 256), weights: Path | str | None = None) -> PoseNet:
    """PIPNet (Jin, Liao & Shao, IJCV 2021), on 8x8 cells: 12.3 million weights for 98 points. The codec needs their mean shape."""
    if len(codec.mean_shape) != len(joints):
        raise InputError(
            f"the codec's mean shape has {len(codec.mean_shape)} points, {joints.name} {len(joints)} joints"
        )
    return loaded(on_trunk(resnet18(), codec, joints, size), weights)
