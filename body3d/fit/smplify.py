"""SMPLify: a body from the 2D joints of one photo (Bogo et al., ECCV 2016), and the single stage that SPIN makes of it.

Where the paper and the released code differ, this follows the code, whose numbers the paper's results were made with:
* a keypoint counts with the square of its confidence (paper: with the confidence), the robustifier is of each coordinate;
* bending is exp(2 θ), the square of the paper's exp(θ), with the factor (3.17 × weight of the pose)²;
* the interpenetration term counts (1000²) in all four stages, and moves the pose alone: it would make people thin;
* of two orientations the one with the smaller data term is kept.
The solver differs from both: they use Powell's dogleg (chumpy: up to 100 iterations a stage, stop at a relative change of 1e-4);
here it is L-BFGS, as in SMPLify-X. Residuals are in pixels of the photo, so the weights suit people of some hundred pixels.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from body3d.body.capsules import body_capsules
from body3d.body.definitions import Mixture
from body3d.body.interop import params_to_smplx
from body3d.body.model import BodyModel
from body3d.body.priors import MaxMixturePrior
from body3d.camera import Camera
from body3d.fit.published import Objective, PoseSpace, Stage, Unknowns, mixture_pose, objective
from body3d.fit.published_person import PublishedFit, Schedule, fit_person, result
from body3d.skeletons import FACE68, HAND_POINTS
from body3d.types import BodyParams, Keypoints2D

__all__ = [
    "SMPLIFY_STAGES",
    "SPIN_STAGE",
    "SmplifyOptions",
    "estimate_translation",
    "smplify",
    "sphere_penetration",
    "spin",
]

# The weights of pose and shape; bending follows the pose's.
SMPLIFY_STAGES = tuple(
    Stage(pose, shape, (3.17 * pose) ** 2, penetration=1000.0**2)
    for pose, shape in ((404.0, 100.0), (404.0, 50.0), (57.4, 10.0), (4.78, 5.0))
)
SPIN_STAGE = Stage(4.78, 5.0, 15.2**2)

IGNORED = ("left_hip", "right_hip", "neck")  # the annotators' hips are not SMPL's; the neck is not compared at all
NOT_BODY = (*FACE68.names, *HAND_POINTS["left"], *HAND_POINTS["right"])
CROWN = 411  # the vertex of SMPL's mesh that stands for the top of the head
SMPL_VERTICES = 6890
OfParams = Callable[[BodyParams], Float[Tensor, " B"]]


@dataclass(frozen=True)
class SmplifyOptions:
    """The published settings."""

    stages: tuple[Stage, ...] = SMPLIFY_STAGES
    schedule: Schedule = field(default_factory=Schedule)
    sigma: float = 100.0  # pixels, of the robustifier
    num_shape: int = 10
    side_view_px: float = 25.0  # shoulders closer than this: both orientations are tried


def smplify(
    model: BodyModel,
    keypoints: Keypoints2D,
    camera: Camera,
    prior: MaxMixturePrior | None = None,
    penetration: OfParams | None = None,
    options: SmplifyOptions = SmplifyOptions(),
    on_body: Mapping[str, Mixture] | None = None,
    orient: Float[Tensor, "N 3"] | None = None,
) -> list[PublishedFit]:
    """One result for each person of `keypoints` (N, J), fitted one after another, in camera space.

    `camera` is the photo's (R = 1, t = 0); published is a focal length of 5000 pixels (`published.published_camera`). `prior` is
    SMPLify's mixture of eight Gaussians for SMPL (`MaxMixturePrior.load("gmm_08.pkl")`); None takes the shipped one.
    `penetration` gives what each body costs for passing through itself, before the weight: published is `sphere_penetration`;
    without it the term is left out. `on_body` says where keypoints lie on the body where their names do not. `orient` is the root's
    rotation at which the camera's step begins; published is zero, which stands on its head in the photo.

    The published joints are LSP's without hips and neck; of other sets those of the body count, not hands and face. InputError for
    a person of whom no shoulder is known with the hip of its side.
    """
    space = mixture_pose(model, prior or MaxMixturePrior.shipped())
    target = _objective(model, keypoints, camera, space, penetration, options.sigma, on_body)
    orient = target.xy.new_zeros(len(target.xy), 3) if orient is None else orient
    rest = {"pose": space.start[None], "betas": target.xy.new_zeros(1, min(options.num_shape, model.num_shape))}
    return [
        fit_person(
            target.person(n), keypoints[n], rest | {"global_orient": orient[n : n + 1]}, options.stages, options.schedule,
            options.side_view_px, "reprojection",
        )
        for n in range(len(target.xy))
    ]  # fmt: skip


def _objective(
    model: BodyModel, keypoints: Keypoints2D, camera: Camera, space: PoseSpace, penetration: OfParams | None, sigma: float,
    on_body: Mapping[str, Mixture] | None,
) -> Objective:  # fmt: skip
    vertices = {"head_top": CROWN} if len(model.template) == SMPL_VERTICES else None
    shapeless = None
    if penetration is not None:
        shapeless = lambda params, _body: penetration(replace(params, shape=params.shape.detach()))
    return objective(model, space, keypoints, camera, 1.0, sigma, IGNORED, NOT_BODY, on_body, vertices, shapeless)


def sphere_penetration(model: BodyModel) -> OfParams:
    """SMPLify's interpenetration term: sum of exp(-d² / (s² + t²)) over pairs of spheres at a distance d, s and t a third of
    their radii.

    The spheres fill capsules, about a radius apart. SMPLify regresses its capsules from examples; here they are made of the mesh
    (`body.capsules`), so any body has them. Fingers have none.
    """
    capsules = body_capsules(model, fingers=False)
    start, stop = capsules.ends(model.zero_params(1))[0].tensor_split(2)
    count = 1 + ((stop - start).norm(dim=-1) / capsules.radius).ceil().long()
    owner = torch.arange(len(count), device=count.device).repeat_interleave(count)
    along = torch.cat([torch.linspace(0, 1, n) for n in count.tolist()]).to(start).unsqueeze(-1)
    collide = torch.zeros(len(count), len(count), dtype=torch.bool, device=count.device)
    collide[tuple(capsules.pairs.T)] = True
    first, second = collide[owner][:, owner].nonzero().unbind(-1)

    def cost(params: BodyParams) -> Float[Tensor, " B"]:
        start, stop = capsules.ends(params).tensor_split(2, -2)
        centre = torch.lerp(start[:, owner], stop[:, owner], along)
        spread = (capsules.radii(params.shape)[:, owner] / 3).square()
        apart = (centre[:, first] - centre[:, second]).square().sum(-1)
        return (-apart / (spread[:, first] + spread[:, second])).exp().sum(-1)

    return cost


# ---- SPIN ----------------------------------------------------------------------------------------------------------
def spin(
    model: BodyModel,
    keypoints: Keypoints2D,
    camera: Camera,
    start: BodyParams,
    prior: MaxMixturePrior | None = None,
    iterations: int = 100,
    rate: float = 1e-2,
    sigma: float = 100.0,
    on_body: Mapping[str, Mixture] | None = None,
) -> list[PublishedFit]:
    """SMPLify in the loop of SPIN (Kolotouros et al., ICCV 2019): one stage of Adam from a network's `start` (N) in camera space.

    `iterations` for translation and root rotation on the torso's joints, then as many for all rotations and the shape; every
    person of the batch at once, which for Adam is the same as one after another. Published for crops of 224 × 224 pixels at a focal
    length of 5000. Hands, face and expression of `start` are not kept. The seconds are the batch's, divided by its people.
    """
    began = time.perf_counter()
    space = mixture_pose(model, prior or MaxMixturePrior.shipped())
    target = _objective(model, keypoints, camera, space, None, sigma, on_body)
    given = params_to_smplx(start, model)
    x = {name: given[name] for name in ("global_orient", "betas", "transl")} | {"pose": given["body_pose"]}
    depth = start.transl[:, 2]
    x = _adam(lambda y: target.camera_cost(y, depth), x, ("transl", "global_orient"), iterations, rate)
    x = _adam(lambda y: target.cost(y, SPIN_STAGE), x, ("pose", "betas", "global_orient"), iterations, rate)
    seconds = (time.perf_counter() - began) / len(keypoints.xy)
    row = lambda n: {name: value[n : n + 1] for name, value in x.items()}
    return [
        replace(
            result(target.person(n), keypoints[n], row(n), SPIN_STAGE), iterations=2 * iterations, converged=False,
            seconds=seconds, start="given", camera_closures=iterations, stage_closures=(iterations,),
        )
        for n in range(len(keypoints.xy))
    ]  # fmt: skip


def _adam(
    cost: Callable[[Unknowns], Float[Tensor, " B"]],
    start: Unknowns,
    free: tuple[str, ...],
    iterations: int,
    rate: float,
) -> Unknowns:
    x = {name: value.detach().clone().requires_grad_(name in free) for name, value in start.items()}
    optimizer = torch.optim.Adam([x[name] for name in free], rate)
    for _ in range(iterations):
        optimizer.zero_grad()
        cost(x).sum().backward()
        optimizer.step()
    return {name: value.detach() for name, value in x.items()}


def estimate_translation(
    points: Float[Tensor, "B K 3"], xy: Float[Tensor, "B K 2"], conf: Float[Tensor, "B K"], K: Float[Tensor, "3 3"]
) -> Float[Tensor, "B 3"]:
    """SPIN's `estimate_translation`: the translation (m) that solves f (X + tx) = u (Z + tz), f (Y + ty) = v (Z + tz) best.

    The least squares count by `conf`; u and v are pixels from the principal point. Nothing keeps the answer before the camera.
    """
    focal = K.diagonal()[:2]
    uv = xy - K[:2, 2]
    A = torch.cat([torch.diag(focal).expand(*uv.shape, 2), -uv.unsqueeze(-1)], -1)
    b = uv * points[..., 2:] - focal * points[..., :2]
    weight = conf.sqrt().repeat_interleave(2, -1).unsqueeze(-1)
    A, b = weight * A.flatten(1, 2), weight * b.flatten(1).unsqueeze(-1)
    return torch.linalg.solve(A.mT @ A, A.mT @ b).squeeze(-1)
