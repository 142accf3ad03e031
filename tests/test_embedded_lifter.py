"""The lifter that comes with the package: its input, its file, and what it is trained on."""

import math

import numpy as np
import pytest
import roma
import torch

from body3d.camera import Camera
from body3d.errors import InputError
from body3d.learn.embedded_lifter import People, occlusion
from body3d.lift.embedded import RayLifter, embedded_lifter, lift, load_lifter, ray_features, save_lifter
from body3d.skeletons import FEET23
from body3d.types import Keypoints2D

POINTS = len(FEET23)


def around_the_axis() -> torch.Tensor:
    """(23, 3) points whose directions have the optical axis as their mean: pairs on both sides, and one on it."""
    torch.manual_seed(0)
    side = torch.cat([0.2 * torch.randn(POINTS // 2, 2), torch.ones(POINTS // 2, 1)], -1)
    return torch.cat([side, side * torch.tensor([-1.0, -1, 1]), torch.tensor([[0.0, 0, 1]])])


def tilt(degrees: float) -> torch.Tensor:
    """About an axis across the optical one."""
    return roma.rotvec_to_rotmat(math.radians(degrees) * torch.tensor([0.6, -0.8, 0.0]))


def test_features_see_no_turn_of_the_camera_about_its_centre():
    points, conf = around_the_axis(), torch.ones(1, POINTS)
    conf[0, 3] = conf[0, 3 + POINTS // 2] = 0
    T = tilt(25)
    turned = points @ T.mT
    straight, R = ray_features((points[:, :2] / points[:, 2:])[None], conf)
    tilted, S = ray_features((turned[:, :2] / turned[:, 2:])[None], conf)
    torch.testing.assert_close(tilted, straight, atol=1e-5, rtol=0)
    torch.testing.assert_close(S[0] @ T, R[0], atol=1e-5, rtol=0)
    # Root mean square 1 of what is seen, zero for the others; then the confidences and how large it was.
    q = straight[0, : 2 * POINTS].view(POINTS, 2)
    assert (q[3] == 0).all() and q.square().sum().item() == pytest.approx(POINTS - 2, rel=1e-5)
    assert torch.equal(straight[0, 2 * POINTS : -1], conf[0])
    seen = points[conf[0] > 0, :2]
    assert straight[0, -1].item() == pytest.approx(seen.square().sum(-1).mean().sqrt().log().item(), abs=1e-5)


def test_the_lifted_pose_turns_with_the_camera():
    points, camera = around_the_axis(), Camera.guess((1000, 1000))
    T = tilt(15)
    people = torch.stack([points, points @ T.mT])
    both = lift(embedded_lifter(), Keypoints2D(camera.project(people), torch.ones(2, POINTS), FEET23), camera).body.xyz
    torch.testing.assert_close(both[1], both[0] @ T.mT, atol=1e-3, rtol=0)
    assert both[0].norm(dim=-1).max() > 0.2


def test_a_lifter_comes_back_from_its_file(tmp_path):
    torch.manual_seed(0)
    lifter, features = RayLifter(width=16, blocks=1).eval(), torch.randn(4, 3 * POINTS + 1)
    lifter.get_buffer("mean").normal_()
    save_lifter(tmp_path / "lifter.npz", lifter, 16, 1)
    read = load_lifter(tmp_path / "lifter.npz")
    assert not read.training
    for ours, theirs in zip(read(features), lifter(features), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=1e-2)  # halves
    torch.save({"model": lifter.state_dict()}, tmp_path / "best.pt")
    for name in ("best.pt", "none.npz"):
        with pytest.raises(InputError, match=name):
            load_lifter(tmp_path / name)


def test_files_of_poses_that_cannot_be_read(tmp_path):
    np.savez(tmp_path / "other.npz", pose=np.zeros((2, 22, 3)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:300])
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name, message in (
        ("other.npz", "has no 'subject', 'clip', 'plausible', only pose"),
        ("cut.npz", "cannot be read as"),
        ("array.npy", "cannot be read as"),
        ("none.npz", "there is no such file of poses of the open body; it comes from scripts/retarget_mocap.py"),
    ):
        with pytest.raises(InputError, match=message):
            People.open(tmp_path / name, False, torch.device("cpu"))


def test_occlusion_hides_what_lies_together():
    """A quarter is cut by an edge, a quarter hidden by a box; a box may lie where no point is, an edge never."""
    uv = torch.rand(4000, POINTS, 2, generator=torch.Generator().manual_seed(0))
    left = occlusion(uv, torch.Generator().manual_seed(1)) > 0
    some = ~left.all(1)
    assert 1 - 0.75 < some.float().mean() < 1 - 0.75**2 + 0.03
    # The hidden points' rectangle holds no other point, but for those who met both.
    hidden = ~left
    low = torch.where(hidden[..., None], uv, torch.inf).amin(1, keepdim=True)
    high = torch.where(hidden[..., None], uv, -torch.inf).amax(1, keepdim=True)
    between = ((uv >= low) & (uv <= high)).all(-1) & left
    assert between[some].any(1).float().mean() < 0.25**2 / (1 - 0.75**2) + 0.02
    # Nobody is cut from above or from the right alone.
    rank = lambda values: values.argsort(-1).argsort(-1)
    lowest = rank(uv[..., 1])[hidden].float().mean() / (POINTS - 1)
    leftmost = rank(uv[..., 0])[hidden].float().mean() / (POINTS - 1)
    assert lowest > 0.55 and leftmost < 0.49
