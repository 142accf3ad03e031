"""The named keypoints of a body model without the rest of its surface: what a fit calls hundreds of times.

The keypoints of a photo need some 170 of SMPL-X's 10,475 vertices. Nothing is approximated: the rows of the blend
shapes and of the skinning weights that those vertices need are taken out once, with the joints' own rows beside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from body3d.body import lbs
from body3d.body.model import BodyModel, Constants, contour_row, mix, pick, pose_feature
from body3d.skeletons import JAW17, JointSet
from body3d.types import BodyParams

__all__ = ["SubsetModel"]


@dataclass(frozen=True, eq=False)
class SubsetModel(Constants):
    """Called with parameters it gives the points in the order of `names`, equal to the whole model's to rounding."""

    names: tuple[str, ...]
    joints: JointSet  # the tree
    jumps: Int[Tensor, "D K"] = field(repr=False)  # see lbs.chain_jumps
    # The rest pose: the tree's J joints, then M vertices; R = J + M.
    template: Float[Tensor, "R 3"] = field(repr=False)
    shape_dirs: Float[Tensor, "S R 3"] = field(repr=False)
    expression_dirs: Float[Tensor, "E R 3"] | None = field(repr=False)
    pose_dirs: Float[Tensor, "P M 3"] | None = field(repr=False)
    weights: Float[Tensor, "M J"] = field(repr=False)
    # The N named points as sums of the posed joints, of the first `static` vertices and, if asked for, of the contour's
    # 17 points; the vertices after `static` are those that the contour may need.
    static: int
    selection: Float[Tensor, "N C"] = field(repr=False)
    contour_vertices: Int[Tensor, "79 17 3"] | None = field(repr=False)
    contour_mixture: Float[Tensor, "79 17 3"] | None = field(repr=False)

    @staticmethod
    def of(model: BodyModel, names: Sequence[str]) -> "SubsetModel":
        """The part of `model` that the points `names` of `model.keypoints` need."""
        names = tuple(names)
        wanted = model.keypoints.indices(names)
        joints, points = len(model.joints), len(model.point_vertices)
        surface = sorted({i - joints for i in wanted if joints <= i < joints + points})
        contour = model.contour_vertices if any(name in JAW17 for name in names) else None

        # A landmark whose three vertices share their skinning weights moves as one vertex: its blend shapes are mixed
        # now. The others keep their vertices, and so does the contour.
        corners, mixture = model.point_vertices[surface], model.point_mixture[surface]
        skinning = model.weights[corners]
        rigid = (skinning - skinning[:, :1]).abs().amax((1, 2)) < 1e-7
        rigid &= (mixture.sum(1) - 1).abs() < 1e-6
        folded = int(rigid.sum())
        loose, loose_place = corners[~rigid].unique(return_inverse=True)
        outline, outline_place = (loose[:0], None) if contour is None else contour.unique(return_inverse=True)
        kept = torch.cat([loose, outline])
        source = torch.cat([corners[rigid], kept.unsqueeze(1).expand(-1, 3)])
        share = torch.cat([mixture[rigid], mixture.new_tensor([1.0, 0, 0]).expand(len(kept), 3)])

        # Each surface point as a sum of the vertices kept, then all points' rows in the order of the names.
        static = folded + len(loose)
        mixing = mixture.new_zeros(len(surface), static)
        mixing[rigid, :folded] = torch.eye(folded).to(mixing)
        mixing[~rigid] = mixing[~rigid].scatter_add(1, folded + loose_place, mixture[~rigid])
        available = [*range(joints), *(joints + k for k in surface), *range(joints + points, len(model.keypoints))]
        blocks = torch.block_diag(*(m.to(mixing) for m in (torch.eye(joints), mixing, torch.eye(len(JAW17)))))
        selection = blocks[[available.index(i) for i in wanted], : joints + static + (0 if contour is None else 17)]

        take = lambda table: mix(table[..., source, :], share)
        expression = model.expression_dirs
        if expression is not None:
            of_joints = model.joint_expression_dirs  # None: the open body's joints do not move with expression
            of_joints = expression.new_zeros(len(expression), joints, 3) if of_joints is None else of_joints
            expression = torch.cat([of_joints, take(expression)], -2)
        return SubsetModel(
            names,
            model.joints,
            model.jumps,
            torch.cat([model.joint_template, take(model.template)], -2),
            torch.cat([model.joint_shape_dirs, take(model.shape_dirs)], -2),
            expression,
            None if model.pose_dirs is None else take(model.pose_dirs),
            take(model.weights),
            static,
            selection,
            None if outline_place is None else static + outline_place,
            None if contour is None else model.contour_mixture,
        )

    def __call__(self, params: BodyParams) -> Float[Tensor, "*B N 3"]:
        return self.points_and_joints(params)[0]

    def points_and_joints(self, params: BodyParams) -> tuple[Float[Tensor, "*B N 3"], Float[Tensor, "*B J 3"]]:
        """The named points and the tree's joints (m), in the frame that `transl` and the root's rotation lead to."""
        rotations = lbs.rotation_matrices(params.pose)
        rest = self.template + lbs.blend(params.shape, self.shape_dirs)
        if params.expression is not None and self.expression_dirs is not None:
            rest = rest + lbs.blend(params.expression, self.expression_dirs)
        joints, verts = rest.split([len(self.joints), len(self.weights)], -2)
        if self.pose_dirs is not None:
            verts = verts + lbs.blend(pose_feature(rotations), self.pose_dirs)

        T_root_joint = lbs.world_transforms(rotations, joints, self.jumps)
        joints_posed = T_root_joint[..., :3, 3]
        verts = lbs.skin(verts, self.weights, lbs.rest_to_posed(T_root_joint, joints))
        parts = [joints_posed, verts[..., : self.static, :]]
        if self.contour_vertices is not None and self.contour_mixture is not None:
            row = contour_row(T_root_joint[..., self.joints.index("neck"), :3, :3])
            parts.append(mix(pick(verts, self.contour_vertices[row]), self.contour_mixture[row]))
        transl = params.transl.unsqueeze(-2)
        named = torch.einsum("nc,...cd->...nd", self.selection, torch.cat(parts, -2))  # twice as fast as @ here
        return named + transl, joints_posed + transl
