import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from body3d.codecs import Heatmap
from body3d.codecs.base import from_grid
from body3d.codecs.peaks import dark
from body3d.dataset_joints import FLIC9, LSP14, MPII16
from body3d.errors import InputError
from body3d.joint_set import JointSet, tree
from body3d.layers import BasicBlock, PreActBottleneck
from body3d.nets.chained import (
    CellSoftmax,
    Chain,
    ChainedPoseNet,
    SimplifiedChain,
    chain_order,
    chained,
    chained_simplified,
)
from body3d.nets.fpm import (
    PyramidHourglass,
    PyramidResidual,
    PyraNet,
    fractional_max_pool,
    init_branched,
    pyranet_2,
    pyranet_8,
    pyranet_8_released,
)
from body3d.nets.hourglass import Hourglass
from body3d.nets.mca import MCA, AttendedHourglass, CRFAttention, HourglassResidual, mca, mca_released
from body3d.nets.resnet import ResNet
from body3d.posenet import PLAIN, PoseNet
from body3d.skeletons import COCO17
from body3d.types import Keypoints2D

TOY = tree("toy", ("left_a<top", "right_a<top", "top"))
SIZE, GRID = (64, 64), (16, 16)


def fresh(net, seed=0):
    """In eval mode, with statistics and weights of batch norms that are not 0 and 1."""
    torch.manual_seed(seed)
    for name, values in net.state_dict().items():
        if name.endswith("running_var") or (name.endswith("weight") and values.ndim == 1):
            values.uniform_(0.5, 1.5)
        elif name.endswith("running_mean") or name.endswith("bias"):
            values.normal_(0, 0.1)
    return net.eval()


LARGE = [pytest.param(build, marks=pytest.mark.slow) for build in (mca, mca_released, pyranet_8, pyranet_8_released)]


@pytest.mark.parametrize("build", [chained, chained_simplified, pyranet_2, *LARGE])
def test_sizes_are_as_said(build):
    """The published count of the simplified chain, our own of the others."""
    with torch.device("meta"):
        net = build()
    million = float(re.search(r"([\d.]+) million", build.__doc__)[1])
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(million, abs=0.05)


# ---- chains --------------------------------------------------------------------------------------------------------
def small_chain(order=(2, 0, 3, 1)):
    torch.manual_seed(0)
    return Chain(order, ResNet(BasicBlock, (1, 1, 1, 1)), hidden=8, embedding=4, width=4)


def one_hot(n, joints, seed=0):
    place = torch.randint(GRID[0] * GRID[1], (n, joints), generator=torch.Generator().manual_seed(seed))
    return F.one_hot(place, GRID[0] * GRID[1]).float().unflatten(-1, GRID)


@pytest.mark.parametrize("training", [False, True])
def test_a_joint_depends_on_those_before_it_alone(training):
    chain = fresh(small_chain()).train(training)
    image, teacher = torch.randn(3, 3, *SIZE), one_hot(3, 4)
    before = chain(image, teacher)[0]
    for t, joint in enumerate(chain.order):
        other = teacher.clone()
        other[:, joint] = teacher[:, joint].roll((3, -5), (-2, -1))
        moved = (chain(image, other)[0] - before).abs().amax((0, 2, 3))
        for later, j in enumerate(chain.order):
            assert (moved[j] > 1e-5) if later > t else (moved[j] == 0), (t, later)


def test_predictions_stand_for_what_is_not_known():
    chain = fresh(small_chain())
    image, teacher = torch.randn(2, 3, *SIZE), one_hot(2, 4)
    alone = chain(image)[0]
    # A chain that is taught its own predictions predicts them.
    torch.testing.assert_close(chain(image, alone.flatten(2).softmax(-1).unflatten(-1, GRID))[0], alone)
    torch.testing.assert_close(chain(image, teacher, torch.zeros(2, 4, dtype=torch.bool))[0], alone)
    taught = chain(image, teacher)[0]
    assert (taught - alone)[:, chain.order[0]].abs().max() == 0
    assert (taught - alone)[:, chain.order[-1]].abs().max() > 1e-4
    known = torch.tensor([[True] * 4, [False] * 4])
    torch.testing.assert_close(chain(image, teacher, known)[0], torch.stack([taught[0], alone[1]]))


@pytest.mark.parametrize("joints", [MPII16, LSP14, COCO17, FLIC9, TOY])
def test_chains_go_along_the_tree(joints):
    order = chain_order(joints)
    assert sorted(order) == list(range(len(joints)))
    reached = {order[0]}
    bones = {frozenset(bone) for bone in joints.bones}
    for joint in order[1:]:
        hangs = any(frozenset((joint, other)) in bones for other in reached)
        others = [j for j in range(len(joints)) if any(joint in bone and j in bone for bone in bones) and j != joint]
        assert hangs or not reached & set(others)
        reached.add(joint)
    if joints is MPII16:
        names = [joints.names[i] for i in order]
        assert names[:3] == ["head_top", "upper_neck", "thorax"]
        assert set(names[-2:]) == {"left_ankle", "right_ankle"}


def test_the_loss_of_cells():
    torch.manual_seed(0)
    raw, codec = torch.randn(2, 3, 4, 8), CellSoftmax()
    cells = torch.tensor([[[0.0, 0.0], [7.0, 3.0], [2.0, 1.0]], [[5.0, 2.0], [3.0, 3.0], [9.0, 1.0]]])
    xy = from_grid(cells + 0.4, (4, 8), (16, 32))  # off, but nearest to these cells
    index = (cells[..., 1] * 8 + cells[..., 0]).long().clamp_max(31)
    surprise = F.cross_entropy(raw.flatten(2).permute(0, 2, 1), index, reduction="none")
    weight = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])  # the last one lies outside of the map
    expected = (surprise[0, :2].sum() + surprise[1, :2].sum()) / 4
    torch.testing.assert_close(codec.loss(raw, xy, weight, (16, 32)), expected)
    assert codec.loss(raw, xy, torch.zeros(2, 3), (16, 32)) == 0


def test_reading_cells():
    xy = torch.tensor([[[20.3, 30.9], [40.0, 11.7]]])
    target, there = CellSoftmax().target(xy, SIZE, GRID)
    assert there.all() and (target.sum((-1, -2)) == 1).all()
    found, conf = CellSoftmax().decode(20 * target, SIZE)
    assert (found - xy).abs().max() <= 2  # half a cell
    assert (conf > 0.99).all()
    soft = CellSoftmax(sigma=1.0, decoder=lambda maps: dark(maps, None))
    target, _ = soft.target(xy, SIZE, GRID)
    torch.testing.assert_close(target.sum((-1, -2)), torch.ones(1, 2))
    torch.testing.assert_close(soft.decode(target.clamp_min(1e-12).log(), SIZE)[0], xy, atol=1e-2, rtol=0)
    turned = soft.mirror(target.flip(-1)[:, [1, 0]], (1, 0))
    torch.testing.assert_close(turned, target)


def test_a_chain_is_taught_with_what_is_known():
    net = ChainedPoseNet(small_chain((0, 1, 2)), CellSoftmax(), TOY, SIZE, PLAIN)
    fresh(net)
    image, xy = torch.rand(2, 3, *SIZE), torch.tensor([[[8.0, 9.0], [40.0, 30.0], [50.0, 20.0]]]).repeat(2, 1, 1)
    conf = torch.ones(2, 3)
    loss = net.loss(image, Keypoints2D(xy, conf, TOY))
    # The chain's first joint is taught what the true maps say to the others.
    raw = net.net(image, CellSoftmax().target(xy, SIZE, GRID)[0])[0]
    torch.testing.assert_close(loss, CellSoftmax().loss(raw, xy, conf, SIZE))
    moved = xy.clone()
    moved[:, 0] += 20
    conf[:, 0] = 0
    unknown = [net.loss(image, Keypoints2D(p, conf, TOY)) for p in (xy, moved)]
    torch.testing.assert_close(*unknown, atol=0, rtol=0)
    assert net.predict(image).xy.shape == (2, 3, 2)
    with pytest.raises(InputError, match="speaks of toy, the targets are other"):
        net.loss(image, Keypoints2D(xy, conf, JointSet("other", TOY.names, TOY.parents)))
    with pytest.raises(InputError, match=r"predicts 4 joints in the order \(2, 0, 3, 1\), toy has 3"):
        ChainedPoseNet(small_chain(), CellSoftmax(), TOY, SIZE)


def test_the_simplified_chain_sees_earlier_maps():
    net, image = fresh(SimplifiedChain(3)), torch.randn(1, 3, 64, 96)
    before = net(image)[0].detach()
    assert before.shape == (1, 3, 8, 12)
    with torch.no_grad():
        net.deception[1].end.bias.add_(1.0)
    moved = (net(image)[0].detach() - before)[0].abs().amax((-1, -2))
    assert moved[0] == 0 and moved[1].item() == pytest.approx(1, rel=1e-4) and moved[2] > 1e-4


# ---- multi-context attention ---------------------------------------------------------------------------------------
def test_without_a_kernel_the_attention_is_the_sigmoid_of_the_unary():
    torch.manual_seed(0)
    crf, x = CRFAttention(6, 2, kernel=5), torch.randn(2, 6, 9, 7)
    for parameter in crf.pairwise.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(crf(x), crf.unary(x).sigmoid())


@pytest.mark.parametrize("kernel", [1, 3, 11])
def test_mean_field_by_hand(kernel):
    """Cell by cell, with one kernel for all rounds."""
    torch.manual_seed(0)
    crf, x = CRFAttention(3, 1, kernel).double(), torch.randn(1, 3, 5, 6).double()
    assert sum(p.numel() for p in crf.parameters()) == 9 * 3 + 1 + kernel**2 + 1
    u = crf.unary(x)[0, 0]
    weight, bias, reach = crf.pairwise.weight[0, 0], crf.pairwise.bias[0], kernel // 2
    q = u
    for _ in range(3):
        new = torch.empty_like(u)
        for i in range(5):
            for j in range(6):
                s = u[i, j] + bias
                for a in range(max(0, i - reach), min(5, i + reach + 1)):
                    for b in range(max(0, j - reach), min(6, j + reach + 1)):
                        s = s + weight[a - i + reach, b - j + reach] * q[a, b]
                new[i, j] = s.sigmoid()
        q = new
    torch.testing.assert_close(crf(x)[0, 0], q)
    with pytest.raises(InputError, match="odd; got 4"):
        CRFAttention(3, 1, 4)


def test_each_part_has_a_map_of_its_own():
    """K maps in one are K attentions with their own U and kernel, and a score is read from its own map's features."""
    torch.manual_seed(0)
    net = fresh(MCA(3, stacks=1, width=16, depth=2, kernel=3))
    stack, x = net.stacks[0], torch.randn(2, 16, 8, 8)
    score, _ = stack(x)
    *coarse, fine = stack.hourglass.pyramid(x)
    seen = stack.wide(stack.narrow(fine))
    assert seen.shape[1] == 32  # the last stack is twice as wide
    holistic = stack.fine(seen) + F.interpolate(stack.coarse[0](coarse[0]), scale_factor=2)
    seen = holistic * seen
    for k in range(3):
        single = CRFAttention(32, 1, 3)
        single.load_state_dict({key: value[k : k + 1] for key, value in stack.part.state_dict().items()})
        own = single(seen) * seen
        expected = F.conv2d(own, stack.score.weight[k : k + 1], stack.score.bias[k : k + 1])
        torch.testing.assert_close(score[:, k : k + 1], expected)


def test_where_parts_and_resolutions_are_attended_to():
    with torch.device("meta"):
        paper = MCA(16, width=16, depth=3).stacks
        released = MCA(16, width=16, depth=3, kernel=1, multi_resolution=False).stacks
    for stacks in (paper, released):
        assert [stack.part is not None for stack in stacks] == [False] * 4 + [True] * 4
        assert [stack.score.in_channels for stack in stacks] == [16] * 7 + [32]
    assert {len(stack.coarse) for stack in paper} == {2} and {len(stack.coarse) for stack in released} == {0}
    assert paper[7].part.pairwise.weight.shape == (16, 1, 11, 11) and released[0].fine.pairwise.kernel_size == (1, 1)


def test_the_third_branch_is_added():
    torch.manual_seed(0)
    unit, x = fresh(HourglassResidual(8, 6)), torch.randn(2, 8, 7, 10)  # odd sizes too
    third = unit(x) - unit.residual(x)
    norm, _, _, first, middle, _, last = unit.pooled
    y = F.max_pool2d(norm(x).relu(), 2)
    y = last(middle(first(y)).relu())
    torch.testing.assert_close(third, F.interpolate(y, (7, 10)))
    nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
    torch.testing.assert_close(unit(x), unit.residual(x))


def test_the_hourglass_with_hrus_is_an_hourglass():
    net, x = fresh(AttendedHourglass(8)), torch.randn(1, 8, 32, 48)
    levels = net.pyramid(x)
    assert [tuple(level.shape[-2:]) for level in levels] == [(4, 6), (8, 12), (16, 24), (32, 48)]
    torch.testing.assert_close(levels[-1], Hourglass.forward(net, x))
    units = [sum(isinstance(m, HourglassResidual) for m in level[0]) for level in net.hg]
    assert units == [0, 0, 1, 2]


# ---- feature pyramids ----------------------------------------------------------------------------------------------
def test_halving_is_max_pooling():
    x = torch.randn(2, 3, 8, 12)
    assert torch.equal(fractional_max_pool(x, 0.5, random=False), F.max_pool2d(x, 2))


@pytest.mark.parametrize("ratio", [0.5, 0.6, 2**-0.25, 0.97])
@pytest.mark.parametrize("random", [False, True])
def test_fractional_pooling_takes_maxima_in_order(ratio, random):
    ramp = torch.arange(13.0).expand(1, 1, 11, 13)
    pooled = fractional_max_pool(ramp, ratio, random)
    assert pooled.shape == (1, 1, int(11 * ratio), int(13 * ratio))
    row = pooled[0, 0, 0]
    assert (pooled == row).all()  # columns go together
    assert row[-1] == 12 and row[0] <= 3 and ((row.diff() >= 1) & (row.diff() <= 3)).all()


def small_residual(**changes):
    torch.manual_seed(0)
    return fresh(PyramidResidual(18, 36, **changes))


def test_without_pooling_the_pyramid_is_parallel_convolutions():
    block, x = small_residual(), torch.randn(2, 4, 9, 9)
    block.ratios = (1.0,) * 4
    expected = sum(F.conv2d(x, conv.weight, conv.bias, padding=1) for conv in block.scales)
    torch.testing.assert_close(block.pyramid(x), expected)
    # Which is one convolution with the sum of their weights.
    weight, bias = (sum(getattr(conv, name) for conv in block.scales) for name in ("weight", "bias"))
    torch.testing.assert_close(block.pyramid(x), F.conv2d(x, weight, bias, padding=1))


@pytest.mark.parametrize("size", [(7, 9), (5, 5), (16, 12), (4, 4)])
def test_pyramids_keep_the_size(size):
    assert small_residual()(torch.randn(2, 18, *size)).shape == (2, 36, *size)


def test_pooling_is_random_in_training_alone():
    block, x = small_residual(), torch.randn(2, 18, 9, 9)
    assert torch.equal(block(x), block(x))
    block.train()
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    assert not torch.equal(block(x), block(x))


def test_each_scale_sees_its_own():
    """A constant is what pooling leaves alone: each convolution gives its sum, away from the border."""
    block = small_residual()
    inside = block.pyramid(torch.ones(1, 4, 32, 32))[0, :, 8:24, 8:24]
    expected = sum(conv.weight.sum((1, 2, 3)) + conv.bias for conv in block.scales)
    torch.testing.assert_close(inside, expected[:, None, None].expand_as(inside))


def test_without_levels_it_is_a_plain_residual():
    block, plain = fresh(PyramidResidual(16, 16, levels=0)), PreActBottleneck(16, 16)
    parts = (block.main[0], block.main[2], block.main[3], block.main[5], block.last[0], block.last[2])
    for ours, name in zip(parts, ("bn1", "conv1", "bn2", "conv2", "bn3", "conv3"), strict=True):
        plain.get_submodule(name).load_state_dict(ours.state_dict())
    x = torch.randn(2, 16, 6, 6)
    torch.testing.assert_close(block(x), plain.eval()(x))


def test_branches_start_with_their_variance_kept():
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 32, 3)
    init_branched(conv, sources=4, targets=2)
    assert conv.weight.std().item() == pytest.approx((4 / (9 * (4 * 64 + 2 * 32))) ** 0.5, rel=0.02)
    # With one branch and as many outputs as inputs, a ReLU's output keeps its mean square.
    torch.manual_seed(0)
    x = torch.randn(64, 256, 1, 1).relu()
    for _ in range(10):
        conv = nn.Conv2d(256, 256, 1)
        init_branched(conv)
        x = conv(x).relu()
    assert 0.3 < x.square().mean() / 0.5 < 3
    block = PyramidResidual(256, 256, levels=4, base=9)
    assert block.onto[-1].weight.std().item() == pytest.approx((4 / (4 * 28 + 128)) ** 0.5, rel=0.05)
    assert block.into[-3].weight.std().item() == pytest.approx((4 / (256 + 4 * 28)) ** 0.5, rel=0.05)


def test_pyramids_are_where_maps_are_large():
    with torch.device("meta"):
        hourglass = PyramidHourglass(18)
    pyramids = [[len(getattr(block, "ratios", ())) for block in level] for level in hourglass.hg]
    assert pyramids == [[0, 0, 0, 0], [4, 0, 0], [4, 4, 4], [4, 4, 4]]
    for level in hourglass.hg:
        assert isinstance(level[2].skip, nn.Sequential)  # no identity where two residuals meet
        assert all(not isinstance(getattr(level[i], "skip", None), nn.Sequential) for i in (0, 1))
    with torch.device("meta"):
        assert len(PyraNet(1, 2, 24, levels=30, base=6, depth=1).layer3.scales) == 30


@pytest.mark.slow
def test_weights_of_a_builder(tmp_path):
    net = fresh(pyranet_2(TOY))
    torch.save(net.state_dict(), tmp_path / "pyra.pt")
    read = pyranet_2(TOY, weights=tmp_path / "pyra.pt")
    assert not read.training
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in read.state_dict().items())
    with pytest.raises(InputError, match=r"pyra.pt holds .*not what was asked for"):
        mca(weights=tmp_path / "pyra.pt")


# ---- learning ------------------------------------------------------------------------------------------------------
def dots(n, joints, size, seed=0):
    """Images of coloured dots on noise, and where they are."""
    random = torch.Generator().manual_seed(seed)
    height, width = size
    xy = 8 + torch.rand(n, len(joints), 2, generator=random) * torch.tensor([width - 16.0, height - 16.0])
    colours = torch.rand(len(joints), 3, generator=random)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    blobs = torch.exp(-((torch.stack([x, y], -1) - xy[:, :, None, None]).square().sum(-1)) / 12.5)
    image = torch.einsum("njhw,jc->nchw", blobs, colours).clamp(0, 1)
    return image + 0.1 * torch.rand(image.shape, generator=random), Keypoints2D(xy, torch.ones(xy.shape[:2]), joints)


def overfit(net: PoseNet, steps: int, lr: float) -> float:
    """Pixels that a network is off, on average, on the four images that it has just learnt."""
    image, target = dots(4, net.joints, net.size)
    optimizer = torch.optim.Adam(net.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    net.train()
    for _ in range(steps):
        optimizer.zero_grad()
        net.loss(image, target).backward()
        optimizer.step()
        schedule.step()
    # Batch statistics of the same images: running ones need more steps than the weights.
    return (net.predict(image).xy - target.xy).norm(dim=-1).mean().item()


@pytest.mark.slow
def test_a_small_chain_overfits_four_images():
    net = small_chain((2, 0, 1))
    assert overfit(ChainedPoseNet(net, CellSoftmax(sigma=0.7, decoder=dark), TOY, SIZE, PLAIN), 60, 3e-3) < 1.5


@pytest.mark.slow
def test_a_small_mca_overfits_four_images():
    torch.manual_seed(0)
    net = MCA(len(TOY), stacks=2, width=32, depth=3, parts_from=1)
    assert overfit(PoseNet(net, Heatmap(sigma=1.5), TOY, SIZE, PLAIN), 150, 5e-3) < 1.5


@pytest.mark.slow
def test_a_small_pyranet_overfits_four_images():
    torch.manual_seed(0)
    net = PyraNet(2, len(TOY), width=36, depth=3)
    assert overfit(PoseNet(net, Heatmap(sigma=1.5), TOY, SIZE, PLAIN), 60, 5e-3) < 1.5
