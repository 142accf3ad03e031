"""Poseur: joints are queries that begin at a coarse regression and walk to their places by deformable attention.

Mao, Ge, Shen, Tian, Wang, Wang & van den Hengel, "Poseur: Direct human pose regression with transformers", ECCV 2022. As released:
no encoder layers (the memory is the maps with their positions), values projected after sampling, references not cut off from the
gradient between layers, and an own branch beside the refined reference in each layer's answer.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.attention import DeformableDecoderLayer, Pyramid, refine, sine_encoding, sine_positions
from body3d.codecs import RLE, Likelihood, RealNVP, Size
from body3d.joint_set import JointSet
from body3d.nets.hrnet import HRNet
from body3d.nets.resnet import resnet50
from body3d.posenet import PoseNet, loaded
from body3d.skeletons import COCO17

__all__ = ["Poseur", "disturbed", "from_published", "poseur_hrnet_w32", "poseur_hrnet_w48", "poseur_r50"]


class Poseur(nn.Module):
    """(B, 3, H, W) to the coarse answer and those of the decoder's layers, each with the flow that supervises it (RLE).

    The trunk's `pyramid` gives maps of `widths` channels. `noise` (3 in one of the authors' configurations, else 0): in training,
    so many times more the queries begin where four random joints are moved far away, and the decoder's answers to that count too.
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
        noise: int = 0,
    ):
        super().__init__()
        self.trunk, self.noise = trunk, noise
        self.neck = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, channels, 1, bias=False), nn.GroupNorm(32, channels)) for width in widths
        )
        self.level_embeds = nn.Parameter(torch.randn(len(widths), channels))
        self.fc_coord, self.fc_sigma = nn.Linear(channels, 2 * joints), nn.Linear(channels, 2 * joints)
        self.pos_trans, self.pos_trans_norm = nn.Linear(2 * channels, channels), nn.LayerNorm(channels)
        self.pos_embed = nn.Parameter(torch.randn(joints, channels))
        self.decoder = nn.ModuleList(
            DeformableDecoderLayer(channels, heads, len(widths), points, hidden, dropout, project_after=True)
            for _ in range(layers)
        )
        branches = lambda active: nn.ModuleList(_branch(channels, active) for _ in range(layers))
        self.coord_branches, self.output_branches = branches(True), branches(True)
        self.sigma_branches = branches(False)
        self.enc_flow, self.dec_flow = RealNVP(), RealNVP()
        for layer in (self.fc_coord, self.fc_sigma):
            nn.init.xavier_uniform_(layer.weight, gain=0.01)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Likelihood]:
        maps = [neck(features) for neck, features in zip(self.neck, self.trunk.pyramid(image), strict=True)]
        coarse, memory = self.coarse(maps[-1]), self.memory(maps)
        reference = coarse.xy.detach() + 0.5
        stages = [coarse]
        for _ in range(self.noise if self.training else 0):
            stages += self.decode(disturbed(reference), memory)
        return [*stages, *self.decode(reference, memory)]

    def coarse(self, features: Float[Tensor, "B C h w"]) -> Likelihood:
        """The coordinates' linear layer is divided by the length of its input, as RLE's is."""
        pooled = features.mean((2, 3))
        fractions = F.linear(F.normalize(pooled, dim=1), self.fc_coord.weight, self.fc_coord.bias).unflatten(1, (-1, 2))
        return Likelihood(fractions - 0.5, self.fc_sigma(pooled).sigmoid().unflatten(1, (-1, 2)), self.enc_flow)

    def memory(self, maps: Sequence[Float[Tensor, "B C _ _"]]) -> list[Tensor]:
        memory = []
        for features, level in zip(maps, self.level_embeds, strict=True):
            channels, height, width = features.shape[1:]
            position = sine_positions(height, width, channels, -0.5, features.device) + level
            memory.append(features + position.T.unflatten(1, (height, width)))
        return memory

    def queries(self, reference: Float[Tensor, "B J 2"]) -> Float[Tensor, "B J C"]:
        """The keypoint encoder: sines of the coarse place, and of the same clamped to the crop."""
        both = torch.stack([reference, reference.clamp(0, 1)], -2)
        half = self.pos_trans.out_features // 2
        return self.pos_trans_norm(self.pos_trans(sine_encoding(both, half).flatten(-3)))

    def decode(self, reference: Float[Tensor, "B J 2"], memory: Sequence[Tensor]) -> list[Likelihood]:
        x, stages = self.queries(reference), []
        for i, layer in enumerate(self.decoder):
            x = layer(x, self.pos_embed[None], reference, memory)
            reference = refine(reference, self.coord_branches[i](x))
            xy, sigma = reference + self.output_branches[i](x), self.sigma_branches[i](x).sigmoid()
            stages.append(Likelihood(xy - 0.5, sigma, self.dec_flow))
        return stages


def disturbed(reference: Float[Tensor, "B J 2"], moved: int = 4, variance: float = 0.2) -> Float[Tensor, "B J 2"]:
    """`moved` joints of each pose, drawn at random, moved by normal numbers of that variance, cut to a size of 1."""
    chosen = torch.rand(reference.shape[:2], device=reference.device).argsort(-1) < moved
    noise = (variance**0.5 * torch.randn_like(reference)).clamp(-1, 1)
    return torch.where(chosen[..., None], (reference + noise).clamp(-0.7, 1.7), reference)


def _branch(channels: int, active: bool) -> nn.Sequential:
    between = [nn.ReLU()] if active else []
    last = nn.Linear(channels, 2)
    nn.init.xavier_uniform_(last.weight, gain=0.01)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(channels, channels), *between, nn.Linear(channels, channels), *between, last)


# ---- the authors' networks -----------------------------------------------------------------------------------------
def poseur_r50(joints: JointSet = COCO17, size: Size = (256, 192), weights: Path | str | None = None) -> PoseNet:
    trunk = resnet50()
    return _posenet(Poseur(trunk, trunk.widths, len(joints)), joints, size, weights)


def poseur_hrnet_w32(joints: JointSet = COCO17, size: Size = (256, 192), weights: Path | str | None = None) -> PoseNet:
    trunk = HRNet(32, all_branches=True)
    return _posenet(Poseur(trunk, trunk.widths, len(joints)), joints, size, weights)


def poseur_hrnet_w48(joints: JointSet = COCO17, size: Size = (384, 288), weights: Path | str | None = None) -> PoseNet:
    trunk = HRNet(48, all_branches=True)
    return _posenet(Poseur(trunk, trunk.widths, len(joints)), joints, size, weights)


def _posenet(net: Poseur, joints: JointSet, size: Size, weights: Path | str | None) -> PoseNet:
    return loaded(PoseNet(net, RLE(places="msra"), joints, size), weights, from_published)


# ---- published checkpoints -----------------------------------------------------------------------------------------
_RENAMED = (
    (r"^net\.", ""),  # a `PoseNet`'s
    (r"^backbone\.", "trunk."),
    (r"^neck\.convs\.(\d+)\.conv\.", r"neck.\1.0."),
    (r"^neck\.convs\.(\d+)\.gn\.", r"neck.\1.1."),
    (r"^keypoint_head\.(transformer\.)?", ""),
    (r"^(fc_\w+)\.linear\.", r"\1."),
    (r"^pos_embed\.weight", "pos_embed"),
    (r"^decoder\.layers\.", "decoder."),
    (r"\.attentions\.0\.attn\.in_proj_", ".self_attn.qkv."),
    (r"\.attentions\.0\.attn\.out_proj\.", ".self_attn.proj."),
    (r"\.attentions\.1\.", ".cross_attn."),
    (r"\.value_proj_weight\.weight", ".value_proj.weight"),
    (r"\.value_proj_bias\.weight", ".value_proj.bias"),
    (r"\.ffns\.0\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffns\.0\.layers\.1\.", ".mlp.fc2."),
    (r"\.norms\.(\d)\.", lambda found: f".norm{int(found[1]) + 1}."),
    (r"^fc_coord_output_branches\.", "output_branches."),
    (r"^fc_(coord|sigma)_branches\.", r"\1_branches."),
    (r"^sigma_branches\.(\d+)\.2\.linear\.", r"sigma_branches.\1.2."),
)


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names as ours; those of this project stay.

    The authors' value projections are stored as (heads x inputs, outputs of a head).
    """
    renamed = {}
    for key, value in state.items():
        ours = key
        for pattern, new in _RENAMED:
            ours = re.sub(pattern, new, ours)
        if key.endswith(".value_proj_weight.weight"):
            inputs = len(value) // len(state[key.replace("_weight.weight", "_bias.weight")])
            value = value.unflatten(0, (-1, inputs)).mT.flatten(0, 1)
        elif key.endswith(".value_proj_bias.weight"):
            value = value.flatten()
        renamed[ours] = value
    return renamed
