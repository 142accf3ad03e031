"""Synthetic views of held-out motion capture: how far a fit is from the truth, which an overlay cannot show.

People are the open body with random shapes in poses of subjects that no prior or lifter was trained on; cameras look from all
sides with wide pitch; keypoints are the body's own projected points with noise.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import roma
import torch
from torch import Tensor

from body3d.body.definitions import H36M17_ON_BODY, mixing_matrix, mixtures
from body3d.body.model import BodyModel
from body3d.camera import Camera
from body3d.datasets.synthetic import read_poses
from body3d.fit.given import Given3D, detector_3d, ray_rotation
from body3d.fit.problem import STANDING_HEIGHT
from body3d.fit.smplifyx import Options, fit_keypoints
from body3d.geometry import align
from body3d.lift.embedded import BODY34, embedded_lifter, lift
from body3d.skeletons import COCO_WHOLEBODY133, H36M17, MEDIAPIPE33, JointSet
from body3d.types import BodyParams, FitResult, Keypoints2D, Keypoints3D

# The 14 joints that most tables count: Human3.6M's 17 without pelvis, spine and neck_nose.
COUNTED = tuple(i for i, n in enumerate(H36M17.names) if n not in ("pelvis", "spine", "neck_nose"))
SIZE = (1000, 1000)


@dataclass(frozen=True)
class Views:
    params: BodyParams  # in camera space
    keypoints: Keypoints2D
    world: Keypoints3D  # noisy 3D as a detector gives it
    camera: Camera
    h36m17: Tensor  # (N, 17, 3) camera space, metres
    body34: Tensor  # (N, 34, 3) the same of a lifter's joints

    def lifted(self) -> Given3D:
        """What the shipped lifter makes of the keypoints; it was trained on none of these people."""
        found = lift(embedded_lifter(), self.keypoints, self.camera)
        return Given3D(found.body, found.sigma, "lifter")

    def simulated_lifter(self, scale: float = 1.0, seed: int = 0) -> Given3D:
        """What a lifter that knows its own errors would say: errors that add up from the hips outwards, with their deviations.

        The limbs' outer bones err most, and some views are harder than others; `scale` multiplies every error.
        """
        rng = torch.Generator().manual_seed(seed)
        of_bone = torch.tensor([_bone_error(name) for name in BODY34.names])
        hard = (0.4 * torch.randn(len(self.body34), 1, generator=rng)).exp()
        own = torch.zeros(len(BODY34), len(BODY34))  # [joint, bone]: 1 for the bones between the hips and the joint
        for j in range(len(BODY34)):
            a = j
            while a >= 0:
                own[j, a], a = 1.0, BODY34.parents[a]
        spread = scale * hard * of_bone
        error = own @ (spread[..., None] * torch.randn(*spread.shape, 3, generator=rng))
        xyz = self.body34 - self.body34[:, :1] + error
        sigma = (spread.square() @ own.T).sqrt()
        return Given3D(Keypoints3D(xyz, torch.ones_like(sigma), BODY34, "root"), sigma, "lifter's 3D")


def _bone_error(name: str) -> float:
    """Metres along each axis, of the bone that ends at this joint."""
    if name == "pelvis":
        return 0.0
    outer = ("elbow", "wrist", "knee", "ankle", "foot", "toe", "heel")
    return 0.045 if any(part in name for part in outer) else 0.015


def make_views(poses: Path, count: int = 40, noise: float = 0.02, noise_3d: float = 0.06, seed: int = 0) -> Views:
    """Views of held-out frames from `scripts/retarget_mocap.py`'s file; `noise` is relative to the standing height in pixels.

    `noise_3d` (metres, per joint and axis, smooth over the body's size) makes 3D joints about as wrong as MediaPipe's.
    """
    pose = torch.from_numpy(read_poses(poses, held_out=True)).float()  # (M, 22, 3), y up
    rng = torch.Generator().manual_seed(seed)
    pick = torch.randperm(len(pose), generator=rng)[:count]
    model = BodyModel.open()
    params = model.zero_params(count)
    full = params.pose.clone()
    full[:, :22] = pose[pick]
    for side in ("left", "right"):
        rows = [i for i, n in enumerate(model.joints.names) if n.startswith(f"{side}_") and n[-1].isdigit()]
        full[:, rows] = model.hand_pose_from_pca(torch.zeros(count, 1), side)
    shape = torch.randn(count, params.shape.shape[1], generator=rng).clamp(-2, 2)

    # The camera: any azimuth, pitch from 30 degrees below to 50 above, 3 to 6 m away, 40 to 60 degrees wide.
    uniform = lambda a, b: a + (b - a) * torch.rand(count, generator=rng)
    yaw, pitch = uniform(-np.pi, np.pi), torch.deg2rad(uniform(-30, 50))
    zero = torch.zeros(count)
    turn = roma.rotvec_to_rotmat(torch.stack([pitch, zero, zero], -1)) @ roma.rotvec_to_rotmat(
        torch.stack([zero, yaw, zero], -1)
    )
    down = roma.rotvec_to_rotmat(torch.tensor([np.pi, 0.0, 0.0], dtype=torch.float32))
    root = down @ turn @ roma.rotvec_to_rotmat(full[:, 0])
    full[:, 0] = roma.rotmat_to_rotvec(root)
    transl = torch.stack([uniform(-0.5, 0.5), uniform(-0.3, 0.3), uniform(3, 6)], -1)
    params = BodyParams(full, shape, transl, params.expression)
    camera = Camera.guess(SIZE, fov=50.0)

    body = model(params)
    truth = _joints(model, body.joints, H36M17)
    seen = _joints(model, body.joints, COCO_WHOLEBODY133)
    height = camera.K[1, 1] * STANDING_HEIGHT / truth[:, :1, 2:]
    xy = camera.project(seen) + noise * height * torch.randn(count, len(COCO_WHOLEBODY133), 2, generator=rng)
    conf = torch.zeros(count, len(COCO_WHOLEBODY133))
    conf[:, :23] = 1.0  # body and feet
    world = _joints(model, body.joints, MEDIAPIPE33)
    # A network that sees a crop gives 3D in the axes of the crop.
    world = world @ ray_rotation(xy[:, :23], conf[:, :23], camera) + noise_3d * torch.randn(world.shape, generator=rng)
    return Views(
        params,
        Keypoints2D(xy, conf, COCO_WHOLEBODY133),
        Keypoints3D(world - world.mean(1, keepdim=True), torch.ones(world.shape[:2]), MEDIAPIPE33, "root"),
        camera,
        truth,
        _joints(model, body.joints, BODY34),
    )


def _joints(model: BodyModel, points: Keypoints3D, target: JointSet) -> Tensor:
    """The points of a joint set on posed bodies; joints that cannot be made are zero."""
    special = {n: m for n, m in H36M17_ON_BODY.items() if target is H36M17 or n != "pelvis"}
    found = mixtures(model.keypoints, target, special if target in (H36M17, BODY34) else None)
    out = points.xyz.new_zeros(*points.xyz.shape[:-2], len(target), 3)
    out[..., target.indices(tuple(found)), :] = mixing_matrix(found, model.keypoints.names).to(points.xyz) @ points.xyz
    return out


def errors(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Per view, millimetres over 14 joints: MPJPE with the pelvis put in the same place, and PA-MPJPE (similarity)."""
    p, t = predicted - predicted[:, :1], truth - truth[:, :1]
    p, t = p[:, COUNTED], t[:, COUNTED]
    distance = lambda a, b: 1000 * (a - b).norm(dim=-1).mean(-1)
    return distance(p, t), distance(align(p, t), t)


def fitted_h36m17(model: BodyModel, results: Sequence[FitResult]) -> Tensor:
    return torch.stack([_joints(model, r.body.joints, H36M17) for r in results])


_AS_H36M17 = BODY34.indices(tuple("mid_hip" if name == "pelvis" else name for name in H36M17.names))


def summary(predicted: Tensor, truth: Tensor) -> dict[str, float]:
    """Of `errors` over all views, millimetres."""
    mpjpe, pa = errors(predicted, truth)
    return {
        "PA median": pa.median().item(), "PA mean": pa.mean().item(), "PA worst": pa.max().item(),
        "MPJPE median": mpjpe.median().item(), "MPJPE mean": mpjpe.mean().item(),
    }  # fmt: skip


def run(poses: Path, count: int = 40, seed: int = 0, options: Options = Options()) -> dict[str, dict[str, float]]:
    """The table of docs/benchmarks.md: 2D alone, the lifter alone, and fits to both. The detector's 3D is simulated."""
    model = BodyModel.open()
    views = {noise: make_views(poses, count, noise, seed=seed) for noise in (0.0, 0.02)}
    cases: list[tuple[str, Views, tuple[Given3D, ...]]] = []
    table = {}
    for noise, name in ((0.0, "no noise"), (0.02, "2 % noise")):
        seen = views[noise]
        detector, lifter = detector_3d(seen.world), seen.lifted()
        table[f"lifter alone, {name}"] = summary(lifter.keypoints.xyz[:, _AS_H36M17], seen.h36m17)
        cases += [
            (f"2D, {name}", seen, ()),
            (f"2D, {name} + lifter", seen, (lifter,)),
            (f"2D, {name} + detector's 3D + lifter", seen, (detector, lifter)),
        ]
    for name, seen, given in cases:
        began, cpu = time.perf_counter(), time.process_time()
        results = fit_keypoints(model, seen.keypoints, seen.camera, options=options, given=given)
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        table[name] = summary(fitted_h36m17(model, results), seen.h36m17)
        table[name] |= {"seconds per person": wall / count, "CPU seconds per person": cpu / count}
    return table
