"""A fit whose pose is a code: its derivatives, rows that stay consistent, and bodies found again from their own keypoints."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from test_fit import CAMERA, on_body
from test_lm import make_problem, target_of

from body3d.body.model import BodyModel
from body3d.body.vposer import shipped_vposer
from body3d.errors import InputError
from body3d.fit.given import Given3D, detector_3d
from body3d.fit.problem import Problem
from body3d.fit.smplifyx import SMPLIFYX_STAGES, Options, Trust, fit_keypoints
from body3d.fit.starts import facing
from body3d.fit.unknowns import Unknowns
from body3d.geometry import align
from body3d.skeletons import COCO_WHOLEBODY133, MEDIAPIPE33
from body3d.types import Keypoints2D, Keypoints3D

LAST = replace(SMPLIFYX_STAGES[-1], collision=300.0)


def latent_problem() -> tuple[Problem, torch.Tensor]:
    """Two people in double precision, with the 3D of a detector, and rows with random codes."""
    plain, x = make_problem()
    unknowns = Unknowns(plain.model, latent=deepcopy(shipped_vposer()).double())
    random = lambda seed, *size: torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    points = Keypoints3D(random(1, 2, 33, 3), torch.ones(2, 33).double(), MEDIAPIPE33, "root")
    problem = Problem(
        plain.model, plain.prior, plain.keypoints, plain.camera, (detector_3d(points),), None, plain.trust, unknowns
    )
    return problem, torch.cat([x, 1.6 * random(3, len(x), unknowns.size("code"))], 1)


def test_gradient_by_the_code_is_that_of_finite_differences():
    problem, x = latent_problem()
    target, parts = target_of(problem), problem.parts()
    assert "code" in parts
    assert "body" not in parts
    cost = lambda y: torch.stack(list(problem.terms(y, target, LAST).values())).sum(0)
    found = problem.quadratics(problem.unknowns.decoded(x), target, LAST, parts)
    torch.testing.assert_close(found.cost, cost(x), rtol=1e-12, atol=0)
    assert problem.terms(x, target, LAST)["collision"].max() > 1  # or its derivative would not be looked at
    g = torch.Generator().manual_seed(0)
    columns = problem.unknowns.columns(parts)
    for only in (parts, ["code"]):
        step = torch.randn(x.shape, generator=g, dtype=torch.float64)
        step = step * problem.unknowns.mask(tuple(only)).double()
        h = 1e-6
        numeric = (cost(x + h * step) - cost(x - h * step)) / (2 * h)
        torch.testing.assert_close((found.gradient * step[:, columns]).sum(1), numeric, rtol=1e-5, atol=1e-4)


def test_the_prior_is_the_square_of_the_code_and_the_mixture_does_not_count():
    problem, x = latent_problem()
    terms = problem.terms(x, target_of(problem), LAST)
    torch.testing.assert_close(terms["code_prior"], 4.78**2 * x[:, problem.unknowns.slices["code"]].square().sum(1))
    assert "pose_prior" not in terms
    plain, x = make_problem()
    assert {"code_prior", "pose_prior"} & set(plain.terms(x, target_of(plain), LAST)) == {"pose_prior"}


def test_where_the_pose_is_given_by_rotations_the_code_moves_nothing():
    """As the standard deviations ask: with both named the code would count twice."""
    problem, x = latent_problem()
    x, target = problem.unknowns.decoded(x), target_of(problem)
    stage = replace(LAST, pose=1e-6)  # what is left of its curvature is its prior's
    parts = list(problem.unknowns.slices)
    found = problem.quadratics(x, target, stage, parts)
    columns = problem.unknowns.columns(parts).tolist()
    code = [columns.index(c) for c in problem.unknowns.columns(["code"]).tolist()]
    others = [i for i in range(len(columns)) if i not in code]
    assert found.curvature[:, code][:, :, others].abs().max() == 0
    without = problem.quadratics(x, target, stage, [n for n in parts if n != "code"])
    torch.testing.assert_close(found.curvature[:, others][:, :, others], without.curvature)


@pytest.mark.parametrize("solver", ["lm", "lbfgs"])
def test_a_minimum_holds_the_pose_that_its_code_means(solver):
    problem, x = latent_problem()
    target = target_of(problem)
    before = torch.stack(list(problem.terms(x, target, LAST).values())).sum(0)
    out = problem.minimise(x, target, LAST, 5, ("orient", "body"), solver)
    assert (out.cost < before).all()
    latent = problem.unknowns.latent
    assert latent is not None
    pose = latent.decode(problem.unknowns.part(out.x, "code")).flatten(1)
    torch.testing.assert_close(problem.unknowns.part(out.x, "body"), pose)
    for name in ("transl", "shape", "jaw"):  # not free
        torch.testing.assert_close(problem.unknowns.part(out.x, name), problem.unknowns.part(x, name))


def test_people_drawn_from_the_prior_are_found_again():
    """From exact keypoints of body, hands and face, and the directions of their bones."""
    model, vposer = BodyModel.open(), shipped_vposer()
    unknowns = Unknowns(model, latent=vposer)
    g = torch.Generator().manual_seed(4)
    x = torch.zeros(2, len(unknowns))
    x[:, unknowns.slices["code"]] = 0.8 * torch.randn(2, vposer.latent, generator=g)
    x[:, unknowns.slices["shape"]] = 0.5 * torch.randn(2, 10, generator=g)
    x[:, unknowns.slices["orient"]] = facing(torch.tensor([0.3, -0.4]))
    x[:, unknowns.slices["transl"]] = torch.tensor([0.1, 0.1, 3.5])
    body = model(unknowns.params(unknowns.decoded(x)))
    xyz, conf = on_body(model, body, COCO_WHOLEBODY133)
    world, world_conf = on_body(model, body, MEDIAPIPE33)
    given = Given3D(Keypoints3D(world, world_conf, MEDIAPIPE33, "root"), None, "truth")
    keypoints = Keypoints2D(CAMERA.project(xyz), conf, COCO_WHOLEBODY133)
    options = Options(trust=Trust(direction_sigma=0.03), pose="latent", yaws=1, last_iterations=40)
    for n, r in enumerate(fit_keypoints(model, keypoints, CAMERA, options=options, given=[given])):
        ours, truth = r.body.joints.xyz[:22], body.joints.xyz[n, :22]
        assert (align(ours, truth) - truth).norm(dim=-1).mean() < 0.025
        assert r.reprojection_px < 5
        assert "code_prior" in r.terms
        assert r.joint_sigma is not None
        assert r.joint_sigma.isfinite().all()
        assert 0.001 < r.joint_sigma.mean() < 0.5


def test_a_body_with_other_joints_is_refused():
    model = BodyModel.open()
    names = tuple("left_toe" if n == "left_foot" else n for n in model.joints.names)
    with pytest.raises(InputError, match="a latent pose turns the joints left_hip, .* this body has others"):
        Unknowns(replace(model, joints=replace(model.joints, names=names)), latent=shipped_vposer())
