"""What networks cost: counted by hand, against timm's shapes where timm is there, and with what is not installed."""

import sys

import pytest
import torch
from torch import nn

from body3d.benchmarks import nets as bench
from body3d.codecs import Heatmap
from body3d.errors import InputError
from body3d.layers import conv_bn
from body3d.posenet import PLAIN, Headed, PoseNet
from body3d.skeletons import LSP14


class Trunk(nn.Module):
    channels = 8

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(conv_bn(3, 8, 3, 2), conv_bn(8, 8, 3, 2))

    def forward(self, image):
        return [self.layers(image)]


def tiny() -> PoseNet:
    torch.manual_seed(0)
    return PoseNet(Headed(Trunk(), nn.Conv2d(8, 14, 1)), Heatmap(), LSP14, (64, 32), PLAIN).eval()


def test_multiplications_by_hand():
    net = tiny()
    by_hand = 32 * 16 * 8 * 27 + 16 * 8 * (8 * 72 + 14 * 8)
    assert bench.multiplications(net) * 1e9 == pytest.approx(by_hand)
    assert all(not p.is_meta for p in net.parameters())


def test_what_takes_longer_costs_more():
    """Eight times the work, in turns with it once."""
    a = torch.rand(300, 300)
    took = bench.cost({"once": lambda: a @ a, "often": lambda: [a @ a for _ in range(8)]}, 9)
    assert 3 < took["often"] / took["once"] < 20


def test_figures_are_ratios_to_the_network_itself(monkeypatch):
    net, image = tiny(), torch.rand(2, 3, 64, 32)
    times = {"ours": 0.02, "reference": 0.025, "channels-last": 0.015, "as detect runs it": 0.01}
    seen = {}

    def cost(runs, repeats):
        seen.update({name: run()[0] for name, run in runs.items()})
        return {name: times[name] for name in runs}

    monkeypatch.setattr(bench, "cost", cost)
    monkeypatch.setattr(bench.shutil, "which", lambda name: None)
    with torch.no_grad():
        row = bench.figures(net, image, tiny(), 1, compiled=True)
    assert row == pytest.approx({"ms": 20, "ms of the reference": 25, "ratio": 0.8, "ratio, channels-last": 0.75,
                   "ratio, as detect runs it": 0.5, "ratio, torch.compile": "no compiler"})  # fmt: skip
    for name, output in seen.items():  # all of them compute the same
        torch.testing.assert_close(output, seen["ours"], msg=name)


def test_unknown_names_and_no_timm(monkeypatch, capsys):
    with pytest.raises(InputError, match="no network's name begins with 'yolo'; there are .*hrnet_w32"):
        bench.bench_nets("yolo")
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr(bench, "_built", lambda name: tiny())
    capsys.readouterr()
    table = bench.bench_nets("hrnet", 1)
    assert list(table) == ["hrnet_w32", "hrnet_w48"]
    assert {"batch 1: ms", "batch 16: ms"} < table["hrnet_w32"].keys() and "batch 1: ratio" not in table["hrnet_w32"]
    assert "timm cannot be imported" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["simplebaseline_r50", "hrnet_w32", "vitpose_s", "rle_r50"])
def test_timms_trunks_have_the_shape_of_ours(name):
    try:
        import timm
    except ImportError as error:
        pytest.skip(f"needs timm: {error}")
    net = bench._built(name)
    other = bench.with_timm(net, name, timm)
    assert other is not None
    with torch.no_grad():
        ours, theirs = (n(torch.rand(1, 3, *net.size))[-1] for n in (net, other))
    for a, b in zip(
        ours if isinstance(ours, tuple) else [ours], theirs if isinstance(theirs, tuple) else [theirs], strict=True
    ):
        assert not isinstance(a, torch.Tensor) or a.shape == b.shape
