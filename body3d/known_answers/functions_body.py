"""Rotations, body models and terms of the fit that published implementations answer for."""

import re

import roma
import torch
from torch import Tensor

from body3d.body import lbs
from body3d.body.files import read_arrays
from body3d.body.interop import params_from_smplx
from body3d.body.layouts import PICKED, PUBLISHED_KEYS, published_layout
from body3d.body.model import BodyModel
from body3d.body.priors import MaxMixturePrior, bending_prior, gmof
from body3d.known_answers.question import Adapter, Question
from body3d.rot6d import matrix_to_rot6d, rot6d_to_matrix, rot6d_to_matrix_symmetric
from body3d.skeletons import SMPL24

__all__ = ["ADAPTERS"]


# ---- rotations -----------------------------------------------------------------------------------------------------
def _rot6d_columns(q: Question) -> dict[str, Tensor]:
    r6 = q["r6"]
    return {"matrix": rot6d_to_matrix(r6, "columns"), "robust": rot6d_to_matrix_symmetric(r6, "columns")}


def _rot6d_rows(q: Question) -> dict[str, Tensor]:
    return {"matrix": rot6d_to_matrix(q["r6"], "rows"), "to6d": matrix_to_rot6d(q["R"], "rows")}


def _rotation_spin(q: Question) -> dict[str, Tensor]:
    quaternion = roma.quat_normalize(roma.quat_wxyz_to_xyzw(q["quaternion"]))
    return {
        "rot6d": rot6d_to_matrix(q["r6"], "interleaved"),
        "rodrigues": lbs.rotation_matrices(q["axis_angle"]),
        "quat": roma.unitquat_to_rotmat(quaternion),
    }


def _rotation_torchgeometry(q: Question) -> dict[str, Tensor]:
    return {"angle_axis": roma.rotmat_to_rotvec(q["R"]), "matrix": lbs.rotation_matrices(q["axis_angle"])}


# ---- body models ---------------------------------------------------------------------------------------------------
def _smplx_lbs(q: Question) -> dict[str, Tensor]:
    joints = q["joints"]
    T = lbs.world_transforms(q["rotations"], joints, lbs.chain_jumps(q["parents"].tolist()))
    relative = torch.cat([lbs.rest_to_posed(T, joints), T[..., 3:, :]], -2)
    return {"rodrigues": lbs.rotation_matrices(q["axis_angle"]), "posed": T[..., :3, 3], "relative": relative}


# The names that smplx gives the picked vertices, in the order of PICKED.
SMPLX_VERTEX_NAMES = (
    "nose", "reye", "leye", "rear", "lear", "LBigToe", "LSmallToe", "LHeel", "RBigToe", "RSmallToe", "RHeel",
    *(side + finger for side in "lr" for finger in ("thumb", "index", "middle", "ring", "pinky")),
)  # fmt: skip


def _body_model(q: Question) -> BodyModel:
    """The model that the file was made with, its `shapedirs` cut to the first columns where `meta` says so."""
    name, _, note = q.meta["model"].partition(" ")
    path = q.folder / name
    arrays = read_arrays(path, PUBLISHED_KEYS)
    if cut := re.search(r"first (\d+) columns", note):
        arrays["shapedirs"] = arrays["shapedirs"][..., : int(cut[1])]
    ids = q.meta.get("vertex_ids")
    ids = ids and {ours: ids[theirs] for ours, theirs in zip(PICKED, SMPLX_VERTEX_NAMES, strict=True)}
    return BodyModel(**published_layout(arrays, path, ids))


def _smplx(q: Question) -> dict[str, Tensor]:
    model = _body_model(q)
    option = lambda name, default: (re.findall(rf"{name}=(\w+)", q.meta["source"]) or [default])[0] == "True"
    params = params_from_smplx(q.inputs, model, option("use_pca", "True"), option("flat_hand_mean", "False"))
    body = model(params)
    contour = option("use_face_contour", "False")
    joints = body.joints.xyz if contour else body.joints.xyz[..., :127, :]
    return {"vertices": body.mesh.verts, "joints": joints, "full_pose": params.pose.flatten(-2)}


def _smpl(q: Question) -> dict[str, Tensor]:
    model = _body_model(q)
    posed = model(params_from_smplx(q.inputs, model))
    rest = model(params_from_smplx({"betas": q["betas"]}, model))
    return {
        "vertices": posed.mesh.verts,
        "joints": posed.joints.xyz,
        "rest_vertices": rest.mesh.verts,
        "rest_joints": rest.joints.xyz,
    }


# ---- fitting -------------------------------------------------------------------------------------------------------
def _gmof(q: Question) -> dict[str, Tensor]:
    return {"value": gmof(q["residual"], q["sigma"])}


def _angle_prior(q: Question) -> dict[str, Tensor]:
    return {"value": bending_prior(q["body_pose"].unflatten(-1, (-1, 3)), SMPL24.below_root)}


def _gmm_prior(q: Question) -> dict[str, Tensor]:
    factor = q["factor"].double()
    covariances = factor @ factor.mT + 0.05 * torch.eye(factor.shape[-1])
    joints = SMPL24.below_root[: factor.shape[-1] // 3]
    prior = MaxMixturePrior.of(joints, q["weights"], q["means"], covariances, torch.float64)
    pose = q["pose"].double().unflatten(-1, (-1, 3))
    return {
        "merged": prior(pose),
        "unmerged": prior.unmerged(pose),
        "mean": prior.mean_pose(joints).reshape(1, -1),
        "nll_weights": (-prior.constants).exp().unsqueeze(0),
    }


ADAPTERS: dict[str, Adapter] = {
    "rot6d_columns": _rot6d_columns,
    "rot6d_rows": _rot6d_rows,
    "rotation_spin": _rotation_spin,
    "rotation_torchgeometry": _rotation_torchgeometry,
    "smplx_lbs": _smplx_lbs,
    "smplx_*": _smplx,
    "smpl": _smpl,
    "gmof": _gmof,
    "angle_prior": _angle_prior,
    "gmm_prior": _gmm_prior,
}
