"""What the arrays of a model file mean: the published SMPL, SMPL-H and SMPL-X layouts and the open body's own.

Both functions take the arrays of a file and return the fields of a `BodyModel`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from body3d.body.lbs import chain_jumps
from body3d.errors import InputError
from body3d.skeletons import INNER_FACE51, JAW17, SMPL24, SMPLH52, SMPLX55, SMPLX144, JointSet

Arrays = Mapping[str, np.ndarray]

TREES = {"smpl": SMPL24, "smplh": SMPLH52, "smplx": SMPLX55, "open": SMPLX55}
REQUIRED = ("v_template", "shapedirs", "weights", "f")
PUBLISHED_KEYS = (
    *REQUIRED, "posedirs", "J_regressor", "kintree_table", "hands_meanl", "hands_meanr", "hands_componentsl",
    "hands_componentsr", "lmk_faces_idx", "lmk_bary_coords", "dynamic_lmk_faces_idx", "dynamic_lmk_bary_coords",
)  # fmt: skip
OPEN_KEYS = (
    "model", "shapedirs_scale", "exprdirs", "exprdirs_scale", "expression_names", "J_template", "J_shapedirs",
    "J_regressor_row", "J_regressor_col", "J_regressor_value", "parents", "weights_index", "weights_value",
    "vertex_names", "vertex_ids",
)  # fmt: skip

# The vertices that stand for points of the face, feet and fingertips: the numbers that the smplx package publishes for
# the meshes of 6,890 (SMPL, SMPL-H) and 10,475 vertices (SMPL-X).
PICKED: tuple[str, ...] = (
    "nose", "right_eye", "left_eye", "right_ear", "left_ear",
    "left_big_toe", "left_small_toe", "left_heel", "right_big_toe", "right_small_toe", "right_heel",
    "left_thumb_tip", "left_index_tip", "left_middle_tip", "left_ring_tip", "left_pinky_tip",
    "right_thumb_tip", "right_index_tip", "right_middle_tip", "right_ring_tip", "right_pinky_tip",
)  # fmt: skip
PICKED_VERTICES = {
    6890: (332, 6260, 2800, 4071, 583, 3216, 3226, 3387, 6617, 6624, 6787,
           2746, 2319, 2445, 2556, 2673, 6191, 5782, 5905, 6016, 6133),
    10475: (9120, 9929, 9448, 616, 6, 5770, 5780, 8846, 8463, 8474, 8635,
            5361, 4933, 5058, 5169, 5286, 8079, 7669, 7794, 7905, 8022),
}  # fmt: skip


def published_layout(
    arrays: Arrays, path: Path, vertex_ids: Mapping[str, int] | None = None, num_shape: int | None = None
) -> dict[str, Any]:
    """The fields of an SMPL, SMPL-H or SMPL-X file, told apart by their 24, 52 or 55 joints.

    `vertex_ids` names the picked vertices of a mesh whose vertices are not the published ones; `num_shape` is how many
    columns of `shapedirs` are of shape, where it is not as published.
    """
    lacking = [key for key in (*REQUIRED, "J_regressor", "kintree_table") if key not in arrays]
    if lacking:
        raise InputError(f"{path} is not a body model: it has no {', '.join(map(repr, lacking))}")
    _check_numbers(arrays, path)
    vertices, joints = len(arrays["v_template"]), arrays["kintree_table"].shape[-1]
    kind = {24: "smpl", 52: "smplh", 55: "smplx"}.get(joints)
    if kind is None:
        raise InputError(f"{path} has {joints} joints; SMPL has 24, SMPL-H 52 and SMPL-X 55")
    columns = arrays["shapedirs"].shape[-1]
    _check_shapes(
        arrays, path,
        v_template=(vertices, 3), shapedirs=(vertices, 3, columns), weights=(vertices, joints),
        J_regressor=(joints, vertices), kintree_table=(2, joints), posedirs=(vertices, 3, 9 * (joints - 1)),
    )  # fmt: skip

    # SMPL-X keeps expression behind shape: 300 + 100 columns, or 10 + 10 in its first files (SMPL-X code release 2019).
    shape_columns = columns if kind != "smplx" else 300 if columns >= 400 else min(10, columns)
    shape_columns = shape_columns if num_shape is None else num_shape
    directions = np.moveaxis(np.asarray(arrays["shapedirs"], np.float32), -1, 0)
    regressor = np.asarray(arrays["J_regressor"], np.float64)
    joint_directions = np.einsum("jv,svc->sjc", regressor, directions, optimize=True)
    expressions = columns - shape_columns

    if vertex_ids is None:
        vertex_ids = dict(zip(PICKED, PICKED_VERTICES.get(vertices, ()), strict=False))
    return {
        "kind": kind,
        "template": _floats(arrays["v_template"]),
        "shape_dirs": _floats(directions[:shape_columns]),
        "expression_dirs": _floats(directions[shape_columns:]) if expressions else None,
        "pose_dirs": _pose_directions(arrays.get("posedirs")),
        "joint_template": _floats(regressor @ np.asarray(arrays["v_template"], np.float64)),
        "joint_shape_dirs": _floats(joint_directions[:shape_columns]),
        "joint_expression_dirs": _floats(joint_directions[shape_columns:]) if expressions else None,
        "joint_regressor": _floats(regressor),
        "weights": _floats(arrays["weights"]),
        "expression_names": tuple(f"expression_{i}" for i in range(expressions)),
        **_hands(arrays),
        **_tree_and_points(arrays, path, kind, _parents(arrays["kintree_table"][0], path), vertex_ids),
    }


def open_layout(arrays: Arrays, path: Path) -> dict[str, Any]:
    """The fields of the open body: quantised directions, joints linear in shape, sparse weights, no pose blends."""
    lacking = [key for key in ("v_template", "shapedirs", "f", *OPEN_KEYS) if key not in arrays]
    if lacking:
        raise InputError(f"{path} is not the open body: it has no {', '.join(map(repr, lacking))}")
    _check_numbers(arrays, path)
    weights = np.zeros((len(arrays["v_template"]), len(arrays["parents"])), np.float32)
    # Added up, not assigned: unused places of a row name joint 0 again with weight 0.
    rows = np.arange(len(weights))[:, None]
    np.add.at(weights, (rows, arrays["weights_index"]), arrays["weights_value"].astype(np.float32))
    weights /= weights.sum(1, keepdims=True)

    regressor = np.zeros(weights.T.shape, np.float32)
    regressor[arrays["J_regressor_row"], arrays["J_regressor_col"]] = arrays["J_regressor_value"]

    names = [str(name) for name in arrays["vertex_names"]]
    return {
        "kind": "open",
        "template": _floats(arrays["v_template"]),
        "shape_dirs": _directions(arrays["shapedirs"], arrays["shapedirs_scale"]),
        "expression_dirs": _directions(arrays["exprdirs"], arrays["exprdirs_scale"]),
        "pose_dirs": None,
        "joint_template": _floats(arrays["J_template"]),
        "joint_shape_dirs": _floats(np.moveaxis(arrays["J_shapedirs"], -1, 0)),
        "joint_expression_dirs": None,
        "joint_regressor": _floats(regressor),
        "weights": _floats(weights),
        "expression_names": tuple(str(name) for name in arrays["expression_names"]),
        **_hands(arrays),
        **_tree_and_points(
            arrays, path, "open", _parents(arrays["parents"], path),
            dict(zip(names, arrays["vertex_ids"].tolist(), strict=True)),
        ),
    }  # fmt: skip


def _tree_and_points(
    arrays: Arrays, path: Path, kind: str, parents: tuple[int, ...], vertex_ids: Mapping[str, int]
) -> dict[str, Any]:
    """The joint tree and every other named point as a mixture of three vertices (a picked vertex is all of one)."""
    vertices = len(arrays["v_template"])
    faces = arrays["f"].astype(np.int64)
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.min() < 0 or faces.max() >= vertices:
        raise InputError(f"{path}: 'f' {faces.shape} is not a list of triangles over {vertices} vertices")

    names = [name for name in PICKED if name in vertex_ids]
    ids = np.array([vertex_ids[name] for name in names], np.int64)
    if len(ids) and not 0 <= ids.min() <= ids.max() < vertices:
        raise InputError(f"{path}: a picked vertex has number {ids.max()}, the mesh has {vertices} vertices")
    corners, mixture = np.repeat(ids[:, None], 3, 1), np.tile([1.0, 0, 0], (len(ids), 1))
    if "lmk_faces_idx" in arrays:
        _check_shapes(arrays, path, lmk_faces_idx=(51,), lmk_bary_coords=(51, 3))
        names += INNER_FACE51
        corners = np.concatenate([corners, faces[arrays["lmk_faces_idx"]]])
        mixture = np.concatenate([mixture, arrays["lmk_bary_coords"]])
    contour = "dynamic_lmk_faces_idx" in arrays
    if contour:
        _check_shapes(arrays, path, dynamic_lmk_faces_idx=(79, 17), dynamic_lmk_bary_coords=(79, 17, 3))

    tree = TREES[kind].names
    points = (*tree, *names, *(JAW17 if contour else ()))
    return {
        "faces": torch.from_numpy(faces),
        "joints": JointSet(kind, tree, parents),
        "keypoints": JointSet(f"{kind}_keypoints", points, (*parents, *_point_parents(points, len(tree)))),
        "jumps": chain_jumps(parents),
        "point_vertices": torch.from_numpy(corners),
        "point_mixture": _floats(mixture),
        "contour_vertices": torch.from_numpy(faces[arrays["dynamic_lmk_faces_idx"]]) if contour else None,
        "contour_mixture": _floats(arrays["dynamic_lmk_bary_coords"]) if contour else None,
    }


def _point_parents(points: tuple[str, ...], skip: int) -> list[int]:
    """For drawing: what each point hangs on, after SMPL-X's set; the nearest ancestor that the model has."""
    position = {name: i for i, name in enumerate(points)}

    def parent(name: str) -> int:
        above = SMPLX144.parents[SMPLX144.index(name)]
        if above < 0:
            return -1
        found = SMPLX144.names[above]
        return position[found] if found in position else parent(found)

    return [parent(name) for name in points[skip:]]


def _parents(row: np.ndarray, path: Path) -> tuple[int, ...]:
    """The tree's parents; the published files write the root's as 2**32 - 1."""
    count = len(row)
    parents = tuple(int(p) if 0 <= p < count else -1 for p in row.tolist())
    if parents.count(-1) != 1 or parents[0] != -1:
        raise InputError(f"{path}: the joint tree must have one root, joint 0")
    return parents


def _hands(arrays: Arrays) -> dict[str, Tensor | None]:
    """Mean poses and principal components of the two hands (MANO), left first."""
    if "hands_componentsl" not in arrays:
        return {"hand_mean": None, "hand_components": None}
    return {
        "hand_mean": _floats(np.stack([arrays["hands_meanl"], arrays["hands_meanr"]])),
        "hand_components": _floats(np.stack([arrays["hands_componentsl"], arrays["hands_componentsr"]])),
    }


def _pose_directions(posedirs: np.ndarray | None) -> Tensor | None:
    """Pose blend shapes, or None where a file has none or only zeros: they would be 80 MB of them."""
    if posedirs is None or not posedirs.any():
        return None
    return _floats(np.moveaxis(posedirs, -1, 0))


def _directions(stored: np.ndarray, scale: np.ndarray) -> Tensor:
    return _floats(np.moveaxis(stored.astype(np.float32) * scale.astype(np.float32), -1, 0))


def _floats(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))


TEXTS = ("model", "expression_names", "vertex_names")


def _check_numbers(arrays: Arrays, path: Path) -> None:
    for key, array in arrays.items():
        if key not in TEXTS and (array.ndim == 0 or array.dtype.kind not in "fiu" or not np.isfinite(array).all()):
            raise InputError(f"{path}: {key!r} is not an array of finite numbers")


def _check_shapes(arrays: Arrays, path: Path, **expected: tuple[int, ...]) -> None:
    for key, shape in expected.items():
        if key in arrays and arrays[key].shape != shape:
            raise InputError(f"{path}: {key!r} has shape {arrays[key].shape}; {shape} was expected")
