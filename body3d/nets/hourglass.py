"""Stacked hourglass: down to a sixteenth and up again with skips at each size, many times over, each time with heatmaps.

Newell, Yang & Deng, "Stacked hourglass networks for human pose estimation", ECCV 2016. Two PyTorch codes carry it on, and differ
in the stem and in weights that nothing reads. Modules bear the names of the one (bearpaw/pytorch-pose); `from_princeton` renames
those of the other (princeton-vl/pytorch_stacked_hourglass).
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.checkpoints import load_into, read_published
from body3d.codecs import Codec, Heatmap, Size
from body3d.codecs.peaks import quarter_shift
from body3d.joint_set import JointSet
from body3d.layers import PreActBottleneck, conv_bn
from body3d.posenet import PLAIN, Normalise, PoseNet, of_maps
from body3d.skeletons import MPII16

__all__ = [
    "MPII_COLOURS", "PAPER_MAPS", "Hourglass", "StackedHourglass", "from_princeton", "hourglass_1", "hourglass_2", "hourglass_4",
    "hourglass_8", "through_stacks", "through_stem",
]  # fmt: skip


class StackedHourglass(nn.Module):
    """(B, 3, H, W) to one (B, `maps`, H/4, W/4) per stack, the last being the answer; H and W must be multiples of 64.

    `blocks` residuals stand where the paper has one. After the stem's 7x7 convolution come residuals of 128, `width` and `width`
    channels with a max pooling after the first; with `princeton`, of 128, 128 and `width` channels, and every residual has the
    convolution of a skip that changes width, used or not.
    """

    def __init__(
        self, stacks: int, maps: int, width: int = 256, blocks: int = 1, depth: int = 4, princeton: bool = False
    ):
        super().__init__()
        half = width // 2

        def residuals(inputs: int, outputs: int) -> nn.Sequential:
            first = PreActBottleneck(inputs, outputs, princeton)
            return nn.Sequential(first, *(PreActBottleneck(outputs, outputs, princeton) for _ in range(blocks - 1)))

        same = lambda: residuals(width, width)
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64)
        self.layer1 = residuals(64, half)
        self.layer2 = residuals(half, half if princeton else width)
        self.layer3 = residuals(half if princeton else width, width)
        self.hg = nn.ModuleList(Hourglass(same, depth) for _ in range(stacks))
        self.res = nn.ModuleList(same() for _ in range(stacks))
        self.fc = nn.ModuleList(conv_bn(width, width, 1, bias=True) for _ in range(stacks))
        self.score = nn.ModuleList(nn.Conv2d(width, maps, 1) for _ in range(stacks))
        self.fc_ = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(stacks - 1))
        self.score_ = nn.ModuleList(nn.Conv2d(maps, width, 1) for _ in range(stacks - 1))

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        return through_stacks(self, through_stem(self, image))


def through_stem(net: Any, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
    """The features that the first stack sees, by the stem of a `StackedHourglass` or what has its modules by the same names."""
    x = F.relu(net.bn1(net.conv1(image)), inplace=True)
    return net.layer3(net.layer2(F.max_pool2d(net.layer1(x), 2)))


def through_stacks(net: Any, x: Float[Tensor, "B C h w"]) -> list[Tensor]:
    """The maps of each stack, likewise."""
    scores = []
    for i, hourglass in enumerate(net.hg):
        y = net.fc[i](net.res[i](hourglass(x)))
        scores.append(net.score[i](y))
        if i < len(net.fc_):
            x = x + net.fc_[i](y) + net.score_[i](scores[-1])
    return scores


class Hourglass(nn.Module):
    """One hourglass of `depth` halvings, from blocks that keep size and channels: three at each size, four at the smallest.

    `hg[0]` is the innermost level. Its blocks: on the skip, before, after what lies inside, and (innermost) inside.
    """

    def __init__(self, block: Callable[[], nn.Module], depth: int = 4):
        super().__init__()
        self.hg = nn.ModuleList(nn.ModuleList(block() for _ in range(4 if level == 0 else 3)) for level in range(depth))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return self._level(len(self.hg) - 1, x)

    def _level(self, level: int, x: Tensor) -> Tensor:
        skip, before, after, *inside = self.hg[level]  # type: ignore[misc]
        y = before(F.max_pool2d(x, 2))
        y = inside[0](y) if inside else self._level(level - 1, y)
        return skip(x) + F.interpolate(after(y), scale_factor=2.0, mode="nearest")


# ---- published names -----------------------------------------------------------------------------------------------
_PRINCETON = (
    (r"^pre\.0\.conv\.", "conv1."), (r"^pre\.0\.bn\.", "bn1."),
    (r"^pre\.1\.", "layer1.0."), (r"^pre\.3\.", "layer2.0."), (r"^pre\.4\.", "layer3.0."),
    (r"^features\.(\d+)\.0\.", r"res.\1.0."),
    (r"^features\.(\d+)\.1\.conv\.", r"fc.\1.0."), (r"^features\.(\d+)\.1\.bn\.", r"fc.\1.1."),
    (r"^outs\.(\d+)\.conv\.", r"score.\1."),
    (r"^merge_features\.(\d+)\.conv\.conv\.", r"fc_.\1."), (r"^merge_preds\.(\d+)\.conv\.conv\.", r"score_.\1."),
    (r"\.skip_layer\.conv\.", ".downsample.0."), (r"\.(conv[123])\.conv\.", r".\1."),
)  # fmt: skip
_PLACES = {"up1": 0, "low1": 1, "low3": 2, "low2": 3}


def from_princeton(state: dict[str, Tensor], depth: int = 4) -> dict[str, Tensor]:
    """A state_dict in the names of princeton-vl's code, in ours. Theirs nest: level n lies in n times `low2`."""

    def ours(key: str) -> str:
        if found := re.match(r"hgs\.(\d+)\.0\.((?:low2\.)*)(up1|low[123])\.", key):
            stack, outer, place = found.groups()
            level = depth - 1 - outer.count("low2")
            key = f"hg.{stack}.hg.{level}.{_PLACES[place]}.0.{key[found.end() :]}"
        for pattern, name in _PRINCETON:
            key = re.sub(pattern, name, key)
        return key

    return {ours(key.removeprefix("model.")): value for key, value in state.items()}


# ---- published sizes -----------------------------------------------------------------------------------------------
# Both codes round a joint down to the cell that it lies in and read a quarter of a cell from the highest one.
PAPER_MAPS = Heatmap(sigma=1.0, decoder=quarter_shift, rounded=True)
MPII_COLOURS = Normalise((0.4404, 0.4440, 0.4327), (1.0, 1.0, 1.0))  # less their mean: bearpaw's


def hourglass_1(
    joints: JointSet = MPII16, codec: Codec = PAPER_MAPS, size: Size = (256, 256), weights: Path | str | None = None
) -> PoseNet:
    return _hourglass(1, joints, codec, size, weights)


def hourglass_2(
    joints: JointSet = MPII16, codec: Codec = PAPER_MAPS, size: Size = (256, 256), weights: Path | str | None = None
) -> PoseNet:
    return _hourglass(2, joints, codec, size, weights)


def hourglass_4(
    joints: JointSet = MPII16, codec: Codec = PAPER_MAPS, size: Size = (256, 256), weights: Path | str | None = None
) -> PoseNet:
    return _hourglass(4, joints, codec, size, weights)


def hourglass_8(
    joints: JointSet = MPII16, codec: Codec = PAPER_MAPS, size: Size = (256, 256), weights: Path | str | None = None
) -> PoseNet:
    """The paper's network, 25.6 million weights. `codec` is one that reads a map per joint.

    `weights`: a checkpoint of bearpaw's or of princeton-vl's code. The stem, the unused weights and how colours are normalised
    follow the file.
    """
    return _hourglass(8, joints, codec, size, weights)


def _hourglass(stacks: int, joints: JointSet, codec: Codec, size: Size, weights: Path | str | None) -> PoseNet:
    state = {} if weights is None else read_published(weights)
    princeton = any(re.match(r"(model\.)?hgs\.", key) for key in state)
    net = StackedHourglass(stacks, len(joints), princeton=princeton)
    posenet = of_maps(net, codec, joints, size, PLAIN if princeton else MPII_COLOURS)
    if weights is not None:
        own = {key.removeprefix("net."): value for key, value in state.items()}
        load_into(net, from_princeton(state) if princeton else own, weights)
        posenet.eval()
    return posenet
