"""To and from other packages: smplx's layers, arrays and parameter names; trimesh, Open3D and PyTorch3D meshes.

Each package is imported where it is used and nowhere else; without it the function says what to install.
"""

import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from body3d.body.layouts import PICKED, published_layout
from body3d.body.model import BodyModel
from body3d.errors import MissingExtra
from body3d.skeletons import INNER_FACE51
from body3d.types import BodyParams, Mesh

if TYPE_CHECKING:
    import trimesh

__all__ = [
    "from_smplx_layer", "params_from_smplx", "params_to_smplx", "smplx_arrays", "to_open3d", "to_pytorch3d",
    "to_smplx_layer", "to_trimesh",
]  # fmt: skip

Side = Literal["left", "right"]
SIDES: tuple[Side, Side] = ("left", "right")


# ---- parameters ----------------------------------------------------------------------------------------------------
def _blocks(model: BodyModel) -> dict[str, list[int]]:
    """smplx's names for the parts of a pose, and the joints that each turns, in its order."""
    names = model.joints.names
    blocks = {
        "jaw_pose": ["jaw"],
        "leye_pose": ["left_eye_smplhf"],
        "reye_pose": ["right_eye_smplhf"],
        **{f"{s}_hand_pose": [n for n in names if n.startswith(s) and n[-1].isdigit()] for s in SIDES},
    }
    rows = {key: model.joints.indices(part) for key, part in blocks.items() if part and set(part) <= set(names)}
    rest = set(range(1, len(names))).difference(*rows.values())
    return {"global_orient": [0], "body_pose": sorted(rest), **rows}


def params_from_smplx(
    params: Mapping[str, Any], model: BodyModel, use_pca: bool = False, flat_hand_mean: bool = True
) -> BodyParams:
    """`BodyParams` from a dictionary with the smplx package's names; what is missing is zero.

    `use_pca` and `flat_hand_mean` mean what they mean in smplx: whether the hands are coefficients of principal
    components, and whether they are meant without the mean hand. smplx's own defaults are True and False; AMASS and
    this project write the full rotation vectors.
    """
    like = model.template
    given = {key: torch.as_tensor(value).to(like) for key, value in params.items() if value is not None}
    blocks = _blocks(model)
    known = {"betas", "expression", "transl", *blocks}
    if unknown := sorted(set(given) - known):
        raise ValueError(f"{', '.join(unknown)}: not among a {model.kind} body's {', '.join(sorted(known))}")
    batch = torch.broadcast_shapes(*(value.shape[:-1] for value in given.values()))
    for side in SIDES:
        key = f"{side}_hand_pose"
        if key in blocks and use_pca and (key in given or model.hand_components is not None):
            coefficients = given.get(key, like.new_zeros(*batch, 1))
            given[key] = model.hand_pose_from_pca(coefficients, side, flat_hand_mean).flatten(-2)
        elif key in blocks and not flat_hand_mean:
            given[key] = given.get(key, 0) + _hand_mean(model, side)

    pose = like.new_zeros(*batch, len(model.joints), 3)
    for key, rows in blocks.items():
        if key in given:
            pose[..., rows, :] = given[key].unflatten(-1, (-1, 3))
    row = lambda key, width: given[key].expand(*batch, -1) if key in given else like.new_zeros(*batch, width)
    expression = row("expression", 0) if "expression" in given else None
    return BodyParams(pose, row("betas", min(10, model.num_shape)), row("transl", 3), expression)


def params_to_smplx(params: BodyParams, model: BodyModel, flat_hand_mean: bool = True) -> dict[str, Tensor]:
    """The smplx package's parameters, for a layer made with `use_pca=False` and the same `flat_hand_mean`."""
    out = {key: params.pose[..., rows, :].flatten(-2) for key, rows in _blocks(model).items()}
    for side in SIDES:
        if not flat_hand_mean and f"{side}_hand_pose" in out:
            out[f"{side}_hand_pose"] = out[f"{side}_hand_pose"] - _hand_mean(model, side)
    out |= {"betas": params.shape, "transl": params.transl}
    return out if params.expression is None else out | {"expression": params.expression}


def _hand_mean(model: BodyModel, side: Side) -> Tensor:
    """The rotation vectors of the mean hand; zero where the model has none."""
    return model.template.new_zeros(45) if model.hand_mean is None else model.hand_mean[SIDES.index(side)]


# ---- models --------------------------------------------------------------------------------------------------------
def smplx_arrays(model: BodyModel, num_shape: int = 10, num_expression: int = 10) -> dict[str, np.ndarray]:
    """The arrays of a model file in the published layout, for other packages' readers.

    Those take expression from column 10 of `shapedirs` when it has fewer than 400 columns and from column 300
    otherwise, so more than 10 + 10 directions are filled up with zeros to 300 + 100. Pose blend shapes that the model
    has not are written as zeros, since every reader wants them.
    """
    numpy = lambda t: t.detach().cpu().numpy()
    V, J = model.weights.shape
    shape_columns, expression_columns = num_shape, 0
    if J == 55:
        narrow = num_shape <= 10 and num_expression <= 10
        shape_columns, expression_columns = (10, 10) if narrow else (300, 100)
    shapedirs = np.zeros((V, 3, shape_columns + expression_columns), np.float32)
    shapedirs[..., : min(num_shape, model.num_shape)] = np.moveaxis(numpy(model.shape_dirs[:num_shape]), 0, -1)
    if model.expression_dirs is not None:
        used = np.moveaxis(numpy(model.expression_dirs[:num_expression]), 0, -1)
        shapedirs[..., shape_columns : shape_columns + used.shape[-1]] = used
    posedirs = np.zeros((V, 3, 9 * (J - 1)), np.float32)
    if model.pose_dirs is not None:
        posedirs[...] = np.moveaxis(numpy(model.pose_dirs), 0, -1)
    parents = np.array(model.parents)
    out = {
        "v_template": numpy(model.template),
        "shapedirs": shapedirs,
        "posedirs": posedirs,
        "J_regressor": numpy(model.joint_regressor),
        "weights": numpy(model.weights),
        "kintree_table": np.stack([np.where(parents < 0, 2**32 - 1, parents), np.arange(J)]),
        "f": numpy(model.faces).astype(np.uint32),
    }
    if model.hand_mean is not None and model.hand_components is not None:
        for row, letter in enumerate("lr"):
            out[f"hands_mean{letter}"] = numpy(model.hand_mean[row])
            out[f"hands_components{letter}"] = numpy(model.hand_components[row])
    return out | _landmark_arrays(model)


def _landmark_arrays(model: BodyModel) -> dict[str, np.ndarray]:
    """Face landmarks as triangle numbers and barycentric coordinates."""
    number = {tuple(face): i for i, face in enumerate(model.faces.tolist())}
    triangles = lambda corners: np.array([number[tuple(c)] for c in corners.reshape(-1, 3).tolist()])
    out = {}
    if INNER_FACE51[0] in model.keypoints:
        corners, mixture = model.point_vertices[-51:], model.point_mixture[-51:]
        out |= {"lmk_faces_idx": triangles(corners), "lmk_bary_coords": mixture.cpu().numpy().astype(np.float64)}
    if model.contour_vertices is not None and model.contour_mixture is not None:
        out["dynamic_lmk_faces_idx"] = triangles(model.contour_vertices).reshape(79, 17)
        out["dynamic_lmk_bary_coords"] = model.contour_mixture.cpu().numpy().astype(np.float64)
    return out


def to_smplx_layer(model: BodyModel, num_shape: int = 10, num_expression: int = 10, **options: Any) -> torch.nn.Module:
    """A layer of the smplx package that computes the same body. `options` go to its constructor.

    The open body's layer has the published layout, not SMPL-X's vertices or shape space, and its joints come from an
    approximate regressor.
    """
    smplx = _needed("smplx", "smplx", "a layer of the smplx package")
    arrays = smplx_arrays(model, num_shape, num_expression)
    options = {"num_betas": num_shape} | options
    if model.kind == "smpl":
        layer = smplx.SMPL("", data_struct=SimpleNamespace(**arrays), **options)
    elif model.kind == "smplh":
        layer = smplx.SMPLH("", data_struct=SimpleNamespace(**arrays), **options)
    else:
        with tempfile.TemporaryDirectory() as folder:  # SMPLX reads nothing but files
            np.savez(Path(folder) / "model.npz", **arrays)  # pyright: ignore[reportArgumentType]
            layer = smplx.SMPLX(str(Path(folder) / "model.npz"), num_expression_coeffs=num_expression, **options)
    if PICKED[0] in model.keypoints:
        layer.vertex_joint_selector.extra_joints_idxs.copy_(model.point_vertices[: len(PICKED), 0])
    return layer


def from_smplx_layer(layer: Any) -> BodyModel:
    """A `BodyModel` with the numbers of a layer of the smplx package: SMPL, SMPLH, SMPLX or their *Layer forms."""
    buffers = {name: t.detach().cpu().numpy() for name, t in layer.named_buffers()}
    if "v_template" not in buffers or "lbs_weights" not in buffers:
        raise ValueError(f"{type(layer).__name__} is not a body layer of the smplx package")
    V, J = buffers["lbs_weights"].shape
    arrays = {
        "v_template": buffers["v_template"],
        "shapedirs": np.concatenate([buffers[k] for k in ("shapedirs", "expr_dirs") if k in buffers], -1),
        "posedirs": np.moveaxis(buffers["posedirs"].reshape(-1, V, 3), 0, -1),
        "J_regressor": buffers["J_regressor"],
        "weights": buffers["lbs_weights"],
        "kintree_table": np.stack([buffers["parents"], np.arange(J)]),
        "f": buffers["faces_tensor"],
    }
    landmarks = ("lmk_faces_idx", "lmk_bary_coords", "dynamic_lmk_faces_idx", "dynamic_lmk_bary_coords")
    arrays |= {key: buffers[key] for key in landmarks if key in buffers}
    if "left_hand_mean" in buffers:
        for side in SIDES:
            arrays[f"hands_mean{side[0]}"] = buffers[f"{side}_hand_mean"]
            arrays[f"hands_components{side[0]}"] = buffers.get(f"{side}_hand_components", np.eye(45))
    picked = buffers["vertex_joint_selector.extra_joints_idxs"].tolist()
    ids = dict(zip(PICKED, picked, strict=False))
    layout = published_layout(arrays, Path(type(layer).__name__), ids, buffers["shapedirs"].shape[-1])
    return BodyModel(**layout)


# ---- meshes --------------------------------------------------------------------------------------------------------
def to_trimesh(mesh: Mesh) -> "trimesh.Trimesh":
    """One mesh as a `trimesh.Trimesh`, vertices in our order."""
    import trimesh

    return trimesh.Trimesh(*_one(mesh), process=False)


def to_open3d(mesh: Mesh) -> Any:
    """One mesh as an `open3d.geometry.TriangleMesh` with vertex normals."""
    o3d = _needed("open3d", "view", "an Open3D mesh")
    verts, faces = _one(mesh)
    out = o3d.geometry.TriangleMesh(
        o3d.utility.Vector3dVector(verts.astype(np.float64)), o3d.utility.Vector3iVector(faces.astype(np.int32))
    )
    out.compute_vertex_normals()
    return out


def to_pytorch3d(mesh: Mesh) -> Any:
    """A mesh, or a batch of them, as `pytorch3d.structures.Meshes`; gradients pass through."""
    try:
        structures = import_module("pytorch3d.structures")
    except ImportError as error:
        raise ImportError("a PyTorch3D mesh needs pytorch3d, which is not installed: see its own manual") from error
    verts = mesh.verts.reshape(-1, *mesh.verts.shape[-2:])
    return structures.Meshes(verts, mesh.faces.expand(len(verts), -1, -1))


def _one(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    if mesh.verts.ndim != 2:
        raise ValueError(f"one mesh was expected, got a batch of {tuple(mesh.verts.shape[:-2])}; index it first")
    return mesh.verts.detach().cpu().numpy(), mesh.faces.cpu().numpy()


def _needed(module: str, extra: str, purpose: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtra(module, extra, purpose) from error
