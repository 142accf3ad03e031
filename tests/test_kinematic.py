"""The skeleton fit: derivatives against automatic differentiation, exact poses given back, jitter less and no lag."""

import math
from dataclasses import replace

import pytest
import torch
from torch.func import jacrev

from body3d.camera import Camera
from body3d.errors import InputError
from body3d.filters import OneEuro
from body3d.fit.kinematic import Skeleton, Weights, _Energy, fit_skeleton
from body3d.skeletons import MUPOTS17
from body3d.types import Keypoints2D, Keypoints3D

CAMERA = Camera.pinhole(1100.0, (1080, 1920))
SIDES = {"right": -1.0, "left": 1.0}
STANDING = {
    "pelvis": (0, 0, 0), "spine": (0, -0.25, 0.02), "neck": (0, -0.5, 0), "head": (0, -0.6, -0.02), "head_top": (0, -0.75, -0.02),
    **{f"{s}_shoulder": (0.17 * x, -0.48, 0) for s, x in SIDES.items()},
    **{f"{s}_elbow": (0.25 * x, -0.22, 0.03) for s, x in SIDES.items()},
    **{f"{s}_wrist": (0.27 * x, 0.02, -0.05) for s, x in SIDES.items()},
    **{f"{s}_hip": (0.12 * x, 0.02, 0) for s, x in SIDES.items()},
    **{f"{s}_knee": (0.13 * x, 0.45, -0.02) for s, x in SIDES.items()},
    **{f"{s}_ankle": (0.13 * x, 0.87, 0.04) for s, x in SIDES.items()},
}  # fmt: skip
REST = torch.tensor([STANDING[name] for name in MUPOTS17.names], dtype=torch.float64)
SKELETON = Skeleton(REST, MUPOTS17)


def walk(frames: int = 60, rate: float = 30.0) -> torch.Tensor:
    """Somebody walks on an arc with swinging arms and legs: (T, J, 3) in the camera's frame, in double precision."""
    t = torch.arange(frames, dtype=torch.float64) / rate
    swing = (2 * math.pi * 0.9 * t).sin()
    turns = torch.zeros(frames, len(MUPOTS17), 3, dtype=torch.float64)
    for side, sign in SIDES.items():
        turns[:, MUPOTS17.index(f"{side}_shoulder"), 0] = 0.6 * sign * swing
        turns[:, MUPOTS17.index(f"{side}_elbow"), 0] = 0.4 + 0.3 * sign * swing
        turns[:, MUPOTS17.index(f"{side}_hip"), 0] = -0.5 * sign * swing
        turns[:, MUPOTS17.index(f"{side}_knee"), 0] = -0.3 + 0.3 * sign * swing
    turns[:, MUPOTS17.index("pelvis"), 1] = 0.5 * t
    place = torch.stack([-0.8 + 0.8 * t, 0.1 + 0.02 * swing, 4.0 - 0.3 * t], -1)
    x = torch.cat([turns[:, SKELETON.turning].flatten(1), place], 1)
    return SKELETON.pose(x)[0]


def seen(truth: torch.Tensor, mm: float, px: float, seed: int = 0) -> tuple[Keypoints3D, Keypoints2D]:
    """Root-relative 3D and 2D joints with independent noise in every frame."""
    g = torch.Generator().manual_seed(seed)
    noise = lambda like, size: size * torch.randn(like.shape, generator=g, dtype=torch.float64)
    local, xy = truth - truth[:, [MUPOTS17.index("pelvis")]], CAMERA.map(lambda a: a.double()).project(truth)
    ones = torch.ones(truth.shape[:2], dtype=torch.float64)
    return (
        Keypoints3D(local + noise(local, mm / 1000), ones, MUPOTS17, "root"),
        Keypoints2D(xy + noise(xy, px), ones, MUPOTS17),
    )


def from_pelvis(xyz: torch.Tensor) -> torch.Tensor:
    return xyz - xyz[MUPOTS17.index("pelvis")]


def jitter(xyz: torch.Tensor) -> float:
    """Root mean square acceleration, in mm per frame²."""
    return 1000 * xyz.diff(n=2, dim=0).square().sum(-1).mean().sqrt().item()


def test_derivatives():
    torch.manual_seed(0)
    x = 0.4 * torch.randn(2, len(SKELETON), dtype=torch.float64)
    x[:, -3:] += torch.tensor([0.2, 0.1, 4.0])
    _, J = SKELETON.pose(x)
    for row in range(2):
        auto = jacrev(lambda y: SKELETON.pose(y[None])[0][0])(x[row])
        torch.testing.assert_close(J[row], auto, rtol=1e-9, atol=1e-12)
    local, image = seen(walk(3), 20, 3)
    camera = CAMERA.map(lambda a: a.double())
    conf = torch.rand(len(MUPOTS17), dtype=torch.float64)
    energy = _Energy(SKELETON, local.xyz[2], image.xy[2], conf, conf.flip(0), camera, Weights(), list(walk(2)))
    here = energy(x, torch.arange(2))
    auto = torch.stack([jacrev(lambda y: energy(y[None], torch.arange(1)).cost[0])(row) for row in x])
    torch.testing.assert_close(here.gradient, auto, rtol=1e-8, atol=1e-6)
    assert (torch.linalg.eigvalsh(here.curvature) > -1e-6 * here.curvature.abs().amax((1, 2))[:, None]).all()


def test_exact_joints_are_given_back():
    """The root's depth comes from the size in the image alone; the energy of depth holds back who walks along it."""
    truth = walk(12)
    fitted = fit_skeleton(
        *seen(truth, 0, 0), CAMERA.map(lambda a: a.double()), SKELETON, Weights(depth=0.0, smoothness=0.0)
    )
    torch.testing.assert_close(fitted.xyz, truth, rtol=0, atol=2e-4)
    held_back = fit_skeleton(*seen(truth, 0, 0), CAMERA.map(lambda a: a.double()), SKELETON).xyz - truth
    assert held_back[-1, :, 2].mean() > 0.01
    assert held_back.norm(dim=-1).max() < 0.05
    assert fitted.frame == "camera"


def test_bones_keep_their_length_and_hidden_joints_do_no_harm():
    truth = walk(15)
    local, image = seen(truth, 10, 1)
    wrist = MUPOTS17.index("left_wrist")
    for keypoints, wrong in ((local.xyz, 3.0), (image.xy, 500.0)):
        keypoints[5:, wrist] += wrong
    conf = local.conf.clone()
    conf[5:, wrist] = 0
    hidden = Keypoints3D(local.xyz, conf, MUPOTS17, "root"), Keypoints2D(image.xy, conf, MUPOTS17)
    fitted = fit_skeleton(*hidden, CAMERA.map(lambda a: a.double()), skeleton=SKELETON).xyz
    start, end = torch.tensor(MUPOTS17.bones).mT
    lengths = (fitted[:, end] - fitted[:, start]).norm(dim=-1)
    torch.testing.assert_close(lengths, (REST[end] - REST[start]).norm(dim=-1).expand_as(lengths), rtol=0, atol=1e-6)
    others = [i for i in range(len(MUPOTS17)) if i != wrist]
    assert (fitted - truth).norm(dim=-1)[:, others].mean() < 0.04


def test_less_jitter_and_no_lag():
    """Filters and fit, as in the paper, on noise of 25 mm and 2 px, with bones from the noisy joints themselves."""
    truth = walk(60)
    local, image = seen(truth, 25, 2)
    from_root = lambda xyz: xyz - xyz[:, [MUPOTS17.index("pelvis")]]
    error = lambda a, b: (a - b).norm(dim=-1).mean().item()
    filtered = (
        Keypoints3D(OneEuro(30.0, 0.8, 0.4)(local.xyz * 100) / 100, local.conf, MUPOTS17, "root"),
        Keypoints2D(OneEuro(30.0, 1.7, 0.3)(image.xy), image.conf, MUPOTS17),
    )
    fitted = fit_skeleton(*filtered, CAMERA.map(lambda a: a.double())).xyz
    assert jitter(truth) < 10 < jitter(filtered[0].xyz) < jitter(local.xyz)
    assert jitter(fitted) < 0.4 * jitter(local.xyz)
    assert jitter(fitted) < 0.7 * jitter(filtered[0].xyz)
    assert error(from_root(fitted), from_root(truth)) < 0.7 * error(local.xyz, from_root(truth))
    assert error(fitted, truth) < 0.06
    # The shift in time at which the fit is nearest to the truth, between frames by a parabola.
    late = torch.stack(
        [(fitted[5:-5] - truth[5 - d : len(truth) - 5 - d]).square().sum(-1).mean() for d in range(-2, 4)]
    )
    best = int(late.argmin())
    assert 0 < best < 5
    a, b, c = late[best - 1 : best + 2].tolist()
    assert abs(best - 2 + 0.5 * (a - c) / (a - 2 * b + c)) < 1


def test_a_skeleton_from_noisy_poses():
    """Bones and the distances between those that turn together are right to 8 %; the noisy lengths of short bones are not."""
    truth = walk(60)
    local, _ = seen(truth, 25, 0)
    ours = Skeleton.of(local.xyz, MUPOTS17).rest
    length = lambda xyz, bone: (xyz[..., MUPOTS17.index(bone[1]), :] - xyz[..., MUPOTS17.index(bone[0]), :]).norm(
        dim=-1
    )
    for bone in (("neck", "head"), ("pelvis", "right_hip"), ("left_knee", "left_ankle")):
        assert length(ours, bone).item() == pytest.approx(length(REST, bone).item(), rel=0.08)
    assert length(local.xyz, ("neck", "head")).mean() > 1.08 * length(REST, ("neck", "head"))
    for pair in (("left_hip", "right_hip"), ("spine", "left_hip"), ("left_shoulder", "right_shoulder")):
        assert length(ours, pair).item() == pytest.approx(length(REST, pair).item(), rel=0.08)
    torch.testing.assert_close(
        Skeleton.of(truth - truth[:, :1], MUPOTS17).rest, from_pelvis(truth[0]), rtol=0, atol=2e-3
    )


@pytest.mark.parametrize("joint", ["left_wrist", "left_elbow"])
def test_what_is_unknown_may_hold_anything(joint):
    """An elbow that is not known leaves its wrist without a place in 3D, but not in the photo."""
    local, image = seen(walk(4), 0, 0)
    conf = local.conf.clone()
    conf[1:, MUPOTS17.index(joint)] = 0
    camera, found = CAMERA.map(lambda a: a.double()), []
    for value in (math.nan, 0.0, 7.0):
        xyz, xy, no = local.xyz.clone(), image.xy.clone(), conf.clone()
        xyz[1:, MUPOTS17.index(joint)] = xy[1:, MUPOTS17.index(joint)] = value
        if math.isnan(value):
            no[1:, MUPOTS17.index(joint)] = value
        hidden = Keypoints3D(xyz, no, MUPOTS17, "root"), Keypoints2D(xy, no, MUPOTS17)
        fitted = fit_skeleton(*hidden, camera, SKELETON)
        assert torch.equal(fitted.conf, conf)
        found.append(fitted.xyz)
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[0], found[2], atol=1e-4, rtol=0)
    others = [i for i in range(len(MUPOTS17)) if i != MUPOTS17.index(joint)]
    assert (found[0] - walk(4)).norm(dim=-1)[:, others].mean() < 0.04


def test_bones_are_measured_where_both_ends_are_known():
    """A wrist that is somewhere else in four of six frames, where it is not known."""
    poses = walk(6)
    conf = torch.ones(poses.shape[:2])
    wrist = MUPOTS17.index("left_wrist")
    poses[:4, wrist] = torch.tensor([[1.0], [2.0], [math.nan], [-1.0]])
    conf[:4, wrist] = 0
    length = lambda skeleton: (skeleton.rest[wrist] - skeleton.rest[MUPOTS17.index("left_elbow")]).norm().item()
    true = length(SKELETON)
    assert length(Skeleton.of(poses, MUPOTS17, conf)) == pytest.approx(true, rel=0.01)
    conf[5, wrist] = 0  # known in a single frame
    assert length(Skeleton.of(poses, MUPOTS17, conf)) == pytest.approx(true, rel=0.01)
    assert length(Skeleton.of(poses[4:5], MUPOTS17)) == pytest.approx(true, rel=1e-6)
    conf[:, wrist] = 0
    with pytest.raises(InputError, match="not known in any frame have no length; give a skeleton: left_wrist"):
        Skeleton.of(poses, MUPOTS17, conf)


@pytest.mark.parametrize("lost", ["the root's confidence", "hips and spine", "the frame", "the frame, as NaN"])
def test_a_first_frame_that_tells_little_is_no_end(lost):
    truth = walk(5)
    local, image = seen(truth, 0, 0)
    if lost == "the root's confidence":
        local.conf[0, MUPOTS17.index("pelvis")] = 0
    elif lost == "hips and spine":
        local.conf[0, MUPOTS17.indices(("left_hip", "right_hip", "spine"))] = 0
    else:
        local.conf[0] = image.conf[0] = 0
        local.xyz[0] = image.xy[0] = math.nan if "NaN" in lost else 0.0
    found = fit_skeleton(local, image, CAMERA.map(lambda a: a.double()), SKELETON)
    assert (found.xyz[1:] - truth[1:]).norm(dim=-1).max() < 0.04
    if lost == "the root's confidence":
        assert (found.xyz[0] - truth[0]).norm(dim=-1).max() < 0.04
    elif lost.startswith("the frame"):
        assert torch.equal(found.xyz[0], found.xyz[1]) and not found.conf[0].any()
    nothing = Keypoints3D(local.xyz, torch.zeros_like(local.conf), MUPOTS17, "root")
    with pytest.raises(InputError, match="nothing says where the person stands"):
        fit_skeleton(nothing, image, CAMERA, SKELETON)


def test_no_frames_are_no_error():
    local, image = seen(walk(2), 0, 0)
    assert fit_skeleton(local[:0], image[:0], CAMERA).xyz.shape == (0, len(MUPOTS17), 3)


def test_what_does_not_fit_is_said():
    local, image = seen(walk(3), 0, 0)
    with pytest.raises(InputError, match="the same joints of the same frames are needed"):
        fit_skeleton(local, image[:2], CAMERA)
    mirrored = Keypoints2D(-image.xy + 2 * torch.tensor([959.5, 539.5]), image.conf, MUPOTS17)
    with pytest.raises(InputError, match="behind the camera"):
        fit_skeleton(local, mirrored, CAMERA.map(lambda a: a.double()))
    with pytest.raises(InputError, match="camera's own frame"):
        fit_skeleton(local, image, replace(CAMERA, t=torch.tensor([0.0, 0.0, 1.0])))
