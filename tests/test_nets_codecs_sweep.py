"""Every network with every codec that fits it: what it learns from, what it reads, and what is said where they do not fit.

Networks of the published sizes run without numbers (on torch's meta device), small ones of the same classes with them.
"""

import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from body3d import nets
from body3d.codecs import (
    CAL,
    DSNT,
    HDM,
    RLE,
    SIKR,
    Codec,
    DebiasedIntegral,
    Heatmap,
    Integral,
    PIPNet,
    Regression,
    SamplingArgmax,
    SimCC,
    UDPOffset,
    msra_heatmap,
    udp_heatmap,
)
from body3d.codecs.regression import RegressionHead
from body3d.errors import InputError
from body3d.layers import BasicBlock
from body3d.nets.chained import CellSoftmax, Chain, ChainedPoseNet, SimplifiedChain, chain_order
from body3d.nets.cpm import CPM, Beliefs, ReleasedCPM
from body3d.nets.deeppose import Cascade
from body3d.nets.fpm import PyraNet
from body3d.nets.hourglass import StackedHourglass
from body3d.nets.hrnet import HRNet
from body3d.nets.mca import MCA
from body3d.nets.pct import PCTHead, PoseTokenizer, TokenClassifier, Tokens
from body3d.nets.poseur import Poseur
from body3d.nets.resnet import PlainRLEHead, PoseResNet, ResNet
from body3d.nets.small import SmallTrunk
from body3d.nets.tfpose import TFPose, TFPoseCodec
from body3d.nets.tokenpose import HRNet3, Stem, TokenPose
from body3d.nets.vitpose import ViT, ViTPoseTrunk
from body3d.posenet import Headed, PoseNet, fused, of_maps, on_trunk
from body3d.skeletons import LSP14
from body3d.types import Keypoints2D

SIZE, J = (64, 64), len(LSP14)
SHAPE = tuple((math.cos(i), math.sin(2.0 * i)) for i in range(J))  # a mean shape

# By what they read. Of networks with maps of their own, those of one map per joint are asked for.
MAPS: dict[str, Codec] = {
    "heatmap": Heatmap(),
    "heatmap msra": msra_heatmap(),
    "heatmap hardest": msra_heatmap(hardest=8),
    "heatmap udp": udp_heatmap(),
    "integral": Integral(),
    "debiased": DebiasedIntegral(),
    "sikr": SIKR(),
    "sikr softmax": SIKR(None, sigmoid=False),
    "dsnt": DSNT(),
    "sampling": SamplingArgmax(),
    "sampling released": SamplingArgmax(released=True),
    "hdm": HDM(),
    "cells": CellSoftmax(),
}
OTHERS: dict[str, Codec] = {
    "udp offset": UDPOffset(),
    "cal": CAL(),
    "simcc": SimCC(),
    "simcc one-hot": SimCC(sigma=None),
    "pipnet": PIPNet(SHAPE, 3),
    "regression": Regression(),
    "regression l2": Regression(norm=2),
    "rle": RLE(),
    "rle mmpose": RLE("mmpose"),
    "beliefs": Beliefs(),
    "tokens": Tokens(),
}
CODECS = MAPS | OTHERS
# Which may say any place, also beside the image: coordinates or offsets that nothing holds.
FREE = {"udp offset", "cal", "pipnet", "regression", "regression l2", "rle", "rle mmpose", "tokens", "coordinates"}


# ---- small networks ------------------------------------------------------------------------------------------------
TRUNKS = {
    "small": lambda: SmallTrunk((8, 8, 8, 8), (1, 1, 1, 1), 8),
    "resnet": lambda: ResNet(BasicBlock, (1, 1, 1, 1)),
    "simplebaseline": lambda: PoseResNet(BasicBlock, (1, 1, 1, 1), 16),
    "hrnet": lambda: HRNet(8, modules=(1, 1, 1), blocks=1, stem=8),
    "hrnet, three stages": lambda: HRNet3(8),
    "vitpose": lambda: ViTPoseTrunk(ViT(48, 2, 4, SIZE)),
    "vitpose, simple": lambda: ViTPoseTrunk(ViT(48, 2, 4, SIZE), simple=True),
}
OF_MAPS = {
    "hourglass": lambda: StackedHourglass(2, J, 16, depth=2),
    "pyranet": lambda: PyraNet(1, J, 36, depth=2),
    "mca": lambda: MCA(J, 2, 16, kernel=3, parts_from=1, depth=2),
    "cpm": lambda: CPM(J, 2, 8, 8, 8),
    "tokenpose": lambda: TokenPose(Stem(), 256, (16, 16), (4, 4), (16, 16), J, (1, 1), 4, 48, None),
    "simplified chain": lambda: SimplifiedChain(J, 8),
}
OWN: dict[str, tuple[str, Any]] = {
    "chain": (
        "cells",
        lambda: ChainedPoseNet(
            Chain(chain_order(LSP14), ResNet(BasicBlock, (1, 1, 1, 1)), 8, 4, 4), CellSoftmax(), LSP14, SIZE
        ),
    ),
    "released cpm": ("beliefs", lambda: PoseNet(ReleasedCPM(J, 2, 8), Beliefs(), LSP14, SIZE)),
    "deeppose": ("regression l2", lambda: PoseNet(small_cascade(), Regression(norm=2), LSP14, SIZE)),
    "rle, mmpose's head": (
        "rle mmpose",
        lambda: PoseNet(Headed(TRUNKS["resnet"](), PlainRLEHead(512, J)), RLE("mmpose"), LSP14, SIZE),
    ),
    "tfpose": ("coordinates", lambda: PoseNet(TFPose(*pyramid(), J, 16, 4, 2, 32), TFPoseCodec(), LSP14, SIZE)),
    "poseur": ("rle", lambda: PoseNet(Poseur(*pyramid(), J, 32, 4, 2, 32), RLE(), LSP14, SIZE)),
    "pct": ("tokens", lambda: PoseNet(Headed(TRUNKS["resnet"](), small_tokens(512)), Tokens(), LSP14, SIZE)),
}


def pyramid() -> tuple[HRNet, tuple[int, ...]]:
    trunk = HRNet(8, modules=(1, 1, 1), blocks=1, stem=8, all_branches=True)
    return trunk, trunk.widths


def small_cascade() -> Cascade:
    stages = [Headed(TRUNKS["small"](), RegressionHead(8, J)) for _ in range(2)]
    return Cascade(stages, (LSP14.index("left_shoulder"), LSP14.index("right_hip")), 32, 2.0)


def small_tokens(channels: int) -> PCTHead:
    tokenizer = PoseTokenizer(J, 6, 32, 16, 16, 1, (8, 8), 8, 1, (8, 8))
    return PCTHead(TokenClassifier(channels, (2, 2), 6, 32, 16, 8, 1, (8, 8)), tokenizer)


def small_net(name: str, codec: str) -> PoseNet:
    """InputError where they do not fit."""
    torch.manual_seed(0)
    if name in TRUNKS:
        chosen = CODECS[codec]
        if name == "resnet" and isinstance(chosen, SimCC):
            chosen = SimCC(sigma=chosen.sigma, stride=32)
        return on_trunk(TRUNKS[name](), chosen, LSP14, SIZE)
    return of_maps(OF_MAPS[name](), CODECS[codec], LSP14, SIZE) if name in OF_MAPS else OWN[name][1]()


FITTING = [
    *((name, codec) for name in TRUNKS for codec in CODECS if codec != "tokens" or name == "resnet"),
    *((name, codec) for name in OF_MAPS for codec in MAPS),
    *((name, codec) for name, (codec, _) in OWN.items()),
]
FITTING.remove(("resnet", "tokens"))  # "pct", of a smaller size
# Every codec on one trunk, every network with some codecs; all others are slow tests.
QUICK = {"heatmap", "simcc"}
RUNS = [
    pytest.param(*pair, marks=() if pair[0] in {"small", *OWN} or pair[1] in QUICK else pytest.mark.slow)
    for pair in FITTING
]


@functools.cache
def scene() -> tuple[Tensor, Keypoints2D]:
    random = torch.Generator().manual_seed(0)
    xy = 14 + torch.rand(2, J, 2, generator=random) * 36
    image = torch.rand(2, 3, 8, 8, generator=random).repeat_interleave(8, -1).repeat_interleave(8, -2)
    return image.double(), Keypoints2D(xy.double(), torch.ones(2, J).double(), LSP14)


def settled(net: PoseNet) -> PoseNet:
    """In eval mode and double precision, with statistics of batch norms and biases that are not 0 and 1."""
    for name, values in net.state_dict().items():
        if name.endswith("running_var"):
            values.uniform_(0.5, 1.5)
        elif name.endswith("running_mean") or (name.endswith("bias") and ".flow" not in name):
            values.normal_(0, 0.1)
    return net.double().eval()


# Where the gradient is another than that of the loss, by design, or the loss is found by rounds that are not at their end.
NOT_THE_LOSS = {"sikr", "sikr softmax", "sampling released", "hdm"}
CUT_OFF = {"chain", "deeppose", "tfpose", "poseur"}  # no gradient goes from a later answer to an earlier one


@pytest.mark.parametrize(("name", "codec"), RUNS, ids=lambda x: x)
def test_networks_with_codecs(name, codec):
    """Loss and gradient agree; reading is inside, the same for an image alone, and the same with batch norms folded."""
    net = settled(small_net(name, codec))
    image, target = scene()

    def loss() -> Tensor:
        torch.manual_seed(1)
        return net.loss(image, target)

    first = loss()
    first.backward()
    assert first.isfinite()
    squares = [p.grad.square().sum() for p in net.parameters() if p.grad is not None]
    slope = torch.stack(squares).sum()
    assert slope.isfinite() and slope > 0
    if codec not in NOT_THE_LOSS and name not in CUT_OFF:
        step = 1e-6 / slope.sqrt()
        with torch.no_grad():
            for p in net.parameters():
                if p.grad is not None:
                    p -= step * p.grad
            assert (first - loss()) / step == pytest.approx(slope.item(), rel=0.02)

    seen = net.predict(image)
    assert seen.xy.shape == (2, J, 2) and seen.xy.isfinite().all() and (seen.conf >= 0).all()
    if codec not in FREE:
        assert (seen.xy > -4.5).all() and (seen.xy < 64 + 4).all()  # the outermost cells reach half a cell outwards
    with torch.no_grad():
        raw, alone, faster = (
            list(tensors_in(f(i)[-1])) for f, i in ((net, image), (net, image[1:]), (fused(net), image))
        )
    for whole, one, same in zip(raw, alone, faster, strict=True):
        torch.testing.assert_close(one[0], whole[1], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(same, whole, rtol=1e-6, atol=1e-6)


def tensors_in(raw) -> Iterator[Tensor]:
    """What a network says before it is read: two cells of a map may tie, and rounding then says which is read."""
    if isinstance(raw, Tensor):
        yield raw
    else:
        for part in raw if isinstance(raw, tuple | list) else vars(raw).values():
            if isinstance(part, Tensor | tuple | list):
                yield from tensors_in(part)


@pytest.mark.parametrize("name", [n for n in {**TRUNKS, **OF_MAPS, **OWN} if n != "simplified chain"])
def test_the_flip_test_makes_every_network_equivariant(name):
    """What is said of the mirrored crop is the mirror image of what is said of the crop."""
    codec = OWN[name][0] if name in OWN else "dsnt"
    net, (image, _) = settled(small_net(name, codec)), scene()
    here, there = net.predict(image, flip=True), net.predict(image.flip(-1), flip=True)
    back = torch.stack([SIZE[1] - 1 - there.xy[..., 0], there.xy[..., 1]], -1)[:, list(LSP14.flip)]
    torch.testing.assert_close(back, here.xy, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(there.conf[:, list(LSP14.flip)], here.conf)


# ---- what does not fit ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("codec", OTHERS)
@pytest.mark.parametrize("name", OF_MAPS)
def test_networks_of_maps_refuse_other_codecs(name, codec):
    with pytest.raises(
        InputError, match=f"gives one map per joint, {type(OTHERS[codec]).__name__} reads something else"
    ):
        of_maps(OF_MAPS[name](), OTHERS[codec], LSP14, SIZE)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (nets.hourglass_1, "StackedHourglass gives one map per joint, SimCC"),
        (nets.pyranet_2, "PyraNet gives one map per joint, SimCC"),
        (nets.cpm, "CPM gives one map per joint, SimCC"),
        (nets.chained_simplified, "SimplifiedChain gives one map per joint, SimCC"),
        (nets.cpm_released, "the released CPM has a map of the background, which SimCC does not read: Beliefs does"),
        (nets.chained, "a chain says which cell a joint is in, which SimCC does not read: CellSoftmax does"),
        (nets.deeppose, "DeepPose gives coordinates, which SimCC does not read: Regression does"),
        (nets.rle_r50_mmpose, "this head gives coordinates and sigmas, which SimCC does not read: RLE does"),
    ],
)
def test_builders_refuse_codecs_in_words(build, words):
    with torch.device("meta"), pytest.raises(InputError, match=words):
        build(codec=SimCC())


def test_heads_that_know_their_size_say_so():
    """SimCC's and PCT's heads are made for one size of map; a mean shape is of one joint set."""
    image = scene()[0].float()
    net = on_trunk(TRUNKS["resnet"](), SimCC(), LSP14, SIZE)
    with pytest.raises(InputError, match="feature maps of 16 x 16 cells, got 2 x 2: set the codec's stride"):
        net(image)
    net = on_trunk(TRUNKS["small"](), Tokens(), LSP14, SIZE)
    with pytest.raises(InputError, match="feature maps of 2 x 2 cells, got 16 x 16: put it on a trunk of stride 32"):
        net(image)
    with pytest.raises(InputError, match="mean shape has 3 points, lsp14 14 joints"):
        nets.pipnet_r18(LSP14, PIPNet(SHAPE[:3], 2))


# ---- the published sizes -------------------------------------------------------------------------------------------
# Parameters without a gradient: weights for one step more than there are joints, and of batch norms that the public code has but
# does not use.
IDLE = {"chained_simplified": r"net\.(h2h|o2h)\.15\..*|net\.deception\.\d+\.stack\d\.3\..*"}
QUICKLY = {
    "hrnet_w32", "simplebaseline_r50", "rle_r50", "vitpose_s", "tokenpose_s_v1", "hourglass_1", "cpm_released", "deeppose",
}  # fmt: skip


def build(name: str) -> PoseNet:
    make = getattr(nets, name)
    if name == "pipnet_r18":
        return make(LSP14, PIPNet(SHAPE, 10))
    return make(weights=None)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICKLY else pytest.mark.slow) for name in nets.__all__]
)
def test_every_parameter_of_the_published_networks_learns(name):
    """At the published size, without numbers: every parameter but those known to be idle is given a gradient."""
    with torch.device("meta"):
        net = build(name).train()
        joints = len(net.joints)
        target = Keypoints2D(torch.empty(2, joints, 2), torch.empty(2, joints), net.joints)
        loss = net.loss(torch.empty(2, 3, *net.size), target)
    loss.backward()
    idle = [key for key, p in net.named_parameters() if p.grad is None]
    pattern = IDLE.get(name)
    expected = [key for key, _ in net.named_parameters() if pattern and re.fullmatch(pattern, key)]
    assert idle == expected


# Multiply-accumulates of published networks (1e9), on one image of the builder's size; those of the others are checked in
# tests/test_nets_convolutional.py and tests/test_nets_transformers.py.
PUBLISHED = {"hrnet_w48": 15.692, "hourglass_8": 28.09, "chained_simplified": 5.26}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_multiplications(name):
    with torch.device("meta"), torch.no_grad():
        net = build(name).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, *net.size))
    assert counter.get_total_flops() / 2e9 == pytest.approx(PUBLISHED[name], rel=0.1)
