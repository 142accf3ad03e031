"""Every codec and every network learns eight real photos by heart, to less than two pixels of crops of 256x192: slow tests.

Networks are reduced where the paper's size takes too long on one core; codecs go on one small trunk. Batch norms read with the
statistics of the same photos: running ones would need more steps than the weights do.
"""

import tarfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch

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
    Size,
    UDPOffset,
    msra_heatmap,
    udp_heatmap,
)
from body3d.codecs.regression import RegressionHead
from body3d.crop import apply, box_to_crop, crop_matrix
from body3d.datasets.lsp import LSP
from body3d.images import read_image, warp_crop
from body3d.layers import BasicBlock
from body3d.nets.chained import CellSoftmax, Chain, ChainedPoseNet, SimplifiedChain, chain_order
from body3d.nets.cpm import CPM
from body3d.nets.deeppose import Cascade
from body3d.nets.efficientnet_lite import LitePyramid
from body3d.nets.fpm import PyraNet
from body3d.nets.hourglass import StackedHourglass
from body3d.nets.hrnet import HRNet
from body3d.nets.mca import MCA
from body3d.nets.pct import PoseTokenizer, pct_on_trunk, tokenizer_losses
from body3d.nets.poseur import Poseur
from body3d.nets.resnet import PoseResNet, ResNet
from body3d.nets.small import SmallTrunk
from body3d.nets.tfpose import TFPose, TFPoseCodec
from body3d.nets.tokenpose import Stem, TokenPose
from body3d.nets.vitpose import ViT, ViTPoseTrunk
from body3d.posenet import UNIT, PoseNet, of_maps, on_trunk
from body3d.skeletons import LSP14
from body3d.types import Keypoints2D

pytestmark = pytest.mark.slow

SIZE: Size = (256, 192)
N, J, PIXELS = 8, len(LSP14), 2.0
ROUNDED = 4.0  # pixels: targets rounded to cells of four pixels cost 1.7 by themselves


@pytest.fixture(scope="module")
def photos(shared, tmp_path_factory) -> Path:
    """The first photos of the set, unpacked."""
    folder = tmp_path_factory.mktemp("lspet")
    archive = shared / "data/lspet/lspet_dev_a.tar"
    if not archive.is_file():
        pytest.skip("needs photos of LSPET beside the project (BODY3D_SHARED)")
    with tarfile.open(archive) as tar:
        for member in islice((m for m in tar if m.isfile()), 4 * N):
            content = tar.extractfile(member)
            assert content is not None
            (folder / Path(member.name).name).write_bytes(content.read())
    return folder


@pytest.fixture(scope="module")
def learnt(photos, shared) -> Callable[[PoseNet], tuple[torch.Tensor, Keypoints2D]]:
    """Eight people most of whose joints are known, as crops of a network's size, and where their joints are."""
    people = LSP.packed([shared / "data/lspet/lspet_dev_a.npz"], photos)
    chosen = [i for i in range(4 * N) if people.labelled[i].sum() >= 12][:N]
    assert len(chosen) == N

    def cut(net: PoseNet) -> tuple[torch.Tensor, Keypoints2D]:
        centre, width = box_to_crop(people.boxes[chosen].float(), net.size)
        places = getattr(net.codec, "places", "pixel")
        matrix = crop_matrix(centre, width, torch.zeros_like(width), net.size, places)
        crops = [
            warp_crop(read_image(photos / people.files[i]), m.double().numpy(), net.size)
            for i, m in zip(chosen, matrix, strict=True)
        ]
        image = torch.stack([torch.from_numpy(c).permute(2, 0, 1) for c in crops]).float() / 255
        return image, Keypoints2D(apply(matrix, people.xy[chosen].float()), people.labelled[chosen].float(), LSP14)

    return cut


def off(net: PoseNet, learnt, steps: int, lr: float) -> float:
    """Pixels of the crop of `SIZE` that the known joints are off after so many steps with Adam and a falling rate."""
    image, target = learnt(net)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    net.train()
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for _ in range(steps):
        optimizer.zero_grad()
        net.loss(image, target).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    away = (net.predict(image).xy - target.xy).norm(dim=-1) * SIZE[0] / net.size[0]
    error = ((away * target.conf).sum() / target.conf.sum()).item()
    print(f"{error:.2f} pixels after {steps} steps")
    return error


# ---- codecs on one trunk -------------------------------------------------------------------------------------------
SHAPE = tuple((float(i % 4), float(i // 4)) for i in range(J))
# Steps and learning rate.
CODECS: dict[str, tuple[Codec, int, float]] = {
    "heatmap": (Heatmap(sigma=3.0), 700, 5e-3),
    "heatmap msra": (msra_heatmap(3.0), 1400, 5e-3),
    "heatmap hardest": (msra_heatmap(3.0, hardest=8), 1400, 5e-3),
    "heatmap udp": (udp_heatmap(3.0), 700, 5e-3),
    "udp offset": (UDPOffset(), 400, 1e-2),
    "cal": (CAL(sigma=3.0), 700, 5e-3),
    "integral": (Integral(), 150, 5e-3),
    "debiased": (DebiasedIntegral(), 300, 5e-3),
    "sikr": (SIKR(), 200, 5e-3),
    "dsnt": (DSNT(), 150, 5e-3),
    "sampling": (SamplingArgmax(samples=8, tau=1.0), 200, 1e-2),
    "cells": (CellSoftmax(sigma=1.0), 150, 5e-3),
    "hdm": (HDM(rounds=5), 200, 5e-3),
    "simcc": (SimCC(), 150, 2e-3),
    "simcc one-hot": (SimCC(sigma=None), 150, 2e-3),
    "pipnet": (PIPNet(SHAPE, 3), 150, 1e-3),
    "regression": (Regression(), 200, 5e-3),
    "regression l2": (Regression(norm=2), 200, 5e-3),
    "rle": (RLE(), 250, 5e-3),
}


def trunk() -> SmallTrunk:
    return SmallTrunk((16, 32, 64, 96), (1, 1, 1, 1), 48)


def coarse_trunk() -> ResNet:
    """At stride 32, where PIP-Net is read: among the 3,072 cells of a stride of four its score's error is lost."""
    return ResNet(BasicBlock, (1, 1, 1, 1))


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_learns_eight_photos(name, learnt):
    codec, steps, lr = CODECS[name]
    torch.manual_seed(0)
    most = ROUNDED if getattr(codec, "rounded", False) else PIXELS
    features = coarse_trunk() if isinstance(codec, PIPNet) else trunk()
    assert off(on_trunk(features, codec, LSP14, SIZE), learnt, steps, lr) < most


# ---- networks ------------------------------------------------------------------------------------------------------
def deeppose() -> PoseNet:
    """Two stages on small trunks, which crop from the image itself."""
    stages = [torch.nn.Sequential(trunk(), _Last(), RegressionHead(48, J), _Listed()) for _ in range(2)]
    torso = LSP14.index("left_shoulder"), LSP14.index("right_hip")
    return PoseNet(Cascade(stages, torso, 96, 2.0), Regression(), LSP14, SIZE)


class _Last(torch.nn.Module):
    def forward(self, maps):
        return maps[-1]


class _Listed(torch.nn.Module):
    def forward(self, x):
        return [x]


def pyramid() -> tuple[HRNet, tuple[int, ...]]:
    net = HRNet(8, modules=(1, 1, 1), blocks=1, stem=16, all_branches=True)
    return net, net.widths


LOW: Size = (
    128,
    96,
)  # maps of 32x24 cells are learnt in a fraction of the time; errors count in pixels of SIZE all the same
SQUARE: Size = (128, 128)  # hourglasses halve their 32 cells four times
SHARP = Heatmap(sigma=2.0)
# Networks of maps learn by DSNT: heat maps, empty for the most part, take several times as many steps.
# The network, steps, learning rate.
NETS: dict[str, tuple[Callable[[], PoseNet], int, float]] = {
    "small": (lambda: on_trunk(trunk(), SHARP, LSP14, LOW), 400, 5e-3),
    "small, lite": (lambda: on_trunk(LitePyramid(32), SHARP, LSP14, LOW), 400, 5e-3),
    "vitpose": (lambda: on_trunk(ViTPoseTrunk(ViT(96, 4, 4, LOW)), udp_heatmap(), LSP14, LOW), 500, 2e-3),
    # Between tokens the simple decoder is bilinear, so the top of a heat map lies at a token: an expectation reads it finer.
    "vitpose, simple": (
        lambda: on_trunk(ViTPoseTrunk(ViT(96, 4, 4, LOW), simple=True), DSNT(), LSP14, LOW),
        400,
        2e-3,
    ),
    "resnet, regression": (
        lambda: on_trunk(ResNet(BasicBlock, (1, 1, 1, 1)), Regression(places="msra"), LSP14, LOW),
        200,
        1e-3,
    ),
    "simplebaseline": (lambda: on_trunk(PoseResNet(BasicBlock, (1, 1, 1, 1), 32), SHARP, LSP14, LOW), 400, 5e-3),
    "hrnet": (lambda: on_trunk(HRNet(16, modules=(1, 1, 1), blocks=1, stem=16), DSNT(), LSP14, LOW), 150, 3e-3),
    "hourglass": (lambda: of_maps(StackedHourglass(2, J, 32), DSNT(), LSP14, SQUARE), 150, 3e-3),
    "pyranet": (lambda: of_maps(PyraNet(1, J, 36), DSNT(), LSP14, SQUARE), 250, 3e-3),
    "mca": (lambda: of_maps(MCA(J, 2, 24, kernel=5, parts_from=1), DSNT(), LSP14, SQUARE, UNIT), 150, 3e-3),
    "cpm": (lambda: of_maps(CPM(J, 2, 24, 24, 24), DSNT(), LSP14, LOW), 150, 3e-3),
    # Without batch norms the released CPM would take hours: the known answers compare it instead.
    "tokenpose": (
        lambda: of_maps(TokenPose(Stem(), 256, (32, 24), (4, 3), (32, 24), J, (3,), 4, 96, 192), DSNT(), LSP14, LOW),
        300,
        2e-3,
    ),
    # It reads whole cells, so it needs crops whose cells are four of the pixels that count.
    "chain": (
        lambda: ChainedPoseNet(
            Chain(chain_order(LSP14), ResNet(BasicBlock, (1, 1, 1, 1)), 32, 8, 8), CellSoftmax(1.0), LSP14, SIZE
        ),
        75,
        3e-3,
    ),
    "simplified chain": (lambda: of_maps(SimplifiedChain(J, 16), DSNT(), LSP14, LOW), 150, 1e-3),
    "deeppose": (deeppose, 150, 3e-3),
    "tfpose": (lambda: PoseNet(TFPose(*pyramid(), J, 32, 4, 2, 64), TFPoseCodec(), LSP14, LOW), 300, 3e-3),
    "poseur": (lambda: PoseNet(Poseur(*pyramid(), J, 64, 4, 2, 128), RLE(), LSP14, LOW), 300, 3e-3),
}


@pytest.mark.parametrize("name", NETS)
def test_every_network_learns_eight_photos(name, learnt):
    build, steps, lr = NETS[name]
    torch.manual_seed(0)
    assert off(build(), learnt, steps, lr) < PIXELS


def test_pct_learns_eight_photos(learnt):
    """First the tokens of the eight poses, then which tokens each photo has."""
    torch.manual_seed(0)
    tokenizer = PoseTokenizer(J, 12, 64, 32, 64, 1, (32, 64), 32, 1, (32, 32), mask=0.0)
    net = pct_on_trunk(ResNet(BasicBlock, (1, 1, 1, 1)), tokenizer, LSP14, LOW)
    _, target = learnt(net)
    tokenizer.requires_grad_(True).train()
    optimizer = torch.optim.Adam(tokenizer.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        optimizer.zero_grad()
        tokenized = tokenizer(target.xy, target.conf > 0)
        sum(tokenizer_losses(tokenizer, tokenized, target.xy, target.conf).values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        schedule.step()
        tokenizer.update(tokenized.features.detach(), tokenized.codes)
    tokenizer.requires_grad_(False).eval()
    assert off(net, learnt, 250, 1e-3) < PIXELS
