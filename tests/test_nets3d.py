"""Networks from images to 3D joints: what they can learn, what their read-outs recover, sizes. Equality with published
implementations: tests/known_answers/{c2f_volumetric,integral3d,posenet3dmppe,rootnet3dmppe,vnect}*.npz."""

import numpy as np
import pytest
import torch
from test_locationmap import CELLS, SCENE, crowd
from torch import nn

from body3d import camera_conventions as conventions
from body3d.checkpoints import read_published
from body3d.codecs.locationmap import LocationMap, LocationMaps, RedundantMap
from body3d.errors import InputError
from body3d.nets3d import dconvmp, mppe, orpm, vnect, volumetric
from body3d.nets3d.regressors import SceneRegressor
from body3d.nets3d.views import scene_views
from body3d.skeletons import H36M17, MPPE18, MUPOTS17, MUPOTS21

K = torch.tensor([[1145.0, 0, 512.5], [0, 1143.8, 515.4], [0, 0, 1]])


def parameters(build) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build().parameters())


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (volumetric.volumetric_4, 53_585_847),
        (volumetric.volumetric_2, 26_904_401),
        (mppe.posenet_18, 34_291_392),
        (mppe.posenet_21, 34_340_736),
        (mppe.RootNet, 33_997_634),
        (lambda: vnect.VNect(21, folded=True), 14_615_680),
        # No published counts: these are ours.
        (orpm.orpm, 16_238_756),
        (dconvmp.DconvMP, 9_787_251),
    ],
)
def test_parameters(build, count):
    assert parameters(build) == count


# ---- bodies of sticks ----------------------------------------------------------------------------------------------
def stick_poses(count: int, seed: int = 0, spread: float = 0.12) -> torch.Tensor:
    """Standing people in H36M17's joints around 0 (m), x right, y down; every limb bone leans its own way."""
    x = {"right": -1.0, "left": 1.0}
    rest = {
        "pelvis": (0, 0, 0), "spine": (0, -0.23, 0), "thorax": (0, -0.48, 0), "neck_nose": (0, -0.6, -0.05),
        "head_top": (0, -0.75, 0),
        **{f"{s}_hip": (0.13 * x[s], 0, 0) for s in x}, **{f"{s}_knee": (0.14 * x[s], 0.44, 0) for s in x},
        **{f"{s}_ankle": (0.15 * x[s], 0.88, 0) for s in x}, **{f"{s}_shoulder": (0.15 * x[s], -0.46, 0) for s in x},
        **{f"{s}_elbow": (0.28 * x[s], -0.2, 0) for s in x}, **{f"{s}_wrist": (0.34 * x[s], 0.05, 0) for s in x},
    }  # fmt: skip
    pose = torch.tensor([rest[name] for name in H36M17.names])
    g = torch.Generator().manual_seed(seed)
    out = pose + spread * torch.randn(count, *pose.shape, generator=g)
    return out - out[:, :1]


# ---- volumetric ----------------------------------------------------------------------------------------------------
def test_depth_from_given_limb_lengths():
    poses, depth = stick_poses(200), torch.linspace(3, 5, 200)
    place = torch.stack([torch.linspace(-0.8, 0.8, 200), torch.linspace(0.3, -0.3, 200), depth], -1)
    xyz = poses + place[:, None]
    uv = conventions.camera_to_pixel(xyz, K[:2, :2].diagonal(), K[:2, 2])[..., :2]
    lengths = volumetric.limb_lengths(xyz)
    found = volumetric.depth_from_limbs(uv, poses[..., 2], K, lengths)
    torch.testing.assert_close(found, depth, rtol=1e-3, atol=0)
    back = volumetric.back_project(uv, poses[..., 2] + found[:, None], K)
    assert (back - xyz).norm(dim=-1).max() < 0.01
    # As coarse as a volume: pixels to two, depths to 16 mm.
    g = torch.Generator().manual_seed(1)
    uv = uv + 3 * (torch.rand(uv.shape, generator=g) - 0.5)
    z = poses[..., 2] + 0.031 * (torch.rand(poses.shape[:2], generator=g) - 0.5)
    coarse = volumetric.depth_from_limbs(uv, z, K, lengths)
    assert ((coarse - depth).abs() / depth).max() < 0.02
    one = volumetric.depth_from_limbs(uv[7], z[7], K, lengths[7])
    torch.testing.assert_close(one, coarse[7])


def test_depth_from_a_mean_skeleton_scales_with_the_person():
    """Somebody 10 % larger than the mean is put 10 % too near: pixels cannot tell."""
    poses = stick_poses(50, spread=0.0)
    xyz = 1.1 * poses + torch.tensor([0.0, 0.0, 4.4])
    uv = conventions.camera_to_pixel(xyz, K[:2, :2].diagonal(), K[:2, 2])[..., :2]
    mean = volumetric.limb_lengths(poses).mean(0)
    found = volumetric.depth_from_limbs(uv, poses[..., 2], K, mean)
    torch.testing.assert_close(found, torch.full((50,), 4.0), rtol=2e-3, atol=0)


def test_published_layers_without_names_go_to_their_places():
    with torch.device("meta"):
        net = volumetric.volumetric_2()
    layers = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    kind = lambda m: "conv" if isinstance(m, nn.Conv2d) else "bn"
    published = {f"{i:03d}.{kind(m)}.weight": m.weight for i, (_, m) in enumerate(layers)}
    ours = volumetric.from_torch7(published, net)
    assert all(ours[f"{name}.weight"] is m.weight for name, m in layers)
    assert list(published)[-1] == "399.conv.weight"


def test_stacks_see_what_came_before():
    """A small one on a small image: a gradient reaches the first volume from the last."""
    torch.manual_seed(0)
    net = volumetric.Volumetric(3, (1, 2), width=16)
    first, last = net(torch.randn(2, 3, 64, 64))
    assert first.shape == (2, 3, 16, 16) and last.shape == (2, 6, 16, 16)
    last.square().sum().backward()
    assert net.stacks[0].score.weight.grad.abs().max() > 0


# ---- 3DMPPE --------------------------------------------------------------------------------------------------------
def test_k_is_the_depth_of_two_metres_by_two():
    f, c = K[:2, :2].diagonal().double(), K[:2, 2].double()
    for depth in (2.5, 4.0, 11.0):
        corners = torch.tensor([[-0.7, -1.2, depth], [1.3, 0.8, depth]], dtype=torch.float64)
        (x0, y0), (x1, y1) = conventions.camera_to_pixel(corners, f, c)[:, :2].tolist()
        box = torch.tensor([x0, y0, x1 - x0, y1 - y0], dtype=torch.float64)
        assert conventions.depth_factor(box, f, mppe.AREA).item() == pytest.approx(depth, rel=1e-6)


def volume_at(cells: torch.Tensor) -> torch.Tensor:
    """Logits (N, J, 64, 64, 64) whose expectation is exactly at `cells` (column, row, slice): eight voxels share it."""
    low = cells.floor().long()
    part = cells - low
    logits = torch.full((*cells.shape[:2], 64, 64, 64), -1e4)
    n, j = torch.meshgrid(*map(torch.arange, cells.shape[:2]), indexing="ij")
    for corner in range(8):
        bits = torch.tensor([corner >> k & 1 for k in range(3)])
        share = torch.where(bits == 1, part, 1 - part).prod(-1)
        x, y, z = (low + bits).clamp_max(63).unbind(-1)
        logits[n, j, z, y, x] = share.clamp_min(1e-12).log()
    return logits


class KnowingPoseNet(mppe.PoseNet):
    """Answers as a perfect network would; a crop that is darker on the left is upright, else it is mirrored."""

    def __init__(self, cells: torch.Tensor):
        nn.Module.__init__(self)
        self.depth, self.cells = 64, nn.Parameter(cells)

    def forward(self, image):
        upright = image[..., :128].mean((1, 2, 3)) < image[..., 128:].mean((1, 2, 3))
        turned = self.cells[:, list(MPPE18.flip)]
        turned = torch.cat([63 - turned[..., :1], turned[..., 1:]], -1)
        return volume_at(torch.where(upright[:, None, None], self.cells, turned))


class KnowingRootNet(mppe.RootNet):
    def __init__(self, xy: torch.Tensor, gamma: torch.Tensor):
        nn.Module.__init__(self)
        self.xy, self.gamma = nn.Parameter(xy), gamma

    def forward(self, image, k):
        return torch.cat([self.xy, (self.gamma * k)[:, None]], 1)


def two_people() -> tuple[torch.Tensor, torch.Tensor]:
    """Poses in the camera's frame (m), in MPPE18's joints, and loose boxes around them (x, y, w, h)."""
    poses = stick_poses(2)
    shoulders = poses[:, [H36M17.index("left_shoulder"), H36M17.index("right_shoulder")]].mean(1, keepdim=True)
    xyz = torch.cat([poses, shoulders], 1) + torch.tensor([[[-0.6, 0.1, 4.2]], [[0.7, 0.2, 5.1]]])
    uv = conventions.camera_to_pixel(xyz, K[:2, :2].diagonal(), K[:2, 2])[..., :2]
    low, high = uv.amin(1) - 20, uv.amax(1) + 25
    return xyz, torch.cat([low, high - low], 1)


SHADED = np.broadcast_to(np.linspace(10, 240, 1000).astype(np.uint8)[None, :, None], (1000, 1000, 3)).copy()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("places", ["msra", "pixel"])
def test_people_in_the_cameras_frame(flip, places):
    """Cells by hand from the truth: through crops, the flip test and back, to 0.1 mm."""
    xyz, boxes = two_people()
    f, c = K[:2, :2].diagonal(), K[:2, 2]
    squares = conventions.square_box(boxes, (1000, 1000))
    assert (squares[:, 2] == squares[:, 3]).all()
    uv = conventions.camera_to_pixel(xyz, f, c)[..., :2]
    half = 0.5 if places == "pixel" else 0.0
    cells = (uv - squares[:, None, :2]) / squares[:, None, 2:] * 64 - half
    z = xyz[..., 2] - xyz[:, :1, 2]
    slices = (z + 1) / 2 * 64 - half
    pose_net = KnowingPoseNet(torch.cat([cells, slices[..., None]], -1))
    if places == "msra":  # the released places do not mirror: a network trained so is off by the shift
        pose_net.forward = lambda image: volume_at(
            pose_net.cells
            if image[..., :128].mean() < image[..., 128:].mean()
            else torch.cat([63 - pose_net.cells[..., :1], pose_net.cells[..., 1:]], -1)[:, list(MPPE18.flip)]
        )
    root_net = KnowingRootNet(cells[:, 0], xyz[:, 0, 2] / conventions.depth_factor(squares, f, 4.0))
    roots = mppe.locate_roots(root_net, SHADED, boxes, K, places)
    torch.testing.assert_close(roots, xyz[:, 0], rtol=0, atol=1e-4)
    people = mppe.absolute_poses(pose_net, SHADED, boxes, roots[:, 2], K, MPPE18, flip, places)
    torch.testing.assert_close(people.xyz, xyz, rtol=0, atol=1e-4)
    assert people.frame == "camera" and people.joints is MPPE18


def test_what_the_networks_see():
    """A white dot of the image is where the released formula says: (x - x0) 256 / w."""
    image = np.zeros((400, 600, 3), np.uint8)
    image[198:203, 318:323] = 255
    squares, _, crops = mppe._crops(image, torch.tensor([[250.0, 100.0, 120.0, 180.0]]), "msra", torch.device("cpu"))
    x0, y0, side, _ = squares[0].tolist()
    white = crops[0, 0] - crops[0, 0].min()
    weight = white / white.sum()
    x, y = (weight.sum(0) * torch.arange(256)).sum(), (weight.sum(1) * torch.arange(256)).sum()
    assert x.item() == pytest.approx((320 - x0) * 256 / side, abs=0.05)
    assert y.item() == pytest.approx((200 - y0) * 256 / side, abs=0.05)
    red = torch.tensor([(0 - m) / s for m, s in zip(mppe.MEAN, mppe.SPREAD, strict=True)])
    torch.testing.assert_close(crops[0, :, 0, 0], red)
    with pytest.raises(InputError, match="a box lies outside the image"):
        mppe._crops(image, torch.tensor([[700.0, 100.0, 50.0, 50.0]]), "msra", torch.device("cpu"))


def test_published_checkpoints(tmp_path):
    """As released: {epoch, network, optimizer}, `module.` before every name."""
    net = mppe.PoseNet(2)
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    content = {"epoch": 24, "network": state, "optimizer": {"state": {}, "param_groups": []}}
    torch.save(content, tmp_path / "snapshot_24.pth.tar")
    read = mppe.load_posenet(tmp_path / "snapshot_24.pth.tar")
    assert not read.training
    assert all(torch.equal(a, b) for a, b in zip(read.state_dict().values(), net.state_dict().values(), strict=True))
    with pytest.raises(InputError, match=r"not RootNet"):
        mppe.load_rootnet(tmp_path / "snapshot_24.pth.tar")
    torch.save({"network": {"module.expand_conv.weight": torch.zeros(2)}}, tmp_path / "other.pth.tar")
    assert list(read_published(tmp_path / "other.pth.tar")) == ["expand_conv.weight"]
    with pytest.raises(InputError, match="holds VideoPose3D's temporal network, not PoseNet"):
        mppe.load_posenet(tmp_path / "other.pth.tar")


# ---- VNect ---------------------------------------------------------------------------------------------------------
def test_folding_changes_nothing():
    torch.manual_seed(0)
    net = vnect.VNect(3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    net.eval()
    folded, image = vnect.fold(net), torch.randn(1, 3, 75, 50)
    with torch.no_grad():
        for a, b in zip(net(image), folded(image), strict=True):
            assert a.shape[-2:] == (10, 8)
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * a.abs().max().item())
    assert not any(isinstance(m, nn.BatchNorm2d) and m is not folded.bn5c_branch2a for m in folded.modules())


class DotNet(vnect.VNect):
    """Answers as a perfect network would for pictures of dots: joint j is where the red is j's level."""

    def __init__(self, xyz: torch.Tensor):
        nn.Module.__init__(self)
        self.xyz, self.sizes = nn.Parameter(xyz), []
        self.levels = (torch.arange(21) + 1.0) / 22

    def forward(self, image):
        red = image[:, 2:3] + 0.4
        self.sizes.append((red > 0.02).float().sum().item())
        mine = ((red - self.levels[:, None, None]).abs() < 0.15 / 22).float()
        heat = nn.functional.avg_pool2d(mine, 8)
        # Smeared a little, as heat maps are, so that there is one top.
        heat = nn.functional.avg_pool2d(heat, 3, 1, 1, count_include_pad=True) + 0.1 * heat
        places = (100 * self.xyz)[..., None, None].expand(len(image), 21, 3, *heat.shape[-2:])
        return LocationMaps(heat, places, places)


def dots(xy: torch.Tensor, radius: float, size: tuple[int, int]) -> np.ndarray:
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    image = torch.zeros(*size, 3, dtype=torch.uint8)
    for j, (u, v) in enumerate(xy.tolist()):
        image[(x - u) ** 2 + (y - v) ** 2 <= radius**2, 0] = round(255 * (j + 1) / 22)
    return image.numpy()


def grid_person(middle: tuple[float, float], step: float) -> torch.Tensor:
    """21 joints in a grid of three by seven."""
    return torch.tensor([[middle[0] + (j % 3 - 1) * step, middle[1] + (j // 3 - 3) * step] for j in range(21)])


def test_scales_are_averaged_in_place():
    """Seen smaller in the middle of the crop, a dot's map comes back to where it was."""
    xy = grid_person((150, 200), 36)
    net = DotNet(torch.randn(21, 3))
    crop = vnect.normalised(dots(xy, 15, (368, 368)))[None]
    maps = vnect.averaged(net, crop, (1.0, 0.7))
    got, xyz, _ = LocationMap().decode(maps, (368, 368))
    assert (got[0] - xy).abs().max() < 5
    expected = net.xyz - net.xyz[[MUPOTS21.index("pelvis")]]
    torch.testing.assert_close(xyz[0], expected.detach(), rtol=0, atol=1e-4)
    small = vnect.averaged(net, crop, (0.7,))
    assert (LocationMap().places(small.heat, (368, 368))[0][0] - xy).abs().max() < 8


def test_a_video_is_followed():
    """Somebody walks through a wide picture: the crop closes in, and places are right in pixels of the frames."""
    net = DotNet(torch.randn(21, 3))
    truth = torch.stack([grid_person((100 + 3 * t, 120), 19) for t in range(16)])
    frames = (dots(xy, 8, (240, 480)) for xy in truth)
    image, space = vnect.video(net, frames, 25.0)
    assert image.xy.shape == (16, 21, 2) and space.frame == "root"
    error = (image.xy - truth).norm(dim=-1)
    assert error[5:].mean() < 5 and error[5:].max() < 12
    expected = net.xyz - net.xyz[[MUPOTS21.index("pelvis")]]
    torch.testing.assert_close(space.xyz, expected.detach().expand_as(space.xyz), rtol=0, atol=1e-3)
    assert net.sizes[-2] > 1.5 * net.sizes[0]  # the first of a frame's two scales: dots are larger in the crop
    with pytest.raises(InputError, match="without frames"):
        vnect.video(net, [], 25.0)


def test_the_tracker():
    tracker = vnect.Tracker()
    xy, conf = np.array([[100.0, 100], [200, 100], [100, 300]]), np.ones(3)
    box = tracker.next_box(None, xy, conf)
    # 100 x 200 pixels with 40 and 40 more on each side, moved to the mean of the joints (133 in place of 150).
    np.testing.assert_allclose(box, [60 - 50 / 3, 60, 240 - 50 / 3, 340])
    np.testing.assert_allclose(tracker.next_box(box, xy + 8, conf), box + 2)
    assert tracker.next_box(box, xy, 0.01 * conf) is None


# ---- ORPM ----------------------------------------------------------------------------------------------------------
def planted(seed: int):
    """A crowd's joints and maps, if no two joints of a kind are too near each other to be told apart."""
    xyz, xy, seen, _ = crowd(seed)
    same = (xy[:, None] - xy[None]).norm(dim=-1) + 1e3 * (~seen[:, None] | ~seen[None])
    same = same + 1e3 * torch.eye(len(xy))[..., None]
    heat = orpm.heat_of_all(xy, seen, SCENE, CELLS)
    fields = orpm.affinity_fields(xy, seen, SCENE, MUPOTS17, CELLS)
    return xyz, xy, seen, heat, fields, bool(same.min() > 28)


def test_people_are_put_together_from_planted_maps():
    told_apart = 0
    for seed in range(40):
        xyz, xy, seen, heat, fields, clear = planted(seed)
        if not clear:
            continue
        told_apart += 1
        location, _ = RedundantMap().target(xy, xyz, SCENE, CELLS)
        maps = orpm.ORPMMaps(heat[None], fields[None], location[None])
        image, space = orpm.people(maps, SCENE)[0]
        assert image.xy.shape[0] == 3
        order = (image.xy[:, None, 0] - xy[None, :, 0]).norm(dim=-1).argmin(1)
        assert sorted(order.tolist()) == [0, 1, 2]
        assert ((image.conf > 0) == seen[order]).all()
        assert ((image.xy - xy[order]).norm(dim=-1) * seen[order]).max() < 6
        error = (space.xyz - (xyz - xyz[:, [MUPOTS17.index("pelvis")]])[order]).norm(dim=-1)
        assert error.max() < 1e-3, seed
    assert told_apart >= 10


def test_joints_that_were_not_found_lie_where_their_3d_is_seen():
    """And everybody stands where the root is said to be."""
    xyz, xy, seen, heat, fields, _ = planted(next(seed for seed in range(40) if planted(seed)[-1]))
    location, _ = RedundantMap().target(xy, xyz, SCENE, CELLS)
    maps = orpm.ORPMMaps(heat[None], fields[None], location[None])

    class Planted(SceneRegressor):
        def forward(self, image):
            return maps

    net = Planted("planted", orpm.orpm_lite(), RedundantMap(), SCENE, 8, 1.0)
    K = torch.tensor([[[500.0, 0, 319.5], [0, 500, 179.5], [0, 0, 1]]])
    found = net.regress(torch.zeros(1, 3, *SCENE), scene_views(K, torch.tensor([SCENE]).float(), SCENE))[0]
    pelvis = MUPOTS17.index("pelvis")
    assert found.xyz[:, pelvis].abs().max() == 0
    missing = found.conf == 0
    assert missing.sum() == (~seen).sum() == 1
    uvw = (found.xyz + found.root[:, None]) @ K[0].mT
    torch.testing.assert_close((uvw[..., :2] / uvw[..., 2:])[missing], found.xy[missing])
    assert (found.xy[missing] - xy[~seen]).norm() < 10


def test_fields():
    xy = torch.tensor([[[100.0, 80.0]] * 17])
    xy[0, MUPOTS17.index("left_knee")] = torch.tensor([300.0, 80.0])
    xy[0, MUPOTS17.index("left_ankle")] = torch.tensor([300.0, 230.0])
    visible = torch.ones(1, 17, dtype=torch.bool)
    fields = orpm.affinity_fields(xy, visible, SCENE, MUPOTS17, CELLS)
    bone = MUPOTS17.bones.index((MUPOTS17.index("left_knee"), MUPOTS17.index("left_ankle")))
    cell = lambda x, y: (int((y + 0.5) / 8), int((x + 0.5) / 8))
    assert torch.equal(fields[(bone, slice(None), *cell(300, 150))], torch.tensor([0.0, 1.0]))
    assert fields[(bone, slice(None), *cell(330, 150))].abs().max() == 0
    assert fields[(bone, slice(None), *cell(300, 270))].abs().max() == 0
    visible[0, MUPOTS17.index("left_ankle")] = False
    assert orpm.affinity_fields(xy, visible, SCENE, MUPOTS17, CELLS)[bone].abs().max() == 0
    # Where two people's bones cross, the mean of both directions.
    crossed = torch.cat([xy, xy])
    crossed[1, MUPOTS17.index("left_knee")] = torch.tensor([300.0, 230.0])
    crossed[1, MUPOTS17.index("left_ankle")] = torch.tensor([300.0, 80.0])
    fields = orpm.affinity_fields(crossed, torch.ones(2, 17, dtype=torch.bool), SCENE, MUPOTS17, CELLS)
    assert fields[(bone, slice(None), *cell(300, 150))].abs().max() == 0


def test_nobody_and_orpm_sizes():
    empty = orpm.find_people(torch.zeros(17, 45, 80), torch.zeros(16, 2, 45, 80))
    assert empty[0].shape == (0, 17, 2)
    with torch.device("meta"):
        maps = orpm.orpm()(torch.zeros(2, 3, 320, 512))
    assert [m.shape for m in maps] == [(2, 17, 40, 64), (2, 16, 2, 40, 64), (2, 17, 3, 40, 64)]


# ---- DconvMP -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("to", ["root", "parent"])
def test_targets_come_back(to):
    poses = stick_poses(20).double() + torch.tensor([0.3, 0.1, 4.0])
    target = dconvmp.PoseTarget(relative_to=to)
    assert target.encode(poses).abs().max() < 1
    torch.testing.assert_close(target.decode(target.encode(poses)), poses - poses[:, :1], rtol=0, atol=1e-13)


def test_windows():
    """Eight windows of 28 pixels each way have their centres at 6.5, 20.5, ...: each overlaps its neighbours by half."""
    held = dconvmp.Windows().hold(torch.tensor([[[6.5, 20.5], [13.0, 111.0], [-50.0, 3.0]]]), (112, 112))
    assert held.shape == (1, 3, 8, 8)
    assert held[0, 0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
    assert held[0, 1].nonzero().tolist() == [[7, 0], [7, 1]]
    assert not held[0, 2].any()


def rendered(poses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Stick figures of 112 x 112 pixels, every bone in a colour of its own, and the pixels of their joints."""
    import cv2

    xy = 56 + 52 * poses[..., :2] / 1.1
    images = []
    for figure in xy.numpy():
        image = np.zeros((112, 112, 3), np.uint8)
        for n, (a, b) in enumerate(H36M17.bones):
            colour = (60 + 12 * n, 255 - 14 * n, 100 + (n * 53) % 150)
            cv2.line(image, *(tuple(int(v) for v in figure[k].round()) for k in (a, b)), colour, 2)
        images.append(image)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255 - 0.2, xy


def test_it_learns_rendered_figures_in_both_ways():
    poses = stick_poses(4, seed=3)
    images, xy = rendered(poses)
    target, held = dconvmp.PoseTarget(relative_to="parent"), dconvmp.Windows().hold(xy, (112, 112))
    weight = torch.ones(4, 17)
    for scheme, steps in ((dconvmp.MULTITASK, (80,)), (dconvmp.PRETRAINED, (20, 120))):
        torch.manual_seed(0)
        net = dconvmp.DconvMP(width=128, dropout=0.0)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        first = dconvmp.detection_loss(net(images).windows, held, weight).item()
        for phase, count in zip(scheme, steps, strict=True):
            optimizer = torch.optim.Adam(net.parameters(), 1e-3)
            for _ in range(count):
                optimizer.zero_grad()
                dconvmp.loss(net(images), target.encode(poses), held, weight, weight, phase).backward()
                optimizer.step()
            if phase.regression == 0:  # detection alone has changed the trunk and left the other head as it was
                same = {key: torch.equal(value, before[key]) for key, value in net.state_dict().items()}
                assert all(equal for key, equal in same.items() if key.startswith("regression"))
                assert not any(equal for key, equal in same.items() if key.startswith("trunk"))
                assert dconvmp.detection_loss(net(images).windows, held, weight) < 0.5 * first
        error = (target.decode(net(images).pose) - poses).norm(dim=-1).mean()
        assert error < 0.03  # of 0.2 between figures
