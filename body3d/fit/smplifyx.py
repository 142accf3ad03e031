"""A whole body from 2D keypoints: the objective and the five stages of SMPLify-X (Pavlakos et al., CVPR 2019), many starts at once.

The published table of weights, the robustifier, the form of the priors and the order of the stages are kept. What differs:
* the pose prior is a mixture of Gaussians over rotation vectors (as in SMPLify), learnt from free motion capture: VPoser's
  weights are under a licence that forbids shipping them;
* residuals are scaled by the person's height in the image, not by the image's height, and count by the detector's confidence:
  the same table then fits near and far people;
* the body's translation stays free to the end (SMPLify-X freezes the camera after its first step);
* every fit starts from several facings in one batch (SMPLify-X: from a second one if the shoulders are closer than 25 px), and
  from the detector's own 3D where there is one, which also stays as a term: bone directions at fixed lengths, up to a lean of the
  whole pose that is fitted too;
* the eyes have a prior.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from body3d.body.definitions import Mixture
from body3d.body.model import BodyModel
from body3d.body.priors import MaxMixturePrior
from body3d.camera import Camera
from body3d.errors import InputError
from body3d.fit.problem import STANDING_HEIGHT, Problem, Stage
from body3d.fit.starts import facing, kabsch, translation
from body3d.fit.unknowns import Unknowns
from body3d.types import BodyParams, FitResult, Keypoints2D, Keypoints3D

__all__ = ["SMPLIFYX_STAGES", "Options", "Stage", "fit"]

SMPLIFYX_STAGES = (
    Stage(404.0, 100.0, 100.0, 404.0, (4.04e3, 4.04e4, 4.04e4), 3.17 * 404, hand_joints=0.0, face_joints=0.0),
    Stage(404.0, 50.0, 50.0, 404.0, (4.04e3, 4.04e4, 4.04e4), 3.17 * 404, hand_joints=0.0, face_joints=0.0),
    Stage(57.4, 10.0, 10.0, 57.4, (574.0, 5740.0, 5740.0), 3.17 * 57.4, hand_joints=0.0, face_joints=0.0),
    Stage(4.78, 5.0, 5.0, 4.78, (47.8, 478.0, 478.0), 3.17 * 4.78, hand_joints=0.1, face_joints=0.0),
    Stage(4.78, 5.0, 5.0, 4.78, (47.8, 478.0, 478.0), 3.17 * 4.78, hand_joints=2.0, face_joints=2.0),
)
CAMERA_STAGE = replace(SMPLIFYX_STAGES[0], ignored_joints=1.0)


@dataclass(frozen=True)
class Options:
    """How to fit. The defaults are tuned on synthetic views of held-out motion capture (docs/benchmarks.md)."""

    stages: Sequence[Stage] = SMPLIFYX_STAGES
    yaws: int = 4  # facings tried
    data: float = (
        0.35  # times SMPLify-X's data weight, which trusts keypoints to 0.5 % of the person; detectors err by 2-3 %
    )
    sigma: float = 70.0  # of the robustifier, in thousandths of 1.5 standing heights: 10 % of the person
    direction_sigma: float = 0.04  # metres
    iterations: int = 60  # at most, per stage
    last_iterations: int = 200  # of the last stage
    body_stages: int = 3  # after so many stages only the `keep` best starts of each person go on
    keep: int = 2
    num_shape: int = 10
    num_expression: int = 10


@contextmanager
def _one_thread() -> Iterator[None]:
    """The tensors of a fit are too small to share: threads would only wait for each other (up to ten times slower)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
def fit(
    model: BodyModel,
    keypoints: Keypoints2D,
    camera: Camera,
    world: Keypoints3D | None = None,
    prior: MaxMixturePrior | None = None,
    options: Options = Options(),
    on_body: dict[str, Mixture] | None = None,
) -> list[FitResult]:
    """One `FitResult` for each person of `keypoints` (N, J), in their order, in camera space.

    `camera` is the photo's (R = 1, t = 0). `world` is a detector's 3D pose of each person in camera axes. `on_body` says where
    the detector's points lie on the body where their names do not (`body.definitions`). Raises InputError for a person with
    fewer than four known points that the model has.
    """
    began = time.perf_counter()
    prior = prior or MaxMixturePrior.shipped().to(keypoints.xy.device)
    unknowns = Unknowns(model, options.num_shape, options.num_expression)
    problem = Problem(
        model,
        prior,
        keypoints,
        camera,
        world,
        on_body or {},
        options.data,
        options.sigma,
        options.direction_sigma,
        unknowns,
    )
    _check(problem)
    x, people, labels = _starts(problem, world, options)
    x, person_px = _place(problem, x, people)
    iterations = torch.zeros_like(people)
    for s, stage in enumerate(options.stages):
        if s == options.body_stages:
            rows = _best_rows(cost, problem.keypoints_3d(x), people, options.keep)
            x, people, iterations, person_px = x[rows], people[rows], iterations[rows], person_px[rows]
            labels = [labels[r] for r in rows.tolist()]
        target = problem.target(people, person_px)
        last = s == len(options.stages) - 1
        out = problem.minimise(x, target, stage, options.last_iterations if last else options.iterations)
        x, cost, iterations = out.x, out.cost, iterations + out.iterations
    with torch.no_grad():
        terms = problem.terms(x, target, stage)
        rows = _best_rows(cost, problem.keypoints_3d(x), people, 1)
        gap = _ambiguity(cost, problem.keypoints_3d(x), people, rows)
        seconds = (time.perf_counter() - began) / len(keypoints.xy)
        return [
            _result(
                problem, n, keypoints[n], unknowns.params(x[r : r + 1])[0], {k: v[r].item() for k, v in terms.items()},
                int(iterations[r]), bool(out.converged[r]), gap[n], seconds, labels[r],
            )
            for n, r in enumerate(rows.tolist())
        ]  # fmt: skip


def _check(problem: Problem) -> None:
    usable = ((problem.conf > 0) & problem.is_body).sum(1)
    if len(problem.names) == 0 or (usable < 4).any():
        person = int(usable.argmin())
        raise InputError(
            f"person {person} has {int(usable.min())} known body points that the {problem.model.kind} model has; "
            "a fit needs at least 4"
        )


def _starts(problem: Problem, world: Keypoints3D | None, options: Options) -> tuple[Tensor, Tensor, list[str]]:
    """Rows of unknowns, the person of each row, and what each start is called."""
    people = len(problem.xy)
    like = problem.xy
    yaws = torch.arange(options.yaws).to(like) * (2 * math.pi / options.yaws)
    labels = [f"facing {round(math.degrees(a))}°" for a in yaws.tolist()]
    orient = facing(yaws).expand(people, -1, -1)
    mean = torch.zeros(1, len(problem.unknowns)).to(like)
    mean[:, problem.unknowns.slices["body"]] = problem.prior.mean_pose(problem.unknowns.body_joints).flatten()
    if world is not None and len(problem.bones):
        orient = torch.cat([orient, _turn_to_given(problem, mean)[:, None]], 1)
        labels.append("detector's 3D")
    rows = orient.shape[1]
    x = mean.repeat(people * rows, 1)
    x[:, problem.unknowns.slices["orient"]] = orient.reshape(-1, 3)
    who = torch.arange(people, device=like.device).repeat_interleave(rows)
    return x, who, labels * people


def _turn_to_given(problem: Problem, mean: Tensor) -> Tensor:
    """The root rotation that turns the mean pose's torso bones onto the given directions."""
    torso = [
        m for m, bone in enumerate(problem.bones) if not any("elbow" in n or "knee" in n or "toe" in n for n in bone[1])
    ]
    torso = torso[: 5 if len(torso) > 5 else None]
    own = (problem.bone_mix @ problem.points(problem.unknowns.params(mean)))[:, torso]
    own = own / own.norm(dim=-1, keepdim=True)
    # Kabsch on directions: each bone and its opposite, so that their mean is the origin.
    pair = lambda d: torch.cat([d, -d], 1)
    weight = problem.given_conf[:, torso].clamp_min(1e-3)
    return kabsch(pair(own).expand(len(weight), -1, -1), pair(problem.given[:, torso]), torch.cat([weight, weight], 1))


def _place(problem: Problem, x: Tensor, people: Tensor) -> tuple[Tensor, Tensor]:
    """The camera step: rows moved to where they cover their keypoints, and each row's person's height in pixels."""
    conf = torch.where(problem.is_body, problem.conf, 0.0)[people]
    points = problem.keypoints_3d(x)
    x = x.clone()
    x[:, problem.unknowns.slices["transl"]] = translation(points, problem.xy[people], conf, problem.camera.K)
    for _ in range(2):  # the scale of the residuals follows the depth, which follows the residuals
        depth = problem.keypoints_3d(x)[..., 2].mean(-1).clamp_min(0.1)
        person_px = problem.camera.K[1, 1] * STANDING_HEIGHT / depth
        target = problem.target(people, person_px)
        out = problem.minimise(x, target, CAMERA_STAGE, 30, free=("orient", "transl"))
        x = out.x
    # One scale per person, or the costs of its starts could not be compared: that of the best start.
    best = _best_rows(out.cost, problem.keypoints_3d(x), people, 1)
    depth = problem.keypoints_3d(x[best])[..., 2].mean(-1).clamp_min(0.1)
    return x, (problem.camera.K[1, 1] * STANDING_HEIGHT / depth)[people]


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """Mean distance (m) of two poses' points about their own middles."""
    centred = lambda p: p - p.mean(-2, keepdim=True)
    return (centred(a) - centred(b)).norm(dim=-1).mean(-1)


DIFFERENT = 0.05  # metres: two solutions further apart than this are not the same one


def _best_rows(cost: Tensor, points: Tensor, people: Tensor, keep: int) -> Tensor:
    """For each person the row of least cost, then up to `keep` - 1 more rows that differ from those already taken."""
    rows: list[int] = []
    for n in people.unique().tolist():
        order = [r for r in cost.argsort().tolist() if people[r] == n]
        taken = order[:1]
        for r in order[1:]:
            if len(taken) < keep and all(_differ(points[r], points[t]) > DIFFERENT for t in taken):
                taken.append(r)
        rows += taken
    return torch.tensor(rows, device=cost.device)


def _ambiguity(cost: Tensor, points: Tensor, people: Tensor, best: Tensor) -> list[float | None]:
    """Per person: by which part of the best cost the best clearly different solution is worse; None if there is none."""
    out: list[float | None] = []
    for r in best.tolist():
        others = [o for o in range(len(cost)) if people[o] == people[r] and _differ(points[o], points[r]) > DIFFERENT]
        out.append(min(((cost[o] - cost[r]) / cost[r]).item() for o in others) if others else None)
    return out


def _result(
    problem: Problem, n: int, keypoints: Keypoints2D, params: BodyParams, terms: dict[str, float], iterations: int, converged: bool,
    ambiguity: float | None, seconds: float, start: str,
) -> FitResult:  # fmt: skip
    body = problem.model(params)
    ours = problem.camera.project(problem.mix @ problem.points(params))
    error = (ours - problem.xy[n]).norm(dim=-1)
    counted = (problem.conf[n] > 0.3) & problem.is_body & ~problem.is_ignored
    reprojection = error[counted].median().item() if counted.any() else float("nan")
    return FitResult(
        params, problem.camera, keypoints, body, terms, reprojection, iterations, converged, ambiguity, seconds, start,
        problem.model.kind, _warnings(problem, keypoints, body, converged, ambiguity, reprojection),
    )  # fmt: skip


def _warnings(problem, keypoints, body, converged, ambiguity, reprojection) -> tuple[str, ...]:
    out = []
    known = {n for n, c in zip(keypoints.joints.names, keypoints.conf.tolist(), strict=True) if c > 0.3}
    limbs = {
        f"{side} {limb}": (f"{side}_{a}", f"{side}_{b}")
        for side in ("left", "right")
        for limb, a, b in (("arm", "elbow", "wrist"), ("leg", "knee", "ankle"))
    }
    out += [f"{limb} not seen: its pose is the prior's" for limb, joints in limbs.items() if not known & set(joints)]
    if not converged:
        out.append("the solver stopped at its limit of iterations")
    if ambiguity is not None and ambiguity < 0.05:
        out.append(f"a clearly different pose explains the keypoints almost as well (cost {ambiguity:+.1%})")
    height = problem.camera.K[1, 1].item() * STANDING_HEIGHT / max(body.joints.xyz[..., 0, 2].item(), 0.1)
    if reprojection > 0.05 * height:
        out.append(f"the body misses the keypoints by {reprojection:.0f} px, {reprojection / height:.0%} of its height")
    return tuple(out)
