"""One body model for SMPL, SMPL-H, SMPL-X and the open body: what differs is in the file.

Model space is y up, +x to the body's left, +z to its front, metres. A `BodyParams.pose` holds the full rotation vector
of every joint, hands included; principal components of the hands become rotation vectors by `hand_pose_from_pca`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from body3d.body import layouts, lbs
from body3d.body.files import read_arrays
from body3d.errors import InputError
from body3d.skeletons import JointSet
from body3d.types import Body, BodyParams, Frame, Keypoints3D, Mesh

if TYPE_CHECKING:
    from body3d.body.subset import SubsetModel

__all__ = ["BodyModel", "contour_row"]

C = TypeVar("C", bound="Constants")
Kind = Literal["open", "smplx", "smplh", "smpl"]


@dataclass(frozen=True, eq=False)
class Constants:
    """Dataclass mix-in: numbers that are moved as a whole; indices stay whole numbers."""

    def to(self: C, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> C:
        """A copy on another device or in another floating-point type."""
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        moved = {name: t.to(device, dtype if t.is_floating_point() else None) for name, t in tensors.items()}
        return replace(self, **moved)


@dataclass(frozen=True, eq=False)
class BodyModel(Constants):
    """The numbers of a body model; calling it poses the body. Nothing in it changes, so one can be shared by all."""

    kind: Kind
    joints: JointSet  # the tree that `BodyParams.pose` turns
    keypoints: JointSet  # every named point: tree, picked vertices, face landmarks, face contour
    expression_names: tuple[str, ...] = field(repr=False)
    faces: Int[Tensor, "F 3"] = field(repr=False)
    jumps: Int[Tensor, "D K"] = field(repr=False)  # see lbs.chain_jumps
    template: Float[Tensor, "V 3"] = field(repr=False)
    shape_dirs: Float[Tensor, "S V 3"] = field(repr=False)
    expression_dirs: Float[Tensor, "E V 3"] | None = field(repr=False)
    pose_dirs: Float[Tensor, "P V 3"] | None = field(repr=False)  # P = 9 (J - 1), see pose_feature
    # The joints at rest, linear in shape and expression: the regressor times the three above, multiplied out once.
    joint_template: Float[Tensor, "J 3"] = field(repr=False)
    joint_shape_dirs: Float[Tensor, "S J 3"] = field(repr=False)
    joint_expression_dirs: Float[Tensor, "E J 3"] | None = field(repr=False)
    joint_regressor: Float[Tensor, "J V"] = field(repr=False)  # for other packages; the open body's is approximate
    weights: Float[Tensor, "V J"] = field(repr=False)
    hand_mean: Float[Tensor, "2 45"] | None = field(repr=False)  # left, right
    hand_components: Float[Tensor, "2 C 45"] | None = field(repr=False)
    # Points of the surface as mixtures of three vertices; those of the contour depend on the head's yaw (79 rows).
    point_vertices: Int[Tensor, "N 3"] = field(repr=False)
    point_mixture: Float[Tensor, "N 3"] = field(repr=False)
    contour_vertices: Int[Tensor, "79 17 3"] | None = field(repr=False)
    contour_mixture: Float[Tensor, "79 17 3"] | None = field(repr=False)

    @staticmethod
    @cache
    def open() -> "BodyModel":
        """The body that comes with the package: free of registration and of conditions (CC0)."""
        file = resources.files("body3d.body") / "open_body.npz"
        with resources.as_file(file) as path:
            return BodyModel.load(path, "open")

    @staticmethod
    def load(path: str | Path, kind: Kind | None = None, vertex_ids: Mapping[str, int] | None = None) -> "BodyModel":
        """A model from an .npz or .pkl file in the published layout of SMPL, SMPL-H or SMPL-X, or in the open body's.

        `kind` is what the caller expects; None takes what comes. `vertex_ids` (by the names of `layouts.PICKED`) is for
        meshes whose vertices are not numbered as published. Raises InputError for a file that is no body model.
        """
        path = Path(path)
        keys = (*layouts.PUBLISHED_KEYS, *layouts.OPEN_KEYS)
        arrays = read_arrays(path, keys, required=("v_template", "shapedirs", "f"))
        if "model" in arrays and str(arrays["model"]) == "open":
            model = BodyModel(**layouts.open_layout(arrays, path))
        else:
            model = BodyModel(**layouts.published_layout(arrays, path, vertex_ids))
        if kind not in (None, model.kind):
            raise InputError(f"{path} is a model of kind {model.kind!r} ({len(model.joints)} joints), not {kind!r}")
        return model

    @property
    def parents(self) -> tuple[int, ...]:
        return self.joints.parents

    @property
    def num_shape(self) -> int:
        return len(self.shape_dirs)

    @property
    def num_expression(self) -> int:
        return 0 if self.expression_dirs is None else len(self.expression_dirs)

    def zero_params(self, *batch: int, num_shape: int = 10, num_expression: int = 10) -> BodyParams:
        """The rest pose of the mean body, with at most the given numbers of coefficients."""
        zeros = self.template.new_zeros
        expressions = min(num_expression, self.num_expression)
        return BodyParams(
            pose=zeros(*batch, len(self.joints), 3),
            shape=zeros(*batch, min(num_shape, self.num_shape)),
            transl=zeros(*batch, 3),
            expression=zeros(*batch, expressions) if expressions else None,
        )

    def hand_pose_from_pca(
        self, coefficients: Float[Tensor, "*B N"], side: Literal["left", "right"], flat_hand_mean: bool = False
    ) -> Float[Tensor, "*B 15 3"]:
        """Rotation vectors of a hand's 15 joints from its first principal components, mean pose added.

        With `flat_hand_mean` the components are added to the flat hand, as in the smplx package.
        """
        if self.hand_components is None or self.hand_mean is None:
            raise ValueError(f"a body of kind {self.kind!r} has no principal components of the hands")
        row = ("left", "right").index(side)
        pose = coefficients @ self.hand_components[row, : coefficients.shape[-1]]
        return (pose if flat_hand_mean else pose + self.hand_mean[row]).unflatten(-1, (15, 3))

    def rest_joints(self, params: BodyParams) -> Float[Tensor, "*B J 3"]:
        """The joints of the rest pose (m)."""
        joints = self.joint_template + lbs.blend(params.shape, self.joint_shape_dirs)
        if params.expression is not None and self.joint_expression_dirs is not None:
            joints = joints + lbs.blend(params.expression, self.joint_expression_dirs)
        return joints

    def rest_vertices(self, params: BodyParams) -> Float[Tensor, "*B V 3"]:
        """The vertices of the rest pose (m), before pose blend shapes."""
        verts = self.template + lbs.blend(params.shape, self.shape_dirs)
        if params.expression is not None and self.expression_dirs is not None:
            verts = verts + lbs.blend(params.expression, self.expression_dirs)
        return verts

    def __call__(self, params: BodyParams, frame: Frame = "camera") -> Body:
        """The posed body in the frame that `transl` and the root's rotation lead to; its joints are all `keypoints`."""
        rotations = lbs.rotation_matrices(params.pose)
        joints = self.rest_joints(params)
        T_root_joint = lbs.world_transforms(rotations, joints, self.jumps)
        verts = self.rest_vertices(params)
        if self.pose_dirs is not None:
            verts = verts + lbs.blend(pose_feature(rotations), self.pose_dirs)
        verts = lbs.skin(verts, self.weights, lbs.rest_to_posed(T_root_joint, joints))

        transl = params.transl.unsqueeze(-2)
        verts = verts + transl
        T_world_joint = torch.cat(
            [torch.cat([T_root_joint[..., :3, :3], (T_root_joint[..., :3, 3] + transl).unsqueeze(-1)], -1),
             T_root_joint[..., 3:, :]], -2,
        )  # fmt: skip
        xyz = self.points(verts, T_world_joint)
        keypoints = Keypoints3D(xyz, torch.ones_like(xyz[..., 0]), self.keypoints, frame)
        return Body(Mesh(verts, self.faces), keypoints, T_world_joint)

    def points(
        self, verts: Float[Tensor, "*B V 3"], T_world_joint: Float[Tensor, "*B J 4 4"]
    ) -> Float[Tensor, "*B N 3"]:
        """All of `keypoints` from a posed mesh and its joints."""
        parts = [T_world_joint[..., :3, 3], mix(verts[..., self.point_vertices, :], self.point_mixture)]
        if self.contour_vertices is not None and self.contour_mixture is not None:
            row = contour_row(T_world_joint[..., self.joints.index("neck"), :3, :3])
            parts.append(mix(pick(verts, self.contour_vertices[row]), self.contour_mixture[row]))
        return torch.cat(parts, -2)

    def subset(self, names: Sequence[str]) -> "SubsetModel":
        """A model of the named keypoints alone, a hundred times cheaper: what a fit calls."""
        from body3d.body.subset import SubsetModel

        return SubsetModel.of(self, names)


def pose_feature(rotations: Float[Tensor, "*B J 3 3"]) -> Float[Tensor, "*B P"]:
    """What drives the pose blend shapes: R - I of every joint but the root (SMPL, equation 9)."""
    return (rotations[..., 1:, :, :] - torch.eye(3).to(rotations)).flatten(-3)


def mix(corners: Float[Tensor, "*B N 3 D"], mixture: Float[Tensor, "*#B N 3"]) -> Float[Tensor, "*B N D"]:
    """Points (or whatever belongs to vertices) from the three vertices that each is a mixture of."""
    return (corners * mixture.unsqueeze(-1)).sum(-2)


def pick(verts: Float[Tensor, "*B V 3"], corners: Int[Tensor, "*B N 3"]) -> Float[Tensor, "*B N 3 3"]:
    """The vertices of triangles that differ from body to body."""
    flat = corners.flatten(-2).unsqueeze(-1)
    return verts.gather(-2, flat.expand(*flat.shape[:-1], 3)).unflatten(-2, (-1, 3))


def contour_row(R_world_neck: Float[Tensor, "*B 3 3"]) -> Int[Tensor, "*B"]:
    """The row of SMPL-X's contour table for the head's yaw, read off the neck's rotation in the frame of the camera.

    The table has a row per degree: 0…39 for yaw 0…39, 40…78 for -1…-39, clamped beyond. Yaw is SMPL-X's: minus the
    middle angle of R = Rz Ry Rx, which with y down is positive for a face turned to its left (in a frame with y up the
    sign is the other one, and the rows would be the wrong side's). The choice has no gradient.
    """
    R = R_world_neck.detach()
    yaw = -torch.atan2(-R[..., 2, 0], torch.hypot(R[..., 0, 0], R[..., 1, 0]))
    degrees = torch.rad2deg(yaw).clamp(-39, 39).round().long()
    return torch.where(degrees < 0, 39 - degrees, degrees)
