import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from body3d.attention import inverse_sigmoid
from body3d.codecs import RLE
from body3d.errors import InputError
from body3d.nets import pct, poseur, tfpose, tokenpose, vitpose
from body3d.posenet import Headed, PoseNet
from body3d.skeletons import COCO17, MPII16
from body3d.types import Keypoints2D


def trained(net):
    """With statistics of batch norms that are not 0 and 1, in eval mode."""
    for name, values in net.state_dict().items():
        if name.endswith("running_var"):
            values.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            values.normal_(0, 0.1)
    return net.eval()


class TinyTrunk(nn.Module):
    """Maps at strides 4, 8 and 16."""

    widths = (16, 16, 16)
    channels = 16

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        self.rest = nn.ModuleList(nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU()) for _ in range(2))

    def pyramid(self, image):
        maps = [self.first(image)]
        for layer in self.rest:
            maps.append(layer(maps[-1]))
        return maps

    def forward(self, image):
        return self.pyramid(image)[-1:]


# ---- sizes ---------------------------------------------------------------------------------------------------------
def vit_parameters(channels, depth, simple=False):
    """By hand: 12 C² + 13 C per block, patches, 193 positions, last norm, decoder."""
    vit = depth * (12 * channels**2 + 13 * channels) + (3 * 16**2 + 1) * channels + 193 * channels + 2 * channels
    if simple:
        return vit + 17 * (9 * channels + 1)
    return vit + 16 * 256 * (channels + 256) + 4 * 256 + 17 * 257


@pytest.mark.parametrize(
    ("build", "parameters", "giga_macs"),
    [
        # Parameters: published state_dicts, or by hand; multiply-accumulates of the published networks, or the paper's (H).
        (vitpose.vitpose_s, 24_290_577, 5.25),
        (vitpose.vitpose_b, 89_994_513, 17.84),
        (vitpose.vitpose_b_simple, 85_912_337, 16.78),
        (vitpose.vitpose_l, vit_parameters(1024, 24), 59.76),
        (vitpose.vitpose_l_simple, vit_parameters(1024, 24, simple=True), None),
        (vitpose.vitpose_h, vit_parameters(1280, 32), 122.8),
        (vitpose.vitpose_h_simple, vit_parameters(1280, 32, simple=True), None),
        (tokenpose.tokenpose_t, 5_816_448, 1.60),
        (tokenpose.tokenpose_s_v1, 6_620_736, 2.73),
        (tokenpose.tokenpose_s_v2, 6_375_000 - 768 * 192, 7.49),  # less its fixed positions
        (tokenpose.tokenpose_b, 13_465_216, 6.28),
        (tokenpose.tokenpose_l_d6, 21_443_296, 12.89),
        (tokenpose.tokenpose_l_d24, 27_482_400, 12.19),
        (poseur.poseur_r50, 33_256_408, None),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_published_sizes(build, parameters, giga_macs):
    with torch.device("meta"):
        net = build()
        count = sum(p.numel() for p in net.parameters() if p.requires_grad)
    rounded = build is tokenpose.tokenpose_s_v2
    assert count == pytest.approx(parameters, abs=500 if rounded else 0)
    if giga_macs is not None:
        net.requires_grad_(False).eval()
        with FlopCounterMode(display=False) as counter:
            net.net(torch.zeros(1, 3, *net.size, device="meta"))
        assert counter.get_total_flops() / 2e9 == pytest.approx(giga_macs, rel=0.1)


def test_sizes_by_hand_are_those_of_published_networks():
    assert vit_parameters(384, 12) == 24_290_577
    assert vit_parameters(768, 12, simple=True) == 85_912_337


def test_large_tokenpose_at_the_larger_published_size():
    with torch.device("meta"):
        net = tokenpose.tokenpose_l_d24(COCO17, (384, 288), patch=(6, 4)).eval()
        assert net.net(torch.zeros(1, 3, 384, 288))[0].shape == (1, 17, 96, 72)
    # Published with its 16 x 18 fixed positions: 29.864 million.
    assert sum(p.numel() for p in net.parameters()) + 16 * 18 * 192 == pytest.approx(29_864_000, abs=500)
    assert net.codec.sigma == 3


# ---- ViTPose -------------------------------------------------------------------------------------------------------
def tiny_vitpose():
    trunk = vitpose.ViTPoseTrunk(vitpose.ViT(32, 2, 4, (64, 48)))
    return Headed(trunk, nn.Conv2d(256, 17, 1))


def in_mmpose_names(state):
    """The official names as mmpose has them; its table has the class token's entry added to the others."""
    out = {}
    for key, value in state.items():
        for official, theirs in (
            ("patch_embed.proj.", "patch_embed.projection."), ("blocks.", "layers."), ("norm1.", "ln1."), ("norm2.", "ln2."),
            ("mlp.fc1.", "ffn.layers.0.0."), ("mlp.fc2.", "ffn.layers.1."), ("last_norm.", "ln1."), ("keypoint_head.", "head."),
        ):  # fmt: skip
            key = key.replace(official, theirs)
        out[key] = value[:, 1:] + value[:, :1] if key.endswith("pos_embed") else value
    return out


def in_official_names(state):
    out = {}
    for key, value in state.items():
        for ours, official in (
            ("trunk.backbone.", "backbone."), ("trunk.decoder.", "keypoint_head.deconv_layers."),
            ("patch_embed.", "patch_embed.proj."),
        ):  # fmt: skip
            key = key.replace(ours, official)
        out["keypoint_head.final_layer." + key[5:] if key.startswith("head.") else key] = value
    return out


def test_vitpose_checkpoints_in_both_families_of_names():
    torch.manual_seed(0)
    net, image = trained(tiny_vitpose()), torch.randn(2, 3, 64, 48)
    official = in_official_names(net.state_dict())
    assert {"backbone.blocks.1.attn.qkv.weight", "keypoint_head.final_layer.bias"} < official.keys()
    for state in (official, in_mmpose_names(official)):
        other = tiny_vitpose().eval()
        other.load_state_dict(vitpose.from_published(state))
        torch.testing.assert_close(other(image)[0], net(image)[0])


@pytest.mark.parametrize(
    ("build", "rename"),
    [
        (lambda: tiny_vitpose(), vitpose.from_published),
        (lambda: tiny_tokenpose(), tokenpose.from_published),
        (lambda: tiny_poseur(), poseur.from_published),
    ],
    ids=["vitpose", "tokenpose", "poseur"],
)
def test_own_checkpoints_keep_their_names(build, rename):
    state = build().state_dict()
    renamed = rename({f"net.{key}": value for key, value in state.items()})
    assert renamed.keys() == state.keys()
    assert all(torch.equal(renamed[key], value) for key, value in state.items())


def test_vitpose_from_a_file(tmp_path):
    net = vitpose.vitpose_s(size=(64, 48))
    torch.save({"state_dict": in_official_names(net.net.state_dict()), "meta": {"epoch": 210}}, tmp_path / "s.pth")
    read = vitpose.vitpose_s(size=(64, 48), weights=tmp_path / "s.pth")
    for key, value in read.state_dict().items():
        assert torch.equal(value, net.state_dict()[key])
    assert not read.training and not read.net.training
    with pytest.raises(
        InputError,
        match=r"s.pth holds a vision transformer \(ViTPose\), not what was asked for .*pos_embed is 1x13x384",
    ):
        vitpose.vitpose_s(weights=tmp_path / "s.pth")
    with pytest.raises(InputError, match=r"missing: trunk.*stem|holds a vision transformer"):
        tokenpose.tokenpose_t(weights=tmp_path / "s.pth")


@torch.no_grad()
def test_vit_positions_are_the_images():
    """A table that says nothing makes a network that does not know where its patches are."""
    torch.manual_seed(0)
    net = vitpose.ViT(16, 2, 2, (64, 64)).eval()
    nn.init.zeros_(net.patch_embed.weight)
    nn.init.zeros_(net.pos_embed)
    same = net(torch.randn(1, 3, 64, 64))[0]
    torch.testing.assert_close(same, same[..., :1, :1].expand_as(same))
    net.pos_embed[:, 1 + 5] = 1.0  # row 1, column 1 of four
    other = (net(torch.randn(1, 3, 64, 64))[0] - same).abs().sum(1)[0]
    assert other.argmax() == 5
    with pytest.raises(InputError, match=r"images of \(64, 64\), got \(64, 96\)"):
        net(torch.randn(1, 3, 64, 96))


# ---- TokenPose -----------------------------------------------------------------------------------------------------
def tiny_tokenpose(**options):
    torch.manual_seed(0)
    return tokenpose.TokenPose(None, 3, (32, 24), (8, 6), (8, 6), 5, (2, 2), 4, 32, None, **options).eval()


@torch.no_grad()
def test_visual_tokens_have_no_order():
    net, image, order = tiny_tokenpose().double(), torch.randn(2, 3, 32, 24).double(), torch.randperm(16)
    tokens, positions = net.visual_tokens(image), net.positions
    maps = net(image)[0]
    torch.testing.assert_close(net.heatmaps(tokens[:, order], positions[order]), maps)
    assert (net.heatmaps(tokens[:, order], positions) - maps).abs().max() > 1e-6
    # Joints are told apart by their tokens alone.
    net.keypoint_token.copy_(net.keypoint_token[:, [1, 0, 2, 3, 4]])
    torch.testing.assert_close(net(image)[0], maps[:, [1, 0, 2, 3, 4]])


@torch.no_grad()
def test_patches_are_cut_row_by_row():
    """A token is a linear function of its own patch: pixel (y, x) of the image is in patch (y // 8, x // 6)."""
    net, image = tiny_tokenpose(), torch.zeros(1, 3, 32, 24)
    base = net.visual_tokens(image)
    image[0, 1, 19, 14] = 1
    changed = (net.visual_tokens(image) - base)[0]
    assert changed.abs().sum(-1).nonzero().flatten().tolist() == [2 * 4 + 2]
    torch.testing.assert_close(changed[10], net.patch_to_embedding.weight[:, (3 * 6 + 2) * 3 + 1])


@torch.no_grad()
def test_positions_are_added_before_every_layer():
    """Of a transformer whose blocks do nothing there remain the tokens and as many positions as layers."""
    net = tiny_tokenpose()
    kept = []
    net.mlp_head.register_forward_hook(lambda module, args, out: kept.append(args[0]))
    for transformer in net.transformers:
        for block in transformer.layers:
            for layer in (block.attn.proj, block.mlp.fc2):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
    seen = []
    net.transformers[1].register_forward_hook(lambda module, args, out: seen.append(out[:, 5:]))
    tokens = torch.randn(1, 16, 32)
    net.heatmaps(tokens, net.positions)
    torch.testing.assert_close(seen[0], tokens + 3 * net.positions)  # at the start, and once in each transformer of two
    torch.testing.assert_close(kept[0], net.keypoint_token.repeat(1, 1, 2))


def test_only_small_tokenpose_scales_by_the_width_of_a_token():
    with torch.device("meta"):
        for build, scale in ((tokenpose.tokenpose_s_v1, 192**-0.5), (tokenpose.tokenpose_t, None)):
            assert {block.attn.scale for block in build().net.transformers[0].layers} == {scale}


def test_tokenpose_refuses_other_sizes():
    with pytest.raises(InputError, match=r"a map of \(64, 50\) cannot be cut"):
        tokenpose.TokenPose(None, 3, (64, 50), (4, 3), (8, 6))
    with pytest.raises(InputError, match=r"made for maps of \(32, 24\), the image gives \(32, 48\)"):
        tiny_tokenpose()(torch.zeros(1, 3, 32, 48))


# ---- TFPose --------------------------------------------------------------------------------------------------------
def tiny_tfpose(joints=len(MPII16)):
    return tfpose.TFPose(TinyTrunk(), TinyTrunk.widths, joints, 32, 4, 3, 64, 2, dropout=0.0)


def scene(batch, size, random):
    """Images with three blobs of a colour each, and where they are."""
    height, width = size
    xy = torch.rand(batch, 3, 2, generator=random) * torch.tensor([width - 16.0, height - 16.0]) + 8
    y, x = torch.arange(height)[:, None], torch.arange(width)
    squares = (x - xy[..., 0, None, None]).square() + (y - xy[..., 1, None, None]).square()
    return torch.exp(-squares / 32) * 2 - 0.5, xy


def test_tfpose_begins_at_its_first_reference():
    """The steps begin at zero: no layer moves a point, and that is exact in inverse-sigmoid space."""
    torch.manual_seed(0)
    net = tiny_tfpose().eval()
    stages = net(torch.randn(2, 3, 64, 64))
    first = net.first_reference(net.query_position).sigmoid()
    assert len(stages) == 3 and all(stage.maps is None for stage in stages)
    for stage in stages:
        torch.testing.assert_close(stage.xy, first.expand(2, -1, -1), atol=1e-6, rtol=0)
    with torch.no_grad():
        net.steps[1][-1].bias.copy_(torch.tensor([0.3, -0.2]))
    moved = net(torch.randn(2, 3, 64, 64))[1].xy
    torch.testing.assert_close(
        inverse_sigmoid(moved), inverse_sigmoid(first + 0).expand(2, -1, -1) + torch.tensor([0.3, -0.2])
    )


def test_tfpose_learns_from_coordinates_and_maps():
    torch.manual_seed(0)
    net, codec, size = tiny_tfpose(3).train(), tfpose.TFPoseCodec(), (64, 64)
    image, xy = scene(2, size, torch.Generator().manual_seed(0))
    weight = torch.tensor([[1.0, 1, 0], [1, 1, 1]])
    stages = net(image)
    assert stages[0].maps.shape == (2, 3, 16, 16) and stages[1].maps is None
    losses = [codec.loss(stage, xy, weight, size) for stage in stages]
    fractions = (xy + 0.5) / 64
    off = [((stage.xy - fractions).abs().sum(-1) * weight).sum() / 5 for stage in stages]
    torch.testing.assert_close(losses[1:], off[1:])
    grid = torch.arange(16)
    cells = (xy + 0.5) / 4 - 0.5
    bump = torch.exp(
        -((grid - cells[..., 0, None, None]).square() + (grid[:, None] - cells[..., 1, None, None]).square()) / 8
    )
    squares = ((stages[0].maps - bump) * weight[..., None, None]).square()
    torch.testing.assert_close(losses[0], off[0] + 50 * 0.5 * squares.mean())
    losses[0].backward()
    assert net.encoder[0].attn.value_proj.weight.grad.abs().max() > 0
    # A layer's answer teaches no layer before it where to look, only what to see.
    net.zero_grad()
    codec.loss(net(image)[-1], xy, weight, size).backward()
    assert net.steps[0][-1].weight.grad is None and net.steps[2][-1].weight.grad is not None


def test_tfpose_gets_better_from_layer_to_layer():
    torch.manual_seed(0)
    size = (48, 48)
    image, xy = scene(4, size, torch.Generator().manual_seed(1))
    net = PoseNet(tiny_tfpose(3), tfpose.TFPoseCodec(), MPII16, size)
    optimizer = torch.optim.AdamW(net.parameters(), 4e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.stack([net.codec.loss(raw, xy, torch.ones(4, 3), size) for raw in net.net(image)]).mean().backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        stages = net.net(image)
    errors = [(net.codec.decode(stage, size)[0] - xy).norm(dim=-1).mean().item() for stage in stages]
    start = (net.codec.decode(tiny_tfpose(3).eval()(image)[-1], size)[0] - xy).norm(dim=-1).mean().item()
    assert errors[-1] < 0.25 * start
    assert errors[-1] < 0.9 * errors[0], errors


# ---- Poseur --------------------------------------------------------------------------------------------------------
def tiny_poseur(noise=0):
    torch.manual_seed(0)
    return poseur.Poseur(TinyTrunk(), TinyTrunk.widths, len(COCO17), 64, 4, 3, 64, 2, dropout=0.0, noise=noise)


@torch.no_grad()
def test_poseur_queries_are_sines_of_the_coarse_place():
    net, reference = tiny_poseur(), torch.tensor([[[0.25, 1.5], [-0.5, 0.75]]])
    queries = net.queries(reference)
    assert queries.shape == (1, 2, 64)
    code = []
    for x, y in ((0.25, 1.5), (0.25, 1.0), (-0.5, 0.75), (0.0, 0.75)):
        for v in (x, y):
            code += [f(2 * math.pi * v / 10000 ** (p / 16)) for p in range(16) for f in (math.sin, math.cos)]
    expected = net.pos_trans_norm(net.pos_trans(torch.tensor(code).view(1, 2, 128)))
    torch.testing.assert_close(queries, expected, atol=1e-5, rtol=1e-4)


def test_poseur_is_supervised_by_two_flows():
    net = PoseNet(tiny_poseur(), RLE(), COCO17, (64, 64)).eval()
    image, xy = torch.rand(2, 3, 64, 64), torch.rand(2, 17, 2) * 64
    stages = net(image)
    assert len(stages) == 4
    assert [stage.flow is net.net.enc_flow for stage in stages] == [True, False, False, False]
    assert all(stage.flow is net.net.dec_flow for stage in stages[1:])
    # By hand: log sigma - log phi + log(sigma sqrt(2 pi)) + |e| / (sqrt(2) sigma), a nearly normal phi.
    target, byhand = (xy + 0.5) / 64 - 0.5, []
    for stage in stages:
        error = stage.xy - target
        log_phi = stage.flow.log_prob(error / stage.sigma)[..., None]
        q = (stage.sigma * math.sqrt(2 * math.pi)).log() + error.abs() / (math.sqrt(2) * stage.sigma)
        byhand.append((stage.sigma.log() - log_phi + q).sum() / 2)
    loss = net.loss(image, Keypoints2D(xy, torch.ones(2, 17), COCO17))
    torch.testing.assert_close(loss, torch.stack(byhand).mean())
    loss.backward()
    for flow in (net.net.enc_flow, net.net.dec_flow):
        assert flow.t[0][0].weight.grad.abs().max() > 0


def test_poseur_gradients():
    """The coarse answer learns from its own loss alone; references pass gradients from layer to layer."""
    net = tiny_poseur()
    last = net(torch.rand(1, 3, 64, 64))[-1]
    last.xy.sum().backward()
    assert net.fc_coord.weight.grad is None
    assert net.coord_branches[0][-1].weight.grad.abs().max() > 0
    assert net.output_branches[0][-1].weight.grad is None
    assert net.trunk.first[0].weight.grad.abs().max() > 0


def test_poseur_noise_is_for_training():
    net, image = tiny_poseur(noise=2), torch.rand(1, 3, 64, 64)
    stages = net.train()(image)
    assert len(stages) == 1 + 2 * 3 + 3
    assert len(net.eval()(image)) == 1 + 3
    assert not torch.allclose(stages[1].xy, stages[4].xy)
    reference = torch.rand(50, 17, 2)
    moved = poseur.disturbed(reference)
    assert ((moved != reference).any(-1).sum(-1) == 4).all()
    assert moved.min() >= -0.7 and moved.max() <= 1.7


# ---- PCT -----------------------------------------------------------------------------------------------------------
def tiny_tokenizer(**options):
    sizes = {"tokens": 6, "codes": 32, "code_channels": 16, "channels": 32, "blocks": 1, "hidden": (32, 32)}
    return pct.PoseTokenizer(17, **{**sizes, "decoder_hidden": (32, 32), **options})


def walkers(count, random):
    """Poses of COCO's skeleton in pixels from its root; the angles of the bones follow from five hidden numbers."""
    fixed = torch.Generator().manual_seed(0)
    length, rest = torch.rand(17, generator=fixed) * 20 + 10, torch.rand(17, generator=fixed) * 2 * math.pi
    mixing = torch.randn(5, 17, generator=fixed) * 0.4
    angle = rest + torch.randn(count, 5, generator=random) @ mixing
    step = length[:, None] * torch.stack([angle.cos(), angle.sin()], -1)
    places = {}

    def place(joint):
        parent = COCO17.parents[joint]
        return step[:, joint] + (place(parent) if parent >= 0 else 0)

    for joint in range(17):
        places[joint] = place(joint)
    return torch.stack(list(places.values()), 1)


def test_gradients_pass_the_choice_of_codes():
    torch.manual_seed(0)
    net, xy = tiny_tokenizer(mask=0.0).train(), walkers(4, torch.Generator().manual_seed(0))
    tokenized = net(xy, torch.ones(4, 17, dtype=torch.bool))
    tokenized.features.retain_grad()
    way = torch.randn(4, 17, 2)
    (tokenized.xy * way).sum().backward()
    chosen = net.codebook[tokenized.codes].requires_grad_()
    out = net.decode(chosen)
    torch.testing.assert_close(out, tokenized.xy)
    (expected,) = torch.autograd.grad((out * way).sum(), chosen)
    torch.testing.assert_close(tokenized.features.grad, expected)
    assert net.start_embed.weight.grad.abs().max() > 0


@torch.no_grad()
def test_codes_are_the_nearest_and_hidden_joints_do_not_count():
    torch.manual_seed(0)
    net, xy = tiny_tokenizer().eval(), torch.randn(3, 17, 2)
    visible = torch.rand(3, 17) > 0.4
    tokenized = net(xy, visible)
    distance = (tokenized.features[:, :, None] - net.codebook).square().sum(-1)
    assert torch.equal(tokenized.codes, distance.argmin(-1))
    other = torch.where(visible[..., None], xy, torch.randn(3, 17, 2) * 100)
    assert torch.equal(net.encode(other, visible), tokenized.features)
    # In training, a fifth of the visible ones is hidden too.
    net.train()
    hidden = torch.zeros(3, 17, dtype=torch.bool)
    torch.testing.assert_close(net(xy, hidden).features, net.eval()(xy, hidden).features)


def test_the_codebook_follows_by_averages():
    """After several updates: the closed form of exponential averages of counts and sums, but for the smoothing; and its limit."""
    torch.manual_seed(0)
    net = tiny_tokenizer(codes=6, code_channels=4).double()
    size, total = net.ema_cluster_size.clone(), net.ema_w.clone()
    batches = [(torch.randn(3, 8, 4).double(), torch.randint(5, (3, 8))) for _ in range(4)]
    for features, codes in batches:
        net.update(features, codes)
    expected_size, expected_total = size * 0.9**4, total * 0.9**4
    for age, (features, codes) in enumerate(reversed(batches)):
        one_hot = F.one_hot(codes.flatten(), 6).double()
        expected_size += 0.1 * 0.9**age * one_hot.sum(0)
        expected_total += 0.1 * 0.9**age * one_hot.T @ features.flatten(0, 1)
    torch.testing.assert_close(net.ema_cluster_size, expected_size, atol=4e-5, rtol=1e-4)
    torch.testing.assert_close(net.codebook * net.ema_cluster_size[:, None], expected_total)
    for _ in range(200):  # each step adds 1e-5 and keeps nine tenths
        net.update(*batches[0])
    assert net.ema_cluster_size[5].item() == pytest.approx(1e-4, rel=1e-4)
    assert net.ema_cluster_size.sum().item() == pytest.approx(24)


def test_tokenizer_losses():
    torch.manual_seed(0)
    net, xy = tiny_tokenizer().eval(), torch.randn(2, 17, 2)
    weight = torch.ones(2, 17)
    weight[0, 3] = 0
    tokenized = net(xy, weight > 0)
    losses = pct.tokenizer_losses(net, tokenized, xy, weight)
    off = (tokenized.xy - xy).abs()
    each = torch.where(off < 0.05, off.square() / 0.1, off - 0.025)
    each[0, 3] = 0
    torch.testing.assert_close(losses["joints"], each.mean())
    torch.testing.assert_close(
        losses["commitment"], 15 * (tokenized.features - net.codebook[tokenized.codes]).square().mean()
    )


def test_a_tokenizer_learns_poses():
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    poses, unseen = walkers(4096, random), walkers(512, random)
    net = tiny_tokenizer()
    optimizer = torch.optim.AdamW(net.parameters(), 5e-3)
    for _ in range(300):
        xy = poses[torch.randint(len(poses), (64,))]
        weight = torch.ones(64, 17)
        tokenized = net(xy, weight > 0)
        losses = pct.tokenizer_losses(net, tokenized, xy, weight)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        net.update(tokenized.features.detach(), tokenized.codes)
    net.eval()
    with torch.no_grad():
        tokenized = net(unseen, torch.ones(512, 17, dtype=torch.bool))
    error = (tokenized.xy - unseen).norm(dim=-1).mean()
    of_the_mean = (poses.mean(0) - unseen).norm(dim=-1).mean()
    assert error < 0.45 * of_the_mean
    assert len(tokenized.codes.unique()) > 16


def test_the_classifier_mixes_codes():
    """Logits that are sure of codes give the pose of those codes; of two codes equally likely, that of their mean."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    net = pct.pct_on_trunk(TinyTrunk(), tokenizer, size=(128, 128)).train()
    assert not tokenizer.training and not any(p.requires_grad for p in tokenizer.parameters())
    head, codes = net.net.head, torch.randint(32, (2, 6))
    head.classifier = Given(100 * F.one_hot(codes, 32).float())
    raw = head(torch.zeros(2, 16, 4, 4))
    torch.testing.assert_close(raw.xy, tokenizer.decode(tokenizer.codebook[codes]))
    xy, conf = net.codec.decode(raw, net.size)
    torch.testing.assert_close(conf, torch.ones(2, 17))
    assert torch.equal(xy, raw.xy)
    other = (codes + 1) % 32
    head.classifier = Given(100 * (F.one_hot(codes, 32) + F.one_hot(other, 32)).float())
    raw = head(torch.zeros(2, 16, 4, 4))
    torch.testing.assert_close(raw.xy, tokenizer.decode((tokenizer.codebook[codes] + tokenizer.codebook[other]) / 2))
    torch.testing.assert_close(net.codec.decode(raw, net.size)[1], torch.full((2, 17), 0.5))


class Given(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, features):
        return self.logits


def test_the_classifier_learns_the_tokens_of_the_pose():
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    head = pct.PCTHead(Given(torch.randn(3, 6, 32)), tokenizer)
    xy, weight = torch.randn(3, 17, 2), torch.ones(3, 17)
    raw = head(torch.zeros(3, 16, 8, 8))
    losses = pct.classifier_losses(raw, xy, weight)
    with torch.no_grad():
        codes = tokenizer.eval()(xy, weight > 0).codes
    log_p = raw.logits.log_softmax(-1).gather(-1, codes[..., None])
    torch.testing.assert_close(losses["tokens"], -log_p.mean())
    torch.testing.assert_close(losses["joints"], pct.smooth_l1(raw.xy, xy, weight))
    torch.testing.assert_close(pct.Tokens().loss(raw, xy, weight, (256, 256)), sum(losses.values()))
    sum(losses.values()).backward()
    assert head.classifier.logits.grad.abs().max() > 0


def test_tokenizers_from_published_files(tmp_path):
    torch.manual_seed(0)
    net = pct.PoseTokenizer(16, guide_channels=24).eval()
    published = {}
    for key, value in net.state_dict().items():
        for ours, theirs in (
            ("norm1.", "layernorm1."), ("norm2.", "layernorm2."), ("tokens.fc1.", "MLP_token.ff.0."),
            ("tokens.fc2.", "MLP_token.ff.3."), ("channels.fc1.", "MLP_channel.ff.0."), ("channels.fc2.", "MLP_channel.ff.3."),
        ):  # fmt: skip
            key = key.replace(ours, theirs)
        published[f"keypoint_head.tokenizer.{key}"] = value
    assert "keypoint_head.tokenizer.encoder.0.MLP_token.ff.3.bias" in published
    torch.save({"state_dict": published | {"backbone.x": torch.zeros(1)}}, tmp_path / "tokenizer.pth")
    read = pct.load_tokenizer(tmp_path / "tokenizer.pth")
    xy, visible, guide = torch.randn(1, 16, 2), torch.ones(1, 16, dtype=torch.bool), torch.randn(1, 16, 24)
    assert torch.equal(read(xy, visible, guide).xy, net(xy, visible, guide).xy)
    with pytest.raises(InputError, match="needs the image's features"):
        read(xy, visible)
    with pytest.raises(InputError, match="the tokenizer is of poses of 16 joints, coco17 has 17"):
        pct.pct_on_trunk(TinyTrunk(), net)
    with pytest.raises(InputError, match="needs the image's features at the joints: train one with guide_channels=0"):
        pct.pct_on_trunk(TinyTrunk(), net, MPII16)
    torch.save({"keypoint_token": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other.pth holds TokenPose, not PCT's tokenizer"):
        pct.load_tokenizer(tmp_path / "other.pth")
    with pytest.raises(InputError, match="Linear is no trunk"):
        pct.pct_on_trunk(nn.Linear(1, 1), net)
