import math
import os
import pickle
import sys
import types
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
from scipy import sparse

from body3d.body import BodyModel, SubsetModel, interop, lbs
from body3d.body.files import read_arrays, read_pickle
from body3d.body.layouts import PICKED, PICKED_VERTICES
from body3d.body.model import contour_row
from body3d.body.priors import MaxMixturePrior, bending_prior, bending_residual, gmof
from body3d.errors import InputError
from body3d.rot6d import matrix_to_rot6d, rot6d_to_matrix, rot6d_to_matrix_symmetric
from body3d.skeletons import SMPL24, SMPLH52, SMPLX55, SMPLX144
from body3d.types import BodyParams

ANSWERS = Path(__file__).parent / "known_answers"
IDS = {name: 3 + 7 * i for i, name in enumerate(PICKED)}  # any vertices do for a random body
LAYERS = {"open": None, "smplx": ANSWERS / "model_smplx_random.npz", "smpl": ANSWERS / "model_smpl_random.npz"}


def load(kind: str) -> BodyModel:
    return BodyModel.open() if kind == "open" else BodyModel.load(LAYERS[kind], kind, vertex_ids=IDS)


@pytest.fixture(scope="module", params=LAYERS)
def model(request) -> BodyModel:
    return load(request.param)


def random_params(model: BodyModel, *batch: int, seed: int = 0, scale: float = 0.3) -> BodyParams:
    g = torch.Generator().manual_seed(seed)
    zero = model.zero_params(*batch)
    return zero.map(lambda t: scale * torch.randn(t.shape, generator=g, dtype=t.dtype))


# ---- skinning ------------------------------------------------------------------------------------------------------
def test_rotations_are_roma_s_and_smooth_at_zero():
    vectors = torch.cat([torch.randn(200, 3), 1e-4 * torch.randn(50, 3), torch.zeros(1, 3)]).double()
    assert torch.allclose(lbs.rotation_matrices(vectors), roma.rotvec_to_rotmat(vectors), atol=1e-12)
    for dtype in (torch.float32, torch.float64):
        zero = torch.zeros(3, dtype=dtype)
        slope = torch.autograd.functional.jacobian(lbs.rotation_matrices, zero)
        x, y, z = slope.unbind(-1)
        generators = torch.tensor([[[0, 0, 0], [0, 0, -1], [0, 1, 0]], [[0, 0, 1], [0, 0, 0], [-1, 0, 0]]], dtype=dtype)
        assert torch.allclose(torch.stack([x, y]), generators, atol=1e-6)
        assert torch.allclose(z, torch.tensor([[0, -1, 0], [1, 0, 0], [0, 0, 0.0]], dtype=dtype), atol=1e-6)


def chain_by_loop(rotations, joints, parents):
    """The chain one joint after the other: the independent computation."""
    out = []
    for j, p in enumerate(parents):
        T = torch.eye(4, dtype=joints.dtype)
        T[:3, :3], T[:3, 3] = rotations[j], joints[j] - (joints[p] if p >= 0 else 0)
        out.append(T if p < 0 else out[p] @ T)
    return torch.stack(out)


@pytest.mark.parametrize("parents", [SMPLX55.parents, SMPL24.parents, (-1,), (-1, 0), tuple(range(-1, 40))])
def test_chain_equals_one_joint_after_the_other(parents):
    rotations = roma.random_rotmat(len(parents)).double()
    joints = torch.randn(len(parents), 3).double()
    T = lbs.world_transforms(rotations, joints, lbs.chain_jumps(parents))
    assert torch.allclose(T, chain_by_loop(rotations, joints, parents), atol=1e-10)
    assert torch.equal(T[..., 3, :], torch.tensor([0, 0, 0, 1.0]).double().expand(len(parents), 4))


def test_a_parent_may_stand_after_its_child():
    rotations, joints = roma.random_rotmat(3).double(), torch.randn(3, 3).double()
    T = lbs.world_transforms(rotations, joints, lbs.chain_jumps((1, -1, 1)))
    order = [1, 0, 2]
    expected = chain_by_loop(rotations[order], joints[order], (-1, 0, 0))
    assert torch.allclose(T[order], expected, atol=1e-12)


def test_a_cycle_is_refused():
    with pytest.raises(ValueError, match="cycle"):
        lbs.chain_jumps((-1, 2, 1))


# ---- the model -----------------------------------------------------------------------------------------------------
def test_rest_pose_is_the_template(model):
    body = model(model.zero_params())
    assert torch.allclose(body.mesh.verts, model.template, atol=1e-6)
    assert torch.allclose(body.joints.xyz[: len(model.joints)], model.joint_template, atol=1e-6)
    assert body.joints.joints is model.keypoints


def test_a_turn_of_the_root_is_rigid(model):
    params = random_params(model)
    turn = torch.tensor([0.4, -2.0, 0.9])
    with_pose = lambda pose: BodyParams(pose, params.shape, params.transl, params.expression)
    still = with_pose(params.pose.index_fill(0, torch.tensor([0]), 0.0))
    turned = with_pose(torch.cat([turn[None], params.pose[1:]]))
    pivot = model(still).joints.xyz[0]
    R = roma.rotvec_to_rotmat(turn)
    expected = (model(still).mesh.verts - pivot) @ R.T + pivot
    assert torch.allclose(model(turned).mesh.verts, expected, atol=2e-6)


def test_transl_moves_everything(model):
    params = random_params(model)
    there = BodyParams(params.pose, params.shape, params.transl + torch.tensor([1.0, -2, 3]), params.expression)
    a, b = model(params), model(there)
    for before, after in ((a.mesh.verts, b.mesh.verts), (a.joints.xyz, b.joints.xyz)):
        assert torch.allclose(after - before, torch.tensor([1.0, -2, 3]).expand_as(before), atol=2e-6)
    assert torch.allclose(b.T_world_joint[:, :3, 3], b.joints.xyz[: len(model.joints)])
    assert torch.equal(a.T_world_joint[:, :3, :3], b.T_world_joint[:, :3, :3])


def test_skinning_equals_a_loop_over_vertices():
    model, params = load("smplx").to(dtype=torch.float64), random_params(load("smplx")).map(torch.Tensor.double)
    R = roma.rotvec_to_rotmat(params.pose)
    shaped = model.template + (params.shape[:, None, None] * model.shape_dirs[:10]).sum(0)
    shaped = shaped + (params.expression[:, None, None] * model.expression_dirs[:10]).sum(0)
    joints = model.joint_regressor @ shaped
    feature = (R[1:] - torch.eye(3)).flatten()
    rest = shaped + (feature[:, None, None] * model.pose_dirs).sum(0)
    T = chain_by_loop(R, joints, model.parents)
    expected = []
    for v, weights in zip(rest, model.weights, strict=True):
        moved = [w * (t[:3, :3] @ (v - j) + t[:3, 3]) for w, t, j in zip(weights, T, joints, strict=True) if w > 0]
        expected.append(sum(moved) + params.transl)
    assert torch.allclose(model(params).mesh.verts, torch.stack(expected), atol=1e-6)


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (0,)])
def test_any_batch_is_the_single_bodies_stacked(model, batch):
    params = random_params(model, *batch)
    body = model(params)
    assert body.mesh.verts.shape == (*batch, len(model.template), 3)
    assert body.joints.xyz.shape == (*batch, len(model.keypoints), 3)
    assert body.T_world_joint.shape == (*batch, len(model.joints), 4, 4)
    for index in np.ndindex(*batch):
        assert torch.allclose(body.joints.xyz[index], model(params[index]).joints.xyz, atol=1e-6)
    subset = model.subset(model.keypoints.names)
    assert torch.allclose(subset(params), body.joints.xyz, atol=1e-5)


def test_fewer_coefficients_are_the_first_ones_and_more_are_an_error(model):
    params = random_params(model)
    short = BodyParams(params.pose, params.shape[:4], params.transl, params.expression)
    padded = BodyParams(params.pose, params.shape * (torch.arange(10) < 4), params.transl, params.expression)
    assert torch.allclose(model(short).mesh.verts, model(padded).mesh.verts, atol=1e-6)
    with pytest.raises(ValueError, match=f"the model has {model.num_shape} directions"):
        model(BodyParams(params.pose, torch.zeros(model.num_shape + 1), params.transl))


def test_double_precision_copy_leaves_the_shared_model_alone(model):
    double = model.to(dtype=torch.float64)
    assert double.template.dtype == torch.float64
    assert double.faces.dtype == torch.int64
    assert model.template.dtype == torch.float32
    params = random_params(model)
    difference = double(params.map(torch.Tensor.double)).mesh.verts - model(params).mesh.verts
    assert difference.abs().max() < 2e-6


def test_everything_moves_to_another_device(model):
    params = random_params(model, 2).to("meta")
    elsewhere = model.to("meta")
    assert elsewhere(params).joints.xyz.is_meta
    assert model.subset(model.keypoints.names).to("meta")(params).is_meta


# ---- points --------------------------------------------------------------------------------------------------------
def test_names_of_the_points():
    assert load("smplx").keypoints.names == load("open").keypoints.names == SMPLX144.names
    assert load("smpl").keypoints.names == (*SMPL24.names, *PICKED)
    smpl = load("smpl").keypoints
    assert smpl.names[smpl.parents[smpl.index("left_thumb_tip")]] == "left_wrist"


def test_subset_equals_the_whole_model(model):
    rng = np.random.default_rng(0)
    params = random_params(model, 5, scale=0.5)
    dense = model(params).joints
    for count in (1, 7, 40, len(model.keypoints)):
        names = [str(n) for n in rng.permutation(model.keypoints.names)[:count]]
        subset = model.subset(names)
        points, joints = subset.points_and_joints(params)
        assert torch.allclose(points, dense.xyz[:, model.keypoints.indices(names)], atol=1e-5)
        assert torch.allclose(joints, dense.xyz[:, : len(model.joints)], atol=1e-5)
        assert points.shape[1] == count == len(subset.names)


def test_subset_keeps_only_what_it_needs():
    model = BodyModel.open()
    assert len(model.subset(["left_wrist", "pelvis"]).weights) == 0
    assert len(model.subset(["nose", "left_wrist"]).weights) == 1
    no_contour = [n for n in model.keypoints.names if "jaw_" not in n and n != "chin"]
    assert len(model.subset(no_contour).weights) < 21 + 3 * 51 + 1
    with pytest.raises(KeyError, match="no joint 'tail'"):
        model.subset(["tail"])
    with pytest.raises(KeyError, match="no joint 'chin'"):
        load("smpl").subset(["chin"])


def test_landmarks_whose_corners_share_weights_are_folded_into_one_vertex():
    """The random body skins every vertex differently; given equal weights, its landmarks fold and do not move."""
    model = load("smplx")
    stiff = replace(model, weights=model.weights[:1].expand_as(model.weights).contiguous())
    names = model.keypoints.names[76:127]
    assert len(stiff.subset(names).weights) == 51
    assert len(model.subset(names).weights) > 51
    params = random_params(model, 2)
    assert torch.allclose(stiff.subset(names)(params), stiff(params).joints.xyz[:, 76:127], atol=1e-5)


YAW_ROWS = {0: 0, 10: 10, 39.4: 39, 80: 39, -1: 40, -10.4: 49, -39: 78, -70: 78}


@pytest.mark.parametrize(("degrees", "row"), YAW_ROWS.items())
def test_contour_row_of_a_face_turned_to_its_left_in_the_camera(degrees, row):
    half_turn = roma.rotvec_to_rotmat(torch.tensor([math.pi, 0, 0]))  # y up to y down
    turn = roma.rotvec_to_rotmat(torch.tensor([0, math.radians(degrees), 0]))
    assert contour_row(half_turn @ turn) == row


def test_contour_lies_on_the_outline_that_the_camera_sees():
    """Turned to its left, the face hides its left cheek: there the contour comes forward, on the right it stays."""
    model = BodyModel.open()
    params = model.zero_params()
    names = ("left_jaw_1", "right_jaw_1")
    depth = {}
    for degrees in (-30, 0, 30):
        turn = roma.rotvec_composition([torch.tensor([math.pi, 0, 0]), torch.tensor([0, math.radians(degrees), 0])])
        pose = torch.cat([turn[None].float(), params.pose[1:]])
        body = model(BodyParams(pose, params.shape, params.transl, params.expression))
        points = body.joints.xyz[model.keypoints.indices(names)] - body.joints.xyz[0]
        depth[degrees] = (points @ roma.rotvec_to_rotmat(turn).float())[:, 2]  # towards the front of the body
    assert depth[30][0] > depth[0][0] + 0.02 > depth[-30][0] + 0.01
    assert depth[-30][1] > depth[0][1] + 0.02 > depth[30][1] + 0.01


# ---- gradients -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scale", [0.0, 0.4])
def test_gradients_equal_finite_differences(model, scale):
    model = model.to(dtype=torch.float64)
    names = ["left_wrist", "nose", "right_heel"]
    names += ["right_hand"] if model.kind == "smpl" else ["mouth_left", "left_jaw_3", "right_ring3", "left_index_tip"]
    params = random_params(model, scale=scale)
    sizes = {f: t.numel() for f, t in vars(params).items() if t is not None}
    x = torch.cat([t.flatten() for t in vars(params).values() if t is not None]).requires_grad_()
    direction = torch.randn(len(names), 3, generator=torch.Generator().manual_seed(1)).double()

    def value(points, x):
        parts = dict(zip(sizes, x.split(list(sizes.values()), -1), strict=True))
        parts["pose"] = parts["pose"].unflatten(-1, (-1, 3))
        return (points(BodyParams(**parts)) * direction).sum((-2, -1))

    subset, rows = model.subset(names), model.keypoints.indices(names)
    (slope,) = torch.autograd.grad(value(subset, x), x)
    steps = 1e-6 * torch.eye(len(x)).double()
    with torch.no_grad():
        difference = (value(subset, x + steps) - value(subset, x - steps)) / 2e-6
    assert torch.allclose(slope, difference, atol=1e-8)
    (dense,) = torch.autograd.grad(value(lambda p: model(p).joints.xyz[rows], x), x)
    assert torch.allclose(slope, dense, atol=1e-10)
    for name, part in zip(sizes, slope.split(list(sizes.values())), strict=True):
        assert part.abs().max() > 0, f"{name} does not reach the points"


# ---- hands and parameter names -------------------------------------------------------------------------------------
def test_hand_components_add_to_the_mean():
    model = load("smplx")
    coefficients = torch.randn(4, 6)
    for row, side in enumerate(("left", "right")):
        flat = model.hand_pose_from_pca(coefficients, side, flat_hand_mean=True)
        expected = coefficients @ model.hand_components[row, :6]
        assert torch.allclose(flat.flatten(1), expected)
        assert torch.allclose(model.hand_pose_from_pca(coefficients, side).flatten(1), expected + model.hand_mean[row])
    with pytest.raises(ValueError, match="no principal components"):
        load("smpl").hand_pose_from_pca(coefficients, "left")


def test_smplx_parameters_there_and_back(model):
    params = random_params(model, 3)
    for flat in (True, False):
        named = interop.params_to_smplx(params, model, flat_hand_mean=flat)
        back = interop.params_from_smplx(named, model, flat_hand_mean=flat)
        for field in ("pose", "shape", "transl"):
            assert torch.allclose(getattr(back, field), getattr(params, field), atol=1e-6)
    sizes = {key: value.shape[-1] for key, value in named.items()}
    assert sizes["global_orient"] == 3
    assert sizes["body_pose"] == (69 if model.kind == "smpl" else 63)
    assert sizes.get("left_hand_pose", 45) == 45
    joint = model.joints.index("right_knee")
    assert torch.equal(named["body_pose"][:, 3 * joint - 3 : 3 * joint], params.pose[:, joint])
    with pytest.raises(ValueError, match="tail_pose: not among"):
        interop.params_from_smplx({"tail_pose": np.zeros(3)}, model)


# ---- other packages ------------------------------------------------------------------------------------------------
def test_trimesh_and_what_is_not_installed(monkeypatch):
    model = BodyModel.open()
    body = model(model.zero_params(2))
    mesh = interop.to_trimesh(body.mesh[0])
    assert mesh.is_watertight
    assert np.allclose(mesh.vertices, model.template, atol=1e-6)
    with pytest.raises(ValueError, match="index it first"):
        interop.to_trimesh(body.mesh)
    for name in ("open3d", "smplx", "pytorch3d", "pytorch3d.structures"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"open3d, which is not installed: pip install 'body3d\[view\]'"):
        interop.to_open3d(body.mesh[0])
    with pytest.raises(ImportError, match=r"smplx, which is not installed: pip install 'body3d\[smplx\]'"):
        interop.to_smplx_layer(model)
    with pytest.raises(ImportError, match="pytorch3d, which is not installed"):
        interop.to_pytorch3d(body.mesh)


def test_open3d_mesh():
    pytest.importorskip("open3d")
    model = BodyModel.open()
    mesh = interop.to_open3d(model(model.zero_params()).mesh)
    assert np.allclose(np.asarray(mesh.vertices), model.template)
    assert len(mesh.triangles) == len(model.faces)


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_of_the_smplx_package_compute_the_same(kind):
    pytest.importorskip("smplx")
    model = load(kind)
    options = {} if kind == "smpl" else {"use_pca": False, "flat_hand_mean": True, "use_face_contour": True}
    layer = interop.to_smplx_layer(model, batch_size=3, **options)
    params = random_params(model, 3)
    theirs, ours = layer(**interop.params_to_smplx(params, model)), model(params)
    tolerance = 2e-3 if kind == "open" else 1e-5  # the open body's joint regressor is approximate
    assert (theirs.vertices - ours.mesh.verts).abs().max() < tolerance
    assert (theirs.joints - ours.joints.xyz).abs().max() < tolerance
    back = interop.from_smplx_layer(layer)
    assert back.keypoints.names == model.keypoints.names
    assert (back(params).joints.xyz - theirs.joints).abs().max() < 1e-5


def test_published_arrays_load_as_the_same_body(tmp_path, model):
    for counts in ((10, 10), (12, 20)):
        arrays = interop.smplx_arrays(model, *counts)
        np.savez(tmp_path / "model.npz", **arrays)
        again = BodyModel.load(tmp_path / "model.npz", vertex_ids=IDS)
        params = random_params(again)
        if model.kind == "open":  # joints by the approximate regressor
            continue
        assert torch.allclose(again(params).mesh.verts, model(params).mesh.verts, atol=1e-5)
        assert torch.allclose(again(params).joints.xyz, model(params).joints.xyz, atol=1e-5)


# ---- files ---------------------------------------------------------------------------------------------------------
def full_size(kind: str, vertices: int, columns: int, joints: int, faces: int) -> dict[str, np.ndarray]:
    """Random numbers in the published layout at full size: people are not needed to test a reader."""
    rng = np.random.default_rng(0)
    normal = lambda scale, *shape: scale * rng.standard_normal(shape, np.float32)
    weights = np.zeros((vertices, joints), np.float32)
    np.put_along_axis(weights, rng.integers(0, joints, (vertices, 4)), rng.random((vertices, 4), np.float32) + 0.1, 1)
    tree = {"smpl": SMPL24, "smplh": SMPLH52, "smplx": SMPLX55}[kind]
    root = np.array([2**32 - 1, *tree.parents[1:]], np.uint32 if kind == "smpl" else np.int64)
    regressor = np.zeros((joints, vertices), np.float32)
    np.put_along_axis(regressor, rng.integers(0, vertices, (joints, 20)), 1 / 20, 1)
    return {
        "v_template": normal(0.5, vertices, 3).astype(np.float64),
        "shapedirs": normal(0.01, vertices, 3, columns),
        "posedirs": normal(0.001, vertices, 3, 9 * (joints - 1)),
        "J_regressor": regressor,
        "weights": weights / weights.sum(1, keepdims=True),
        "kintree_table": np.stack([root, np.arange(joints).astype(root.dtype)]),
        "f": rng.integers(0, vertices, (faces, 3)).astype(np.uint32),
    }


HANDS = {f"hands_components{side}": np.eye(45) for side in "lr"} | {f"hands_mean{side}": np.zeros(45) for side in "lr"}


def test_official_smplx_layout_at_full_size(tmp_path):
    rng = np.random.default_rng(1)
    arrays = full_size("smplx", 10475, 400, 55, 20908) | HANDS
    arrays |= {
        "lmk_faces_idx": rng.integers(0, 20908, 51),
        "lmk_bary_coords": rng.dirichlet(np.ones(3), 51),
        "dynamic_lmk_faces_idx": rng.integers(0, 20908, (79, 17)),
        "dynamic_lmk_bary_coords": rng.dirichlet(np.ones(3), (79, 17)),
        "joint2num": np.array({"Pelvis": 0}),  # Python objects, as in the official files
        "part2num": np.array({"Global": 0}),
    }
    np.savez(tmp_path / "SMPLX_NEUTRAL.npz", **arrays)
    model = BodyModel.load(tmp_path / "SMPLX_NEUTRAL.npz", "smplx")
    assert (model.kind, model.num_shape, model.num_expression) == ("smplx", 300, 100)
    assert model.joints == type(model.joints)("smplx", SMPLX55.names, SMPLX55.parents)
    assert model.zero_params(2).shape.shape == (2, 10)
    params = random_params(model, 2)
    body = model(params)
    nose = body.joints.xyz[:, model.keypoints.index("nose")]
    assert torch.allclose(body.mesh.verts[:, PICKED_VERTICES[10475][0]], nose)
    subset = model.subset(model.keypoints.names)
    assert torch.allclose(subset(params), body.joints.xyz, atol=1e-5)
    # Shape is columns 0…299, expression 300…399.
    assert torch.allclose(model.expression_dirs[0], torch.from_numpy(arrays["shapedirs"][..., 300]))


class Ch:
    """What chumpy's arrays look like to pickle: an object with its value in `x` and sets and text beside it."""

    def __init__(self, x):
        self.x, self._dirty_vars, self._itr, self._status = x, set(), None, "new"


class Select:
    def __init__(self, a, idxs, preferred_shape):
        self.a, self.idxs, self.preferred_shape = a, idxs, preferred_shape


@pytest.fixture
def chumpy(monkeypatch):
    """A stand-in for the package while pickles are written."""
    for module, cls in (("chumpy.ch", Ch), ("chumpy.reordering", Select)):
        monkeypatch.setattr(cls, "__module__", module)
        fake = types.ModuleType(module)
        setattr(fake, cls.__name__, cls)
        monkeypatch.setitem(sys.modules, module, fake)
    monkeypatch.setitem(sys.modules, "chumpy", types.ModuleType("chumpy"))
    return lambda: [monkeypatch.delitem(sys.modules, m) for m in ("chumpy.ch", "chumpy.reordering", "chumpy")]


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_official_smpl_pickle_at_full_size(tmp_path, chumpy, protocol):
    small = protocol < 2  # text protocols are slow: a body of the published layout but not of its size
    arrays = full_size("smpl", 300 if small else 6890, 10, 24, 13776)
    content = {
        **arrays,
        "shapedirs": Ch(arrays["shapedirs"]),
        "weights": Select(Ch(arrays["weights"]), np.arange(arrays["weights"].size), arrays["weights"].shape),
        "J_regressor": sparse.csc_matrix(arrays["J_regressor"]),
        "bs_style": "lbs",
        "bs_type": "lrotmin",
        "J": np.zeros((24, 3)),
    }
    path = tmp_path / "basicModel_neutral_lbs_10_207_0_v1.0.0.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    np.savez(tmp_path / "same.npz", **arrays)
    chumpy()
    model, same = BodyModel.load(path, "smpl"), BodyModel.load(tmp_path / "same.npz")
    assert (model.kind, model.num_shape, model.num_expression) == ("smpl", 10, 0)
    params = random_params(model, 2)
    assert torch.equal(model(params).mesh.verts, same(params).mesh.verts)
    assert len(model.keypoints) == (24 if small else 45)


def test_smplh_has_fifty_two_joints(tmp_path):
    np.savez(tmp_path / "SMPLH_male.npz", **full_size("smplh", 6890, 16, 52, 13776), **HANDS)
    model = BodyModel.load(tmp_path / "SMPLH_male.npz")
    assert (model.kind, len(model.joints), model.num_shape) == ("smplh", 52, 16)
    params = random_params(model, 2)
    subset = model.subset(["left_index3", "left_index_tip", "nose"])
    dense = model(params).joints.xyz[:, model.keypoints.indices(subset.names)]
    assert torch.allclose(subset(params), dense, atol=1e-5)
    assert isinstance(subset, SubsetModel)


def test_zero_pose_blend_shapes_take_no_memory(tmp_path):
    arrays = full_size("smpl", 300, 10, 24, 50)
    arrays["posedirs"][:] = 0
    np.savez(tmp_path / "model.npz", **arrays)
    assert BodyModel.load(tmp_path / "model.npz").pose_dirs is None


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_cannot_run_anything(tmp_path, protocol, capfd):
    path = tmp_path / "model.pkl"
    calls = ((os.system, "echo pwned"), (eval, "1"), (getattr, "a", "upper"), (Path, "x"), (np.fromfile, "x"))
    for call in calls:
        path.write_bytes(pickle.dumps({"v_template": Evil(*call)}, protocol))
        with pytest.raises(InputError, match=r"it asks for .*, which is not an array"):
            read_pickle(path)
    # By hand: an attribute reached through a dotted name, and a class asked for through copy_reg.
    programs = {
        b"\x80\x04\x8c\x05numpy\x8c\x0acore.numer\x93.": "it asks for numpy.core.numer",
        b"ccopy_reg\n_reconstructor\n(cnumpy\nndarray\nc__builtin__\nobject\nNtR.": "asks to build",
    }
    for program, text in programs.items():
        path.write_bytes(program)
        with pytest.raises(InputError, match=text):
            read_pickle(path)
    assert "pwned" not in capfd.readouterr().out


def test_pickled_arrays_of_every_kind(tmp_path):
    content = {
        "a": np.arange(6.0).reshape(2, 3), "b": np.float64(3), "c": [1, "x", None], "d": sparse.csr_matrix(np.eye(3)),
        "e": np.array(["p", "q"]), "f": np.asfortranarray(np.ones((2, 3), ">f4")), "g": (b"bytes", True),
    }  # fmt: skip
    for protocol in range(6):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
        read = read_pickle(tmp_path / "x.pkl")
        assert np.array_equal(read["a"], content["a"])
        assert np.array_equal(read["d"], np.eye(3))
        assert np.array_equal(read["f"], content["f"])
        assert (read["b"], read["c"], list(read["e"]), read["g"]) == (3.0, [1, "x", None], ["p", "q"], [b"bytes", True])


def write(path: Path, content) -> Path:
    path.write_bytes(content) if isinstance(content, bytes) else np.savez(path, **content)
    return path


def broken_files(folder: Path):
    """(file, what the message must say)"""
    good = full_size("smpl", 60, 10, 24, 50)
    without = lambda *keys: {k: v for k, v in good.items() if k not in keys}
    yield folder / "missing.npz", "there is no such file"
    yield folder, "is a folder"
    yield write(folder / "text.npz", b"hello"), "not an .npz archive"
    whole = write(folder / "whole.npz", good).read_bytes()
    yield write(folder / "half.npz", whole[: len(whole) // 2]), "not an .npz archive"
    spoilt = bytearray(whole)
    spoilt[2000:2400] = bytes(400)
    yield write(folder / "spoilt.npz", bytes(spoilt)), "cannot be read"
    yield write(folder / "text.pkl", b"hello"), "cannot be read as a pickle"
    yield write(folder / "empty.pkl", b""), "cannot be read as a pickle"
    yield write(folder / "list.pkl", pickle.dumps([1, 2])), "holds a list"
    yield write(folder / "other.pkl", pickle.dumps(dict.fromkeys(good, "no"))), "'v_template' is not an array of"
    yield write(folder / "model.txt", b"hello"), "not in '.txt'"
    yield write(folder / "noverts.npz", without("v_template", "f")), "it has no 'v_template', 'f'"
    yield write(folder / "nojoints.npz", without("J_regressor")), "it has no 'J_regressor'"
    yield write(folder / "shape.npz", good | {"weights": good["weights"][:-1]}), "'weights' has shape"
    yield write(folder / "faces.npz", good | {"f": good["f"] + 60}), "'f'"
    yield write(folder / "joints.npz", good | {"kintree_table": np.zeros((2, 23), int)}), "has 23 joints"
    yield write(folder / "roots.npz", good | {"kintree_table": np.full((2, 24), -1)}), "one root"
    yield write(folder / "nan.npz", good | {"v_template": good["v_template"] * np.nan}), "finite numbers"
    yield write(folder / "open.npz", {**without("weights"), "model": "open"}), "is not the open body: it has no"


def test_broken_files_say_in_one_line_what_is_wrong(tmp_path):
    for path, says in broken_files(tmp_path):
        with pytest.raises(InputError) as caught:
            BodyModel.load(path)
        text = str(caught.value)
        assert says in text, text
        assert str(path) in text
        assert "\n" not in text


def test_a_model_of_another_kind_is_refused():
    with pytest.raises(InputError, match=r"is a model of kind 'smpl' \(24 joints\), not 'smplx'"):
        BodyModel.load(LAYERS["smpl"], "smplx")


def test_only_wanted_arrays_are_read(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.ones(2), b=np.array({"an": "object"}))
    assert set(read_arrays(tmp_path / "x.npz", ("a", "c"))) == {"a"}
    with pytest.raises(InputError, match="cannot be read"):
        read_arrays(tmp_path / "x.npz", ("a", "b"))
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as archive:
        archive.writestr("a.npy", b"not an array")
    with pytest.raises(InputError, match="cannot be read"):
        read_arrays(tmp_path / "y.npz", ("a",))


# ---- priors and rotations ------------------------------------------------------------------------------------------
def mixture(components=3, joints=SMPL24.names[1:6], seed=0) -> MaxMixturePrior:
    g = torch.Generator().manual_seed(seed)
    D = 3 * len(joints)
    factors = torch.randn(components, D, D, generator=g).double() / D**0.5
    covariances = factors @ factors.mT + 0.1 * torch.eye(D)
    weights = torch.tensor([0.5, 0.3, 0.2][:components]).double()
    return MaxMixturePrior.of(joints, weights, torch.randn(components, D, generator=g), covariances, torch.float64)


def test_mixture_is_the_likeliest_gaussian():
    prior = mixture()
    pose = torch.randn(20, 5, 3).double()
    gaussians = torch.distributions.MultivariateNormal(prior.means, prior.covariances)
    likelihood = gaussians.log_prob(pose.flatten(1)[:, None]) + prior.weights.log()
    shift = prior.log_dets.min() / 2  # SMPLify's: the smallest determinant counts as one
    assert torch.allclose(prior(pose), -likelihood.amax(1) - shift)
    chosen = prior.components(pose)[1].argmin(1)
    assert torch.allclose(prior.residual(pose).square().sum(1) + prior.constants[chosen], prior(pose))
    (slope,) = torch.autograd.grad(prior(pose.requires_grad_()).sum(), pose)
    step = 1e-6 * torch.randn_like(pose)
    difference = prior(pose + step) - prior(pose - step)
    assert torch.allclose(2 * (slope * step).sum((1, 2)), difference, rtol=1e-5, atol=1e-11)
    assert prior(torch.zeros(2, 4, 5, 3).double()).shape == (2, 4)


def test_mixture_over_fewer_joints_is_the_marginal():
    prior = mixture(components=1)
    names = (prior.joints[3], prior.joints[0])
    rows = [9, 10, 11, 0, 1, 2]
    expected = torch.distributions.MultivariateNormal(prior.means[0, rows], prior.covariances[0][rows][:, rows])
    pose = torch.randn(7, 2, 3).double()
    marginal = prior.over(names)
    constant = -marginal.log_dets[0] / 2 - prior.weights.log()
    assert torch.allclose(marginal(pose), constant - expected.log_prob(pose.flatten(1)))
    assert prior.over(prior.joints) is prior
    assert torch.equal(prior.mean_pose([*names, "jaw"])[2], torch.zeros(3).double())
    assert torch.allclose(prior.mean_pose(names), marginal.mean_pose(names))


@pytest.mark.parametrize("suffix", ["npz", "pkl"])
def test_mixture_files(tmp_path, suffix):
    prior = mixture(joints=SMPL24.names[1:])
    arrays = {"weights": prior.weights, "means": prior.means, "covars": prior.covariances}
    content = {key: value.numpy() for key, value in arrays.items()}
    path = tmp_path / f"gmm_08.{suffix}"
    save = lambda content: np.savez(path, **content) if suffix == "npz" else path.write_bytes(pickle.dumps(content, 2))
    save(content)
    loaded = MaxMixturePrior.load(path)
    assert loaded.joints == SMPL24.names[1:]
    pose = torch.randn(4, 23, 3)
    assert torch.allclose(loaded(pose).double(), prior(pose.double()), rtol=1e-4)
    changes = {"were expected": {"means": content["means"][:2]}, "not positive": {"covars": -content["covars"]}}
    for says, change in changes.items():
        save(content | change)
        with pytest.raises(InputError, match=says):
            MaxMixturePrior.load(path)


def test_bending_grows_backwards_and_gmof_saturates():
    pose = torch.zeros(24, 3)
    assert torch.equal(bending_prior(pose, SMPL24.names), torch.ones(4))
    pose[SMPL24.index("left_knee"), 0] = 1.0  # the heel to the back of the thigh
    pose[SMPL24.index("right_elbow"), 1] = -0.5
    expected = torch.tensor([1, math.exp(1.0), math.exp(-2.0), 1])
    assert torch.allclose(bending_prior(pose, SMPL24.names), expected)
    assert torch.allclose(bending_residual(pose, SMPL24.names).square(), expected)
    r = torch.tensor([0.0, 1e-3, 100.0, 1e6])
    assert torch.allclose(gmof(r, 100.0), torch.tensor([0.0, 1e-6, 5000.0, 1e4]), rtol=1e-4)


@pytest.mark.parametrize("layout", ["columns", "rows", "interleaved"])
def test_six_numbers_there_and_back(layout):
    R = roma.random_rotmat(50)
    assert torch.allclose(rot6d_to_matrix(matrix_to_rot6d(R, layout), layout), R, atol=1e-5)
    assert torch.allclose(rot6d_to_matrix_symmetric(matrix_to_rot6d(R, layout), layout), R, atol=1e-5)
    noisy = rot6d_to_matrix(torch.randn(4, 5, 6), layout)
    assert roma.is_rotation_matrix(noisy, 1e-4)
