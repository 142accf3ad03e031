import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from body3d.bottomup import associative, grouping
from body3d.bottomup.associative import AEHourglass, Associative
from body3d.bottomup.grouping import Grouped, Reading
from body3d.bottomup.higherhrnet import HigherHRNet
from body3d.bottomup.people import fit_frame
from body3d.codecs.peaks import quarter_shift
from body3d.errors import InputError
from body3d.geometry import rescale
from body3d.joint_set import JointSet
from body3d.known_answers.bottomup import munkres
from body3d.nets3d.orpm import heat_of_all
from body3d.posenet import PLAIN
from body3d.skeletons import BODY18, COCO17
from body3d.types import Keypoints2D

TOY = JointSet("toy", ("left_a", "right_a", "top"), (-1, -1, -1))
# Half a body height is 1; x is to the image's right, where the left side is.
LEFT = {
    "eye": (0.05, -0.93), "ear": (0.11, -0.9), "shoulder": (0.2, -0.65), "elbow": (0.33, -0.35), "wrist": (0.4, -0.05),
    "hip": (0.13, 0), "knee": (0.16, 0.45), "ankle": (0.17, 0.9),
}  # fmt: skip
PLACES = {
    "nose": (0.0, -0.88),
    **{f"{s}_{j}": (f * x, y) for j, (x, y) in LEFT.items() for s, f in (("left", 1), ("right", -1))},
}


def crowd(middles, height=140.0, seed=0) -> Keypoints2D:
    """Standing people, each joint up to a fortieth of their height from where it would be."""
    generator = torch.Generator().manual_seed(seed)
    figure = torch.tensor([PLACES[name] for name in COCO17.names], dtype=torch.float32)
    xy = torch.tensor(middles, dtype=torch.float32).reshape(-1, 1, 2) + height / 2 * figure
    xy = xy + height / 40 * (2 * torch.rand(xy.shape, generator=generator) - 1)
    return Keypoints2D(xy, torch.ones(xy.shape[:2]), COCO17)


def hide(people: Keypoints2D, person: int, *joints: str) -> Keypoints2D:
    conf = people.conf.clone()
    conf[person, COCO17.indices(joints)] = 0
    return Keypoints2D(people.xy, conf, COCO17)


class Oracle(nn.Module):
    """Heat and tags of people in an image, drawn at whatever size is asked: tags 2, 4, 6 ... within 3 cells of the joints.

    `strides` are those of the outputs, of which the first alone has tags.
    """

    def __init__(self, people, frame, strides=(4,)):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.people, self.frame, self.strides, self.sizes = people, frame, strides, []

    def forward(self, picture):
        size = tuple(picture.shape[-2:])
        self.sizes.append(size)
        xy = rescale(self.people.xy, self.frame.scale * size[0] / self.frame.box[0])
        out = []
        for stride in self.strides:
            grid = (size[0] // stride, size[1] // stride)
            heat = heat_of_all(xy, self.people.conf > 0, size, grid, 2.0)
            each = [
                heat_of_all(xy[n : n + 1], self.people.conf[n : n + 1] > 0, size, grid, 2.0) for n in range(len(xy))
            ]
            tags = torch.stack([torch.zeros_like(heat), *each]).argmax(0) * 2.0 * (heat > 0.3)
            out.append(torch.cat([heat, tags])[None] if stride == self.strides[0] else heat[None])
        return out


def check(found: Keypoints2D, people: Keypoints2D, pixels: float):
    """The same people in some order, with the same joints known."""
    assert found.joints is COCO17 and len(found.xy) == len(people.xy)
    both = (found.conf[:, None] > 0) & (people.conf[None] > 0)
    order = ((found.xy[:, None] - people.xy[None]).norm(dim=-1) * both).sum(-1).div(both.sum(-1)).argmin(1)
    assert sorted(order.tolist()) == list(range(len(order)))
    known = people.conf[order] > 0
    assert torch.equal(found.conf > 0, known)
    error = (found.xy - people.xy[order]).norm(dim=-1)[known]
    assert error.max() < pixels, error.max()
    assert found.xy[~known].abs().sum() == 0


# ---- losses --------------------------------------------------------------------------------------------------------
def test_tag_loss_by_hand():
    """Two people: tags 1 and 3 (mean 2, variance 1), and 0 alone; a third has no joint."""
    tags = torch.tensor([[1.0, 3.0, 50.0], [0.0, 70.0, 90.0], [5.0, 5.0, 5.0]])
    known = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    expected = {
        "released": (0.5 * 2 * math.exp(-4) / 2, 1 / 2),
        "paper": ((2 + 2 * math.exp(-2)) / 4, 2 / 2),
        "mmpose": ((2 + 2 * math.exp(-4)) / 2, 1 / 2),
    }
    for form, values in expected.items():
        push, pull = associative.tag_loss(tags, known, form)
        assert (push.item(), pull.item()) == pytest.approx(values, rel=2e-6)
    push, pull = associative.tag_loss(tags[:1], known[:1])
    assert push == 0 and pull.item() == pytest.approx(1, rel=2e-6)
    for form in expected:
        free = tags[2:].clone().requires_grad_()
        push, pull = associative.tag_loss(free, known[2:], form)
        assert push == 0 == pull and torch.autograd.grad(push + pull, free)[0].abs().max() == 0


def test_gradients_of_the_tag_loss():
    torch.manual_seed(0)
    tags = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    known = torch.rand(4, 5) < 0.7
    known[2] = False
    for form in ("released", "paper", "mmpose"):
        assert torch.autograd.gradcheck(lambda t, form=form: associative.tag_loss(t, known, form), tags)


def test_free_tags_part():
    torch.manual_seed(0)
    tags = (0.1 * torch.randn(4, 17)).requires_grad_()
    optimiser = torch.optim.Adam([tags], 0.05)
    for _ in range(300):
        push, pull = associative.tag_loss(tags, torch.ones(4, 17, dtype=torch.bool))
        optimiser.zero_grad()
        (push + pull).backward()
        optimiser.step()
    mean = tags.detach().mean(1).sort().values
    assert mean.diff().min() > 1 and tags.detach().std(1).max() < 0.05


def test_heat_loss_by_hand():
    pred, target = torch.zeros(2, 1, 2, 2), torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 2, 2).expand(2, 1, 2, 2)
    mask = torch.tensor([[[1.0, 1], [1, 1]], [[1, 0], [1, 0]]])
    assert associative.heat_loss(pred, target, mask).tolist() == [30 / 4, 10 / 4]


def test_the_loss_of_a_network():
    """Zero with heat as drawn and tags that are one per person and far apart; masks, missing tags, wrong joints."""
    people = crowd([(60, 60), (100, 60)], 90)
    frame = fit_frame(np.zeros((128, 160, 3), np.uint8), "shorter", 128, 32, (1.0,))
    oracle = Oracle(people, frame, (4, 2))
    net = Associative(oracle, COCO17, PLAIN, length=128)
    image = torch.zeros(1, 3, 128, 160)
    exact = net.loss(image, [people])
    assert exact.item() < 1e-3 * 0.02  # what two people at a distance of 2 push
    nobody = Keypoints2D(people.xy[:0], people.conf[:0], COCO17)
    square = [m.heat.square().mean() for m in net(image)]
    assert net.loss(image, [nobody]).item() == pytest.approx(torch.stack(square).mean().item())
    everything = torch.tensor([[-1.0, -1, 200, 200]])
    assert net.loss(image, [nobody], [everything]) == 0
    with pytest.raises(InputError, match="speaks of coco17, the targets are body18"):
        net.loss(image, [people.convert(BODY18)])


# ---- grouping ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("persons", [1, 2, 5, 10])
def test_planted_tags_give_the_partition(persons):
    """Peaks anywhere, a fifth of them missing: who belongs together is in the tags alone."""
    random = np.random.default_rng(persons)
    heat, tags = torch.zeros(17, 64, 64), torch.zeros(17, 1, 64, 64)
    truth = np.full((persons, 17, 2), -1)
    for joint in range(17):
        places = random.permutation(15 * 15)[:persons]
        for person, place in enumerate(places):
            if random.random() < 0.8:
                x, y = 2 + 4 * (place % 15), 2 + 4 * (place // 15)
                heat[joint, y, x] = random.uniform(0.3, 1)
                tags[joint, 0, y, x] = 1.5 * person + random.normal(0, 0.05)
                truth[person, joint] = x, y
    found = grouping.group(heat, tags, COCO17)
    places = torch.where(found.score[..., None] > 0, found.xy, -1)
    assert sorted(places.tolist()) == sorted(truth.tolist())


def test_several_tags_per_joint():
    """Two people whom only the second of two tags tells apart."""
    heat, tags = torch.zeros(3, 16, 16), torch.zeros(3, 2, 16, 16)
    for joint in range(3):
        for person in range(2):
            heat[joint, 4 * joint + 2, 5 + 6 * person] = 0.9
            tags[joint, :, 4 * joint + 2, 5 + 6 * person] = torch.tensor([0.5 + 0.01 * person, 4.0 * person])
    found = grouping.group(heat, tags, TOY)
    assert found.tag.shape == (2, 3, 2)
    assert sorted(found.xy[:, :, 0].tolist()) == [[5, 5, 5], [11, 11, 11]]


def test_no_more_than_the_most():
    heat, tags = torch.zeros(3, 9, 9), torch.zeros(3, 1, 9, 9)
    heat[:, ::4, ::4] = 1 - 0.01 * torch.arange(9.0).view(3, 3)
    tags[:, 0, ::4, ::4] = 5 * torch.arange(9.0).view(3, 3)
    found = grouping.group(heat, tags, TOY, Reading(most=4))
    # The first joint finds four people, and then nobody is added to.
    assert (found.score > 0).tolist() == [[True, False, False]] * 4
    assert (grouping.group(heat, tags, TOY).score > 0).all()


def test_the_second_pass():
    """A missing joint is found where heat less the rounded distance of tags is highest: not at the higher peak of others."""
    heat, tags = torch.zeros(3, 8, 8), torch.zeros(3, 1, 8, 8)
    heat[2, 1, 1], tags[2, 0, 1, 1] = 0.9, 7.0
    heat[2, 6, 5], tags[2, 0, 6, 5] = 0.05, 3.2
    score = torch.tensor([[0.5, 0.4, 0.0]])
    xy, tag = torch.tensor([[[1, 1], [2, 2], [0, 0]]]), torch.tensor([[[3.0], [3.2], [0.0]]])
    tags[1], heat[0] = 9.0, -1.0
    found = grouping.refine(Grouped(xy, score, tag), heat, tags)
    assert found.xy.tolist() == [[[1, 1], [2, 2], [5, 6]]]
    torch.testing.assert_close(found.score, torch.tensor([[0.5, 0.4, 0.05]]))
    assert found.tag[0, 2, 0].item() == pytest.approx(3.2)
    # Where there is no heat at all, a joint stays unknown.
    assert grouping.refine(Grouped(xy, score, tag), 0 * heat, tags).score[0, 2] == 0


def test_a_quarter_of_a_cell():
    maps = heat_of_all(
        torch.tensor([[[9.3, 12.8], [20.1, 5.45]]]), torch.ones(1, 2, dtype=torch.bool), (32, 32), (32, 32), 2.0
    )
    cell = torch.tensor([[9, 13], [20, 5]])
    torch.testing.assert_close(cell + grouping.quarter(maps, torch.arange(2), cell), quarter_shift(maps[None])[0])
    flat = grouping.quarter(torch.zeros(1, 4, 4), torch.zeros(2, dtype=torch.long), torch.tensor([[0, 0], [3, 2]]))
    assert (flat == -0.25).all()


def test_munkres_finds_matchings_of_the_least_cost():
    random = np.random.default_rng(0)
    for rows, columns in ((1, 1), (3, 3), (4, 9), (8, 8)):
        for _ in range(10):
            cost = random.integers(0, 5, (rows, columns)) * 100 - random.random((rows, 1))
            ours, best = munkres(cost), linear_sum_assignment(cost)
            assert len(set(ours[1].tolist())) == rows
            assert cost[ours].sum() == pytest.approx(cost[best].sum())


# ---- there and back ------------------------------------------------------------------------------------------------
CASES = {
    "on the maps": ((4,), Reading(), 0.2),
    "a quarter of a cell": ((4,), Reading(quarter_cell=True), 0.36 * 4),
    "in pixels, of two outputs": ((4, 2), Reading(window=5, enlarged=True), 1.0),
}


@pytest.mark.parametrize("case", CASES)
def test_a_crowd_comes_back(case):
    strides, reading, pixels = CASES[case]
    people = hide(crowd([(60, 90), (90, 92), (200, 88)], seed=2), 1, "left_wrist", "nose")  # two of them overlap
    image = np.zeros((180, 250, 3), np.uint8)
    frame = fit_frame(image, "shorter", 180, 32, (1.0,))
    net = Associative(Oracle(people, frame, strides), COCO17, PLAIN, length=180, reading=reading)
    check(associative.find(net, image), people, pixels)
    assert net.net.sizes == [(192, 256)]


@pytest.mark.parametrize(
    ("image", "side", "scales"),
    [((300, 200), "longer", (0.5, 1.0, 2.0)), ((40, 60), "shorter", (1.0, 1.5)), ((5, 3), "longer", (1.0,))],
)
def test_places_are_pixels_of_the_image(image, side, scales):
    height, width = image
    people = crowd([(0.5 * width, 0.5 * height)], 0.75 * height)
    picture = np.zeros((*image, 3), np.uint8)
    frame = fit_frame(picture, side, 160, 32, scales)
    for reading, pixels in ((Reading(), 0.7), (Reading(window=5, enlarged=True), 1.5)):
        net = Associative(Oracle(people, frame), COCO17, PLAIN, side=side, length=160, reading=reading)
        check(associative.find(net, picture, scales), people, pixels / frame.scale)
        assert len(net.net.sizes) == len(scales) and all(n % 32 == 0 for size in net.net.sizes for n in size)


def test_nobody():
    image = np.zeros((70, 90, 3), np.uint8)
    nobody = Keypoints2D(torch.zeros(0, 17, 2), torch.zeros(0, 17), COCO17)
    frame = fit_frame(image, "shorter", 64, 32, (1.0,))
    for reading in (Reading(), Reading(window=5, enlarged=True)):
        net = Associative(Oracle(nobody, frame), COCO17, PLAIN, length=64, reading=reading)
        found = associative.find(net, image, fill_in=True)
        assert found.xy.shape == (0, 17, 2) and found.conf.shape == (0, 17)
    with pytest.raises(InputError, match="uint8 of shape"):
        associative.find(net, image.astype(np.float32))


def test_flipped_maps_are_turned_back():
    """A network that sees colours: red is left, green right, blue the top. In a mirrored image left is still red to it, so that
    the flip test halves red and green between their places, and leaves blue where it is."""

    class Colours(nn.Module):
        def __init__(self):
            super().__init__()
            self.anchor = nn.Parameter(torch.zeros(1))

        def forward(self, picture):
            heat = nn.functional.avg_pool2d(picture, 4)
            return [torch.cat([heat, 0 * heat], 1)]

    image = np.zeros((64, 96, 3), np.uint8)
    for channel, (x, y) in enumerate(((20, 12), (60, 12), (40, 40))):
        image[y : y + 4, x : x + 4, channel] = 255
    net = Associative(Colours(), TOY, PLAIN, length=64, reading=Reading())
    frame = fit_frame(image, "shorter", 64, 32, (1.0,))
    heat, tags = associative._maps_of(net, image, frame, (1.0,), True)
    assert tags.shape == (3, 2, 16, 24)
    expected = torch.zeros(3, 16, 24)
    expected[:2, 3, 5] = expected[:2, 3, 15] = 0.5
    expected[2, 10, 10] = 1
    torch.testing.assert_close(heat, expected)


# ---- networks ------------------------------------------------------------------------------------------------------
def test_hourglasses_and_their_names():
    net = AEHourglass(stacks=2, maps=12, width=8, growth=4)
    out = net(torch.zeros(1, 3, 64, 128))
    assert [tuple(maps.shape) for maps in out] == [(1, 12, 16, 32)] * 2
    sum(maps.sum() for maps in out).backward()
    assert all(p.grad is not None for p in net.parameters())
    widest = net.state_dict()["features.1.0.low2.low2.low2.low2.conv.weight"]
    assert widest.shape == (24, 24, 3, 3)  # 8 channels and 4 more for each of four halvings
    saved = {f"model.{key}": value for key, value in net.state_dict().items()}
    assert associative.in_our_names(net, saved).keys() == net.state_dict().keys()


def test_higherhrnet_is_an_hrnet_with_more(tmp_path):
    torch.manual_seed(0)
    net = Associative(HigherHRNet(3, width=8).eval(), TOY, length=64)
    maps = net(torch.zeros(2, 3, 64, 96))
    assert [tuple(m.heat.shape) for m in maps] == [(2, 3, 16, 24), (2, 3, 32, 48)]
    assert maps[0].tags.shape == (2, 3, 16, 24) and maps[1].tags is None
    heat, tags = net.answer(maps)
    assert heat.shape == tags.shape == (2, 3, 32, 48)
    coarse = nn.functional.interpolate(maps[0].heat, scale_factor=2.0, mode="bilinear", align_corners=False)
    torch.testing.assert_close(heat, (coarse + maps[1].heat) / 2)
    found = associative.find(net, np.zeros((33, 47, 3), np.uint8), (0.5, 1.0), flip=True, fill_in=True)
    assert found.xy.shape[1:] == (3, 2) and found.xy.isfinite().all()
    net.train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    associative.find(net, np.full((33, 47, 3), 90, np.uint8))
    assert net.training and all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    net.eval()
    with pytest.raises(InputError, match="multiples of 32, got 60 x 96"):
        net(torch.zeros(1, 3, 60, 96))

    torch.save({"state_dict": net.state_dict()}, tmp_path / "ours.pth")
    other = associative.load_weights(Associative(HigherHRNet(3, width=8), TOY, length=64), tmp_path / "ours.pth")
    assert not other.training
    torch.testing.assert_close(other(torch.ones(1, 3, 64, 64))[1].heat, net(torch.ones(1, 3, 64, 64))[1].heat)
    with pytest.raises(InputError, match="missing"):
        associative.load_weights(Associative(AEHourglass(1, 6, 8), TOY), tmp_path / "ours.pth")
