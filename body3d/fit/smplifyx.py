"""A whole body from 2D keypoints: the objective and the five stages of SMPLify-X (Pavlakos et al., CVPR 2019), many starts at once.

The published table of weights, the robustifier, the form of the priors and the order of the stages are kept. What differs:
* the pose prior is a mixture of Gaussians over rotation vectors (as in SMPLify), learnt from free motion capture: VPoser's
  weights are under a licence that forbids shipping them;
* residuals are scaled by the person's height in the image, not by the image's height, and count by the detector's confidence:
  the same table then fits near and far people;
* the body's translation stays free to the end (SMPLify-X freezes the camera after its first step);
* every fit starts from several facings in one batch (SMPLify-X: from a second one if the shoulders are closer than 25 px), and
  from each given 3D pose, which also stays as a term: bone directions by their deviations, up to a lean of the whole pose, fitted
  too, where the source leans;
* the best solution is tried with left and right of the arms, and of the legs, exchanged: detectors mix them up;
* the eyes have a prior, and so has the height.
"""

import math
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from body3d.body.definitions import Mixture
from body3d.body.model import BodyModel
from body3d.body.priors import MaxMixturePrior
from body3d.body.vposer import shipped_vposer
from body3d.camera import Camera
from body3d.fit.checks import check_camera, check_enough, check_height, cleaned
from body3d.fit.findings import measured, unseen
from body3d.fit.given import Given3D, check_given, detector_3d
from body3d.fit.problem import SWAPS, Problem, Solver, Stage, Trust
from body3d.fit.solve import few_threads
from body3d.fit.starts import (
    BELIEF,
    SWAP_COST,
    Rows,
    ambiguities,
    bent_rows,
    best_rows,
    by_person,
    facing_rows,
    placed,
    start_name,
    swapped_rows,
    with_belief,
)
from body3d.fit.uncertainty import NATURAL, Uncertainty, mixed, uncertainty
from body3d.fit.unknowns import Unknowns
from body3d.types import Body, BodyParams, FitResult, Keypoints2D, Keypoints3D

__all__ = ["SMPLIFYX_STAGES", "Given3D", "Options", "Stage", "Trust", "fit_keypoints"]

SMPLIFYX_STAGES = (
    Stage(404.0, 100.0, 100.0, 404.0, (4.04e3, 4.04e4, 4.04e4), 3.17 * 404, hand_joints=0.0, face_joints=0.0),
    Stage(404.0, 50.0, 50.0, 404.0, (4.04e3, 4.04e4, 4.04e4), 3.17 * 404, hand_joints=0.0, face_joints=0.0),
    Stage(57.4, 10.0, 10.0, 57.4, (574.0, 5740.0, 5740.0), 3.17 * 57.4, hand_joints=0.0, face_joints=0.0),
    Stage(4.78, 5.0, 5.0, 4.78, (47.8, 478.0, 478.0), 3.17 * 4.78, hand_joints=0.1, face_joints=0.0),
    Stage(4.78, 5.0, 5.0, 4.78, (47.8, 478.0, 478.0), 3.17 * 4.78, hand_joints=2.0, face_joints=2.0),
)
CAMERA_STAGE = replace(SMPLIFYX_STAGES[0], ignored_joints=1.0)
BENDING_STAGE = replace(SMPLIFYX_STAGES[-1], body_joints=0.0, hand_joints=0.0, face_joints=0.0)


@dataclass(frozen=True)
class Options:
    """How to fit. The defaults are tuned on synthetic views of held-out motion capture (docs/benchmarks.md)."""

    stages: Sequence[Stage] = SMPLIFYX_STAGES
    trust: Trust = field(default_factory=Trust)
    yaws: int = 4  # facings tried
    iterations: int = 60  # at most, per stage
    last_iterations: int = 200  # of the last stage
    warm_stage: int = 2  # starts that are bent to a given 3D pose join here: the stages before would undo the bends
    body_stages: int = 3  # after so many stages only the `keep` best starts of each person go on
    keep: int = 2
    exchange: bool = True  # of left and right, where that explains the keypoints clearly better
    solver: Solver = "lm"  # L-BFGS reaches the same minima more slowly: it is the reference
    # "latent": the code of the shipped autoencoder, drawn to zero as in SMPLify-X, in place of rotations under the mixture.
    pose: Literal["rotations", "latent"] = "rotations"
    num_shape: int = 10
    num_expression: int = 10
    people_at_once: int = 64  # more are fitted in turn, so that memory stays bounded


def fit_keypoints(
    model: BodyModel,
    keypoints: Keypoints2D,
    camera: Camera,
    world: Keypoints3D | None = None,
    prior: MaxMixturePrior | None = None,
    options: Options = Options(),
    on_body: dict[str, Mixture] | None = None,
    given: Sequence[Given3D] = (),
    height: float | None = None,
) -> list[FitResult]:
    """One `FitResult` for each person of `keypoints` (N, J), in their order, in camera space.

    Everything is brought to the model's device and floating-point type. `camera` is the photo's (R = 1, t = 0). `given` are 3D
    poses of all people from other sources (confidences of 0: this source knows nothing of that person); `world`, a detector's, is
    short for one more of them. `on_body` says where the detector's points lie on the body where their names do not
    (`body.definitions`). `height` (m) is the people's, if known. Raises InputError for a person with fewer than four known points
    that the model has, for 3D poses of other people, and for a camera or a height that cannot be.
    """
    like = model.template
    given = [source.to(like) for source in (*([] if world is None else [detector_3d(world)]), *given)]
    keypoints, camera = keypoints.to(like), camera.to(like)
    check_camera(camera)
    check_height(height)
    keypoints, notes = cleaned(keypoints, camera, model)
    check_given(given, keypoints)
    if height is not None:
        options = replace(options, trust=replace(options.trust, height=height))
    prior = (prior or MaxMixturePrior.shipped()).to(like.device, like.dtype)
    latent = None
    if options.pose == "latent":
        latent = deepcopy(shipped_vposer()).to(keypoints.xy)
    unknowns = Unknowns(model, options.num_shape, options.num_expression, latent=latent)
    told = torch.zeros(len(keypoints.xy), dtype=torch.bool, device=keypoints.xy.device)
    for source in given:
        told |= (source.keypoints.conf > 0).any(-1)
    results: dict[int, FitResult] = {}
    for those, said, trust in ((told, given, options.trust.beside_3d()), (~told, (), options.trust)):
        of_those, people = replace(options, trust=trust), those.nonzero()[:, 0].tolist()
        for first in range(0, len(people), options.people_at_once):
            some = people[first : first + options.people_at_once]
            sources = tuple(source[some] for source in said)
            with few_threads(len(some) * options.yaws), torch.no_grad():
                began = time.perf_counter()
                problem = Problem(model, prior, keypoints[some], camera, sources, on_body, trust, unknowns)
                check_enough(problem, some)
                found = _fit(problem, sources, of_those, [notes[n] for n in some], began)
            results.update(zip(some, found, strict=True))
    return [results[n] for n in range(len(keypoints.xy))]


def _fit(
    problem: Problem, given: Sequence[Given3D], options: Options, notes: list[list[str]], began: float
) -> list[FitResult]:
    rows, labels = facing_rows(problem, options.yaws, given)
    bent, labels = bent_rows(problem, rows, BENDING_STAGE, given, labels)
    rows = placed(problem, rows, CAMERA_STAGE, options.solver)
    person_px = rows.person_px[by_person(rows.people)[:, 0]]
    if bent is not None:
        bent = placed(problem, bent, CAMERA_STAGE, options.solver)
        bent = replace(bent, person_px=person_px[bent.people])
    stage, counted, converged = CAMERA_STAGE, problem, rows.people > 0
    for s, stage in enumerate(options.stages):
        if bent is not None and s == min(options.warm_stage, len(options.stages) - 1):
            rows = rows.with_rows(bent)
        if s == options.body_stages:
            rows = _narrowed(problem, rows, options, s)
        counted = problem.seen(stage)
        last = s == len(options.stages) - 1
        iterations = options.last_iterations if last else options.iterations
        if last and options.trust.usual_residual is not None:
            rows = with_belief(problem, rows, options.trust.usual_residual)
        rows, converged = rows.minimised(counted, stage, iterations, options.solver)

    points = problem.keypoints_3d(rows.x)
    best = best_rows(rows.cost, points, rows.people, 1)
    target = rows.target(counted)
    params = problem.unknowns.params(rows.x)
    each = uncertainty(counted, rows.x, target, stage)
    bodies = problem.model(params[best])
    joints = problem.model.subset(problem.model.joints.names)(params)
    sure = mixed(each, joints, params, rows.cost, stage, best, by_person(rows.people))
    terms = counted.terms(rows.x[best], target[best], stage)
    if options.trust.usual_residual is not None:
        terms["belief"] = _noise_cost(counted, target[best].conf, rows.belief[best], stage)
    gaps = ambiguities(rows.cost, points, rows.people, best)
    seconds = (time.perf_counter() - began) / len(best)
    return [
        _result(
            problem, n, rows[r : r + 1], params[r], bodies[n], sure[n],
            {k: v[n].item() for k, v in terms.items()}, stage, bool(converged[r]), gaps[n], seconds,
            start_name(labels, int(rows.start[r]), int(rows.swap[r])), notes[n],
        )
        for n, r in enumerate(best.tolist())
    ]  # fmt: skip


def _narrowed(problem: Problem, rows: Rows, options: Options, s: int) -> Rows:
    """The `keep` best rows of each person after stage s - 1, and those with left and right exchanged that beat them."""
    points = problem.keypoints_3d(rows.x)
    kept = rows[best_rows(rows.cost, points, rows.people, options.keep)]
    if not options.exchange:
        return kept
    # Not of the best row alone: exchanged legs look much like a person who faces the other way and has exchanged arms.
    stage, best = options.stages[s - 1], rows[best_rows(rows.cost, points, rows.people, 1)]
    for more in swapped_rows(problem, kept):
        more, _ = more.minimised(problem.seen(stage), stage, options.iterations, options.solver)
        better = more[
            more.cost - SWAP_COST < best.cost[more.people]
        ]  # whether it is worth its price the last stage tells
        if len(better.x):
            kept = kept.with_rows(better[best_rows(better.cost, problem.keypoints_3d(better.x), better.people, 1)])
    return kept


def _noise_cost(
    problem: Problem, conf: Float[Tensor, "N K"], belief: Float[Tensor, " N"], stage: Stage
) -> Float[Tensor, " N"]:
    """What believing keypoints less costs, so that sums of terms can be compared between bodies and cameras: the logarithm of
    the standard deviation that belongs to a Gaussian's likelihood, for both coordinates of each keypoint. 0 at full belief."""
    counts = ((conf > 0) & (problem.weights(stage) > 0)).sum(1)
    return NATURAL * stage.pose**2 * 2 * counts * (BELIEF[1] / belief).log()


AMBIGUOUS = 0.05  # of the cost: less than this makes a second solution as good


def _result(
    problem: Problem, n: int, row: Rows, params: BodyParams, body: Body, sure: Uncertainty, terms: dict[str, float],
    stage: Stage, converged: bool, ambiguity: float | None, seconds: float, start: str, notes: list[str],
) -> FitResult:  # fmt: skip
    whole = problem.target(row.people, row.person_px, row.swap)  # every keypoint, not the last stage's
    exchanged = list(SWAPS)[int(row.swap) - 1] if row.swap.item() else ""
    warnings = [*notes, *unseen(problem.names, whole.conf[0])]
    if not converged:
        warnings.append("the solver stopped at its limit of iterations")
    if exchanged:
        warnings.append(f"keypoints fit better with left and right {exchanged} exchanged: they were taken so")
    if ambiguity is not None and ambiguity < AMBIGUOUS:
        warnings.append(f"a clearly different pose explains the keypoints almost as well (cost {ambiguity:+.1%})")
    result = FitResult(
        params, problem.camera, problem.keypoints[n], body, terms, math.nan, int(row.iterations.item()), converged,
        ambiguity, seconds, start, problem.model.kind, tuple(warnings), sure.joints, sure.joints_from_root, sure.params,
        pulled=tuple(compress(problem.names, (problem.weights(stage) > 0).tolist())), person_px=row.person_px.item(),
        belief=row.belief.clamp_max(1.0).item(), exchanged=exchanged,
    )  # fmt: skip
    return measured(result, problem.found, problem.model)
