import math

import pytest
import torch
from torch import nn

from body3d.attention import (
    MLP,
    DeformableAttention,
    DeformableDecoderLayer,
    DeformableEncoderLayer,
    MixerBlock,
    SelfAttention,
    TransformerBlock,
    as_maps,
    inverse_sigmoid,
    pixel_centres,
    refine,
    sine_encoding,
    sine_positions,
)
from body3d.geometry import rescale


def shaken(net, seed=0):
    """With all weights drawn anew, also those that begin at zero, and in double precision."""
    torch.manual_seed(seed)
    for values in net.parameters():
        nn.init.normal_(values, std=0.3)
    return net.double().eval()


# ---- positions -----------------------------------------------------------------------------------------------------
def test_sine_encoding_in_numbers():
    x = torch.tensor([0.25, 0.9])
    code = sine_encoding(x, 6)
    expected = [
        [f(2 * math.pi * v / 10000 ** (p / 3)) for p in range(3) for f in (math.sin, math.cos)] for v in x.tolist()
    ]
    torch.testing.assert_close(code, torch.tensor(expected))


def test_sine_positions_say_y_then_x():
    table = sine_positions(5, 3, 16, -0.5).unflatten(0, (5, 3))
    centres = pixel_centres(5, 3).unflatten(0, (5, 3))
    torch.testing.assert_close(table[..., :8], sine_encoding(centres[..., 1], 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(table[..., 8:], sine_encoding(centres[..., 0], 8), atol=1e-5, rtol=0)
    # Without offset the last row and column are at 1, where the slowest wave ends.
    last = sine_positions(5, 3, 16)[-1]
    torch.testing.assert_close(last, sine_encoding(torch.ones(2), 8).flatten(), atol=1e-5, rtol=0)


def test_pixel_centres_are_the_projects():
    """Cell (x, y) of a map is where `rescale` has it on an image 8 times as large."""
    x, y = torch.meshgrid(torch.arange(6.0), torch.arange(4.0), indexing="xy")
    pixels = rescale(torch.stack([x, y], -1).flatten(0, 1), 8.0)
    torch.testing.assert_close(pixel_centres(4, 6) * torch.tensor([48.0, 32.0]) - 0.5, pixels)


def test_refinement():
    x = torch.rand(100, 2).double() * 0.998 + 0.001
    torch.testing.assert_close(refine(x, torch.zeros_like(x)), x, atol=1e-12, rtol=0)
    torch.testing.assert_close(refine(x, inverse_sigmoid(1 - x)), torch.full_like(x, 0.5))  # logits cancel
    outside = refine(torch.tensor([[-3.0, 4.0]]), torch.tensor([[2.0, -2.0]]))
    assert ((outside > 0) & (outside < 1)).all()
    torch.testing.assert_close(
        inverse_sigmoid(torch.tensor([-1.0, 0.5, 2.0])), torch.tensor([math.log(1e-5), 0, -math.log(1e-5)])
    )


# ---- blocks --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("positioned", [False, True])
def test_self_attention_is_torchs(positioned):
    ours, theirs = shaken(SelfAttention(24, 4)), nn.MultiheadAttention(24, 4, batch_first=True).double()
    theirs.load_state_dict({
        "in_proj_weight": ours.qkv.weight, "in_proj_bias": ours.qkv.bias,
        "out_proj.weight": ours.proj.weight, "out_proj.bias": ours.proj.bias,
    })  # fmt: skip
    x = torch.randn(2, 7, 24).double()
    p = torch.randn(1, 7, 24).double() if positioned else None
    q = x if p is None else x + p
    torch.testing.assert_close(ours(x, p), theirs(q, q, x)[0])


def test_the_scale_of_attention():
    """Queries made longer by some factor do what a scale larger by that factor does; the default is 1 / sqrt(24 / 4)."""
    plain, scaled = shaken(SelfAttention(24, 4)), shaken(SelfAttention(24, 4, scale=0.5))
    with torch.no_grad():
        for part in (plain.qkv.weight, plain.qkv.bias):
            part[:24] *= 0.5 * 6**0.5
    x = torch.randn(2, 7, 24).double()
    torch.testing.assert_close(plain(x), scaled(x))


def test_a_transformer_block_does_not_know_the_order_of_tokens():
    block, x, order = shaken(TransformerBlock(16, 2)), torch.randn(2, 9, 16).double(), torch.randperm(9)
    torch.testing.assert_close(block(x)[:, order], block(x[:, order]))


def test_drop_path_leaves_out_whole_samples():
    block, x = shaken(TransformerBlock(8, 2, drop_path=0.25)), torch.randn(1, 5, 8).double()
    with torch.no_grad():
        nn.init.zeros_(block.mlp.fc2.weight)
        nn.init.zeros_(block.mlp.fc2.bias)
        step = block(x) - x  # all of it the attention's
        block.train()
        many = block(x.expand(4000, -1, -1)) - x
    kept = many.abs().amax((1, 2)) > 1e-9
    assert abs(kept.double().mean().item() - 0.75) < 4 * (0.75 * 0.25 / 4000) ** 0.5
    torch.testing.assert_close(many[kept], (step / 0.75).expand(int(kept.sum()), -1, -1))


def test_a_mixer_mixes_tokens_then_channels():
    block, x = shaken(MixerBlock(5, 8, 12, 16)), torch.randn(2, 5, 8).double()
    moved = x.clone()
    moved[:, 1] += torch.randn(8)
    assert (block(moved) - block(x)).abs().amax((0, 2)).min() > 1e-6  # every token sees every other
    for part in (block.tokens.fc2.weight, block.tokens.fc2.bias):
        nn.init.zeros_(part)
    unchanged = torch.ones(5, dtype=torch.bool)
    unchanged[1] = False
    torch.testing.assert_close(block(moved)[:, unchanged], block(x)[:, unchanged])
    torch.testing.assert_close(block(x), x + block.channels(block.norm2(x)))


def test_dropout_of_the_mlp_is_of_training_only():
    torch.manual_seed(0)
    mlp, x = MLP(8, 16, dropout=0.5), torch.randn(3, 8)
    assert not torch.equal(mlp(x), mlp(x))
    mlp.eval()
    torch.testing.assert_close(mlp(x), mlp.fc2(nn.functional.gelu(mlp.fc1(x))))


# ---- deformable attention ------------------------------------------------------------------------------------------
def bilinear(features, x, y):
    """One map (C, h, w) at one place in pixels, zero outside, by the formula."""
    value = torch.zeros(len(features), dtype=features.dtype)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < features.shape[1] and 0 <= column < features.shape[2]:
                value += (1 - abs(x - column)) * (1 - abs(y - row)) * features[:, row, column]
    return value


def by_loops(net, query, reference, memory):
    channels, depth = query.shape[2], query.shape[2] // net.heads
    offsets, logits = net.sampling_offsets(query), net.attention_weights(query)
    out = torch.zeros_like(query)
    for b in range(len(query)):
        for q in range(query.shape[1]):
            for h in range(net.heads):
                rows = slice(h * depth, (h + 1) * depth)
                weight, bias = net.value_proj.weight[rows], net.value_proj.bias[rows]
                each = net.levels * net.points
                share = logits[b, q, h * each : (h + 1) * each].softmax(0)
                read = torch.zeros(channels if net.project_after else depth, dtype=query.dtype)
                for n in range(each):
                    features = memory[n // net.points][b]
                    if not net.project_after:
                        features = torch.einsum("dc,chw->dhw", weight, features) + bias[:, None, None]
                    dx, dy = offsets[b, q, 2 * (h * each + n) : 2 * (h * each + n) + 2].tolist()
                    x, y = reference[b, q].tolist()
                    x, y = x * features.shape[2] - 0.5 + dx, y * features.shape[1] - 0.5 + dy
                    read += share[n] * bilinear(features, x, y)
                out[b, q, rows] = weight @ read + bias if net.project_after else read
    return net.output_proj(out)


@pytest.mark.parametrize("after", [False, True])
@torch.no_grad()
def test_deformable_attention_by_loops(after):
    net = shaken(DeformableAttention(8, heads=2, levels=2, points=3, project_after=after))
    memory = [torch.randn(2, 8, 5, 4).double(), torch.randn(2, 8, 3, 2).double()]
    query, reference = torch.randn(2, 6, 8).double(), torch.rand(2, 6, 2).double() * 1.4 - 0.2
    torch.testing.assert_close(net(query, reference, memory), by_loops(net, query, reference, memory))


@pytest.mark.parametrize("after", [False, True])
@torch.no_grad()
def test_without_offsets_it_samples_at_the_reference(after):
    """Maps that rise linearly say where they are read: at the reference, on each level."""
    net = DeformableAttention(4, heads=2, levels=2, points=2, project_after=after).double()
    nn.init.zeros_(net.sampling_offsets.bias)
    for layer in (net.value_proj, net.output_proj):
        nn.init.eye_(layer.weight)
    reference = torch.rand(1, 20, 2).double() * 0.7 + 0.15
    maps = []
    for h, w in ((8, 6), (4, 5)):
        xy = pixel_centres(h, w).double().unflatten(0, (h, w)).permute(2, 0, 1)
        maps.append(torch.cat([xy, xy.flip(0)])[None])
    expected = torch.cat([reference, reference.flip(-1)], -1)
    torch.testing.assert_close(net(torch.randn(1, 20, 4).double(), reference, maps), expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_projecting_after_sampling_is_the_same_inside_the_maps():
    before, after = (shaken(DeformableAttention(8, 2, 1, 4, project_after=a)) for a in (False, True))
    for net in (before, after):
        nn.init.zeros_(net.sampling_offsets.weight)
        net.sampling_offsets.bias.uniform_(-1, 1)
        net.sampling_offsets.bias.copy_(before.sampling_offsets.bias)
    memory, query = [torch.randn(1, 8, 9, 9).double()], torch.randn(1, 5, 8).double()
    inside, border = (torch.full((1, 5, 2), at).double() for at in (0.5, 0.0))
    torch.testing.assert_close(before(query, inside, memory), after(query, inside, memory))
    assert (before(query, border, memory) - after(query, border, memory)).abs().max() > 1e-3  # the bias, read outside


def test_heads_begin_by_looking_around():
    net = DeformableAttention(16, heads=4, levels=2, points=3)
    offsets = net.sampling_offsets(torch.randn(1, 16)).unflatten(-1, (4, 2, 3, 2))[0]
    directions = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    for i in range(3):
        torch.testing.assert_close(offsets[:, :, i], (i + 1) * directions[:, None].expand(-1, 2, -1), atol=1e-6, rtol=0)


def test_tokens_and_maps():
    shapes = [(4, 3), (2, 5)]
    maps = [torch.randn(2, 6, *shape) for shape in shapes]
    for ours, given in zip(as_maps(torch.cat([m.flatten(2).mT for m in maps], 1), shapes), maps, strict=True):
        assert torch.equal(ours, given)


@torch.no_grad()
def test_encoder_pixels_look_at_their_own_place():
    """With no offsets, a pixel reads each map at its centre: moving a far corner changes nothing at the other."""
    layer = shaken(DeformableEncoderLayer(8, 2, levels=2, points=2, hidden=16, dropout=0.0))
    nn.init.zeros_(layer.attn.sampling_offsets.weight)
    nn.init.zeros_(layer.attn.sampling_offsets.bias)
    shapes = [(6, 6), (3, 3)]
    x, position = torch.randn(1, 45, 8).double(), torch.zeros(1, 45, 8).double()
    moved = x.clone()
    moved[:, [35, 44]] += 1  # the last corners of both maps
    changed = (
        ((layer(moved, position, shapes) - layer(x, position, shapes)).abs().amax(-1)[0] > 1e-9).nonzero().flatten()
    )
    # The fine pixel, those whose centre lies between the coarse corner and a neighbour, and coarse ones beside.
    assert 35 in changed and 44 in changed
    assert not {0, 6, 7, 14, 36, 37, 39, 40} & set(changed.tolist())


@torch.no_grad()
def test_decoder_queries_see_one_another_and_their_reference():
    layer = shaken(DeformableDecoderLayer(8, 2, levels=1, points=2, hidden=16, dropout=0.0))
    x, p, r = torch.randn(1, 4, 8).double(), torch.randn(1, 4, 8).double(), torch.rand(1, 4, 2).double()
    memory = [torch.randn(1, 8, 6, 6).double()]
    base, order = layer(x, p, r, memory), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(layer(x[:, order], p[:, order], r[:, order], memory), base[:, order])
    moved = r.clone()
    moved[:, 1] = 1 - moved[:, 1]
    changed = (layer(x, p, moved, memory) - base).abs().amax(-1)[0] > 1e-9
    assert changed.tolist() == [False, True, False, False]
    other = x.clone()
    other[:, 1] += 1
    assert ((layer(other, p, r, memory) - base).abs().amax(-1) > 1e-9).all()
