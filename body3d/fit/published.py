"""What the published fits of a body to the keypoints of one photo minimise: SMPLify (Bogo et al., ECCV 2016) and SMPLify-X
(Pavlakos et al., CVPR 2019).

They are the reference that faster fits are measured against: nothing here is tuned. The two share the terms, the guess of the
camera and the cost by which it is placed; `smplify` and `smplifyx_published` hold what differs, the tables of stages, priors and
unknowns; `published_person` goes through the stages.

The camera stands at the origin and looks along +z with y down; what the authors call its translation is here the body's.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from body3d.body.definitions import Mixture, mixing_matrix, mixtures
from body3d.body.interop import params_from_smplx
from body3d.body.model import BodyModel
from body3d.body.priors import MaxMixturePrior, bending_prior, gmof
from body3d.body.vposer import VPoser
from body3d.camera import Camera
from body3d.errors import InputError
from body3d.fit.checks import check_camera
from body3d.skeletons import BODY_JOINTS, FACE68, HAND_POINTS, JointSet
from body3d.types import Body, BodyParams, Keypoints2D

__all__ = [
    "TORSO", "Objective", "Penetration", "PoseSpace", "Stage", "Unknowns", "body_joints", "guess_depth", "l2_pose",
    "mixture_pose", "objective", "published_camera", "vposer_pose",
]  # fmt: skip

# The numbers that a fit looks for, one row per person, by the smplx package's names: global_orient (3), betas, expression,
# left_hand_pose and right_hand_pose (principal components), jaw_pose, leye_pose, reye_pose (3), transl (3: the body's in camera
# space, which the authors call the camera's) and `pose`, the numbers of a `PoseSpace`. What is left out is zero.
Unknowns = dict[str, Float[Tensor, "B _"]]
# What a body costs for passing through itself, per row.
Penetration = Callable[[BodyParams, Body], Float[Tensor, " B"]]


# ---- what is published as numbers ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Stage:
    """The weights of one stage, as printed: priors and keypoints count with the square of their weight.

    `bending` and `penetration` multiply their terms as they are: SMPLify squares its weight of bending, SMPLify-X does not.
    """

    pose: float
    shape: float
    bending: float
    expression: float = 0.0
    hand: float = 0.0
    jaw: tuple[float, float, float] = (0.0, 0.0, 0.0)
    hand_joints: float = 0.0
    face_joints: float = 0.0
    penetration: float = 0.0


TORSO = ("right_hip", "left_hip", "right_shoulder", "left_shoulder")  # what places the camera
TORSO_EDGES = (("left_shoulder", "left_hip"), ("right_shoulder", "right_hip"))
DEPTH_WEIGHT = 100.0  # of the depth that similar triangles gave, in the camera's step; squared
FOCAL = 5000.0  # pixels


def published_camera(size: tuple[int, int], focal: float = FOCAL) -> Camera:
    """The camera that both papers assume where nothing is known; `size` is the image's (height, width) in pixels.

    The centre is half the size, as published: half a pixel beside the middle of pixels whose centres are at the integers.
    """
    return Camera.pinhole(focal, size, (size[1] / 2, size[0] / 2))


# ---- how a pose is written, and how likely it is -------------------------------------------------------------------
@dataclass(frozen=True)
class PoseSpace:
    """The numbers that stand for the body's pose in a fit."""

    start: Float[Tensor, " P"]
    rotations: Callable[[Float[Tensor, "B P"]], Float[Tensor, "B Q"]]  # vectors of `body_joints`, side by side
    cost: Callable[[Float[Tensor, "B P"]], Float[Tensor, " B"]]  # before the stage's weight


def body_joints(model: BodyModel) -> tuple[str, ...]:
    """The joints of smplx's `body_pose`: all but the root, the jaw, the eyes and the fingers."""
    face = {"jaw", "left_eye_smplhf", "right_eye_smplhf"}
    finger = lambda name: name.startswith(("left_", "right_")) and name[-1].isdigit()
    return tuple(n for n in model.joints.below_root if n not in face and not finger(n))


def l2_pose(model: BodyModel) -> PoseSpace:
    """Rotation vectors, each drawn to zero: SMPLify-X's `l2` prior.

    The released code cannot start with it: it asks the prior for a mean that it has not. Here the mean is zero.
    """
    start = model.template.new_zeros(3 * len(body_joints(model)))
    return PoseSpace(start, lambda pose: pose, lambda pose: pose.square().sum(-1))


def mixture_pose(model: BodyModel, mixture: MaxMixturePrior) -> PoseSpace:
    """Rotation vectors under a mixture of Gaussians of which the likeliest counts, from the mixture's mean on.

    Joints that the body has and the mixture does not are free; those that only the mixture has are integrated out.
    """
    names = body_joints(model)
    prior = mixture.to(model.template.device, model.template.dtype).over([n for n in mixture.joints if n in names])
    rows = [names.index(n) for n in prior.joints]
    cost = lambda pose: prior(pose.unflatten(-1, (-1, 3))[..., rows, :])
    return PoseSpace(prior.mean_pose(names).flatten(), lambda pose: pose, cost)


def vposer_pose(model: BodyModel, vposer: VPoser) -> PoseSpace:
    """The code of a VPoser, drawn to zero: 32 numbers that it decodes to the rotations of 21 joints.

    SMPL's two rigid hands, which VPoser does not know, stay straight.
    """
    vposer = deepcopy(vposer).to(model.template).eval().requires_grad_(False)
    straight = len(body_joints(model)) - len(BODY_JOINTS)

    def rotations(code: Float[Tensor, "B P"]) -> Float[Tensor, "B Q"]:
        return pad(vposer.decode(code).flatten(1), (0, 3 * straight))

    return PoseSpace(model.template.new_zeros(vposer.latent), rotations, lambda code: code.square().sum(-1))


# ---- the objective -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Objective:
    """What rows of unknowns cost. A row's cost depends on that row alone. Made by `objective`."""

    model: BodyModel
    pose: PoseSpace
    camera: Camera
    names: tuple[str, ...]  # of the K keypoints that the body has
    xy: Float[Tensor, "B K 2"]  # pixels
    conf: Float[Tensor, "B K"]
    mix: Float[Tensor, "K P"]  # the keypoints as mixtures of the body's points, then of `vertices`
    vertices: tuple[int, ...]
    ignored: frozenset[str]
    data_weight: float
    sigma: float
    penetration: Penetration | None

    def person(self, n: int) -> "Objective":
        """That of one person."""
        return replace(self, xy=self.xy[n : n + 1], conf=self.conf[n : n + 1])

    def params(self, x: Unknowns) -> BodyParams:
        given = {name: value for name, value in x.items() if name != "pose"}
        given["body_pose"] = self.pose.rotations(x["pose"])
        return params_from_smplx(given, self.model, use_pca=True, flat_hand_mean=False)

    def points(self, x: Unknowns) -> tuple[BodyParams, Body, Float[Tensor, "B K 3"]]:
        """The body that the rows mean, the whole of it, and its counterparts of the keypoints (m, camera space)."""
        params = self.params(x)
        body = self.model(params)
        points = torch.cat([body.joints.xyz, body.mesh.verts[:, self.vertices]], 1)
        return params, body, self.mix @ points

    def weights(self, stage: Stage) -> Float[Tensor, " K"]:
        """What each keypoint counts, before its confidence and the square."""
        hands = {name for side in HAND_POINTS.values() for name in side}
        of = lambda n: stage.hand_joints if n in hands else stage.face_joints if n in FACE68 else 1.0
        return self.xy.new_tensor([0.0 if n in self.ignored else of(n) for n in self.names])

    def terms(self, x: Unknowns, stage: Stage) -> dict[str, Float[Tensor, " B"]]:
        """Every term by name, weights included: their sum is the objective."""
        params, body, points = self.points(x)
        error = gmof(self.xy - self.camera.project(points), self.sigma)
        weight = (self.weights(stage) * self.conf).square().unsqueeze(-1)
        square = lambda name: x[name].square().sum(-1)
        out = {
            "reprojection": self.data_weight**2 * (weight * error).sum((-2, -1)),
            "pose_prior": stage.pose**2 * self.pose.cost(x["pose"]),
            "shape_prior": stage.shape**2 * square("betas"),
            "bending": stage.bending * bending_prior(params.pose, self.model.joints.names).sum(-1),
        }
        if "left_hand_pose" in x:
            out["hand_prior"] = stage.hand**2 * (self.hand_prior(x, "left") + self.hand_prior(x, "right"))
        if "expression" in x:
            out["expression_prior"] = stage.expression**2 * square("expression")
        if "jaw_pose" in x:
            out["jaw_prior"] = (x["jaw_pose"] * x["jaw_pose"].new_tensor(stage.jaw)).square().sum(-1)
        if self.penetration is not None and stage.penetration > 0:
            out["penetration"] = stage.penetration * self.penetration(params, body)
        return out

    def hand_prior(self, x: Unknowns, side: Literal["left", "right"]) -> Float[Tensor, " B"]:
        """The square of a hand's rotation vectors from the mean hand: of its coefficients, MANO's components being orthonormal."""
        pose = self.model.hand_pose_from_pca(x[f"{side}_hand_pose"], side, flat_hand_mean=True)
        return pose.square().sum((-2, -1))

    def cost(self, x: Unknowns, stage: Stage) -> Float[Tensor, " B"]:
        return torch.stack(list(self.terms(x, stage).values())).sum(0)

    def camera_cost(self, x: Unknowns, depth: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Squares of the torso's four errors and of the way from `depth` (m): what the first step minimises.

        Published without confidences, so a joint that was not found counts as if it stood at pixel (0, 0); here what has
        confidence 0 is left out.
        """
        rows = [self.names.index(n) for n in TORSO]
        error = (self.xy - self.camera.project(self.points(x)[2]))[:, rows].square().sum(-1)
        known = self.conf[:, rows] > 0
        away = x["transl"][:, 2] - depth
        return self.data_weight**2 * (known * error).sum(-1) + DEPTH_WEIGHT**2 * away.square()

    def depth_guess(self, x: Unknowns) -> Float[Tensor, " B"]:
        """The depth (m) at which the sides of the body's torso are as long as the keypoints'."""
        rows = torch.tensor([[self.names.index(n) for n in edge] for edge in TORSO_EDGES], device=self.xy.device)
        known = (self.conf > 0)[:, rows].all(-1)
        return guess_depth(self.points(x)[2][:, rows], self.xy[:, rows], known, self.camera.K[0, 0])


def guess_depth(
    points: Float[Tensor, "B M 2 3"], xy: Float[Tensor, "B M 2 2"], known: Bool[Tensor, "B M"], focal: Float[Tensor, ""]
) -> Float[Tensor, " B"]:
    """Depth by similar triangles, focal × mean length of edges in space / in the image, of the known edges given by their ends."""
    length = lambda ends: (known * (ends[:, :, 0] - ends[:, :, 1]).norm(dim=-1)).sum(-1)
    return focal * length(points) / length(xy)


def objective(
    model: BodyModel,
    pose: PoseSpace,
    keypoints: Keypoints2D,
    camera: Camera,
    data_weight: float,
    sigma: float = 100.0,
    ignored: Sequence[str] = (),
    left_out: Sequence[str] = (),
    on_body: Mapping[str, Mixture] | None = None,
    vertices: Mapping[str, int] | None = None,
    penetration: Penetration | None = None,
) -> Objective:
    """The objective of people (B, J) with a model, its numbers from the papers.

    Keypoints and camera (R = 1, t = 0) are brought to the model's device and floating-point type; a keypoint that is not finite, or
    whose confidence is not, counts as unknown. `ignored` keypoints have no weight in the stages (the camera's step may use them),
    those `left_out` are not looked at. `on_body` says where keypoints lie on the body where their names do not; `vertices` names
    further points of the mesh. Raises InputError for a camera that is turned, moved or projects nothing, and for a person of whom
    no shoulder is known with the hip of its side.
    """
    keypoints, camera = keypoints.to(model.template), camera.to(model.template)
    check_camera(camera)
    vertices = vertices or {}
    points = model.keypoints
    all_points = JointSet("points", (*points.names, *vertices), (*points.parents, *(-1 for _ in vertices)))
    found = mixtures(all_points, keypoints.joints, dict(on_body or {}))
    found = {name: mixture for name, mixture in found.items() if name not in left_out}
    if lacking := [name for name in TORSO if name not in found]:
        raise InputError(
            f"the published fits place the camera by shoulders and hips; {keypoints.joints.name} has no {', '.join(lacking)}"
        )
    names = tuple(found)
    columns = keypoints.joints.indices(names)
    xy, conf = keypoints.xy[:, columns], keypoints.conf[:, columns]
    conf = torch.where(xy.isfinite().all(-1) & conf.isfinite(), conf, 0.0)
    xy = xy.nan_to_num(0.0, 0.0, 0.0)
    ends = [[names.index(n) for n in edge] for edge in TORSO_EDGES]
    seen = (conf[:, ends] > 0).all(-1) & (xy[:, ends].diff(dim=-2).squeeze(-2) != 0).any(-1)
    if not seen.any(-1).all():
        raise InputError(
            f"person {int(seen.any(-1).int().argmin())}: the published fits place the camera by a shoulder and the hip below it, "
            "and neither side has both"
        )
    mix = mixing_matrix(found, all_points.names).to(xy)
    return Objective(
        model, pose, camera, names, xy, conf, mix, tuple(vertices.values()), frozenset(ignored), data_weight, sigma, penetration,
    )  # fmt: skip
