"""MoveNet: its codec, its losses, and following a person. Published outputs: tests/test_known_networks.py and _answers.py."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from body3d.bottomup.movenet import CentreOffsets, MoveNet, MoveNetMaps, SmartCrop, inverse_distance, movenet, track
from body3d.codecs.base import Codec, Mirrors
from body3d.errors import InputError
from body3d.joint_set import tree
from body3d.nets.small import SmallTrunk
from body3d.posenet import PLAIN, PoseNet, on_trunk
from body3d.skeletons import COCO17, MPII16
from body3d.types import Keypoints2D

TOY = tree("toy", ("left_hip<right_hip", "left_shoulder<left_hip", "right_shoulder<right_hip", "nose", "right_hip"))
SIZE, GRID = (96, 96), (24, 24)
OWN, PORT = CentreOffsets(), CentreOffsets(released=True)


def perfect(codec, xy, weight=None, size=SIZE, grid=GRID):
    """Maps that say exactly this; regression and offset at the cells that the loss looks at, 7 elsewhere."""
    weight = torch.ones(xy.shape[:2]) if weight is None else weight
    true = codec.target(xy, weight, size, grid)
    maps = torch.full((2, *xy.shape[:2], 2, *grid), 7.0)
    for b in range(len(xy)):
        for j in range(xy.shape[1]):
            pairs = ((true.guess[b, j], true.centre_cell[b, 0]), (true.xy[b, j], true.cell[b, j]))
            for k, (place, cell) in enumerate(pairs):
                x, y = cell.long().tolist()
                if 0 <= x < grid[1] and 0 <= y < grid[0]:
                    maps[k, b, j, :, y, x] = place - cell
    return MoveNetMaps(true.heat, true.centre, *maps)


def people(n=8, size=SIZE, joints=5, seed=0, margin=6):
    random = torch.Generator().manual_seed(seed)
    return margin + torch.rand(n, joints, 2, generator=random) * (torch.tensor(size[::-1]) - 1 - 2 * margin)


# ---- the codec -----------------------------------------------------------------------------------------------------
def test_published_sizes():
    with torch.device("meta"), torch.no_grad():
        net = movenet().eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 192, 192))
    assert sum(p.numel() for p in net.parameters()) == 1_912_118
    assert counter.get_total_flops() / 2e9 == pytest.approx(0.229, abs=0.001)


@pytest.mark.parametrize("codec", [OWN, PORT])
def test_what_is_encoded_is_read(codec):
    assert isinstance(codec, Codec) and isinstance(codec, Mirrors)
    xy = people()
    read, conf = codec.decode(perfect(codec, xy), SIZE)
    torch.testing.assert_close(read, xy, atol=1e-4, rtol=0)
    torch.testing.assert_close(conf, torch.ones(8, 5))


def test_where_cells_are():
    """Pixel 8 of 96 is in the third cell of four pixels, whose middle is at 9.5."""
    xy = torch.tensor([[[8.0, 11.0]]])
    own, port = (codec.target(xy, torch.ones(1, 1), SIZE, GRID) for codec in (OWN, PORT))
    assert own.cell.tolist() == port.cell.tolist() == [[[2.0, 2.0]]]
    assert (own.xy - own.cell).tolist() == [[[-0.375, 0.375]]]
    assert (port.xy - port.cell).tolist() == [[[0.0, 0.75]]]


def test_the_released_targets():
    """The joint's cell is pointed at; heat falls with the distance, in circles that grow with the person."""
    xy = torch.tensor([[[20.0, 20], [40, 30]], [[10, 10], [60, 60]], [[4, 4], [90, 90]]])
    true = PORT.target(xy, torch.ones(3, 2), SIZE, GRID)
    assert torch.equal(true.guess, true.cell)
    for b, radius in enumerate((4, 5, 6)):
        x, y = true.cell[b, 0].long().tolist()
        assert true.heat[b, 0, y, x] == 1
        assert true.heat[b, 0, y, x + 2].item() == pytest.approx(math.exp(-6 / radius))
        assert true.heat[b, 0, y, x + radius] > 0.04 and true.heat[b, 0, y, x + radius + 1] == 0
        x, y = true.centre_cell[b, 0].long().tolist()
        assert true.centre[b, 0, y - radius - 1, x] > 0.04 and true.centre[b, 0, y, x].item() == 1


def test_of_two_people_the_one_nearer_the_middle():
    """Also where the other is seen more clearly; joints are not mixed."""
    random = torch.Generator().manual_seed(3)
    near = 48 + 8 * torch.rand(1, 5, 2, generator=random)
    far = 14 + 8 * torch.rand(1, 5, 2, generator=random)
    a, b = perfect(OWN, near), perfect(OWN, far)
    both = MoveNetMaps(
        torch.maximum(0.6 * a.heat, b.heat),
        torch.maximum(0.6 * a.centre, b.centre),
        *(torch.where(x == 7, y, x) for x, y in ((a.regression, b.regression), (a.offset, b.offset))),
    )
    xy, conf = OWN.decode(both, SIZE)
    torch.testing.assert_close(xy, near, atol=1e-4, rtol=0)
    torch.testing.assert_close(conf, torch.full((1, 5), 0.6))
    # Without the centre's weights it is the other.
    xy = OWN.cells(both, torch.ones(1, 1, *GRID))[0]
    torch.testing.assert_close(4 * (xy + 0.5) - 0.5, far, atol=1e-3, rtol=0)


def test_reading_random_maps():
    """Against the rule written out in loops."""
    random = np.random.default_rng(0)
    grid = (10, 14)
    heat, centre = random.uniform(0, 1, (3, 2, *grid)), random.uniform(0, 1, (3, 1, *grid))
    heat[0, 1] *= 0.09  # nothing to see of this one
    regression, offset = random.normal(0, 4, (3, 2, 2, *grid)), random.normal(0, 1, (3, 2, 2, *grid))
    raw = MoveNetMaps(*(torch.from_numpy(x) for x in (heat, centre, regression, offset)))
    xy, conf = OWN.cells(raw)
    cells = [(y, x) for y in range(grid[0]) for x in range(grid[1])]
    for b in range(3):
        cy, cx = max(cells, key=lambda c: centre[b, 0][c] / (math.dist(c, (4.5, 6.5)) + 1.8))
        for j in range(2):
            guess = cx + regression[b, j, 0, cy, cx], cy + regression[b, j, 1, cy, cx]
            near = lambda c, g=guess, m=heat[b, j]: (m[c] if m[c] >= 0.1 else 0) / (math.dist(c, g[::-1]) + 1.8)
            y, x = max(cells, key=near)
            if (b, j) == (0, 1):
                expected = [min(max(g, 0), n - 1) for g, n in zip(guess, grid[::-1], strict=True)]
                x, y = (round(v) for v in expected)
            else:
                expected = [x + offset[b, j, 0, y, x], y + offset[b, j, 1, y, x]]
            assert xy[b, j].tolist() == pytest.approx(expected)
            assert conf[b, j].item() == pytest.approx(heat[b, j, y, x])


@pytest.mark.parametrize("codec", [OWN, PORT])
def test_mirroring(codec):
    """Maps of the mirrored image, turned back, say what those of the image say."""
    flip = list(TOY.flip)
    xy = people()
    turned = torch.stack([SIZE[1] - 1 - xy[..., 0], xy[..., 1]], -1)[:, flip]
    back = codec.mirror(perfect(codec, turned), flip)
    torch.testing.assert_close(codec.decode(back, SIZE)[0], xy, atol=1e-3, rtol=0)
    if codec is OWN:
        for a, b in zip(back, perfect(codec, xy), strict=True):
            same = (a - b).abs() < 1e-4
            assert (same | (a == -7) | (a == 7)).all()


def test_inverse_distance():
    weight = inverse_distance(torch.tensor([[[24.0, 24.0]]]), (48, 48))
    assert weight[0, 0, 24, 24] == pytest.approx(1 / 1.8) and weight[0, 0, 0, 24] == pytest.approx(1 / 25.8)


def test_other_trunks_are_refused():
    with pytest.raises(InputError, match="no head on another trunk"):
        on_trunk(SmallTrunk((8, 8, 8, 8), (1, 1, 1, 1), 8), OWN, TOY, SIZE)


# ---- the loss ------------------------------------------------------------------------------------------------------
def loss(codec, raw, xy, weight=None):
    return codec.loss(raw, xy, torch.ones(xy.shape[:2]) if weight is None else weight, SIZE).item()


@pytest.mark.parametrize("released", [False, True])
def test_the_parts_of_the_loss(released):
    codec = CentreOffsets(released, bones=1.0)
    xy = people(2)
    raw = perfect(codec, xy)
    assert loss(codec, raw, xy) == pytest.approx(0, abs=1e-4)
    true = codec.target(xy, torch.ones(2, 5), SIZE, GRID)

    moved = raw.heat.clone()
    moved[1, 3, 5, 6] += 0.5
    expected = 0.25 * (1 + 8 * raw.heat[1, 3, 5, 6]) / 10  # of 10 joints
    assert loss(codec, raw._replace(heat=moved), xy) == pytest.approx(expected.item(), rel=1e-4)

    moved = raw.centre.clone()
    x, y = true.centre_cell[0, 0].long().tolist()
    moved[0, 0, y, x] -= 0.3
    assert loss(codec, raw._replace(centre=moved), xy) == pytest.approx(0.09 * 9 / 2, rel=1e-3)

    x, y = true.cell[0, 2].long().tolist()
    moved = raw.offset.clone()
    moved[0, 2, :, y, x] += torch.tensor([0.25, -0.5])
    assert loss(codec, raw._replace(offset=moved), xy) == pytest.approx(0.75 / 10, rel=1e-3)

    x, y = true.centre_cell[1, 0].long().tolist()
    moved = raw.regression.clone()
    moved[1, :, :, y, x] += torch.tensor([1.0, -2.0])  # all alike: no distance between joints changes
    assert loss(codec, raw._replace(regression=moved), xy) == pytest.approx(3.0 * 3 / 2, rel=1e-3)


def test_the_loss_of_bones():
    codec = CentreOffsets(bones=2.0, parts=(0.0, 0.0, 0.0, 0.0))
    xy = people(1)
    raw = perfect(codec, xy)
    true = codec.target(xy, torch.ones(1, 5), SIZE, GRID)
    x, y = true.centre_cell[0, 0].long().tolist()
    raw.regression[0, 0, 0, y, x] += 1.5
    said = true.xy[0].clone()
    said[0, 0] += 1.5
    pairs = [(i, j) for i in range(5) for j in range(i)]
    change = [abs((said[i] - said[j]).norm() - (true.xy[0, i] - true.xy[0, j]).norm()) for i, j in pairs]
    assert loss(codec, raw, xy) == pytest.approx(2 * sum(change).item() / 10, rel=1e-4)


def test_the_focal_loss():
    """CenterNet's: 1 at the peak is a positive, all else negatives by (1 - target)^4."""
    codec = CentreOffsets(maps="focal", parts=(1.0, 0.0, 0.0, 0.0))
    xy = people(1, joints=1)
    true = codec.target(xy, torch.ones(1, 1), SIZE, GRID)
    pred = torch.rand(1, 1, *GRID, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    raw = perfect(codec, xy)._replace(heat=pred)
    total = 0.0
    for p, t in zip(pred.flatten().tolist(), true.heat.flatten().tolist(), strict=True):
        total -= (1 - p) ** 2 * math.log(p) if t == 1 else (1 - t) ** 4 * p**2 * math.log(1 - p)
    assert loss(codec, raw, xy) == pytest.approx(total, rel=1e-4)


def test_unknown_joints_teach_nothing():
    codec = CentreOffsets(bones=1.0)
    xy, weight = people(2), torch.ones(2, 5)
    weight[0, 1] = 0
    raw = MoveNetMaps(*(torch.rand(2, *shape, *GRID, requires_grad=True) for shape in ((5,), (1,), (5, 2), (5, 2))))
    codec.loss(raw, xy, weight, SIZE).backward()
    assert not raw.heat.grad[0, 1].any() and not raw.regression.grad[0, 1].any() and not raw.offset.grad[0, 1].any()
    assert raw.heat.grad[1, 1].any() and raw.regression.grad[1, 1].any() and raw.offset.grad[1, 1].any()
    elsewhere = xy.clone()
    elsewhere[0, 1] += 30
    assert codec.loss(raw, xy, weight, SIZE) == codec.loss(raw, elsewhere, weight, SIZE)
    assert codec.loss(raw, xy, torch.zeros(2, 5), SIZE) == 0


def test_joints_beside_the_image():
    """They can be regressed, but have neither heat nor offset."""
    xy = people(1)
    xy[0, 2] = torch.tensor([-20.0, 40.0])
    true = OWN.target(xy, torch.ones(1, 5), SIZE, GRID)
    assert true.inside.tolist() == [[True, True, False, True, True]] and not true.heat[0, 2].any()
    assert loss(OWN, perfect(OWN, xy), xy) == pytest.approx(0, abs=1e-4)


# ---- where to look next --------------------------------------------------------------------------------------------
def seen(conf=1.0, **moved):
    """Hips about (100, 120), shoulders 40 above them."""
    places = {
        "left_hip": (110, 120),
        "right_hip": (90, 120),
        "left_shoulder": (115, 80),
        "right_shoulder": (85, 80),
        "nose": (100, 60),
    }
    xy = torch.tensor([(places | moved)[name] for name in TOY.names], dtype=torch.double)
    return Keypoints2D(xy, torch.full((5,), conf, dtype=torch.double), TOY)


def test_the_rule_of_the_next_crop():
    rule, size = SmartCrop(), (240, 320)
    # Torso: 40 up, 1.9 times; the nose, 60 up, is less at 1.2 times.
    assert rule.next_box(seen(), size).tolist() == pytest.approx([100 - 76, 120 - 76, 100 + 76, 120 + 76])
    # A far joint counts 1.2 times, if it is sure.
    far = seen(nose=(100, 30))
    assert rule.next_box(far, size).tolist() == pytest.approx([-8, 12, 208, 228])
    far.conf[TOY.index("nose")] = 0.1
    assert rule.next_box(far, size).tolist() == pytest.approx([24, 44, 176, 196])
    # One sure hip and one sure shoulder are enough; none of either is not.
    half = seen()
    half.conf[TOY.indices(("left_hip", "right_shoulder"))] = 0.1
    assert rule.next_box(half, size) is not None
    half.conf[TOY.index("right_hip")] = 0.2
    assert rule.next_box(half, size) is None
    assert rule.next_box(seen(0.1), size) is None
    # Wider than the longer side: the whole image.
    assert rule.next_box(seen(nose=(100, -100)), (160, 160)) is None
    # No further than the furthest edge, here the upper and the lower one.
    near = seen(nose=(100, 10))
    assert rule.next_box(near, (241, 201)).tolist() == pytest.approx([100 - 120.5, -0.5, 100 + 120.5, 240.5])
    assert rule.next_box(seen(**dict.fromkeys(TOY.names, (50, 50))), size) is None  # nothing to be seen in a point
    with pytest.raises(InputError, match="toy2 has no left_hip, right_hip, left_shoulder, right_shoulder: a person"):
        rule.next_box(Keypoints2D(torch.zeros(1, 2), torch.ones(1), tree("toy2", ("nose",))), size)


COLOURS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1]])


class Dots(nn.Module):
    """Says where the dots of each joint's colour are, in MoveNet's maps: a network without weights."""

    def __init__(self):
        super().__init__()
        self.looked = []

    def forward(self, image):
        bright = image.norm(dim=1, keepdim=True)
        alike = torch.einsum(
            "bchw,jc->bjhw", image / bright.clamp_min(1e-6), COLOURS / COLOURS.norm(dim=1, keepdim=True)
        )
        weight = bright * (alike > 0.95) * (bright > 0.05)
        total = weight.sum((2, 3))
        steps = torch.arange(image.shape[-1], dtype=image.dtype)
        xy = torch.stack([(weight.sum(2) * steps).sum(-1), (weight.sum(3) * steps).sum(-1)], -1) / total[
            ..., None
        ].clamp_min(1e-6)
        maps = perfect(OWN, xy, (total > 1).to(image), SIZE, GRID)
        return [maps._replace(heat=maps.heat * (total > 1)[..., None, None])]


def frame(xy, size=(240, 320)):
    y, x = np.mgrid[: size[0], : size[1]]
    image = np.zeros((*size, 3))
    for place, colour in zip(xy if xy is not None else (), COLOURS.numpy(), strict=False):
        image += np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / 18)[..., None] * colour
    return np.round(255 * image.clip(0, 1)).astype(np.uint8)


BODY = np.array([[10.0, 0], [13, -36], [-13, -36], [0, -54], [-10, 0]])  # in the order of TOY


def test_a_person_is_followed():
    net = PoseNet(Dots(), OWN, TOY, SIZE, PLAIN)
    walk = [np.array([60.0 + 14 * t, 150 - 4 * t]) + BODY * (1 + 0.03 * t) for t in range(10)]
    true = torch.tensor(np.array(walk)).float()
    found, boxes = track(net, map(frame, walk))
    assert (found.xy - true).norm(dim=-1).max() < 1
    assert boxes[0].tolist() == [-0.5, -40.5, 319.5, 279.5]  # all of it, made square
    hips = found.xy[:, TOY.indices(("left_hip", "right_hip"))].mean(1)
    torch.testing.assert_close((boxes[1:, :2] + boxes[1:, 2:]) / 2, hips[:-1], atol=1e-3, rtol=0)
    side = boxes[1:, 2] - boxes[1:, 0]
    torch.testing.assert_close(side, boxes[1:, 3] - boxes[1:, 1])
    assert (side < 200).all() and (side.diff() > 0).all()  # closer, and wider as the person comes nearer
    inside = (true[1:] > boxes[1:, None, :2]) & (true[1:] < boxes[1:, None, 2:])
    assert inside.all()


def test_who_is_lost_is_sought_in_the_whole_image():
    net = PoseNet(Dots(), OWN, TOY, SIZE, PLAIN)
    here, there = np.array([80.0, 140]) + BODY, np.array([250.0, 160]) + BODY
    found, boxes = track(net, [frame(p) for p in (here, here, None, there, there)])
    whole = [torch.equal(box, boxes[0]) for box in boxes]
    assert whole == [True, False, False, True, False]
    assert not found.conf[2].any()
    assert (found.xy[3:] - torch.tensor(there).float()).norm(dim=-1).max() < 1


def test_videos_that_are_none():
    net = PoseNet(Dots(), OWN, TOY, SIZE, PLAIN)
    with pytest.raises(InputError, match="a video without frames"):
        track(net, [])
    with pytest.raises(InputError, match=r"square crops, this network sees 128 x 96"):
        track(PoseNet(Dots(), OWN, TOY, (128, 96), PLAIN), [])
    with pytest.raises(InputError, match="a person is followed by hips and shoulders"):
        track(PoseNet(Dots(), OWN, tree("toy3", ("a", "b", "c", "d", "e")), SIZE, PLAIN), [frame(None)])


# ---- the network ---------------------------------------------------------------------------------------------------
def test_the_network_alone_and_in_a_batch(tmp_path):
    torch.manual_seed(0)
    net = movenet(MPII16, OWN, (64, 64)).eval()
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for whole, one in zip(net(image)[-1], net(image[1:])[-1], strict=True):
            torch.testing.assert_close(one[0], whole[1], rtol=1e-3, atol=1e-3)
    target = Keypoints2D(20 + 24 * torch.rand(2, 16, 2), torch.ones(2, 16), MPII16)
    net.train().loss(image, target).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    torch.save(net.net.state_dict(), tmp_path / "port.pth")
    read = movenet(MPII16, size=(64, 64), weights=tmp_path / "port.pth")
    assert not read.training and read.codec.released
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in read.state_dict().items())
    with pytest.raises(InputError, match=r"port.pth holds .*of another size: header"):
        movenet(COCO17, weights=tmp_path / "port.pth")


@pytest.mark.slow
def test_it_learns_four_images_by_heart():
    torch.manual_seed(0)
    net = PoseNet(MoveNet(len(TOY)), OWN, TOY, SIZE, PLAIN)
    true = people(4)
    images = torch.from_numpy(np.stack([frame(xy.numpy(), SIZE) for xy in true])).permute(0, 3, 1, 2).float() / 255
    target = Keypoints2D(true, torch.ones(4, 5), TOY)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(80):
        optimizer.zero_grad()
        net.loss(images, target).backward()
        optimizer.step()
    assert (net.train().predict(images).xy - true).norm(dim=-1).median() < 1.5
