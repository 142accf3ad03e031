"""3D pose as 2D pose plus matching: the library's exemplar whose projection is most like the keypoints, warped onto them.

Chen & Ramanan, "3D Human Pose Estimation = 2D Pose Estimation + Matching", CVPR 2017. A library is 3D poses times virtual cameras.
Two 2D poses are compared over the joints that the query has, after the centre of those joints is put at the origin and their
norm is made 1, so a pair's distance depends on neither where the person stands in the image nor how large.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import roma
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from body3d.camera import Camera
from body3d.datasets.motion import axis_rotations
from body3d.errors import InputError, MissingExtra
from body3d.joint_set import JointSet
from body3d.tensors import Tensors
from body3d.types import Keypoints2D, Keypoints3D

__all__ = ["Library", "Matches", "match", "turntable"]

GROUP = 32  # pairs of which only the best score is kept in the first pass
PAIRS, QUERIES = 256 * GROUP, 128  # at a time: their scores, 4 MB, stay in the cache
FEWEST = 4  # joints: three points fit any triangle
NEAREST = 0.3  # metres from the camera to the nearest joint of a warped exemplar


def turntable(azimuths: int, elevations: Sequence[float], up: tuple[float, float, float]) -> Float[Tensor, "V 3 3"]:
    """World-to-camera rotations: `azimuths` steps of a full turn about `up` at each elevation (degrees, > 0 looks down)."""
    y = -torch.nn.functional.normalize(torch.tensor(up), dim=0)
    x = torch.nn.functional.normalize(torch.linalg.cross(y, torch.eye(3)[y.abs().argmin()]), dim=0)
    level = torch.stack([x, y, torch.linalg.cross(x, y)])
    turns = axis_rotations(torch.arange(azimuths) * (360.0 / azimuths), "y")
    tilts = axis_rotations(torch.tensor(elevations), "x")
    return (tilts[:, None] @ turns @ level).flatten(0, 1)


@dataclass(frozen=True)
class Library:
    """P poses times V views; pair i is pose i // V seen by view i % V."""

    joints: JointSet
    poses: Float[Tensor, "P J 3"]  # metres, from the root, world axes
    views: Float[Tensor, "V 3 3"]  # world to camera axes
    shapes: Float[Tensor, "N J 2"]  # of the N = P V projections: centre 0, norm 1

    @staticmethod
    def build(poses: Keypoints3D, views: Float[Tensor, "V 3 3"], distance: float = 5.0) -> "Library":
        """All poses seen by all views, by a camera `distance` metres from the root (infinity: orthographic).

        A million pairs of 17 joints take 136 MB. InputError if there is no pose, or one that is not complete.
        """
        xyz = poses.xyz.flatten(0, -3)
        if not len(xyz) or not len(views):
            raise InputError(
                f"a library of {len(xyz)} poses and {len(views)} views is empty: give at least one of each"
            )
        if (bad := ~(xyz.isfinite().all(-1) & (poses.conf.flatten(0, -2) > 0))).any():
            names = ", ".join(n for n, b in zip(poses.joints.names, bad.any(0), strict=True) if b)
            raise InputError(
                f"{int(bad.any(1).sum())} of {len(xyz)} poses lack {names}: a library takes complete poses"
            )
        root = poses.joints.parents.index(-1)
        xyz, views = (xyz - xyz[:, root : root + 1]).float(), views.to(xyz)
        shapes = xyz.new_empty(len(xyz), len(views), len(poses.joints), 2)
        for block, out in zip(xyz.split(4096), shapes.split(4096), strict=True):
            seen = block[:, None] @ views.mT
            flat = seen[..., :2] / (1 + seen[..., 2:] / distance)
            out.copy_(normalised(flat, torch.ones_like(flat[..., 0], dtype=torch.bool)))
        return Library(poses.joints, xyz, views, shapes.flatten(0, 1))

    def __len__(self) -> int:
        return len(self.shapes)

    def to(self, device: torch.device | str) -> "Library":
        return Library(self.joints, self.poses.to(device), self.views.to(device), self.shapes.to(device))

    def exemplars(self, pairs: Int[Tensor, "*B"]) -> Float[Tensor, "*B J 3"]:
        """The 3D poses of the pairs: metres, from the root, camera axes."""
        return self.poses[pairs // len(self.views)] @ self.views[pairs % len(self.views)].mT

    def nearest(
        self, xy: Float[Tensor, "Q J 2"], known: Bool[Tensor, "Q J"], k: int, faiss: bool = False
    ) -> tuple[Int[Tensor, "Q k"], Float[Tensor, "Q k"]]:
        """The k nearest pairs of each query, nearest first, and their distances: of two shapes of norm 1, so 0 to 2.

        The search is exact. With `faiss` its flat index is asked instead; it compares whole poses only (InputError).
        """
        k = min(k, len(self))
        query = normalised(xy, known)
        search = self._by_faiss if faiss else self._candidates
        chunks = zip(query.split(QUERIES), known.split(QUERIES), strict=True)
        candidates = torch.cat([search(*chunk, k) for chunk in chunks])
        pairs, distances = [], []
        few = (part.split(8) for part in (query, known, candidates))  # so many shapes stay in the cache
        for q, w, these in zip(*few, strict=True):
            shapes = normalised(self.shapes[these.clamp_max(len(self) - 1)], w[:, None])
            distance = (shapes - q[:, None]).flatten(2).norm(dim=-1).masked_fill(these >= len(self), torch.inf)
            distance, order = distance.topk(k, largest=False)
            pairs.append(these.gather(1, order))
            distances.append(distance)
        return torch.cat(pairs), torch.cat(distances)

    def _candidates(self, query: Float[Tensor, "Q J 2"], known: Bool[Tensor, "Q J"], k: int) -> Int[Tensor, "Q C"]:
        """The pairs of the k groups with the best scores. The k nearest are among them: were one in another group, k groups
        would each hold a nearer one."""
        masks, which = known.unique(dim=0, return_inverse=True)
        out = query.new_empty(len(query), PAIRS)  # memory that is not asked for anew a hundred times
        best = []
        for block in self.shapes.split(PAIRS):
            score = cosines(query, block, masks, which, out[:, : len(block)])
            short = -len(block) % GROUP
            score = torch.nn.functional.pad(score, (0, short), value=-torch.inf) if short else score
            best.append(score.unflatten(1, (-1, GROUP)).amax(-1))
        groups = torch.cat(best, 1)
        groups = groups.topk(min(k, groups.shape[1]), dim=1, sorted=False).indices.sort(dim=1).values
        members = GROUP * groups[:, :, None] + torch.arange(GROUP, device=groups.device)
        return members.flatten(1)  # the last group may reach beyond the library

    def _by_faiss(self, query: Float[Tensor, "Q J 2"], known: Bool[Tensor, "Q J"], k: int) -> Int[Tensor, "Q C"]:
        if not known.all():
            raise InputError(
                f"faiss compares whole poses, {int((~known.all(1)).sum())} of the queries lack joints: leave it off"
            )
        return torch.from_numpy(self._index.search(query.flatten(1).cpu().numpy(), k)[1]).to(query.device)

    @cached_property
    def _index(self):
        try:
            import faiss
        except ImportError as error:
            raise MissingExtra("faiss", "faiss", "matching with faiss=True") from error
        index = faiss.IndexFlatIP(2 * len(self.joints))
        index.add(self.shapes.flatten(1).cpu().numpy())  # type: ignore  # faiss's stubs are of its C++ side
        return index


@dataclass(frozen=True)
class Matches(Tensors):
    """The k exemplars of each person, nearest in 2D first."""

    pairs: Int[Tensor, "*B k"]
    distance: Float[Tensor, "*B k"]  # of the two shapes of norm 1
    strain: Float[Tensor, "*B k"]  # mean |log| change of a bone's length by the warp; 0 without one
    poses: Float[Tensor, "*B k J 3"]  # metres, from the root, camera axes
    conf: Float[Tensor, "*B J"]  # the keypoints': at a joint that is 0 there, the pose is the exemplar's guess
    joints: JointSet

    def weights(self, sigma: float = 0.15, tau: float = 0.05) -> Float[Tensor, "*B k"]:
        """p(X|x) ~ exp(-distance²/sigma²), as the paper reads a match, times exp(-strain²/tau²); they sum to 1.

        Every warped exemplar projects onto the keypoints. What tells them apart is whether its bones are still a person's.
        """
        return torch.softmax(-(self.distance / sigma).square() - (self.strain / tau).square(), -1)

    def best(self) -> Keypoints3D:
        """The exemplar of least strain: best after the warp. Without a warp, the nearest."""
        i = self.strain.argsort(dim=-1, stable=True)[..., :1, None, None]
        return Keypoints3D(self.poses.take_along_dim(i, -3).squeeze(-3), self.conf, self.joints, "root")

    def mean(self) -> Keypoints3D:
        """The mean of the exemplars by `weights`; warped ones keep their projection."""
        return Keypoints3D((self.weights()[..., None, None] * self.poses).sum(-3), self.conf, self.joints, "root")


def normalised(xy: Float[Tensor, "*B J 2"], known: Bool[Tensor, "*#B J"]) -> Float[Tensor, "*B J 2"]:
    """The known joints' centre at 0, their norm 1; unknown joints are 0."""
    w = known[..., None]
    centre = torch.where(w, xy, 0.0).sum(-2, keepdim=True) / w.sum(-2, keepdim=True)
    shape = torch.where(w, xy - centre, 0.0)
    return shape / shape.flatten(-2).norm(dim=-1)[..., None, None].clamp_min(1e-12)


def cosines(
    query: Float[Tensor, "Q J 2"],
    shapes: Float[Tensor, "N J 2"],
    masks: Bool[Tensor, "M J"],
    which: Int[Tensor, " Q"],
    out: Float[Tensor, "Q N"],
) -> Float[Tensor, "Q N"]:
    """Inner products of normalised queries with shapes that are normalised over the query's joints, `masks[which]`; in `out`.

    The shapes come normalised over all joints. A query's centre is 0, so the shape's is of no account to the product. Its norm
    over the n known joints follows from the hidden ones h alone: 1 - Σ |x_h|² - |Σ x_h|² / n, since all x sum to 0.
    """
    torch.mm(query.flatten(1), shapes.flatten(1).mT, out=out)
    hidden = (~masks.all(0)).nonzero()[:, 0]
    if len(hidden):
        x, y = shapes.flatten(1).index_select(1, torch.cat([2 * hidden, 2 * hidden + 1])).mT.chunk(2)
        without = (~masks[:, hidden]).to(shapes)
        lost = (without @ x).square_().addcmul_(s := without @ y, s).div_(masks.sum(1, keepdim=True))
        lost += without @ x.square_().addcmul_(y, y)
        out *= lost.neg_().add_(1).clamp_(min=1e-6).rsqrt_()[which]
    return out


def match(
    keypoints: Keypoints2D,
    library: Library,
    camera: Camera | None = None,
    k: int = 50,
    warp: float = math.inf,
    faiss: bool = False,
) -> Matches:
    """The k exemplars nearest to each person's keypoints, warped onto them: metres, from the root, camera axes.

    With a camera (one for all or one each) rays are compared, after turning the camera towards the person, and the warp is in
    full perspective; without, it is in weak perspective. `faiss` as in `Library.nearest`.

    The paper's warp takes the keypoints as they are: that cuts the error by a third if they are true, and adds to it if they are a
    detector's. With a finite `warp` (metres; 0.05 to 0.1 for a detector's) a joint follows its keypoint by
    1 / (1 + (distance / warp)²) of the way, so an outlier does not bend the pose; 0 keeps the exemplars as they are.

    InputError if the joints are not the library's, a coordinate is not a number, or fewer than four joints are known or differ.
    """
    batch = keypoints.conf.shape[:-1]
    known = (keypoints.conf > 0).reshape(-1, len(keypoints.joints))
    _check(keypoints, library, known)
    pixels = torch.where(keypoints.conf[..., None] > 0, keypoints.xy, 0.0)
    if camera is None:
        xy, turn = pixels.reshape(*known.shape, 2), torch.eye(3).to(pixels)
    else:
        at_origin = replace(camera, R=torch.eye(3).to(camera.R).expand_as(camera.R), t=torch.zeros_like(camera.t))
        rays = at_origin.unproject(pixels, torch.ones_like(keypoints.conf)).reshape(*known.shape, 3)
        turn = _towards(rays, known)
        rays = rays @ turn.mT
        xy = rays[..., :2] / rays[..., 2:]
    pairs, distance = library.nearest(xy, known, k, faiss)
    poses = library.exemplars(pairs)
    strain = torch.zeros_like(distance)
    if warp > 0:
        exemplars, place = poses, _place_weak if camera is None else _place_perspective
        placed, warped = place(exemplars, xy[:, None], known[:, None])
        way = warped - placed
        if math.isfinite(warp):
            way = way * (warp**2 / (warp**2 + way.square().sum(-1, keepdim=True)))
        poses = placed + way
        strain = _strain(poses, exemplars, known[:, None], library.joints)
        root = library.joints.parents.index(-1)
        poses = poses - poses[..., root : root + 1, :]
    poses = poses @ turn.unsqueeze(-3)
    unflat = lambda part: part.reshape(*batch, *part.shape[1:])
    return Matches(unflat(pairs), unflat(distance), unflat(strain), unflat(poses), keypoints.conf, library.joints)


def _check(keypoints: Keypoints2D, library: Library, known: Bool[Tensor, "Q J"]) -> None:
    if keypoints.joints != library.joints:
        raise InputError(
            f"the keypoints are {keypoints.joints.name}, the library holds {library.joints.name}: convert the keypoints first"
        )
    if not keypoints.xy[keypoints.conf > 0].isfinite().all() or not keypoints.conf.isfinite().all():
        raise InputError("the keypoints hold NaN or infinity: give what is unknown the confidence 0")
    if (few := known.sum(-1) < FEWEST).any():
        raise InputError(
            f"{int(few.sum())} of {len(known)} people have fewer than {FEWEST} known joints: leave them out"
        )
    xy = keypoints.xy.reshape(*known.shape, 2)
    extent = torch.where(known[..., None], xy, -torch.inf).amax(1) - torch.where(known[..., None], xy, torch.inf).amin(
        1
    )
    if (flat := extent.amax(-1) <= 0).any():
        raise InputError(f"{int(flat.sum())} of {len(known)} people have all their joints in one place: leave them out")


def _towards(rays: Float[Tensor, "Q J 3"], known: Bool[Tensor, "Q J"]) -> Float[Tensor, "Q 3 3"]:
    """The shortest rotation that takes the middle of the known rays (each with z = 1) to the camera's axis."""
    u, v, _ = ((rays * known[..., None]).sum(1) / known.sum(1, keepdim=True)).unbind(-1)
    tangent = torch.hypot(u, v)
    axis = torch.stack([v, -u, torch.zeros_like(u)], -1) / tangent.clamp_min(1e-9)[:, None]
    return roma.rotvec_to_rotmat(axis * torch.atan(tangent)[:, None])


def _place_weak(
    poses: Float[Tensor, "Q k J 3"], xy: Float[Tensor, "Q 1 J 2"], known: Bool[Tensor, "Q 1 J"]
) -> tuple[Float[Tensor, "Q k J 3"], Float[Tensor, "Q k J 3"]]:
    """The exemplars around the known joints' middle; and these with x and y of the keypoints instead, depths kept.

    The keypoints are in metres at the scale that gives them the exemplar's extent in the image.
    """
    w = known[..., None]
    mean = lambda points: (points * w).sum(-2, keepdim=True) / w.sum(-2, keepdim=True)
    size = lambda points: (points * w).flatten(-2).norm(dim=-1)[..., None, None]
    seen, flat, z = xy - mean(xy), poses[..., :2] - mean(poses[..., :2]), poses[..., 2:]
    warped = torch.where(w, seen * size(flat) / size(seen), flat)
    return torch.cat([flat, z], -1), torch.cat([warped, z], -1)


def _place_perspective(
    poses: Float[Tensor, "Q k J 3"], xy: Float[Tensor, "Q 1 J 2"], known: Bool[Tensor, "Q 1 J"]
) -> tuple[Float[Tensor, "Q k J 3"], Float[Tensor, "Q k J 3"]]:
    """The exemplars where they project best onto the keypoints (x/z, y/z); and these moved onto the keypoints' rays, depths kept.

    The place t makes X + t_x = x (Z + t_z), and y alike, true in least squares over the known joints.
    """
    w = known[..., None]
    mean = lambda points: (points * w).sum(-2, keepdim=True) / w.sum(-2, keepdim=True)
    flat, z = poses[..., :2], poses[..., 2:]
    offset = flat - xy * z
    a, b = (offset - mean(offset)) * w, (xy - mean(xy)) * w
    tz = ((a * b).sum((-2, -1)) / b.square().sum((-2, -1)))[..., None, None]
    depth = z + torch.maximum(tz, NEAREST - z.amin(-2, keepdim=True))
    placed = flat + mean(xy * depth - flat)
    return torch.cat([placed, depth], -1), torch.cat([torch.where(w, xy * depth, placed), depth], -1)


def _strain(
    warped: Float[Tensor, "Q k J 3"], poses: Float[Tensor, "Q k J 3"], known: Bool[Tensor, "Q 1 J"], joints: JointSet
) -> Float[Tensor, "Q k"]:
    """By how much the warp changed the lengths of the bones between known joints: the mean of |log ratio|."""
    parents, children = torch.tensor(joints.bones).mT
    length = lambda xyz: (xyz[..., parents, :] - xyz[..., children, :]).norm(dim=-1).clamp_min(1e-3)
    both = known[..., parents] & known[..., children]
    change = (length(warped) / length(poses)).log().abs()
    return (change * both).sum(-1) / both.sum(-1).clamp_min(1)
