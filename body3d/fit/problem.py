"""The fit of a batch of rows (people × starts): what each row is compared with, and every weighted term of the objective."""

from collections.abc import Sequence
from dataclasses import dataclass

import roma
import torch
from jaxtyping import Float, Int
from torch import Tensor

from body3d.body.definitions import Mixture, mixing_matrix, mixtures, parts_of
from body3d.body.model import BodyModel
from body3d.body.priors import MaxMixturePrior
from body3d.camera import Camera
from body3d.fit import terms
from body3d.fit.solve import Minimum, lbfgs
from body3d.fit.terms import State, Target
from body3d.fit.unknowns import Unknowns
from body3d.skeletons import FACE68, HAND_POINTS
from body3d.types import Keypoints2D, Keypoints3D


@dataclass(frozen=True)
class Stage:
    """The weights of one stage. Priors count with the square of their weight, bending with the weight itself, as published."""

    pose: float
    shape: float
    expression: float
    hand: float
    jaw: tuple[float, float, float]
    bending: float
    hand_joints: float
    face_joints: float
    directions: float = 4.78  # of the detector's 3D, persistent; SMPLify-X has none
    eyes: float = 20.0  # SMPLify-X has no prior on the eyes, so they drift
    ignored_joints: float = 0.0


# Keypoints that do not pull: annotators differ too much about them (SMPLify-X: neck and both hips).
IGNORED = frozenset({"neck", "left_hip", "right_hip", "mid_hip"})
LEAN = (
    0.15  # radians: how far a detector's upright differs from the truth; BlazePose leans its people towards the camera
)
STANDING_HEIGHT = 1.7  # metres: what `person_px` refers to

# The bones whose directions a given 3D pose passes on; each end is a mean of joints.
_SHOULDERS, _HIPS = ("left_shoulder", "right_shoulder"), ("left_hip", "right_hip")
BONES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (_HIPS, _SHOULDERS),
    (_SHOULDERS, ("nose",)),
    (("left_shoulder",), ("right_shoulder",)),
    (("left_hip",), ("right_hip",)),
    (("left_ear",), ("right_ear",)),
    *(
        ((f"{side}_{a}",), (f"{side}_{b}",))
        for side in ("left", "right")
        for a, b in (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"), ("heel", "big_toe"))
    ),
)


class Problem:
    def __init__(
        self,
        model: BodyModel,
        prior: MaxMixturePrior,
        keypoints: Keypoints2D,
        camera: Camera,
        world: Keypoints3D | None,
        on_body: dict[str, Mixture],
        data_weight: float,
        sigma: float,
        direction_sigma: float,
        unknowns: Unknowns,
    ):
        self.model, self.camera, self.unknowns = model, camera, unknowns
        self.prior = prior.over([n for n in prior.joints if n in model.joints])
        self.prior_rows = model.joints.indices(self.prior.joints)
        self.data_weight, self.sigma, self.direction_sigma = data_weight, sigma, direction_sigma
        device = keypoints.xy.device

        found = mixtures(model.keypoints, keypoints.joints, on_body)
        self.names = tuple(found)
        has = lambda bone, names: all(n in names for end in bone for n in end)
        self.bones = tuple(b for b in BONES if world and has(b, world.joints) and has(b, model.keypoints))
        wanted = (*parts_of(found), *(n for bone in self.bones for end in bone for n in end))
        points = tuple(dict.fromkeys(wanted))
        self.points = model.subset(points)
        self.mix = mixing_matrix(found, points).to(keypoints.xy)
        self.bone_mix = _bone_matrix(self.bones, points).to(keypoints.xy)

        columns = keypoints.joints.indices(self.names)
        self.xy = keypoints.xy[:, columns].nan_to_num()
        self.conf = torch.where(keypoints.xy[:, columns].isfinite().all(-1), keypoints.conf[:, columns], 0.0)
        self.bone_length = (self.bone_mix @ self.points(model.zero_params(1))[0]).norm(dim=-1)
        self.given, self.given_conf = _given_directions(world, self.bones, self.xy, self.conf, camera)

        hands = {n for side in HAND_POINTS.values() for n in side}
        self.is_hand = torch.tensor([n in hands for n in self.names], device=device)
        self.is_face = torch.tensor([n in FACE68 for n in self.names], device=device)
        self.is_ignored = torch.tensor([n in IGNORED for n in self.names], device=device)
        self.is_body = ~(self.is_hand | self.is_face)

    def weights(self, stage: Stage) -> Float[Tensor, "K"]:
        one = torch.ones_like(self.conf[0])
        weight = torch.where(
            self.is_hand, stage.hand_joints * one, torch.where(self.is_face, stage.face_joints * one, one)
        )
        return torch.where(self.is_ignored, stage.ignored_joints * one, weight)

    def target(self, people: Int[Tensor, "B"], person_px: Float[Tensor, "B"]) -> Target:
        """What rows of these people are compared with."""
        return Target(
            self.xy[people], self.conf[people], person_px, self.given[people], self.given_conf[people], self.bone_length
        )

    def keypoints_3d(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B K 3"]:
        """The body's counterparts of the keypoints, camera space, metres."""
        return self.mix @ self.points(self.unknowns.params(x))

    def state(self, x: Float[Tensor, "B D"], target: Target) -> State:
        params = self.unknowns.params(x)
        points = self.points(params)
        bones = self.bone_mix @ points
        directions = bones / (bones.square().sum(-1, keepdim=True) + 1e-12).sqrt()
        part = lambda name: self.unknowns.part(x, name)
        return State(part, params, self.camera.project(self.mix @ points), directions, target)

    def terms(self, x: Float[Tensor, "B D"], target: Target, stage: Stage) -> dict[str, Float[Tensor, "B"]]:
        """Every term by name, weights included: their sum is the objective."""
        s = self.state(x, target)
        square = lambda name: s.part(name).square().sum(-1)
        out = {
            "reprojection": self.data_weight**2 * terms.data(s, self.weights(stage), self.sigma),
            "pose_prior": stage.pose**2 * self.prior(s.params.pose[:, self.prior_rows]),
            "shape_prior": stage.shape**2 * square("shape"),
            "bending": stage.bending * terms.bending(s, self.model.joints),
        }
        if self.bones:
            out["directions"] = stage.directions**2 * terms.directions(s, self.direction_sigma)
            out["lean_prior"] = stage.directions**2 * square("lean") / (2 * LEAN**2)
        weights = {
            "left_hand": stage.hand,
            "right_hand": stage.hand,
            "eyes": stage.eyes,
            "expression": stage.expression,
        }
        for name, weight in weights.items():
            if s.part(name).shape[1]:
                out[f"{name}_prior"] = weight**2 * square(name)
        if s.part("jaw").shape[1]:
            out["jaw_prior"] = (s.part("jaw") * s.part("jaw").new_tensor(stage.jaw)).square().sum(-1)
        return out

    def minimise(
        self, x: Tensor, target: Target, stage: Stage, iterations: int, free: Sequence[str] | None = None
    ) -> Minimum:
        """The rows at a minimum of the stage's objective; `free` names the parts that move (default all)."""
        mask = self.unknowns.mask(tuple(free) if free else tuple(self.unknowns.slices), x.device)
        cost = lambda y: torch.stack(list(self.terms(torch.where(mask > 0, y, x), target, stage).values())).sum(0)
        return lbfgs(cost, x, iterations)


def _bone_matrix(bones: Sequence, points: tuple[str, ...]) -> Float[Tensor, "M P"]:
    matrix = torch.zeros(len(bones), len(points))
    for m, (start, end) in enumerate(bones):
        for sign, names in ((-1.0, start), (1.0, end)):
            for n in names:
                matrix[m, points.index(n)] += sign / len(names)
    return matrix


def ray_rotation(xy: Float[Tensor, "N K 2"], conf: Float[Tensor, "N K"], camera: Camera) -> Float[Tensor, "N 3 3"]:
    """The rotation that takes the camera's axis to the ray through the middle of each person's keypoints, without roll."""
    middle = (conf[..., None] * xy).sum(1) / conf.sum(1).clamp_min(1e-6)[:, None]
    uv = torch.linalg.solve(camera.K[:2, :2], (middle - camera.K[:2, 2]).mT).mT
    # About the axis z × ray = (-v, u, 0), by the angle between the two.
    tangent = uv.norm(dim=-1, keepdim=True)
    axis = torch.stack([-uv[:, 1], uv[:, 0], torch.zeros_like(uv[:, 0])], -1) / tangent.clamp_min(1e-9)
    return roma.rotvec_to_rotmat(axis * torch.atan(tangent))


def _given_directions(
    world: Keypoints3D | None, bones: Sequence, xy: Tensor, conf: Tensor, camera: Camera
) -> tuple[Float[Tensor, "N M 3"], Float[Tensor, "N M"]]:
    """Unit directions and confidences of the bones of a detector's 3D pose, turned from its crop's axis to the camera's.

    A network that sees a crop gives depth along the ray through the crop's middle, not along the camera's axis.
    """
    if world is None or not bones:
        return xy.new_zeros(len(xy), 0, 3), xy.new_zeros(len(xy), 0)
    matrix = _bone_matrix(bones, world.joints.names).to(xy)
    d = matrix @ world.xyz.nan_to_num()
    confidence = torch.where(matrix != 0, world.conf.unsqueeze(1), torch.inf).amin(-1)
    d = d @ ray_rotation(xy, conf, camera).mT
    return d / d.norm(dim=-1, keepdim=True).clamp_min(1e-9), confidence
