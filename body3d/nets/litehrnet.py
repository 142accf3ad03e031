"""Lite-HRNet: HRNet's branches with blocks in which channels are weighed, not mixed.

Yu, Xiao, Gao, Yuan, Zhang, Sang & Wang, "Lite-HRNet: a lightweight high-resolution network", CVPR 2021. HRNet's residual blocks
become shuffle blocks (Ma et al., "ShuffleNet V2", ECCV 2018): that is the naive form. Both 1x1 convolutions of these, which cost
most, then become weights of the channels: the first comes of all branches at once (`CrossResolutionWeighting`), the second of the
channels' means over the image (`SpatialWeighting`). Modules bear the names of the authors' code and of mmpose's.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.codecs import Codec, Size, msra_heatmap
from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.posenet import PoseNet, loaded, on_trunk
from body3d.skeletons import COCO17

__all__ = [
    "ConditionalChannelWeighting",
    "CrossResolutionWeighting",
    "LiteHRNet",
    "LiteModule",
    "ShuffleUnit",
    "SpatialWeighting",
    "litehrnet_18",
    "litehrnet_30",
    "naive_litehrnet_18",
    "naive_litehrnet_18_wide",
]

STEM = 32  # channels


class LiteHRNet(nn.Module):
    """(B, 3, H, W) to [(B, widths[0], H/4, W/4)]; H and W must be multiples of 32.

    Stages 0, 1, 2 have 2, 3, 4 branches and `modules` exchange units of two blocks each; branch b has `widths[b]` channels, an even
    number. `naive`: shuffle blocks instead of conditional channel weighting. `released`: exchange as the authors' code does, see
    `LiteModule`.
    """

    def __init__(
        self,
        modules: Sequence[int] = (2, 4, 2),
        widths: Sequence[int] = (40, 80, 160, 320),
        naive: bool = False,
        released: bool = True,
    ):
        super().__init__()
        if len(modules) != 3 or len(widths) != 4 or any(w % 2 for w in widths):
            raise InputError(f"three numbers of modules and four even widths were expected, got {modules} and {widths}")
        self.channels = widths[0]
        self.stem = Stem()
        before: Sequence[int] = (STEM,)
        for stage, count in enumerate(modules):
            after = widths[: stage + 2]
            self.add_module(f"transition{stage}", _transition(before, after))
            self.add_module(
                f"stage{stage}",
                nn.Sequential(*(LiteModule(after, naive=naive, released=released) for _ in range(count))),
            )
            before = after
        self.stages = len(modules)
        self.head_layer = IterativeHead(widths)
        _init(self)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        branches = [self.stem(image)]
        for stage in range(self.stages):
            steps = self.get_submodule(f"transition{stage}").children()
            branches = [step(branches[min(i, len(branches) - 1)]) for i, step in enumerate(steps)]
            branches = self.get_submodule(f"stage{stage}")(branches)
        return self.head_layer(branches)[:1]


class LiteModule(nn.Module):
    """Blocks on all branches, then each branch gets the ReLU of the sum of all, brought to its width and resolution.

    The authors' code (`released`) differs from HRNet's exchange, and so from the paper's, in two ways that published weights need:
    what comes of the finest branch counts twice in each sum, and the coarser branches get the sum of the finest (before its ReLU)
    where HRNet gives them the branch itself.
    """

    def __init__(self, widths: Sequence[int], blocks: int = 2, naive: bool = False, released: bool = True):
        super().__init__()
        self.naive, self.released = naive, released
        if naive:
            self.layers: nn.Module = nn.ModuleList(
                nn.Sequential(*(ShuffleUnit(width) for _ in range(blocks))) for width in widths
            )
        else:
            self.layers = nn.Sequential(*(ConditionalChannelWeighting(widths) for _ in range(blocks)))
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_exchange(widths, i, j) for j in range(len(widths))) for i in range(len(widths))
        )

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        if self.naive:
            branches = [layer(x) for layer, x in zip(self.layers.children(), branches, strict=True)]
        else:
            branches = self.layers(branches)
        fused = []
        for i, row in enumerate(self.fuse_layers.children()):
            parts = [fuse(x) for fuse, x in zip(row.children(), branches, strict=True)]
            total = 2 * parts[0] if self.released else parts[0]
            for part in parts[1:]:
                total = total + part
            if self.released and i == 0:
                branches = [total, *branches[1:]]
            fused.append(F.relu(total))
        return fused


# ---- blocks --------------------------------------------------------------------------------------------------------
class ConditionalChannelWeighting(nn.Module):
    """Half the channels of every branch: weighed across resolutions, convolved one by one, weighed by their means; then interleaved
    with the other half, which is left as it is."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        halves = [width // 2 for width in widths]
        self.cross_resolution_weighting = CrossResolutionWeighting(halves)
        self.depthwise_convs = nn.ModuleList(_conv(c, c, 3, groups=c, active=None) for c in halves)
        self.spatial_weighting = nn.ModuleList(SpatialWeighting(c) for c in halves)

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        kept, seen = zip(*(x.chunk(2, 1) for x in branches), strict=True)
        seen = self.cross_resolution_weighting(list(seen))
        layers = zip(self.depthwise_convs, self.spatial_weighting, strict=True)
        seen = [weigh(conv(x)) for x, (conv, weigh) in zip(seen, layers, strict=True)]
        return [_interleave(a, b) for a, b in zip(kept, seen, strict=True)]


class CrossResolutionWeighting(nn.Module):
    """Every channel of every branch times a weight in 0..1 that differs from place to place (section 3.2, H_s).

    The weights come of all branches, averaged to the coarsest resolution, by two 1x1 convolutions; nearest upsampling brings them
    to each branch.
    """

    def __init__(self, widths: Sequence[int], reduction: int = 8):
        super().__init__()
        self.widths = list(widths)
        total = sum(widths)
        self.conv1 = _conv(total, total // reduction, 1)
        self.conv2 = _conv(total // reduction, total, 1, active=nn.Sigmoid)

    def weights(self, branches: list[Tensor]) -> list[Tensor]:
        """At the coarsest branch's resolution."""
        size = (branches[-1].shape[-2], branches[-1].shape[-1])
        together = torch.cat([F.adaptive_avg_pool2d(x, size) for x in branches[:-1]] + branches[-1:], 1)
        return list(self.conv2(self.conv1(together)).split(self.widths, 1))

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        pairs = zip(branches, self.weights(branches), strict=True)
        return [x * F.interpolate(weight, size=x.shape[-2:], mode="nearest") for x, weight in pairs]


class SpatialWeighting(nn.Module):
    """Every channel times a weight in 0..1 that follows from the channels' means over the image (section 3.2, F_s)."""

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        self.conv1 = _conv(channels, channels // reduction, 1, norm=False)
        self.conv2 = _conv(channels // reduction, channels, 1, norm=False, active=nn.Sigmoid)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        return x * self.conv2(self.conv1(x.mean((2, 3), keepdim=True)))


class ShuffleUnit(nn.Module):
    """ShuffleNet V2's block: half the channels through 1x1, depthwise 3x3 and 1x1 convolutions, the other half beside them."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.branch2 = nn.Sequential(
            _conv(half, half, 1), _conv(half, half, 3, groups=half, active=None), _conv(half, half, 1)
        )

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        kept, seen = x.chunk(2, 1)
        return _interleave(kept, self.branch2(seen))


class Stem(nn.Module):
    """A 3x3 convolution of stride 2 and a shuffle block of stride 2, `STEM` channels."""

    def __init__(self):
        super().__init__()
        half = STEM // 2
        self.conv1 = _conv(3, STEM, 3, 2)
        self.branch1 = nn.Sequential(_conv(half, half, 3, 2, groups=half, active=None), _conv(half, half, 1))
        self.expand_conv = _conv(half, STEM, 1)
        self.depthwise_conv = _conv(STEM, STEM, 3, 2, groups=STEM, active=None)
        self.linear_conv = _conv(STEM, half, 1)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        a, b = self.conv1(image).chunk(2, 1)
        return _interleave(self.branch1(a), self.linear_conv(self.depthwise_conv(self.expand_conv(b))))


class IterativeHead(nn.Module):
    """From coarse to fine: a branch and what came of the coarser one, enlarged, through a separable 3x3 convolution."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        coarse_first = tuple(reversed(widths))
        self.projects = nn.ModuleList(
            nn.ModuleDict(
                {
                    "depthwise_conv": _conv(c, c, 3, groups=c, active=None),
                    "pointwise_conv": _conv(c, coarse_first[min(i + 1, len(widths) - 1)], 1),
                }
            )
            for i, c in enumerate(coarse_first)
        )

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        """Finest first, as they came."""
        out: list[Tensor] = []
        for x, project in zip(reversed(branches), self.projects, strict=True):
            if out:
                x = x + F.interpolate(out[-1], size=x.shape[-2:], mode="bilinear", align_corners=True)
            for layer in project.children():
                x = layer(x)
            out.append(x)
        return out[::-1]


def _interleave(a: Float[Tensor, "B C h w"], b: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
    """a0 b0 a1 b1 ...: the channel shuffle of two groups."""
    return torch.stack([a, b], 2).flatten(1, 2)


def _conv(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    *,
    groups: int = 1,
    norm: bool = True,
    active: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution, batch norm and activation by the names that mmpose gives them; a bias where there is no norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=not norm)
    layers: list[tuple[str, nn.Module]] = [("conv", conv)]
    if norm:
        layers.append(("bn", nn.BatchNorm2d(outputs)))
    if active is not None:
        layers.append(("activate", active()))
    return nn.Sequential(OrderedDict(layers))


def _separable(inputs: int, outputs: int, stride: int, active: bool = True) -> nn.Sequential:
    """A depthwise 3x3 and a 1x1 convolution with their norms as entries 0 1 2 3, and a ReLU if `active`."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        *([nn.ReLU()] if active else []),
    )


def _exchange(widths: Sequence[int], to: int, source: int) -> nn.Module:
    """From branch `source` to the width and resolution of branch `to`."""
    if source == to:
        return nn.Identity()
    start, end = widths[source], widths[to]
    if source > to:
        up = nn.Upsample(scale_factor=2 ** (source - to), mode="nearest")
        return nn.Sequential(nn.Conv2d(start, end, 1, bias=False), nn.BatchNorm2d(end), up)
    steps = [_separable(start, start, 2) for _ in range(to - source - 1)]
    return nn.Sequential(*steps, _separable(start, end, 2, active=False))


def _transition(before: Sequence[int], after: Sequence[int]) -> nn.ModuleList:
    """Adapts the width of each branch where it changes and starts one more from the coarsest."""
    kept = [nn.Identity() if b == a else _separable(b, a, 1) for b, a in zip(before, after, strict=False)]
    return nn.ModuleList([*kept, nn.Sequential(_separable(before[-1], after[-1], 2))])


@torch.no_grad()
def _init(net: nn.Module) -> None:
    """As released: normal with deviation 0.001, no bias."""
    for conv in net.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.normal_(conv.weight, std=0.001)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)


# ---- published sizes -----------------------------------------------------------------------------------------------
def litehrnet_18(
    joints: JointSet = COCO17,
    codec: Codec = msra_heatmap(),
    size: Size = (256, 192),
    weights: Path | str | None = None,
) -> PoseNet:
    """1.1 million weights. `weights`: a checkpoint of the authors or of mmpose.

    The default codec is how those were trained and are read; at 384x288 they are read the same, but trained with sigma 3.
    """
    return loaded(on_trunk(LiteHRNet(), codec, joints, size), weights)


def litehrnet_30(
    joints: JointSet = COCO17,
    codec: Codec = msra_heatmap(),
    size: Size = (256, 192),
    weights: Path | str | None = None,
) -> PoseNet:
    """1.8 million weights; else as `litehrnet_18`."""
    return loaded(on_trunk(LiteHRNet((3, 8, 3)), codec, joints, size), weights)


def naive_litehrnet_18(
    joints: JointSet = COCO17,
    codec: Codec = msra_heatmap(),
    size: Size = (256, 192),
    weights: Path | str | None = None,
) -> PoseNet:
    """Shuffle blocks, 0.8 million weights (the paper has 0.7); else as `litehrnet_18`."""
    return loaded(on_trunk(LiteHRNet(widths=(30, 60, 120, 240), naive=True), codec, joints, size), weights)


def naive_litehrnet_18_wide(
    joints: JointSet = COCO17,
    codec: Codec = msra_heatmap(),
    size: Size = (256, 192),
    weights: Path | str | None = None,
) -> PoseNet:
    """Shuffle blocks and as many channels as `litehrnet_18` has, 1.3 million weights; else as that."""
    return loaded(on_trunk(LiteHRNet(naive=True), codec, joints, size), weights)
