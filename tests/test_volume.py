"""Volumes: what is encoded comes back, expectations of known volumes, and who teaches."""

import pytest
import torch
from torch.nn import functional as F

from body3d.codecs.volume import (
    CoarseToFine,
    IntegralVolume,
    coordinate_loss,
    from_slices,
    soft_argmax_3d,
    to_slices,
    voxel_argmax,
)

SIZE = (256, 256)
J = 17


def poses(batch: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Crop pixels away from the border, and depths within the cube."""
    g = torch.Generator().manual_seed(seed)
    return 10 + 235 * torch.rand(batch, J, 2, generator=g), 1.9 * torch.rand(batch, J, generator=g) - 0.95


def raw_of(codec: CoarseToFine, xy, z, grid=(64, 64)) -> list[torch.Tensor]:
    return [codec.target(xy, z, SIZE, grid, d).flatten(1, 2) for d in codec.depths]


def test_slices():
    """The centres of two slices of a cube of 2 m are half a metre from the root; 64 slices are 31.25 mm thick."""
    torch.testing.assert_close(from_slices(torch.tensor([0.0, 1.0]), 2), torch.tensor([-0.5, 0.5]))
    thickness = from_slices(torch.arange(64.0), 64).diff()
    torch.testing.assert_close(thickness, torch.full_like(thickness, 0.03125))
    torch.testing.assert_close(
        to_slices(torch.tensor([-1.0, 0.0, 1.0]), 64, places="msra"), torch.tensor([0.0, 32, 64])
    )
    z = torch.linspace(-1, 1, 9)
    for places in ("pixel", "msra"):
        torch.testing.assert_close(from_slices(to_slices(z, 64, 1.2, places), 64, 1.2, places), z)


def test_encode_and_decode_within_half_a_voxel():
    codec, (xy, z) = CoarseToFine(), poses()
    got_xy, got_z, conf = codec.decode(raw_of(codec, xy, z), SIZE)
    assert (got_xy - xy).abs().max() <= 2 + 1e-3  # pixels: a cell is four
    assert (got_z - z).abs().max() <= 1 / 64 + 1e-6  # metres: a slice is a 32nd
    assert conf.min() > 0.8
    # The mean over places is not moved.
    assert (got_xy - xy).mean().abs() < 0.3
    assert (got_z - z).mean().abs() < 0.003


def test_every_stack_has_the_same_bump_in_the_image_and_finer_ones_in_depth():
    codec, (xy, z) = CoarseToFine(), poses()
    raws = raw_of(codec, xy, z)
    assert [raw.shape[1] for raw in raws] == [17, 34, 68, 1088]
    flat = codec.volume(raws[0], 1)[:, :, 0]
    for raw, d in zip(raws[1:3], (2, 4), strict=True):
        volume = codec.volume(raw, d)
        torch.testing.assert_close(volume.sum(2), flat)  # one slice each
        slice_of = voxel_argmax(volume)[0][..., 2]
        assert ((slice_of + 0.5) / d * 2 - 1 - z).abs().max() <= 1 / d + 1e-6
    column = codec.volume(raws[3], 64).amax((-1, -2))
    assert ((column > 0).sum(-1) <= 13).all()
    # As wide in depth as in the image: the second moments of the column and of a row.
    spread = lambda p: (
        ((p * torch.arange(64.0) ** 2).sum(-1) / p.sum(-1)) - ((p * torch.arange(64.0)).sum(-1) / p.sum(-1)) ** 2
    )
    inside = (z.abs() < 0.7) & ((xy - 128).abs() < 90).all(-1)
    assert inside.sum() > 10
    row = flat.amax(-2)
    torch.testing.assert_close(spread(column)[inside], spread(row)[inside], rtol=0.12, atol=0)


def test_the_loss_is_zero_at_the_target_only_and_unknown_joints_do_not_teach():
    codec, (xy, z) = CoarseToFine(depths=(1, 8)), poses(2)
    raws = [raw.clone().requires_grad_() for raw in raw_of(codec, xy, z)]
    weight = torch.ones(2, J)
    assert codec.loss(raws, xy, z, weight, SIZE) == 0
    weight[:, 3] = 0
    loss = codec.loss(raws, xy + 8, z, weight, SIZE)
    loss.backward()
    for raw, d in zip(raws, codec.depths, strict=True):
        per_joint = codec.volume(raw.grad, d).abs().sum((0, 2, 3, 4))
        assert per_joint[3] == 0
        assert (per_joint[[0, 1, 2, *range(4, J)]] > 0).all()


def test_by_entropy_a_volume_that_is_the_bump_teaches_nothing_more():
    """Its logits are the logarithm of the target's shares; of a flat volume the loss is the logarithm of the voxels."""
    codec, (xy, z) = CoarseToFine(depths=(1, 8), teach="entropy"), poses(2)
    targets = [codec.target(xy, z, SIZE, (16, 16), d) for d in codec.depths]
    raws = [(t + 1e-12).log().flatten(1, 2).requires_grad_() for t in targets]
    loss = codec.loss(raws, xy, z, torch.ones(2, J), SIZE)
    shares = [t / t.sum((2, 3, 4), keepdim=True) for t in targets]
    torch.testing.assert_close(loss, sum(-torch.xlogy(s, s).sum((2, 3, 4)).mean() for s in shares))
    loss.backward()
    assert all(raw.grad.abs().max() < 1e-6 for raw in raws)
    flat = [torch.zeros(2, J * d, 16, 16) for d in codec.depths]
    expected = torch.tensor(256.0).log() + torch.tensor(2048.0).log()
    torch.testing.assert_close(codec.loss(flat, xy, z, torch.ones(2, J), SIZE), expected)
    one = torch.zeros(2, J)
    one[1, 4] = 1
    torch.testing.assert_close(codec.loss(flat, xy, z, one, SIZE), expected / (2 * J))


def test_by_entropy_the_mean_is_read_and_confidence_is_a_share_of_the_bump():
    codec, (xy, z) = CoarseToFine(depths=(1, 16), sigma=1.5, teach="entropy"), poses()
    raws = [
        (raw + 1e-12).log() + 3.0 for raw in raw_of(codec, xy, z, (32, 32))
    ]  # softmax does not see what is added to all
    got_xy, got_z, conf = codec.decode(raws, SIZE)
    inside = (z.abs() < 0.7) & ((xy - 128).abs() < 90).all(-1)  # the whole bump is in the volume
    assert (got_xy - xy)[inside].abs().max() < 0.01 and (got_z - z)[inside].abs().max() < 0.01
    assert conf[inside].min() > 0.6 and conf[inside].median() > 0.8 and conf.max() <= 1
    halves = [torch.logaddexp(raw, raw.roll(9, -1)) for raw in raws]  # two bumps: half as sure
    between, _, half = codec.decode(halves, SIZE)
    torch.testing.assert_close(half[inside], conf[inside] / 2, rtol=0.02, atol=0)
    right = xy[..., 0] + 9 * 8 < 200  # where the second bump has not come in again on the left
    torch.testing.assert_close(between[inside & right][:, 0], xy[inside & right][:, 0] + 36, atol=0.05, rtol=0)
    assert codec.decode([torch.zeros_like(raw) for raw in raws], SIZE)[2].max() < 0.01


def test_soft_argmax_of_a_delta_is_exact():
    logits = torch.full((2, 3, 8, 10, 12), -1e4)
    cells = torch.tensor([[[0, 0, 0], [11, 9, 7], [5, 2, 3]], [[1, 8, 6], [10, 0, 7], [3, 3, 3]]])
    for b in range(2):
        for j in range(3):
            x, y, z = cells[b, j]
            logits[b, j, z, y, x] = 0
    assert torch.equal(soft_argmax_3d(logits), cells.float())
    assert torch.equal(voxel_argmax(logits)[0], cells.float())


def test_soft_argmax_of_products_and_of_nothing():
    """A separable distribution: each coordinate is the mean of its factor. A flat volume: the middle."""
    torch.manual_seed(0)
    factors = [torch.randn(n, dtype=torch.float64) for n in (6, 7, 9)]
    logits = factors[0][:, None, None] + factors[1][:, None] + factors[2]
    means = [(f.softmax(0) * torch.arange(len(f))).sum() for f in factors[::-1]]
    torch.testing.assert_close(soft_argmax_3d(logits[None, None])[0, 0], torch.stack(means))
    torch.testing.assert_close(soft_argmax_3d(torch.zeros(1, 1, 64, 64, 64)), torch.full((1, 1, 3), 31.5))


@pytest.mark.parametrize("places", ["pixel", "msra"])
def test_cells_and_back(places):
    codec, (xy, z) = IntegralVolume(places=places), poses()
    cells = codec.to_cells(xy, z, SIZE, (64, 64, 64))
    got_xy, got_z = codec.from_cells(cells, SIZE, (64, 64, 64))
    torch.testing.assert_close(got_xy, xy)
    torch.testing.assert_close(got_z, z)
    if places == "msra":  # as released: x / 4, (z / 1 m + 1) / 2 * 64
        torch.testing.assert_close(cells[..., :2], xy / 4)
        torch.testing.assert_close(cells[..., 2], (z + 1) * 32)


def test_our_places_mirror():
    """A mirrored crop gives mirrored cells, which the released ones do not."""
    xy, z = poses()
    mirrored = torch.cat([255 - xy[..., :1], xy[..., 1:]], -1)
    off = {}
    for places in ("pixel", "msra"):
        codec = IntegralVolume(places=places)
        a, b = (codec.to_cells(p, z, SIZE, (64, 64, 64))[..., 0] for p in (xy, mirrored))
        off[places] = (63 - b - a).abs().max()
    assert off["pixel"] < 1e-4
    assert off["msra"] > 0.7


def test_the_integral_loss():
    codec, (xy, z) = IntegralVolume(), poses(2)
    torch.manual_seed(0)
    logits = torch.randn(2, J, 16, 16, 16, requires_grad=True)
    weight, has_depth = torch.ones(2, J), torch.tensor([True, False])
    weight[0, 0] = 0
    by_hand = 0.0
    cells, target = soft_argmax_3d(logits), codec.to_cells(xy, z, SIZE, (16, 16, 16))
    for b in range(2):
        for j in range(J):
            e = (cells - target)[b, j].abs()
            by_hand = by_hand + weight[b, j] * (e[0] + e[1] + has_depth[b] * e[2]) / 3
    loss = codec.loss(logits, xy, z, weight, has_depth, SIZE)
    torch.testing.assert_close(loss, by_hand / (2 * J))
    loss.backward()
    assert logits.grad[0, 0].abs().max() == 0
    # Of an image without depth only the marginals over x and y teach: equal changes of all slices of a column aside, nothing.
    flat = coordinate_loss(cells[1:], target[1:] + torch.tensor([0.0, 0, 5]), weight[1:], has_depth[1:])
    torch.testing.assert_close(flat, coordinate_loss(cells[1:], target[1:], weight[1:], has_depth[1:]))


def test_it_learns_a_place():
    """Gradient descent on logits ends at the target, in all three coordinates."""
    codec, (xy, z) = IntegralVolume(), poses(1)
    xy, z = xy[:, :4], z[:, :4]
    logits = torch.zeros(1, 4, 8, 8, 8, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.3)
    for _ in range(100):
        optimizer.zero_grad()
        codec.loss(logits, xy, z, torch.ones(1, 4), torch.tensor([True]), SIZE).backward()
        optimizer.step()
    got_xy, got_z, conf = codec.decode(logits, SIZE)
    assert (got_xy - xy).abs().max() < 8
    assert (got_z - z).abs().max() < 0.06
    assert (conf == 1).all()  # as of released weights, whose poses weigh in a fit what others do


def test_a_joint_outside_the_cube_has_an_empty_target():
    codec = CoarseToFine()
    target = codec.target(torch.full((1, 1, 2), 100.0), torch.tensor([[1.5]]), SIZE, (64, 64), 64)
    assert target.abs().max() == 0
    inside = codec.target(torch.full((1, 1, 2), 100.0), torch.tensor([[0.99]]), SIZE, (64, 64), 64)
    assert F.max_pool3d(inside, (64, 64, 64)).item() > 0.9
