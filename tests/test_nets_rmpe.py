import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from body3d.codecs import Heatmap, SimCC
from body3d.codecs.heatmap import gaussian_maps
from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.layers import BasicBlock
from body3d.nets.resnet import ResNet
from body3d.nets.rmpe import (
    SymmetricNet,
    SymmetricPoseNet,
    centred,
    fastpose_r50,
    inverse,
    rmpe_hourglass_4,
    sample,
    transform,
)
from body3d.posenet import PLAIN
from body3d.skeletons import COCO17, MPII16
from body3d.types import Keypoints2D

RGB = JointSet("rgb", ("left_red", "right_red", "blue"), (-1, -1, -1))
THETAS = torch.tensor(
    [
        [[1.0, 0, 0], [0, 1, 0]],
        [[0.7, 0.2, 0.1], [-0.3, 0.8, -0.2]],
        [[-0.9, 0.1, 0.2], [0.1, 0.8, 0.1]],  # a mirror
        [[0.1, -0.9, 0.05], [0.6, 0.1, -0.3]],
    ]
).double()


class Colours(nn.Module):
    """The maps are the colours of the image."""

    def forward(self, image):
        return [image]


def small_trunk() -> ResNet:
    return ResNet(BasicBlock, (1, 1, 1, 1))


def dots(xy: torch.Tensor, size: tuple[int, int], sigma: float = 2.0) -> torch.Tensor:
    return gaussian_maps(xy, size, sigma)


# ---- the transformer and its inverse -------------------------------------------------------------------------------
def test_the_inverse_undoes_points():
    random = torch.Generator().manual_seed(0)
    size = (96, 64)
    xy = torch.rand(4, 10, 2, generator=random).double() * 60
    there = transform(xy, THETAS, size)
    torch.testing.assert_close(transform(there, inverse(THETAS), size), xy, atol=1e-10, rtol=0)
    torch.testing.assert_close(inverse(inverse(THETAS)), THETAS)
    torch.testing.assert_close(there[0], xy[0])
    single = transform(transform(xy.float(), THETAS.float(), size), inverse(THETAS.float()), size)
    torch.testing.assert_close(single, xy.float(), atol=1e-4, rtol=0)


def test_points_go_where_the_picture_goes():
    """A dot is seen where the inverse takes it, on images that are not square too, and comes back to where it was."""
    size = (96, 64)
    xy = torch.tensor([[[30.0, 50.0]], [[35.0, 40.0]], [[28.0, 45.0]], [[33.0, 52.0]]]).double()
    image = dots(xy, size, 3.0)
    shown = sample(image, THETAS)
    centre = lambda maps: torch.stack(
        [(maps.sum(a) * torch.arange(n)).sum(-1) / maps.sum((-1, -2)) for a, n in ((-2, 64), (-1, 96))], -1
    )
    torch.testing.assert_close(centre(shown), transform(xy, inverse(THETAS), size), atol=0.05, rtol=0)
    back = sample(shown, inverse(THETAS))
    torch.testing.assert_close(centre(back), xy, atol=0.05, rtol=0)
    assert (back - image).abs().max() < 0.12  # two bilinear readings blur
    torch.testing.assert_close(back[0], image[0])


def test_a_mirror_mirrors_pixels_exactly():
    image = torch.rand(1, 3, 10, 7)
    mirror = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]])
    torch.testing.assert_close(sample(image, mirror), image.flip(-1))
    torch.testing.assert_close(
        transform(torch.tensor([[[0.0, 2], [6, 9]]]), mirror, (10, 7)), torch.tensor([[[6.0, 2], [0, 9]]])
    )
    torch.testing.assert_close(inverse(mirror), mirror)


def test_sizes_may_change():
    shown = sample(torch.rand(2, 3, 20, 20), torch.eye(2, 3).expand(2, 2, 3), (10, 5))
    assert shown.shape == (2, 3, 10, 5)


# ---- the network ---------------------------------------------------------------------------------------------------
def test_it_begins_as_the_network_alone():
    torch.manual_seed(0)
    net = SymmetricNet(small_trunk(), nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), _Listed())).eval()
    image = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(net(image)[0], net.pose(image)[0], atol=1e-5, rtol=1e-5)


class _Listed(nn.Module):
    def forward(self, x):
        return [x]


def test_answers_are_in_the_frame_of_the_image():
    """Whatever the transformer does, a network that sees colours says where they were."""
    net = SymmetricNet(small_trunk(), Colours()).eval()
    xy = torch.tensor([[[30.0, 30], [25, 40], [40, 35]]])
    posenet = SymmetricPoseNet(net, Heatmap(), RGB, (64, 64), PLAIN).eval()
    for theta in THETAS.float():
        with torch.no_grad():
            net.theta.bias.copy_(theta.flatten())
        assert (posenet.predict(dots(xy, (64, 64))).xy - xy).abs().max() < 0.6


def test_the_parallel_branch_centres_people():
    """Its loss alone brings somebody at the side of a crop to the middle, at the size that a crop shows."""
    size = (64, 64)
    xy = torch.tensor([[[18.0, 14], [38, 30], [24, 44]]])
    target, image = Keypoints2D(xy, torch.ones(1, 3), RGB), dots(xy, size, 3.0)
    net = SymmetricNet(small_trunk(), Colours()).eval()
    codec = Heatmap(5.0)
    wanted = centred(target, size).xy
    optimizer = torch.optim.Adam([net.theta.bias], 0.03)
    losses = []
    for _ in range(70):
        parallel = net.both(image)[1][-1]
        losses.append(codec.loss(parallel, wanted, target.conf, size))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.35 * losses[0]
    seen = transform(xy, inverse(net.theta.bias.detach().view(1, 2, 3)), size)
    assert (seen - wanted).norm(dim=-1).max() < 3 < (xy - wanted).norm(dim=-1).min()


def test_a_centred_person_fills_the_crop():
    xy = torch.tensor([[[10.0, 20], [20, 60], [500, 500]], [[3, 3], [3, 3], [3, 3]], [[1, 2], [3, 4], [5, 6]]])
    conf = torch.tensor([[1.0, 1, 0], [1, 1, 1], [0, 0, 0]])
    moved = centred(Keypoints2D(xy, conf, RGB), (100, 80)).xy
    # 40 pixels tall, to 100 / 1.25; the middle (15, 40) to the middle of the crop.
    torch.testing.assert_close(moved[0, :2], torch.tensor([[39.5 - 10, 49.5 - 40], [39.5 + 10, 49.5 + 40]]))
    assert moved[:2].isfinite().all() and moved[2].isfinite().all()


def test_the_parallel_branch_is_frozen():
    torch.manual_seed(0)
    net = SymmetricNet(small_trunk(), nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), _Listed()))
    posenet = SymmetricPoseNet(net, Heatmap(), RGB, (64, 64), PLAIN).train()
    before = {key: value.clone() for key, value in net.parallel.state_dict().items()}
    target = Keypoints2D(torch.rand(2, 3, 2) * 60, torch.ones(2, 3), RGB)
    optimizer = torch.optim.SGD([p for p in posenet.parameters() if p.requires_grad], 1e-5)
    for _ in range(2):
        optimizer.zero_grad()
        posenet.loss(torch.rand(2, 3, 64, 64), target).backward()
        optimizer.step()
    assert net.theta.weight.grad is not None and net.theta.weight.grad.abs().max() > 0
    assert all(torch.equal(value, before[key]) for key, value in net.parallel.state_dict().items())
    assert not torch.equal(net.pose[0].weight, net.parallel[0].weight)
    net.follow()
    assert torch.equal(net.pose[0].weight, net.parallel[0].weight)
    with pytest.raises(InputError, match="this network speaks of rgb, the targets are coco17"):
        posenet.loss(torch.rand(2, 3, 64, 64), Keypoints2D(torch.rand(2, 17, 2), torch.ones(2, 17), COCO17))


def test_the_loss_is_that_of_both_branches():
    """With nothing moved and a person in the middle, both say the same."""
    size, joints = (64, 64), torch.tensor([[[20.0, 6], [44, 57], [31.5, 31.5]]])
    target = centred(Keypoints2D(joints, torch.ones(1, 3), RGB), size)
    net = SymmetricPoseNet(SymmetricNet(small_trunk(), Colours()), Heatmap(), RGB, size, PLAIN).eval()
    image = torch.rand(1, 3, 64, 64)
    alone = net.codec.loss(image, target.xy, target.conf, size)
    assert net.loss(image, target).item() == pytest.approx(2 * alone.item(), rel=1e-4)


# ---- published sizes -----------------------------------------------------------------------------------------------
def test_fastpose():
    with torch.device("meta"):
        net = fastpose_r50().net.eval()
    with FlopCounterMode(display=False) as counter:
        (maps,) = net(torch.empty(1, 3, 256, 192, device="meta"))
    assert maps.shape == (1, 17, 64, 48)
    assert counter.get_total_flops() / 2e9 == pytest.approx(5.887, rel=0.01)
    assert net(torch.empty(1, 3, 384, 288, device="meta"))[0].shape == (1, 17, 96, 72)


def test_the_papers_network():
    with torch.device("meta"):
        net = rmpe_hourglass_4()
    own, parallel = (sum(p.numel() for p in part.parameters()) for part in (net.net.pose, net.net.parallel))
    assert own == parallel
    assert sum(p.numel() for p in net.net.locate.parameters()) == 11_689_512 - 513_000
    maps = net(torch.empty(1, 3, 256, 256, device="meta"))
    assert len(maps) == 4 and maps[-1].shape == (1, len(MPII16), 64, 64)
    with pytest.raises(InputError, match="SimCC reads something else"):
        rmpe_hourglass_4(codec=SimCC())
