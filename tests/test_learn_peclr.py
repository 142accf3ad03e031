"""Contrastive learning that undoes movements, on photos of coloured dots."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from test_pose2d import CONFIGS, STILL, colour, cpu, draw, packed
from torch import nn

from body3d.augment import Colours
from body3d.codecs import Heatmap
from body3d.crop import apply
from body3d.errors import InputError
from body3d.layers import BasicBlock
from body3d.learn.configs import read_config
from body3d.learn.crops import PhotoSet
from body3d.learn.peclr import PeCLRRun, PeCLRTask, Views, nt_xent, rotated, similarity, translated, undone
from body3d.learn.pose2d import PoseRun
from body3d.nets.resnet import PoseResNet, ResNet
from body3d.nets.small import SmallTrunk
from body3d.posenet import on_trunk
from body3d.skeletons import LSP14
from body3d.train import Plan, read_checkpoint
from body3d.train import train as train_task

SIZE = (64, 64)
PLAIN = Views(rotation=0.0, shift=0.0, shown=(1.0, 1.0), colours=None)


def orthonormal(count: int, points: int = 8) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.linalg.qr(torch.randn(2 * points, count))[0].T.unflatten(1, (points, 2))


# ---- the loss ------------------------------------------------------------------------------------------------------
def test_projections_without_anything_in_common():
    """2B orthogonal ones: all 2B - 1 others are alike. Pairs that are the same: one stands out by exp(1 / temperature)."""
    z = orthonormal(8)
    assert nt_xent(z[:4], z[4:]).item() == pytest.approx(math.log(7), abs=1e-5)
    for temperature in (0.5, 0.1):
        best = math.exp(1 / temperature)
        expected = -math.log(best / (best + 6))
        assert nt_xent(z[:4], z[:4], temperature).item() == pytest.approx(expected, abs=1e-5)
    assert nt_xent(3 * z[:4], 0.1 * z[4:]).item() == pytest.approx(math.log(7), abs=1e-5)


def test_every_view_counts_once():
    """Against the sum as it stands in the paper."""
    torch.manual_seed(0)
    first, second = torch.randn(2, 3, 4, 2).unbind(0)
    both = torch.cat([first, second])
    terms = []
    for i in range(6):
        s = lambda k, i=i: math.exp(nn.functional.cosine_similarity(both[i].flatten(), both[k].flatten(), 0) / 0.5)
        terms.append(-math.log(s((i + 3) % 6) / sum(s(k) for k in range(6) if k != i)))
    assert nt_xent(first, second).item() == pytest.approx(sum(terms) / 6, rel=1e-5)


# ---- undoing -------------------------------------------------------------------------------------------------------
def test_moving_and_turning_back():
    torch.manual_seed(0)
    z, shift, angle = torch.randn(3, 7, 2), torch.rand(3, 2) - 0.5, torch.rand(3) * 2 - 1
    torch.testing.assert_close(translated(translated(z, shift), -shift), z)
    torch.testing.assert_close(rotated(rotated(z, angle), -angle), z)
    span = z.amax(1) - z.amin(1)
    torch.testing.assert_close(translated(z, shift).mean(1) - z.mean(1), shift * span)
    torch.testing.assert_close(translated(z, shift, scaled=False).mean(1) - z.mean(1), shift)
    # A quarter turn counter-clockwise as seen: what points right (x) points up (-y) then.
    right = torch.tensor([[[0.0, 0.0], [2.0, 0.0]]])
    up = torch.tensor([[[1.0, 1.0], [1.0, -1.0]]])
    torch.testing.assert_close(rotated(right, torch.tensor([math.pi / 2])), up, rtol=0, atol=1e-6)


def equivariant(views: Views, points: torch.Tensor):
    """What an encoder that gives places in the view says, in which places are counted from the view's middle."""
    matrix, shift, angle = views.matrix(len(points), SIZE, torch.Generator().manual_seed(1))
    middle = torch.tensor([(SIZE[1] - 1) / 2, (SIZE[0] - 1) / 2])
    return apply(matrix, points + middle) - middle, shift, angle


def test_undoing_is_exact_for_a_linear_equivariant_encoder():
    """Of points around the middle: turned, scaled, and moved by a share of their own span."""
    torch.manual_seed(0)
    points = torch.randn(5, 9, 2) * 8
    points -= points.mean(1, keepdim=True)
    z, shift, angle = equivariant(Views(), points)
    span = z.amax(1) - z.amin(1)
    own = shift * torch.tensor(SIZE) / span
    back = undone(z, own, angle)
    torch.testing.assert_close(similarity(back, points).diagonal(), torch.ones(5), rtol=0, atol=1e-5)
    moved = similarity(z, points).diagonal()
    assert moved.min() < 0.9  # else there was nothing to undo


def test_an_equivariant_encoder_has_the_least_loss():
    torch.manual_seed(0)
    points = orthonormal(5)
    points -= points.mean(1, keepdim=True)
    turning = replace(Views(), shift=0.0)
    both = points.repeat(2, 1, 1)
    z, shift, angle = equivariant(turning, both)
    least = nt_xent(points, points)
    first, second = undone(z, shift, angle).chunk(2)
    torch.testing.assert_close(nt_xent(first, second), least, rtol=0, atol=1e-4)
    invariant = undone(both, shift, angle)  # says the same of both views: undoing tears them apart
    assert nt_xent(*invariant.chunk(2)) > least + 0.05
    assert nt_xent(*z.chunk(2)) > least + 0.05  # not undone


def test_without_movement_it_is_plain_contrast():
    torch.manual_seed(0)
    z = torch.randn(6, 9, 2)
    _, shift, angle = PLAIN.matrix(6, SIZE, torch.Generator().manual_seed(0))
    first, second = undone(z, shift, angle).chunk(2)
    torch.testing.assert_close(nt_xent(first, second), nt_xent(z[:3], z[3:]))


# ---- views of photos -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def run(tmp_path_factory) -> PeCLRRun:
    """Thirty-two people, the same to be learnt from and to be found."""
    folder = tmp_path_factory.mktemp("peclr")
    draw(folder, 32, 80, 4)
    return PeCLRRun(
        data=PhotoSet(str(folder), LSP14, packed, packed),
        trunk=lambda: SmallTrunk((16,) * 4, (1,) * 4, 32),
        plan=Plan(epochs=1, lr=1e-3),
        batch=16,
        size=SIZE,
        points=16,
        hidden=64,
        workers=0,
    )


@pytest.fixture(scope="module")
def painted(run, tmp_path_factory) -> PeCLRRun:
    """The same with other photos: four discs of any colours, which tell people apart."""
    folder, rng = tmp_path_factory.mktemp("painted"), np.random.default_rng(0)
    draw(folder, 32, 80, 4)
    for file in sorted((folder / "images").iterdir()):
        photo = np.full((80, 80, 3), 60, np.uint8)
        for x, y in rng.uniform(20, 60, (4, 2)):
            cv2.circle(photo, (int(x), int(y)), int(rng.integers(6, 14)), rng.integers(0, 255, 3).tolist(), -1)
        cv2.imwrite(str(file), photo)
    return replace(
        run,
        data=replace(run.data, home=str(folder)),
        plan=Plan(epochs=24, lr=4e-3),
        views=Views(colours=Colours(0.2, 0.2, 0.2, 0.1)),
    )


def task_of(run: PeCLRRun) -> PeCLRTask:
    return run.task(None, torch.device("cpu"))


def test_pixels_move_as_is_said(run):
    """Dots of two views of a person, each moved back by what is said of its view, lie alike but for scale."""
    task = task_of(replace(run, views=Views(colours=None), size=(96, 96)))
    colours = torch.tensor([colour(k) for k in range(14)]) / 255
    places = torch.stack(torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="xy"), -1)
    checked = 0
    for batch in task.batches(0, torch.Generator().manual_seed(0)):
        near = (batch.image[:, None] - colours[:, :, None, None]).abs().amax(2) < 0.06  # (2B, 14, h, w)
        area = near.sum((-1, -2))
        middle = (near[..., None] * places).sum((2, 3)) / area[..., None].clamp_min(1)
        back = middle - (95 / 2) - batch.shift[:, None] * 96
        c, s = batch.angle.cos(), batch.angle.sin()
        turn = torch.stack([c, s, -s, c], -1).unflatten(-1, (2, 2))
        back = back @ turn  # by minus the angle
        for k in range(16):
            whole = (area[k] > 20) & (area[k + 16] > 20)
            inner = whole & (middle[[k, k + 16]] > 10).all(0).all(-1) & (middle[[k, k + 16]] < 85).all(0).all(-1)
            if inner.sum() < 4:
                continue
            a, b = back[k][inner], back[k + 16][inner]
            scale = (a * b).sum() / (a * a).sum()
            assert (scale * a - b).norm(dim=-1).max() < 2.5
            checked += 1
    assert checked > 10


def test_pairs_become_nearer_than_others(painted, tmp_path):
    task = task_of(painted)
    log = train_task(task, painted.plan, tmp_path, cpu=True)
    assert log[-1]["pairs found"] > 0.2 > 2 * log[0]["pairs found"]  # chance is one of sixteen
    assert log[-1]["contrast"] < log[0]["contrast"] - 0.5
    batch = next(task.batches(0, torch.Generator().manual_seed(5)))
    with torch.no_grad():
        alike = similarity(*task._projections(task.modules["trunk"].eval(), batch).chunk(2))
    others = (alike.sum() - alike.diagonal().sum()) / (16 * 15)
    assert alike.diagonal().mean() > others + 0.4


def test_a_network_goes_on_from_the_trunk(run, tmp_path):
    """best.pt holds the trunk in its own names, which is what `start` of a 2D run reads."""
    trunk = lambda: ResNet(BasicBlock, (1, 1, 1, 1))
    short = replace(
        run, trunk=trunk, plan=Plan(epochs=1, lr=1e-3), steps=1, views=replace(run.views, colours=Colours())
    )
    train_task(task_of(short), short.plan, tmp_path, cpu=True)
    learnt = read_checkpoint(tmp_path / "best.pt")["model"]
    net = lambda joints: on_trunk(PoseResNet(BasicBlock, (1, 1, 1, 1)), Heatmap(), joints, SIZE)
    pose = PoseRun(run.data, net, Plan(epochs=1, lr=1e-3), 8, STILL, start=tmp_path / "best.pt", workers=0)
    begun = cpu(pose).modules["net"].net.trunk.state_dict()
    assert all(torch.equal(begun[key], value) for key, value in learnt.items())


def test_what_is_no_trunk_is_refused(run):
    with pytest.raises(InputError, match="Linear is no trunk"):
        task_of(replace(run, trunk=lambda: nn.Linear(3, 3)))


def test_the_config_is_of_a_resnet():
    run = read_config(CONFIGS / "lspet_peclr.py")
    assert isinstance(run, PeCLRRun)
    with torch.device("meta"):
        assert run.trunk().channels == 2048
