"""TFPose: joints are queries that find their places step by step in an encoded feature pyramid.

Mao, Ge, Shen, Tian, Wang & Wang, "TFPose: Direct human pose estimation with transformers", arXiv 2103.15320. Without public code,
what the paper leaves open follows Deformable DETR, on which it builds (Zhu et al., ICLR 2021): group norm after the 1x1
convolutions, a linear layer for the queries' first reference points, no gradient from a layer to the reference of the one before.
The auxiliary heatmaps are read off the encoder's stride-8 map by one deconvolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from body3d.attention import DeformableDecoderLayer, DeformableEncoderLayer, Pyramid, as_maps, refine, sine_positions
from body3d.codecs import Heatmap, Regression, Size
from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.layers import deconv_layers
from body3d.nets.resnet import resnet50
from body3d.posenet import PoseNet, loaded
from body3d.skeletons import COCO17

__all__ = ["TFPose", "TFPoseCodec", "TFPoseStage", "tfpose_r50"]


class TFPoseStage(NamedTuple):
    """What one decoder layer says; the maps, of all layers together, go with the first one in training."""

    xy: Float[Tensor, "B J 2"]  # fractions of the crop
    maps: Float[Tensor, "B J h w"] | None = None


class TFPose(nn.Module):
    """(B, 3, H, W) to one `TFPoseStage` per decoder layer.

    The trunk's `pyramid` gives maps of `widths` channels; `auxiliary` is the index of the one that heatmaps are read off.
    Published: the four stages of a ResNet-50, six layers of encoder and decoder.
    """

    def __init__(
        self,
        trunk: Pyramid,
        widths: Sequence[int],
        joints: int = 17,
        channels: int = 256,
        heads: int = 8,
        layers: int = 6,
        hidden: int = 1024,
        points: int = 4,
        dropout: float = 0.1,
        auxiliary: int = 1,
    ):
        super().__init__()
        self.trunk, self.auxiliary = trunk, auxiliary
        self.neck = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, channels, 1), nn.GroupNorm(min(32, channels // 4), channels))
            for width in widths
        )
        self.level_embeds = nn.Parameter(torch.randn(len(widths), channels))
        sizes = (channels, heads, len(widths), points, hidden, dropout)
        self.encoder = nn.ModuleList(DeformableEncoderLayer(*sizes) for _ in range(layers))
        self.decoder = nn.ModuleList(DeformableDecoderLayer(*sizes) for _ in range(layers))
        self.query = nn.Parameter(torch.randn(joints, channels))
        self.query_position = nn.Parameter(torch.randn(joints, channels))
        self.first_reference = nn.Linear(channels, 2)
        self.steps = nn.ModuleList(_step(channels) for _ in range(layers))
        self.heatmaps = nn.Sequential(deconv_layers(channels, (channels,)), nn.Conv2d(channels, joints, 1))

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[TFPoseStage]:
        memory = self.encode([neck(x) for neck, x in zip(self.neck, self.trunk.pyramid(image), strict=True)])
        stages = [TFPoseStage(xy) for xy in self.decode(memory)]
        if self.training:
            stages[0] = stages[0]._replace(maps=self.heatmaps(memory[self.auxiliary]))
        return stages

    def encode(self, maps: Sequence[Float[Tensor, "B C _ _"]]) -> list[Tensor]:
        shapes = [(x.shape[2], x.shape[3]) for x in maps]
        position = torch.cat([
            sine_positions(*shape, maps[0].shape[1], -0.5, maps[0].device) + level
            for shape, level in zip(shapes, self.level_embeds, strict=True)
        ])  # fmt: skip
        x = torch.cat([features.flatten(2).mT for features in maps], 1)
        for layer in self.encoder:
            x = layer(x, position[None], shapes)
        return as_maps(x, shapes)

    def decode(self, memory: Sequence[Float[Tensor, "B C _ _"]]) -> list[Tensor]:
        """The reference points after each layer."""
        batch, position = len(memory[0]), self.query_position[None]
        x = self.query.expand(batch, -1, -1)
        reference = self.first_reference(position).sigmoid().expand(batch, -1, -1)
        references = []
        for layer, step in zip(self.decoder, self.steps, strict=True):
            x = layer(x, position, reference, memory)
            references.append(refine(reference, step(x)))
            reference = references[-1].detach()
        return references


def _step(channels: int) -> nn.Sequential:
    """A layer's step; its last linear layer starts at zero, so that at first no layer moves a reference point."""
    last = nn.Linear(channels, 2)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU(), last)


@dataclass(frozen=True)
class TFPoseCodec:
    """L1 on the coordinates of each layer, and `weight` times the squared error of the heatmaps where there are any.

    `PoseNet.loss` takes the mean over the layers, so the heatmaps, which come once, count that much less.
    """

    coordinates: Regression = field(default_factory=Regression)
    maps: Heatmap = field(default_factory=Heatmap)
    weight: float = 50.0

    def head(self, channels: int, joints: int, size: Size) -> nn.Module:
        raise InputError("TFPose has heads of its own: its codec goes with it alone, on no other trunk")

    def loss(
        self, raw: TFPoseStage, xy: Float[Tensor, "B J 2"], weight: Float[Tensor, "B J"], size: Size
    ) -> Float[Tensor, ""]:
        loss = self.coordinates.loss(raw.xy, xy, weight, size)
        return loss if raw.maps is None else loss + self.weight * self.maps.loss(raw.maps, xy, weight, size)

    def decode(self, raw: TFPoseStage, size: Size) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        return self.coordinates.decode(raw.xy, size)


def tfpose_r50(joints: JointSet = COCO17, size: Size = (256, 192), weights: Path | str | None = None) -> PoseNet:
    """There are no published weights; `weights` are of this project."""
    trunk = resnet50()
    return loaded(PoseNet(TFPose(trunk, trunk.widths, len(joints)), TFPoseCodec(), joints, size), weights)
