"""ViTPose: a plain vision transformer and a small decoder to heatmaps.

Xu, Zhang, Zhang & Tao, "ViTPose: Simple vision transformer baselines for human pose estimation", NeurIPS 2022. Sizes, drop paths
and both decoders are the authors' configurations'.
"""

import re
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.attention import TransformerBlock
from body3d.codecs import Size, udp_heatmap
from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.layers import deconv_layers
from body3d.posenet import Headed, PoseNet, loaded
from body3d.skeletons import COCO17

__all__ = [
    "ViT",
    "ViTPoseTrunk",
    "from_published",
    "vitpose_b",
    "vitpose_b_simple",
    "vitpose_h",
    "vitpose_h_simple",
    "vitpose_l",
    "vitpose_l_simple",
    "vitpose_s",
]

PATCH = 16


class ViT(nn.Module):
    """A vision transformer on patches of 16 pixels, (B, 3, H, W) to one map (B, `channels`, H/16, W/16) in a list.

    Dosovitskiy et al., ICLR 2021, as ViTPose has it: patches overlap the border by 2 pixels, no class token, layer norms with eps
    1e-6. The position table still has the class token's entry, which is added to all others, because the authors' weights (begun
    from MAE's) do. `size` is the image's (H, W), which the table is made for. Drop path rises linearly from 0 to `drop_path`.
    """

    def __init__(
        self,
        channels: int,
        depth: int,
        heads: int,
        size: Size = (256, 192),
        ratio: float = 4.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.channels = channels
        self.grid = (size[0] // PATCH, size[1] // PATCH)
        self.patch_embed = nn.Conv2d(3, channels, PATCH, PATCH, padding=2)
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], channels))
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(channels, heads, ratio, drop_path=drop_path * i / max(1, depth - 1), eps=1e-6)
                for i in range(depth)
            )
        )
        self.last_norm = nn.LayerNorm(channels, 1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        x = self.patch_embed(image)
        if x.shape[2:] != self.grid:
            size = tuple(PATCH * n for n in self.grid)
            raise InputError(f"the positions are made for images of {size}, got {tuple(image.shape[2:])}")
        x = x.flatten(2).mT + self.pos_embed[:, 1:] + self.pos_embed[:, :1]
        return [self.last_norm(self.blocks(x)).mT.unflatten(2, self.grid)]


class ViTPoseTrunk(nn.Module):
    """A ViT and the part of a decoder before its last convolution, (B, 3, H, W) to one map at stride 4 in a list.

    The classic decoder is two deconvolutions to 256 channels; the simple one ReLU and bilinear upsampling by 4. The convolution to
    heatmaps that follows is 1x1 or 3x3.
    """

    def __init__(self, backbone: ViT, simple: bool = False):
        super().__init__()
        self.backbone = backbone
        if simple:
            self.decoder = nn.Sequential(nn.ReLU(), nn.Upsample(scale_factor=4, mode="bilinear", align_corners=False))
        else:
            self.decoder = deconv_layers(backbone.channels, (256, 256))
        self.channels = backbone.channels if simple else 256

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        return [self.decoder(self.backbone(image)[-1])]


# ---- the authors' networks -----------------------------------------------------------------------------------------
def vitpose_s(joints: JointSet = COCO17, size: Size = (256, 192), weights: Path | str | None = None) -> PoseNet:
    return _posenet(ViT(384, 12, 12, size, drop_path=0.1), joints, size, weights)


def vitpose_b(joints: JointSet = COCO17, size: Size = (256, 192), weights: Path | str | None = None) -> PoseNet:
    return _posenet(ViT(768, 12, 12, size, drop_path=0.3), joints, size, weights)


def vitpose_l(joints: JointSet = COCO17, size: Size = (256, 192), weights: Path | str | None = None) -> PoseNet:
    return _posenet(ViT(1024, 24, 16, size, drop_path=0.5), joints, size, weights)


def vitpose_h(joints: JointSet = COCO17, size: Size = (256, 192), weights: Path | str | None = None) -> PoseNet:
    return _posenet(ViT(1280, 32, 16, size, drop_path=0.55), joints, size, weights)


def vitpose_b_simple(joints: JointSet = COCO17, size: Size = (256, 192), weights: Path | str | None = None) -> PoseNet:
    return _posenet(ViT(768, 12, 12, size, drop_path=0.3), joints, size, weights, simple=True)


def vitpose_l_simple(joints: JointSet = COCO17, size: Size = (256, 192), weights: Path | str | None = None) -> PoseNet:
    return _posenet(ViT(1024, 24, 16, size, drop_path=0.5), joints, size, weights, simple=True)


def vitpose_h_simple(joints: JointSet = COCO17, size: Size = (256, 192), weights: Path | str | None = None) -> PoseNet:
    return _posenet(ViT(1280, 32, 16, size, drop_path=0.55), joints, size, weights, simple=True)


def _posenet(backbone: ViT, joints: JointSet, size: Size, weights: Path | str | None, simple: bool = False) -> PoseNet:
    trunk = ViTPoseTrunk(backbone, simple)
    kernel = 3 if simple else 1
    head = nn.Conv2d(trunk.channels, len(joints), kernel, padding=kernel // 2)
    nn.init.normal_(head.weight, std=0.001)
    return loaded(PoseNet(Headed(trunk, head), udp_heatmap(), joints, size), weights, from_published)


# ---- published checkpoints -----------------------------------------------------------------------------------------
_RENAMED = (
    (r"^net\.", ""),  # a `PoseNet`'s
    (r"^(keypoint_)?head\.deconv_layers\.", "trunk.decoder."),
    (r"^(keypoint_)?head\.final_layer\.", "head."),
    (r"^backbone\.", "trunk.backbone."),
    (r"\.patch_embed\.(proj|projection)\.", ".patch_embed."),
    # mmpose's names
    (r"\.layers\.(\d+)\.ln([12])\.", r".blocks.\1.norm\2."),
    (r"\.layers\.(\d+)\.attn\.", r".blocks.\1.attn."),
    (r"\.layers\.(\d+)\.ffn\.layers\.0\.0\.", r".blocks.\1.mlp.fc1."),
    (r"\.layers\.(\d+)\.ffn\.layers\.1\.", r".blocks.\1.mlp.fc2."),
    (r"^trunk\.backbone\.ln1\.", "trunk.backbone.last_norm."),
)


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names, or mmpose's, as ours; those of this project stay.

    mmpose has no entry for a class token in its table: then it is zero.
    """
    renamed = {}
    for key, value in state.items():
        ours = key
        for pattern, new in _RENAMED:
            ours = re.sub(pattern, new, ours)
        renamed[ours] = value
    table = renamed.get("trunk.backbone.pos_embed")
    if table is not None and "backbone.patch_embed.projection.weight" in state:
        renamed["trunk.backbone.pos_embed"] = F.pad(table, (0, 0, 1, 0))
    return renamed
