"""Matching: the search against brute force, the warp against its definition, the error against the library's size."""

import importlib.util
import math

import pytest
import torch

from body3d.camera import Camera
from body3d.errors import InputError, MissingExtra
from body3d.lift.matching import Library, match, turntable
from body3d.metrics.mpjpe import mpjpe
from body3d.skeletons import COCO17, H36M17
from body3d.types import Keypoints2D, Keypoints3D

UP = (0.0, 0.0, 1.0)
CAMERA = Camera.pinhole(1100.0, (1000, 1000))


def people(n: int, seed: int) -> torch.Tensor:
    """(n, 17, 3) poses on one skeleton: every bone in a direction that varies smoothly with four numbers. World, z up."""
    random = torch.Generator().manual_seed(seed)
    code = torch.randn(n, 4, generator=random)
    fixed = torch.Generator().manual_seed(99)
    rest, mix = torch.randn(17, 3, generator=fixed), torch.randn(17, 3, 4, generator=fixed)
    directions = torch.nn.functional.normalize(rest + 0.3 * torch.einsum("jdc,nc->njd", mix, code), dim=-1)
    xyz = torch.zeros(n, 17, 3)
    for parent, child in H36M17.bones:
        xyz[:, child] = xyz[:, parent] + 0.25 * directions[:, child]
    return xyz


def in_3d(xyz: torch.Tensor, frame: str = "world") -> Keypoints3D:
    return Keypoints3D(xyz, torch.ones(xyz.shape[:-1]), H36M17, frame)


def in_2d(xy: torch.Tensor) -> Keypoints2D:
    return Keypoints2D(xy, torch.ones(xy.shape[:-1]), H36M17)


@pytest.fixture(scope="module")
def library() -> Library:
    return Library.build(in_3d(people(500, 0)), turntable(8, (0.0, 20.0), UP))


def seen(pairs: torch.Tensor, library: Library, place: tuple[float, float, float]) -> torch.Tensor:
    """The pairs' poses in front of CAMERA with the root at `place`."""
    return CAMERA.project(library.exemplars(pairs) + torch.tensor(place))


def hide(keypoints: Keypoints2D, share: float, seed: int = 3) -> Keypoints2D:
    keep = torch.rand(keypoints.conf.shape, generator=torch.Generator().manual_seed(seed)) >= share
    keep[..., :5] = True
    return Keypoints2D(keypoints.xy, keep.float(), H36M17)


def test_turntable_looks_from_where_it_says():
    views = turntable(4, (0.0, 30.0), UP)
    torch.testing.assert_close(views @ views.mT, torch.eye(3).expand(8, 3, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(views), torch.ones(8))
    crown = views @ torch.tensor(UP)
    torch.testing.assert_close(crown[:4], torch.tensor([0.0, -1, 0]).expand(4, 3), atol=1e-6, rtol=0)  # upright
    # From 30 degrees above, the crown is nearer to the camera than the root.
    torch.testing.assert_close(crown[4:, 2], torch.full((4,), -0.5), atol=1e-6, rtol=0)
    turn = views[1] @ views[0].T
    assert turn.trace() == pytest.approx(1.0, abs=1e-5)  # a quarter turn


def test_a_pose_of_the_library_finds_itself(library):
    pairs = torch.arange(0, len(library), 97)
    found = match(in_2d(seen(pairs, library, (0.0, 0.0, 5.0))), library, CAMERA, k=1)
    # The library's cameras look at the root, the query is looked at in its middle: not the same perspective to the bit.
    own = (found.pairs[:, 0] == pairs).float().mean()
    assert own > 0.95
    # In the library's own projection they are the same.
    exact = match(in_2d(100 * library.shapes[pairs] + 300), library, k=5, warp=0.0)
    assert (exact.pairs[:, 0] == pairs).all()
    assert exact.distance[:, 0].max() < 5e-6
    assert (exact.best().xyz - library.exemplars(pairs)).abs().max() < 1e-6


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_search_equals_brute_force(library, share):
    query = hide(in_2d(torch.randn(300, 17, 2, generator=torch.Generator().manual_seed(1))), share)
    k = 7
    pairs, distance = library.nearest(query.xy, query.conf > 0, k)
    shapes = library.shapes.double()
    for i in range(len(query.xy)):
        w = query.conf[i] > 0
        unit = lambda p: (
            (p - p.mean(-2, keepdim=True)) / (p - p.mean(-2, keepdim=True)).flatten(-2).norm(dim=-1)[..., None, None]
        )
        d = torch.cdist(unit(query.xy[i, w].double())[None].flatten(1), unit(shapes[:, w]).flatten(1))[0]
        expected = d.sort().values[:k].float()
        torch.testing.assert_close(distance[i], expected, atol=2e-6, rtol=0)
        torch.testing.assert_close(d[pairs[i]].float(), expected, atol=2e-6, rtol=0)
        assert len(pairs[i].unique()) == k


def test_groups_and_blocks_do_not_show(library, monkeypatch):
    """The last block and the last group are short: 8000 - 4 pairs."""
    short = Library(library.joints, library.poses, library.views, library.shapes[:-4])
    query = torch.cat([short.shapes[-3:], torch.randn(40, 17, 2, generator=torch.Generator().manual_seed(2))])
    whole = torch.ones(43, 17, dtype=torch.bool)
    pairs, distance = short.nearest(query, whole, 50)
    assert pairs[:3, 0].tolist() == [len(short) - 3, len(short) - 2, len(short) - 1]
    assert pairs.max() < len(short)
    monkeypatch.setattr("body3d.lift.matching.PAIRS", 96)
    monkeypatch.setattr("body3d.lift.matching.QUERIES", 7)
    torch.testing.assert_close(short.nearest(query, whole, 50)[1], distance)
    tiny = Library(library.joints, library.poses, library.views, library.shapes[:5])
    assert sorted(tiny.nearest(query, whole, 50)[0][0].tolist()) == [0, 1, 2, 3, 4]


def test_joints_not_seen_are_ignored(library):
    query = hide(in_2d(seen(torch.arange(0, 800, 9), library, (0.3, 0.1, 4.0))), 0.3)
    unknown = (query.conf == 0)[..., None]
    other = Keypoints2D(torch.where(unknown, torch.nan, query.xy), query.conf, H36M17)
    for camera in (None, CAMERA):
        a, b = match(query, library, camera), match(other, library, camera)
        assert torch.equal(a.pairs, b.pairs)
        assert torch.equal(a.mean().xyz, b.mean().xyz)
        assert torch.isfinite(a.best().xyz).all()
    # The pose is still found: seen in the library's own projection, the joints left are enough.
    pairs = torch.arange(0, 8000, 79)
    found = match(hide(in_2d(library.shapes[pairs]), 0.3), library, k=1, warp=0.0)
    assert (found.pairs[:, 0] == pairs).float().mean() > 0.98
    assert found.distance.max() < 1e-5


def test_warp_projects_onto_the_keypoints(library):
    truth = people(50, 5) @ library.views[3].T + torch.tensor([0.4, -0.2, 4.0])
    query = in_2d(CAMERA.project(truth))
    found = match(query, library, CAMERA, k=20)
    root_ray = torch.linalg.inv(CAMERA.K) @ torch.cat([query.xy[:, 0], torch.ones(50, 1)], -1)[..., None]
    for pose in (*found.poses.unbind(1), found.mean().xyz):
        # The distance of the root along its ray is what the root-relative pose leaves open: one unknown for 34 equations.
        offset = CAMERA.K[:2, :2] @ pose[..., :2].mT + (CAMERA.K[:2, 2:] - query.xy.mT) * pose[..., None, :, 2]
        slope = CAMERA.K[:2, :2] @ root_ray[:, :2] + (CAMERA.K[:2, 2:] - query.xy.mT) * root_ray[:, 2:]
        depth = -(offset * slope).sum((1, 2), keepdim=True) / slope.square().sum((1, 2), keepdim=True)
        projected = CAMERA.project(pose + (depth * root_ray)[..., 0][:, None])
        assert (projected - query.xy).norm(dim=-1).max() < 0.05  # pixels
        assert (depth > 1).all()
    weak = match(query, library, None, k=20)
    for pose in (*weak.poses.unbind(1), weak.mean().xyz):
        flat, xy = pose[..., :2], query.xy - query.xy[:, :1]
        scale = (flat * xy).sum((1, 2), keepdim=True) / flat.square().sum((1, 2), keepdim=True)
        assert (scale * flat - xy).norm(dim=-1).max() < 0.05
    unwarped = match(query, library, None, k=20, warp=0.0)
    assert torch.equal(unwarped.poses[:, 0], library.exemplars(unwarped.pairs[:, 0]))
    # Depths are the exemplar's.
    exemplar = library.exemplars(weak.pairs)
    torch.testing.assert_close(weak.poses[..., 2], exemplar[..., 2] - exemplar[..., :1, 2])


def test_a_finite_warp_does_not_follow_an_outlier(library):
    truth = people(40, 5) @ library.views[3].T
    xy = CAMERA.project(truth + torch.tensor([0.0, 0.0, 4.0]))
    wrist = H36M17.index("left_wrist")
    xy[:, wrist] += torch.tensor([150.0, 0.0])  # half a metre
    off = lambda warp: (match(in_2d(xy), library, CAMERA, warp=warp).mean().xyz - truth)[:, wrist].norm(dim=-1).mean()
    assert off(0.1) < 0.6 * off(math.inf)
    # In its limits it is the paper's warp and none.
    poses = lambda warp: match(in_2d(xy), library, CAMERA, warp=warp).poses
    torch.testing.assert_close(poses(1e4), poses(math.inf), atol=1e-5, rtol=0)
    torch.testing.assert_close(poses(1e-5), poses(0.0), atol=1e-5, rtol=0)


def test_weights_read_the_distances(library):
    found = match(in_2d(seen(torch.arange(20), library, (0.0, 0.0, 5.0)) + 3), library, CAMERA, k=9, warp=0.0)
    weights = found.weights(sigma=0.1)
    torch.testing.assert_close(weights.sum(-1), torch.ones(20))
    ratio = ((found.distance[:, 1] ** 2 - found.distance[:, 0] ** 2) / 0.01).exp()
    torch.testing.assert_close(weights[:, 0] / weights[:, 1], ratio)


def test_error_falls_with_the_library_and_with_the_warp():
    truth = people(60, 7) @ turntable(1, (10.0,), UP)[0].T
    query = in_2d(CAMERA.project(truth + torch.tensor([0.0, 0.0, 5.0])))
    views = turntable(12, (10.0,), UP)
    error = lambda pose: 1000 * float(mpjpe(pose.xyz, truth).mean())
    plain, warped, mixed = [], [], []
    for n in (20, 200, 2000):
        library = Library.build(in_3d(people(n, 8)), views)
        plain.append(error(match(query, library, CAMERA, k=1, warp=0.0).best()))
        warped.append(error(match(query, library, CAMERA).best()))
        mixed.append(error(match(query, library, CAMERA).mean()))
    mean_pose = error(in_3d((people(2000, 8) @ turntable(1, (10.0,), UP)[0].T).mean(0).expand(60, 17, 3)))
    assert plain[0] > plain[1] > plain[2]
    assert warped[0] > warped[1] > warped[2]
    assert warped[2] < 0.7 * plain[2]
    assert mixed[2] < warped[2]
    assert mixed[2] < 0.5 * mean_pose


def test_a_camera_is_worth_knowing_off_its_axis():
    """At the image's edge, weak perspective takes a person for one who is turned; with K the pose is right."""
    library = Library.build(in_3d(people(500, 0)), turntable(24, (0.0,), UP))
    truth = library.exemplars(torch.arange(0, len(library), 61))
    query = in_2d(CAMERA.project(truth + torch.tensor([1.5, 0.0, 3.5])))
    error = lambda camera: 1000 * float(mpjpe(match(query, library, camera).mean().xyz, truth).mean())
    assert error(CAMERA) < 0.75 * error(None)


def test_camera_of_each_person_and_no_batch(library):
    query = in_2d(seen(torch.arange(6), library, (0.5, 0.2, 4.0)))
    one = match(query, library, CAMERA).mean().xyz
    each = CAMERA.map(lambda part: part.expand(6, *part.shape))
    torch.testing.assert_close(match(query, library, each).mean().xyz, one)
    torch.testing.assert_close(match(query[2], library, CAMERA).mean().xyz, one[2], atol=1e-4, rtol=0)
    grid = Keypoints2D(query.xy.unflatten(0, (2, 3)), query.conf.unflatten(0, (2, 3)), H36M17)
    torch.testing.assert_close(match(grid, library, CAMERA).mean().xyz.flatten(0, 1), one)


def test_bad_input_says_what_is_wrong(library):
    xy = torch.randn(2, 17, 2)
    with pytest.raises(InputError, match="the keypoints are coco17, the library holds h36m17"):
        match(Keypoints2D(xy, torch.ones(2, 17), COCO17), library)
    with pytest.raises(InputError, match="NaN"):
        match(in_2d(torch.where(torch.arange(17)[:, None] == 3, torch.nan, xy)), library)
    few = torch.ones(2, 17)
    few[1, 3:] = 0
    with pytest.raises(InputError, match="1 of 2 people have fewer than 4 known joints"):
        match(Keypoints2D(xy, few, H36M17), library)
    with pytest.raises(InputError, match="all their joints in one place"):
        match(in_2d(torch.full((2, 17, 2), 5.0)), library)
    with pytest.raises(InputError, match="empty"):
        Library.build(in_3d(torch.zeros(0, 17, 3)), library.views)
    xyz = torch.randn(2, 17, 3)
    xyz[1, H36M17.index("right_knee")] = torch.nan
    with pytest.raises(InputError, match="1 of 2 poses lack right_knee"):
        Library.build(in_3d(xyz), library.views)


def test_faiss_finds_the_same(library):
    query = in_2d(torch.randn(30, 17, 2, generator=torch.Generator().manual_seed(4)))
    if importlib.util.find_spec("faiss") is None:
        with pytest.raises(MissingExtra, match=r"body3d\[faiss\]"):
            match(query, library, faiss=True)
        pytest.skip("needs faiss")
    torch.testing.assert_close(match(query, library, faiss=True).distance, match(query, library).distance)
    with pytest.raises(InputError, match="whole poses"):
        match(hide(query, 0.3), library, faiss=True)
