import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from body3d.checkpoints import load_headed, load_imagenet, load_into
from body3d.codecs import Codec, Heatmap, PIPNet, SimCC
from body3d.codecs.base import from_fraction
from body3d.codecs.flow import RLEHead
from body3d.dataset_joints import FLIC9, LSP14
from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.layers import BasicBlock, Bottleneck, PreActBottleneck, SqueezeExcite, conv_bn, deconv_layers
from body3d.nets import resnet
from body3d.nets.cpm import CPM, Beliefs, ReleasedCPM, centre_map, from_caffe
from body3d.nets.deeppose import AlexNet, Cascade, Displacements, crop, deeppose, from_box, to_box
from body3d.nets.hourglass import StackedHourglass, hourglass_2
from body3d.nets.hrnet import HRNet
from body3d.nets.resnet import PlainRLEHead, PoseResNet, ResNet, resnet18, resnet34, resnet50, resnet101, resnet152
from body3d.posenet import PLAIN, Headed, PoseNet, on_trunk
from body3d.skeletons import COCO17
from body3d.types import Keypoints2D

KNOWN = Path(__file__).parent / "known_answers"
TOY = JointSet("toy", ("left_a", "right_a", "top"), (-1, -1, -1))
JOINTS98 = JointSet("points98", tuple(f"point{i}" for i in range(98)), (-1,) * 98)


def parameters(net):
    return sum(p.numel() for p in net.parameters())


def fresh(net, seed=0):
    """In eval mode, with statistics and weights of batch norms that are not 0 and 1."""
    torch.manual_seed(seed)
    for name, values in net.state_dict().items():
        if name.endswith("running_var") or (name.endswith("weight") and values.ndim == 1):
            values.uniform_(0.5, 1.5)
        elif name.endswith("running_mean") or name.endswith("bias"):
            values.normal_(0, 0.1)
    return net.eval()


# ---- layers and ResNet ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "count"),
    [
        # torchvision's published counts, less those of the classifier
        (resnet18, 11_689_512 - 513_000),
        (resnet34, 21_797_672 - 513_000),
        (resnet50, 25_557_032 - 2_049_000),
        (resnet101, 44_549_160 - 2_049_000),
        (resnet152, 60_192_808 - 2_049_000),
    ],
)
def test_resnets_have_the_published_size(make, count):
    with torch.device("meta"):
        assert parameters(make()) == count


@pytest.mark.parametrize("stride", [8, 16])
def test_dilated_resnets_see_what_strided_ones_see(stride):
    strided, dilated = (fresh(ResNet(Bottleneck, (2, 1, 2, 2), s)).double() for s in (32, stride))
    dilated.load_state_dict(strided.state_dict())
    image = torch.randn(1, 3, 128, 160).double()
    coarse, fine = strided(image)[0], dilated(image)[0]
    assert fine.shape[-2:] == (128 // stride, 160 // stride)
    every = 32 // stride
    torch.testing.assert_close(fine[..., ::every, ::every], coarse)


def test_a_block_that_adds_nothing_is_its_skip():
    x = torch.randn(2, 16, 6, 6)
    for block in (BasicBlock(16, 16), Bottleneck(16, 4)):
        nn.init.zeros_((block.bn2 if isinstance(block, BasicBlock) else block.bn3).weight)
        torch.testing.assert_close(block(x), x.relu())
    for spare in (False, True):
        block = PreActBottleneck(16, 16, spare)
        for parameter in block.conv3.parameters():
            nn.init.zeros_(parameter)
        torch.testing.assert_close(block(x), x)


def test_squeeze_excite_scales_channels_by_their_means():
    torch.manual_seed(0)
    se, x = SqueezeExcite(8, 2), torch.randn(3, 8, 5, 4)
    factor = se(x) / x
    torch.testing.assert_close(factor, factor[..., :1, :1].expand_as(factor))
    # What has the same means gets the same factors.
    mixed = x.flatten(2)[..., torch.randperm(20)].unflatten(2, (5, 4))
    torch.testing.assert_close((se(mixed) / mixed)[..., 0, 0], factor[..., 0, 0])


def test_sizes():
    x = torch.zeros(1, 8, 12, 10)
    for kernel in (1, 3, 5, 7):
        assert conv_bn(8, 4, kernel)(x.repeat(2, 1, 1, 1)).shape == (2, 4, 12, 10)
    assert conv_bn(8, 4, 3, dilation=2)(x).shape == (1, 4, 12, 10)
    for kernel in (2, 3, 4):
        assert deconv_layers(8, (4, 5), kernel)(x).shape == (1, 5, 48, 40)


# ---- cost ----------------------------------------------------------------------------------------------------------
def macs(net, size):
    net = net.to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, *size, device="meta"))
    return counter.get_total_flops() / 2


@pytest.mark.parametrize(
    ("make", "size", "billions"),
    [
        (lambda: HRNet(32), (256, 192), 7.645),
        (lambda: StackedHourglass(1, 16), (256, 256), 5.81),
        (lambda: StackedHourglass(2, 16), (256, 256), 8.99),
        (lambda: StackedHourglass(1, 16, princeton=True), (256, 256), 5.15),
        (lambda: StackedHourglass(2, 16, princeton=True), (256, 256), 8.34),
        (lambda: CPM(16), (368, 368), 175.44),
        (lambda: CPM(17), (256, 192), 63.74),
        (lambda: resnet.simplebaseline_r50().net, (256, 192), 5.43),
        (lambda: resnet.simcc_r50().net, (256, 192), 5.473),
        (lambda: resnet.simcc_r50(size=(384, 288)).net, (384, 288), 12.37),
        (lambda: resnet.deeppose_r50().net, (256, 192), 4.004),
        (lambda: resnet.rle_r50().net, (256, 192), 4.004),
        (lambda: resnet.ipr_r50().net, (256, 256), 7.235),
        (
            lambda: resnet.pipnet_r18(JOINTS98, PIPNet(tuple((i % 10.0, i // 10.0) for i in range(98)))).net,
            (256, 256),
            2.443,
        ),
    ],
)
def test_products(make, size, billions):
    """Multiply-accumulates as counted on the published code."""
    with torch.device("meta"):
        net = make()
    assert macs(net, size) / 1e9 == pytest.approx(billions, rel=0.01)


# ---- DeepPose ------------------------------------------------------------------------------------------------------
def test_crops_show_what_is_there():
    """On an image whose colours are the coordinates."""
    height, width, size = 40, 50, 16
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    image = torch.stack([x, y]).expand(2, 2, height, width)
    torch.manual_seed(0)
    centre = torch.tensor([22.0, 18.0]).double() + 4 * torch.rand(2, 5, 2).double()
    sides = 8 + 12 * torch.rand(2, 5, 2).double()
    seen = crop(image, centre, sides, size)
    assert seen.shape == (2, 5, 2, size, size)
    # A joint in the middle of pixel (column 11, row 3) of a crop.
    pixel = torch.tensor([11.0, 3.0]).double()
    relative = (pixel + 0.5) / size - 0.5
    torch.testing.assert_close(seen[..., 3, 11], from_box(relative.expand(2, 5, 2), centre, sides))


def test_a_perfect_displacement_comes_back_to_the_joint():
    torch.manual_seed(0)
    truth, estimate = 200 * torch.rand(4, 6, 2), 200 * torch.rand(4, 6, 2)
    sides = 30 + 50 * torch.rand(4, 6, 1).expand(4, 6, 2)
    back = from_box(to_box(truth, estimate, sides), estimate, sides)
    assert (back - truth).abs().max() < 1e-3

    class Sees(nn.Module):
        """Knows how far each joint is from the crop that it is called with."""

        def __init__(self, relative):
            super().__init__()
            self.relative = relative

        def forward(self, seen):
            return [self.relative]

    # The second stage is called with six crops per image, and only joint j of crop j counts.
    first = to_box(estimate, torch.tensor([127.5, 95.5]), torch.tensor([256.0, 192.0]))
    cascade = Cascade([Sees(first), nn.Identity()], (0, 5), size=8, sigma=1.5, least=0.0)
    side = 1.5 * (estimate[:, 0] - estimate[:, 5]).norm(dim=-1)[:, None, None]
    second = torch.randn(4, 6, 6, 2)
    for j in range(6):
        second[:, j, j] = ((truth - estimate) / side)[:, j]
    cascade.stages[1] = Sees(second.flatten(0, 1))
    one, two = (from_fraction(xy, (192, 256)) for xy in cascade(torch.zeros(4, 3, 192, 256)))
    assert (one - estimate).abs().max() < 1e-3
    assert (two - truth).abs().max() < 1e-3


def test_displacements():
    torch.manual_seed(0)
    diameter = 20 + 60 * torch.rand(4000)
    xy, weight = 100 * torch.rand(4000, 2, 2), torch.ones(4000, 2)
    mean, deviation = torch.tensor([[0.1, -0.2], [0.0, 0.3]]), torch.tensor([[0.05, 0.1], [0.2, 0.3]])
    estimate = xy + diameter[:, None, None] * (mean + deviation * torch.randn(4000, 2, 2))
    estimate[:2000, 0] += 1e4
    weight[:2000, 0] = 0
    errors = Displacements.of(estimate, xy, weight, diameter)
    torch.testing.assert_close(errors.mean, mean, atol=0.02, rtol=0)
    torch.testing.assert_close(errors.deviation, deviation, atol=0.02, rtol=0)
    drawn = errors.sample(torch.tensor([[0, 1]]).expand(4000, 2), diameter) / diameter[:, None, None]
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(drawn.std(0), deviation, atol=0.03, rtol=0)


class Strided(nn.Module):
    """Strided convolutions to a single vector, then the joints."""

    def __init__(self, joints, width=24):
        super().__init__()
        self.joints = joints
        self.net = nn.Sequential(
            *(m for i in range(3) for m in (nn.Conv2d(width if i else 3, width, 3, 2, 1), nn.ReLU())),
            nn.Flatten(), nn.Linear(9 * width, 64), nn.ReLU(), nn.Linear(64, 2 * joints),
        )  # fmt: skip

    def forward(self, seen):
        return [self.net(seen).unflatten(-1, (self.joints, 2))]


def torsos(n, random, size=96):
    """Four dots of different colours on noise: images, and where the dots are."""
    centre = size * (0.35 + 0.3 * torch.rand(n, 1, 2, generator=random))
    corners = torch.tensor([[-1.0, -1], [1, -1], [-1, 1], [1, 1]])
    xy = centre + 0.2 * size * corners + 0.08 * size * torch.randn(n, 4, 2, generator=random)
    dots = centre_map((size, size), xy.flatten(0, 1), 2.5, xy).unflatten(0, (n, 4))[:, :, 0]
    image = torch.einsum("njhw,jc->nchw", dots, torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]))
    return image + 0.05 * torch.randn(image.shape, generator=random), xy


def test_every_stage_of_the_cascade_is_nearer():
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    (image, xy), (unseen, truth) = torsos(384, random), torsos(96, random)
    net, weight = Cascade([Strided(4) for _ in range(3)], (0, 3), size=24), torch.ones(384, 4)
    errors, estimate = None, None
    for stage in range(3):
        optimizer = torch.optim.Adam(net.stages[stage].parameters(), 3e-3)
        for _ in range(100):
            rows = torch.randint(len(image), (32,), generator=random)
            loss = net.loss(stage, image[rows], xy[rows], weight[rows], errors, crops=4, random=random)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            estimate = net.refine(stage, image, estimate)
            errors = Displacements.of(estimate, xy, weight, net.diameter(image, xy))
    with torch.no_grad():
        estimates = [from_fraction(xy, (96, 96)) for xy in net(unseen)]
    distances = [(xy - truth).norm(dim=-1).mean().item() for xy in estimates]
    assert distances[1] < 0.6 * distances[0]
    assert distances[2] < 0.9 * distances[1]


def test_the_papers_network():
    with torch.device("meta"):
        net = AlexNet()
    # Filters and biases layer by layer, from the paper's sizes.
    shapes = [(96, 3, 11), (256, 96, 5), (384, 256, 3), (384, 384, 3), (256, 384, 3), (4096, 9216, 1), (4096, 4096, 1)]
    assert parameters(net) == sum(o * (i * k * k + 1) for o, i, k in shapes)
    assert net(torch.empty(2, 3, 220, 220, device="meta"))[0].shape == (2, 4096, 1, 1)


# ---- convolutional pose machines -----------------------------------------------------------------------------------
def reach(output, image):
    """Height of the part of the image that the middle of a map depends on."""
    middle = output[0, :, output.shape[-2] // 2, output.shape[-1] // 2].sum()
    (gradient,) = torch.autograd.grad(middle, image, retain_graph=True)
    rows = (gradient.abs().sum((0, 1, 3)) > 0).nonzero().flatten()
    return int(rows[-1] - rows[0] + 1)


@pytest.mark.parametrize(
    ("make", "later"), [(lambda: CPM(2, 3, 4, 2, 4), "middle_conv"), (lambda: ReleasedCPM(2, 3, 4), "stages")]
)
def test_receptive_field(make, later):
    """Each stage sees further; the paper asks for 400 pixels. Positive weights and images: no path dies or cancels."""
    torch.manual_seed(0)
    net = make().eval()
    for parameter in net.parameters():
        parameter.data.abs_()
    image = torch.rand(1, 3, 16, 640).transpose(2, 3).contiguous().requires_grad_()
    reaches = [reach(belief, image) for belief in net(image)]
    assert reaches == sorted(set(reaches))
    assert reaches[-1] >= 400


def test_the_released_network():
    """Its size, layer by layer: VGG-19 to conv4_2, 14 joints and a background."""
    convs = [(3, 64, 3), (64, 64, 3), (64, 128, 3), (128, 128, 3), (128, 256, 3), *[(256, 256, 3)] * 3, (256, 512, 3)]
    convs += [(512, 512, 3), (512, 256, 3), *[(256, 256, 3)] * 3, (256, 128, 3), (128, 512, 1), (512, 15, 1)]
    convs += 5 * [(128 + 15 + 1, 128, 7), *[(128, 128, 7)] * 4, (128, 128, 1), (128, 15, 1)]
    with torch.device("meta"):
        net = ReleasedCPM(14)
    assert parameters(net) == sum(o * (i * k * k + 1) for i, o, k in convs)
    maps = net(torch.empty(1, 3, 368, 368, device="meta"))
    assert [m.shape for m in maps] == [(1, 15, 46, 46)] * 6


def test_the_released_network_looks_at_the_person_in_the_centre():
    torch.manual_seed(0)
    net, image = ReleasedCPM(2, 2, 8), torch.randn(2, 3, 64, 48)
    middle, elsewhere = net(image), net(image, torch.tensor([[23.0, 31.0], [5.0, 8.0]]))
    torch.testing.assert_close(middle[1][0], elsewhere[1][0])
    assert not torch.allclose(middle[1][1], elsewhere[1][1], rtol=1e-3)
    torch.testing.assert_close(middle[0], elsewhere[0])  # the first stage does not
    peak = centre_map((64, 48), torch.tensor([[5.0, 8.0]]), 21.0, image)[0, 0]
    assert peak[8, 5] == 1 and peak[8, 26].item() == pytest.approx(math.exp(-0.5))


def test_caffe_names():
    net = ReleasedCPM(2, 3, 8)
    layers = {".".join(key.split(".")[-2:]): value for key, value in net.state_dict().items()}
    assert len(layers) == len(net.state_dict()) == 2 * (10 + 5 + 2 + 2 * 7)
    assert {"conv1_1.weight", "conv4_3_CPM.weight", "conv5_2_CPM.bias", "Mconv7_stage3.weight"} <= layers.keys()
    assert from_caffe(layers).keys() == net.state_dict().keys()
    assert from_caffe(net.state_dict()).keys() == net.state_dict().keys()


# ---- published checkpoints -----------------------------------------------------------------------------------------
def renamed(state, *pairs):
    """With the first beginning that fits replaced, as another repository would write it."""
    out = {}
    for key, value in state.items():
        ours, theirs = next((ours, theirs) for ours, theirs in pairs if key.startswith(ours))
        out[theirs + key.removeprefix(ours)] = value
    return out


OFFICIAL = (("trunk.", ""), ("head.", "final_layer."))
MMPOSE_HEATMAP = (
    ("trunk.deconv_layers.", "head.deconv_layers."), ("trunk.", "backbone."), ("head.", "head.final_layer."),
)  # fmt: skip


def small_hrnet():
    return Headed(HRNet(4, (1, 1, 1), 1, 8), nn.Conv2d(4, 17, 1))


def small_simplebaseline(codec: Codec = Heatmap()):
    return on_trunk(PoseResNet(BasicBlock, (1, 1, 1, 1), 16), codec, COCO17, (64, 32)).net


def small_simcc():
    return small_simplebaseline(SimCC())


def small_rle(head):
    return Headed(ResNet(BasicBlock, (1, 1, 1, 1)), head)


CHECKPOINTS = {
    "hrnet": (small_hrnet, OFFICIAL),
    "hrnet, parallel": (small_hrnet, (("trunk.", "module."), ("head.", "module.final_layer."))),
    "hrnet, mmpose": (small_hrnet, MMPOSE_HEATMAP),
    "hrnet, mmpose 0.x": (small_hrnet, (("trunk.", "backbone."), ("head.", "keypoint_head.final_layer."))),
    "hrnet, ours": (small_hrnet, (("", "net."),)),
    "simplebaseline": (small_simplebaseline, OFFICIAL),
    "simplebaseline, mmpose": (small_simplebaseline, MMPOSE_HEATMAP),
    "ipr, mmpose": (
        small_simplebaseline,
        (
            ("trunk.deconv_layers.", "head.simplebaseline_head.deconv_layers."), ("trunk.", "backbone."),
            ("head.", "head.simplebaseline_head.final_layer."),
        ),
    ),
    "simcc": (small_simcc, (("trunk.", ""), ("head.", ""))),
    "simcc, mmpose": (
        small_simcc,
        (
            ("trunk.deconv_layers.", "head.deconv_head.deconv_layers."), ("trunk.", "backbone."),
            ("head.final_layer.", "head.deconv_head.final_layer."), ("head.", "head."),
        ),
    ),
    "rle": (lambda: small_rle(RLEHead(512, 17)), (("trunk.", "preact."), ("head.", ""))),
    "rle, mmpose": (
        lambda: small_rle(PlainRLEHead(512, 17)),
        (("trunk.", "backbone."), ("head.flow.", "head.loss_module.flow_model."), ("head.", "head.")),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_published_names(name, tmp_path):
    make, names = CHECKPOINTS[name]
    net, empty = fresh(make()), make()
    state = renamed(net.state_dict(), *names)
    assert state.keys() != net.state_dict().keys()
    if "ipr" in name:
        state |= {"head.linspace_x": torch.zeros(1, 1, 1, 8), "head.linspace_y": torch.zeros(1, 1, 16, 1)}
    if name == "rle, mmpose":
        state |= {"head.loss_module.flow_model.loc": torch.zeros(2), "head.loss_module.flow_model.cov": torch.eye(2)}
    torch.save({"state_dict": state, "meta": {"epoch": 210}}, tmp_path / "net.pth")
    load_headed(empty, tmp_path / "net.pth")
    for key, value in empty.state_dict().items():
        assert torch.equal(value, net.state_dict()[key]), key


@pytest.mark.parametrize("princeton", [False, True])
def test_hourglasses_follow_the_file(princeton, tmp_path):
    with np.load(KNOWN / f"hg_{'princeton' if princeton else 'bearpaw'}_2.npz") as answer:
        keys, shapes = answer["keys"].tolist(), answer["shapes"].tolist()
    torch.manual_seed(0)
    state = {
        f"module.{key}": torch.rand([int(n) for n in shape.split(",") if n])
        for key, shape in zip(keys, shapes, strict=True)
    }
    torch.save({"state_dict": state, "best_acc": 0.9}, tmp_path / "checkpoint.pth.tar")
    read = hourglass_2(weights=tmp_path / "checkpoint.pth.tar")
    assert not read.training
    assert (read.normalise == PLAIN) == princeton
    last = "merge_preds.0.conv.conv.weight" if princeton else "score_.0.weight"
    torch.testing.assert_close(read.state_dict()["net.score_.0.weight"], state[f"module.{last}"])
    torch.save(read.state_dict(), tmp_path / "ours.pt")
    if not princeton:
        again = hourglass_2(weights=tmp_path / "ours.pt")
        assert all(torch.equal(v, read.state_dict()[k]) for k, v in again.state_dict().items())


def test_a_builder_reads_its_weights(tmp_path):
    codec = PIPNet(((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)), 2)
    net = fresh(resnet.pipnet_r18(TOY, codec))
    torch.save(renamed(net.net.state_dict(), ("trunk.", ""), ("head.", "")), tmp_path / "pipnet.pth")
    read, image = resnet.pipnet_r18(TOY, codec, weights=tmp_path / "pipnet.pth"), torch.rand(2, 3, 256, 256)
    assert not read.training
    torch.testing.assert_close(read.predict(image).xy, net.predict(image).xy)


def test_wrong_checkpoints_say_what_they_are(tmp_path):
    torch.save(StackedHourglass(1, 2, 16).state_dict(), tmp_path / "hg.pth")
    with pytest.raises(InputError) as caught:
        load_headed(small_hrnet(), tmp_path / "hg.pth")
    message = str(caught.value)
    assert "hg.pth holds a stacked hourglass, not what was asked for (missing: trunk.conv2.weight, " in message
    named = message.partition("missing: ")[2].partition(" and ")[0]
    assert named.count(",") == 4
    assert "not known: trunk." in message
    for state, kind in (
        (small_hrnet().state_dict(), "HRNet"),
        (renamed(small_simplebaseline().state_dict(), *MMPOSE_HEATMAP), "SimpleBaseline"),
        (small_simcc().state_dict(), "SimCC"),
        (small_rle(RLEHead(512, 2)).state_dict(), "a regression with RLE"),
        ({f"backbone.{k}": v for k, v in CPM(2, 2, 4, 2, 4).state_dict().items()}, "a convolutional pose machine in"),
        (ReleasedCPM(2, 2, 4).state_dict(), "the released convolutional pose machine"),
    ):
        with pytest.raises(InputError, match=f"it.pth holds {kind}"):
            load_into(nn.Linear(2, 2), state, tmp_path / "it.pth")


def test_sizes_that_differ(tmp_path):
    state = small_simplebaseline().state_dict()
    torch.save(state | {"head.weight": torch.zeros(16, 16, 1, 1)}, tmp_path / "mpii.pth")
    with pytest.raises(InputError, match=r"of another size: head.weight is 16x16x1x1, not 17x16x1x1\)"):
        load_headed(small_simplebaseline(), tmp_path / "mpii.pth")


def test_checkpoints_without_counts_of_batches(tmp_path):
    net, read = fresh(small_hrnet()), small_hrnet()
    state = {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(renamed(state, *OFFICIAL), tmp_path / "old.pth")
    load_headed(read, tmp_path / "old.pth")
    image = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(read.eval()(image), net(image))


def test_imagenet_weights_start_a_trunk(tmp_path):
    classifier, trunk = fresh(ResNet(BasicBlock, (1, 1, 1, 1))), PoseResNet(BasicBlock, (1, 1, 1, 1), 16)
    deconv = trunk.state_dict()["deconv_layers.0.weight"].clone()
    torch.save(classifier.state_dict() | {"fc.weight": torch.zeros(1000, 512)}, tmp_path / "resnet.pth")
    load_imagenet(trunk, tmp_path / "resnet.pth")
    for key, value in classifier.state_dict().items():
        assert torch.equal(trunk.state_dict()[key], value)
    assert torch.equal(trunk.state_dict()["deconv_layers.0.weight"], deconv)
    with pytest.raises(InputError, match="holds a network on images .*missing: conv2.weight"):
        load_imagenet(HRNet(4, (1, 1, 1), 1, 8), tmp_path / "resnet.pth")


# ---- learning ------------------------------------------------------------------------------------------------------
def dots(n, joints, size, seed=0):
    """Images of coloured dots on noise, and where they are."""
    random = torch.Generator().manual_seed(seed)
    height, width = size
    xy = 8 + torch.rand(n, len(joints), 2, generator=random) * torch.tensor([width - 16.0, height - 16.0])
    colours = torch.rand(len(joints), 3, generator=random)
    blobs = centre_map(size, xy.flatten(0, 1), 2.5, xy).unflatten(0, (n, len(joints)))[:, :, 0]
    image = torch.einsum("njhw,jc->nchw", blobs, colours).clamp(0, 1)
    image = image + 0.1 * torch.rand(image.shape, generator=random)
    return image, Keypoints2D(xy, torch.ones(xy.shape[:2]), joints)


def overfit(net: PoseNet, steps: int, lr: float, n: int = 4) -> float:
    """Pixels that a network is off, on average, on the images that it has just learnt."""
    image, target = dots(n, net.joints, net.size)
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


def test_a_hourglass_overfits_four_images():
    torch.manual_seed(0)
    net = StackedHourglass(2, len(TOY), width=32, depth=3)
    assert overfit(PoseNet(net, Heatmap(sigma=1.5), TOY, (64, 64), PLAIN), 40, 5e-3) < 1.5


@pytest.mark.slow
def test_a_small_hrnet_overfits_four_images():
    torch.manual_seed(0)
    trunk = HRNet(8, modules=(1, 1, 1), blocks=1, stem=8)
    assert overfit(on_trunk(trunk, Heatmap(), TOY, (64, 64)), 150, 1e-2) < 1.5


@pytest.mark.slow
def test_a_small_pose_machine_overfits_four_images():
    torch.manual_seed(0)
    net = CPM(len(TOY), stages=2, width=24, narrow=24, first=24)
    assert overfit(PoseNet(net, Heatmap(sigma=1.0), TOY, (64, 64), PLAIN), 250, 5e-3) < 3


def test_maps_with_a_background():
    """Highest where no joint is; what a joint without weight would be is not background's either way."""
    codec, size = Beliefs(), (128, 128)
    xy = torch.tensor([[[40.0, 60.0], [90.0, 30.0]]])
    maps, _ = codec.target(xy, size, (16, 16))
    ideal = torch.cat([maps, 1 - maps.amax(1, keepdim=True)], 1)
    assert codec.loss(ideal, xy, torch.ones(1, 2), size) == 0
    assert codec.loss(ideal, xy + 8, torch.ones(1, 2), size) > 0
    found, conf = codec.decode(ideal, size)
    torch.testing.assert_close(found, xy, atol=0.01, rtol=0)
    assert (conf > 0.7).all()
    # A mirrored image: joints swap, the background does not.
    turned = codec.mirror(ideal.flip(-1)[:, [1, 0, 2]], (1, 0))
    torch.testing.assert_close(turned, ideal)
    # A joint that nobody has labelled leaves no hole in the background.
    weight = torch.tensor([[1.0, 0.0]])
    alone = torch.cat([maps[:, :1], torch.rand(1, 1, 16, 16), 1 - maps[:, :1]], 1)
    assert codec.loss(alone, xy, weight, size) == 0


class Tiny(AlexNet):
    channels = 4

    def __init__(self):
        nn.Module.__init__(self)
        self.conv = nn.Conv2d(3, 4, 20, 20)

    def forward(self, image):
        return [self.conv(image).relu()]


@pytest.mark.parametrize("joints", [LSP14, FLIC9])
def test_the_cascade_as_a_pose_net(joints):
    """Its raw output is what the regression codec reads, in the image's own pixels."""
    torch.manual_seed(0)
    net = deeppose(joints, size=(96, 80), trunk=Tiny).eval()
    image = torch.rand(2, 3, 96, 80)
    xy, cascade = None, net.net
    assert isinstance(cascade, Cascade)
    for stage in range(3):
        xy = cascade.refine(stage, net.normalise(image), xy)
    torch.testing.assert_close(net.predict(image).xy, xy, atol=1e-3, rtol=0)
    net.loss(image, Keypoints2D(40 * torch.rand(2, len(joints), 2), torch.ones(2, len(joints)), joints)).backward()
    assert all(p.grad is not None for p in net.parameters())
