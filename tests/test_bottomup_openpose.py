import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from body3d.bottomup import openpose
from body3d.bottomup.lightweight_openpose import LightweightOpenPose
from body3d.bottomup.openpose import LIMBS, OpenPose, PartMaps
from body3d.bottomup.people import PLUS, fit_frame, highest, labelled, local_maxima, parabola, square
from body3d.errors import InputError
from body3d.geometry import rescale
from body3d.skeletons import BODY18, COCO17
from body3d.types import Keypoints2D

SIZE = (192, 344)
GRID = (24, 43)
# Half a body height is 1; x is to the image's right, where the left side is.
FIGURE = {
    "nose": (0, -0.88), "left_eye": (0.05, -0.93), "left_ear": (0.11, -0.9), "neck": (0, -0.65),
    "left_shoulder": (0.2, -0.65), "left_elbow": (0.33, -0.35), "left_wrist": (0.4, -0.05),
    "left_hip": (0.13, 0), "left_knee": (0.16, 0.45), "left_ankle": (0.17, 0.9),
}  # fmt: skip


def figure() -> torch.Tensor:
    right = {name.replace("left", "right"): (-x, y) for name, (x, y) in FIGURE.items() if "left" in name}
    places = FIGURE | right
    return torch.tensor([places[name] for name in BODY18.names], dtype=torch.float32)


def crowd(middles, height=140.0, seed=0) -> Keypoints2D:
    """Standing people, each joint up to a fortieth of their height from where it would be."""
    generator = torch.Generator().manual_seed(seed)
    xy = torch.tensor(middles, dtype=torch.float32).reshape(-1, 1, 2) + height / 2 * figure()
    xy = xy + height / 40 * (2 * torch.rand(xy.shape, generator=generator) - 1)
    return Keypoints2D(xy, torch.ones(xy.shape[:2]), BODY18)


def hide(people: Keypoints2D, person: int, *joints: str) -> Keypoints2D:
    conf = people.conf.clone()
    conf[person, BODY18.indices(joints)] = 0
    return Keypoints2D(people.xy, conf, BODY18)


def check(xy, conf, people, pixels):
    """The same people in some order, with the same joints known."""
    assert len(xy) == len(people.xy)
    neck = BODY18.index("neck")
    order = (xy[:, None, neck] - people.xy[None, :, neck]).norm(dim=-1).argmin(1)
    assert sorted(order.tolist()) == list(range(len(xy)))
    known = people.conf[order] > 0
    assert torch.equal(conf > 0, known)
    error = (xy - people.xy[order]).norm(dim=-1)[known]
    assert error.max() < pixels, error.max()
    assert xy[~known].abs().sum() == 0


class Oracle(nn.Module):
    """Maps of people in an image of `image` pixels, drawn at whatever size the network is asked."""

    def __init__(self, people, frame):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.people, self.frame, self.seen = people, frame, []

    def forward(self, picture):
        size = tuple(picture.shape[-2:])
        self.seen.append(picture)
        factor = self.frame.scale * size[0] / self.frame.box[0]
        people = Keypoints2D(rescale(self.people.xy, factor), self.people.conf, BODY18)
        maps = openpose.targets(people, size, (size[0] // 8, size[1] // 8))
        return [PartMaps(maps.heat[None], maps.fields[None])]


# ---- there and back ------------------------------------------------------------------------------------------------
def test_a_crowd_comes_back():
    for seed in range(3):
        people = crowd([(65, 95), (170, 97), (275, 93)], seed=seed)
        people = hide(people, seed, "left_wrist", "right_ankle", "right_knee")
        maps = openpose.targets(people, SIZE, GRID)
        xy, conf = openpose.decode(maps.heat, maps.fields, SIZE)
        check(xy, conf, people, 0.5)


def test_two_who_overlap():
    """The one stands 30 pixels beside the other: limbs cross, and half of the wrists are nearer to the wrong person."""
    people = crowd([(150, 94), (180, 97)], seed=4)
    maps = openpose.targets(hide(people, 1, "right_wrist"), SIZE, GRID)
    xy, conf = openpose.decode(maps.heat, maps.fields, SIZE)
    check(xy, conf, hide(people, 1, "right_wrist"), 1)


def test_nobody():
    nobody = Keypoints2D(torch.zeros(0, 18, 2), torch.zeros(0, 18), BODY18)
    maps = openpose.targets(nobody, SIZE, GRID)
    assert torch.equal(maps.heat[-1], torch.ones(GRID)) and maps.heat[:-1].abs().max() == 0 == maps.fields.abs().max()
    xy, conf = openpose.decode(maps.heat, maps.fields, SIZE)
    assert xy.shape == (0, 18, 2) and conf.shape == (0, 18)


def test_without_a_neck_the_ears_hold_arms_and_head_together():
    """Legs of three joints each are nobody; shoulders begin no person with ears but join two."""
    people = hide(crowd([(170, 95)], seed=2), 0, "neck")
    maps = openpose.targets(people, SIZE, GRID)
    _, conf = openpose.decode(maps.heat, maps.fields, SIZE)
    upper = [n for n in BODY18.names if not any(part in n for part in ("neck", "hip", "knee", "ankle"))]
    assert {BODY18.names[j] for j in (conf[0] > 0).nonzero()[:, 0].tolist()} == set(upper) and len(conf) == 1


@pytest.mark.parametrize(
    ("image", "scales"),
    [((240, 320), (1.0,)), ((151, 105), (0.5, 1.0, 1.5)), ((46, 75), (1.0, 2.0)), ((5, 7), (1.0,))],
)
def test_places_are_pixels_of_the_image(image, scales):
    """Any size, larger or smaller than the network's cells."""
    height, width = image
    people = crowd([(0.35 * width, 0.5 * height)], height=0.75 * height, seed=1)
    picture = np.full((*image, 3), 255, np.uint8)
    frame = fit_frame(picture, "height", 184, 8, scales)
    net = Oracle(people, frame)
    found = openpose.find(net, picture, scales, height=184)
    assert found.joints is BODY18
    check(found.xy, found.conf, people, 0.6 / frame.scale)  # at most 0.78 pixels
    assert len(net.seen) == len(scales)
    for at, seen in zip(scales, net.seen, strict=True):
        assert all(n % 8 == 0 for n in seen.shape[-2:])
        # White is 255 / 256 - 0.5 for the network, and what surrounds the image is 0.
        assert seen[0, :, 2, 2] == pytest.approx([255 / 256 - 0.5] * 3)
        if round(width * frame.scale * at) + 1 < seen.shape[-1]:
            assert seen[0, :, 0, -1].abs().max() < 1e-6


# ---- targets and losses --------------------------------------------------------------------------------------------
def test_the_order_of_the_fields():
    """Of the released model: channels 12 and 13 are the limb from the neck to the right shoulder, and so on."""
    channel = {
        0: ("neck", "right_hip"), 4: ("right_knee", "right_ankle"), 10: ("left_knee", "left_ankle"),
        12: ("neck", "right_shoulder"), 14: ("right_shoulder", "right_elbow"), 18: ("right_shoulder", "right_ear"),
        20: ("neck", "left_shoulder"), 26: ("left_shoulder", "left_ear"), 28: ("neck", "nose"), 30: ("nose", "right_eye"),
        32: ("nose", "left_eye"), 34: ("right_eye", "right_ear"), 36: ("left_eye", "left_ear"),
    }  # fmt: skip
    assert all(LIMBS[first // 2] == limb for first, limb in channel.items())
    assert sorted(openpose.ASSEMBLY) == sorted(LIMBS) and len(set(LIMBS)) == 19


def test_line_integrals():
    """1 along a field, 0 across it, and less where a limb is longer than half the image is high."""
    field = torch.zeros(2, 100, 100)
    field[0] = 1.0
    a = torch.tensor([[10, 20], [60, 20]])
    b = torch.tensor([[50, 20], [10, 60], [90, 20]])
    scores = openpose.limb_scores(field, a, b)
    assert scores[0, 0] == 1 and scores[1, 2] == 1
    assert scores[0, 1] == scores[1, 0] == scores[1, 1] == -torch.inf
    assert scores[0, 2].item() == pytest.approx(1 + (50 / 80 - 1))
    field[:, :, 47:] = 0  # nine of ten places agree
    assert openpose.limb_scores(field, a[:1], b[:1])[0, 0].item() == pytest.approx(0.9)
    field[:, :, 45:] = 0  # eight of ten places agree
    assert openpose.limb_scores(field, a[:1], b[:1])[0, 0] == -torch.inf
    assert openpose.limb_scores(field, a[:1], a[:1])[0, 0] == -torch.inf


def test_limbs_are_matched_greedily():
    """The best pair first, though the two others together would be better."""
    scores = torch.tensor([[0.9, 0.8], [0.8, -torch.inf]], dtype=torch.float64)
    assert openpose._connect(scores) == [(0, 0, 0.9)]


def test_loss_and_its_mask():
    people = [crowd([(60, 60)], 80), crowd([(64, 64)], 80, seed=3)]
    size, grid = (128, 128), (16, 16)
    target = [openpose.targets(p, size, grid) for p in people]
    blank = PartMaps(torch.zeros(2, 19, *grid), torch.zeros(2, 19, 2, *grid))
    squares = sum((t.heat.square().sum() + t.fields.square().sum()) for t in target)
    value = openpose.loss([blank, blank], people, size)
    assert value.item() == pytest.approx(2 * squares.item() / 2 / 2, rel=1e-5)
    exact = PartMaps(*(torch.stack(maps) for maps in zip(*target, strict=True)))
    assert openpose.loss([exact], people, size).item() == 0

    heat, fields = blank.heat.requires_grad_(), blank.fields.requires_grad_()
    box = torch.tensor([[32.0, 0.0, 127.0, 127.0]])
    openpose.loss([PartMaps(heat, fields)], people, size, [torch.zeros(0, 4), box]).backward()
    assert heat.grad[0, :, :, 4:].abs().sum() > 0 and heat.grad[1, :, :, :4].abs().sum() > 0
    assert heat.grad[1, :, :, 4:].abs().max() == 0 == fields.grad[1, ..., 4:].abs().max()
    assert torch.equal(labelled(box, size, grid)[:, 4:], torch.zeros(16, 12))
    torch.testing.assert_close(heat.grad[0], -exact.heat[0] / 2)  # of half the squares, by two images


def test_what_is_refused():
    coco = Keypoints2D(torch.zeros(1, 17, 2), torch.ones(1, 17), COCO17)
    with pytest.raises(InputError, match="OpenPose's joints are body18, got coco17"):
        openpose.targets(coco, SIZE, GRID)
    net = Oracle(crowd([(50, 50)]), None)
    for image in (np.zeros((10, 10), np.uint8), np.zeros((10, 10, 3)), np.zeros((10, 10, 4), np.uint8)):
        with pytest.raises(InputError, match="uint8 of shape"):
            openpose.find(net, image)
    with pytest.raises(InputError, match="no pixels"):
        openpose.find(net, np.zeros((0, 10, 3), np.uint8))
    for scales in ((), (0.0,), (-1.0,), (0.77,)):
        with pytest.raises(InputError, match="test scales are positive fractions"):
            openpose.find(net, np.zeros((10, 10, 3), np.uint8), scales)


# ---- parts ---------------------------------------------------------------------------------------------------------
def test_blur_and_interpolation_are_those_of_the_release():
    maps = torch.randn(3, 20, 31, dtype=torch.float64)
    ours = openpose._blurred(maps, 3.0).numpy()
    np.testing.assert_allclose(ours, [gaussian_filter(m, 3) for m in maps.numpy()], atol=1e-12)
    small = torch.randn(2, 2, 9, 13)
    theirs = cv2.resize(small.flatten(0, 1).permute(1, 2, 0).numpy(), (61, 40), interpolation=cv2.INTER_CUBIC)
    ours = openpose.enlarged(small, (40, 61)).flatten(0, 1).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_peaks():
    maps = torch.rand(2, 12, 15, generator=torch.Generator().manual_seed(0))
    for around, reach in ((square(3), 1), (square(5), 2)):
        expected = maps == nn.functional.max_pool2d(maps, 2 * reach + 1, 1, reach)
        assert torch.equal(local_maxima(maps, around), expected)
    plateau = torch.zeros(1, 7, 9)
    plateau[0, 3, 2:7] = 1
    assert local_maxima(plateau, PLUS)[0, 3].nonzero()[:, 0].tolist() == [2]
    cells, value = highest(plateau, 3, 4)
    assert value.tolist() == [[1, 0, 0, 0]] and cells[0, 0].tolist() == [2, 3]


def test_parabolas_are_exact_for_gaussians():
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    bump = torch.exp(-((x - 11.3).square() + (y - 7.85).square()) / (2 * 1.7**2))[None]
    shift = parabola(bump, torch.tensor([0]), torch.tensor([[11, 8]]))
    torch.testing.assert_close(shift, torch.tensor([[0.3, -0.15]]), atol=1e-3, rtol=0)
    corner = parabola(torch.exp(-x - y)[None], torch.tensor([0]), torch.tensor([[0, 0]]))
    assert corner.abs().max() == 0


def test_a_frame_and_back():
    image = np.zeros((250, 333, 3), np.uint8)
    image[100:104, 200:204] = 255  # its centre lies at (201.5, 101.5)
    frame = fit_frame(image, "shorter", 125, 32, (0.5, 1.0, 2.0))
    assert frame.scale == 0.5 and frame.box == (128, 192)  # multiples of 64: half of them suits the network too
    for at in (0.5, 1.0, 2.0):
        seen = frame.show(image, at)[0, 0]
        assert seen.shape == (128 * at, 192 * at)
        y, x = torch.meshgrid(*(torch.arange(float(n)) for n in seen.shape), indexing="ij")
        middle = torch.stack([(seen * x).sum(), (seen * y).sum()]) / seen.sum()
        there = frame.to_image(middle, tuple(seen.shape))
        torch.testing.assert_close(there, torch.tensor([201.5, 101.5]), atol=0.51, rtol=0)
    assert frame.inside((16, 24)) == (16, 21)
    long = fit_frame(np.zeros((10, 1000, 3), np.uint8), "height", 368, 8, (1.0,))
    assert long.box[1] <= 4 * 368 and long.box[0] == 16


# ---- networks ------------------------------------------------------------------------------------------------------
def test_released_names_with_and_without_prefixes(tmp_path):
    with torch.device("meta"):
        net = OpenPose()
    ours = net.state_dict()
    assert "model0.conv4_4_CPM.weight" in ours and "model6_2.Mconv7_stage6_L2.bias" in ours
    bare = {key.partition(".")[2]: value for key, value in ours.items()}
    assert openpose.from_caffe(bare, net).keys() == ours.keys() == openpose.from_caffe(dict(ours), net).keys()
    torch.save(bare | {"conv9.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="conv9"):
        openpose.openpose_body(tmp_path / "other.pth")


def test_the_networks_agree_on_their_maps():
    image = torch.zeros(2, 3, 64, 88)
    for net, stages in ((OpenPose(stages=2, width=16), 2), (LightweightOpenPose(width=16), 2)):
        out = net(image)
        assert len(out) == stages
        assert all(m.heat.shape == (2, 19, 8, 11) and m.fields.shape == (2, 19, 2, 8, 11) for m in out)
        openpose.loss(out, [crowd([(40, 30)], 50)] * 2, (64, 88)).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_finding_teaches_a_network_in_training_nothing():
    net = LightweightOpenPose(width=16)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    openpose.find(net, np.full((50, 70, 3), 90, np.uint8), height=64)
    assert net.training and all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_finding_with_a_network_that_knows_nothing():
    torch.manual_seed(0)
    found = openpose.find(LightweightOpenPose(width=16).eval(), np.zeros((50, 70, 3), np.uint8), height=64)
    assert found.xy.shape == (0, 18, 2) and found.joints is BODY18
