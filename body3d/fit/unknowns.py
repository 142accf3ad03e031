"""The numbers a fit looks for, as one row of a matrix: where each part stands in the row, and what body the row means."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from body3d.body.model import BodyModel
from body3d.body.vposer import VPoser
from body3d.errors import InputError
from body3d.skeletons import BODY_JOINTS
from body3d.types import BodyParams


@dataclass(frozen=True)
class Unknowns:
    """Layout of a row: orient 3, transl 3, body 3 each, then what the model has of shape, hands (PCA), jaw, eyes, expression,
    and one nuisance number. Fingers without principal components stay straight.

    With `latent` the body's pose follows from a code, whose numbers stand at the end: a row is then consistent once `decoded`.
    """

    model: BodyModel
    num_shape: int = 10
    num_expression: int = 10
    hand_components: int = 12  # per hand, as SMPLify-X; at most, as many as the model has
    latent: VPoser | None = None

    def __post_init__(self):
        if self.latent is not None and self.body_joints != BODY_JOINTS:
            raise InputError(f"a latent pose turns the joints {', '.join(BODY_JOINTS)}; this body has others")

    @cached_property
    def body_joints(self) -> tuple[str, ...]:
        """The joints whose rotations are free: the tree without root, face, fingers and SMPL's rigid hands."""
        return tuple(n for n in self.model.joints.below_root if n not in self._face and n not in self._fingers)

    @cached_property
    def _fingers(self) -> frozenset[str]:
        names = {n for n in self.model.joints.names if n[-1].isdigit() and not n.startswith("spine")}
        return frozenset(names | {"left_hand", "right_hand"})

    @property
    def _face(self) -> frozenset[str]:
        return frozenset({"jaw", "left_eye_smplhf", "right_eye_smplhf"})

    @cached_property
    def slices(self) -> dict[str, slice]:
        joints = self.model.joints
        sizes = {"orient": 3, "transl": 3, "body": 3 * len(self.body_joints)}
        sizes["shape"] = min(self.num_shape, self.model.num_shape)
        components = self.model.hand_components
        for side in ("left", "right"):
            most = 0 if components is None or f"{side}_index1" not in joints else components.shape[1]
            sizes[f"{side}_hand"] = min(self.hand_components, most)
        sizes["jaw"] = 3 if "jaw" in joints else 0
        sizes["eyes"] = 6 if "left_eye_smplhf" in joints else 0
        sizes["expression"] = min(self.num_expression, self.model.num_expression)
        sizes["lean"] = 1  # of a given 3D pose, about the camera's x axis: a nuisance, no part of the body
        sizes["code"] = 0 if self.latent is None else self.latent.latent
        out, start = {}, 0
        for name, size in sizes.items():
            out[name] = slice(start, start + size)
            start += size
        return out

    def __len__(self) -> int:
        return self.slices["code"].stop

    def part(self, x: Float[Tensor, "B D"], name: str) -> Float[Tensor, "B P"]:
        return x[:, self.slices[name]]

    def size(self, name: str) -> int:
        return self.slices[name].stop - self.slices[name].start

    def columns(self, names: Sequence[str], device=None) -> Int[Tensor, " F"]:
        """Where parts stand in the row."""
        numbers = [c for n in names for c in range(self.slices[n].start, self.slices[n].stop)]
        return torch.tensor(numbers, dtype=torch.long, device=device)

    def mask(self, free: tuple[str, ...], device=None) -> Float[Tensor, " D"]:
        """1 where a part of the row is free."""
        mask = torch.zeros(len(self), device=device)
        for name in free:
            mask[self.slices[name]] = 1
        return mask

    @cached_property
    def joint_rows(self) -> dict[str, list[int]]:
        """The joints of the tree that each part turns."""
        joints = self.model.joints
        hand = lambda side: [
            i
            for i, n in enumerate(joints.names)
            if self.size(f"{side}_hand") and n.startswith(side) and n in self._fingers and n[-1].isdigit()
        ]
        return {
            "orient": [0],
            "body": joints.indices(self.body_joints),
            "left_hand": hand("left"),
            "right_hand": hand("right"),
            "jaw": joints.indices(["jaw"]) if "jaw" in joints else [],
            "eyes": joints.indices(["left_eye_smplhf", "right_eye_smplhf"]) if "left_eye_smplhf" in joints else [],
        }

    @cached_property
    def _order(self) -> list[int]:
        """For each joint of the tree, its place in [root, body, left hand, right hand, jaw, eyes, zero]."""
        placed = [i for rows in self.joint_rows.values() for i in rows]
        return [placed.index(i) if i in placed else len(placed) for i in range(len(self.model.joints))]

    def hand_mixing(self, part: str) -> Float[Tensor, "45 P"]:
        """How the rotation vectors of a hand's joints follow from its part of the row."""
        components = self.model.hand_components
        assert components is not None, "a part of a hand has no size in a body without hands"
        return components[("left_hand", "right_hand").index(part), : self.size(part)].T

    def decoded(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """The rows with the pose that their codes mean."""
        if self.latent is None:
            return x
        pose = self.latent.decode(self.part(x, "code")).flatten(1)
        return torch.cat([x[:, : self.slices["body"].start], pose, x[:, self.slices["body"].stop :]], 1)

    def params(self, x: Float[Tensor, "B D"]) -> BodyParams:
        """The body that the rows mean, in camera space (the root's rotation holds the turn from y up to y down)."""
        three = lambda t: t.reshape(len(x), -1, 3)
        blocks = [three(self.part(x, "orient")), three(self.part(x, "body"))]
        for side in ("left", "right"):
            coeffs = self.part(x, f"{side}_hand")
            if coeffs.shape[1]:
                blocks.append(three(self.model.hand_pose_from_pca(coeffs, side)))
        blocks += [three(self.part(x, "jaw")), three(self.part(x, "eyes")), torch.zeros_like(x[:, None, :3])]
        pose = torch.cat(blocks, 1)[:, self._order]
        expression = self.part(x, "expression")
        return BodyParams(
            pose, self.part(x, "shape"), self.part(x, "transl"), expression if expression.shape[1] else None
        )
