"""The fit of a batch of rows (people × starts): what each row is compared with, and every weighted term of the objective."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import compress
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from body3d.body.definitions import Mixture, mixing_matrix, mixtures, parts_of
from body3d.body.model import BodyModel
from body3d.body.priors import BENDING, MaxMixturePrior
from body3d.camera import Camera
from body3d.fit import terms
from body3d.fit.collision import CapsuleTerm
from body3d.fit.given import Given3D, bone_matrix, bones_of, directions, ray_rotation
from body3d.fit.lm import levenberg_marquardt
from body3d.fit.residuals import Quadratics
from body3d.fit.solve import Minimum, lbfgs
from body3d.fit.terms import State, Target
from body3d.fit.unknowns import Unknowns
from body3d.skeletons import FACE68, HAND_POINTS
from body3d.types import BodyParams, Keypoints2D

__all__ = ["IGNORED", "STANDING_HEIGHT", "SWAPS", "Problem", "Solver", "Stage", "Trust", "ray_rotation", "swapped"]

Solver = Literal["lm", "lbfgs"]
DETAILS = ("left_hand", "right_hand", "jaw", "eyes", "expression")  # parts of a row that body keypoints hardly see


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
    directions: float = 4.78  # of given 3D poses, persistent; SMPLify-X has none
    eyes: float = 20.0  # SMPLify-X has no prior on the eyes, so they drift
    ignored_joints: float = 0.0
    body_joints: float = 1.0
    collision: float = 0.0  # of a metre that capsules are in each other; squared


# Times the weight of keypoints, and times their usual residual, with a 3D pose beside them.
BESIDE_3D = (2.0, 0.75)


@dataclass(frozen=True)
class Trust:
    """How far the keypoints and whatever else is known are believed."""

    # Times SMPLify-X's data weight, which trusts keypoints to 0.5 % of the person; detectors err by 2-3 %.
    data: float = 0.35
    # The median residual, as a part of the person's height, of a fit whose keypoints deserve the weight `data`. In the last stage
    # the weight follows what the residuals were before; None: it does not.
    usual_residual: float | None = 0.011
    sigma: float = 50.0  # of the robustifier, in thousandths of 1.5 standing heights: 7.5 % of the person
    direction_sigma: float = 0.06  # metres, of the bones of a 3D pose that comes without deviations
    height: float | None = None  # metres, of the people, if it is known
    height_sigma: float = 0.02  # metres: how far a known height is from the model's
    # Metres, where nothing is known: mean and deviation, beside what the prior on the shape says.
    usual_height: tuple[float, float] = (1.7, 0.3)

    def beside_3d(self) -> "Trust":
        """Of keypoints with a 3D pose beside them: it holds the depth, which would follow their noise if they were followed as
        closely without it."""
        usual = None if self.usual_residual is None else BESIDE_3D[1] * self.usual_residual
        return replace(self, data=BESIDE_3D[0] * self.data, usual_residual=usual)


# Keypoints that do not pull: annotators differ too much about them (SMPLify-X: neck and both hips).
IGNORED = frozenset({"neck", "left_hip", "right_hip", "mid_hip"})
LEAN = 0.15  # radians: how far a source's upright differs from the truth where it leans
TOLERANCE = 3e-4  # of the cost: what a last step may still promise to lower; a third of it costs a quarter more time for nothing
STANDING_HEIGHT = 1.7  # metres: what `person_px` refers to

# Limbs whose left and right a detector may have mixed up: what the names of their keypoints begin with after the side.
SWAPS: dict[str, tuple[str, ...]] = {
    "arms": ("elbow", "wrist"),
    "legs": ("knee", "ankle", "heel", "big_toe", "small_toe"),
}


class Problem:
    """`swap` of a row is 0 for the keypoints as they came, k for those of the k-th of `SWAPS` with left and right exchanged."""

    def __init__(
        self,
        model: BodyModel,
        prior: MaxMixturePrior,
        keypoints: Keypoints2D,
        camera: Camera,
        given: Sequence[Given3D] = (),
        on_body: dict[str, Mixture] | None = None,
        trust: Trust = Trust(),
        unknowns: Unknowns | None = None,
    ):
        self.model, self.camera, self.trust = model, camera, trust
        self.unknowns = unknowns or Unknowns(model)
        self.prior = prior.over([n for n in prior.joints if n in model.joints])
        self.prior_rows = model.joints.indices(self.prior.joints)
        self.bending = torch.zeros(self.unknowns.size("body")).to(keypoints.xy)
        for joint, axis, sign in BENDING:
            self.bending[3 * self.unknowns.body_joints.index(joint) + axis] = sign
        self.found = mixtures(model.keypoints, keypoints.joints, on_body)

        stated = [bones_of(source.keypoints.joints.names, model.keypoints.names) for source in given]
        self.bones = tuple(dict.fromkeys(bone for bones in stated for bone in bones))
        self.stated = [self.bones.index(bone) for bones in stated for bone in bones]  # the bone of each statement
        self.leans = torch.tensor(
            [float(source.lean) for source, bones in zip(given, stated, strict=True) for _ in bones]
        ).to(keypoints.xy)
        self.source = [s for s, bones in enumerate(stated) for _ in bones]
        self._capsules: CapsuleTerm | None = None
        self._observe(keypoints, tuple(self.found))
        rest = (self.bone_mix @ self.points(model.zero_params(1))[0]).norm(dim=-1)
        usual = rest[self.stated].split([len(bones) for bones in stated])
        self.given = directions(given, stated, usual, self.xy, self.conf, camera, trust.direction_sigma)

        top, bottom = model.template[:, 1].argmax(), model.template[:, 1].argmin()
        self.rest_height = model.template[top, 1] - model.template[bottom, 1]
        dirs = model.shape_dirs[: self.unknowns.size("shape")]
        self.height_by_shape = dirs[:, top, 1] - dirs[:, bottom, 1]

    def _observe(self, keypoints: Keypoints2D, names: tuple[str, ...]) -> None:
        """What the body's points are and which keypoints they are compared with."""
        found = {n: self.found[n] for n in names}
        points = tuple(dict.fromkeys((*parts_of(found), *(n for bone in self.bones for end in bone for n in end))))
        self.keypoints, self.names = keypoints, names
        self.points = self.model.subset(points)
        self.mix = mixing_matrix(found, points).to(keypoints.xy)
        self.bone_mix = bone_matrix(self.bones, points).to(keypoints.xy)
        columns = keypoints.joints.indices(names)
        known = keypoints.xy[:, columns].isfinite().all(-1)
        self.xy = keypoints.xy[:, columns].nan_to_num(0.0, 0.0, 0.0)
        self.conf = torch.where(known, keypoints.conf[:, columns].nan_to_num().clamp_min(0.0), 0.0)
        self.columns = torch.tensor(
            [swapped(names, limb) for limb in ((), *SWAPS.values())], dtype=torch.long, device=keypoints.xy.device
        )

        hands = {n for side in HAND_POINTS.values() for n in side}
        flags = lambda of: torch.tensor([n in of for n in names], dtype=torch.bool, device=keypoints.xy.device)
        self.is_hand, self.is_face, self.is_ignored = flags(hands), flags(FACE68), flags(IGNORED)
        self.is_body = ~(self.is_hand | self.is_face)
        self._seen: dict[tuple[str, ...], Problem] = {}
        self._quadratics: Quadratics | None = None

    def seen(self, stage: Stage) -> "Problem":
        """The same problem with only the keypoints that count in a stage for anybody: the others would cost time."""
        counts = (self.weights(stage) > 0) & (self.conf > 0).any(0)
        names = tuple(compress(self.names, counts.tolist()))
        if names == self.names:
            return self
        if names not in self._seen:
            self._seen[names] = copy(self)
            self._seen[names]._observe(self.keypoints, names)
        return self._seen[names]

    def weights(self, stage: Stage) -> Float[Tensor, " K"]:
        one = torch.ones_like(self.conf[0])
        weight = torch.where(self.is_hand, stage.hand_joints * one, stage.body_joints * one)
        weight = torch.where(self.is_face, stage.face_joints * one, weight)
        return torch.where(self.is_ignored, stage.ignored_joints * stage.body_joints * one, weight)

    def target(
        self,
        people: Int[Tensor, " B"],
        person_px: Float[Tensor, " B"],
        swap: Int[Tensor, " B"] | None = None,
        belief: Float[Tensor, " B"] | None = None,
    ) -> Target:
        """What rows of these people are compared with; `belief` multiplies the confidences."""
        xy, conf = self.xy[people], self.conf[people]
        if swap is not None:
            columns = self.columns[swap]
            xy, conf = xy.take_along_dim(columns.unsqueeze(-1), 1), conf.take_along_dim(columns, 1)
        if belief is not None:
            conf = conf * belief.unsqueeze(-1)
        return Target(xy, conf, person_px, self.given[people])

    def keypoints_3d(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B K 3"]:
        """The body's counterparts of the keypoints, camera space, metres."""
        return self.mix @ self.points(self.unknowns.params(x))

    def state(
        self,
        x: Float[Tensor, "B D"],
        target: Target,
        params: BodyParams,
        keypoints: Float[Tensor, "B K 3"],
        bones: Float[Tensor, "B M 3"],
        depth: Float[Tensor, "B N"],
    ) -> State:
        """What terms share, from the rows, the body they mean, its counterparts of the keypoints, its bones and `depth` (m)."""
        unit = bones / (bones.square().sum(-1, keepdim=True) + 1e-12).sqrt()
        whitened, likelihood = self.prior.components(params.pose[:, self.prior_rows])
        part = lambda name: self.unknowns.part(x, name)
        stated = unit[:, self.stated]
        return State(part, self.camera.project(keypoints), stated, self.leans, whitened, likelihood, depth, target)

    def ridge(self, stage: Stage) -> dict[str, float | Tensor]:
        """The parts of a row that are drawn to zero, and what the squares of their numbers count."""
        out = {
            "shape": stage.shape**2,
            "left_hand": stage.hand**2,
            "right_hand": stage.hand**2,
            "eyes": stage.eyes**2,
            "expression": stage.expression**2,
            "jaw": self.xy.new_tensor(stage.jaw).square(),
        }
        if self.bones:
            out["lean"] = stage.directions**2 / (2 * LEAN**2)
        out["code"] = stage.pose**2
        return {name: weight for name, weight in out.items() if self.unknowns.size(name)}

    def height(self, stage: Stage) -> tuple[float, float]:
        """The height (m) that people are drawn to, and the root of what a metre off it counts: it is a part of the shape."""
        trust = self.trust
        mean, sigma = trust.usual_height if trust.height is None else (trust.height, trust.height_sigma)
        return mean, stage.shape / sigma

    def costs(self, s: State, stage: Stage) -> dict[str, Float[Tensor, " B"]]:
        """Every term by name, weights included: their sum is the objective."""
        height, root = self.height(stage)
        out = {
            "reprojection": self.trust.data**2 * terms.data(s, self.weights(stage), self.trust.sigma),
            "bending": stage.bending * terms.bending(s, self.bending),
            "height": (root * (self.rest_height + s.part("shape") @ self.height_by_shape - height)).square(),
        }
        if self.unknowns.latent is None:
            out["pose_prior"] = stage.pose**2 * s.likelihood.amin(-1)
        if stage.collision > 0:
            out["collision"] = stage.collision**2 * s.depth.square().sum(-1)
        if self.bones:
            out["directions"] = stage.directions**2 * terms.directions(s)
        for name, weight in self.ridge(stage).items():
            out[f"{name}_prior"] = (weight * s.part(name).square()).sum(-1)
        return out

    def terms(self, x: Float[Tensor, "B D"], target: Target, stage: Stage) -> dict[str, Float[Tensor, " B"]]:
        """The costs of rows of unknowns."""
        x = self.unknowns.decoded(x)
        params = self.unknowns.params(x)
        points = self.points(params)
        depth = self.capsules.depth(params) if stage.collision > 0 else points.new_zeros(len(x), 0)
        return self.costs(self.state(x, target, params, self.mix @ points, self.bone_mix @ points, depth), stage)

    @property
    def capsules(self) -> CapsuleTerm:
        self._capsules = self._capsules or CapsuleTerm(self.model, self.unknowns)
        return self._capsules

    @property
    def quadratics(self) -> Quadratics:
        self._quadratics = self._quadratics or Quadratics(self)
        return self._quadratics

    def parts(self) -> list[str]:
        """The parts of a row that a keypoint or a bone depends on; the others are best at their prior's zero."""
        idle = [n for n in DETAILS if not self.quadratics.points.moved_by(n)] + ["lean"] * (not self.leans.any())
        idle.append("code" if self.unknowns.latent is None else "body")
        return [n for n in self.unknowns.slices if n not in idle]

    def minimise(
        self,
        x: Float[Tensor, "B D"],
        target: Target,
        stage: Stage,
        iterations: int,
        free: Sequence[str] | None = None,
        solver: Solver = "lm",
    ) -> Minimum:
        """The rows at a minimum of the stage's objective; `free` names the parts that move (default all).

        Where the pose is latent, "body" stands for its code.
        """
        x, decoded = self.unknowns.decoded(x), self.unknowns.decoded
        if free and self.unknowns.latent is not None:
            free = ["code" if n == "body" else n for n in free]
        if solver == "lbfgs":
            mask = self.unknowns.mask(tuple(free or self.unknowns.slices), x.device)
            cost = lambda y: torch.stack(list(self.terms(torch.where(mask > 0, y, x), target, stage).values())).sum(0)
            out = lbfgs(cost, x, iterations)
            return replace(out, x=decoded(out.x))
        active = self.parts()
        start = x.index_fill(
            1, self.unknowns.columns([n for n in self.unknowns.slices if n not in active], x.device), 0
        )
        parts = [n for n in free or active if n in active]
        columns = self.unknowns.columns(parts, x.device)
        row = lambda y, rows: decoded(start[rows].index_copy(1, columns, y))
        model = lambda y, rows: self.quadratics(row(y, rows), target[rows], stage, parts)
        out = levenberg_marquardt(model, start[:, columns], iterations, TOLERANCE)
        return replace(out, x=decoded(start.index_copy(1, columns, out.x)))


def swapped(names: Sequence[str], limb: Sequence[str]) -> list[int]:
    """The columns of the keypoints with left and right of a limb exchanged."""
    other = {f"{a}_{n}": f"{b}_{n}" for n in limb for a, b in (("left", "right"), ("right", "left"))}
    return [names.index(other[n]) if other.get(n) in names else i for i, n in enumerate(names)]
