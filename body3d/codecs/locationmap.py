"""Location maps: for every joint, maps of its x, y and z in 3D, read where the joint is in the image.

`LocationMap` is VNect's, for one person: each joint is read at its own place. `RedundantMap` is ORPM's, for several: a person's
joints are written at all joints of the same limb and at the torso, so that what another person hides can be read elsewhere. Places
are pixels of the crop or image; 3D is metres, relative to the root joint, along the camera's axes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from body3d.codecs.base import Size, to_grid
from body3d.codecs.heatmap import gaussian_maps
from body3d.codecs.peaks import peaks
from body3d.losses import weighted_mean
from body3d.skeletons import MUPOTS17, MUPOTS21, JointSet

__all__ = ["LocationMap", "LocationMaps", "RedundantMap", "from_parents", "read_location", "to_parents"]


# ---- relative to parents -------------------------------------------------------------------------------------------
def to_parents(xyz: Float[Tensor, "*B J 3"], joints: JointSet) -> Float[Tensor, "*B J 3"]:
    """Each joint from its parent, in place of from wherever; a root is 0."""
    parents = torch.tensor([i if p < 0 else p for i, p in enumerate(joints.parents)], device=xyz.device)
    return xyz - xyz[..., parents, :]


def from_parents(deltas: Float[Tensor, "*B J 3"], joints: JointSet) -> Float[Tensor, "*B J 3"]:
    """The inverse, with the root at 0: the sum of the bones on the way from the root."""
    way = torch.zeros(len(joints), len(joints))
    for i in range(len(joints)):
        at = i
        while joints.parents[at] >= 0:
            way[i, at] = 1
            at = joints.parents[at]
    return way.to(deltas) @ deltas


# ---- one person ----------------------------------------------------------------------------------------------------
class LocationMaps(NamedTuple):
    heat: Float[Tensor, "B J h w"]
    location: Float[Tensor, "B J 3 h w"]  # from the root
    delta: Float[Tensor, "B J 3 h w"]  # from the parent; for training only


@dataclass(frozen=True)
class LocationMap:
    """VNect's: heat maps, and location maps that count where the heat map of their joint is.

    Mehta et al., "VNect: real-time 3D human pose estimation with a single RGB camera", SIGGRAPH 2017. Maps hold units of `unit`
    metres (10 mm in the released weights). The loss of a location map is || H (X - X*) ||^2 with the true heat map H: nothing is
    asked for where that is 0, beyond 3 `sigma` cells. `location`: the weight of location and parent-relative maps against heat
    maps; it and `sigma` are ours, the paper does not state them.
    """

    joints: JointSet = MUPOTS21
    root: str = "pelvis"
    unit: float = 0.01
    sigma: float = 1.5
    location: float = 1e-3

    def heat(self, xy: Float[Tensor, "B J 2"], size: Size, grid: Size) -> Float[Tensor, "B J h w"]:
        """Bumps at crop pixels `xy`, cut at 3 sigma."""
        maps = gaussian_maps(to_grid(xy, size, grid), grid, self.sigma)
        return torch.where(maps > _CUT, maps, 0)

    def target(self, xy: Float[Tensor, "B J 2"], xyz: Float[Tensor, "B J 3"], size: Size, grid: Size) -> LocationMaps:
        """What the network should put out; the location maps are constant, as the loss looks at one place of each only."""
        relative = xyz - xyz[:, [self.joints.index(self.root)]]
        everywhere = lambda value: (value / self.unit)[..., None, None].expand(*value.shape, *grid)
        return LocationMaps(self.heat(xy, size, grid), everywhere(relative), everywhere(to_parents(xyz, self.joints)))

    def loss(
        self,
        maps: LocationMaps,
        xy: Float[Tensor, "B J 2"],
        xyz: Float[Tensor, "B J 3"],
        weight: Float[Tensor, "B J"],
        weight3d: Float[Tensor, "B J"],
        size: Size,
    ) -> Float[Tensor, ""]:
        """`weight` of what is known in 2D, `weight3d` of what is known in 3D too; 0 teaches nothing."""
        target = self.target(xy, xyz, size, (maps.heat.shape[-2], maps.heat.shape[-1]))
        heat = (maps.heat - target.heat).square().sum((-1, -2))
        seen = target.heat.unsqueeze(2)
        squares = lambda ours, theirs: (seen * (ours - theirs)).square().sum((-1, -2, -3))
        space = squares(maps.location, target.location) + squares(maps.delta, target.delta)
        return weighted_mean(heat, weight) + self.location * weighted_mean(space, weight * weight3d)

    def decode(
        self, maps: LocationMaps, size: Size
    ) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J 3"], Float[Tensor, "B J"]]:
        """Pixels of the crop, metres from the root, and the height of the heat map."""
        xy, top = self.places(maps.heat, size)
        return xy, self.read(maps.location, xy, size), top.clamp_min(0)

    def places(self, heat: Float[Tensor, "B J h w"], size: Size) -> tuple[Float[Tensor, "B J 2"], Float[Tensor, "B J"]]:
        """The highest pixels of the heat maps, enlarged to the crop."""
        return peaks(F.interpolate(heat, size, mode="bilinear", align_corners=False))

    def read(
        self, location: Float[Tensor, "B J 3 h w"], xy: Float[Tensor, "B J 2"], size: Size
    ) -> Float[Tensor, "B J 3"]:
        """Each joint at its own place, and relative to where the root's maps say that the root is."""
        cells = to_grid(xy, size, (location.shape[-2], location.shape[-1]))
        xyz = self.unit * read_location(location, cells)
        return xyz - xyz[:, [self.joints.index(self.root)]]


_CUT = torch.exp(torch.tensor(-4.5)).item()  # a Gaussian at 3 sigma


def read_location(location: Float[Tensor, "B J 3 h w"], cells: Float[Tensor, "B J 2"]) -> Float[Tensor, "B J 3"]:
    """The maps of each joint at the cell nearest to its place, or at the border's."""
    height, width = location.shape[-2:]
    x, y = (cells + 0.5).floor().long().unbind(-1)
    index = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    return location.flatten(-2).gather(-1, index[..., None, None].expand(-1, -1, 3, 1)).squeeze(-1)


# ---- several people ------------------------------------------------------------------------------------------------
_SIDES = ("right", "left")
# From the torso outwards.
LIMBS = (
    ("head", "head_top"),
    *(tuple(f"{side}_{joint}" for joint in ("shoulder", "elbow", "wrist")) for side in _SIDES),
    *(tuple(f"{side}_{joint}" for joint in ("hip", "knee", "ankle")) for side in _SIDES),
)


@dataclass(frozen=True)
class RedundantMap:
    """Occlusion-robust pose maps (ORPM): as many maps as for one person, in which everybody's whole pose stands several times.

    Mehta et al., "Single-shot multi-person 3D pose estimation from monocular RGB", 3DV 2018. The maps of a joint of a limb are
    written within `radius` cells of all joints of that limb and of the torso's `anchors`; those of other joints at the anchors.
    Where two people's places meet, the one nearer to the camera is written.

    Reading takes the torso at an anchor, and each limb at its joint furthest from the torso that is valid: confident (above
    `confident`), and further than `apart` cells from where another person's same limb is written. The paper compares with the same
    limb's joints; here another's anchors count too, because they carry every limb. A limb without a valid joint is read at an
    anchor.
    """

    joints: JointSet = MUPOTS17
    root: str = "pelvis"
    anchors: tuple[str, ...] = ("neck", "pelvis")
    limbs: tuple[tuple[str, ...], ...] = LIMBS
    unit: float = 0.01
    radius: float = 2.0
    apart: float = 3.0
    confident: float = 0.1

    @property
    def groups(self) -> list[tuple[list[int], list[int]]]:
        """For each limb, and for the torso: its joints, and the joints at which it is written in the order of reading."""
        at = self.joints.indices
        torso = [name for name in self.joints.names if not any(name in limb for limb in self.limbs)]
        limbs = [(at(limb), at(tuple(reversed(limb)) + self.anchors)) for limb in self.limbs]
        return [(at(torso), at(self.anchors)), *limbs]

    def target(
        self, xy: Float[Tensor, "N J 2"], xyz: Float[Tensor, "N J 3"], size: Size, grid: Size
    ) -> tuple[Float[Tensor, "J 3 h w"], Bool[Tensor, "J h w"]]:
        """The maps of N people in one image, and where they are written. `xyz` in the camera's frame (m)."""
        root = xyz[:, [self.joints.index(self.root)]]
        if len(xy) == 0:
            return xyz.new_zeros(len(self.joints), 3, *grid), xyz.new_zeros(len(self.joints), *grid).bool()
        rows, columns = (torch.arange(n, device=xy.device, dtype=xy.dtype) for n in grid)
        x, y = to_grid(xy, size, grid)[..., None, None].unbind(-3)
        near = (columns - x).square() + (rows[:, None] - y).square() <= self.radius**2  # (N, J, h, w)
        written = torch.stack(
            [near[:, places].any(1) for _, places in sorted(self._of_each_joint())], 1
        )  # (N, J, h, w)
        order = torch.where(written, root[:, :, 2, None, None], torch.inf)
        nearest = order.argmin(0)
        relative = (xyz - root) / self.unit
        index = nearest.unsqueeze(1).expand(-1, 3, -1, -1).unsqueeze(0)
        location = relative[..., None, None].expand(-1, -1, -1, *grid).gather(0, index)[0]
        mask = written.any(0)
        return torch.where(mask.unsqueeze(1), location, 0), mask

    def _of_each_joint(self) -> list[tuple[int, list[int]]]:
        return [(joint, places) for joints, places in self.groups for joint in joints]

    def loss(
        self,
        location: Float[Tensor, "B J 3 h w"],
        target: Float[Tensor, "B J 3 h w"],
        mask: Bool[Tensor, "B J h w"],
    ) -> Float[Tensor, ""]:
        """The mean squared error of x, y and z where something is written."""
        return weighted_mean((location - target).square().mean(2), mask.to(location))

    def read(
        self, location: Float[Tensor, "J 3 h w"], xy: Float[Tensor, "N J 2"], conf: Float[Tensor, "N J"], size: Size
    ) -> tuple[Float[Tensor, "N J 3"], Bool[Tensor, " N"]]:
        """The people whose joints were found at `xy`: metres from the root, and who could be read at all.

        `conf` 0: the joint is hidden or was not found, and its `xy` means nothing.
        """
        cells = to_grid(xy, size, (location.shape[-2], location.shape[-1]))
        there = conf > self.confident
        xyz, legible = xy.new_zeros(*xy.shape[:2], 3), there.any(1)
        for joints, places in self.groups:
            free = there[:, places] & self._isolated(cells[:, places], conf[:, places] > 0)
            # The first valid place; else an anchor that was found; else any joint of the limb that was.
            anchors = torch.tensor([p in self.joints.indices(self.anchors) for p in places], device=xy.device)
            rank = torch.where(free, 3, there[:, places] * (1 + anchors.int()))
            later = torch.arange(len(places), device=xy.device) / len(places)
            best = (rank - later).argmax(1)
            legible = legible & (rank.amax(1) > 0)
            at = cells[:, places].gather(1, best[:, None, None].expand(-1, 1, 2)).expand(-1, len(joints), -1)
            xyz[:, joints] = self.unit * read_location(location[joints].expand(len(xy), -1, -1, -1, -1), at)
        return xyz - xyz[:, [self.joints.index(self.root)]], legible

    def _isolated(self, cells: Float[Tensor, "N K 2"], found: Bool[Tensor, "N K"]) -> Bool[Tensor, "N K"]:
        """Whether a place is further than `apart` from every place of the same kind of every other person."""
        N, K = found.shape
        distance = torch.cdist(cells.flatten(0, 1), cells.flatten(0, 1)).view(N, K, N, K)
        person = torch.arange(N, device=cells.device)
        others = (person[:, None] != person)[:, None, :, None] & found[None, None]
        return ~((distance <= self.apart) & others).flatten(2).any(2)
