"""Capsules as a term of a fit: derivatives, and bodies that the solver itself keeps out of each other."""

from dataclasses import replace

import pytest
import torch
from test_collision import CASES, posed
from test_fit import CAMERA, on_body
from test_lm import make_problem, target_of

from body3d.body.capsules import body_capsules
from body3d.body.model import BodyModel
from body3d.fit.smplifyx import SMPLIFYX_STAGES, Options, fit_keypoints
from body3d.fit.starts import facing
from body3d.skeletons import COCO_WHOLEBODY133
from body3d.types import Keypoints2D

LAST = replace(SMPLIFYX_STAGES[-1], collision=300.0)
APART = Options(stages=(*SMPLIFYX_STAGES[:-1], LAST))


def cost(problem, x, stage=LAST):
    return torch.stack(list(problem.terms(x, target_of(problem), stage).values())).sum(0)


def bent():
    """Two people so bent that capsules are in each other."""
    problem, x = make_problem()
    x[:, problem.unknowns.slices["body"]] *= 7
    return problem, x


def test_gradient_is_that_of_finite_differences():
    problem, x = bent()
    parts = problem.parts()
    found = problem.quadratics(x, target_of(problem), LAST, parts)
    torch.testing.assert_close(found.cost, cost(problem, x), rtol=1e-12, atol=0)
    columns, g = problem.unknowns.columns(parts), torch.Generator().manual_seed(0)
    without = problem.quadratics(x, target_of(problem), SMPLIFYX_STAGES[-1], parts)
    of_term = found.gradient - without.gradient
    for _ in range(3):
        step = torch.zeros_like(x)
        step[:, columns] = torch.randn(len(x), len(columns), generator=g, dtype=torch.float64)
        h = 1e-6
        depth = lambda y: problem.terms(y, target_of(problem), LAST)["collision"]
        numeric = (depth(x + h * step) - depth(x - h * step)) / (2 * h)
        assert numeric.abs().max() > 1
        torch.testing.assert_close((of_term * step[:, columns]).sum(1), numeric, rtol=1e-5, atol=1e-5)


def test_the_term_is_the_sum_of_the_squared_depths():
    problem, x = bent()
    params = problem.unknowns.params(x)
    capsules = body_capsules(problem.model, fingers=False)
    depth = capsules.overlap(capsules.ends(params), capsules.radii(params.shape)).depth
    expected = (300 * depth[depth > 0]).square().sum()
    assert expected > 10
    torch.testing.assert_close(problem.terms(x, target_of(problem), LAST)["collision"].sum(), expected)
    assert "collision" not in problem.terms(x, target_of(problem), SMPLIFYX_STAGES[-1])


def seen(model: BodyModel) -> tuple[Keypoints2D, torch.Tensor]:
    """People whose limbs are in each other, from the front, and how deep their capsules are (m)."""
    posed_people = [posed(model, **turns) for turns in CASES.values()]
    pose = torch.stack([p.pose for p in posed_people])
    pose[:, 0] = facing(torch.tensor([0.0]))
    params = replace(model.zero_params(len(CASES)), pose=pose, transl=torch.tensor([[0.0, 0.1, 3.5]] * len(CASES)))
    xyz, conf = on_body(model, model(params), COCO_WHOLEBODY133)
    conf[:, 23:] = 0
    return Keypoints2D(CAMERA.project(xyz), conf, COCO_WHOLEBODY133), depths(model, params)


def depths(model: BodyModel, params) -> torch.Tensor:
    capsules = body_capsules(model, fingers=False)
    return capsules.overlap(capsules.ends(params), capsules.radii(params.shape)).depth.clamp_min(0).amax(-1)


def test_the_solver_keeps_limbs_out_of_each_other():
    model = BodyModel.open()
    keypoints, true = seen(model)
    crossed = true > 0.02  # the hand on the hip is in it by fingers alone
    assert crossed.sum() == 4
    found = []
    for options in (Options(yaws=1), replace(APART, yaws=1)):
        results = fit_keypoints(model, keypoints[crossed], CAMERA, options=options)
        found.append(torch.stack([depths(model, r.params) for r in results]))
        assert all(r.reprojection_px < 8 for r in results)
        assert all(("collision" in r.terms) == (options != Options(yaws=1)) for r in results)
    without, parted = found
    assert without.mean() > 0.02
    assert parted.mean() < 0.4 * without.mean()
    assert (parted <= without + 2e-3).all()


@pytest.mark.parametrize("solver", ["lm", "lbfgs"])
def test_both_solvers_part_them(solver):
    problem, x = bent()
    blind = replace(LAST, pose=0.5, bending=0.5, directions=0.0, body_joints=0.0, hand_joints=0.0, face_joints=0.0)
    before = problem.terms(x, target_of(problem), LAST)["collision"]
    out = problem.minimise(x, target_of(problem), blind, 30, ("body",), solver)
    after = problem.terms(out.x, target_of(problem), LAST)["collision"]
    assert (before > 50).all()
    assert (after < 0.02 * before).all()
