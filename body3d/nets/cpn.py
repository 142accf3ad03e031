"""Cascaded pyramid network: GlobalNet finds the easy joints level by level, RefineNet joins all levels for the hard ones.

Chen et al., "Cascaded pyramid network for multi-person pose estimation", CVPR 2018. Modules bear the names of the PyTorch port
(GengDavid/pytorch-cpn); the authors' own code is for TensorFlow. All upsampling is bilinear with aligned corners, as there.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.codecs import Codec, Size
from body3d.codecs.base import from_grid, swap_joints, to_grid
from body3d.codecs.peaks import gaussian_blur, peaks, read
from body3d.joint_set import JointSet
from body3d.layers import Bottleneck, conv_bn
from body3d.losses import joint_mse, ohkm_mse
from body3d.nets.resnet import ResNet, resnet50, resnet101
from body3d.posenet import IMAGENET, Normalise, PoseNet, loaded, of_maps
from body3d.skeletons import COCO17
from body3d.types import Keypoints2D

__all__ = [
    "CPN", "GlobalNet", "MegviiHeatmap", "RefineNet", "SupervisedPoseNet", "cpn_r50", "cpn_r101", "resized", "supervised",
]  # fmt: skip

WIDTH = 256  # channels of every level
PEAK = 255.0  # of the targets


class CPN(nn.Module):
    """(B, 3, H, W) to five (B, `maps`, H/4, W/4): GlobalNet's levels, coarse to fine, then the refined maps, which are the answer.

    H and W must be multiples of 32.
    """

    def __init__(self, trunk: ResNet, maps: int):
        super().__init__()
        self.resnet = trunk
        self.global_net = GlobalNet(trunk.widths[::-1], maps)
        self.refine_net = RefineNet(maps)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        features, maps = self.global_net(self.resnet.pyramid(image)[::-1])
        return [*maps, self.refine_net(features)]


class GlobalNet(nn.Module):
    """A feature pyramid that predicts at every level. `widths`: channels of the trunk's levels, coarsest first."""

    def __init__(self, widths: Sequence[int], maps: int):
        super().__init__()
        self.laterals = nn.ModuleList(conv_bn(width, WIDTH, 1) for width in widths)
        self.upsamples = nn.ModuleList(_Doubled() for _ in widths[1:])
        self.predict = nn.ModuleList(_Predict(maps) for _ in widths)

    def forward(self, levels: list[Float[Tensor, "B _ _ _"]]) -> tuple[list[Tensor], list[Tensor]]:
        """The features of all levels (coarsest first), and the maps of all, at the size of the finest."""
        size = (levels[-1].shape[-2], levels[-1].shape[-1])
        features: list[Tensor] = []
        for i, (lateral, level) in enumerate(zip(self.laterals, levels, strict=True)):
            x = lateral(level)
            features.append(x + self.upsamples[i - 1](features[-1]) if i else x)
        return features, [predict(x, size) for predict, x in zip(self.predict, features, strict=True)]


class RefineNet(nn.Module):
    """More bottlenecks the coarser the level (3, 2, 1, 0), all levels at the size of the finest, one more bottleneck, maps."""

    def __init__(self, maps: int, levels: int = 4):
        super().__init__()
        half = WIDTH // 2
        self.cascade = nn.ModuleList(
            nn.Sequential(*(HalfBottleneck(WIDTH, half) for _ in range(levels - 1 - i))) for i in range(levels)
        )
        last = nn.Conv2d(WIDTH, maps, 3, padding=1, bias=False)
        self.final_predict = nn.Sequential(HalfBottleneck(levels * WIDTH, half), last, nn.BatchNorm2d(maps))

    def forward(self, features: list[Float[Tensor, "B C _ _"]]) -> Float[Tensor, "B J h w"]:
        size = (features[-1].shape[-2], features[-1].shape[-1])
        levels = [resized(block(x), size) for block, x in zip(self.cascade, features, strict=True)]
        return self.final_predict(torch.cat(levels, 1))


class HalfBottleneck(Bottleneck):
    """2 `width` channels out, and a convolution on the skip even where its size stays."""

    expansion = 2

    def __init__(self, inputs: int, width: int):
        super().__init__(inputs, width)
        self.downsample = conv_bn(inputs, width * self.expansion, 1, active=False)


class _Doubled(nn.Sequential):
    def __init__(self):
        up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        super().__init__(up, nn.Conv2d(WIDTH, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH))


class _Predict(nn.Sequential):
    """The last batch norm reads the resized maps; it is entry 5, as the port has the resizing as entry 4."""

    def __init__(self, maps: int):
        conv = nn.Conv2d(WIDTH, maps, 3, padding=1, bias=False)
        layers = [*conv_bn(WIDTH, WIDTH, 1), conv]
        named = [(str(i), layer) for i, layer in enumerate(layers)]
        super().__init__(OrderedDict([*named, ("5", nn.BatchNorm2d(maps))]))

    def forward(self, x: Float[Tensor, "B C _ _"], size: Size) -> Float[Tensor, "B J h w"]:
        *layers, norm = self
        for layer in layers:
            x = layer(x)
        return norm(resized(x, size))


def resized(x: Float[Tensor, "B C _ _"], size: Size) -> Float[Tensor, "B C h w"]:
    """Bilinear, with aligned corners."""
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


# ---- targets and supervision ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class MegviiHeatmap:
    """(B, J, h, w) against bumps of height 255: CPN's and MSPN's heatmaps.

    A bump is the cell that the joint lies in, blurred by OpenCV's Gaussian of `kernel` cells and scaled. `hardest`: only so many
    joints of each image teach (OHKM). A joint beside the map has no weight. Read from the map blurred by `blur` cells: a quarter
    of a cell from the highest cell towards the second highest, wherever that is; the confidence is the map itself there, over 255
    (the released scores add 0.5 to it).

    Cells tile the crop, as released; so a mirrored crop gives mirrored maps, and the flip test needs no shift.
    """

    kernel: int = 7
    hardest: int | None = None
    blur: int = 21

    def head(self, channels: int, joints: int, size: Size) -> nn.Module:
        return nn.Conv2d(channels, joints, 1)

    def target(
        self, xy: Float[Tensor, "B J 2"], size: Size, grid: Size
    ) -> tuple[Float[Tensor, "B J h w"], Bool[Tensor, "B J"]]:
        """The maps that stand for crop pixels `xy`, and which joints lie on them."""
        cell = (to_grid(xy, size, grid) + 0.5).floor()
        inside = ((cell >= 0) & (cell < cell.new_tensor(grid[::-1]))).all(-1)
        x, y = (torch.where(inside.unsqueeze(-1), cell, 0)).long().unbind(-1)
        index = (y * grid[1] + x).unsqueeze(-1)
        points = xy.new_zeros(*xy.shape[:2], grid[0] * grid[1]).scatter_(-1, index, 1.0)
        bumps = gaussian_blur(points.unflatten(-1, grid), self.kernel, "reflect").flatten(-2)
        return (PEAK * bumps / bumps.gather(-1, index)).unflatten(-1, grid), inside

    def loss(
        self, raw: Float[Tensor, "B J h w"], xy: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"], size: Size
    ) -> Float[Tensor, ""]:
        target, inside = self.target(xy, size, (raw.shape[-2], raw.shape[-1]))
        if self.hardest is not None:
            return ohkm_mse(raw, target, weight * inside, self.hardest)
        return joint_mse(raw, target, weight * inside)

    def decode(self, raw: Float[Tensor, "B J h w"], size: Size) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        grid = (raw.shape[-2], raw.shape[-1])
        blurred = gaussian_blur(raw, self.blur, "zero").flatten(-2)
        index = blurred.argmax(-1, keepdim=True)
        without = blurred.scatter(-1, index, -torch.inf).unflatten(-1, grid)
        cell = torch.stack([index.squeeze(-1) % grid[1], index.squeeze(-1) // grid[1]], -1).to(raw.dtype)
        towards = F.normalize(peaks(without)[0] - cell, dim=-1)
        confidence = (read(raw, cell) / PEAK).clamp_min(0)
        return from_grid(cell + 0.25 * towards, grid, size), confidence

    def mirror(self, raw: Float[Tensor, "B J h w"], flip: Sequence[int]) -> Float[Tensor, "B J h w"]:
        return swap_joints(raw.flip(-1), flip)


class SupervisedPoseNet(PoseNet):
    """Every output has a codec and a weight of its own; the loss is the weighted sum. The last codec reads the last output."""

    def __init__(
        self,
        net: nn.Module,
        codecs: Sequence[Codec],
        weights: Sequence[float],
        joints: JointSet,
        size: Size,
        normalise: Normalise = IMAGENET,
    ):
        super().__init__(net, codecs[-1], joints, size, normalise)
        self.codecs, self.weights = tuple(codecs), tuple(weights)

    def loss_of(self, raws: list[Tensor], target: Keypoints2D) -> Float[Tensor, ""]:
        outputs = zip(self.weights, self.codecs, raws, strict=True)
        losses = [weight * codec.loss(raw, target.xy, target.conf, self.size) for weight, codec, raw in outputs]
        return torch.stack(losses).sum()


def supervised(
    net: nn.Module,
    codec: Codec,
    kernels: Sequence[int],
    refined: Sequence[bool],
    easy: float,
    joints: JointSet,
    size: Size,
    normalise: Normalise,
    hardest: int = 8,
) -> PoseNet:
    """`SupervisedPoseNet` with bumps of `kernels` cells, and only the `hardest` joints for the outputs that are `refined`.

    Weights are those of the released losses, which are plain means where ours (`body3d.losses`) are halved: 2 for refined outputs,
    2 `easy` for the others. With a codec other than `MegviiHeatmap`, all outputs are taught by it alike.
    """
    if not isinstance(codec, MegviiHeatmap):
        return of_maps(net, codec, joints, size, normalise)
    codecs = [
        replace(codec, kernel=kernel, hardest=hardest if last else None)
        for kernel, last in zip(kernels, refined, strict=True)
    ]
    weights = [2.0 if last else 2 * easy for last in refined]
    return SupervisedPoseNet(net, codecs, weights, joints, size, normalise)


# ---- published sizes -----------------------------------------------------------------------------------------------
_MEAN_COLOUR = Normalise((122.7717 / 255, 115.9465 / 255, 102.9801 / 255), (1.0, 1.0, 1.0))
# GlobalNet's four levels and the refined maps, which learn from the same bumps as the finest level.
_KERNELS, _REFINED = (15, 11, 9, 7, 7), (False, False, False, False, True)


def cpn_r50(
    joints: JointSet = COCO17,
    codec: Codec = MegviiHeatmap(),
    size: Size = (256, 192),
    weights: Path | str | None = None,
) -> PoseNet:
    """27.4 million weights for 17 joints. `weights`: a checkpoint of the PyTorch port.

    Every level of GlobalNet counts half, RefineNet once, with its 8 hardest joints. In the release GlobalNet learns from visible
    joints alone (of the others, that there is nothing) and RefineNet from all that are labelled; here both learn from all.
    """
    return _cpn(resnet50(), joints, codec, size, weights)


def cpn_r101(
    joints: JointSet = COCO17,
    codec: Codec = MegviiHeatmap(),
    size: Size = (256, 192),
    weights: Path | str | None = None,
) -> PoseNet:
    """46.4 million weights for 17 joints; else as `cpn_r50`."""
    return _cpn(resnet101(), joints, codec, size, weights)


def _cpn(trunk: ResNet, joints: JointSet, codec: Codec, size: Size, weights: Path | str | None) -> PoseNet:
    net = CPN(trunk, len(joints))
    posenet = supervised(net, codec, _KERNELS, _REFINED, 0.5, joints, size, _MEAN_COLOUR)
    return loaded(posenet, weights)
