"""A body of capsules: what a solver of least squares can push apart, as SMPLify does (Bogo et al., ECCV 2016, section 3.2).

Each capsule stands for the skin of one joint. Its ends are rigid on the joint and linear in shape; its radius is linear in shape.
SMPLify regresses both from examples and turns the capsules into spheres; here they follow from the mesh in closed form, for any
body, and the distance of two capsules is that of their axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from body3d.body.model import BodyModel, Constants
from body3d.body.parts import body_parts
from body3d.body.subset import SubsetModel
from body3d.tensors import Tensors

__all__ = ["Capsules", "Overlap", "body_capsules", "closest_on_segments"]

# Joints whose skin goes with another's; every other joint with enough skin has its own capsule.
MERGED = {
    "left_collar": "spine3", "right_collar": "spine3",
    "jaw": "head", "left_eye_smplhf": "head", "right_eye_smplhf": "head",
}  # fmt: skip
MIN_VERTICES = 4  # the skin of a joint with fewer is that of its neighbours
CLEARANCE = 0.01  # metres: pairs closer than this in the rest pose of any of the shapes tried are left out
SHAPES = 2.0  # deviations of each coefficient that are tried


@dataclass(frozen=True)
class Overlap(Tensors):
    """Of N pairs of capsules; by either radius the derivative is 1."""

    depth: Float[Tensor, "*B N"]  # metres, negative where there is a gap
    by_ends: Float[Tensor, "*B N 4 3"]  # its derivative by the start and end of the first axis, then of the second


@dataclass(frozen=True, eq=False)
class Capsules(Constants):
    """C capsules on the joints of a tree and the N pairs of them that may collide."""

    joints: tuple[str, ...]  # the joint that each stands for
    ends: SubsetModel = field(repr=False)  # 2 C points: all starts, then all ends
    radius: Float[Tensor, " C"] = field(repr=False)  # metres, of the mean body
    radius_dirs: Float[Tensor, "S C"] = field(repr=False)
    pairs: Int[Tensor, "N 2"] = field(repr=False)

    def radii(self, shape: Float[Tensor, "*B S"]) -> Float[Tensor, "*B C"]:
        """In metres; a shape beyond all people has no negative ones."""
        return (self.radius + shape @ self.radius_dirs[: shape.shape[-1]]).clamp_min(1e-3)

    def overlap(self, ends: Float[Tensor, "*B E 3"], radii: Float[Tensor, "*B C"]) -> Overlap:
        """How deep the capsules of each pair are in each other; `ends` as `self.ends` gives them."""
        start, stop = ends.tensor_split(2, -2)
        first, second = self.pairs.unbind(-1)
        axes = [p[..., i, :] for i in (first, second) for p in (start, stop)]
        s, t, _, normal = closest_on_segments(*(a.detach() for a in axes))
        share = torch.stack([s - 1, -s, 1 - t, t], -1)  # of the normal, by each end
        between = -(share.unsqueeze(-1) * torch.stack(axes, -2)).sum(-2)
        # With the nearest points and the normal held the length has its value and its derivative (they are stationary).
        length = (between * normal).sum(-1)
        depth = radii[..., first] + radii[..., second] - length
        return Overlap(depth, share.unsqueeze(-1) * normal.unsqueeze(-2))

    def chain(self, overlap: Overlap, by: Float[Tensor, "*B 3 E F"]) -> Float[Tensor, "*B N F"]:
        """The derivatives of the depths by what the ends depend on, from those of the ends (the radii not counted)."""
        C = len(self.radius)
        columns = torch.stack([i for c in self.pairs.unbind(-1) for i in (c, c + C)], -1)
        by_all = overlap.by_ends.new_zeros(*overlap.depth.shape, 2 * C, 3)
        by_all.scatter_(-2, columns.unsqueeze(-1).expand(overlap.by_ends.shape), overlap.by_ends)
        return by_all.mT.flatten(-2) @ by.flatten(-3, -2)


def closest_on_segments(
    a: Float[Tensor, "*B 3"], b: Float[Tensor, "*B 3"], c: Float[Tensor, "*B 3"], d: Float[Tensor, "*B 3"]
) -> tuple[Float[Tensor, "*B"], Float[Tensor, "*B"], Float[Tensor, "*B"], Float[Tensor, "*B 3"]]:
    """The nearest points a + s (b - a) and c + t (d - c) of two segments: s, t, their distance and the unit vector from
    the second to the first; where the segments cross, that vector stands on both.
    """
    u, v, w = b - a, d - c, a - c
    dot = lambda x, y: (x * y).sum(-1)
    tiny = torch.finfo(a.dtype).tiny ** 0.5
    uu, uv, vv, uw, vw = dot(u, u) + tiny, dot(u, v), dot(v, v) + tiny, dot(u, w), dot(v, w)
    slant = uu * vv - uv.square()
    parallel = slant <= 1e-6 * uu * vv
    s = torch.where(parallel, 0.0, (uv * vw - vv * uw) / torch.where(parallel, 1.0, slant)).clamp(0, 1)
    free = (uv * s + vw) / vv
    t = free.clamp(0, 1)
    s = torch.where(free == t, s, ((uv * t - uw) / uu).clamp(0, 1))
    between = w + s.unsqueeze(-1) * u - t.unsqueeze(-1) * v
    distance = dot(between, between).sqrt()
    across = torch.linalg.cross(u, v)
    crossing = (distance < 1e-7).unsqueeze(-1)
    normal = torch.where(crossing, across, between)
    return s, t, distance, normal / dot(normal, normal).sqrt().clamp_min(tiny).unsqueeze(-1)


# ---- the capsules of a body ----------------------------------------------------------------------------------------
@lru_cache(maxsize=8)
def body_capsules(model: BodyModel, fingers: bool = True) -> Capsules:
    """The capsules of a model's skin; without `fingers` a hand is its palm."""
    parts = body_parts(model)
    names = model.joints.names
    owner = torch.tensor([names.index(MERGED.get(n, n)) for n in names])[torch.from_numpy(parts.vertex)]
    owner = owner.to(model.template.device)
    is_finger = [n[-1].isdigit() and not n.startswith("spine") for n in names]
    kept = [j for j in range(len(names)) if (owner == j).sum() >= MIN_VERTICES and (fingers or not is_finger[j])]
    area = _vertex_areas(model.template, model.faces)
    fitted = [_Fitted.of(model, (owner == j).nonzero()[:, 0], area) for j in kept]
    stacked = {f: torch.stack([getattr(c, f) for c in fitted], -1) for f in ("radius", "radius_dirs")}
    ends = _subset(model, kept, fitted)

    # The hand of a finger: fingers of one hand move by few principal components and touch all the time.
    hand = [n.split("_")[0] if is_finger[j] or n.endswith(("wrist", "_hand")) else n for j, n in enumerate(names)]
    pairs = [
        (i, k)
        for i in range(len(kept))
        for k in range(i + 1, len(kept))
        if parts.collide[kept[i], kept[k]] and hand[kept[i]] != hand[kept[k]]
    ]
    all_pairs = torch.tensor(pairs, dtype=torch.long, device=area.device).reshape(-1, 2)
    out = Capsules(tuple(names[j] for j in kept), ends, stacked["radius"], stacked["radius_dirs"], all_pairs)
    shapes = torch.eye(min(10, model.num_shape)).to(area) * SHAPES
    rest = model.zero_params(1 + 2 * len(shapes), num_shape=len(shapes))
    shapes = torch.cat([torch.zeros_like(shapes[:1]), shapes, -shapes])
    overlap = out.overlap(ends(replace(rest, shape=shapes)), out.radii(shapes))
    return replace(out, pairs=all_pairs[overlap.depth.amax(0) < -CLEARANCE])


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A capsule around some vertices of the rest pose."""

    ends: Float[Tensor, "2 3"]
    shape_dirs: Float[Tensor, "S 2 3"]
    radius: Float[Tensor, ""]
    radius_dirs: Float[Tensor, " S"]

    @staticmethod
    def of(model: BodyModel, vertices: Int[Tensor, " N"], area: Float[Tensor, " V"]) -> "_Fitted":
        """The axis is the longest of the skin, the radius the mean distance from it; the skin's ends are its own."""
        points = model.template[vertices].double()
        weight = (area[vertices] / area[vertices].sum()).double()
        middle = weight @ points
        arm = points - middle
        spread = (weight * arm.T) @ arm
        axis = torch.linalg.eigh(spread).eigenvectors[:, -1]
        axis = axis * axis[axis.abs().argmax()].sign()  # either sign is an eigenvector
        along = arm @ axis
        radius = weight @ (arm - along[:, None] * axis).norm(dim=-1)
        low, high = along.min() + radius, along.max() - radius
        stops = torch.stack([low, high]) if low < high else ((low + high) / 2).expand(2)
        # Each end as a mixture of all vertices, the least one that follows every affine map of them.
        mixture = weight * (1 + torch.outer(stops, axis) @ torch.linalg.pinv(spread, rtol=1e-6) @ arm.T)
        ends = mixture @ points
        of_shape = model.shape_dirs[:, vertices]
        shape_dirs = mixture.to(of_shape) @ of_shape

        # The distance of a point from an axis changes along the line to the nearest point of the axis, which stays where it is.
        bone = ends[1] - ends[0]
        t = ((points - ends[0]) @ bone / bone.square().sum().clamp_min(1e-12)).clamp(0, 1)
        out = points - (ends[0] + t[:, None] * bone)
        distance = out.norm(dim=-1)
        pull = (weight / distance.clamp_min(1e-9)).unsqueeze(-1) * out
        by_ends = torch.stack([(1 - t) @ pull, t @ pull])
        like = model.template
        moved = of_shape.flatten(1) @ pull.to(like).flatten() - shape_dirs.flatten(1) @ by_ends.to(like).flatten()
        return _Fitted(ends.to(like), shape_dirs, (weight @ distance).to(like), moved)


def _vertex_areas(verts: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, " V"]:
    """A third of the triangles around each vertex."""
    a, b, c = verts[faces].unbind(1)
    area = torch.linalg.cross(b - a, c - a).norm(dim=-1) / 6
    return verts.new_zeros(len(verts)).index_add(0, faces.flatten(), area.repeat_interleave(3))


def _subset(model: BodyModel, joints: Sequence[int], fitted: Sequence[_Fitted]) -> SubsetModel:
    """The ends as points of a body: all starts, then all ends, each rigid on its joint."""
    names = tuple(f"{model.joints.names[j]} {end}" for end in ("start", "end") for j in joints)
    J, E = len(model.joints), len(names)
    order = lambda field: torch.stack([getattr(c, field) for c in fitted], -2).flatten(-3, -2)  # (…, 2, C, 3)
    # Of what expressions and pose blend shapes do to the skin the capsules know nothing.
    expression = None
    if model.expression_dirs is not None:
        expression = model.template.new_zeros(model.num_expression, J + E, 3)
        if model.joint_expression_dirs is not None:
            expression[:, :J] = model.joint_expression_dirs
    weights = torch.eye(J).to(model.template)[list(joints) * 2]
    return SubsetModel(
        names,
        model.joints,
        model.jumps,
        torch.cat([model.joint_template, order("ends")], -2),
        torch.cat([model.joint_shape_dirs, order("shape_dirs")], -2),
        expression,
        None,
        weights,
        E,
        torch.cat([model.template.new_zeros(E, J), torch.eye(E).to(model.template)], 1),
        None,
        None,
    )
