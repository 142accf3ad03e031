"""Convolutional pose machines: belief maps refined in stages of large kernels, each of which sees the ones before.

Wei, Ramakrishna, Kanade & Sheikh, "Convolutional pose machines", CVPR 2016. Two forms that differ in more than names: `CPM`, the
paper's layout with batch norm, as mmpose has it (without background and centre maps), and `ReleasedCPM`, which the authors
trained and released: VGG-19's first ten convolutions, then smaller kernels, a background map and the centre map of the person
that is meant.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.codecs import Codec, Heatmap, Size, msra_heatmap
from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.losses import joint_mse
from body3d.posenet import Normalise, PoseNet, loaded, of_maps
from body3d.skeletons import CPM14, MPII16

__all__ = ["CPM", "Beliefs", "ReleasedCPM", "centre_map", "cpm", "cpm_released", "from_caffe"]


class CPM(nn.Module):
    """(B, 3, H, W) to one (B, `maps`, H/8, W/8) per stage, the last being the answer.

    `width` channels inside, `narrow` between the image features and each stage. Published: 368 x 368, six stages.
    """

    def __init__(self, maps: int, stages: int = 6, width: int = 128, narrow: int = 32, first: int = 512):
        super().__init__()
        self.stem = nn.Sequential(
            *_downscaling(width),
            _ConvBN(width, narrow, 5),
            _ConvBN(narrow, first, 9),
            _ConvBN(first, first, 1),
            _Conv(first, maps),
        )
        # From the second stage on the image is seen through convolutions of their own.
        self.middle = nn.Sequential(*_downscaling(width))
        later = range(stages - 1)
        self.middle_conv = nn.ModuleList(nn.Sequential(_ConvBN(width, narrow, 5)) for _ in later)
        self.cpm_stages = nn.ModuleList(_Stage(narrow + maps, width) for _ in later)
        self.out_convs = nn.ModuleList(nn.Sequential(_ConvBN(width, width, 1), _Conv(width, maps)) for _ in later)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        beliefs = [self.stem(image)]
        features = self.middle(image)
        for narrow, stage, out in zip(self.middle_conv, self.cpm_stages, self.out_convs, strict=True):
            beliefs.append(out(stage(torch.cat([beliefs[-1], narrow(features)], 1))))
        return beliefs


class _Conv(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _ConvBN(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class _Stage(nn.Module):
    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.model = nn.Sequential(_ConvBN(inputs, width, 11), _ConvBN(width, width, 11), _ConvBN(width, width, 11))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def _downscaling(width: int) -> list[nn.Module]:
    pool = lambda: nn.MaxPool2d(3, 2, 1)
    return [_ConvBN(3, width, 9), pool(), _ConvBN(width, width, 9), pool(), _ConvBN(width, width, 9), pool()]


# ---- the released network ------------------------------------------------------------------------------------------
class ReleasedCPM(nn.Module):
    """(B, 3, H, W) to one (B, `joints` + 1, H/8, W/8) per stage; the last map of each is the background's, 1 where no joint is.

    Layers bear the names of the released Caffe model. Published: 368 x 368, 14 joints, no batch norm.
    """

    def __init__(self, joints: int, stages: int = 6, width: int = 128):
        super().__init__()
        maps = joints + 1
        self.features = nn.Sequential()
        inputs = 3
        for group, widths in enumerate(_GROUPS):
            if group:
                self.features.append(nn.MaxPool2d(2))
            for i, outputs in enumerate((*widths, width) if group == 3 else widths):
                _add_conv(
                    self.features, f"conv{group + 1}_{i + 1}" + "_CPM" * (group == 3 and i > 1), inputs, outputs, 3
                )
                inputs = outputs
        self.stages = nn.ModuleList([nn.Sequential()])
        _add_conv(self.stages[0], "conv5_1_CPM", width, 512, 1)
        _add_conv(self.stages[0], "conv5_2_CPM", 512, maps, 1, active=False)
        for number in range(2, stages + 1):
            stage = nn.Sequential()
            sizes = pairwise((width + maps + 1, *(width,) * 6, maps))
            for i, (before, after) in enumerate(sizes, 1):
                _add_conv(stage, f"Mconv{i}_stage{number}", before, after, 7 if i <= 5 else 1, active=i < 7)
            self.stages.append(stage)

    def forward(
        self, image: Float[Tensor, "B 3 H W"], centre: Float[Tensor, "B 2"] | None = None, sigma: float = 21.0
    ) -> list[Tensor]:
        """`centre` of the person that is meant, in pixels of the image; None: the middle, where the release has it. `sigma`, in
        pixels too, is its Gaussian's.
        """
        features = self.features(image)
        gaussian = centre_map((image.shape[-2], image.shape[-1]), centre, sigma, image)
        seen = F.avg_pool2d(gaussian, 9, 8, ceil_mode=True).expand(len(image), -1, -1, -1)
        beliefs = [self.stages[0](features)]
        for stage in list(self.stages)[1:]:
            beliefs.append(stage(torch.cat([beliefs[-1], features, seen], 1)))
        return beliefs


# VGG-19 to conv4_2, then what the authors put upon it.
_GROUPS = ((64, 64), (128, 128), (256,) * 4, (512, 512, 256, 256, 256, 256))


def _add_conv(to: nn.Module, name: str, inputs: int, outputs: int, kernel: int, active: bool = True) -> None:
    to.add_module(name, nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))
    if active:
        to.add_module(f"{name}_relu", nn.ReLU(inplace=True))


def centre_map(
    size: tuple[int, int], centre: Float[Tensor, "B 2"] | None, sigma: float, like: Tensor
) -> Float[Tensor, "B 1 H W"]:
    """A Gaussian of height 1 around each centre (x, y); None: around the pixel before the middle of the image."""
    height, width = size
    if centre is None:
        centre = like.new_tensor([[width / 2 - 1, height / 2 - 1]])
    x, y = torch.arange(width, device=like.device), torch.arange(height, device=like.device)
    squared = (x - centre[:, :1]).square()[:, None, :] + (y - centre[:, 1:]).square()[:, :, None]
    return (-squared / (2 * sigma**2)).exp().to(like.dtype)[:, None]


def from_caffe(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict in the released model's layer names (`conv4_7_CPM.weight`) in ours; names that are ours already stay."""

    def ours(key: str) -> str:
        layer = key.rpartition(".")[0].rpartition(".")[2]
        if layer.startswith("conv5_"):
            return f"stages.0.{'.'.join(key.split('.')[-2:])}"
        if layer.startswith("Mconv"):
            return f"stages.{int(layer.rpartition('stage')[2]) - 1}.{'.'.join(key.split('.')[-2:])}"
        return f"features.{'.'.join(key.split('.')[-2:])}" if layer.startswith("conv") else key

    return {ours(key): value for key, value in state.items()}


@dataclass(frozen=True)
class Beliefs(Heatmap):
    """Heatmaps and, last, the background's: 1 less the highest of the joints' targets. `sigma` is 7 pixels at stride 8."""

    sigma: float = 0.875

    def head(self, channels: int, joints: int, size: Size) -> nn.Module:
        return nn.Conv2d(channels, joints + 1, 1)

    def loss(
        self, raw: Float[Tensor, "B M h w"], xy: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"], size: Size
    ) -> Float[Tensor, ""]:
        """A joint without weight is missing from the background too."""
        maps, visible = self.target(xy, size, (raw.shape[-2], raw.shape[-1]))
        weight = weight * visible
        background = 1 - (maps * weight[..., None, None]).amax(1, keepdim=True)
        return joint_mse(raw, torch.cat([maps, background], 1), F.pad(weight, (0, 1), value=1.0))

    def decode(self, raw: Float[Tensor, "B M h w"], size: Size) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        return super().decode(raw[:, :-1], size)

    def mirror(self, raw: Float[Tensor, "B M h w"], flip: Sequence[int]) -> Float[Tensor, "B M h w"]:
        return torch.cat([super().mirror(raw[:, :-1], flip), raw[:, -1:].flip(-1)], 1)


# ---- published sizes -----------------------------------------------------------------------------------------------
def cpm(
    joints: JointSet = MPII16,
    codec: Codec = msra_heatmap(),
    size: Size = (368, 368),
    weights: Path | str | None = None,
) -> PoseNet:
    """31.2 million weights. `weights`: a checkpoint of mmpose (COCO: 17 joints at 256x192 or 384x288).

    `codec` is one that reads a map per joint; the default is how those weights were trained and are read.
    """
    bare = lambda state: {key.removeprefix("backbone."): value for key, value in state.items()}
    return loaded(of_maps(CPM(len(joints)), codec, joints, size), weights, bare)


def cpm_released(
    joints: JointSet = CPM14,
    codec: Codec = Beliefs(),
    size: Size = (368, 368),
    weights: Path | str | None = None,
) -> PoseNet:
    """The authors' network for MPII and LSP. `weights`: the released Caffe model with its layers' names, as PyTorch tensors."""
    if not isinstance(codec, Beliefs):
        raise InputError(
            f"the released CPM has a map of the background, which {type(codec).__name__} does not read: Beliefs does"
        )
    normalise = Normalise((0.5, 0.5, 0.5), (1.0, 1.0, 1.0), bgr=True, scale=255 / 256)
    return loaded(PoseNet(ReleasedCPM(len(joints)), codec, joints, size, normalise), weights, from_caffe)
