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

from body3d import camera_conventions as conventions
from body3d.body import lbs
from body3d.body.files import read_arrays
from body3d.body.interop import params_from_smplx
from body3d.body.layouts import PICKED, PUBLISHED_KEYS, published_layout
from body3d.body.model import BodyModel
from body3d.body.priors import MaxMixturePrior, bending_prior, gmof
from body3d.camera import project_h36m
from body3d.errors import InputError
from body3d.geometry import align
from body3d.metrics import mpjpe, oks, pck, pck3d
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
# ---- metrics and cameras -------------------------------------------------------------------------------------------
def _mpjpe(q: Question) -> dict[str, Tensor]:
    errors = mpjpe.joint_errors(q["pred"], q["gt"])
    return {"mean": errors.mean(), "weighted": (q["w"] * errors).mean(), "per_pose": mpjpe.mpjpe(q["pred"], q["gt"])}


def _per_pose(measure: Callable[[Tensor, Tensor], Tensor]) -> Adapter:
    def adapter(q: Question) -> dict[str, Tensor]:
        per_pose = measure(q["pred"], q["gt"])
        return {"mean": per_pose.mean(), "mean_error": per_pose.mean(), "per_pose": per_pose.flatten()}

    return adapter


def _aligned(scale: bool) -> Adapter:
    measure = _per_pose(lambda p, t: mpjpe.pa_mpjpe(p, t, scale=scale))
    return lambda q: measure(q) | {"aligned": align(q["pred"], q["gt"], scale=scale)}


def _pck_auc_3dhp(q: Question) -> dict[str, Tensor]:
    pred, gt = q["pred"], q["gt"]  # millimetres: so the thresholds are, too
    some = lambda p: p[:, q["joints14"]]
    curve = [pck3d.pck3d(some(pred), some(gt), threshold=5.0 * i).mean() for i in range(31)]
    near = mpjpe.joint_errors(pred, gt) < 150
    return {
        "pck150_14": pck3d.pck3d(some(pred), some(gt), threshold=150.0).mean(),
        "auc_14": pck3d.auc3d(some(pred), some(gt), reach=150.0).mean(),
        "pck150_17": pck3d.pck3d(pred, gt, threshold=150.0).mean(),
        "auc_17": pck3d.auc3d(pred, gt, reach=150.0).mean(),
        "mpjpe_17": mpjpe.mpjpe(pred, gt).mean(),
        "curve_14": torch.stack(curve),
        "pck_per_joint": near.double().mean(0),
    }


def _pckh(q: Question) -> dict[str, Tensor]:
    """The published table: means of left and right, then all 14 joints at 0.5 and at "0.1", which is 0.11 there."""
    target, counted = q["target"].permute(2, 0, 1), q["missing"].T == 0
    counted[:, [6, 7]] = False  # pelvis and thorax
    size = pck.head_size(q["head_boxes"].permute(2, 0, 1).flatten(1))
    per_joint, mean = pck.pck(q["pred"] + 1, target, counted, size, 0.5)
    _, strict = pck.pck(q["pred"] + 1, target, counted, size, 0.11)
    pairs = ((9, 9), (13, 12), (14, 11), (15, 10), (3, 2), (4, 1), (5, 0))
    parts = [(per_joint[a] + per_joint[b]) / 2 for a, b in pairs]
    return {"values": 100 * torch.stack([*parts, mean, strict])}


def _coco_ap(q: Question) -> dict[str, Tensor]:
    images = range(1, 101)
    people = [
        oks.Person(k.double().numpy(), float(a), tuple(b.tolist()), bool(c))
        for k, a, b, c in zip(q["gt_keypoints"], q["gt_area"], q["gt_bbox"], q["gt_iscrowd"], strict=True)
    ]
    found = [oks.Found(k.double().numpy(), float(s)) for k, s in zip(q["dt_keypoints"], q["dt_score"], strict=True)]
    per_image = lambda things, image: [
        [t for t, i in zip(things, image.tolist(), strict=True) if i == n] for n in images
    ]
    stats = oks.coco_ap(per_image(people, q["gt_image"]), per_image(found, q["dt_image"]))
    truth = q["gt_keypoints"].double()
    every = oks.oks(
        q["dt_keypoints"].double(), truth[..., :2], truth[..., 2] > 0, q["gt_area"], boxes=q["gt_bbox"].double()
    )
    # The order of the published table: by image, detections by score, people as listed.
    best_first = q["dt_score"].argsort(descending=True, stable=True).tolist()
    rows = [n for image in images for n in best_first if q["dt_image"][n] == image]
    pairs = [(n, m) for n in rows for m, image in enumerate(q["gt_image"]) if image == q["dt_image"][n]]
    dt, gt = torch.tensor(pairs).T
    numbers = torch.tensor(list(stats.values()), dtype=torch.float64)
    return {"stats": numbers, "oks": every[dt, gt], "oks_dt": dt, "oks_gt": gt}


def _oks_nms(q: Question) -> dict[str, Tensor]:
    similarity = oks.oks_between(q["keypoints"][..., :2].double(), q["area"].double())
    keep = {f"keep_{name}": oks.oks_nms(similarity, q["score"], t) for name, t in (("09", 0.9), ("05", 0.5))}
    return {"oks": similarity, **keep}


def _world_to_camera(q: Question) -> dict[str, Tensor]:
    camera = conventions.world_to_camera(q["points"], q["quaternion"], q["translation"])
    return {"camera": camera, "world": conventions.camera_to_world(q["points"], q["quaternion"], q["translation"])}


def _screen_coordinates(q: Question) -> dict[str, Tensor]:
    width, height = q["size"].tolist()
    screen = conventions.to_screen(q["uv"], width, height)
    return {"normalised": screen, "back": conventions.from_screen(screen, width, height)}


def _quaternion(q: Question) -> dict[str, Tensor]:
    return {"rotated": conventions.rotate_wxyz(q["q"], q["v"]), "inverse": conventions.inverse_wxyz(q["q"])}


def _camera_3dmppe(q: Question) -> dict[str, Tensor]:
    pixel = conventions.camera_to_pixel(q["cam"], q["f"], q["c"])
    world2cam = q["world"] @ q["R"].T + q["t"]
    return {"pixel": pixel, "back": conventions.pixel_to_camera(pixel, q["f"], q["c"]), "world2cam": world2cam}


def _bbox_k_3dmppe(q: Question) -> dict[str, Tensor]:
    width, height = q["image_size"].tolist()
    box = conventions.square_box(q["bbox"], (width, height))
    return {
        "processed": box,
        "k_value": conventions.depth_factor(box, q["f"]),
        "joint_bbox": conventions.joints_box(q["joints"][:, :2]),
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
    "project_h36m": _project_h36m,
    "mpjpe": _mpjpe,
    "p_mpjpe": _per_pose(mpjpe.pa_mpjpe),
    "n_mpjpe": _per_pose(mpjpe.n_mpjpe),
    "velocity_error": _per_pose(mpjpe.mpjve),
    "rigid_align_3dmppe": _aligned(scale=False),
    "similarity_spin": _aligned(scale=True),
    "pck_auc_3dhp": _pck_auc_3dhp,
    "pckh": _pckh,
    "coco_ap": _coco_ap,
    "oks_nms": _oks_nms,
    "world_to_camera": _world_to_camera,
    "screen_coordinates": _screen_coordinates,
    "quaternion": _quaternion,
    "camera_3dmppe": _camera_3dmppe,
    "bbox_k_3dmppe": _bbox_k_3dmppe,
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
