"""Self-collision in a fit: the capsules' residuals for a solver of least squares, and a colliding pose moved to a free one."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from body3d.body import lbs
from body3d.body.capsules import body_capsules
from body3d.body.collision import Penetration, penetrations
from body3d.body.conic import conic_field
from body3d.body.model import BodyModel, pose_feature
from body3d.body.parts import Parts, body_parts, region_of
from body3d.body.triangles import colliding_pairs
from body3d.errors import InputError
from body3d.fit.jacobian import PointJacobian
from body3d.fit.lm import Quadratic, levenberg_marquardt
from body3d.fit.solve import lbfgs
from body3d.fit.unknowns import Unknowns
from body3d.types import BodyParams

__all__ = ["CapsuleTerm", "Resolution", "resolve"]


# ---- the term of a fit ---------------------------------------------------------------------------------------------
class CapsuleTerm:
    """How deep capsules are in each other (m), and the derivatives by the unknowns of a fit."""

    def __init__(self, model: BodyModel, unknowns: Unknowns, fingers: bool = False):
        self.capsules, self.unknowns = body_capsules(model, fingers), unknowns
        self.ends = PointJacobian(self.capsules.ends, self.capsules.ends.selection[:, len(model.joints) :], unknowns)

    def depth(self, params: BodyParams) -> Float[Tensor, "B N"]:
        """max(0, r1 + r2 - distance) of each pair."""
        return self.capsules.overlap(self.capsules.ends(params), self.capsules.radii(params.shape)).depth.clamp_min(0)

    def __call__(self, params: BodyParams, parts: Sequence[str]) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N F"]]:
        """`depth`, and its derivatives by the unknowns that `parts` names, in that order."""
        capsules = self.capsules
        ends, by = self.ends(params, parts)
        overlap = capsules.overlap(ends, capsules.radii(params.shape))
        out = capsules.chain(overlap, by)
        if "shape" in parts:
            start = sum(self.unknowns.size(n) for n in parts[: list(parts).index("shape")])
            dirs = capsules.radius_dirs[: self.unknowns.size("shape"), capsules.pairs].sum(-1)
            out[..., start : start + len(dirs)] += dirs.T
        return overlap.depth.clamp_min(0), torch.where(overlap.depth.unsqueeze(-1) > 0, out, 0.0)


# ---- a pose alone --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Resolution:
    """A pose before and after."""

    params: BodyParams
    before: list[Penetration]
    after: list[Penetration]
    turned: float  # radians, of the joint that turned most
    moved: float  # metres, of the joint that moved most
    rounds: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{1000 * _depth(self.before):.1f} mm -> {1000 * _depth(self.after):.1f} mm; joints turned by up to "
            f"{math.degrees(self.turned):.1f}°, moved by up to {1000 * self.moved:.0f} mm"
        )


TURN, MOVE = 0.3, 0.03  # radians, metres: how far a joint goes for one unit of the pull's cost
OVERLAP = 0.002  # metres: how deep capsules are for one unit of theirs in the first round
STEP, MARGIN = 0.05, 0.001  # metres: how far capsules go apart in one round at most, and beyond the surface
REACH = 0.15  # metres: capsules further apart than this do not meet in one round
SHALLOW = 0.004  # metres: from here the conic field looks at the triangles themselves
CONE_MM, CONE_WEIGHT = 0.5, 0.01  # the field of Tzionas et al., in millimetres


def resolve(
    model: BodyModel,
    params: BodyParams,
    free: Sequence[str] | None = None,
    tolerance: float = 0.002,
    rounds: int = 15,
    parts: Parts | None = None,
) -> Resolution:
    """One body's pose, changed as little as it takes until no region is deeper than `tolerance` (m) in another.

    In rounds, with a pull to the start: first capsules go apart, then the conic distance field parts the triangles that still
    cross. The mesh says which capsules, and how far: of two regions that are d deep in each other the nearest capsules go apart
    by d, all others may not come closer than they are. `free` names the joints that turn (default: all but root, face and
    fingers). Shape and translation stay. What could not be resolved is in `after`. Raises InputError for a joint that a
    fit does not turn.
    """
    began = time.perf_counter()
    body = Unknowns(model).body_joints
    if wrong := set(free or ()) - set(body):
        raise InputError(f"'free' names {', '.join(sorted(wrong))}; the joints that can turn are {', '.join(body)}")
    parts = parts or body_parts(model)
    search = _Search(model, params, [n for n in body if free is None or n in free], parts)
    x = best = search.start
    before = found = least = penetrations(search.verts(x), parts)
    done, polished = 0, False
    while _depth(found) > tolerance and done < rounds:
        done += 1
        polished = _depth(found) < SHALLOW and not polished  # in turns: either may be stuck where the other is not
        x = search.polish(x, float(done)) if polished else search.apart(x, found, float(done))
        found = penetrations(search.verts(x), parts)
        if _depth(found) < _depth(least):
            best, least = x, found
    turned, moved = search.change(best)
    return Resolution(search.params(best)[0], before, least, turned, moved, done, time.perf_counter() - began)


def _depth(found: Sequence[Penetration]) -> float:
    return found[0].depth if found else 0.0


class _Search:
    """The rotation vectors of some joints of one body, as a row of unknowns."""

    def __init__(self, model: BodyModel, params: BodyParams, free: Sequence[str], parts: Parts):
        self.model, self.parts = model, parts
        self.fixed = params.map(lambda t: t.unsqueeze(0).detach())
        device = self.fixed.pose.device
        self.rows = torch.tensor(model.joints.indices(free), device=device)
        self.start = self.fixed.pose[:, self.rows].flatten(1)
        self.rest, self.joints = model.rest_vertices(self.fixed), model.rest_joints(self.fixed)

        self.capsules = body_capsules(model)
        self.radii = self.capsules.radii(self.fixed.shape)
        self.regions = np.array([region_of(n) for n in self.capsules.joints])[self.capsules.pairs.cpu().numpy()]
        # Points: the tree's joints, then the ends of the capsules.
        ends, unknowns = self.capsules.ends, Unknowns(model)
        names = (*model.joints.names, *ends.names)
        eye = torch.eye(len(names)).to(ends.selection)
        self.points = PointJacobian(replace(ends, names=names, selection=eye), eye, unknowns)
        body = unknowns.body_joints
        self.columns = torch.tensor([3 * body.index(n) + k for n in free for k in range(3)], device=device)
        self.pulled = torch.tensor(model.joints.indices(body), device=device)
        self.places = self._places(self.start)

    def params(self, x: Float[Tensor, "B D"]) -> BodyParams:
        many = self.fixed.map(lambda t: t.expand(len(x), *t.shape[1:]))
        return replace(many, pose=many.pose.index_copy(1, self.rows, x.unflatten(-1, (-1, 3))))

    def change(self, x: Float[Tensor, "1 D"]) -> tuple[float, float]:
        """Since the start: radians of the joint that turned most, metres of the one that moved most."""
        turned, moved = (x - self.start).unflatten(-1, (-1, 3)), self._places(x) - self.places
        return turned.norm(dim=-1).max().item(), moved.norm(dim=-1).max().item()

    def _places(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B K 3"]:
        return self.capsules.ends.points_and_joints(self.params(x))[1][:, self.pulled]

    @torch.no_grad()
    def verts(self, x: Float[Tensor, "1 D"]) -> Float[np.ndarray, "V 3"]:
        everything = torch.arange(len(self.model.template), device=x.device)
        return self._vertices(x, everything)[0].double().cpu().numpy()

    def _vertices(self, x: Float[Tensor, "B D"], ids: Int[Tensor, " U"]) -> Float[Tensor, "B U 3"]:
        """Some vertices of the posed body."""
        params = self.params(x)
        rotations, joints = lbs.rotation_matrices(params.pose), self.joints.expand(len(x), -1, -1)
        T = lbs.world_transforms(rotations, joints, self.model.jumps)
        verts = self.rest[:, ids]
        if self.model.pose_dirs is not None:
            verts = verts + lbs.blend(pose_feature(rotations), self.model.pose_dirs[:, ids])
        return lbs.skin(verts, self.model.weights[ids], lbs.rest_to_posed(T, joints)) + params.transl.unsqueeze(-2)

    def apart(self, x: Float[Tensor, "1 D"], found: Sequence[Penetration], stiffness: float) -> Float[Tensor, "1 D"]:
        """The unknowns at a minimum of pull and capsules, for what was found at x.

        The pull grows with the way gone, so the stiffness of the capsules must grow with the rounds.
        """
        depth = self.capsules.overlap(self.capsules.ends(self.params(x)), self.radii).depth
        close = (depth > -REACH)[0]
        capsules = replace(self.capsules, pairs=self.capsules.pairs[close])
        allowed = self._allowed(depth, found)[:, close]
        J = len(self.model.joints)
        turning = torch.eye(x.shape[1]).to(x).unsqueeze(0) / TURN

        def quadratic(y: Float[Tensor, "1 D"], _) -> Quadratic:
            points, by = self.points(self.params(y), ["body"])
            by = by[..., self.columns]
            turned = (y - self.start) / TURN
            moved = (points[:, self.pulled] - self.places).flatten(1) / MOVE
            moving = by[:, :, self.pulled].movedim(1, 2).flatten(1, 2) / MOVE
            overlap = capsules.overlap(points[:, J:], self.radii)
            over = (overlap.depth - allowed) * stiffness / OVERLAP
            parting = (over > 0).unsqueeze(-1) * capsules.chain(overlap, by[:, :, J:]) * stiffness / OVERLAP
            r, by = torch.cat([turned, moved, over.clamp_min(0)], 1), torch.cat([turning, moving, parting], 1)
            return Quadratic(r.square().sum(-1), 2 * (r.unsqueeze(1) @ by).squeeze(1), 2 * by.mT @ by)

        return levenberg_marquardt(quadratic, x, 30, tolerance=1e-3, damping=1.0).x

    def _allowed(self, depth: Float[Tensor, "1 N"], found: Sequence[Penetration]) -> Float[Tensor, "1 N"]:
        """How deep each pair of capsules may be (m): no deeper than it is, and less where two regions are in each other."""
        allowed = depth.clamp_min(0)
        done: set[frozenset[str]] = set()
        for p in found:  # the deepest first
            both = frozenset((p.inner, p.outer))
            of = ((self.regions == [p.inner, p.outer]) | (self.regions == [p.outer, p.inner])).all(1)
            if both not in done and of.any():
                done.add(both)
                candidates = torch.from_numpy(np.nonzero(of)[0]).to(depth.device)
                nearest = candidates[depth[0, candidates].argmax()]
                allowed[0, nearest] = depth[0, nearest] - min(p.depth, STEP) - MARGIN
        return allowed

    def polish(self, x: Float[Tensor, "1 D"], stiffness: float) -> Float[Tensor, "1 D"]:
        """The unknowns near x where the triangles that cross at x are out of each other's cones."""
        crossing = colliding_pairs(self.verts(x), self.parts)
        used, place = np.unique(self.parts.faces[crossing], return_inverse=True)
        ids, faces = (torch.from_numpy(i.astype(np.int64)).to(x.device) for i in (used, place.reshape(-1, 3)))
        pairs = torch.arange(len(faces), device=x.device).reshape(1, -1, 2)
        places = self._places(x)

        def cost(y: Float[Tensor, "1 D"]) -> Float[Tensor, " 1"]:
            pull = ((y - x) / TURN).square().sum(-1) + ((self._places(y) - places) / MOVE).square().sum((-2, -1))
            field = conic_field(1000 * self._vertices(y, ids)[:, faces], pairs, CONE_MM)
            return pull + CONE_WEIGHT * stiffness * field.sum(-1)

        return lbfgs(cost, x, 20).x
