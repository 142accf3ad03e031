"""Keypoints of any kind of thing: what the network must not depend on, its episodes, and kinds that it has not seen."""

import colorsys

import pytest
import torch
from test_pose2d import CONFIGS, SIZE, STILL, colour, draw, packed
from torch import nn

from body3d.codecs import Heatmap
from body3d.errors import InputError
from body3d.learn.configs import read_config
from body3d.learn.crops import PhotoSet
from body3d.learn.pomnet_training import POMNetRun, POMNetTask
from body3d.losses import joint_mse
from body3d.nets.pomnet import POMNet, Support, pomnet_r50, pooled
from body3d.skeletons import LSP14
from body3d.train import Plan

CODEC = Heatmap(sigma=1.5)


class Strided(nn.Module):
    """Two convolutions to stride 8, with norms: else all that is seen is nearly the same."""

    def __init__(self, channels: int = 16):
        super().__init__()
        self.channels = channels
        self.layers = nn.Sequential(
            nn.Conv2d(3, channels, 4, 4),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 2, 1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [self.layers(image)]


def tiny(codec: Heatmap = CODEC) -> POMNet:
    net = POMNet(Strided(), Strided(), 32, 4, 1, 64, 0.0, deconvolutions=1, codec=codec, size=SIZE)
    for module in net.keypoint_head.deconv_layers:
        if isinstance(module, nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.05)
    return net


@pytest.fixture(scope="module")
def settled() -> POMNet:
    """In double precision, its tokens far enough from each other to matter."""
    torch.manual_seed(0)
    net = tiny().double().eval()
    for module in net.modules():
        if isinstance(module, nn.ConvTranspose2d | nn.Conv2d):
            nn.init.normal_(module.weight, std=0.2)
    return net


@pytest.fixture(scope="module")
def asked(settled) -> tuple[torch.Tensor, Support]:
    torch.manual_seed(1)
    image, shots = torch.rand(2, 3, *SIZE).double(), torch.rand(2, 3, 3, *SIZE).double()
    known = torch.ones(2, 3, 5).double()
    known[0, 1, 2] = 0
    return image, settled.support(shots, 64 * torch.rand(2, 3, 5, 2).double(), known)


# ---- the network ---------------------------------------------------------------------------------------------------
def test_features_are_the_mean_under_the_marks():
    torch.manual_seed(0)
    features, maps = torch.randn(1, 2, 3, 8, 8), torch.zeros(1, 2, 2, 8, 8)
    maps[0, :, 0, 2, 5], maps[0, 1, 1] = 7.0, 1.0
    read = pooled(features, maps)
    torch.testing.assert_close(read[0, :, 0], features[0, :, :, 2, 5])
    torch.testing.assert_close(read[0, 1, 1], features[0, 1].mean((-1, -2)))
    assert (read[0, 0, 1] == 0).all()


@torch.no_grad()
def test_the_order_of_keypoints_is_that_of_the_answer(settled, asked):
    image, support = asked
    order = [3, 0, 4, 1, 2]
    turned = Support(support.image, support.maps[:, :, order], support.known[:, :, order])
    maps = settled(image, support)
    assert maps.shape == (2, 5, 16, 16) and maps[:, 0].sub(maps[:, 1]).abs().max() > 1e-3
    torch.testing.assert_close(settled(image, turned), maps[:, order])


@torch.no_grad()
def test_what_is_not_marked_tells_the_others_nothing(settled, asked):
    image, support = asked
    maps = settled(image, support)
    other = support.maps.clone()
    other[0, :, 2] = torch.rand(3, 16, 16).double()  # is not marked on one of the shots
    again = settled(image, Support(support.image, other, support.known))
    rest = [0, 1, 3, 4]
    torch.testing.assert_close(again[:, rest], maps[:, rest])
    # Padding with unmarked keypoints changes nothing; leaving a marked one out does.
    pad = lambda x: torch.cat([x, torch.zeros_like(x[:, :, :2])], 2)
    padded = settled(image, Support(support.image, pad(support.maps), pad(support.known)))
    torch.testing.assert_close(padded[:, :5], maps)
    fewer = settled(image, Support(support.image, support.maps[:, :, :4], support.known[:, :, :4]))
    assert (fewer - maps[:, :4]).abs().max() > 1e-4
    none = settled(image, Support(support.image, support.maps, torch.zeros_like(support.known)))
    assert none.isfinite().all()
    assert settled.predict(image, support)[1][0, 2] == 0 and (settled.predict(image, support)[1][1] > 0).any()


@torch.no_grad()
def test_shots_are_averaged(settled, asked):
    image, support = asked
    support = Support(support.image, support.maps, torch.ones_like(support.known))
    maps = settled(image, support)
    order = [2, 0, 1]
    turned = Support(support.image[:, order], support.maps[:, order], support.known)
    torch.testing.assert_close(settled(image, turned), maps)
    first = Support(support.image[:, :1], support.maps[:, :1], support.known[:, :1])
    twice = Support(*(x.repeat_interleave(2, 1) for x in (first.image, first.maps, first.known)))
    torch.testing.assert_close(settled(image, twice), settled(image, first))
    assert (settled(image, first) - maps).abs().max() > 1e-4
    torch.testing.assert_close(settled(image[1:], support[1:]), maps[1:])


def test_marks_are_bumps_where_they_are_said(settled):
    xy = torch.tensor([[[[20.0, 40.0], [100.0, 10.0]]]]).double()
    support = settled.support(torch.zeros(1, 1, 3, *SIZE).double(), xy, torch.ones(1, 1, 2).double())
    back, _ = CODEC.decode(support.maps[0], SIZE)
    torch.testing.assert_close(back[0, 0], xy[0, 0, 0], rtol=0, atol=0.3)
    assert support.known[0, 0].tolist() == [1, 0]  # the other one is not on the photo
    with pytest.raises(InputError, match="sees crops of 64 x 64 pixels .height x width., got 32 x 48"):
        settled.support(torch.zeros(1, 1, 3, 32, 48).double(), xy, torch.ones(1, 1, 2).double())
    with pytest.raises(InputError, match="sees crops of 64 x 64 pixels .height x width., got 128 x 128"):
        settled.predict(torch.zeros(1, 3, 128, 128).double(), support)


def test_every_published_weight_learns():
    with torch.device("meta"):
        net = pomnet_r50().train()
        support = Support(torch.empty(2, 2, 3, 128, 192), torch.empty(2, 2, 4, 32, 48), torch.empty(2, 2, 4))
        maps = net(torch.empty(2, 3, 128, 192), support)
        assert maps.shape == (2, 4, 32, 48)
        maps.sum().backward()
    assert sum(p.numel() for p in net.parameters()) == 61_074_817
    assert all(p.grad is not None for p in net.parameters())


# ---- episodes ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def run(tmp_path_factory) -> POMNetRun:
    folder = tmp_path_factory.mktemp("pomnet")
    draw(folder, 12, 80, 4)
    return POMNetRun(
        PhotoSet(str(folder), LSP14, packed, packed), tiny, Plan(epochs=1, lr=1e-3), batch=4, shots=2, choose=5,
        held_out=("left_wrist", "right_wrist"), augment=STILL, workers=0,
    )  # fmt: skip


def task_of(run: POMNetRun) -> POMNetTask:
    return run.task(None, torch.device("cpu"))


def test_episodes_show_the_joints_that_they_ask_for(run):
    """Under each place is the colour of one joint, the same on the photo and on those that show it, never of a held-out one."""
    task, seen = task_of(run), set()
    colours = torch.tensor([colour(k) for k in range(14)]) / 255
    at = lambda image, xy: image[:, xy[:, 1].round().long(), xy[:, 0].round().long()].T
    for episode in task.batches(0, torch.Generator().manual_seed(0)):
        assert episode.xy.shape == (4, 5, 2) and episode.shots_xy.shape == (4, 2, 5, 2) and (episode.known == 1).all()
        for b in range(4):
            names = torch.cdist(at(episode.image[b], episode.xy[b]), colours).argmin(1).tolist()
            for s in range(2):
                shown = torch.cdist(at(episode.shots[b, s], episode.shots_xy[b, s]), colours).argmin(1).tolist()
                assert shown == names and (episode.shots[b, s] != episode.image[b]).any()
            assert len(set(names)) == 5
            seen |= set(names)
    assert seen <= set(range(14)) - set(LSP14.indices(run.held_out)) and len(seen) > 8


def test_a_step_and_its_figures(run):
    task = task_of(run)
    batch = next(task.batches(0, torch.Generator().manual_seed(0)))
    losses = task.losses(batch)
    losses["loss"].backward()
    assert all(p.grad is not None for p in task.net.parameters())
    with torch.no_grad():
        figures = task.validate(task.net.eval())
    assert list(figures) == ["1 - PCK@0.2, new", "PCK@0.2, learnt", "PCK@0.2, new"]
    truth = task.validation.xy.float()
    right = truth.clone()
    right[:, LSP14.index("left_wrist")] += 1000  # of the held-out ones one, of the others none
    known = torch.ones(12, 14, dtype=torch.bool)
    assert task._figures(right, known) == {"1 - PCK@0.2, new": 0.5, "PCK@0.2, learnt": 1.0, "PCK@0.2, new": 0.5}
    known[:, LSP14.index("left_wrist")] = False
    assert task._figures(right, known)["PCK@0.2, new"] == 1


def test_what_cannot_be_asked_is_refused(run):
    from dataclasses import replace

    with pytest.raises(InputError, match="episodes of 13 joints, but lsp14 has 12 to learn from"):
        task_of(replace(run, choose=13))
    with pytest.raises(InputError, match="lsp14 has no joint 'tail' to hold out"):
        task_of(replace(run, held_out=("tail",)))
    with pytest.raises(InputError, match="a step needs 15 people, there are 12"):
        task_of(replace(run, batch=5))
    run = read_config(CONFIGS / "lspet_pomnet.py")
    assert isinstance(run, POMNetRun) and all(name in LSP14 for name in run.held_out)


# ---- kinds not seen ------------------------------------------------------------------------------------------------
LEARNT = [i / 12 for i in range(12) if i % 3]
NEW = [i / 12 for i in range(12) if i % 3 == 0]


def things(count: int, hues: list[float], random: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Pairs of photos of things of three discs, each thing with colours of its own: images (B, 2, 3, 64, 64), places in pixels."""
    rgb = torch.tensor([colorsys.hsv_to_rgb(hue, 1, 1) for hue in hues])
    chosen = torch.rand(count, len(hues), generator=random).argsort(1)[:, :3]
    cells = torch.rand(2 * count, 9, generator=random).argsort(1)[:, :3].unflatten(0, (count, 2))
    xy = torch.stack([cells % 3, cells // 3], -1) * 20 + 11.5 + 4 * torch.rand(count, 2, 3, 2, generator=random)
    x = torch.arange(64.0)
    near = ((x - xy[..., :1]).square()[..., None, :] + (x - xy[..., 1:]).square()[..., None] < 49).float()
    paint = torch.einsum("bskhw,bkc->bschw", near, rgb[chosen])
    return 0.2 + 0.8 * paint, xy


def test_a_kind_not_seen_is_found(settled):
    """Learnt on things of eight colours, asked about things of four others: which disc is it? Chance is a third."""
    torch.manual_seed(0)
    net, random, known = tiny(), torch.Generator().manual_seed(0), torch.ones(16, 1, 3)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(130):
        image, xy = things(16, LEARNT, random)
        maps = net(image[:, 0], net.support(image[:, 1:], xy[:, 1:], known))
        target, _ = CODEC.target(xy[:, 0], SIZE, (16, 16))
        loss = joint_mse(maps, target, known[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    image, xy = things(64, NEW, random)
    seen, _ = net.predict(image[:, 0], net.support(image[:, 1:], xy[:, 1:], torch.ones(64, 1, 3)))
    nearest = torch.cdist(seen, xy[:, 0]).argmin(-1)
    found = (nearest == torch.arange(3)).float().mean()
    assert found > 0.5
