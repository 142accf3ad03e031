"""MoveNet: the person nearest to the middle of the image, by a centre, a guess from the centre, heat maps and offsets.

Google, 2021 (a blog post and a model card; no paper): "Next-generation pose detection with MoveNet and TensorFlow.js". The network
is that of the public port (fire717/movenet.pytorch), MobileNetV2 with a feature pyramid to stride 4; modules bear its names.

A person is read in four steps: the highest cell of the centre map, cells near the middle of the image counting more; the joints as
regressed there; for each joint the highest cell of its heat map, cells near the regressed place counting more; and from that cell
its offset. Both weightings are the inverse of the distance plus `REACH` cells. They make the answer one person's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from body3d.codecs import Places, Size
from body3d.codecs.base import from_grid, swap_joints, to_grid
from body3d.codecs.heatmap import gaussian_maps
from body3d.codecs.peaks import peaks, read
from body3d.crop import apply, crop_matrix, invert
from body3d.errors import InputError
from body3d.images import warp_crop
from body3d.joint_set import JointSet
from body3d.layers import conv_bn
from body3d.losses import bone_loss, weighted_mean
from body3d.posenet import Normalise, PoseNet, evaluating, loaded
from body3d.skeletons import COCO17
from body3d.types import Keypoints2D

__all__ = [
    "CentreOffsets",
    "CentreTargets",
    "MoveNet",
    "MoveNetMaps",
    "SmartCrop",
    "inverse_distance",
    "movenet",
    "track",
]

REACH = 1.8  # cells
STRIDE = 4
SIGNED = Normalise((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # -1..1


class MoveNetMaps(NamedTuple):
    """All in cells of the maps."""

    heat: Float[Tensor, "B J h w"]  # 0..1
    centre: Float[Tensor, "B 1 h w"]  # 0..1
    regression: Float[Tensor, "B J 2 h w"]  # x and y from a person's centre cell to the joint
    offset: Float[Tensor, "B J 2 h w"]  # x and y from a joint's cell to the joint


# ---- network -------------------------------------------------------------------------------------------------------
class MoveNet(nn.Module):
    """(B, 3, H, W) in -1..1 to [`MoveNetMaps`] at stride 4; H and W must be multiples of 16. The port's size is 192x192.

    `head` channels are inside each of the four heads.
    """

    def __init__(self, joints: int = 17, head: int = 96):
        super().__init__()
        self.backbone = Backbone()
        heads = {"heatmaps": joints, "centers": 1, "regs": 2 * joints, "offsets": 2 * joints}
        self.header = nn.ModuleDict(
            {
                f"header_{name}": nn.Sequential(_separable(24, head), nn.Conv2d(head, outputs, 1))
                for name, outputs in heads.items()
            }
        )
        _init(self)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[MoveNetMaps]:
        features = self.backbone(image)
        heat, centre, regression, offset = (head(features) for head in self.header.values())
        pairs = (maps.unflatten(1, (-1, 2)) for maps in (regression, offset))
        return [MoveNetMaps(heat.sigmoid(), centre.sigmoid(), *pairs)]


class Backbone(nn.Module):
    """MobileNetV2 to stride 16, and its maps summed from coarse to fine: (B, 3, H, W) to (B, 24, H/4, W/4).

    Unlike the original, the blocks with stride have a bias in the depthwise convolution, and all blocks of a stage expand to the
    width of its first.
    """

    def __init__(self):
        super().__init__()
        self.features1 = nn.Sequential(conv_bn(3, 32, 3, 2), _first(32, 16), Stage(16, 24, 2, 1))
        self.features2 = Stage(24, 32, 2, 2)
        self.features3 = Stage(32, 64, 2, 3)
        self.features4 = nn.Sequential(
            Stage(64, 96, 1, 2),
            Stage(96, 160, 2, 2),
            Stage(160, 320, 1, 0),
            conv_bn(320, 1280, 1),
            nn.Conv2d(1280, 64, 1, bias=False),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        )
        self.upsample2, self.upsample1 = _upsample(64, 32), _upsample(32, 24)
        self.conv3, self.conv2, self.conv1 = (nn.Conv2d(width, width, 1) for width in (64, 32, 24))
        self.conv4 = _separable(24, 24)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 24 h w"]:
        fine = self.features1(image)
        middle = self.features2(fine)
        coarse = self.features3(middle)
        x = self.features4(coarse) + self.conv3(coarse)
        x = self.upsample2(x) + self.conv2(middle)
        return self.conv4(self.upsample1(x) + self.conv1(fine))


class Stage(nn.Module):
    """A block that changes size and channels, then `repeats` with a skip."""

    def __init__(self, inputs: int, outputs: int, stride: int, repeats: int, expand: int = 6):
        super().__init__()
        inner = inputs * expand
        self.conv1 = _inverted(inputs, inner, outputs, stride, bias=True)
        self.conv2 = nn.ModuleList(_inverted(outputs, inner, outputs) for _ in range(repeats))

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O h w"]:
        x = self.conv1(x)
        for block in self.conv2:
            x = x + block(x)
        return x


def _inverted(inputs: int, inner: int, outputs: int, stride: int = 1, bias: bool = False) -> nn.Sequential:
    """1x1, depthwise 3x3 and 1x1 convolutions, each with batch norm; ReLUs after the first two (entries 2 and 5)."""
    depthwise = conv_bn(inner, inner, 3, stride, groups=inner, bias=bias)
    return nn.Sequential(*conv_bn(inputs, inner, 1), *depthwise, *conv_bn(inner, outputs, 1, active=False))


def _first(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*conv_bn(inputs, inputs, 3, groups=inputs), *conv_bn(inputs, outputs, 1, active=False))


def _separable(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*conv_bn(inputs, inputs, 3, groups=inputs, active=False), *conv_bn(inputs, outputs, 1))


def _upsample(inputs: int, outputs: int) -> nn.Sequential:
    """A separable convolution (the depthwise one with bias and without batch norm), then twice the size."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs),
        nn.ReLU(inplace=True),
        conv_bn(inputs, outputs, 1),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
    )


@torch.no_grad()
def _init(net: nn.Module) -> None:
    for conv in net.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)


# ---- what the maps stand for ---------------------------------------------------------------------------------------
def inverse_distance(xy: Float[Tensor, "B J 2"], grid: Size) -> Float[Tensor, "B J h w"]:
    """1 / (distance + `REACH`) from every cell to `xy`, in cells. `xy` should be of at least single precision."""
    return 1 / (_distance(xy, grid) + REACH)


def _distance(xy: Float[Tensor, "B J 2"], grid: Size) -> Float[Tensor, "B J h w"]:
    y, x = torch.meshgrid(*(torch.arange(n, device=xy.device, dtype=xy.dtype) for n in grid), indexing="ij")
    return torch.hypot(x - xy[..., 0, None, None], y - xy[..., 1, None, None])


class CentreTargets(NamedTuple):
    """What one person's joints should look like; places in cells."""

    heat: Float[Tensor, "B J h w"]
    centre: Float[Tensor, "B 1 h w"]
    centre_cell: Float[Tensor, "B 1 2"]
    cell: Float[Tensor, "B J 2"]  # of the joint
    xy: Float[Tensor, "B J 2"]
    guess: Float[Tensor, "B J 2"]  # where the regression should point
    inside: Bool[Tensor, "B J"]  # whether the map has the joint's cell


@dataclass(frozen=True)
class CentreOffsets:
    """MoveNet's four maps as a codec (`Codec`, `Mirrors`): what they are trained with, and how they are read.

    Targets are Gaussians of `sigma` cells at the joint's cell, and of `centre_sigma` at that of the mean of the known joints:
    narrow, lest a neighbour win that is nearer to the middle of the image. The loss of both is the port's: squares times
    1 + 8 target, summed over the map ("squares"), or CenterNet's focal loss, which Google's is said to be ("focal"). L1 for the
    regression at the centre's cell and for the offset at the joint's, in cells, and with `bones` the mean difference of the
    distances between all pairs of regressed joints (the port takes these "bones" of rows of the heat maps). `parts` weigh heat
    maps, centre, regression and offsets.

    Heat below `least` counts as none. Where nothing of a heat map is left, the joint is where it was regressed, and its confidence
    is the heat there.

    `released`: read and train as the port does, for weights trained with it. Cells begin at their place (`Places` "msra") and the
    joint's is found by rounding down, so offsets are 0..1 (ours -0.5..0.5). The regression points at the joint's cell, not at the
    joint, and is rounded before it is used, negative steps towards 0. Heat is exp(-3 r / R) of the distance r up to R = 4, 5 or 6
    cells, by how much of the image the joints' bounding box is (0.16 and 0.3 are the steps); R is one more for the centre. Unlike
    in the port, joints of other people are not part of the target.
    """

    released: bool = False
    sigma: float = 1.5
    centre_sigma: float = 1.0
    maps: Literal["squares", "focal"] = "squares"
    parts: tuple[float, float, float, float] = (1.0, 1.0, 3.0, 1.0)
    bones: float = 0.0
    least: float = 0.1

    @property
    def places(self) -> Places:
        return "msra" if self.released else "pixel"

    def head(self, channels: int, joints: int, size: Size) -> nn.Module:
        raise InputError(
            "the four maps are MoveNet's own, no head on another trunk gives them: take another codec there"
        )

    def target(self, xy: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"], size: Size, grid: Size) -> CentreTargets:
        """Of joints at crop pixels `xy`, unknown where `weight` is 0."""
        cells = to_grid(xy, size, grid, self.places)
        cell = self._cell(cells)
        last = cells.new_tensor([grid[1] - 1, grid[0] - 1])
        inside = ((cell >= 0) & (cell <= last)).all(-1)
        known = (weight > 0).to(cells).unsqueeze(-1)
        mean = (cells * known).sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp_min(1)
        centre = self._cell(mean).clamp_min(0).minimum(last)
        low, high = (cells.masked_fill(known == 0, far) for far in (torch.inf, -torch.inf))
        extent = (high.amax(1) - low.amin(1)).clamp_min(0) / cells.new_tensor(grid[::-1])
        heat = self._bump(cell, extent.prod(-1), grid, self.sigma) * inside[..., None, None]
        around = self._bump(centre, extent.prod(-1), grid, self.centre_sigma, more=1)
        return CentreTargets(heat, around, centre, cell, cells, cell if self.released else cells, inside)

    def _bump(
        self, cell: Float[Tensor, "B J 2"], area: Float[Tensor, " B"], grid: Size, sigma: float, more: int = 0
    ) -> Float[Tensor, "B J h w"]:
        if not self.released:
            return gaussian_maps(cell, grid, sigma)
        distance = _distance(cell, grid)
        radius = (4 + more + (area >= 0.16).to(area) + (area >= 0.3).to(area))[:, None, None, None]
        return (-3 * distance / radius).exp() * (distance <= radius)

    def _cell(self, xy: Float[Tensor, "B J 2"]) -> Float[Tensor, "B J 2"]:
        return xy.floor() if self.released else (xy + 0.5).floor()

    def loss(
        self, raw: MoveNetMaps, xy: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"], size: Size
    ) -> Float[Tensor, ""]:
        """A person without any known joint teaches nothing."""
        true = self.target(xy, weight, size, (raw.heat.shape[-2], raw.heat.shape[-1]))
        there = (weight.amax(1, keepdim=True) > 0).to(weight)
        shown = weight * true.inside
        regressed = true.centre_cell + _at(raw.regression, true.centre_cell.expand_as(true.xy))
        offset = _at(raw.offset, true.cell)
        losses = (
            self._map_loss(raw.heat, true.heat, shown),
            self._map_loss(raw.centre, true.centre, there),
            weighted_mean((regressed - true.guess).abs().sum(-1), weight),
            weighted_mean((true.cell + offset - true.xy).abs().sum(-1), shown),
        )
        total = torch.stack([part * loss for part, loss in zip(self.parts, losses, strict=True)]).sum()
        if self.bones == 0:
            return total
        pairs = tuple(combinations(range(weight.shape[1]), 2))
        start, end = torch.tensor(pairs, device=weight.device).mT
        return total + self.bones * bone_loss(regressed, true.guess, pairs, weight[:, start] * weight[:, end])

    def _map_loss(
        self, pred: Float[Tensor, "B J h w"], target: Float[Tensor, "B J h w"], weight: Float[Tensor, "B J"]
    ) -> Float[Tensor, ""]:
        if self.maps == "squares":
            return weighted_mean(((pred - target).square() * (1 + 8 * target)).sum((-2, -1)), weight)
        p, peak = pred.clamp(1e-4, 1 - 1e-4), target == 1
        on, off = (1 - p).square() * p.log(), (1 - target) ** 4 * p.square() * (1 - p).log()
        return weighted_mean(-torch.where(peak, on, off).sum((-2, -1)), weight)

    def cells(
        self, raw: MoveNetMaps, towards: Float[Tensor, "#B #J h w"] | None = None
    ) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        """Places in cells, and the heat at each joint's cell.

        `towards` multiplies the centre map: `inverse_distance` from the middle of the image unless given.
        """
        grid = (raw.heat.shape[-2], raw.heat.shape[-1])
        if towards is None:
            single = torch.promote_types(raw.heat.dtype, torch.float32)  # halves cannot count cells
            middle = raw.heat.new_tensor([grid[1], grid[0]], dtype=single) / 2 - (0.0 if self.released else 0.5)
            towards = inverse_distance(middle.expand(1, 1, 2), grid)
        centre, _ = peaks(raw.centre * towards)
        step = _at(raw.regression, centre.expand(-1, raw.heat.shape[1], -1))
        # In the maps' own precision, as the port does: halves may round up to the next whole number.
        guess = centre + ((step + 0.5).trunc() if self.released else step).to(centre)
        heat = raw.heat.where(raw.heat >= self.least, 0.0)
        cell, _ = peaks(heat * inverse_distance(guess, grid))
        found = (heat.flatten(-2).amax(-1) > 0).unsqueeze(-1)
        last = cell.new_tensor([grid[1] - 1, grid[0] - 1])
        cell = torch.where(found, cell, (guess + 0.5).floor().clamp_min(0).minimum(last))
        place = torch.where(found, cell + _at(raw.offset, cell).to(cell), guess.clamp_min(0).minimum(last))
        return place, read(raw.heat, cell)

    def decode(self, raw: MoveNetMaps, size: Size) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        xy, heat = self.cells(raw)
        return from_grid(xy, (raw.heat.shape[-2], raw.heat.shape[-1]), size, self.places), heat

    def mirror(self, raw: MoveNetMaps, flip: Sequence[int]) -> MoveNetMaps:
        """The port's cells begin at their first pixel, mirrored ones at their last: an offset x there becomes 1 - 1/4 - x."""
        sign, step = (raw.offset.new_tensor(xy)[:, None, None] for xy in ([-1, 1], [1 - 1 / STRIDE, 0]))
        regression, offset = (swap_joints(maps.flip(-1), flip) * sign for maps in (raw.regression, raw.offset))
        if self.released:
            offset = offset + step
        return MoveNetMaps(swap_joints(raw.heat.flip(-1), flip), raw.centre.flip(-1), regression, offset)


def _at(maps: Float[Tensor, "B J 2 h w"], cell: Float[Tensor, "B J 2"]) -> Float[Tensor, "B J 2"]:
    """Pairs at whole cells; beyond the border those of the border."""
    return torch.stack([read(axis, cell) for axis in maps.unbind(2)], -1)


# ---- use -----------------------------------------------------------------------------------------------------------
def movenet(
    joints: JointSet = COCO17,
    codec: CentreOffsets = CentreOffsets(released=True),
    size: Size = (192, 192),
    weights: Path | str | None = None,
) -> PoseNet:
    """1.9 million weights. `weights`: a checkpoint of the port; the default codec is how those were trained and are read.

    To train, `CentreOffsets()` has this project's convention of pixels. The crop is a whole image, made square, with the person
    near its middle; `track` follows one through a video.
    """
    return loaded(PoseNet(MoveNet(len(joints)), codec, joints, size, SIGNED), weights)


HIPS, SHOULDERS = ("left_hip", "right_hip"), ("left_shoulder", "right_shoulder")


@dataclass(frozen=True)
class SmartCrop:
    """Where in the next frame to look, from the joints of this one (the rule of Google's own demonstrations).

    A square around the middle of the hips, half as wide as `torso` times the largest step (along x or y) to a hip or shoulder, or
    `body` times that to any joint surer than `sure`, whichever is more; but no further than the image's furthest edge. The whole
    image where no hip or no shoulder is surer than `sure`, and where the square would be wider than the image's longer side.
    """

    sure: float = 0.2
    torso: float = 1.9
    body: float = 1.2

    def next_box(self, seen: Keypoints2D, size: Size) -> Float[Tensor, "4"] | None:
        """x0, y0, x1, y1 in pixels (continuous edges) for joints (J, 2) in an image of `size` (height, width); None: all of it.

        InputError if the joints have no hips or shoulders.
        """
        lacking = [name for name in (*HIPS, *SHOULDERS) if name not in seen.joints]
        if lacking:
            raise InputError(
                f"{seen.joints.name} has no {', '.join(lacking)}: a person is followed by hips and shoulders"
            )
        hips, shoulders = seen.joints.indices(HIPS), seen.joints.indices(SHOULDERS)
        if not ((seen.conf[hips] > self.sure).any() and (seen.conf[shoulders] > self.sure).any()):
            return None
        middle = seen.xy[hips].mean(0)
        step = (seen.xy - middle).abs().amax(-1)
        known = seen.conf >= self.sure
        half = torch.maximum(self.torso * step[hips + shoulders].amax(), self.body * (step * known).amax())
        edge = middle.new_tensor([size[1], size[0]]) - 0.5
        half = half.minimum(torch.maximum(middle + 0.5, edge - middle).amax())
        if not 0 < half <= max(size) / 2:
            return None
        return torch.cat([middle - half, middle + half])


@torch.no_grad()
def track(
    net: PoseNet, frames: Iterable[UInt8[np.ndarray, "H W 3"]], crop: SmartCrop = SmartCrop(), flip: bool = False
) -> tuple[Keypoints2D, Float[Tensor, "T 4"]]:
    """One person through RGB frames: joints (T, J, 2) in pixels of the frames, and the square of each frame that was looked at.

    The first frame is seen whole, each other one where `crop` says by the one before. The network may be any `PoseNet` whose crop
    is square. InputError if there is no frame, if one is not RGB, or if the crop is not square.
    """
    if net.size[0] != net.size[1]:
        raise InputError(f"following a person takes square crops, this network sees {net.size[0]} x {net.size[1]}")
    weight = next(net.parameters(), torch.zeros(()))
    seen: list[Keypoints2D] = []
    boxes: list[Tensor] = []
    box = None
    for frame in frames:
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise InputError(f"frames are (H, W, 3) of 8-bit RGB, got {frame.shape} of {frame.dtype}")
        height, width = frame.shape[:2]
        if box is None:
            middle = torch.tensor([width / 2 - 0.5, height / 2 - 0.5], dtype=torch.float64)
            box = torch.cat([middle - max(width, height) / 2, middle + max(width, height) / 2])
        centre, side = (box[:2] + box[2:]) / 2, box[2] - box[0]
        matrix = crop_matrix(centre, side, torch.zeros_like(side), net.size, getattr(net.codec, "places", "pixel"))
        image = torch.from_numpy(warp_crop(frame, matrix.numpy(), net.size)).permute(2, 0, 1)
        with evaluating(net):
            found = net.predict(image[None].to(weight) / 255, flip)[0].to("cpu").to(torch.float64)
        seen.append(Keypoints2D(apply(invert(matrix), found.xy), found.conf, net.joints))
        boxes.append(box)
        box = crop.next_box(seen[-1], (height, width))
    if not seen:
        raise InputError("a video without frames: there is nobody to find")
    xy, conf = (torch.stack(same).float() for same in ([s.xy for s in seen], [s.conf for s in seen]))
    return Keypoints2D(xy, conf, net.joints), torch.stack(boxes).float()
