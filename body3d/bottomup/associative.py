"""Associative embedding: heat maps of joints and, beside each, a map of tags that are near each other within a person.

Newell, Huang & Deng, "Associative embedding: end-to-end learning for joint detection and grouping", NeurIPS 2017: the tags have no
values that they ought to have; a loss pulls those of a person together and pushes those of different people apart. `AEHourglass`
is the paper's network as released (princeton-vl/pose-ae-train), `ae_hrnet_w32` mmpose's; HigherHRNet is beside this file, and how
people are grouped.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.bottomup.grouping import Grouped, Reading, group, quarter, refine
from body3d.bottomup.people import Frame, cells_of, fit_frame, labelled, parabola, surest_first
from body3d.checkpoints import filled, to_headed
from body3d.codecs.base import Size, swap_joints
from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.nets.hrnet import HRNet
from body3d.nets3d.orpm import heat_of_all
from body3d.posenet import IMAGENET, PLAIN, Headed, Normalise, evaluating
from body3d.skeletons import COCO17
from body3d.types import Keypoints2D

__all__ = [
    "AEHourglass", "Associative", "TagMaps", "ae_hourglass_4", "ae_hrnet_w32", "find", "heat_loss", "in_our_names",
    "load_weights", "tag_loss", "tags_at",
]  # fmt: skip


# ---- networks ------------------------------------------------------------------------------------------------------
class AEHourglass(nn.Module):
    """(B, 3, H, W) to one (B, `maps`, H/4, W/4) per stack; H and W must be multiples of 64.

    Single 3x3 convolutions stand where stacked hourglasses have residuals, `width` channels grow by 128 per halving, and nothing is
    normalised. Of 68 published maps 17 are heat and 17 are tags; nothing reads the others. Modules bear the release's names.
    """

    def __init__(self, stacks: int = 4, maps: int = 68, width: int = 256, depth: int = 4, growth: int = 128):
        super().__init__()
        pool = nn.MaxPool2d(2)
        self.pre = nn.Sequential(_Conv(3, 64, 7, 2), _Conv(64, 128), pool, _Conv(128, 128), _Conv(128, width))
        same = lambda: _Conv(width, width)
        self.features = nn.ModuleList(
            nn.Sequential(_Level(depth, width, growth), same(), same()) for _ in range(stacks)
        )
        self.outs = nn.ModuleList(_Conv(width, maps, 1, active=False) for _ in range(stacks))
        merge = lambda inputs: nn.ModuleDict({"conv": _Conv(inputs, width, 1, active=False)})
        self.merge_features = nn.ModuleList(merge(width) for _ in range(stacks - 1))
        self.merge_preds = nn.ModuleList(merge(maps) for _ in range(stacks - 1))

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        x, out = self.pre(image), []
        for i, stack in enumerate(self.features):
            features = stack(x)
            out.append(self.outs[i](features))
            if i < len(self.merge_preds):
                back = self.get_submodule(f"merge_preds.{i}.conv")(out[-1])
                x = x + back + self.get_submodule(f"merge_features.{i}.conv")(features)
        return out


class _Conv(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, active: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.relu(x, inplace=True) if self.active else x


class _Level(nn.Module):
    """One halving of an hourglass, and those within it."""

    def __init__(self, depth: int, width: int, growth: int):
        super().__init__()
        wider = width + growth
        self.up1, self.low1 = _Conv(width, width), _Conv(width, wider)
        self.low2 = _Level(depth - 1, wider, growth) if depth > 1 else _Conv(wider, wider)
        self.low3 = _Conv(wider, width)

    def forward(self, x: Tensor) -> Tensor:
        below = self.low3(self.low2(self.low1(F.max_pool2d(x, 2))))
        return self.up1(x) + F.interpolate(below, scale_factor=2.0, mode="nearest")


# ---- losses --------------------------------------------------------------------------------------------------------
def heat_loss(
    pred: Float[Tensor, "B J h w"], target: Float[Tensor, "B J h w"], mask: Float[Tensor, "B h w"]
) -> Float[Tensor, " B"]:
    """The mean of the squared errors of each image, times `mask`: 0 where people are not labelled."""
    return ((pred - target).square() * mask[:, None]).mean((1, 2, 3))


def tag_loss(
    tags: Float[Tensor, "N J"],
    known: Bool[Tensor, "N J"],
    form: Literal["released", "paper", "mmpose"] = "released",
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(push, pull) of one image, from the tags read at everybody's joints; who has no joint counts for nothing.

    pull is the mean over people of the mean squared distance of their tags from their mean. With d the differences of two people's
    means, push is the sum of exp(-d^2) over all pairs n != m, divided by 2 N (N - 1), as released. "paper" (equation 1): the sum,
    not the mean, over joints, and exp(-d^2 / 2) over all pairs, n = m too, by N^2. "mmpose": n = m counts as well and the half is
    missing (its `push_loss_factor` brings it back). What must not divide by 0 adds 1e-6, as released.
    """
    weight = known.to(tags)
    joints = weight.sum(1)
    there = (joints > 0).to(tags)
    people = there.sum()
    mean = (tags * weight).sum(1) / joints.clamp_min(1)
    squares = ((tags - mean[:, None]).square() * weight).sum(1)
    pair = there[:, None] * there[None]
    distance = (mean[:, None] - mean[None]).square()
    if form == "paper":
        alike = ((-0.5 * distance).exp() * pair).sum()
        return alike / people.square().clamp_min(1), squares.sum() / people.clamp_min(1)
    pull = (squares / joints.clamp_min(1)).sum() / (people + 1e-6)
    alike = ((-distance).exp() * pair).sum()
    ordered = people * (people - 1) + 1e-6
    if form == "mmpose":
        return torch.where(people > 1, alike / ordered, 0), pull
    return 0.5 * (alike - people) / ordered, pull


def tags_at(
    tags: Float[Tensor, "J h w"], people: Keypoints2D, size: Size
) -> tuple[Float[Tensor, "N J"], Bool[Tensor, "N J"]]:
    """The tags at the joints of one image's people, and which joints are known and in view."""
    cell, inside = cells_of(people.xy, size, (tags.shape[-2], tags.shape[-1]))
    joint = torch.arange(len(tags), device=tags.device)
    return tags[joint, cell[..., 1], cell[..., 0]], inside & (people.conf > 0)


# ---- a network with its maps ---------------------------------------------------------------------------------------
class TagMaps(NamedTuple):
    heat: Float[Tensor, "B J h w"]
    tags: Float[Tensor, "B T h w"] | None  # T is J; None: this output has none


class Associative(nn.Module):
    """A network of heat and tags, what it is shown, and how it is read.

    `net` gives a list of maps, (B, C, h, w) each: first one of heat per joint, then one of tags per joint if there are as many.
    Images are RGB in 0..1 whose sides are multiples of `multiple`; `find` brings the `side` ("shorter" or "longer") of an image to
    `length` pixels. Of several outputs of one size the last is read; of several sizes, the mean on the finest grid.
    """

    def __init__(
        self,
        net: nn.Module,
        joints: JointSet = COCO17,
        normalise: Normalise = IMAGENET,
        multiple: int = 32,
        side: Literal["shorter", "longer"] = "shorter",
        length: int = 512,
        reading: Reading = Reading(window=5, enlarged=True),
    ):
        super().__init__()
        self.net, self.joints, self.normalise, self.multiple = net, joints, normalise, multiple
        self.side, self.length, self.reading = side, length, reading

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[TagMaps]:
        if any(n % self.multiple for n in image.shape[-2:]):
            raise InputError(
                f"this network sees images whose sides are multiples of {self.multiple}, got {image.shape[-2]} x "
                f"{image.shape[-1]} (height x width): pad them, or let `find` do it"
            )
        J = len(self.joints)
        raw = self.net(self.normalise(image))
        return [TagMaps(maps[:, :J], maps[:, J : 2 * J] if maps.shape[1] >= 2 * J else None) for maps in raw]

    def loss(
        self,
        image: Float[Tensor, "B 3 H W"],
        people: Sequence[Keypoints2D],
        unlabelled: Sequence[Float[Tensor, "_ 4"]] | None = None,
        sigma: float = 2.0,
        weight: float = 1e-3,
    ) -> Float[Tensor, ""]:
        """The mean over outputs and images of `heat_loss` + `weight` x (push + pull), where an output has tags.

        `people` (N, J) and `unlabelled`: per image, who is labelled, and the boxes of those who are not. `sigma` is in cells, and
        bumps lie at the exact place, where the release has the nearest cell. HigherHRNet's code adds up its two outputs; this is
        half as much.
        """
        size = (image.shape[-2], image.shape[-1])
        for p in people:
            if p.joints != self.joints:
                raise InputError(
                    f"this network speaks of {self.joints.name}, the targets are {p.joints.name}: convert them "
                    "(Keypoints2D.convert)"
                )
        losses = []
        for heat, tags in self(image):
            grid = (heat.shape[-2], heat.shape[-1])
            target = torch.stack([heat_of_all(p.xy, p.conf > 0, size, grid, sigma) for p in people]).to(heat)
            mask = heat.new_ones(len(heat), *grid)
            if unlabelled is not None:
                mask = torch.stack([labelled(boxes, size, grid) for boxes in unlabelled]).to(heat)
            total = heat_loss(heat, target, mask)
            if tags is not None:
                both = [torch.stack(tag_loss(*tags_at(t, p, size))).sum() for t, p in zip(tags, people, strict=True)]
                total = total + weight * torch.stack(both)
            losses.append(total.mean())
        return torch.stack(losses).mean()

    def answer(self, outputs: Sequence[TagMaps]) -> tuple[Float[Tensor, "B J h w"], Float[Tensor, "B J h w"]]:
        """Heat and tags on the finest grid of the outputs."""
        by_size = {maps.heat.shape[-1]: maps.heat for maps in outputs}
        finest = by_size[max(by_size)]
        size = (finest.shape[-2], finest.shape[-1])
        heat = torch.stack([_to(maps, size) for maps in by_size.values()]).mean(0)
        tags = [maps.tags for maps in outputs if maps.tags is not None][-1]
        return heat, _to(tags, size)


def _to(maps: Float[Tensor, "B C h w"], size: Size) -> Float[Tensor, "B C H W"]:
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


@torch.no_grad()
def find(
    net: Associative,
    image: np.ndarray,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    fill_in: bool = False,
    fewest: int = 3,
) -> Keypoints2D:
    """Everybody in an RGB image (H, W, 3) of 8 bits and any size: (N, J) in its pixels, surest first.

    The image is brought to the network's size and surrounded with black. With several `scales` (the release: 0.5, 1, 2), and with
    `flip`, heat is the mean, at most 1; tags stand side by side, those of the scales around 1 alone (of the nearest to 1, if there
    are none). `fill_in` adds the second pass (`refine`). Groups of less than `fewest` joints, which the release keeps, are nobody:
    a single peak is a group. `conf` is the heat, 0 for joints that were not found; with nobody in the image N is 0. InputError for
    anything but such an image.
    """
    frame = fit_frame(image, net.side, net.length, net.multiple, scales)
    with evaluating(net):
        heat, tags = _maps_of(net, image, frame, scales, flip)
    grid = (heat.shape[-2], heat.shape[-1])
    rows, columns = frame.inside(grid)
    heat, tags = heat[:, :rows, :columns], tags[:, :, :rows, :columns]
    found = group(heat, tags, net.joints, net.reading)
    kept = (found.score > 0).sum(1) >= fewest
    found = Grouped(*(values[kept] for values in found))
    if fill_in:
        found = refine(found, heat, tags)
    joint = torch.arange(len(net.joints), device=heat.device).expand(found.score.shape).flatten()
    shift = (quarter if net.reading.quarter_cell else parabola)(heat, joint, found.xy.flatten(0, 1))
    cells = found.xy + shift.unflatten(0, found.score.shape)
    return surest_first(frame.to_image(cells, grid), found.score, net.joints)


def _maps_of(
    net: Associative, image: np.ndarray, frame: Frame, scales: Sequence[float], flip: bool
) -> tuple[Float[Tensor, "J h w"], Float[Tensor, "J T h w"]]:
    """Heat and tags of all test scales on one grid: the box's pixels, or the maps of the largest scale."""
    device = next(net.parameters()).device
    near = [s for s in scales if abs(s - 1) < 0.5] or [min(scales, key=lambda s: abs(s - 1))]
    grid = frame.box if net.reading.enlarged else None
    heat, tags = torch.zeros((), device=device), []
    for at in sorted(scales, reverse=True):
        seen = frame.show(image, at, device=device)
        for turned in (False, True) if flip else (False,):
            both = net.answer(net(seen.flip(-1) if turned else seen))
            if turned:
                both = [swap_joints(maps.flip(-1), net.joints.flip) for maps in both]
            grid = grid or (both[0].shape[-2], both[0].shape[-1])
            here, tag = (_to(maps, grid)[0] for maps in both)
            heat = heat + here / (len(scales) * (1 + flip))
            if at in near:
                tags.append(tag)
    return heat.clamp_max(1), torch.stack(tags, 1)


# ---- published sizes -----------------------------------------------------------------------------------------------
def ae_hourglass_4(joints: JointSet = COCO17, weights: Path | str | None = None) -> Associative:
    """The paper's network, 138.9 million weights, for images of 512 x 512. `weights`: the authors' checkpoint in PyTorch."""
    net = AEHourglass(4, 4 * len(joints))
    reading = Reading(window=3, threshold=0.1, quarter_cell=True)
    return load_weights(Associative(net, joints, PLAIN, 64, "longer", 512, reading), weights)


def ae_hrnet_w32(joints: JointSet = COCO17, weights: Path | str | None = None) -> Associative:
    """HRNet with heat and tags at a quarter, 28.5 million weights. `weights`: mmpose's checkpoint."""
    trunk = HRNet(32)
    return load_weights(Associative(Headed(trunk, nn.Conv2d(trunk.channels, 2 * len(joints), 1)), joints), weights)


def load_weights(net: Associative, path: Path | str | None) -> Associative:
    """Fill the network from a checkpoint in its published names or ours, and put it into eval mode; None leaves it as it is.

    InputError as of `load_into`.
    """
    filled(net.net, path, lambda state: in_our_names(net.net, state))
    return net if path is None else net.eval()


def in_our_names(net: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published names, or ours with `net.` before them, as those of `net`; the release has its trainer's before them."""
    if isinstance(net, Headed):
        return to_headed(state, net.get_submodule("head"))
    ours = net.state_dict()

    def bare(key: str) -> str:
        parts = key.split(".")
        tails = (".".join(parts[i:]) for i in range(min(4, len(parts))))
        return next((tail for tail in tails if tail in ours), key)

    return {bare(key): value for key, value in state.items()}
