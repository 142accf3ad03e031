from dataclasses import replace

import pytest
import torch
from torch import nn

from body3d.codecs import DSNT, RLE, Heatmap, PIPNet, Regression, SimCC, UDPOffset, udp_heatmap
from body3d.codecs.base import to_fraction, to_grid
from body3d.codecs.heatmap import gaussian_maps
from body3d.errors import InputError
from body3d.posenet import IMAGENET, PLAIN, UNIT, Headed, Normalise, PoseNet, Trunk, on_trunk
from body3d.skeletons import COCO17, MPII16
from body3d.types import Keypoints2D

SIZE, GRID = (64, 48), (16, 12)


class TwoStages(nn.Module):
    """A trunk whose second stage sees twice the image."""

    channels = 3

    def forward(self, image):
        features = nn.functional.avg_pool2d(image, 4)
        return [features, 2 * features]


class Oracle(nn.Module):
    """A network that is always right: it knows the joints, and sees by the image's slope whether it is mirrored."""

    def __init__(self, answer, xy):
        super().__init__()
        self.answer, self.xy = answer, xy

    def forward(self, image):
        xy = self.xy
        if image[0, 0, 0, 0] > image[0, 0, 0, -1]:
            xy = torch.stack([SIZE[1] - 1 - xy[..., 0], xy[..., 1]], -1)[:, list(COCO17.flip)]
        return [self.answer(xy)]


def places(seed=0):
    random = torch.Generator().manual_seed(seed)
    return 18 + torch.rand(2, 17, 2, generator=random) * torch.tensor([11.0, 27.0])


def slope():
    return torch.linspace(0, 1, SIZE[1]).expand(2, 3, *SIZE)


def test_normalising_by_hand():
    image = torch.tensor([0.485, 0.456, 0.631]).view(1, 3, 1, 1)
    torch.testing.assert_close(IMAGENET(image).flatten(), torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(UNIT(image), image - 0.5)
    assert torch.equal(PLAIN(image), image)
    caffe = Normalise((104.0, 117.0, 123.0), (1.0, 1.0, 1.0), bgr=True, scale=255.0)
    expected = torch.tensor([0.631 * 255 - 104, 0.456 * 255 - 117, 0.485 * 255 - 123])
    torch.testing.assert_close(caffe(image).flatten(), expected)


def test_one_head_on_every_stage():
    torch.manual_seed(0)
    net = on_trunk(TwoStages(), Heatmap(), COCO17, SIZE, PLAIN)
    image, target = torch.rand(2, 3, *SIZE), Keypoints2D(places(), torch.ones(2, 17), COCO17)
    first, second = net(image)
    assert isinstance(net.net, Headed) and isinstance(net.net.trunk, Trunk)
    torch.testing.assert_close(
        second - net.net.head.bias[:, None, None], 2 * (first - net.net.head.bias[:, None, None])
    )
    by_hand = sum(Heatmap().loss(raw, target.xy, target.conf, SIZE) for raw in (first, second)) / 2
    torch.testing.assert_close(net.loss(image, target), by_hand)
    found = net.predict(image)
    torch.testing.assert_close(found.xy, Heatmap().decode(second, SIZE)[0])
    assert found.joints is COCO17


def test_images_are_normalised_first():
    torch.manual_seed(0)
    plain = on_trunk(TwoStages(), Heatmap(), COCO17, SIZE, PLAIN)
    torch.manual_seed(0)
    usual = on_trunk(TwoStages(), Heatmap(), COCO17, SIZE)
    image = torch.rand(1, 3, *SIZE)
    torch.testing.assert_close(usual(image)[0], plain(IMAGENET(image))[0])


def test_what_does_not_fit_is_said():
    net = on_trunk(TwoStages(), Heatmap(), COCO17, SIZE)
    with pytest.raises(InputError, match=r"sees crops of 64 x 48 pixels \(height x width\), got 48 x 64"):
        net(torch.zeros(1, 3, 48, 64))
    target = Keypoints2D(torch.zeros(1, 16, 2), torch.ones(1, 16), MPII16)
    with pytest.raises(InputError, match="speaks of coco17, the targets are mpii16: convert them"):
        net.loss(torch.zeros(1, 3, *SIZE), target)
    with pytest.raises(InputError, match="Flatten is no trunk"):
        on_trunk(nn.Flatten(), Heatmap(), COCO17, SIZE)


# ---- the flip test -------------------------------------------------------------------------------------------------
UDP = UDPOffset(radius=0.2, kernel=3)


@pytest.mark.parametrize(
    ("codec", "answer"),
    [
        (Heatmap(), lambda xy: gaussian_maps(to_grid(xy, SIZE, GRID), GRID, 2.0)),
        (udp_heatmap(), lambda xy: gaussian_maps(to_grid(xy, SIZE, GRID, "udp"), GRID, 2.0)),
        (UDP, lambda xy: UDP.target(xy, SIZE, GRID).flatten(1, 2)),
        (DSNT(), lambda xy: gaussian_maps(to_grid(xy, SIZE, GRID), GRID, 1.0).clamp_min(1e-30).log()),
        (Regression(), lambda xy: to_fraction(xy, SIZE)),
    ],
    ids=["heatmap", "udp", "udp offset", "dsnt", "regression"],
)
def test_mirroring_a_network_that_is_right_changes_nothing(codec, answer):
    net = PoseNet(Oracle(answer, places()), codec, COCO17, SIZE)
    once, twice = net.predict(slope()), net.predict(slope(), flip=True)
    assert (once.xy - twice.xy).abs().max() < 1e-3
    torch.testing.assert_close(once.conf, twice.conf)


@pytest.mark.parametrize(("shifted", "expected"), [(True, 0.5), (False, 1.5)])
def test_msras_places_need_the_shift(shifted, expected):
    """The mirrored maps lie 0.75 of a cell to the left; with one cell to the right, the mean of both is 0.125 off, 0.5 pixels."""
    codec = replace(Heatmap(), places="msra")

    class Unshifted(Heatmap):
        def mirror(self, raw, flip):
            return super().mirror(raw, flip).roll(-1, -1)

    if not shifted:
        codec = Unshifted(places="msra")
    answer = lambda xy: gaussian_maps(to_grid(xy, SIZE, GRID, "msra"), GRID, 2.0)
    net = PoseNet(Oracle(answer, places()), codec, COCO17, SIZE)
    moved = net.predict(slope(), flip=True).xy - net.predict(slope()).xy
    assert moved[..., 0].abs().mean() == pytest.approx(expected, rel=0.1)
    assert moved[..., 1].abs().max() < 0.05


def test_mirroring_averages_what_differs():
    """A network that looks a pixel too far right whatever it sees: the flip test takes that out."""
    offset = torch.tensor([1.0, 0.0])
    net = PoseNet(Oracle(lambda xy: to_fraction(xy + offset, SIZE), places()), Regression(), COCO17, SIZE)
    torch.testing.assert_close(net.predict(slope()).xy, places() + offset)
    torch.testing.assert_close(net.predict(slope(), flip=True).xy, places())


@pytest.mark.parametrize(
    "codec",
    [
        Heatmap(),
        UDPOffset(),
        DSNT(),
        SimCC(),
        RLE(),
        PIPNet(tuple((float(i), i % 3.0) for i in range(17))),
    ],
    ids=lambda c: type(c).__name__,
)
def test_a_mirrored_image_gives_mirrored_keypoints(codec):
    """With the flip test any network is equivariant."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))

    class Listed(nn.Module):
        channels = 8

        def __init__(self):
            super().__init__()
            self.trunk = trunk

        def forward(self, image):
            return [self.trunk(image)]

    net = on_trunk(Listed(), codec, COCO17, SIZE).double()
    image = torch.rand(3, 3, *SIZE, dtype=torch.float64)
    here, there = net.predict(image, flip=True), net.predict(image.flip(-1), flip=True)
    back = torch.stack([SIZE[1] - 1 - there.xy[..., 0], there.xy[..., 1]], -1)[:, list(COCO17.flip)]
    torch.testing.assert_close(back, here.xy)
    torch.testing.assert_close(there.conf[:, list(COCO17.flip)], here.conf)
