"""TokenPose: every joint is a token that asks the tokens of the image where it is; an MLP turns it into its heatmap.

Li, Zhang, Wang, Yang, Yang, Xia & Zhou, "TokenPose: Learning keypoint tokens for human pose estimation", ICCV 2021. Sizes are the
authors' configurations'. Two things are so in their code and not in the paper: TokenPose-S scales its attention by the width of a
token, the others by that of a head; and TokenPose-L is three transformers in a row, whose joint tokens are read together ("D24" is
three of depth 8).
"""

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.attention import TransformerBlock, sine_positions
from body3d.codecs import Heatmap, Size
from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.layers import Bottleneck
from body3d.nets.hrnet import HighResolutionModule, HRNet
from body3d.posenet import PoseNet, loaded
from body3d.skeletons import COCO17, MPII16

__all__ = [
    "TokenPose",
    "from_published",
    "tokenpose_b",
    "tokenpose_l_d24",
    "tokenpose_l_d6",
    "tokenpose_s_v1",
    "tokenpose_s_v2",
    "tokenpose_t",
]


class TokenPose(nn.Module):
    """(B, 3, H, W) to heatmaps (B, J, `maps`) in a list.

    `stem` makes a map of the image, which is cut into patches of `patch` (height, width), each a visual token; the image itself is
    cut without one. Sine positions are added to them before every layer ("sine-full"). Of each of `depths` transformers the joint
    tokens are kept and read together by the head, which goes through `hidden` channels if any are given.

    `grid` is the size of the map that is cut. A trained net is for that size alone: its head is.
    """

    positions: Tensor

    def __init__(
        self,
        stem: nn.Module | None,
        inputs: int,
        grid: Size,
        patch: Size,
        maps: Size,
        joints: int = 17,
        depths: tuple[int, ...] = (12,),
        heads: int = 8,
        channels: int = 192,
        hidden: int | None = 384,
        ratio: float = 3.0,
        scale: float | None = None,
    ):
        super().__init__()
        if grid[0] % patch[0] or grid[1] % patch[1]:
            raise InputError(f"a map of {grid} cannot be cut into patches of {patch}")
        self.stem, self.patch, self.maps, self.grid = stem, patch, maps, grid
        self.patch_to_embedding = nn.Linear(inputs * patch[0] * patch[1], channels)
        self.keypoint_token = nn.Parameter(torch.zeros(1, joints, channels))
        positions = sine_positions(grid[0] // patch[0], grid[1] // patch[1], channels)
        self.register_buffer("positions", positions, persistent=False)
        self.transformers = nn.ModuleList(
            Transformer(TransformerBlock(channels, heads, ratio, bias=False, scale=scale) for _ in range(depth))
            for depth in depths
        )
        width, pixels = channels * len(depths), maps[0] * maps[1]
        between = [] if hidden is None else [nn.Linear(width, hidden), nn.LayerNorm(hidden)]
        self.mlp_head = nn.Sequential(nn.LayerNorm(width), *between, nn.Linear(hidden or width, pixels))
        nn.init.trunc_normal_(self.keypoint_token, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        return [self.heatmaps(self.visual_tokens(image), self.positions)]

    def visual_tokens(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N C"]:
        """Patches row by row, linearly embedded; a patch is read pixel by pixel, all channels of each."""
        features = image if self.stem is None else self.stem(image)[0]
        if features.shape[2:] != self.grid:
            raise InputError(
                f"the network is made for maps of {self.grid}, the image gives {tuple(features.shape[2:])}"
            )
        patches = features.unflatten(3, (-1, self.patch[1])).unflatten(2, (-1, self.patch[0]))
        return self.patch_to_embedding(patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2))

    def heatmaps(self, visual: Float[Tensor, "B N C"], positions: Float[Tensor, "N C"]) -> Float[Tensor, "B J h w"]:
        """What the joints make of visual tokens at `positions`, in whatever order these are."""
        joints = self.keypoint_token.shape[1]
        x = torch.cat([self.keypoint_token.expand(len(visual), -1, -1), visual + positions], 1)
        again = F.pad(positions, (0, 0, joints, 0))
        kept = []
        for transformer in self.transformers:
            x = transformer(x, again)
            kept.append(x[:, :joints])
        return self.mlp_head(torch.cat(kept, -1)).unflatten(-1, self.maps)


class Transformer(nn.Module):
    """Blocks, before all but the first of which the positions are added again."""

    def __init__(self, blocks: Iterable[TransformerBlock]):
        super().__init__()
        self.layers = nn.ModuleList(blocks)

    def forward(self, x: Float[Tensor, "B N C"], positions: Float[Tensor, "N C"]) -> Float[Tensor, "B N C"]:
        for i, block in enumerate(self.layers):
            x = block(x + positions if i > 0 else x)
        return x


class Stem(nn.Module):
    """HRNet's beginning, two strided convolutions and four bottlenecks: (B, 3, H, W) to [(B, 256, H/4, W/4)]."""

    channels = 256

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 64, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(Bottleneck(64, 64), *(Bottleneck(256, 64) for _ in range(3)))

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(image)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return [self.layer1(x)]


class HRNet3(HRNet):
    """The finest branch of HRNet after its third stage."""

    def __init__(self, width: int):
        super().__init__(width)
        self.transition3, self.stage4 = nn.ModuleList([nn.Identity()]), nn.Sequential()
        last = self.stage3[-1]
        assert isinstance(last, HighResolutionModule)
        last.fuse_layers = last.fuse_layers[:1]


# ---- the authors' networks -----------------------------------------------------------------------------------------
def tokenpose_t(joints: JointSet = COCO17, size: Size = (256, 192), weights: Path | str | None = None) -> PoseNet:
    """Without a convolution: the image itself is cut into patches of 16x12."""
    maps = _quarter(size)
    net = TokenPose(None, 3, size, (16, 12), maps, len(joints), heads=16, hidden=maps[0] * maps[1] // 8)
    return _posenet(net, joints, size, weights)


def tokenpose_s_v1(
    joints: JointSet = COCO17, size: Size = (256, 192), weights: Path | str | None = None, patch: Size = (4, 3)
) -> PoseNet:
    maps = _quarter(size)
    hidden = maps[0] * maps[1] // 8
    net = TokenPose(Stem(), 256, maps, patch, maps, len(joints), hidden=hidden, scale=192**-0.5)
    return _posenet(net, joints, size, weights)


def tokenpose_s_v2(joints: JointSet = COCO17, size: Size = (256, 192), weights: Path | str | None = None) -> PoseNet:
    """Three times as many visual tokens as v1."""
    return tokenpose_s_v1(joints, size, weights, (2, 2))


def tokenpose_b(
    joints: JointSet = COCO17, size: Size = (256, 192), weights: Path | str | None = None, patch: Size = (4, 3)
) -> PoseNet:
    maps = _quarter(size)
    net = TokenPose(HRNet3(32), 32, maps, patch, maps, len(joints), hidden=maps[0] * maps[1] // 8)
    return _posenet(net, joints, size, weights)


def tokenpose_l_d24(
    joints: JointSet = COCO17, size: Size = (256, 192), weights: Path | str | None = None, patch: Size = (4, 3)
) -> PoseNet:
    """The published patch is (6, 4) for images of 384x288."""
    maps = _quarter(size)
    net = TokenPose(HRNet3(48), 48, maps, patch, maps, len(joints), depths=(8, 8, 8), heads=12, hidden=None)
    return _posenet(net, joints, size, weights)


def tokenpose_l_d6(
    joints: JointSet = MPII16, size: Size = (256, 256), weights: Path | str | None = None, patch: Size = (4, 4)
) -> PoseNet:
    maps = _quarter(size)
    net = TokenPose(HRNet3(48), 48, maps, patch, maps, len(joints), depths=(2, 2, 2), hidden=None)
    return _posenet(net, joints, size, weights)


def _posenet(net: TokenPose, joints: JointSet, size: Size, weights: Path | str | None) -> PoseNet:
    """Targets and reading are DARK's; sigma is 3 cells for maps of 96x72, in proportion to their height here."""
    codec = Heatmap(sigma=2.0 * max(1.0, size[0] / 256), places="msra")
    return loaded(PoseNet(net, codec, joints, size), weights, from_published)


def _quarter(size: Size) -> Size:
    return (size[0] // 4, size[1] // 4)


# ---- published checkpoints -----------------------------------------------------------------------------------------
_RENAMED = (
    (r"^net\.", ""),  # a `PoseNet`'s
    (r"^pre_feature\.", "stem."),
    (r"^features\.(?=(conv|bn)[12]\.|layer1\.)", "stem."),
    (r"^(features|transformer)\.", ""),
    (r"^transformer(\d?)\.layers\.", lambda found: f"transformers.{int(found[1] or 1) - 1}.layers."),
    (r"\.0\.fn\.norm\.", ".norm1."),
    (r"\.1\.fn\.norm\.", ".norm2."),
    (r"\.0\.fn\.fn\.to_qkv\.", ".attn.qkv."),
    (r"\.0\.fn\.fn\.to_out\.0\.", ".attn.proj."),
    (r"\.1\.fn\.fn\.net\.0\.", ".mlp.fc1."),
    (r"\.1\.fn\.fn\.net\.3\.", ".mlp.fc2."),
)


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names as ours; those of this project stay. Their table of positions is a constant, which ours computes."""
    renamed = {}
    for key, value in state.items():
        for pattern, ours in _RENAMED:
            key = re.sub(pattern, ours, key)
        if key != "pos_embedding":
            renamed[key] = value
    return renamed
