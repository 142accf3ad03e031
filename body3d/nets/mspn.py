"""Multi-stage pose network: GlobalNets in a row, each of which hears at every size what the one before saw there.

Li et al., "Rethinking on multi-stage networks for human pose estimation", 2019. Two codes carry it on: the authors'
(megvii-research/MSPN), whose convolutions have biases before batch norms, and mmpose's. `from_megvii` and `from_mmpose` rename
their weights. All upsampling is bilinear with aligned corners, as in both.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.checkpoints import load_into, read_published
from body3d.codecs import Codec, Size
from body3d.joint_set import JointSet
from body3d.layers import Bottleneck, conv_bn, init_kaiming
from body3d.nets.cpn import MegviiHeatmap, resized, supervised
from body3d.posenet import IMAGENET, Normalise, PoseNet
from body3d.skeletons import COCO17

__all__ = ["MSPN", "Stage", "from_megvii", "from_mmpose", "mspn_1", "mspn_2", "mspn_3", "mspn_4"]

WIDTH = 256  # channels on the way up
STEM = 64  # channels that a stage begins with


class MSPN(nn.Module):
    """(B, 3, H, W) to four (B, `maps`, H/4, W/4) per stage, coarse to fine; the last is the answer. H, W: multiples of 32.

    `depths`: bottlenecks at each size of every stage's way down (ResNet-50's). `biases`: convolutions have them, as in the
    authors' code.
    """

    def __init__(self, stages: int, maps: int, depths: Sequence[int] = (3, 4, 6, 3), biases: bool = False):
        super().__init__()
        self.top = conv_bn(3, STEM, 7, 2)
        self.stages = nn.ModuleList(Stage(maps, depths, passes_on=i < stages - 1) for i in range(stages))
        init_kaiming(self)
        if biases:
            for conv in self.modules():
                if isinstance(conv, nn.Conv2d):
                    conv.bias = nn.Parameter(torch.zeros(conv.out_channels))

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        x = F.max_pool2d(self.top(image), 3, 2, 1)
        heard: list[Tensor] | None = None
        maps: list[Tensor] = []
        for stage in self.stages:
            seen, x, heard = stage(x, heard)
            maps += seen
        return maps


class Stage(nn.Module):
    """A ResNet down to stride 32 and a light way up to stride 4, with maps at every size.

    A stage that `passes_on` gives the next one its input, and at every size what to add there on the way down: a convolution of
    the features on its own way down plus one of those on its way up (cross-stage aggregation).
    """

    def __init__(self, maps: int, depths: Sequence[int], passes_on: bool):
        super().__init__()
        self.down = nn.ModuleList()
        inputs = STEM
        for i, depth in enumerate(depths):
            width = 64 * 2**i
            outputs = width * Bottleneck.expansion
            first = Bottleneck(inputs, width, 1 if i == 0 else 2)
            self.down.append(nn.Sequential(first, *(Bottleneck(outputs, width) for _ in range(depth - 1))))
            inputs = outputs
        widths = [64 * 2**i * Bottleneck.expansion for i in range(len(depths))]
        self.up = nn.ModuleList(
            UpUnit(width, maps, first=i == 0, passes_on=passes_on) for i, width in enumerate(reversed(widths))
        )
        self.cross = conv_bn(WIDTH, STEM, 1) if passes_on else None

    def forward(
        self, x: Float[Tensor, "B C h w"], heard: list[Tensor] | None
    ) -> tuple[list[Tensor], Tensor, list[Tensor] | None]:
        """The maps, coarse to fine; what the next stage begins with; and what it hears, fine to coarse (None: nothing)."""
        size = (x.shape[-2], x.shape[-1])
        levels: list[Tensor] = []
        for i, block in enumerate(self.down):
            x = block(x)
            if heard is not None:
                x = x + heard[i]
            levels.append(x)
        maps: list[Tensor] = []
        said: list[Tensor] = []
        above: Tensor | None = None
        for unit, level in zip(self.up, reversed(levels), strict=True):
            above, seen = unit(level, above, size)
            maps.append(seen)
            if isinstance(aggregate := unit.aggregate, Aggregate):
                said.append(aggregate(level, above))
        assert above is not None
        return (maps, self.cross(above), said[::-1]) if self.cross is not None else (maps, above, None)


class UpUnit(nn.Module):
    """One size of the way up: the features of the way down, plus those of the coarser unit, and maps at the finest size."""

    def __init__(self, width: int, maps: int, first: bool, passes_on: bool):
        super().__init__()
        self.in_skip = conv_bn(width, WIDTH, 1, active=False)
        self.up_conv = None if first else conv_bn(WIDTH, WIDTH, 1, active=False)
        self.aggregate = Aggregate(width) if passes_on else None
        self.predict = nn.Sequential(conv_bn(WIDTH, WIDTH, 1), conv_bn(WIDTH, maps, 3, active=False))

    def forward(self, level: Float[Tensor, "B I h w"], above: Tensor | None, size: Size) -> tuple[Tensor, Tensor]:
        x = self.in_skip(level)
        if self.up_conv is not None and above is not None:
            x = x + self.up_conv(resized(above, (level.shape[-2], level.shape[-1])))
        x = F.relu(x)
        return x, resized(self.predict(x), size)


class Aggregate(nn.Module):
    """What the next stage adds at one size of its way down: from this stage's features there, on its way down and up."""

    def __init__(self, width: int):
        super().__init__()
        self.down_skip, self.up_skip = conv_bn(width, width, 1), conv_bn(WIDTH, width, 1)

    def forward(self, down: Float[Tensor, "B I h w"], up: Float[Tensor, "B C h w"]) -> Float[Tensor, "B I h w"]:
        return self.down_skip(down) + self.up_skip(up)


# ---- published names -----------------------------------------------------------------------------------------------
# The parts of a name that both codes have, then those of each.
_MEGVII = (
    (r"^top\.conv\.", "top."), (r"^stage(\d+)\.", r"stages.\1."), (r"\.conv_bn_relu(\d)\.(conv|bn)\.", r".\2\1."),
    (r"\.u_skip\.", ".in_skip."), (r"\.skip1\.", ".aggregate.down_skip."), (r"\.skip2\.", ".aggregate.up_skip."),
    (r"\.res_conv1\.", ".predict.0."), (r"\.res_conv2\.", ".predict.1."),
)  # fmt: skip
_MMPOSE = (
    (r"^backbone\.top\.top\.0\.", "top."), (r"^backbone\.multi_stage_mspn\.", "stages."),
    (r"\.out_skip1\.", ".aggregate.down_skip."), (r"\.out_skip2\.", ".aggregate.up_skip."),
)  # fmt: skip
_BOTH = (
    (r"\.downsample\.layer(\d)\.", lambda found: f".down.{int(found[1]) - 1}."),
    (r"\.upsample\.up\d\.cross_conv\.", ".cross."),
    (r"\.upsample\.up(\d)\.", lambda found: f".up.{int(found[1]) - 1}."),
    (r"(^top|skip|up_conv|cross|predict\.\d|\.downsample)\.conv\.", r"\1.0."),
    (r"(^top|skip|up_conv|cross|predict\.\d|\.downsample)\.bn\.", r"\1.1."),
)


def from_megvii(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict in the names of the authors' code, in ours (`biases`)."""
    return _renamed(state, (*_MEGVII, *_BOTH))


def from_mmpose(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict in mmpose's names, in ours."""

    def predict(found: re.Match[str]) -> str:
        stage, unit = divmod(int(found[1]), 4)
        return f"stages.{stage}.up.{unit}.predict.{found[2]}."

    head = (r"^head\.predict_layers\.(\d+)\.conv_layers\.(\d)\.", predict)
    return _renamed(state, (head, *_MMPOSE, *_BOTH))


def _renamed(state: dict[str, Tensor], patterns: Sequence[tuple]) -> dict[str, Tensor]:
    def ours(key: str) -> str:
        for pattern, name in patterns:
            key = re.sub(pattern, name, key)
        return key

    return {ours(key): value for key, value in state.items()}


# ---- published sizes -----------------------------------------------------------------------------------------------
_BGR = Normalise((0.406, 0.456, 0.485), (0.225, 0.224, 0.229), bgr=True)
_MAPS = MegviiHeatmap(kernel=5, blur=5)
_COARSE, _FINE = (15, 11, 9, 7), (11, 9, 7, 5)


def mspn_1(
    joints: JointSet = COCO17, codec: Codec = _MAPS, size: Size = (256, 192), weights: Path | str | None = None
) -> PoseNet:
    return _mspn(1, joints, codec, size, weights)


def mspn_2(
    joints: JointSet = COCO17, codec: Codec = _MAPS, size: Size = (256, 192), weights: Path | str | None = None
) -> PoseNet:
    """56.8 million weights for 17 joints. `weights`: a checkpoint of the authors or of mmpose, which differ in colours and biases.

    Coarse to fine twice: the bumps narrow from level to level (kernels 15, 11, 9, 7), and the last stage's are narrower by one
    step (11, 9, 7, 5), as released. Every stage's finest maps learn from their 8 hardest joints, the others count a quarter.
    """
    return _mspn(2, joints, codec, size, weights)


def mspn_3(
    joints: JointSet = COCO17, codec: Codec = _MAPS, size: Size = (256, 192), weights: Path | str | None = None
) -> PoseNet:
    return _mspn(3, joints, codec, size, weights)


def mspn_4(
    joints: JointSet = COCO17, codec: Codec = _MAPS, size: Size = (256, 192), weights: Path | str | None = None
) -> PoseNet:
    return _mspn(4, joints, codec, size, weights)


def _mspn(stages: int, joints: JointSet, codec: Codec, size: Size, weights: Path | str | None) -> PoseNet:
    state = {} if weights is None else read_published(weights)
    megvii = any(key.startswith("top.conv.") for key in state)
    mmpose = any(key.startswith("backbone.") for key in state)
    own = {key.removeprefix("net."): value for key, value in state.items()}
    net = MSPN(stages, len(joints), biases=megvii or "top.0.bias" in own)
    kernels, refined = _COARSE * (stages - 1) + _FINE, (False, False, False, True) * stages
    colours = _BGR if net.top[0].bias is not None else IMAGENET
    posenet = supervised(net, codec, kernels, refined, 0.25, joints, size, colours)
    if weights is not None:
        load_into(net, from_megvii(state) if megvii else from_mmpose(state) if mmpose else own, weights)
        posenet.eval()
    return posenet
