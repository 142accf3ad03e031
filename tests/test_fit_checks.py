"""What a fit refuses, what it warns of, and what it reports about itself."""

import math
from dataclasses import replace

import pytest
import torch
from test_fit import CAMERA, people

from body3d.body.model import BodyModel
from body3d.body.priors import MaxMixturePrior
from body3d.camera import Camera
from body3d.errors import InputError
from body3d.fit.checks import focal_warning
from body3d.fit.findings import implausible
from body3d.fit.problem import Problem
from body3d.fit.smplifyx import Options, fit_keypoints
from body3d.fit.starts import Rows, ambiguities, best_rows, by_person, robust_translation, with_belief

QUICK = Options(yaws=2, iterations=15, last_iterations=15)


def is_finite(result):
    tensors = (
        result.params.pose, result.params.shape, result.params.transl, result.body.mesh.verts, result.joint_sigma,
        result.joint_sigma_from_root, result.params_sigma.pose, result.params_sigma.shape,
    )  # fmt: skip
    return all(t.isfinite().all() for t in tensors)


@pytest.mark.parametrize(
    ("K", "message"),
    [
        (torch.tensor([[0.0, 0, 500], [0, 0, 500], [0, 0, 1]]), "cannot be inverted"),
        (torch.tensor([[torch.nan, 0, 500], [0, 900, 500], [0, 0, 1]]), "cannot be inverted"),
        (torch.tensor([[-900.0, 0, 500], [0, 900, 500], [0, 0, 1]]), "positive numbers of pixels"),
    ],
)
def test_cameras_that_project_nothing_are_refused(K, message):
    model, _, _, keypoints, _ = people(1)
    with pytest.raises(InputError, match=message):
        fit_keypoints(model, keypoints, replace(CAMERA, K=K))


def test_one_camera_is_enough():
    model, _, _, keypoints, _ = people(1)
    with pytest.raises(InputError, match="one camera is expected"):
        fit_keypoints(model, keypoints, CAMERA.map(lambda t: t.expand(2, *t.shape)))


def test_a_camera_that_is_turned_or_moved_is_refused():
    model, _, _, keypoints, _ = people(1)
    turn = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    for camera in (replace(CAMERA, R=turn), replace(CAMERA, t=torch.tensor([0.1, 0.0, 0.0]))):
        with pytest.raises(InputError, match="R = 1 and t = 0 are expected"):
            fit_keypoints(model, keypoints, camera)


def test_numbers_are_brought_to_the_bodys_type():
    model, _, _, keypoints, world = people(1)
    prior = MaxMixturePrior.shipped()
    options = Options(yaws=1, iterations=5, last_iterations=5)
    fit = lambda as_type: fit_keypoints(
        model, keypoints.to(as_type), CAMERA.to(as_type), world.to(as_type), prior.to(dtype=as_type), options
    )[0]
    plain, double = fit(torch.float32), fit(torch.float64)
    assert double.params.pose.dtype == double.camera.K.dtype == torch.float32
    torch.testing.assert_close(double.body.joints.xyz, plain.body.joints.xyz, atol=1e-3, rtol=0)


def test_nobody_is_no_error_and_unknown_people_are():
    model, _, _, keypoints, _ = people(1)
    assert fit_keypoints(model, keypoints[:0], CAMERA) == []
    with pytest.raises(InputError, match="person 0 has 0 known body points"):
        fit_keypoints(model, replace(keypoints, conf=torch.zeros_like(keypoints.conf)), CAMERA)
    with pytest.raises(InputError, match="person 0 has 0 known body points"):
        fit_keypoints(model, replace(keypoints, conf=torch.full_like(keypoints.conf, torch.nan)), CAMERA)
    with pytest.raises(InputError, match="person 0 has 0 known body points"):
        fit_keypoints(model, replace(keypoints, xy=torch.full_like(keypoints.xy, torch.inf)), CAMERA)
    with pytest.raises(InputError, match=r"keypoints of N people are \(N, 133, 2\)"):
        fit_keypoints(model, keypoints[0], CAMERA)


def test_numbers_that_are_none_do_no_harm():
    model, _, _, keypoints, world = people(1)
    xy, conf, xyz = keypoints.xy.clone(), keypoints.conf.clone(), world.xyz.clone()
    xy[0, 9], xy[0, 14], conf[0, 10], xyz[0, 3:9] = torch.nan, 1e6, torch.nan, torch.nan
    spoilt = replace(keypoints, xy=xy, conf=conf)
    result = fit_keypoints(model, spoilt, CAMERA, replace(world, xyz=xyz), options=QUICK)[0]
    assert is_finite(result)
    assert "keypoints far outside the image were left out: right_knee" in result.warnings
    assert is_finite(fit_keypoints(model, spoilt, CAMERA, replace(world, conf=0 * world.conf), options=QUICK)[0])


@pytest.mark.parametrize("height", [170.0, -1.0, math.nan])
def test_heights_that_no_person_has(height):
    model, _, _, keypoints, _ = people(1)
    with pytest.raises(InputError, match="people are 0.4 to 2.6 m tall"):
        fit_keypoints(model, keypoints, CAMERA, height=height)


def test_a_known_height_is_reached_and_sets_the_distance():
    model, _, _, keypoints, world = people(1)
    depth = []
    for height in (1.5, 1.9):
        result = fit_keypoints(model, keypoints, CAMERA, world, height=height, options=QUICK)[0]
        shape = model.zero_params()
        verts = model(replace(shape, shape=result.params.shape)).mesh.verts[:, 1]
        assert verts.max() - verts.min() == pytest.approx(height, abs=0.04)
        depth.append(result.params.transl[2].item())
    assert depth[1] / depth[0] == pytest.approx(1.9 / 1.5, abs=0.06)


def test_focal_lengths_that_are_none():
    keypoints = people(1)[3]
    warning = focal_warning(Camera.pinhole(35.0, (3000, 4000)), keypoints)
    assert warning is not None and "millimetres given as pixels?" in warning and "0.0088 times" in warning
    extent = (keypoints.xy[0, :, 1].max() - keypoints.xy[0, :, 1].min()).item()
    assert f"{35 * 1.7 / extent:.2g} m away" in warning
    assert "crop" in (focal_warning(Camera.pinhole(50_000.0, (3000, 4000))) or "")
    assert focal_warning(Camera.guess((3000, 4000))) is None


def test_a_keypoint_far_off_is_named_and_changes_little():
    model, _, _, keypoints, world = people(1)
    xy = keypoints.xy.clone()
    xy[0, keypoints.joints.index("left_wrist")] += 250
    clean, spoilt = (fit_keypoints(model, k, CAMERA, world)[0] for k in (keypoints, replace(keypoints, xy=xy)))
    assert "left_wrist" in spoilt.unexplained and "left_wrist" not in clean.unexplained
    assert any("keypoints that the body cannot reach: left_wrist" in w for w in spoilt.warnings)
    assert (clean.body.joints.xyz - spoilt.body.joints.xyz)[:22].norm(dim=-1).mean() < 0.05
    assert set(clean.limb_px) >= {"left arm", "right leg", "left foot", "left hand", "head"}
    assert max(clean.limb_px.values()) < 12


def test_joints_bent_too_far_are_named():
    model = BodyModel.open()
    params = model.zero_params()
    assert implausible(params, model.joints) == ()
    pose = params.pose.clone()
    pose[model.joints.index("left_knee"), 0] = -math.radians(40)
    pose[model.joints.index("neck"), 1] = math.radians(100)
    pose[model.joints.index("head"), 1] = math.radians(350)  # the same as 10 the other way
    said = implausible(replace(params, pose=pose), model.joints)
    assert said == ("neck is turned by 100°, people's by 75° at most", "left_knee is bent backwards by 40°")


@pytest.mark.parametrize("limb", ["arms", "legs"])
def test_left_and_right_exchanged_is_noticed(limb):
    model, _, body, keypoints, _ = people(2, seed=1)
    swapped = {"arms": ("elbow", "wrist"), "legs": ("knee", "ankle", "heel", "big_toe", "small_toe")}[limb]
    conf = keypoints.conf.clone()
    conf[:, 23:] = 0
    xy = keypoints.xy.clone()
    for n in swapped:
        pair = keypoints.joints.indices((f"left_{n}", f"right_{n}"))
        xy[:, pair] = xy[:, pair[::-1]]
    clean = fit_keypoints(model, replace(keypoints, conf=conf), CAMERA)
    mended = fit_keypoints(model, replace(keypoints, xy=xy, conf=conf), CAMERA)
    for a, b in zip(clean, mended, strict=True):
        assert "exchanged" not in a.start
        assert f"left and right {limb} exchanged" in b.start
        assert any(f"left and right {limb} exchanged" in w for w in b.warnings)
        assert (a.body.joints.xyz - b.body.joints.xyz)[:22].norm(dim=-1).mean() < 0.05
    assert len(body.joints.xyz) == 2


def test_rows_of_each_person_and_the_best_of_them():
    people = torch.tensor([0, 0, 0, 1, 1])
    torch.testing.assert_close(by_person(people), torch.tensor([[0, 1, 2], [3, 4, -1]]))
    pose = torch.zeros(5, 2, 3)
    pose[[1, 4], 0, 2] = 0.3  # rows 0, 2 and 3 are alike
    cost = torch.tensor([2.0, 3.0, 1.0, torch.nan, 7.0])
    assert best_rows(cost, pose, people, 1).tolist() == [2, 4]
    assert best_rows(cost, pose, people, 2).tolist() == [2, 1, 4]
    assert ambiguities(cost, pose, people, torch.tensor([2, 4])) == [pytest.approx(2.0), None]


def test_keypoints_are_believed_by_their_residuals():
    model, params, _, keypoints, _ = people(2)
    conf = keypoints.conf.clone()
    conf[:, 23:] = 0
    moved = keypoints.xy + torch.tensor([[[3.0, 4.0]], [[30.0, 40.0]]])  # 5 and 50 px
    moved[1, :5] += 1000  # a few that are far worse do not count
    problem = Problem(model, MaxMixturePrior.shipped(), replace(keypoints, xy=moved, conf=conf), CAMERA)
    x = torch.zeros(2, len(problem.unknowns))
    x[:, problem.unknowns.slices["orient"]] = params.pose[:, 0]
    x[:, problem.unknowns.slices["body"]] = params.pose[:, problem.unknowns.joint_rows["body"]].flatten(1)
    x[:, problem.unknowns.slices["shape"]] = params.shape
    x[:, problem.unknowns.slices["transl"]] = params.transl
    rows = replace(Rows.of(x, torch.arange(2), torch.zeros(2, dtype=torch.long)), person_px=torch.full((2,), 500.0))
    belief = with_belief(problem, rows, 0.02).belief
    torch.testing.assert_close(belief, torch.tensor([2.0, 0.4]), atol=1e-3, rtol=0)  # 0.02 over 0.01; 0.2, at least 0.4


def test_sums_of_terms_tell_good_keypoints_from_bad():
    """Bad keypoints are believed less, which must not make their fit look cheap."""
    model, _, _, keypoints, _ = people(1)
    noise = 12 * torch.randn(keypoints.xy.shape, generator=torch.Generator().manual_seed(0))
    good, bad = (
        fit_keypoints(model, k, CAMERA, options=QUICK)[0]
        for k in (keypoints, replace(keypoints, xy=keypoints.xy + noise))
    )
    assert 0 <= good.terms["belief"] < bad.terms["belief"]
    assert sum(good.terms.values()) < sum(bad.terms.values())


def test_translation_does_not_follow_a_few_wrong_points():
    g = torch.Generator().manual_seed(0)
    points = torch.randn(3, 16, 3, generator=g) * 0.5
    t = torch.tensor([[0.3, -0.2, 4.0], [0, 0, 2.5], [1.0, 0.5, 8.0]])
    xy = CAMERA.project(points + t[:, None])
    xy[:, :3] += 300 * torch.randn(3, 3, 2, generator=g)
    found = robust_translation(points, xy, torch.ones(3, 16), CAMERA.K)
    torch.testing.assert_close(found, t, atol=0.1, rtol=0.03)
