"""LitePose: sizes, its head, and where its cells lie. Published outputs: tests/test_known_networks.py."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from body3d.bottomup import litepose
from body3d.bottomup.litepose import Arrangement, LitePose
from body3d.errors import InputError
from body3d.skeletons import CROWDPOSE14, LSP14

SMALL = Arrangement(8, (8, 8, 16, 16), (16, 8, 8), 64, expand=2)


def small(fusion=True, arrangement=SMALL):
    """In eval mode and double precision, with statistics and weights of batch norms that are not 0 and 1."""
    torch.manual_seed(0)
    net = LitePose(LSP14, arrangement, fusion)
    for name, values in net.state_dict().items():
        if not values.is_floating_point():
            continue
        if name.endswith("running_var") or (name.endswith("weight") and values.ndim == 1):
            values.uniform_(0.5, 1.5)
        elif name.endswith("running_mean") or name.endswith("bias") or name.startswith("deconv"):
            values.normal_(0, 0.1)
    return net.double().eval()


@pytest.mark.parametrize(
    ("name", "parameters", "billions"),
    [
        ("litepose_xs", 1_675_912, 0.886),
        ("litepose_s", 2_731_624, 3.624),
        ("litepose_m", 3_534_336, 5.276),
        ("litepose_l", 5_738_672, 9.979),
    ],
)
def test_published_sizes(name, parameters, billions):
    """Of the public code with COCO's joints; multiply-accumulates at the size that each was searched for."""
    with torch.device("meta"), torch.no_grad():
        net = getattr(litepose, name)().eval()
        side = net.arrangement.side
        with FlopCounterMode(display=False) as counter:
            maps = net(torch.empty(1, 3, side, side))
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(billions, abs=0.001)
    assert maps.heat.shape == maps.tags.shape == (1, 17, side // 4, side // 4)
    assert maps.fine.shape == (1, 17, side // 2, side // 2)


def test_without_the_early_stages_it_is_a_plain_head():
    whole, plain = small(), small(fusion=False)
    with torch.no_grad():
        for part in (*whole.deconv_raw, *(conv.conv[3] for conv in whole.final_raw)):
            part.weight.zero_()
    state = {key: value for key, value in whole.state_dict().items() if "raw" not in key}
    plain.load_state_dict(state)
    image = torch.randn(1, 3, 64, 96, dtype=torch.double)
    for a, b in zip(whole(image), plain(image), strict=True):
        torch.testing.assert_close(a, b)


def test_the_head_looks_back():
    """With the deepest stage and its refined path cut, the maps still come of the stages before."""
    net = small()
    image = torch.randn(1, 3, 64, 64, dtype=torch.double)
    net.stage[3].register_forward_hook(lambda _, x, y: torch.zeros_like(y))
    before = net(image)
    for stage in (0, 1, 2):
        hook = net.deconv_raw[2 - stage].register_forward_pre_hook(lambda _, x: (x[0] + 1,))
        after = net(image)
        hook.remove()
        # The last deconvolution, which sees the first stage, is that of the finer maps.
        assert torch.equal(after.heat, before.heat) == torch.equal(after.tags, before.tags) == (stage == 0)
        assert not torch.equal(after.fine, before.fine)


def test_cells_tile_the_image():
    """An image moved by a stride moves every map by as much. Without kernels in the blocks, borders are not seen in the middle."""
    net = small(arrangement=replace(SMALL, kernel=1))
    torch.manual_seed(1)
    wide = torch.randn(1, 3, 128, 16 * 13, dtype=torch.double)
    left, right = net(wide[..., :192]), net(wide[..., 16:])
    for a, b, step in zip(left, right, (4, 4, 8), strict=True):
        middle, rows = a.shape[-1] // 2, slice(a.shape[-2] // 2 - 2, a.shape[-2] // 2 + 2)
        here, there = a[..., rows, middle - 4 + step : middle + 4 + step], b[..., rows, middle - 4 : middle + 4]
        torch.testing.assert_close(here, there, atol=1e-9, rtol=0)


def test_every_weight_learns():
    net = small().train()
    maps = net(torch.randn(2, 3, 64, 64, dtype=torch.double))
    sum(part.square().mean() for part in maps).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_heat_and_tags_have_weights_of_their_own():
    net = small()
    image = torch.randn(1, 3, 64, 64, dtype=torch.double)
    before = net(image)
    with torch.no_grad():
        for layers in (net.final_refined, net.final_raw):
            layers[0].conv[3].weight[len(LSP14) :].zero_()
    after = net(image)
    assert torch.equal(after.heat, before.heat) and torch.equal(after.fine, before.fine)
    assert not after.tags.any() and before.tags.any()


def test_bad_inputs(tmp_path):
    net = small()
    with pytest.raises(InputError, match="multiples of 16 pixels, got 60 x 64: pad or resize"):
        net(torch.zeros(1, 3, 60, 64, dtype=torch.double))
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other.pth holds .*not what was asked for"):
        litepose.litepose_xs(weights=tmp_path / "other.pth")
    published = litepose.litepose_xs(CROWDPOSE14).state_dict()
    torch.save({f"module.{key}": value for key, value in published.items()}, tmp_path / "xs.pth")
    read = litepose.litepose_xs(CROWDPOSE14, tmp_path / "xs.pth")
    assert not read.training
    assert all(torch.equal(value, published[key]) for key, value in read.state_dict().items())
