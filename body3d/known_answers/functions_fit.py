"""The published fits' objectives, their gradients and their guesses of the camera."""

import torch
from torch import Tensor

from body3d.body.model import BodyModel
from body3d.body.vposer import VPoser, from_v1, vposer_v1
from body3d.camera import Camera
from body3d.fit.published import Objective, PoseSpace, Unknowns, l2_pose, vposer_pose
from body3d.fit.smplify import estimate_translation
from body3d.fit.smplifyx_published import SMPLIFYX_STAGES, smplifyx_objective
from body3d.known_answers.functions_body import _body_model
from body3d.known_answers.question import Adapter, Question, published_weight
from body3d.skeletons import JAW17, OPENPOSE137, JointSet
from body3d.types import Keypoints2D

__all__ = ["ADAPTERS"]

# SMPLify-X's own order: OpenPose's body, hands and face without the outline and the pupils.
_LEFT_OUT = (*JAW17, "right_pupil", "left_pupil")
OPENPOSE118 = JointSet("openpose118", tuple(n for n in OPENPOSE137.names if n not in _LEFT_OUT), (-1,) * 118)
TERMS = ("reprojection", "pose_prior", "shape_prior", "bending", "hand_prior", "expression_prior", "jaw_prior")
BEYOND = 0.3  # metres: how much farther than the camera's translation the files' first guess of the depth is


def _smplifyx_l2(q: Question) -> dict[str, Tensor]:
    model = _body_model(q)
    return _smplifyx(q, model, l2_pose(model), "body_pose")


def _smplifyx_vposer(q: Question) -> dict[str, Tensor]:
    model = _body_model(q)
    return _smplifyx(q, model, vposer_pose(model, _decoder(q.meta.get("seed", 0))), "pose_embedding")


def _decoder(seed: int) -> VPoser:
    """VPoser v1 with the decoder of that seed."""
    net = vposer_v1()
    sizes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    for layer in ("bodyprior_dec_fc1", "bodyprior_dec_fc2", "bodyprior_dec_out"):
        for kind in ("weight", "bias"):
            key = f"{layer}.{kind}"
            (ours,) = from_v1({key: torch.empty(0)})
            net.load_state_dict({ours: published_weight(key, sizes[ours], seed)}, strict=False)
    return net.eval()


def _smplifyx(q: Question, model: BodyModel, pose: PoseSpace, pose_name: str) -> dict[str, Tensor]:
    width, height = q["image_size_wh"].tolist()
    camera = Camera.pinhole(float(q["focal"]), (height, width), (width / 2, height / 2))
    people = lambda conf: smplifyx_objective(model, pose, Keypoints2D(q["keypoints"], conf, OPENPOSE118), camera)
    target = people(q["confidence"])
    theirs = {"pose": pose_name, "transl": "camera_translation"}
    parts = (
        "betas", "expression", "global_orient", "pose", "jaw_pose", "leye_pose", "reye_pose", "left_hand_pose",
        "right_hand_pose", "transl",
    )  # fmt: skip
    x = {name: q[theirs.get(name, name)].requires_grad_() for name in parts}
    out = _stages(target, x, theirs)
    points = target.points(x)[2]
    out["projected"], out["joints"] = camera.project(points), points - x["transl"].unsqueeze(-2)

    placing = people(torch.ones_like(q["confidence"]))  # the published camera step knows no confidences
    cost = placing.camera_cost(x, x["transl"][:, 2].detach() + BEYOND).sum()
    of_transl, of_orient = torch.autograd.grad(cost, [x["transl"], x["global_orient"]])
    depth = placing.depth_guess(x)
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
    K = Camera.pinhole(focal, (size, size), (size / 2, size / 2)).K.to(q["S"])
    found = estimate_translation(q["S"][None], q["joints2d"][None], q["conf"][None], K)[0]

    points, centre = q["points"], q["centre"]
    K = torch.eye(3).to(points).repeat(len(points), 1, 1)
    K[:, 0, 0] = K[:, 1, 1] = focal
    K[:, :2, 2] = centre
    camera = Camera(K, q["rotation"], q["translation"], (size, size))
    return {"translation": found, "projected": camera.project(points)}


ADAPTERS: dict[str, Adapter] = {
    "smplifyx_loss_l2": _smplifyx_l2,
    "smplifyx_loss_vposer": _smplifyx_vposer,
    "camera_spin": _camera_spin,
}
