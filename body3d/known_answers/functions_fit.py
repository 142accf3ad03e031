"""The published fits' objectives, their gradients and their guesses of the camera."""

import torch
from torch import Tensor

from body3d.camera import Camera
from body3d.fit.published import Objective, PoseSpace, Unknowns, l2_pose
from body3d.fit.smplify import estimate_translation
from body3d.fit.smplifyx_published import SMPLIFYX_STAGES, smplifyx_objective
from body3d.known_answers.functions_body import _body_model
from body3d.known_answers.question import Adapter, Question
from body3d.skeletons import JAW17, OPENPOSE137, JointSet
from body3d.types import Keypoints2D

__all__ = ["ADAPTERS"]

# SMPLify-X's own order: OpenPose's body, hands and face without the outline and the pupils.
_LEFT_OUT = (*JAW17, "right_pupil", "left_pupil")
OPENPOSE118 = JointSet("openpose118", tuple(n for n in OPENPOSE137.names if n not in _LEFT_OUT), (-1,) * 118)
TERMS = ("reprojection", "pose_prior", "shape_prior", "bending", "hand_prior", "expression_prior", "jaw_prior")
GUESSED_NEARER = 0.3  # metres: how far beyond the camera's depth the files' first guess of it lies


def _smplifyx_l2(q: Question) -> dict[str, Tensor]:
    return _smplifyx(q, l2_pose(_body_model(q)), "body_pose")


def _smplifyx(q: Question, pose: PoseSpace, pose_name: str) -> dict[str, Tensor]:
    width, height = q["image_size_wh"].tolist()
    camera = Camera.pinhole(float(q["focal"]), (height, width), (width / 2, height / 2))
    keypoints = Keypoints2D(q["keypoints"], q["confidence"], OPENPOSE118)
    target = smplifyx_objective(_body_model(q), pose, keypoints, camera)
    theirs = {"pose": pose_name, "transl": "camera_translation"}
    parts = (
        "betas", "expression", "global_orient", "pose", "jaw_pose", "leye_pose", "reye_pose", "left_hand_pose",
        "right_hand_pose", "transl",
    )  # fmt: skip
    x = {name: q[theirs.get(name, name)].requires_grad_() for name in parts}
    out = _stages(target, x, theirs)
    points = target.points(x)[2]
    out["projected"], out["joints"] = camera.project(points), points - x["transl"].unsqueeze(-2)

    cost = target.camera_cost(x, x["transl"][:, 2].detach() + GUESSED_NEARER).sum()
    of_transl, of_orient = torch.autograd.grad(cost, [x["transl"], x["global_orient"]])
    depth = target.depth_guess(x)
    return out | {
        "camera_loss": cost,
        "camera_grad_translation": of_transl,
        "camera_grad_global_orient": of_orient,
        "guess_init": torch.stack([torch.zeros_like(depth), torch.zeros_like(depth), depth], -1),
    }


def _stages(target: Objective, x: Unknowns, theirs: dict[str, str]) -> dict[str, Tensor]:
    """The value, the terms and the gradients of each stage, summed over the batch as the published code does."""
    out, terms = {}, []
    for number, stage in enumerate(SMPLIFYX_STAGES, 1):
        values = {name: value.sum() for name, value in target.terms(x, stage).items()}
        gradients = torch.autograd.grad(torch.stack(list(values.values())).sum(), list(x.values()))
        out |= {f"grad{number}_{theirs.get(n, n)}": g for n, g in zip(x, gradients, strict=True)}
        terms.append(torch.stack([values[name] for name in TERMS]).detach())
    return out | {"terms": torch.stack(terms), "total": torch.stack(terms).sum(-1)}


def _camera_spin(q: Question) -> dict[str, Tensor]:
    focal, size = float(q["focal"]), int(q["img_size"])
    K = Camera.pinhole(focal, (size, size), (size / 2, size / 2)).K.double()
    found = estimate_translation(q["S"][None], q["joints2d"][None], q["conf"][None], K)[0]

    points, centre = q["points"], q["centre"]
    K = torch.eye(3).to(points).repeat(len(points), 1, 1)
    K[:, 0, 0] = K[:, 1, 1] = focal
    K[:, :2, 2] = centre
    camera = Camera(K, q["rotation"], q["translation"], (size, size))
    return {"translation": found, "projected": camera.project(points)}


ADAPTERS: dict[str, Adapter] = {"smplifyx_loss_l2": _smplifyx_l2, "camera_spin": _camera_spin}
