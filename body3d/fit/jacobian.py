"""Points of the body and how each unknown moves them: analytic, for a whole batch of rows at once.

Every point is a sum of pieces, each rigid on one joint: piece = R_k arm + w J_k, with R_k the joint's rotation in the world, J_k
its place, w the piece's share of the point and `arm` (at rest, from the joint) linear in shape, expression and pose feature. A
landmark between three vertices skinned to two joints is two pieces. Two facts then give all derivatives:
* turning joint j by a small world rotation ω moves a piece on j or below it by ω × (piece - w J_j);
* a change dθ of a rotation vector is the world rotation R_parent L(θ) dθ, with L the left Jacobian of SO(3).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from body3d.body import lbs
from body3d.body.model import Constants, contour_row, pose_feature
from body3d.body.subset import SubsetModel
from body3d.fit.unknowns import Unknowns
from body3d.types import BodyParams

__all__ = ["PointJacobian", "left_jacobian"]


def left_jacobian(rotvec: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3 3"]:
    """L with R(r + dr) = R(L dr) R(r) to first order: sin(a)/a I + (1 - cos(a))/a² [r]x + (1 - sin(a)/a)/a² r rᵀ, a = |r|."""
    squared = rotvec.square().sum(-1, keepdim=True).unsqueeze(-1) + lbs.TINY
    angle = squared.sqrt()
    sine = torch.sinc(angle / math.pi)
    versine = 0.5 * torch.sinc(angle / (2 * math.pi)).square()
    cross = (rotvec @ lbs.SKEW.to(rotvec)).unflatten(-1, (3, 3))
    outer = rotvec.unsqueeze(-1) * rotvec.unsqueeze(-2)
    return sine * torch.eye(3).to(rotvec) + versine * cross + (1 - sine) / squared * outer


def _cross(a: Float[Tensor, "B 3 *#N"], b: Float[Tensor, "B 3 *#N"]) -> Float[Tensor, "B 3 *N"]:
    """As `torch.linalg.cross` along axis 1, which takes ten times as long where it must broadcast."""
    (ax, ay, az), (bx, by, bz) = a.unbind(1), b.unbind(1)
    return torch.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], 1)


@dataclass(frozen=True, eq=False)
class Pieces(Constants):
    """E pieces of points; with the axis R one set per row of the contour's table (the head's yaw)."""

    point: Int[Tensor, " E"] = field(repr=False)
    joint: Int[Tensor, " E"] = field(repr=False)
    weight: Float[Tensor, "*R E"] = field(repr=False)
    arm: Float[Tensor, "*R E 3"] = field(repr=False)
    arm_dirs: Float[Tensor, "*R C E 3"] = field(repr=False)  # per coefficient of shape, expression and pose feature

    @staticmethod
    def of(
        share: Float[Tensor, "*R N C"],
        carried: Float[Tensor, "C J"],
        elements: Float[Tensor, "S C 3"],
        joints: Float[Tensor, "S J 3"],
    ) -> "Pieces":
        """Pieces of N points that are sums (`share`) of C elements of the rest pose, which joints carry.

        `elements` and `joints` at rest: first the mean body, then what each coefficient adds.
        """
        used = (share != 0).flatten(0, -3).any(0) if share.ndim == 3 else share != 0
        kept = used.any(0)
        share, carried, elements, used = share[..., kept], carried[kept], elements[:, kept], used[:, kept]
        pairs = used.to(carried) @ (carried != 0).to(carried) > 0
        point, joint = pairs.nonzero(as_tuple=True)
        part = share[..., point, :] * carried.T[joint]
        weight = part.sum(-1)
        arms = torch.einsum("...ec,scd->...sed", part, elements) - weight[..., None, :, None] * joints[:, joint]
        return Pieces(point, joint, weight, arms[..., 0, :, :], arms[..., 1:, :, :])


@dataclass(frozen=True)
class Chain:
    """The posed joints of a batch of rows, without `transl`."""

    R: Float[Tensor, "B J 3 3"]  # world from joint
    place: Float[Tensor, "B J 3"]
    coefficients: Float[Tensor, "B C"]  # shape, expression and pose feature
    by_shape: Float[Tensor, "B J 3 S"] | None  # of the places, by shape and expression
    by_feature: Float[Tensor, "B K 9 3"] | None  # of the pose feature, by each rotation vector after the root's


class PointJacobian:
    """N linear mixtures of a subset's points, and their derivatives by the unknowns."""

    def __init__(self, subset: SubsetModel, matrix: Float[Tensor, "N P"], unknowns: Unknowns):
        self.subset, self.unknowns = subset, unknowns
        J, V = len(subset.joints), len(subset.weights)
        self.has_features = subset.pose_dirs is not None
        dirs = [subset.template[None], subset.shape_dirs[: unknowns.size("shape")]]
        if subset.expression_dirs is not None:
            dirs.append(subset.expression_dirs[: unknowns.size("expression")])
        self.joint_template, self.joint_dirs = torch.cat(dirs)[:, :J].tensor_split([1])
        if subset.pose_dirs is not None:
            dirs.append(pad(subset.pose_dirs, (0, 0, J, 0)))
        elements = torch.cat(dirs)
        joints = pad(
            elements[: 1 + len(self.joint_dirs), :J], (0, 0, 0, 0, 0, len(elements) - 1 - len(self.joint_dirs))
        )

        selection = matrix @ subset.selection
        self.total = selection.sum(-1)  # of each mixture: 1 for a point, 0 for the difference of two
        carried = torch.cat([torch.eye(J).to(subset.weights), subset.weights])
        static = J + subset.static
        self.pieces = Pieces.of(pad(selection[:, :static], (0, V - subset.static)), carried, elements, joints)
        self.contour = None
        if subset.contour_vertices is not None and subset.contour_mixture is not None:
            table = selection.new_zeros(*subset.contour_vertices.shape[:2], J + V)
            table.scatter_add_(-1, J + subset.contour_vertices, subset.contour_mixture)
            self.contour = Pieces.of(selection[:, static:] @ table, carried, elements, joints)

        self.neck = subset.joints.index("neck")
        self._prune(subset.jumps)

    def _prune(self, jumps: Int[Tensor, "D K"]) -> None:
        """Leaves out joints that move no point: a body seen without fingers has 22 of SMPL-X's 55."""
        J = len(self.subset.joints)
        above = torch.eye(J + 1, dtype=torch.bool, device=jumps.device)
        for ancestors in jumps:
            above = above | above[ancestors]
        used = torch.zeros(J, dtype=torch.bool, device=jumps.device)
        for pieces in self._groups():
            used |= above[pieces.joint][:, :J].any(0)
        used[self.neck] |= self.contour is not None
        used |= self.has_features  # every joint bends the skin
        self.joint_rows: dict[str, list[int]] = {}
        for part, rows in self.unknowns.joint_rows.items():
            if rows and bool(used[rows].any()):
                used[rows] = True
                self.joint_rows[part] = rows
        kept = used.nonzero()[:, 0]
        place = torch.full((J + 1,), len(kept), device=jumps.device)
        place[kept] = torch.arange(len(kept), device=jumps.device)
        self.kept = kept
        self.jumps = place[jumps[:, torch.cat([kept, kept.new_tensor([J])])]]
        self.jumps = self.jumps[: 1 + int((self.jumps != len(kept)).any(1).sum())]
        self.above = above[kept][:, kept].to(self.total)  # [k, j] = 1 where j is k or stands above it
        self.joint_template, self.joint_dirs = self.joint_template[:, kept], self.joint_dirs[:, kept]
        self.neck = int(place[self.neck])
        self.joint_rows = {part: place[rows].tolist() for part, rows in self.joint_rows.items()}
        self.pieces = replace(self.pieces, joint=place[self.pieces.joint])
        if self.contour is not None:
            self.contour = replace(self.contour, joint=place[self.contour.joint])

    def _groups(self) -> list[Pieces]:
        return [p for p in (self.pieces, self.contour) if p is not None]

    def moved_by(self, part: str) -> bool:
        """Whether any point depends on this part of the unknowns."""
        if part == "expression":
            S = self.unknowns.size("shape")
            return any(bool(p.arm_dirs[..., S : len(self.joint_dirs), :, :].any()) for p in self._groups())
        if part in self.unknowns.joint_rows:
            return part in self.joint_rows
        return self.unknowns.size(part) > 0

    def __call__(
        self, params: BodyParams, parts: Sequence[str]
    ) -> tuple[Float[Tensor, "B N 3"], Float[Tensor, "B 3 N F"]]:
        """The points (m), and their derivatives by the unknowns that `parts` names, in that order."""
        chain = self._chain(params, "shape" in parts or "expression" in parts)
        groups = [self.pieces]
        if self.contour is not None:
            c, row = self.contour, contour_row(chain.R[:, self.neck])
            groups.append(Pieces(c.point, c.joint, c.weight[row], c.arm[row], c.arm_dirs[row]))
        point, joint = (torch.cat([getattr(p, name) for p in groups]) for name in ("point", "joint"))

        # Everything that hangs from each joint, with its weight; the sum over the joints is the point.
        B, N = len(chain.R), len(self.total)
        hanging = chain.place.new_zeros(B, 4, N, len(self.kept))
        hanging[:, :, point, joint] = torch.cat([self._place(p, chain) for p in groups], 1).mT
        points = hanging[:, :3].sum(-1).mT + self.total[:, None] * params.transl[:, None]

        add = lambda by: by.new_zeros(B, N, *by.shape[2:]).index_add(1, point, by).movedim(2, 1)
        by_feature = None
        if chain.by_feature is not None:
            by_feature = add(torch.cat([self._by_feature(p, chain.R, chain.by_feature) for p in groups], 1))
        blocks = {n: points.new_zeros(1).expand(B, 3, N, self.unknowns.size(n)) for n in parts}
        blocks |= self._by_rotvec(params, chain, hanging, by_feature, [n for n in parts if n in self.joint_rows])
        if chain.by_shape is not None:
            by_shape = add(torch.cat([self._by_shape(p, chain.R, chain.by_shape) for p in groups], 1))
            blocks["shape"], blocks["expression"] = by_shape.tensor_split([self.unknowns.size("shape")], -1)
        blocks["transl"] = (torch.eye(3).to(points)[:, None] * self.total[:, None]).expand(B, 3, N, 3)
        return points, torch.cat([blocks[name] for name in parts], -1)

    def _chain(self, params: BodyParams, with_shape: bool) -> Chain:
        rotvecs = params.pose[:, self.kept]
        rotations = lbs.rotation_matrices(rotvecs)
        shape = params.shape if params.expression is None else torch.cat([params.shape, params.expression], -1)
        rest = self.joint_template[0] + lbs.blend(shape, self.joint_dirs)
        T = lbs.world_transforms(rotations, rest, self.jumps)
        R, place = T[..., :3, :3], T[..., :3, 3]
        by_shape = None
        if with_shape:
            # Every bone's change by shape, turned into the world and summed down the chain.
            bones = self.joint_dirs - pad(self.joint_dirs, (0, 0, 0, 1))[:, self.jumps[0, :-1]]
            turned = torch.einsum("bjmn,sjn->bjms", self._parents(R), bones)  # @ is ten times slower for many rows
            by_shape = (self.above @ turned.flatten(2)).unflatten(-1, (3, -1))
        if not self.has_features:
            return Chain(R, place, shape, by_shape, None)
        axes = left_jacobian(rotvecs).mT @ lbs.SKEW.to(R)  # for each number of a rotation vector, [its axis]x
        by_feature = (axes.unflatten(-1, (3, 3)) @ rotations.unsqueeze(2)).flatten(3).mT[:, 1:]
        return Chain(R, place, torch.cat([shape, pose_feature(rotations)], -1), by_shape, by_feature)

    def _parents(self, R: Float[Tensor, "B J 3 3"]) -> Float[Tensor, "B J 3 3"]:
        world = torch.eye(3).to(R).expand(len(R), 1, 3, 3)
        return torch.cat([R, world], 1)[:, self.jumps[0, :-1]]

    def _place(self, pieces: Pieces, chain: Chain) -> Float[Tensor, "B E 4"]:
        """Where the pieces are, with their weights."""
        B, E = len(chain.R), len(pieces.point)
        weight = pieces.weight.expand(B, E).unsqueeze(-1)
        arm = pieces.arm + (chain.coefficients.unsqueeze(1) @ pieces.arm_dirs.flatten(-2)).reshape(B, E, 3)
        place = (chain.R[:, pieces.joint] @ arm.unsqueeze(-1)).squeeze(-1) + weight * chain.place[:, pieces.joint]
        return torch.cat([place, weight], -1)

    def _by_shape(
        self, pieces: Pieces, R: Float[Tensor, "B J 3 3"], by_shape: Float[Tensor, "B J 3 S"]
    ) -> Float[Tensor, "B E 3 S"]:
        dirs = pieces.arm_dirs[..., : len(self.joint_dirs), :, :]
        turned = torch.einsum("bemn,sen->bems" if dirs.ndim == 3 else "bemn,bsen->bems", R[:, pieces.joint], dirs)
        return turned + pieces.weight[..., None, None] * by_shape[:, pieces.joint]

    def _by_feature(
        self, pieces: Pieces, R: Float[Tensor, "B J 3 3"], by_feature: Float[Tensor, "B K 9 3"]
    ) -> Float[Tensor, "B E 3 Q"]:
        """By the rotation vectors after the root's, through the pose blend shapes alone."""
        dirs = pieces.arm_dirs[..., len(self.joint_dirs) :, :, :].unflatten(-3, (-1, 9))
        return R[:, pieces.joint] @ torch.einsum("...jqed,...jqm->...edjm", dirs, by_feature).flatten(3)

    def _by_rotvec(
        self, params: BodyParams, chain: Chain, hanging: Tensor, by_feature: Tensor | None, parts: Sequence[str]
    ) -> dict[str, Float[Tensor, "B 3 N F"]]:
        if not parts:
            return {}
        rows = [self.joint_rows[name] for name in parts]
        joints = torch.tensor([j for part in rows for j in part], dtype=torch.long, device=hanging.device)
        # For each number of each rotation vector its axis in the world, and what it moves about which place.
        axis = self._parents(chain.R)[:, joints] @ left_jacobian(params.pose[:, self.kept[joints]])
        axis = axis.movedim(2, 1).flatten(2).unsqueeze(2)  # (B, 3, 1, Q)
        columns = joints.repeat_interleave(3)
        moved = hanging @ self.above[:, columns]  # (B, 4, N, Q)
        lever = moved[:, :3] - moved[:, 3:] * chain.place[:, columns].mT.unsqueeze(2)
        out = _cross(axis, lever)
        if by_feature is not None:
            places = 3 * columns + torch.arange(3, device=columns.device).repeat(len(joints))
            out = out + pad(by_feature, (3, 0))[..., places]
        blocks = dict(zip(parts, out.split([3 * len(part) for part in rows], -1), strict=True))
        for side in ("left_hand", "right_hand"):
            if side in blocks:
                blocks[side] = blocks[side] @ self.unknowns.hand_mixing(side)
        return blocks
