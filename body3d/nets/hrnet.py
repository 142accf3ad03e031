"""HRNet: branches at strides 4, 8, 16 and 32 side by side, which exchange what they see after every few blocks.

Sun, Xiao, Liu & Wang, "Deep high-resolution representation learning for human pose estimation", CVPR 2019. Modules bear the names
of the authors' code.
"""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.codecs import Codec, Size, msra_heatmap
from body3d.joint_set import JointSet
from body3d.layers import BasicBlock, Bottleneck, conv_bn, init_kaiming
from body3d.posenet import PoseNet, loaded, on_trunk
from body3d.skeletons import COCO17

__all__ = ["HRNet", "HighResolutionModule", "hrnet_w32", "hrnet_w48"]


class HRNet(nn.Module):
    """(B, 3, H, W) to the finest branch, [(B, width, H/4, W/4)]; H and W must be multiples of 32.

    Branch b has `width` * 2**b channels (`widths`). `modules` exchange units in stages 2, 3 and 4, which have as many branches;
    `blocks` residual blocks per branch in each. With `all_branches` the last unit computes all of them (`pyramid`), which pose
    estimation does not need and published pose weights do not have.
    """

    def __init__(
        self,
        width: int = 32,
        modules: Sequence[int] = (1, 4, 3),
        blocks: int = 4,
        stem: int = 64,
        all_branches: bool = False,
    ):
        super().__init__()
        self.channels = width
        self.conv1 = nn.Conv2d(3, stem, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.conv2 = nn.Conv2d(stem, stem, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(stem)
        features = 64 * Bottleneck.expansion
        self.layer1 = nn.Sequential(Bottleneck(stem, 64), *(Bottleneck(features, 64) for _ in range(3)))
        self.widths = widths = tuple(width * 2**b for b in range(4))
        self.transition1 = _transition([features], widths[:2])
        self.stage2 = _stage(widths[:2], modules[0], blocks)
        self.transition2 = _transition(widths[:2], widths[:3])
        self.stage3 = _stage(widths[:3], modules[1], blocks)
        self.transition3 = _transition(widths[:3], widths)
        self.stage4 = _stage(widths, modules[2], blocks, last=4 if all_branches else 1)
        init_kaiming(self)

    def pyramid(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The branches after the last exchange, finest first: one, or four with `all_branches`."""
        x = F.relu(self.bn1(self.conv1(image)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        branches = [self.layer1(x)]
        for transition, stage in (
            (self.transition1, self.stage2),
            (self.transition2, self.stage3),
            (self.transition3, self.stage4),
        ):
            # A new branch starts from the coarsest; the others go on as they are, but for the first change of width.
            branches = [step(branches[min(i, len(branches) - 1)]) for i, step in enumerate(transition)]
            branches = stage(branches)
        return branches

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        return self.pyramid(image)[:1]


class HighResolutionModule(nn.Module):
    """Residual blocks on each branch, then each output is the ReLU of the sum of all branches, brought to its resolution.

    `outputs` is how many of the branches come out, finest first.
    """

    def __init__(self, widths: Sequence[int], blocks: int = 4, outputs: int | None = None):
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(BasicBlock(w, w) for _ in range(blocks))) for w in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_exchange(widths, i, j) for j in range(len(widths))) for i in range(outputs or len(widths))
        )

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        branches = [blocks(x) for blocks, x in zip(self.branches, branches, strict=True)]
        fused = []
        for row in self.fuse_layers.children():
            parts = [fuse(x) for fuse, x in zip(row.children(), branches, strict=True)]
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            fused.append(F.relu(total))
        return fused


def _exchange(widths: Sequence[int], to: int, source: int) -> nn.Module:
    """From branch `source` to the width and resolution of branch `to`."""
    if source == to:
        return nn.Identity()
    if source > to:
        up = nn.Upsample(scale_factor=2 ** (source - to), mode="nearest")
        return nn.Sequential(*conv_bn(widths[source], widths[to], 1, active=False), up)
    steps = [conv_bn(widths[source], widths[source], 3, 2) for _ in range(to - source - 1)]
    return nn.Sequential(*steps, conv_bn(widths[source], widths[to], 3, 2, active=False))


def _transition(before: Sequence[int], after: Sequence[int]) -> nn.ModuleList:
    """Adapts the width of each branch where it changes and starts one more from the coarsest."""
    kept = [nn.Identity() if b == a else conv_bn(b, a, 3) for b, a in zip(before, after, strict=False)]
    return nn.ModuleList([*kept, nn.Sequential(conv_bn(before[-1], after[-1], 3, 2))])


def _stage(widths: Sequence[int], modules: int, blocks: int, last: int | None = None) -> nn.Sequential:
    outputs = [None] * (modules - 1) + [last]
    return nn.Sequential(*(HighResolutionModule(widths, blocks, out) for out in outputs))


# ---- published sizes -----------------------------------------------------------------------------------------------
def hrnet_w32(
    joints: JointSet = COCO17,
    codec: Codec = msra_heatmap(),
    size: Size = (256, 192),
    weights: Path | str | None = None,
) -> PoseNet:
    """28.5 million weights. `weights`: a checkpoint of the authors or of mmpose (with `codec` SimCC: of either's SimCC).

    The default codec is how those were trained and are read; at 384x288 they are read the same, but trained with sigma 3.
    """
    return loaded(on_trunk(HRNet(32), codec, joints, size), weights)


def hrnet_w48(
    joints: JointSet = COCO17,
    codec: Codec = msra_heatmap(),
    size: Size = (256, 192),
    weights: Path | str | None = None,
) -> PoseNet:
    """63.6 million weights; else as `hrnet_w32`."""
    return loaded(on_trunk(HRNet(48), codec, joints, size), weights)
