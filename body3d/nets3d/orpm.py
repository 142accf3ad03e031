"""ORPM: 3D poses of everybody in an image in one pass: heat maps, part affinity fields, and redundant location maps.

Mehta et al., "Single-shot multi-person 3D pose estimation from monocular RGB", 3DV 2018. Joints are found in the heat maps and
joined to people by the fields (Cao et al., "Realtime multi-person 2D pose estimation using part affinity fields", CVPR 2017); their
3D is read from the location maps as `codecs.locationmap.RedundantMap` says. No code is published and the paper leaves widths open:
those of the branches are ours.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.codecs.base import Size, from_grid, to_grid
from body3d.codecs.heatmap import gaussian_maps
from body3d.codecs.locationmap import RedundantMap
from body3d.layers import Bottleneck, conv_bn, deconv_layers
from body3d.nets.efficientnet_lite import LitePyramid
from body3d.nets.resnet import resnet50
from body3d.posenet import Trunk
from body3d.skeletons import MUPOTS17, JointSet
from body3d.types import Keypoints2D, Keypoints3D

__all__ = ["ORPM", "ORPMMaps", "affinity_fields", "find_people", "heat_of_all", "orpm", "orpm_lite", "people"]


# ---- network -------------------------------------------------------------------------------------------------------
class ORPMMaps(NamedTuple):
    heat: Float[Tensor, "B J h w"]
    fields: Float[Tensor, "B E 2 h w"]  # one per bone, in the order of `JointSet.bones`
    location: Float[Tensor, "B J 3 h w"]


class ORPM(nn.Module):
    """(B, 3, H, W) to `ORPMMaps` of H/8 x W/8; H and W must be multiples of 16.

    A ResNet-50 to its third stage, and a branch for what is in the image and one for what is in space. `pyramid`: another trunk
    whose features have the maps' size already, and are a multiple of 4 channels.
    """

    def __init__(self, joints: JointSet = MUPOTS17, pyramid: Trunk | None = None):
        super().__init__()
        self.joints = joints
        if pyramid is None:
            resnet = resnet50()
            resnet.layer4 = nn.Identity()  # each branch has a last stage of its own
            branch = lambda outputs: _branch(resnet.widths[2], outputs)
            self.trunk = resnet
        else:
            self.trunk = pyramid
            branch = lambda outputs: _narrow_branch(pyramid.channels, outputs)
        self.image = branch(len(joints) + 2 * len(joints.bones))
        self.space = branch(3 * len(joints))

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> ORPMMaps:
        features = self.trunk(image)[-1]
        seen, J = self.image(features), len(self.joints)
        location = self.space(features).unflatten(1, (J, 3))
        return ORPMMaps(seen[:, :J], seen[:, J:].unflatten(1, (-1, 2)), location)


def _branch(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        Bottleneck(inputs, 256), Bottleneck(inputs, 256), conv_bn(inputs, 256, 1), deconv_layers(256, (256,)),
        conv_bn(256, 128), nn.Conv2d(128, outputs, 1),
    )  # fmt: skip


def _narrow_branch(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        Bottleneck(inputs, inputs // 4), Bottleneck(inputs, inputs // 4), conv_bn(inputs, 64), nn.Conv2d(64, outputs, 1)
    )


def orpm_lite(joints: JointSet = MUPOTS17) -> ORPM:
    """For images of 160 x 160, which it maps to 40 x 40 cells."""
    pyramid = LitePyramid(64, 4)
    return ORPM(joints, pyramid)


def orpm() -> ORPM:
    """17 joints, as in MuPoTS-3D: 17 heat maps, 2 x 16 of fields, 51 location maps."""
    return ORPM(MUPOTS17)


# ---- targets -------------------------------------------------------------------------------------------------------
def heat_of_all(
    xy: Float[Tensor, "N J 2"], visible: Bool[Tensor, "N J"], size: Size, grid: Size, sigma: float = 1.0
) -> Float[Tensor, "J h w"]:
    """The highest of everybody's bumps; `xy` in pixels, `sigma` in cells."""
    maps = gaussian_maps(to_grid(xy, size, grid), grid, sigma) * visible[..., None, None]
    return maps.amax(0) if len(maps) else maps.sum(0)


def affinity_fields(
    xy: Float[Tensor, "N J 2"],
    visible: Bool[Tensor, "N J"],
    size: Size,
    joints: JointSet,
    grid: Size,
    width: float = 1.0,
) -> Float[Tensor, "E 2 h w"]:
    """Along each bone, within `width` cells of it, the direction from parent to child; the mean where several people's lie."""
    start, end = torch.tensor(joints.bones, device=xy.device).mT
    cells = to_grid(xy, size, grid)
    a, b = cells[:, start], cells[:, end]
    length = (b - a).norm(dim=-1, keepdim=True).clamp_min(1e-6)
    along = (b - a) / length
    rows, columns = (torch.arange(n, device=xy.device, dtype=xy.dtype) for n in grid)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    offset = torch.stack([x, y], -1) - a[..., None, None, :]  # (N, E, h, w, 2)
    forward = (offset * along[..., None, None, :]).sum(-1)
    aside = (offset[..., 0] * along[..., None, None, 1] - offset[..., 1] * along[..., None, None, 0]).abs()
    on = (forward >= -0.5) & (forward <= length[..., None] + 0.5) & (aside <= width)
    on = on & (visible[:, start] & visible[:, end])[..., None, None]
    total = torch.einsum("nehw,nec->echw", on.to(xy), along)
    return total / on.sum(0).clamp_min(1)[:, None]


# ---- association ---------------------------------------------------------------------------------------------------
@torch.no_grad()
def find_people(
    heat: Float[Tensor, "J h w"],
    fields: Float[Tensor, "E 2 h w"],
    joints: JointSet = MUPOTS17,
    threshold: float = 0.1,
    agreement: float = 0.3,
    fewest: int = 3,
    samples: int = 10,
) -> tuple[Float[Tensor, "N J 2"], Float[Tensor, "N J"]]:
    """The people in the maps: cells of their joints, and the heat there; 0 where a joint was not found.

    Peaks above `threshold` are candidates. Two of them are a bone as far as the field between them points along it: by the mean
    over `samples` places, of which most must exceed `agreement`. The best pairs are taken first, each candidate once per bone, and
    pairs that share a candidate are one person, unless that person would have a joint twice. Fewer than `fewest` joints are nobody.
    """
    found = [_candidates(maps, threshold) for maps in heat]
    people: dict[tuple[int, int], dict[int, int]] = {}  # a candidate (joint, number) to its person: joint -> number
    pairs = []
    for bone, (parent, child) in enumerate(joints.bones):
        score = _scores(fields[bone], found[parent][0], found[child][0], agreement, samples)
        for i, j in (score > 0).nonzero().tolist():
            pairs.append((score[i, j].item(), bone, (parent, i), (child, j)))
    used: set[tuple[int, tuple[int, int]]] = set()
    for _, bone, a, b in sorted(pairs, key=lambda pair: -pair[0]):
        first, second = people.get(a, {a[0]: a[1]}), people.get(b, {b[0]: b[1]})
        if (bone, a) in used or (bone, b) in used or (first is not second and first.keys() & second.keys()):
            continue
        used |= {(bone, a), (bone, b)}
        person = first | second
        people.update(dict.fromkeys(person.items(), person))

    whole = [p for p in {id(p): p for p in people.values()}.values() if len(p) >= fewest]
    xy, conf = heat.new_zeros(len(whole), len(joints), 2), heat.new_zeros(len(whole), len(joints))
    for n, person in enumerate(whole):
        for joint, number in person.items():
            xy[n, joint], conf[n, joint] = found[joint][0][number], found[joint][1][number]
    best = conf.sum(1).argsort(descending=True)
    return xy[best], conf[best]


def _candidates(heat: Float[Tensor, "h w"], threshold: float) -> tuple[Float[Tensor, "P 2"], Float[Tensor, " P"]]:
    """Peaks of a map, refined by a parabola through the logarithms of three cells along each axis (but not across the border)."""
    top = F.max_pool2d(heat[None, None], 3, 1, 1)[0, 0]
    y, x = ((heat == top) & (heat > threshold)).nonzero().unbind(-1)
    log = F.pad(heat.clamp_min(1e-6).log(), (1, 1, 1, 1), value=torch.nan)
    at = lambda dx, dy: log[y + 1 + dy, x + 1 + dx]
    shift = lambda low, high: 0.5 * (high - low) / (2 * at(0, 0) - low - high).clamp_min(1e-6)
    shifts = torch.stack([shift(at(-1, 0), at(1, 0)), shift(at(0, -1), at(0, 1))], -1)
    return torch.stack([x, y], -1) + shifts.nan_to_num(0).clamp(-0.5, 0.5), heat[y, x]


def _scores(
    field: Float[Tensor, "2 h w"],
    starts: Float[Tensor, "P 2"],
    ends: Float[Tensor, "Q 2"],
    agreement: float,
    samples: int,
) -> Float[Tensor, "P Q"]:
    """How far the field points from each start to each end; 0 where it mostly does not."""
    along = F.normalize(ends[None] - starts[:, None], dim=-1)
    steps = torch.linspace(0, 1, samples).to(field)[:, None, None, None]
    cells = (starts[:, None] * (1 - steps) + ends[None] * steps + 0.5).floor().long()
    height, width = field.shape[-2:]
    seen = field[:, cells[..., 1].clamp(0, height - 1), cells[..., 0].clamp(0, width - 1)]  # (2, S, P, Q)
    agree = (seen * along.movedim(-1, 0).unsqueeze(1)).sum(0)
    return torch.where((agree > agreement).to(field).mean(0) > 0.75, agree.mean(0), 0)


@torch.no_grad()
def people(maps: ORPMMaps, size: Size, codec: RedundantMap | None = None) -> list[tuple[Keypoints2D, Keypoints3D]]:
    """Everybody in each image of a batch, surest first: pixels of the image, and metres from each person's root."""
    codec = codec or RedundantMap()
    out = []
    for heat, fields, location in zip(*maps, strict=True):
        cells, conf = find_people(heat, fields, codec.joints, codec.confident)
        xy = from_grid(cells, (heat.shape[-2], heat.shape[-1]), size)
        xyz, legible = codec.read(location, xy, conf, size)
        certain = torch.ones_like(conf) * legible[:, None]
        out.append((Keypoints2D(xy, conf, codec.joints), Keypoints3D(xyz, certain, codec.joints, "root")))
    return out
