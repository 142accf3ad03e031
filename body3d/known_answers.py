"""Our functions against numbers computed from published implementations.

A known answer is an .npz file of inputs (`in_*`), of what the published function made of them (`out_*`), and of `meta`,
a JSON text with the function's name and source. `ADAPTERS` says how each is computed here: a new one is a function of a
`Question` and a line in the table. A body model is read from the file that `meta` names, beside the answer's own.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import roma
import torch
from torch import Tensor

from body3d.body import lbs
from body3d.body.files import read_arrays
from body3d.body.interop import params_from_smplx
from body3d.body.layouts import PICKED, PUBLISHED_KEYS, published_layout
from body3d.body.model import BodyModel
from body3d.body.priors import MaxMixturePrior, bending_prior, gmof
from body3d.camera import project_h36m
from body3d.errors import InputError
from body3d.rot6d import matrix_to_rot6d, rot6d_to_matrix, rot6d_to_matrix_symmetric
from body3d.skeletons import SMPL24

__all__ = ["ADAPTERS", "Comparison", "Question", "check"]


@dataclass(frozen=True)
class Question:
    """What a file asks: the function's published name, its inputs, and everything else that its `meta` says."""

    name: str
    inputs: dict[str, Tensor]
    meta: dict[str, Any]
    folder: Path

    def __getitem__(self, key: str) -> Tensor:
        return self.inputs[key]


@dataclass(frozen=True)
class Comparison:
    """One output: the largest difference, and the largest relative to what is tolerated (at most 1 if equal)."""

    output: str
    shape: tuple[int, ...]
    difference: float
    ratio: float

    @property
    def equal(self) -> bool:
        return self.ratio <= 1  # False for NaN


Adapter = Callable[[Question], dict[str, Tensor]]


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
    return {"value": bending_prior(q["body_pose"].unflatten(-1, (-1, 3)), SMPL24.names[1:])}


def _gmm_prior(q: Question) -> dict[str, Tensor]:
    factor = q["factor"].double()
    covariances = factor @ factor.mT + 0.05 * torch.eye(factor.shape[-1])
    joints = SMPL24.names[1 : 1 + factor.shape[-1] // 3]
    prior = MaxMixturePrior.of(joints, q["weights"], q["means"], covariances, torch.float64)
    pose = q["pose"].double().unflatten(-1, (-1, 3))
    return {
        "merged": prior(pose),
        "unmerged": prior.unmerged(pose),
        "mean": prior.mean_pose(joints).reshape(1, -1),
        "nll_weights": (-prior.constants).exp().unsqueeze(0),
    }


def _project_h36m(q: Question) -> dict[str, Tensor]:
    undistorted = q["camera"].clone()
    undistorted[..., 4:] = 0
    return {"distorted": project_h36m(q["points"], q["camera"]), "linear": project_h36m(q["points"], undistorted)}


# By the published name of the function, `*` for any ending; the first that fits counts.
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
    "project_h36m": _project_h36m,
}


# Where the published code is further from its own formula than the rule tolerates: an absolute tolerance.
ABSOLUTE = {
    ("rotation_spin", "rodrigues"): 1e-7,  # adds 1e-8 to the vector before taking its norm, in double precision
}


# ---- comparing -----------------------------------------------------------------------------------------------------
def check(path: str | Path) -> list[Comparison] | None:
    """Compute a file's outputs here and compare them; None where nothing here computes that function.

    Raises InputError for a file that is not a known answer.
    """
    path = Path(path)
    arrays = read_arrays(path, None, required=("meta",), what="known answer")
    try:
        meta = json.loads(str(arrays["meta"]))
        name = meta.get("name", path.stem.removeprefix("fn_"))
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is not a known answer: its 'meta' is not a JSON object") from error
    adapter = next((make for pattern, make in ADAPTERS.items() if fnmatchcase(name, pattern)), None)
    expected = {key[4:]: value for key, value in arrays.items() if key.startswith("out_")}
    if adapter is None or not expected:
        return None
    inputs = {key[3:]: torch.from_numpy(value) for key, value in arrays.items() if key.startswith("in_")}
    computed = adapter(Question(name, inputs, meta, path.parent))
    double = all(t.dtype == torch.float64 for t in inputs.values() if t.is_floating_point())
    out = []
    for key, theirs in expected.items():
        tolerance = ABSOLUTE.get((name, key)) or _tolerance(theirs, double and theirs.dtype == np.float64)
        out.append(_compare(key, computed.get(key), theirs, tolerance))
    return out


def _tolerance(theirs: np.ndarray, double: bool) -> float:
    """1e-9 of the mean magnitude where all was computed in double precision, else 1e-4 of it plus 1e-6.

    The 1e-6 is left out where it would be more than the numbers themselves and so accept anything.
    """
    size = float(np.abs(theirs).mean())
    return (1e-9 * size if double else 1e-4 * size + 1e-6 * (size > 1e-6)) or 1e-6


def _compare(output: str, ours: Tensor | None, theirs: np.ndarray, tolerance: float) -> Comparison:
    if ours is None or tuple(ours.shape) != theirs.shape:
        return Comparison(output, theirs.shape, float("nan"), float("nan"))
    difference = float(np.abs(ours.detach().double().numpy() - theirs).max(initial=0))
    return Comparison(output, theirs.shape, difference, difference / tolerance)
