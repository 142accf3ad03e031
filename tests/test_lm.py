"""Levenberg-Marquardt: the solver on functions whose minima are known, every term's derivatives against automatic differentiation,
fits against L-BFGS on the same objective, and the standard deviations against closed forms and samples."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_fit import CAMERA, people
from torch.func import jacrev

from body3d.body.definitions import MEDIAPIPE_ON_BODY
from body3d.body.model import BodyModel
from body3d.body.priors import MaxMixturePrior
from body3d.fit.given import Given3D, detector_3d
from body3d.fit.jacobian import PointJacobian, left_jacobian
from body3d.fit.lm import Quadratic, levenberg_marquardt
from body3d.fit.problem import Problem, Trust
from body3d.fit.residuals import projection_jacobian
from body3d.fit.smplifyx import SMPLIFYX_STAGES, Options, fit_keypoints
from body3d.fit.starts import facing
from body3d.fit.uncertainty import INDEPENDENT, NATURAL, WORTH, Uncertainty, mixed, uncertainty
from body3d.fit.unknowns import Unknowns
from body3d.geometry import align
from body3d.skeletons import COCO_WHOLEBODY133
from body3d.types import Keypoints2D

double = lambda t: t.to(torch.float64)
LENS = torch.tensor([-0.1, 0.05, 0.002, 0.003, -0.01], dtype=torch.float64)


def make_problem(count=2, world=True, seed=0, height=1.8) -> tuple[Problem, torch.Tensor]:
    """Two people in double precision, through a lens, with 3D of a detector and of a lifter, and the unknowns near them."""
    model, params, _, keypoints, given = people(count, seed)
    points = given.map(double)
    lifted = replace(
        points, xyz=points.xyz + 0.03 * torch.randn(points.xyz.shape, generator=torch.Generator().manual_seed(5))
    )
    sigma = 0.02 + 0.04 * torch.rand(points.conf.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    sources = (detector_3d(points), Given3D(lifted, sigma, "lifter's 3D"))
    model, camera = model.to(dtype=torch.float64), replace(CAMERA.map(double), distortion=LENS)
    prior = MaxMixturePrior.shipped().to(dtype=torch.float64)
    problem = Problem(
        model, prior, keypoints.map(double), camera, sources if world else (), MEDIAPIPE_ON_BODY, Trust(height=height),
        Unknowns(model),
    )  # fmt: skip
    g = torch.Generator().manual_seed(3)
    x = 0.1 * torch.randn(count, len(problem.unknowns), generator=g, dtype=torch.float64)
    x[:, problem.unknowns.slices["orient"]] = facing(torch.tensor([0.3, 2.4])[:count].double())
    x[:, problem.unknowns.slices["transl"]] += params.transl
    return problem, x


def target_of(problem, count=2):
    return problem.target(torch.arange(count), torch.tensor([400.0, 500.0])[:count].double())


def bowls(centre, H):
    """Quadratic functions, one per row."""

    def model(x, rows):
        d = x - centre[rows]
        gradient = torch.einsum("bij,bj->bi", H[rows], d)
        return Quadratic(0.5 * (d * gradient).sum(-1) + 1.0, gradient, H[rows])

    return model


def rosenbrock(x, rows):
    """10 (x2 - x1²) and 1 - x1, as residuals."""
    r = torch.stack([10 * (x[:, 1] - x[:, 0] ** 2), 1 - x[:, 0]], -1)
    J = torch.stack([-20 * x[:, 0], torch.full_like(x[:, 0], 10), -torch.ones_like(x[:, 0]), 0 * x[:, 0]], -1)
    J = J.unflatten(-1, (2, 2))
    return Quadratic(r.square().sum(-1), 2 * (r.unsqueeze(1) @ J).squeeze(1), 2 * J.mT @ J)


def test_quadratics_of_very_different_scale_in_one_batch():
    torch.manual_seed(0)
    A = torch.linalg.qr(torch.randn(5, 8, 8, dtype=torch.float64))[0]
    scales = torch.tensor([1e-3, 1e-1, 1, 1e2, 1e4], dtype=torch.float64)
    H = A @ torch.diag(torch.logspace(0, 4, 8, dtype=torch.float64)) @ A.mT * scales[:, None, None]
    centre = torch.randn(5, 8, dtype=torch.float64)
    out = levenberg_marquardt(bowls(centre, H), torch.zeros_like(centre), tolerance=1e-14)
    torch.testing.assert_close(out.x, centre, atol=1e-5, rtol=0)
    assert out.converged.all()


def test_rosenbrock_in_few_iterations():
    x = torch.tensor([[-1.2, 1.0], [2.0, -1.0], [0.0, 5.0]], dtype=torch.float64)
    out = levenberg_marquardt(rosenbrock, x, tolerance=1e-20)
    torch.testing.assert_close(out.x, torch.ones_like(x), atol=1e-6, rtol=0)
    assert out.iterations.max() < 40


def test_a_row_does_not_depend_on_its_neighbours():
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    together = levenberg_marquardt(rosenbrock, x, max_iterations=12)
    for b in range(6):
        alone = levenberg_marquardt(rosenbrock, x[b : b + 1], max_iterations=12)
        torch.testing.assert_close(alone.x[0], together.x[b], atol=1e-12, rtol=0)
        assert alone.iterations[0] == together.iterations[b]


def test_cost_never_rises_and_rows_that_are_not_finite_stay():
    def model(x, rows):
        q = rosenbrock(x, rows)
        return replace(q, cost=q.cost + torch.log(100 - x[:, 0]) * 0)

    x = torch.tensor([[200.0, 0.0], [-1.2, 1.0]], dtype=torch.float64)
    costs = [levenberg_marquardt(model, x, n) for n in (0, 1, 3, 10, 40)]
    assert all((a.cost[1] >= b.cost[1]).all() for a, b in itertools.pairwise(costs))
    assert costs[-1].x[0].tolist() == [200.0, 0.0] and not costs[-1].converged[0]
    assert costs[-1].cost[1] < 1e-4


def test_a_gradient_that_the_curvature_does_not_know_is_still_followed():
    """exp(x) - x with the curvature of its first half: no sum of squares, minimum at 0."""
    model = lambda x, rows: Quadratic((x.exp() - x).sum(-1), x.exp() - 1, torch.diag_embed(x.exp()))
    out = levenberg_marquardt(model, torch.tensor([[3.0, -2.0]], dtype=torch.float64), tolerance=1e-12)
    torch.testing.assert_close(out.x, torch.zeros_like(out.x), atol=1e-5, rtol=0)


def test_left_jacobian():
    from body3d.body.lbs import rotation_matrices

    r = torch.tensor([[0.3, -1.0, 2.0], [1e-9, 0, 0], [3.0, 0.5, 0.0], [0, 0, 0]], dtype=torch.float64)
    for one, L in zip(r, left_jacobian(r), strict=True):
        turned = torch.einsum("ijk,lj->ilk", jacrev(rotation_matrices)(one), rotation_matrices(one))  # dR Rᵀ = [L dr]x
        axis = torch.stack([turned[2, 1], turned[0, 2], turned[1, 0]])
        torch.testing.assert_close(L, axis, atol=1e-8, rtol=0)
    assert left_jacobian(torch.full((1, 3), 1e-4)).sub(torch.eye(3)).abs().max() < 1e-4  # single precision


def test_projection_through_a_lens():
    camera = replace(CAMERA.map(double), distortion=LENS)
    points = torch.tensor([[0.3, -0.5, 2.0], [-1.0, 0.4, 3.0]], dtype=torch.float64)
    J = jacrev(camera.project)(points)
    expected = torch.stack([J[0, :, 0], J[1, :, 1]])
    torch.testing.assert_close(projection_jacobian(camera, points), expected)


def test_points_and_their_jacobian():
    """Fingers, face, contour of the jaw: all keypoints by all unknowns."""
    problem, x = make_problem()
    jacobian = problem.quadratics.points
    mixing = torch.cat([problem.mix, problem.bone_mix])
    of = lambda y: (mixing @ problem.points(problem.unknowns.params(y[None])))[0]
    points, J = jacobian(problem.unknowns.params(x), list(problem.unknowns.slices))
    for b in range(2):
        torch.testing.assert_close(points[b], of(x[b]), atol=1e-12, rtol=0)
        torch.testing.assert_close(J[b].movedim(0, 1), jacrev(of)(x[b]), atol=1e-10, rtol=0)


def test_joints_that_move_nothing_are_left_out():
    """Without fingers and face 22 of 55 joints do, and the columns of the others' unknowns are zero."""
    problem, x = make_problem(1)
    points = problem.model.subset(("left_wrist", "nose", "right_big_toe"))
    jacobian = PointJacobian(points, torch.eye(3, dtype=torch.float64), problem.unknowns)
    parts = list(problem.unknowns.slices)
    assert len(jacobian.kept) == 22
    assert not any(jacobian.moved_by(n) for n in ("left_hand", "right_hand", "jaw", "eyes"))
    found, J = jacobian(problem.unknowns.params(x), parts)
    of = lambda y: points(problem.unknowns.params(y[None]))[0]
    torch.testing.assert_close(found[0], of(x[0]), atol=1e-12, rtol=0)
    torch.testing.assert_close(J[0].movedim(0, 1), jacrev(of)(x[0]), atol=1e-10, rtol=0)


def test_bodies_with_pose_blend_shapes(tmp_path):
    from test_body import HANDS, full_size

    rng = np.random.default_rng(0)
    face = {"lmk_faces_idx": rng.integers(0, 20908, 51), "lmk_bary_coords": rng.dirichlet(np.ones(3), 51)}
    path = tmp_path / "model.npz"
    np.savez(path, **full_size("smplx", 10475, 400, 55, 20908), **HANDS, **face)
    model = BodyModel.load(path, "smplx").to(dtype=torch.float64)
    unknowns = Unknowns(model)
    points = model.subset(("left_big_toe", "nose", "mouth_left", "left_thumb_tip", "right_knee"))
    x = 0.2 * torch.randn(1, len(unknowns), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, J = PointJacobian(points, torch.eye(5, dtype=torch.float64), unknowns)(
        unknowns.params(x), list(unknowns.slices)
    )
    of = lambda y: points(unknowns.params(y[None]))[0]
    # Barycentric coordinates are stored in single precision: theirs add up to one up to 1e-8.
    torch.testing.assert_close(found[0], of(x[0]), atol=1e-8, rtol=0)
    torch.testing.assert_close(J[0].movedim(0, 1), jacrev(of)(x[0]), atol=2e-8, rtol=0)


@pytest.mark.parametrize("stage", [SMPLIFYX_STAGES[0], SMPLIFYX_STAGES[-1]])
@pytest.mark.parametrize("world", [True, False])
def test_cost_and_gradient_of_the_objective(stage, world):
    problem, x = make_problem(world=world)
    problem = problem.seen(stage)
    target = target_of(problem)
    parts = [n for n in problem.unknowns.slices if world or n != "lean"]
    columns = problem.unknowns.columns(parts)
    cost = lambda y: torch.stack(list(problem.terms(y, target, stage).values())).sum()
    quadratic = problem.quadratics(x, target, stage, parts)
    torch.testing.assert_close(quadratic.cost.sum(), cost(x), rtol=1e-12, atol=0)
    gradient = torch.autograd.grad(cost(y := x.clone().requires_grad_()), y)[0][:, columns]
    torch.testing.assert_close(quadratic.gradient, gradient, rtol=1e-8, atol=1e-6)
    assert (torch.linalg.eigvalsh(quadratic.curvature) > 0).all()


def test_each_term_alone():
    """The gradient of a difference of two objectives is that of the term in which they differ."""
    problem, x = make_problem()
    stage, target = SMPLIFYX_STAGES[-1], target_of(problem)
    parts = list(problem.unknowns.slices)
    changes = {
        "reprojection": {"face_joints": 0.0},
        "pose_prior": {"pose": 0.0},
        "bending": {"bending": 0.0},
        "directions": {"directions": 0.0},
        "shape_and_height": {"shape": 0.0},
        "hand_priors": {"hand": 0.0},
        "jaw_prior": {"jaw": (0.0, 0.0, 0.0)},
        "eyes_prior": {"eyes": 0.0},
        "expression_prior": {"expression": 0.0},
    }
    full = problem.quadratics(x, target, stage, parts)
    for name, change in changes.items():
        less = replace(stage, **change)
        y = x.clone().requires_grad_()
        cost = sum((v - problem.terms(y, target, less)[n]).sum() for n, v in problem.terms(y, target, stage).items())
        (gradient,) = torch.autograd.grad(cost, y)
        assert gradient.abs().max() > 1e-3, name
        ours = full.gradient - problem.quadratics(x, target, less, parts).gradient
        torch.testing.assert_close(ours, gradient, rtol=1e-7, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_curvature_is_the_hessian_where_nothing_is_left_to_gain():
    """Residuals zero: Gauss and Newton's approximation is exact (the robust and the direction terms included)."""
    problem, x = make_problem(1)
    stage = replace(SMPLIFYX_STAGES[-1], pose=1e-6)  # the mixture's Hessian is tested through the full gradient
    points = problem.keypoints_3d(x)
    bones = problem.bone_mix @ problem.points(problem.unknowns.params(x))
    x[:, problem.unknowns.slices["lean"]] = 0
    target = target_of(problem, 1)
    stated = (bones / bones.norm(dim=-1, keepdim=True))[:, problem.stated]
    target = replace(target, xy=problem.camera.project(points), given=replace(target.given, bones=stated))
    cost = lambda y: torch.stack(list(problem.terms(y[None], target, stage).values())).sum()
    H = problem.quadratics(x, target, stage, list(problem.unknowns.slices)).curvature[0]
    expected = jacrev(jacrev(cost))(x[0])
    scale = H.diagonal().rsqrt()
    torch.testing.assert_close(scale[:, None] * H * scale, scale[:, None] * expected * scale, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_both_solvers_find_the_same_minimum():
    model, _, _, keypoints, world = people()
    conf = keypoints.conf.clone()
    conf[:, 23:] = 0  # L-BFGS takes long over hands and faces
    keypoints = replace(keypoints, conf=conf)
    options = Options(iterations=200, last_iterations=400, yaws=2, trust=Trust(usual_residual=None), exchange=False)
    ours = fit_keypoints(model, keypoints, CAMERA, world, options=options)
    theirs = fit_keypoints(model, keypoints, CAMERA, world, options=replace(options, solver="lbfgs"))
    for a, b in zip(ours, theirs, strict=True):
        assert sum(a.terms.values()) == pytest.approx(sum(b.terms.values()), rel=0.03)
        difference = a.body.joints.xyz[:22] - b.body.joints.xyz[:22]
        assert (difference - difference[:1]).norm(dim=-1).mean() < 0.01
        assert a.iterations < b.iterations / 3


def test_from_the_same_start_the_cost_is_no_higher():
    problem, x = make_problem(world=False)
    stage = SMPLIFYX_STAGES[2]
    problem = problem.seen(stage)
    target = target_of(problem)
    ours = problem.minimise(x, target, stage, 100)
    theirs = problem.minimise(x, target, stage, 1000, solver="lbfgs")
    assert (ours.cost <= 1.001 * theirs.cost).all()
    assert ours.evaluations < theirs.evaluations / 5


def test_people_do_not_depend_on_each_other():
    model, _, _, keypoints, world = people()
    together = fit_keypoints(model, keypoints, CAMERA, world)
    for n in range(2):
        alone = fit_keypoints(model, keypoints[n : n + 1], CAMERA, world[n : n + 1])[0]
        difference = alone.body.joints.xyz - together[n].body.joints.xyz
        assert difference.norm(dim=-1).max() < 0.01  # single precision, and a tolerance to stop at


def test_what_no_keypoint_sees_stays_at_its_prior():
    model, _, _, keypoints, _ = people(1)
    conf = keypoints.conf.clone()
    conf[:, 23:] = 0  # hands and face
    result = fit_keypoints(model, Keypoints2D(keypoints.xy, conf, keypoints.joints), CAMERA)[0]
    pose = dict(zip(model.joints.names, result.params.pose, strict=True))
    assert pose["jaw"].abs().max() == 0
    rest = model.hand_pose_from_pca(torch.zeros(1), "left")[0]
    torch.testing.assert_close(pose["left_index1"], rest)


def test_deviations_are_those_of_the_inverse_curvature():
    problem, x = make_problem()
    stage, target = SMPLIFYX_STAGES[-1], target_of(problem)
    out = uncertainty(problem, x, target, stage)
    counted = replace(stage, directions=stage.directions * INDEPENDENT**0.5)
    assert problem.bones  # of a 3D pose beside the keypoints
    worth = replace(target, conf=WORTH * target.conf)
    H = problem.quadratics(x, worth, counted, list(problem.unknowns.slices)).curvature / (NATURAL * stage.pose**2)
    covariance = torch.linalg.inv(H)
    unknowns, names = problem.unknowns, problem.model.joints
    own = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    torch.testing.assert_close(out.params.shape, own[:, unknowns.slices["shape"]], rtol=1e-3, atol=0)
    body = out.params.pose[:, names.indices(unknowns.body_joints)].flatten(1)
    torch.testing.assert_close(body, own[:, unknowns.slices["body"]], rtol=1e-3, atol=0)
    # The fingers follow from principal components.
    part, rows = unknowns.slices["left_hand"], unknowns.joint_rows["left_hand"]
    fingers = unknowns.hand_mixing("left_hand") @ covariance[:, part, part] @ unknowns.hand_mixing("left_hand").T
    expected = fingers.diagonal(dim1=-2, dim2=-1).sqrt().unflatten(1, (-1, 3))
    torch.testing.assert_close(out.params.pose[:, rows], expected, rtol=1e-3, atol=1e-6)
    tree = problem.model.subset(names.names)
    J = jacrev(lambda y: tree(unknowns.params(y[None]))[0])(x[0])
    variance = torch.einsum("jad,de,jae->ja", J, covariance[0], J)
    torch.testing.assert_close(out.joints[0], variance.sqrt(), rtol=3e-3, atol=0)
    assert out.joints_from_root[0, 0].abs().max() == 0


def test_two_solutions_of_equal_cost_are_as_unsure_as_they_are_apart():
    problem, x = make_problem(1)
    stage, target = SMPLIFYX_STAGES[-1], target_of(problem, 1)
    each = uncertainty(problem, x, target, stage)[[0, 0]]
    params = problem.unknowns.params(x)[[0, 0]]
    joints = torch.zeros(2, len(problem.model.joints), 3, dtype=torch.float64)
    joints[1, 4] = torch.tensor([0.0, 0.0, 0.6])
    row = lambda *costs: mixed(
        each, joints, params, torch.tensor(costs, dtype=torch.float64), stage, torch.tensor([0]), torch.tensor([[0, 1]])
    )
    equal = row(100.0, 100.0)
    expected = (each.joints[0, 4, 2].square() + 0.5 * 0.6**2).sqrt()
    torch.testing.assert_close(equal.joints[0, 4, 2], expected)
    torch.testing.assert_close(equal.joints[0, 3], each.joints[0, 3])
    torch.testing.assert_close(row(100.0, 1e6).joints[0], each.joints[0])


def test_rotations_on_either_side_of_half_a_turn_are_near():
    """Two rows that face the camera, 0.1 rad apart the short way and 6.2 rad by their rotation vectors."""
    model = BodyModel.open()
    params = model.zero_params(2)
    params.pose[:, 0, 1] = torch.tensor([math.pi - 0.05, 0.05 - math.pi])
    sigma = params.map(lambda t: torch.full_like(t, 0.02))
    joints = torch.zeros(2, len(model.joints), 3)
    each = Uncertainty(sigma, joints, joints)
    found = mixed(each, joints, params, torch.ones(2), SMPLIFYX_STAGES[-1], torch.tensor([0]), torch.tensor([[0, 1]]))
    expected = torch.full_like(params.pose[:1], 0.02)
    expected[0, 0, 1] = math.sqrt(0.02**2 + 0.1**2 / 2)
    torch.testing.assert_close(found.params.pose, expected, atol=1e-6, rtol=1e-4)


def test_an_unseen_arm_is_less_sure():
    problem, x = make_problem(1, height=None)
    stage, target = SMPLIFYX_STAGES[-1], target_of(problem, 1)
    unseen = torch.tensor([n.startswith("left_") and n not in ("left_hip", "left_shoulder") for n in problem.names])
    silent = replace(target.given, conf=torch.zeros_like(target.given.conf))
    less = replace(target, conf=torch.where(unseen, 0.0, target.conf), given=silent)
    full, blind = (uncertainty(problem, x, t, stage) for t in (target, less))
    at = problem.model.joints.index
    assert (blind.joints_from_root[0, at("left_wrist")] > 2 * full.joints_from_root[0, at("left_wrist")]).all()
    assert blind.joints[0, at("pelvis"), 2] > 2 * blind.joints[0, at("pelvis"), 0]  # depth is the unsure axis


def test_keypoints_without_noise_give_the_body_back():
    model, _, body, keypoints, world = people(3, seed=4)
    for n, r in enumerate(fit_keypoints(model, keypoints, CAMERA, world)):
        ours, truth = r.body.joints.xyz[:22], body.joints.xyz[n, :22]
        assert (align(ours, truth) - truth).norm(dim=-1).mean() < 0.03
        assert keypoints.joints is COCO_WHOLEBODY133 and r.converged
