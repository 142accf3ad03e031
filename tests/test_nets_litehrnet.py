"""Lite-HRNet: sizes, what its weightings look at, how its branches exchange. Published outputs: tests/test_known_networks.py."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from body3d.checkpoints import load_headed
from body3d.codecs import DSNT, Heatmap, SimCC
from body3d.errors import InputError
from body3d.nets import litehrnet
from body3d.nets.litehrnet import (
    ConditionalChannelWeighting,
    CrossResolutionWeighting,
    LiteHRNet,
    LiteModule,
    ShuffleUnit,
    SpatialWeighting,
)
from body3d.posenet import fused, on_trunk
from body3d.skeletons import COCO17, LSP14
from body3d.types import Keypoints2D

WIDTHS = (8, 16, 24, 32)


def small(naive=False, released=True):
    torch.manual_seed(0)
    return fresh(LiteHRNet((1, 1, 1), WIDTHS, naive, released))


def fresh(net):
    """In eval mode, with weights of a size that is seen, and statistics that are not 0 and 1."""
    torch.manual_seed(1)
    for name, values in net.state_dict().items():
        if name.endswith("running_var") or (name.endswith("weight") and values.ndim == 1):
            values.uniform_(0.5, 1.5)
        elif name.endswith("running_mean") or name.endswith("bias"):
            values.normal_(0, 0.1)
        elif values.ndim > 1:
            values.normal_(0, values[0].numel() ** -0.5)
    return net.eval()


def branches(widths=WIDTHS[:3], size=8, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(2, c, size >> i, size >> i, generator=random) for i, c in enumerate(widths)]


# ---- cost ----------------------------------------------------------------------------------------------------------
def macs(module, *inputs):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() / 2e6


@pytest.mark.parametrize(
    ("name", "parameters", "paper", "public_code"),
    [
        ("litehrnet_18", 1_130_769, 205.2, 242),
        ("litehrnet_30", 1_763_717, 319.2, 386),
        ("naive_litehrnet_18", 760_365, None, None),
        ("naive_litehrnet_18_wide", 1_318_625, None, None),
    ],
)
def test_published_sizes(name, parameters, paper, public_code):
    """Millions of multiply-accumulates at 256x192. The public code makes what the finest branch gives to the others twice; the
    paper's count does not include that."""
    with torch.device("meta"):
        net = getattr(litehrnet, name)().eval()
        image = torch.empty(1, 3, 256, 192)
        assert sum(p.numel() for p in net.parameters()) == parameters
        once = macs(net, image)
        if paper is None:
            return
        assert once == pytest.approx(paper, rel=0.04)
        twice = 0.0
        for module in net.modules():
            if isinstance(module, LiteModule):
                finest = torch.empty(1, 40, 64, 48)
                twice += sum(macs(row[0], finest) for row in list(module.fuse_layers)[1:])
    assert once + twice == pytest.approx(public_code, abs=1)


# ---- weightings ----------------------------------------------------------------------------------------------------
def test_weights_across_resolutions():
    """They are in 0..1, of the coarsest resolution, and every branch has a say in every other's."""
    torch.manual_seed(0)
    weigh = fresh(CrossResolutionWeighting(WIDTHS[:3], reduction=2))
    seen = branches()
    before = weigh.weights(seen)
    assert [w.shape for w in before] == [(2, c, 2, 2) for c in WIDTHS[:3]]
    assert all(w.min() > 0 and w.max() < 1 for w in before)
    for i in range(3):
        other = [x + (i == j) for j, x in enumerate(seen)]
        assert all((a - b).abs().max() > 1e-4 for a, b in zip(before, weigh.weights(other), strict=True))
    for x, w, out in zip(seen, before, weigh(seen), strict=True):
        factor = x.shape[-1] // 2
        torch.testing.assert_close(out, x * w.repeat_interleave(factor, -1).repeat_interleave(factor, -2))


def test_weights_of_a_place_come_from_that_place():
    """Averaging keeps quarters of the image apart."""
    weigh = fresh(CrossResolutionWeighting(WIDTHS[:3], reduction=2))
    seen, moved = branches(), branches()
    for x in moved:
        half = x.shape[-1] // 2
        x[..., :half, :half] += 1
    for a, b in zip(weigh.weights(seen), weigh.weights(moved), strict=True):
        different = (a != b).any(1)[0]
        assert different.tolist() == [[True, False], [False, False]]


def test_spatial_weights_are_one_per_channel():
    weigh, x = fresh(SpatialWeighting(16)), torch.randn(2, 16, 4, 5)
    factor = weigh(x) / x
    torch.testing.assert_close(factor, factor[..., :1, :1].expand_as(factor))
    assert factor.min() > 0 and factor.max() < 1
    mixed = x.flatten(2)[..., torch.randperm(20)].unflatten(2, (4, 5))
    torch.testing.assert_close((weigh(mixed) / mixed)[..., 0, 0], factor[..., 0, 0])


@pytest.mark.parametrize("block", [ConditionalChannelWeighting([16]), ShuffleUnit(16)])
def test_half_the_channels_go_through_and_are_interleaved(block):
    fresh(block)
    x = torch.randn(2, 16, 4, 4)
    out = block([x])[0] if isinstance(block, ConditionalChannelWeighting) else block(x)
    assert torch.equal(out[:, 0::2], x[:, :8])
    assert not torch.equal(out[:, 1::2], x[:, 8:])
    other = x.clone()
    other[:, :8] += 1  # the other half sees none of it
    again = block([other])[0] if isinstance(block, ConditionalChannelWeighting) else block(other)
    torch.testing.assert_close(again[:, 1::2], out[:, 1::2])


# ---- exchange ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("naive", [False, True])
def test_exchange(naive):
    """Plain: each output is the ReLU of the sum over the branches. Released: as its docstring says."""
    plain, released = (fresh(LiteModule(WIDTHS[:3], naive=naive, released=r)) for r in (False, True))
    released.load_state_dict(plain.state_dict())
    blocks = (lambda xs: [f(x) for f, x in zip(plain.layers, xs, strict=True)]) if naive else plain.layers
    inside = blocks(branches())
    to = lambda i, xs: [plain.fuse_layers[i][j](x) for j, x in enumerate(xs)]
    for i, out in enumerate(plain(branches())):
        torch.testing.assert_close(out, sum(to(i, inside)).relu())
    finest = sum(to(0, inside)) + inside[0]
    after = [finest, *inside[1:]]
    expected = [finest.relu(), *((sum(to(i, after)) + to(i, after)[0]).relu() for i in (1, 2))]
    for out, true in zip(released(branches()), expected, strict=True):
        torch.testing.assert_close(out, true)


def test_every_branch_reaches_the_output():
    net = small()
    image = torch.randn(1, 3, 64, 96)
    (out,) = net(image)
    assert out.shape == (1, WIDTHS[0], 16, 24)
    with torch.no_grad():
        for project in net.head_layer.projects[:-1]:
            kept = project["pointwise_conv"][0].weight.clone()
            project["pointwise_conv"][0].weight.zero_()
            assert not torch.allclose(net(image)[0], out)
            project["pointwise_conv"][0].weight.copy_(kept)
    torch.testing.assert_close(net(image)[0], out)


# ---- as a PoseNet --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize("codec", [Heatmap(), SimCC()])
def test_with_codecs(naive, codec):
    net = on_trunk(small(naive), codec, LSP14, (64, 64))
    image = torch.rand(2, 3, 64, 64)
    target = Keypoints2D(20 + 24 * torch.rand(2, 14, 2), torch.ones(2, 14), LSP14)
    net.train().loss(image, target).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    seen, faster = net.eval().predict(image, flip=True), fused(net).predict(image, flip=True)
    torch.testing.assert_close(seen.xy, faster.xy, atol=1e-2, rtol=0)
    alone = net.predict(image[1:], flip=True)
    torch.testing.assert_close(alone.xy[0], seen.xy[1], atol=1e-3, rtol=0)


@pytest.mark.parametrize("head", ["head.final_layer.", "keypoint_head.final_layer."])
def test_published_names_load(tmp_path, head):
    """Those of mmpose and of the authors."""
    net, other = (on_trunk(small(), Heatmap(), LSP14, (64, 64)) for _ in range(2))
    fresh(other.net)
    state = {}
    for key, value in other.net.state_dict().items():
        part, _, rest = key.partition(".")
        state[("backbone." if part == "trunk" else head) + rest] = value
    torch.save({"state_dict": state}, tmp_path / "lite.pth")
    load_headed(net.net, tmp_path / "lite.pth")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in net.state_dict().items())
    with pytest.raises(InputError, match=r"lite.pth holds .*not what was asked for"):
        litehrnet.naive_litehrnet_18(weights=tmp_path / "lite.pth")


def test_bad_sizes():
    with pytest.raises(InputError, match=r"three numbers of modules and four even widths .* got \(1, 1\)"):
        LiteHRNet((1, 1))
    with pytest.raises(InputError, match="four even widths"):
        LiteHRNet(widths=(8, 16, 24, 31))
    with pytest.raises(InputError, match="crops of 256 x 192"):
        litehrnet.naive_litehrnet_18(COCO17)(torch.rand(1, 3, 64, 64))


@pytest.mark.slow
def test_a_small_one_learns_four_images_by_heart():
    torch.manual_seed(0)
    net = on_trunk(LiteHRNet((1, 1, 1), (16, 32, 64, 128)), DSNT(), LSP14, (64, 64))
    for conv in net.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight)
    image = torch.rand(4, 3, 64, 64)
    target = Keypoints2D(10 + 44 * torch.rand(4, 14, 2), torch.ones(4, 14), LSP14)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        net.loss(image, target).backward()
        optimizer.step()
    assert (net.train().predict(image).xy - target.xy).norm(dim=-1).median() < 1.5
