from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from torch import nn

from body3d.codecs import (
    CAL,
    DSNT,
    HDM,
    RLE,
    SIKR,
    Bins,
    Codec,
    DebiasedIntegral,
    Heatmap,
    Integral,
    Likelihood,
    Mirrors,
    OffsetMaps,
    PIPMaps,
    PIPNet,
    RealNVP,
    Regression,
    SamplingArgmax,
    SimCC,
    UDPOffset,
    msra_heatmap,
    udp_heatmap,
)
from body3d.codecs import dsnt as dsnt_parts
from body3d.codecs.base import from_fraction, from_grid, to_fraction, to_grid
from body3d.codecs.heatmap import gaussian_maps, in_view, msra_maps
from body3d.codecs.integral import expectation, flat_softmax, symmetric_expectation
from body3d.codecs.offset import fitted_mask, offsets_to
from body3d.codecs.peaks import argmax, dark, gaussian_blur, quarter_shift, udp_dark
from body3d.codecs.pipnet import merge_weights, nearest_points
from body3d.codecs.sampling import interpolate, temperature, triangular
from body3d.codecs.simcc import gaussian_labels, kl_to_labels, smoothed_labels
from body3d.codecs.wasserstein import bilinear_demand, flat_softplus, transport_cost
from body3d.errors import InputError
from body3d.skeletons import COCO17

SIZE, GRID, J = (64, 48), (16, 12), 17
SHAPE = tuple((float(x), float(y)) for x, y in np.random.RandomState(0).rand(J, 2))

CODECS = {
    "heatmap": Heatmap(),
    "heatmap quarter": Heatmap(decoder=quarter_shift),
    "heatmap hardest": Heatmap(hardest=8),
    "heatmap msra": msra_heatmap(),
    "heatmap udp": udp_heatmap(),
    "udp offset": UDPOffset(radius=0.15, kernel=3),
    "cal": CAL(),
    "cal gaussian": CAL(mask="gaussian"),
    "cal disc": CAL(mask="disc"),
    "integral": Integral(),
    "debiased": DebiasedIntegral(),
    "sikr": SIKR(),
    "sikr softmax": SIKR(sigmoid=False, amplitude=None),
    "dsnt": DSNT(),
    "dsnt kl": DSNT(dsnt_parts.kl_divergence),
    "dsnt variance": DSNT(dsnt_parts.variance_error, weight=0.01),
    "sampling": SamplingArgmax(samples=8, tau=0.5),
    "sampling released": SamplingArgmax(samples=8, released=True),
    "simcc": SimCC(),
    "simcc one-hot": SimCC(sigma=None),
    "pipnet": PIPNet(SHAPE, 5),
    "regression l1": Regression(1),
    "regression l2": Regression(2),
    "rle": RLE(),
    "rle mmpose": RLE("mmpose"),
    "hdm": HDM(rounds=20),
    "hdm softmax": HDM(rounds=20, shares="softmax"),
}
each_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())


def places(batch=2, joints=J, margin=24, seed=0, size=SIZE):
    """Crop pixels at least `margin` from the border."""
    random = torch.Generator().manual_seed(seed)
    room = torch.tensor([size[1] - 1.0 - 2 * margin, size[0] - 1.0 - 2 * margin])
    return margin + torch.rand(batch, joints, 2, generator=random) * room


def clouds(seed=0, n=400, margin=8):
    """Sub-pixel centres on a 48x64 map."""
    random = torch.Generator().manual_seed(seed)
    room = torch.tensor([47.0 - 2 * margin, 63.0 - 2 * margin])
    return margin + torch.rand(n, 1, 2, generator=random) * room


def map_raw(codec, joints=J, seed=0):
    """Raw output of a freshly made head: of the right form, and random."""
    torch.manual_seed(seed)
    return codec.head(8, joints, SIZE)(torch.randn(2, 8, *GRID))


# ---- places --------------------------------------------------------------------------------------------------------
def test_places_by_hand():
    xy = torch.tensor([[0.0, 63.0]])
    torch.testing.assert_close(to_grid(xy, SIZE, GRID), torch.tensor([[-0.375, 15.375]]))
    torch.testing.assert_close(to_grid(xy, SIZE, GRID, "msra"), torch.tensor([[0.0, 15.75]]))
    torch.testing.assert_close(to_grid(xy, SIZE, GRID, "udp"), torch.tensor([[0.0, 15.0]]))
    torch.testing.assert_close(to_fraction(xy, SIZE), torch.tensor([[0.5 / 48, 63.5 / 64]]))


@pytest.mark.parametrize(("way", "shift"), [("pixel", 0), ("udp", 0), ("msra", 0.75)])
def test_places_there_and_back_and_mirrored(way, shift):
    xy = places(margin=0)
    torch.testing.assert_close(from_grid(to_grid(xy, SIZE, GRID, way), GRID, SIZE, way), xy)
    torch.testing.assert_close(from_fraction(to_fraction(xy, SIZE, way), SIZE, way), xy)
    mirrored = to_grid(torch.stack([47 - xy[..., 0], xy[..., 1]], -1), SIZE, GRID, way)[..., 0]
    torch.testing.assert_close(mirrored, 11 - to_grid(xy, SIZE, GRID, way)[..., 0] + shift)


# ---- reading peaks -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("decoder", "mean", "most", "noisy"),
    [
        (argmax, 0.397, 0.688, 0.426),
        (quarter_shift, 0.190, 0.335, 0.226),
        (dark, 0.0002, 0.0005, 0.021),
        (partial(dark, kernel=None), 0, 1e-4, 0.0897),
        (udp_dark, 5e-5, 1e-4, 0.0205),
    ],
)
def test_errors_on_gaussians(decoder, mean, most, noisy):
    """Published and measured figures: 48x64 maps, sigma 2, in cells; with noise of 0.02."""
    xy = clouds()
    maps = gaussian_maps(xy, (64, 48), 2.0)
    error = (decoder(maps) - xy).norm(dim=-1)
    assert error.mean() == pytest.approx(mean, rel=0.05, abs=5e-5)
    assert error.max() < 1.07 * most
    torch.manual_seed(0)
    error = (decoder(maps + 0.02 * torch.randn_like(maps)) - xy).norm(dim=-1)
    assert error.mean() == pytest.approx(noisy, rel=0.08)


def test_quarter_shift_by_hand():
    maps = torch.zeros(1, 4, 6, 6)
    maps[0, 0, 2, 3], maps[0, 0, 2, 4], maps[0, 0, 1, 3] = 1, 0.5, 0.2  # higher to the right and above
    maps[0, 1, 3, 1], maps[0, 1, 3, 2] = 1, 0.5  # in the second column: stays
    maps[0, 2, 4, 4], maps[0, 2, 4, 5], maps[0, 2, 5, 4] = 1, 0.5, 0.5  # in the last but one: moves
    maps[0, 3, 5, 4], maps[0, 3, 5, 5] = 1, 0.5  # in the last row: stays
    expected = torch.tensor([[3.25, 1.75], [1.0, 3.0], [4.25, 4.25], [4.0, 5.0]])
    torch.testing.assert_close(quarter_shift(maps)[0], expected)


def test_dark_stays_at_the_border_and_on_flat_maps():
    maps = gaussian_maps(torch.tensor([[[1.3, 8.0], [45.8, 8.0], [20.3, 8.2]]]), (64, 48), 2.0)
    xy = dark(maps)[0]
    torch.testing.assert_close(xy[:2], torch.tensor([[1.0, 8.0], [46.0, 8.0]]))
    assert (xy[2] - torch.tensor([20.3, 8.2])).norm() < 5e-4
    for decoder in (dark, udp_dark):
        for flat in (torch.ones(1, 1, 9, 9), torch.zeros(1, 1, 9, 9)):
            assert torch.equal(decoder(flat), torch.zeros(1, 1, 2))


@pytest.mark.parametrize("kernel", [3, 5, 7, 9, 11, 17])
@pytest.mark.parametrize("grid", [(32, 24), (7, 5)])
def test_blur_is_opencvs(kernel, grid):
    maps = torch.rand(1, 1, *grid, generator=torch.Generator().manual_seed(0))
    for border, kind in (("zero", cv2.BORDER_CONSTANT), ("reflect", cv2.BORDER_REFLECT_101)):
        expected = cv2.GaussianBlur(maps[0, 0].numpy(), (kernel, kernel), 0, borderType=kind)
        np.testing.assert_allclose(gaussian_blur(maps, kernel, border)[0, 0].numpy(), expected, atol=2e-6)


# ---- heat maps -----------------------------------------------------------------------------------------------------
def test_targets_by_hand():
    """At crop pixel (21.5, 17.5) the joint is at cell (5, 4) of ours; MSRA's code has it at (5.375, 4.375)."""
    xy = torch.tensor([[[21.5, 17.5]]])
    maps = Heatmap().target(xy, SIZE, GRID)[0][0, 0]
    assert maps[4, 5] == 1
    torch.testing.assert_close(maps[4, 7], torch.tensor(np.exp(-4 / 8), dtype=torch.float32))
    torch.testing.assert_close(maps[2, 4], torch.tensor(np.exp(-5 / 8), dtype=torch.float32))
    exact = replace(msra_heatmap(), rounded=False).target(xy, SIZE, GRID)[0][0, 0]
    torch.testing.assert_close(exact[4, 5], torch.tensor(np.exp(-2 * 0.375**2 / 8), dtype=torch.float32))
    released = msra_heatmap().target(xy, SIZE, GRID)[0][0, 0]
    assert released[4, 5] == 1 and released[10, 11] > 0 and released[11, 5] == 0


def test_a_joint_is_seen_while_its_window_touches_the_map():
    xy = torch.tensor([[[-7.5, 3.0], [-8.5, 3.0], [17.9, 3.0], [18.1, 3.0], [3.0, 21.9]]])
    assert in_view(xy, GRID, 2.0)[0].tolist() == [True, False, True, False, True]
    assert (msra_maps(torch.tensor([[[-9.0, 3.0]]]), GRID, 2.0) == 0).all()
    raw = torch.randn(1, 1, *GRID, requires_grad=True)
    Heatmap().loss(raw, torch.tensor([[[-60.0, 3.0]]]), torch.ones(1, 1), SIZE).backward()
    assert (raw.grad == 0).all()


def test_a_map_that_is_no_bump_is_read_near_its_highest_cell():
    torch.manual_seed(0)
    raw = torch.randn(20, J, *GRID)
    for decoder in (dark, udp_dark):
        xy, conf = Heatmap(decoder=decoder).decode(raw, SIZE)
        assert ((to_grid(xy, SIZE, GRID) - argmax(raw)).abs() < 1 + 1e-4).all()
    assert torch.equal(conf, raw.amax((-1, -2)))
    assert (Heatmap().decode(-raw.abs(), SIZE)[1] == 0).all()


# ---- there and back ------------------------------------------------------------------------------------------------
def ideal(codec, xy, grid=(32, 24)):
    """The raw output of a network without error."""
    if isinstance(codec, Heatmap):
        return codec.target(xy, SIZE, grid)[0]
    if isinstance(codec, UDPOffset):
        target = codec.target(xy, SIZE, grid)
        away = offsets_to(to_grid(xy, SIZE, grid, codec.places), grid) / (codec.radius * grid[0])
        return torch.cat([target[:, :, :1], away], 2).flatten(1, 2)
    if isinstance(codec, CAL):
        cells = to_grid(xy, SIZE, grid)
        return OffsetMaps(gaussian_maps(cells.round(), grid, codec.sigma), offsets_to(cells, grid) / codec.radius)
    if isinstance(codec, SimCC):
        bins = codec.bins(SIZE)
        x, y = to_grid(xy, SIZE, bins).unbind(-1)
        return Bins(gaussian_labels(x, bins[1], 4.0).log(), gaussian_labels(y, bins[0], 4.0).log())
    if isinstance(codec, PIPNet):
        place = to_fraction(xy, SIZE) * xy.new_tensor([grid[1], grid[0]])
        corner = -(offsets_to(torch.zeros_like(place), grid))
        own = place[..., None, None] - corner
        around = place[:, codec.near][..., None, None] - corner[:, :, None]
        score = torch.zeros(*xy.shape[:2], *grid).flatten(-2)
        index = place.floor()[..., 1] * grid[1] + place.floor()[..., 0]
        score = score.scatter(-1, index.long()[..., None], 1.0).unflatten(-1, grid)
        return PIPMaps(score, *own.unbind(2), *(a.flatten(1, 2) for a in around.unbind(3)))
    if isinstance(codec, Regression):
        return to_fraction(xy, SIZE)
    if isinstance(codec, RLE):
        return Likelihood(to_fraction(xy, SIZE) - 0.5, torch.full_like(xy, 0.01), RealNVP())
    cells = to_grid(xy, SIZE, grid)
    if isinstance(codec, DebiasedIntegral):
        return gaussian_maps(cells, grid, 2.0)
    maps = (-offsets_to(cells, grid).square().sum(2) / 2).clamp_min(-80)
    if isinstance(codec, SIKR) and codec.sigmoid:
        return torch.logit(maps.exp().clamp(1e-12, 1 - 1e-6).double()).float()
    return maps


# Largest errors in crop pixels, two to a cell.
EXACT = {
    "heatmap quarter": 0.7,
    "heatmap msra": 1.7,  # rounded when encoded
    "simcc": 0.25 * 2**0.5,
    "simcc one-hot": 0.25 * 2**0.5,
    "debiased": 0.01,
    "heatmap": 1.5e-3,
    "heatmap hardest": 1.5e-3,
}


@pytest.mark.parametrize("name", CODECS)
def test_what_is_encoded_is_decoded(name):
    codec, xy = CODECS[name], places(margin=17)
    decoded, conf = codec.decode(ideal(codec, xy), SIZE)
    assert (decoded - xy).norm(dim=-1).max() < EXACT.get(name, 1e-3)
    assert conf.shape == xy.shape[:2] and (conf > 0).all()


def test_confidence_of_what_the_label_says_is_one():
    xy = places(margin=17).round()
    conf = SimCC().decode(ideal(SimCC(), xy), SIZE)[1]
    assert (conf > 0.99).all() and conf.max() <= 1  # a pixel lies at most a quarter of a pixel off the nearest bin
    wide = codec_maps(xy, 2.0)
    assert (DSNT(sigma=2.0).decode(wide, SIZE)[1] > 0.9).all()
    share = DSNT(sigma=1.0).decode(wide, SIZE)[1]
    torch.testing.assert_close(share, torch.full_like(share, 0.25), atol=0.03, rtol=0)


def codec_maps(xy, sigma):
    """Logits of a Gaussian of `sigma` cells."""
    return gaussian_maps(to_grid(xy, SIZE, (32, 24)).round(), (32, 24), sigma).clamp_min(1e-30).log()


def test_simccs_error_is_half_a_bin():
    xy = places(40, margin=10)
    for split in (1.5, 2.0, 3.0):
        codec = SimCC(split)
        bins = codec.bins(SIZE)
        x, y = to_grid(xy, SIZE, bins).unbind(-1)
        raw = Bins(gaussian_labels(x, bins[1], 4.0).log(), gaussian_labels(y, bins[0], 4.0).log())
        assert (codec.decode(raw, SIZE)[0] - xy).abs().max() == pytest.approx(1 / (2 * split), rel=0.02)


def test_cal_is_exact_where_a_coarse_map_is_not():
    xy = places(40, margin=6)
    raw = ideal(CAL(), xy, GRID)
    assert (CAL().decode(raw, SIZE)[0] - xy).norm(dim=-1).max() < 1e-4
    coarse = (Heatmap(0.3, argmax).decode(raw.heat, SIZE)[0] - xy).norm(dim=-1).mean()
    assert coarse == pytest.approx(1.53, rel=0.05)  # of a square of four pixels


@pytest.mark.parametrize("name", [n for n, c in CODECS.items() if isinstance(c, Mirrors) and n != "heatmap msra"])
def test_mirrored_raw_is_turned_back(name):
    """What the mirrored crop should give, turned back, is what the crop itself gives."""
    codec, xy = CODECS[name], places(margin=17)
    mirrored = torch.stack([47 - xy[..., 0], xy[..., 1]], -1)[:, list(COCO17.flip)]
    back = codec.mirror(ideal(codec, mirrored, GRID), COCO17.flip)
    found, expected = codec.decode(back, SIZE)[0], codec.decode(ideal(codec, xy, GRID), SIZE)[0]
    assert (found - expected).abs().max() < (0.501 if isinstance(codec, SimCC) else 2e-3)  # a bin is half a pixel


# ---- learning ------------------------------------------------------------------------------------------------------
class TinyTrunk(nn.Module):
    channels = 8

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, image):
        return [self.second(self.first(image).relu())]


@each_codec
def test_every_codec_on_a_trunk(codec):
    torch.manual_seed(0)
    trunk, head = TinyTrunk(), codec.head(8, J, SIZE)
    raw = head(trunk(torch.rand(2, 3, *SIZE))[0])
    loss = codec.loss(raw, places(), torch.ones(2, J), SIZE)
    loss.backward()
    assert loss.shape == () and loss.isfinite()
    for module in (trunk, head):
        for name, p in module.named_parameters():
            assert p.grad is not None and p.grad.isfinite().all(), name
    assert any(p.grad.abs().max() > 0 for p in trunk.parameters())
    xy, conf = codec.decode(raw, SIZE)
    assert xy.shape == (2, J, 2) and xy.isfinite().all() and conf.isfinite().all() and (conf >= 0).all()
    assert isinstance(codec, Codec) and codec == replace(codec)


def leaves(raw):
    """The tensors of a raw output as free parameters, and how they make it again."""
    if isinstance(raw, torch.Tensor):
        free = raw.detach().clone().requires_grad_()
        return [free], lambda: free
    if isinstance(raw, Likelihood):
        xy, logit = (t.detach().clone().requires_grad_() for t in (raw.xy, raw.sigma.logit()))
        return [xy, logit], lambda: Likelihood(xy, logit.sigmoid(), raw.flow)
    free = [t.detach().clone().requires_grad_() for t in raw]
    return free, lambda: type(raw)(*free)


# Pixels off after the descent: what is not listed comes within half a pixel.
REACHED = {"heatmap msra": 3.0, "heatmap quarter": 1.5, "sampling": 2.5, "sampling released": 2.5, "dsnt variance": 1.5}


@pytest.mark.parametrize("name", [n for n in CODECS if n != "heatmap hardest"])
def test_descent_on_the_raw_output_finds_the_joints(name):
    codec, joints = CODECS[name], 3
    if isinstance(codec, PIPNet):
        codec = PIPNet(SHAPE[:3], 2)
    xy, weight = places(joints=joints, margin=18), torch.ones(2, joints)
    free, make = leaves(map_raw(codec, joints))
    start = (codec.decode(make(), SIZE)[0] - xy).norm(dim=-1).mean()
    optimizer = torch.optim.Adam(free, 0.1)
    for step in range(160):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / 160)
        optimizer.zero_grad()
        codec.loss(make(), xy, weight, SIZE).backward()
        optimizer.step()
    error = (codec.decode(make(), SIZE)[0] - xy).norm(dim=-1)
    assert start > 4
    assert error.max() < REACHED.get(name, 0.5)


@each_codec
def test_a_joint_without_weight_teaches_nothing(codec):
    free, make = leaves(map_raw(codec))
    weight = torch.ones(2, J)
    weight[:, 3] = 0
    xy = places()
    elsewhere = xy.clone()
    elsewhere[:, 3] = 40.0
    losses = []
    for target in (xy, elsewhere):
        torch.manual_seed(1)
        losses.append(codec.loss(make(), target, weight, SIZE))
    torch.testing.assert_close(losses[0], losses[1])
    losses[0].backward()
    total = sum(t.grad.unflatten(1, (J, -1)).flatten(2).abs().sum(-1) for t in free)
    assert (total[:, 3] == 0).all() and total.sum() > 0


SMOOTH = [n for n in CODECS if not n.startswith(("sikr", "sampling released", "hdm"))]


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_are_those_of_the_loss(name):
    """Against differences, along a random direction, in double precision."""
    codec = CODECS[name]
    raw = codec.head(8, J, SIZE).double()(torch.randn(2, 8, *GRID, dtype=torch.float64))
    free, make = leaves(raw)
    xy, weight = places().double(), torch.rand(2, J, dtype=torch.float64)

    def loss():
        torch.manual_seed(3)
        return codec.loss(make(), xy, weight, SIZE)

    loss().backward()
    directions = [torch.randn_like(t) for t in free]
    slope = sum((d * t.grad).sum() for d, t in zip(directions, free, strict=True))
    step, ends = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for t, d in zip(free, directions, strict=True):
                t += sign * step * d
            ends.append(loss())
            for t, d in zip(free, directions, strict=True):
                t -= sign * step * d
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * step), slope, rtol=1e-4, atol=1e-9)


# ---- expectations --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("beta", "mean"), [(20.0, 0.0425), (50.0, 0.207), (100.0, 0.300)])
def test_bias_of_integral_regression(beta, mean):
    xy = clouds()
    error = (Integral(beta).cells(gaussian_maps(xy, (64, 48), 2.0)) - xy).norm(dim=-1)
    assert error.mean() == pytest.approx(mean, rel=0.04)


def test_debiased_integral_is_the_papers_equation():
    """J = C / (C - hw) J_r - hw / (C - hw) middle, in double precision, from a map of zeros and one bump."""
    xy = clouds().double()
    maps = gaussian_maps(xy, (64, 48), 2.0)
    for beta, bound in ((1.0, 1e-3), (5.0, 4e-4), (10.0, 6e-3)):
        biased, C = Integral(beta).cells(maps), (beta * maps).exp().sum((-1, -2)).unsqueeze(-1)
        area = 64 * 48
        middle = torch.tensor([23.5, 31.5], dtype=torch.float64)
        expected = C / (C - area) * biased - area / (C - area) * middle
        found = DebiasedIntegral(beta).cells(maps)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        assert (found - xy).norm(dim=-1).max() < bound
        assert (biased - xy).norm(dim=-1).mean() > 0.3
        # The middle counted from 1, or height for width, is many pixels off.
        wrong = C / (C - area) * biased - area / (C - area) * (middle + 0.5)
        assert beta > 1 or (wrong - xy).norm(dim=-1).mean() > 50
    # No pull towards the middle: the error does not depend on where the joint is.
    found = DebiasedIntegral(10.0).cells(maps)
    slope = np.polyfit((xy - middle)[:, 0, 0].numpy(), (found - xy)[:, 0, 0].numpy(), 1)[0]
    biased_slope = np.polyfit((xy - middle)[:, 0, 0].numpy(), (biased - xy)[:, 0, 0].numpy(), 1)[0]
    assert abs(slope) < 1e-4 < 1e-2 < abs(biased_slope)


def test_a_map_without_anything_is_read_in_its_middle():
    for raw in (torch.zeros(1, 2, 7, 5), -torch.rand(1, 2, 7, 5)):
        torch.testing.assert_close(DebiasedIntegral().cells(raw), torch.tensor([2.0, 3.0]).expand(1, 2, 2))


@pytest.mark.parametrize(
    "codec", [Integral(), DSNT(), SIKR(sigmoid=False), DebiasedIntegral(detection=0.0), HDM(shares="softmax")]
)
def test_expectations_are_in_single_precision(codec):
    """Under mixed precision as without it; and of half-precision maps, for which cell 300.5 is no number."""
    xy = places(4, margin=60, size=(256, 192))
    raw = gaussian_maps(to_grid(xy, (256, 192), (64, 48)), (64, 48), 2.0)
    raw = raw if isinstance(codec, DebiasedIntegral) else raw.clamp_min(1e-30).log()
    weight = torch.ones(4, J)
    with torch.autocast("cpu", torch.bfloat16):
        seen, loss = codec.decode(raw, (256, 192))[0], codec.loss(raw, xy, weight, (256, 192))
    torch.testing.assert_close(seen, codec.decode(raw, (256, 192))[0], atol=1e-3, rtol=0)
    assert (seen - xy).abs().max() < 0.03
    torch.testing.assert_close(loss, codec.loss(raw, xy, weight, (256, 192)), atol=1e-5, rtol=1e-4)
    two = torch.full((1, 1, 2, 400), 0.0 if isinstance(codec, DebiasedIntegral) else -80.0, dtype=torch.bfloat16)
    two[..., 0, 300:302] = 8.0
    torch.testing.assert_close(codec.decode(two, (2, 400))[0], torch.tensor([[[300.5, 0.0]]]), atol=1e-3, rtol=0)


def test_symmetric_gradient_by_hand():
    """Expectation 1.3 of cells 0 to 3: the gradient is -2 left of it, +2 right of it."""
    p = torch.tensor([0.2, 0.4, 0.3, 0.1], requires_grad=True)
    mean = symmetric_expectation(p, torch.arange(4.0))
    mean.backward()
    assert mean.item() == pytest.approx(1.3)
    assert p.grad.tolist() == [-2, -2, 2, 2]


def test_symmetric_gradient_does_not_depend_on_the_place():
    """The same bump at two places with the same error: equal gradients for SIKR, others for IPR."""
    norms = {}
    for name, codec in (("sikr", SIKR(sigmoid=False)), ("ipr", Integral())):
        for x in (8.4, 40.4):
            raw = -offsets_to(torch.tensor([[[x, 30.0]]]), (64, 48)).square().sum(2) / 8
            raw.requires_grad_()
            target = from_grid(torch.tensor([[[x + 3, 30.0]]]), (64, 48), (256, 192))
            codec.loss(raw, target, torch.ones(1, 1), (256, 192)).backward()
            p = flat_softmax(raw.detach())
            # Undo the softmax: d loss / d p up to a constant.
            to_p = (raw.grad / p)[0, 0, 30, int(x) - 4 : int(x) + 5]
            norms[name, x] = to_p - to_p.mean()
    torch.testing.assert_close(norms["sikr", 8.4], norms["sikr", 40.4], rtol=1e-3, atol=1e-5)
    side = norms["sikr", 8.4]
    assert (
        (side[:5] - side[0]).abs().max() < 1e-4 < side[0] - side[5]
    )  # one level on either side: mass is asked to the right
    assert (side[5:] - side[5]).abs().max() < 1e-4
    assert (norms["ipr", 8.4].diff().abs() > 1e-4).all()  # a slope, not a step


def test_sikr_reads_like_ipr():
    raw = map_raw(SIKR())
    torch.testing.assert_close(SIKR(sigmoid=False).cells(raw)[0], Integral().cells(raw))
    wide = SIKR(sigmoid=False, amplitude=None)
    free = raw.detach().requires_grad_()
    grads = []
    for codec in (wide, SIKR(sigmoid=False, amplitude=1.5)):
        grads.append(torch.autograd.grad(codec.cells(free)[0][..., 0].sum(), free)[0])
    torch.testing.assert_close(grads[0], grads[1])  # 12 cells across: an eighth is 1.5


def test_dsnt_by_hand():
    p = torch.zeros(1, 1, 4, 4)
    p[0, 0, 1, 2] = 1
    assert dsnt_parts.dsnt(p)[0, 0].tolist() == [0.25, -0.25]
    assert dsnt_parts.variance_error(p, torch.zeros(1, 1, 2), 1.0).item() == 2  # no spread along x and y, 1 wanted
    p[0, 0, 1, 0] = 1
    # Cells 0 and 2 alike: variance 1 along x, 0 along y.
    assert dsnt_parts.variance_error(p / 2, torch.zeros(1, 1, 2), 1.0).item() == pytest.approx(1)


def test_regularisers_are_least_at_the_gaussian():
    xy = torch.tensor([[[0.1, -0.2]]])
    right = dsnt_parts.target_maps(xy, (17, 15), 1.0)
    wrong = dsnt_parts.target_maps(xy + 0.2, (17, 15), 1.0)
    for measure in (dsnt_parts.kl_divergence, dsnt_parts.js_divergence):
        assert measure(right, xy, 1.0).abs() < 1e-6 < 0.1 < measure(wrong, xy, 1.0)
    far = dsnt_parts.target_maps(xy + 1.0, (17, 15), 0.5)
    assert dsnt_parts.js_divergence(far, xy, 0.5).item() == pytest.approx(np.log(2), rel=1e-3)
    assert dsnt_parts.variance_error(right, xy, 1.0) < 1e-3 < dsnt_parts.variance_error(far, xy, 1.0)


# ---- sampling ------------------------------------------------------------------------------------------------------
def test_triangular_density():
    x = triangular(torch.linspace(0, 1, 100001, dtype=torch.float64))
    assert x[0] == -1 and x[-1] == 1 and x[50000] == 0
    assert scipy.stats.kstest(x[1:-1].numpy(), scipy.stats.triang(0.5, -1, 2).cdf).statistic < 1e-4


def test_interpolation_by_hand():
    p = torch.tensor([[0.2, 0.6, 0.2]])
    at = torch.tensor([[0.5, 1.0, 2.25]])
    torch.testing.assert_close(interpolate(p, at), torch.tensor([[0.4, 0.6, 0.15]]))
    torch.testing.assert_close(interpolate(p, torch.tensor([[-0.5, -1.0, 3.0]])), torch.tensor([[0.1, 0.0, 0.0]]))


def test_samples_are_the_maps_own():
    """Small tau: each sample is nearly one cell, their mean the expectation, and the loss the mean distance, not 0."""
    torch.manual_seed(0)
    logits = torch.full((1, 1, 4, 16), -30.0)
    logits[0, 0, 1, 3] = logits[0, 0, 1, 11] = 0  # two equal bumps, 8 cells apart
    codec = SamplingArgmax(samples=20000, tau=0.01)
    drawn = codec.draw(logits)[0, 0]
    standard_error = drawn[:, 0].std() / 20000**0.5
    assert (drawn[:, 0].mean() - expectation(flat_softmax(logits))[0, 0, 0]).abs() < 3 * standard_error
    assert drawn[:, 0].std() == pytest.approx((4**2 + 1 / 6) ** 0.5, rel=0.02)  # of the jitter: 1 / 6
    halfway = from_grid(torch.tensor([[[7.0, 1.0]]]), (4, 16), (16, 64))
    soft = Integral().loss(logits, halfway, torch.ones(1, 1), (16, 64))
    sampled = codec.loss(logits, halfway, torch.ones(1, 1), (16, 64))
    assert soft < 1e-5
    # 4 cells of 16 along x; the jitter's mean distance, a third of a cell of 4, along y.
    assert sampled.item() == pytest.approx(4 / 16 + 1 / 12, rel=0.02)


def test_temperature():
    assert [temperature(e) for e in (0.0, 10.0, 25.0, 50.0)] == [2, 1.4, 0.5, 0.5]
    assert SamplingArgmax().at(10) == SamplingArgmax(tau=1.4)
    assert SamplingArgmax(samples=8, tau=0.7).at(10) == SamplingArgmax(samples=8, tau=0.7)


# ---- bins ----------------------------------------------------------------------------------------------------------
def test_simcc_labels_by_hand():
    labels = smoothed_labels(torch.tensor([2]), 5)
    torch.testing.assert_close(labels, torch.tensor([[0.025, 0.025, 0.9, 0.025, 0.025]]))
    assert gaussian_labels(torch.tensor([50.3]), 100, 4.0).sum().item() == pytest.approx(1)
    # Against a uniform prediction the divergence is log n less the entropy.
    entropy = -(labels * labels.log()).sum()
    torch.testing.assert_close(kl_to_labels(torch.zeros(1, 5), labels)[0], (np.log(5) - entropy) / 5)


def test_simcc_takes_no_notice_of_joints_outside():
    raw = map_raw(SimCC())
    xy = places()
    xy[:, 0] = torch.tensor([-3.0, 10.0])
    weight = torch.ones(2, J)
    weight[:, 0] = 0
    torch.testing.assert_close(SimCC().loss(raw, xy, torch.ones(2, J), SIZE), SimCC().loss(raw, xy, weight, SIZE))


def test_simcc_says_when_the_trunk_has_another_stride():
    with pytest.raises(InputError, match="16 x 12 cells, got 8 x 6: set the codec's stride"):
        SimCC().head(8, J, SIZE)(torch.zeros(1, 8, 8, 6))


# ---- offsets -------------------------------------------------------------------------------------------------------
def test_udp_offsets_by_hand():
    """A joint at cell (5, 4) of a 12x16 map; radius 2 cells."""
    codec = UDPOffset(radius=2 / 16, places="pixel")
    target = codec.target(torch.tensor([[[21.5, 17.5]]]), SIZE, GRID)[0, 0]
    assert target[0].sum() == 13  # cells within 2
    assert target[:, 4, 5].tolist() == [1, 0, 0] and target[:, 4, 7].tolist() == [1, -1, 0]
    assert target[:, 5, 4].tolist() == [1, 0.5, -0.5] and (target[:, 6, 6] == 0).all()


def test_fitted_mask_is_a_gaussian_of_the_errors():
    random = np.random.RandomState(0)
    error = torch.tensor(random.multivariate_normal([0.5, -0.3], [[1.0, 0.4], [0.4, 0.6]], (40, 5)))
    weight = torch.ones(40, 5, dtype=torch.float64)
    weight[:, 2] = 0
    cell = torch.full((40, 5, 2), 7.0, dtype=torch.float64)
    mask = fitted_mask(error, weight, -offsets_to(cell, GRID))
    counted = error[weight > 0].numpy()
    grid = np.stack(np.meshgrid(np.arange(12) - 7, np.arange(16) - 7), -1)
    density = scipy.stats.multivariate_normal(counted.mean(0), np.cov(counted.T, bias=True)).pdf(grid)
    density[np.abs(grid).max(-1) > 3] = 0
    np.testing.assert_allclose(mask[0, 0].numpy(), density / density.max(), atol=1e-5)


def test_cal_offsets_count_where_the_mask_is():
    raw = OffsetMaps(*(t.detach().requires_grad_() for t in map_raw(CAL())))
    xy = torch.full((2, J, 2), 21.5)  # cell (5, 5)
    replace(CAL(), mask="disc", radius=2.0).loss(raw, xy, torch.ones(2, J), SIZE).backward()
    taught = raw.offset.grad.abs().sum((0, 1, 2)) > 0
    assert taught.sum() == 13 and taught[5, 7] and not taught[5, 8]


def test_pipnet_by_hand():
    """Three points on a line: 0 and 1 are near each other, 2 is near 1."""
    near = nearest_points(torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]]), 1)
    assert near.tolist() == [[1], [0], [1]]
    # Columns: own places of 0, 1, 2, then what 0 says of 1, 1 of 0, 2 of 1.
    expected = torch.tensor([[1, 0, 0, 0, 1, 0], [0, 1, 0, 1, 0, 1], [0, 0, 1, 0, 0, 0]]) / torch.tensor(
        [[2.0], [3], [1]]
    )
    torch.testing.assert_close(merge_weights(near), expected)
    # Released: the one that speaks of 0 is counted twice, because two speak of 1.
    torch.testing.assert_close(merge_weights(near, released=True)[0], torch.tensor([1, 0, 0, 0, 2, 0]) / 3)


def test_pipnet_reads_planted_maps_and_learns_at_the_cell_alone():
    codec, xy = PIPNet(SHAPE, 5), places(margin=5)
    raw = ideal(codec, xy, (2, 2))
    assert (codec.decode(raw, SIZE)[0] - xy).abs().max() < 1e-4
    free = PIPMaps(*(torch.randn_like(t).requires_grad_() for t in raw))
    codec.loss(free, xy, torch.ones(2, J), SIZE).backward()
    cell = (to_fraction(xy, SIZE) * 2).floor()
    at_cell = torch.zeros(2, J, 2, 2).flatten(-2)
    at_cell = at_cell.scatter(-1, (cell[..., 1] * 2 + cell[..., 0]).long()[..., None], 1.0).unflatten(-1, (2, 2)) > 0
    for maps in free[1:]:
        touched = (maps.grad.unflatten(1, (J, -1)) != 0).any(2)
        assert torch.equal(touched, at_cell)


# ---- likelihood ----------------------------------------------------------------------------------------------------
def test_flow_is_a_density_and_can_be_inverted():
    torch.manual_seed(0)
    flow = RealNVP().double()
    for p in flow.parameters():
        p.data = 0.15 * torch.randn_like(p)
    side = torch.linspace(-12, 12, 161, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    density = flow.log_prob(x).exp()
    assert density.sum().item() * 0.15**2 == pytest.approx(1, abs=5e-3)
    assert (density - torch.exp(-x.square().sum(-1) / 2) / (2 * np.pi)).abs().max() > 0.01  # no longer the normal one
    some = x[::997]
    z, log_det = flow.to_latent(some)
    torch.testing.assert_close(flow.from_latent(z), some)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: flow.to_latent(v)[0]))(some)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, log_det)


@pytest.mark.parametrize("density", ["original", "mmpose"])
def test_rle_by_hand(density):
    """With the flow a standard normal: sigma 0.5, error (0.25, 0) -> z = (0.5, 0)."""
    flow = RealNVP()
    for p in flow.parameters():
        nn.init.zeros_(p)
    raw = Likelihood(torch.tensor([[[0.25, 0.0]]]), torch.full((1, 1, 2), 0.5), flow)
    log_phi = -0.125 - np.log(2 * np.pi)
    if density == "original":
        q = [np.log(0.5 * np.sqrt(2 * np.pi)) + e / (np.sqrt(2) * 0.5) for e in (0.25, 0.0)]
    else:
        q = [e / 0.5 for e in (0.25, 0.0)]  # log(2 sigma) is 0
    expected = sum(np.log(0.5) - log_phi + v for v in q)
    loss = RLE(density).loss(raw, from_fraction(torch.tensor([[[0.5, 0.5]]]), SIZE), torch.ones(1, 1), SIZE)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert RLE(density).decode(raw, SIZE)[1].item() == 0.5


def test_rle_learns_how_large_errors_are():
    """The same prediction for labels that scatter: sigma grows with the scatter of the joint."""
    torch.manual_seed(0)
    scatter = torch.tensor([0.01, 0.05])
    raw = RLE().head(4, 2, SIZE)(torch.randn(1, 4, 4, 3))
    logit = torch.zeros(1, 2, 2, requires_grad=True)
    optimizer = torch.optim.Adam([logit, *raw.flow.parameters()], 0.03)
    for _ in range(100):
        labels = scatter[:, None] * torch.distributions.Laplace(0.0, 1.0).sample((64, 2, 2))
        out = Likelihood(torch.zeros(64, 2, 2), logit.sigmoid().expand(64, -1, -1), raw.flow)
        optimizer.zero_grad()
        RLE().loss(out, from_fraction(labels + 0.5, SIZE), torch.ones(64, 2), SIZE).backward()
        optimizer.step()
    sigma = logit.detach().sigmoid()[0].mean(-1)
    assert sigma[1] / sigma[0] == pytest.approx(5, rel=0.25)


def test_coordinates_are_divided_by_the_norm_of_the_features():
    head, features = RLE().head(8, J, SIZE), torch.randn(2, 8, 4, 3)
    torch.testing.assert_close(head(features).xy, head(7 * features).xy)
    assert not torch.allclose(head(features).sigma, head(7 * features).sigma)


# ---- transport -----------------------------------------------------------------------------------------------------
def exact_cost(p, cells, share):
    """Earth mover's distance by a linear program."""
    h, w = p.shape
    y, x = np.mgrid[:h, :w]
    cost = np.linalg.norm(np.stack([x, y], -1).reshape(-1, 1, 2) - cells, axis=-1)
    n, p, share = h * w, p.ravel() / p.sum(), share / share.sum()
    rows = np.zeros((n + 3, n * 4))
    for i in range(n):
        rows[i, 4 * i : 4 * i + 4] = 1
    for j in range(3):
        rows[n + j, j::4] = 1
    return scipy.optimize.linprog(cost.ravel(), A_eq=rows, b_eq=np.r_[p, share[:3]]).fun


@pytest.mark.parametrize("seed", range(6))
def test_sinkhorn_finds_the_exact_cost(seed):
    torch.manual_seed(seed)
    logits, xy = (0.5, 2, 5)[seed % 3] * torch.randn(1, 1, 9, 7), torch.rand(1, 1, 2) * torch.tensor([6.0, 8.0])
    cells, share = bilinear_demand(xy, (9, 7))
    exact = exact_cost(flat_softmax(logits.double())[0, 0].numpy(), cells[0, 0].numpy(), share[0, 0].double().numpy())
    assert transport_cost(flat_softmax(logits), xy).item() == pytest.approx(exact, rel=0.01)


def test_transport_by_hand():
    logits = torch.full((1, 1, 9, 9), -60.0)
    logits[0, 0, 1, 2] = 0
    assert transport_cost(flat_softmax(logits), torch.tensor([[[5.0, 5.0]]])).item() == pytest.approx(5, rel=1e-4)
    cells, share = bilinear_demand(torch.tensor([[[2.25, 8.0]]]), (9, 9))
    torch.testing.assert_close((cells * share.unsqueeze(-1)).sum(-2), torch.tensor([[[2.25, 8.0]]]))
    assert share.sum() == 1 and cells.max() <= 8


@pytest.mark.parametrize("shares", [flat_softmax, flat_softplus])
def test_transport_carries_mass_towards_the_joint(shares):
    logits = torch.zeros(1, 1, 9, 9, requires_grad=True)
    transport_cost(shares(logits), torch.tensor([[[6.0, 4.0]]])).sum().backward()
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    distance = torch.hypot(x - 6, y - 4)
    order = distance.flatten().argsort()
    gradient = logits.grad.flatten()[order]
    assert gradient[0] < 0 < gradient[-1] and (gradient.diff() > -1e-6).all()


@pytest.mark.parametrize(("shares", "raw"), [("softmax", torch.log), ("softplus", lambda p: p.expm1().log())])
def test_a_map_that_costs_nothing_is_read_exactly(shares, raw):
    cells, share = bilinear_demand(torch.tensor([[[3.3, 5.6]]]), (9, 9))
    p = torch.zeros(1, 1, 81)
    p.scatter_(-1, (cells[..., 1] * 9 + cells[..., 0]).long(), share)
    xy = HDM(shares=shares).decode(raw(p.clamp_min(1e-12)).unflatten(-1, (9, 9)), (36, 36))[0]
    assert (to_grid(xy, (36, 36), (9, 9)) - torch.tensor([3.3, 5.6])).norm() < 1e-3


def test_a_joint_in_the_wrong_cell_is_not_stuck():
    """All of a map in one wrong cell: the gradient at the right one is gone for a softmax, and is not for a softplus."""
    right = {}
    for shares in ("softmax", "softplus"):
        raw = torch.full((1, 1, 9, 9), -8.0)
        raw[..., 2, 2] = 20.0
        raw.requires_grad_()
        HDM(shares=shares).loss(raw, torch.tensor([[[25.5, 25.5]]]), torch.ones(1, 1), (36, 36)).backward()
        right[shares] = raw.grad[0, 0, 6, 6].item()
    assert right["softplus"] < 1e6 * right["softmax"] < 0


def test_half_precision_maps_are_read_at_the_right_cell():
    maps = gaussian_maps(torch.tensor([[[301.0, 2.0]]]), (4, 400), 2.0)
    assert argmax(maps.bfloat16())[0, 0].tolist() == [301, 2]
