"""Online knowledge distillation: branches on one stem learn together, taught by a weighted mean of their own maps.

Li, Ye, Song, Huang & Pan, "Online knowledge distillation for efficient pose estimation", ICCV 2021. Whoever learns is as small as
what is used in the end: one branch on the stem (`deployed`). Two things are as released and open in the paper: the gradient of the
distillation reaches the teacher too (`OKDHPTask.detached`), and the maps of every stage of a branch learn from the teacher, not
the last alone. In one the release errs, and the paper is followed: the teacher is made of each branch's last maps (with more than
two stacks its code takes others).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.codecs import Codec, Heatmap, Size
from body3d.codecs.peaks import quarter_shift
from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.layers import conv_bn, top_down
from body3d.learn.pose2d import Batch, PoseRun, PoseTask
from body3d.nets.hourglass import StackedHourglass, through_stacks, through_stem
from body3d.nets.small import SmallTrunk
from body3d.posenet import PoseNet, of_maps
from body3d.skeletons import LSP14, MPII16
from body3d.train import Task

__all__ = [
    "Branched", "FeatureAggregation", "OKDHPRun", "OKDHPTask", "deployed", "okdhp_hourglass_4", "okdhp_small", "pixel_kl",
]  # fmt: skip

WEIGHT_ENSEMBLE, WEIGHT_KL = 6.0, 5.0  # of the released configs


def pixel_kl(
    student: Float[Tensor, "B J h w"], teacher: Float[Tensor, "B J h w"], weight: Float[Tensor, "B J"]
) -> Float[Tensor, ""]:
    """KL(teacher || student) of the softmax over the cells of each map, summed over joints, per image and per cell.

    Maps are multiplied by the joint's weight first: without weight both are flat, and nothing is learnt. A constant added to a map
    changes nothing.
    """
    student, teacher = ((maps * weight[..., None, None]).flatten(2).log_softmax(-1) for maps in (student, teacher))
    return F.kl_div(student, teacher, reduction="sum", log_target=True) / (len(student) * student.shape[-1])


class FeatureAggregation(nn.Module):
    """The feature aggregation unit: how much each branch counts, for each joint, by what the stem sees.

    Convolutions of several sizes side by side are summed and averaged over the image; from `hidden` numbers of it follow a score
    per branch and joint, of which a softmax is taken over the branches. As released, nothing non-linear is between the two linear
    layers.
    """

    def __init__(self, channels: int, joints: int, branches: int, kernels: Sequence[int] = (3, 5, 7), hidden: int = 64):
        super().__init__()
        self.branches = branches
        self.convs = nn.ModuleList(conv_bn(channels, channels, kernel, bias=True) for kernel in kernels)
        self.squeeze = nn.Linear(channels, hidden)
        self.scores = nn.Linear(hidden, branches * joints)

    def forward(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B R J"]:
        seen = torch.stack([conv(features) for conv in self.convs]).sum(0).mean((-1, -2))
        return self.scores(self.squeeze(seen)).unflatten(-1, (self.branches, -1)).softmax(1)


class Branched(nn.Module):
    """(B, 3, H, W) to the maps (B, J, h, w) of each stage of each branch, branch after branch, and then those of the ensemble.

    `stem` gives `channels` maps, of which each branch makes a list of stages. Together with the stem's, a branch's weights are
    those of the network that it is without the others (`state`).
    """

    def __init__(self, stem: nn.Module, branches: Sequence[nn.Module], channels: int, joints: int):
        super().__init__()
        self.stem, self.branches = stem, nn.ModuleList(branches)
        self.aggregation = FeatureAggregation(channels, joints, len(self.branches))

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        features = self.stem(image)
        branches = [branch(features) for branch in self.branches]
        last = torch.stack([stages[-1] for stages in branches], 1)
        ensemble = (last * self.aggregation(features)[..., None, None]).sum(1)
        return [*(maps for stages in branches for maps in stages), ensemble]

    def state(self, branch: int) -> dict[str, Tensor]:
        """The weights of one branch on the stem, in the names of the network without branches (its PoseNet's `net`)."""
        return self.stem.state_dict() | self.branches[branch].state_dict()


def deployed(net: PoseNet, branch: int) -> PoseNet:
    """One branch alone, with the same weights in memory and in the same mode: what is used in the end.

    InputError if there are no branches.
    """
    many = _branched(net)
    alone = nn.Sequential(many.stem, many.branches[branch])
    return PoseNet(alone, net.codec, net.joints, net.size, net.normalise).train(net.training)


def _branched(net: PoseNet) -> Branched:
    if not isinstance(net.net, Branched):
        raise InputError(
            f"{type(net.net).__name__} has no branches to distil; build one with learn.okdhp, such as okdhp_small"
        )
    return net.net


# ---- training ------------------------------------------------------------------------------------------------------
class OKDHPTask(Task):
    """The crops of a 2D task; branches and ensemble learn from the truth, branches from the ensemble too.

    The weight of the distillation grows from exp(-5) to 1 of `WEIGHT_KL` over `ramp` epochs. `detached`: the teacher learns from
    the truth alone.
    """

    main = "net"

    def __init__(self, pose: PoseTask, ramp: int = 60, detached: bool = False):
        _branched(cast(PoseNet, pose.modules["net"]))
        self.modules, self.pose, self.ramp, self.detached, self.epoch = pose.modules, pose, ramp, detached, 0

    def steps(self) -> int:
        return self.pose.steps()

    def groups(self, name: str) -> list[dict]:
        return self.pose.groups(name)

    def batches(self, epoch: int, random: torch.Generator) -> Iterator[Batch]:
        self.epoch = epoch
        return self.pose.batches(epoch, random)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Sums over all stages of all branches, as in the paper."""
        xy, conf = batch.target.xy, batch.target.conf
        *students, ensemble = self.modules["net"](batch.image)
        truth = lambda maps: self.pose.net.codec.loss(maps, xy, conf, self.pose.size)
        teacher = ensemble.detach() if self.detached else ensemble
        distilled = torch.stack([pixel_kl(maps, teacher, conf) for maps in students]).sum()
        return {
            "branches": torch.stack([truth(maps) for maps in students]).sum(),
            "ensemble": WEIGHT_ENSEMBLE * truth(ensemble),
            "distillation": WEIGHT_KL * ramp(self.epoch, self.ramp) * distilled,
        }

    def validate(self, model: nn.Module) -> dict[str, float]:
        """The ensemble's figures, and the first one of each branch alone."""
        net = cast(PoseNet, model)
        figures = self.pose.validate(net)
        name = next(iter(figures))
        alone = [self.pose.validate(deployed(net, i))[name] for i in range(len(_branched(net).branches))]
        return figures | {f"branch {i}: {name}": figure for i, figure in enumerate(alone)}

    def picture(self, model: nn.Module) -> UInt8[np.ndarray, "H W 3"]:
        return self.pose.picture(model)


def ramp(epoch: int, length: int) -> float:
    """exp(-5 (1 - epoch / length)^2), 1 from `length` epochs on (Laine & Aila, ICLR 2017)."""
    return math.exp(-5 * max(0.0, 1 - epoch / length) ** 2) if length else 1.0


@dataclass(frozen=True)
class OKDHPRun(PoseRun):
    """A 2D network's run whose `net` has branches."""

    ramp: int = 60
    detached: bool = False

    def task(self, path: Path | None, device: torch.device) -> OKDHPTask:  # type: ignore[override]
        return OKDHPTask(super().task(path, device), self.ramp, self.detached)


# ---- the networks, parted ------------------------------------------------------------------------------------------
class _HourglassStem(nn.Module):
    def __init__(self, net: StackedHourglass):
        super().__init__()
        self.conv1, self.bn1 = net.conv1, net.bn1
        self.layer1, self.layer2, self.layer3 = net.layer1, net.layer2, net.layer3

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        return through_stem(self, image)


class _HourglassBranch(nn.Module):
    def __init__(self, net: StackedHourglass):
        super().__init__()
        self.hg, self.res, self.fc, self.score = net.hg, net.res, net.fc, net.score
        self.fc_, self.score_ = net.fc_, net.score_

    def forward(self, x: Float[Tensor, "B C h w"]) -> list[Tensor]:
        return through_stacks(self, x)


class _SmallStem(nn.Module):
    def __init__(self, trunk: SmallTrunk):
        super().__init__()
        self.trunk = nn.ModuleDict({"stem": trunk.stem})

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        return self.trunk["stem"](image)


class _SmallBranch(nn.Module):
    def __init__(self, trunk: SmallTrunk, head: nn.Module):
        super().__init__()
        self.trunk = nn.ModuleDict({"stages": trunk.stages, "across": trunk.across, "last": trunk.last})
        self.head = head

    def forward(self, x: Float[Tensor, "B C h w"]) -> list[Tensor]:
        stages, across = (list(self.trunk[name].children()) for name in ("stages", "across"))
        maps = []
        for stage in stages:
            x = stage(x)
            maps.append(x)
        return [self.head(self.trunk["last"](top_down(maps, across)))]


def okdhp_hourglass_4(
    joints: JointSet = MPII16,
    codec: Codec = Heatmap(sigma=2.0, decoder=quarter_shift, rounded=True),
    size: Size = (256, 256),
    branches: int = 3,
    stacks: int = 4,
    width: int = 256,
) -> PoseNet:
    """The paper's: three branches of four stacks. A branch's `state` fits `nets.hourglass_4`."""
    nets = [StackedHourglass(stacks, len(joints), width) for _ in range(branches)]
    parts = [_HourglassBranch(net) for net in nets]
    return of_maps(Branched(_HourglassStem(nets[0]), parts, width, len(joints)), codec, joints, size)


def okdhp_small(
    joints: JointSet = LSP14,
    codec: Codec = Heatmap(sigma=1.5),
    size: Size = (128, 96),
    branches: int = 3,
    widths: Sequence[int] = (32, 64, 128, 192),
    depths: Sequence[int] = (2, 2, 2, 2),
    channels: int = 48,
) -> PoseNet:
    """Three of `nets.small` on one stem of two convolutions. A branch's `state` fits `nets.small.small` of the same codec."""
    trunks = [SmallTrunk(widths, depths, channels) for _ in range(branches)]
    parts = [_SmallBranch(trunk, codec.head(channels, len(joints), size)) for trunk in trunks]
    return of_maps(Branched(_SmallStem(trunks[0]), parts, widths[0], len(joints)), codec, joints, size)
