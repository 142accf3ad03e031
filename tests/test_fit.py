"""The fit: gradients against finite differences, and bodies recovered from their own points."""

import math
from dataclasses import replace

import numpy as np
import pytest
import roma
import torch

from body3d.body.definitions import H36M17_ON_BODY, MEDIAPIPE_ON_BODY, mixing_matrix, mixtures
from body3d.body.model import BodyModel
from body3d.body.priors import MaxMixturePrior
from body3d.camera import Camera
from body3d.errors import InputError
from body3d.fit.given import detector_3d, ray_rotation
from body3d.fit.problem import Problem, Trust
from body3d.fit.smplifyx import SMPLIFYX_STAGES, Options, fit_keypoints
from body3d.fit.starts import facing, kabsch, translation
from body3d.fit.unknowns import Unknowns
from body3d.geometry import align
from body3d.skeletons import COCO_WHOLEBODY133, H36M17, MEDIAPIPE33
from body3d.types import Keypoints2D, Keypoints3D

CAMERA = Camera.guess((1000, 1000))


def on_body(model, body, target, special=None):
    found = mixtures(model.keypoints, target, special)
    points = mixing_matrix(found, model.keypoints.names) @ body.joints.xyz
    out = torch.zeros(*points.shape[:-2], len(target), 3)
    conf = torch.zeros(*points.shape[:-2], len(target))
    columns = target.indices(tuple(found))
    out[..., columns, :], conf[..., columns] = points, 1.0
    return out, conf


def people(count=2, seed=0):
    """Bodies near the prior's mean pose, seen from known sides, with hands and face turned too."""
    g = torch.Generator().manual_seed(seed)
    model = BodyModel.open()
    unknowns = Unknowns(model)
    prior = MaxMixturePrior.shipped()
    x = torch.zeros(count, len(unknowns))
    mean = prior.mean_pose(unknowns.body_joints).flatten()
    x[:, unknowns.slices["body"]] = mean + 0.12 * torch.randn(count, len(mean), generator=g)
    x[:, unknowns.slices["shape"]] = 0.7 * torch.randn(count, 10, generator=g)
    x[:, unknowns.slices["jaw"]] = torch.tensor([0.15, 0, 0])
    x[:, unknowns.slices["orient"]] = facing(torch.tensor([0.4, 2.5, -1.3, 3.0])[:count])
    x[:, unknowns.slices["transl"]] = torch.tensor([[0.2, 0.1, 3.5], [-0.3, 0.0, 4.5], [0, 0, 3.0], [0.5, 0.2, 5.0]])[
        :count
    ]
    params = unknowns.params(x)
    body = model(params)
    xyz, conf = on_body(model, body, COCO_WHOLEBODY133)
    world, world_conf = on_body(model, body, MEDIAPIPE33)
    world = world @ ray_rotation(CAMERA.project(xyz), conf, CAMERA)  # a detector sees a crop: its axes are the crop's
    return model, params, body, Keypoints2D(CAMERA.project(xyz), conf, COCO_WHOLEBODY133), Keypoints3D(
        world, world_conf, MEDIAPIPE33, "root"
    )  # fmt: skip


@pytest.fixture(scope="module")
def recovered():
    """Two people fitted to their own keypoints and 3D directions (which are exact here, and believed), and the truth."""
    model, _, body, keypoints, world = people()
    return (
        model,
        body,
        fit_keypoints(model, keypoints, CAMERA, world, options=Options(trust=Trust(direction_sigma=0.03))),
    )


def test_bodies_are_recovered_from_their_own_keypoints_and_directions(recovered):
    _model, body, results = recovered
    tree = slice(0, 22)
    for n, r in enumerate(results):
        ours, truth = r.body.joints.xyz[tree], body.joints.xyz[n, tree]
        assert (align(ours, truth) - truth).norm(dim=-1).mean() < 0.025, r.start
        assert r.reprojection_px < 4
        # Metres and depth are only as sure as the size of the person: here up to two standard deviations off.
        assert abs(r.params.transl[2] / truth[0, 2] - 1) < 0.15


def test_hands_and_jaw_follow_their_keypoints(recovered):
    model, body, results = recovered
    result = results[0]
    at = lambda xyz, n: xyz[model.keypoints.index(n)]
    for tip in (n for n in model.keypoints.names if n.endswith("_tip")):
        wrist = tip.split("_")[0] + "_wrist"
        ours, theirs = (at(xyz, tip) - at(xyz, wrist) for xyz in (result.body.joints.xyz, body.joints.xyz[0]))
        assert (ours - theirs).norm() < 0.06, tip
    assert 0.02 < result.params.pose[model.joints.index("jaw"), 0] < 0.3


def test_without_3d_every_facing_is_tried():
    model, _, _, keypoints, _ = people(2, seed=1)
    for r in fit_keypoints(model, keypoints, CAMERA, options=Options(iterations=30, last_iterations=30)):
        assert r.reprojection_px < 8
        assert r.start.startswith("facing")


def test_terms_have_the_gradients_of_finite_differences():
    model, _, _, keypoints, world = people(1)
    double = lambda t: t.to(torch.float64)
    model = model.to(dtype=torch.float64)
    problem = Problem(
        model, MaxMixturePrior.shipped().to(dtype=torch.float64), keypoints.map(double), CAMERA.map(double),
        (detector_3d(world.map(double)),), MEDIAPIPE_ON_BODY,
    )  # fmt: skip
    g = torch.Generator().manual_seed(3)
    x = 0.1 * torch.randn(1, len(problem.unknowns), generator=g, dtype=torch.float64)
    x[:, problem.unknowns.slices["orient"]] = facing(torch.tensor([0.3], dtype=torch.float64))
    x[:, problem.unknowns.slices["transl"]] = torch.tensor([0.1, 0.2, 4.0], dtype=torch.float64)
    target = problem.target(torch.tensor([0]), torch.tensor([500.0], dtype=torch.float64))
    names = list(problem.terms(x, target, SMPLIFYX_STAGES[-1]))
    for name in names:
        cost = lambda y, name=name: problem.terms(y, target, SMPLIFYX_STAGES[-1])[name].sum()
        y = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cost(y), y)
        for _ in range(3):
            d = torch.randn(x.shape, generator=g, dtype=torch.float64)
            h = 1e-6
            numeric = (cost(x + h * d) - cost(x - h * d)) / (2 * h)
            torch.testing.assert_close((gradient * d).sum(), numeric, rtol=1e-5, atol=1e-6)


def test_the_table_of_stages_is_the_published_one():
    pose = [s.pose for s in SMPLIFYX_STAGES]
    assert pose == [404, 404, 57.4, 4.78, 4.78] == [s.hand for s in SMPLIFYX_STAGES]
    assert [s.shape for s in SMPLIFYX_STAGES] == [100, 50, 10, 5, 5] == [s.expression for s in SMPLIFYX_STAGES]
    assert [s.bending for s in SMPLIFYX_STAGES] == pytest.approx([3.17 * p for p in pose])
    assert [(s.hand_joints, s.face_joints) for s in SMPLIFYX_STAGES] == [(0, 0), (0, 0), (0, 0), (0.1, 0), (2, 2)]
    assert SMPLIFYX_STAGES[3].jaw == (47.8, 478, 478)


def test_a_person_with_three_points_is_refused():
    model, _, _, keypoints, _ = people(1)
    conf = torch.zeros_like(keypoints.conf)
    conf[:, [5, 6, 11]] = 1
    with pytest.raises(InputError, match=r"person 0 has 3 known body points.*at least 4"):
        fit_keypoints(model, Keypoints2D(keypoints.xy, conf, keypoints.joints), CAMERA)


def test_keypoints_that_are_nan_or_far_away_do_no_harm():
    model, _, _, keypoints, world = people(1)
    xy = keypoints.xy.clone()
    xy[0, 9], xy[0, 3] = torch.nan, 1e5
    quick = Options(yaws=2, iterations=15, last_iterations=15)
    result = fit_keypoints(model, Keypoints2D(xy, keypoints.conf, keypoints.joints), CAMERA, world, options=quick)[0]
    assert result.params.pose.isfinite().all()
    assert result.body.mesh.verts.isfinite().all()


def test_an_unseen_limb_is_said():
    model, _, _, keypoints, _ = people(1)
    conf = keypoints.conf.clone()
    gone = [i for i, n in enumerate(keypoints.joints.names) if n in ("left_knee", "left_ankle")]
    conf[:, gone] = 0
    result = fit_keypoints(
        model,
        Keypoints2D(keypoints.xy, conf, keypoints.joints),
        CAMERA,
        options=Options(yaws=1, iterations=10, last_iterations=10),
    )[0]
    assert "left leg not seen: its pose is the prior's" in result.warnings
    assert not any("right leg" in w for w in result.warnings)


@pytest.mark.parametrize("count", [6, 0])
def test_hands_move_by_as_many_components_as_the_body_has(count):
    model = BodyModel.open()
    assert model.hand_components is not None
    fewer = replace(model, hand_components=model.hand_components[:, :count] if count else None)
    unknowns, usual = Unknowns(fewer), Unknowns(model)
    assert usual.size("left_hand") == usual.size("right_hand") == 12
    x = torch.randn(2, len(unknowns), generator=torch.Generator().manual_seed(0))
    pose = unknowns.params(x).pose
    for side in ("left", "right"):
        fingers = [i for i, n in enumerate(model.joints.names) if n.startswith(side) and n[-1].isdigit()]
        coefficients = unknowns.part(x, f"{side}_hand")
        assert coefficients.shape[1] == count
        hand = fewer.hand_pose_from_pca(coefficients, side) if count else torch.zeros(2, 15, 3)
        torch.testing.assert_close(pose[:, fingers], hand)
    jaw = model.joints.index("jaw")
    torch.testing.assert_close(pose[:, jaw], unknowns.part(x, "jaw"))
    places = model.joints.indices(unknowns.body_joints)
    torch.testing.assert_close(pose[:, places].flatten(1), unknowns.part(x, "body"))

    _, _, _, keypoints, _ = people(1)
    result = fit_keypoints(fewer, keypoints, CAMERA, options=Options(yaws=1, iterations=3, last_iterations=3))[0]
    assert result.params.pose.isfinite().all()


def test_starts_stand_upright_and_face_where_they_should():
    model = BodyModel.open()
    unknowns = Unknowns(model)
    x = torch.zeros(2, len(unknowns))
    x[:, :3] = facing(torch.tensor([0.0, math.pi / 2]))
    xyz = model(unknowns.params(x)).joints.xyz
    at = lambda n: xyz[:, model.keypoints.index(n)]
    assert (at("head")[:, 1] < at("left_knee")[:, 1]).all()  # y is down
    nose = at("nose") - at("head")
    assert nose[0, 2] < -0.05  # towards the camera
    assert abs(nose[1, 2]) < 0.03
    assert abs(nose[1, 0]) > 0.05


def test_translation_is_exact_for_exact_points():
    g = torch.Generator().manual_seed(0)
    points = torch.randn(3, 12, 3, generator=g) * 0.5
    t = torch.tensor([[0.3, -0.2, 4.0], [0, 0, 2.5], [1.0, 0.5, 8.0]])
    xy = CAMERA.project(points + t[:, None])
    weight = torch.ones(3, 12)
    weight[:, 0] = 0
    xy[:, 0] = 0
    torch.testing.assert_close(translation(points, xy, weight, CAMERA.K), t, atol=2e-3, rtol=0)


def test_kabsch():
    g = torch.Generator().manual_seed(0)
    source, turn = torch.randn(1, 6, 3, generator=g), torch.tensor([[0.3, -1.0, 0.5]])
    target = source @ roma.rotvec_to_rotmat(turn).mT + 5
    torch.testing.assert_close(kabsch(source, target, torch.ones(1, 6)), turn, atol=1e-5, rtol=1e-5)


def test_human36m_joints_lie_where_they_should():
    model = BodyModel.open()
    xyz, conf = on_body(model, model(model.zero_params()), H36M17, H36M17_ON_BODY)
    at = dict(zip(H36M17.names, xyz, strict=True))
    assert (conf == 1).all()
    top = model(model.zero_params()).mesh.verts[:, 1].max()
    assert abs(at["head_top"][1] - top) < 0.04
    assert at["pelvis"][1] < at["spine"][1] < at["thorax"][1] < at["neck_nose"][1] < at["head_top"][1]
    assert abs(at["head_top"][0]) < 0.01


@pytest.mark.parametrize("kind", ["smplx", "smpl"])
def test_files_of_the_official_layouts_fit(kind, tmp_path):
    """Full-size files with random content, so the body is a cloud; what counts is that its points come to lie on the keypoints."""
    from test_body import HANDS, full_size

    sizes = {"smplx": ("smplx", 10475, 400, 55, 20908), "smpl": ("smpl", 6890, 300, 24, 13776)}[kind]
    path = tmp_path / f"{kind}.npz"
    rng = np.random.default_rng(0)
    face = {"lmk_faces_idx": rng.integers(0, 20908, 51), "lmk_bary_coords": rng.dirichlet(np.ones(3), 51)}
    np.savez(path, **full_size(*sizes), **(HANDS | face if kind == "smplx" else {}))
    model = BodyModel.load(path, kind)
    unknowns = Unknowns(model)
    x = 0.1 * torch.randn(1, len(unknowns), generator=torch.Generator().manual_seed(0))
    x[:, unknowns.slices["orient"]] = facing(torch.tensor([0.2]))
    x[:, unknowns.slices["transl"]] = torch.tensor([0.1, 0.2, 6.0])
    xyz, conf = on_body(model, model(unknowns.params(x)), COCO_WHOLEBODY133)
    result = fit_keypoints(
        model,
        Keypoints2D(CAMERA.project(xyz), conf, COCO_WHOLEBODY133),
        CAMERA,
        options=Options(yaws=1, iterations=30, last_iterations=30),
    )[0]
    assert result.model == kind
    assert result.body.mesh.verts.shape == (sizes[1], 3)
    assert result.reprojection_px < 25
    assert result.params.pose.isfinite().all()
