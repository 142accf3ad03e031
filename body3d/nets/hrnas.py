"""HR-NAS: a network of parallel branches whose blocks hold more kernels and tokens than are needed, to be searched.

Ding, Lian, Yang, Wang, Jin, Lu & Luo, "HR-NAS: searching efficient high-resolution neural architectures with lightweight
transformers", CVPR 2021. Every block has channels with depthwise kernels of 3, 5 and 7 and a small transformer beside each other;
how many channels of each and how many tokens a block needs is what the search finds (`learn.hrnas_search`). Modules bear the
names of the authors' code; the number of a path is that of its kernel, also where others are gone.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.checkpoints import load_into, read_published
from body3d.codecs import Codec, Size, msra_heatmap
from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.layers import conv_bn
from body3d.posenet import PoseNet, on_trunk
from body3d.skeletons import COCO17

__all__ = [
    "HRNAS",
    "LightTransformer",
    "Paths",
    "SearchBlock",
    "fit_to",
    "from_published",
    "hrnas_super",
    "hrnas_super_released",
    "search_blocks",
]

KERNELS = (3, 5, 7)
SIDE = 8  # a token is a map of so many cells each way


class Paths(NamedTuple):
    """How many channels of each kernel a block has, and how many tokens."""

    channels: tuple[int, int, int]
    tokens: int = 0


# ---- network -------------------------------------------------------------------------------------------------------
class HRNAS(nn.Module):
    """(B, 3, H, W) to [(B, `channels`, H/4, W/4)]; H and W must be multiples of 32.

    Branch b has `widths[b]` channels, and `depths[b]` blocks between two exchanges; `stem` channels come first and stay while there
    is one branch, which has one block. `expand` times its input's
    channels are in each path of a block, and `tokens` in its transformer (0: none). `spare_norms`: batch norms that the authors'
    code has for distillation and does not use here, so that a state_dict is theirs entry by entry.
    """

    def __init__(
        self,
        widths: Sequence[int] = (18, 36, 72, 144),
        stem: int = 24,
        channels: int = 90,
        expand: int = 4,
        tokens: int = 0,
        spare_norms: bool = False,
        depths: Sequence[int] = (2, 2, 3, 4),
    ):
        super().__init__()
        self.channels = channels

        def block(inputs: int, outputs: int, stride: int = 1) -> SearchBlock:
            paths = Paths((expand * inputs, expand * inputs, expand * inputs), tokens)
            return SearchBlock(inputs, outputs, stride, paths, spare_norms=spare_norms)

        self.downsamples = nn.Sequential(conv_bn(3, stem, 3, 2), conv_bn(stem, stem, 3, 2))
        features: list[nn.Module] = []
        before: Sequence[int] = (stem,)
        for after in ((stem,), widths[:2], widths[:3], widths, widths):
            parallel = ParallelModule(after, depths if len(after) > 1 else (1,), block)
            features += [FusionModule(before, after, block), parallel]
            before = after
        self.features = nn.Sequential(*features)
        self.transform = block(sum(widths), channels)
        _init(self)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        branches = self.features([self.downsamples(image)])
        size = branches[0].shape[-2:]
        together = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in branches]
        return [self.transform(torch.cat(together, 1))]


class ParallelModule(nn.Module):
    """Blocks on each branch, which keep its size and channels."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int], block):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(block(width, width) for _ in range(depth)))
            for width, depth in zip(widths, depths, strict=False)
        )

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        return [branch(x) for branch, x in zip(self.branches, branches, strict=True)]


class FusionModule(nn.Module):
    """Each branch becomes the ReLU of the sum of itself and its neighbours, all through blocks; a new one starts from the coarsest.

    HRNet adds all branches; only neighbours exchange here (section 3.1 of the paper).
    """

    def __init__(self, before: Sequence[int], after: Sequence[int], block):
        super().__init__()
        rows = []
        for i in range(min(len(before), len(after))):
            row: dict[str, nn.Module] = {}
            for j in range(max(0, i - 1), min(len(before), i + 2)):
                if j == i:
                    row[str(j)] = block(before[j], after[i])
                elif j > i:
                    row[str(j)] = nn.Sequential(block(before[j], after[i]), nn.Upsample(scale_factor=2, mode="nearest"))
                else:
                    row[str(j)] = nn.Sequential(block(before[j], after[i], 2))
            rows.append(nn.ModuleDict(row))
        self.kept = len(rows)
        rows += [nn.ModuleDict({"0": block(after[i - 1], after[i], 2)}) for i in range(len(before), len(after))]
        self.fuse_layers = nn.ModuleList(rows)

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        fused: list[Tensor] = []
        for i, row in enumerate(self.fuse_layers):
            assert isinstance(row, nn.ModuleDict)
            if i < self.kept:
                parts = [fuse(branches[int(j)]) for j, fuse in row.items()]
                fused.append(F.relu(torch.stack(parts).sum(0)))
            else:
                fused.append(row["0"](fused[-1]))
        return fused


# ---- the block that is searched ------------------------------------------------------------------------------------
class SearchBlock(nn.Module):
    """(B, I, H, W) to (B, O, H/stride, W/stride): a skip, the paths of three kernels, and a transformer, summed.

    A path is 1x1 to its channels, a depthwise convolution of its kernel and 1x1 back; one batch norm follows the sum of the paths.
    The skip is the identity where nothing changes, else a grouped 1x1 convolution. The scales of the batch norm after a path's
    depthwise convolution, and of that of the tokens, say how much each channel and each token matters.

    `constant`: a number per channel in place of what is gone, so that nothing changes when the last path or token goes.
    """

    constant: nn.Parameter | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        paths: Paths = Paths((0, 0, 0)),
        constant: bool = False,
        spare_norms: bool = False,
    ):
        super().__init__()
        self.inputs, self.outputs, self.stride = inputs, outputs, stride
        self.ops = nn.ModuleDict(
            {
                str(i): nn.Sequential(
                    conv_bn(inputs, channels, 1),
                    conv_bn(channels, channels, kernel, stride, groups=channels),
                    nn.Conv2d(channels, outputs, 1, bias=False),
                )
                for i, (kernel, channels) in enumerate(zip(KERNELS, paths.channels, strict=True))
                if channels
            }
        )
        self.pw_bn = nn.BatchNorm2d(outputs) if len(self.ops) else None
        self.transformer = LightTransformer(paths.tokens, inputs, outputs) if paths.tokens else None
        self.residual = (
            None
            if stride == 1 and inputs == outputs
            else nn.Conv2d(inputs, outputs, 1, stride, groups=math.gcd(inputs, outputs), bias=False)
        )
        self.constant = nn.Parameter(torch.zeros(outputs)) if constant else None
        if spare_norms:
            self.bns = nn.ModuleList(nn.BatchNorm2d(c) for c in paths.channels if c)

    @property
    def paths(self) -> Paths:
        sizes = {int(i): self.get_parameter(f"ops.{i}.2.weight").shape[1] for i in self.ops}
        tokens = 0 if self.transformer is None else self.transformer.input_proj.out_channels
        return Paths((sizes.get(0, 0), sizes.get(1, 0), sizes.get(2, 0)), tokens)

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O h w"]:
        y = x if self.residual is None else self.residual(x)
        if self.pw_bn is not None:
            y = y + self.pw_bn(torch.stack([op(x) for op in self.ops.values()]).sum(0))
        if self.transformer is not None:
            y = y + self.transformer(x, (y.shape[-2], y.shape[-1]))
        return y if self.constant is None else y + self.constant[:, None, None]


class LightTransformer(nn.Module):
    """Tokens that are small maps of the whole image look at one another; (B, I, H, W) to (B, O, *size).

    The image is brought to 8x8 cells, two channels with its coordinates are added, and a 1x1 convolution makes each token a map of
    64 cells, its vector. An encoder layer and a decoder layer with as many learned queries follow; a 1x1 convolution and bilinear
    enlarging lead back. As released, the decoder adds what the queries read to the tokens, not to the queries.

    A token whose scale (`input_norm.weight`) is exactly 0 is gone: no other looks at it, and it gives nothing back.
    """

    def __init__(self, tokens: int, inputs: int, outputs: int, dropout: float = 0.1):
        super().__init__()
        width = SIDE * SIDE
        self.input_proj = nn.Conv2d(inputs + 2, tokens, 1, bias=False)
        self.input_norm = nn.BatchNorm1d(tokens)  # of vectors: `posenet.fused` would take the scales of a 2D one away
        self.encoder = AttentionLayer(width, "self_attn", dropout)
        self.query_embed = nn.Embedding(tokens, width)
        self.decoder = AttentionLayer(width, "multihead_attn", dropout)
        self.reverse_proj = nn.Conv2d(tokens, outputs, 1, bias=False)
        self.reverse_norm = nn.BatchNorm2d(outputs)
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.xavier_uniform_(p)

    def forward(self, x: Float[Tensor, "B I H W"], size: Size) -> Float[Tensor, "B O h w"]:
        small = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        steps = torch.arange(SIDE, device=x.device, dtype=x.dtype)
        steps = (steps - steps.mean()) / steps.std(correction=0)
        y, column = torch.meshgrid(steps, steps, indexing="ij")
        where = torch.stack([column, y]).expand(len(x), 2, SIDE, SIDE)
        tokens = self.input_norm(self.input_proj(torch.cat([small, where], 1)).flatten(2))
        gone = self.input_norm.weight == 0
        # Not infinite: where all are gone, a softmax of nothing would be NaN.
        mask = (gone.to(x.dtype) * (torch.finfo(x.dtype).min / 2)).expand(len(gone), -1)
        seen = self.encoder(tokens, tokens, tokens, mask)
        read = self.decoder(seen, self.query_embed.weight.repeat(len(x), 1, 1), seen, mask)
        maps = torch.where(gone[:, None], 0.0, read).unflatten(2, (SIDE, SIDE))
        back = self.reverse_norm(self.reverse_proj(maps))
        return F.interpolate(back, size=size, mode="bilinear", align_corners=False)


class AttentionLayer(nn.Module):
    """What one head of attention reads is added to `x`, then what an MLP says; a layer norm after each."""

    def __init__(self, width: int, attention: str, dropout: float):
        super().__init__()
        self.attention = attention
        self.add_module(attention, nn.MultiheadAttention(width, 1, dropout, bias=False, batch_first=True))
        self.linear1, self.linear2 = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B N C"],
        query: Float[Tensor, "B N C"],
        memory: Float[Tensor, "B N C"],
        mask: Float[Tensor, "N N"],
    ) -> Float[Tensor, "B N C"]:
        """`mask` is added to what each query (row) makes of each key (column)."""
        read = self.get_submodule(self.attention)(query, memory, memory, attn_mask=mask, need_weights=False)[0]
        x = self.norm1(x + self.dropout(read))
        return self.norm2(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x))))))


@torch.no_grad()
def _init(net: nn.Module) -> None:
    """As released for heat maps: convolutions normal with deviation 0.001."""
    for conv in net.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.normal_(conv.weight, std=0.001)


# ---- sizes ---------------------------------------------------------------------------------------------------------
def search_blocks(net: nn.Module) -> Iterator[tuple[str, SearchBlock]]:
    """The searched blocks of a network, by name."""
    return ((name, module) for name, module in net.named_modules() if isinstance(module, SearchBlock))


def fit_to(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give every searched block of `net` the channels and tokens that a state_dict of a searched network has."""
    rows = lambda key: len(state[key]) if key in state else 0
    for name, block in list(search_blocks(net)):
        channels = tuple(rows(f"{name}.ops.{i}.1.1.weight") for i in range(len(KERNELS)))
        paths = Paths(channels, rows(f"{name}.transformer.input_norm.weight"))  # type: ignore[arg-type]
        constant = f"{name}.constant" in state
        net.set_submodule(name, SearchBlock(block.inputs, block.outputs, block.stride, paths, constant))


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names as those of a trunk with a head on it; ours stay."""
    renamed = {re.sub(r"^net\.(?=trunk\.|head\.)", "", key): value for key, value in state.items()}
    if any(key.startswith("trunk.") for key in renamed):
        return renamed
    return {
        f"head.{key.removeprefix('classifier.')}" if key.startswith("classifier.") else f"trunk.{key}": value
        for key, value in renamed.items()
    }


def hrnas_super(
    joints: JointSet = COCO17,
    codec: Codec = msra_heatmap(),
    size: Size = (256, 192),
    weights: Path | str | None = None,
    tokens: int = 64,
) -> PoseNet:
    """The network that the search starts from, 64 tokens in every block; 13.9 million weights.

    `weights`: a checkpoint of this project, also of a searched network: its sizes are in it.
    """
    return _on(HRNAS(tokens=tokens), joints, codec, size, weights)


def hrnas_super_released(
    joints: JointSet = COCO17,
    codec: Codec = msra_heatmap(),
    size: Size = (256, 192),
    weights: Path | str | None = None,
) -> PoseNet:
    """As the authors' key-point configuration has it, without transformers: 10.1 million weights, and 0.1 that nothing reads there.

    `weights`: a checkpoint of the authors in that form, or else as `hrnas_super`.
    """
    return _on(HRNAS(), joints, codec, size, weights)


def _on(trunk: HRNAS, joints: JointSet, codec: Codec, size: Size, weights: Path | str | None) -> PoseNet:
    net = on_trunk(trunk, codec, joints, size)
    if weights is not None:
        state = {key: value for key, value in from_published(read_published(weights)).items() if ".bns." not in key}
        if not any(".ops." in key or key.endswith(".constant") for key in state):
            raise InputError(f"{weights} holds no network of HR-NAS: it has no searched blocks")
        fit_to(net.net, state)
        load_into(net.net, state, weights)
        net.eval()
    return net
