"""3D poses given to a fit: what they say of bones, how far they are believed, and that a fit to both beats either."""

import math
from dataclasses import replace

import pytest
import roma
import torch
from test_fit import CAMERA, people

from body3d.body.priors import MaxMixturePrior
from body3d.errors import InputError
from body3d.fit import problem, starts, terms
from body3d.fit.given import BONES, CORRELATION, Given3D, bone_matrix, detector_3d, directions, ray_rotation
from body3d.fit.problem import Problem
from body3d.fit.smplifyx import BENDING_STAGE, fit_keypoints
from body3d.geometry import align
from body3d.skeletons import MEDIAPIPE33
from body3d.types import Keypoints3D

ARM = ((("left_shoulder",), ("left_elbow",)),)
TORSO = BONES[:1]


def given(xyz, sigma=None, conf=None, **how):
    conf = torch.ones(xyz.shape[:2]) if conf is None else conf
    return Given3D(Keypoints3D(xyz, conf, MEDIAPIPE33, "root"), sigma, "source", **how)


def said(source, bones, xy=None):
    xy = torch.full((len(source.keypoints.xyz), 1, 2), 499.5) if xy is None else xy
    length = torch.ones(len(bones))
    return directions([source], [bones], [length], xy, torch.ones(xy.shape[:2]), CAMERA, 0.04)


@pytest.mark.parametrize("bones", [ARM, TORSO])
def test_the_deviation_of_a_direction_is_that_of_samples(bones):
    g = torch.Generator().manual_seed(0)
    mean = 0.4 * torch.randn(1, 33, 3, generator=g)
    sigma = 0.01 + 0.02 * torch.rand(1, 33, generator=g)
    common, own = torch.randn(40_000, 1, 3, generator=g), torch.randn(40_000, 33, 3, generator=g)
    noise = sigma[..., None] * (math.sqrt(CORRELATION) * common + math.sqrt(1 - CORRELATION) * own)
    exact, noisy = said(given(mean, sigma), bones), said(given(mean + noise), bones)
    along = exact.bones[0, 0]
    across = torch.linalg.cross(along, torch.tensor([0.0, 0, 1]))
    spread = (noisy.bones[:, 0] @ (across / across.norm())).std()
    assert spread == pytest.approx(exact.sigma[0, 0].item(), rel=0.05)


def test_what_is_unknown_says_nothing():
    xyz = torch.randn(1, 33, 3, generator=torch.Generator().manual_seed(1))
    xyz[0, MEDIAPIPE33.index("left_elbow")] = torch.nan
    arms = (*ARM, (("right_shoulder",), ("right_elbow",)))
    out = said(given(xyz, torch.full((1, 33), torch.nan)), arms)
    assert out.conf.tolist() == [[0.0, 1.0]]
    assert out.bones.isfinite().all() and out.sigma.isfinite().all()


def test_directions_along_the_ray_are_turned_to_the_camera():
    """A person seen 30 degrees to the right: what is straight ahead for its crop points there."""
    xyz = torch.zeros(1, 33, 3)
    xyz[0, MEDIAPIPE33.index("left_elbow"), 2] = 0.3
    xy = torch.tensor([[[499.5 + CAMERA.K[0, 0].item() * math.tan(math.radians(30)), 499.5]]])
    turned = said(given(xyz, along_ray=True), ARM, xy).bones[0, 0]
    torch.testing.assert_close(turned, torch.tensor([0.5, 0.0, math.sqrt(0.75)]), atol=1e-5, rtol=0)
    torch.testing.assert_close(said(given(xyz), ARM, xy).bones[0, 0], torch.tensor([0.0, 0.0, 1.0]))


def test_only_a_source_that_leans_is_leant():
    model, _, _, keypoints, world = people(1)
    sources = (detector_3d(world), replace(detector_3d(world), lean=False))
    problem = Problem(model, MaxMixturePrior.shipped(), keypoints, CAMERA, sources)
    x = torch.zeros(1, len(problem.unknowns))
    x[:, problem.unknowns.slices["lean"]] = 0.3
    target = problem.target(torch.tensor([0]), torch.tensor([500.0]))
    params = problem.unknowns.params(x)
    points = problem.points(params)
    no_capsules = torch.zeros(1, 0)
    state = problem.state(x, target, params, problem.mix @ points, problem.bone_mix @ points, no_capsules)
    leant = terms.leaning(state)[0]
    half = len(leant) // 2
    turn = roma.rotvec_to_rotmat(torch.tensor([0.3, 0.0, 0.0]))
    torch.testing.assert_close(leant[half:], target.given.bones[0, half:])
    torch.testing.assert_close(leant[:half], leant[half:] @ turn.mT)


def test_other_people_are_refused():
    model, _, _, keypoints, world = people(2)
    with pytest.raises(InputError, match="detector's 3D: 3D poses of 1 people came with the keypoints of 2"):
        fit_keypoints(model, keypoints, CAMERA, world[:1])
    with pytest.raises(InputError, match="one for each joint"):
        fit_keypoints(model, keypoints, CAMERA, given=[given(world.xyz, torch.ones(2, 17))])


def test_beside_a_3d_pose_the_body_lies_nearer_to_its_keypoints(monkeypatch):
    """Wrong 3D draws it away; by how much the weight of the keypoints tells, which alone stays as it was."""
    model, _, _, keypoints, world = people(3)
    noise = torch.randn(world.xyz.shape, generator=torch.Generator().manual_seed(0))
    wrong = given(world.xyz + 0.1 * noise)
    alone, beside = {}, {}
    for weights in (problem.BESIDE_3D, (1.0, 1.0)):
        monkeypatch.setattr(problem, "BESIDE_3D", weights)
        miss = lambda **how: sum(r.reprojection_px for r in fit_keypoints(model, keypoints, CAMERA, **how))
        alone[weights], beside[weights] = miss(), miss(given=[wrong])
    (heavy, usual), (first, second) = beside.values(), alone.values()
    assert heavy < 0.8 * usual and first == second


def test_of_whom_a_source_knows_nothing_is_fitted_as_without_it():
    model, _, _, keypoints, world = people(3)
    conf = world.conf.clone()
    conf[1] = 0
    alone = fit_keypoints(model, keypoints, CAMERA)
    fits = fit_keypoints(model, keypoints, CAMERA, given=[given(world.xyz, conf=conf)])
    near = lambda a, b: (a.params.pose - b.params.pose).norm(dim=-1).max() < 0.005  # the sizes of batches differ
    assert near(fits[1], alone[1])
    told = fit_keypoints(model, keypoints[:1], CAMERA, given=[given(world.xyz[:1])])[0]
    assert near(fits[0], told) and not near(fits[0], alone[0])
    few = keypoints.conf.clone()
    few[2, 3:] = 0
    with pytest.raises(InputError, match="person 2 has"):  # by its own number, not by that among those who are told of
        fit_keypoints(model, replace(keypoints, conf=few), CAMERA, given=[given(world.xyz, conf=conf)])


def lifted(world, scale, seed=0):
    """A lifter's 3D of known deviations: one error for the whole arm or leg, one more for each joint."""
    g = torch.Generator().manual_seed(seed)
    sigma = scale * (0.5 + torch.rand(world.conf.shape, generator=g))
    common, own = (torch.randn(len(sigma), n, 3, generator=g) for n in (1, sigma.shape[1]))
    noise = sigma[..., None] * (math.sqrt(CORRELATION) * common + math.sqrt(1 - CORRELATION) * own)
    return Given3D(replace(world, xyz=world.xyz + noise), sigma, "lifter's 3D", along_ray=True)


COUNTED = tuple(f"{s}_{n}" for s in ("left", "right") for n in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle"))


def mean_error(found, truth):
    return 1000 * (align(found, truth) - truth).norm(dim=-1).mean().item()


def test_a_fit_to_both_beats_either():
    model, _, body, keypoints, world = people(4, seed=7)
    keypoints = replace(
        keypoints, xy=keypoints.xy + 10 * torch.randn(keypoints.xy.shape, generator=torch.Generator().manual_seed(2))
    )
    conf = keypoints.conf.clone()
    conf[:, 23:] = 0
    keypoints = replace(keypoints, conf=conf)
    source = lifted(world, 0.03)
    rows = model.keypoints.indices(COUNTED)
    truth = body.joints.xyz[:, rows]
    ours = lambda **how: torch.stack([r.body.joints.xyz[rows] for r in fit_keypoints(model, keypoints, CAMERA, **how)])
    alone = mean_error(source.keypoints.xyz[:, MEDIAPIPE33.indices(COUNTED)], truth)
    both = mean_error(ours(given=[source]), truth)
    assert both < 0.9 * alone
    assert both < 0.9 * mean_error(ours(), truth)


def test_a_source_that_says_it_is_unsure_pulls_less():
    model, _, body, keypoints, world = people(1, seed=3)
    wrong = replace(world, xyz=world.xyz * torch.tensor([1.0, 1.0, -1.0]))  # mirrored in depth
    rows = model.keypoints.indices(COUNTED)
    error = lambda sigma: mean_error(
        fit_keypoints(
            model, keypoints, CAMERA, given=[Given3D(wrong, torch.full_like(wrong.conf, sigma), "it", along_ray=True)]
        )[0].body.joints.xyz[rows],
        body.joints.xyz[0, rows],
    )
    assert error(1.0) < 0.5 * error(0.01)


def test_bent_starts_point_where_the_source_does():
    model, _, _, keypoints, world = people(2)
    source = replace(detector_3d(world), sigma=torch.full_like(world.conf, 0.02), lean=False)
    problem = Problem(model, MaxMixturePrior.shipped(), keypoints, CAMERA, [source])
    rows, labels = starts.facing_rows(problem, 2, [source])
    assert labels == ["facing 0°", "facing 180°", "detector's 3D"] and len(rows.x) == 6
    bent, labels = starts.bent_rows(problem, rows, BENDING_STAGE, [source], labels)
    assert bent is not None and bent.people.tolist() == [0, 1] and labels[-1] == "bent to detector's 3D"

    def off(x):
        bones = problem.bone_mix @ problem.points(problem.unknowns.params(x))
        return torch.rad2deg(
            (torch.nn.functional.normalize(bones, dim=-1) * problem.given.bones).sum(-1).clamp(-1, 1).acos()
        )

    assert off(bent.x).median() < 6 < off(rows.x[[2, 5]]).median()


def test_bone_matrix():
    matrix = bone_matrix(BONES[:2], ("left_shoulder", "right_shoulder", "left_hip", "right_hip", "nose"))
    assert matrix.tolist() == [[0.5, 0.5, -0.5, -0.5, 0.0], [-0.5, -0.5, 0.0, 0.0, 1.0]]


def test_ray_rotation_takes_the_axis_to_the_ray():
    xy, conf = torch.tensor([[[100.0, 900.0], [300.0, 700.0]]]), torch.tensor([[1.0, 3.0]])
    ray = CAMERA.unproject(torch.tensor([[250.0, 750.0]]), torch.ones(1))[0]
    axis = ray_rotation(xy, conf, CAMERA)[0] @ torch.tensor([0.0, 0.0, 1.0])
    torch.testing.assert_close(axis, ray / ray.norm(), atol=1e-5, rtol=0)
