"""HR-NAS: the network that is searched, what its parts cost, and its shrinking. Published outputs: tests/test_known_networks.py."""

import copy
import functools
import itertools

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from body3d.codecs import Heatmap
from body3d.errors import InputError
from body3d.learn.hrnas_search import (
    BlockCost,
    Penalty,
    SearchPlan,
    _shrink_with,
    block_costs,
    multiplications,
    recalibrate,
    saved,
    search,
    shrink,
    silence,
)
from body3d.nets import hrnas
from body3d.nets.hrnas import HRNAS, LightTransformer, Paths, SearchBlock, from_published, search_blocks
from body3d.nets.small import SmallTrunk
from body3d.posenet import PoseNet, fused, on_trunk
from body3d.skeletons import LSP14
from body3d.types import Keypoints2D

SIZE = (64, 64)


def fresh(net, seed=1):
    """In eval mode and double precision, with weights of a size that is seen, and statistics that are not 0 and 1."""
    torch.manual_seed(seed)
    for name, values in net.state_dict().items():
        if name.endswith("running_var") or (name.endswith("weight") and values.ndim == 1):
            values.uniform_(0.5, 1.5)
        elif name.endswith("running_mean") or name.endswith("bias"):
            values.normal_(0, 0.3)
        elif values.ndim > 1:
            values.normal_(0, values[0].numel() ** -0.5)
    return net.double().eval()


def small(tokens=4):
    return copy.deepcopy(made(tokens))


@functools.cache
def made(tokens):
    torch.manual_seed(0)
    trunk = HRNAS((4, 6, 8, 10), stem=4, channels=8, expand=2, tokens=tokens, depths=(1, 1, 1, 1))
    return fresh(on_trunk(trunk, Heatmap(sigma=1.5), LSP14, SIZE))


def block(tokens=5, inputs=6, outputs=8, stride=2):
    return fresh(SearchBlock(inputs, outputs, stride, Paths((4, 3, 2), tokens)))


def kill(module, share=0.5, seed=0, spare=0):
    """Put that share of all scales to 0, but none of the first `spare` of each."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, scale in module.named_parameters():
            if name.endswith(("input_norm.weight", *(f"ops.{i}.1.1.weight" for i in range(3)))):
                scale[spare:][torch.rand(len(scale) - spare, generator=random) < share] = 0
    return module


def without_chance(net):
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    return net


# ---- the network ---------------------------------------------------------------------------------------------------
def macs(net):
    net = copy.deepcopy(net).eval().to("meta")
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, *net.size, dtype=next(net.parameters()).dtype))
    return counter.get_total_flops() / 2


def test_published_sizes():
    """The public code's count has 89,856 weights of batch norms for distillation too; 5.797 billion products at 256x192."""
    with torch.device("meta"):
        net, spare = hrnas.hrnas_super_released(), HRNAS(spare_norms=True)
        count = lambda module: sum(p.numel() for p in module.parameters())
        assert count(net) == 10_110_053
        assert count(spare) + count(net.net.head) == 10_199_909
        assert macs(net) / 1e9 == pytest.approx(5.797, abs=0.001)


def test_a_block_is_the_sum_of_its_parts():
    whole = block()
    x = torch.randn(2, 6, 8, 12, dtype=torch.double)
    paths = sum(op[2](op[1](op[0](x))) for op in whole.ops.values())
    expected = whole.residual(x) + whole.pw_bn(paths) + whole.transformer(x, (4, 6))
    torch.testing.assert_close(whole(x), expected)
    for i, kernel in enumerate((3, 5, 7)):
        assert whole.ops[str(i)][1][0].kernel_size == (kernel, kernel)
    same = fresh(SearchBlock(6, 6, 1, Paths((4, 3, 2))))
    assert same.residual is None
    torch.testing.assert_close(same(x) - x, same.pw_bn(sum(op(x) for op in same.ops.values())))


def test_fusion_is_of_neighbours():
    """A branch reaches the next ones in one exchange, and no further; a new one comes of the coarsest."""
    net = small(tokens=0)
    fusion = net.net.trunk.features[8]
    seen = [torch.randn(1, c, 16 >> i, 16 >> i, dtype=torch.double) for i, c in enumerate((4, 6, 8, 10))]
    before = fusion(seen)
    for j in range(4):
        moved = fusion([x + (i == j) for i, x in enumerate(seen)])
        assert [not torch.equal(a, b) for a, b in zip(before, moved, strict=True)] == [abs(i - j) < 2 for i in range(4)]
    first = net.net.trunk.features[4]
    grown = first(seen[:2])
    torch.testing.assert_close(grown[2], first.fuse_layers[2]["0"](grown[1]))


# ---- the transformer -----------------------------------------------------------------------------------------------
def by_hand(t: LightTransformer, x, size, alive):
    """Softmax attention written out, over the tokens that are alive."""
    steps = torch.linspace(-1, 1, 8, dtype=x.dtype)
    steps = steps / steps.square().mean().sqrt()
    small = F.interpolate(x, (8, 8), mode="bilinear", align_corners=False)
    column, row = steps.expand(len(x), 1, 8, 8), steps[:, None].expand(len(x), 1, 8, 8)
    tokens = t.input_norm(t.input_proj(torch.cat([small, column, row], 1)).flatten(2))[:, alive]

    def layer(module, name, x, query, memory):
        attention = getattr(module, name)
        q, k, v = (a @ w.mT for a, w in zip((query, memory, memory), attention.in_proj_weight.chunk(3), strict=True))
        read = (q @ k.mT / 8).softmax(-1) @ v @ attention.out_proj.weight.mT
        x = module.norm1(x + read)
        return module.norm2(x + module.linear2(module.linear1(x).relu()))

    seen = layer(t.encoder, "self_attn", tokens, tokens, tokens)
    read = layer(t.decoder, "multihead_attn", seen, t.query_embed.weight[alive].expand(len(x), -1, -1), seen)
    back = torch.einsum("ot,btn->bon", t.reverse_proj.weight[:, alive, 0, 0], read).unflatten(2, (8, 8))
    return F.interpolate(t.reverse_norm(back), size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("alive", [[0, 1, 2, 3, 4], [1, 4], [2]])
def test_the_transformer(alive):
    """Tokens without scale have no part in it, as if they were not there."""
    t, x = fresh(LightTransformer(5, 6, 7)), torch.randn(2, 6, 12, 6, dtype=torch.double)
    with torch.no_grad():
        t.input_norm.weight[[i for i in range(5) if i not in alive]] = 0
    torch.testing.assert_close(t(x, (6, 3)), by_hand(t, x, (6, 3), alive))


def test_without_its_last_projection_the_convolutions_are_left():
    whole = block()
    with torch.no_grad():
        whole.transformer.reverse_proj.weight.zero_()
        whole.transformer.reverse_norm.running_mean.zero_()
        whole.transformer.reverse_norm.bias.zero_()
    x = torch.randn(2, 6, 8, 8, dtype=torch.double)
    plain = SearchBlock(6, 8, 2, Paths((4, 3, 2))).double().eval()
    plain.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("transformer")})
    torch.testing.assert_close(whole(x), plain(x))


# ---- shrinking -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("training", [False, True])
def test_the_shrunk_network_is_the_same(training):
    """To rounding, in use and in training, with shifts of the removed channels that are not 0; and it costs what is left."""
    net = kill(small(), spare=int(training))
    without_chance(net)
    costs = block_costs(net)
    left = multiplications(net, costs) - saved(net, costs, 1e-12)
    image = torch.rand(2, 3, *SIZE, dtype=torch.double)
    before = net.train(training)(image)[0].detach()
    if training:  # the statistics have moved
        before = net(image)[0].detach()
    size = sum(p.numel() for p in net.parameters())
    shrink(net)
    torch.testing.assert_close(without_chance(net)(image)[0], before)
    assert sum(p.numel() for p in net.parameters()) < size
    assert multiplications(net, costs) == pytest.approx(left, rel=1e-9)
    torch.testing.assert_close(fused(net)(image)[0], net.eval()(image)[0])


def test_what_is_wholly_gone_leaves_a_constant():
    for only in ("ops", "transformer", ""):
        gone = kill(block(), share=2.0)
        if only:
            with torch.no_grad():
                for name, scale in gone.named_parameters():
                    if name.startswith(only) and name.endswith(("1.1.weight", "input_norm.weight")):
                        scale.fill_(0.7)
        x = torch.randn(2, 6, 8, 8, dtype=torch.double)
        holder = torch.nn.ModuleDict({"block": gone})
        before = gone(x)
        shrink(holder)
        after = holder["block"]
        torch.testing.assert_close(after(x), before)
        assert (after.paths.tokens == 0) == (only != "transformer")
        assert (after.paths.channels == (0, 0, 0)) == (only != "ops")
        shrink(holder)  # again: nothing more
        torch.testing.assert_close(holder["block"](x), before)


def test_a_searched_network_loads(tmp_path, monkeypatch):
    """Its sizes are in the file."""
    net = kill(small(), 0.7)
    kill(net.net.trunk.features[3], 2.0)
    shrink(net)
    torch.save(net.state_dict(), tmp_path / "searched.pt")
    plain = HRNAS
    monkeypatch.setattr(hrnas, "HRNAS", lambda tokens: plain((4, 6, 8, 10), 4, 8, 2, tokens, depths=(1, 1, 1, 1)))
    read = hrnas.hrnas_super(LSP14, Heatmap(sigma=1.5), SIZE, tmp_path / "searched.pt").double()
    assert [b.paths for _, b in search_blocks(read)] == [b.paths for _, b in search_blocks(net)]
    image = torch.rand(1, 3, *SIZE, dtype=torch.double)
    torch.testing.assert_close(read(image)[0], net(image)[0], atol=1e-5, rtol=1e-5)  # through single precision
    torch.save({"linear.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other.pt holds no network of HR-NAS"):
        hrnas.hrnas_super(weights=tmp_path / "other.pt")


def test_published_names():
    state = {"classifier.bias": torch.zeros(1), "features.0.x": torch.zeros(2)}
    assert set(from_published(state)) == {"head.bias", "trunk.features.0.x"}
    ours = {"net.head.bias": torch.zeros(1), "net.trunk.features.0.x": torch.zeros(2)}
    assert set(from_published(ours)) == set(from_published(state))


# ---- costs and penalty ---------------------------------------------------------------------------------------------
def test_costs_are_those_counted():
    """A block with and without one channel of a kernel, or one token, at 8x12 in and 4x6 out."""
    costs = {}
    with torch.device("meta"):

        def count(channels, tokens):
            made = SearchBlock(6, 8, 2, Paths(channels, tokens)).eval()
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                made(torch.empty(1, 6, 8, 12))
            return counter.get_total_flops() / 2

        for name, paths in {
            "base": ((4, 3, 2), 5), "k3": ((5, 3, 2), 5), "k5": ((4, 4, 2), 5), "k7": ((4, 3, 3), 5), "token": ((4, 3, 2), 6),
        }.items():  # fmt: skip
            costs[name] = count(*paths)
    holder = small()
    cost = block_costs(holder)["net.trunk.features.2.fuse_layers.0.0"]  # 4 to 4 channels at 16x16
    assert cost.channel == tuple(256.0 * (4 + k**2 + 4) for k in (3, 5, 7))
    mine = BlockCost(
        tuple(6 * 96.0 + (k**2 + 8) * 24 for k in (3, 5, 7)),  # type: ignore[arg-type]
        64 * (8 + 8) + 12 * 64.0**2,
        256.0,
    )
    assert [costs[k] - costs["base"] for k in ("k3", "k5", "k7")] == list(mine.channel)
    assert costs["token"] - costs["base"] == mine.last_token(6)
    assert mine.last_token(7) > mine.last_token(6)


def test_where_nothing_is_left_the_penalty_is_zero_on_the_networks_device():
    assert Penalty({}, 1.0)(torch.nn.Linear(1, 1)).item() == 0
    assert Penalty({}, 1.0)(torch.nn.Linear(1, 1, device="meta")).device.type == "meta"


def test_the_penalty_is_by_what_is_saved():
    """Its slope at a scale is what would be saved without that channel, in units of the mean."""
    net = small()
    penalty = Penalty.of(net)
    penalty(net).backward()
    whole = multiplications(net, penalty.costs)
    chosen = dict(net.named_parameters())
    for key in (
        "net.trunk.features.9.branches.0.0.ops.0.1.1.weight",
        "net.trunk.features.5.branches.2.0.transformer.input_norm.weight",
    ):
        slope, other = chosen[key].grad[0], small()
        with torch.no_grad():
            dict(other.named_parameters())[key][0] = 0
        assert saved(other, penalty.costs, 1e-9) == pytest.approx(slope.item() * penalty.mean, rel=1e-9)
        shrink(other)
        assert whole - multiplications(other, penalty.costs) == pytest.approx(slope.item() * penalty.mean, rel=1e-9)
    # Where all weigh alike the mean slope is 1.
    slopes = torch.cat([p.grad for p in net.parameters() if p.grad is not None])
    assert slopes.mean().item() == pytest.approx(1)
    other = on_trunk(SmallTrunk((8, 8, 8, 8), (1, 1, 1, 1), 8), Heatmap(), LSP14, SIZE)
    with pytest.raises(InputError, match="Headed has no searched blocks"):
        block_costs(other)


def test_recalibration_measures_the_mean_over_batches():
    net = small().train()
    images = [torch.rand(4, 3, *SIZE, dtype=torch.double) for _ in range(3)]
    stem, norm = net.net.trunk.downsamples[0][0], net.net.trunk.downsamples[0][1]
    recalibrate(net, images)
    seen = [stem(net.normalise(image)) for image in images]
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0))
    assert norm.momentum == 0.1 and net.training
    state = {k: v.clone() for k, v in net.state_dict().items()}
    recalibrate(net, [])
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


# ---- the search ----------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_search_shrinks_until_it_is_small_enough():
    """The multiplications never rise, scales go on from where they were, and Adam's averages are those of what stayed."""
    net = PoseNet(small().net, Heatmap(sigma=1.5), LSP14, (32, 32)).float()
    image = torch.rand(4, 3, 32, 32)
    target = Keypoints2D(4 + 24 * torch.rand(4, 14, 2), torch.ones(4, 14), LSP14)
    whole = multiplications(net, block_costs(net))
    enough = 0.9 * whole
    plan = SearchPlan(3, 0.3, lambda _: 1.0, rho=0.1, warmup=0.0, threshold=0.2, worth=1.0, target=enough)
    rows = search(net, lambda epoch: [(image, target)] * 2, plan)
    left = [whole] + [row.multiplications for row in rows]
    assert all(b <= a for a, b in itertools.pairwise(left))
    assert left[-1] <= enough and left[-1] == multiplications(net, block_costs(net))
    reached = next(i for i, m in enumerate(left) if m <= enough)
    assert left[reached:] == left[reached : reached + 1] * len(left[reached:])
    assert all(torch.isfinite(p).all() for p in net.parameters())
    with pytest.raises(InputError, match="epoch 1 of the search has no batches"):
        search(net, lambda epoch: [], plan)
    with pytest.raises(InputError, match="epoch 1 of the search diverged"):
        search(net, lambda epoch: [(image * float("nan"), target)], plan)


def test_adam_keeps_the_averages_of_what_stays():
    net = small()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    image = torch.rand(2, 3, *SIZE, dtype=torch.double)
    target = Keypoints2D(10 + 44 * torch.rand(2, 14, 2).double(), torch.ones(2, 14).double(), LSP14)
    net.loss(image, target).backward()
    optimizer.step()
    key = "net.trunk.features.3.branches.0.0.ops.1.1.1.weight"
    before = dict(net.named_parameters())[key]
    with torch.no_grad():
        before[::2] = 0.0
    average = optimizer.state[before]["exp_avg"].clone()
    after = _shrink_with(net, optimizer, 1e-9)
    state = after.state[dict(net.named_parameters())[key]]
    assert torch.equal(state["exp_avg"], average[1::2]) and state["step"] == 1
    assert len(after.state) == len(list(net.parameters()))


def test_silence():
    net = small()
    key = "ops.2.1.1.weight"
    scale = dict(search_blocks(net))["net.trunk.features.3.branches.0.0"].get_parameter(key)
    with torch.no_grad():
        scale[:3] = torch.tensor([1e-4, -1e-4, -0.5])
    silence(net, 1e-3)
    assert scale[:3].tolist() == [0.0, 0.0, -0.5]
    assert (scale[3:] > 0.4).all()
