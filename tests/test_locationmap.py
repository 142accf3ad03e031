"""Location maps: VNect's of one person, and ORPM's of crowds with hidden joints, which VNect's read-out cannot read."""

import pytest
import torch

from body3d.codecs.locationmap import (
    LIMBS,
    LocationMap,
    LocationMaps,
    RedundantMap,
    from_parents,
    read_location,
    to_parents,
)
from body3d.skeletons import H36M17, MUPOTS17, MUPOTS21

SIZE, GRID = (368, 368), (46, 46)
PELVIS = MUPOTS21.index("pelvis")


def person(batch: int = 4, seed: int = 0, joints: int = 21) -> tuple[torch.Tensor, torch.Tensor]:
    """Crop pixels, and joints in the camera's frame (m)."""
    g = torch.Generator().manual_seed(seed)
    xyz = torch.randn(batch, joints, 3, generator=g) * 0.4 + torch.tensor([0.3, -0.2, 4.0])
    return 10 + 345 * torch.rand(batch, joints, 2, generator=g), xyz


# ---- relative to parents -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("joints", [H36M17, MUPOTS17, MUPOTS21], ids=lambda j: j.name)
def test_to_parents_and_back(joints):
    torch.manual_seed(0)
    xyz = torch.randn(5, len(joints), 3, dtype=torch.float64)
    back = from_parents(to_parents(xyz, joints), joints)
    torch.testing.assert_close(back, xyz - xyz[:, [joints.index("pelvis")]], rtol=0, atol=1e-14)
    knee, ankle = joints.index("left_knee"), joints.index("left_ankle")
    torch.testing.assert_close(to_parents(xyz, joints)[:, ankle], xyz[:, ankle] - xyz[:, knee])


# ---- one person ----------------------------------------------------------------------------------------------------
def test_encode_and_decode():
    """Within half a cell in the image; exact in space, where maps are constant."""
    codec, (xy, xyz) = LocationMap(), person()
    got_xy, got_xyz, conf = codec.decode(codec.target(xy, xyz, SIZE, GRID), SIZE)
    assert (got_xy - xy).abs().max() <= 4
    torch.testing.assert_close(got_xyz, xyz - xyz[:, [PELVIS]], rtol=0, atol=1e-5)
    assert conf.min() > 0.8


def test_maps_are_in_centimetres_and_say_bones_too():
    codec, (xy, xyz) = LocationMap(), person(1)
    maps = codec.target(xy, xyz, SIZE, GRID)
    wrist, elbow = MUPOTS21.index("left_wrist"), MUPOTS21.index("left_elbow")
    torch.testing.assert_close(maps.location[0, wrist, :, 20, 30], 100 * (xyz[0, wrist] - xyz[0, PELVIS]))
    torch.testing.assert_close(maps.delta[0, wrist, :, 3, 4], 100 * (xyz[0, wrist] - xyz[0, elbow]))


def test_the_location_loss_has_no_gradient_off_the_heat_maps():
    codec, (xy, xyz) = LocationMap(), person(2)
    maps = LocationMaps(*(torch.randn_like(m).requires_grad_() for m in codec.target(xy, xyz, SIZE, GRID)))
    ones = torch.ones(2, 21)
    known = ones.clone()
    known[1] = 0
    codec.loss(maps, xy, xyz, ones, known, SIZE).backward()
    support = codec.heat(xy, SIZE, GRID) > 0
    assert 0 < support[0, 0].sum() < 100
    for m in (maps.location, maps.delta):
        assert (m.grad[0][~support[0].unsqueeze(1).expand_as(m.grad[0])] == 0).all()
        assert (m.grad[0][support[0].unsqueeze(1).expand_as(m.grad[0])] != 0).all()
        assert m.grad[1].abs().max() == 0  # of that image only 2D is known
    assert maps.heat.grad[1].abs().max() > 0
    cells = (xy + 0.5) / 8 - 0.5
    far = (torch.arange(46) - cells[0, 0, 0]).abs() > 3 * codec.sigma
    assert not support[0, 0][:, far].any()


def test_the_loss_is_zero_at_the_target_alone():
    codec, (xy, xyz) = LocationMap(), person(2)
    ones, target = torch.ones(2, 21), codec.target(xy, xyz, SIZE, GRID)
    assert codec.loss(target, xy, xyz, ones, ones, SIZE) < 1e-9
    for part in range(3):
        off = [m + 0.1 * (i == part) for i, m in enumerate(target)]
        assert codec.loss(LocationMaps(*off), xy, xyz, ones, ones, SIZE) > 1e-4


def test_reading_is_at_the_nearest_cell():
    location = torch.arange(12.0).view(1, 1, 1, 3, 4).expand(1, 2, 3, 3, 4)
    cells = torch.tensor([[[1.4, 1.6], [9.0, -3.0]]])
    assert torch.equal(read_location(location, cells)[0, :, 0], torch.tensor([9.0, 3.0]))


# ---- several people ------------------------------------------------------------------------------------------------
CODEC = RedundantMap()
SCENE, CELLS = (360, 640), (45, 80)
FOCAL = 500.0
STANDING = {
    "pelvis": (0.0, 0.0), "spine": (0.0, -0.25), "neck": (0.0, -0.5), "head": (0.0, -0.65), "head_top": (0.0, -0.82),
    "shoulder": (0.18, -0.48), "elbow": (0.3, -0.22), "wrist": (0.36, 0.04),
    "hip": (0.12, 0.03), "knee": (0.15, 0.45), "ankle": (0.16, 0.88),
}  # fmt: skip


NAMES = [name.removeprefix("right_").removeprefix("left_") for name in MUPOTS17.names]
SIDE = torch.tensor([[-1.0 if name.startswith("right") else 1.0, 1.0] for name in MUPOTS17.names])
BONES = to_parents(torch.nn.functional.pad(torch.tensor([STANDING[name] for name in NAMES]) * SIDE, (0, 1)), MUPOTS17)
STIFF = torch.tensor([0.2 if name in ("pelvis", "spine", "neck", "hip") else 1.0 for name in NAMES])
CHAIN = from_parents(torch.eye(17)[..., None].expand(-1, -1, 3), MUPOTS17)[..., 0].mT  # joints are sums of bones


def stick_person(g: torch.Generator, x: float, z: float) -> torch.Tensor:
    """Somebody who stands somehow at (x, 0, z) metres: every bone of the limbs leans its own way."""
    lean = 0.12 * torch.randn(len(BONES), 3, generator=g) * STIFF[:, None]
    return CHAIN @ (BONES + lean) + torch.tensor([x, 0.1, z])


def project(xyz: torch.Tensor) -> torch.Tensor:
    return FOCAL * xyz[..., :2] / xyz[..., 2:] + torch.tensor([319.5, 179.5])


def crowd(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Three people; an end of a limb of the farthest lies behind the same end of the nearest one's, and is hidden.

    Joints (m, the camera's frame), pixels, whether a joint is seen, and which one is hidden. Everybody has a torso to read.
    """
    g = torch.Generator().manual_seed(seed)
    for _ in range(1000):
        depths = torch.tensor([2.6, 3.2, 3.9])
        xs = torch.tensor([-0.15, -1.1, 0.45]) + 0.15 * torch.randn(3, generator=g)
        xyz = torch.stack([stick_person(g, x.item(), z.item()) for x, z in zip(xs, depths, strict=True)])
        limb = LIMBS[1 + int(torch.randint(4, (1,), generator=g))]
        hidden = MUPOTS17.index(limb[-1])
        # Move the far person's wrist or ankle along its ray to where the near one's is seen.
        xy = project(xyz)
        bone = xyz[2, MUPOTS17.index(limb[-2])]
        depth = bone[2] + 0.1
        target = xy[0, hidden] + torch.tensor([2.0, -2.0])
        xyz[2, hidden] = torch.cat([(target - torch.tensor([319.5, 179.5])) / FOCAL * depth, depth[None]])
        xy = project(xyz)
        inside = ((xy > 4) & (xy < torch.tensor([635.0, 355.0]))).all()
        torsos = xy[:, [MUPOTS17.index(n) for n in CODEC.anchors]].flatten(0, 1)
        apart = torch.cdist(torsos, torsos) + 1e3 * torch.eye(6)
        if inside and apart.min() > 40 and (xyz[2, hidden] - bone).norm() < 1:
            break
    else:
        raise AssertionError("no such crowd")
    seen = torch.ones(3, len(MUPOTS17), dtype=torch.bool)
    seen[2, hidden] = False
    return xyz, xy, seen, hidden


def relative(xyz: torch.Tensor) -> torch.Tensor:
    return xyz - xyz[:, [MUPOTS17.index("pelvis")]]


def read_alone(location: torch.Tensor, xy: torch.Tensor) -> torch.Tensor:
    """VNect's read-out: every joint at its own place, as if there were nobody else."""
    cells = (xy + 0.5) / 8 - 0.5
    xyz = CODEC.unit * read_location(location.expand(len(xy), -1, -1, -1, -1), cells)
    return relative(xyz)


def test_crowds_are_read_correctly_where_vnect_fails():
    failed = 0
    for seed in range(100):
        xyz, xy, seen, hidden = crowd(seed)
        location, _ = CODEC.target(xy, xyz, SCENE, CELLS)
        hidden_xy = torch.where(seen.unsqueeze(-1), xy, torch.nan_to_num(xy * torch.nan))  # no place is known
        got, legible = CODEC.read(location, hidden_xy, seen.float(), SCENE)
        assert legible.all()
        error = (got - relative(xyz)).norm(dim=-1)
        assert error.max() < 1e-3, (seed, error.max(), MUPOTS17.names[int(error.amax(0).argmax())])
        # Even told where the hidden joint is, it reads the one in front.
        alone = (read_alone(location, xy) - relative(xyz)).norm(dim=-1)
        failed += bool(alone[2, hidden] > 0.03)
    assert failed == 100


def test_without_crowds_both_read_the_same():
    g = torch.Generator().manual_seed(0)
    xyz = torch.stack([stick_person(g, -0.9, 3.4), stick_person(g, 0.9, 3.4)])
    xy = project(xyz)
    location, mask = CODEC.target(xy, xyz, SCENE, CELLS)
    got, legible = CODEC.read(location, xy, torch.ones(2, 17), SCENE)
    assert legible.all()
    torch.testing.assert_close(got, relative(xyz), rtol=0, atol=1e-5)
    own = [name != "spine" for name in MUPOTS17.names]  # the spine is written at neck and pelvis only
    torch.testing.assert_close(read_alone(location, xy)[:, own], got[:, own], rtol=0, atol=1e-5)
    assert 0.001 < mask.float().mean() < 0.2
    assert location[~mask.unsqueeze(1).expand_as(location)].abs().max() == 0


def test_where_a_pose_is_written():
    """A wrist's maps: at the arm and at the torso, not at the other arm; a spine's: at neck and pelvis."""
    g = torch.Generator().manual_seed(1)
    xyz = stick_person(g, 0.0, 3.2)[None]
    xy = project(xyz)
    _, mask = CODEC.target(xy, xyz, SCENE, CELLS)
    at = lambda channel, place: mask[MUPOTS17.index(channel)][
        tuple(((xy[0, MUPOTS17.index(place)] + 0.5) / 8).floor().long().flip(0))
    ]
    for place in ("right_wrist", "right_elbow", "right_shoulder", "neck", "pelvis"):
        assert at("right_wrist", place)
    for place in ("left_wrist", "right_knee", "head_top"):
        assert not at("right_wrist", place)
    assert at("spine", "neck") and at("spine", "pelvis") and not at("spine", "left_ankle")


def test_a_limb_is_read_at_its_outermost_valid_joint():
    """Maps that hold their own column and row say where they were read."""
    rows, columns = torch.meshgrid(torch.arange(45.0), torch.arange(80.0), indexing="ij")
    location = torch.stack([columns, rows, torch.zeros(45, 80)]).expand(17, 3, 45, 80) / CODEC.unit
    at = MUPOTS17.indices
    xy = torch.stack([40.0 + 32 * torch.arange(17), 60.0 + 14 * torch.arange(17)], -1)[None]
    cell = ((xy[0] + 0.5) / 8).floor()
    conf = torch.ones(1, 17)

    def read_at(limb: tuple[str, ...], place: str) -> bool:
        expected = cell[at((place,))] - cell[at(("neck",))]  # where the root is read
        got = CODEC.read(location, xy, conf, SCENE)[0][0]
        return bool(((got[at(limb), :2] - expected).abs() < 1e-3).all())

    arm = ("left_shoulder", "left_elbow", "left_wrist")
    assert read_at(arm, "left_wrist") and read_at(("right_hip", "right_knee"), "right_ankle")
    conf[:, at(("left_wrist",))] = 0
    assert read_at(arm, "left_elbow")
    conf[:, at(arm)] = 0
    assert read_at(arm, "neck")


def test_the_nearer_person_is_written():
    g = torch.Generator().manual_seed(2)
    far = stick_person(g, 0.0, 3.0)
    near = far * torch.tensor([0.8, 0.8, 0.8])  # the same image, a smaller person in front
    xyz = torch.stack([far, near])
    location, _ = CODEC.target(project(xyz), xyz, SCENE, CELLS)
    got, _ = CODEC.read(location, project(xyz), torch.ones(2, 17), SCENE)
    torch.testing.assert_close(got, relative(near[None]).expand(2, -1, -1), rtol=0, atol=1e-5)


def test_a_hidden_limb_is_read_at_the_torso_and_nobody_without_joints():
    g = torch.Generator().manual_seed(3)
    xyz = stick_person(g, 0.0, 3.0)[None]
    location, _ = CODEC.target(project(xyz), xyz, SCENE, CELLS)
    conf = torch.ones(1, 17)
    conf[:, MUPOTS17.indices(LIMBS[1])] = 0
    conf[:, MUPOTS17.index("neck")] = 0
    got, legible = CODEC.read(location, project(xyz), conf, SCENE)
    torch.testing.assert_close(got, relative(xyz), rtol=0, atol=1e-5)
    assert legible.all()
    assert not CODEC.read(location, project(xyz), torch.zeros(1, 17), SCENE)[1].any()
    empty = CODEC.target(torch.zeros(0, 17, 2), torch.zeros(0, 17, 3), SCENE, CELLS)
    assert empty[0].shape == (17, 3, 45, 80) and not empty[1].any()


def test_the_redundant_loss_looks_at_what_is_written():
    xyz, xy, _, _ = crowd(0)
    location, mask = CODEC.target(xy, xyz, SCENE, CELLS)
    guess = torch.randn(1, *location.shape).requires_grad_()
    CODEC.loss(guess, location[None], mask[None]).backward()
    assert ((guess.grad[0] != 0).any(1) == mask).all()
    assert CODEC.loss(location[None], location[None], mask[None]) == 0
